"""Windows that slide over the axes between batch and channels: of convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fnn.block import BlockTypeError, BlockValueError, whole_number

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


def window_over(
    name: str,
    shape: tuple[int, ...],
    size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int] = 1,
) -> Window:
    """The window for an input of the shape (B, H, W, C) or (B, W, C).

    Raises:
      BlockValueError: a rank, size or padding that does not fit, in block ``name``.
    """
    if len(shape) not in (3, 4):
        raise BlockValueError(
            name,
            f"x has shape {shape}, needs (batch, height, width, channels) or (batch, width, "
            "channels)" + (": add a batch axis, x[None]" if len(shape) == 2 else ""),
        )
    lengths = shape[1:-1]
    size = sizes(name, "the window", size, len(lengths), shape)
    stride = sizes(name, "stride", stride, len(lengths), shape)
    dilation = sizes(name, "dilation", dilation, len(lengths), shape)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    pairs = _pairs(name, padding, lengths, reach, stride)
    out = []
    for n, r, s, (low, high) in zip(lengths, reach, stride, pairs, strict=True):
        if n + low + high < r:
            raise BlockValueError(
                name,
                f"the window reaches over {r} but x with its padding has only "
                f"{n} + {low} + {high} (shape {shape}): use a smaller window, more padding or "
                "larger inputs",
            )
        out.append((n + low + high - r) // s + 1)
    return Window(size, stride, dilation, pairs, tuple(out))


def sizes(
    name: str, what: str, value: int | Sequence[int], axes: int, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """One positive number for each axis."""
    if isinstance(value, (int, np.integer)):
        return (whole_number(name, what, value),) * axes
    if not isinstance(value, (tuple, list)) or len(value) != axes:
        raise BlockValueError(
            name, f"{what} is {value!r}, needs a number or {axes} of them for x of shape {shape}"
        )
    return tuple(whole_number(name, what, v) for v in value)


def _pairs(
    name: str,
    padding: Any,
    lengths: tuple[int, ...],
    reach: tuple[int, ...],
    stride: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding.upper() == "VALID":
            return ((0, 0),) * len(lengths)
        if padding.upper() == "SAME":
            pairs = []
            for n, r, s in zip(lengths, reach, stride, strict=True):
                total = max((-(-n // s) - 1) * s + r - n, 0)
                pairs.append((total // 2, total - total // 2))  # the odd one comes after
            return tuple(pairs)
        raise BlockValueError(
            name, f"padding is {padding!r}, needs 'SAME', 'VALID', a number or pairs"
        )
    if isinstance(padding, (int, np.integer)):
        number = whole_number(name, "padding", padding, least=0)
        return ((number, number),) * len(lengths)
    try:
        pairs = [(low, high) for low, high in padding]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != len(lengths):
        raise BlockTypeError(
            name,
            f"padding is {padding!r}, needs 'SAME', 'VALID', a number, or {len(lengths)} pairs "
            "(before, after)",
        )
    return tuple(
        (whole_number(name, "padding", low, 0), whole_number(name, "padding", high, 0))
        for low, high in pairs
    )
