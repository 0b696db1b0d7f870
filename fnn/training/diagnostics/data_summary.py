"""What examples tell before training: the scale of the inputs, the labels, the loss by chance."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.block import Block, Value
from fnn.training.endings import Mismatch

MAX_NUMBERS, CHUNK_NUMBERS = 100_000_000, 4_000_000  # read of the inputs: in all, at a time
MAX_COMPARED, MAX_FEATURES = 512, 1024  # examples and features in the search for neighbours
CLASS_LOSSES = ("softmax_cross_entropy", "cross_entropy")


class InputSummary(NamedTuple):
    """The scale of the inputs; NaN where they hold no floats.

    ``max_feature_rms``: the root mean square of the largest feature (last axis). ``rms``: that of
    all numbers. ``offset_sigmas``: their mean divided by their standard deviation.
    """

    max_feature_rms: float = math.nan
    rms: float = math.nan
    offset_sigmas: float = math.nan


class LabelSummary(NamedTuple):
    """How the labels are distributed; NaN where there are none.

    ``constant``: whether all targets are equal.
    ``same_as_previous``: the fraction of examples with the label of the one before;
    ``same_by_chance``: that fraction in random order.
    ``neighbor_agreement``: among ``n_compared`` examples, the fraction with the label of their
    nearest neighbour; above ``same_by_chance`` if labels depend on inputs.
    ``label_shift``: half the sum of |p - q| over the labels, with the frequencies p in training
    and q in validation; ``label_shift_by_chance``: a random split stays below it, by 3 sigma.
    """

    constant: bool
    same_as_previous: float = math.nan
    same_by_chance: float = math.nan
    neighbor_agreement: float = math.nan
    n_compared: int = 0
    label_shift: float = math.nan
    label_shift_by_chance: float = math.nan


class LossSummary(NamedTuple):
    """What to compare a loss with; NaN for a loss that is not one of fnn's.

    ``outputs``: numbers that the network predicts per example. ``is_classifier``: whether a
    prediction is right or wrong. ``threshold``: above it a binary prediction is 1.
    ``chance_loss``: expected of an untrained network: ln K for K classes, ln 2 per binary output,
    half the mean square of the target. ``best_constant_loss``: the lowest loss of predicting the
    same for every example.
    """

    outputs: int = 0
    is_classifier: bool = False
    threshold: float = 0.0
    chance_loss: float = math.nan
    best_constant_loss: float = math.nan


class DataSummary(NamedTuple):
    """What is known of the data before training. ``n_validation``: validation examples.
    ``mismatch``: of the network's last block and the loss."""

    inputs: InputSummary
    labels: LabelSummary
    losses: LossSummary
    n_validation: int = 0
    mismatch: Mismatch | None = None


def data_summary(
    loss: Block, prediction: Value, x: Value, target: Value, validation: Value = None
) -> DataSummary:
    """Summarises training examples and the labels of the validation examples.

    Args:
      loss: the block; its kind tells what the targets are.
      prediction: the network's, or its ``jax.ShapeDtypeStruct``.
      x, target: NumPy arrays of n examples.
      validation: the targets of the validation examples.

    >>> import fnn, numpy as np
    >>> x, labels = np.full((6, 3), 200.0), np.array([0, 0, 1, 1, 2, 2])
    >>> s = data_summary(fnn.softmax_cross_entropy(), np.zeros((6, 3)), x, labels)
    >>> s.inputs.rms, s.labels.same_as_previous, round(s.losses.chance_loss, 4)
    (200.0, 0.6, 1.0986)
    """
    losses, classes = LossSummary(), 0
    if len(jax.tree.leaves(prediction)) == 1 and isinstance(target, np.ndarray):
        losses, classes = _losses(loss, prediction, target)
    labels = LabelSummary(all(bool(np.all(a == a[:1])) for a in jax.tree.leaves(target)))
    if classes:
        is_binary = loss.kind.maker == "binary_cross_entropy"
        numbers = [t > 0.5 if is_binary else t for t in (target, validation) if t is not None]
        labels = _labels(labels, x, *numbers, classes=classes)
    n_validation = 0 if validation is None else len(jax.tree.leaves(validation)[0])
    return DataSummary(_inputs(x), labels, losses, n_validation)


def _losses(loss: Block, prediction: Value, target: np.ndarray) -> tuple[LossSummary, int]:
    """What to compare the loss with, and the number of classes where targets are labels."""
    width = 1 if len(prediction.shape) < 2 else int(prediction.shape[-1])
    if loss.kind.maker in CLASS_LOSSES and not is_floating(target):
        p = _frequencies(target, width)
        return LossSummary(width, True, 0.0, math.log(width), _entropy(p)), width
    if loss.kind.maker not in (*CLASS_LOSSES, "binary_cross_entropy", "squared_error"):
        return LossSummary(width), 0
    rows = np.asarray(target, np.float64).reshape(-1, width)
    p = rows.mean(0)
    if loss.kind.maker in CLASS_LOSSES:  # probabilities
        return LossSummary(width, False, 0.0, math.log(width), _entropy(p)), 0
    if loss.kind.maker == "binary_cross_entropy":
        threshold = 0.0 if loss.kind.args == (True,) else 0.5  # from logits
        best = _entropy(p) + _entropy(1 - p)
        return LossSummary(width, True, threshold, width * math.log(2), best), 2 * (width == 1)
    chance, best = float(np.mean(rows**2, 0).sum() / 2), float(np.var(rows, 0).sum() / 2)
    return LossSummary(width, False, 0.0, chance, best), 0


def _inputs(x: Value) -> InputSummary:
    largest = InputSummary()
    for a in jax.tree.leaves(x):
        if is_floating(a) and a.size:
            some = a[:: -(-a.size // MAX_NUMBERS)]
            width = a.shape[-1] if a.ndim > 1 else 1
            total, squares = np.zeros(width), np.zeros(width)
            at_once = max(1, CHUNK_NUMBERS * len(some) // some.size)
            for i in range(0, len(some), at_once):
                rows = np.asarray(some[i : i + at_once], np.float64).reshape(-1, width)
                total += rows.sum(0)
                squares += np.square(rows).sum(0)
            count = some.size // width
            square, mean = squares.mean() / count, total.mean() / count
            spread = math.sqrt(max(square - mean**2, 0))
            offset = abs(mean) / spread if spread else math.nan
            summary = InputSummary(math.sqrt(squares.max() / count), math.sqrt(square), offset)
            largest = summary if math.isnan(largest.rms) else max(largest, summary)
    return largest


def _labels(
    summary: LabelSummary,
    x: Value,
    labels: np.ndarray,
    validation: Value = None,
    *,
    classes: int,
) -> LabelSummary:
    frequencies, flat = _frequencies(labels, classes), labels.reshape(-1).astype(int)
    summary = summary._replace(same_by_chance=float(np.sum(frequencies**2)))
    if flat.size > 1:
        summary = summary._replace(same_as_previous=float(np.mean(flat[1:] == flat[:-1])))
    if isinstance(validation, np.ndarray):
        shift = float(np.abs(frequencies - _frequencies(validation, classes)).sum() / 2)
        # A frequency has variance p (1 - p) times this. The mean of |normal| is sqrt(2/pi) sigma,
        # and one example moves the sum by 1/n.
        scale = 1 / labels.size + 1 / max(validation.size, 1)
        deviations = float(np.sqrt(frequencies * (1 - frequencies)).sum())
        by_chance = math.sqrt(scale / (2 * math.pi)) * deviations + 1.5 * math.sqrt(scale)
        summary = summary._replace(label_shift=shift, label_shift_by_chance=by_chance)
    if isinstance(x, np.ndarray) and is_floating(x) and len(x) == flat.size > 1:
        some = slice(None, None, -(-len(x) // MAX_COMPARED))
        a = np.asarray(x[some], np.float64).reshape(len(x[some]), -1)
        a = a[:, :: -(-a.shape[1] // MAX_FEATURES)]
        squares = np.sum(a * a, 1)
        distance = squares[:, None] + squares - 2 * a @ a.T
        np.fill_diagonal(distance, np.inf)
        agreement = float(np.mean(flat[some][distance.argmin(1)] == flat[some]))
        summary = summary._replace(neighbor_agreement=agreement, n_compared=len(a))
    return summary


def _frequencies(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels.reshape(-1).astype(int), minlength=classes) / labels.size


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))
