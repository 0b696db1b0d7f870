"""What ``fit`` refuses before anything is compiled: arguments, parameters, mismatched data."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.block import Block, BlockTypeError, BlockValueError, Key, Params, Value, located
from fnn.contract import run_forward, run_init
from fnn.executor import is_network
from fnn.refusals import require_array, require_no_model
from fnn.training.arrays import Arrays, like
from fnn.training.source import Stream


def parameters(net: Block, params: Params, key: Key, like: Value) -> Params:
    """New parameters, or the given ones if they are this network's; ``like``: one example."""
    one = _prepend(1, like)
    if params is None:
        return jax.jit(lambda key: run_init(net, key, one))(key)
    require_no_model("fit", params)
    needed = _shapes(jax.eval_shape(net.init, key, one))
    got = _shapes(params)
    for path in sorted(needed.keys() | got.keys()):
        if needed.get(path) != got.get(path):
            raise BlockValueError(
                path or "fit",
                f"params hold {got.get(path, 'nothing')}, the network needs "
                f"{needed.get(path, 'nothing')} here: are these another network's parameters?",
            )
    for path, leaf in _named(params):
        require_array(path or "fit", "a leaf of params", leaf)
        if not is_floating(jnp.asarray(leaf)):
            raise BlockTypeError(path, f"params hold {jnp.asarray(leaf).dtype}, need floats")
        if not np.isfinite(np.asarray(leaf)).all():
            raise BlockValueError(path, "params hold values that are NaN or infinite")
    return jax.tree.map(jnp.asarray, params)


def _named(params: Params) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {path: tuple(np.shape(leaf)) for path, leaf in _named(params)}


def predicted(net: Block, loss: Block, params: Params, data: Arrays | Stream, what: str) -> Value:
    """The shape of the prediction for the data; refuses a network, loss and data that do not match.

    Args:
      net, loss: as they are at inference.
      what: a name for the targets in errors.
    """
    x, target = (_prepend(len(data), part) for part in data.like)
    prediction = jax.eval_shape(functools.partial(run_forward, net), params, x)[0]
    jax.eval_shape(lambda y, t: loss.forward({}, (y, t))[0], prediction, target)
    one, validate = like(prediction), loss.rules.validate
    data.check(f"{what.removesuffix('target')}x", 0, functools.partial(_check_inputs, net))
    if validate is not None:
        data.check(what, 1, lambda t: validate((_prepend(len(jax.tree.leaves(t)[0]), one), t)))
    return prediction


def _check_inputs(net: Block, x: Value) -> None:
    """Runs the rules of the blocks that read the network's input as it comes."""
    if not is_network(net) or net.graph is None:
        if net.rules.validate is not None:
            net.rules.validate(x)
        return
    names = net.graph.inputs
    given = {names[0]: x} if len(names) == 1 else dict(zip(names, x, strict=True))
    for node in net.graph.nodes:
        if given.keys() >= set(node.inputs):
            read = tuple(given[name] for name in node.inputs)
            with located(node.name):
                _check_inputs(node.block, read[0] if len(read) == 1 else read)


def _prepend(n: int, one: Value) -> Value:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), one)
