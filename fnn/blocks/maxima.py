"""The maxima of windows and the way back to them, as each platform does it best: max_pool's rules.

Symbols as in :mod:`fnn.blocks.pooling`, windows as in :mod:`fnn.blocks.windows`. Of what is kept,
CPUs and GPUs read the places of the winners, in one byte each, and TPUs x. A compiled program
that goes forward and back has the other one left out, as nothing reads it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from fnn.arrays import compute_dtype
from fnn.blocks.windows import (
    Axis,
    Index,
    aligned,
    along,
    cut,
    entry,
    padded,
    unrolled_or_loop,
)  # fmt: skip
from fnn.compiling import by_platform, certain


def maxima(x: jax.Array, axes: Sequence[Axis]) -> tuple[jax.Array, jax.Array]:
    """The maximum of each window, and its place: the row-major number of the first one's entry."""
    # Comparisons of slices fuse into one loop on CPUs and GPUs. On TPUs slices are copies; there
    # is an operation for windows, and the places are not read.
    return by_platform(
        x,
        tpu=functools.partial(_by_operation, axes=axes),
        cpu=functools.partial(_stored, axes=axes),
        default=functools.partial(_by_comparison, axes=axes),
    )


def to_winners(place: jax.Array, x: jax.Array, dy: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """For each entry of x the sum of dy over the windows that it won, in float32 at least."""
    # Select-and-scatter, the derivative that JAX has, is a slow loop on CPUs and GPUs, and an
    # operation of TPUs.
    return by_platform(
        place,
        x,
        dy,
        tpu=functools.partial(_selected_and_scattered, axes=axes),
        default=functools.partial(_from_windows_around, axes=axes),
    )


# ---- by slices -------------------------------------------------------------------------------


def _by_comparison(x: jax.Array, axes: Sequence[Axis]) -> tuple[jax.Array, jax.Array]:
    """Along one axis after the other, the last one first: k + k comparisons instead of k k.

    The first of the maxima of the rows' first maxima is the first in row-major order.
    """
    y, step = padded(x, axes, -jnp.inf), 1
    place: Any = None  # an array after the first axis
    for dim, axis in reversed(list(enumerate(axes, 1))):
        y, place = _first_maximum(y, place, dim, axis, step, _place_dtype(axes))
        step *= axis.window
    return y, place


def _stored(x: jax.Array, axes: Sequence[Axis]) -> tuple[jax.Array, jax.Array]:
    """The same for CPUs: XLA would compute the places again wherever backward reads them, and so
    keep the arrays they are made of, several times their size. A branch's result is stored."""
    y, place = _by_comparison(x, axes)
    if y.size:
        known = certain(lax.stop_gradient(y))
        place = lax.cond(known, lambda place: place, jnp.zeros_like, place)
    return y, place


def _place_dtype(axes: Sequence[Axis]) -> DTypeLike:
    """The smallest dtype for a place in a window."""
    return np.min_scalar_type(math.prod(axis.window for axis in axes) - 1)


def _first_maximum(
    x: jax.Array, place: jax.Array | None, dim: int, axis: Axis, step: int, small: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """The maxima along one axis, and the place of the first one in each window.

    ``place``: of x's entries along the axes before, None on the first; ``step``: what one entry
    along this axis adds to a place.
    """
    # At first the padding, if any, has won, with the place of the window's first entry within x:
    # where all entries are -inf, like the padding, that entry is the winner.
    skipped = np.maximum(0, axis.low - axis.stride * np.arange(axis.out)) * step
    best = entry(x, dim, axis, 0)
    won = jnp.broadcast_to(jnp.asarray(along(dim, x.ndim, skipped), small), best.shape)
    if place is not None:
        won = won + entry(place, dim, axis, 0)

    def compare(at: Index, best_won: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        best, won = best_won
        value, here = entry(x, dim, axis, at), jnp.asarray(at * step, small)
        if place is not None:
            here = here + entry(place, dim, axis, at)
        stays = _wins(best, value)
        return jnp.where(stays, best, value), jnp.where(stays, won, here)

    return unrolled_or_loop(axis.window, compare, (best, won))


def _wins(first: jax.Array, other: jax.Array) -> jax.Array:
    """Whether the first of two entries wins: it is as large, or a NaN."""
    return (first >= other) | (first != first)


def _from_windows_around(
    place: jax.Array, x: jax.Array, dy: jax.Array, axes: Sequence[Axis]
) -> jax.Array:
    """Entry r of a block adds the dy of those windows around it that have its place as winner."""
    d = dy.astype(compute_dtype(dy.dtype))
    for dim, axis in enumerate(axes, 1):
        place, d = aligned(place, dim, axis), aligned(d, dim, axis)
    overlaps = tuple(axis.overlap for axis in axes)

    def part(number: Index) -> jax.Array:
        ago = _unraveled(number, overlaps)
        here, inside = _places(axes, ago)
        wins = _earlier(place, axes, ago) == here.astype(place.dtype)
        return jnp.where(wins & inside, _earlier(d, axes, ago), 0)

    dx = unrolled_or_loop(math.prod(overlaps), lambda at, dx: dx + part(at), part(0))
    return _cropped(dx, axes).astype(x.dtype)


def _unraveled(number: Index, shape: tuple[int, ...]) -> Sequence[Index]:
    """The indices of an entry, by its row-major number."""
    module = jnp if isinstance(number, jax.core.Tracer) else np
    return module.unravel_index(number, shape)


def _earlier(dy: jax.Array, axes: Sequence[Axis], ago: Sequence[Index]) -> jax.Array:
    """For each of Q blocks the window ``ago`` before its own: (B, Q, 1, ..., C)."""
    shape = [dy.shape[0]]
    for dim, (axis, back) in enumerate(zip(axes, ago, strict=True), 1):
        dy = cut(dy, dim, axis.overlap - 1 - back, axis.blocks)
        shape += [axis.blocks, 1]
    return dy.reshape(*shape, dy.shape[-1])


def _places(axes: Sequence[Axis], ago: Sequence[Index]) -> tuple[Any, Any]:
    """The places of a block's entries in that window, (1, 1, stride, ..., 1), and whether they are
    in it."""
    place: Any = 0
    inside: Any = True
    for i, (axis, back) in enumerate(zip(axes, ago, strict=True)):
        within = along(2 + 2 * i, 2 + 2 * len(axes), np.arange(axis.stride)) + back * axis.stride
        place, inside = place * axis.window + within, inside & (within < axis.window)
    return place, inside


def _cropped(dx: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """The blocks (B, Q, stride, ..., C) as an array of x's shape."""
    for dim, axis in enumerate(axes, 1):
        dx = dx.reshape(*dx.shape[:dim], axis.blocks * axis.stride, *dx.shape[dim + 2 :])
        skip = axis.low % axis.stride
        dx = lax.slice_in_dim(dx, skip, skip + axis.size, 1, dim)
    return dx


# ---- by operations on windows ----------------------------------------------------------------


def _by_operation(x: jax.Array, axes: Sequence[Axis]) -> tuple[jax.Array, jax.Array]:
    """The maxima; no place is read later, so that they are all 0."""
    y = lax.reduce_window(x, x.dtype.type(-np.inf), lax.max, *_lying(axes))
    return y, jnp.zeros_like(y, _place_dtype(axes))


def _selected_and_scattered(
    place: jax.Array, x: jax.Array, dy: jax.Array, axes: Sequence[Axis]
) -> jax.Array:
    """The same with x instead of the places.

    It compares by ``lax.ge_p``, as JAX's derivative does, which passes over a NaN: of a window with
    one, another entry gets dy. XLA splits no other comparison over devices: each would be sent the
    whole batch.
    """
    windows, strides, padding = _lying(axes)

    def operation(x: jax.Array, dy: jax.Array) -> jax.Array:
        return lax.select_and_scatter_add_p.bind(
            dy, x, select_prim=lax.ge_p, window_dimensions=windows, window_strides=strides,
            padding=padding,
        )  # fmt: skip

    wide = compute_dtype(jnp.promote_types(x.dtype, dy.dtype))
    if x.dtype == dy.dtype == wide:
        return operation(x, dy)
    # Between barriers 16 bits become 32 and 16 again, within the operation. XLA would let float32
    # reach further, and keep x and dx in both, x as it was before it was rounded. With one barrier
    # for x and dy, however, it lays out all of GoogLeNet with its 64 examples last, padded to 128.
    x, dy = lax.optimization_barrier(x), lax.optimization_barrier(dy)
    dx = operation(x.astype(wide), dy.astype(wide))
    return lax.optimization_barrier(dx.astype(x.dtype))


def _lying(axes: Sequence[Axis]) -> tuple[Any, Any, Any]:
    """The sizes of windows, their strides and the padding, for all axes of x."""
    return (
        (1, *(axis.window for axis in axes), 1),
        (1, *(axis.stride for axis in axes), 1),
        ((0, 0), *((axis.low, axis.overhang) for axis in axes), (0, 0)),
    )
