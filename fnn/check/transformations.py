"""Does the rule survive jit, vmap, scan and a second derivative?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fnn.check import differences
from fnn.check.diagnosis import Case, explain, worst_entry
from fnn.check.report import Problem, Result, verdict
from fnn.check.rule import Sample, cached
from fnn.check.subject import Cotangents, Subject
from fnn.check.trials import Trial, compare, raises
from fnn.compiling import jit_for_few_runs
from fnn.pytrees import split_floats


def jit(subject: Subject, trials: Sequence[Trial]) -> Result:
    """The same numbers when run operation by operation, as Python would."""
    trial = trials[0]
    try:
        eager = subject.programs.traced(*trial.sample, trial.dy)
    except Exception as error:
        return raises("jit", "runs under jit but not without it:", error)
    compiled = subject.programs.run(*trial.sample, trial.dy)
    return compare(subject, "jit", eager, compiled, 1e-11, "differs without jit")


def vmap(subject: Subject, trials: Sequence[Trial]) -> Result:
    """``jax.vmap`` over two samples equals one after the other."""
    (params, x, key), other = trials[0].sample, trials[2].sample

    def stack(*v: Any) -> np.ndarray:
        return np.stack(v)

    try:
        xs = jax.tree.map(stack, x, other.x)
        dys = jax.tree.map(stack, trials[0].dy, trials[1].dy)
        together = subject.programs.mapped(params, xs, key, dys)
    except Exception as error:
        return raises("vmap", "cannot be mapped by jax.vmap:", error)
    one_by_one = [
        subject.programs.run(params, x, key, trials[0].dy),
        subject.programs.run(params, other.x, other.key, trials[1].dy),
    ]
    want = jax.tree.map(stack, *one_by_one)
    return compare(subject, "vmap", together, want, 1e-10, "differs under vmap")


def scan(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Inside ``jax.lax.scan`` as outside."""
    trial = trials[0]
    try:
        looped = subject.programs.looped(*trial.sample, trial.dy)
    except Exception as error:
        return raises("scan", "does not work inside jax.lax.scan:", error)
    got = jax.tree.map(lambda v: np.asarray(v)[0], looped)
    want = subject.programs.run(*trial.sample, trial.dy)
    return compare(subject, "scan", got, want, 1e-11, "differs inside scan")


# ---- second order ----------------------------------------------------------------------------


@cached
def change_of_gradient(traced: Callable[..., Any]) -> Callable[..., Any]:
    """The change of the gradient along a line: ``jax.jvp`` through forward and backward."""

    def change(floats: Any, line: Any, sample: Sample, dy: Any) -> Any:
        def gradient(floats: Any) -> Any:
            return split_floats(traced(*sample.with_floats(floats), dy)[1:])[0]

        return jax.jvp(gradient, (floats,), (line,))[1]

    return jit_for_few_runs(change)


def second_order(subject: Subject, trials: Sequence[Trial]) -> Result:
    """``jax.jvp`` through backward: equal to differences of the gradient, and symmetric."""
    trial = trials[0]
    floats = subject.floats(trial.sample)
    rng = np.random.default_rng(subject.seed + 4)
    lines = [[_direction(f, rng) for f in floats] for _ in range(2)]
    absent = [c is None for c in trial.got]
    change = change_of_gradient(subject.programs.traced)
    try:
        by_jvp = [
            [np.asarray(v) for v in change(floats, line, trial.sample, trial.dy)] for line in lines
        ]
    except Exception as error:
        return raises("second order", "jax.jvp through it raises", error)
    gradients = []
    for t in differences.steps():
        moved = [f + t * d for f, d in zip(floats, lines[0], strict=True)]
        there = trial.sample.with_floats(moved)
        gradients.append([c for c in subject.run(there, trial.dy)[1] if c is not None])
    problems, worst = [], 0.0
    names = [n for n, none in zip(subject.names, absent, strict=True) if not none]
    for i, name in enumerate(names):
        slope = differences.both_sides(np.stack([g[i] for g in gradients]))
        size = max(np.max(np.abs(v), initial=0) for v in (slope.value, gradients[-1][i]))
        certain = slope.error <= 1e-6 * (size + 1e-30)
        off = np.where(certain, np.abs(by_jvp[0][i] - slope.value), 0)
        off = np.nan_to_num(off, nan=np.inf)
        # Formulas with exact heads and tails lose half their digits when they are differentiated.
        wrong = off > 10 * slope.error + 1e-5 * size
        worst = max(worst, float(np.max(off, initial=0) / (size or 1.0)))
        if wrong.any():
            case = Case(by_jvp[0][i], np.where(certain, slope.value, by_jvp[0][i]))
            text = f"jax.jvp through backward {explain(case)}"
            problems.append(Problem(name, text, worst_entry(case)))
    figure = f"Hessian-vector product: error {worst:.1e}"
    scalar = all(np.ndim(v) == 0 for v in jax.tree.leaves(trial.y))
    if scalar and not any(absent) and not problems:
        asymmetry = _asymmetry(lines, by_jvp, trial.got)
        figure += f", asymmetry {asymmetry:.1e}"
        if asymmetry > 1e-6:
            text = f"the Hessian is not symmetric: off by {asymmetry:.1e}"
            problems.append(Problem("backward", text))
    return verdict("second order", figure, problems)


def _asymmetry(
    lines: Sequence[Cotangents], products: Sequence[Cotangents], gradient: Cotangents
) -> float:
    """|u H v - v H u|, relative to the sizes of its terms."""

    def terms(a: Cotangents, b: Cotangents) -> np.ndarray:
        return np.concatenate([np.ravel(v * w) for v, w in zip(a, b, strict=True)])

    one, other = terms(products[0], lines[1]), terms(products[1], lines[0])
    # Where there is no curvature, what is left is the gradient's own rounding.
    rounding = 1e-9 * np.sum(np.abs(terms(gradient, lines[1])))
    size = np.sum(np.abs(one)) + rounding
    return float(abs(np.sum(one) - np.sum(other)) / (size or 1.0))


def _direction(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = np.sqrt(np.mean(np.square(leaf))) + 1e-3 if leaf.size else 1.0
    return 0.3 * scale * rng.uniform(-1, 1, leaf.shape)
