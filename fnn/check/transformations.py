"""Does the rule survive jit, vmap, scan and a second derivative?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.check import differences
from fnn.check.diagnosis import Case, explain, worst_entry
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result, verdict
from fnn.check.rule import Sample, cached, is_symmetric
from fnn.check.subject import Cotangents, Subject, flat_floats, largest
from fnn.check.suspicion import SMALLER_STEPS
from fnn.check.trials import Trial, compare, in_one_line, noise, raises
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
    """The change of the gradient along a line of inputs, and along one of dy: ``jax.jvp`` through
    forward and backward."""

    def change(floats: Any, line: Any, sample: Sample, dy: Any, other_dy: Any) -> Any:
        def gradient(floats: Any, floats_of_dy: Any) -> Any:
            return split_floats(traced(*sample.with_floats(floats), put(floats_of_dy))[1:])[0]

        given, put = split_floats(dy)
        along_dy = split_floats(other_dy)[0]
        by_inputs = jax.jvp(lambda floats: gradient(floats, given), (floats,), (line,))[1]
        return by_inputs, jax.jvp(lambda dy: gradient(floats, dy), (given,), (along_dy,))[1]

    return jit_for_few_runs(change)


@cached
def change_of_product(traced: Callable[..., Any]) -> Callable[..., Any]:
    """The derivatives, by ``jax.vjp`` of the gradient, of its product with a vector: by the inputs
    and by dy."""

    def change(floats: Any, vector: Any, sample: Sample, dy: Any) -> Any:
        def product(floats: Any, floats_of_dy: Any) -> Any:
            whole = traced(*sample.with_floats(floats), put(floats_of_dy))
            gradient = split_floats(whole[1:])[0]
            return sum(jnp.sum(g * v) for g, v in zip(gradient, vector, strict=True))

        given, put = split_floats(dy)
        return jax.grad(product, (0, 1))(floats, given)

    return jit_for_few_runs(change)


def second_order(subject: Subject, trials: Sequence[Trial]) -> Result:
    """The derivative of backward: equal to differences of the gradient, and symmetric.

    By ``jax.jvp`` through backward; for a function, whose custom rules have reverse mode only, by
    ``jax.vjp``.
    """
    result = _second_order(subject, trials, 1.0)
    for factor in SMALLER_STEPS:  # the first ones may be larger than the function's own scale
        if result.status == WRONG and _second_order(subject, trials, factor).status == RIGHT:
            return _second_order(subject, trials, factor)
    return result


def _second_order(subject: Subject, trials: Sequence[Trial], factor: float) -> Result:
    """``factor``: the size of the steps."""
    trial = trials[0]
    floats = subject.floats(trial.sample)
    if subject.rule.of_jax and subject.rule.declared is not None:
        return Result("second order", SKIPPED, "the gradient is declared, and not its derivative")
    if not all(np.isfinite(f).all() for f in floats) or largest(floats) > LARGEST_SQUARED:
        return Result(
            "second order", SKIPPED, "inputs that are not finite, or whose squares are not"
        )
    rng = np.random.default_rng(subject.seed + 4)
    lines = [[factor * _direction(f, rng) for f in floats] for _ in range(2)]
    gradients = []
    for t in differences.steps():
        moved = [f + t * d for f, d in zip(floats, lines[0], strict=True)]
        there = trial.sample.with_floats(moved)
        gradients.append([c for c in subject.run(there, trial.dy)[1] if c is not None])
    here = [c for c in trial.got if c is not None]
    if subject.rule.of_jax:
        return _by_reverse_mode(subject, trials, factor, lines[0], gradients, here)
    change = change_of_gradient(subject.programs.traced)
    try:
        changes = [change(floats, line, trial.sample, trial.dy, trials[1].dy) for line in lines]
        by_jvp = [[np.asarray(v) for v in by_inputs] for by_inputs, _ in changes]
    except Exception as error:
        return raises("second order", "jax.jvp through it raises", error)
    names = [n for n, c in zip(subject.names, trial.got, strict=True) if c is not None]
    slopes = []
    for i, (now, terms) in enumerate(zip(here, _terms(subject, trial), strict=True)):
        values = np.stack([g[i] for g in gradients])
        slopes.append(differences.both_sides(values, np.abs(values) + terms, now, subject.unit))
    whole = max(largest([slope.value for slope in slopes]), factor * largest(gradients[-1]))
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
    problems += _stopped_dy(subject, trials[1], names, changes[0][1])
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


DY_IS_STOPPED = (
    "the derivative of backward by dy is not backward: does it stop the gradient of dy? Then "
    "second derivatives of what comes after it are lost"
)


def _stopped_dy(
    subject: Subject, other: Trial, names: Sequence[str], changes: Sequence[Any]
) -> list[Problem]:
    """backward is linear in dy: its change along another dy is its value there."""
    if subject.rule.declared is not None:
        return []
    there = [c for c in other.got if c is not None]
    whole, rounding = largest(there), dict(zip(subject.names, noise(subject, other), strict=True))
    problems = []
    for name, change, want in zip(names, changes, there, strict=True):
        allowed = subject.tolerance(1e-6) * whole + rounding[name] + subject.atol
        if np.any(np.isfinite(want) & ~(np.abs(np.asarray(change) - want) <= allowed)):
            problems.append(Problem(name, DY_IS_STOPPED))
    return problems


def _by_reverse_mode(
    subject: Subject,
    trials: Sequence[Trial],
    factor: float,
    line: Cotangents,
    gradients: Sequence[Any],
    here: Cotangents,
) -> Result:
    """<vector, gradient> along a line: by ``jax.vjp``, and by differences."""
    trial, other = trials[:2]
    rng, floats = np.random.default_rng(subject.seed + 12), subject.floats(trial.sample)
    moving = [f for f, c in zip(floats, trial.got, strict=True) if c is not None]
    vector = [_like(f, rng.standard_normal(f.shape)) for f in moving]
    change = change_of_product(subject.programs.traced)
    try:
        derivative, by_dy = change(floats, vector, trial.sample, trial.dy)
    except Exception as error:
        words = f"jax.vjp of the gradient raises {in_one_line(error)}"
        return Result("second order", SKIPPED, words)

    def product(gradient: Cotangents) -> float:
        return float(sum(np.sum(g * v) for g, v in zip(gradient, vector, strict=True)))

    def size(gradient: Cotangents) -> float:
        return float(sum(np.sum(np.abs(g * v)) for g, v in zip(gradient, vector, strict=True)))

    slope = differences.both_sides(
        np.array([product(g) for g in gradients]),
        np.array([size(g) + size(_terms(subject, trial)) for g in gradients]),
        np.asarray(product(here)),
        subject.unit,
    )
    terms = [np.asarray(d) * v for d, v in zip(derivative, line, strict=True)]
    got, whole = sum(float(np.sum(t)) for t in terms), sum(float(np.sum(np.abs(t))) for t in terms)
    whole = max(whole, abs(float(slope.value)), factor * 1e-6 * size(here))
    tolerance = max(1e-5, subject.tolerance(0))
    problems, there = [], [c for c in other.got if c is not None]
    along_dy = flat_floats(by_dy) @ flat_floats(other.dy)
    rounding = 1e3 * subject.unit * size(_terms(subject, other))
    limit = subject.tolerance(1e-6) * size(there) + rounding + subject.atol
    if np.isfinite(product(there)) and not abs(along_dy - product(there)) <= limit:
        problems.append(Problem("backward", DY_IS_STOPPED))
    if not problems and not (np.isfinite(got) and slope.error <= 0.1 * tolerance * whole):
        words = "the gradient is not smooth enough here for differences of it"
        return Result("second order", SKIPPED, words)
    off = abs(got - float(slope.value))
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


def _terms(subject: Subject, trial: Trial) -> list[np.ndarray]:
    """The size of terms whose rounding shows in the gradient, which may be less than that of dy:
    that of a confident softmax is."""
    size = largest([*filter(is_floating, jax.tree.leaves(trial.dy))])
    changes = zip(noise(subject, trial), trial.got, strict=True)
    return [
        np.broadcast_to(change / (1e3 * subject.unit) + size, got.shape)
        for change, got in changes
        if got is not None
    ]


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
    if 0 < (spread := np.std(leaf)) < 1e-3 * scale:  # beside an offset
        scale = spread
    return _like(leaf, 0.3 * scale * rng.uniform(-1, 1, leaf.shape))


def _like(leaf: np.ndarray, change: np.ndarray) -> np.ndarray:
    """A change that leaves symmetric matrices symmetric."""
    return (change + np.swapaxes(change, -1, -2)) / 2 if is_symmetric(leaf) else change
