"""Sums over the examples of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arrays import is_split
from fnn.compiling import by_platform

PART = 256  # rows at most, 64 at least or all places of an example, as they divide the sum


def sums(arrays: Sequence[jax.Array], axes: Sequence[int]) -> Sequence[jax.Array]:
    """Each array's sum over ``axes``. The arrays have one shape.

    XLA for NVIDIA's GPUs writes a product to memory before it sums its columns. What it does not
    write are sums of some rows each, if a barrier keeps them from their sum: it computes them
    where the product is, those of all arrays in one reading of what these are made of. So it is for
    all columns, and for those of each example.

    >>> [y.tolist() for y in sums([jnp.ones((2, 3))], [0])]
    [[2.0, 2.0, 2.0]]
    """

    def whole(*arrays: jax.Array) -> Sequence[jax.Array]:
        return [jnp.sum(x, axes) for x in arrays]

    def in_parts(*arrays: jax.Array) -> Sequence[jax.Array]:
        x = arrays[0]
        rows, every = _rows(x, axes), math.prod(x.shape[axis] for axis in axes)
        shape = (*x.shape[: axes[0]], every // rows, rows, x.shape[-1])
        parts = [jnp.sum(x.reshape(shape), -2) for x in arrays]
        return [jnp.sum(x, -2) for x in lax.optimization_barrier(parts)]

    def has_parts(x: jax.Array) -> bool:
        of_columns = tuple(axes) in (tuple(range(x.ndim - 1)), tuple(range(1, x.ndim - 1)))
        if not of_columns or not axes or is_split(x):
            return False
        rows = _rows(x, axes)
        return rows >= 64 or (axes[0] > 0 and rows == math.prod(x.shape[a] for a in axes))

    if not arrays or not all(map(has_parts, arrays)):
        return whole(*arrays)
    return by_platform(*arrays, cuda=in_parts, default=whole)


def _rows(x: jax.Array, axes: Sequence[int]) -> int:
    """In a part of x; 1 of a symbolic batch (jax.export), which any number may divide."""
    rows = math.prod(x.shape[axis] for axis in axes)
    if not isinstance(rows, int):
        return 1
    # Of a batch in 8 parts at least: of fewer, XLA writes what it sums after all.
    most = PART if axes[0] else min(PART, max(rows // 8, 64))
    return next((n for n in range(min(rows, most), 1, -1) if rows % n == 0), 1)
