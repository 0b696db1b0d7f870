"""What a drawing needs besides a trace's numbers: who reads what, which networks are unfolded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fnn.introspect.text import clean
from fnn.whiteboard.formulas import Described
from fnn.whiteboard.recording import NonFinite, Recording, each
from fnn.whiteboard.symbols import symbols

MAX_LETTERS = 24  # of a name in a formula
MAX_BOXES = 24  # in a picture, before networks are folded


def as_network(trace: Recording) -> Recording:
    """The trace of one block alone as that of a network with this one node."""
    if trace.inputs:
        return trace
    many = isinstance(trace.x, tuple)
    inputs = tuple(f"x{i + 1}" for i in range(len(trace.x))) if many else ("x",)
    name = trace.name.replace("/", "\u2215") or "block"  # a path is cut at slashes
    node = replace(trace, path=name, reads=inputs, params_of=name)
    return replace(
        trace, path="", reads=(), params_of="", inputs=inputs, outputs=(name,), nodes=(node,),
        objective=trace.objective.replace("y", name), params={name: trace.params},
        residuals={name: trace.residuals}, dparams={name: trace.dparams}, local=None,
    )  # fmt: skip


def in_line(trace: Recording) -> Recording:
    """E = loss(net(x), target) with the network's blocks beside the loss, in one line.

    The trace stays as it is where a name would be there twice.
    """
    first = trace.nodes[0] if trace.nodes else None
    if trace.objective != "E" or len(trace.nodes) != 2 or not first or not first.nodes:
        return trace
    net, loss = trace.nodes
    one = len(net.inputs) == 1
    inputs = (*(trace.inputs[:1] if one else net.inputs), *trace.inputs[1:])
    names = [*inputs, *(node.name for node in net.nodes), loss.name]
    if len(net.outputs) != 1 or len(set(names)) < len(names) or net.outputs[0] in net.inputs:
        return trace
    outer = {net.inputs[0]: trace.inputs[0]} if one else {}
    nodes = tuple(
        replace(node, reads=tuple(outer.get(name, name) for name in node.reads))
        for node in net.nodes
    )
    last = replace(loss, reads=(net.outputs[0], *loss.reads[1:]))

    def spread(value: Any) -> Any:
        first = (value[0],) if one else each(value[0], len(net.inputs))
        return (*first, *value[1:])

    return replace(
        trace, block=net.block, inputs=inputs, nodes=(*nodes, last), x=spread(trace.x),
        dx=spread(trace.dx) if isinstance(trace.dx, tuple) else trace.dx,
        params={**net.params, loss.params_of: loss.params} if net.params else net.params,
        dparams={**net.dparams, loss.params_of: loss.dparams} if net.dparams else net.dparams,
    )  # fmt: skip


def in_parts(trace: Recording) -> Recording:
    """The trace with its long chains cut into networks, about as many as each has blocks.

    A part has the name of its last block, whose value it is, so all formulas stay as they are.
    """
    nodes = tuple(in_parts(node) for node in trace.nodes)
    if len(nodes) > 2 * MAX_BOXES:
        nodes = tuple(_parts(trace, nodes))
    return replace(trace, nodes=nodes)


def _parts(trace: Recording, nodes: tuple[Recording, ...]) -> Iterator[Recording]:
    reads = Counter(name for node in nodes for name in node.reads)
    owners = Counter(node.params_of for node in nodes)
    length = math.isqrt(len(nodes))

    def goes_on(a: Recording, b: Recording) -> bool:
        """Whether a reads one value, only b reads a and b only a, with parameters of their own."""
        alone = len(a.reads) == 1 and reads[a.name] == 1 and a.name not in trace.outputs
        return alone and b.reads == (a.name,) and owners[a.params_of] == owners[b.params_of] == 1

    part: list[Recording] = []
    for node in nodes:
        if part and (len(part) == length or not goes_on(part[-1], node)):
            yield _part(part)
            part = []
        part.append(node)
    yield _part(part)


def _part(nodes: list[Recording]) -> Recording:
    first, last = nodes[0], nodes[-1]
    if first is last:
        return first
    return replace(
        last, block=Described(f"{first.name} … {last.name}", "chain"), reads=first.reads,
        params_of=last.name, inputs=first.reads, outputs=(last.name,), x=first.x, dx=first.dx,
        nodes=tuple(_moved(node, last.path) for node in nodes),
        params={node.params_of: node.params for node in nodes},
        residuals={node.name: node.residuals for node in nodes},
        dparams={node.params_of: node.dparams for node in nodes}, local=None, errors=None,
    )  # fmt: skip


def _moved(node: Recording, into: str) -> Recording:
    path = f"{into}/{node.name}"
    return replace(node, path=path, nodes=tuple(_moved(inner, path) for inner in node.nodes))


@dataclass(frozen=True)
class Board:
    """A trace, and which of the networks inside it are unfolded (by path).

    ``roomy``: numbers may change, as in a page that is live: room is kept for them, and each has
    its reference (see live.js) beside it.
    """

    trace: Recording
    unfolded: frozenset[str]
    roomy: bool = False

    @cached_property
    def ids(self) -> dict[str, str]:
        """A number for every node, in the order of forward."""
        return {node.path: str(i) for i, node in enumerate(self.trace.walk(), start=1)}

    @cached_property
    def non_finite(self) -> NonFinite | None:
        """The first value that is not finite."""
        return self.trace.non_finite

    @cached_property
    def folded(self) -> list[Recording]:
        """The networks that are one box in this picture."""
        return [node for node in self.visible() if node.nodes]

    def visible(self, network: Recording | None = None) -> list[Recording]:
        """The boxes and gates that are drawn, in the order in which they run."""
        nodes: list[Recording] = []
        for node in (network or self.trace).nodes:
            nodes += self.visible(node) if self.is_open(node) else [node]
        return nodes

    def is_open(self, node: Recording) -> bool:
        """Whether the node is a network that is drawn unfolded."""
        return bool(node.nodes) and node.path in self.unfolded

    def backward_of(self, network: Recording, name: str) -> list[str]:
        """The ids of the nodes whose backward has to run before a wire's whole gradient is known;
        'out' stands for the start of backward."""
        needs = [self.ids[node.path] for node in network.nodes if name in node.reads]
        if name in network.outputs:
            if network.path == self.trace.path:
                needs.append("out")
            else:
                needs += self.backward_of(self.parents[network.path], network.name)
        return needs

    @cached_property
    def parents(self) -> dict[str, Recording]:
        """The network that each node is in, by the node's path."""
        networks = (self.trace, *self.trace.walk())
        return {node.path: network for network in networks for node in network.nodes}

    def called(self, network: Recording, name: str) -> str:
        """What a wire's value is called in formulas: E for the loss."""
        is_loss = self.trace.objective == "E" and network.path == self.trace.path
        if is_loss and name in network.outputs:
            return "E"
        return clean(self.symbols.get((network.path, name), name), MAX_LETTERS)

    @cached_property
    def wires(self) -> dict[tuple[str, str], int]:
        """A number for every wire, by its network's path and its name."""
        networks = (self.trace, *(node for node in self.trace.walk() if node.nodes))
        pairs = [(network.path, name) for network in networks for name in network.values]
        return {pair: i for i, pair in enumerate(pairs)}

    def wire(self, kind: str, network: Recording, name: str) -> str:
        """The reference of a wire's value, "v", of its gradient, "d", or of ones like it, "o"."""
        return f"{kind}{self.wires[network.path, name]}"

    def owner(self, node: Recording) -> str:
        """The path of the block whose parameters the node uses."""
        above = self.parents[node.path].path
        return f"{above}/{node.params_of}" if above else node.params_of

    @cached_property
    def symbols(self) -> dict[tuple[str, str], str]:
        """The symbol of every wire, by its network's path and its name."""
        return symbols(self.trace)

    @cached_property
    def objective(self) -> str:
        """What the gradients are of, as it is called in formulas."""
        text, outputs = self.trace.objective, self.trace.outputs
        if text != "E" and len(outputs) == 1:
            symbol = self.symbols[self.trace.path, outputs[0]]
            text = f"Σ{symbol}" if text.startswith("Σ") and text[1:] == outputs[0] else symbol
        return clean(text, MAX_LETTERS)


def board(trace: Recording, unfold: Any = None) -> Board:
    """The board of a trace.

    Args:
      unfold: the networks to open, by path; True for all, False for none, None for as many as a
        picture holds, the outer ones first.

    Raises:
      KeyError: there is no network at a path.
    """
    # With everything unfolded, long chains are not cut into parts.
    whole = in_line(as_network(trace))
    whole = whole if unfold is True else in_parts(whole)
    networks = {node.path: node for node in whole.walk() if node.nodes}
    if unfold is None:
        return Board(whole, frozenset(_fitting(whole)))
    if isinstance(unfold, bool):
        return Board(whole, frozenset(networks if unfold else ()))
    paths: Collection[str] = (unfold,) if isinstance(unfold, str) else tuple(unfold)
    for path in paths:
        if path not in networks and (path == "" or path not in [n.path for n in trace.walk()]):
            raise KeyError(f"no network {path!r} to unfold; there are: {', '.join(networks)}")
    around = {path[:i] for path in paths for i, c in enumerate(path) if c == "/"}
    return Board(whole, frozenset({*paths, *around}))


def _fitting(whole: Recording) -> Iterator[str]:
    """The networks to open: level by level, as long as a whole level fits."""
    boxes, level = len(whole.nodes), [node for node in whole.nodes if node.nodes]
    while level:
        more = sum(len(node.nodes) - 1 for node in level)
        if boxes + more > MAX_BOXES:
            # Two boxes, a network and its loss, say little: open the network all the same.
            if boxes <= 2 and len(level[0].nodes) < 5 * MAX_BOXES:
                yield level[0].path
            return
        boxes += more
        yield from (node.path for node in level)
        level = [inner for node in level for inner in node.nodes if inner.nodes]
