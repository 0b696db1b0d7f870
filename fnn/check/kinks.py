"""Where forward has no derivative: ties, zeros and whole numbers, and what backward gives there.

A subgradient lies between the slopes from both sides, the shares of a tie add up to the slope
along all of it, and where a block declares its subgradient backward has to give that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.check import differences, directional
from fnn.check.differences import Slope
from fnn.check.report import NOTE, RIGHT, SKIPPED, Problem, Result, verdict
from fnn.check.rule import Sample
from fnn.check.subject import Subject, flat_floats, map_floats
from fnn.check.suspicion import confirmed
from fnn.check.trials import Trial, trial_if_it_runs

MAX_ENTRIES, MIN_ENTRIES = 96, 8  # of x, that are moved one by one
MAX_NUMBERS = 200_000  # of y for all of them together
NEARBY_POINTS, NEARBY_DISTANCE = 48, 1e-6  # around a point where several kinks may meet


class Point(NamedTuple):
    """A sample on kinks, what backward gives there, and the slopes of <dy, y> along ``entries``.

    ``entries``: numbers of entries of all floating leaves as one vector, ``where``: their leaf
    and value, ``given``: their cotangents. ``kink``: the slopes from both sides differ; ``jump``:
    there is no such slope. ``size``: of dy, that errors are relative to.
    """

    sample: Sample
    dy: Any
    entries: np.ndarray
    where: list[tuple[str, float]]
    given: np.ndarray
    left: Slope
    right: Slope
    kink: np.ndarray
    jump: np.ndarray
    size: float


def kinks(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Ties, zeros and whole numbers: where forward has no derivative, the declared one."""
    if subject.rule.declared is not None or subject.rule.surrogate:
        words = "backward is declared to be another derivative than forward's"
        return Result("kinks", SKIPPED, words)
    entries = _entries(subject, trials[0])
    if not entries.size:
        return Result("kinks", SKIPPED, "x has no floating entries with a cotangent")
    problems: dict[Problem, None] = {}
    examples: dict[str, None] = {}
    count = smooth = 0
    for sample, in_domain in _samples(subject):
        if (point := _point(subject, sample, entries)) is None:
            continue
        count += int(np.sum(point.kink | point.jump))
        smooth += int(np.sum(~point.kink & ~point.jump))
        examples |= dict.fromkeys(_slopes_in_words(point))
        found = _problems(subject, point)
        problems |= dict.fromkeys(p if in_domain else p._replace(note=True) for p in found)
    figure = f"{count} kinks and {smooth} smooth points, at ties, zeros and whole numbers"
    if examples:
        figure += f"; {'; '.join(list(examples)[:3])}"
    if problems:
        return verdict("kinks", f"{len(problems)} wrong or unusual; {figure}", problems)
    declared = not count or subject.rule.subgradient is not None
    return Result("kinks", RIGHT if declared else NOTE, figure)


def _entries(subject: Subject, trial: Trial) -> np.ndarray:
    """Some entries of x that have a cotangent, counted over all floating leaves."""
    start, entries = 0, list[int]()
    leaves = zip(subject.names, subject.floats(subject.sample), trial.got, strict=True)
    for name, leaf, cotangent in leaves:
        if name.startswith("x") and cotangent is not None:
            entries += range(start, start + leaf.size)
        start += leaf.size
    outputs = sum(v.size for v in jax.tree.leaves(subject.y_shape(subject.sample)))
    most = min(MAX_ENTRIES, max(MIN_ENTRIES, MAX_NUMBERS // max(outputs, 1)))
    return np.array(entries[:: -(-len(entries) // most) or 1], np.int64)


def _samples(subject: Subject) -> Iterator[tuple[Sample, bool]]:
    """x on whole numbers from -3 to 3, from -1 to 1, and all zero; and whether that seems to be in
    its domain."""
    rng = np.random.default_rng(subject.seed + 2)
    x = subject.sample.x

    def whole(high: int, v: Any) -> Any:
        numbers = rng.integers(-high, high + 1, v.shape).astype(v.dtype)
        # Inputs that are all positive, as given, mean a domain: keep to it.
        return np.abs(numbers) + 1 if _is_positive(v) else numbers

    for high in (3, 1):
        sample = subject.sample._replace(x=map_floats(functools.partial(whole, high), x))
        yield sample, _keeps_order(subject, sample)
    sample = subject.sample._replace(x=map_floats(np.zeros_like, x))
    positive = any(map(_is_positive, subject.floats(subject.sample)))
    yield sample, _keeps_order(subject, sample) and not positive


def _is_positive(v: Any) -> bool:
    return bool(np.size(v) > 1 and np.all(np.asarray(v) > 0))


def _keeps_order(subject: Subject, sample: Sample) -> bool:
    """Whether arguments of which one is below another as given, such as bounds, stay so."""
    given, new = subject.floats(subject.sample), subject.floats(sample)
    for i, j in itertools.permutations(range(len(given)), 2):
        if given[i].shape != given[j].shape or not np.all(given[i] < given[j]):
            continue
        if not np.all(new[i] < new[j]):
            return False
    return True


def _point(subject: Subject, sample: Sample, entries: np.ndarray) -> Point | None:
    """The slopes at a sample; None outside the domain or at an edge of it (see "edges")."""
    trial = trial_if_it_runs(subject, sample, np.random.default_rng(subject.seed + 3))
    if trial is None or not np.isfinite(flat_floats(trial.y)).all():
        return None
    dy, cotangents = trial.dy, trial.got
    at_zero, weights = flat_floats(trial.y), flat_floats(dy)
    values, scales = directional.by_entry(subject, sample, entries)
    terms = np.abs(values) @ np.abs(weights)

    def slope(sign: int) -> Slope:
        value, error = differences.one_side(
            values @ weights, at_zero @ weights, sign, terms, subject.unit
        )
        return Slope(value / scales, error / scales)

    left, right = slope(-1), slope(1)
    size = max(float(np.max(np.abs(weights), initial=0)), 1e-300)
    limit = max(1e-6, subject.tolerance(0)) * size
    sure = (left.error <= limit) & (right.error <= limit)
    apart = np.abs(right.value - left.value) > 10 * (limit + left.error + right.error)
    jump = ~sure & np.isfinite(values).all((0, 2))
    named = zip(subject.names, subject.floats(sample), strict=True)
    places = [(name, float(v)) for name, leaf in named for v in np.ravel(leaf)]
    where, given = [places[i] for i in entries], subject.flat_cotangents(cotangents)[entries]
    return Point(sample, dy, entries, where, given, left, right, sure & apart, jump, size)


def _slopes_in_words(point: Point) -> Iterator[str]:
    for i in np.flatnonzero(point.kink | point.jump):
        (leaf, value), given = point.where[i], point.given[i]
        slopes = f"{point.left.value[i]:.3g} | {point.right.value[i]:.3g}"
        yield f"{leaf} = {value:g}: slopes {slopes}, backward {given:.3g}"


def _problems(subject: Subject, point: Point) -> Iterator[Problem]:
    yield from _nan_at_an_edge(point)
    limit = max(1e-6, subject.tolerance(0)) * point.size
    bounds = 10 * (point.left.error + point.right.error) + limit
    low = np.minimum(point.left.value, point.right.value) - bounds
    high = np.maximum(point.left.value, point.right.value) + bounds
    sure = np.maximum(point.left.error, point.right.error) <= limit
    outside = np.flatnonzero(sure & ~((point.given >= low) & (point.given <= high)))
    if outside.size:
        yield from _not_between(subject, point, outside)
    else:
        yield from _ties(subject, point)
    yield from _not_as_declared(subject, point)


def _nan_at_an_edge(point: Point) -> Iterator[Problem]:
    """NaN at an edge of the domain, where one side has a slope and the other has none."""
    left, right = (slope.error <= 1e-6 * point.size for slope in (point.left, point.right))
    nan = np.isnan(point.given)
    for slope, side, edge in (
        (point.right, "right", right & ~left & nan),
        (point.left, "left", left & ~right & nan),
    ):
        for i in np.flatnonzero(edge)[:1]:
            leaf, value = point.where[i]
            text = (
                f"is NaN at {leaf} = {value:g}, an edge of the domain, where y is finite and "
                f"the slope from the {side} is {slope.value[i]:.6g}"
            )
            yield Problem(leaf, text, note=True)


def _not_between(subject: Subject, point: Point, outside: np.ndarray) -> Iterator[Problem]:
    smooth = outside[~point.kink[outside]][:MIN_ENTRIES]
    if smooth.size:
        trial = Trial(point.sample, point.dy, *subject.run(point.sample, point.dy))
        stays = confirmed(subject, trial, point.entries[smooth], point.given[smooth])
        for i in smooth[stays][:1]:
            if _is_given_nearby(subject, point, i):
                continue
            leaf, value = point.where[i]
            text = (
                f"at {leaf} = {value:g} (a tie or a special point) the derivative is "
                f"{point.right.value[i]:.6g}, and backward gives {point.given[i]:.6g}"
            )
            is_asked = _is_as_given(subject, point) or not _is_of_jax(subject, point, i)
            yield Problem(leaf, text, note=not is_asked)
            return
    for i in outside[point.kink[outside]][:1]:
        leaf, value = point.where[i]
        given, left, right = point.given[i], point.left.value[i], point.right.value[i]
        declared = subject.rule.subgradient is not None  # then that alone counts
        if np.isfinite(given) and (declared or _is_given_nearby(subject, point, i)):
            return
        text = (
            f"only at a kink: at {leaf} = {value:g} the slopes are {left:.6g} and {right:.6g} "
            f"from the left and right, and backward gives {given:.6g}, which is not between them"
        )
        yield Problem(leaf, text, note=_is_of_jax(subject, point, i))


def _is_as_given(subject: Subject, point: Point) -> bool:
    """Whether this is the user's own x, at which the derivative was asked for."""
    pairs = zip(subject.floats(subject.sample), subject.floats(point.sample), strict=True)
    return all(np.array_equal(given, here) for given, here in pairs)


def _is_of_jax(subject: Subject, point: Point, i: int) -> bool:
    """Whether nobody wrote what backward gives here: it is what autodiff of forward gives."""
    if subject.no_autodiff:
        return subject.rule.of_jax
    want = subject.flat_cotangents(subject.autodiff(point.sample, point.dy))[point.entries[i]]
    return bool(np.isclose(want, point.given[i], 1e-6, 1e-12, equal_nan=True))


def _is_given_nearby(subject: Subject, point: Point, i: int) -> bool:
    """Whether several kinks meet here, and each may have chosen its subgradient.

    As where all units of a layer are at 0, or many numbers tie for a median: the slopes from both
    sides of this entry then do not say what its subgradients are. The gradients of this entry
    nearby do: what backward gives is among or between them, or they are more than two.
    """
    rng = np.random.default_rng(subject.seed + 9)
    slopes = [point.left.value[i], point.right.value[i]]
    for _ in range(NEARBY_POINTS):
        moved = [
            f + NEARBY_DISTANCE * rng.uniform(-1, 1, f.shape) if name.startswith("x") else f
            for name, f in zip(subject.names, subject.floats(point.sample), strict=True)
        ]
        cotangents = subject.run(point.sample.with_floats(moved), point.dy)[1]
        slopes.append(subject.flat_cotangents(cotangents)[point.entries[i]])
    values = np.sort(slopes)
    slack = 1e-3 * np.max(np.abs(values), initial=0)
    between = values[0] - slack <= point.given[i] <= values[-1] + slack
    several = int(np.sum(np.diff(values) > slack)) > 1
    return bool(between if not point.kink[i] else between or several)


def _ties(subject: Subject, point: Point) -> Iterator[Problem]:
    """Tied entries that move together: where that is smooth, their shares have to add up."""
    values = np.array([value for _, value in point.where])
    for value in np.unique(values[point.kink]):
        tied = point.kink & (values == value)
        if np.sum(tied) < 2:
            continue
        left, right = _slopes_along(subject, point, point.entries[tied])
        total = float(np.sum(point.given[tied]))
        size = float(np.sum(np.abs(point.given[tied]))) + abs(right.value) + 1e-12
        error = max(left.error, right.error)
        if error > 1e-6 * size or abs(right.value - left.value) > 1e-6 * size:
            continue
        if abs(total - right.value) > 1e-5 * size:
            ratio = f", {total / right.value:.6g} times too much" if right.value else ""
            text = (
                f"only at ties: {int(np.sum(tied))} entries equal to {value:g} get "
                f"{total:.6g} together, and the derivative along all of them is "
                f"{right.value:.6g}{ratio}: the shares of a tie have to add up to one"
            )
            first = int(np.argmax(tied))
            note = _is_of_jax(subject, point, first)
            yield Problem(point.where[first][0], text, note=note)


def _slopes_along(subject: Subject, point: Point, entries: np.ndarray) -> tuple[Slope, Slope]:
    """The slopes of <dy, y> from the left and right where the entries move together."""
    direction = np.zeros(sum(f.size for f in subject.floats(point.sample)))
    direction[entries] = 1.0
    start, stop = np.array([0]), np.array([direction.size])
    moved = directional.along(subject, point.sample, direction, start, stop)[:, 0]
    weights = flat_floats(point.dy)
    y = subject.run(point.sample, point.dy)[0]
    values, at_zero = moved @ weights, flat_floats(y) @ weights
    return differences.one_side(values, at_zero, -1), differences.one_side(values, at_zero, 1)


def _not_as_declared(subject: Subject, point: Point) -> Iterator[Problem]:
    """The first kink at which backward does not give the declared subgradient."""
    kinks = np.flatnonzero(point.kink | point.jump)
    if subject.rule.subgradient is None or not kinks.size:
        return
    declared = subject.rule.subgradient(point.sample.x, point.dy)
    leaves = [np.ravel(np.asarray(d)) for d in jax.tree.leaves(declared)]
    count = sum(name.startswith("params") for name in subject.names)
    params = sum(f.size for f in subject.floats(point.sample)[:count])
    wanted = np.concatenate(leaves)[point.entries - params]
    off = ~(np.abs(point.given - wanted) <= 1e-9 * (1 + np.abs(wanted)))
    for i in kinks[off[kinks]][:1]:
        leaf, value = point.where[i]
        text = (
            f"only at a kink: at {leaf} = {value:g} backward gives {point.given[i]:.6g}, "
            f"and the declared subgradient is {wanted[i]:.6g}"
        )
        yield Problem(leaf, text)
