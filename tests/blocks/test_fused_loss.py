"""The head and the loss in one: equal to the two however the tokens are cut."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockError, BlockValueError
from fnn.blocks import fused_loss
from tests.slow import one_of

RNG = np.random.default_rng(0)
H, W = RNG.normal(size=(7, 4)), RNG.normal(size=(6, 4))
T = np.array([0, 5, 2, -1, 3, 3, 1])


@pytest.mark.parametrize("entries", one_of(3, [20, 6, 1000]))
def test_it_is_the_loss_of_the_product_however_it_is_cut(entries: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(fused_loss, "ENTRIES", entries)
    net = fnn.linear_softmax_cross_entropy(ignore_label=-1)

    def plain(pair: Any) -> Any:
        logs = jax.nn.log_softmax(pair[0] @ pair[1].T)
        return -jnp.sum(jnp.where(T >= 0, logs[jnp.arange(7), T], 0)) / 6

    @jax.jit
    def run(pair: Any) -> Any:
        value, residuals = net.forward({}, (pair, T))
        return (value, net.backward({}, residuals, 1.0)[1][0]), jax.value_and_grad(plain)(pair)

    got, wanted = run((H, W))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-15), got, wanted)


def test_no_array_of_tokens_times_words() -> None:
    n, v, f = 4096, 4096, 16
    net = fnn.linear_softmax_cross_entropy()

    def run(h: Any, w: Any, t: Any) -> Any:
        value, residuals = net.forward({}, ((h, w), t))
        return value, net.backward({}, residuals, 1.0)[1][0]

    shapes = (jax.ShapeDtypeStruct(s, "float32") for s in ((n, f), (v, f)))
    compiled = jax.jit(run).lower(*shapes, jax.ShapeDtypeStruct((n,), "int32")).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * v * 4


def test_a_confident_row_keeps_its_digits() -> None:
    net, pair = fnn.linear_softmax_cross_entropy(), (np.ones((1, 1), np.float32),)
    pair = (*pair, np.array([[40], [0]], np.float32))

    @jax.jit
    def run() -> Any:
        value, residuals = net.forward({}, (pair, np.array([0])))
        return value, net.backward({}, residuals, 1.0)[1][0][1]

    value, dw = run()
    np.testing.assert_allclose([value, -dw[0, 0], dw[1, 0]], np.exp(-40.0), rtol=1e-6)


def test_tokens_that_do_not_count_may_be_anything() -> None:
    net = fnn.linear_softmax_cross_entropy(ignore_label=-1)
    h = np.where(T[:, None] >= 0, H, np.nan)

    @jax.jit
    def run(h: Any, t: Any) -> Any:
        value, residuals = net.forward({}, ((h, W), t))
        return value, *net.backward({}, residuals, 1.0)[1][0]

    value, dh, dw = run(h, T)
    assert np.isfinite(value) and np.isfinite(dh).all() and np.isfinite(dw).all()
    nothing, _, dw = run(H, np.full(7, -1))
    assert nothing == 0 and not dw.any()


@pytest.mark.slow
def test_a_language_model_is_fitted_with_it() -> None:
    """With its head tied to the embedding, and evaluated at inference, where there are logits."""
    nodes: list[Any] = [
        ("embedding", fnn.embedding(5, 8), "x"),
        ("next", fnn.residual(fnn.layer(8, fnn.tanh())), "embedding"),
        ("head", fnn.unembedding(5, factored=True), "next", "embedding"),
    ]
    net, x = fnn.graph("x", nodes, "head"), np.arange(40).reshape(10, 4) % 5
    loss = fnn.linear_softmax_cross_entropy()
    fitted = fnn.fit(
        net, loss, x, (x + 1) % 5, optimizer=fnn.adam(0.05), epochs=20, batch_size=4,
        validation=(x, (x + 1) % 5), dtype=np.float32,
    )  # fmt: skip
    np.testing.assert_array_equal(fitted.predict(x).argmax(-1), (x + 1) % 5)


WRONG: dict[str, tuple[Any, str]] = {
    "one array": (H, r"needs \(\(h, w\), labels\)"),
    "three": (((H, W, W), T), "factored=True"),
    "features": (((H, W[:, :3]), T), r"w \(vocabulary, features\)"),
    "labels": (((H, W), T[:3]), r"needs integers of shape \(7,\)"),
    "floats": (((H, W), T.astype(float)), "needs integers"),
    "weights": (((H, W), T, np.ones(3)), "one number for each token"),
    "integers": (((H.astype(int), W), T), "h has dtype int64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str) -> None:
    x, message = WRONG[case]
    with pytest.raises(BlockError, match=message):
        fnn.linear_softmax_cross_entropy().forward({}, x)


def test_labels_out_of_range() -> None:
    net = fnn.linear_softmax_cross_entropy()
    assert np.isnan(jax.jit(lambda: net.forward({}, ((H, W), T))[0])())
    assert net.rules.validate is not None
    with pytest.raises(BlockValueError, match=r"from -1 to 5; .* give ignore_label"):
        net.rules.validate(((H, W), T))
    fnn.linear_softmax_cross_entropy(ignore_label=-1).rules.validate(((H, W), T))
