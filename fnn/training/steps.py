"""Compiled programs: a training step, an epoch of them, predictions in batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import AnyOptimizer, Count, checked
from fnn.arrays import is_floating, parts_of
from fnn.backprop import as_function, backpropagate, with_loss
from fnn.block import Block, BlockTypeError, Key, Params, Value
from fnn.executor import inference
from fnn.pytrees import in_form_of, with_zeros
from fnn.refusals import as_array, described, require_key
from fnn.training.endings import warn_of_mismatch
from fnn.training.layout import Layout, Sharding
from fnn.training.microbatches import Pass, Weigh, in_microbatches, weight_of
from fnn.training.optimizers import accepted, apply_updates, traceable
from fnn.training.programs import (
    Step,
    compiled,
    count,
    distinct,
    epoch_on,
    predict_on,
    require_order,
    step_on,
)


def plain_step(
    net: Block,
    loss: Block,
    optimizer: Any,
    run: Callable[..., Any] | None = None,
    share: float = 1.0,
    microbatch: int | None = None,
    weigh: Weigh = weight_of,
) -> Step:
    """One training step, not jitted: forward, backward, update.

    ``run``: what goes forward and backward; ``backpropagate(net, loss)`` by default. ``share``:
    the size of the batch as a part of that of a full one; running statistics move so much less.
    ``microbatch``: how many examples go forward and backward at a time, all by default.
    ``weigh``: of a part's targets and weights, what its loss counts in the batch's.
    """
    both = _forward_and_backward(net, backpropagate(net, loss) if run is None else run)
    if microbatch is not None:
        both = in_microbatches(both, microbatch, weigh)
    scale_of = getattr(optimizer, "scale", None)

    def step(
        params: Params, state: Any, x: Value, target: Value, key: Key = None, weights: Any = None
    ) -> tuple[Params, Any, jax.Array]:
        scale = None if scale_of is None else scale_of(state)
        value, grads, moved = both(params, x, target, key, weights, scale, share)

        def value_fn(params: Params) -> jax.Array:  # jax.grad of it uses the blocks' own rules
            whole = with_loss(net, loss, weighted=weights is not None)
            inputs = (x, target) if weights is None else (x, target, weights)
            return as_function(whole)({"net": params}, inputs, key)

        # Some of Optax's optimisers look at the loss (reduce_on_plateau) or evaluate it again (a
        # line search): the protocol passes these by keyword to those that take them.
        full = with_zeros(grads, params)
        extra = {"value": value, "grad": full, "value_fn": value_fn}
        extra = accepted(optimizer.update, extra)
        with traceable("the optimizer"):
            updates, state = optimizer.update(full, state, params, **extra)
        return _descended(moved, apply_updates(params, updates), grads), state, value

    return step


def _forward_and_backward(net: Block, run: Callable[..., Any]) -> Pass:
    """The loss, its gradients, and the parameters with their running statistics moved."""
    statistics = net.rules.update_statistics

    def both(
        params: Params, x: Value, target: Value, key: Key, weights: Any, scale: Any, share: float
    ) -> tuple[jax.Array, Params, Params]:
        value, grads, residuals = run(params, x, target, key, weights, scale)
        if statistics is None:
            return value, grads, params
        moved = in_form_of(params, statistics(params, residuals))
        return value, grads, moved if share == 1 else _part_of_the_way(params, moved, share)

    return both


def _part_of_the_way(old: Params, new: Params, share: float) -> Params:
    return jax.tree.map(
        lambda o, n: n if n is o or not is_floating(n) else o + share * (n - o), old, new
    )


def _descended(moved: Params, new: Params, grads: Params) -> Params:
    """The new parameters; those without a gradient, which are frozen or running statistics, as they
    were moved, whatever the optimiser made of them."""
    return jax.tree.map(
        lambda g, m, n: m if g is None else n, grads, moved, new, is_leaf=lambda g: g is None
    )


@checked
def make_step(
    net: Block,
    loss: Block,
    optimizer: AnyOptimizer,
    *,
    microbatches: Count = 1,
    donate: bool = False,
    sharding: Sharding | None = None,
) -> Step:
    """One compiled training step: forward, backward, update.

    Args:
      net, loss: blocks.
      optimizer: :func:`~fnn.sgd`, :func:`~fnn.adam` or any of Optax's.
      microbatches: into how many parts a batch is cut, of which one at a time goes forward and
        backward, so that a large batch fits into memory. The gradients are those of the batch, but
        for :func:`~fnn.batch_norm`, which normalises each part by itself.
      donate: reuse the memory of the old parameters and state, which then cannot be used again.
      sharding: as for :func:`~fnn.fit`; the devices share each batch equally.

    Returns:
      ``step(params, state, x, target, key=None, weights=None) -> (params, state, value)``,
      jit-compiled. ``state`` is ``optimizer.init(params)`` at first; x and target have a first
      axis of n examples, ``weights`` is (n,), one number per example, for a weighted mean of
      their losses; ``value`` is the loss before the update.

    Raises:
      ValueError: ``sharding`` is a mesh without an axis "data"; by ``step``, a batch that its
        devices cannot share equally.
      BlockError: by ``step``, where network, loss and data do not match.

    Warns:
      UserWarning: the loss takes logits, and the network ends in softmax or logistic.

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
    warn_of_mismatch(net, loss)
    step = plain_step(net, loss, optimizer)
    if microbatches > 1:
        step = _in_equal_parts(net, loss, optimizer, microbatches)
    layout = Layout.of("make_step", sharding)
    if layout is not None:
        return step_on(layout, step, donate)
    if not donate:
        return compiled("make_step", step, trees=2)
    donating = compiled("make_step", step, trees=2, donate_argnums=(0, 1))

    @functools.wraps(donating)
    def once(params: Params, state: Any, *data: Any, **options: Any) -> Any:
        return donating(*distinct((params, state)), *data, **options)

    return once


def _in_equal_parts(net: Block, loss: Block, optimizer: Any, microbatches: int) -> Step:
    def step(
        params: Params, state: Any, x: Value, target: Value, key: Key = None, weights: Any = None
    ) -> tuple[Params, Any, jax.Array]:
        size = divided("make_step", count("make_step: x and target", (x, target)), microbatches)
        whole = plain_step(net, loss, optimizer, microbatch=size)
        return whole(params, state, x, target, key, weights)

    return step


def divided(name: str, examples: int, microbatches: int) -> int:
    """The size of a microbatch; refused where the parts would not be equal."""
    if examples % microbatches:
        near = (
            next(k for k in range(microbatches, examples + 1) if examples % k == 0)
            if (microbatches < examples)
            else examples
        )
        raise ValueError(
            f"{name}: microbatches is {microbatches}, which does not divide the {examples} "
            f"examples of a batch; give one that does, such as {near}"
        )
    return examples // microbatches


@checked
def make_epoch(
    net: Block,
    loss: Block,
    optimizer: AnyOptimizer,
    batch_size: Count,
    *,
    microbatches: Count = 1,
    sharding: Sharding | None = None,
) -> Step:
    """A whole epoch, compiled as one ``lax.scan``.

    Args:
      net, loss: blocks.
      optimizer: :func:`~fnn.sgd`, :func:`~fnn.adam` or any of Optax's.
      batch_size: examples per step; the last step takes the rest, which may be fewer. On a mesh of
        explicit axes each batch is split as x is, and its size has to allow that. Running
        statistics (of :func:`~fnn.batch_norm`) move in proportion: by 1/128 of a usual step after
        one example where ``batch_size`` is 128, whose variance is 0.
      microbatches: as for :func:`make_step`; ``batch_size`` is a multiple of it.
      sharding: as for :func:`~fnn.fit`. x and target are NumPy arrays, of which each device is sent
        its part of each batch; or they are split over the devices already, and the d-th part of
        each batch of ``order`` are examples of device d: nothing of x is sent.

    Returns:
      ``epoch(params, state, x, target, order, key=None, first=0) -> (params, state, losses)``.
      ``order``: integers (n,), the examples to use, in this order. A permutation made on the host
      is cheaper to compile and to run than one on the device. Indices are not checked.
      ``losses``: (steps,), each the loss before that step's update. Step i draws its randomness
      from ``fold_in(key, first + i)``, so an epoch cut into several calls is the same epoch.

    Raises:
      BlockValueError: ``batch_size`` is not a whole number of at least 1.
      ValueError: ``sharding`` as for :func:`make_step`, or a ``batch_size`` that its devices cannot
        share equally; by ``epoch``, x and target are of different lengths.
      BlockTypeError: by ``epoch``, the order is not integers (n,).
      BlockError: by ``epoch``, while it is traced, where network, loss and data do not match.

    Warns:
      UserWarning: as :func:`make_step`.

    >>> import fnn, jax, jax.numpy as jnp, numpy as np
    >>> net, optimizer = fnn.linear(1), fnn.sgd(0.1)
    >>> epoch = fnn.make_epoch(net, fnn.squared_error(), optimizer, batch_size=2)
    >>> x, target = jnp.ones((5, 3)), jnp.ones((5, 1))
    >>> params = net.init(jax.random.key(0), x)
    >>> params, state, losses = epoch(params, optimizer.init(params), x, target, np.arange(5))
    >>> losses.shape
    (3,)
    """
    warn_of_mismatch(net, loss)
    size = divided("make_epoch", batch_size, microbatches)
    layout = Layout.of("make_epoch", sharding)
    if layout is not None:
        layout.require_even("batch_size", batch_size)
    return epoch_with(net, loss, optimizer, batch_size, size, layout=layout)


def epoch_with(
    net: Block,
    loss: Block,
    optimizer: Any,
    batch_size: int,
    microbatch: int | None = None,
    weigh: Weigh = weight_of,
    layout: Layout | None = None,
) -> Step:
    """:func:`make_epoch`, whatever the network ends in; the rest as :func:`plain_step` has it."""

    def step_of(examples: int) -> Step:
        size = None if microbatch is None or microbatch >= examples else microbatch
        share = examples / batch_size
        return plain_step(net, loss, optimizer, share=share, microbatch=size, weigh=weigh)

    step, pick = step_of(batch_size), _batch if layout is None else layout.batch

    def epoch(
        params: Params, state: Any, x: Value, target: Value, order: jax.Array, key: Key = None,
        first: Any = 0,
    ) -> tuple[Params, Any, jax.Array]:  # fmt: skip
        count("make_epoch: x and target", (x, target))
        require_order(order)
        first = as_array("make_epoch", "first", first)
        if first.ndim or is_floating(first):
            raise BlockTypeError("make_epoch", f"first is {described(first)}, needs an integer")
        if key is not None:
            require_key("make_epoch", key)
        steps, rest = divmod(order.shape[0], batch_size)

        def body(carry: Any, rows_and_place: Any, step: Step = step) -> tuple[Any, jax.Array]:
            rows, place = rows_and_place
            batch_x, batch_target = pick((x, target), rows)
            step_key = None if key is None else jax.random.fold_in(key, first + place)
            params, state, value = step(*carry, batch_x, batch_target, step_key)
            return (params, state), value

        carry, losses = (params, state), []
        if steps:
            full = order[: steps * batch_size].reshape(steps, batch_size)
            carry, values = lax.scan(body, carry, (full, jnp.arange(steps)))
            losses.append(values)
        if rest:
            carry, value = body(carry, (order[-rest:], jnp.asarray(steps)), step_of(rest))
            losses.append(value[None])
        return (*carry, jnp.concatenate(losses) if losses else jnp.zeros(0))

    if layout is not None:
        return epoch_on(layout, epoch, batch_size)
    return compiled("make_epoch", epoch, trees=2)


def _batch(examples: Value, rows: jax.Array) -> Value:
    """Some rows, split over an explicit mesh as all of them are."""

    def one(a: jax.Array) -> jax.Array:
        return a.at[rows].get(mode="promise_in_bounds", out_sharding=jax.typeof(a).sharding)

    return jax.tree.map(one, examples)


@checked
def make_predict(
    net: Block, batch_size: Count = 4096, *, sharding: Sharding | None = None
) -> Callable[[Params, Value], Value]:
    """Predictions of the network as it is at inference, for any number of examples.

    Args:
      net: a block.
      batch_size: examples at a time, so that memory stays bounded; of those that are split over
        several devices, each batch has some of every device.
      sharding: as for :func:`~fnn.fit`; the devices share x.

    Returns:
      ``predict(params, x) -> y``, compiled; x and y have a first axis of examples. With
      ``sharding``, y is split as x is, or whole on every device if that does not divide.

    Raises:
      BlockValueError: ``batch_size`` is not a whole number of at least 1.
      ValueError: ``sharding`` is a mesh without an axis "data"; by ``predict``, x is not arrays of
        one length.

    >>> import fnn, jax.numpy as jnp
    >>> predict = fnn.make_predict(fnn.square(), batch_size=2)
    >>> predict({}, jnp.array([1.0, 2.0, 3.0]))
    Array([1., 4., 9.], dtype=float32)
    """
    layout = Layout.of("make_predict", sharding)
    return predict_with(inference(net), batch_size, layout)


def predict_with(
    net: Block, batch_size: int = 4096, layout: Layout | None = None
) -> Callable[[Params, Value], Value]:
    """:func:`make_predict` of a network that is already as it is at inference."""

    def in_batches(params: Params, x: Value, parts: int) -> Value:
        """``parts``: of x, that lie on different devices."""
        each = count("make_predict: the parts of x", x) // parts
        size = max(1, batch_size // parts)
        steps, rest = divmod(each, size)
        if steps == 0:
            return net.forward(params, x)[0]

        def rows(a: jax.Array, start: int, stop: int) -> jax.Array:
            """Of every part: (parts, stop - start, ...)."""
            if parts == 1:
                return a[None, start:stop]
            return a.reshape(parts, each, *a.shape[1:])[:, start:stop]

        def batches(a: jax.Array) -> jax.Array:
            full = rows(a, 0, each - rest).reshape(parts, steps, size, *a.shape[1:])
            return full.swapaxes(0, 1).reshape(steps, parts * size, *a.shape[1:])

        def last(a: jax.Array) -> jax.Array:
            return rows(a, each - rest, each).reshape(parts * rest, *a.shape[1:])

        def together(a: jax.Array, tail: jax.Array | None = None) -> jax.Array:
            full = a.reshape(steps, parts, size, *a.shape[2:]).swapaxes(0, 1)
            full = full.reshape(parts, each - rest, *a.shape[2:])
            if tail is not None:
                tail = tail.reshape(parts, rest, *tail.shape[1:])
                full = jnp.concatenate([full, tail], 1)
            return full.reshape(parts * each, *a.shape[2:])

        y = lax.map(lambda batch: net.forward(params, batch)[0], jax.tree.map(batches, x))
        tail = (
            net.forward(params, jax.tree.map(last, x))[0]
            if rest
            else jax.tree.map(lambda _: None, y)
        )
        return jax.tree.map(together, y, tail)

    if layout is not None:
        return predict_on(layout, in_batches)

    def predict(params: Params, x: Value) -> Value:
        return in_batches(params, x, parts_of(x))

    return compiled("make_predict", predict, trees=1)
