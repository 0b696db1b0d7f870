"""Where a rule and its reference differ, is the rule to blame?

Autodiff is no judge at a kink, a tie or an edge of forward's domain: there it has a convention of
its own, or NaN. Such points are rare, so a mistake of the rule shows at points close by as well,
and a mere convention does not. Differences are no judge across a kink: what they say has to hold
for steps of several sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fnn.check import differences, directional
from fnn.check.rule import is_symmetric
from fnn.check.subject import Subject, all_finite, flat_floats, typical
from fnn.check.trials import Trial

SMALLER_STEPS = (2.0**-8, 2.0**-16)  # times those of the first differences
MAX_CONFIRMED = 8  # entries of a leaf, the worst ones


def suspects(
    subject: Subject, trial: Trial, leaf: int, want: np.ndarray, allowed: Any
) -> np.ndarray:
    """The entries of a cotangent that differ from autodiff's, here and at points close by.

    ``allowed``: the difference that is no error. Where a NaN or an infinity was given and y is not
    finite, NaN is as good as a number.
    """
    floats, got = subject.floats(trial.sample), trial.got[leaf]
    off = _differ(got, want, allowed) & np.isfinite(floats[leaf])  # for limits, see "edges"
    if not all(np.isfinite(f).all() for f in floats) and not all_finite(trial.y):
        off &= np.isfinite(got)
    if not off.any():
        return off
    relative = subject.tolerance(1e-8)
    agree = np.zeros(off.shape, int)
    judged = np.zeros(off.shape, int)
    for near in subject.nearby(trial.sample):
        one = subject.run(near, trial.dy)[1][leaf]
        other = subject.autodiff(near, trial.dy)[leaf]
        judged += np.isfinite(other)
        agree += np.isfinite(other) & ~_differ(one, other, relative * np.abs(other) + allowed)
    off &= (judged > 0) & (agree == 0)
    if off.any() and subject.rule.declared is None and not subject.rule.surrogate:
        off &= not _autodiff_is_wrong(subject, trial, leaf, want, off)
    return off


def _autodiff_is_wrong(
    subject: Subject, trial: Trial, leaf: int, want: np.ndarray, off: np.ndarray
) -> bool:
    """Whether differences are sure that autodiff has lost its digits, and not the rule."""
    start = sum(f.size for f in subject.floats(trial.sample)[:leaf])
    entries = np.flatnonzero(off)[:MAX_CONFIRMED]
    direction = directional.scales(subject, trial.sample)
    slope = _slopes(subject, trial, direction, start + entries, start + entries + 1)
    scale = direction[start + entries]
    ours, theirs = (np.ravel(d)[entries] * scale for d in (trial.got[leaf], want))
    return bool((contradicts(slope, theirs) & ~contradicts(slope, ours)).all())


def _differ(got: np.ndarray, want: np.ndarray, allowed: Any) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.isfinite(want) & ~(np.abs(got - want) <= allowed)


def confirmed(subject: Subject, trial: Trial, entries: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Whether differences with smaller steps contradict ``given``, too: the derivatives of
    <dy, y> by ``entries`` of all floating leaves as one vector. Steps on the scale of an entry
    itself, which may be tiny beside others, may also confirm ``given``."""
    stays = np.ones(len(entries), bool)
    direction = directional.scales(subject, trial.sample)
    for factor in SMALLER_STEPS:
        slope = _slopes(subject, trial, factor * direction, entries, entries + 1)
        stays &= contradicts(slope, given * factor * direction[entries])
    own = np.abs(np.concatenate([np.ravel(f) for f in subject.floats(trial.sample)]))
    slope = _slopes(subject, trial, own, entries, entries + 1)
    return stays & ~agrees(slope, given * own[entries])


def confirmed_along(
    subject: Subject, trial: Trial, direction: np.ndarray, start: int, stop: int, given: float
) -> bool:
    """The same for one part [start, stop) of a direction, and ``given`` along it."""
    place = np.array([start]), np.array([stop])
    return all(
        contradicts(_slopes(subject, trial, factor * direction, *place), given * factor)[0]
        for factor in SMALLER_STEPS
    )


def shares_a_triangle(subject: Subject, trial: Trial, leaf: int) -> bool:
    """Whether forward reads one triangle of symmetric matrices, and backward shares its gradient
    between both: it is right along every change that is symmetric, as that of JAX's Cholesky."""
    floats, got = subject.floats(trial.sample), trial.got[leaf]
    if got is None or not is_symmetric(floats[leaf]) or floats[leaf].shape[-1] < 2:
        return False
    rng = np.random.default_rng(subject.seed + 13)
    change = typical(floats[leaf]) * rng.standard_normal(got.shape)
    below = np.tril(np.ones(got.shape[-2:]), -1)
    symmetric = change + np.swapaxes(change, -1, -2)
    start = sum(f.size for f in floats[:leaf])
    stop, whole = start + got.size, sum(f.size for f in floats)

    def refuted(change: np.ndarray, given: float) -> bool:
        direction = np.zeros(whole)
        direction[start:stop] = np.ravel(change)
        return confirmed_along(subject, trial, direction, start, stop, given)

    is_unread = any(not refuted(triangle * change, 0.0) for triangle in (below, below.T))
    return is_unread and not refuted(symmetric, float(np.sum(symmetric * got)))


def contradicts(slope: differences.Slope, given: Any) -> np.ndarray:
    """Whether differences are sure of another derivative."""
    sure, close = _compared(slope, given)
    return np.asarray(sure & ~close)


def agrees(slope: differences.Slope, given: Any) -> np.ndarray:
    """Whether differences are sure of this derivative, which is not 0."""
    sure, close = _compared(slope, given)
    return np.asarray(sure & close & (given != 0))


def _compared(slope: differences.Slope, given: Any) -> tuple[np.ndarray, np.ndarray]:
    size = np.fmax(np.abs(slope.value), np.abs(given))
    sure = slope.error <= np.where(np.isnan(given), 1e-6, 0.1 * size)
    return sure, np.abs(given - slope.value) <= 10 * slope.error + 1e-9 * size


def _slopes(
    subject: Subject, trial: Trial, direction: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> differences.Slope:
    values = directional.along(subject, trial.sample, direction, starts, stops)
    weights, still = flat_floats(trial.dy), flat_floats(trial.y)
    terms = (np.abs(values) + directional.rounded_terms(subject, trial)) @ np.abs(weights)
    return differences.both_sides(values @ weights, terms, still @ weights, subject.unit)
