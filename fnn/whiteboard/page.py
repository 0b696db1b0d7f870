"""One self-contained page: the picture with buttons, keys, folding, and a panel for each node."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from typing import Any

from fnn.introspect.text import clean
from fnn.whiteboard.board import Board, board
from fnn.whiteboard.primitives import at_every_step, moved
from fnn.whiteboard.recording import Recording
from fnn.whiteboard.svg import STYLE, Network, draw, headline, network_of, notes
from fnn.whiteboard.text import explained

WIDTH = 1600.0  # of the first layout, before the script knows the window's


def html(trace: Recording, title: str = "") -> str:
    """The page of one trace. It is self-contained: no network, no other file.

    >>> import fnn
    >>> page = fnn.whiteboard.trace(fnn.multiply(), {}, (3.0, -4.0)).html("A <gate>")
    >>> "<h1>A &lt;gate&gt;</h1>" in page, "http" in page.replace("http://www.w3.org", "")
    (True, False)
    """
    b = board(trace)
    heading = clean(title or b.trace.kind, 200) or "block"
    return document(heading, f"<h1>{escape(heading)}</h1>{whiteboard(trace)}")


def document(title: str, body: str) -> str:
    """A page around whiteboards, with the style and the script that they need."""
    files = resources.files("fnn.whiteboard")
    css, layout, script = (
        files.joinpath(name).read_text("utf-8") for name in ("page.css", "layout.js", "page.js")
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        '<link rel="icon" href="data:,">\n'
        f"<style>{css}{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{layout}{script}</script>\n</body>\n</html>\n"
    )


def whiteboard(trace: Recording) -> str:
    """One whiteboard, to stand in a :func:`document`."""
    b = board(trace)
    network = network_of(b, b.trace, all_inside=True)
    drawing = draw(b, network, WIDTH, page=True)
    size = drawing.placed.size
    w, h = size.width + 24, size.up + size.down + 24
    remarks = "".join(f'<p class="{"bad" if css == "bad" else "note folds"}">{escape(text)}</p>'
                   for text, css in notes(b, page=True))  # fmt: skip
    folds = (
        '<button data-do="unfold">unfold all</button><button data-do="fold">fold all</button>'
        if network.inside else ""
    )  # fmt: skip
    return (
        '<section class="whiteboard">'
        f'<p class="verdict">{escape(headline(b))}</p>{remarks}'
        '<ul class="legend"><li class="v"><b>▸ value</b>, above its wire</li><li class="d">'
        f"<b>◂ gradient</b> of {escape(b.objective)}, below it</li><li>■ kept for backward</li>"
        "<li>✓ matches autodiff, with the relative error</li>"
        "<li>click or tap a block for its chain rule</li></ul>"
        '<div class="controls">'
        '<button data-do="first" aria-label="to the start">|◀</button>'
        '<button data-do="back" aria-label="one step back">◀</button>'
        '<button data-do="next" aria-label="one step on">▶</button>'
        '<button data-do="last" aria-label="to the end">▶|</button>'
        '<input class="at" type="range" min="0" value="0" aria-label="step">'
        f'{folds}<span class="said" role="status"></span></div>'
        '<p class="more">⟷ wider than the window: scroll sideways</p>'
        f'<div class="board"><svg class="wb" xmlns="http://www.w3.org/2000/svg" font-size="12" '
        f'role="group" aria-label="{escape(headline(b))}" width="{w:.0f}" height="{h:.0f}">'
        f"{moved(12, 12 + size.up, at_every_step(drawing.svg), 'net')}</svg></div>"
        '<aside class="panel" hidden aria-live="polite"><header><h2></h2>'
        '<button data-do="close" aria-label="close">✕</button></header>'
        '<div class="about"></div></aside>'
        '<p class="keys"><kbd>→</kbd> <kbd>←</kbd> step, <kbd>Home</kbd> <kbd>End</kbd> to the '
        "ends, <kbd>Tab</kbd> from block to block, <kbd>Enter</kbd> its chain rule, <kbd>+</kbd> "
        "<kbd>-</kbd> unfold and fold a network, <kbd>Esc</kbd> close.</p>"
        f'<script type="application/json" class="data">{_json(_data(b, network))}</script>'
        "</section>"
    )


def _data(b: Board, network: Network) -> dict[str, Any]:
    """What the script needs: the layers with sizes, and every node's text for the panel."""
    nodes = {b.ids[node.path]: node for node in b.trace.walk()}
    return {
        "net": _net(network),
        "open": [id for id, node in nodes.items() if b.is_open(node)],
        "networks": [id for id, node in nodes.items() if node.nodes],
        "paths": {id: clean(node.path, 80) for id, node in nodes.items()},
        "labels": {id: clean(f"{node.path}, {node.kind}", 160) for id, node in nodes.items()},
        "about": {id: list(explained(b, node)) for id, node in nodes.items()},
    }


def _net(network: Network) -> dict[str, Any]:
    """The layers by index: items first, in their order, then waypoints."""
    layers, items = network.layers, network.items
    waypoints = [k for column in layers.columns for k in column if k not in items]
    index = {k: i for i, k in enumerate([*items, *waypoints])}
    return {
        "columns": [[index[k] for k in column] for column in layers.columns],
        "wires": [[index[w.source], [index[v] for v in w.via], index[w.target], w.port]
                  for w in layers.wires],
        "inputs": [index[k] for k in layers.inputs],
        "ends": [index[k] for k in layers.columns[-1] if k.startswith("out:")],
        "drawn": [index[k] for column in layers.columns for k in column if k in items],
        "items": [
            {"id": item.id, "size": item.size._asdict(), "slots": item.slots, "stem": item.stem}
            | ({"net": _net(network.inside[k])} if k in network.inside else {})
            for k, item in items.items()
        ],
    }  # fmt: skip


def _json(data: Any) -> str:
    """JSON without any <, so that no name can end the script element around it."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
