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
from fnn.whiteboard.recording import NonFinite, Recording

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
    """A trace, and which of the networks inside it are unfolded (by path)."""

    trace: Recording
    unfolded: frozenset[str]

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
        return "E" if is_loss and name in network.outputs else clean(name, MAX_LETTERS)

    @cached_property
    def objective(self) -> str:
        """What the gradients are of, as it is called in formulas."""
        return clean(self.trace.objective, MAX_LETTERS)


def board(trace: Recording, unfold: Any = None) -> Board:
    """The board of a trace.

    Args:
      unfold: the networks to open, by path; True for all, False for none, None for as many as a
        picture holds, the outer ones first.

    Raises:
      KeyError: there is no network at a path.
    """
    # With everything unfolded, long chains are not cut into parts.
    whole = as_network(trace) if unfold is True else in_parts(as_network(trace))
    networks = {node.path: node for node in whole.walk() if node.nodes}
    if unfold is None:
        return Board(whole, frozenset(_fitting(whole)))
    if isinstance(unfold, bool):
        return Board(whole, frozenset(networks if unfold else ()))
    paths: Collection[str] = (unfold,) if isinstance(unfold, str) else tuple(unfold)
    for path in paths:
        if path not in networks:
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
