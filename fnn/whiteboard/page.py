# ruff: noqa: RUF001 - marks are as on a board
"""One self-contained page: the picture with buttons, keys, folding, and a panel for each node."""

from __future__ import annotations

import json
from dataclasses import replace
from html import escape
from importlib import resources
from typing import Any

from fnn.introspect.text import clean
from fnn.whiteboard.board import Board, board
from fnn.whiteboard.live import program
from fnn.whiteboard.numbers import parts
from fnn.whiteboard.primitives import at_every_step, moved
from fnn.whiteboard.recording import Recording
from fnn.whiteboard.svg import STYLE, Network, draw, headline, network_of, notes
from fnn.whiteboard.text import explained

KEYS = (
    "<kbd>→</kbd> <kbd>←</kbd> step, <kbd>Home</kbd> <kbd>End</kbd> to the ends, "
    '<span data-keys="turn"><kbd>n</kbd> <kbd>p</kbd> next and previous figure, </span>'
    "<kbd>f</kbd> full screen, <kbd>Tab</kbd> from block to block, <kbd>Enter</kbd> its chain "
    "rule, <kbd>d</kbd> all digits, "
    '<span data-keys="fold"><kbd>+</kbd> <kbd>-</kbd> unfold and fold a network, </span>'
    "<kbd>Esc</kbd> close."
)
SCRIPTS = (
    "layout.js", "stack.js", "ops.js", "windows.js", "norms.js", "live.js", "numbers.js", "quiz.js",
    "lesson.js", "film.js", "page.js",
)  # fmt: skip
LIVE = (
    '<div class="live" hidden><b class="loss"></b>'
    '<svg width="100" height="30" aria-hidden="true"><polyline fill="none" stroke="#7a4b00" '
    'stroke-width="2"/></svg><button data-live="descend">one step of gradient descent</button>'
    '<label>rate <input class="rate" aria-label="rate" type="number" value="0.1" min="0" '
    'step="any"></label>'
    '<button data-live="reset">reset</button>'
    '<button data-live="quiz" aria-pressed="false">quiz</button>'
    '<span class="hint" role="status"></span></div>'
    '<form class="quiz" hidden><label><span class="ask"></span> '
    '<input class="answer" aria-label="your numbers" autocomplete="off" spellcheck="false"></label>'
    '<button>check</button><button type="button" data-live="show">show it</button>'
    '<output role="status"></output></form>'
)
FULL_SCREEN = (
    '<svg width="18" height="18" viewBox="0 0 18 18" fill="none" stroke="#1d2733" stroke-width="2">'
    '<path d="M1,6V1H6M12,1H17V6M17,12V17H12M6,17H1V12"/></svg>'
)
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
    css, *scripts = (files.joinpath(name).read_text("utf-8") for name in ("page.css", *SCRIPTS))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        '<link rel="icon" href="data:,">\n'
        f"<style>{css}{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{''.join(scripts)}</script>\n</body>\n</html>\n"
    )


def whiteboard(trace: Recording) -> str:
    """One whiteboard, to stand in a :func:`document`."""
    b, live = page_board(trace)
    return section(b, network_of(b, b.trace, all_inside=True), LIVE if live else "", live=live)


def section(b: Board, network: Network, bar: str = "", **data: Any) -> str:
    """A whiteboard of a network that has its items, with more for the script.

    ``bar``: controls above the picture. ``data``: what they need.
    """
    drawing = draw(b, network, WIDTH, page=True)
    size = drawing.placed.size
    w, h = size.width + 24, size.up + size.down + 24
    remarks = "".join(f'<p class="{"bad" if css == "bad" else "note folds"}">{escape(text)}</p>'
                   for text, css in notes(b, page=True))  # fmt: skip
    folds = (
        '<button data-do="unfold">unfold all</button><button data-do="fold">fold all</button>'
        if network.inside else ""
    )  # fmt: skip
    has_heat = "<image" in drawing.svg
    return (
        '<section class="whiteboard" tabindex="-1">'
        f'<p class="verdict">{escape(headline(b))}</p>{remarks}'
        f'<ul class="legend">{_legend(b, has_heat)}</ul>'
        '<div class="controls" role="toolbar" aria-label="steps">'
        '<button data-do="first" aria-label="to the start">|◀</button>'
        '<button data-do="back" aria-label="one step back">◀</button>'
        '<button data-do="next" aria-label="one step on">▶</button>'
        '<button data-do="last" aria-label="to the end">▶|</button>'
        '<input class="at" type="range" min="0" value="0" aria-label="step">'
        '<button data-do="full" aria-pressed="false" aria-label="full screen">'
        f"{FULL_SCREEN}</button>"
        f'{folds}<span class="said" role="status"></span></div>'
        f"{bar}"
        f'<div class="board"><svg class="wb" xmlns="http://www.w3.org/2000/svg" font-size="12" '
        f'role="group" aria-label="{escape(headline(b))}" width="{w:.0f}" height="{h:.0f}">'
        f"{moved(12, 12 + size.up, at_every_step(drawing.svg), 'net')}</svg></div>"
        '<aside class="panel" hidden aria-live="polite"><header><h2></h2>'
        '<button data-do="digits" aria-pressed="false">all digits</button>'
        '<button data-do="close" aria-label="close">✕</button></header>'
        '<div class="about"></div></aside>'
        f'<p class="keys">{KEYS}</p>'
        f'<script type="application/json" class="data">{_json(_data(b, network) | data)}</script>'
        "</section>"
    )


def page_board(trace: Recording) -> tuple[Board, dict[str, Any] | None]:
    """The board of a trace on a page, and the program with which it is live, if it is."""
    b = board(trace)
    roomy = replace(b, roomy=True)
    live = program(roomy)
    return (roomy, live) if live else (b, None)


def _legend(b: Board, has_heat: bool) -> str:
    """What the signs and colours mean."""
    key = '; −<span class="scale" role="img" aria-label="from negative to positive"></span>+'
    value, gradient = (key, key) if has_heat else ("", "")
    tensors = "<li>a ± b: mean and standard deviation; |g|: length</li>" if has_heat else ""
    return (
        f'<li class="v"><b>▸ value</b>, above its wire{value}</li>'
        f'<li class="d"><b>◂ gradient</b> of {escape(b.objective)}, below it{gradient}</li>'
        f'{tensors}<li class="tap">click or tap a block for its chain rule</li>'
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
        "about": about(b),
    }


def about(b: Board) -> dict[str, Any]:
    """The lines of every block's panel: a kind, and the parts of a text."""
    nodes = {b.ids[node.path]: node for node in b.trace.walk()}
    return {
        id: [[kind, *parts(text)] for kind, text in explained(b, node)]
        for id, node in nodes.items()
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
        "late": [index[k] for k in layers.late],
        "ends": [index[k] for k in layers.columns[-1] if k.startswith("out:")],
        "drawn": [index[k] for column in layers.columns for k in column if k in items],
        "items": [
            {"id": item.id, "size": item.size._asdict(), "slots": item.slots, "stem": item.stem}
            | ({"tall": item.tall._asdict()} if item.tall else {})
            | ({"net": _net(network.inside[k])} if k in network.inside else {})
            for k, item in items.items()
        ],
    }  # fmt: skip


def _json(data: Any) -> str:
    """JSON without any <, so that no name can end the script element around it."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
