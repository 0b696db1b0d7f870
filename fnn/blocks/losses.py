"""Losses: blocks from (prediction, target) to one number, the mean over the examples.

A third input, weights of one number per example, makes it the weighted mean
sum(w_i l_i) / sum(w_i); an example of weight 0 counts for nothing, whatever its values, and a
batch without any weight has loss 0. The value is float32 or wider, whatever the prediction.

Axes: B are the batch axes, all but the last; the last is K classes or outputs of one example,
over which an example's loss is summed. A prediction with one axis is a batch of single numbers.

Softmax cross-entropy, from the definition to the rule: with logits z, p = softmax(z) and target t,

    E = -sum_i t_i ln p_i = sum_i t_i (ln sum_j e^z_j - z_i)

d(ln sum_j e^z_j)/dz_j = e^z_j / sum_i e^z_i = p_j, so

    dE/dz_j = p_j sum_i t_i - t_j

which for a confident row is a difference of nearly equal numbers. Write sum_i t_i = t_j + T_j and
1 = p_j + P_j, with T_j and P_j the sums over the others:

    dE/dz_j = p_j T_j - t_j P_j

Nothing cancels where T_j and P_j are sums. Only one entry of a row, the pivot, can be near 1, so
it is enough to keep its e^{z - m}, which is 1 for m = max_j z_j, apart from ``rest``, the sum of
the others'. That also gives E = sum_i t_i ((m - z_i) + log1p(rest)), of positive terms only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from fnn.arguments import checked
from fnn.arrays import Shape, Spec, compute_dtype, count_of, is_floating
from fnn.block import (
    Block,
    BlockTypeError,
    BlockValueError,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    Value,
)
from fnn.blocks.numerics import magnitude, two_diff_error
from fnn.refusals import as_array, as_cotangent, described, elementary, require_floating


@checked
def squared_error() -> Block:
    """The lecture's half square: E = 1/2 |y - t|^2, averaged over the n examples.

    dE/dy = (y - t) / n.

    Returns:
      A block of ``(prediction, target[, weights])``: prediction and target of one shape, (B, K)
      or (B,), weights (B,). Residuals: the difference y - t.

    Raises:
      BlockValueError: shapes differ (nothing is broadcast: (n, 1) against (n,) would compare
        every prediction with every target).
      BlockTypeError: the prediction is not floating, or the input is no tuple.

    >>> import fnn, jax.numpy as jnp
    >>> E = fnn.squared_error()
    >>> value, residuals = E.forward({}, (jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])))
    >>> float(value), E.backward({}, residuals, 1.0)[1][0]
    (1.0, Array([1., 0.], dtype=float32))
    """

    def difference(y: jax.Array, t: jax.Array) -> jax.Array:
        return y - t.astype(y.dtype)

    return _mean_loss(
        "squared_error",
        Kind("squared_error"),
        _same_shape,
        entries=lambda y, t: jnp.square(difference(y, t)) / 2,
        keep=lambda y, t: (difference(y, t),),
        slopes=lambda d: (d, -d),
        validate=_finite_target,
    )


@checked
def binary_cross_entropy(*, from_logits: bool = True) -> Block:
    """E = -(t ln p + (1 - t) ln(1 - p)), of logits z with p = logistic(z), or of p itself.

    For logits, with softplus(z) = ln(1 + e^z), it is E = t softplus(-z) + (1 - t) softplus(z),
    whose terms never cancel, and dE/dz = (1 - t) logistic(z) - t logistic(-z), which is p - t to
    full relative accuracy. A term of weight 0 is 0, so infinite logits on the right side cost
    nothing. For probabilities, dE/dp = (1 - t)/(1 - p) - t/p = (p - t) / (p (1 - p)).

    Args:
      from_logits: whether the prediction is logits, or probabilities.

    Returns:
      A block of ``(prediction, target[, weights])``: prediction and target of one shape, (B,) or
      (B, K) for K independent outputs; targets 0 or 1 (integer, boolean, float) or probabilities;
      weights (B,). Residuals: the prediction and the target.

    Raises:
      BlockValueError, BlockTypeError: as :func:`squared_error`.

    >>> import fnn, jax.numpy as jnp
    >>> E = fnn.binary_cross_entropy()
    >>> value, residuals = E.forward({}, (jnp.array([20.0]), jnp.array([1])))
    >>> print(f"{value:.4g} {E.backward({}, residuals, 1.0)[1][0][0]:.4g}")
    2.061e-09 -2.061e-09
    """
    # The losses of a sure 1 and a sure 0, which E weighs by t and 1 - t.
    costs = _logit_costs if from_logits else _probability_costs
    slope = _logit_slope if from_logits else _probability_slope
    by_target = _logit_by_target if from_logits else _probability_by_target

    def validate(name: str, x: Value) -> None:
        _finite_target(name, x)
        _between_0_and_1(name, x[1])

    name = "binary_cross_entropy" if from_logits else "binary_cross_entropy(from_logits=False)"
    kind = Kind("binary_cross_entropy", (from_logits,))
    return _mean_loss(
        name,
        kind,
        _same_shape,
        entries=lambda y, t: _mixed(t, *costs(y)),
        slopes=lambda y, t: (slope(y, t), by_target(y)),
        validate=validate,
    )


def _mixed(t: jax.Array, one: jax.Array, zero: jax.Array) -> jax.Array:
    t = t.astype(one.dtype)
    return _times(t, one) + _times(1 - t, zero)


def _logit_costs(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    tail = jnp.log1p(jnp.exp(-magnitude(z)))
    return jnp.where(z < 0, -z, 0) + tail, jnp.where(z < 0, 0, z) + tail


def _logit_slope(z: jax.Array, t: jax.Array) -> jax.Array:
    e = jnp.exp(-magnitude(z))  # jnp.abs would spoil the second derivative at 0
    small, large = e / (1 + e), 1 / (1 + e)
    return _mixed(t, -jnp.where(z < 0, large, small), jnp.where(z < 0, small, large))


def _logit_by_target(z: jax.Array) -> jax.Array:
    return -z  # softplus(-z) - softplus(z)


def _probability_by_target(p: jax.Array) -> jax.Array:
    """ln(1 - p) - ln p, near 1/2 as one logarithm: there the two cancel, and 1 - 2p is exact."""
    near = jnp.abs(p - 0.5) < 0.25
    return jnp.where(near, jnp.log1p((1 - 2 * p) / p), jnp.log1p(-p) - jnp.log(p))


def _probability_costs(p: jax.Array) -> tuple[jax.Array, jax.Array]:
    return -jnp.log(p), -jnp.log1p(-p)


def _probability_slope(p: jax.Array, t: jax.Array) -> jax.Array:
    """As one quotient: near p = t the two terms of the sum cancel. A sure target has one term."""
    t = t.astype(p.dtype)
    sure = (t == 0) | (t == 1)  # and right, where p (1 - p) is 0: no 0 / 0 on the way
    between = (p - t) / jnp.where(sure, 1, p * (1 - p))
    return jnp.where(t == 0, 1 / (1 - p), jnp.where(t == 1, -1 / p, between))


@checked
def softmax_cross_entropy() -> Block:
    """E = -ln softmax(z)_t = ln(sum_j e^{z_j}) - z_t, of logits z.

    For probability rows t, E = -sum_j t_j ln softmax(z)_j. A confident row keeps its digits (logits
    30, 0, -5 and label 0: 9.42e-14), and so does its gradient: p_j for the wrong classes, and for
    the right one minus the sum of the others' p, not p - 1 (derived in :mod:`fnn.blocks.losses`).
    A logit of -inf has p = 0 and gradient 0; a row of nothing else has loss 0 and gradient 0. A
    label out of range makes the loss NaN (and is refused by ``fit``). Labels that JAX would wrap to
    32 bits are refused (but JAX wraps NumPy's int64 before it calls a function that you jit).

    Returns:
      A block of ``(logits, target[, weights])``: logits (B, K); target integer labels (B,) from 0
      to K - 1, or probability rows (B, K); weights (B,). Residuals: logits and target; the
      exponentials are computed again.

    Raises:
      BlockValueError: logits without an axis of classes, weights of another shape.
      BlockTypeError: logits that are not floating; a target of another shape or dtype.

    >>> import fnn, jax.numpy as jnp
    >>> E = fnn.softmax_cross_entropy()
    >>> value, residuals = E.forward({}, (jnp.array([[30.0, 0.0, -5.0]]), jnp.array([0])))
    >>> gradient = E.backward({}, residuals, 1.0)[1][0][0]
    >>> print(f"{value:.4g}", [f"{d:.4g}" for d in gradient.tolist()])
    9.421e-14 ['-9.421e-14', '9.358e-14', '6.305e-16']
    """

    def exponentials(z: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
        """The target's rows, e^{z - m}, the gaps m - z, the sum of the e's minus 1, and whether the
        row is masked.

        Where the pivot is a largest logit, its e is that 1 and the rest is the others' sum, to the
        last digit. Where it is not, another entry's e is 1, and nothing cancels.
        """
        narrow, z = z, z.astype(compute_dtype(z.dtype))
        rows = _rows(t, z)
        pivot = pivot_of(rows, t, z)
        # The loss is the same for every m, so m is a constant to a derivative of forward: the
        # derivative of max would pick one of several equal logits.
        m = jax.lax.stop_gradient(jnp.max(z, -1, keepdims=True, initial=-jnp.inf))
        m = jnp.where(m == -jnp.inf, 0, m)
        gap = jnp.where(jnp.isinf(z) & (z == m), 0, m - z)  # avoids inf - inf
        # A gap of 80 is rounded by up to 4e-6, which is that part of e: corrected to first order.
        # By a division, which XLA does once: it would do a product again in each loop that reads e,
        # and then not vectorise that of the slopes (4 % of a small MLP's step on CPU). Logits of 16
        # bits give a gap of that size exactly; XLA for NVIDIA's GPUs would write e in float32.
        e = jnp.exp(-gap)
        e = e / (1 + two_diff_error(m, z)) if narrow.dtype == z.dtype else e
        rest = jnp.sum(jnp.where(pivot, e - 1, e), -1, keepdims=True)
        masked = rest == -1  # every e is 0; a NaN would show
        return rows, e, gap, jnp.where(masked, 0, rest), masked

    def pivot_of(rows: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
        """The entry of each row that may dominate: the label's, or for rows the largest logit."""
        return _is_largest(z) if is_floating(t) else rows == 1

    def entries(z: jax.Array, t: jax.Array) -> jax.Array:
        rows, _, gap, rest, masked = exponentials(z, t)
        if is_floating(t):
            return _times(rows, jnp.where(masked, 0, gap + jnp.log1p(rest)))
        # A sum for each row beside that of its e's: devices that share classes send both at once.
        of_label = jnp.sum(_times(rows, jnp.where(masked, 0, gap)), -1)
        return of_label + jnp.log1p(rest)[..., 0]

    def slopes(z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        # forward: E = -sum t ln p, so dE/dz_j = p_j (the others' t) - t_j (the others' p), each
        # of which is summed, not subtracted, where one entry dominates.
        rows, e, gap, rest, masked = exponentials(z, t)
        others_e = rest + (1 - e)
        others_t = _others(rows) if is_floating(t) else 1 - rows
        dz = jnp.where(masked, 0, (e * others_t - rows * others_e) / (1 + rest))
        return dz, jnp.where(masked, 0, gap + jnp.log1p(rest))

    name = "softmax_cross_entropy"
    return _mean_loss(
        name, Kind(name), _check_classes, entries, slopes, validate=_class_target, rows=True,
        widens=False,
    )  # fmt: skip


@checked
def cross_entropy() -> Block:
    """E = -ln p_t, of probabilities p: the lecture's form, after a softmax block.

    dE/dp_j = -t_j / p_j. It agrees with ``softmax_cross_entropy`` of the logits, which is the one
    to train with: a probability that has rounded to 0 or 1 has lost what the loss needs.

    Returns:
      A block of ``(probabilities, target[, weights])``: probabilities (B, K); target integer
      labels (B,) or probability rows (B, K); weights (B,). Residuals: probabilities and target.

    Raises:
      BlockValueError, BlockTypeError: as :func:`softmax_cross_entropy`.

    >>> import fnn, jax.numpy as jnp
    >>> E = fnn.cross_entropy()
    >>> value, residuals = E.forward({}, (jnp.array([[0.5, 0.25, 0.25]]), jnp.array([0])))
    >>> float(value), E.backward({}, residuals, 1.0)[1][0]
    (0.6931471824645996, Array([[-2.,  0.,  0.]], dtype=float32))
    """
    name = "cross_entropy"
    return _mean_loss(
        name,
        Kind(name),
        _check_classes,
        entries=lambda p, t: _times(_rows(t, p), -jnp.log(p)),
        slopes=lambda p, t: (_times(_rows(t, p), -1 / p), -jnp.log(p)),
        validate=_class_target,
        rows=True,
    )


def _mean_loss(
    name: str,
    kind: Kind,
    check: Callable[[str, jax.Array, jax.Array], None],
    entries: Callable[[jax.Array, jax.Array], jax.Array],
    slopes: Callable[..., tuple[jax.Array, jax.Array]],
    validate: Callable[[str, Value], None],
    keep: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]] | None = None,
    rows: bool = False,
    widens: bool = True,
) -> Block:
    """The (weighted) mean over examples of a loss given entry by entry.

    ``entries(prediction, target)``: the loss of every entry of the prediction, or of every example.
    ``slopes(*kept)``: its derivatives by prediction and target. Kept are these two, in the dtypes
    they came in, which is smaller and exact; or what ``keep(prediction, target)`` returns.
    ``rows``: an example is always a row (of classes); otherwise with a single axis an example is a
    number. ``widens``: whether the functions get predictions and targets in float32 at least.
    """

    def widened(a: jax.Array, dtype: DTypeLike) -> jax.Array:
        return a.astype(dtype) if widens and is_floating(a) else a

    def batch_of(y: Spec) -> tuple[int, ...]:
        return tuple(y.shape[:-1] if rows or len(y.shape) > 1 else y.shape)

    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        y, t, w = _inputs(name, x)
        check(name, y, t)
        wide = compute_dtype(y.dtype)
        y_wide, t_wide = widened(y, wide), widened(t, wide)
        losses = entries(y_wide, t_wide)
        kept = (y, t) if keep is None else keep(y_wide, t_wide)
        shapes = (Shape.of(y), Shape.of(t))
        losses = jnp.sum(losses, -1) if batch_of(y) != losses.shape else losses
        if w is None:
            # The mean of no examples is 0, and so is that of examples of weight 0.
            value = jnp.sum(losses) / count_of(losses)
            return value, (kept, shapes, None)
        if w.shape != losses.shape:
            raise BlockValueError(
                name, f"weights have shape {w.shape}, need one number per example: {losses.shape}"
            )
        w_wide = w.astype(wide)
        value = jnp.sum(_times(w_wide, losses)) / _nonzero(jnp.sum(w_wide))
        # Boolean weights have no gradient, so the losses are not needed.
        weighing = (w, losses, value) if is_floating(w) else (w, None, None)
        return value, (kept, shapes, weighing)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, Value]:
        # forward: E = sum(l) / n, so dE/dl = 1 / n for each of the n examples.
        kept, (y, t), weighing = residuals
        wide = compute_dtype(y.dtype)
        by_prediction, by_target = slopes(*(widened(v, wide) for v in kept))
        dy = as_cotangent(name, dy, ()).astype(wide)
        batch = batch_of(y)
        examples = count_of(y, range(len(batch)))
        if weighing is None:
            dw: tuple[Any, ...] = ()
            share = jnp.full((1,) * len(batch), dy / examples, wide)
        else:
            # forward: E = sum(w l) / sum(w), so dE/dl = w / sum(w), dE/dw = (l - E) / sum(w).
            w, losses, value = weighing
            total = _nonzero(jnp.sum(w.astype(wide)))
            share = dy * (w.astype(wide) / total)
            dw = (None,)
            if is_floating(w):
                # The mean is subtracted twice: the second time, what rounding left of it.
                gap = losses - value
                gap = gap - jnp.sum(_times(w.astype(wide), gap)) / total
                dw = ((dy * (gap / total)).astype(w.dtype),)
        share = share[..., None] if batch != y.shape else share
        scaled = (lambda d: share * d) if weighing is None else (lambda d: _times(share, d))
        dprediction = scaled(by_prediction).astype(y.dtype)
        floating = jnp.issubdtype(t.dtype, jnp.floating)
        dtarget = scaled(by_target).astype(t.dtype) if floating else None
        return {}, (dprediction, dtarget, *dw)

    rules = Rules(validate=functools.partial(validate, name))
    return elementary(forward, backward, name, kind, rules)


def _times(weight: jax.Array, x: jax.Array) -> jax.Array:
    """weight * x, and 0 where the weight is 0, also when x is infinite or NaN."""
    return weight * jnp.where(weight == 0, 0, x)


def _others(t: jax.Array) -> jax.Array:
    """For every entry of a row the sum of the others; for the largest without a subtraction."""
    largest = _is_largest(t)
    rest = jnp.sum(jnp.where(largest, 0, t), -1, keepdims=True)
    return jnp.where(largest, rest, jnp.sum(t, -1, keepdims=True) - t)


def _is_largest(x: jax.Array) -> jax.Array:
    """Where the largest entry of every row is, the first of them if there are several."""
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return places == jnp.argmax(x, -1, keepdims=True).astype(jnp.int32)


def _nonzero(total: jax.Array) -> jax.Array:
    return jnp.where(total == 0, 1, total)


def _rows(t: jax.Array, z: jax.Array) -> jax.Array:
    """Labels as one-hot rows (NaN for a label out of range); probability rows as they are."""
    if is_floating(t):
        return t.astype(z.dtype)
    # int8 cannot count to 300 classes: class numbers and labels are compared in 32 bits at least.
    dtype = t.dtype if t.dtype.itemsize >= 4 else jnp.int32
    labels, classes = t.astype(dtype)[..., None], z.shape[-1]
    ids = jax.lax.broadcasted_iota(dtype, z.shape, z.ndim - 1)
    valid = (labels >= 0) & (labels < classes)
    return jnp.where(valid, (ids == labels).astype(z.dtype), jnp.nan)


def _inputs(name: str, x: Value) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    if not isinstance(x, (tuple, list)) or len(x) not in (2, 3):
        raise BlockTypeError(
            name,
            f"x is {described(x)}, needs (prediction, target) or (prediction, target, weights)",
        )
    parts = zip(("prediction", "target", "weights"), x, strict=False)
    y, t, *w = (as_array(name, what, v) for what, v in parts)
    require_floating(name, "prediction", y)
    return y, t, w[0] if w else None


def _same_shape(name: str, y: jax.Array, t: jax.Array) -> None:
    if y.shape != t.shape:
        hint = ""
        if y.shape == (*t.shape, 1):
            hint = ": give target[:, None], or a network that ends in one neuron"
        elif y.shape[:-1] == t.shape and not is_floating(t):
            hint = ": labels of classes are for softmax_cross_entropy()"
        raise BlockValueError(
            name, f"prediction has shape {y.shape} and target {t.shape}, need the same{hint}"
        )


def _check_classes(name: str, z: jax.Array, t: jax.Array) -> None:
    if z.ndim == 0:
        raise BlockValueError(name, "prediction is a scalar, needs a last axis of classes")
    if t.shape == z.shape if is_floating(t) else t.shape == z.shape[:-1] and t.dtype != bool:
        return
    raise BlockTypeError(
        name,
        f"target is {t.dtype} of shape {t.shape}; predictions of shape {z.shape} need integer "
        f"labels of shape {z.shape[:-1]}, or float probability rows {z.shape}{_label_fix(z, t)}",
    )


def _label_fix(z: jax.Array, t: jax.Array) -> str:
    """How to make labels of a target that is none, where that can be told."""
    to_int = "" if jnp.issubdtype(t.dtype, jnp.integer) else ".astype(int)"
    if t.shape == z.shape:  # not floating
        return ": of one-hot rows give target.argmax(-1), or target.astype(float)"
    if t.shape == z.shape[:-1]:
        return f": give target{to_int}"
    if t.shape == (*z.shape[:-1], 1):
        return f": give target[..., 0]{to_int}"
    if t.shape == z.shape[:1]:
        return ": for one label per example put flatten() before the last linear()"
    return ""


# ---- the rules that look at concrete data on the host, before training starts ----------------


def _finite_target(name: str, x: Value) -> None:
    bad = int(np.sum(~np.isfinite(np.asarray(x[1], np.float64))))
    if bad:
        raise BlockValueError(name, f"target has {bad} values that are NaN or infinite")


def _between_0_and_1(name: str, target: ArrayLike) -> None:
    t = np.asarray(target, np.float64)
    if t.size and (t.min() < 0 or t.max() > 1):
        raise BlockValueError(
            name, f"targets go from {t.min():g} to {t.max():g}, need labels 0 or 1 (or in between)"
        )


def _class_target(name: str, x: Value) -> None:
    prediction, target = x[0], np.asarray(x[1])
    if not target.size:
        return
    if np.issubdtype(target.dtype, np.integer):
        low, high, classes = int(target.min()), int(target.max()), prediction.shape[-1]
        if low < 0 or high >= classes:
            fix = f"end the network in {high + 1} outputs, such as linear({high + 1})"
            if classes == 1:
                fix = "for yes and no give two outputs, or binary_cross_entropy()"
            elif (low, high) == (1, classes):
                fix = "give labels - 1"
            elif low < 0:
                fix = "number the classes from 0 on"
            raise BlockValueError(
                name,
                f"labels go from {low} to {high}; {classes} classes need labels from 0 to "
                f"{classes - 1}: {fix}",
            )
        return
    _finite_target(name, x)
    _between_0_and_1(name, target)
    off = np.abs(target.astype(np.float64).sum(-1) - 1).max()
    if off > 1e-2:
        raise BlockValueError(name, f"probability rows need to sum to 1; one is off by {off:.3g}")
