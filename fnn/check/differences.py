"""Derivatives from values alone: differences, with an estimate of their own error.

The oracle that has no autodiff in it. A derivative along a line is extrapolated from ever
smaller steps (C. J. F. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Advances in
Engineering Software 4, 1982): of all extrapolations, the one that agrees best with its
neighbours is taken, and how well they agree is its error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

STEPS, FINEST = 12, 6
FIRST = 0.25  # of the scale of the direction; the last step is FIRST / 2**(STEPS - 1)


class Slope(NamedTuple):
    """A derivative and a bound of its error; both of the shape of what was differenced.

    Where nothing converged (a kink, a jump, values that are not finite) the error is infinite.
    """

    value: np.ndarray
    error: np.ndarray


def steps() -> np.ndarray:
    """The steps t at which the function is needed, besides 0: ``f(x + t direction)``."""
    h = FIRST / 2.0 ** np.arange(STEPS)
    return np.concatenate([h, -h])


def both_sides(values: np.ndarray, size: np.ndarray | None = None) -> Slope:
    """From the values at ``steps()``, stacked on the first axis: the derivative at 0.

    ``size``: of what was added up to the values, if that is larger: its rounding counts.
    """
    above, below = values[:STEPS], values[STEPS:]
    size = np.abs(values) if size is None else size
    size = np.maximum(size[:STEPS], size[STEPS:])
    return _extrapolate((above - below) / 2, size, even=True)


def one_side(values: np.ndarray, at_zero: np.ndarray, sign: int) -> Slope:
    """The derivative from the right (sign 1) or from the left (sign -1)."""
    side = values[:STEPS] if sign > 0 else values[STEPS:]
    size = np.maximum(np.abs(side), np.abs(at_zero))
    return _extrapolate(sign * (side - at_zero), size, even=False)


def _extrapolate(differences: np.ndarray, size: np.ndarray, even: bool) -> Slope:
    """From all steps, but only where that agrees with what the smaller ones say.

    Across a kink the quotients of large steps may agree with each other by chance.
    """
    h = FIRST / 2.0 ** np.arange(STEPS)
    h = h.reshape(-1, *(1,) * (differences.ndim - 1))
    with np.errstate(all="ignore"):
        quotients = differences / h
        # Rounding of the two values, which a small step magnifies.
        rounding = np.finfo(np.float64).eps * size / h
        value, error = _table(quotients[-FINEST:], rounding[-FINEST:], even)
        for first in (FINEST // 2, 0):
            finer, least = _table(quotients[first:], rounding[first:], even)
            agrees = (least < error) & ~(np.abs(finer - value) > 10 * (least + error))
            value, error = np.where(agrees, finer, value), np.where(agrees, least, error)
    return Slope(value, error)


def _table(column: np.ndarray, rounding: np.ndarray, even: bool) -> tuple[np.ndarray, np.ndarray]:
    """Neville's table of the quotients: its best entry, and how well that agrees with its
    neighbours. ``even``: the error of the quotients has only even powers of the step."""
    with np.errstate(all="ignore"):
        best = column[-1].copy()
        error = np.full(best.shape, np.inf)
        for order in range(1, len(column)):
            gain = 2.0 ** (2 * order if even else order)
            finer = column[1:] + (column[1:] - column[:-1]) / (gain - 1)
            apart = np.maximum(np.abs(finer - column[1:]), np.abs(finer - column[:-1]))
            apart = np.where(np.isfinite(apart), apart, np.inf) + rounding[order:]
            winner = np.argmin(apart, axis=0)
            least = np.take_along_axis(apart, winner[None], 0)[0]
            value = np.take_along_axis(finer, winner[None], 0)[0]
            best, error = np.where(least < error, value, best), np.minimum(error, least)
            column = finer
    return best, error
