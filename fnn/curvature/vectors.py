"""Parameters as vectors: pytrees raveled into one array and back, tangents compared with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import compute_dtype
from fnn.block import BlockTypeError, BlockValueError, Params
from fnn.pytrees import flat, with_zeros
from fnn.refusals import described, require_floating, require_numbers


def raveled(
    name: str, params: Params, what: str = "params"
) -> tuple[jax.Array, Callable[[jax.Array], Params]]:
    """The parameters as one vector, in the order of ``jax.flatten_util.ravel_pytree``, and a
    function from such a vector to a pytree of their shapes and dtypes.

    The vector is as wide as the widest of them, and at least float32.
    """
    require_numbers(name, what, params)
    leaves, tree = flat(jax.tree.map(jnp.asarray, params))
    if not leaves:
        raise BlockValueError(name, f"{what} is {described(params)}, needs one array or more")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        require_floating(name, f"{what}{jax.tree_util.keystr(path)}", jnp.asarray(leaf))
    widest = max((compute_dtype(p.dtype) for p in leaves), key=lambda d: jnp.finfo(d).bits)
    ends = np.cumsum([p.size for p in leaves])

    def unravel(vector: jax.Array) -> Params:
        parts = jnp.split(vector, ends[:-1])
        return tree.unflatten(
            [v.reshape(p.shape).astype(p.dtype) for v, p in zip(parts, leaves, strict=True)]
        )

    return jnp.concatenate([p.ravel().astype(widest) for p in leaves]), unravel


def as_tangent(name: str, what: str, v: Any, like: Params, likes: str = "params") -> Params:
    """v in the dtypes of ``like``, which messages call ``likes``; refused unless it has its
    structure and shapes."""
    require_numbers(name, likes, like)
    if flat(v)[1] != flat(like)[1]:
        raise BlockTypeError(
            name, f"{what} is {described(v)}, needs the structure of {likes}: {described(like)}"
        )

    def cast(path: Any, v: Any, p: Any) -> jax.Array:
        here, there = (f"{each}{jax.tree_util.keystr(path)}" for each in (what, likes))
        require_floating(name, here, v)
        require_floating(name, there, jnp.asarray(p))
        if jnp.shape(v) != jnp.shape(p):
            raise BlockValueError(
                name, f"{here} has shape {jnp.shape(v)}, needs that of {likes}: {jnp.shape(p)}"
            )
        return jnp.asarray(v, jnp.asarray(p).dtype)

    return jax.tree_util.tree_map_with_path(cast, v, like)


def filled(name: str, what: str, grads: Any, params: Params) -> Params:
    """Gradients with zeros in place of None; refused unless they are like the parameters."""
    require_numbers(name, "params", params)
    with contextlib.suppress(ValueError, TypeError):  # of another structure: refused next
        grads = with_zeros(grads, params)
    return as_tangent(name, what, grads, params)


def held_fixed(name: str, v: Params, gradient: Callable[[Params], Any], params: Params) -> Params:
    """v with zeros where the gradient is None."""

    def run(params: Params) -> Params:
        grads = gradient(params)
        filled(name, f"the result of {described(gradient)}", grads, params)
        return grads

    return jax.tree.map(
        lambda g, part: jax.tree.map(jnp.zeros_like, part) if g is None else part,
        jax.eval_shape(run, params),
        v,
        is_leaf=lambda g: g is None,
    )
