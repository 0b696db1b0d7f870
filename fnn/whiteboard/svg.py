# ruff: noqa: RUF001 - formulas and marks are as on a board
"""The picture of a trace, and the same step by step. Same trace, same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from types import MappingProxyType
from typing import Any, NamedTuple

from fnn.introspect.text import clean
from fnn.whiteboard.board import Board, board
from fnn.whiteboard.layout import GAP, Layers, Placed, Size, layered, place
from fnn.whiteboard.nodes import (
    NONE,
    PAD,
    TITLE,
    Item,
    Least,
    end_item,
    input_item,
    node_item,
    toggle,
)
from fnn.whiteboard.primitives import at_step, lines, moved, n, name, rectangle, when, wire, words
from fnn.whiteboard.recording import Recording
from fnn.whiteboard.symbols import late_inputs
from fnn.whiteboard.text import headline

MONO = '"DejaVu Sans Mono",Menlo,Consolas,"Liberation Mono",monospace'
# Green forward and red backward, both dark enough to read; the signs ▸ and ◂, the slant, and the
# side of the wire say the same without colour.
STYLE = f"""
.wb text{{font-family:{MONO};white-space:pre;fill:#1d2733;direction:ltr;unicode-bidi:isolate}}
.wb .v{{fill:#17693a}}.wb .d{{fill:#b3261e;font-style:italic}}
.wb .unknown{{font-weight:bold;opacity:.55}}
.wb .quiet,.wb .rule,.wb .kept{{fill:#5a6675}}.wb .formula{{fill:#34404d}}
.wb .name{{font-style:italic}}.wb .bold{{font-weight:bold;font-style:normal}}
.wb .sum{{fill:#7a4b00}}.wb .tick{{fill:#17693a}}
.wb .cross,.wb .bad{{fill:#9c0060;font-weight:bold}}
.wb .wire{{fill:none;stroke:#3c4856;stroke-width:1.5}}.wb .head,.wb .dot{{fill:#3c4856}}
.wb .shape{{fill:#fff;stroke:#1d2733;stroke-width:1.6}}.wb .behind{{fill:#e8edf2}}
.wb .block>.folded .shape,.wb .network>.folded .shape{{fill:#f4f7fa}}
.wb .network>.folded .shape.behind{{fill:#dfe6ee}}
.wb .frame{{fill:#5b7fa61a;stroke:#8fa3b8;stroke-width:1.2;stroke-dasharray:5 3}}
.wb .edge{{fill:none;stroke:#9aa7b4;stroke-width:.7}}.wb .symbol{{font-weight:bold}}
.wb .toggle rect{{fill:#fff;stroke:#5b7fa6}}.wb .toggle text{{font-weight:bold}}
.wb .now>.folded .shape:not(.behind){{stroke:#c77700;stroke-width:3.5;fill:#fff8e6}}
"""


class Network(NamedTuple):
    """A network ready to be placed: its layers, items by key, and the networks inside by key."""

    trace: Recording
    layers: Layers
    items: dict[str, Item]
    inside: dict[str, Network]


def network_of(
    b: Board, trace: Recording, all_inside: bool = False,
    least: Mapping[tuple[str, str], Least] = MappingProxyType({}),
) -> Network:  # fmt: skip
    """The items of a network, and of the unfolded networks in it (``all_inside``: of all).

    ``least``: how wide items are at least, by their network's path and their key.
    """
    inner = trace.path != b.trace.path
    ends = [trace.outputs] if inner else [(output,) for output in trace.outputs]
    layers = layered(
        trace.inputs, [(node.name, node.reads) for node in trace.nodes], ends,
        () if inner else late_inputs(trace),
    )  # fmt: skip
    items = {
        key: input_item(b, trace, w, inner, least.get((trace.path, key), NONE))
        for w in trace.inputs for key in [f"in:{w}"]
    }  # fmt: skip
    for node in trace.nodes:
        key = f"node:{node.name}"
        items[key] = node_item(
            b, trace, node, layers.slots[key], least.get((trace.path, key), NONE)
        )
    items |= {f"out:{i}": end_item(b, trace, end, inner) for i, end in enumerate(ends)}
    inside = {
        f"node:{node.name}": network_of(b, node, all_inside, least)
        for node in trace.nodes
        if b.is_open(node) or (all_inside and node.nodes)
    }
    return Network(trace, layers, items, inside)


def unfolded_size(item: Item, inner: Placed) -> Size:
    """The size of an unfolded network, with its frame."""
    left, ports = item.stem + PAD, inner.size.ports
    return Size(
        left + inner.size.width + PAD, inner.size.up + TITLE, inner.size.down + PAD,
        tuple(ports[min(i, len(ports) - 1)] for i in item.slots), inner.size.out,
    )  # fmt: skip


class Drawing(NamedTuple):
    """A network with coordinates."""

    placed: Placed
    svg: str


def draw(b: Board, network: Network, width: float, page: bool = False) -> Drawing:
    """Places a network and writes it, wires first, so that things stand on them.

    ``page``: write both readings of every network, folded and unfolded.
    """
    nodes = {f"node:{node.name}": node for node in network.trace.nodes}
    inner: dict[str, Drawing] = {}
    sizes: dict[str, Size] = {}
    # An unfolded network fits in the first row, beside the inputs, where that is possible.
    starts = GAP + max(network.items[k].size.width for k in network.layers.columns[0])
    for key, item in network.items.items():
        sizes[key] = item.size
        if key in network.inside:
            part, room = network.inside[key], width - item.stem - 2 * PAD
            inner[key] = draw(b, part, room - starts, page)
            if inner[key].placed.size.width > room - starts:
                inner[key] = draw(b, part, room, page)
            if b.is_open(nodes[key]):
                sizes[key] = unfolded_size(item, inner[key].placed)
    placed = place(network.layers, sizes, width)
    parts = [wire(path) for path in placed.paths]
    if network.trace.path != b.trace.path:
        x, y = placed.at["out:0"]
        parts.append(wire(f"M{n(x + 8)},{n(y)}H{n(placed.size.width + PAD)}", "wire exit"))
    for key in (k for column_ in network.layers.columns for k in column_ if k in network.items):
        item, at, size = network.items[key], placed.at[key], sizes[key]
        parts.append(_item(b, item, nodes.get(key), at, size, inner.get(key), page))
    return Drawing(placed, "".join(parts))


def _item(
    b: Board, item: Item, node: Recording | None, at: tuple[float, float], size: Size,
    inner: Drawing | None, page: bool,
) -> str:  # fmt: skip
    if node is None:
        return moved(*at, item.body)
    opened = b.is_open(node)
    ports = "".join(
        moved(0, y, svg, "port") for svg, y in zip(item.ports, size.ports, strict=False)
    )
    folded = "" if opened and not page else f'<g class="folded">{item.body}</g>'
    frame = ""
    if inner is not None:
        size = unfolded_size(item, inner.placed)
        kind = f" ({name(node.kind)})" if node.kind != node.name else ""
        caption = words(item.stem + (38 if page else 10), 17, name(node.name) + kind, "name bold")
        caption += toggle(item.stem + 6, 0, "−") if page else ""
        wide, high = size.width - item.stem, size.up + size.down
        frame = (
            f'<g class="inside">{rectangle(item.stem, -size.up, wide, high, "frame", 9)}'
            f"{moved(0, -size.up, caption, 'caption')}"
            f"{moved(item.stem + PAD, 0, inner.svg, 'within')}</g>"
        )
    css = f"item {item.css}{' open' if opened else ''}{when('n', [item.id], ' now')}"
    data = f' data-id="{item.id}"' if page else ""
    return (
        f'<g class="{css}"{data} transform="translate({n(at[0])},{n(at[1])})">'
        f"<title>{escape(item.label)}</title>{ports}{folded}{frame}</g>"
    )


# ---- whole pictures --------------------------------------------------------------------------


def svg(trace: Recording, step: int | None = None, *, unfold: Any = None, width: int = 1600) -> str:
    """The picture as one SVG document.

    Args:
      step: how many steps have run: forward 1 to n, then backward n + 1 to 2n; None for all of
        them, without a mark on the last.
      unfold: the networks to open, by path; True for all, False for none; by default as many as a
        picture holds.
      width: of a row; longer networks go on in another.

    Raises:
      KeyError: there is no network at a path.
      ValueError: there is no such step.

    >>> import fnn
    >>> trace = fnn.whiteboard.trace(fnn.multiply(), {}, (3.0, -4.0))
    >>> trace.svg() == trace.svg(), trace.svg().startswith("<svg ")
    (True, True)
    """
    b = board(trace, unfold)
    return _document(b, draw(b, network_of(b, b.trace), width), step)


def frames(trace: Recording, *, unfold: Any = None, width: int = 1600) -> list[str]:
    """A picture for every step: none done, forward 1 to n, backward n to 1."""
    b = board(trace, unfold)
    drawing = draw(b, network_of(b, b.trace), width)
    return [_document(b, drawing, step) for step in range(2 * len(b.visible()) + 1)]


def _ran(b: Board, step: int | None) -> tuple[dict[str, frozenset[str]], str]:
    """The ids of the nodes that have run (see :func:`when`), and a title for the step."""
    order = b.visible()
    most = 2 * len(order)
    done = most if step is None else step
    if not 0 <= done <= most:
        raise ValueError(f"step is {step}, needs a whole number from 0 to {most}")
    forward, backward = order[:done], order[::-1][: max(done - len(order), 0)]
    last, title = frozenset[str](), ""
    if step == 0:
        title = f"step 0 of {most}: the inputs are known"
    elif step:
        direction, node = ("backward", backward[-1]) if backward else ("forward", forward[-1])
        title = f"step {step} of {most}: {direction} through {clean(node.path, 50)}"
        last = frozenset({b.ids[node.path]})
    begun = {"out"} if backward else set()
    ran = {"f": _with_networks(b, forward), "b": _with_networks(b, backward) | begun, "n": last}
    return ran, title


def _with_networks(b: Board, nodes: list[Recording]) -> frozenset[str]:
    """The ids; an open network has run when all that is drawn of it has."""
    done = {node.path for node in nodes}
    done |= {
        node.path for node in b.trace.walk()
        if b.is_open(node) and all(inner.path in done for inner in b.visible(node))
    }  # fmt: skip
    return frozenset(b.ids[path] for path in done)


def notes(b: Board, page: bool = False) -> list[tuple[str, str]]:
    """Lines above the picture: the first value that is not finite, how much is folded."""
    rows = []
    if b.non_finite:
        rows.append((clean(str(b.non_finite), 150), "bad"))
    if b.folded:
        inside = sum(sum(not inner.nodes for inner in node.walk()) for node in b.folded)
        how = "+ opens one" if page else "unfold='path' opens one"
        count = f"{len(b.folded)} network{'s' * (len(b.folded) != 1)}"
        rows.append((f"folded to fit: {count} with {inside} blocks inside; {how}", "quiet"))
    return rows


def legend(b: Board, width: float) -> list[str]:
    """What the signs mean, in as few lines as the width allows."""
    rows = ["▸ value, above its wire"]
    gradient = f"◂ gradient of {b.objective}, below it"
    for text in (gradient,):
        longer = f"{rows[-1]}   {text}"
        rows[-1:] = [longer] if lines([(longer, "")]).width <= width else [rows[-1], text]
    return rows


def _document(b: Board, drawing: Drawing, step: int | None) -> str:
    ran, title = _ran(b, step)
    size, margin = drawing.placed.size, 14.0
    finished = step is None or step == 2 * len(b.visible())
    rows = [(headline(b, finished), "name bold"), *notes(b), *([(title, "sum")] if title else [])]
    wide = max(size.width, lines(rows).width)
    rows[1:1] = [(text, "quiet") for text in legend(b, wide)]
    head = lines(rows)
    w = max(size.width, head.width) + 2 * margin
    h = head.height + 14 + size.up + size.down + 2 * margin
    top = head.height + 14 + margin + size.up
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="wb" role="img" width="{n(w)}" '
        f'height="{n(h)}" viewBox="0 0 {n(w)} {n(h)}" font-size="12">'
        f"<title>{escape(headline(b))}</title><style>{STYLE}</style>"
        f'<rect width="{n(w)}" height="{n(h)}" fill="#fff"/>'
        f"{moved(margin, margin, head.svg)}{moved(margin, top, at_step(drawing.svg, ran))}</svg>\n"
    )
