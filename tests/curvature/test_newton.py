"""Newton's steps against solutions of linear equations, and around saddles."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import fnn
from fnn.curvature import ggn_vp, gradient_of, hessian, hvp, newton, saddle_free_newton

RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(12, 3)), RNG.integers(0, 2, 12)
NET, LOSS = fnn.serial(a=fnn.layer(3, fnn.tanh()), b=fnn.linear(2)), fnn.softmax_cross_entropy()


def problem() -> tuple[Any, Any]:
    x = jnp.asarray(X)
    return gradient_of(NET, LOSS, x, LABELS), NET.init(jax.random.key(0), x)


def stepped(optimizer: Any, gradient: Any, params: Any) -> tuple[np.ndarray, Any]:
    """The update as a vector, and the state."""

    @jax.jit
    def step(params: Any) -> Any:
        return optimizer.update(gradient(params), optimizer.init(params), params)

    updates, state = step(params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    return np.asarray(ravel_pytree(updates)[0]), state


def run(optimizer: Any, gradient: Any, params: Any, steps: int) -> Any:
    """The parameters after some steps."""

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (fnn.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.jit(lambda: jax.lax.scan(step, start, length=steps)[0][0])()


@pytest.mark.slow
def test_exact_steps() -> None:
    gradient, params = problem()
    h = np.asarray(jax.jit(partial(hessian, gradient))(params))
    g = np.asarray(ravel_pytree(gradient(params))[0])
    e, v = np.linalg.eigh(h)
    assert (e < -1e-3).any() and (e > 1e-3).any()
    product = hvp(gradient)
    got, state = stepped(newton(product, 0.1), gradient, params)
    np.testing.assert_allclose(got, -np.linalg.solve(h + 0.1 * np.eye(g.size), g), atol=1e-10)
    np.testing.assert_allclose(state.eigenvalues, e, atol=1e-12)
    wanted = -np.linalg.solve(v * np.abs(e) @ v.T + 0.1 * np.eye(g.size), g)
    got, _ = stepped(saddle_free_newton(product, 0.1), gradient, params)
    np.testing.assert_allclose(got, wanted, atol=1e-10)
    got, _ = stepped(saddle_free_newton(product, 0.1, krylov=g.size), gradient, params)
    np.testing.assert_allclose(got, wanted, atol=1e-10)


@pytest.mark.slow
def test_a_krylov_step() -> None:
    """Of a few vectors: |H| within their span, as Dauphin et al. have it."""
    gradient, params = problem()
    h = np.asarray(jax.jit(partial(hessian, gradient))(params))
    g = np.asarray(ravel_pytree(gradient(params))[0])
    q, _ = np.linalg.qr(np.stack([g, h @ g, h @ h @ g], 1))
    e, v = np.linalg.eigh(q.T @ h @ q)
    got, state = stepped(saddle_free_newton(hvp(gradient), 0.01, krylov=3), gradient, params)
    wanted = -q @ np.linalg.solve(v * np.abs(e) @ v.T + 0.01 * np.eye(3), q.T @ g)
    np.testing.assert_allclose(got, wanted, atol=1e-10)
    np.testing.assert_allclose(state.eigenvalues, e, atol=1e-10)


def test_directions_without_curvature_are_left() -> None:
    """Frozen parameters, and the shift of all logits, have eigenvalue 0."""
    x = jnp.asarray(X)
    net = fnn.serial(a=fnn.freeze(fnn.linear(3)), b=fnn.linear(2))
    params, gradient = net.init(jax.random.key(0), x), gradient_of(net, LOSS, x, LABELS)
    for optimizer in (newton(hvp(gradient)), newton(ggn_vp(net, LOSS, x, LABELS), krylov=9)):
        now = run(optimizer, gradient, params, steps=6)
        assert jax.tree.all(jax.tree.map(np.array_equal, now["a"], params["a"]))
        assert all(np.abs(leaf).max() < 1e-8 for leaf in jax.tree.leaves(gradient(now)))


def test_saddles() -> None:
    """E = x^2 - y^2 + y^4 / 2 has a saddle at 0 and minima at y = +-1."""
    gradient = jax.grad(lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4 / 2)
    for make, end in ((newton, [0.0, 0.0]), (partial(saddle_free_newton, damping=0.1), [0.0, 1.0])):
        optimizer = make(hvp(gradient))
        w = run(optimizer, gradient, jnp.array([0.5, 0.05]), steps=40)
        np.testing.assert_allclose(w, end, atol=1e-3)
    updates, _ = optimizer.update(jnp.zeros(2), optimizer.init(w), w)
    assert not updates.any()


@pytest.mark.slow
def test_with_optax_and_fit() -> None:
    gradient, params = problem()
    inner = saddle_free_newton(hvp(gradient), 0.1, krylov=4)
    chained = optax.chain(inner, optax.scale(0.5))
    whole, _ = stepped(inner, gradient, params)
    half, state = stepped(chained, gradient, params)
    np.testing.assert_allclose(half, whole / 2)
    assert state[0]._replace(damping=jnp.asarray(1.0)).damping == 1
    fitted = fnn.fit(
        NET, LOSS, X, LABELS, optimizer=inner, epochs=5, batch_size=len(X), params=params,
        dtype=np.float64,
    )  # fmt: skip
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


def test_refused_in_words() -> None:
    gradient, params = problem()
    optimizer = newton(hvp(gradient))
    state, grads = optimizer.init(params), gradient(params)
    with pytest.raises(TypeError, match=r"newton: state is .* and params is None, needs what init"):
        optimizer.update(grads, state)
    with pytest.raises(TypeError, match=r"newton: state is \(\) and params"):
        optimizer.update(grads, (), params)
    with pytest.raises(TypeError, match=r"grads is a dict of .* needs the structure of params"):
        optimizer.update(grads["a"], state, params)
    with pytest.raises(ValueError, match="damping is -1, needs a finite number of at least 0"):
        newton(hvp(gradient), -1)
    with pytest.raises(ValueError, match="steps is 100, needs at most 20"):
        newton(hvp(gradient), krylov=100).update(grads, state, params)
