"""Backward against autodiff: a wrong leaf is found, what has no gradient is left out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block
from fnn.introspect.autodiff import relative_error


def net() -> Block:
    return fnn.serial(a=fnn.linear(3), b=fnn.tanh(), c=fnn.linear(2))


def test_a_right_network_and_one_wrong_leaf() -> None:
    x = jnp.linspace(-1, 1, 8).reshape(2, 4)
    params = net().init(jax.random.key(0), x)
    run = jax.jit(lambda params, x: fnn.check.errors(net(), params, x))
    errors = run(params, x)
    assert jax.tree.structure(errors) == jax.tree.structure((params, x))
    assert max(map(float, jax.tree.leaves(errors))) < 1e-6

    def wrong(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = net().backward(params, residuals, dy)
        return {**dparams, "a": {**dparams["a"], "b": 1.5 * dparams["a"]["b"]}}, dx

    dparams, dx = fnn.check.errors(net()._replace(backward=wrong), params, x)
    assert float(dparams["a"]["b"]) == pytest.approx(0.5, 1e-4)
    assert float(dparams["a"]["w"]) < 1e-6 and float(dx) < 1e-6


@pytest.mark.slow
def test_what_has_no_gradient_is_none() -> None:
    frozen = fnn.serial(body=fnn.freeze(fnn.linear(3)), head=fnn.linear(2))
    whole = fnn.with_loss(frozen, fnn.softmax_cross_entropy())
    x = jnp.ones((2, 4))
    params = {"net": frozen.init(jax.random.key(0), x)}
    dparams, (dx, labels) = fnn.check.errors(whole, params, (x, jnp.array([0, 1])))
    assert labels is None and float(dx) < 1e-6
    assert jax.tree.leaves(dparams["net"]["body"]) == []
    assert len(jax.tree.leaves(dparams["net"]["head"])) == 2


@pytest.mark.slow
def test_with_a_cotangent_and_a_key() -> None:
    drop = fnn.dropout(0.5)
    x, key = jnp.arange(6.0), jax.random.key(1)
    assert float(fnn.check.errors(drop, {}, x, jnp.arange(6.0), key)[1]) == 0
    # An output without a cotangent, and ones, under which a softmax has gradient 0.
    both = fnn.fan_out(fnn.square(), fnn.negate())
    assert float(fnn.check.errors(both, {}, x, (None, jnp.ones(6)))[1]) == 0
    # An output of integers has none.
    best = fnn.Block(
        lambda key, x: {}, lambda params, x, key=None: (jnp.argmax(x), ()), fnn.negate().backward
    )
    both = fnn.fan_out(fnn.square(), best)
    assert float(fnn.check.errors(both, {}, x, (jnp.ones(6), None))[1]) == 0
    turned = fnn.softmax()._replace(backward=lambda params, residuals, dy: ({}, 0 * dy))
    assert float(fnn.check.errors(turned, {}, x, jnp.ones(6))[1]) < 1e-6
    assert float(fnn.check.errors(turned, {}, x)[1]) == 1


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5), ([0.0], [0.0], 0), ([3.0], [0.0], 3), ([], [], 0),
        ([np.nan], [1.0], np.inf), ([7.0, 1.0], [np.nan, 1.0], 0), ([7.0], [np.nan], np.nan),
        ([np.inf], [np.inf], 0), ([-np.inf], [np.inf], np.inf), ([1.0], [1.0, 1.0], np.inf),
    ],
)  # fmt: skip
def test_relative_errors(got: list[float], want: list[float], error: float) -> None:
    np.testing.assert_equal(float(relative_error(jnp.array(got), jnp.array(want))), error)
    assert float(relative_error(jnp.array([1.0]), jnp.array([0.5]), jnp.array(2.0))) == 0.25
