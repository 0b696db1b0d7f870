"""The same example over training: one picture, whose numbers a slider changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import jax
import numpy as np

from fnn.introspect.text import clean
from fnn.whiteboard.board import board
from fnn.whiteboard.nodes import Item, Least, Tall
from fnn.whiteboard.page import about, document, section
from fnn.whiteboard.primitives import at_every_step
from fnn.whiteboard.recording import Recording
from fnn.whiteboard.svg import Network, network_of

BAR = (
    '<div class="film"><button>play</button>'
    '<input type="range" min="0" value="0" aria-label="moment of training">'
    '<output role="status"></output></div>'
)


def film(traces: Sequence[Recording], labels: Sequence[str] = (), title: str = "") -> str:
    """A page that plays the traces of one network and example, as after every epoch.

    Args:
      traces: one or more, with the same blocks and shapes.
      labels: what the moments are called; "epoch 0", "epoch 1" and so on by default.
      title: the page's heading; the network's kind by default.

    Returns:
      A self-contained page with a slider over the moments, and all that a trace's own page has.

    Raises:
      ValueError: no traces, traces of different networks, or not a label for each.

    >>> import fnn
    >>> moments = [fnn.whiteboard.trace(fnn.scale(c), {}, 2.0) for c in (1.0, 1.5)]
    >>> page = film(moments, ["before", "after"], "A scale")
    >>> page.count('<input type="range"'), "after" in page
    (1, True)
    """
    labels = labels or [f"epoch {i}" for i in range(len(traces))]
    if not traces or len(labels) != len(traces):
        raise ValueError(f"film got {len(traces)} traces and {len(labels)} labels")
    if len({_form(trace) for trace in traces}) > 1:
        raise ValueError("film needs traces of one network: these differ in blocks or shapes")
    boards = [replace(board(trace), roomy=True) for trace in traces]
    drawn = [network_of(b, b.trace, all_inside=True) for b in boards]
    least: dict[tuple[str, str], Least] = {}
    for network in drawn:
        for key, item in _items(network):
            old = least.get(key, Least())
            least[key] = Least(max(old.width, item.size.width), max(old.stem, item.stem))
    networks = [network_of(b, b.trace, all_inside=True, least=least) for b in boards]
    frames = [
        {"items": [_written(item) for _, item in _items(network)], "about": about(b)}
        for b, network in zip(boards, networks, strict=True)
    ]
    data = {"frames": frames, "labels": [clean(label, 80) for label in labels]}
    heading = clean(title or boards[0].trace.kind, 200) or "block"
    picture = section(boards[0], _tall(networks), BAR, live=None, film=data)
    return document(heading, f"<h1>{escape(heading)}</h1>{picture}")


def _form(trace: Recording) -> Any:
    """What traces of one network have in common."""
    arrays = jax.tree.map(lambda v: (np.shape(v), str(v.dtype)), (trace.params, trace.x, trace.y))
    nodes = (trace, *trace.walk())
    return str((arrays, [(node.path, node.block.maker, node.reads) for node in nodes]))


def _items(network: Network) -> Iterator[tuple[tuple[str, str], Item]]:
    """The items in the order of the picture, each with its network's path and its key."""
    for column in network.layers.columns:
        for key in column:
            if key in network.items:
                yield (network.trace.path, key), network.items[key]
                if key in network.inside:
                    yield from _items(network.inside[key])


def _written(item: Item) -> list[str]:
    return [at_every_step(svg) for svg in (item.body, *item.ports)]


def _tall(networks: Sequence[Network]) -> Network:
    """The first network, with each item as high as it is in any."""
    first, items = networks[0], dict[str, Item]()
    for key, item in first.items.items():
        sizes = [network.items[key].size for network in networks]
        up, down = max(size.up for size in sizes), max(size.down for size in sizes)
        items[key] = item._replace(size=item.size._replace(up=up, down=down))
        if item.tall:
            forms = [form for network in networks if (form := network.items[key].tall)]
            most = Tall(*map(max, zip(*forms, strict=True)))
            items[key] = items[key]._replace(tall=most)
    inside = {key: _tall([network.inside[key] for network in networks]) for key in first.inside}
    return first._replace(items=items, inside=inside)
