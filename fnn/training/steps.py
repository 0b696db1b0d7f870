"""Compiled training: one step, one epoch, and predictions in batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.backprop import as_function, backpropagate, with_loss
from fnn.block import Block, Key, Params, Value, whole_number
from fnn.executor import inference
from fnn.pytrees import with_zeros
from fnn.training.optimizers import apply_updates

Step = Callable[..., tuple[Params, Any, jax.Array]]


def plain_step(
    net: Block, loss: Block, optimizer: Any, run: Callable[..., Any] | None = None
) -> Step:
    """The lecture's step, not compiled: 2a forward, 2b backward, 2c gradient descent.

    ``run``: what goes forward and backward; ``backpropagate(net, loss)`` by default.
    """
    run = backpropagate(net, loss) if run is None else run
    accepted = inspect.signature(optimizer.update).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())

    def step(
        params: Params, state: Any, x: Value, target: Value, key: Key = None, weights: Any = None
    ) -> tuple[Params, Any, jax.Array]:
        value, grads, residuals = run(params, x, target, key, weights)  # 2a and 2b

        def value_fn(params: Params) -> jax.Array:
            return _loss_of(net, loss, params, x, target, key, weights)

        # Some of Optax's optimisers look at the loss (reduce_on_plateau) or evaluate it again (a
        # line search): the protocol passes these by keyword to those that take them.
        full = with_zeros(grads, params)
        offered = {"value": value, "grad": full, "value_fn": value_fn}
        extra = {name: v for name, v in offered.items() if takes_any or name in accepted}
        updates, state = optimizer.update(full, state, params, **extra)
        params = _keep_frozen(params, apply_updates(params, updates), grads)  # 2c
        if net.rules.update_statistics is not None:
            params = net.rules.update_statistics(params, residuals)
        return params, state, value

    return step


def _loss_of(
    net: Block, loss: Block, params: Params, x: Value, target: Value, key: Key, weights: Any
) -> jax.Array:
    """The loss as a function of the parameters, on which ``jax.grad`` uses the blocks' rules."""
    whole = with_loss(net, loss, weighted=weights is not None)
    inputs = (x, target) if weights is None else (x, target, weights)
    return as_function(whole)({"net": params}, inputs, key)


def _keep_frozen(old: Params, new: Params, grads: Params) -> Params:
    """Parameters without a gradient stay as they are, whatever the optimiser made of them."""
    return jax.tree.map(
        lambda g, o, n: o if g is None else n, grads, old, new, is_leaf=lambda g: g is None
    )


def make_step(net: Block, loss: Block, optimizer: Any, *, donate: bool = False) -> Step:
    """One compiled step of training: forward, backward, update.

    Args:
      net, loss: blocks; ``optimizer``: :func:`~fnn.sgd` or any of Optax's.
      donate: let the new parameters and state take the memory of the old, which can then no
        longer be used.

    Returns:
      ``step(params, state, x, target, key=None, weights=None) -> (params, state, value)``,
      jit-compiled, with ``state = optimizer.init(params)`` to begin with.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, optimizer = fnn.linear(1), fnn.sgd(0.1)
    >>> step = fnn.make_step(net, fnn.squared_error(), optimizer)
    >>> x, target = jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [3.0]])
    >>> params = net.init(jax.random.key(0), x)
    >>> state = optimizer.init(params)
    >>> for _ in range(500):
    ...     params, state, value = step(params, state, x, target)
    >>> bool(value < 1e-6)
    True
    """
    return jax.jit(plain_step(net, loss, optimizer), donate_argnums=(0, 1) if donate else ())


def make_epoch(net: Block, loss: Block, optimizer: Any, batch_size: int) -> Step:
    """A whole epoch in one compiled ``lax.scan``.

    Returns:
      ``epoch(params, state, x, target, order, key=None, first=0) -> (params, state, losses)``:
      ``order`` holds the indices of the examples in the order of use (a permutation made on
      the host: cheaper to compile and run than one on the device; indices out of range are not
      looked for). Every example counts: when the last batch is smaller it is one more step.
      ``losses`` has one entry per step, each the loss before that step's update. Step i draws
      its randomness from ``fold_in(key, first + i)``, so an epoch in several calls is the same.

    >>> import fnn, jax, jax.numpy as jnp, numpy as np
    >>> net, optimizer = fnn.linear(1), fnn.sgd(0.1)
    >>> epoch = fnn.make_epoch(net, fnn.squared_error(), optimizer, batch_size=2)
    >>> x, target = jnp.ones((5, 3)), jnp.ones((5, 1))
    >>> params = net.init(jax.random.key(0), x)
    >>> params, state, losses = epoch(params, optimizer.init(params), x, target, np.arange(5))
    >>> losses.shape
    (3,)
    """
    batch_size = whole_number("make_epoch", "batch_size", batch_size)
    step = plain_step(net, loss, optimizer)

    @jax.jit
    def epoch(
        params: Params, state: Any, x: Value, target: Value, order: jax.Array, key: Key = None,
        first: Any = 0,
    ) -> tuple[Params, Any, jax.Array]:  # fmt: skip
        steps, rest = divmod(order.shape[0], batch_size)

        def body(carry: Any, rows_and_place: Any) -> tuple[Any, jax.Array]:
            rows, place = rows_and_place
            batch_x, batch_target = jax.tree.map(lambda a: _rows(a, rows), (x, target))
            step_key = None if key is None else jax.random.fold_in(key, first + place)
            params, state, value = step(*carry, batch_x, batch_target, step_key)
            return (params, state), value

        full = order[: steps * batch_size].reshape(steps, batch_size)
        carry, losses = lax.scan(body, (params, state), (full, jnp.arange(steps)))
        if rest:
            carry, last = body(carry, (order[-rest:], jnp.asarray(steps)))
            losses = jnp.concatenate([losses, last[None]])
        return (*carry, losses)

    return epoch


def _rows(a: jax.Array, rows: jax.Array) -> jax.Array:
    return a.at[rows].get(mode="promise_in_bounds")


def make_predict(net: Block, batch_size: int = 4096) -> Callable[[Params, Value], Value]:
    """Predictions of the network as it is at inference, for any number of examples.

    Returns:
      ``predict(params, x) -> y``, compiled; more than ``batch_size`` examples run in batches,
      so memory stays bounded.

    >>> import fnn, jax.numpy as jnp
    >>> predict = fnn.make_predict(fnn.square(), batch_size=2)
    >>> predict({}, jnp.array([1.0, 2.0, 3.0]))
    Array([1., 4., 9.], dtype=float32)
    """
    batch_size = whole_number("make_predict", "batch_size", batch_size)
    reading = inference(net)

    @jax.jit
    def predict(params: Params, x: Value) -> Value:
        n = jax.tree.leaves(x)[0].shape[0]
        steps, rest = divmod(n, batch_size)
        if steps == 0:
            return reading.forward(params, x)[0]
        head = jax.tree.map(lambda a: a[: n - rest].reshape(steps, batch_size, *a.shape[1:]), x)
        y = lax.map(lambda batch: reading.forward(params, batch)[0], head)
        y = jax.tree.map(lambda a: a.reshape(n - rest, *a.shape[2:]), y)
        if rest:
            tail = reading.forward(params, jax.tree.map(lambda a: a[n - rest :], x))[0]
            y = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), y, tail)
        return y

    return predict
