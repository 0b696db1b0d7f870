"""Gradient accumulation gives the gradients of the whole batch, in less memory."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import fnn

RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(50, 6)), RNG.integers(0, 3, 50)
WEIGHTS = np.where(np.arange(50) < 8, 0.0, RNG.uniform(0.5, 2.0, 50))  # the first two parts: 0
NET, LOSS = fnn.models.mlp((8, 3), fnn.tanh()), fnn.softmax_cross_entropy()
OPTIONS: Any = {"optimizer": fnn.sgd(0.1, 0.9), "epochs": 3, "batch_size": 12, "progress": False}


def assert_same(a: Any, b: Any, rtol: float = 1e-12) -> None:
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=rtol, atol=1e-15), a, b)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("parts", [2, 50])
def test_a_step_in_parts_is_the_step(parts: int, weights: Any) -> None:
    optimizer = fnn.adam(0.1)
    params = NET.init(jax.random.key(0), X)
    arguments = params, optimizer.init(params), X, LABELS, None, weights
    whole = fnn.make_step(NET, LOSS, optimizer)(*arguments)
    assert_same(fnn.make_step(NET, LOSS, optimizer, microbatches=parts)(*arguments), whole, 1e-9)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("batch_size", [12, 60])  # with a smaller last batch, and one alone
def test_fit_in_parts_is_fit(batch_size: int, weights: Any) -> None:
    options = OPTIONS | {"batch_size": batch_size, "weights": weights}
    whole = fnn.fit(NET, LOSS, X, LABELS, **options)
    parts = fnn.fit(NET, LOSS, X, LABELS, microbatches=4, **options)
    assert_same(parts.last, whole.last, 1e-11)
    assert_same([row["loss"] for row in parts.history], [row["loss"] for row in whole.history])


def test_frozen_parts_and_statistics() -> None:
    net = fnn.serial(a=fnn.freeze(fnn.linear(4)), bn=fnn.batch_norm(), b=fnn.linear(3))
    params = net.init(jax.random.key(0), X)
    step = fnn.make_step(net, LOSS, OPTIONS["optimizer"], microbatches=2)
    state = OPTIONS["optimizer"].init(params)
    new, _, value = step(params, state, X, LABELS)
    assert_same(new["a"], params["a"], 0)
    # By hand: two batches of every second example, of which each moves the statistics half as far.
    whole = fnn.make_step(net, LOSS, fnn.sgd(1e-300))
    halves, values, statistics = [X[0::2], X[1::2]], [], params
    for x, labels in zip(halves, [LABELS[0::2], LABELS[1::2]], strict=True):
        moved, _, v = whole(statistics, fnn.sgd(1e-300).init(params), x, labels)
        values.append(v)
        old, bn = statistics["bn"]["statistics"], moved["bn"]["statistics"]
        half = jax.tree.map(lambda o, n: o + (n - o) / 2, old, bn)
        statistics = statistics | {"bn": statistics["bn"] | {"statistics": half}}
    assert_same(new["bn"]["statistics"], statistics["bn"]["statistics"])
    assert_same(value, np.mean(values))


def test_dropout_differs_between_parts() -> None:
    net = fnn.serial(fnn.dropout(0.5), fnn.linear(3))
    same = np.ones((4, 200))
    params = net.init(jax.random.key(0), same)
    step = fnn.make_step(net, LOSS, fnn.sgd(1.0), microbatches=4)
    new = step(params, fnn.sgd(1.0).init(params), same, np.zeros(4, int), jax.random.key(1))[0]
    moved = np.asarray(new["1_linear"]["w"] - params["1_linear"]["w"])[:, 1]
    assert len(np.unique(np.round(moved / np.abs(moved).max(), 6))) > 2  # not the same mask 4 times


def test_memory_is_that_of_a_part() -> None:
    net = fnn.models.mlp((256, 256, 3), fnn.tanh())
    x, labels = np.zeros((512, 64)), np.zeros(512, int)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    optimizer = fnn.sgd(0.1)
    state = jax.eval_shape(optimizer.init, params)

    def memory(microbatches: int) -> int:
        step = fnn.make_step(net, LOSS, optimizer, microbatches=microbatches, donate=True)
        compiled = jax.jit(lambda *a: step(*a)).lower(params, state, x, labels).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    kept = 8 * 512 * (256 + 256)  # bytes of the hidden layers' outputs for the whole batch
    assert memory(1) > kept
    assert memory(16) < memory(1) - kept / 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.fit(NET, LOSS, X, LABELS, microbatches=5, **OPTIONS),
         "fit: microbatches is 5, which does not divide the 12 examples .*such as 6"),
        (lambda: fnn.make_epoch(NET, LOSS, fnn.sgd(0.1), 12, microbatches=24),
         "make_epoch: microbatches is 24, .*such as 12"),
        (lambda: fnn.make_step(NET, LOSS, fnn.sgd(0.1), microbatches=3)(
            NET.init(jax.random.key(0), X), fnn.sgd(0.1).init({}), X, LABELS),
         "make_step: microbatches is 3, which does not divide the 50 examples"),
        (lambda: fnn.make_step(NET, LOSS, fnn.sgd(0.1), microbatches=0), "microbatches is 0"),
    ],
)  # fmt: skip
def test_parts_that_are_not_equal_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
