"""The referee of a trace: what ``jax.vjp`` says, and how far the hand-written rule is from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.block import Block, Key, Params, Value, compute_dtype, is_floating
from fnn.executor import map_nodes
from fnn.introspect.watch import is_network
from fnn.pytrees import split_floats
from fnn.whiteboard.formulas import LOSSES, described, formula_of


def relative_errors(
    block: Block, params: Params, x: Value, key: Key, y: Value, dy: Value, got: Any
) -> Any:
    """How far ``got``, backward's (dparams, dx), is from ``jax.vjp`` of forward, leaf by leaf.

    Relative to the leaf's largest entry, or, where that is what is left of terms that cancel (the
    entries of a softmax add up to 1, so their sum has gradient 0), to a small part of upstream.
    None where there is no gradient to compare, NaN where autodiff's is NaN throughout. Where
    forward has no derivative, the block's declared subgradient is the truth.
    """
    floats, put = split_floats((params, x))
    value = _differentiable(block)

    def forward(*floats: Any) -> list[Any]:
        params, x = put(floats)
        return [leaf for leaf in jax.tree.leaves(value.forward(params, x, key)[0])]

    _, pull_back = jax.vjp(forward, *floats)
    arrived = jax.tree.leaves(dy, is_leaf=lambda d: d is None)
    upstream = [_cotangent(leaf, d) for leaf, d in zip(jax.tree.leaves(y), arrived, strict=True)]
    wanted = iter(pull_back(upstream))
    want = jax.tree.map(
        lambda v: next(wanted) if is_floating(jnp.asarray(v)) else None, (params, x)
    )

    formula = formula_of(described(block))
    cancels = formula is None or not formula.elementwise
    sizes = [jnp.max(jnp.abs(d), initial=0) for d in upstream if is_floating(d)] if cancels else []

    def compare(mine: Any, theirs: Any) -> Any:
        # One None may stand for a whole network's parameters.
        if mine is None:
            return None
        return jax.tree.map(lambda a, b: _relative_error(a, b, sizes), mine, theirs)

    return jax.tree.map(compare, got, want, is_leaf=lambda d: d is None)


def _cotangent(y: Any, dy: Any) -> Any:
    if not is_floating(y):
        return jnp.zeros(y.shape, jax.dtypes.float0)
    return jnp.zeros_like(y) if dy is None else dy


def _relative_error(mine: jax.Array, theirs: jax.Array, upstream: list[jax.Array]) -> jax.Array:
    wide = compute_dtype(theirs.dtype)
    small = 16 * float(jnp.finfo(theirs.dtype).eps) ** (1 / 3)
    mine, theirs = jnp.asarray(mine).astype(wide), theirs.astype(wide)
    same = (mine == theirs) | jnp.isnan(theirs)  # where autodiff has no answer (0 times infinity)
    scale = jnp.max(jnp.abs(jnp.where(jnp.isfinite(theirs), theirs, 0)), initial=0)
    for size in upstream:
        scale = jnp.maximum(scale, small * jnp.where(jnp.isfinite(size), size, 0).astype(wide))
    error = jnp.max(jnp.where(same, 0, jnp.abs(mine - theirs)), initial=0)
    error = jnp.where(jnp.isnan(error), jnp.inf, error) / jnp.where(scale > 0, scale, 1)
    return jnp.where(theirs.size > 0 and jnp.isnan(theirs).all(), jnp.nan, error)


# Linear in the target. Where that is 0 or 1, a guard in forward (0 ln 0 is 0) hides from autodiff
# what it would do elsewhere.
_LINEAR = tuple(name for name in LOSSES if "cross_entropy" in name)
# At their kinks, autodiff decides a tie as fnn does.
_ALIKE = ("maximum", "minimum", "max_pool")


def _differentiable(block: Block) -> Block:
    """The same block, whose forward autodiff differentiates as fnn declares it, everywhere.

    Relu at 0 is one case: autodiff of max(x, 0) shares the tie and says 1/2, fnn declares 0. (A
    first convolution of an image with a black corner is exactly there.)
    """
    if is_network(block):
        return map_nodes(block, lambda _, inner: _differentiable(inner))
    if block.kind.maker in _LINEAR:
        return _ruled(block, _by_target)
    if block.rules.subgradient is None or block.kind.maker in _ALIKE:
        return block
    return _ruled(block, _as_declared)


def _ruled(block: Block, rule: Callable[..., Any]) -> Block:
    """The block with autodiff's cotangents passed through ``rule(block, params, x, dy, dx)``."""

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Any]:
        floats, put = split_floats(x)

        def plain(params: Params, *floats: Any) -> Value:
            return block.forward(params, put(floats), key)[0]

        def going_back(kept: Any, dy: Any) -> Any:
            dparams, *dxs = jax.vjp(plain, *kept)[1](dy)
            return (dparams, *rule(plain, block, kept[1:], dy, dxs))

        value = jax.custom_vjp(plain)
        value.defvjp(lambda *args: (plain(*args), args), going_back)
        return value(params, *floats), ()

    return block._replace(forward=forward)


def _as_declared(plain: Any, block: Block, x: Any, dy: Any, dxs: list[Any]) -> list[Any]:
    """With the declared subgradient at the kinks: it is zero elsewhere, so a NaN shows where."""
    subgradient = block.rules.subgradient
    assert subgradient is not None
    kink = jnp.isnan(subgradient(x[0], jnp.full_like(dy, jnp.nan)))
    return [jnp.where(kink, subgradient(x[0], dy), dxs[0])]


def _by_target(plain: Any, block: Block, x: Any, dy: Any, dxs: list[Any]) -> list[Any]:
    """With the derivative by the target taken at 1/2, which is its derivative everywhere."""
    if len(x) != 2:
        return dxs
    half = jnp.full_like(x[1], 0.5)
    return [dxs[0], jax.vjp(lambda t: plain({}, x[0], t), half)[1](dy)[0]]
