# ruff: noqa: RUF001 - formulas and marks are as on a board
"""The items of a picture: inputs, gates, blocks, networks (folded), ends.

An item's origin is the left end of its axis: wires enter at its ports, on the left edge, and the
wire of its value leaves on the right, with the value above and the gradient below.
"""

from __future__ import annotations

import json
import math
import re
from html import escape
from typing import NamedTuple

from fnn.introspect.text import clean, count_of
from fnn.whiteboard.array_text import relative, tensor
from fnn.whiteboard.board import Board
from fnn.whiteboard.chain_rule import Product, fork_sum, leaves_of, products, summands_of, value_of
from fnn.whiteboard.formulas import LOSSES, note_of
from fnn.whiteboard.layout import Size
from fnn.whiteboard.primitives import (
    CELL,
    GRADIENT,
    Piece,
    after,
    arrow_head,
    column,
    dot,
    lines,
    moved,
    n,
    name,
    rectangle,
    shown,
    when,
    width_of,
    wire,
    words,
)
from fnn.whiteboard.recording import Recording
from fnn.whiteboard.symbols import is_number

RADIUS, PAD, TITLE, STEM = 19.0, 16.0, 26.0, 16.0
BESIDE = 160  # a parameter's gradient stands beside it up to this width, below it beyond
LONGEST = 52  # letters of a line below a block


class Tall(NamedTuple):
    """What a narrow window needs to let a value's wire leave below its block.

    ``shape``: its width. ``exit``, ``down``: where the wire leaves, from its left edge and below
    the axis. ``low``: where the captions begin. Then their width and height, and the width of the
    value's wire, its extent above and below.
    """

    shape: float
    exit: float
    down: float
    low: float
    captions_wide: float
    captions_high: float
    out_wide: float
    out_up: float
    out_down: float


class Item(NamedTuple):
    """``size`` and ``body``: folded; ``slots``: which input enters at which port; ``ports``: what
    is drawn there, which moves when a network unfolds; ``stem``: how long the wires there are;
    ``tall``: another form."""

    id: str
    size: Size
    body: str
    slots: tuple[int, ...] = ()
    ports: tuple[str, ...] = ()
    stem: float = 0.0
    css: str = ""
    label: str = ""
    tall: Tall | None = None


class Least(NamedTuple):
    """How wide an item and the wires at its ports are at least."""

    width: float = 0.0
    stem: float = 0.0


NONE = Least()


def input_item(b: Board, network: Recording, value: str, inner: bool, least: Least = NONE) -> Item:
    """An input: its name and its wire; inside a network a dot, as the wire outside has the rest."""
    symbol = b.called(network, value)
    if not inner:
        text = name(symbol)
        at = width_of(text, 15) + 6
        stem = _stem(b, network, value, [])
        width = max(at + stem.width, least.width)
        body = words(0, 5, text, "name", 15) + moved(at, 0, stem.svg)
        body += wire(f"M{n(at + stem.width)},0H{n(width)}")
        return Item("", Size(width, max(stem.up, 12), max(stem.down, 12)), body)
    many = len(network.inputs) > 1
    text = name(symbol, 12) if many else ""
    wide = 8 + width_of(text, 11)
    body = wire(f"M{n(-PAD)},0H{n(wide)}")
    body += words(4, -6, text, "name", 11) if many else ""
    body += dot(wide) if network.is_fork(value) else ""
    return Item("", Size(wide, 18 if many else 6, 6), body)


def end_item(b: Board, network: Recording, values: tuple[str, ...], inner: bool) -> Item:
    """Where a network's output leaves it."""
    if inner:
        spread = [6.0 * (2 * i - len(values) + 1) for i in range(len(values))]
        paths = "".join(wire(f"M0,{n(y)}L8,0") for y in spread)
        return Item("", Size(8, 8 - spread[0], 8 + spread[-1], tuple(spread)), paths)
    text = name(b.called(network, values[0]))
    return Item("", Size(width_of(text, 15) + 6, 12, 12), words(6, 5, text, "name", 15))


def node_item(
    b: Board, network: Recording, node: Recording, slots: tuple[int, ...], least: Least = NONE
) -> Item:
    """A gate, a block, or a network in one box."""
    id, formula = b.ids[node.path], node.formula
    ports = _ports(b, network, node, id, slots, least.stem)
    gate = bool(formula and formula.symbol and not node.nodes)
    shape = (
        _gate(b, network, node, formula.symbol, ports.ys)
        if formula and gate
        else _box(b, node, id, ports)
    )
    out = _stem(b, network, node.name, [id])
    captions = _captions(b, node, id)
    reach = ports.ys[-1] + 20 if slots else 0.0
    low = max(shape.down, out.down, reach) + 5
    width = ports.stem + max(shape.width + out.width, captions.width + 15)
    width = max(width, least.width)
    out_x = ports.stem + shape.width
    body = (
        moved(ports.stem, 0, shape.svg)
        + moved(out_x, 0, out.svg + wire(f"M{n(out.width)},0H{n(width - out_x)}"), "out")
        + moved(ports.stem + (0 if gate else 9), low, captions.svg, "captions")
    )
    high = max(shape.up, out.up, 20 - ports.ys[0] if slots else 0)
    size = Size(width, high, low + captions.height, ports.ys or (0.0,))
    css = "gate" if gate else "network" if node.nodes else "block"
    label = f"{clean(node.path, 80)}: {value_of(b, node)}"
    tall = Tall(
        shape.width, shape.width if gate else 19, 0 if gate else shape.down,
        max(shape.down, reach) + 5, captions.width, captions.height, out.width, out.up, out.down,
    )  # fmt: skip
    return Item(id, size, body, slots, ports.svgs, ports.stem, css, label, tall)


class _OnAxis(NamedTuple):
    """A drawing whose origin is on the axis, and how far it reaches."""

    width: float
    up: float
    down: float
    svg: str


def _stem(b: Board, network: Recording, value: str, makers: list[str]) -> _OnAxis:
    """The wire of a value: the value above it, its gradient below, a dot where it forks."""
    note = ""
    if total := fork_sum(b, network, value, whole=False):
        note = f"  = {total}" if len(total) < 28 and "from" not in total else "  (a sum)"
    y, dy = network.values[value]
    v, d, fork = "", "", list[str]()
    if b.roomy:
        v, d = b.wire("v", network, value), b.wire("d", network, value)
        fork = [reference for _, _, reference in summands_of(b, network, value)] if note else []
    above, below = shown(y, reference=v), shown(dy, True, note=note, reference=d, fork=fork)
    width, up = max(above.width, below.width, 24.0) + 14, above.height + 6
    svg = (
        wire(f"M0,0H{n(width)}")
        + when("f", makers, moved(7, -up, above.svg), words(7, -8, "▸ ?", "v unknown"))
        + ("" if is_number(value) else when(  # a constant has no gradient
            "b", b.backward_of(network, value), moved(7, 6, below.svg),
            words(7, 16, "◂ ?", "d unknown")))
        + (dot(width) if network.is_fork(value) else "")
    )  # fmt: skip
    return _OnAxis(width, up, below.height + 6, svg)


class _Ports(NamedTuple):
    svgs: tuple[str, ...]
    ys: tuple[float, ...]
    stem: float


def _ports(
    b: Board, network: Recording, node: Recording, id: str, slots: tuple[int, ...], least: float
) -> _Ports:
    """Where wires enter. One that comes from a fork carries its own part of the gradient."""
    parts = [
        shown(node.dxs[i], True, "d part", reference=f"x{id}.{i}" if b.roomy else "")
        if network.is_fork(node.reads[i]) and not is_number(node.reads[i]) else None
        for i in slots
    ]  # fmt: skip
    stem = max([STEM, least, *(p.width + 12 for p in parts if p)])
    apart = max([22.0, *(p.height + 12 for p in parts if p)])
    ys = tuple(apart * (i - (len(parts) - 1) / 2) for i in range(len(parts)))
    unknown = words(5, 15, "◂ ?", "d part unknown")
    svgs = (
        wire(f"M0,0H{n(stem)}") + (when("b", [id], moved(5, 5, p.svg), unknown) if p else "")
        for p in parts
    )
    return _Ports(tuple(svgs), ys, stem)


def _gate(
    b: Board, network: Recording, node: Recording, symbol: str, ys: tuple[float, ...]
) -> _OnAxis:
    """A circle with its sign; above it what its value is called."""
    text = name(b.called(network, node.name))
    wide = max(2 * RADIUS + 18, width_of(text) + 8)
    x = wide / 2
    wires = ""
    for y in ys:
        length = math.hypot(x, y)
        ex, ey = x - (RADIUS + 1) * x / length, y - (RADIUS + 1) * y / length
        turn = math.degrees(math.atan2(-y, x))
        wires += wire(f"M0,{n(y)}L{n(ex)},{n(ey)}") + arrow_head(ex, ey, turn)
    size = {1: 20, 2: 16, 3: 13, 4: 11}.get(len(symbol), 10)
    circle = (
        f'<circle cx="{n(x)}" r="{n(RADIUS)}" class="shape"/>'
        f'<text x="{n(x)}" y="{n(size * 0.34)}" text-anchor="middle" font-size="{size}" '
        f'class="symbol">{escape(symbol)}</text>'
    )
    title = words(x - width_of(text) / 2 + 2, -RADIUS - 7, text, "name")
    reach = max([RADIUS, *map(abs, ys)])
    svg = wires + circle + wire(f"M{n(x + RADIUS)},0H{n(wide)}") + title
    return _OnAxis(wide, max(RADIUS + 22, reach), reach, svg)


def _box(b: Board, node: Recording, id: str, ports: _Ports) -> _OnAxis:
    """A rectangle: name, kind, formula, parameters with their gradients."""
    rows = [(name(node.name), "name bold")]
    if (kind := _kind(node)) != node.name:
        rows.append((name(kind, 42), "quiet"))
    if node.nodes:
        blocks = sum(not inner.nodes for inner in node.walk())
        rows.append((f"{blocks} block{'s' * (blocks != 1)} inside", "quiet"))
        rows.append((f"{count_of(node.params):,} parameters", "quiet"))
    elif node.formula:
        parts = clean(value_of(b, node), 2 * LONGEST).split(",  ")
        rows += [(clean(part, LONGEST), "formula") for part in parts]
    if note := note_of(node.block):
        rows.append((note, "quiet"))
    inside = column([lines(rows), *([] if node.nodes else _parameters(b, node, id))], 7)
    wide = max(inside.width + (54 if node.nodes else 20), 70.0)
    high = max(inside.height + 16, 2 * abs(ports.ys[-1] if ports.ys else 0) + 20)
    left = 9.0  # where the arrow heads are
    behind = 5 if node.nodes else 0  # how far a second sheet shows
    svg = (
        (rectangle(left + 5, -high / 2 - 5, wide, high, "shape behind", 6) if node.nodes else "")
        + "".join(wire(f"M0,{n(y)}H{n(left)}") + arrow_head(left, y) for y in ports.ys)
        + rectangle(left, -high / 2, wide, high, "shape", 6)
        + moved(left + 10, -inside.height / 2, inside.svg)
        + (toggle(left + wide - 32, -high / 2 + 6, "+") if node.nodes else "")
    )
    return _OnAxis(left + wide + behind, high / 2 + behind, high / 2, svg)


def _kind(node: Recording) -> str:
    """The block's kind; of a loss without its options, which its formula shows."""
    return node.block.maker if node.block.maker in LOSSES else node.kind


def toggle(x: float, y: float, sign: str) -> str:
    """What unfolds or folds a network."""
    button = (
        '<rect width="26" height="26" rx="5"/>'
        f'<text x="13" y="18" text-anchor="middle" font-size="16">{sign}</text>'
    )
    return moved(x, y, button, "toggle")


def _parameters(b: Board, node: Recording, id: str) -> list[Piece]:
    """Each parameter: its value, and beside or below it its gradient."""
    pieces = []
    gradients = dict(leaves_of(node.dparams))
    for text, leaf in leaves_of(node.params):
        p, g = (f"p{id}.{text}", f"g{id}.{text}") if b.roomy else ("", "")
        value, gradient = shown(leaf, reference=p), shown(gradients.get(text), True, reference=g)
        beside = value.width <= BESIDE
        x, y = (value.width + 14, 0.0) if beside else (0.0, value.height + 3)
        svg = value.svg + when(
            "b", [id], moved(x, y, gradient.svg), words(x, y + 11, "◂ ?", "d unknown")
        )
        wide, high = x + gradient.width, y + gradient.height
        pair = Piece(max(wide, value.width), max(high, value.height), svg)
        symbol = "W" if text == "w" and getattr(leaf, "ndim", 0) > 1 else clean(text, 20)
        pieces.append(column([lines([(symbol, "name")], 11), pair], 1))
    return pieces


def _captions(b: Board, node: Recording, id: str) -> Piece:
    """Upstream times local equals downstream; a cross where autodiff's differs."""
    rows: list[Piece] = []
    for i, product in enumerate(() if node.nodes else products(b, node)):
        if product.gradient is not None and not (i and node.block.maker in LOSSES):
            rows += _product(b, node, product, id)  # a target's gradient is of no interest
    if node.right is False:
        cross = lines([(f"✗ {relative(node.error or 0.0)} from autodiff", "cross")], 11)
        rows.append(cross._replace(svg=when("b", [id], cross.svg)))
    return column(rows, 1)


def _product(b: Board, node: Recording, product: Product, id: str) -> list[Piece]:
    """One step of the chain rule below a block: in numbers, as a rule, or the slope in numbers."""
    rows = []
    if product.numbers:
        to, several = f"{GRADIENT} {product.of}: ", len(product.numbers) > 1
        texts = [to, *product.numbers] if several else [to + product.numbers[0]]
        known = lines([(text, "d") for text in texts], 11)
        if b.roomy:
            cells = " × ".join("0" * CELL for _ in product.factors) + " = " + "0" * CELL
            cells = cells if several else to + cells[6:]
            cells = cells if "·" not in product.numbers[0] else to + product.numbers[0] + "0" * 12
            room = width_of(cells, 11)
            recipe = escape(json.dumps([to, several, *product.recipe[1:]], ensure_ascii=False))
            room = max(known.width, room)
            letters = math.floor(room / width_of("0", 11))
            svg = f'<g data-q="{recipe}" data-room="{letters}">{known.svg}</g>'
            known = known._replace(width=room, svg=svg)
        hidden = re.sub("[^×⊙·=]+", " ? ", product.numbers[0]).strip()
        svg = when("b", [id], known.svg, words(0, 10, to + hidden, "d unknown", 11))
        rows.append(known._replace(svg=svg))
    if product.rule:
        text = clean(product.rule, 200)
        parts = [text] if len(text) <= LONGEST else text.split(",  " if ",  " in text else ", ")
        rows.append(lines([(clean(part, LONGEST), "rule") for part in parts], 11))
    if node.elementwise and product.local is not None and not product.numbers:
        slopes = lines(after("∂ ", tensor(product.local).lines, "rule"), 11)
        if b.roomy:
            slopes = slopes._replace(
                svg=f'<g data-n="{product.factors[1]}" data-room="24">{slopes.svg}</g>'
            )
        rows.append(slopes)
    return rows
