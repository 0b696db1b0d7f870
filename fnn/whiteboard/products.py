# ruff: noqa: RUF001 - products are written ×
"""The chain rule in words: upstream times local is downstream, at forks the sum."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.whiteboard.board import Board
from fnn.whiteboard.formulas import Formula, formula_of
from fnn.whiteboard.tensors import clean, exactly, number, shape_of, tensor
from fnn.whiteboard.trace import Trace

MOST_PATHS, MOST_FACTORS = 4, 40


class Product(NamedTuple):
    """One step of the chain rule: through one block, to an input or a parameter.

    ``of``: what the gradient is of. ``rule``: the local derivative, or what backward computes.
    ``equation``: in names, df/dx = df/dq × dq/dx. ``numbers``: −4 × 1 = −4, where they are
    single numbers, else ''. ``local``: the local derivative, where it was kept;
    ``slope``: the same of an elementwise block.
    ``gradient``: what goes down; None if nothing does.
    """

    of: str
    is_param: bool
    rule: str
    equation: str
    numbers: str
    local: Any
    slope: Any
    gradient: Any


def value_of(board: Board, node: Trace) -> str:
    """The formula of what the node computes, in the names of its wires."""
    names, y = _names(board, node)
    formula = formula_of(node.kind)
    if formula is None:
        kind = "the network" if node.nodes else clean(node.kind, 40)
        return f"{y} = {kind}({', '.join(names)})"
    value = formula.value
    if isinstance(node.params, dict) and "w" in node.params and "b" not in node.params:
        value = value.replace(" + b", "")
    if node.kind == "add" and len(names) > 2:
        return f"{y} = {' + '.join(names)}"
    return formula.written(value, names, y)


def products(board: Board, node: Trace) -> list[Product]:
    """The chain rule through a node, to each of its inputs and then to each parameter."""
    names, y = _names(board, node)
    formula = formula_of(node.kind)
    dxs = (node.dx,) if len(node.reads) == 1 else node.dx or (None,) * len(node.reads)
    locals_ = _local(node, 1, len(node.reads))
    made = [
        _product(board, node, names[i], False, _rule(formula, i, names, y), dxs[i], locals_[i])
        for i in range(len(node.reads))
    ]
    if node.nodes:  # the parameters of a network belong to the nodes inside
        return made
    for leaf, d in leaves_of(node.dparams):
        if not leaf:
            continue
        local = dict(leaves_of(node.local[0])).get(leaf) if node.local is not None else None
        known = formula.params.get(leaf, "") if formula else ""
        rule = formula.written(known, names, y) if formula and known else ""
        made.append(_product(board, node, leaf, True, rule, d, local))
    return made


def _names(board: Board, node: Trace) -> tuple[list[str], str]:
    network = board.parent(node)
    names = [clean(board.called(network, name), 24) for name in node.reads]
    return names, clean(board.called(network, node.name), 24)


def leaves_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """The leaves with their paths, None among them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda v: v is None):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _local(node: Trace, part: int, count: int) -> tuple[Any, ...]:
    local = None if node.local is None else node.local[part]
    return (local,) if count == 1 else local or (None,) * count


def _rule(formula: Formula | None, i: int, names: list[str], y: str) -> str:
    return "" if formula is None else formula.local_of(i, names, y)


def _product(
    board: Board, node: Trace, of: str, is_param: bool, rule: str, gradient: Any, local: Any
) -> Product:
    _, y = _names(board, node)
    f = clean(board.trace.objective, 24)
    equation = f"d{f}/d{of} = d{f}/d{y} × d{y}/d{of}"
    numbers = ""
    one = all(getattr(v, "size", 0) == 1 for v in (node.dy, local, gradient))
    if one:
        up, by, down = (float(np.asarray(v).ravel()[0]) for v in (node.dy, local, gradient))
        numbers = f"{number(up)} × {signed(by)} = {number(down)}"
    formula = formula_of(node.kind)
    slope = local if formula is not None and formula.elementwise else None
    return Product(of, is_param, rule, equation, numbers, local, slope, gradient)


def relative(error: float) -> str:
    """A relative error in as few signs as say what it is."""
    return f"{error:.0e}" if 0 < error < float("inf") else number(error)


def signed(value: float) -> str:
    """The number, in parentheses where it is negative."""
    text = number(value)
    return f"({text})" if text.startswith("−") else text


def fork_sum(board: Board, network: Trace, name: str, whole: bool = True) -> str:
    """At a fork, the gradient as the sum of what comes back; '' for a wire that does not fork."""
    for fork in network.forks:
        if fork.name != name:
            continue
        if all(getattr(d, "size", 1) == 1 for _, d in fork.summands):
            terms = [
                0.0 if d is None else float(np.asarray(d).ravel()[0]) for _, d in fork.summands
            ]
            text = " + ".join(map(signed, terms))
            return f"{text} = {number(float(np.asarray(fork.total).ravel()[0]))}" if whole else text
        return f"the sum of {len(fork.summands)}: from " + ", ".join(
            clean(reader, 24) for reader, _ in fork.summands
        )
    return ""


# ---- all the way from the output -------------------------------------------------------------


def chains(
    board: Board, network: Trace, name: str, param: tuple[str, Any] | None = None
) -> list[str]:
    """The gradient of a wire as products of all the local derivatives between it and the output,
    one for each way (their sum is the gradient).

    ``param``: a parameter of the node that makes the wire, and the local derivative by it: then it
    is that parameter's gradient.
    """
    f = clean(board.trace.objective, 24)
    ways, more = _ways(board, network, name)
    wire = clean(board.called(network, name), 24)
    target = clean(param[0], 24) if param else wire
    made = []
    for i, way in enumerate(ways):
        factors = [(f"d{f}/d{clean(way[0][1], 24)}", way[0][2])]
        factors += [
            (f"d{clean(a, 24)}/d{clean(b, 24)}", local)
            for (_, a, _), (_, b, local) in itertools.pairwise(way)
        ]
        if param:
            one = getattr(param[1], "size", 0) == 1
            slope = float(np.asarray(param[1]).ravel()[0]) if one else None
            factors.append((f"d{wire}/d{target}", slope))
        shown = [factor for factor, _ in factors]
        if len(shown) > MOST_FACTORS:
            half = MOST_FACTORS // 2
            shown = [*shown[:half], f"… {len(shown) - 2 * half} more …", *shown[-half:]]
        text = f"{'+' if i else f'd{f}/d{target} ='} {' × '.join(shown)}"
        slopes = [local for _, local in factors if local is not None]
        if len(slopes) == len(factors):
            text += " = " + " × ".join(signed(s) if j else number(s) for j, s in enumerate(slopes))
            if len(slopes) > 1:
                text += f" = {number(float(np.prod(slopes)))}"
        made.append(text)
    if more:
        made.append("+ … there are more ways; the gradients of all of them add")
    return made


Stop = tuple[str, str, float | None]  # path, name, local derivative by this value of the one before


def _ways(board: Board, network: Trace, name: str) -> tuple[list[list[Stop]], bool]:
    """Ways from the output to a wire, outermost first, and whether there are more."""
    readers = [node for node in network.nodes if name in node.reads]
    called = board.called(network, name)
    ways: list[list[Stop]] = []
    more = False
    if name in network.outputs:
        if network.path == board.trace.path:
            one = getattr(network.values[name][0], "size", 0) == 1
            ways.append([("", called, 1.0 if one else None)])
        else:  # the network's output is this value: further on from there
            above, more = _ways(board, board.parent(network), network.name)
            ways += above
    for node in readers:
        inner, cut = _ways(board, network, node.name)
        more |= cut
        locals_ = _local(node, 1, len(node.reads))
        for port, read in enumerate(node.reads):
            if read != name:
                continue
            local = locals_[port]
            one = getattr(local, "size", 0) == 1
            slope = float(np.asarray(local).ravel()[0]) if one else None
            ways += [[*way, (node.path, called, slope)] for way in inner]
        if len(ways) > MOST_PATHS:
            return ways[:MOST_PATHS], True
    return ways[:MOST_PATHS], more or len(ways) > MOST_PATHS


# ---- exact numbers ---------------------------------------------------------------------------


def in_words(value: Any, gradient: bool = False) -> str:
    """An array with all its digits where there are nine numbers at most, else in few words."""
    if value is None:
        return "none"
    leaves = jax.tree.leaves(value)
    if isinstance(value, tuple) or len(leaves) != 1:
        return "; ".join(in_words(leaf, gradient) for leaf in leaves) or "nothing"
    (array,) = leaves
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        return "a key"
    told = tensor(array)
    kind = f"{told.dtype} {told.shape}".strip()
    if told.numbers:
        numbers = ", ".join(exactly(v) for v in np.asarray(array).ravel())
        return numbers if not shape_of(array) else f"[{numbers}]  ({kind})"
    size = f", |g| = {told.magnitude}" if gradient else ""
    bad = f", {told.bad}" if told.bad else ""
    return f"{told.summary}{size}{bad}  ({kind})"
