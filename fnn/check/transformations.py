"""Does the rule survive jit, vmap, scan and a second derivative?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fnn.block import is_floating
from fnn.check import differences
from fnn.check.derivative import TOO_COARSE, Trial
from fnn.check.diagnosis import Case, explain, worst_entry
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result
from fnn.check.rule import PROGRAMS, Sample
from fnn.check.subject import Lab, Layout, leaves_of
from fnn.compiling import jit_for_few_runs


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def compare(
    lab: Lab, name: str, got: Any, want: Any, tolerance: float, words: str,
    diagnose: Callable[[Case], str] = explain,
) -> Result:  # fmt: skip
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
        if off > lab.loose(tolerance) * size + 1e-300:
            case = Case(a, b, np.zeros(0), {}, {}, {})
            problems.append(Problem(path, f"{words}: {diagnose(case)}", worst_entry(case)))
    status = WRONG if problems else RIGHT
    return Result(name, status, f"largest difference {min(largest, 1e300):.1e}", tuple(problems))


def jit(lab: Lab, tried: Sequence[Trial]) -> Result:
    """The same numbers when run operation by operation, as Python would."""
    trial = tried[0]
    try:
        eager = lab.programs.traced(*trial.sample, trial.dy)
    except Exception as error:
        problem = Problem("backward", f"runs under jit but not without it: {first_line(error)}")
        return Result("jit", WRONG, "raises", (problem,))
    return compare(lab, "jit", eager, lab.programs.run(*trial.sample, trial.dy), 1e-11,
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
        problem = Problem("backward", f"cannot be mapped by jax.vmap: {first_line(error)}")
        return Result("vmap", WRONG, "raises", (problem,))
    second = tried[2].sample._replace(params=a.sample.params)
    one_by_one = [lab.programs.run(*s, dy) for s, dy in ((a.sample, a.dy), (second, b.dy))]
    return compare(lab, "vmap", together, jax.tree.map(stack, *one_by_one), 1e-10,
                    "differs under vmap")  # fmt: skip


def scan(lab: Lab, tried: Sequence[Trial]) -> Result:
    """Inside ``jax.lax.scan`` as outside."""
    trial = tried[0]

    try:
        got = jax.tree.map(lambda v: np.asarray(v)[0], lab.programs.looped(*trial.sample, trial.dy))
    except Exception as error:
        problem = Problem("backward", f"does not work inside jax.lax.scan: {first_line(error)}")
        return Result("scan", WRONG, "raises", (problem,))
    return compare(lab, "scan", got, lab.programs.run(*trial.sample, trial.dy), 1e-11,
                    "differs inside scan")  # fmt: skip


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

    return jit_for_few_runs(curved)


def second_order(lab: Lab, tried: Sequence[Trial]) -> Result:
    """``jax.jvp`` through backward: the derivative of the gradient by differences; symmetric."""
    if lab.single:
        return Result("second order", SKIPPED, TOO_COARSE)
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
        problem = Problem("backward", f"jax.jvp through it raises {first_line(error)}")
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
        # Where there is no curvature, what is left is the gradient's own rounding.
        size += 1e-9 * sum(float(np.sum(np.abs(g * d)))
                           for g, d in zip(trial.got, lines[1], strict=True))  # fmt: skip
        apart = abs(products[0] - products[1]) / (size or 1.0)
        figure += f", asymmetry {apart:.1e}"
        if apart > 1e-6:
            text = f"the Hessian is not symmetric: off by {apart:.1e}"
            problems.append(Problem("backward", text))
    return Result("second order", WRONG if problems else RIGHT, figure, tuple(problems))


def _line(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = np.sqrt(np.mean(np.square(leaf))) + 1e-3 if leaf.size else 1.0
    return 0.3 * scale * rng.uniform(-1, 1, leaf.shape)
