"""softmax and log_softmax along an axis, right for masked, confident and infinite rows.

Both compute ``exp(x - max)``, and handle three kinds of row that the plain formula gets wrong:

- Masked entries, x = -inf: probability 0 (log: -inf). softmax gives them the gradient 0,
  log_softmax passes their dy on, its limit. In a fully masked row this holds for every entry.
- Entries x = +inf share the row between them, the limit of equal logits that grow.
- Confident rows, one probability p near 1: what matters is 1 - p, which must be computed as the
  sum of the other probabilities, not as a difference.

NaN gives NaN in the whole row. bfloat16 and float16 are computed in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.arguments import checked
from fnn.arrays import compute_dtype
from fnn.block import Block, Key, Kind, Params
from fnn.blocks import compensated
from fnn.compiling import by_platform
from fnn.refusals import as_cotangent, axes_of, elementary, require_floating


def _below_top(x: jax.Array, axis: int) -> jax.Array:
    """x minus the row's maximum: 0 where x is that maximum, also where it is inf.

    A fully masked row has no maximum: it stays -inf. For
    ``jax.jvp`` the maximum is a constant: which one is subtracted changes nothing, and at a tie it
    has no derivative.
    """
    top = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True, initial=-jnp.inf))
    top = jnp.maximum(top, jnp.finfo(x.dtype).min)
    return jnp.where(x == jnp.inf, 0.0, x - top)


def _around_top(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """x minus the row's maximum, e to that, where it is 0, and the sum of e but for one such."""
    shifted = _below_top(x.astype(compute_dtype(x.dtype)), axis)
    e = jnp.exp(shifted)
    is_top = shifted == 0
    tops = jnp.sum(is_top.astype(e.dtype), axis=axis, keepdims=True)
    # All but one of those at the maximum; 0 is e - e there, which keeps e's derivative.
    below = jnp.where(is_top, e - jax.lax.stop_gradient(e), e)
    others = jnp.sum(below, axis=axis, keepdims=True) + jnp.maximum(tops - 1, 0.0)
    return shifted, e, is_top, others


def _shares(e: jax.Array, axis: int) -> jax.Array:
    """e divided by its sum, and 0 where that is 0."""
    total = jnp.sum(e, axis=axis, keepdims=True)
    return e / jnp.maximum(total, jnp.finfo(e.dtype).tiny)


def _in_one_kernel(p: jax.Array, axis: int) -> jax.Array:
    """Probabilities, in the dtype to compute in, as backward begins with them.

    XLA for NVIDIA's GPUs keeps a row on the chip from the first sum that divides it to the last
    result. Without such a sum it reads the row again for each sum, and again for the result. So p
    is divided by its sum there, which changes it by rounding alone; the barrier keeps XLA from
    computing forward's division again instead.
    """

    def divided(p: jax.Array) -> jax.Array:
        return _shares(jax.lax.optimization_barrier(p).astype(compute_dtype(p.dtype)), axis)

    def as_it_is(p: jax.Array) -> jax.Array:
        return p.astype(compute_dtype(p.dtype))

    if axis % p.ndim != p.ndim - 1:  # rows that do not lie together are not kept
        return as_it_is(p)
    return by_platform(p, cuda=divided, default=as_it_is)


@checked
def softmax(axis: int = -1) -> Block:
    """y_i = exp(x_i) / sum_j exp(x_j) along ``axis``; x and y have the same shape.

    Derivative: dx_i = y_i (dy_i - sum_j y_j dy_j). The bracket cancels in a confident row, and
    wherever dy is nearly constant, so the mean sum_j y_j dy_j is subtracted twice: the second time
    removes what rounding, and a y that does not quite sum to 1, left of it. The error of dx_i is
    then a few units of y_i (|dy_i - mean| + mean |dy_j - mean|), not of y_i |dy|.

    Args:
      axis: the one over which y sums to 1.

    Returns:
      A block without parameters. Residuals: ``y``, all that the formula needs, and the output
      itself, so it costs no memory; on TPUs x, from which both sums of a row are computed in one
      reading of it (:mod:`fnn.blocks.compensated`), to 46 binary digits in float32.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import softmax
    >>> y, _ = softmax().forward({}, jnp.array([[0.0, 0.0], [1.0, -jnp.inf]]))
    >>> y
    Array([[0.5, 0.5],
           [1. , 0. ]], dtype=float32)
    """

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_floating("softmax", "x", x)
        axes_of("softmax", axis, x)
        shifted = _below_top(x.astype(compute_dtype(x.dtype)), axis)
        y = _shares(jnp.exp(shifted), axis).astype(x.dtype)
        return y, by_platform(x, y, tpu=lambda x, y: x, default=lambda x, y: y)

    def backward(params: Params, kept: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = softmax(x), so dx = y (dy - mean) with the mean of dy weighted by y.
        def from_y(y: jax.Array, d: jax.Array) -> jax.Array:
            p = _in_one_kernel(y, axis)
            for _ in range(2):
                d = d - jnp.sum(p * d, axis=axis, keepdims=True)
            return p * d

        def from_x(x: jax.Array, d: jax.Array) -> jax.Array:
            e = jnp.exp(_below_top(x.astype(d.dtype), axis))
            pairs = [compensated.product(e, d), compensated.exactly(e)]
            of_d, total = compensated.totals(pairs, [axis % x.ndim])
            total = jnp.maximum(total[0], jnp.finfo(d.dtype).tiny), total[1]
            mean, rest = compensated.quotient(of_d, total)
            return e / total[0] * (d - mean - rest)

        d = as_cotangent("softmax", dy, kept.shape).astype(compute_dtype(kept.dtype))
        # XLA for TPUs reads a row again for each sum that needs another: there one sum does, and
        # e is computed where it is needed, not read.
        return {}, by_platform(kept, d, tpu=from_x, default=from_y).astype(kept.dtype)

    return elementary(forward, backward, "softmax", Kind("softmax", (axis,)))


@checked
def log_softmax(axis: int = -1) -> Block:
    """y_i = x_i - log sum_j exp(x_j) along ``axis``; x and y have the same shape.

    Computed as (x_i - max) - log1p(sum over the others of exp(x_j - max)), which keeps the
    digits of a confident row's log-probability, near 0.

    Derivative: dx_i = dy_i - p_i sum_j dy_j, p the probabilities. For an entry with p_i > 1/2 (a
    row has one at most) the equal form dy_i (sum over the others of p_j) - p_i (sum over the
    others of dy_j) is used, which does not cancel.

    Args:
      axis: the one over which exp(y) sums to 1.

    Returns:
      A block without parameters. Residuals: p, one array; on GPUs and TPUs x, from which p is
      computed again, as exponentials cost less than memory there. Recomputing p as exp(y) would
      lose digits in proportion to |y|, in bfloat16 nearly all of them for the unlikely entries.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import log_softmax
    >>> y, p = log_softmax().forward({}, jnp.array([20.0, 0.0]))
    >>> y
    Array([-2.0611537e-09, -2.0000000e+01], dtype=float32)
    >>> log_softmax().backward({}, p, jnp.array([1.0, 0.0]))[1]
    Array([ 2.0611537e-09, -2.0611537e-09], dtype=float32)
    """

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_floating("log_softmax", "x", x)
        axes_of("log_softmax", axis, x)
        shifted, e, _, others = _around_top(x, axis)
        p = (e / (1 + others)).astype(x.dtype)
        kept = by_platform(x, p, cuda=lambda x, p: x, tpu=lambda x, p: x, default=lambda x, p: p)
        return (shifted - jnp.log1p(others)).astype(x.dtype), kept

    def backward(params: Params, kept: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = x - ln sum exp x, so dx = dy - p sum(dy), without cancelling where p > 1/2.
        def dx(p: jax.Array, likely: jax.Array, other_p: jax.Array, d: jax.Array) -> jax.Array:
            total = jnp.sum(d, axis=axis, keepdims=True)
            other_d = jnp.sum(jnp.where(likely, 0.0, d), axis=axis, keepdims=True)
            return jnp.where(likely, d * other_p - p * other_d, d - p * total).astype(kept.dtype)

        def from_p(p: jax.Array, d: jax.Array) -> jax.Array:
            likely = p > 0.5
            other_p = jnp.sum(jnp.where(likely, 0.0, p), axis=axis, keepdims=True)
            return dx(p, likely, other_p, d)

        def from_x(x: jax.Array, d: jax.Array) -> jax.Array:
            _, e, is_top, others = _around_top(x, axis)
            # By its number, as XLA for TPUs would read x for it once more.
            number = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim)
            first = jnp.min(jnp.where(is_top, number, x.shape[axis]), axis=axis, keepdims=True)
            likely = (number == first) & (others < 1)
            rest = jnp.sum(jnp.where(is_top, 0.0, e), axis=axis, keepdims=True)
            return dx(e / (1 + others), likely, rest / (1 + others), d)

        d = as_cotangent("log_softmax", dy, kept.shape).astype(compute_dtype(kept.dtype))
        return {}, by_platform(
            kept, d,
            # A barrier: with forward's sums a row would be read three times, without them once.
            cuda=lambda x, d: from_x(jax.lax.optimization_barrier(x), d),
            tpu=from_x,
            default=lambda p, d: from_p(p.astype(d.dtype), d),
        )  # fmt: skip

    return elementary(forward, backward, "log_softmax", Kind("log_softmax", (axis,)))
