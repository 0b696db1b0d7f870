"""Learned positions: a row of numbers for each place of a sequence, added to what is there.

Symbols: B... batch axes, T places of a sequence, N places that have a row, C features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.arguments import Count, checked
from fnn.arrays import Shape, Spec, compute_dtype
from fnn.block import Block, BlockValueError, Key, Kind, Params, Residuals, Value
from fnn.blocks.embedding import rows_of, small, sums_by_id
from fnn.blocks.linear import Initializer, initial
from fnn.blocks.rotary import with_places
from fnn.refusals import as_cotangent, elementary, require_shapes


@checked
def position_embedding(length: Count, *, w_init: Initializer = small) -> Block:
    """y_t = x_t + w_t: a learned row for each place, as in GPT-2.

    Args:
      length: N, of the longest sequence.
      w_init: from ``jax.nn.initializers``; of standard deviation 0.02 by default, as in GPT-2.

    Returns:
      A block of x (B..., T, C), at places 0 to T - 1, or of ``(x, places)`` with integers
      (B..., T); y is like x. Parameter ``w`` of (N, C). A place from outside 0 to N - 1 has no row:
      its y is NaN, and it adds nothing to any gradient. Residuals: the places, if any were given.

    Raises:
      BlockValueError: a sequence of more than ``length`` places, places or w of another shape.
      BlockTypeError: x is not floating, or places are not integers.

    >>> import fnn, jax.numpy as jnp
    >>> net, params = fnn.position_embedding(3), {"w": jnp.array([[1.0], [2.0], [3.0]])}
    >>> y, residuals = net.forward(params, jnp.zeros((2, 2, 1)))
    >>> y[0].ravel()
    Array([1., 2.], dtype=float32)
    >>> net.backward(params, residuals, jnp.ones((2, 2, 1)))[0]["w"].ravel()
    Array([2., 2., 0.], dtype=float32)
    """
    name = "position_embedding"

    def inputs(x: Value) -> tuple[jax.Array, jax.Array | None]:
        x, places = with_places(name, x, axes=("T", "C"))
        if places is None and isinstance(x.shape[-2], int) and x.shape[-2] > length:
            raise BlockValueError(
                name,
                f"x has shape {x.shape}, a sequence of {x.shape[-2]}, needs at most {length}: cut "
                f"it, or make position_embedding({x.shape[-2]})",
            )
        return x, places

    def init(key: jax.Array, x: Value) -> Params:
        like: Spec = inputs(x)[0]
        shape = length, like.shape[-1]
        return {"w": initial(name, "w_init", w_init, key, shape, compute_dtype(like.dtype))}

    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        x, places = inputs(x)
        require_shapes(name, params, {"w": (length, x.shape[-1])}, x)
        w = jnp.asarray(params["w"])
        if places is None:
            rows = w[: x.shape[-2]].reshape((1,) * (x.ndim - 2) + (x.shape[-2], x.shape[-1]))
        else:
            rows = w.at[rows_of(places, length)].get(mode="fill", fill_value=jnp.nan)
        wide = compute_dtype(x.dtype)
        return (x.astype(wide) + rows.astype(wide)).astype(x.dtype), (Shape.of(x), places)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, Value]:
        # forward: y[..., t, :] = x[..., t, :] + w[t], so dx = dy, and dw[t] is the sum of dy over
        # the sequences; over all that are at place t, where places were given.
        like, places = residuals
        require_shapes(name, params, {"w": (length, like.shape[-1])})
        dy = as_cotangent(name, dy, like.shape)
        wide, dx = dy.astype(compute_dtype(dy.dtype)), dy.astype(like.dtype)
        if places is None:
            dw = jnp.sum(wide, tuple(range(dy.ndim - 2)))
            dw = jnp.pad(dw, ((0, length - dw.shape[0]), (0, 0)))
        else:
            rows = rows_of(places, length).reshape(-1)
            dw = sums_by_id(rows, wide.reshape(-1, wide.shape[-1]), length)
        dparams = {"w": dw.astype(params["w"].dtype)}
        return dparams, dx if places is None else (dx, None)

    return elementary(forward, backward, name, Kind(name, (length,)), init=init)
