"""Attention in chunks: equal to the plain formula however the queries are cut."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockError
from fnn.blocks import attention
from fnn.compiling import as_on
from tests.slow import one_of

ROOM = (2**18, 3000, 64)  # entries of p at a time: all, some queries of all heads, the fewest
SIZES = {  # batch, T, S, H, G, D, E
    "no batch": ((), 70, 70, 2, 1, 3, 4),
    "more queries": ((2, 1), 130, 33, 2, 2, 4, 5),
    "more keys": ((1,), 33, 130, 6, 2, 2, 3),
    "one query": ((2,), 1, 7, 2, 2, 3, 3),
}
MASKS = ("none", "all", "padding", "queries")


def plain(q: Any, k: Any, v: Any, mask: Any, causal: bool) -> Any:
    k, v = (jnp.repeat(a, q.shape[-2] // k.shape[-2], -2) for a in (k, v))
    s = jnp.einsum("...thd,...shd->...hts", q, k) / np.sqrt(q.shape[-1])
    if causal:
        s = jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s, -jnp.inf)
    s = s if mask is None else jnp.where(mask, s, -jnp.inf)
    top = jnp.max(s, -1, keepdims=True)
    e = jnp.exp(s - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(e, -1, keepdims=True)
    return jnp.einsum("...hts,...she->...the", e / jnp.where(total == 0, 1, total), v)


def drawn(size: str, masked: str) -> tuple[Any, ...]:
    b, t, s, h, g, d, e = SIZES[size]
    rng = np.random.default_rng(0)
    shapes = (*b, t, h, d), (*b, s, g, d), (*b, s, g, e)
    mask = {
        "none": None, "all": rng.random((*b, h, t, s)) < 0.5,
        "padding": rng.random((*b, 1, 1, s)) < 0.5, "queries": rng.random((t, 1)) < 0.5,
    }[masked]  # fmt: skip
    return (*(jnp.asarray(rng.normal(size=shape)) for shape in shapes), mask)


EVERY = [
    (size, masked, room, platform, causal)
    for size in SIZES for masked in MASKS for room in ROOM for platform in ("cpu", "cuda", "tpu")
    for causal in (False, True)
]  # fmt: skip


@pytest.mark.parametrize("case", one_of(6, EVERY[::11]))
def test_it_is_the_plain_formula_however_it_is_cut(case: Any, monkeypatch: Any) -> None:
    size, masked, room, platform, causal = case
    monkeypatch.setattr(attention, "CACHED", room)
    monkeypatch.setattr(attention, "AT_ONCE", room)
    monkeypatch.setattr(attention, "KEPT", 512 if room == max(ROOM) else 0)
    q, k, v, mask = drawn(size, masked)
    net = fnn.dot_product_attention(causal=causal)
    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    with jax.numpy_rank_promotion("allow"):
        y, pullback = jax.vjp(lambda q, k, v: plain(q, k, v, mask, causal), q, k, v)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape))

    def both(inputs: Any, dy: Any) -> Any:
        y, residuals = net.forward({}, inputs)
        return y, net.backward({}, residuals, dy)[1]

    with as_on(platform):
        mine, dx = jax.jit(both)(inputs, dy)
    for a, b in zip((mine, *dx[:3]), (y, *pullback(dy)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    assert len(dx) == len(inputs) and (mask is None or dx[3] is None)


def test_a_query_that_may_look_at_nothing_gives_zeros_and_no_gradient() -> None:
    q, k, v, _ = drawn("more keys", "none")
    mask = np.ones((33, 130), bool)
    mask[5] = False
    net = fnn.dot_product_attention()
    y, residuals = net.forward({}, (q, k, v, mask))
    assert not y[0, 5].any() and y[0, 4].any()
    dq, dk, dv, _ = net.backward({}, residuals, jnp.ones_like(y).at[:, :5].set(0).at[:, 6:].set(0))[
        1
    ]
    assert not any(d.any() for d in (dq, dk, dv))


def test_no_array_of_queries_times_keys() -> None:
    t = 4096
    x = tuple(jax.ShapeDtypeStruct((1, t, 2, 8), jnp.float32) for _ in range(3))
    net = fnn.dot_product_attention(causal=True)

    def both(x: Any) -> Any:
        y, residuals = net.forward({}, x)
        return net.backward({}, residuals, y)[1]

    compiled = jax.jit(both).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < t * t * 4 / 2  # of one of two heads


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_large_scores_keep_their_digits(platform: str) -> None:
    with as_on(platform):
        large_scores_keep_their_digits()


def large_scores_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(40, 2, 8)) for _ in range(3))
    q = 100 * q
    net = fnn.dot_product_attention()
    wide, kept = net.forward({}, (q, k, v))
    narrow = tuple(a.astype(np.float32) for a in (q, k, v))
    y, residuals = net.forward({}, narrow)
    np.testing.assert_allclose(y, wide, atol=2e-4)  # scores of 300 are rounded by 1e-5
    dy = rng.normal(size=y.shape)
    for a, b in zip(net.backward({}, residuals, dy.astype(np.float32))[1],
                    net.backward({}, kept, dy)[1], strict=True):  # fmt: skip
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-3 * np.abs(b).max()


Q, KV = np.ones((2, 3, 4, 2)), np.ones((2, 5, 2, 2))
WRONG: dict[str, tuple[Any, str]] = {
    "one array": (Q, r"x is float64 of shape .*needs \(q, k, v\) or \(q, k, v, mask\)"),
    "heads": ((Q, np.ones((2, 5, 3, 2)), np.ones((2, 5, 3, 2))), "heads of q need to be a"),
    "features": ((Q, np.ones((2, 5, 2, 3)), KV), "same number of features"),
    "lengths": ((Q, KV, np.ones((2, 6, 2, 2))), "k and v need the same"),
    "batch": ((Q, KV[:1], KV[:1]), "q the same batch"),
    "rank": ((np.ones((3, 4)), KV, KV), "q has shape .*needs .*length, heads, features"),
    "integers": ((Q.astype(int), KV, KV), "q has dtype int64"),
    "mask of floats": ((Q, KV, KV, np.ones((3, 5))), "needs booleans.*astype"),
    "mask of another shape": ((Q, KV, KV, np.ones((2, 5), bool)), r"broadcasts.*mask\[:, None"),
    "mask of more axes": ((Q, KV, KV, np.ones((1, 2, 4, 3, 5), bool)), "mask has shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str) -> None:
    x, message = WRONG[case]
    with pytest.raises(BlockError, match=message):
        fnn.dot_product_attention().forward({}, x)
