"""Lanczos and stochastic Lanczos quadrature against eigh."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.curvature import gradient_of, hvp, lanczos, matrix, spectrum
from tests.slow import one_of

N = 30


def symmetric(values: Any) -> jax.Array:
    """A matrix with these eigenvalues."""
    n = len(values)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))
    return jnp.asarray(q * np.asarray(values, float) @ q.T)


@partial(jax.jit, static_argnums=2)
def run(a: jax.Array, v0: jax.Array, steps: int) -> fnn.curvature.Lanczos:
    return lanczos(lambda v: a @ v, v0, steps)


V0 = np.random.default_rng(1).normal(size=N)
MATRICES: dict[str, Any] = {
    "spread": np.linspace(-3, 10, N),
    "outliers": np.r_[np.linspace(-1, 1, N - 2), 100, 1e6],
    "low rank": np.r_[np.zeros(N - 4), -2, 1, 3, 5],
    "few values": np.repeat([-1.0, 2.0, 2.5], N // 3),
    "identity": np.ones(N),
    "zero": np.zeros(N),
    "tiny": 1e-100 * np.linspace(-3, 10, N),
    "huge": 1e100 * np.linspace(-3, 10, N),
}


@pytest.mark.parametrize("name", MATRICES)
def test_all_steps_find_all_eigenvalues(name: str) -> None:
    """Invariant subspaces are left, and every eigenvalue is found as often as it is there."""
    a, scale = symmetric(MATRICES[name]), max(abs(np.asarray(MATRICES[name])).max(), 1e-300)
    found = run(a, V0, N)
    ritz = found.ritz()
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(N), atol=1e-12)
    np.testing.assert_allclose(ritz.values / scale, np.sort(MATRICES[name]) / scale, atol=1e-12)
    off = a @ ritz.vectors.T - ritz.values[None] * ritz.vectors.T
    np.testing.assert_allclose(off / scale, 0, atol=1e-11)


def test_few_steps_find_the_extremes() -> None:
    a = symmetric(MATRICES["outliers"])
    found = run(a, V0, 8)
    ritz = found.ritz()
    np.testing.assert_allclose(found.basis[0], V0 / np.linalg.norm(V0), rtol=1e-12)
    np.testing.assert_allclose(ritz.values[-2:], [100, 1e6], rtol=1e-6)
    off = a @ ritz.vectors.T - ritz.values[None] * ritz.vectors.T
    np.testing.assert_allclose(np.linalg.norm(off, axis=0), ritz.residuals, atol=1e-8)
    t = np.diag(found.alphas) + np.diag(found.betas[:-1], 1) + np.diag(found.betas[:-1], -1)
    np.testing.assert_allclose(found.basis @ a @ found.basis.T, t, atol=1e-8)


def test_from_zero_and_from_an_eigenvector() -> None:
    a = symmetric(MATRICES["spread"])
    assert np.isfinite(run(a, 0 * V0, 5).alphas).all()
    one = np.linalg.eigh(a)[1][:, 7]
    found = run(a, jnp.asarray(one), 5)
    np.testing.assert_allclose(found.alphas[0], MATRICES["spread"][7], rtol=1e-12)
    assert found.betas[0] < 1e-13 and (found.betas[1:] > 0.1).all()
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(5), atol=1e-12)


def test_wide_recurrence_of_narrow_products() -> None:
    a = symmetric(MATRICES["spread"]).astype(jnp.float32)
    found = run(a, V0.astype(np.float32), N)
    assert found.basis.dtype == jnp.float64
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(N), atol=1e-12)
    np.testing.assert_allclose(found.ritz().values, MATRICES["spread"], atol=1e-5)


@pytest.fixture(scope="module")
def network() -> tuple[Any, Any, np.ndarray]:
    """A product, parameters, and the exact eigenvalues of a network's Hessian."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, target = jnp.asarray(rng.normal(size=(20, 6))), jnp.asarray(rng.integers(0, 3, 20))
        net, loss = fnn.models.mlp((8, 3), fnn.tanh()), fnn.softmax_cross_entropy()
        params = net.init(jax.random.key(1), x)
        product = hvp(gradient_of(net, loss, x, target))
        dense = jax.jit(partial(matrix, product))(params)
        return product, params, np.linalg.eigvalsh(dense)


@pytest.mark.parametrize("steps", one_of(2, [25, 1000]))
def test_spectrum(network: tuple[Any, Any, np.ndarray], steps: int) -> None:
    product, params, exact = network
    find = jax.jit(lambda key: spectrum(partial(product, params), params, key, 40, steps))
    found = find(jax.random.key(0))
    assert found.nodes.shape == found.weights.shape == (40, min(steps, exact.size))
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(found.nodes[:, -1], exact[-1], atol=1e-6)
    np.testing.assert_allclose(found.nodes[:, 0], exact[0], atol=1e-3)
    for f in (lambda e: e, lambda e: e**2, lambda e: e < -1e-3):
        mean, error = found.mean(f)
        assert abs(mean - f(exact).mean()) < 4 * error
    grid, width = np.linspace(exact[0] - 0.5, exact[-1] + 0.5, 500), 0.05
    density, error = found.density(grid, width)
    smooth = np.exp(-(((grid[:, None] - exact) / width) ** 2) / 2).mean(1)
    smooth /= width * np.sqrt(2 * np.pi)
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, atol=1e-3)
    assert np.mean(np.abs(density - smooth) < 3 * error + 1e-2) > 0.95
    assert np.trapezoid(np.abs(density - smooth), grid) < 0.15


def test_one_probe_has_no_error(network: tuple[Any, Any, np.ndarray]) -> None:
    product, params, _ = network
    found = spectrum(partial(product, params), params, jax.random.key(0), 1, 2)
    assert np.isnan(found.mean(lambda e: e)[1])


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "too many steps": (
        lambda: lanczos(lambda v: v, np.ones(3), 4),
        "lanczos: steps is 4, needs at most 3, the numbers of v0: float64 of shape",
    ),
    "integers": (
        lambda: lanczos(lambda v: v, np.ones(3, int), 2),
        "lanczos: v0 has dtype int64 and needs a floating dtype",
    ),
    "no key": (lambda: spectrum(lambda v: v, np.ones(3), 0), "spectrum: key is 0, needs a key"),
    "a width": (
        lambda: spectrum(lambda v: v, np.ones(3), jax.random.key(0)).density(np.ones(2), 0.0),
        "density: width is 0.0, needs a number above 0",
    ),
    "another length": (
        lambda: lanczos(lambda v: v[:2], np.ones(3), 2),
        r"the result of the function <lambda> has shape \(2,\), needs that of v0: \(3,\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=words):
        call()
