"""How the windows of a pool lie on an image.

One spatial axis of n entries, window k, stride s, ``low`` and ``high`` entries of padding: window o
starts at o s - low and there are floor((n + low + high - k) / s) + 1. With ``ceil_mode`` the number
is rounded up, so that the last window may reach beyond the padding, but it has to start in the
image or the padding below it: "torch" drops a last window that does not (pooling_output_shape in
PyTorch's Pool.h), and so does "caffe" if there is padding on any axis (pooling_layer.cpp); without
padding Caffe keeps it, and it is refused here, since it holds nothing.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from fnn.block import BlockValueError
from fnn.window import (
    Padding,
    Sizes,
    checked_padding,
    checked_sizes,
    for_each,
    pads,
    require_image,
)

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
