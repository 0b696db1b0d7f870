"""Pieces of the picture: text that is measured before it is set, numbers on wires, heat maps."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from fnn.introspect.text import clean
from fnn.whiteboard.array_text import Heat, arrays, heat, tensor
from fnn.whiteboard.layout import n

VALUE, GRADIENT = "▸", "◂"  # what goes forward and what comes back, also without colour
LINE = 14.0  # height of a line of text
HEAT_CELL, HEAT_WIDE, HEAT_HIGH = 7.0, 64.0, 42.0


class Piece(NamedTuple):
    """Something drawn: its size, and its SVG with the upper left corner at 0, 0."""

    width: float
    height: float
    svg: str


class Stage(NamedTuple):
    """What is known so far: the ids of the nodes that have gone forward, and those that have gone
    back ('out' among them when backward has begun)."""

    forward: frozenset[str]
    backward: frozenset[str]


def width_of(text: str, size: float = 12.0) -> float:
    """How wide the text is in a monospaced font, with some air: no font is much wider."""
    cells = 0.0
    for c in text:
        if not unicodedata.combining(c):
            cells += 1.7 if unicodedata.east_asian_width(c) in "WF" else 1.0
    return cells * size * 0.615


def words(x: float, y: float, text: str, css: str = "", size: float = 12.0) -> str:
    """One line of text from ``x``; ``y`` is its base line. It is escaped."""
    style = f' class="{css}"' if css else ""
    big = "" if size == 12 else f' font-size="{size:g}"'
    return f'<text x="{n(x)}" y="{n(y)}"{style}{big}>{escape(text)}</text>'


def when(
    stage: Stage | None, attribute: str, needs: Iterable[str], known: str, unknown: str
) -> str:
    """What is shown once all that it needs has run, and what before that.

    For a page both are written, and the page's script chooses.
    """
    needs = sorted(set(needs))
    if stage is None:
        keys = escape(" ".join(needs))
        return (
            f'<g data-{attribute}="{keys}"><g class="k">{known}</g><g class="u">{unknown}</g></g>'
        )
    done = stage.forward if attribute == "f" else stage.backward
    return known if done.issuperset(needs) else unknown


def lines(rows: Sequence[tuple[str, str]], size: float = 12.0) -> Piece:
    """Lines of (text, class), one below the other."""
    width = max((width_of(text, size) for text, _ in rows), default=0.0)
    height = LINE * size / 12
    svg = "".join(
        words(0, height * (i + 0.78), text, css, size) for i, (text, css) in enumerate(rows)
    )
    return Piece(width, height * len(rows), svg)


def image(told: Heat, width: float = HEAT_WIDE, height: float = HEAT_HIGH) -> Piece:
    """A heat map as pixels."""
    cell = min(HEAT_CELL, width / told.columns, height / told.rows)
    w, h = cell * told.columns, cell * told.rows
    svg = (
        f'<image width="{n(w)}" height="{n(h)}" preserveAspectRatio="none" href="{told.address}" '
        f'style="image-rendering:pixelated"/><rect width="{n(w)}" height="{n(h)}" class="edge"/>'
    )
    return Piece(w, h, svg)


def column(pieces: Sequence[Piece], gap: float = 3.0) -> Piece:
    """Pieces one below the other."""
    y, parts = 0.0, []
    for piece in pieces:
        parts.append(f'<g transform="translate(0,{n(y)})">{piece.svg}</g>')
        y += piece.height + gap
    return Piece(max((p.width for p in pieces), default=0.0), max(y - gap, 0.0), "".join(parts))


def shown(value: Any, gradient: bool = False, css: str = "", note: str = "") -> Piece:
    """A value or a gradient: its numbers, or shape, heat map, mean and spread or magnitude."""
    sign = GRADIENT if gradient else VALUE
    css = css or ("d" if gradient else "v")
    all_of = arrays(value)
    if not all_of:
        return lines([(f"{sign} none", "quiet")])
    if len(all_of) > 1:
        told = [tensor(a) for a in all_of[:3]]
        rows = [
            (f"{sign} {len(all_of)} arrays", css),
            *((t.shape or "one number", "quiet") for t in told),
        ]
        return lines(rows)
    (array,) = all_of
    told_ = tensor(array)
    bad = [(told_.bad, "bad")] if told_.bad else []
    if told_.numbers:
        rows = [(f"{sign if i == 0 else ' '} {line}", css) for i, line in enumerate(told_.lines)]
        if note:
            rows.append((note, "sum"))
        return lines([*rows, *bad])
    rows = [(told_.shape, "quiet"), (f"{sign} {told_.summary}", css)]
    if gradient:
        rows.append((f"  |g| {told_.magnitude}", css))
    if note:
        rows.append((note, "sum"))
    picture = heat(array, gradient)
    return column([*([image(picture)] if picture else []), lines([*rows, *bad])])


def name(text: str, longest: int = 22) -> str:
    """A name, shortened where it has to be."""
    return clean(text, longest) or "block"
