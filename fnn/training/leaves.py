"""A pytree as arrays by name, as a file holds them, and back, whatever its nodes are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their paths, as arrays; a typed key as its words."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _array(leaf) for path, leaf in leaves}


def targets(tree: Any) -> dict[str, Any]:
    """What to read these leaves as: arrays of their shapes, laid out over devices as they are."""
    return {name: _target(a) for name, a in named(tree).items()}


def filled(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """The pytree with the arrays of these names in place of its leaves."""

    def one(path: Any, leaf: Any) -> Any:
        like = _array(leaf)
        a = jnp.asarray(arrays[jax.tree_util.keystr(path)]) if like.size else like
        if _is_key(leaf):
            return jax.random.wrap_key_data(a, impl=jax.random.key_impl(leaf))
        if like.weak_type and not a.ndim:  # as a number of Python's, which leaves others' dtype be
            weak = jnp.asarray(a.item())
            return weak if weak.dtype == a.dtype else a
        return a

    return jax.tree_util.tree_map_with_path(one, tree)


def kinds(tree: Any) -> dict[str, str]:
    """The dtypes and shapes of the leaves by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): kind(leaf) for path, leaf in leaves}


def kind(a: Any) -> str:
    """Dtype and shape.

    >>> kind(np.zeros((2, 3)))
    'float64[2,3]'
    """
    dtype = a.dtype if hasattr(a, "dtype") else np.asarray(a).dtype
    return f"{dtype}[{','.join(map(str, np.shape(a)))}]"


def zeros(words: str) -> np.ndarray:
    """An array of a kind.

    >>> zeros("bfloat16[2,3]").shape
    (2, 3)
    """
    dtype, shape = words.removesuffix("]").split("[")
    return np.zeros([int(size) for size in shape.split(",") if size], jnp.dtype(dtype))


def _array(leaf: Any) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _target(a: jax.Array) -> Any:
    if not a.committed:  # it was put nowhere, so it may be used wherever the others are
        return zeros(kind(a))
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
