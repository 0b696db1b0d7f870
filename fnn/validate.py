"""What ``fit`` refuses, on the host, before anything is compiled or trained."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import Block, BlockValueError, Key, Params, Value, inference, is_floating


def examples(what: str, x: Value, target: Value, dtype: Any) -> tuple[Value, Value]:
    """Examples on the host, refused if empty, of different lengths, or not finite."""
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"fit: dtype is {jnp.dtype(dtype)}, which JAX has switched off; switch it on first: "
            "jax.config.update('jax_enable_x64', True)"
        )
    x, target = jax.tree.map(np.asarray, (x, target))
    lengths = {a.shape[0] if a.ndim else None for a in jax.tree.leaves((x, target))}
    if None in lengths:
        raise ValueError(f"fit: {what} needs a first axis of examples, got a scalar")
    if len(lengths) > 1:
        shapes = [a.shape for a in jax.tree.leaves((x, target))]
        raise ValueError(
            f"fit: {what} and its target need one entry per example each, got shapes {shapes}"
        )
    if lengths == {0}:
        raise ValueError(f"fit: {what} is empty; training needs at least one example")
    for a in jax.tree.leaves(x):
        with np.errstate(all="ignore"):
            suspicious = is_floating(a) and not np.isfinite(a.sum())  # one fast pass
        if suspicious:
            bad = np.argwhere(~np.isfinite(a))
            if len(bad):
                raise ValueError(
                    f"fit: {what} has {len(bad)} values that are NaN or infinite, the first in "
                    f"example {bad[0][0]}; repair or drop these examples"
                )

    def cast(a: np.ndarray, dtype: Any) -> np.ndarray:
        # float64 is what NumPy makes by default; like all of JAX, without x64 it means float32.
        return a.astype(jax.dtypes.canonicalize_dtype(dtype)) if is_floating(a) else a

    x = jax.tree.map(lambda a: cast(a, dtype or a.dtype), x)
    return x, jax.tree.map(lambda a: cast(a, a.dtype), target)


def parameters(net: Block, params: Params, key: Key, x: Value) -> Params:
    """New parameters, or the given ones if they are this network's."""
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), x)
    if params is None:
        return jax.jit(lambda key: net.init(key, one))(key)
    needed = _shapes(jax.eval_shape(net.init, key, one))
    got = _shapes(params)
    for path in sorted(needed.keys() | got.keys()):
        if needed.get(path) != got.get(path):
            raise BlockValueError(
                path,
                f"params hold {got.get(path, 'nothing')}, the network needs "
                f"{needed.get(path, 'nothing')} here: are these another network's parameters?",
            )
    return jax.tree.map(jnp.asarray, params)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def check_target(
    net: Block, loss: Block, params: Params, x: Value, target: Value, what: str
) -> None:
    """The first errors there can be, raised before anything is compiled."""
    prediction = jax.eval_shape(inference(net).forward, params, x)[0]
    jax.eval_shape(lambda y, t: loss.forward({}, (y, t))[0], prediction, target)
    if loss.validate is not None:
        try:
            loss.validate((prediction, target))
        except BlockValueError as error:
            error.message = f"{what}: {error.message}"
            raise
