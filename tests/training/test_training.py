"""Steps, epochs and predictions: the same numbers however they are cut, compiled once."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import reduce_on_plateau

import fnn
from fnn.block import Block

pytestmark = pytest.mark.core

N, FEATURES, CLASSES, BATCH = 14, 5, 3, 4  # the last batch of an epoch has 2
LOSS = fnn.softmax_cross_entropy()


@pytest.fixture
def data() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, FEATURES))
    return jnp.asarray(x), jnp.asarray(x[:, :CLASSES].argmax(1))


def small_net() -> Block:
    return fnn.models.mlp((6, CLASSES), fnn.tanh())


def allclose(a: Any, b: Any, rtol: float = 1e-12) -> None:
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=rtol, atol=1e-14), a, b)


def test_a_step_is_forward_backward_update(data: Any) -> None:
    x, target = data
    net, optimizer = small_net(), fnn.sgd(0.1, 0.9)
    params = net.init(jax.random.key(0), x)
    state = optimizer.init(params)
    after, _, value = fnn.make_step(net, LOSS, optimizer)(params, state, x, target)
    expected, grads = jax.value_and_grad(
        lambda p: LOSS.forward({}, (net.forward(p, x)[0], target))[0]
    )(params)
    allclose(value, expected)
    allclose(after, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))


def test_an_epoch_is_a_loop_of_steps(data: Any) -> None:
    x, target = data
    net = fnn.models.mlp((6, CLASSES), fnn.tanh(), dropout=0.2)
    optimizer = fnn.sgd(0.1, 0.9)
    params = net.init(jax.random.key(0), x)
    state, key = optimizer.init(params), jax.random.key(7)
    order = np.random.default_rng(1).permutation(N).astype(np.int32)
    epoch = fnn.make_epoch(net, LOSS, optimizer, BATCH)
    whole = epoch(params, state, x, target, order, key)
    step, losses = fnn.make_step(net, LOSS, optimizer), []
    for i in range(0, N, BATCH):
        rows = order[i : i + BATCH]
        step_key = jax.random.fold_in(key, i // BATCH)
        params, state, value = step(params, state, x[rows], target[rows], step_key)
        losses.append(value)
    allclose(whole, (params, state, jnp.stack(losses)))
    assert len(losses) == 4  # 4 + 4 + 4 + 2 examples: none is left out


@pytest.mark.parametrize(
    "optimizer", [fnn.sgd(0.1, 0.9), optax.adam(optax.cosine_decay_schedule(0.1, 100))]
)
def test_nothing_is_traced_again(optimizer: Any, data: Any) -> None:
    x, target = data
    order = np.arange(N, dtype=np.int32)
    chex.clear_trace_counter()
    net = small_net()
    params = net.init(jax.random.key(0), x)
    net = net._replace(forward=chex.assert_max_traces(net.forward, n=3))
    state = optimizer.init(params)
    step = fnn.make_step(net, LOSS, optimizer)  # one trace
    epoch = fnn.make_epoch(net, LOSS, optimizer, BATCH)  # two: the scan and the last batch
    with jax.numpy_dtype_promotion("standard"):  # Optax's schedules mix dtypes
        for _ in range(3):
            params, state, _ = step(params, state, x, target)
            params, state, _ = epoch(params, state, x, target, order)


def test_changing_the_learning_rate_traces_nothing_again(data: Any) -> None:
    x, target = data
    net, optimizer = small_net(), fnn.sgd(0.1)
    params = net.init(jax.random.key(0), x)
    chex.clear_trace_counter()
    net = net._replace(forward=chex.assert_max_traces(net.forward, n=1))
    step = fnn.make_step(net, LOSS, optimizer)
    params, state, _ = step(params, optimizer.init(params), x, target)
    slow, _, _ = step(params, state._replace(learning_rate=0.001), x, target)
    fast, _, _ = step(params, state, x, target)
    moved = [float(jnp.abs(p["out"]["w"] - params["out"]["w"]).max()) for p in (slow, fast)]
    assert moved[1] == pytest.approx(100 * moved[0], rel=1e-6)


def test_donation_takes_the_memory_of_the_old(data: Any) -> None:
    x, target = data
    net, optimizer = small_net(), fnn.sgd(0.1, 0.9)
    params = net.init(jax.random.key(0), x)
    kept = jax.tree.map(jnp.copy, params)
    expected, *_ = fnn.make_step(net, LOSS, optimizer)(kept, optimizer.init(kept), x, target)
    new, *_ = fnn.make_step(net, LOSS, optimizer, donate=True)(
        params, optimizer.init(params), x, target
    )
    allclose(new, expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))


OPTIMISERS = {
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05),
    "adabelief": optax.adabelief(0.05),
    "adagrad": optax.adagrad(0.5),
    "lamb": optax.lamb(0.1),
    "lion": optax.lion(0.02),
    "rmsprop": optax.rmsprop(0.02),
    "yogi": optax.yogi(0.05),
    "sgd_with_schedule": optax.sgd(optax.cosine_decay_schedule(0.5, 1000), 0.9),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.2, 0.9)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    "plateau": optax.chain(optax.adam(0.05), reduce_on_plateau(patience=5)),
    "averaged": optax.chain(optax.adam(0.05), optax.ema(0.5)),
    "fnn": fnn.sgd(0.2, 0.9),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_any_optimiser_goes_in_its_place(name: str, data: Any) -> None:
    x, target = data
    x = x.astype(jnp.float32)  # as users have it
    net, optimizer = fnn.models.logistic_regression(CLASSES), OPTIMISERS[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax's
        params = net.init(jax.random.key(0), x)
        epoch = fnn.make_epoch(net, LOSS, optimizer, BATCH)
        state, order, means = optimizer.init(params), np.arange(N, dtype=np.int32), []
        for _ in range(30):
            params, state, losses = epoch(params, state, x, target, order)
            means.append(float(losses.mean()))
    assert means[-1] < 0.7 * means[0]
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes_of_computation(dtype: str, data: Any) -> None:
    x, target = data
    x = x.astype(dtype)
    net, optimizer = small_net(), fnn.sgd(0.1, 0.9)
    params = net.init(jax.random.key(0), x)
    wide = jnp.dtype("float64" if dtype == "float64" else "float32")
    state = optimizer.init(params)
    step = fnn.make_step(net, LOSS, optimizer)
    first = None
    for _ in range(30):
        params, state, value = step(params, state, x, target)
        first = value if first is None else first
    assert value.dtype == wide
    assert value < 0.5 * first
    assert {p.dtype for p in jax.tree.leaves(params)} == {wide}
    assert net.forward(params, x)[0].dtype == x.dtype


def test_frozen_parameters_are_not_computed_and_do_not_move(data: Any) -> None:
    x, target = data
    body = fnn.serial(a=fnn.linear(8), b=fnn.tanh(), c=fnn.linear(7), d=fnn.tanh())
    free = fnn.serial(body=body, head=fnn.linear(CLASSES))
    frozen = fnn.serial(body=fnn.freeze(body), head=fnn.linear(CLASSES))
    params = free.init(jax.random.key(0), x)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.adamw(0.1, weight_decay=0.5)
        state = optimizer.init(params)
        new, *_ = fnn.make_step(frozen, LOSS, optimizer)(params, state, x, target)
    chex.assert_trees_all_equal(new["body"], params["body"])  # bit for bit
    assert not np.array_equal(new["head"]["w"], params["head"]["w"])

    _, grads = fnn.value_and_grad(frozen, LOSS)(params, x, target)
    _, expected = fnn.value_and_grad(free, LOSS)(params, x, target)
    allclose(grads["head"], expected["head"])
    assert not any(np.any(g) for g in jax.tree.leaves(grads["body"]))

    def flops(net: Block) -> float:
        compiled = jax.jit(fnn.value_and_grad(net, LOSS)).lower(params, x, target).compile()
        return compiled.cost_analysis()["flops"]

    # Two weight gradients (5x8 and 8x7) and the cotangent between them (7x8) disappear.
    saved = 2 * N * (FEATURES * 8 + 8 * 7 + 7 * 8)
    assert flops(free) - flops(frozen) >= saved


def test_predictions_do_not_depend_on_the_batches(data: Any) -> None:
    x, _ = data
    net = fnn.serial(small_net(), fnn.dropout(0.5))
    params = net.init(jax.random.key(0), x)
    expected = net.graph.nodes[0].block.forward(params["0_mlp"], x)[0]
    for batch_size in (4, 7, 14, 100):
        allclose(fnn.make_predict(net, batch_size)(params, x), expected)
    assert fnn.make_predict(net)(params, x[:0]).shape == (0, CLASSES)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0])
def test_a_bad_batch_size_is_refused(batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size is"):
        fnn.make_epoch(small_net(), LOSS, fnn.sgd(0.1), batch_size)


@pytest.mark.parametrize("x", [[[1.0] * FEATURES], 3.0, None, [], np.float32(1)])
def test_predictions_of_numbers_without_an_axis_of_examples_are_refused(x: Any) -> None:
    params = small_net().init(jax.random.key(0), jnp.ones((1, FEATURES)))
    with pytest.raises(ValueError, match=r"make_predict.*axis of examples.*numpy.asarray"):
        fnn.make_predict(small_net())(params, x)


@pytest.mark.parametrize(
    "order", [[0, 1], np.arange(4.0), np.ones(4, bool), np.zeros((2, 2), int), np.int32(3), 3]
)
def test_an_order_that_is_none_is_refused(order: Any, data: Any) -> None:
    net, optimizer = small_net(), fnn.sgd(0.1)
    params, epoch = net.init(jax.random.key(0), data[0]), fnn.make_epoch(net, LOSS, optimizer, 4)
    with pytest.raises(TypeError, match=r"make_epoch: order is .*needs integers \(n,\)"):
        epoch(params, optimizer.init(params), *data, order)


def test_targets_of_another_length_are_refused(data: Any) -> None:
    x, target = data
    net, optimizer = small_net(), fnn.sgd(0.1)
    params, epoch = net.init(jax.random.key(0), x), fnn.make_epoch(net, LOSS, optimizer, 4)
    with pytest.raises(ValueError, match=r"x and target need .* got shapes \(14, 5\), \(13,\)"):
        epoch(params, optimizer.init(params), x, target[1:], np.arange(N))
