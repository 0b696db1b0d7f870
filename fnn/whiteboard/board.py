"""What a drawing needs to know of a trace besides its numbers: who reads what, what is open."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fnn.whiteboard.formulas import Described
from fnn.whiteboard.recording import NonFinite, Recording

MOST_BOXES = 24  # that a picture shows before networks fold by themselves


def as_network(trace: Recording) -> Recording:
    """The trace of one block alone as that of a network with this one node."""
    if trace.inputs:
        return trace
    many = isinstance(trace.x, tuple)
    inputs = tuple(f"x{i + 1}" for i in range(len(trace.x))) if many else ("x",)
    name = trace.name.replace("/", "\u2215") or "block"  # a path is cut at slashes
    return Recording(
        path="", block=trace.block, reads=(), params_of="", inputs=inputs, outputs=(name,),
        objective=trace.objective.replace("y", name), nodes=(_inside(trace, name, inputs),),
        params={name: trace.params}, x=trace.x, y=trace.y, residuals={name: trace.residuals},
        dy=trace.dy, dparams={name: trace.dparams}, dx=trace.dx, local=None, errors=trace.errors,
    )  # fmt: skip


def _inside(trace: Recording, name: str, inputs: tuple[str, ...]) -> Recording:
    fields = {f: getattr(trace, f) for f in trace.__dataclass_fields__}
    return Recording(**(fields | {"path": name, "reads": inputs, "params_of": name}))


def in_parts(trace: Recording) -> Recording:
    """The trace with the long chains in it as networks of about as many parts as each has blocks.

    A part is called as its last block, whose value it is, so all formulas stay as they are.
    """
    nodes = tuple(in_parts(node) for node in trace.nodes)
    if len(nodes) > 2 * MOST_BOXES:
        nodes = tuple(_parts(trace, nodes))
    elif all(a is b for a, b in zip(nodes, trace.nodes, strict=True)):
        return trace
    return dataclasses.replace(trace, nodes=nodes)


def _parts(trace: Recording, nodes: tuple[Recording, ...]) -> Iterator[Recording]:
    reads = collections.Counter(name for node in nodes for name in node.reads)
    owners = collections.Counter(node.params_of for node in nodes)
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
    return Recording(
        path=last.path, block=Described(f"{first.name} … {last.name}", "chain"),
        reads=first.reads, params_of=last.name,
        inputs=first.reads, outputs=(last.name,), objective=last.objective,
        nodes=tuple(_moved(node, last.path) for node in nodes),
        params={node.params_of: node.params for node in nodes}, x=first.x, y=last.y,
        residuals={node.name: node.residuals for node in nodes}, dy=last.dy,
        dparams={node.params_of: node.dparams for node in nodes}, dx=first.dx,
        local=None, errors=None,
    )  # fmt: skip


def _moved(node: Recording, into: str) -> Recording:
    path = f"{into}/{node.name}"
    inside = tuple(_moved(inner, path) for inner in node.nodes)
    return dataclasses.replace(node, path=path, nodes=inside)


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
        """The boxes and gates to be seen, in the order in which they run."""
        found: list[Recording] = []
        for node in (network or self.trace).nodes:
            found += self.visible(node) if self.is_open(node) else [node]
        return found

    def is_open(self, node: Recording) -> bool:
        """Whether one sees what is inside the node."""
        return bool(node.nodes) and node.path in self.unfolded

    def backward_of(self, network: Recording, name: str) -> list[str]:
        """After whose backward the whole gradient of a wire is known: their ids; 'out' stands for
        the start of backward."""
        needs = [self.ids[node.path] for node in network.nodes if name in node.reads]
        if name in network.outputs:
            if network.path == self.trace.path:
                needs.append("out")
            else:
                needs += self.backward_of(self.parent(network), network.name)
        return needs

    def parent(self, node: Recording) -> Recording:
        """The network that the node is in."""
        return self._parents[node.path]

    @cached_property
    def _parents(self) -> dict[str, Recording]:
        networks = (self.trace, *self.trace.walk())
        return {node.path: network for network in networks for node in network.nodes}

    def called(self, network: Recording, name: str) -> str:
        """The value of a wire as it is called in formulas: E for the loss."""
        is_loss = self.trace.objective == "E" and network.path == self.trace.path
        return "E" if is_loss and name in network.outputs else name


def board(trace: Recording, unfold: Any = None) -> Board:
    """The board of a trace.

    Args:
      unfold: which networks inside to open: None for as many as a picture holds, the outer ones
        first; True for all, False for none; or their paths.

    Raises:
      KeyError: a path that there is not, or at which there is no network.
    """
    # All unfolded, a long chain is one again.
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
    """The networks to open: level by level, as long as all of a level fit."""
    boxes, level = len(whole.nodes), [node for node in whole.nodes if node.nodes]
    while level:
        more = sum(len(node.nodes) - 1 for node in level)
        if boxes + more > MOST_BOXES:
            # A network with its loss is more than two boxes, however large it is.
            if boxes <= 2 and len(level[0].nodes) < 5 * MOST_BOXES:
                yield level[0].path
            return
        boxes += more
        yield from (node.path for node in level)
        level = [inner for node in level for inner in node.nodes if inner.nodes]
