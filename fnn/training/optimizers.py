"""Gradient descent. Any ``optax.GradientTransformation`` goes in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.block import Params


class Optimizer(NamedTuple):
    """Optax's protocol: ``init(params) -> state`` and
    ``update(grads, state, params=None) -> (updates, state)``."""

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any]]


class SGDState(NamedTuple):
    """The learning rate is part of the state, so changing it recompiles nothing:
    ``state._replace(learning_rate=0.01)``. (None where a schedule sets it.)"""

    steps: jax.Array
    learning_rate: jax.Array | None
    velocity: Params | None


def sgd(
    learning_rate: float | Callable[[jax.Array], jax.Array],
    momentum: float = 0.0,
    nesterov: bool = False,
) -> Optimizer:
    """Stochastic gradient descent: w <- w - learning_rate * dE/dw.

    With momentum m: v <- m v + dE/dw and w <- w - learning_rate * v (Polyak 1964); with
    ``nesterov``, w <- w - learning_rate * (dE/dw + m v) (Sutskever et al. 2013). The same
    numbers as ``optax.sgd``.

    Args:
      learning_rate: a number, or a schedule: a function of the step count, such as Optax's.
      momentum: 0 <= momentum < 1.

    >>> import fnn, jax.numpy as jnp
    >>> optimizer = fnn.sgd(0.5)
    >>> params = {"w": jnp.array(3.0)}
    >>> updates, state = optimizer.update({"w": jnp.array(2.0)}, optimizer.init(params))
    >>> fnn.apply_updates(params, updates)
    {'w': Array(2., dtype=float32)}
    """
    traced = isinstance(learning_rate, jax.core.Tracer)  # mapped over, say
    if not callable(learning_rate) and not traced and not learning_rate > 0:
        raise ValueError(f"sgd: learning_rate is {learning_rate}, needs a number above 0")
    if not 0 <= momentum < 1:
        raise ValueError(f"sgd: momentum is {momentum}, needs 0 <= momentum < 1")
    if nesterov and momentum == 0:
        raise ValueError("sgd: nesterov needs a momentum above 0")

    def init(params: Params) -> SGDState:
        rate = None if callable(learning_rate) else jnp.asarray(1.0 * learning_rate)
        velocity = jax.tree.map(jnp.zeros_like, params) if momentum else None
        return SGDState(jnp.zeros((), jnp.int32), rate, velocity)

    def update(grads: Params, state: SGDState, params: Params = None) -> tuple[Params, SGDState]:
        rate = learning_rate(state.steps) if callable(learning_rate) else state.learning_rate
        velocity = direction = grads
        if momentum:
            velocity = jax.tree.map(lambda v, g: momentum * v + g, state.velocity, grads)
            direction = velocity
        if nesterov:
            direction = jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)
        updates = jax.tree.map(lambda d: -jnp.asarray(rate).astype(d.dtype) * d, direction)
        velocity = velocity if momentum else None
        return updates, SGDState(state.steps + 1, state.learning_rate, velocity)

    return Optimizer(init, update)


def apply_updates(params: Params, updates: Params) -> Params:
    """``params + updates``, each in its parameter's dtype."""
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
