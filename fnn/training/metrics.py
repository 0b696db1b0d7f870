"""Metrics of predictions. They are not blocks: they have no gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fnn.arguments import checked
from fnn.arrays import is_floating
from fnn.refusals import warn
from fnn.training.arrays import host_array


@checked
def accuracy(prediction: Any, target: Any, threshold: float | None = None) -> float:
    """The fraction of right predictions.

    ==============================  ===================  ======================================
    prediction                      target               right where
    ==============================  ===================  ======================================
    logits, probabilities (..., K)  labels (...)         the largest, the first of equal ones,
                                                         is the label's
    logits, probabilities (...)     0 or 1 (...)         above the threshold if and only if the
                                                         target is above 1/2
    labels (...): integers          labels (...)         equal
    ==============================  ===================  ======================================

    ``...`` are any axes: examples, the steps of a sequence. NaN is never right.

    Args:
      prediction, target: as above.
      threshold: a number predicts 1 if it is above this: 0 by default, for logits; give 0.5 for
        probabilities.

    Raises:
      ValueError: the shapes do not match, there are no predictions, or a target is not among the
        labels. Rows of a target that sum to 1 could be classes or separate answers: for classes
        give ``target.argmax(-1)``, for answers a threshold.
      TypeError: arrays that are not of real numbers.

    >>> import fnn, numpy as np
    >>> fnn.accuracy(np.array([[0.1, 2.0], [3.0, 1.0]]), np.array([1, 1]))
    0.5
    >>> fnn.accuracy(np.array([-2.0, 3.0]), np.array([0, 1]))
    1.0
    """
    prediction = host_array("accuracy: prediction", prediction)
    target = host_array("accuracy: target", target)
    _require_examples("accuracy", prediction)
    if prediction.shape == target.shape:
        if threshold is None:
            _refuse_rows(target)
            if not is_floating(prediction):
                _require_labels(prediction, "prediction")
                _require_labels(target)
                return float(np.mean(prediction == target))
            _warn_of_probabilities(prediction)
        _require_answers(target)
    elif prediction.shape[:-1] == target.shape and prediction.ndim:
        _require_labels(target, classes=prediction.shape[-1])
    else:
        raise ValueError(
            f"accuracy: prediction has shape {prediction.shape} and target {target.shape}; needs "
            "logit rows and labels, or logits and 0/1 targets of one shape"
        )
    return float(np.mean(is_right(prediction, target, threshold or 0.0)))


def is_right(prediction: Any, target: Any, threshold: float = 0.0) -> Any:
    """Which predictions :func:`accuracy` counts as right; NumPy or JAX arrays.

    >>> import numpy as np
    >>> is_right(np.array([[0.1, 2.0], [3.0, 1.0]]), np.array([1, 1]))
    array([ True, False])
    """
    number = prediction == prediction  # not NaN, of which argmax takes the first for the largest
    if prediction.shape == target.shape:
        return number & ((prediction > threshold) == (target.astype(prediction.dtype) > 0.5))
    best = prediction.argmax(-1)
    return number.all(-1) & (best == target.astype(best.dtype))


def _require_examples(name: str, a: np.ndarray) -> None:
    if not a.size:
        raise ValueError(
            f"{name}: there are no predictions, needs one at least: their shape is {a.shape}"
        )


def _require_labels(a: np.ndarray, what: str = "target", classes: int | None = None) -> None:
    """Refuses what is not a label: a fraction, NaN, a number below 0 or too high."""
    low, high = a.min(), a.max()
    if classes == 1:
        raise ValueError(
            "accuracy: prediction has one column, of which every row would be class 0; for a "
            "binary prediction give prediction[..., 0], and threshold=0.5 for probabilities"
        )
    if not (low >= 0 and high < (classes or math.inf) and np.all(a == np.floor(a))):
        needs = "0, 1, ..." if classes is None else f"from 0 to {classes - 1}"
        raise ValueError(
            f"accuracy: {what} has labels from {low} to {high}, needs whole numbers {needs}"
        )


def _require_answers(target: np.ndarray) -> None:
    if not (target.min() >= 0 and target.max() <= 1):
        raise ValueError(
            f"accuracy: prediction and target have one shape, {target.shape}, so targets need to "
            f"be 0 or 1; they go from {target.min()} to {target.max()}"
        )


def _refuse_rows(target: np.ndarray) -> None:
    """Refuses rows that could be one-hot as well as separate answers."""
    if target.ndim < 2 or target.shape[-1] < 2:
        return
    if np.allclose(target.astype(np.float64).sum(-1), 1, atol=1e-2):
        raise ValueError(
            "accuracy: every row of target sums to 1; if it is a class (one-hot rows), give "
            "target.argmax(-1), if it is separate answers, give a threshold: 0 for logits"
        )


def _warn_of_probabilities(prediction: np.ndarray) -> None:
    if prediction.min() >= 0 and prediction.max() <= 1:
        warn(
            "accuracy: all predictions are between 0 and 1, and above 0 predicts 1, as of logits; "
            "give threshold=0.5 if they are probabilities, threshold=0 if they are logits",
        )


def r2(prediction: Any, target: Any) -> float:
    """The coefficient of determination: 1 - squared error / that of predicting the target's mean.

    The mean over outputs, if there are several, as scikit-learn's ``r2_score``. Of an output whose
    target is constant it is 1 if the prediction is exact, 0 if not. NaN of a single example.

    Args:
      prediction, target: of one shape, with a first axis of examples.

    Raises:
      ValueError: the shapes differ, or there are no examples.
      TypeError: arrays that are not of real numbers.

    >>> import fnn, numpy as np
    >>> fnn.r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    1.0
    """
    prediction = host_array("r2: prediction", prediction)
    target = host_array("r2: target", target)
    if prediction.shape != target.shape or not target.ndim:
        raise ValueError(
            f"r2: prediction has shape {prediction.shape} and target {target.shape}; needs one "
            "shape with a first axis of examples"
        )
    _require_examples("r2", target)
    if len(target) == 1:
        return math.nan
    y, t = (a.astype(np.float64).reshape(len(a), -1) for a in (prediction, target))
    missed = np.sum((t - y) ** 2, 0)
    constant = t.max(0) == t.min(0)  # their mean may be rounded
    spread = np.where(constant, 1, np.sum((t - t.mean(0)) ** 2, 0))
    return float(np.mean(1 - np.where(constant & (missed > 0), 1, missed / spread)))
