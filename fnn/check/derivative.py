"""Is backward the derivative of forward? Structure, autodiff, differences, linearity."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.check import directional
from fnn.check.diagnosis import Case, explain, explain_shape, worst_entry
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result, verdict
from fnn.check.subject import (
    Cotangents,
    Subject,
    compiled,
    flat_floats,
    is_none,
    largest,
    leaves_of,
    map_floats,
    path_of,
)
from fnn.check.suspicion import (
    MAX_CONFIRMED,
    confirmed,
    confirmed_along,
    shares_a_triangle,
    suspects,
)
from fnn.check.trials import Trial, noise, rounding_of_y, scaled, sizes_of, trial_if_it_runs
from fnn.check.what_if import if_it_were

MAX_JACOBIAN_SIDE = 128  # entries in and out, up to which the whole Jacobian is compared
FAR_FACTORS = (8.0, 30.0)  # times the given inputs
# Far off, where a function saturates, its value is the rest of larger terms, whose rounding does
# not show.
FLOOR_ELSEWHERE = 1e-11
ONE_TRIANGLE = (
    "forward reads one triangle of a symmetric matrix, and backward shares its gradient between "
    "both: right as long as the matrix stays symmetric"
)
DIRECTIONS = 3  # random ones for each leaf, where the Jacobian is larger


# ---- 1. structure ----------------------------------------------------------------------------


def cotangents(subject: Subject) -> Result:
    """Structure, shape and dtype of every cotangent, leaf by leaf."""
    params, x, key = subject.sample
    dy = subject.random_cotangent(np.random.default_rng(subject.seed), subject.sample)
    shapes = jax.eval_shape(subject.programs.traced, params, x, key, dy)
    for what, needed, given in (("params", params, shapes[1]), ("x", x, shapes[2])):
        if str(_structure(needed)) != str(_structure(given)):
            return Result("cotangents", WRONG, "structure", (_misfit(what, needed, given),))
    problems, frozen, count = [], [], 0
    wanted, got = leaves_of(params, x), leaves_of(*shapes[1:])
    for (path, leaf), (_, d) in zip(wanted, got, strict=True):
        if leaf is None or not is_floating(leaf):
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
    leaves = "1 leaf" if count == 1 else f"{count} leaves"
    return Result("cotangents", RIGHT, f"{leaves}: structure, shape, dtype{left_out}")


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree, is_leaf=is_none)


def _misfit(path: str, needed: Any, given: Any) -> Problem:
    """Where two structures part first, and how."""
    if _items(given) == _items(needed):
        parts = (
            jax.tree_util.tree_leaves_with_path(
                tree, is_leaf=lambda part, tree=tree: part is not tree
            )
            for tree in (needed, given)
        )
        for (key, a), (_, b) in zip(*parts, strict=False):
            if str(_structure(a)) != str(_structure(b)):
                return _misfit(path_of(key, path), a, b)
    return Problem(path, f"the cotangent is {_items(given)}, needs {_items(needed)}")


def _items(tree: Any) -> str:
    if isinstance(tree, dict):
        return f"a dict of {sorted(tree)}"
    if isinstance(tree, (tuple, list)):
        return f"a {type(tree).__name__} of {len(tree)}"
    if tree is None or hasattr(tree, "shape"):
        return "None" if tree is None else "one array"
    return f"a {type(tree).__name__}"


def _wrong_shape(subject: Subject, path: str, dy: Any) -> Problem:
    _, dparams, dx = subject.programs.run(*subject.sample, dy)
    got, number = dict(leaves_of(dparams, dx))[path], subject.names.index(path)
    if subject.no_autodiff:
        needed = subject.sample.floats[number].shape
        return Problem(path, f"has shape {got.shape}, needs {needed}")
    want = subject.autodiff(subject.sample, dy)[number]
    return Problem(path, explain_shape(np.asarray(got), want))


# ---- 2. the value ----------------------------------------------------------------------------


def value(subject: Subject, trials: Sequence[Trial]) -> Result:
    """y under the rule is forward's own: a custom rule computes it a second time."""
    if not subject.rule.of_jax:
        return Result("value", RIGHT, "forward is the function itself")
    problems, worst = dict[str, Problem](), 0.0
    for trial in trials:
        own = compiled(subject.rule.primal)(*trial.sample)
        got, want = (leaves_of((), (), y) for y in (trial.y, own))
        for (path, a), (_, b) in zip(got, want, strict=True):
            if a is None:
                continue
            b = np.asarray(b)
            size = largest([b])
            off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
            error = float(np.max(np.nan_to_num(off, nan=np.inf), initial=0))
            worst = max(worst, error / (size or 1.0))
            allowed = subject.tolerance(1e-9) * size + subject.atol + 1e-300
            if error > allowed and error > allowed + rounding_of_y(subject, trial, path):
                case = Case(np.asarray(a), np.asarray(b))
                text = f"the value under the rule is not the function's own: it {explain(case)}"
                problems.setdefault(path, Problem(path, text, worst_entry(case)))
    return verdict("value", f"largest difference {min(worst, 1e300):.1e}", problems.values())


# ---- 3. autodiff -----------------------------------------------------------------------------


def autodiff(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Every leaf against ``jax.vjp`` of the forward, under several random cotangents."""
    if subject.no_autodiff:
        return Result("autodiff", SKIPPED, subject.no_autodiff)
    wants = [subject.autodiff(trial.sample, trial.dy) for trial in trials]
    worst, conventions = 0.0, 0
    first_wrong: dict[int, tuple[int, np.ndarray]] = {}  # leaf: where it is wrong first
    for number, (trial, want) in enumerate(zip(trials, wants, strict=True)):
        for leaf, (got, right) in enumerate(zip(trial.got, want, strict=True)):
            if got is None:
                if subject.names[leaf].startswith("x") and np.any(right):
                    first_wrong.setdefault(leaf, (number, np.ones(right.shape, bool)))
                continue
            allowed = _allowed(subject, trial, leaf, right)
            differ = ~(np.abs(got - right) <= allowed) & np.isfinite(right)
            off = suspects(subject, trial, leaf, right, allowed)
            conventions += int(np.sum(differ & ~off))
            size = largest([right]) or 1.0
            rough = noise(subject, trial)[leaf] > 1e-6 * size  # then an error says nothing
            counted = np.isfinite(right) & (off | ~(differ | rough))
            error = np.max(np.abs(got - right), where=counted, initial=0)
            worst = max(worst, min(float(np.nan_to_num(error, nan=np.inf)) / size, 1e300))
            if off.any() and leaf not in first_wrong:
                first_wrong[leaf] = number, off
    problems = [
        _explained(subject, trials, wants, leaf, number, off)
        for leaf, (number, off) in first_wrong.items()
    ] or [*_wrong_far_off(subject)]
    against = "the declared cotangents" if subject.rule.declared else "autodiff"
    figure = f"error {worst:.1e} of a leaf's largest entry, against {against}"
    if conventions:
        figure += f"; {conventions} entries where autodiff is no judge (a kink, a tie, lost digits)"
    if problems and worst < 1e-8:
        figure += f"; wrong: {', '.join(problem.leaf for problem in problems[:3])}"
    return verdict("autodiff", figure, problems)


def _allowed(subject: Subject, trial: Trial, leaf: int, want: np.ndarray) -> np.ndarray:
    """1e-8 of the entry, 1e-10 of the leaf's largest, and what rounding does."""
    relative = subject.tolerance(1e-8)
    top = largest([want])
    allowed = relative * np.abs(want) + max(1e-2 * relative, subject.rtol or 0) * top
    if subject.is_coarse or subject.iterates:
        allowed += relative * top
    return allowed + noise(subject, trial)[leaf] + subject.atol + 1e-300


def _wrong_far_off(subject: Subject) -> Iterator[Problem]:
    """Inputs much larger than given, where a rule may be cut off or saturate in the wrong place.

    Autodiff loses digits there, too, so only larger errors count; the lower precisions find the
    others, without autodiff.
    """
    rng = np.random.default_rng(subject.seed + 10)
    reported: set[str] = set()
    for factor in FAR_FACTORS if not subject.iterates else ():
        trial = trial_if_it_runs(subject, scaled(subject.sample, factor), rng)
        if trial is None or not np.isfinite(flat_floats(trial.y)).all():
            continue
        want, rounding = subject.autodiff(trial.sample, trial.dy), noise(subject, trial)
        unit = largest([*filter(is_floating, jax.tree.leaves(trial.dy))])
        for leaf, (name, got, right) in enumerate(zip(subject.names, trial.got, want, strict=True)):
            if got is None or name in reported or not np.isfinite(right).all():
                continue
            relative = subject.tolerance(1e-6)
            slack = rounding[leaf] + relative * (unit + largest([right]) + np.abs(right))
            slack += subject.atol
            off = suspects(subject, trial, leaf, right, slack)
            if off.any():
                reported.add(name)
                problem = _explained(subject, [trial], [want], leaf, 0, off)
                yield problem._replace(diagnosis=f"inputs times {factor:g}: {problem.diagnosis}")


def _explained(
    subject: Subject,
    trials: Sequence[Trial],
    wants: Sequence[Cotangents],
    leaf: int,
    number: int,
    off: np.ndarray,
) -> Problem:
    """The problem of a leaf that is wrong in a trial, with all that a diagnosis may use."""
    trial, want, own = trials[number], wants[number], subject.names[leaf]
    got = trial.got[leaf]
    if got is None:
        return Problem(own, "is None, for not computed, where it is not zero")
    # Where autodiff has a convention of its own, it says nothing about the mistake.
    differ = np.isfinite(want[leaf]) & ~(np.abs(got - want[leaf]) <= 1e-7 * np.abs(want[leaf]))
    right = np.asarray(np.where(off | ~differ, want[leaf], got))
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
        got,
        right,
        floats[leaf],
        others,
        {n: a for n, a in arrays.items() if a.shape == right.shape and np.any(a)},
        sizes_of(subject, trial),
        [
            (t.got[leaf], w[leaf], sizes_of(subject, t))
            for i, (t, w) in enumerate(zip(trials, wants, strict=True))
            if i != number and t.got[leaf] is not None
        ],
        bool(same and np.array_equal(trials[0].got[leaf], trials[1].got[leaf])),
        functools.partial(if_it_were, subject, trial, leaf),
        functools.partial(_is_a_staircase, subject, trial, leaf),
    )
    return Problem(own, explain(case), worst_entry(case))


def _is_a_staircase(subject: Subject, trial: Trial, leaf: int) -> bool:
    """Whether a cotangent stays as it is where the inputs move by less than float32 can hold."""
    moved = trial.sample.with_floats([f * (1 + 2.0**-30) for f in subject.floats(trial.sample)])
    got, still = subject.run(moved, trial.dy)[1][leaf], trial.got[leaf]
    want = trial.got[leaf] if subject.no_autodiff else subject.autodiff(moved, trial.dy)[leaf]
    return bool(
        np.mean(got == still) > 0.5 and (subject.no_autodiff or np.mean(want == still) < 0.5)
    )


# ---- 4. differences --------------------------------------------------------------------------


def by_differences(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Every leaf against differences of the forward alone, which use no autodiff."""
    if subject.rule.declared is not None or subject.rule.surrogate:
        words = "backward is declared to be another derivative than forward's"
        return Result("differences", SKIPPED, words)
    if subject.draws_gammas:
        # A gamma is drawn by rejection, whose own derivative is of no use: JAX has that of the
        # draw at a fixed value of the distribution function (Figurnov et al. 2018).
        return Result("differences", SKIPPED, "a gamma's derivative is implicit, not the sampler's")
    outputs = flat_floats(trials[0].y).size
    inputs = sum(f.size for f in subject.floats(subject.sample))
    if not inputs or not outputs:
        return Result("differences", SKIPPED, "nothing to differentiate: no floating in or output")
    rng = np.random.default_rng(subject.seed + 11)
    elsewhere = list(trials[2:])
    for factor in FAR_FACTORS if not subject.iterates else ():
        if far := trial_if_it_runs(subject, scaled(subject.sample, factor), rng):
            elsewhere.append(far)
    found = _Found(subject)
    if inputs > MAX_JACOBIAN_SIDE or outputs > MAX_JACOBIAN_SIDE:
        _along_directions(found, trials[:2], DIRECTIONS)  # at the given inputs
        for trial in elsewhere:
            with _leaving_the_domain():
                _along_directions(found, [trial], 1)
        return found.result(f"{DIRECTIONS} directions a leaf")
    for trial in trials[:2]:
        _by_entries(found, trial, 0.0)
    for trial in elsewhere:
        with _leaving_the_domain():
            _by_entries(found, trial, FLOOR_ELSEWHERE)
    return found.result("whole Jacobian")


@contextmanager
def _leaving_the_domain() -> Iterator[None]:
    """At inputs that nobody asked for, forward may raise."""
    try:
        yield
    except Exception:
        return


class _Found:
    """What differences say, over all samples."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.problems: dict[str, Problem] = {}
        self.worst = self.bound = 0.0
        self.rough = self.count = 0
        self.jacobians: dict[int, Any] = {}
        relative = subject.tolerance(1e-9)
        self.relative = 10 * relative if subject.is_coarse else relative
        self.certain_up_to = max(1e-6, subject.tolerance(0))

    def note(self, certain: np.ndarray, off: np.ndarray, error: np.ndarray, size: Any) -> None:
        """The figures of some entries."""
        self.count += certain.size
        self.rough += int(np.sum(~certain))
        with np.errstate(all="ignore"):
            off, error = (np.minimum(v, 1e300) / size for v in (off, error))
        self.worst = max(self.worst, float(np.max(off, where=certain, initial=0)))
        self.bound = max(self.bound, float(np.max(error, where=certain, initial=0)))

    def _reason(self) -> str:
        """Why autodiff's own gradient may be another one on purpose."""
        if self.subject.draws:
            return "is it the gradient of a mean, and not of these random numbers"
        if self.subject.iterates:
            return "is it right up to a tolerance (rtol=), or is something in it on purpose"
        return "is something in it on purpose"

    def without_convention(
        self, trial: Trial, leaf: int, wrong: np.ndarray, certain: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is wrong and certain, but for a convention of symmetric matrices, which is noted."""
        if not wrong.any() or not shares_a_triangle(self.subject, trial, leaf):
            return wrong, certain
        name = self.subject.names[leaf]
        self.problems.setdefault(name, Problem(name, ONE_TRIANGLE, note=True))
        return np.zeros_like(wrong), certain & ~wrong

    def is_new(self, name: str) -> bool:
        """Whether nothing is known to be wrong with a leaf."""
        return name not in self.problems or self.problems[name].note

    def result(self, what: str) -> Result:
        """The result, after all samples."""
        left_out = ""
        if self.rough:
            left_out = f"; {self.rough} of {self.count} not judged (a kink near, or too rough)"
        figure = f"{what}: error {self.worst:.1e}, bound {self.bound:.1e}{left_out}"
        is_wrong = any(not problem.note for problem in self.problems.values())
        if is_wrong and self.subject.rule.of_jax and self.subject.no_autodiff:
            figure += f"; it is autodiff's own: {self._reason()} (declared=)?"
        if self.rough == self.count:
            return Result("differences", SKIPPED, f"{what}: nothing converged, so nothing is said")
        return verdict("differences", figure, self.problems.values())


def _by_entries(found: _Found, trial: Trial, floor: float) -> None:
    """``floor``: an error that is none, as a share of dy."""
    subject = found.subject
    if (where := id(trial.sample)) not in found.jacobians:
        found.jacobians[where] = directional.jacobian(subject, trial)
    jacobian, dy = found.jacobians[where], flat_floats(trial.dy)
    with np.errstate(all="ignore"):
        terms = jacobian.value * dy
        slopes, bounds = np.sum(terms, 1), np.sum(np.abs(dy) * jacobian.error, 1)
        size = np.max(np.abs(terms), where=np.isfinite(terms), initial=0)
    floats = subject.floats(trial.sample)
    finite = all(np.isfinite(leaf).all() for leaf in floats)
    start = 0
    for name, leaf, got in zip(subject.names, floats, trial.got, strict=True):
        entries = np.arange(start, start + leaf.size)
        start += leaf.size
        if got is None:
            continue
        given, want, error = np.ravel(got), slopes[entries], bounds[entries]
        # A slope that did not converge is no evidence: a kink is near (see "kinks").
        certain = np.isfinite(want) & (error <= found.certain_up_to * (size + 1e-30))
        if not finite:  # 0 times an infinite input is NaN, whatever the derivative is
            certain &= np.isfinite(np.ravel(leaf)) & np.isfinite(given)
        off = np.abs(given - want)
        off = np.where(np.isnan(off), np.inf, off)
        allowed = 10 * error + found.relative * np.abs(want) + 1e-3 * found.relative * size
        if subject.is_coarse or subject.iterates:
            allowed += found.relative * size
        allowed += subject.atol + floor * largest([dy])
        wrong = certain & (off > allowed)
        if wrong.any():
            chosen = np.argsort(np.where(wrong, -off, 0))[: min(int(wrong.sum()), MAX_CONFIRMED)]
            stays = confirmed(subject, trial, entries[chosen], given[chosen])
            wrong &= bool(stays.any())
            certain &= ~(wrong ^ (off > allowed))
        number = subject.names.index(name)
        wrong, certain = found.without_convention(trial, number, wrong, certain)
        found.note(certain, off, error, size or 1.0)
        if wrong.any() and found.is_new(name):
            right = np.where(wrong, want, given).reshape(leaf.shape)
            right = np.where(certain.reshape(leaf.shape), want.reshape(leaf.shape), right)
            steps = functools.partial(_is_a_staircase, subject, trial, number)
            sizes = sizes_of(subject, trial)
            case = Case(got, right, leaf, sizes=sizes, is_staircase=steps)
            found.problems[name] = Problem(name, explain(case), worst_entry(case))


def _along_directions(found: _Found, trials: Sequence[Trial], repeats: int) -> None:
    subject = found.subject
    slope, sums, sizes, directions = directional.along_leaves(subject, trials, repeats)
    stops = np.cumsum([leaf.size for leaf in subject.floats(trials[0].sample)])
    for leaf, name in enumerate(subject.names):
        if any(trial.got[leaf] is None for trial in trials):
            continue
        value, error, given = slope.value[leaf], slope.error[leaf], sums[leaf]
        size = np.maximum(np.abs(value), sizes[leaf]) + 1e-300
        certain = np.isfinite(value) & (error <= 10 * found.certain_up_to * size)
        off = np.where(np.isnan(given), np.inf, np.abs(given - value))
        wrong = certain & (off > 10 * error + 10 * found.relative * size + subject.atol)
        for repeat, trial in np.argwhere(wrong):
            start = stops[leaf] - subject.floats(trials[0].sample)[leaf].size
            wrong[repeat, trial] = confirmed_along(
                subject, trials[trial], directions[repeat], start, stops[leaf],
                given[repeat, trial],
            )  # fmt: skip
            certain[repeat, trial] = wrong[repeat, trial]
        wrong, certain = found.without_convention(trials[0], leaf, wrong, certain)
        found.note(certain, off, error, size)
        if wrong.any() and found.is_new(name):
            place = np.unravel_index(np.argmax(np.where(wrong, off, 0)), off.shape)
            text = f"along a random direction: got {given[place]:.9g}, expected {value[place]:.9g}"
            ratios = (given / value)[certain]
            if ratios.size > 1 and np.ptp(ratios) < 1e-5 * np.abs(ratios[0]):
                text = f"is {ratios[0]:.6g} times the truth along every direction; {text}"
            found.problems[name] = Problem(name, text)


# ---- 5. linearity ----------------------------------------------------------------------------


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
    # Where a leaf's gradient is 0, the rounding of others is left in it.
    whole = largest([a for trial in trials[:2] for a in trial.got if a is not None])
    declared = subject.rule.declared is not None  # which need not be linear: clipping
    leaves = zip(subject.names, first.got, second.got, mixed, strict=True)
    for i, (name, a, b, d) in enumerate(leaves):
        if a is None or b is None or d is None:
            continue
        if not np.array_equal(a, again[i], equal_nan=True):
            problems.append(Problem(name, "differs on a second call with the same arguments"))
        if declared:
            continue
        if np.any(zero[i][np.isfinite(zero[i])]):
            text = "is not zero for a zero upstream cotangent: a term does not contain dy"
            problems.append(Problem(name, text))
        allowed = subject.tolerance(1e-10) * whole + subject.atol + 1e-300
        allowed += sum(float(np.max(noise(subject, t)[i])) for t in trials[:2])
        off = np.max(np.abs(enlarged[i] / 1e4 - a), initial=0)
        if np.isfinite(a).all() and not off <= allowed:
            text = "is not 10,000 times as large for dy 10,000 times as large: is it clipped?"
            problems.append(Problem(name, text))
        off = np.max(np.nan_to_num(np.abs(d - (2 * a - 3 * b))), initial=0)
        worst = max(worst, float(off / (whole or 1.0)))
        if off > 5 * allowed:
            text = f"is not linear in the upstream cotangent: off by {off / (whole or 1):.1e}"
            low, high = np.min(d), np.max(d)
            if np.sum(d == low) > 1 or np.sum(d == high) > 1:
                text += f"; it seems cut off (between {low:.4g} and {high:.4g})"
            problems.append(Problem(name, text))
    return verdict("linear", f"largest error {worst:.1e}", problems)
