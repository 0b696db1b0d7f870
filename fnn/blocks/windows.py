"""Windows that slide over the axes between batch and channels: of convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax import lax

from fnn.block import BlockValueError, Kind, require_floating, whole_number

Sizes = int | Sequence[int]
Padding = str | int | Sequence[Sequence[int]]


class Window(NamedTuple):
    """A window over one or two axes: for each axis its size, stride, dilation, the padding
    (before, after), and the size of what comes out."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    out: tuple[int, ...]

    def as_image(self) -> Window:
        """Over a sequence: the same over an image of height 1."""
        if len(self.size) == 2:
            return self
        return Window(
            (1, *self.size), (1, *self.stride), (1, *self.dilation), ((0, 0), *self.padding),
            (1, *self.out),
        )  # fmt: skip


# ---- arguments, looked at before x is known --------------------------------------------------


def checked_sizes(name: str, what: str, value: Any) -> int | tuple[int, ...]:
    """One positive number, or one for each axis."""
    if isinstance(value, (tuple, list)):
        return tuple(whole_number(name, what, v) for v in value)
    return whole_number(name, what, value)


def checked_padding(name: str, padding: Any) -> str | int | tuple[tuple[int, int], ...]:
    """'SAME', 'VALID', one number for all sides, or a pair (low, high) for each axis."""
    if padding in ("SAME", "VALID"):
        return str(padding)
    if isinstance(padding, (tuple, list)):
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in padding):
            raise BlockValueError(
                name,
                f"padding is {padding!r}, needs a pair (low, high) for each axis, such as "
                "((1, 1), (1, 1))",
            )
        return tuple(
            (whole_number(name, "padding", low, 0), whole_number(name, "padding", high, 0))
            for low, high in padding
        )
    if isinstance(padding, str):
        raise BlockValueError(
            name, f"padding is {padding!r}, needs 'SAME', 'VALID', a number, or pairs (low, high)"
        )
    return whole_number(name, "padding", padding, least=0)


# ---- and with x ------------------------------------------------------------------------------


def require_image(name: str, x: Any) -> None:
    """Refuses what is neither a batch of images nor of sequences."""
    require_floating(name, "x", x)
    if len(x.shape) not in (3, 4):
        raise BlockValueError(
            name,
            f"x has shape {tuple(x.shape)}, needs (batch, height, width, channels) or (batch, "
            "width, channels): add axes of one with x[None] or x[..., None]",
        )


def for_each(name: str, what: str, value: Any, x: Any) -> tuple[Any, ...]:
    """What was given for all axes, or for each, as one for each."""
    rank = len(x.shape) - 2
    if not isinstance(value, tuple):
        return (value,) * rank
    if len(value) != rank:
        raise BlockValueError(
            name,
            f"{what} {value} has {len(value)} entries, and x of shape {tuple(x.shape)} has "
            f"{rank} spatial {'axis' if rank == 1 else 'axes'}: give one number, or {rank}",
        )
    return value


def pads(
    name: str, padding: Any, x: Any, reach: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """The checked padding as a pair for each axis; of SAME the larger half comes after."""
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(x.shape[1:-1], reach, stride, padding))
    if isinstance(padding, int):
        return ((padding, padding),) * len(reach)
    return for_each(name, "padding", padding, x)


def window_over(name: str, x: Any, size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    """The window for x of shape (B, H, W, C) or (B, W, C); arguments as checked above.

    Raises:
      BlockValueError: a rank, size or padding that does not fit x, in block ``name``.
    """
    require_image(name, x)
    size, stride, dilation = (
        for_each(name, what, value, x)
        for what, value in (("the window", size), ("stride", stride), ("dilation", dilation))
    )
    reach = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    around = pads(name, padding, x, reach, stride)
    out = []
    for n, r, s, (low, high) in zip(x.shape[1:-1], reach, stride, around, strict=True):
        if n + low + high < r:
            raise BlockValueError(
                name,
                f"the window reaches over {r} but x with its padding has only "
                f"{n} + {low} + {high} (shape {tuple(x.shape)}): use a smaller window, more "
                "padding or larger inputs",
            )
        out.append((n + low + high - r) // s + 1)
    return Window(size, stride, dilation, around, tuple(out))


# ---- of pools ---

CeilMode = Literal["caffe", "torch"] | None


class Axis(NamedTuple):
    """One spatial axis: n entries, the window and stride, the padding, the number of windows."""

    size: int
    window: int
    stride: int
    low: int
    high: int
    out: int

    @property
    def overhang(self) -> int:
        """How many entries after the last of x the windows reach: padding, or beyond it."""
        return max(0, (self.out - 1) * self.stride + self.window - self.low - self.size)

    @property
    def one_for_all(self) -> bool:
        """Whether there is one window, with all of x in it."""
        return self.out == 1 and self.low + self.size <= self.window

    @property
    def reach(self) -> int:
        """In how many windows an entry can be."""
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


class Slide:
    """The arguments of a pool, looked at once they are known and, with x, once x is."""

    def __init__(
        self, name: str, window: Sizes, stride: Sizes | None, padding: Padding, ceil_mode: CeilMode
    ) -> None:
        self.name = name
        self.window = checked_sizes(name, "window", window)
        self.stride = self.window if stride is None else checked_sizes(name, "stride", stride)
        self.padding = checked_padding(name, padding)
        if ceil_mode not in (None, "caffe", "torch"):
            raise BlockValueError(
                name, f"ceil_mode is {ceil_mode!r}, needs None, 'caffe' or 'torch'"
            )
        self.ceil_mode = ceil_mode

    def kind(self, *more: Any) -> Kind:
        """The kind of the pool that has these arguments, and ``more``."""
        return Kind(self.name, (self.window, self.stride, self.padding, self.ceil_mode, *more))

    def over(self, x: Any) -> list[Axis]:
        """How the windows lie over x."""
        require_image(self.name, x)
        windows = for_each(self.name, "window", self.window, x)
        strides = for_each(self.name, "stride", self.stride, x)
        around = pads(self.name, self.padding, x, windows, strides)
        padded = any(low or high for low, high in around)
        return [
            self._axis(x, 1 + i, *each, padded)
            for i, each in enumerate(zip(x.shape[1:-1], windows, strides, around, strict=True))
        ]

    def _axis(
        self, x: Any, dim: int, size: int, k: int, s: int, pads: tuple[int, int], padded: bool
    ) -> Axis:
        low, high = pads
        room = size + low + high - k
        where = f"axis {dim} of x (shape {tuple(x.shape)})"
        if size == 0 or room < 0:
            raise BlockValueError(
                self.name,
                f"window {k} is larger than {where}, {size} and {low} + {high} of padding: use a "
                "smaller window, more padding, padding='SAME', or a larger x",
            )
        out = (room if self.ceil_mode is None else room + s - 1) // s + 1
        clips = self.ceil_mode == "torch" or (self.ceil_mode == "caffe" and padded)
        if clips and (out - 1) * s >= low + size:
            out -= 1
        if low >= k or (out - 1) * s >= low + size:
            fix = ", or use ceil_mode='torch'" if self.ceil_mode == "caffe" else ""
            raise BlockValueError(
                self.name,
                f"a window of {k} with stride {s} and padding {low} + {high} has nothing of "
                f"{where} in it: pad by less than the window{fix}",
            )
        return Axis(size, k, s, low, high, out)
