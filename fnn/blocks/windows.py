"""Windows that slide over the axes between batch and channels: of convolutions and of pools.

Along an axis of n entries, padded with ``low`` zeros before and ``high`` after, windows of k
entries start every s entries; entries of one window are d apart. Window o reads the entries
s o + d i - low of x, i = 0 ... k - 1. It spans d (k - 1) + 1 entries, so there are
floor((low + n + high - span) / s) + 1 windows.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fnn.arguments import Count, Natural
from fnn.arrays import Spec
from fnn.block import BlockValueError
from fnn.refusals import require_floating, warn

Sizes = Count | Sequence[Count]
Padding = Literal["SAME", "VALID"] | Natural | Sequence[tuple[Natural, Natural]]
Pads = tuple[tuple[int, int], ...]
Index = int | jax.Array  # a number while tracing, or a traced one in a loop
T = TypeVar("T")


class Axis(NamedTuple):
    """How windows lie along one spatial axis: n, k, s, d, low, high, and how many windows."""

    size: int
    window: int
    stride: int
    dilation: int
    low: int
    high: int
    out: int

    @property
    def span(self) -> int:
        """The entries from the first to the last of a window, both included."""
        return self.dilation * (self.window - 1) + 1

    @property
    def overhang(self) -> int:
        """How many entries windows reach beyond the last of x: padding, or more than it."""
        return max(0, (self.out - 1) * self.stride + self.span - self.low - self.size)

    @property
    def one_for_all(self) -> bool:
        """Whether there is a single window, with all of x in it."""
        return self.out == 1 and self.low + self.size <= self.window

    @property
    def overlap(self) -> int:
        """The largest number of windows that an entry is in, without dilation."""
        return -(-self.window // self.stride)

    @property
    def blocks(self) -> int:
        """How many blocks of ``stride`` entries cover x; the first begins low % stride before."""
        return -(-(self.size + self.low % self.stride) // self.stride)

    def counts(self, padding: bool) -> np.ndarray:
        """The number of entries of each window, with those of the padding or without."""
        start, low, end = np.arange(self.out) * self.stride, self.low, self.low + self.size
        if padding:
            low, end = 0, end + self.high
        return np.minimum(start + self.window, end) - np.maximum(start, low)


class Windows:
    """A block's arguments about windows; ``over(x)`` lays the windows over x.

    ``window``: what the block calls its window ("window", "kernel"), for messages.
    """

    def __init__(
        self,
        name: str,
        size: Sizes,
        stride: Sizes,
        padding: Padding,
        dilation: Sizes = 1,
        window: str = "window",
    ) -> None:
        self.name, self.window = name, window
        self.size, self.stride, self.dilation, self.padding = size, stride, dilation, padding

    def over(self, x: Spec) -> tuple[Axis, ...]:
        """The spatial axes of x, those between its first and its last, with their windows.

        Raises:
          BlockTypeError: x is not floating.
          BlockValueError: a rank, size or padding that does not suit x.
        """
        require_image(self.name, x)
        sizes = x.shape[1:-1]
        windows = self.each(self.window, self.size, x)
        strides = self.each("stride", self.stride, x)
        dilations = self.each("dilation", self.dilation, x)
        spans = [d * (k - 1) + 1 for k, d in zip(windows, dilations, strict=True)]
        pads: Pads
        if isinstance(self.padding, str):
            pads = tuple(lax.padtype_to_pads(sizes, spans, strides, self.padding))
        elif isinstance(self.padding, int):
            pads = ((self.padding, self.padding),) * len(sizes)
        else:
            pads = self.each("padding", self.padding, x)
        axes = []
        for i, (n, k, s, d, (low, high)) in enumerate(
            zip(sizes, windows, strides, dilations, pads, strict=True)
        ):
            room = low + n + high - spans[i]
            if room < 0:
                spanning = f" (with dilation {d}, {spans[i]} long)" if d > 1 else ""
                padding = f"{low} + {high} of padding" if low or high else "no padding"
                raise BlockValueError(
                    self.name,
                    f"a {self.window} of {k}{spanning} does not fit: axis {i + 1} of x has length "
                    f"{n}, with {padding} (shape {tuple(x.shape)}): use a smaller {self.window}, "
                    "more padding, padding='SAME', or a larger x",
                )
            axes.append(Axis(n, k, s, d, low, high, room // s + 1))
        return tuple(axes)

    def each(self, what: str, value: T | Sequence[T], x: Spec) -> tuple[T, ...]:
        """What was given for all axes, or for each, as a tuple with one for each."""
        rank = len(x.shape) - 2
        if not isinstance(value, (tuple, list)):
            return (typing.cast(T, value),) * rank
        if len(value) != rank:
            raise BlockValueError(
                self.name,
                f"{what} {value} has {len(value)} entries, and x of shape {tuple(x.shape)} has "
                f"{rank} spatial {'axis' if rank == 1 else 'axes'}: give one number, or {rank}",
            )
        return tuple(value)


def where(dim: int, x: Spec) -> str:
    """Which axis of x a message is about."""
    return f"axis {dim} of x (shape {tuple(x.shape)})"


def require_image(name: str, x: Any) -> None:
    """Refuses what is no batch of sequences, images or volumes."""
    require_floating(name, "x", x)
    if len(x.shape) not in (3, 4, 5):
        raise BlockValueError(
            name,
            f"x has shape {tuple(x.shape)}, needs (batch, height, width, channels), (batch, width, "
            "channels) or (batch, depth, height, width, channels): add axes of one with x[None] or "
            "x[..., None]",
        )


def warn_if_misread(name: str, x: Spec, kernel: Sizes) -> None:
    """Warns where x is probably not what it is taken for."""
    shape, rank_is_given = tuple(x.shape), not isinstance(kernel, int)
    is_square, words = shape[-1] == shape[-2] > 4, ""
    if len(shape) > 3 and is_square and shape[1] in (1, 3):
        kind, last = ("images", "0, 2, 3") if len(shape) == 4 else ("volumes", "0, 2, 3, 4")
        pixels = " x ".join(map(str, shape[1:-1]))
        words = (
            f"{kind} of {pixels} pixels with {shape[-1]} channels; if the channels come first, "
            f"move them last: x.transpose({last}, 1)"
        )
    elif len(shape) == 3 and is_square and not rank_is_given:
        words = (
            f"sequences of {shape[1]} steps with {shape[2]} channels; images need an axis of "
            "channels: x[..., None]; for sequences give the kernel as a tuple, (3,)"
        )
    elif len(shape) == 3 and shape[0] == shape[1] > 4 and shape[2] in (1, 3) and not rank_is_given:
        words = (
            f"{shape[0]} sequences of {shape[1]} steps; one image needs an axis of examples: "
            "x[None]; for sequences give the kernel as a tuple, (3,)"
        )
    if words:
        warn(f"{name}: x of shape {shape} is taken for {words}")


# ---- slices of windows: entries of all of them at once --------------------------------------


def padded(x: jax.Array, axes: Sequence[Axis], value: float) -> jax.Array:
    """x with all that the windows reach around it."""
    around = [(axis.low, axis.overhang, 0) for axis in axes]
    if not any(low or high for low, high, _ in around):
        return x
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


MAX_UNROLLED_STEPS = 64  # more of them are a loop, which compiles faster


def unrolled_or_loop(count: int, step: Callable[[Index, T], T], start: T) -> T:
    """step(count - 1, ... step(2, step(1, start)))."""
    if count > MAX_UNROLLED_STEPS:
        return lax.fori_loop(1, count, step, start)
    return functools.reduce(lambda total, at: step(at, total), range(1, count), start)


def cut(x: jax.Array, dim: int, start: Index, size: int) -> jax.Array:
    """A part of one axis."""
    if isinstance(start, jax.core.Tracer):
        return lax.dynamic_slice_in_dim(x, start, size, dim)
    return lax.slice_in_dim(x, int(start), int(start) + size, 1, dim)


def entry(x: jax.Array, dim: int, axis: Axis, at: Index) -> jax.Array:
    """Entry ``at`` of every window along one axis."""
    part = cut(x, dim, at, (axis.out - 1) * axis.stride + 1)
    return lax.slice_in_dim(part, 0, None, axis.stride, dim)


def along(dim: int, rank: int, values: np.ndarray) -> np.ndarray:
    """A vector along one axis, of size 1 along the others."""
    return np.reshape(values, [-1 if d == dim else 1 for d in range(rank)])


def aligned(dy: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """dy along one axis, padded or cropped so that index t is window
    t - (overlap - 1) + low // stride."""
    shift = axis.low // axis.stride
    around = (axis.overlap - 1 - shift, axis.blocks + shift - axis.out, 0)
    none = (0, 0, 0)
    return lax.pad(
        dy, jnp.zeros((), dy.dtype), [around if d == dim else none for d in range(dy.ndim)]
    )
