"""The linear layer: against NumPy, in mixed precision, its initial weights, its errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockError, BlockTypeError, BlockValueError

KEY = jax.random.key  # called inside the tests: making a key at import would start the backend


def test_against_numpy_for_any_leading_axes() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(4, 3)), rng.normal(size=3)
    net = fnn.linear(3)
    for batch in ((), (5,), (2, 3), (2, 1, 3)):
        x, dy = rng.normal(size=(*batch, 4)), rng.normal(size=(*batch, 3))
        params = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
        y, residuals = net.forward(params, jnp.asarray(x))
        dparams, dx = net.backward(params, residuals, jnp.asarray(dy))
        np.testing.assert_allclose(y, x @ w + b, rtol=1e-12)
        np.testing.assert_allclose(dx, dy @ w.T, rtol=1e-12)
        rows, drows = x.reshape(-1, 4), dy.reshape(-1, 3)
        np.testing.assert_allclose(dparams["w"], rows.T @ drows, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(dparams["b"], drows.sum(0), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_accumulates_in_float32(dtype: str) -> None:
    """Sums of 4096 ones, forward and back; in bfloat16 they would stop at 256."""
    n, net = 4096, fnn.linear(1)
    params = {"w": jnp.ones((n, 1), jnp.float32), "b": jnp.zeros(1, jnp.float32)}
    y, _ = net.forward(params, jnp.ones((1, n), dtype))
    assert y.dtype == dtype and float(y[0, 0]) == n
    params = {"w": jnp.ones((1, 1), jnp.float32), "b": jnp.zeros(1, jnp.float32)}
    _, residuals = net.forward(params, jnp.ones((n, 1), dtype))
    dparams, dx = net.backward(params, residuals, jnp.ones((n, 1), dtype))
    assert float(dparams["w"][0, 0]) == float(dparams["b"][0]) == n
    assert dparams["w"].dtype == dparams["b"].dtype == jnp.float32 and dx.dtype == dtype


def test_parameters_are_float32_at_least() -> None:
    for dtype, wanted in (("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")):
        params = fnn.linear(2).init(KEY(0), jax.ShapeDtypeStruct((1, 3), dtype))
        assert {str(p.dtype) for p in params.values()} == {wanted}


@pytest.mark.parametrize(
    ("nonlinearity", "variance"),
    [
        (fnn.relu, lambda i, o: 2 / i),  # He
        (fnn.gelu, lambda i, o: 2 / i),
        (fnn.selu, lambda i, o: 1 / i),  # LeCun
        (fnn.tanh, lambda i, o: 2 / (i + o)),  # Glorot
        (fnn.logistic, lambda i, o: 2 / (i + o)),
        (fnn.identity, lambda i, o: 2 / (i + o)),
    ],
)
def test_weights_start_as_suits_the_nonlinearity(nonlinearity: Any, variance: Any) -> None:
    i, o = 200, 300
    params = fnn.layer(o, nonlinearity()).init(KEY(0), jax.ShapeDtypeStruct((1, i), "float32"))
    w, b = np.asarray(params["linear"]["w"]), np.asarray(params["linear"]["b"])
    assert abs(w.mean()) < 0.01 and not b.any()
    assert w.var() == pytest.approx(variance(i, o), rel=0.05)


def test_a_neurons_weights_are_a_column_of_one_output() -> None:
    params = fnn.neuron(fnn.relu()).init(KEY(0), jax.ShapeDtypeStruct((1, 2000), "float32"))
    assert params["linear"]["w"].shape == (2000,) and params["linear"]["b"].shape == ()
    assert np.var(params["linear"]["w"]) == pytest.approx(2 / 2000, rel=0.15)


def test_initialisers_are_arguments() -> None:
    ones = jax.nn.initializers.ones
    params = fnn.linear(2, w_init=ones, b_init=jax.nn.initializers.constant(5)).init(
        KEY(0), jax.ShapeDtypeStruct((1, 3), "float32")
    )
    assert np.all(params["w"] == 1) and np.all(params["b"] == 5)


@pytest.mark.parametrize("features", [0, -1, 2.0, "3"])
def test_bad_features_are_refused(features: Any) -> None:
    with pytest.raises(BlockValueError, match="whole number of at least 1"):
        fnn.linear(features)


def test_misfits_are_refused() -> None:
    net, x = fnn.linear(3), jnp.ones((2, 4))
    params = net.init(KEY(0), x)
    wrong: list[tuple[Any, Any, type[BlockError], str]] = [
        (params, jnp.ones((2, 5)), BlockValueError, r"x has 5 features \(shape \(2, 5\)\)"),
        (params, jnp.ones(()), BlockValueError, "needs a last axis of at least one feature"),
        (params, jnp.ones((2, 4), jnp.int32), BlockTypeError, "needs a floating dtype"),
        ({"w": params["w"]}, x, BlockTypeError, r"params hold \['w'\], need \['b', 'w'\]"),
        (params["w"], x, BlockTypeError, "make them with init"),
        (fnn.linear(2).init(KEY(0), x), x, BlockValueError, "another network's"),
        ({"w": params["w"], "b": jnp.ones(())}, x, BlockValueError, "b has shape"),
        ({"w": params["w"][:, 0], "b": params["b"]}, x, BlockValueError, "w has shape"),
    ]
    for bad_params, bad_x, kind, message in wrong:
        with pytest.raises(kind, match=message):
            net.forward(bad_params, bad_x)
    with pytest.raises(BlockTypeError, match="needs a floating dtype"):
        net.init(KEY(0), jnp.ones((2, 4), jnp.int32))
    with pytest.raises(BlockValueError):
        net.init(KEY(0), jnp.ones(()))


HE = jax.nn.initializers.he_normal
BAD_INITIALIZERS = {
    "not called": (HE, "w_init makes the function"),
    "called with other arguments": (
        jax.nn.initializers.normal,
        r"w_init cannot be used: normal\(\)",
    ),
    "of another shape": (lambda key, shape, dtype: jnp.ones((2, 2), dtype), "float32 of shape"),
    "integers": (lambda key, shape, dtype: jnp.ones(shape, int), "w_init makes int64"),
    "a list": (lambda key, shape, dtype: [1.0], r"w_init makes \[1.0\]"),
}
MAKERS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda w: fnn.linear(3, w_init=w), jnp.ones((1, 4))),
    "neuron": (lambda w: fnn.neuron(fnn.tanh(), w_init=w), jnp.ones((1, 4))),
    "conv": (lambda w: fnn.conv(3, 3, w_init=w), jnp.ones((1, 4, 4, 1))),
    "embedding": (lambda w: fnn.embedding(3, 4, w_init=w), jnp.ones((1,), int)),
}


@pytest.mark.parametrize("bad", BAD_INITIALIZERS)
@pytest.mark.parametrize("maker", MAKERS)
def test_an_initialiser_that_is_none_is_refused(maker: str, bad: str) -> None:
    make, x = MAKERS[maker]
    w_init, message = BAD_INITIALIZERS[bad]
    with pytest.raises(BlockTypeError, match=f"{message}.*needs a function of .key, shape, dtype"):
        make(w_init).init(jax.random.key(0), x)


def test_an_initialiser_of_the_bias_is_checked_too() -> None:
    with pytest.raises(BlockTypeError, match="linear: b_init makes"):
        fnn.linear(3, b_init=HE).init(jax.random.key(0), jnp.ones((1, 4)))
