# ruff: noqa: RUF001 - gradients are marked with their own signs
"""A trace as a Mermaid flowchart, which Markdown shows in many places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fnn.introspect.text import clean
from fnn.whiteboard.array_text import arrays, number, shape_of, tensor
from fnn.whiteboard.board import Board, board
from fnn.whiteboard.recording import Recording


def mermaid(trace: Recording) -> str:
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
    b = board(trace)
    whole = b.trace
    boxes = {name: f"in_0_{i}" for i, name in enumerate(whole.inputs)}
    lines = ["flowchart LR", *(f'  {id}["{_text(name)}"]' for name, id in boxes.items())]
    lines += _nodes(b, whole, boxes, "  ")
    for i, name in enumerate(whole.outputs):
        lines.append(f'  out_{i}["{_text(b.called(whole, name))}"]')
        lines.append(f"  {boxes[name]} {_wire(*whole.values[name])} out_{i}")
    return "\n".join(lines) + "\n"


def _nodes(b: Board, network: Recording, boxes: dict[str, str], indent: str) -> Iterator[str]:
    """The lines of a network's nodes; ``boxes``: where each wire comes from, by its name."""
    for node in network.nodes:
        id, formula, label = f"n{b.ids[node.path]}", node.formula, _text(node.name)
        kind = f" ({_text(node.kind)})" if node.kind != node.name else ""
        if b.is_open(node):
            last = len(node.reads) - 1  # a network may read its inputs as one tuple
            inside = {name: boxes[node.reads[min(i, last)]] for i, name in enumerate(node.inputs)}
            yield f'{indent}subgraph {id}["{label}{kind}"]'
            yield from _nodes(b, node, inside, indent + "  ")
            yield f"{indent}end"
            boxes[node.name] = inside[node.outputs[0]]
            continue
        if formula and formula.symbol:
            yield f'{indent}{id}(("{label} {_text(formula.symbol)}"))'
        else:
            left, right = ("[[", "]]") if node.nodes else ("[", "]")
            yield f'{indent}{id}{left}"{label}{kind}"{right}'
        for name, dx in zip(node.reads, node.dxs, strict=True):
            yield f"{indent}{boxes[name]} {_wire(network.values[name][0], dx)} {id}"
        boxes[node.name] = id


def _wire(value: Any, gradient: Any) -> str:
    return f'-->|"▸ {_number(value)} ◂ {_number(gradient, True)}"|'


def _number(value: Any, gradient: bool = False) -> str:
    several = arrays(value)
    if len(several) != 1:
        return f"{len(several)} arrays" if several else "none"
    (a,) = several
    if a.size == 1:
        return number(float(np.asarray(a).ravel()[0]))
    return f"‖{tensor(a).magnitude}‖" if gradient else shape_of(a)


def _text(name: str) -> str:
    """A name with all that could end a label or be markup written as a code."""
    return "".join(
        c if c.isalnum() or c in " _.,+-×÷−√²Σσ·…�ᵖ|()" else f"#{ord(c)};" for c in clean(name, 40)
    )
