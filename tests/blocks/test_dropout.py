"""Dropout: its mask, its mean, the same mask in backward, and a clear error without a key."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockTypeError, BlockValueError

N = 20000


@pytest.mark.parametrize("rate", [0, 0.0, 0.1, 0.5, 0.9])
def test_drops_the_rate_and_keeps_the_mean(rate: float) -> None:
    y = np.asarray(fnn.dropout(rate).forward({}, jnp.ones(N), jax.random.key(0))[0])
    assert set(np.unique(y)) <= {0.0, 1 / (1 - rate)}
    assert np.mean(y == 0) == pytest.approx(rate, abs=0.01)
    assert y.mean() == pytest.approx(1, abs=0.05)


def test_the_same_mask_both_ways() -> None:
    net, x = fnn.dropout(0.5), jnp.linspace(1, 2, 50)
    y, residuals = net.forward({}, x, jax.random.key(3))
    _, dx = net.backward({}, residuals, jnp.ones(50))
    np.testing.assert_allclose(dx, y / x, rtol=1e-15)


def test_the_mask_does_not_depend_on_the_precision() -> None:
    key = jax.random.key(0)
    wide, low = (
        fnn.dropout(0.5).forward({}, jnp.ones(99, dtype), key)[0]
        for dtype in ("float32", "bfloat16")
    )
    assert low.dtype == jnp.bfloat16 and np.array_equal(wide > 0, low > 0)


def test_raw_keys_work() -> None:
    old = jax.random.PRNGKey(0)
    y, _ = fnn.serial(fnn.dropout(0.5)).forward({}, jnp.ones(9), old)
    assert y.shape == (9,)


def test_a_missing_key_and_bad_rates_are_refused() -> None:
    with pytest.raises(BlockValueError, match=r"needs a key.*inference\(net\)"):
        fnn.dropout(0.5).forward({}, jnp.ones(3))
    rates: list[Any] = [1, 1.0, -0.1, 1.5, float("nan")]
    for rate in rates:
        with pytest.raises(BlockValueError, match="needs 0 <= rate < 1"):
            fnn.dropout(rate)
    with pytest.raises(BlockTypeError):
        fnn.dropout(0.5).forward({}, jnp.ones(3, jnp.int32), jax.random.key(0))


def test_a_dropped_infinity_is_dropped() -> None:
    x = jnp.full(64, jnp.inf)
    y = np.asarray(fnn.dropout(0.5).forward({}, x, jax.random.key(0))[0])
    assert set(np.unique(y)) == {0.0, np.inf}


def test_at_inference_nothing_is_dropped_and_no_key_is_needed() -> None:
    x = jnp.linspace(0, 1, 5)
    assert np.array_equal(fnn.inference(fnn.dropout(0.9)).forward({}, x)[0], x)
