"""What ``fit`` refuses, on the host, before anything is compiled or trained."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import (
    Block,
    BlockTypeError,
    BlockValueError,
    Key,
    Params,
    Value,
    is_floating,
    require_block,
    whole_number,
)
from fnn.executor import inference


def examples(what: str, x: Value, target: Value, dtype: Any) -> tuple[Value, Value]:
    """Examples on the host, refused if empty, of different lengths, or not finite."""
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"fit: dtype is {jnp.dtype(dtype)}, which JAX has switched off; switch it on first: "
            "jax.config.update('jax_enable_x64', True)"
        )
    x, target = jax.tree.map(
        lambda a: _array(what, a), (x, target), is_leaf=lambda a: a is None or isinstance(a, list)
    )
    if not jax.tree.leaves(x) or not jax.tree.leaves(target):
        raise ValueError(f"fit: {what} or its target holds no array; give at least one of each")
    lengths = {a.shape[0] if a.ndim else None for a in jax.tree.leaves((x, target))}
    if None in lengths:
        raise ValueError(f"fit: {what} needs a first axis of examples, got a scalar")
    if len(lengths) > 1:
        shapes = [a.shape for a in jax.tree.leaves((x, target))]
        raise ValueError(
            f"fit: {what} and its target need one entry per example each, got shapes {shapes}"
        )
    if lengths == {0} or 0 in {a.size for a in jax.tree.leaves(x)}:
        shapes = [a.shape for a in jax.tree.leaves(x)]
        raise ValueError(
            f"fit: {what} is empty (shape {shapes[0]}); training needs at least one example "
            "with at least one feature"
        )

    def cast(a: np.ndarray, dtype: Any) -> np.ndarray:
        # float64 is what NumPy makes by default; like all of JAX, without x64 it means float32.
        with np.errstate(over="ignore"):  # what overflows is refused below
            return a.astype(jax.dtypes.canonicalize_dtype(dtype)) if is_floating(a) else a

    x = jax.tree.map(lambda a: cast(a, dtype or a.dtype), x)
    for a in jax.tree.leaves(x):
        _refuse_nonfinite(what, a)
    return x, jax.tree.map(lambda a: cast(a, a.dtype), target)


def _array(what: str, a: Any) -> np.ndarray:
    if isinstance(a, list) or not hasattr(a, "shape"):
        raise TypeError(
            f"fit: {what} or its target holds a {type(a).__name__}, needs arrays: "
            "numpy.asarray(...) makes one of a list"
        )
    a = np.asarray(a)
    if not (np.issubdtype(a.dtype, np.number) or a.dtype == bool or is_floating(a)):
        raise TypeError(
            f"fit: {what} or its target has dtype {a.dtype}, needs numbers; turn names of classes "
            "into labels 0, 1, ... with numpy.unique(target, return_inverse=True)[1]"
        )
    return a


def _refuse_nonfinite(what: str, a: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        suspicious = is_floating(a) and not np.isfinite(a.sum())  # one fast pass
    bad = np.argwhere(~np.isfinite(a)) if suspicious else np.zeros((0, 1))
    if len(bad):
        raise ValueError(
            f"fit: {what} has {len(bad)} values that are NaN or infinite in {a.dtype}, the first "
            f"in example {int(bad[0][0])}; repair or drop these examples"
        )


def options(net: Any, loss: Any, optimizer: Any, **counts: Any) -> None:
    """The kinds of fit's arguments: blocks, an optimiser, whole numbers."""
    for what, block in (("net", net), ("loss", loss)):
        require_block("fit", what, block)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        hint = " (call it with its learning rate)" if callable(optimizer) else ""
        raise TypeError(
            f"fit: optimizer is {optimizer!r:.60}{hint}, needs one with init and update: "
            "fnn.sgd(0.1) or one of Optax's"
        )
    for name, (value, least) in counts.items():
        whole_number("fit", name, value, least)


def random_key(key: Any) -> jax.Array:
    """The key, or key(0); refuses what is no key."""
    if key is None:
        return jax.random.key(0)
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.shape == (2,)
    if not (raw or (typed and key.shape == ())):
        raise TypeError(f"fit: key is {key!r:.60}, needs one made by jax.random.key(seed)")
    return key


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
    for path, leaf in _named(params):
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


def check_target(
    net: Block, loss: Block, params: Params, x: Value, target: Value, what: str
) -> None:
    """The first errors there can be, raised before anything is compiled."""
    prediction = jax.eval_shape(inference(net).forward, params, x)[0]
    jax.eval_shape(lambda y, t: loss.forward({}, (y, t))[0], prediction, target)
    if loss.rules.validate is not None:
        try:
            loss.rules.validate((prediction, target))
        except BlockValueError as error:
            error.message = f"{what}: {error.message}"
            raise
