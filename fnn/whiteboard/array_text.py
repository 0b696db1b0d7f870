# ruff: noqa: RUF001 - numbers are set with a true minus
"""An array as text: all numbers if there are few, else shape, mean, spread, heat map."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EXACT = 9  # numbers, up to which all are shown and whole local derivatives recorded
COLUMN = 5  # numbers, up to which a vector is a column
CELLS = 24  # rows and columns of a heat map, at most


def number(value: float, digits: int = 4) -> str:
    """A number as on a board.

    >>> number(-12.0), number(0.1 + 0.2), number(float("nan")), number(-float("inf"))
    ('−12', '0.3', 'NaN', '−∞')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value + 0.0:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else text).replace("-", "−")


def relative(error: float) -> str:
    """A relative error to one digit."""
    return f"{error:.0e}" if 0 < error < math.inf else number(error)


def exactly(value: Any) -> str:
    """The fewest digits that identify the number in its dtype."""
    return str(value).replace("-", "−").replace("nan", "NaN").replace("inf", "∞")


def shape_of(a: Any) -> str:
    """Such as 3×4; of a scalar ''."""
    return "×".join(map(str, a.shape))


class Tensor(NamedTuple):
    """An array as text.

    ``numbers``: all of them, in rows, where there are nine at most. ``summary``: mean and standard
    deviation; the range of integers. ``magnitude``: the Euclidean norm. ``bad``: how many are not
    finite, '' for none.
    """

    shape: str
    dtype: str
    numbers: tuple[tuple[str, ...], ...]
    summary: str
    magnitude: str
    bad: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The numbers in rows, or their summary."""
        if self.numbers:
            return tuple("  ".join(row) for row in self.numbers)
        return (self.summary,)


def arrays(value: Any) -> list[Any]:
    """The arrays in a value, random keys left out."""
    leaves = jax.tree.leaves(value)
    return [v for v in leaves if not jnp.issubdtype(v.dtype, jax.dtypes.prng_key)]


def wide(array: Any) -> np.ndarray:
    """As float64; integers stay integers."""
    a = np.asarray(array)
    return a if a.dtype.kind in "iub" else a.astype(np.float64)


def tensor(array: Any) -> Tensor:
    """The array as text.

    >>> import numpy as np
    >>> tensor(np.float32(-0.1)).lines
    ('−0.1',)
    >>> tensor(np.arange(12.0).reshape(3, 4))[0:5:3]
    ('3×4', '5.5 ± 3.452')
    """
    a = wide(array)
    shape, dtype = shape_of(a), str(array.dtype)
    if not a.size:
        return Tensor(shape, dtype, (), "empty", "0", "")
    good = a[np.isfinite(a)].astype(np.float64)
    scale = float(np.max(np.abs(good), initial=0.0)) or 1.0  # so that no square overflows
    part = good / scale
    if a.dtype.kind in "iub":
        summary = f"{a.min()} to {a.max()}"
    else:
        mean, spread = (part.mean(), part.std()) if good.size else (math.nan, math.nan)
        if abs(mean) <= jnp.finfo(array.dtype).eps:  # relative to the largest entry: rounding
            mean = 0.0
        summary = f"{number(scale * mean)} ± {number(scale * spread)}"
    nan, infinite = int(np.isnan(a).sum()), int(np.isinf(a).sum())
    magnitude = scale * math.sqrt(float(np.sum(np.square(part))))
    magnitude = math.nan if nan else math.inf if infinite else magnitude
    bad = " and ".join(f"{n} {what}" for n, what in ((nan, "NaN"), (infinite, "∞")) if n)
    return Tensor(shape, dtype, _rows(a), summary, number(magnitude), bad)


def _columns(a: np.ndarray) -> int:
    """In how many columns few numbers are written: a matrix as it is, a vector in one or more."""
    if a.size == max(a.shape, default=1):
        return 1 if a.size <= COLUMN else -(-a.size // 3)
    rows = -(-a.size // 4) if a.size < EXACT else 3
    return a.shape[-1] if 1 < a.shape[-1] < 5 else -(-a.size // rows)


def _rows(a: np.ndarray) -> tuple[tuple[str, ...], ...]:
    if a.size > EXACT:
        return ()
    each = [number(float(v)) for v in a.ravel()]
    columns = _columns(a)
    width = max(map(len, each)) if a.size > columns else 0
    each = [text.rjust(width) for text in each]
    return tuple(tuple(each[i : i + columns]) for i in range(0, a.size, columns))


# ---- heat maps -------------------------------------------------------------------------------


class Heat(NamedTuple):
    """A picture of numbers: a PNG as a data address, and how many cells it has."""

    address: str
    rows: int
    columns: int


def heat(array: Any, gradient: bool = False) -> Heat | None:
    """White is zero; positive green or, of a gradient, red; negative brown or blue.

    Equal magnitudes have equal lightness; only hue tells the sign. What is not finite is magenta.
    None for arrays of nine numbers or fewer.
    """
    a = wide(array).astype(np.float64)
    if a.size <= EXACT:
        return None
    cells = _small(_flat(a))
    limit = float(np.max(np.abs(cells), where=np.isfinite(cells), initial=0.0)) or 1.0
    bad = ~np.isfinite(cells)
    level = np.clip(np.where(bad, 0, cells) / limit, -1, 1)[..., None]
    above, below = ((198, 40, 40), (33, 102, 172)) if gradient else ((27, 127, 59), (140, 81, 10))
    end = np.where(level > 0, np.array(above), np.array(below))
    colours = 255 + (end - 255) * np.sqrt(np.abs(level))  # a square root: small numbers show
    colours = np.where(bad[..., None], (255, 0, 255), colours).round().astype(np.uint8)
    encoded = base64.b64encode(_png(colours)).decode()
    return Heat(f"data:image/png;base64,{encoded}", *cells.shape)


def _flat(a: np.ndarray) -> np.ndarray:
    """As a matrix: the first of several images, the mean of its channels; a long row in lines."""
    if a.ndim == 4:
        a = a[0] if a.shape[1] * a.shape[2] > 1 else a.reshape(a.shape[0], -1)
    if a.ndim == 3:
        a = a.mean(-1) if a.shape[0] * a.shape[1] > 1 else a.reshape(1, -1)
    a = a.reshape(-1, a.shape[-1])
    if 1 in a.shape:
        side = math.isqrt(a.size)
        whole = side * side == a.size
        columns = side if whole and a.size <= 32**2 else min(a.size, 2 * side)
        a = np.append(a.ravel(), np.zeros(-a.size % columns)).reshape(-1, columns)
    return a


def _small(a: np.ndarray) -> np.ndarray:
    """Means over rectangles, so that there are at most CELLS rows and columns."""
    for axis in (0, 1):
        if a.shape[axis] > CELLS:
            parts = np.split(a, np.arange(1, CELLS) * a.shape[axis] // CELLS, axis)
            a = np.stack([part.mean(axis) for part in parts], axis)
    return a


def _png(colours: np.ndarray) -> bytes:
    """A PNG of (rows, columns, 3) bytes."""
    rows, columns, _ = colours.shape
    lines = b"".join(b"\0" + row.tobytes() for row in colours)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )  # fmt: skip
