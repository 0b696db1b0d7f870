# ruff: noqa: RUF001 - products are written ×
"""The chain rule in words: upstream times local is downstream, at forks the sum."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.introspect.text import clean
from fnn.whiteboard.array_text import COLUMN, EXACT, exactly, number, tensor
from fnn.whiteboard.board import MAX_LETTERS, Board
from fnn.whiteboard.numbers import marked
from fnn.whiteboard.recording import Recording, each
from fnn.whiteboard.symbols import is_number

MAX_WAYS, MAX_FACTORS = 4, 40
FITS, FITS_PANEL = 52, 300  # letters of a product below a block, and in the panel


class Product(NamedTuple):
    """One step of the chain rule: through one block, to an input or a parameter.

    ``of``: the input or parameter. ``rule``: the local derivative, or what backward computes.
    ``equation``: in names, df/dx = df/dq × dq/dx; entry by entry with ⊙; of a matrix, df/da Wᵀ.
    ``whole``: −4 × 1 = −4 where each has nine numbers at most, else ''. ``numbers``: the same in
    lines that fit below a block, if any. ``local``: the local derivative, if recorded.
    ``gradient``: what goes down; None if nothing does. ``reference``: of the gradient.
    ``factors``: of the factors; of a matrix with its columns and whether it is transposed.
    """

    of: str
    is_param: bool
    rule: str
    equation: str
    whole: str
    numbers: tuple[str, ...]
    local: Any
    gradient: Any
    reference: str
    factors: tuple[Any, ...]

    @property
    def recipe(self) -> list[Any]:
        """How a page writes the product anew."""
        return ["product", list(self.factors), self.reference]


def value_of(board: Board, node: Recording) -> str:
    """What the node computes, in the names of its wires."""
    names, y = _names(board, node)
    formula = node.formula
    if formula is None:
        kind = "the network" if node.nodes else clean(node.kind, 40)
        return f"{y} = {kind}({', '.join(names)})"
    if node.block.maker == "add" and len(names) > 2:
        return f"{y} = {' + '.join(names)}"
    return formula.written(formula.value, names, y)


def products(board: Board, node: Recording) -> list[Product]:
    """The chain rule through a node, to each of its inputs, but for constants, and then to each
    parameter."""
    names, y = _names(board, node)
    formula = node.formula
    by_params, by_x = node.local or (None, None)
    inputs = zip(names, each(node.dx, len(names)), each(by_x, len(names)), strict=True)
    steps = [
        _product(board, node, of, i, "", formula.local_of(i, names, y) if formula else "", d, by)
        for i, (of, d, by) in enumerate(inputs)
        if not is_number(of)
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
        if leaf in board.parents[node.path].values:  # a wire of the same name is another thing
            of = clean(f"{node.name}/{leaf}", 40)
            rule = f"d{of}{rule[rule.index(' =') :]}" if " =" in rule else rule
        steps.append(_product(board, node, of, 0, leaf, rule, d, slopes.get(leaf)))
    return steps


def _names(board: Board, node: Recording) -> tuple[list[str], str]:
    network = board.parents[node.path]
    names = [board.called(network, name) for name in node.reads]
    if node.elementwise and len(names) == 1 and isinstance(node.x, tuple):
        names = [f"{names[0]}[{i}]" for i in range(len(node.x))]  # a gate that reads a tuple
    return names, board.called(network, node.name)


def leaves_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """The leaves with their paths, None among them: matrices first, w before b."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda v: v is None)
    for path, leaf in sorted(leaves, key=lambda pair: -getattr(pair[1], "ndim", 0)):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _product(
    board: Board, node: Recording, of: str, i: int, leaf: str, rule: str, gradient: Any, local: Any
) -> Product:
    """``leaf``: the parameter, '' where it is the product to input number ``i``."""
    names, y = _names(board, node)
    f = board.objective
    up, step, matrices = f"d{f}/d{y}", f"× d{y}/d{of}", False
    factors: Sequence[Any] = (node.dy, local)
    id, network = board.ids[node.path], board.parents[node.path]
    upstream = board.wire("d", network, node.name)
    recipe: tuple[Any, ...] = (upstream, f"m{id}.{leaf}" if leaf else f"l{id}.{i}")
    sizes = [getattr(v, "size", 0) for v in (node.dy, gradient)]
    if sizes[0] > 1 and node.elementwise:
        step = f"⊙ d{y}/d{of}"
    elif sizes[0] > 1:
        factors, matrices = _matrices(node, leaf), True
        if factors:
            rows, columns = node.params["w"].shape[0], factors[1 if leaf else 0].shape[1]
            w, x = f"p{id}.w", board.wire("v", network, node.reads[0])
            recipe = (([x, rows, True], [upstream, columns, False]) if leaf
                      else ([upstream, columns, False], [w, columns, True]))  # fmt: skip
        up, step = (f"{names[0]}ᵀ", up) if leaf else (up, "Wᵀ")
    whole = _multiplied(factors, gradient, matrices)
    numbers: tuple[str, ...] = (whole,) if whole else ()
    if whole and sizes != [1, 1]:
        by_entry = node.elementwise or sizes[0] == 1
        numbers = _by_entry(factors, gradient) if by_entry and sizes[1] <= COLUMN else numbers
        numbers = numbers if all(len(f"◂ {of}: {line}") <= FITS for line in numbers) else ()
    equation = f"d{f}/d{of} = {up} {step}"
    reference = f"g{id}.{leaf}" if leaf else f"x{id}.{i}"
    return Product(
        of, bool(leaf), rule, equation, whole, numbers, local, gradient, reference, recipe
    )


def _matrices(node: Recording, param: str) -> Sequence[Any]:
    """The factors of dx = dy Wᵀ, or for parameter w of dW = xᵀ dy; of other blocks none."""
    affine = "linear" in (node.block.maker, *(inner.maker for inner in node.block.of))
    w: Any = node.params.get("w") if affine and isinstance(node.params, dict) else None
    if param not in ("", "w") or not 0 < getattr(w, "size", 0) <= EXACT or not w.ndim:
        return ()
    x, y = getattr(node.x, "shape", ()), node.y.shape
    if (*y[: len(x) - 1], w.shape[0]) != x or y[len(x) - 1 :] != w.shape[1:]:
        return ()  # several matrices, as of repeat
    matrix = np.asarray(w).reshape(w.shape[0], -1)
    dy = np.asarray(node.dy).reshape(-1, matrix.shape[1])
    return (np.asarray(node.x).reshape(-1, w.shape[0]).T, dy) if param else (dy, matrix.T)


def _multiplied(factors: Sequence[Any], result: Any, matrices: bool = False) -> str:
    """The product in numbers, entry by entry or of matrices.

    '' where there are too many numbers, or where they, rounded, do not multiply to the result.
    """
    few = all(0 < getattr(v, "size", 0) <= EXACT for v in (*factors, result))
    if not factors or not few or not is_floating(result):
        return ""
    # Shapes may differ where all are one number, or an upstream of one number goes to many.
    floats = [np.asarray(v).astype(float) for v in factors]
    floats = floats if matrices else [v.ravel() for v in floats]
    multiply = np.matmul if matrices else np.multiply
    eps, tiny = (float(getattr(jax.numpy.finfo(result.dtype), k)) for k in ("eps", "tiny"))
    for digits in (4, 6, 8):  # more where large ones cancel
        with np.errstate(all="ignore"):
            product = functools.reduce(multiply, [_rounded(v, digits) for v in floats])
            got = product.astype(result.dtype).astype(float)  # where it overflows, this does
        if product.size != result.size:
            return ""
        down = np.asarray(result).astype(float).reshape(product.shape)
        if np.allclose(got, _rounded(down, digits), 1e-3 + 2 * eps, tiny, equal_nan=True):
            text = _written(floats[0], digits)
            for before, v in itertools.pairwise(floats):
                by_entry = "⊙" if before.size > 1 and v.size > 1 else "×"
                text += f" {'·' if matrices else by_entry} {_bracketed(_written(v, digits))}"
            return f"{text} = {_written(down, digits)}"
    return ""


def _by_entry(factors: Sequence[Any], result: Any) -> tuple[str, ...]:
    """A product a line, for each entry; a factor of one number goes to all of them."""
    size = np.asarray(result).size
    columns = []
    for v in (*factors, result):
        flat = np.asarray(v).astype(float).ravel()
        texts = [number(float(w)) for w in np.broadcast_to(flat, size)]
        columns.append([text.rjust(max(map(len, texts))) for text in texts])
    return tuple(" = ".join((" × ".join(row[:-1]), row[-1])) for row in zip(*columns, strict=True))


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


def _bracketed(text: str) -> str:
    """The number as it stands behind a sign."""
    return f"({text})" if text.startswith("−") else text


def fork_sum(board: Board, network: Recording, name: str, whole: bool = True) -> str:
    """The gradient of a wire that forks as the sum of what comes back, else ''.

    A wire into an open network also forks where it forks in there.
    """
    summands = summands_of(board, network, name)
    if len(summands) < 2 or is_number(name):
        return ""
    if any(getattr(d, "size", 1) != 1 for _, d, _ in summands):
        readers = ", ".join(clean(reader, 24) for reader, _, _ in summands)
        return f"the sum of {len(summands)}: from {readers}"
    terms = [0.0 if d is None else float(np.asarray(d).ravel()[0]) for _, d, _ in summands]
    text = " + ".join(_bracketed(number(term)) for term in terms)
    total = network.values[name][1]
    return f"{text} = {number(float(np.asarray(total).ravel()[0]))}" if whole else text


def summands_of(board: Board, network: Recording, name: str) -> list[tuple[str, Any, str]]:
    """What comes back to a wire from the blocks that are drawn: (reader, cotangent, reference)."""
    # Where values are read as one tuple there is no wire of each that leads on.
    opened = {
        node.name: node for node in network.nodes
        if board.is_open(node) and len(node.inputs) == len(node.reads)
    }  # fmt: skip
    ports = {
        (node.name, i): f"x{board.ids[node.path]}.{i}"
        for node in network.nodes for i in range(len(node.reads))
    }  # fmt: skip
    readers = [(node, i) for node in reversed(network.nodes) for i in range(len(node.reads))]
    into = [("output", board.wire("o", network, name))] * network.outputs.count(name)
    into += [
        (node.name, ports[node.name, i]) for node, i in readers if node.reads[i] == name
    ]  # in the order of Recording.summands
    sent = zip(network.summands[name], into, strict=True)
    summands = [(reader, d, ref) for (reader, d), (_, ref) in sent if reader not in opened]
    for node in opened.values():
        for wire, read in zip(node.inputs, node.reads, strict=True):
            if read == name:
                summands += summands_of(board, node, wire)
    return summands


# ---- all the way from the output -------------------------------------------------------------


def chains(
    board: Board, network: Recording, name: str, param: tuple[str, Any, str] | None = None
) -> list[str]:
    """A wire's gradient as products of all local derivatives between it and the output, a line for
    each way; the gradient is their sum.

    ``param``: a parameter of the node that makes the wire, the local derivative by it, and that
    one's reference, to have that parameter's gradient instead.
    """
    f, wire = board.objective, board.called(network, name)
    ways = list(itertools.islice(_ways(board, network, name), MAX_WAYS + 1))
    target, ends, text = wire, list[Any](), []
    if param:
        target = clean(param[0], MAX_LETTERS)
        single = getattr(network.values[name][0], "size", 0) == 1
        ends = [(target, _slopes(param[1]) if single else None, param[2])]
    for i, way in enumerate(ways[:MAX_WAYS]):
        stops, slopes, references = zip(*way, *ends, strict=True)
        names = (f, *stops)
        factors = [f"d{a}/d{b}" for a, b in itertools.pairwise(names)]
        if len(factors) > MAX_FACTORS:
            half = MAX_FACTORS // 2
            factors[half:-half] = [f"… {len(factors) - 2 * half} more …"]
        numbers = "" if any(slope is None for slope in slopes) else _numbers(slopes)
        if numbers:
            recipe = ["product", list(references), None]
            numbers = " = " + marked(numbers, numbers, recipe)
        text.append(f"{'+' if i else f'd{f}/d{target} ='} {' × '.join(factors)}{numbers}")
    if len(ways) > MAX_WAYS:
        text.append("+ … more ways; the gradient is the sum over all of them")
    return text


def _slopes(local: Any) -> np.ndarray | None:
    """The local derivatives in a row; None where they are unknown or more than nine."""
    few = 0 < getattr(local, "size", 0) <= EXACT
    return np.asarray(local).astype(float).ravel() if few else None


def _numbers(slopes: Sequence[Any]) -> str:
    """The product of a chain's factors, '' where it would be too long."""
    if len(slopes) == 1:
        return _written(slopes[0])
    with np.errstate(all="ignore"):
        text = _multiplied(slopes, functools.reduce(np.multiply, slopes))
    single = all(v.size == 1 for v in slopes)
    return text if single or len(text) <= FITS_PANEL else ""


def _ways(
    board: Board, network: Recording, name: str
) -> Iterator[list[tuple[str, np.ndarray | None, str]]]:
    """Every way from the output to a wire: names, local derivatives by each, references."""
    called = board.called(network, name)
    if name in network.outputs:
        if network.path == board.trace.path:
            ones = np.ones(getattr(network.values[name][0], "size", 0))
            yield [(called, _slopes(ones), board.wire("o", network, name))]
        else:  # the network's output is this value: further on from there
            yield from _ways(board, board.parents[network.path], network.name)
    for node in network.nodes:
        if name not in node.reads:
            continue
        # Entry by entry, or to one number: else the derivatives are a matrix.
        single = node.elementwise or getattr(node.y, "size", 0) == 1
        by = each(node.local[1] if node.local and single else None, len(node.reads))
        for way in _ways(board, network, node.name):
            for i, (read, local) in enumerate(zip(node.reads, by, strict=True)):
                if read == name:
                    yield [*way, (called, _slopes(local), f"l{board.ids[node.path]}.{i}")]


# ---- exact numbers ---------------------------------------------------------------------------


def in_words(value: Any, gradient: bool = False, reference: Any = None) -> str:
    """Up to nine numbers, with four digits and with all of them, else a summary of the array.

    ``reference``: where a page finds the value; see :mod:`fnn.whiteboard.numbers`.
    """
    if value is None:
        return "none"
    leaves = jax.tree.leaves(value)
    if isinstance(value, tuple) or len(leaves) != 1:
        return "; ".join(in_words(leaf, gradient) for leaf in leaves) or "nothing"
    (array,) = leaves
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        return "a key"
    summary = tensor(array)
    kind = f"{summary.dtype} {summary.shape}".strip()
    if summary.numbers:
        values = np.asarray(array).ravel()
        full = ", ".join(map(exactly, values))
        matrix = np.asarray(array).ndim == 2 and min(array.shape) > 1
        return marked(
            _written(np.asarray(array) if matrix else values),
            f"[{full}]  ({kind})" if summary.shape else full,
            reference,
        )
    size = f", |g| = {summary.magnitude}" if gradient else ""
    bad = f", {summary.bad}" if summary.bad else ""
    text = f"{summary.summary}{size}{bad}"
    return marked(f"{text}  ({summary.shape})", f"{text}  ({kind})", reference)
