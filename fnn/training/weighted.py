"""Weights of examples and of classes, as part of the target: a loss of (prediction, (t, w))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.block import Block, Key, Params, Residuals, Rules, Value

ClassWeights = Literal["balanced"] | Mapping[int, float] | Any


def weighted(loss: Block) -> Block:
    """The loss of ``(prediction, (target, weights))``, of the same name and kind.

    >>> import fnn, jax.numpy as jnp
    >>> E = weighted(fnn.squared_error())
    >>> y, t, w = jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]), jnp.array([3.0, 1.0])
    >>> float(E.forward({}, (y, (t, w)))[0])  # (3 * 1/2 + 1 * 2) / 4
    0.875
    """
    validate = loss.rules.validate

    def valid(x: Value) -> None:
        prediction, (target, _) = x
        assert validate is not None
        validate((prediction, target))

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        prediction, (target, weights) = x
        return loss.forward(params, (prediction, target, weights), key)

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        dparams, (dprediction, *dtarget) = loss.backward(params, residuals, dy)
        return dparams, (dprediction, tuple(dtarget))

    rules = Rules(validate=valid if validate else None)
    return loss._replace(forward=forward, backward=backward, rules=rules, graph=None)


def total_weight(target: Value, weights: Any = None) -> jax.Array:
    """The sum of the weights that are a part of these targets."""
    return jnp.sum(target[1])


def total_weights(target: Value, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """The sum of the weights of each batch: what its mean loss counts in the epoch's."""
    weights = np.asarray(jax.tree.leaves(target)[-1][rows], np.float64)
    return np.add.reduceat(weights, range(0, len(rows), batch_size))


def example_weights(weights: Value, class_weights: ClassWeights | None, target: Value) -> Value:
    """One float32 number per example: the example's own weight times its class's.

    Args:
      weights: (n,) of any real dtype, or None.
      class_weights: a mapping from labels, a sequence with an entry for each label, None, or
        "balanced": n / (classes x examples of the class), so that all classes count the same.
      target: labels, integers (n,), or 0 and 1.

    Raises:
      ValueError: a label without a weight, weights that are negative, not finite or all 0, targets
        that are no labels.

    >>> example_weights(None, "balanced", np.array([0, 0, 0, 1])).tolist()
    [0.6666666865348816, 0.6666666865348816, 0.6666666865348816, 2.0]
    """
    if weights is not None:
        weights = np.asarray(weights)
        bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if len(bad):
            raise ValueError(
                f"fit: weights hold {weights[bad[0]]:g} for example {bad[0]}, need finite numbers "
                "of at least 0"
            )
        _require_some("weights", weights)
    if class_weights is None:
        return weights
    labels, of_label = _labels(target), _by_label(class_weights)
    present, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if of_label is None:
        each = len(labels) / (len(present) * counts)
    else:
        if missing := [int(label) for label in present if label not in of_label]:
            raise ValueError(
                f"fit: class_weights have no entry for label {missing[0]}, need one for each of "
                f"{present.tolist()[:20]}"
            )
        each = np.array([of_label[label] for label in present.tolist()], np.float64)
    if not (np.isfinite(each).all() and (each >= 0).all()):
        raise ValueError(f"fit: class_weights are {each.tolist()[:20]}, need finite numbers >= 0")
    own = 1.0 if weights is None else np.asarray(weights, np.float64)
    together = (own * each[places]).astype(np.float32)
    _require_some("class_weights" if weights is None else "weights x class_weights", together)
    return together


def _require_some(what: str, weights: np.ndarray) -> None:
    if not weights.any():
        raise ValueError(
            f"fit: {what} are all 0: nothing to learn; give some examples a number above 0"
        )


def _labels(target: Value) -> np.ndarray:
    labels = np.asarray(jax.tree.leaves(target)[0])
    labels = labels.reshape(len(labels), -1)
    whole = not is_floating(labels) or np.isin(labels, (0, 1)).all()
    if len(jax.tree.leaves(target)) != 1 or labels.shape[1] != 1 or not whole:
        raise ValueError(
            "fit: class_weights need a target of one label for each example, integers (n,), got "
            f"shape {np.shape(jax.tree.leaves(target)[0])}; give weights=, one per example"
        )
    return labels[:, 0].astype(np.int64)


def _by_label(class_weights: ClassWeights) -> dict[int, float] | None:
    """Weights by label; None for "balanced"."""
    if isinstance(class_weights, str):
        if class_weights != "balanced":
            raise ValueError(
                f"fit: class_weights is {class_weights!r}, needs 'balanced' or a weight per label"
            )
        return None
    if isinstance(class_weights, Mapping):
        return {int(label): float(weight) for label, weight in class_weights.items()}
    if np.ndim(class_weights) != 1:
        raise ValueError(
            f"fit: class_weights is {class_weights!r:.60}, needs 'balanced', a mapping from labels "
            "or a sequence with an entry for each"
        )
    return dict(enumerate(np.asarray(class_weights, np.float64).tolist()))
