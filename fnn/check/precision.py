"""Is the rule as good as a narrow dtype allows? Each leaf against the rule itself in float64.

The error model: both get the same numbers, rounded to the dtype, whose unit roundoff is u. A good
rule rounds a few times, and each rounding may move an entry as far as a relative change of u in
some input does. So an entry's error is counted in units of u |truth| (rounding of the result
itself) plus its conditioning: the largest change of the float64 result over a few random changes
of all inputs by about u (:mod:`fnn.check.conditioning`). Up to :data:`MAX_UNITS` of them are
roundings that add up; a rule that cancels (1 - p from a rounded p) is off by thousands. Two floors
are added: where one input is tiny, or a parameter's gradient is a sum over the batch, the terms
inside are larger than what is left of them, so u times the largest cotangent counts, too.

A rule that loses no more than ``jax.vjp`` of forward does in the same dtype is not flagged: then
forward is written so. A block has to be better than that where ``strict`` asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.check.conditioning import conditioning, jumps
from fnn.check.narrow_samples import TINY_FACTOR, Narrow, long_batch, narrow_samples
from fnn.check.report import SKIPPED, OutOfTime, Problem, Result, verdict
from fnn.check.rule import Sample
from fnn.check.subject import Cotangents, Subject, cast, largest, map_floats
from fnn.check.trials import Trial, in_one_line

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
MAX_UNITS = 24.0  # units of error: one rule rounds a few times, a network of rules some dozen
MAX_UNITS_OF_A_FACTOR = 12.0  # of error that is the same factor everywhere, which rounding is not
MIN_DISTANCE_UNITS = 16.0  # u, of such a factor from 1; two roundings of a leaf are below it
MIN_DISTANCE_RESTS = 8.0  # times the error that is left without the factor
MAX_CONDITION = 4.0  # up to which an entry is counted in the relative error that is printed


def precision(
    subject: Subject, trials: Sequence[Trial], dtype_name: str, strict: bool = False
) -> Result:
    """The rule in a narrower dtype against itself in float64, from the same rounded numbers."""
    if reason := _no_comparison(subject, dtype_name):
        return Result(dtype_name, SKIPPED, reason)
    dtype = DTYPES[dtype_name]
    unit = float(jnp.finfo(dtype).eps) / 2
    problems, worst, relative = dict[str, Problem](), 0.0, 0.0
    param_dtypes = _param_dtypes(subject, dtype)
    long, rows = None, frozenset[str]()
    if dtype_name != "float32":  # whose sums over a batch lose too little to notice
        long, rows = long_batch(subject, trials[0])
    for narrow in narrow_samples(subject, long):
        try:
            low, dy, y, got = _run(subject, narrow, dtype, param_dtypes)
        except OutOfTime:
            if narrow.what == "as given":
                raise
            break  # what has been compared so far counts
        except Exception as error:
            if narrow.what == "as given":
                words = f"does not run in {dtype_name}: {in_one_line(error)}"
                return Result(dtype_name, SKIPPED, words)
            continue
        exact = np.float32 if subject.in_float32 else np.float64
        sample, wide_dy = cast(low, exact), cast(dy, exact)
        wide = Trial(sample, wide_dy, *subject.run(sample, wide_dy))
        truth = wide.got
        if not _finite_where(y, wide.y):
            continue  # forward itself overflows here
        try:
            spread = conditioning(subject, wide, unit)
            if narrow.tiny:
                extra = jumps(subject, wide, unit, narrow.tiny, TINY_FACTOR)
                spread = [s if s is None else s + j for s, j in zip(spread, extra, strict=True)]
        except Exception as error:
            return Result(dtype_name, SKIPPED, f"does not run in a loop: {in_one_line(error)}")
        terms = [*truth, *filter(is_floating, jax.tree.leaves(wide_dy))]
        floor = unit * largest([t for t in terms if t is not None])
        # Below the smallest number a term is 0; what it is then multiplied by is at most an input.
        tiny = float(jnp.finfo(dtype).tiny) * max(1.0, largest(subject.floats(low)))
        for i, (name, at) in enumerate(zip(subject.names, subject.floats(low), strict=True)):
            if got[i] is None or truth[i] is None or not got[i].size:
                continue
            if narrow.long and name in rows:
                continue  # the long batch is there for the sums over it
            if got[i].dtype != at.dtype:
                words = f"comes back as {got[i].dtype} for {at.dtype}: cast it"
                problems.setdefault(name, Problem(name, words))
                continue
            inner = narrow.tiny or name.startswith("params")
            scale = spread[i] + floor if inner else spread[i]
            units, share, place = _worst_entry(got[i], truth[i], scale, unit, dtype, tiny)
            worst, relative = max(worst, min(units, 1e12)), max(relative, share)
            factor = _constant_factor(got[i], truth[i], unit)
            if units <= (MAX_UNITS_OF_A_FACTOR if factor else MAX_UNITS):
                continue
            if name in problems and not problems[name].note:
                continue
            if factor and units > MAX_UNITS_OF_A_FACTOR:
                words = f"is {factor:.4g} times the truth everywhere in {dtype_name}"
                problem = Problem(name, f"{words}, {narrow.what}")
            else:
                one, other = float(got[i][place]), float(truth[i][place])
                worst_words = (
                    f"worst at {[int(p) for p in place]}: got {one:.6g}, expected {other:.6g}; "
                    f"the input there is {float(at[place]):.6g}"
                )
                words = _words(dtype_name, narrow, one, other, unit)
                problem = Problem(name, words, worst_words)
            if not (strict and subject.rule.block):
                autodiff = _by_autodiff(subject, low, dy, i, got[i])
                theirs = 0.0
                if autodiff is not None and autodiff.shape == truth[i].shape:
                    theirs = _worst_entry(autodiff, truth[i], scale, unit, dtype, tiny)[0]
                if units <= 2 * theirs:
                    words = f"{problem.diagnosis} (as jax.vjp of forward)"
                    problem = problem._replace(diagnosis=words, note=True)
            if name not in problems or not problem.note:
                problems[name] = problem
    figure = f"{worst:.3g} units of rounding and conditioning; relative error {relative:.1e}"
    if problems and all(problem.note for problem in problems.values()):
        figure += ", as large as that of jax.vjp of forward"
    return verdict(dtype_name, figure, problems.values())


def _no_comparison(subject: Subject, dtype_name: str) -> str:
    """Why the rule is not compared in a dtype, or ''."""
    if subject.in_float32 and dtype_name == "float32":
        return "the comparison itself is in float32"
    if subject.is_coarse and not subject.in_float32:
        return "forward casts to a dtype of its own"
    if subject.iterates:
        return "forward has a loop that may not end in a narrow dtype"
    if subject.draws and subject.rule.block is None:
        return "forward draws random numbers, others in another dtype"
    return ""


def _by_autodiff(
    subject: Subject, low: Sample, dy: Any, leaf: int, got: np.ndarray
) -> np.ndarray | None:
    """A cotangent by ``jax.vjp`` of forward in the narrow dtype, if it runs; ``got`` where the
    rule itself is autodiff's own."""
    if subject.rule.of_jax and subject.no_autodiff:
        return got
    if subject.no_autodiff or subject.rule.declared is not None:
        return None
    try:
        with jax.enable_x64(low.key is not None):
            return np.asarray(subject.autodiff(low, dy)[leaf])
    except Exception:
        return None


# ---- running it in the dtype -----------------------------------------------------------------


def _param_dtypes(subject: Subject, dtype: Any) -> Any:
    """The dtypes of a block's parameters for x of this dtype: it may hold them in float32."""
    params, x, _ = subject.sample
    if subject.rule.block is not None:
        initial = jax.eval_shape(subject.rule.block.init, jax.random.key(0), cast(x, dtype))
        if str(jax.tree.structure(initial)) == str(jax.tree.structure(params)):
            return jax.tree.map(lambda p: p.dtype, initial)
    return jax.tree.map(lambda p: dtype if is_floating(p) else p.dtype, params)


def _run(
    subject: Subject, narrow: Narrow, dtype: Any, param_dtypes: Any
) -> tuple[Sample, Any, Any, Cotangents]:
    """(sample, dy, y, cotangents) with x in the dtype, params and dy in those that go with it."""
    params, x, key = narrow.sample
    low = Sample(jax.tree.map(cast, params, param_dtypes), cast(x, dtype), key)
    dy = subject.random_cotangent(np.random.default_rng(subject.seed + 7), low)
    if narrow.long:
        dy = map_floats(np.abs, dy)  # so that sums over the batch are as large as their terms
    # As JAX computes by default: with float64 allowed, NumPy's constants would widen it. Not
    # with a key, which would draw other numbers.
    with jax.enable_x64(key is not None):
        y, got = subject.run(low, dy)
        if narrow.one_hot:
            dy = jax.tree.map(_one_hot, y, dy)
            y, got = subject.run(low, dy)
    return low, dy, y, got


def _one_hot(y: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """1 at the largest entry of each row of y, as a loss picks its label; dy if y has no rows."""
    if not is_floating(dy) or y.ndim == 0 or y.shape[-1] < 2:
        return dy
    hot = np.arange(y.shape[-1]) == np.argmax(y, -1, keepdims=True)
    return hot.astype(dy.dtype)


def _finite_where(low: Any, wide: Any) -> bool:
    """Whether outputs that are finite in the wide dtype are so in the narrow one."""
    pairs = zip(jax.tree.leaves(low), jax.tree.leaves(wide), strict=True)
    return all(
        np.isfinite(a.astype(np.float64))[np.isfinite(b)].all() for a, b in pairs if is_floating(a)
    )


# ---- the verdict -----------------------------------------------------------------------------


def _worst_entry(
    got: np.ndarray, truth: np.ndarray, spread: np.ndarray, unit: float, dtype: Any, tiny: float
) -> tuple[float, float, Any]:
    """(units, relative error, place) of the worst entry; a unit is rounding plus conditioning."""
    info = jnp.finfo(dtype)
    got = np.asarray(got, np.float64)
    units = np.abs(got - truth) / (unit * np.abs(truth) + spread + tiny)
    # What the dtype cannot hold is no error, nor is an infinity that is right.
    holds = np.isfinite(truth) & (np.abs(truth) < float(info.max) / 4)
    units = np.where(holds, np.where(np.isfinite(got), units, np.inf), 0)
    units = np.nan_to_num(units, nan=0.0, posinf=np.inf)
    place = np.unravel_index(np.argmax(units), units.shape)
    share = np.abs(got - truth) / np.abs(truth)
    counted = holds & (np.abs(truth) > tiny) & np.isfinite(share)
    counted &= spread < MAX_CONDITION * unit * np.abs(truth)
    return float(units[place]), float(np.max(share, where=counted, initial=0)), place


def _constant_factor(got: np.ndarray, truth: np.ndarray, unit: float) -> float | None:
    """r where ``got`` is r times the truth, by more than rounding."""
    got = np.asarray(got, np.float64)
    power = np.sum(truth * truth)
    top = np.max(np.abs(truth), initial=0)
    if np.sum(np.abs(truth) > 0.1 * top) < 3:  # of one or two numbers anything is a multiple
        return None
    if not (np.isfinite(got).all() and np.isfinite(truth).all() and power > 0):
        return None
    r = float(np.sum(got * truth) / power)
    rest = np.max(np.abs(got - r * truth)) / top
    clear = abs(r - 1) > max(MIN_DISTANCE_UNITS * unit, MIN_DISTANCE_RESTS * rest)
    return r if clear else None


def _words(dtype: str, narrow: Narrow, got: float, truth: float, unit: float) -> str:
    where = "" if narrow.what == "as given" else f", {narrow.what}"
    if not np.isfinite(got):
        return f"is {got:g} in {dtype} where the truth is finite ({truth:.6g}){where}"
    if got == 0 and truth != 0:
        return (
            f"is 0 in {dtype} where the truth is {truth:.6g}{where}: every digit is lost in "
            "saturation; compute from the input, not from the saturated output"
        )
    error = abs(got - truth) / abs(truth) if truth else np.inf
    if narrow.long:
        return (
            f"loses its digits over {narrow.what} in {dtype} (relative error {error:.1e}): a sum "
            "is accumulated in the narrow dtype; accumulate in float32"
        )
    return (
        f"has relative error {error:.1e} in {dtype}, {error / unit / 2:.0f} units in the last "
        f"place{where}: digits cancel; compute from the input, not from the rounded output"
    )
