"""Backward against autodiff: ``jax.vjp`` of forward, and the relative error of every cotangent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import checked
from fnn.arrays import compute_dtype, is_floating
from fnn.block import Block, Key, Params, Value
from fnn.pytrees import flat, in_form_of, split_floats
from fnn.refusals import as_cotangent


@checked
def errors(
    block: Block, params: Params, x: Value, dy: Value = None, key: Key = None
) -> tuple[Any, Any]:
    """How far backward is from ``jax.vjp`` of forward, leaf by leaf; a function to jit.

    Args:
      block: a gate, a layer, a loss, a whole network.
      params: its parameters.
      x: its input, an array or a tuple of arrays.
      dy: the upstream cotangent, of the shape of y; drawn from a fixed key by default, because
        ones would hide errors that cancel in a sum.
      key: randomness, for blocks that need it.

    Returns:
      The errors of (dparams, dx): for each leaf a scalar, the largest difference relative to
      autodiff's largest entry (see :func:`relative_error`). None where there is no gradient: an
      integer input, a frozen parameter.

    Where forward has no derivative (ReLU at 0), autodiff and backward may both be right and
    differ. :func:`fnn.check.block` proves more: structure, kinks, lower precisions, vmap.

    >>> import fnn, jax, jax.numpy as jnp
    >>> jax.jit(lambda x: errors(fnn.square(), {}, x))(jnp.array([1.0, 2.0]))
    ({}, Array(0., dtype=float32))
    >>> wrong = fnn.square()._replace(backward=lambda params, x, dy: ({}, 3 * x * dy))
    >>> round(float(errors(wrong, {}, jnp.array([1.0, 2.0]))[1]), 4)
    0.5
    """
    y, residuals = block.forward(params, x, key)
    if dy is None:
        dy = _drawn(y)
    elif not isinstance(y, tuple):
        dy = as_cotangent(block.name, dy, y.shape, y.dtype)
    got = block.backward(params, residuals, dy)
    _, *want = by_autodiff(lambda *inputs: block.forward(*inputs)[0])(params, x, key, dy)
    return compared(got, tuple(want))


def by_autodiff(f: Callable[..., Value]) -> Callable[..., tuple[Value, Params, Value]]:
    """``(params, x, key, dy) -> (y, dparams, dx)`` by ``jax.vjp`` of ``y = f(params, x, key)``.

    The cotangent of a leaf that is not floating is None. None in ``dy`` stands for zeros.
    """

    def run(params: Params, x: Value, key: Key, dy: Value) -> tuple[Value, Params, Value]:
        floats, put = split_floats((params, x))
        y, pull_back = jax.vjp(lambda *floats: f(*put(floats), key), *floats)
        outputs, tree = flat(y)
        arrived = jax.tree.leaves(dy, is_leaf=lambda d: d is None)
        upstream = [_cotangent(v, d) for v, d in zip(outputs, arrived, strict=True)]
        cotangents = iter(pull_back(tree.unflatten(upstream)))
        dparams, dx = jax.tree.map(
            lambda v: next(cotangents) if is_floating(jnp.asarray(v)) else None, (params, x)
        )
        return y, dparams, dx

    return run


def _cotangent(y: Any, dy: Any) -> Any:
    if not is_floating(y):
        return np.zeros(y.shape, jax.dtypes.float0)
    return jnp.zeros_like(y) if dy is None else dy


def _drawn(y: Value) -> Value:
    """A random cotangent: None for outputs that are not floating."""
    leaves, tree = flat(jax.tree.map(jnp.asarray, y))
    keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))
    return tree.unflatten(
        jax.random.normal(key, v.shape, v.dtype) if is_floating(v) else None
        for key, v in zip(keys, leaves, strict=False)
    )


def compared(got: Any, want: Any, error: Callable[[Any, Any], Any] | None = None) -> Any:
    """``error(got, want)`` of every leaf; None where ``got`` is, which may stand for a subtree."""

    def compare(mine: Any, theirs: Any) -> Any:
        return None if mine is None else jax.tree.map(error or relative_error, mine, theirs)

    return jax.tree.map(compare, in_form_of(want, got), want, is_leaf=lambda d: d is None)


def relative_error(got: jax.Array, want: jax.Array, *scales: jax.Array) -> jax.Array:
    """The largest difference, relative to the largest entry of ``want`` or a larger scale.

    Entries where ``want`` is NaN (autodiff's 0 times infinity) are left out; NaN if all are.
    Infinite where the shapes differ.
    """
    if jnp.shape(got) != want.shape:
        return jnp.array(jnp.inf)
    wide = compute_dtype(want.dtype)
    got, want = jnp.asarray(got).astype(wide), want.astype(wide)
    same = (got == want) | jnp.isnan(want)
    largest = jnp.max(jnp.abs(jnp.where(jnp.isfinite(want), want, 0)), initial=0)
    scale = functools.reduce(jnp.maximum, [s.astype(wide) for s in scales], largest)
    error = jnp.max(jnp.where(same, 0, jnp.abs(got - want)), initial=0)
    error = jnp.where(jnp.isnan(error), jnp.inf, error) / jnp.where(scale > 0, scale, 1)
    return jnp.where(want.size > 0 and jnp.isnan(want).all(), jnp.nan, error)
