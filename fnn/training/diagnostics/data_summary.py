"""What can be known of examples before training on them: scale, labels, the price of guessing."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np

from fnn.block import Block, Value, is_floating

# For the scale of the inputs: so many numbers at most, and at once.
LOOKED_AT, CHUNK = 100_000_000, 4_000_000
COMPARED, FEATURES = 512, 1024  # examples and their features, to find nearest neighbours
CLASS_LOSSES = ("softmax_cross_entropy", "cross_entropy")


class Facts(NamedTuple):
    """Facts about training data, NaN where they are not known.

    ``largest``: the root mean square of the input feature (last axis) where it is largest.
    ``typical``: that of all inputs. ``outputs``: of the network, for one example. ``classify``:
    whether predictions can be right or wrong. ``ignorant``: the expected loss of a network that
    knows nothing: ln K for K classes, ln 2 for each binary output, half the mean square of the
    target. ``guess``: the least loss of a prediction that is the same for every example.
    ``constant``: whether all targets are equal. ``together``: how many examples have the same
    label as the one before; ``chance``: how many would, in random order. ``apart``: half the sum
    of |p - q| over the labels, p of the training and q of the validation examples;
    ``apart_by_chance``: more than that by less than three standard deviations, in a random split.
    ``alike``: how many of ``compared`` examples have the label of the nearest other: more than
    ``chance``, where labels have to do with inputs. ``offset``: the mean of all inputs beside their
    standard deviation. ``threshold``: above it a binary prediction is 1. ``judges``: the number of
    validation examples.
    """

    largest: float
    typical: float
    outputs: int
    classify: bool
    ignorant: float
    guess: float
    constant: bool
    together: float
    chance: float
    apart: float = math.nan
    alike: float = math.nan
    compared: int = 0
    apart_by_chance: float = math.nan
    offset: float = math.nan
    threshold: float = 0.0
    judges: int = 0


def facts(
    loss: Block, prediction: Value, x: Value, target: Value, validation: Value = None
) -> Facts:
    """The facts about ``x`` and ``target``.

    Args:
      loss: the block, told by its kind.
      prediction: the network's, or its ``jax.ShapeDtypeStruct``.
      validation: the target of the validation examples.

    >>> import fnn, numpy as np
    >>> x, labels = np.full((6, 3), 200.0), np.array([0, 0, 1, 1, 2, 2])
    >>> f = facts(fnn.softmax_cross_entropy(), np.zeros((6, 3)), x, labels)
    >>> f.largest, f.together, round(f.ignorant, 4)
    (200.0, 0.6, 1.0986)
    """
    largest, typical, offset = _scale(x)
    unknown = Facts(
        largest, typical, 0, False, math.nan, math.nan, _all_equal(target), math.nan, math.nan,
        offset=offset, judges=0 if validation is None else len(jax.tree.leaves(validation)[0]),
    )  # fmt: skip
    if len(jax.tree.leaves(prediction)) != 1 or not isinstance(target, np.ndarray):
        return unknown
    width = 1 if len(prediction.shape) < 2 else int(prediction.shape[-1])
    unknown = unknown._replace(outputs=width)
    if loss.kind.maker == "squared_error":
        rows = np.asarray(target, np.float64).reshape(-1, width)
        guess = float(np.sum(np.var(rows, 0)) / 2)
        return unknown._replace(ignorant=float(np.sum(np.mean(rows**2, 0)) / 2), guess=guess)
    if loss.kind.maker == "binary_cross_entropy":
        (from_logits,) = loss.kind.args
        rows = np.asarray(target, np.float64).reshape(-1, width)
        p = np.mean(rows, 0)
        known = unknown._replace(
            ignorant=width * math.log(2), guess=_entropy(p) + _entropy(1 - p), classify=True,
            threshold=0.0 if from_logits else 0.5,
        )  # fmt: skip
        return known if width > 1 else _labels(known, x, target > 0.5, validation, 2)
    if loss.kind.maker in CLASS_LOSSES:
        if is_floating(target):  # probabilities
            p = np.asarray(target, np.float64).reshape(-1, width).mean(0)
            return unknown._replace(ignorant=math.log(width), guess=_entropy(p))
        known = unknown._replace(ignorant=math.log(width), classify=True)
        known = _labels(known, x, target, validation, width)
        return known._replace(guess=_entropy(_shares(target, width)))
    return unknown


def _scale(x: Value) -> tuple[float, float, float]:
    """Root mean square of the largest feature and of all, and their mean in standard deviations."""
    sizes = []
    for a in jax.tree.leaves(x):
        if is_floating(a) and a.size:
            some = a[:: -(-a.size // LOOKED_AT)]
            width = a.shape[-1] if a.ndim > 1 else 1
            total, squares = np.zeros(width), np.zeros(width)
            at_once = max(1, CHUNK * len(some) // some.size)
            for i in range(0, len(some), at_once):
                rows = np.asarray(some[i : i + at_once], np.float64).reshape(-1, width)
                total += rows.sum(0)
                squares += np.square(rows).sum(0)
            count = some.size // width
            square, mean = squares.mean() / count, total.mean() / count
            spread = math.sqrt(max(square - mean**2, 0))
            offset = abs(mean) / spread if spread else math.nan
            sizes.append((math.sqrt(squares.max() / count), math.sqrt(square), offset))
    return max(sizes, default=(math.nan, math.nan, math.nan))


def _all_equal(target: Value) -> bool:
    return all(bool(np.all(a == a[:1])) for a in jax.tree.leaves(target))


def _labels(known: Facts, x: Value, labels: np.ndarray, validation: Value, classes: int) -> Facts:
    shares = _shares(labels, classes)
    flat = labels.reshape(-1).astype(int)
    if flat.size > 1:
        known = known._replace(together=float(np.mean(flat[1:] == flat[:-1])))
    if isinstance(validation, np.ndarray):
        others = validation > 0.5 if labels.dtype == bool else validation
        apart = float(np.abs(shares - _shares(others, classes)).sum() / 2)
        fewer = 1 / labels.size + 1 / max(others.size, 1)  # variance of a share: p (1 - p) fewer
        # Half the sum of |normal|, whose mean is sqrt(2/pi) sigma; one example moves it by 1/n.
        chance = math.sqrt(fewer / (2 * math.pi)) * float(np.sqrt(shares * (1 - shares)).sum())
        known = known._replace(apart=apart, apart_by_chance=chance + 1.5 * math.sqrt(fewer))
    if isinstance(x, np.ndarray) and is_floating(x) and len(x) == flat.size > 1:
        some = slice(None, None, -(-len(x) // COMPARED))
        a = np.asarray(x[some], np.float64).reshape(len(x[some]), -1)
        a = a[:, :: -(-a.shape[1] // FEATURES)]
        squares = np.sum(a * a, 1)
        distance = squares[:, None] + squares - 2 * a @ a.T
        np.fill_diagonal(distance, np.inf)
        alike = float(np.mean(flat[some][distance.argmin(1)] == flat[some]))
        known = known._replace(alike=alike, compared=len(a))
    return known._replace(chance=float(np.sum(shares**2)))


def _shares(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels.reshape(-1).astype(int), minlength=classes) / labels.size


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))
