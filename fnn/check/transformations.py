"""Does the rule survive jit, vmap, scan, batches of other sizes, and a second derivative?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import is_floating
from fnn.check import differences
from fnn.check.diagnosis import Case, explain, worst_entry
from fnn.check.lab import Lab, Layout, fast, is_none, leaves_of
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result
from fnn.check.rule import PROGRAMS, Sample
from fnn.check.values import Trial, sizes_of


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def _compare(lab: Lab, name: str, got: Any, want: Any, tolerance: float, words: str) -> Result:
    """Two (y, dparams, dx) that should be the same numbers."""
    problems, largest = [], 0.0
    left = leaves_of(got[1], got[2]) + leaves_of(got[0], ())
    right = leaves_of(want[1], want[2]) + leaves_of(want[0], ())
    outputs = len(leaves_of(got[0], ()))
    pairs = list(zip(left, right, strict=True))
    for i, ((path, a), (_, b)) in enumerate(pairs):
        if a is None or b is None:
            if (a is None) != (b is None):
                problems.append(Problem(path, f"{words}: None in one of the two"))
            continue
        if not is_floating(np.asarray(b)):
            continue
        path = path.replace("params", "y", 1) if i >= len(pairs) - outputs else path
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            problems.append(Problem(path, f"{words}: shapes {a.shape} and {b.shape}"))
            continue
        size = np.max(np.abs(b[np.isfinite(b)]), initial=0)
        off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
        off = np.max(np.nan_to_num(off, nan=np.inf), initial=0)
        largest = max(largest, float(off / (size or 1.0)))
        if off > tolerance * size + 1e-300:
            case = Case(a, b, np.zeros(0), {}, {}, {})
            problems.append(Problem(path, f"{words}: {explain(case)}", worst_entry(case)))
    status = WRONG if problems else RIGHT
    return Result(name, status, f"largest difference {min(largest, 1e300):.1e}", tuple(problems))


def jit(lab: Lab, tried: Sequence[Trial]) -> Result:
    """The same numbers when run operation by operation, as Python would."""
    trial = tried[0]
    try:
        eager = lab.programs.traced(*trial.sample, trial.dy)
    except Exception as error:
        problem = Problem("backward", f"runs under jit but not without it: {_first_line(error)}")
        return Result("jit", WRONG, "raises", (problem,))
    return _compare(lab, "jit", eager, lab.programs.run(*trial.sample, trial.dy), 1e-11,
                    "differs without jit")  # fmt: skip


def vmap(lab: Lab, tried: Sequence[Trial]) -> Result:
    """``jax.vmap`` over two samples equals one after the other."""
    a, b = tried[0], tried[1]

    def stack(*v: Any) -> np.ndarray:
        return np.stack(v)

    try:
        xs, dys = (
            jax.tree.map(stack, a.sample.x, tried[2].sample.x),
            jax.tree.map(stack, a.dy, b.dy),
        )
        together = lab.programs.mapped(a.sample.params, xs, a.sample.key, dys)
    except Exception as error:
        problem = Problem("backward", f"cannot be mapped by jax.vmap: {_first_line(error)}")
        return Result("vmap", WRONG, "raises", (problem,))
    second = tried[2].sample._replace(params=a.sample.params)
    one_by_one = [lab.programs.run(*s, dy) for s, dy in ((a.sample, a.dy), (second, b.dy))]
    return _compare(lab, "vmap", together, jax.tree.map(stack, *one_by_one), 1e-10,
                    "differs under vmap")  # fmt: skip


def scan(lab: Lab, tried: Sequence[Trial]) -> Result:
    """Inside ``jax.lax.scan`` as outside."""
    trial = tried[0]

    try:
        got = jax.tree.map(lambda v: np.asarray(v)[0], lab.programs.looped(*trial.sample, trial.dy))
    except Exception as error:
        problem = Problem("backward", f"does not work inside jax.lax.scan: {_first_line(error)}")
        return Result("scan", WRONG, "raises", (problem,))
    return _compare(lab, "scan", got, lab.programs.run(*trial.sample, trial.dy), 1e-11,
                    "differs inside scan")  # fmt: skip


# ---- batches ---------------------------------------------------------------------------------


def batches(lab: Lab, tried: Sequence[Trial]) -> list[Result]:
    """Two properties of a block that treats examples separately: parts and other sizes."""
    trial = tried[0]
    size, why = _batch_size(lab, trial)
    if why:
        return [Result("microbatches", SKIPPED, why), Result("batch sizes", SKIPPED, why)]
    cuts = (slice(0, size // 2), slice(size // 2, size))
    halves = [_rows(trial.sample, cut) for cut in cuts]
    try:
        ys = [lab.run(half, lab.cotangent(np.random.default_rng(0), half))[0] for half in halves]
    except Exception as error:
        why = f"half a batch raises {_first_line(error)}"
        return [Result("microbatches", SKIPPED, why), Result("batch sizes", SKIPPED, why)]
    kind = _kind(trial.y, ys, [size // 2, size - size // 2])
    if not kind:
        why = "the examples of a batch are not separate"
        return [Result("microbatches", SKIPPED, why), Result("batch sizes", SKIPPED, why)]
    return [_parts(lab, trial, halves, kind, size), _other_sizes(lab, trial, size, kind)]


def _batch_size(lab: Lab, trial: Trial) -> tuple[int, str]:
    leaves = jax.tree.leaves(trial.sample.x)
    sizes = {leaf.shape[0] if np.ndim(leaf) else 0 for leaf in leaves}
    if len(sizes) != 1 or sizes <= {0, 1} or trial.sample.key is not None:
        why = (
            "a random key: other batches draw other numbers"
            if trial.sample.key is not None
            else ("the inputs have no common first axis of two or more")
        )
        return 0, why
    return sizes.pop(), ""


def _rows(sample: Sample, rows: Any) -> Sample:
    return sample._replace(x=jax.tree.map(lambda v: np.asarray(v)[rows], sample.x))


def _kind(y: Any, parts: Sequence[Any], counts: Sequence[int]) -> str:
    """What the output of a batch is of its parts: "rows", their "mean" or their "sum"."""
    leaves = [jax.tree.leaves(v) for v in (y, *parts)]
    if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in leaves[0]):
        return ""

    def close(a: Any, b: Any) -> bool:
        return np.shape(a) == np.shape(b) and np.allclose(a, b, 1e-9, 1e-12, equal_nan=True)

    total = sum(counts)
    shares = [n / total for n in counts]
    if all(
        np.ndim(w) and np.shape(a)[1:] == np.shape(b)[1:] and close(np.concatenate([a, b]), w)
        for w, a, b in zip(*leaves, strict=True)
    ):
        return "rows"
    if all(close(shares[0] * np.asarray(a) + shares[1] * np.asarray(b), w)
           for w, a, b in zip(*leaves, strict=True)):  # fmt: skip
        return "mean"
    if all(close(np.asarray(a) + np.asarray(b), w) for w, a, b in zip(*leaves, strict=True)):
        return "sum"
    return ""


def _parts(lab: Lab, trial: Trial, halves: Sequence[Sample], kind: str, size: int) -> Result:
    cuts = (slice(0, size // 2), slice(size // 2, size))
    results = []
    for half, cut in zip(halves, cuts, strict=True):
        share = (cut.stop - cut.start) / size if kind == "mean" else 1.0
        dy = jax.tree.map(
            lambda d, c=cut, s=share: d[c] if kind == "rows" else s * d, trial.dy
        )  # fmt: skip
        results.append(lab.programs.run(*half, dy))
    (_, dp1, dx1), (_, dp2, dx2) = results

    def add(a: Any, b: Any) -> Any:
        return None if a is None else np.asarray(a) + np.asarray(b)

    def join(a: Any, b: Any) -> Any:
        return None if a is None else np.concatenate([a, b])

    want = (trial.y, jax.tree.map(add, dp1, dp2, is_leaf=is_none),
            jax.tree.map(join, dx1, dx2, is_leaf=is_none))  # fmt: skip
    got = (trial.y, *lab.programs.run(*trial.sample, trial.dy)[1:])
    return _compare(lab, "microbatches", got, want, 1e-9,
                    "of the whole batch is not that of its halves together")  # fmt: skip


def _other_sizes(lab: Lab, trial: Trial, size: int, kind: str) -> Result:
    """One example, and one more than given (a ragged size): against autodiff, or a loop."""
    if lab.no_autodiff:
        return Result("batch sizes", SKIPPED, lab.no_autodiff)
    rng = np.random.default_rng(lab.seed + 5)
    problems, tried = dict[str, Problem](), []
    here = lab.autodiff(trial.sample, trial.dy)
    for n in (1, size + 1):
        sample = _rows(trial.sample, np.arange(n) % size)
        sample = sample._replace(x=jax.tree.map(
            lambda v: v * rng.uniform(0.8, 1.2, v.shape) if is_floating(v) else v, sample.x
        ))  # fmt: skip
        dy = lab.cotangent(rng, sample)
        y, got = lab.run(sample, dy)
        want = lab.autodiff(sample, dy)
        there = Trial(f"batch {n}", sample, dy, y, got)
        tried.append(n)
        for i, name in enumerate(lab.names):
            if got[i] is None:
                continue
            if got[i].shape != want[i].shape:
                text = f"has shape {got[i].shape} for a batch of {n}, needs {want[i].shape}"
                problems.setdefault(name, Problem(name, text))
                continue
            known = np.isfinite(want[i])
            limit = 1e-8 * np.max(np.abs(want[i][known]), initial=0) + 1e-300
            if not np.max(np.abs(got[i] - want[i])[known], initial=0) <= limit:
                floats = lab.floats(sample)
                again = [(trial.got[i], here[i], sizes_of(lab, trial))]
                case = Case(got[i], want[i], floats[i], {}, {}, sizes_of(lab, there), again)
                text = f"for a batch of {n}: {explain(case)}"
                problems.setdefault(name, Problem(name, text, worst_entry(case)))
    figure = f"right for batches of {', '.join(map(str, tried))} too"
    if problems:
        return Result("batch sizes", WRONG, f"{len(problems)} leaves", tuple(problems.values()))
    return Result("batch sizes", RIGHT, figure)


# ---- second order ----------------------------------------------------------------------------


@functools.lru_cache(maxsize=PROGRAMS)
def _curved(
    traced: Callable[..., Any], layout: Layout, absent: tuple[bool, ...]
) -> Callable[..., Any]:
    """The change of the gradient along a line: ``jax.jvp`` through forward and backward."""

    def curved(floats: Any, line: Any, sample: Sample, dy: Any) -> Any:
        def gradient(floats: Any) -> Any:
            _, dparams, dx = traced(*layout.fill(sample, floats), dy)
            leaves = [leaf for _, leaf in leaves_of(dparams, dx)]
            return [leaves[i] for i, none in zip(layout.places, absent, strict=True) if not none]

        return jax.jvp(gradient, (floats,), (line,))[1]

    return fast(curved)


def second_order(lab: Lab, tried: Sequence[Trial]) -> Result:
    """``jax.jvp`` through backward: the derivative of the gradient by differences; symmetric."""
    trial = tried[0]
    floats = lab.floats(trial.sample)
    rng = np.random.default_rng(lab.seed + 4)
    lines = [[_line(f, rng) for f in floats] for _ in range(2)]
    absent = [c is None for c in trial.got]

    curved = _curved(lab.programs.traced, lab.layout, tuple(absent))
    try:
        by_jvp = [
            [np.asarray(v) for v in curved(floats, line, trial.sample, trial.dy)] for line in lines
        ]
    except Exception as error:
        problem = Problem("backward", f"jax.jvp through it raises {_first_line(error)}")
        return Result("second order", WRONG, "raises", (problem,))
    values = []
    for t in differences.steps():
        there = lab.fill(trial.sample, [f + t * d for f, d in zip(floats, lines[0], strict=True)])
        values.append([c for c in lab.run(there, trial.dy)[1] if c is not None])
    problems, largest = [], 0.0
    names = [n for n, none in zip(lab.names, absent, strict=True) if not none]
    for i, name in enumerate(names):
        slope = differences.both_sides(np.stack([v[i] for v in values]))
        size = max(float(np.max(np.abs(slope.value), initial=0)),
                   float(np.max(np.abs(values[-1][i]), initial=0)))  # fmt: skip
        certain = slope.error <= 1e-6 * (size + 1e-30)
        off = np.where(certain, np.abs(by_jvp[0][i] - slope.value), 0)
        off = np.nan_to_num(off, nan=np.inf)
        # Formulas with exact heads and tails lose half their digits when they are differentiated.
        wrong = off > 10 * slope.error + 1e-5 * size
        largest = max(largest, float(np.max(off, initial=0) / (size or 1.0)))
        if wrong.any():
            case = Case(by_jvp[0][i], np.where(certain, slope.value, by_jvp[0][i]),
                        np.zeros(0), {}, {}, {})  # fmt: skip
            text = f"jax.jvp through backward {explain(case)}"
            problems.append(Problem(name, text, worst_entry(case)))
    figure = f"Hessian-vector product: error {largest:.1e}"
    scalar = all(np.ndim(v) == 0 for v in jax.tree.leaves(trial.y))
    if scalar and not any(absent) and not problems:
        products = [
            sum(float(np.sum(h * d)) for h, d in zip(by_jvp[i], lines[1 - i], strict=True))
            for i in (0, 1)
        ]
        size = sum(float(np.sum(np.abs(h * d)))
                   for h, d in zip(by_jvp[0], lines[1], strict=True))  # fmt: skip
        apart = abs(products[0] - products[1]) / (size or 1.0)
        figure += f", asymmetry {apart:.1e}"
        if apart > 1e-6:
            text = f"the Hessian is not symmetric: off by {apart:.1e}"
            problems.append(Problem("backward", text))
    return Result("second order", WRONG if problems else RIGHT, figure, tuple(problems))


def _line(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = np.sqrt(np.mean(np.square(leaf))) + 1e-3 if leaf.size else 1.0
    return 0.3 * scale * rng.uniform(-1, 1, leaf.shape)
