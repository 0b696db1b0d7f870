"""Loss scaling: float16 learns what float32 learns, and a scale is never 0."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.training.loss_scale import HIGHEST, LOWEST, ScaledState

pytestmark = pytest.mark.as_users
PARAMS = {"w": jnp.array([3.0, -2.0])}


def updated(optimizer: Any, *gradients: float) -> tuple[list[float], ScaledState]:
    state, updates = optimizer.init(PARAMS), []
    for g in gradients:
        update, state = optimizer.update({"w": jnp.array([g, 1.0])}, state, PARAMS)
        updates.append(float(update["w"][1]))
    return updates, state


def test_the_scale_halves_where_a_gradient_is_not_finite_and_doubles_after_some_that_are() -> None:
    optimizer = fnn.loss_scaled(fnn.sgd(1.0), initial=64, every=2)
    updates, state = updated(optimizer, 1.0, np.inf, 1.0, 1.0, 1.0, np.nan)
    assert updates == [-1, 0, -1, -1, -1, 0]
    assert float(state.scale) == 32 and int(state.good) == 0
    assert int(state.inner.steps) == 4  # what was skipped is no step


def test_the_scale_stays_between_its_ends() -> None:
    lowest = updated(fnn.loss_scaled(fnn.sgd(1.0), initial=4), *[np.inf] * 3)[1]
    assert float(lowest.scale) == LOWEST
    updates, state = updated(fnn.loss_scaled(fnn.sgd(1.0), initial=1), np.inf)
    assert updates == [-1.0] and float(state.scale) == LOWEST  # taken, so that training ends
    highest = updated(fnn.loss_scaled(fnn.sgd(1.0), initial=2.0**23, every=1), *[1.0] * 5)[1]
    assert float(highest.scale) == HIGHEST
    tiny = fnn.loss_scaled(fnn.sgd(1.0), initial=1e-300).init(PARAMS)
    assert float(tiny.scale) == LOWEST


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_below_the_smallest_float16_are_not_lost(scaled: bool) -> None:
    net, loss = fnn.serial(fnn.linear(2), fnn.tanh(), fnn.linear(1)), fnn.squared_error()
    x = np.random.default_rng(0).normal(size=(2**16, 2)).astype(np.float32)
    x, params = jax.tree.map(  # so that both predict the same, up to rounding at random
        lambda a: a.astype(np.float16).astype(np.float32), (x, net.init(jax.random.key(0), x))
    )
    prediction = net.forward(params, x.astype(np.float16))[0].astype(np.float32)
    target = np.asarray(prediction) + 1e-3 * np.tanh(1 + x[:, :1])  # cotangents of 1e-3 / 2^16

    def moved(x: Any, optimizer: Any) -> Any:
        new = fnn.make_step(net, loss, optimizer)(params, optimizer.init(params), x, target)[0]
        return jax.tree.map(lambda n, p: np.asarray(n - p, np.float64), new, params)

    plain = fnn.sgd(1000.0)
    right = moved(x, plain)
    half = moved(x.astype(np.float16), fnn.loss_scaled(plain) if scaled else plain)
    for one, other in zip(jax.tree.leaves(half), jax.tree.leaves(right), strict=True):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert error < 0.05 if scaled else error > 0.9


def spirals(n: int = 256) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int32)


@pytest.mark.parametrize(
    "make", [lambda: fnn.averaged(fnn.adam(0.02), 0.9), lambda: optax.adam(0.02)]
)
def test_fit_scales_the_loss_in_float16(make: Any) -> None:
    net, loss, (x, labels) = (
        fnn.models.mlp((16, 2), fnn.tanh()),
        fnn.softmax_cross_entropy(),
        spirals(),
    )
    options: Any = {"epochs": 20, "batch_size": 64, "progress": False, "microbatches": 2}
    wide = fnn.fit(net, loss, x, labels, optimizer=make(), **options)
    half = fnn.fit(net, loss, x, labels, optimizer=make(), dtype="float16", **options)
    again = fnn.fit(net, loss, x.astype(np.float16), labels, optimizer=make(), **options)
    assert isinstance(half.state, ScaledState) and float(half.state.scale) == 2**15
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("float32")}
    assert abs(half.history[-1]["loss"] - wide.history[-1]["loss"]) < 0.01 < wide.history[0]["loss"]
    assert half.history[-1]["loss"] == again.history[-1]["loss"]
    options |= {"optimizer": fnn.loss_scaled(make(), initial=8), "dtype": "float16"}
    own = fnn.fit(net, loss, x, labels, **options)
    assert isinstance(own.state, ScaledState) and not isinstance(own.state.inner, ScaledState)


def test_too_large_a_scale_is_found_without_harm() -> None:
    net, loss, (x, labels) = (
        fnn.models.mlp((16, 2), fnn.tanh()),
        fnn.softmax_cross_entropy(),
        spirals(),
    )
    optimizer = fnn.loss_scaled(fnn.adam(0.02), initial=2.0**24)
    fitted = fnn.fit(net, loss, 100 * x, labels, optimizer=optimizer, dtype="float16", epochs=20,
                     batch_size=16, progress=False)  # fmt: skip
    assert fitted.success and float(fitted.state.scale) < 2**24
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": 0.0}, "initial is 0.0, needs a finite number above 0"),
        ({"every": 0}, "every is 0, needs a whole number"),
        ({"optimizer": 0.1}, "optimizer is 0.1, needs one with init and update"),
    ],
)
def test_wrong_arguments(arguments: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        fnn.loss_scaled(**{"optimizer": fnn.sgd(0.1)} | arguments)
