"""sgd and adam give Optax's numbers, and the learning rate can change without recompiling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn

SCHEDULE = optax.exponential_decay(0.1, transition_steps=2, decay_rate=0.5)
PAIRS = {
    "plain": (fnn.sgd(0.1), optax.sgd(0.1)),
    "momentum": (fnn.sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "nesterov": (fnn.sgd(0.1, 0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
    "schedule": (fnn.sgd(SCHEDULE, 0.9), optax.sgd(SCHEDULE, 0.9)),
    "adam": (fnn.adam(0.1), optax.adam(0.1)),
    "adam, settings": (fnn.adam(0.1, 0.5, 0.9, 1e-3), optax.adam(0.1, 0.5, 0.9, 1e-3)),
    "adam, schedule": (fnn.adam(SCHEDULE), optax.adam(SCHEDULE)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_optax_gives_the_same_numbers(name: str) -> None:
    rng = np.random.default_rng(0)
    start = {"w": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=2))}
    grads = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), start) for _ in range(5)]

    def run(optimizer: Any, params: Any) -> Any:
        state = optimizer.init(params)
        for g in grads:
            updates, state = optimizer.update(g, state, params)
            params = fnn.apply_updates(params, updates)
        return params

    mine, other = PAIRS[name]
    ours = run(mine, start)
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        theirs = run(other, start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), ours, theirs)


@pytest.mark.parametrize("optimizer", [fnn.sgd(0.1, 0.9), fnn.adam(0.1)], ids=["sgd", "adam"])
def test_parameters_keep_their_dtype(optimizer: fnn.Optimizer) -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    updates, _ = optimizer.update(params, optimizer.init(params))
    new = fnn.apply_updates(params, updates)
    assert jax.tree.map(lambda p: p.dtype, new) == jax.tree.map(lambda p: p.dtype, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_and_zero_gradients_of_16_bits(dtype: str) -> None:
    """optax#1754: their squares are 0 there, and so is 1e-8."""
    grads = jnp.array([0.0, 1e-6, -1e-4, 1e-2], dtype)
    optimizer, params = fnn.adam(0.25), jnp.ones(4, dtype)
    updates, _ = optimizer.update(grads, optimizer.init(params))
    assert updates.dtype == dtype
    np.testing.assert_allclose(updates.astype(float), [0, -0.25, 0.25, -0.25], rtol=0.02)


def test_an_average_of_16_bits_moves() -> None:
    optimizer, params = fnn.averaged(fnn.sgd(1.0), 0.999), jnp.ones((), "bfloat16")
    state = optimizer.init(params)
    path = [params]
    for _ in range(100):  # to 2, by what moves an average near 1 less than bfloat16 has there
        updates, state = optimizer.update(jnp.asarray(-0.01, "bfloat16"), state, params)
        params = fnn.apply_updates(params, updates)
        path.append(params)
    weights = 0.999 ** np.arange(100)[::-1]
    wanted = np.sum(weights * np.asarray(path[1:], float)) / np.sum(weights)
    got = optimizer.evaluated(state, params)
    assert got.dtype == "bfloat16"
    assert abs(float(got) - wanted) < 2**-8


def test_the_learning_rate_changes_without_recompiling() -> None:
    traces = []
    optimizer = fnn.sgd(0.5)

    @jax.jit
    def update(params: Any, state: Any) -> Any:
        traces.append(None)
        updates, state = optimizer.update(jnp.ones(()), state)
        return fnn.apply_updates(params, updates), state

    params, state = update(jnp.ones(()), optimizer.init(jnp.ones(())))
    assert float(params) == 0.5
    for rate in (0.25, jnp.asarray(0.25)):  # a Python number or an array
        new, _ = update(params, state._replace(learning_rate=rate))
        assert float(new) == 0.25
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (
            fnn.sgd,
            {"learning_rate": 0.0},
            "sgd: learning_rate is 0.0, needs a finite number above 0",
        ),
        (fnn.sgd, {"learning_rate": -1.0}, "learning_rate is -1.0"),
        (fnn.sgd, {"learning_rate": float("nan")}, "learning_rate is nan"),
        (fnn.sgd, {"learning_rate": 0.1, "momentum": 1.0}, "momentum is 1.0, needs 0 <= momentum"),
        (fnn.sgd, {"learning_rate": 0.1, "nesterov": True}, "nesterov needs a momentum above 0"),
        (
            fnn.adam,
            {"learning_rate": 0.0},
            "adam: learning_rate is 0.0, needs a finite number above 0",
        ),
        (fnn.adam, {"learning_rate": 0.1, "b1": 1.0}, "b1 is 1.0, needs 0 <= b1 < 1"),
        (fnn.adam, {"learning_rate": 0.1, "b2": -0.1}, "b2 is -0.1, needs 0 <= b2 < 1"),
        (fnn.adam, {"learning_rate": 0.1, "eps": 0.0}, "eps is 0.0, needs a finite number above 0"),
        (fnn.averaged, {"optimizer": fnn.sgd(0.1), "decay": 1.0}, "decay is 1.0, needs 0 <= decay"),
    ],
)
def test_bad_settings_are_refused(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_an_average_is_the_weighted_mean_and_frozen_parameters_stay(decay: float) -> None:
    """With weight decay, which would move frozen ones, and running statistics."""
    net = fnn.serial(a=fnn.freeze(fnn.linear(3)), n=fnn.batch_norm(), b=fnn.linear(1))
    rng = np.random.default_rng(0)
    x, target = jnp.asarray(rng.normal(size=(8, 2))), jnp.asarray(rng.normal(size=(8, 1)))
    params = net.init(jax.random.key(0), x)
    frozen, path = params["a"], []
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        optimizer = fnn.averaged(optax.adamw(0.1, weight_decay=0.5), decay)
        step = fnn.make_step(net, fnn.squared_error(), optimizer, donate=True)
        params, state = jax.tree.map(jnp.array, params), optimizer.init(params)
        for _ in range(5):
            params, state, _ = step(params, state, x, target)
            path.append(jax.tree.map(np.array, params))
        assert optimizer.evaluated is not None
        average = optimizer.evaluated(state, params)
    weights = decay ** np.arange(5.0)[::-1]
    expected = jax.tree.map(lambda *p: np.average(np.stack(p), axis=0, weights=weights), *path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), average, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-15), average["a"], frozen)


def test_fit_evaluates_and_returns_the_average() -> None:
    x = np.linspace(-1, 1, 64)[:, None]
    optimizer = fnn.averaged(fnn.adam(0.1), 0.9)
    fitted = fnn.fit(
        fnn.linear(1), fnn.squared_error(), x, 3 * x + 1, optimizer=optimizer, epochs=3,
        validation=(x, 3 * x + 1), progress=False,
    )  # fmt: skip
    assert optimizer.evaluated is not None and fitted.best_epoch == 3
    average = optimizer.evaluated(fitted.state, fitted.last)
    np.testing.assert_allclose(fitted.params["w"], average["w"], rtol=1e-6)
    assert np.any(fitted.params["w"] != fitted.last["w"])
