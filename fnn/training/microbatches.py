"""Gradient accumulation: a batch in parts, of which one at a time is in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.block import Key, Params, Value

# (params, x, target, key, weights, scale, share) -> (loss, gradients, params with moved statistics)
Pass = Callable[..., tuple[jax.Array, Params, Params]]
Weigh = Callable[[Value, Any], Any]  # (target, weights) -> the sum of these examples' weights


def in_microbatches(whole: Pass, size: int, weigh: Weigh) -> Pass:
    """The loss and the gradients of a batch from those of its parts of ``size`` examples.

    The loss of a batch is the mean of its examples' losses with weights w_i, so with the sum W_j of
    part j's weights and its loss E_j

        E = sum_j W_j E_j / sum_j W_j,    dE/dp = sum_j W_j dE_j/dp / sum_j W_j.

    Examples that are left over are one more, smaller part. Running statistics move part by part.
    """

    def run(
        params: Params, x: Value, target: Value, key: Key, weights: Any, scale: Any, share: float
    ) -> tuple[jax.Array, Params, Params]:
        data = x, target, weights
        n = jax.tree.leaves(x)[0].shape[0]
        count, rest = divmod(n, size)

        def one(params: Params, examples: Any, place: Any, of_batch: float) -> Any:
            part_key = None if key is None else jax.random.fold_in(key, place)
            return whole(params, *examples[:2], part_key, examples[2], scale, share * of_batch)

        def add(sums: Any, examples: Any, place: Any, of_batch: float) -> Any:
            total, so_far, moved = sums
            value, grads, moved = one(moved, examples, place, of_batch)
            weight = jnp.asarray(weigh(examples[1], examples[2]), value.dtype)
            so_far = jax.tree.map(
                lambda a, b: a + weight.astype(b.dtype) * b, so_far, (value, grads)
            )
            return total + weight, so_far, moved

        def body(sums: Any, place: jax.Array) -> tuple[Any, None]:
            examples = jax.tree.map(lambda a: _part(a, count, size, place), data)
            return add(sums, examples, place, size / n), None

        first = jax.tree.map(lambda a: a[:size], data)
        like = jax.eval_shape(lambda: one(params, first, 0, 1.0)[:2])
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
        sums = jnp.zeros((), like[0].dtype), zeros, params
        sums, _ = lax.scan(body, sums, jnp.arange(count))
        if rest:
            last = jax.tree.map(lambda a: a[n - rest :], data)
            sums = add(sums, last, count, rest / n)
        total, so_far, moved = sums
        total = jnp.where(total == 0, 1, total)  # the sums are 0 too
        value, grads = jax.tree.map(lambda a: a / total.astype(a.dtype), so_far)
        return value, grads, moved

    return run


def _part(a: jax.Array, count: int, size: int, place: jax.Array) -> jax.Array:
    """Every ``count``-th example, so that a batch that is split over devices stays so."""
    grouped = a[: count * size].reshape(size, count, *a.shape[1:])
    return lax.dynamic_index_in_dim(grouped, place, 1, keepdims=False)


def weight_of(target: Value, weights: Any) -> Any:
    """The sum of the weights, or the number of examples."""
    return jax.tree.leaves(target)[0].shape[0] if weights is None else jnp.sum(weights)
