"""sgd gives Optax's numbers, and its learning rate can change without recompiling."""

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
}


@pytest.mark.parametrize("name", PAIRS)
def test_sgd_equals_optax(name: str) -> None:
    rng = np.random.default_rng(0)
    start = {"w": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=2))}
    grads = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), start) for _ in range(5)]

    def run(optimizer: Any, params: Any) -> Any:
        state = optimizer.init(params)
        for g in grads:
            updates, state = optimizer.update(g, state, params)
            params = fnn.apply_updates(params, updates)
        return params

    ours, theirs = (run(optimizer, start) for optimizer in PAIRS[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), ours, theirs)


def test_parameters_keep_their_dtype() -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    optimizer = fnn.sgd(0.1, 0.9)
    updates, _ = optimizer.update(params, optimizer.init(params))
    new = fnn.apply_updates(params, updates)
    assert jax.tree.map(lambda p: p.dtype, new) == jax.tree.map(lambda p: p.dtype, params)


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
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0, needs a number above 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": 0.1, "momentum": 1.0}, "momentum is 1.0, needs 0 <= momentum < 1"),
        ({"learning_rate": 0.1, "nesterov": True}, "nesterov needs a momentum above 0"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fnn.sgd(**arguments)
