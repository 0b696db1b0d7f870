"""Names, arrays and sizes in a few safe words."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

import jax


def clean(text: str, longest: int = 10_000) -> str:
    """A name as it can be shown: nothing invisible, nothing that turns the text around, short.

    What is written from right to left stays among its own; text that was cleaned stays as it is.

    >>> clean("a\\u202eb\\x00" + "c" * 90, 8)
    'a�b�ccc…'
    """
    isolates = _well_nested(text)
    shown = "".join(
        "�" if unicodedata.category(c)[0] == "C" and not (isolates and c in "\u2068\u2069") else c
        for c in text
    )
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
        shown += "\u2069" * (shown.count("\u2068") - shown.count("\u2069"))
    depth, turns = 0, False
    for c in shown:
        depth += (c == "\u2068") - (c == "\u2069")
        turns |= not depth and unicodedata.bidirectional(c) in ("R", "AL")
    if turns:
        return f"\u2068{shown}\u2069"  # first strong isolate, and its end
    return shown if shown.strip() else "␣" * len(shown)


def _well_nested(text: str) -> bool:
    """Whether every isolate ends that begins, as in what has been cleaned before."""
    depth = 0
    for c in text:
        depth += (c == "\u2068") - (c == "\u2069")
        if depth < 0:
            return False
    return not depth


def kind_of(array: Any) -> str:
    """Dtype and shape of an array, such as float32[8,16]."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays in a tree; the same array twice counts once."""
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")}
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays.values())


def readable_bytes(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:,.1f} {unit}"


def readable_count(count: int) -> str:
    """A number to three digits, in thousands (K), millions (M) and so on."""
    size = float(count)
    for unit in ("", "K", "M", "G", "T"):
        if size < 1000 or unit == "T":
            break
        size /= 1000
    return str(count) if not unit else f"{size:.{max(0, 2 - int(math.log10(size)))}f} {unit}"
