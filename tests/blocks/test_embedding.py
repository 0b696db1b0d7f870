"""Embedding: the ways of adding by id, ids that do not exist, mixed precision, errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockError, BlockTypeError, BlockValueError
from fnn.blocks import embedding
from fnn.blocks.embedding import MAX_ONE_HOT_IDS, _by_one_hot, _by_scatter, _by_sorting
from fnn.compiling import as_on
from tests.slow import one_of


def _by_sorting_on_gpus(rows: Any, dy: Any, vocabulary: int) -> Any:
    with as_on("cuda"):
        return _by_sorting(rows, dy, vocabulary)


WAYS = (_by_scatter, _by_one_hot, _by_sorting, _by_sorting_on_gpus)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("vocabulary", "count"), [(1, 5), (7, 40), (100, 40), (3, 0), (5, 1)])
def test_every_way_adds_by_id(
    way: Any, vocabulary: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each backend uses one of them; all are tested on this one. V stands for no row."""
    monkeypatch.setattr(embedding, "RUN", 3)  # pieces of pieces of pieces
    rng = np.random.default_rng(0)
    rows = rng.integers(0, vocabulary + 1, count).astype(np.int32)
    dy = rng.normal(size=(count, 3))
    dy[rows == vocabulary] = np.nan
    wanted = np.zeros((vocabulary, 3))
    for row, d in zip(rows, dy, strict=True):
        if row < vocabulary:
            wanted[row] += d
    got = jax.jit(way, static_argnums=2)(rows, dy, vocabulary)
    np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-15)
    many = jax.jit(jax.vmap(lambda rows, dy: way(rows, dy, vocabulary)))
    both = many(np.stack([rows, rows[::-1]]), np.stack([dy, dy]))
    np.testing.assert_allclose(both[0], wanted, rtol=1e-13, atol=1e-15)


def test_large_vocabularies() -> None:
    """Beyond the limit of one-hot rows; only the rows of the ids get a gradient."""
    block, v = fnn.embedding(MAX_ONE_HOT_IDS + 1, 2), MAX_ONE_HOT_IDS + 1
    ids = jnp.array([0, v - 1, v - 1, v, -1, 2**31 - 1])
    params = block.init(jax.random.key(0), ids)
    y, residuals = block.forward(params, ids)
    dw = block.backward(params, residuals, jnp.ones(y.shape, y.dtype))[0]["w"]
    assert np.isnan(y[3:]).all() and np.isfinite(y[:3]).all()
    assert dw[0].tolist() == [1, 1] and dw[v - 1].tolist() == [2, 2]
    assert float(jnp.sum(dw)) == 6


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_ids_that_do_not_exist_give_nan_and_no_gradient(dtype: str) -> None:
    """Also ids that a narrower dtype would wrap around to an existing row."""
    block = fnn.embedding(100, 2)
    top = np.iinfo(dtype).max
    ids = np.array([99, 100, top, np.iinfo(dtype).min or 101, 0], dtype)
    if dtype.endswith("64"):
        ids[2] = 2**32 + 1
    params = block.init(jax.random.key(0), ids)
    y, residuals = block.forward(params, jnp.asarray(ids))
    assert np.isnan(y).all(-1).tolist() == [False, True, True, True, False]
    dy = jnp.full(y.shape, 1.0, y.dtype).at[1].set(jnp.nan)
    dparams, dx = block.backward(params, residuals, dy)
    assert dx is None
    wanted = np.zeros((100, 2))
    wanted[[0, 99]] = 1
    np.testing.assert_array_equal(dparams["w"], wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_are_in_float32(dtype: str) -> None:
    block = fnn.embedding(2, 1)
    params = {"w": jnp.ones((2, 1), dtype)}
    y, residuals = block.forward(params, jnp.zeros(4096, jnp.int32))
    dw = block.backward(params, residuals, jnp.ones(y.shape, dtype))[0]["w"]
    assert y.dtype == dw.dtype == dtype and float(dw[0, 0]) == 4096


def test_rows_start_with_variance_one() -> None:
    w = fnn.embedding(300, 200).init(jax.random.key(0), jnp.zeros(1, jnp.int32))["w"]
    assert w.shape == (300, 200) and float(jnp.std(w)) == pytest.approx(1, rel=0.02)
    ones = fnn.embedding(3, 2, w_init=jax.nn.initializers.ones)
    assert np.all(ones.init(jax.random.key(0), jnp.zeros(1, jnp.int32))["w"] == 1)


@pytest.mark.slow
def test_it_trains_before_a_linear_layer() -> None:
    net = fnn.serial(rows=fnn.embedding(5, 4), flat=fnn.flatten(), out=fnn.linear(2))
    ids, labels = jnp.array([[0, 1], [3, 4], [2, 2]]), jnp.array([0, 1, 0])
    params = net.init(jax.random.key(0), ids)
    value, grads = fnn.value_and_grad(net, fnn.softmax_cross_entropy())(params, ids, labels)
    step = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    again, _ = fnn.value_and_grad(net, fnn.softmax_cross_entropy())(step, ids, labels)
    assert float(again) < float(value)


def test_misfits_are_refused() -> None:
    net, ids = fnn.embedding(5, 2), jnp.zeros(3, jnp.int32)
    params = net.init(jax.random.key(0), ids)
    wrong: list[tuple[Any, Any, type[BlockError], str]] = [
        (params, jnp.zeros(3), BlockTypeError, r"ids have dtype float64, need an integer"),
        (params, jnp.zeros(3, bool), BlockTypeError, "ids have dtype bool"),
        (params, [1, 2], BlockTypeError, "ids are a list"),
        ({}, ids, BlockTypeError, r"params hold \[\], need \['w'\]"),
        ({"w": jnp.ones((4, 2))}, ids, BlockValueError, r"w has shape \(4, 2\), needs.*\(5, 2\)"),
    ]
    for bad_params, bad_ids, kind, message in wrong:
        with pytest.raises(kind, match=message):
            net.forward(bad_params, bad_ids)
    for arguments in ((0, 2), (2, 0), (2.5, 2)):
        with pytest.raises(BlockValueError, match="needs a whole number"):
            fnn.embedding(*arguments)


# ---- integers of every width, of ids and of labels -------------------------------------------

Z = np.float32([[0.0, 9.0, 0.0]])
NET = fnn.serial(rows=fnn.embedding(3, 3))
W = {"rows": {"w": jnp.asarray(Z.T * Z)}}
LOSS, SGD = fnn.softmax_cross_entropy(), fnn.sgd(0.1)
STATE = SGD.init(W)
ONE = np.int32([1])

# Of integers (1,): ids first, then labels.
USES: dict[str, Any] = {
    "ids": lambda n: NET.forward(W, n)[0],
    "jit": lambda n: jax.jit(NET.forward)(W, jnp.asarray(n))[0],
    "as_function": lambda n: fnn.as_function(NET)(W, n),
    "make_predict": lambda n: fnn.make_predict(NET)(W, n),
    "make_step, ids": lambda n: fnn.make_step(NET, LOSS, SGD)(W, STATE, n, ONE)[2],
    "labels": lambda n: LOSS.forward({}, (Z, n))[0],
    "cross_entropy": lambda n: fnn.cross_entropy().forward({}, (np.abs(Z) / 9 + 0.1, n))[0],
    "labels, jit": lambda n: jax.jit(LOSS.forward)({}, (Z, jnp.asarray(n)))[0],
    "value_and_grad": lambda n: fnn.value_and_grad(NET, LOSS)(W, ONE, n)[0],
    "make_step": lambda n: fnn.make_step(NET, LOSS, SGD)(W, STATE, ONE, target=n)[2],
    "make_step, donate": lambda n: fnn.make_step(NET, LOSS, SGD, donate=True)(
        *jax.tree.map(jnp.copy, (W, STATE)), ONE, n
    )[2],
    "make_epoch": lambda n: fnn.make_epoch(NET, LOSS, SGD, 1)(W, STATE, ONE, n, np.arange(1))[2],
}
WRAPPED = [np.array([2**32 + 1]), np.array([1 - 2**32]), np.uint64([2**63 + 2**32 + 1])]
OUTSIDE = [np.array([3]), np.int8([-1]), np.uint8([255]), np.uint32([2**32 - 1]), np.array([-1])]


@pytest.mark.as_users  # without x64, where JAX wraps
@pytest.mark.parametrize("use", one_of(3, USES))
def test_integers_of_every_width(use: str) -> None:
    """Those that exist are right, others NaN; those that JAX would wrap to others refused."""
    of = USES[use]
    wanted = np.asarray(of(ONE))
    assert np.isfinite(wanted).all()
    for dtype in ("int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"):
        np.testing.assert_array_equal(of(ONE.astype(dtype)), wanted, err_msg=dtype)
    for outside in OUTSIDE:
        assert np.isnan(of(outside)).all(), outside
    if "jit" not in use:
        for wrapped in WRAPPED:
            with pytest.raises(BlockValueError, match=r"integers from .*, which u?int32 cannot"):
                of(wrapped)


@pytest.mark.as_users
@pytest.mark.parametrize("loss", [fnn.squared_error, fnn.binary_cross_entropy])
def test_integers_as_numbers(loss: Any) -> None:
    with pytest.raises(BlockValueError, match="target has integers from 4294967297"):
        loss().forward({}, (np.zeros(1, np.float32), np.array([2**32 + 1])))
    assert np.isfinite(loss().forward({}, (np.zeros(1, np.float32), np.array([1])))[0])
