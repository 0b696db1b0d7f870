# ruff: noqa: RUF001 - formulas and marks are as on a board
"""One thing in the picture: an input, a gate, a block, a network (folded and unfolded), an end.

An item's origin is the left end of its axis: wires enter at its ports, on the left edge, and the
wire of its value leaves on the right, with the value above and the gradient below.
"""

from __future__ import annotations

import math
import re
from html import escape
from typing import Any, NamedTuple

import jax

from fnn.introspect.text import clean, readable_bytes
from fnn.whiteboard.array_text import tensor
from fnn.whiteboard.board import Board
from fnn.whiteboard.chain_rule import fork_sum, leaves_of, products, relative, value_of
from fnn.whiteboard.formulas import LOSSES, formula_of, note_of
from fnn.whiteboard.layout import Size
from fnn.whiteboard.primitives import (
    GRADIENT,
    Piece,
    Stage,
    column,
    lines,
    n,
    name,
    shown,
    when,
    width_of,
    words,
)
from fnn.whiteboard.recorded import Trace

RADIUS, PAD, TITLE, STEM = 19.0, 16.0, 24.0, 16.0
LONGEST = 52  # letters of a line below a block


class Item(NamedTuple):
    """``size`` and ``body`` as it is when folded; ``slots``: which input enters at which port;
    ``ports``: what is drawn there, which moves when a network unfolds; ``stem``: how far in."""

    id: str
    size: Size
    body: str
    slots: tuple[int, ...] = ()
    ports: tuple[str, ...] = ()
    stem: float = 0.0
    css: str = ""
    label: str = ""


def input_item(b: Board, network: Trace, wire: str, stage: Stage | None, inner: bool) -> Item:
    """An input: its name and its wire. Inside a network a dot, for the wire outside says it all."""
    if inner:
        many = len(network.inputs) > 1
        text = name(wire, 12) if many else ""
        label = words(4, -6, text, "name", 11) if many else ""
        wide = 8 + width_of(text, 11)
        body = f'<path class="wire" d="M{n(-PAD)},0H{n(wide)}"/>{label}'
        if any(fork.name == wire for fork in network.forks):
            body += f'<circle cx="{n(wide)}" r="3.5" class="dot"/>'
        return Item("", Size(wide, 18 if many else 6, 6), body)
    value, gradient = network.values[wire]
    text = name(wire)
    at = width_of(text, 15) + 6
    stem = _stem(b, network, wire, value, gradient, [], stage)
    body = words(0, 5, text, "name", 15) + f'<g transform="translate({n(at)},0)">{stem.svg}</g>'
    return Item("", Size(at + stem.width, max(stem.up, 12), max(stem.down, 12)), body)


def end_item(b: Board, network: Trace, wires: tuple[str, ...], inner: bool) -> Item:
    """Where a network's output leaves it."""
    if inner:
        spread = [6.0 * (2 * i - len(wires) + 1) for i in range(len(wires))]
        paths = "".join(f'<path class="wire" d="M0,{n(y)}L8,0"/>' for y in spread)
        return Item("", Size(8, 8 - spread[0], 8 + spread[-1], tuple(spread)), paths)
    text = name(b.called(network, wires[0]))
    wide = width_of(text, 15)
    return Item("", Size(wide + 6, 12, 12), words(6, 5, text, "name", 15))


class _Stem(NamedTuple):
    width: float
    up: float
    down: float
    svg: str


def _stem(
    b: Board, network: Trace, wire: str, value: Any, gradient: Any, after: list[str],
    stage: Stage | None,
) -> _Stem:  # fmt: skip
    """The wire of a value: the value above it, its gradient below, a dot where it forks."""
    forks = any(fork.name == wire for fork in network.forks)
    note = ""
    if total := fork_sum(b, network, wire, whole=False):
        note = f"  = {total}" if len(total) < 28 and "from" not in total else "  (a sum)"
    above, below = b.once(shown, value), b.once(shown, gradient, True, "", note)
    width = max(above.width, below.width, 24.0) + 14
    up, down = above.height + 6, below.height + 6
    known = f'<g transform="translate(7,{n(-up)})">{above.svg}</g>'
    svg = f'<path class="wire" d="M0,0H{n(width)}"/>'
    svg += when(stage, "f", after, known, words(7, -8, "▸ ?", "v unknown"))
    known = f'<g transform="translate(7,6)">{below.svg}</g>'
    svg += when(stage, "b", b.backward_of(network, wire), known, words(7, 16, "◂ ?", "d unknown"))
    if forks:
        svg += f'<circle cx="{n(width)}" r="3.5" class="dot"/>'
    return _Stem(width, up, down, svg)


def node_item(
    b: Board, network: Trace, node: Trace, stage: Stage | None, slots: tuple[int, ...]
) -> Item:
    """A gate, a block, or a network in one box."""
    id = str(b.ids[node.path])
    formula = formula_of(node.block)
    gate = formula is not None and bool(formula.symbol) and not node.nodes
    ports, ys, stem = _ports(b, network, node, id, stage, slots)
    if gate:
        assert formula is not None
        shape, wide, up, down = _gate(b, node, formula.symbol, ys)
    else:
        shape, wide, up, down = _box(b, node, id, stage, ys)
    out = _stem(b, network, node.name, node.y, node.dy, [id], stage)
    captions = _captions(b, node, id, stage, gate)
    low = max(down, out.down, (ys[-1] + 20) if ys else 0) + 5
    width = max(stem + wide + out.width, stem + captions.width + 15)
    body = (
        f'<g transform="translate({n(stem)},0)">{shape}</g>'
        f'<g transform="translate({n(stem + wide)},0)">{out.svg}'
        f'<path class="wire" d="M{n(out.width)},0H{n(width - stem - wide)}"/></g>'
        f'<g transform="translate({n(stem + (0 if gate else 9))},{n(low)})">{captions.svg}</g>'
    )
    high = max(up, out.up, 20 - ys[0] if ys else 0)
    size = Size(width, high, low + captions.height, ys or (0.0,))
    css = "gate" if gate else "network" if node.nodes else "block"
    said = f"{clean(node.path, 80)}: {value_of(b, node)}"
    return Item(id, size, body, slots, ports, stem, css, said)


def _ports(
    b: Board,
    network: Trace,
    node: Trace,
    id: str,
    stage: Stage | None,
    slots: tuple[int, ...],
) -> tuple[tuple[str, ...], tuple[float, ...], float]:
    """Where wires enter. One that comes from a fork carries its own part of the gradient."""
    forks = {fork.name for fork in network.forks}
    dxs = (node.dx,) if len(node.reads) == 1 else node.dx or (None,) * len(node.reads)
    parts = [
        b.once(shown, dxs[i], True, "d part") if node.reads[i] in forks else None for i in slots
    ]
    stem = max([STEM, *(p.width + 12 for p in parts if p)])
    apart = max([22.0, *(p.height + 12 for p in parts if p)])
    count = len(parts)
    ys = tuple(apart * (i - (count - 1) / 2) for i in range(count))
    drawn = []
    for part in parts:
        svg = f'<path class="wire" d="M0,0H{n(stem)}"/>'
        if part:
            known = f'<g transform="translate(5,5)">{part.svg}</g>'
            svg += when(stage, "b", [id], known, words(5, 15, "◂ ?", "d part unknown"))
        drawn.append(svg)
    return tuple(drawn), ys, stem


def _gate(
    b: Board, node: Trace, symbol: str, ys: tuple[float, ...]
) -> tuple[str, float, float, float]:
    """A circle with its sign; the name above it."""
    text = name(node.name)
    wide = max(2 * RADIUS + 18, width_of(text) + 8)
    x = wide / 2
    wires = ""
    for y in ys:
        length = math.hypot(x, y)
        ex, ey = x - (RADIUS + 1) * x / length, y - (RADIUS + 1) * y / length
        turn = math.degrees(math.atan2(-y, x))
        wires += (
            f'<path class="wire" d="M0,{n(y)}L{n(ex)},{n(ey)}"/>'
            f'<path class="head" transform="translate({n(ex)},{n(ey)}) rotate({n(turn)})" '
            'd="M-7,-3.5L0,0L-7,3.5Z"/>'
        )
    size = {1: 20, 2: 16, 3: 13}.get(len(symbol), 10)
    circle = (
        f'<circle cx="{n(x)}" r="{n(RADIUS)}" class="shape"/>'
        f'<text x="{n(x)}" y="{n(size * 0.34)}" text-anchor="middle" font-size="{size}" '
        f'class="symbol">{escape(symbol)}</text>'
        f'<path class="wire" d="M{n(x + RADIUS)},0H{n(wide)}"/>'
    )
    title = words(x - width_of(text) / 2 + 2, -RADIUS - 7, text, "name")
    reach = max(RADIUS, *(abs(y) for y in ys)) if ys else RADIUS
    return wires + circle + title, wide, max(RADIUS + 22, reach), reach


def _box(
    b: Board, node: Trace, id: str, stage: Stage | None, ys: tuple[float, ...]
) -> tuple[str, float, float, float]:
    """A rectangle: name, kind, formula, parameters with their gradients."""
    rows = [(name(node.name), "name bold")]
    if node.kind != node.name:
        rows.append((name(node.kind, 42), "quiet"))
    if node.nodes:
        count = sum(1 for inner in node.walk() if not inner.nodes)
        rows.append((f"{count} block{'s' * (count != 1)} inside", "quiet"))
        rows.append((f"{_count(node.params):,} parameters", "quiet"))
    elif formula_of(node.block):
        rows.append((clean(value_of(b, node), LONGEST + 4), "formula"))
    if note := note_of(node.block):
        rows.append((note, "quiet"))
    pieces = [lines(rows), *([] if node.nodes else _parameters(b, node, id, stage))]
    inside = column(pieces, 7)
    wide, high = (
        max(inside.width + (54 if node.nodes else 20), 70.0),
        max(inside.height + 16, 2 * abs(ys[-1] if ys else 0) + 20),
    )
    left = 9.0  # where the arrow heads are
    back = (
        f'<rect x="{n(left + 5)}" y="{n(-high / 2 - 5)}" width="{n(wide)}" height="{n(high)}" '
        'rx="6" class="shape behind"/>'
        if node.nodes else ""
    )  # fmt: skip
    wires = "".join(
        f'<path class="wire" d="M0,{n(y)}H{n(left)}"/>'
        f'<path class="head" transform="translate({n(left)},{n(y)})" d="M-7,-3.5L0,0L-7,3.5Z"/>'
        for y in ys
    )
    svg = (
        f'{back}{wires}<rect x="{n(left)}" y="{n(-high / 2)}" width="{n(wide)}" height="{n(high)}" '
        f'rx="6" class="shape"/><g transform="translate({n(left + 10)},{n(-inside.height / 2)})">'
        f"{inside.svg}</g>"
    )
    if node.nodes:
        svg += toggle(left + wide - 30, -high / 2 + 6, "+")
    whole = left + wide + (5 if node.nodes else 0)
    return svg, whole, high / 2 + (5 if node.nodes else 0), high / 2


def toggle(x: float, y: float, sign: str) -> str:
    """What unfolds or folds a network."""
    return (
        f'<g class="toggle" transform="translate({n(x)},{n(y)})"><rect width="24" height="24" '
        f'rx="5"/><text x="12" y="17" text-anchor="middle" font-size="16">{sign}</text></g>'
    )


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _parameters(b: Board, node: Trace, id: str, stage: Stage | None) -> list[Piece]:
    """Each parameter: its value, and beside it its gradient."""
    made = []
    gradients = dict(leaves_of(node.dparams))
    for text, leaf in leaves_of(node.params):
        value, gradient = b.once(shown, leaf), b.once(shown, gradients.get(text), True)
        at = value.width + 14
        known = f'<g transform="translate({n(at)},0)">{gradient.svg}</g>'
        both = value.svg + when(stage, "b", [id], known, words(at, 11, "◂ ?", "d unknown"))
        pair = Piece(at + gradient.width, max(value.height, gradient.height), both)
        made.append(column([lines([(clean(text, 20), "name")], 11), pair], 1))
    return made


def _captions(b: Board, node: Trace, id: str, stage: Stage | None, gate: bool) -> Piece:
    """Upstream times local equals downstream; what is kept; the tick or cross."""
    rows: list[Piece] = []
    for i, product in enumerate(() if node.nodes else products(b, node)):
        if product.gradient is None or (i and node.block.maker in LOSSES):
            continue  # nobody asks for the gradient of a target
        if product.numbers:
            to = f"{GRADIENT} {product.of}: "
            first, *further = product.numbers
            known = lines([(to + first, "d"), *((f"  {line}", "d") for line in further)], 11)
            asked = re.sub("[^×⊙·=]+", " ? ", " ".join(product.numbers)).strip()
            svg = when(stage, "b", [id], known.svg, words(0, 10, to + asked, "d unknown", 11))
            rows.append(known._replace(svg=svg))
        if product.rule:
            text = clean(product.rule, 200)
            parts = [text] if len(text) <= LONGEST else text.split(",  " if ",  " in text else ", ")
            rows.append(lines([(clean(part, LONGEST), "rule") for part in parts], 11))
        if not product.numbers and product.slope is not None:
            told = b.once(tensor, product.slope)
            each = [(f"  {line}", "rule") for line in told.lines]
            rows.append(lines([(f"∂{each[0][0][1:]}", "rule"), *each[1:]], 11))
    bytes_ = f"■ kept {readable_bytes(node.kept_bytes)}" if node.kept_bytes else "□ keeps nothing"
    mark = "–" if node.right is None else "✓" if node.right else "✗"
    css = "quiet" if node.right is None else "tick" if node.right else "cross"
    error = "" if node.right is None else f" {relative(node.error or 0.0)}"
    check, keep = lines([(f"{mark}{error}", css)], 11), lines([(bytes_, "kept")], 11)
    at = keep.width + 12
    svg = when(stage, "f", [id], keep.svg, "")
    svg += f'<g transform="translate({n(at)},0)">{when(stage, "b", [id], check.svg, "")}</g>'
    rows.append(Piece(at + check.width, keep.height, svg))
    return column(rows, 1)
