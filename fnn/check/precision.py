"""Fewer digits: is the rule as good as its dtype allows?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fnn.block import is_floating
from fnn.check.batches import Batch, find
from fnn.check.derivative import Trial
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result
from fnn.check.rule import PROGRAMS, Sample
from fnn.check.subject import Cotangents, Lab, cast, path_of
from fnn.check.transformations import first_line
from fnn.compiling import jit_for_few_runs
from fnn.pytrees import flat, split_floats

NARROW = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
MAGNITUDES = (1.0, 0.25, 8.0, 30.0)
SMALL = 1e-3  # of one input at a time: of all, what is left of their differences is rounding
SATURATED = 20.0  # float32 still knows e^-20, and 1 - e^-20 is 1
WIDE = 8.0  # units, of every other change
STIRS = 16  # random changes of the inputs, which tell how far rounding may carry a result
ALLOWED = 24  # units that many roundings may add up to; one rule rounds a few times
PICKED = "dy 1 at each row's largest y, else 0"  # as a loss picks its label: 1 - p must not cancel
ROWS = 1024  # of a long batch, over which a narrow sum would lose its digits


def precision(lab: Lab, tried: Sequence[Trial], dtype_name: str) -> Result:
    """The rule in a narrower dtype against itself in float64, from the same rounded numbers."""
    if lab.single and dtype_name == "float32":
        return Result(dtype_name, SKIPPED, "the comparison itself is in float32")
    dtype = NARROW[dtype_name]
    unit = float(jnp.finfo(dtype).eps) / 2
    problems, worst, relative = dict[str, Problem](), 0.0, 0.0
    kept = _kept_dtypes(lab, dtype)
    batch, rows = _long(lab, tried) if dtype_name != "float32" else (None, frozenset())
    for what, sample in _samples(lab, batch):
        try:
            low, dy = _lowered(lab, sample, dtype, kept)
            y, got = _narrow(lab, low, dy)
            if PICKED in what:
                dy = jax.tree.map(_picked, y, dy)
                got = _narrow(lab, low, dy)[1]
        except Exception as error:
            text = first_line(error)
            if what == "as given":
                return Result(dtype_name, SKIPPED, f"does not run in {dtype_name}: {text}")
            continue
        exact = np.float32 if lab.single else np.float64
        wide, wide_dy = cast(low, exact), cast(dy, exact)
        wide_y, truth = lab.run(wide, wide_dy)
        if not _as_finite(y, wide_y):
            continue  # forward itself overflows here
        try:
            spread = _spread(lab, wide, wide_dy, unit, truth)
            if what.endswith(f"times {SMALL:g}"):
                jumps = _jumps(lab, wide, wide_dy, unit, truth, what.split(" times ")[0])
                spread = [None if s is None else s + j for s, j in zip(spread, jumps, strict=True)]
        except Exception as error:
            return Result(dtype_name, SKIPPED, f"does not run in a loop: {first_line(error)}")
        for i, name in enumerate(lab.names):
            if got[i] is None or truth[i] is None or not got[i].size:
                continue
            if "batch of" in what and name in rows:
                continue  # the long batch is there for the sums over it
            if got[i].dtype != lab.floats(low)[i].dtype:
                words = f"comes back as {got[i].dtype} for {lab.floats(low)[i].dtype}: cast it"
                problems.setdefault(name, Problem(name, words))
                continue
            # Where an input is tiny, rounding of what is inside counts, not that of inputs; and
            # the terms of a parameter's sum over the batch may be larger than what is left of it.
            inner = what.endswith(f"times {SMALL:g}") or name.startswith("params")
            floor = unit * _size(truth, wide_dy) if inner else 0.0
            ulps, off, place = _units_off(got[i], truth[i], spread[i] + floor, unit, dtype)
            if np.isfinite(off):
                relative = max(relative, off)
            worst = max(worst, min(ulps, 1e12))
            words = _scaled(got[i], truth[i], unit) if ulps > ALLOWED / 2 else ""
            if words and name not in problems:
                problems[name] = Problem(name, f"{words} in {dtype_name}, {what}")
            if ulps > ALLOWED and name not in problems:
                at = lab.floats(low)[i]
                problems[name] = Problem(
                    name,
                    _words(dtype_name, what, got[i][place], truth[i][place], unit),
                    f"worst at {[int(p) for p in place]}: got {float(got[i][place]):.6g}, expected "
                    f"{float(truth[i][place]):.6g}; the input there is {float(at[place]):.6g}",
                )
    figure = (
        f"{worst:.1f} units where the inputs' last digit counts for one; relative {relative:.1e}"
    )
    return Result(dtype_name, WRONG if problems else RIGHT, figure, tuple(problems.values()))


def _narrow(lab: Lab, sample: Sample, dy: Any) -> tuple[Any, Cotangents]:
    """As JAX computes by default: with float64 allowed, NumPy's constants would widen it. (Not
    with a key: it would draw other numbers.)"""
    with jax.enable_x64(sample.key is not None):
        return lab.run(sample, dy)


def _as_finite(low: Any, wide: Any) -> bool:
    """Whether an output that is finite in the wide dtype is so in the narrow one."""
    pairs = zip(jax.tree.leaves(low), jax.tree.leaves(wide), strict=True)
    return all(
        np.isfinite(a.astype(np.float64))[np.isfinite(b)].all() for a, b in pairs if is_floating(a)
    )


def _scaled(got: np.ndarray, truth: np.ndarray, unit: float) -> str:
    """Whether it is the truth times a constant, by more than rounding."""
    got = np.asarray(got, np.float64)
    power = np.sum(truth * truth)
    large = np.sum(np.abs(truth) > 0.1 * np.max(np.abs(truth), initial=0))
    if large < 3 or not (np.isfinite(got).all() and np.isfinite(truth).all() and power > 0):
        return ""
    r = float(np.sum(got * truth) / power)
    left = np.max(np.abs(got - r * truth)) / np.max(np.abs(truth))
    if abs(r - 1) > max(16 * unit, 8 * left):
        return f"is {r:.4g} times the truth everywhere"
    return ""


def _size(truth: Cotangents, dy: Any) -> float:
    leaves = [d for d in (*truth, *jax.tree.leaves(dy)) if d is not None and is_floating(d)]
    return max((float(np.max(np.abs(d[np.isfinite(d)]), initial=0)) for d in leaves), default=0.0)


def _samples(lab: Lab, batch: Sample | None) -> Iterator[tuple[str, Sample]]:
    def changed(change: Callable[[np.ndarray], np.ndarray], only: str = "") -> Sample:
        named = zip(lab.names, lab.floats(lab.sample), strict=True)
        return lab.fill(
            lab.sample,
            [change(v) if (n == only if only else n.startswith("x")) else v for n, v in named],
        )

    for factor in MAGNITUDES:
        what = "as given" if factor == 1 else f"inputs times {factor:g}"
        sample = changed(functools.partial(np.multiply, factor))
        yield what, sample
        yield f"{what}, {PICKED}", sample
    if batch is None:
        for by in range(1, _rows_of(lab)):  # so that each entry of a row is its largest once
            yield (
                f"inputs times {factor:g}, rolled by {by}",
                changed(functools.partial(_rolled, factor, by)),
            )
    for name in lab.names:
        if name.startswith("x"):
            yield f"{name} times {SMALL:g}", changed(functools.partial(np.multiply, SMALL), name)
    for sign in (1, -1):
        what = f"inputs {sign * SATURATED:g} times their sign"
        yield what, changed(functools.partial(_saturated, sign))
    if batch is not None:
        yield f"a batch of {ROWS}", batch


def _picked(y: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """1 at the largest entry of each row of y, as a loss picks its label; dy if y has no rows."""
    if not is_floating(dy) or y.ndim == 0 or y.shape[-1] < 2:
        return dy
    hot = np.arange(y.shape[-1]) == np.argmax(y, -1, keepdims=True)
    return hot.astype(dy.dtype)


def _rows_of(lab: Lab) -> int:
    """The entries of a row of x; 0 where there are no labels that a row could be sure of."""
    leaves = [np.asarray(v) for v in jax.tree.leaves(lab.sample.x)]
    rows = [v.shape[-1] for v in leaves if is_floating(v) and v.ndim > 1]
    labelled = any(not is_floating(v) for v in leaves)
    return min(max(rows, default=0), 8) if labelled else 0


def _rolled(factor: float, by: int, v: np.ndarray) -> np.ndarray:
    return factor * (np.roll(v, by, -1) if v.ndim else v)


def _saturated(sign: int, v: np.ndarray) -> np.ndarray:
    return sign * SATURATED * np.where(v < 0, -1.0, 1.0)


def _long(lab: Lab, tried: Sequence[Trial]) -> tuple[Sample | None, frozenset[str]]:
    """A batch so long that a sum in the narrow dtype would lose its digits; and the leaves that
    lie along it, which are no such sums."""
    leaves, tree = flat(lab.sample.x)
    along = _along(lab, tried, leaves)
    n = next((np.shape(v)[0] for v, a in zip(leaves, along, strict=True) if a), 0)
    names = [path_of(path, "x") for path, _ in jax.tree_util.tree_leaves_with_path(lab.sample.x)]
    rows = frozenset(name for name, a in zip(names, along, strict=True) if a)
    if not 0 < n < ROWS or not set(lab.names) - rows:
        return None, rows
    if sum(np.size(v) for v in leaves) // n * ROWS > 2**18:
        return None, rows
    rng = np.random.default_rng(lab.seed + 6)

    def tiled(v: Any, a: bool) -> Any:
        if not a:
            return v
        many = np.asarray(v)[np.arange(ROWS) % n]
        # Of one sign, so that the sum is as large as its terms make it.
        return np.abs(many) * rng.uniform(0.5, 1.5, many.shape) if is_floating(v) else many

    x = tree.unflatten([tiled(v, a) for v, a in zip(leaves, along, strict=True)])
    return lab.sample._replace(x=x), rows


def _along(lab: Lab, tried: Sequence[Trial], leaves: Sequence[Any]) -> tuple[bool, ...]:
    """Which leaves of x have a batch as their first axis; none where that is not known."""
    if lab.rule.block is None:
        found = find(lab, tried[0])
        return found.leaves if isinstance(found, Batch) else (False,) * len(leaves)
    sizes = {v.shape[0] if np.ndim(v) > 1 else 0 for v in leaves if is_floating(v)}
    fits = len(sizes) == 1 and 0 not in sizes and lab.sample.key is None
    fits = fits and all(np.ndim(v) and v.shape[0] in sizes for v in leaves)
    return (fits,) * len(leaves)


def _kept_dtypes(lab: Lab, dtype: Any) -> Any:
    """The dtypes of a block's parameters for inputs of this dtype: it may keep them in float32."""
    params, x, _ = lab.sample
    if lab.rule.block is not None:
        start = jax.eval_shape(lab.rule.block.init, jax.random.key(0), cast(x, dtype))
        if str(jax.tree.structure(start)) == str(jax.tree.structure(params)):
            return jax.tree.map(lambda p: p.dtype, start)
    return jax.tree.map(lambda p: dtype if is_floating(p) else p.dtype, params)


def _lowered(lab: Lab, sample: Sample, dtype: Any, kept: Any) -> tuple[Sample, Any]:
    """x in the dtype, params and dy in those that go with it."""
    params = jax.tree.map(lambda p, its: cast(p, its) if is_floating(p) else p, sample.params, kept)
    x = cast(sample.x, dtype)
    low = Sample(params, x, sample.key)
    rng = np.random.default_rng(lab.seed + 7)
    dy = lab.cotangent(rng, low)
    if any(np.ndim(d) and d.shape[0] == ROWS for d in jax.tree.leaves(dy)):
        dy = jax.tree.map(lambda d: np.abs(d) if is_floating(d) else d, dy)
    return low, dy


def _spread(lab: Lab, sample: Sample, dy: Any, unit: float, truth: Cotangents) -> Cotangents:
    """How far results move when every input moves by about its last digit: their conditioning."""
    noise = _noise(lab, sample, dy)
    # Every other time by more, and the change counted for less: where a gradient jumps, as at a
    # kink, rounding on the way may carry it over, though a last digit of an input does not.
    reach = np.where(np.arange(STIRS) % 2, WIDE, 1.0)
    return _moved(lab, sample, dy, truth, noise, reach, unit)


def _jumps(
    lab: Lab, sample: Sample, dy: Any, unit: float, truth: Cotangents, name: str
) -> Cotangents:
    """How far results jump when a tiny leaf of x moves as far as rounding of what is inside a
    network may carry it: its last digits are gone from sums of larger terms, so that windows of a
    pool become ties, for instance. 0 where results only move in proportion. Where one entry
    jumps, others of its leaf do for other moves than these few."""
    sizes = [leaf.size for leaf in lab.floats(sample)]
    start = sum(sizes[: lab.names.index(name)])
    noise, one = _noise(lab, sample, dy), np.ones(STIRS)
    still = np.ones(noise.shape[1], bool)
    still[start : start + sizes[lab.names.index(name)]] = False
    noise[:, still] = 0
    near = _moved(lab, sample, dy, truth, noise, one, unit)
    far = _moved(lab, sample, dy, truth, noise, one, unit / SMALL)
    return [
        None if f is None else np.full_like(f, np.max(f, where=f > 10 * n / SMALL, initial=0))
        for n, f in zip(near, far, strict=True)
    ]


def _noise(lab: Lab, sample: Sample, dy: Any) -> np.ndarray:
    """For each stir and each floating number, 90 to 127 or the negative: not one unit each, for
    equal changes of two terms would often cancel to the last bit."""
    rng = np.random.default_rng(lab.seed + 8)
    floats = split_floats((sample.params, sample.x, dy))[0]
    shape = (STIRS, sum(np.size(v) for v in floats))
    return rng.integers(90, 128, shape, np.int8) * rng.choice(np.array([-1, 1], np.int8), shape)


def _moved(
    lab: Lab, sample: Sample, dy: Any, truth: Cotangents, noise: np.ndarray, reach: np.ndarray,
    unit: float,
) -> Cotangents:  # fmt: skip
    """The largest change of each entry over the stirs, each over its reach."""
    given = [t for t in truth if t is not None]
    largest = iter(_stirred(lab.programs.traced)(*sample, dy, given, noise, reach, unit))
    return [None if t is None else np.nan_to_num(next(largest), nan=np.inf) for t in truth]


@functools.lru_cache(maxsize=PROGRAMS)
def _stirred(traced: Callable[..., Any]) -> Callable[..., Any]:
    """The largest change of each cotangent over rows of noise, in one loop."""

    def run(
        params: Any, x: Any, key: Any, dy: Any, truth: Any, noise: Any, reach: Any, unit: Any
    ) -> Any:
        floats, put = split_floats((params, x, dy))
        flat_floats, unravel = ravel_pytree(floats)

        def body(largest: Any, row_and_reach: Any) -> Any:
            row, far = (v.astype(flat_floats.dtype) for v in row_and_reach)
            stir = 1 + row * (far * unit.astype(far.dtype) / 127)
            moved_params, moved_x, moved_dy = put(unravel(flat_floats * stir))
            made = split_floats(traced(moved_params, moved_x, key, moved_dy)[1:])[0]
            changes = [jax.lax.abs(m - t) / far for m, t in zip(made, truth, strict=True)]
            return jax.tree.map(jax.lax.max, largest, changes), None

        nothing = [jax.lax.full_like(t, 0) for t in truth]
        return jax.lax.scan(body, nothing, (noise, reach))[0]

    return jit_for_few_runs(run)


def _units_off(
    got: np.ndarray, truth: np.ndarray, spread: np.ndarray, unit: float, dtype: Any
) -> tuple[float, float, Any]:
    """(units, relative error, place) of the worst entry; a unit is rounding plus conditioning."""
    info = jnp.finfo(dtype)
    got = np.asarray(got, np.float64)
    tiny, largest = float(info.tiny), float(info.max)
    # Entries of a leaf add up terms of about the size of the leaf's typical spread.
    one = unit * np.abs(truth) + spread + tiny
    off = np.abs(got - truth) / one
    share = np.abs(got - truth) / np.abs(truth)
    # What the dtype cannot hold is no error, nor is an infinity that is right.
    holds = np.isfinite(truth) & (np.abs(truth) < largest / 4)
    off = np.where(holds, np.where(np.isfinite(got), off, np.inf), 0)
    off = np.nan_to_num(off, nan=0.0, posinf=np.inf)
    place = np.unravel_index(np.argmax(off), off.shape)
    normal = (
        holds & (np.abs(truth) > tiny) & np.isfinite(share) & (spread < 4 * unit * np.abs(truth))
    )
    return float(off[place]), float(np.max(np.where(normal, share, 0), initial=0)), place


def _words(dtype: str, what: str, got: Any, truth: Any, unit: float) -> str:
    got, truth = float(got), float(truth)
    where = "" if what == "as given" else f", {what}"
    if not np.isfinite(got):
        return f"is {got:g} in {dtype} where the truth is finite ({truth:.6g}){where}"
    if got == 0 and truth != 0:
        return (
            f"is 0 in {dtype} where the truth is {truth:.6g}{where}: every digit is lost in "
            "saturation; compute from the input, not from the saturated output"
        )
    off = abs(got - truth) / abs(truth) if truth else np.inf
    if "batch of" in what:
        return (
            f"loses its digits over {what} in {dtype} (relative error {off:.1e}): a sum is "
            "accumulated in the narrow dtype; accumulate in float32"
        )
    return (
        f"has relative error {off:.1e} in {dtype}, {off / unit / 2:.0f} units in the last place"
        f"{where}: digits cancel; compute from the input, not from the rounded output"
    )
