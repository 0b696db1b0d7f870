"""Names, arrays and sizes as short, safe text."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import jax


def clean(text: str, longest: int = 10_000) -> str:
    """A name that is safe to print: nothing invisible, nothing that reverses the text, not long.

    Right-to-left text is isolated from what stands around it. Cleaning twice changes nothing.

    >>> clean("a\\u202eb\\x00" + "c" * 90, 8)
    'a�b�ccc…'
    """
    depths = _depths(text)
    isolates = min(depths) == depths[-1] == 0  # all that begin also end, as in cleaned text
    printed = "".join(
        "�" if unicodedata.category(c)[0] == "C" and not (isolates and c in "\u2068\u2069") else c
        for c in text
    )
    if len(printed) > longest:
        printed = printed[: longest - 1] + "…"
        printed += "\u2069" * (printed.count("\u2068") - printed.count("\u2069"))
    outside = (c for c, depth in zip(printed, _depths(printed)[1:], strict=True) if not depth)
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in outside):
        return f"\u2068{printed}\u2069"  # first strong isolate, and its end
    return printed if printed.strip() else "␣" * len(printed)


def _depths(text: str) -> list[int]:
    """How many isolates are open at the start and after each character."""
    return list(itertools.accumulate(((c == "\u2068") - (c == "\u2069") for c in text), initial=0))


def kind_of(array: Any) -> str:
    """Dtype and shape of an array, as in float32[8,16]."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def count_of(tree: Any) -> int:
    """How many numbers the arrays in a tree have."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays in a tree; the same array twice counts once."""
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")}
    return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays.values())


def readable_bytes(count: int) -> str:
    """A number of bytes with a unit: 98.0 KB."""
    size, unit = _scaled(count, 1024, ("B", "KB", "MB", "GB"))
    return f"{count} B" if unit == "B" else f"{size:,.1f} {unit}"


def readable_count(count: int) -> str:
    """A number to three digits: 6.43 M for millions."""
    size, unit = _scaled(count, 1000, ("", "K", "M", "G", "T"))
    return str(count) if not unit else f"{size:.{max(0, 2 - int(math.log10(size)))}f} {unit}"


def _scaled(count: int, step: int, units: Sequence[str]) -> tuple[float, str]:
    """A number in the largest unit that leaves at least 1 before the point."""
    size = float(count)
    for unit in units:
        if size < step or unit == units[-1]:
            break
        size /= step
    return size, unit
