"""A small network as a program for live.js, which computes it anew when a number is changed.

A page is live where its script knows every block and all numbers are few. It starts by computing
what was recorded: where it does not get the same gradients, it stays as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.blocks.windows import Windows
from fnn.introspect.text import clean
from fnn.whiteboard.board import Board
from fnn.whiteboard.chain_rule import leaves_of, products, summands_of
from fnn.whiteboard.formulas import LOSSES
from fnn.whiteboard.recording import Recording
from fnn.whiteboard.symbols import is_number, late_inputs

MAX_NUMBERS = 200  # inputs, parameters and target of a live page


def program(b: Board) -> dict[str, Any] | None:
    """The trace as a list of operations on numbered wires; None where it cannot be live.

    Returns:
      ``inputs``, ``params``: arrays as ``{"shape": ..., "data": ...}``, an input with its wire, a
      parameter with the path of its block. ``ops``: in the order of forward, with the wires they
      read and the one they make. ``output``: its wire. ``gradients``: as recorded, by reference.
      For the quiz, by reference: ``names``; ``given``, the gradients that it does not ask for;
      ``same``, a port's gradient is its wire's, and so is that of the wire inside a network;
      ``terms``, what is added at a fork; ``local``, the factors. ``examples``: how many the loss
      averages.

    >>> import fnn
    >>> from fnn.whiteboard.board import board
    >>> trace = fnn.whiteboard.trace(fnn.multiply(), {}, (3.0, -4.0))
    >>> [(op["op"], op["reads"], op["out"]) for op in program(board(trace))["ops"]]
    [('multiply', [0, 1], 2)]
    """
    whole = b.trace
    if len(whole.outputs) != 1 or not _small(b):
        return None
    try:
        ops = list(_ops(b, whole))
    except _NotLive:
        return None
    params, gradients = {}, {}
    for node in whole.walk():
        if node.nodes or not jax.tree.leaves(node.params):
            continue
        owner = b.owner(node)
        params[owner] = {leaf: _array(v) for leaf, v in leaves_of(node.params)}
        for leaf, v in leaves_of(node.dparams):
            if v is not None:
                gradients[f"g{b.ids[node.path]}.{leaf}"] = _array(v)
    inputs = []
    for name in whole.inputs:
        value, gradient = whole.values[name]
        wire = b.wires[whole.path, name]
        if gradient is not None:
            gradients[f"d{wire}"] = _array(gradient)
        inputs.append({"wire": wire, "constant": is_number(name), "label": not is_floating(value),
                       "most": _classes(whole) - 1, **_array(value)})  # fmt: skip
    output = b.wires[whole.path, whole.outputs[0]]
    wide = all(v.dtype == np.float64 for v in jax.tree.leaves(whole.y))
    return {
        "inputs": inputs, "params": params, "ops": ops, "output": output, "gradients": gradients,
        "objective": b.objective, "tolerance": 1e-9 if wide else 1e-4,
        "examples": max(map(_examples, whole.walk()), default=1), **_questions(b),
    }  # fmt: skip


def _questions(b: Board) -> dict[str, Any]:
    """What the quiz says and needs to know about every gradient."""
    f, names, same = b.objective, dict[str, str](), dict[str, str]()
    terms, local = dict[str, list[Any]](), dict[str, list[Any]]()
    for network in (b.trace, *(node for node in b.trace.walk() if node.nodes)):
        for name in network.values:
            called, d = b.called(network, name), b.wire("d", network, name)
            names[b.wire("v", network, name)], names[d] = called, f"d{f}/d{called}"
            sent = summands_of(replace(b, unfolded=frozenset()), network, name)
            terms[d] = [[clean(reader, 24), reference] for reader, _, reference in sent]
    for node in b.trace.walk():
        network, id = b.parents[node.path], b.ids[node.path]
        y = b.called(network, node.name)
        for i, name in enumerate(node.reads):
            port, called = f"x{id}.{i}", b.called(network, name)
            names[port] = f"d{f}/d{called}, the part through {y}"
            if not network.is_fork(name):
                d = b.wire("d", network, name)
                same[port] = same.get(d, d)
            if i < len(node.inputs):  # inside, the gradient at the port is that of its own wire
                same[b.wire("d", node, node.inputs[i])] = same.get(port, port)
        for name in node.outputs if len(node.outputs) == 1 else ():
            if not node.is_fork(name):
                d = b.wire("d", network, node.name)
                same[b.wire("d", node, name)] = same.get(d, d)
        for leaf, _ in () if node.nodes else leaves_of(node.params):
            of = f"{clean(leaf, 20)} of {clean(node.name, 24)}"
            names[f"p{id}.{leaf}"], names[f"g{id}.{leaf}"] = of, f"d{f}/d{of}"
        for product in () if node.nodes else products(b, node):
            if isinstance(product.factors[0], str):
                reference = same.get(product.reference, product.reference)
                local.setdefault(reference, []).append(product.factors)
    given = [b.wire("d", b.trace, name) for name in late_inputs(b.trace)]  # of targets, constants
    given += [b.wire("d", b.trace, name) for name in b.trace.outputs]
    return {"names": names, "given": given, "same": same, "terms": terms, "local": local}


def _examples(node: Recording) -> int:
    """How many examples a loss averages over; 1 for other blocks."""
    return node.x[0].shape[0] if node.block.maker in LOSSES else 1


def _classes(whole: Recording) -> int:
    """How many classes a label may name."""
    losses = [node for node in whole.walk() if node.block.maker in LOSSES]
    return int(losses[0].x[0].shape[-1]) if losses else 1


class _NotLive(Exception):
    pass


def _small(b: Board) -> bool:
    """Whether all arrays are small, of plain floats or labels, and finite."""
    if any(node.block.maker == "chain" or node.dy is None for node in b.trace.walk()):
        return False
    given = jax.tree.leaves((b.trace.x, b.trace.params))
    arrays = given + [a for node in b.trace.walk() for a in jax.tree.leaves((node.y, node.dx))]
    plain = all(
        a.dtype in (np.float32, np.float64) or a.dtype.kind in "iu" for a in map(np.asarray, arrays)
    )
    few = all(a.size <= MAX_NUMBERS for a in arrays) and sum(a.size for a in given) <= MAX_NUMBERS
    return plain and few and b.trace.non_finite is None


def _ops(b: Board, network: Recording) -> Iterator[dict[str, Any]]:
    """The operations of a network; what enters and leaves a network inside is copied."""
    for node in network.nodes:
        id, reads = b.ids[node.path], [b.wires[network.path, name] for name in node.reads]
        out = b.wires[network.path, node.name]
        if not node.nodes:
            plain, frozen = _unwrapped(node)
            op = {"op": plain.block.maker, "args": _arguments(plain), "id": id, "reads": reads,
                  "out": out, "shape": list(np.shape(node.y)), "frozen": frozen}  # fmt: skip
            yield op | ({"params": b.owner(node)} if jax.tree.leaves(node.params) else {})
            continue
        if len(node.inputs) != len(reads) or len(node.outputs) != 1:
            raise _NotLive
        for i, (name, wire) in enumerate(zip(node.inputs, reads, strict=True)):
            inner = b.wires[node.path, name]
            yield {"op": "copy", "args": [], "id": id, "port": i, "reads": [wire], "out": inner}
        yield from _ops(b, node)
        inner = b.wires[node.path, node.outputs[0]]
        yield {"op": "copy", "args": [], "id": "", "reads": [inner], "out": out}


def _arguments(node: Recording) -> list[Any]:
    """What live.js needs to know besides the shapes.

    Raises:
      _NotLive: it does not know the block, or not with these arguments or shapes.
    """
    many = len(node.reads) > 1
    xs = [np.asarray(v) for v in (node.x if many else (node.x,)) if not isinstance(v, tuple)]
    rule = KNOWN.get(node.block.maker)
    if rule is None or len(xs) != max(len(node.reads), 1):
        raise _NotLive
    arguments = rule(node, xs)
    if arguments is None:
        raise _NotLive
    return arguments


def _unwrapped(node: Recording) -> tuple[Recording, bool]:
    """The node as of the block inside, where that computes the same, and whether it is frozen."""
    frozen = False
    while node.block.maker in ("freeze", "rematerialize"):
        frozen = frozen or node.block.maker == "freeze"
        node = replace(node, block=node.block.of[0])
    return node, frozen


Rule = Callable[[Recording, list[np.ndarray]], "list[Any] | None"]


def _numbers(node: Recording, xs: list[np.ndarray]) -> list[Any]:
    return [a for a in node.block.args if isinstance(a, (int, float))]


def _reduced(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    axis, rank = node.block.args[0], xs[0].ndim
    axes = range(rank) if axis is None else (axis,) if isinstance(axis, int) else axis
    return None if isinstance(axes, str) else [[a % rank for a in axes]]


def _nothing_dropped(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    return [] if node.block.args == (0,) else None


def _repeated(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    """A block without others in it, several times: how many, its kind and its arguments."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[0], node.params)
    inner = replace(node, block=node.block.of[0], params=one, reads=("x",))
    if inner.block.maker not in KNOWN or inner.block.maker in ("repeat", "batch_norm"):
        return None
    return [node.block.args[0], inner.block.maker, _arguments(inner)]


def _over(node: Recording, x: np.ndarray, *arguments: Any) -> list[dict[str, Any]]:
    """How windows lie along each axis; as many as fnn has made of them."""
    axes = Windows(node.kind, *arguments).over(jax.ShapeDtypeStruct(x.shape, x.dtype))
    axes = tuple(axis._replace(out=n) for axis, n in zip(axes, node.y.shape[1:-1], strict=True))
    padded = node.block.maker != "avg_pool" or node.block.args[-1]
    return [
        {"window": axis.window, "stride": axis.stride, "dilation": axis.dilation, "low": axis.low,
         "counts": axis.counts(padded).tolist()}
        for axis in axes
    ]  # fmt: skip


def _conv(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    _, size, stride, padding, dilation, groups, _ = node.block.args
    return [_over(node, xs[0], size, stride, padding, dilation), groups]


def _conv_transpose(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    """Its windows lie over y."""
    _, size, stride, padding, _, dilation, groups, _ = node.block.args
    return [_over(node, node.y, size, stride, padding, dilation), groups]


def _pool(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    size, stride, padding = node.block.args[:3]
    return [_over(node, xs[0], size, stride, padding)]


def _over_places(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    return [list(range(1, xs[0].ndim - 1))]


def _layer_norm(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    axis, epsilon, *_ = node.block.args
    last = axis in (-1, xs[0].ndim - 1, (-1,), (xs[0].ndim - 1,))
    return [epsilon, False] if last else None


def _group_norm(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    *groups, epsilon, _, _ = node.block.args
    return [epsilon, False, xs[0].shape[-1] // groups[0] if groups else 1]


def _batch_norm(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    training = isinstance(node.residuals, tuple)  # it keeps what it computed of the batch, too
    wrapped = training and node.residuals[1] is None
    return None if wrapped else [node.block.args[1], not training]


def _affine(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    return [] if xs[0].ndim in (1, 2) and node.params["w"].ndim <= 2 else None


def _rows(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    return [] if node.block.args in ((-1,), (xs[0].ndim - 1,)) else None


def _loss(node: Recording, xs: list[np.ndarray]) -> list[Any] | None:
    return [*node.block.args] if len(xs) == 2 and xs[0].ndim in (1, 2) else None


CURVES = (
    "identity", "step", "logistic", "tanh", "relu", "leaky_relu", "elu", "softplus", "softsign",
    "silu", "hard_tanh", "hard_sigmoid", "absolute", "exp", "log", "sqrt", "square", "negate",
    "scale", "power", "selu", "celu", "gelu", "mish",
)  # fmt: skip
GATES = ("add", "subtract", "multiply", "divide", "maximum", "minimum")
KNOWN: dict[str, Rule] = {
    **dict.fromkeys((*CURVES, *GATES), _numbers),
    **dict.fromkeys(("sum", "mean"), _reduced),
    **dict.fromkeys(("softmax", "log_softmax", "concatenate"), _rows),
    "linear": _affine,
    "flatten": lambda node, xs: [],
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    **dict.fromkeys(("max_pool", "avg_pool"), _pool),
    "global_avg_pool": _over_places,
    "layer_norm": _layer_norm,
    **dict.fromkeys(("group_norm", "instance_norm"), _group_norm),
    "batch_norm": _batch_norm,
    "dropout": _nothing_dropped,
    "repeat": _repeated,
    **dict.fromkeys(
        ("squared_error", "binary_cross_entropy", "softmax_cross_entropy", "cross_entropy"), _loss
    ),
}


def _array(value: Any) -> dict[str, Any]:
    a = np.asarray(value)
    return {"shape": list(a.shape), "data": a.ravel().tolist()}
