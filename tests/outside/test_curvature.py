"""fnn.curvature on networks of other libraries: it takes any gradient and any pytree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fnn

pytestmark = pytest.mark.as_users
Case = tuple[Any, Callable[[Any], Any]]  # parameters, and the loss as a function of them


def data() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(20, 3))), jnp.asarray(rng.normal(size=(20, 2)))


def squared(y: Any, target: Any) -> Any:
    return 0.5 * jnp.mean(jnp.sum((y - target) ** 2, -1))


def of_flax() -> Case:
    nn = pytest.importorskip("flax.linen")
    net = nn.Sequential([nn.Dense(4, param_dtype=float), jnp.tanh, nn.Dense(2, param_dtype=float)])
    x, target = data()
    return net.init(jax.random.key(0), x), lambda p: squared(net.apply(p, x), target)


def of_equinox() -> Case:
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(3, 2, 4, 1, jnp.tanh, dtype=float, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    x, target = data()
    return params, lambda p: squared(jax.vmap(eqx.combine(p, static))(x), target)


@pytest.fixture(params=[of_flax, of_equinox], ids=["flax", "equinox"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with jax.enable_x64(True):
        yield request.param()


def test_the_hessian_and_its_spectrum(case: Case) -> None:
    params, loss = case
    gradient = jax.grad(loss)
    vector, unravel = ravel_pytree(params)
    expected = jax.hessian(lambda v: loss(unravel(v)))(vector)
    found = fnn.curvature.hessian(gradient, params)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    e = np.linalg.eigvalsh(expected)
    matvec = partial(fnn.curvature.hvp(gradient), params)
    some = fnn.curvature.lanczos(matvec, params, vector.size).ritz().values
    np.testing.assert_allclose(some, e, atol=1e-8)
    density = fnn.curvature.spectrum(matvec, params, jax.random.key(0), probes=4)
    # Nodes of a probe lie among the eigenvalues, and reach the largest and the smallest.
    np.testing.assert_allclose(density.nodes[:, [0, -1]], [e[[0, -1]]] * 4, atol=1e-8)


def test_saddle_free_newton_descends(case: Case) -> None:
    params, loss = case
    gradient = jax.grad(loss)
    optimizer = fnn.curvature.saddle_free_newton(fnn.curvature.hvp(gradient), 0.1)
    before, state = float(loss(params)), optimizer.init(params)
    for _ in range(20):
        updates, state = optimizer.update(gradient(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert float(loss(params)) < 0.9 * before
