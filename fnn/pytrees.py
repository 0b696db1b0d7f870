"""Pytrees of arrays: floating leaves apart from the rest, zeros for None."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.refusals import is_key, require_real


def flat(tree: Any) -> tuple[list[Any], Any]:
    """``jax.tree.flatten``, for type checkers."""
    return jax.tree.flatten(tree)


def split_floats(x: Any) -> tuple[list[Any], Callable[[Any], Any]]:
    """The floating leaves of a pytree, and a function that puts others in their place."""
    leaves, tree = flat(x)
    places = [
        i for i, v in enumerate(leaves) if is_floating(v if hasattr(v, "dtype") else np.asarray(v))
    ]

    def put(floats: Sequence[Any]) -> Any:
        filled = list(leaves)
        for i, value in zip(places, floats, strict=True):
            filled[i] = value
        return tree.unflatten(filled)

    return [leaves[i] for i in places], put


def in_form_of(like: Any, tree: Any) -> Any:
    """``tree`` with the containers of ``like``, where they hold the same.

    Blocks give cotangents as dicts and tuples, whatever mappings and sequences their parameters
    and inputs are: an ``OrderedDict``, Flax's ``FrozenDict``, a list, a NamedTuple.

    >>> from collections import OrderedDict
    >>> [*in_form_of(OrderedDict(w=1, b=2), {"b": 3, "w": 4}).items()]
    [('w', 4), ('b', 3)]
    """
    structure: Any
    children, structure = jax.tree_util.tree_flatten_with_path(like, lambda v: v is not like)
    if isinstance(like, Mapping) and isinstance(tree, Mapping):
        if jax.tree_util.all_leaves([like]):
            raise TypeError(
                f"params or x is a {type(like).__name__}, which JAX does not know as a pytree: "
                "give dict(...) of it"
            )
        names = [getattr(path[0], "key", getattr(path[0], "name", None)) for path, _ in children]
        parts = [(child, tree[name]) for (_, child), name in zip(children, names, strict=True)]
    elif isinstance(like, (tuple, list)) and isinstance(tree, (tuple, list)):
        parts = list(zip([child for _, child in children], tree, strict=True))
    else:
        return tree
    return structure.unflatten([in_form_of(child, part) for child, part in parts])


def require_held(name: str, tree: Any) -> None:
    """Refuses a pytree with leaves that are neither keys nor real numbers as JAX holds them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_key(leaf):
            require_real(name, jax.tree_util.keystr(path, simple=True, separator="/"), leaf)


def with_zeros(cotangents: Any, like: Any) -> Any:
    """``cotangents`` with zeros in place of every None, in the structure of ``like``."""
    return jax.tree.map(
        lambda d, subtree: jax.tree.map(jnp.zeros_like, subtree) if d is None else d,
        cotangents,
        like,
        is_leaf=lambda d: d is None,
    )
