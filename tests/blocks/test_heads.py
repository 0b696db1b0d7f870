"""Attention with its projections, and the blocks around it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockError


def test_a_tied_head_adds_its_gradient_to_the_embedding_s() -> None:
    nodes = [
        ("embedding", fnn.embedding(5, 3), "x"),
        ("act", fnn.tanh(), "embedding"),
        ("head", fnn.unembedding(5), "act", "embedding"),
    ]
    net, ids = fnn.graph("x", nodes, "head"), jnp.array([[0, 3, 3, 1]])
    params = net.init(jax.random.key(0), ids)
    assert params.keys() == {"embedding"}
    dy = np.random.default_rng(0).normal(size=(1, 4, 5)).astype(np.float32)

    def plain(params: Any) -> Any:
        w = params["embedding"]["w"]
        return jnp.sum(dy * (jnp.tanh(w[ids]) @ w.T))

    def by_hand(params: Any) -> Any:
        return net.backward(params, net.forward(params, ids)[1], dy)[0]

    got, wanted = jax.jit(lambda params: (by_hand(params), jax.grad(plain)(params)))(params)
    np.testing.assert_allclose(got["embedding"]["w"], wanted["embedding"]["w"], rtol=1e-5)


def test_a_factored_head_is_multiplied_at_inference() -> None:
    net = fnn.unembedding(5, factored=True)
    params = {"w": jnp.arange(15.0).reshape(5, 3)}
    x = jnp.ones((2, 3))
    rows, w = net.forward(params, x)[0]
    np.testing.assert_array_equal(fnn.inference(net).forward(params, x)[0], rows @ w.T)
    none = net.backward(params, net.forward(params, x)[1], (jnp.ones((2, 3)), None))
    assert none[0] == {"w": None} and none[1] is not None


def test_padding_changes_nothing_for_the_others() -> None:
    rng = np.random.default_rng(0)
    net, x = fnn.attention(4, 2, masked=True), rng.normal(size=(1, 5, 4))
    real = np.array([True, True, True, False, False])
    params = net.init(jax.random.key(0), (x, real))
    dy = np.ones(x.shape) * real[:, None]

    @jax.jit
    def run(x: Any, mask: Any, dy: Any) -> Any:
        y, residuals = net.forward(params, (x, mask))
        return y, net.backward(params, residuals, dy)

    y, (_, (dx, dmask)) = run(x, real, dy)
    short = run(x[:, :3], real[:3], dy[:, :3])[0]
    np.testing.assert_allclose(y[:, :3], short, rtol=1e-12)
    assert dmask is None and not dx[:, 3:].any() and dx[:, :3].all()
    dparams = run(x, np.zeros(5, bool), dy)[1][0]  # no place may be read
    assert not any(dparams[name]["w"].any() for name in ("query", "key", "value"))


def test_a_window() -> None:
    mask = np.asarray(fnn.causal_mask(6, window=3))
    places = np.arange(6)
    gap = places[:, None] - places
    np.testing.assert_array_equal(mask, (gap >= 0) & (gap < 3))
    np.testing.assert_array_equal(fnn.causal_mask(6), gap >= 0)


def test_keys_have_a_b_where_it_changes_something() -> None:
    x = jnp.ones((3, 4))
    for query_key, has in ((None, False), (fnn.rotary(), True)):
        params = fnn.attention(4, 2, query_key=query_key).init(jax.random.key(0), x)
        assert ("b" in params["key"]) == has and "b" in params["query"]


def test_a_place_without_a_row_is_nan_and_has_no_gradient() -> None:
    net, x = fnn.position_embedding(2), np.zeros((3, 1))
    params = net.init(jax.random.key(0), x[:2])
    y, residuals = net.forward(params, (x, np.array([1, 2, -1])))
    assert np.isfinite(y[0]) and np.isnan(y[1:]).all()
    dparams = net.backward(params, residuals, np.ones((3, 1)))[0]
    np.testing.assert_array_equal(dparams["w"], [[0], [1]])


WRONG: dict[str, tuple[Any, Any, str]] = {
    "features": (lambda: fnn.attention(10, 4), None, "features is 10 and heads is 4.* such as 12"),
    "key heads": (lambda: fnn.attention(8, 4, key_heads=3), None, "heads is 4 and key_heads is 3"),
    "no context": (lambda: fnn.attention(4, 2, cross=True), np.ones((3, 4)), "tuple of 2 inputs"),
    "no mask": (
        lambda: fnn.attention(4, 2, masked=True), (np.ones((3, 4)), np.ones((3, 3))),
        r"read \(dot_product_attention\): mask has dtype float64, needs booleans",
    ),
    "integers": (lambda: fnn.attention(4, 2), np.ones((3, 4), int), r"query \(linear\)"),
    "heads": (lambda: fnn.split_heads(3), np.ones((2, 4)), "multiple of 3"),
    "one axis": (fnn.merge_heads, np.ones(3), "heads, features"),
    "too long": (lambda: fnn.position_embedding(3), np.ones((2, 4, 1)), "sequence of 4.*at most 3"),
    "places": (
        lambda: fnn.position_embedding(3), (np.ones((2, 2)), np.ones((2, 2), int)), "one for each",
    ),
    "no features": (lambda: fnn.unembedding(3), np.ones(()), "at least one feature"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str) -> None:
    make, x, message = WRONG[case]
    with pytest.raises(BlockError, match=message):
        net = make()
        net.forward(net.init(jax.random.key(0), x), x)
