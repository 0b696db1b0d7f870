"""Pytrees of arrays: floating leaves apart from the rest, zeros for None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import BlockValueError, is_floating, misfit


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


def require_held(name: str, tree: Any) -> None:
    """Refuses a pytree with integers that JAX would wrap when it makes arrays of them."""
    for leaf in jax.tree.leaves(tree):
        if words := misfit(leaf):
            raise BlockValueError(name, f"an array {words}")


def with_zeros(cotangents: Any, like: Any) -> Any:
    """``cotangents`` with zeros in place of every None, in the structure of ``like``."""
    return jax.tree.map(
        lambda d, subtree: jax.tree.map(jnp.zeros_like, subtree) if d is None else d,
        cotangents,
        like,
        is_leaf=lambda d: d is None,
    )
