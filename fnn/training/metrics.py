"""Metrics of predictions. They are not blocks: they have no gradient."""

from __future__ import annotations

from typing import Any

import numpy as np


def accuracy(prediction: Any, target: Any, threshold: float = 0.0) -> float:
    """The fraction of right predictions.

    Args:
      prediction: logits (n, K), or one number per target.
      target: labels (n,), or 0/1 of the prediction's shape.
      threshold: a number predicts 1 if it is above this: 0 for logits, 0.5 for probabilities.

    Raises:
      ValueError: the shapes do not match.

    >>> import fnn, numpy as np
    >>> fnn.accuracy(np.array([[0.1, 2.0], [3.0, 1.0]]), np.array([1, 1]))
    0.5
    >>> fnn.accuracy(np.array([-2.0, 3.0]), np.array([0, 1]))
    1.0
    """
    return float(np.mean(is_right(np.asarray(prediction), np.asarray(target), threshold)))


def is_right(prediction: Any, target: Any, threshold: float = 0.0) -> Any:
    """Which predictions :func:`accuracy` counts as right; NumPy or JAX arrays.

    >>> import numpy as np
    >>> is_right(np.array([[0.1, 2.0], [3.0, 1.0]]), np.array([1, 1]))
    array([ True, False])
    """
    if prediction.shape == target.shape:
        return (prediction > threshold) == (target.astype(prediction.dtype) > 0.5)
    if prediction.shape[:-1] != target.shape:
        raise ValueError(
            f"accuracy: prediction has shape {prediction.shape} and target {target.shape}; needs "
            "logit rows and labels, or logits and 0/1 targets of one shape"
        )
    best = prediction.argmax(-1)
    return best == target.astype(best.dtype)


def r2(prediction: Any, target: Any) -> float:
    """The coefficient of determination: 1 - squared error / variance of the target.

    Args:
      prediction, target: of one shape, with a first axis of examples.

    Raises:
      ValueError: the shapes differ.

    >>> import fnn, numpy as np
    >>> fnn.r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    1.0
    """
    prediction = np.asarray(prediction, np.float64)
    target = np.asarray(target, np.float64)
    if prediction.shape != target.shape:
        raise ValueError(f"r2: shapes {prediction.shape} and {target.shape} differ")
    missed = np.sum((target - prediction) ** 2)
    return float(1 - missed / np.sum((target - target.mean(0)) ** 2))
