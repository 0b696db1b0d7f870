"""Pooling: the maximum or the mean of windows that slide over an image or a sequence.

Symbols: B batch, H and W height and width, C channels. Images are (B, H, W, C), sequences
(B, W, C); windows slide over the axes between the first and the last, called spatial here. How
they lie is in :mod:`fnn.blocks.windows`.

How the backward rules are made: x's axis is cut into blocks of s entries. Entry r of block q is in
the windows q, q - 1, ... (shifted by low // s), at the places r, r + s, ... of them, as far as
these are less than k. So dx is a sum of ceil(k / s) shifted copies of dy for each axis, each
spread over the blocks: no scatter, nothing but slices, comparisons and additions that compile to
one loop. The derivative of ``lax.reduce_window`` is a select-and-scatter, slow on CPU and GPU.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fnn.block import (
    Block,
    BlockValueError,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    Shape,
    compute_dtype,
    no_params,
)
from fnn.blocks.windows import Axis, CeilMode, Padding, Sizes, Slide, require_image


def max_pool(
    window: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "VALID",
    ceil_mode: CeilMode = None,
) -> Block:
    """y = the largest entry of each window, for x of shape (B, H, W, C) or (B, W, C).

    dy goes to the entry that won; of several equal ones the first in row-major order, whatever
    the number of windows that it is in: where windows overlap, their cotangents add (in float32
    at least). A NaN wins over all numbers; there is no derivative there, so that the first NaN of
    a window gets NaN, and the other entries nothing. Padding never wins, not even over -inf.

    Args:
      window: height and width, or one number for both; for sequences one number.
      stride: how far apart windows start; the window by default.
      padding: 'VALID' (none), 'SAME' (ceil(n / stride) windows, the larger half of the padding
        at the end, as in TensorFlow), one number for all sides, or a pair (low, high) per axis.
      ceil_mode: None, 'caffe' or 'torch': see :mod:`fnn.blocks.pooling`.

    Residuals: where in its window each maximum was, and whether it was a NaN, in one byte (two
    for windows of more than 128 entries), and x's shape. Neither x nor y is kept.

    Raises:
      BlockValueError: a window larger than the padded x, or with nothing of x in it; a
        window, stride or padding that does not fit x's rank; negative padding.
      BlockTypeError: x is not floating.

    >>> import fnn, jax.numpy as jnp
    >>> net, x = fnn.max_pool(2), jnp.array([[1.0, 5.0, 2.0, 2.0]])[..., None]
    >>> y, residuals = net.forward({}, x)
    >>> y[0, :, 0], net.backward({}, residuals, jnp.array([[[10.0], [20.0]]]))[1][0, :, 0]
    (Array([5., 2.], dtype=float32), Array([ 0., 10., 20.,  0.], dtype=float32))
    """
    slide = Slide("max_pool", window, stride, padding, ceil_mode)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        axes = slide.over(x)
        small, has_nan = _place_dtype(axes)
        place: Any = None
        y, step = _padded(x, axes, -jnp.inf), 1
        # One axis after the other, the last one first: k + k comparisons instead of k k, and the
        # first of the maxima of the rows' first maxima is the first in row-major order.
        for dim, axis in reversed(list(enumerate(axes, 1))):
            y, place = _first_maximum(y, place, dim, axis, step, small)
            step *= axis.window
        return y, (_marked(place, y, has_nan), Shape.of(x))

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y[o] = x[place of o in its window], so dx[i] = the sum of dy[o] over those
        # windows o that i is in, and in which it is at the place that won.
        place, x = residuals
        axes = slide.over(x)
        _, has_nan = _place_dtype(axes)
        wide = dy.astype(compute_dtype(dy.dtype))
        place, wide = place & ~has_nan, jnp.where(place < has_nan, wide, jnp.nan)
        for dim, axis in enumerate(axes, 1):
            place, wide = _reached(place, dim, axis), _reached(wide, dim, axis)

        reaches = tuple(axis.reach for axis in axes)

        def part(number: Any) -> jax.Array:
            ago = _unravelled(number, reaches)
            here, inside = _places(axes, ago)
            wins = _earlier(place, axes, ago) == here.astype(place.dtype)
            return jnp.where(wins & inside, _earlier(wide, axes, ago), 0)

        dx = _folded(math.prod(reaches), lambda at, dx: dx + part(at), part(0))
        return {}, _cropped(dx, axes).astype(x.dtype)

    def subgradient(x: Any, dy: Any) -> np.ndarray:
        """The declared choice, as one would write it down: window by window, in NumPy."""
        axes, x, dy = slide.over(x), np.asarray(x), np.asarray(dy)
        dx = np.zeros_like(x)
        for out in np.ndindex(*dy.shape[1:-1]):
            starts = [o * axis.stride - axis.low for o, axis in zip(out, axes, strict=True)]
            part = tuple(
                slice(max(start, 0), start + axis.window)
                for start, axis in zip(starts, axes, strict=True)
            )
            for b, c in itertools.product(range(x.shape[0]), range(x.shape[-1])):
                inside = x[(b, *part, c)]
                won = np.unravel_index(np.argmax(inside), inside.shape)
                dx[(b, *part, c)][won] += dy[(b, *out, c)] if inside[won] == inside[won] else np.nan
        return dx

    rules = Rules(subgradient=subgradient)
    return Block(no_params, forward, backward, "max_pool", slide.kind(), rules=rules)


def avg_pool(
    window: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "VALID",
    ceil_mode: CeilMode = None,
    count_padding: bool = True,
) -> Block:
    """y = the mean of each window, for x of shape (B, H, W, C) or (B, W, C).

    Args:
      window, stride, padding, ceil_mode: as for :func:`max_pool`.
      count_padding: whether the zeros of the padding count among the entries of a window, as in
        Caffe, PyTorch and Flax by default; False is TensorFlow's mean. What a window of
        ``ceil_mode`` has beyond the padding never counts, in Caffe and in PyTorch.

    Sums are in float32 at least. Residuals: x's shape, no bytes.

    Raises: as :func:`max_pool`.

    >>> import fnn, jax.numpy as jnp
    >>> net, x = fnn.avg_pool(2), jnp.array([[1.0, 5.0, 2.0, 2.0]])[..., None]
    >>> y, residuals = net.forward({}, x)
    >>> y[0, :, 0], net.backward({}, residuals, jnp.array([[[10.0], [20.0]]]))[1][0, :, 0]
    (Array([3., 2.], dtype=float32), Array([ 5.,  5., 10., 10.], dtype=float32))
    """
    slide = Slide("avg_pool", window, stride, padding, ceil_mode)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Shape]:
        axes = slide.over(x)
        wide = x.astype(compute_dtype(x.dtype))
        if all(axis.one_for_all for axis in axes):
            total = jnp.sum(wide, tuple(range(1, x.ndim - 1)), keepdims=True)
        else:
            total = _padded(wide, axes, 0)
            for dim, axis in enumerate(axes, 1):
                total = _sums(total, dim, axis)  # k + k additions instead of k k
        return (total / _counts(axes, count_padding, total.dtype)).astype(x.dtype), Shape.of(x)

    def backward(params: Params, x: Shape, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y[o] = the sum over window o / count[o], so dx[i] = the sum of dy[o] / count[o]
        # over those windows o that i is in: over their rows, then over their columns.
        axes = slide.over(x)
        wide = dy.astype(compute_dtype(dy.dtype))
        dx = wide / _counts(axes, count_padding, wide.dtype)
        if all(axis.one_for_all for axis in axes):
            return {}, jnp.broadcast_to(dx.astype(x.dtype), x.shape)
        for dim, axis in enumerate(axes, 1):
            dx = _shared(dx, dim, axis)
        return {}, dx.astype(x.dtype)

    return Block(no_params, forward, backward, "avg_pool", slide.kind(count_padding))


def global_avg_pool() -> Block:
    """y = the mean over all of H and W: (B, H, W, C) to (B, C), and (B, W, C) to (B, C).

    dy / (H W) goes to every entry. Sums are in float32 at least. Residuals: x's shape, no bytes.

    Raises:
      BlockValueError: x has no spatial axis, or an empty one.
      BlockTypeError: x is not floating.

    >>> import fnn, jax.numpy as jnp
    >>> net, x = fnn.global_avg_pool(), jnp.array([[[1.0], [5.0], [3.0]]])
    >>> y, residuals = net.forward({}, x)
    >>> y, net.backward({}, residuals, jnp.array([[6.0]]))[1][0, :, 0]
    (Array([[3.]], dtype=float32), Array([2., 2., 2.], dtype=float32))
    """

    def check(x: Any) -> None:
        require_image("global_avg_pool", x)
        if 0 in x.shape[1:-1]:
            raise BlockValueError(
                "global_avg_pool", f"x has shape {x.shape}: the mean of no entries does not exist"
            )

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Shape]:
        check(x)
        wide = x.astype(compute_dtype(x.dtype))
        return jnp.mean(wide, tuple(range(1, x.ndim - 1))).astype(x.dtype), Shape.of(x)

    def backward(params: Params, x: Shape, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = sum / n, so dx = dy / n for each of the n entries.
        spatial = x.shape[1:-1]
        share = dy.astype(compute_dtype(dy.dtype)) / math.prod(spatial)
        thin = share.astype(x.dtype).reshape(x.shape[0], *(1 for _ in spatial), x.shape[-1])
        return {}, jnp.broadcast_to(thin, x.shape)

    return Block(no_params, forward, backward, "global_avg_pool", Kind("global_avg_pool"))


# ---- going forward ---------------------------------------------------------------------------


def _padded(x: jax.Array, axes: Sequence[Axis], value: Any) -> jax.Array:
    """x with all that the windows reach around it."""
    around = [(axis.low, axis.overhang, 0) for axis in axes]
    if not any(low or high for low, high, _ in around):
        return x
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


UNROLLED = 64  # steps at most; more of them are a loop, for the sake of the compiler


def _folded(count: int, step: Callable[[Any, Any], Any], start: Any) -> Any:
    """step(count - 1, ... step(2, step(1, start)))."""
    if count > UNROLLED:
        return lax.fori_loop(1, count, step, start)
    return functools.reduce(lambda so_far, at: step(at, so_far), range(1, count), start)


def _cut(x: jax.Array, dim: int, start: Any, size: int) -> jax.Array:
    """A part of one axis; ``start`` is known before compilation unless we are in a loop."""
    if isinstance(start, jax.core.Tracer):
        return lax.dynamic_slice_in_dim(x, start, size, dim)
    return lax.slice_in_dim(x, start, start + size, 1, dim)


def _every(x: jax.Array, dim: int, axis: Axis, at: Any) -> jax.Array:
    """Entry ``at`` of every window along one axis."""
    part = _cut(x, dim, at, (axis.out - 1) * axis.stride + 1)
    return lax.slice_in_dim(part, 0, None, axis.stride, dim)


def _unravelled(number: Any, shape: tuple[int, ...]) -> Sequence[Any]:
    """The indices of an entry, by its row-major number."""
    module = jnp if isinstance(number, jax.core.Tracer) else np
    return module.unravel_index(number, shape)


def _place_dtype(axes: Sequence[Axis]) -> tuple[Any, np.unsignedinteger[Any]]:
    """The smallest dtype for a place in a window, and its highest bit: that a NaN won."""
    entries = math.prod(axis.window for axis in axes)
    for dtype in (np.uint8, np.uint16):
        high = np.iinfo(dtype).max // 2 + 1
        if entries <= high:
            return dtype, dtype(high)
    return np.uint32, np.uint32(2**31)


def _along(dim: int, rank: int, values: Any) -> np.ndarray:
    """A vector along one axis, of size 1 along the others."""
    return np.reshape(values, [-1 if d == dim else 1 for d in range(rank)])


def _first_maximum(
    x: jax.Array, place: jax.Array | None, dim: int, axis: Axis, step: int, small: Any
) -> tuple[jax.Array, jax.Array]:
    """The maxima along one axis, and the places of the first of them.

    ``place``: those of x's entries within the axes before; ``step``: what one entry along this
    axis adds to the place.
    """
    # At the start the padding, if any, has won; what then counts as its place is that of the
    # window's first entry within x, so that where all are -inf, padding included, that one has.
    skipped = np.maximum(0, axis.low - axis.stride * np.arange(axis.out)) * step
    best = _every(x, dim, axis, 0)
    won = jnp.broadcast_to(jnp.asarray(_along(dim, x.ndim, skipped), small), best.shape)
    if place is not None:
        won = won + _every(place, dim, axis, 0)

    def compare(at: Any, best_won: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        best, won = best_won
        value, here = _every(x, dim, axis, at), jnp.asarray(at * step, small)
        if place is not None:
            here = here + _every(place, dim, axis, at)
        larger = ~(value <= best) & (best == best)  # or the first NaN
        return jnp.where(larger, value, best), jnp.where(larger, here, won)

    return _folded(axis.window, compare, (best, won))


def _marked(place: jax.Array, y: jax.Array, has_nan: Any) -> jax.Array:
    """The places, with the highest bit where a NaN won."""

    def mark(place: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(y == y, place, place | has_nan)

    def if_any(place: jax.Array, y: jax.Array) -> jax.Array:
        # XLA:CPU would compute the places again wherever backward reads them, and keep what they
        # are made of, several times their size, until then. The result of a branch is stored.
        return lax.cond(jnp.any(y != y), mark, lambda place, y: place, place, y)

    # On GPU and TPU a branch would wait for the host, and fusions have several results.
    return lax.platform_dependent(place, lax.stop_gradient(y), cpu=if_any, default=mark)


def _sums(x: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """The sum of each window along one axis."""

    def every(at: Any) -> jax.Array:
        return _every(x, dim, axis, at)

    return _folded(axis.window, lambda at, total: total + every(at), every(0))


def _counts(axes: Sequence[Axis], padding: bool, dtype: Any) -> jax.Array:
    """How many entries are in each window, in the shape of y but for batch and channels."""
    rank = len(axes) + 2
    each = [_along(dim, rank, axis.counts(padding)) for dim, axis in enumerate(axes, 1)]
    return jnp.asarray(math.prod(each), dtype)


# ---- going back ------------------------------------------------------------------------------


def _reached(dy: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """dy along one axis, with zeros for, and without, what the blocks of x are not in: at t is
    the window number t - (reach - 1) + low // stride."""
    shift = axis.low // axis.stride
    around = (axis.reach - 1 - shift, axis.blocks + shift - axis.out, 0)
    none = (0, 0, 0)
    return lax.pad(
        dy, jnp.zeros((), dy.dtype), [around if d == dim else none for d in range(dy.ndim)]
    )


def _earlier(dy: jax.Array, axes: Sequence[Axis], ago: Sequence[Any]) -> jax.Array:
    """For each block its own window, or for ``ago`` 1 the one before, ...: (B, Q, 1, ..., C)."""
    shape = [dy.shape[0]]
    for dim, (axis, back) in enumerate(zip(axes, ago, strict=True), 1):
        dy = _cut(dy, dim, axis.reach - 1 - back, axis.blocks)
        shape += [axis.blocks, 1]
    return dy.reshape(*shape, dy.shape[-1])


def _places(axes: Sequence[Axis], ago: Sequence[Any]) -> tuple[Any, Any]:
    """The places that the entries of a block have in that window, (1, 1, stride, ..., 1), and
    whether they are in it."""
    place, inside = 0, True
    for i, (axis, back) in enumerate(zip(axes, ago, strict=True)):
        along = _along(2 + 2 * i, 2 + 2 * len(axes), np.arange(axis.stride))
        entry = along + back * axis.stride
        place, inside = place * axis.window + entry, inside & (entry < axis.window)
    return place, inside


def _cropped(dx: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """From blocks, (B, Q, stride, ..., C), to the shape of x."""
    dx = dx.reshape(dx.shape[0], *(axis.blocks * axis.stride for axis in axes), dx.shape[-1])
    for dim, axis in enumerate(axes, 1):
        skip = axis.low % axis.stride
        dx = lax.slice_in_dim(dx, skip, skip + axis.size, 1, dim)
    return dx


def _shared(dy: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """Along one axis, the sum of dy over the windows that each entry is in."""
    dy = _reached(dy, dim, axis)
    shape = [*dy.shape[:dim], axis.blocks, axis.stride, *dy.shape[dim + 1 :]]

    def part(back: Any) -> jax.Array:
        own = _cut(dy, dim, axis.reach - 1 - back, axis.blocks)
        inside = _along(dim + 1, len(shape), np.arange(axis.stride)) + back * axis.stride
        spread = jnp.broadcast_to(jnp.expand_dims(own, dim + 1), shape)
        return jnp.where(inside < axis.window, spread, 0)

    total = _folded(axis.reach, lambda back, total: total + part(back), part(0))
    whole = total.reshape(*dy.shape[:dim], axis.blocks * axis.stride, *dy.shape[dim + 1 :])
    skip = axis.low % axis.stride
    return lax.slice_in_dim(whole, skip, skip + axis.size, 1, dim)
