"""Does the rule survive jit, vmap, scan and a second derivative?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.check import differences
from fnn.check.diagnosis import Case, explain, worst_entry
from fnn.check.report import SKIPPED, Problem, Result, verdict
from fnn.check.rule import Sample, cached
from fnn.check.subject import Cotangents, Subject, largest
from fnn.check.trials import Trial, compare, in_one_line, raises
from fnn.compiling import jit_for_few_runs
from fnn.pytrees import split_floats

LARGEST_SQUARED = 1e100  # beyond it a second derivative's terms overflow


def jit(subject: Subject, trials: Sequence[Trial]) -> Result:
    """The same numbers when run operation by operation, as Python would."""
    trial = trials[0]
    arguments = _on_device((*trial.sample, trial.dy))  # a rule may use .at[...], which NumPy lacks
    try:
        subject.in_time()
        eager = subject.programs.traced(*arguments)
    except Exception as error:
        if _forward_raises(lambda: subject.rule.primal(*arguments[:3])):
            return Result("jit", SKIPPED, "forward itself runs under jit only")
        return raises("jit", "runs under jit but not without it:", error)
    compiled = subject.programs.run(*trial.sample, trial.dy)
    return compare(subject, trial, "jit", eager, compiled, 1e-11, "differs without jit")


def vmap(subject: Subject, trials: Sequence[Trial]) -> Result:
    """``jax.vmap`` over two samples equals one after the other."""
    (params, x, key), other = trials[0].sample, trials[min(2, len(trials) - 1)].sample
    try:
        xs = jax.tree.map(_stack, x, other.x)
        dys = jax.tree.map(_stack, trials[0].dy, trials[1].dy)
        together = subject.programs.mapped(params, xs, key, dys)
    except Exception as error:
        mapped = jax.vmap(subject.rule.primal, (None, 0, None))
        if _forward_raises(lambda: mapped(params, jax.tree.map(_stack, x, other.x), key)):
            return Result("vmap", SKIPPED, "jax.vmap cannot map forward itself")
        return raises("vmap", "cannot be mapped by jax.vmap:", error)
    one_by_one = [
        subject.programs.run(params, x, key, trials[0].dy),
        subject.programs.run(params, other.x, other.key, trials[1].dy),
    ]
    want = jax.tree.map(_stack, *one_by_one)
    return compare(subject, trials[0], "vmap", together, want, 1e-10, "differs under vmap")


def scan(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Inside ``jax.lax.scan`` as outside."""
    trial = trials[0]
    try:
        looped = subject.programs.looped(*trial.sample, trial.dy)
    except Exception as error:
        forward = subject.rule.primal

        def loop() -> Any:
            def body(carry: Any, _: Any) -> Any:
                return carry, forward(*trial.sample)

            return jax.lax.scan(body, 0, None, length=1)

        if _forward_raises(loop):
            return Result("scan", SKIPPED, "forward itself does not work inside jax.lax.scan")
        return raises("scan", "does not work inside jax.lax.scan:", error)
    got = jax.tree.map(lambda v: v[0], looped)
    want = subject.programs.run(*trial.sample, trial.dy)
    return compare(subject, trial, "scan", got, want, 1e-11, "differs inside scan")


def _stack(*leaves: Any) -> Any:
    is_key = any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves)
    return jnp.stack(leaves) if is_key else np.stack(leaves)


def _on_device(tree: Any) -> Any:
    def one(leaf: Any) -> Any:
        return leaf if getattr(leaf, "dtype", None) == jax.dtypes.float0 else jax.device_put(leaf)

    return jax.tree.map(one, tree)


def _forward_raises(run: Callable[[], Any]) -> bool:
    try:
        jax.block_until_ready(run())
    except Exception:
        return True
    return False


# ---- second order ----------------------------------------------------------------------------


@cached
def change_of_gradient(traced: Callable[..., Any]) -> Callable[..., Any]:
    """The change of the gradient along a line: ``jax.jvp`` through forward and backward."""

    def change(floats: Any, line: Any, sample: Sample, dy: Any) -> Any:
        def gradient(floats: Any) -> Any:
            return split_floats(traced(*sample.with_floats(floats), dy)[1:])[0]

        return jax.jvp(gradient, (floats,), (line,))[1]

    return jit_for_few_runs(change)


@cached
def change_of_product(traced: Callable[..., Any]) -> Callable[..., Any]:
    """The derivative, by ``jax.vjp`` of the gradient, of its product with a vector."""

    def change(floats: Any, vector: Any, sample: Sample, dy: Any) -> Any:
        def product(floats: Any) -> Any:
            gradient = split_floats(traced(*sample.with_floats(floats), dy)[1:])[0]
            return sum(jnp.sum(g * v) for g, v in zip(gradient, vector, strict=True))

        return jax.grad(product)(floats)

    return jit_for_few_runs(change)


def second_order(subject: Subject, trials: Sequence[Trial]) -> Result:
    """The derivative of backward: equal to differences of the gradient, and symmetric.

    By ``jax.jvp`` through backward; for a function, whose custom rules have reverse mode only, by
    ``jax.vjp``.
    """
    trial = trials[0]
    floats = subject.floats(trial.sample)
    if subject.rule.of_jax and subject.rule.declared is not None:
        return Result("second order", SKIPPED, "the gradient is declared, and not its derivative")
    if not all(np.isfinite(f).all() for f in floats) or largest(floats) > LARGEST_SQUARED:
        return Result(
            "second order", SKIPPED, "inputs that are not finite, or whose squares are not"
        )
    rng = np.random.default_rng(subject.seed + 4)
    lines = [[_direction(f, rng) for f in floats] for _ in range(2)]
    gradients = []
    for t in differences.steps():
        moved = [f + t * d for f, d in zip(floats, lines[0], strict=True)]
        there = trial.sample.with_floats(moved)
        gradients.append([c for c in subject.run(there, trial.dy)[1] if c is not None])
    here = [c for c in trial.got if c is not None]
    if subject.rule.of_jax:
        return _by_reverse_mode(subject, trial, lines[0], gradients, here)
    change = change_of_gradient(subject.programs.traced)
    try:
        by_jvp = [
            [np.asarray(v) for v in change(floats, line, trial.sample, trial.dy)] for line in lines
        ]
    except Exception as error:
        return raises("second order", "jax.jvp through it raises", error)
    names = [n for n, c in zip(subject.names, trial.got, strict=True) if c is not None]
    slopes = [
        differences.both_sides(np.stack([g[i] for g in gradients]), None, now, subject.unit)
        for i, now in enumerate(here)
    ]
    whole = max(largest([slope.value for slope in slopes]), largest(gradients[-1]))
    problems, worst = [], 0.0
    for i, name in enumerate(names):
        slope = slopes[i]
        certain = slope.error <= max(1e-6, subject.tolerance(0)) * (whole + 1e-30)
        off = np.where(certain, np.abs(by_jvp[0][i] - slope.value), 0)
        off = np.nan_to_num(off, nan=np.inf)
        # Formulas with exact heads and tails lose half their digits when they are differentiated.
        wrong = off > 10 * slope.error + max(1e-5, subject.tolerance(0)) * whole
        worst = max(worst, min(float(np.max(off, initial=0) / (whole or 1.0)), 1e300))
        if wrong.any():
            case = Case(by_jvp[0][i], np.where(certain, slope.value, by_jvp[0][i]))
            text = f"jax.jvp through backward {explain(case)}"
            problems.append(Problem(name, text, worst_entry(case)))
    figure = f"Hessian-vector product: error {worst:.1e}"
    scalar = all(np.ndim(v) == 0 for v in jax.tree.leaves(trial.y))
    symmetric = subject.rule.declared is None and not subject.rule.surrogate
    if scalar and symmetric and len(here) == len(trial.got) and not problems:
        asymmetry = _asymmetry(lines, by_jvp, trial.got)
        figure += f", asymmetry {asymmetry:.1e}"
        if asymmetry > max(1e-6, subject.tolerance(0)):
            text = f"the Hessian is not symmetric: off by {asymmetry:.1e}"
            problems.append(Problem("backward", text))
    return verdict("second order", figure, problems)


def _by_reverse_mode(
    subject: Subject, trial: Trial, line: Cotangents, gradients: Sequence[Any], here: Cotangents
) -> Result:
    """<vector, gradient> along a line: by ``jax.vjp``, and by differences."""
    rng = np.random.default_rng(subject.seed + 12)
    vector = [rng.standard_normal(g.shape) for g in here]
    change = change_of_product(subject.programs.traced)
    floats = subject.floats(trial.sample)
    try:
        derivative = change(floats, vector, trial.sample, trial.dy)
    except Exception as error:
        words = f"jax.vjp of the gradient raises {in_one_line(error)}"
        return Result("second order", SKIPPED, words)

    def product(gradient: Cotangents) -> float:
        return float(sum(np.sum(g * v) for g, v in zip(gradient, vector, strict=True)))

    def size(gradient: Cotangents) -> float:
        return float(sum(np.sum(np.abs(g * v)) for g, v in zip(gradient, vector, strict=True)))

    slope = differences.both_sides(
        np.array([product(g) for g in gradients]),
        np.array([size(g) for g in gradients]),
        np.asarray(product(here)),
        subject.unit,
    )
    terms = [np.asarray(d) * v for d, v in zip(derivative, line, strict=True)]
    got, whole = sum(float(np.sum(t)) for t in terms), sum(float(np.sum(np.abs(t))) for t in terms)
    whole = max(whole, abs(float(slope.value)), 1e-6 * size(here))
    tolerance = max(1e-5, subject.tolerance(0))
    if not (np.isfinite(got) and slope.error <= 0.1 * tolerance * whole):
        words = "the gradient is not smooth enough here for differences of it"
        return Result("second order", SKIPPED, words)
    off = abs(got - float(slope.value))
    problems = []
    if off > 10 * slope.error + tolerance * whole:
        text = (
            "the derivative of the gradient is wrong: along a line "
            f"{got:.9g} by jax.grad of it, {float(slope.value):.9g} by differences"
        )
        if not got:
            text += "; does backward stop the gradient, or return something that is constant?"
        problems.append(Problem("backward", text))
    figure = f"Hessian-vector product: error {off / (whole or 1.0):.1e}"
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
