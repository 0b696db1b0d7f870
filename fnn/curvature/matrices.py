"""Curvature matrices of small networks, column by column."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from fnn.arguments import Count, checked
from fnn.block import Block, BlockValueError, Key, Params, Value
from fnn.curvature.products import Gradient, Product, ggn_vp, hvp
from fnn.curvature.vectors import as_tangent, raveled
from fnn.refusals import described


def _memory() -> int:
    """The bytes of the device's memory."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@checked
def matrix(product: Product, params: Params, batch_size: Count | None = None) -> jax.Array:
    """The matrix A of a product ``(params, v) -> A v``: of n numbers, n products.

    Args:
      product: :func:`hvp` of a gradient, or :func:`ggn_vp`.
      params: where it is taken.
      batch_size: how many columns are computed at once; the memory needed grows with it. By default
        1 on a CPU, whose caches hold one column's arrays, and 32 elsewhere.

    Returns:
      An array (n, n), symmetric up to rounding, in the order of
      ``jax.flatten_util.ravel_pytree(params)``; in their widest dtype, at least float32.

    Raises:
      BlockValueError: it would not fit in memory.

    >>> import fnn, jax, jax.numpy as jnp
    >>> product = fnn.curvature.hvp(jax.grad(lambda w: w[0] ** 2 * w[1]))
    >>> matrix(product, jnp.array([3.0, 5.0]))
    Array([[10.,  6.],
           [ 6.,  0.]], dtype=float32)
    """
    vector, unravel = raveled("matrix", params)
    n = vector.size
    size, memory = n * n * vector.dtype.itemsize, _memory()
    if size > memory:
        raise BlockValueError(
            "matrix",
            f"params hold {n} numbers, whose matrix of {n} x {n} has {size / 1e9:.1f} GB: needs at "
            f"most {memory / 1e9:.1f} GB, the memory. Use fnn.curvature.lanczos or spectrum, which "
            "never form it",
        )

    def column(i: jax.Array) -> jax.Array:
        along = (jnp.arange(n) == i).astype(vector.dtype)
        result = product(params, unravel(along))
        result = as_tangent("matrix", f"the result of {described(product)}", result, params)
        return raveled("matrix", result)[0]

    at_once = batch_size or (1 if jax.default_backend() == "cpu" else 32)
    # Columns, as rows: A is symmetric.
    return jax.lax.map(column, jnp.arange(n), batch_size=min(at_once, n))


@checked
def hessian(gradient: Gradient, params: Params, batch_size: Count | None = None) -> jax.Array:
    """The Hessian, d^2 E / dparams^2: ``matrix(hvp(gradient), params)``.

    Args:
      gradient: ``params -> grads``: :func:`~fnn.curvature.gradient_of` a network, or
        ``jax.grad(f)``.
      params, batch_size: as for :func:`matrix`.

    Returns:
      An array (n, n), as of :func:`matrix`.

    Raises:
      BlockValueError: it would not fit in memory.

    >>> import fnn, jax.numpy as jnp
    >>> net, x, target = fnn.linear(1, use_bias=False), jnp.array([[3.0, 1.0]]), jnp.zeros((1, 1))
    >>> gradient = fnn.curvature.gradient_of(net, fnn.squared_error(), x, target)
    >>> hessian(gradient, {"w": jnp.zeros((2, 1))})  # x x^T
    Array([[9., 3.],
           [3., 1.]], dtype=float32)
    """
    return matrix(hvp(gradient), params, batch_size)


@checked
def ggn(
    net: Block,
    loss: Block,
    params: Params,
    x: Value,
    target: Value,
    key: Key = None,
    weights: Value = None,
    batch_size: Count | None = None,
) -> jax.Array:
    """The generalised Gauss-Newton matrix, J^T H_E J: ``matrix(ggn_vp(net, loss, x, target),
    params)``.

    Args:
      net, loss, x, target, key, weights: as for :func:`ggn_vp`.
      params, batch_size: as for :func:`matrix`.

    Returns:
      An array (n, n), as of :func:`matrix`.

    Raises:
      BlockValueError: it would not fit in memory.

    >>> import fnn, jax.numpy as jnp
    >>> ggn(fnn.linear(1, use_bias=False), fnn.squared_error(), {"w": jnp.zeros((2, 1))},
    ...     jnp.array([[3.0, 1.0]]), jnp.array([[5.0]]))
    Array([[9., 3.],
           [3., 1.]], dtype=float32)
    """
    return matrix(ggn_vp(net, loss, x, target, key, weights), params, batch_size)
