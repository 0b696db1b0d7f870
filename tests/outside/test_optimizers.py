"""fnn's optimisers against torch.optim and Optax, for 50 steps in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-outside")

STEPS = 50


def warm_up(step: Any) -> Any:
    t = jnp.asarray(step, float)
    return 0.1 * jnp.where(t < 10, t / 10, 0.5 + 0.5 * jnp.cos(jnp.pi * (t - 10) / (STEPS - 10)))


RATES: dict[str, Any] = {
    "0.1": 0.1,
    "0.003": 0.003,
    "cosine": optax.cosine_decay_schedule(0.1, STEPS),
    "warm-up, cosine": warm_up,
    "piecewise": optax.piecewise_constant_schedule(0.1, {20: 0.1, 40: 0.5}),
}
SGD = [
    (m, nesterov) for m in (0.0, 0.5, 0.9, 0.99) for nesterov in (False, True) if m or not nesterov
]
ADAM = [(0.9, 0.999, 1e-8), (0.8, 0.95, 1e-6), (0.0, 0.9, 1e-3)]

Trained = dict[str, np.ndarray]


def start() -> Trained:
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3)}


def slopes(params: Any) -> Trained:
    """Of a function with curved valleys."""
    w, b = (np.asarray(params[leaf]) for leaf in ("w", "b"))
    return {"w": np.sin(w) + 0.3 * w * np.arange(1, 4), "b": np.tanh(b) * 2 + 0.1 * b**3}


def by_updates(optimizer: Any) -> Trained:
    """With Optax's protocol, which fnn's optimisers follow."""
    params: Any = start()
    with jax.numpy_dtype_promotion("standard"):  # for Optax
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(STEPS):
            updates, state = update(slopes(params), state, params)
            params = fnn.apply_updates(params, updates)
    return params


def by_torch(make: Callable[[Any, float], Any], rate: Any) -> Trained:
    leaves = {name: torch.from_numpy(leaf) for name, leaf in start().items()}
    optimizer = make(list(leaves.values()), 0.1)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = float(_at(rate, step))
        grads = slopes(leaves)
        for name, leaf in leaves.items():
            leaf.grad = torch.from_numpy(grads[name])
        optimizer.step()
    return {name: leaf.numpy() for name, leaf in leaves.items()}


def _at(rate: Any, step: int) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return rate(jnp.int32(step)) if callable(rate) else rate


def same(got: Any, want: Any, tolerance: float) -> None:
    for leaf in want:
        np.testing.assert_allclose(got[leaf], want[leaf], tolerance, tolerance)
        assert np.max(np.abs(got[leaf] - start()[leaf])) > 1e-3  # it has moved


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("momentum", "nesterov"), SGD)
def test_sgd(momentum: float, nesterov: bool, rate: str) -> None:
    ours = by_updates(fnn.sgd(RATES[rate], momentum, nesterov=nesterov))
    same(ours, by_updates(optax.sgd(RATES[rate], momentum or None, nesterov)), 1e-14)

    def make(leaves: Any, lr: float) -> Any:
        return torch.optim.SGD(leaves, lr, momentum, nesterov=nesterov)

    same(ours, by_torch(make, RATES[rate]), 1e-10)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("b1", "b2", "eps"), ADAM)
def test_adam(b1: float, b2: float, eps: float, rate: str) -> None:
    ours = by_updates(fnn.adam(RATES[rate], b1, b2, eps))
    same(ours, by_updates(optax.adam(RATES[rate], b1, b2, eps)), 1e-14)

    def make(leaves: Any, lr: float) -> Any:
        return torch.optim.Adam(leaves, lr, (b1, b2), eps)

    same(ours, by_torch(make, RATES[rate]), 1e-10)
