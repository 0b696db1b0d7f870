"""Pooling: the maximum or the mean of windows that slide over an image or a sequence.

Symbols: B batch, H and W height and width, C channels. Images are (B, H, W, C), sequences
(B, W, C), volumes (B, D, H, W, C); windows slide over the axes between the first and the last,
called spatial here. How they lie is in :mod:`fnn.blocks.windows`.

From the definition to the rule, along one axis (the others likewise) with windows of k entries, s
apart, and ``low`` entries of padding before x. Window o holds x[s o + i - low] at its place i, so

    y[o] = max_i or sum_i / count[o] of x[s o + i - low],  0 <= i < k

and x[t] gets a share of dy[o] from every window o that it is in:

    dx[t] = sum of share[o, i] over o, i with s o + i - low = t and 0 <= i < k
    share[o, i] = dy[o] / count[o] for a mean; for a maximum dy[o] if place i won window o, else 0

Cut x into blocks of s entries, so that t + low = s q + r with 0 <= r < s. Then s o + i = s q + r
is solved by o = q - j, i = r + s j for j = 0, 1, ... while i < k: entry r of block q is in the
windows q, q - 1, ... at the places r, r + s, ... So along each axis dx is a sum over ceil(k / s)
values of j: of dy, shifted by j blocks and spread over the entries of a block. No scatter, only
slices, comparisons and additions, which compile to one loop. (The derivative of
``lax.reduce_window`` is a select-and-scatter, slow on CPU and GPU, but an operation of TPUs.)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from fnn.arguments import checked
from fnn.arrays import Shape, Spec, compute_dtype
from fnn.block import Block, BlockValueError, Key, Kind, Params, Residuals, Rules, Value
from fnn.blocks.maxima import maxima, to_winners
from fnn.blocks.windows import (
    Axis,
    Index,
    Padding,
    Sizes,
    Windows,
    aligned,
    along,
    cut,
    entry,
    padded,
    require_image,
    unrolled_or_loop,
    where,
)  # fmt: skip
from fnn.compiling import by_platform
from fnn.refusals import as_cotangent, elementary

CeilMode = Literal["caffe", "torch"] | None


@checked
def max_pool(
    window: Sizes,
    stride: Sizes | None = None,
    *,
    padding: Padding = "VALID",
    ceil_mode: CeilMode = None,
) -> Block:
    """y = the largest entry of each window, of sequences, images or volumes.

    x is (B, W, C), (B, H, W, C) or (B, D, H, W, C). dy goes to the entry that won, among equal
    ones to the first in row-major order. Where windows overlap, their cotangents add, in float32 at
    least. A NaN wins over all numbers, and the first NaN of a window gets its dy (on TPUs, another
    entry). Padding never wins, not even over -inf.

    Args:
      window: one number, or one for each axis (height and width, say).
      stride: how far apart windows start; the window by default.
      padding: 'VALID' (none), 'SAME' (ceil(n / stride) windows, the larger half of the padding
        at the end, as in TensorFlow), one number for all sides, or a pair (low, high) per axis.
      ceil_mode: None leaves out the entries after the last whole window. 'torch' adds a window
        that hangs over the end, if it starts within x or the padding before it. 'caffe' does so
        too, and without padding also refuses windows that would start beyond x.

    Returns:
      A block without parameters; y is as x with fewer places. Residuals: where in its window each
      maximum was, in one byte (two for windows of more than 256 entries), which CPUs and GPUs
      read, and x, which TPUs read. In a program that is compiled with both passes, a training
      step, only the one that is read is kept.

    Raises:
      BlockValueError: a window larger than the padded x, or with nothing of x in it; a window,
        stride or padding of another rank than x's; negative padding.
      BlockTypeError: x is not floating.

    >>> import fnn, jax.numpy as jnp
    >>> net, x = fnn.max_pool(2), jnp.array([[1.0, 5.0, 2.0, 2.0]])[..., None]
    >>> y, residuals = net.forward({}, x)
    >>> y[0, :, 0], net.backward({}, residuals, jnp.array([[[10.0], [20.0]]]))[1][0, :, 0]
    (Array([5., 2.], dtype=float32), Array([ 0., 10., 20.,  0.], dtype=float32))
    """
    pool = _Pool("max_pool", window, stride, padding, ceil_mode)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        y, place = maxima(x, pool.over(x))
        return y, (place, x)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y[o] = the entry of window o at the place that won, so dx[t] = the sum of dy[o]
        # over the windows o that t is in at that place.
        place, x = residuals
        dy = as_cotangent("max_pool", dy, place.shape)
        return {}, to_winners(place, x, dy, pool.over(x))

    def subgradient(x: Value, dy: Value) -> np.ndarray:
        """The declared choice, written plainly: window by window, in NumPy."""
        axes, x, dy = pool.over(x), np.asarray(x), np.asarray(dy)
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
                dx[(b, *part, c)][won] += dy[(b, *out, c)]
        return dx

    rules = Rules(subgradient=subgradient)
    return elementary(forward, backward, "max_pool", pool.kind(), rules)


@checked
def avg_pool(
    window: Sizes,
    stride: Sizes | None = None,
    *,
    padding: Padding = "VALID",
    ceil_mode: CeilMode = None,
    count_padding: bool = True,
) -> Block:
    """y = the mean of each window, of sequences, images or volumes.

    x is (B, W, C), (B, H, W, C) or (B, D, H, W, C). Sums are in float32 at least.

    Args:
      window, stride, padding, ceil_mode: as for :func:`max_pool`.
      count_padding: whether the zeros of the padding count among the entries of a window, as in
        Caffe, PyTorch and Flax by default; False is TensorFlow's mean. What a window of
        ``ceil_mode`` has beyond the padding never counts, as in Caffe and PyTorch.

    Returns:
      A block without parameters; y is as x with fewer places. Residuals: x's shape, no bytes.

    Raises:
      BlockValueError, BlockTypeError: as :func:`max_pool`.

    >>> import fnn, jax.numpy as jnp
    >>> net, x = fnn.avg_pool(2), jnp.array([[1.0, 5.0, 2.0, 2.0]])[..., None]
    >>> y, residuals = net.forward({}, x)
    >>> y[0, :, 0], net.backward({}, residuals, jnp.array([[[10.0], [20.0]]]))[1][0, :, 0]
    (Array([3., 2.], dtype=float32), Array([ 5.,  5., 10., 10.], dtype=float32))
    """
    pool = _Pool("avg_pool", window, stride, padding, ceil_mode)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Shape]:
        axes = pool.over(x)
        wide = x.astype(compute_dtype(x.dtype))
        if all(axis.one_for_all for axis in axes):
            total = jnp.sum(wide, tuple(range(1, x.ndim - 1)), keepdims=True)
        else:
            total = by_platform(
                padded(wide, axes, 0),
                tpu=functools.partial(_window_sums, axes=axes),
                default=functools.partial(_sums_by_axis, axes=axes),
            )
        return (total / _counts(axes, count_padding, total.dtype)).astype(x.dtype), Shape.of(x)

    def backward(params: Params, x: Shape, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y[o] = the sum over window o / count[o], so dx[t] = the sum of dy[o] / count[o]
        # over the windows o that t is in: over their rows, then over their columns.
        axes = pool.over(x)
        dy = as_cotangent("avg_pool", dy, (x.shape[0], *(axis.out for axis in axes), x.shape[-1]))
        d = dy.astype(compute_dtype(dy.dtype))
        dx = d / _counts(axes, count_padding, d.dtype)
        if all(axis.one_for_all for axis in axes):
            return {}, jnp.broadcast_to(dx.astype(x.dtype), x.shape)
        dx = by_platform(
            dx,
            tpu=functools.partial(_window_sums_back, axes=axes),
            default=functools.partial(_shared_by_axis, axes=axes),
        )
        return {}, dx.astype(x.dtype)

    return elementary(forward, backward, "avg_pool", pool.kind(count_padding))


@checked
def global_avg_pool() -> Block:
    """y = the mean over all places: (B, W, C), (B, H, W, C) or (B, D, H, W, C) to (B, C).

    dy / n goes to every entry of the n. Sums are in float32 at least.

    Returns:
      A block without parameters. Residuals: x's shape, no bytes.

    Raises:
      BlockValueError: x has no spatial axis, or an empty one.
      BlockTypeError: x is not floating.

    >>> import fnn, jax.numpy as jnp
    >>> net, x = fnn.global_avg_pool(), jnp.array([[[1.0], [5.0], [3.0]]])
    >>> y, residuals = net.forward({}, x)
    >>> y, net.backward({}, residuals, jnp.array([[6.0]]))[1][0, :, 0]
    (Array([[3.]], dtype=float32), Array([2., 2., 2.], dtype=float32))
    """

    def check(x: Spec) -> None:
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
        dy = as_cotangent("global_avg_pool", dy, (x.shape[0], x.shape[-1]))
        share = (dy.astype(compute_dtype(dy.dtype)) / math.prod(spatial)).astype(x.dtype)
        column = share.reshape(x.shape[0], *(1 for _ in spatial), x.shape[-1])
        return {}, jnp.broadcast_to(column, x.shape)

    return elementary(forward, backward, "global_avg_pool", Kind("global_avg_pool"))


# ---- how the windows of a pool lie -----------------------------------------------------------


class _Pool(Windows):
    """The arguments of a pool: windows of which each has something of x in it."""

    def __init__(
        self, name: str, size: Sizes, stride: Sizes | None, padding: Padding, ceil_mode: CeilMode
    ) -> None:
        super().__init__(name, size, size if stride is None else stride, padding)
        self.ceil_mode = ceil_mode

    def kind(self, *more: Any) -> Kind:
        """The kind of the pool that has these arguments, and ``more``."""
        return Kind(self.name, (self.size, self.stride, self.padding, self.ceil_mode, *more))

    def over(self, x: Spec) -> tuple[Axis, ...]:
        axes = super().over(x)
        if self.ceil_mode is not None:
            clips = self.ceil_mode == "torch" or any(axis.low or axis.high for axis in axes)
            axes = tuple(_rounded_up(axis, clips) for axis in axes)
        for dim, axis in enumerate(axes, 1):
            k, s, low, high = axis.window, axis.stride, axis.low, axis.high
            if axis.size == 0 or low >= k or (axis.out - 1) * s >= low + axis.size:
                fix = ", or use ceil_mode='torch'" if self.ceil_mode == "caffe" else ""
                raise BlockValueError(
                    self.name,
                    f"a window of {k} with stride {s} and padding {low} + {high} has nothing of "
                    f"{where(dim, x)} in it: pad by less than the window{fix}",
                )
        return axes


def _rounded_up(axis: Axis, clips: bool) -> Axis:
    """The axis with a last window that hangs over; ``clips``: unless it starts beyond x."""
    room = axis.low + axis.size + axis.high - axis.window
    out = -(-room // axis.stride) + 1
    beyond = (out - 1) * axis.stride >= axis.low + axis.size
    return axis._replace(out=out - 1 if clips and beyond else out)


# ---- going forward ---------------------------------------------------------------------------


def _window_sums(x: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """The sum of each window, as TPUs have it: slices and their sums are copies there."""
    windows = (1, *(axis.window for axis in axes), 1)
    strides = (1, *(axis.stride for axis in axes), 1)
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, windows, strides, "VALID")


def _sums_by_axis(x: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """The same along one axis after the other: k + k additions instead of k k."""
    for dim, axis in enumerate(axes, 1):
        x = _sums(x, dim, axis)
    return x


def _sums(x: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """The sum of each window along one axis."""
    of = functools.partial(entry, x, dim, axis)
    return unrolled_or_loop(axis.window, lambda at, total: total + of(at), of(0))


def _counts(axes: Sequence[Axis], padding: bool, dtype: DTypeLike) -> jax.Array:
    """The number of entries of each window, shaped like y with batch and channels of size 1."""
    rank = len(axes) + 2
    each = [along(dim, rank, axis.counts(padding)) for dim, axis in enumerate(axes, 1)]
    return jnp.asarray(math.prod(each), dtype)


# ---- going back ------------------------------------------------------------------------------


def _window_sums_back(dy: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """The sum of dy over the windows that each entry is in: windows of dy with zeros between."""
    around = [
        (a.window - 1 - a.low, a.size + a.low - a.stride * (a.out - 1) - 1, a.stride - 1)
        for a in axes
    ]
    spread = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    return _window_sums(spread, [axis._replace(stride=1) for axis in axes])


def _shared_by_axis(dy: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """The same along one axis after the other."""
    for dim, axis in enumerate(axes, 1):
        dy = _shared(dy, dim, axis)
    return dy


def _shared(dy: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """The sum of dy over the windows along one axis that each entry is in."""
    dy = aligned(dy, dim, axis)
    shape = [*dy.shape[:dim], axis.blocks, axis.stride, *dy.shape[dim + 1 :]]

    def part(back: Index) -> jax.Array:
        own = cut(dy, dim, axis.overlap - 1 - back, axis.blocks)
        inside = along(dim + 1, len(shape), np.arange(axis.stride)) + back * axis.stride
        spread = jnp.broadcast_to(jnp.expand_dims(own, dim + 1), shape)
        return jnp.where(inside < axis.window, spread, 0)

    total = unrolled_or_loop(axis.overlap, lambda back, total: total + part(back), part(0))
    whole = total.reshape(*dy.shape[:dim], axis.blocks * axis.stride, *dy.shape[dim + 1 :])
    skip = axis.low % axis.stride
    return lax.slice_in_dim(whole, skip, skip + axis.size, 1, dim)
