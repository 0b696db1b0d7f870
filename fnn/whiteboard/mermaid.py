# ruff: noqa: RUF001 - gradients are marked with their own signs
"""A trace as a Mermaid flowchart, which Markdown shows in many places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fnn.introspect.text import clean
from fnn.whiteboard.array_text import number, shape_of, tensor
from fnn.whiteboard.board import Board, board
from fnn.whiteboard.formulas import formula_of
from fnn.whiteboard.recording import Recording


def mermaid(trace: Recording, unfold: Any = None) -> str:
    """Gates as circles, blocks as boxes, networks as frames; ▸ value, ◂ gradient on each wire.

    >>> import fnn
    >>> print(fnn.whiteboard.trace(fnn.multiply(), {}, (3.0, -4.0)).mermaid())
    flowchart LR
      in_0_0["x1"]
      in_0_1["x2"]
      n1(("multiply ×"))
      in_0_0 -->|"▸ 3 ◂ −4"| n1
      in_0_1 -->|"▸ −4 ◂ 3"| n1
      out_0["multiply"]
      n1 -->|"▸ −12 ◂ 1"| out_0
    <BLANKLINE>
    """
    b = board(trace, unfold)
    lines = ["flowchart LR", *_network(b, b.trace, "  ")]
    for i, name in enumerate(b.trace.outputs):
        lines.append(f'  out_{i}["{_text(b.called(b.trace, name))}"]')
        lines.append(f"  {_source(b, b.trace, name)} -->{_wire(*b.trace.values[name])} out_{i}")
    return "\n".join(lines) + "\n"


def _network(b: Board, network: Recording, indent: str) -> Iterator[str]:
    if network.path == b.trace.path:
        for i, name in enumerate(network.inputs):
            yield f'{indent}in_0_{i}["{_text(name)}"]'
    for node in network.nodes:
        id = f"n{b.ids[node.path]}"
        if b.is_open(node):
            yield f'{indent}subgraph {id}["{_label(node)}"]'
            yield from _network(b, node, indent + "  ")
            yield f"{indent}end"
            continue
        formula = formula_of(node.block)
        if formula and formula.symbol:
            yield f'{indent}{id}(("{_text(node.name)} {_text(formula.symbol)}"))'
        elif node.nodes:
            yield f'{indent}{id}[["{_label(node)}"]]'
        else:
            yield f'{indent}{id}["{_label(node)}"]'
        dxs = (node.dx,) if len(node.reads) == 1 else node.dx or (None,) * len(node.reads)
        for name, dx in zip(node.reads, dxs, strict=True):
            wire = _wire(network.values[name][0], dx)
            yield f"{indent}{_source(b, network, name)} -->{wire} {id}"


def _source(b: Board, network: Recording, name: str) -> str:
    """The box that a wire comes from: through the frames of open networks, in both directions."""
    if name in network.inputs:
        if network.path == b.trace.path:
            return f"in_0_{network.inputs.index(name)}"
        outer = network.reads[min(network.inputs.index(name), len(network.reads) - 1)]
        return _source(b, b.parent(network), outer)
    (node,) = (node for node in network.nodes if node.name == name)
    if b.is_open(node):
        return _source(b, node, node.outputs[0])
    return f"n{b.ids[node.path]}"


def _wire(value: Any, gradient: Any) -> str:
    return f'|"▸ {_number(value)} ◂ {_number(gradient, True)}"|'


def _number(value: Any, gradient: bool = False) -> str:
    leaves = jax.tree.leaves(value)
    if not leaves:
        return "none"
    if len(leaves) > 1:
        return f"{len(leaves)} arrays"
    (a,) = leaves
    if a.size == 1:
        return number(float(np.asarray(a).ravel()[0]))
    return f"‖{tensor(a).magnitude}‖" if gradient else shape_of(a)


def _label(node: Recording) -> str:
    kind = f" ({_text(node.kind)})" if node.kind != node.name else ""
    return _text(node.name) + kind


def _text(name: str) -> str:
    """A name as Mermaid takes it: what could end the label or be markup is written as a code."""
    return "".join(
        c if c.isalnum() or c in " _.,+-×÷−√²Σσ·…�ᵖ|()" else f"#{ord(c)};" for c in clean(name, 40)
    )
