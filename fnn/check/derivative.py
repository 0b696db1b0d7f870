"""Is backward the derivative of forward? Structure, autodiff, differences, linearity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fnn.block import is_floating
from fnn.check import directional
from fnn.check.diagnosis import Case, explain, explain_shape, worst_entry
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result, verdict
from fnn.check.rule import Sample
from fnn.check.subject import Cotangents, Subject, flat_floats, largest, leaves_of, map_floats
from fnn.check.trials import Trial, scaled, sizes_of, trial_at

MAX_JACOBIAN_SIDE = 128  # entries in and out, up to which the whole Jacobian is compared
FAR_FACTORS = (8.0, 30.0)  # times the given inputs
DIRECTIONS = 3  # random ones for each leaf, where the Jacobian is larger


# ---- 1. structure ----------------------------------------------------------------------------


def cotangents(subject: Subject) -> Result:
    """Structure, shape and dtype of every cotangent, leaf by leaf."""
    params, x, key = subject.sample
    dy = subject.random_cotangent(np.random.default_rng(subject.seed), subject.sample)
    shapes = jax.eval_shape(subject.programs.traced, params, x, key, dy)
    for what, needed, given in (("params", params, shapes[1]), ("x", x, shapes[2])):
        left, right = (
            str(jax.tree.structure(tree, is_leaf=lambda leaf: leaf is None))
            for tree in (needed, given)
        )
        if left != right:
            text = f"the cotangent is {_items(given)}, needs {_items(needed)}"
            if _items(given) == _items(needed):
                text = f"the cotangent has the structure {right}, needs {left}"
            return Result("cotangents", WRONG, "structure", (Problem(what, text),))
    problems, frozen, count = [], [], 0
    wanted, got = leaves_of(params, x), leaves_of(*shapes[1:])
    for (path, leaf), (_, d) in zip(wanted, got, strict=True):
        if not is_floating(leaf):
            if d is not None and d.dtype != jax.dtypes.float0 and is_floating(d):
                text = f"is an integer: its cotangent needs to be None, got {d.dtype}{d.shape}"
                problems.append(Problem(path, text))
            continue
        count += 1
        if d is None:
            frozen.append(path)
        elif d.shape != leaf.shape:
            problems.append(_wrong_shape(subject, path, dy))
        elif d.dtype != leaf.dtype:
            problems.append(Problem(path, f"has dtype {d.dtype}, needs {leaf.dtype}"))
    if problems:
        return verdict("cotangents", f"{len(problems)} of {count} leaves", problems)
    left_out = f"; None, so not computed: {', '.join(frozen)}" if frozen else ""
    return Result("cotangents", RIGHT, f"{count} leaves: structure, shape, dtype{left_out}")


def _items(tree: Any) -> str:
    if isinstance(tree, dict):
        return f"a dict of {sorted(tree)}"
    if isinstance(tree, (tuple, list)):
        return f"a {type(tree).__name__} of {len(tree)}"
    return "None" if tree is None else "one array"


def _wrong_shape(subject: Subject, path: str, dy: Any) -> Problem:
    _, dparams, dx = subject.programs.run(*subject.sample, dy)
    got, number = dict(leaves_of(dparams, dx))[path], subject.names.index(path)
    if subject.no_autodiff:
        needed = subject.sample.floats[number].shape
        return Problem(path, f"has shape {got.shape}, needs {needed}")
    want = subject.autodiff(subject.sample, dy)[number]
    return Problem(path, explain_shape(np.asarray(got), want))


# ---- 2. autodiff -----------------------------------------------------------------------------


def autodiff(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Every leaf against ``jax.vjp`` of the forward, under several random cotangents."""
    if subject.no_autodiff:
        return Result("autodiff", SKIPPED, subject.no_autodiff)
    wants = [subject.autodiff(trial.sample, trial.dy) for trial in trials]
    worst = 0.0
    first_wrong: dict[int, int] = {}  # leaf: the first trial in which it is wrong
    for number, (trial, want) in enumerate(zip(trials, wants, strict=True)):
        noise = _noise(subject, trial)
        for leaf, (got, right, slack) in enumerate(zip(trial.got, want, noise, strict=True)):
            if got is None:
                if subject.names[leaf].startswith("x") and np.any(right):
                    first_wrong.setdefault(leaf, number)
                continue
            error = _error_over_allowed(got, right, slack, subject.tolerance(1e-12))
            worst = max(worst, min(error, 1e300))
            if error > 1:
                first_wrong.setdefault(leaf, number)
    problems = [
        _explained(subject, trials, wants, leaf, number) for leaf, number in first_wrong.items()
    ]
    figure = f"largest error {1e-8 * worst:.1e} (relative, {len(trials)} trials)"
    return verdict("autodiff", figure, problems or _wrong_far_off(subject))


def _wrong_far_off(subject: Subject) -> Iterator[Problem]:
    """Inputs much larger than given, where a rule may be cut off or saturate in the wrong place.

    Autodiff loses digits there, too, so only larger errors count; the lower precisions find the
    others, without autodiff.
    """
    rng = np.random.default_rng(subject.seed + 10)
    reported: set[str] = set()
    for factor in FAR_FACTORS:
        trial = trial_at(subject, scaled(subject.sample, factor), rng)
        if not np.isfinite(flat_floats(trial.y)).all():
            continue
        want, noise = subject.autodiff(trial.sample, trial.dy), _noise(subject, trial)
        unit = largest([*filter(is_floating, jax.tree.leaves(trial.dy))])
        for leaf, (name, got, right) in enumerate(zip(subject.names, trial.got, want, strict=True)):
            if got is None or name in reported or not np.isfinite(right).all():
                continue
            slack = noise[leaf] + 1e-6 * unit + 1e-6 * np.max(np.abs(right), initial=0)
            if _error_over_allowed(got, right, slack) > 1:
                reported.add(name)
                problem = _explained(subject, [trial], [want], leaf, 0)
                yield problem._replace(diagnosis=f"inputs times {factor:g}: {problem.diagnosis}")


def _error_over_allowed(
    got: np.ndarray, want: np.ndarray, slack: np.ndarray, rounding: float = 1e-12
) -> float:
    """The largest error of an entry, divided by what is allowed: 1e-8 of the entry, ``rounding``
    of the largest entry, and ``slack``."""
    finite = np.isfinite(want)
    allowed = 1e-8 * np.abs(want) + rounding * np.max(np.abs(want[finite]), initial=0) + slack
    error = np.abs(got - want) / np.where(allowed > 0, allowed, 1e-300)
    error = np.where(np.isnan(error) & ~np.isfinite(got), np.inf, error)
    return float(np.max(np.nan_to_num(np.where(finite, error, 0), posinf=np.inf), initial=0))


def _noise(subject: Subject, trial: Trial) -> list[np.ndarray]:
    """How far rounding may carry each entry: what a change of some units in the inputs does."""
    rng = np.random.default_rng(subject.seed + 1)

    def stir(v: Any) -> Any:
        return np.asarray(v) * (1 + 2.0**-50 * rng.uniform(-1, 1, np.shape(v)))

    params, x, key = trial.sample
    params, x = map_floats(stir, (params, x))
    moved = subject.run(Sample(params, x, key), map_floats(stir, trial.dy))[1]
    finite = [c for c in trial.got if c is not None and np.isfinite(c).all()]
    size = largest([*filter(is_floating, jax.tree.leaves(trial.dy)), *finite])
    return [
        np.zeros(1)
        if a is None or b is None
        else 1e3 * np.nan_to_num(np.abs(a - b), posinf=0.0) + 1e-15 * size
        for a, b in zip(trial.got, moved, strict=True)
    ]


def _explained(
    subject: Subject, trials: Sequence[Trial], wants: Sequence[Cotangents], leaf: int, number: int
) -> Problem:
    """The problem of a leaf that is wrong in a trial, with all that a diagnosis may use."""
    trial, want, own = trials[number], wants[number], subject.names[leaf]
    if trial.got[leaf] is None:
        return Problem(own, "is None, for not computed, where it is not zero")
    floats = subject.floats(trial.sample)
    arrays: dict[str, np.ndarray] = {}
    for name, tree in (("dy", trial.dy), ("y", trial.y)):
        for i, part in enumerate(jax.tree.leaves(tree)):
            arrays[f"{name}/{i}" if i else name] = np.asarray(part)
    arrays |= dict(zip(subject.names, floats, strict=True))
    others = {n: w for n, w in zip(subject.names, want, strict=True) if n != own}
    arrays |= {f"the cotangent of {n}": w for n, w in others.items()}
    given = dict(zip(subject.names, trial.got, strict=True))
    arrays |= {f"what the rule gives for {n}": w for n in others if (w := given[n]) is not None}
    same = len(trials) > 1 and np.any(trials[0].got[leaf])
    case = Case(
        trial.got[leaf],
        want[leaf],
        floats[leaf],
        others,
        {n: a for n, a in arrays.items() if a.shape == want[leaf].shape and np.any(a)},
        sizes_of(subject, trial),
        [
            (t.got[leaf], w[leaf], sizes_of(subject, t))
            for i, (t, w) in enumerate(zip(trials, wants, strict=True))
            if i != number and t.got[leaf] is not None
        ],
        bool(same and np.array_equal(trials[0].got[leaf], trials[1].got[leaf])),
    )
    return Problem(own, explain(case), worst_entry(case))


# ---- 3. differences --------------------------------------------------------------------------


def by_differences(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Every leaf against differences of the forward alone, which use no autodiff."""
    outputs = flat_floats(trials[0].y).size
    inputs = sum(f.size for f in subject.floats(subject.sample))
    if not inputs or not outputs:
        return Result("differences", SKIPPED, "nothing to differentiate: no floating in or output")
    if inputs > MAX_JACOBIAN_SIDE or outputs > MAX_JACOBIAN_SIDE:
        return _projections(subject, trials[:2])  # at the given inputs
    return _whole_jacobian(subject, trials[:3])


def _whole_jacobian(subject: Subject, trials: Sequence[Trial]) -> Result:
    problems: dict[str, Problem] = {}
    worst, bound, rough = 0.0, 0.0, 0
    jacobians: dict[int, Any] = {}
    for trial in trials:
        if (where := id(trial.sample)) not in jacobians:
            jacobians[where] = directional.jacobian(subject, trial)
        jacobian, dy = jacobians[where], flat_floats(trial.dy)
        terms = jacobian.value * dy
        slopes, bounds = np.sum(terms, 1), np.sum(np.abs(dy) * jacobian.error, 1)
        size = np.max(np.abs(terms), initial=0)
        start = 0
        floats = subject.floats(trial.sample)
        for name, leaf, got in zip(subject.names, floats, trial.got, strict=True):
            want, error = (v[start : start + leaf.size] for v in (slopes, bounds))
            start += leaf.size
            if got is None:
                continue
            # A slope that did not converge is no evidence: a kink is near (see "kinks").
            certain = error <= 1e-6 * (size + 1e-30)
            rough += int(np.sum(~certain))
            off = np.abs(np.ravel(got) - want)
            off = np.where(np.isnan(off), np.inf, off)
            wrong = certain & (off > 10 * error + 1e-9 * np.abs(want) + 1e-12 * size)
            unit = size or 1.0
            worst = max(worst, _largest_where(certain, np.minimum(off, 1e300) / unit))
            bound = max(bound, _largest_where(certain, error / unit))
            if wrong.any() and name not in problems:
                right = np.where(certain, want, np.ravel(got)).reshape(leaf.shape)
                case = Case(got, right, leaf, sizes=sizes_of(subject, trial))
                problems[name] = Problem(name, explain(case), worst_entry(case))
    left_out = f"; {rough} entries at a kink or too rough" if rough else ""
    figure = f"whole Jacobian: error {worst:.1e}, bound {bound:.1e}{left_out}"
    return verdict("differences", figure, problems.values())


def _largest_where(mask: np.ndarray, values: np.ndarray) -> float:
    return float(np.max(values, where=mask, initial=0))


def _projections(subject: Subject, trials: Sequence[Trial]) -> Result:
    slope, sums, sizes = directional.along_leaves(subject, trials, DIRECTIONS)
    problems, worst, bound, rough = [], 0.0, 0.0, 0
    for leaf, name in enumerate(subject.names):
        if any(trial.got[leaf] is None for trial in trials):
            continue
        value, error, got = slope.value[leaf], slope.error[leaf], sums[leaf]
        size = np.maximum(np.abs(value), sizes[leaf]) + 1e-300
        certain = error <= 1e-5 * size
        rough += int(np.sum(~certain))
        off = np.where(np.isnan(got), np.inf, np.abs(got - value))
        wrong = certain & (off > 10 * error + 1e-8 * size)
        worst = max(worst, _largest_where(certain, off / size))
        bound = max(bound, _largest_where(certain, error / size))
        if wrong.any():
            place = np.unravel_index(np.argmax(np.where(wrong, off, 0)), off.shape)
            text = f"along a random direction: got {got[place]:.9g}, expected {value[place]:.9g}"
            ratios = (got / value)[certain]
            if ratios.size > 1 and np.ptp(ratios) < 1e-5 * np.abs(ratios[0]):
                text = f"is {ratios[0]:.6g} times the truth along every direction; {text}"
            problems.append(Problem(name, text))
    left_out = f"; {rough} of {slope.error.size} at a kink or too rough" if rough else ""
    figure = f"{DIRECTIONS} directions a leaf: error {worst:.1e}, bound {bound:.1e}{left_out}"
    return verdict("differences", figure, problems)


# ---- 4. linearity ----------------------------------------------------------------------------


def linear(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Linear in the cotangent, zero for zero, the same bits on a second call."""
    sample, (first, second) = subject.sample, trials[:2]
    problems = []

    def under(dy: Any) -> Cotangents:
        return subject.run(sample, dy)[1]

    again, zero = under(first.dy), under(map_floats(np.zeros_like, first.dy))
    enlarged = under(map_floats(lambda d: 1e4 * d, first.dy))
    mixed = under(
        jax.tree.map(lambda a, b: 2 * a - 3 * b if is_floating(a) else a, first.dy, second.dy)
    )
    worst = 0.0
    leaves = zip(subject.names, first.got, second.got, mixed, strict=True)
    for i, (name, a, b, d) in enumerate(leaves):
        if a is None or b is None or d is None:
            continue
        if not np.array_equal(a, again[i], equal_nan=True):
            problems.append(Problem(name, "differs on a second call with the same arguments"))
        if np.any(zero[i][np.isfinite(zero[i])]):
            text = "is not zero for a zero upstream cotangent: a term does not contain dy"
            problems.append(Problem(name, text))
        allowed = subject.tolerance(1e-10) * np.max(np.abs(a), initial=0) + 1e-300
        off = np.max(np.abs(enlarged[i] / 1e4 - a), initial=0)
        if np.isfinite(a).all() and not off <= allowed:
            text = "is not 10,000 times as large for dy 10,000 times as large: is it clipped?"
            problems.append(Problem(name, text))
        off = np.max(np.nan_to_num(np.abs(d - (2 * a - 3 * b))), initial=0)
        size = np.max(np.nan_to_num(2 * np.abs(a) + 3 * np.abs(b)), initial=0)
        worst = max(worst, float(off / (size or 1.0)))
        if off > subject.tolerance(1e-10) * size:
            text = f"is not linear in the upstream cotangent: off by {off / size:.1e}"
            low, high = np.min(d), np.max(d)
            if np.sum(d == low) > 1 or np.sum(d == high) > 1:
                text += f"; it seems cut off (between {low:.4g} and {high:.4g})"
            problems.append(Problem(name, text))
    return verdict("linear", f"largest error {worst:.1e}", problems)
