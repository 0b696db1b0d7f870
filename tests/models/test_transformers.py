"""Transformers: what they see, what they refuse, and a drawing of the smallest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block, BlockError
from tests.slow import one_of

transformer = fnn.models.transformer


@pytest.mark.parametrize("style", one_of(2, ["gpt2", "llama"]))
def test_a_place_sees_those_before_it_alone(style: Any) -> None:
    net = transformer(7, 8, 1, 2, length=6, style=style, key_heads=1)
    ids = np.array([[1, 2, 3, 4, 5, 6]])
    params = jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(0).normal(size=p.shape)),
        jax.eval_shape(net.init, jax.random.key(0), ids),
    )
    run = jax.jit(lambda ids: net.forward(params, ids)[0])
    y, other = run(ids), run(np.array([[1, 2, 3, 0, 0, 0]]))
    np.testing.assert_allclose(y[:, :3], other[:, :3], rtol=1e-12)
    assert (abs(y[:, 3] - other[:, 3]) > 1e-3).any()


@pytest.mark.slow
def test_scanned_layers_are_the_same_network() -> None:
    ids = np.array([[1, 2, 3]])
    one, other = (transformer(7, 8, 2, 2, length=6, scanned=scanned) for scanned in (False, True))
    params = jax.jit(one.init)(jax.random.key(0), ids)
    layers = [params[f"layer_{i}"] for i in (1, 2)]
    rest = {name: p for name, p in params.items() if not name.startswith("layer")}
    stacked = rest | {"layers": jax.tree.map(lambda *a: jnp.stack(a), *layers)}
    y, scanned = jax.jit(lambda: (one.forward(params, ids)[0], other.forward(stacked, ids)[0]))()
    np.testing.assert_allclose(y, scanned, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_dropout_is_in_every_layer_and_gone_at_inference() -> None:
    net, ids = transformer(7, 8, 1, 2, length=6, dropout=0.5), np.array([[1, 2, 3]])
    params = jax.jit(net.init)(jax.random.key(0), ids)
    with pytest.raises(BlockError, match="needs a key"):
        net.forward(params, ids)
    a, b = (jax.jit(lambda k: net.forward(params, ids, k)[0])(jax.random.key(i)) for i in (0, 1))
    assert (a != b).any()
    assert jax.jit(lambda: fnn.inference(net).forward(params, ids)[0])().shape == (1, 3, 7)


@pytest.mark.parametrize(
    "options", one_of(3, [{}, {"style": "llama", "key_heads": 1, "scanned": True}, "lstm"])
)
def test_what_is_generated_with_a_cache_is_what_the_network_says(options: Any) -> None:
    net = (
        transformer(7, 8, 2, 2, length=9, **options)
        if options != "lstm"
        else fnn.serial(fnn.embedding(7, 8), fnn.recurrent(fnn.lstm_cell(8)), fnn.linear(7))
    )
    ids = jnp.array([[1, 2, 3], [4, 5, 6]])
    params = jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(0).normal(size=p.shape)),
        jax.eval_shape(net.init, jax.random.key(0), ids),
    )
    key, generate = jax.random.key(0), fnn.models.generate
    wrote = jax.jit(lambda ids: generate(net, params, ids, 6, key, temperature=0))(ids)
    said = jax.jit(lambda ids: net.forward(params, ids)[0])(wrote).argmax(-1)
    np.testing.assert_array_equal(wrote[:, :3], ids)
    np.testing.assert_array_equal(wrote[:, 3:], said[:, 2:-1])
    assert len(np.unique(wrote)) > 3


def test_what_cannot_be_generated_is_refused() -> None:
    net, key = transformer(7, 8, 1, 2, length=4), jax.random.key(0)
    ids = np.array([[1, 2]])
    params = jax.jit(net.init)(key, ids)
    with pytest.raises(BlockError, match="2 ids and 3 more are 5, needs at most 4"):
        fnn.models.generate(net, params, ids, 3, key)
    with pytest.raises(BlockError, match=r"needs integers \(B, T\)"):
        fnn.models.generate(net, params, ids[0], 1, key)
    both_ways = fnn.serial(fnn.embedding(7, 8), fnn.attention(8, 2))
    with pytest.raises(BlockError, match="attention with causal=True"):
        fnn.models.generate(both_ways, {}, ids, 1, key)


@pytest.mark.slow
def test_microgpt_is_drawn_whole() -> None:
    net, ids = fnn.models.microgpt(5, length=3), np.array([[1, 2, 3]])
    params = jax.jit(net.init)(jax.random.key(0), ids)
    trace = fnn.whiteboard.trace(net, params, ids, (ids + 1) % 5, fnn.softmax_cross_entropy())
    svg = trace.svg()
    for words in ("query", "softmax(c", "heads of", "Wᵀ"):
        assert words in svg, words


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformer(5, 8, 1, 2), "length is None, needs"),
        (lambda: transformer(5, 10, 1, 4, length=3), "features is 10 and heads is 4"),
        (lambda: transformer(5, 8, 1, 4, style="llama", key_heads=3), "key_heads is 3"),
        (lambda: transformer(5, 8, 1, 4, style="bert"), "style is 'bert', needs 'gpt2' or 'llama'"),
    ],
)
def test_what_is_no_network_is_refused(make: Callable[[], Block], message: str) -> None:
    with pytest.raises(BlockError, match=message):
        make()


def test_wrong_ids_are_refused_by_path() -> None:
    net = transformer(5, 8, 1, 2, length=3)
    with pytest.raises(BlockError, match=r"positions \(position_embedding\): .* at most 3"):
        net.init(jax.random.key(0), np.zeros((1, 4), int))
    with pytest.raises(BlockError, match=r"embedding \(embedding\): ids have dtype float64"):
        net.init(jax.random.key(0), np.zeros((1, 3)))
