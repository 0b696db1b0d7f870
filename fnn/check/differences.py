"""Derivatives from values alone: differences, with an estimate of their own error.

A reference without autodiff. A derivative along a line is extrapolated from ever
smaller steps (C. J. F. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Advances in
Engineering Software 4, 1982): of all extrapolations, the one that agrees best with its
neighbours is taken, and how well they agree is its error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EPS, TINY = float(np.finfo(np.float64).eps), float(np.finfo(np.float64).tiny)
STEPS = 12
FIRST_STEPS = (6, 3, 0)  # numbers of the largest step in use, tried one after the other
LARGEST_STEP = 0.25  # of the scale of the direction; each next step is half as large


class Slope(NamedTuple):
    """A derivative and a bound of its error, of the shape of the values.

    Where nothing converged (a kink, a jump, values that are not finite) the error is infinite.
    """

    value: np.ndarray
    error: np.ndarray


def steps() -> np.ndarray:
    """The steps t at which ``f(x + t direction)`` is needed, besides 0."""
    h = LARGEST_STEP / 2.0 ** np.arange(STEPS)
    return np.concatenate([h, -h])


def both_sides(
    values: np.ndarray,
    size: np.ndarray | None = None,
    at_zero: np.ndarray | None = None,
    unit: float = EPS,
) -> Slope:
    """The derivative at 0 from the values at ``steps()``, stacked on the first axis.

    ``size``: of the terms that add up to the values, if larger: their rounding counts.
    ``at_zero``: the value there, which shows a kink closer than the smallest step: across it the
    two sides have different slopes, and all steps agree on their mean. ``unit``: the spacing of
    the dtype in which the values were computed.
    """
    above, below = values[:STEPS], values[STEPS:]
    size = np.abs(values) if size is None else size
    slope = _extrapolate((above - below) / 2, np.maximum(size[:STEPS], size[STEPS:]), True, unit)
    if at_zero is None:
        return slope
    right, left = (one_side(values, at_zero, sign, size, unit) for sign in (1, -1))
    with np.errstate(invalid="ignore"):  # infinite values: nothing converged
        both = right.error + left.error
        apart = np.abs(right.value - left.value) > (
            10 * both + 1e-5 * (np.abs(right.value) + np.abs(left.value))
        )
        # Where the second derivative jumps, each side converges and both together do not.
        value = np.where(both < slope.error, (right.value + left.value) / 2, slope.value)
        error = np.minimum(slope.error, both)
    return Slope(value, np.where(apart | ~np.isfinite(at_zero), np.inf, error))


def one_side(
    values: np.ndarray,
    at_zero: np.ndarray,
    sign: int,
    size: np.ndarray | None = None,
    unit: float = EPS,
) -> Slope:
    """The derivative from the right (sign 1) or from the left (sign -1); ``size`` as above."""
    cut = slice(None, STEPS) if sign > 0 else slice(STEPS, None)
    side = values[cut]
    size = np.maximum(np.abs(side), np.abs(at_zero)) if size is None else size[cut]
    return _extrapolate(sign * (side - at_zero), size, False, unit)


def _extrapolate(differences: np.ndarray, size: np.ndarray, even: bool, unit: float) -> Slope:
    """Neville's table of the quotients, best entry first; ``even``: their error has only even
    powers of the step.

    An entry's error is how well it agrees with its neighbours. Across a kink the quotients of
    large steps may agree by chance: so an entry that uses them counts only where it agrees with
    what the smaller steps alone say.
    """
    h = LARGEST_STEP / 2.0 ** np.arange(STEPS)
    h = h.reshape(-1, *(1,) * (differences.ndim - 1))
    with np.errstate(all="ignore"):
        column = differences / h
        # Rounding of the two values, which a small step magnifies; and what underflows in them.
        rounding = (unit * size + TINY) / h
        value = {first: column[-1] for first in FIRST_STEPS}
        error = {first: np.full(column[-1].shape, np.inf) for first in FIRST_STEPS}
        entries = np.indices(column.shape[1:], sparse=True)
        for order in range(1, STEPS):
            gain = 2.0 ** (2 * order if even else order)
            finer = column[1:] + (column[1:] - column[:-1]) / (gain - 1)
            apart = np.maximum(np.abs(finer - column[1:]), np.abs(finer - column[:-1]))
            apart = np.where(np.isfinite(apart), apart, np.inf) + rounding[order:]
            for first in FIRST_STEPS:  # row i of the table begins at step i
                if len(rows := apart[first:]):
                    winner = np.argmin(rows, axis=0), *entries
                    least, best = rows[winner], finer[first:][winner]
                    value[first] = np.where(least < error[first], best, value[first])
                    error[first] = np.minimum(error[first], least)
            column = finer
        slope, bound = value[FIRST_STEPS[0]], error[FIRST_STEPS[0]]
        for first in FIRST_STEPS[1:]:
            disagrees = np.abs(value[first] - slope) > 10 * (error[first] + bound)
            better = (error[first] < bound) & ~disagrees
            slope = np.where(better, value[first], slope)
            bound = np.where(better, error[first], bound)
    return Slope(slope, bound)
