"""Pieces of the picture: text that is measured before it is set, numbers on wires, heat maps."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from fnn.introspect.text import clean
from fnn.whiteboard.array_text import Heat, Tensor, arrays, heat, shape_of, tensor
from fnn.whiteboard.layout import n

VALUE, GRADIENT = "▸", "◂"  # forward and backward, for readers without colour too
LINE = 14.0  # height of a line of text
HEAT_CELL, HEAT_WIDE, HEAT_HIGH = 7.0, 64.0, 42.0
DOT = 3.5  # radius, where a wire forks


class Piece(NamedTuple):
    """Something drawn: its size, and its SVG with the upper left corner at 0, 0."""

    width: float
    height: float
    svg: str


# ---- text ------------------------------------------------------------------------------------


def name(text: str, longest: int = 22) -> str:
    """A name, shortened where it has to be."""
    return clean(text, longest) or "block"


def width_of(text: str, size: float = 12.0) -> float:
    """How wide the text is in a monospaced font, with some air: no font is much wider."""
    cells = 0.0
    for c in text:
        if not unicodedata.combining(c):
            cells += 1.7 if unicodedata.east_asian_width(c) in "WF" else 1.0
    return cells * size * 0.615


def words(x: float, y: float, text: str, css: str = "", size: float = 12.0) -> str:
    """One line of text from ``x``, escaped; ``y`` is its base line."""
    style = f' class="{css}"' if css else ""
    big = "" if size == 12 else f' font-size="{size:g}"'
    return f'<text x="{n(x)}" y="{n(y)}"{style}{big}>{escape(text)}</text>'


def lines(rows: Sequence[tuple[str, str]], size: float = 12.0) -> Piece:
    """Lines of (text, class), one below the other."""
    width = max((width_of(text, size) for text, _ in rows), default=0.0)
    height = LINE * size / 12
    svg = "".join(
        words(0, height * (i + 0.78), text, css, size) for i, (text, css) in enumerate(rows)
    )
    return Piece(width, height * len(rows), svg)


def after(sign: str, texts: Sequence[str], css: str) -> list[tuple[str, str]]:
    """Lines for :func:`lines`: the first after a sign, the others level with it."""
    return [(f"{'  ' if i else sign}{text}", css) for i, text in enumerate(texts)]


# ---- shapes ----------------------------------------------------------------------------------


def moved(x: float, y: float, svg: str, css: str = "") -> str:
    """A group with its origin at (x, y)."""
    style = f' class="{css}"' if css else ""
    return f'<g{style} transform="translate({n(x)},{n(y)})">{svg}</g>'


def column(pieces: Sequence[Piece], gap: float = 3.0) -> Piece:
    """Pieces one below the other."""
    y, parts = 0.0, []
    for piece in pieces:
        parts.append(moved(0, y, piece.svg))
        y += piece.height + gap
    return Piece(max((p.width for p in pieces), default=0.0), max(y - gap, 0.0), "".join(parts))


def wire(path: str, css: str = "wire") -> str:
    """A line along a path in SVG's notation."""
    return f'<path class="{css}" d="{path}"/>'


def dot(x: float) -> str:
    """Where a wire forks."""
    return f'<circle cx="{n(x)}" r="{DOT}" class="dot"/>'


def arrow_head(x: float, y: float, turn: float = 0.0) -> str:
    """The head of an arrow that ends at (x, y), turned by degrees."""
    around = f" rotate({n(turn)})" if turn else ""
    return (
        f'<path class="head" transform="translate({n(x)},{n(y)}){around}" '
        'd="M-7,-3.5L0,0L-7,3.5Z"/>'
    )


def rectangle(x: float, y: float, width: float, height: float, css: str, round: float) -> str:
    """A rectangle with round corners."""
    return (
        f'<rect x="{n(x)}" y="{n(y)}" width="{n(width)}" height="{n(height)}" '
        f'rx="{round:g}" class="{css}"/>'
    )


# ---- values ----------------------------------------------------------------------------------


CELL = 8  # letters that a number takes where it may change: −0.00123


def shown(
    value: Any, gradient: bool = False, css: str = "", note: str = "",
    reference: str = "", fork: Sequence[str] = (),
) -> Piece:  # fmt: skip
    """A value or a gradient: its numbers, or shape, heat map, mean and spread or magnitude.

    ``reference``: where a page finds the value anew, if it may change; room is kept for it.
    ``fork``: the references of the summands that the note has.
    """
    piece = _shown(value, gradient, css, note, bool(reference))
    if not reference:
        return piece
    terms = f' data-fork="{escape(json.dumps(fork))}"' if fork else ""
    room = math.floor(piece.width / width_of("0"))
    start = f'<g data-n="{escape(reference)}" data-room="{room}"{terms}>'
    return piece._replace(svg=f"{start}{piece.svg}</g>")


def _shown(value: Any, gradient: bool, css: str, note: str, roomy: bool) -> Piece:
    sign, css = (GRADIENT, css or "d") if gradient else (VALUE, css or "v")
    several = arrays(value)
    if not several:
        return lines([(f"{sign} none", "quiet")])
    if len(several) > 1:
        shapes = [(shape_of(a) or "one number", "quiet") for a in several[:3]]
        return lines([(f"{sign} {len(several)} arrays", css), *shapes])
    (array,) = several
    summary = tensor(array)
    picture = heat(array, gradient)
    if summary.numbers:
        rows = after(f"{sign} ", summary.lines, css)
        room = 2 + CELL * len(summary.numbers[0]) + 2 * (len(summary.numbers[0]) - 1)
    else:
        room = 2 + 2 * CELL + 3
        rows = [(summary.shape, "quiet"), (f"{sign} {summary.summary}", css)]
        rows += [(f"  |g| {summary.magnitude}", css)] if gradient else []
    rows += [(note, "sum")] if note else []
    rows += [(summary.bad, "bad")] if summary.bad else []
    piece = lines(rows)
    piece = piece._replace(width=max(piece.width, width_of("0" * room))) if roomy else piece
    if not picture:
        return piece
    piece = column([image(picture), piece])
    return piece._replace(svg=f"<g><title>{_meaning(summary, gradient)}</title>{piece.svg}</g>")


def _meaning(summary: Tensor, gradient: bool) -> str:
    """What a tensor's picture and numbers say."""
    what, above, below = ("gradient", "red", "blue") if gradient else ("value", "green", "brown")
    length = "; |g|: its length, the root of the sum of squares" if gradient else ""
    return (
        f"{what} of {summary.shape} {summary.dtype} numbers: mean ± standard deviation{length}; "
        f"{above} is positive, {below} negative, white zero"
    )


def image(picture: Heat) -> Piece:
    """A heat map as pixels."""
    cell = min(HEAT_CELL, HEAT_WIDE / picture.columns, HEAT_HIGH / picture.rows)
    w, h = cell * picture.columns, cell * picture.rows
    svg = (
        f'<image width="{n(w)}" height="{n(h)}" preserveAspectRatio="none" '
        f'href="{picture.address}" style="image-rendering:pixelated"/>'
        f'<rect width="{n(w)}" height="{n(h)}" class="edge"/>'
    )
    return Piece(w, h, svg)


# ---- steps -----------------------------------------------------------------------------------

# A picture is drawn once, with both readings of all that depends on the step, between control
# characters, which no text in it has (see clean).
_EITHER = re.compile("\x01(.)([^\x02]*)\x02([^\x03]*)\x03([^\x04]*)\x04")


def when(direction: str, needs: Iterable[str], known: str, unknown: str = "") -> str:
    """``known`` once the nodes with the ids ``needs`` have run, before that ``unknown``.

    ``direction``: "f" forward, "b" backward ("out" among the ids: backward has begun), "n": the
    node is the last that ran.
    """
    return f"\x01{direction}{' '.join(sorted(set(needs)))}\x02{known}\x03{unknown}\x04"


def at_step(svg: str, ran: dict[str, frozenset[str]]) -> str:
    """The picture when the nodes ``ran[direction]`` have run."""

    def choose(either: re.Match[str]) -> str:
        direction, needs, known, unknown = either.groups()
        return known if ran[direction].issuperset(needs.split()) else unknown

    return _EITHER.sub(choose, svg)


def at_every_step(svg: str) -> str:
    """The picture with both readings, among which a page's script chooses."""

    def both(either: re.Match[str]) -> str:
        direction, needs, known, unknown = either.groups()
        if direction == "n":
            return unknown
        readings = f'<g class="k">{known}</g><g class="u">{unknown}</g>'
        return f'<g data-{direction}="{needs}">{readings}</g>'

    return _EITHER.sub(both, svg)
