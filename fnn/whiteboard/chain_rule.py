# ruff: noqa: RUF001 - products are written ×
"""The chain rule in words: upstream times local is downstream, at forks the sum."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.block import is_floating
from fnn.introspect.text import clean
from fnn.whiteboard.array_text import EXACT, exactly, number, shape_of, tensor
from fnn.whiteboard.board import Board
from fnn.whiteboard.formulas import Formula, formula_of
from fnn.whiteboard.recording import Recording, each

MOST_PATHS, MOST_FACTORS = 4, 40
FITS, MOST_LETTERS = 52, 300  # of a product below a block, and in the panel


class Product(NamedTuple):
    """One step of the chain rule: through one block, to an input or a parameter.

    ``of``: what the gradient is of. ``rule``: the local derivative, or what backward computes.
    ``equation``: in names, df/dx = df/dq × dq/dx; with ⊙ number by number; of a matrix, df/da Wᵀ.
    ``whole``: −4 × 1 = −4, where each has nine numbers at most, else ''. ``numbers``: the same in
    lines that fit below a block, none where it does not. ``local``: the local derivative, where it
    was kept; ``slope``: the same of an elementwise block.
    ``gradient``: what goes down; None if nothing does.
    """

    of: str
    is_param: bool
    rule: str
    equation: str
    whole: str
    numbers: tuple[str, ...]
    local: Any
    slope: Any
    gradient: Any


def value_of(board: Board, node: Recording) -> str:
    """The formula of what the node computes, in the names of its wires."""
    names, y = _names(board, node)
    formula = _formula(node)
    if formula is None:
        kind = "the network" if node.nodes else clean(node.kind, 40)
        return f"{y} = {kind}({', '.join(names)})"
    if node.block.maker == "add" and len(names) > 2:
        return f"{y} = {' + '.join(names)}"
    return formula.written(formula.value, names, y)


def _formula(node: Recording) -> Formula | None:
    formula = formula_of(node.block)
    absent = set(formula.params) - set(node.params) if formula and formula.params else ()
    return formula and formula.without(absent)


def products(board: Board, node: Recording) -> list[Product]:
    """The chain rule through a node, to each of its inputs and then to each parameter."""
    names, y = _names(board, node)
    formula = _formula(node)
    by_params, by_x = node.local or (None, None)
    steps = [
        _product(board, node, names[i], "", formula.local_of(i, names, y) if formula else "", d, by)
        for i, (d, by) in enumerate(zip(node.dxs, each(by_x, len(names)), strict=True))
    ]
    if node.nodes:  # the parameters of a network belong to the nodes inside
        return steps
    slopes = dict(leaves_of(by_params))
    for leaf, d in leaves_of(node.dparams):
        if not leaf:
            continue
        template = formula.params.get(leaf, "") if formula else ""
        rule = formula.written(template, names, y) if formula else ""
        of = leaf
        if leaf in board.parent(node).values:  # a wire of the same name is another thing
            of = clean(f"{node.name}/{leaf}", 40)
            rule = f"d{of}{rule[rule.index(' =') :]}" if " =" in rule else rule
        steps.append(_product(board, node, of, leaf, rule, d, slopes.get(leaf)))
    return steps


def _names(board: Board, node: Recording) -> tuple[list[str], str]:
    network = board.parent(node)
    names = [clean(board.called(network, name), 24) for name in node.reads]
    return names, clean(board.called(network, node.name), 24)


def leaves_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """The leaves with their paths, None among them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda v: v is None):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _product(
    board: Board, node: Recording, of: str, leaf: str, rule: str, gradient: Any, local: Any
) -> Product:
    """``leaf``: the parameter, '' where it is the product to an input."""
    names, y = _names(board, node)
    f = clean(board.trace.objective, 24)
    formula = formula_of(node.block)
    slope = local if formula and formula.elementwise else None
    up, step, matrices = f"d{f}/d{y}", f"× d{y}/d{of}", False
    factors: Sequence[Any] = (node.dy, local)
    sizes = [getattr(v, "size", 0) for v in (node.dy, gradient)]
    if sizes[0] > 1 and formula and formula.elementwise:
        step = f"⊙ d{y}/d{of}"
    elif sizes[0] > 1:
        factors, matrices = _matrices(node, leaf), True
        up, step = (f"{names[0]}ᵀ", up) if leaf else (up, "Wᵀ")
    whole = _multiplied(factors, gradient, matrices)
    numbers: tuple[str, ...] = (whole,) if whole else ()
    if whole and sizes != [1, 1] and len(f"◂ {of}: {whole}") > FITS:  # a factor a line, at a gate
        numbers = tuple(re.split(" (?=[⊙×=] )", whole)) if slope is not None else ()
        numbers = numbers if all(len(f"◂ {of}: {line}") <= FITS for line in numbers) else ()
    equation = f"d{f}/d{of} = {up} {step}"
    return Product(of, bool(leaf), rule, equation, whole, numbers, local, slope, gradient)


def _matrices(node: Recording, param: str) -> Sequence[Any]:
    """The factors of dx = dy Wᵀ, or for parameter w of dW = xᵀ dy; of other blocks none."""
    affine = "linear" in (node.block.maker, *(inner.maker for inner in node.block.of))
    w: Any = node.params.get("w") if affine and isinstance(node.params, dict) else None
    if param not in ("", "w") or not 0 < getattr(w, "size", 0) <= EXACT or not w.ndim:
        return ()
    x, y = getattr(node.x, "shape", ()), node.y.shape
    if (*y[: len(x) - 1], w.shape[0]) != x or y[len(x) - 1 :] != w.shape[1:]:
        return ()  # a block of another's, of the same name
    matrix = np.asarray(w).reshape(w.shape[0], -1)
    dy = np.asarray(node.dy).reshape(-1, matrix.shape[1])
    return (np.asarray(node.x).reshape(-1, w.shape[0]).T, dy) if param else (dy, matrix.T)


def _multiplied(factors: Sequence[Any], result: Any, matrices: bool = False) -> str:
    """The product in numbers, number by number, or of matrices.

    '' where there are too many, or where those shown, rounded, do not multiply to the result.
    """
    few = all(0 < getattr(v, "size", 0) <= EXACT for v in (*factors, result))
    if not factors or not few or not is_floating(result):
        return ""
    # Shapes may differ where all are one number, or an upstream of one number goes to many.
    made = [np.asarray(v).astype(float) for v in factors]
    made = made if matrices else [v.ravel() for v in made]
    multiply = np.matmul if matrices else np.multiply
    eps, tiny = (float(getattr(jax.numpy.finfo(result.dtype), k)) for k in ("eps", "tiny"))
    for digits in (4, 6, 8):  # more where large ones cancel
        with np.errstate(all="ignore"):
            product = functools.reduce(multiply, [_rounded(v, digits) for v in made])
            got = product.astype(result.dtype).astype(float)  # where it overflows, this does
        if product.size != result.size:
            return ""
        down = np.asarray(result).astype(float).reshape(product.shape)
        if np.allclose(got, _rounded(down, digits), 1e-3 + 2 * eps, tiny, equal_nan=True):
            text = _written(made[0], digits)
            for before, v in itertools.pairwise(made):
                part = _written(v, digits)
                each = "⊙" if before.size > 1 and v.size > 1 else "×"
                sign = "·" if matrices else each
                text += f" {sign} " + (f"({part})" if part.startswith("−") else part)
            return f"{text} = {_written(down, digits)}"
    return ""


def _rounded(values: Any, digits: int) -> Any:
    return np.vectorize(lambda v: float(f"{v:.{digits}g}"), otypes=[float])(values)


def _written(values: Any, digits: int = 4) -> str:
    """A number 2, a vector (1, 2), a column (1, 2)ᵀ, a matrix [1, 2; 3, 4].

    >>> _written(np.array([[1.0, 2.0], [3.0, -4.0]])), _written(np.array([[1.0], [2.0]]))
    ('[1, 2; 3, −4]', '(1, 2)ᵀ')
    """
    if values.size == 1:
        return number(float(values.ravel()[0]), digits)
    rows = [[number(float(v), digits) for v in row] for row in np.atleast_2d(values)]
    if len(rows) == 1:
        return f"({', '.join(rows[0])})"
    if len(rows[0]) == 1:
        return f"({', '.join(row[0] for row in rows)})ᵀ"
    return f"[{'; '.join(', '.join(row) for row in rows)}]"


def relative(error: float) -> str:
    """A relative error in as few signs as say what it is."""
    return f"{error:.0e}" if 0 < error < float("inf") else number(error)


def signed(value: float) -> str:
    """The number, in parentheses where it is negative."""
    text = number(value)
    return f"({text})" if text.startswith("−") else text


def fork_sum(board: Board, network: Recording, name: str, whole: bool = True) -> str:
    """At a fork, the gradient as the sum of what comes back; '' for a wire that does not fork.

    A wire that one open network reads forks also where it forks inside that.
    """
    summands = _summands(board, network, name)
    if len(summands) < 2:
        return ""
    if any(getattr(d, "size", 1) != 1 for _, d in summands):
        readers = ", ".join(clean(reader, 24) for reader, _ in summands)
        return f"the sum of {len(summands)}: from {readers}"
    terms = [0.0 if d is None else float(np.asarray(d).ravel()[0]) for _, d in summands]
    text = " + ".join(map(signed, terms))
    total = network.values[name][1]
    return f"{text} = {number(float(np.asarray(total).ravel()[0]))}" if whole else text


def _summands(board: Board, network: Recording, name: str) -> list[tuple[str, Any]]:
    """What comes back to a wire from the blocks to be seen: (reader, cotangent)."""
    opened = {node.name: node for node in network.nodes if board.is_open(node)}
    found = [(reader, d) for reader, d in network.summands[name] if reader not in opened]
    for node in opened.values():
        for wire, read in zip(node.inputs, node.reads, strict=True):
            if read == name:
                found += _summands(board, node, wire)
    return found


# ---- all the way from the output -------------------------------------------------------------


def chains(
    board: Board, network: Recording, name: str, param: tuple[str, Any] | None = None
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
            single = getattr(network.values[name][0], "size", 0) == 1
            factors.append((f"d{wire}/d{target}", _slopes(param[1]) if single else None))
        shown = [factor for factor, _ in factors]
        if len(shown) > MOST_FACTORS:
            half = MOST_FACTORS // 2
            shown = [*shown[:half], f"… {len(shown) - 2 * half} more …", *shown[-half:]]
        text = f"{'+' if i else f'd{f}/d{target} ='} {' × '.join(shown)}"
        slopes = [local for _, local in factors if local is not None]
        if len(slopes) == len(factors):
            text += _numbers(slopes)
        made.append(text)
    if more:
        made.append("+ … there are more ways; the gradients of all of them add")
    return made


def _slopes(local: Any) -> Any:
    """The local derivatives in a row, where there are nine at most, else None."""
    few = 0 < getattr(local, "size", 0) <= EXACT
    return np.asarray(local).astype(float).ravel() if few else None


def _numbers(slopes: list[Any]) -> str:
    """The product of the factors of a chain; '' where it would be too long."""
    if len(slopes) == 1:
        return f" = {_written(slopes[0])}"
    with np.errstate(all="ignore"):
        text = _multiplied(slopes, functools.reduce(np.multiply, slopes))
    single = all(v.size == 1 for v in slopes)
    return f" = {text}" if text and (single or len(text) <= MOST_LETTERS) else ""


# path, name, local derivatives by this value of the one before
Stop = tuple[str, str, Any]


def _ways(board: Board, network: Recording, name: str) -> tuple[list[list[Stop]], bool]:
    """Ways from the output to a wire, outermost first, and whether there are more."""
    readers = [node for node in network.nodes if name in node.reads]
    called = board.called(network, name)
    ways: list[list[Stop]] = []
    more = False
    if name in network.outputs:
        if network.path == board.trace.path:
            few = 0 < getattr(network.values[name][0], "size", 0) <= EXACT
            ways.append([("", called, np.ones(network.values[name][0].size) if few else None)])
        else:  # the network's output is this value: further on from there
            above, more = _ways(board, board.parent(network), network.name)
            ways += above
    for node in readers:
        inner, cut = _ways(board, network, node.name)
        more |= cut
        locals_ = each(node.local and node.local[1], len(node.reads))
        for port, read in enumerate(node.reads):
            if read != name:
                continue
            # Number by number, or to one number: else the derivatives are a matrix.
            formula, one = formula_of(node.block), getattr(node.y, "size", 0) == 1
            rowwise = one or (formula is not None and formula.elementwise)
            slope = _slopes(locals_[port]) if rowwise else None
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
