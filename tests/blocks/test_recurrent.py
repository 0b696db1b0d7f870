"""Recurrence: what the table of blocks does not say of it."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fnn
from fnn.block import BlockError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 7, 4))
CELL = fnn.rnn_cell(3)
PARAMS = jax.tree.map(
    lambda p: RNG.normal(size=p.shape),
    jax.eval_shape(CELL.init, jax.random.key(0), (X[:, 0], None)),
)


@pytest.mark.parametrize("size", [None, 2])
def test_a_truncated_gradient_stops_at_every_so_many_steps(size: int | None) -> None:
    net = fnn.recurrent(CELL, truncate=3, rematerialize=size)
    dy = RNG.normal(size=(2, 7, 3))

    def plain(params: Any, x: Any) -> Any:
        def body(h: Any, step: Any) -> Any:
            t, x = step
            h = jnp.where(t % 3 == 0, lax.stop_gradient(h), h)
            a = x @ params["input"]["w"] + params["input"]["b"][None] + h @ params["hidden"]["w"]
            return jnp.tanh(a), jnp.tanh(a)

        ys = lax.scan(body, jnp.zeros((2, 3)), (jnp.arange(7), jnp.moveaxis(x, 1, 0)))[1]
        return jnp.moveaxis(ys, 0, 1)

    @jax.jit
    def run(params: Any, x: Any, dy: Any) -> Any:
        y, residuals = net.forward(params, x)
        wanted_y, pullback = jax.vjp(plain, params, x)
        return (y, *net.backward(params, residuals, dy)), (wanted_y, *pullback(dy))

    got, wanted = run(PARAMS, X, dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), got, wanted)


def test_a_sequence_in_parts_is_the_whole() -> None:
    net = fnn.recurrent(CELL)
    run = jax.jit(lambda x: net.forward(PARAMS, x)[0])
    state, parts = jnp.zeros((2, 3)), []
    for part in (X[:, :3], X[:, 3:6], X[:, 6:]):
        y, state = run((part, state))
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), run(X), rtol=1e-13)
    np.testing.assert_array_equal(state, parts[-1][:, -1])


LONG = [
    *(pytest.param(case, marks=pytest.mark.slow) for case in ("lstm", "gru, reverse")),
    "composed", "truncate",
]  # fmt: skip


@pytest.mark.parametrize("case", LONG)
def test_a_long_sequence_goes_in_parts(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 steps in two, and of 7 with one left over."""
    net = {
        "lstm": lambda: fnn.recurrent(fnn.lstm_cell(3)),
        "gru, reverse": lambda: fnn.recurrent(fnn.gru_cell(3), reverse=True),
        "composed": lambda: fnn.recurrent(composed()),
        "truncate": lambda: fnn.recurrent(CELL, truncate=2),
    }[case]()

    def run(count: int) -> Any:
        x, state = X[:, :count], (H, H) if case == "lstm" else H
        params = jax.tree.map(lambda p: p + 0.1, net.init(jax.random.key(0), (x, state)))

        @jax.jit
        def both(params: Any, x: Any, state: Any) -> Any:
            (y, last), residuals = net.forward(params, (x, state))
            return y, last, net.backward(params, residuals, (y, last))

        return both(params, x, state)

    whole = [run(count) for count in (6, 7)]
    monkeypatch.setattr("fnn.blocks.recurrent.ROWS", 6)
    monkeypatch.setattr("fnn.blocks.recurrent.FEWEST", 1)
    for wanted, got in zip(whole, [run(count) for count in (6, 7)], strict=True):
        chex.assert_trees_all_close(got, wanted, rtol=1e-12)


def composed() -> fnn.Block:
    """A cell of gates, with a state that goes with it."""
    nodes: list[Any] = [
        ("input", fnn.linear(3), "x"), ("hidden", fnn.linear(3, use_bias=False), "h"),
        ("sum", fnn.add(), ("input", "hidden")), ("new", fnn.tanh(), "sum"),
    ]  # fmt: skip
    return fnn.graph(("x", "h"), nodes, ("new", "new"))


@pytest.mark.slow
def test_both_directions() -> None:
    both = fnn.fan_out(a=fnn.recurrent(CELL), b=fnn.recurrent(CELL, reverse=True))
    net = fnn.serial(both=both, joined=fnn.concatenate())
    run = jax.jit(lambda x: net.forward({"both": {"a": PARAMS, "b": PARAMS}}, x)[0])
    y, back = run(X), run(X[:, ::-1])[:, ::-1]
    assert y.shape == (2, 7, 6)
    np.testing.assert_allclose(y[..., :3], back[..., 3:], rtol=1e-12)


def test_a_rematerialised_one_keeps_the_states_between_parts_alone() -> None:
    def kept(net: fnn.Block) -> int:
        residuals = jax.eval_shape(net.forward, PARAMS, np.ones((1, 400, 4)))[1]
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    # x, besides; otherwise what tanh is of, and the state, at every step
    assert kept(fnn.recurrent(CELL)) == 400 * (4 + 3 + 3)
    assert kept(fnn.recurrent(CELL, rematerialize=20)) <= 400 * 4 + 21 * 3


@pytest.mark.slow
def test_dropout_between_steps_has_a_key_for_each() -> None:
    nodes: list[Any] = [
        ("cell", CELL, ("x", "h")), ("y", fnn.item(0), "cell"), ("s", fnn.item(1), "cell"),
        ("drop", fnn.dropout(0.5), "y"),
    ]  # fmt: skip
    net = fnn.recurrent(fnn.graph(("x", "h"), nodes, ("drop", "s")))
    params = {"cell": PARAMS}
    run = jax.jit(lambda key: net.forward(params, np.ones((1, 50, 4)), key)[0])
    dropped = np.asarray(run(jax.random.key(0))[0] == 0)
    assert 0.3 < dropped.mean() < 0.7 and dropped.any(1).sum() > 20
    assert (dropped != dropped[:1]).any(0).all()
    y = jax.jit(lambda: fnn.inference(net).forward(params, X)[0])()
    np.testing.assert_allclose(y, fnn.recurrent(CELL).forward(PARAMS, X)[0], rtol=1e-13)


def test_gates_that_are_shut_keep_the_digits_of_their_slopes() -> None:
    """A derivative from the gate's value would be 0: s(40) is 1 in float32."""
    net = fnn.gru_cell(1)
    zeros = np.zeros((1, 3), np.float32)
    params = {
        "input": {"w": zeros, "b": np.array([0, 40, 0.5], np.float32)},
        "hidden": {"w": zeros, "b": zeros[0, :1]},
    }
    x, h = np.ones((1, 1), np.float32), np.ones((1, 1), np.float32)
    residuals = net.forward(params, (x, h))[1]
    dparams = net.backward(params, residuals, (x, None))[0]
    wanted = np.exp(-40) * (1 - np.tanh(0.5))
    np.testing.assert_allclose(dparams["input"]["b"][1], wanted, rtol=1e-5)


def test_the_initial_state_has_a_gradient_where_it_is_given() -> None:
    net, h = fnn.recurrent(CELL), np.ones((2, 3))
    (y, last), residuals = net.forward(PARAMS, (X, h))
    dx, dh = net.backward(PARAMS, residuals, (np.zeros(y.shape), np.ones(last.shape)))[1]
    assert dx.shape == X.shape and dh.shape == h.shape and dh.any()
    only_y = net.backward(PARAMS, residuals, (np.ones(y.shape), None))[1][1]
    assert only_y.any()


def needs_a_state() -> fnn.Block:
    nodes: list[Any] = [("new", fnn.add(), ("x", "h")), ("y", fnn.tanh(), "new")]
    return fnn.graph(("x", "h"), nodes, ("y", "new"))


H = np.ones((2, 3))
WRONG: dict[str, tuple[Any, Any, str]] = {
    "no steps": (fnn.recurrent(CELL), X[:, :0], "step or more"),
    "one vector": (fnn.recurrent(CELL), X[0, 0], "step or more"),
    "integers": (fnn.recurrent(CELL), X.astype(int), "x has dtype int64"),
    "state of another batch": (fnn.recurrent(CELL), (X, H[:1]), r"state has shape \(1, 3\), needs"),
    "state of another size": (fnn.recurrent(CELL), (X, H[:, :2]), r"needs \(2, 3\)"),
    "one state of two": (fnn.recurrent(fnn.lstm_cell(3)), (X, H), r"needs \(h, c\)"),
    "three": (fnn.recurrent(CELL), (X, H, H), r"needs x or \(x, state\)"),
    "no first state": (fnn.recurrent(needs_a_state()), X, r"needs a state: give \(x, state\)"),
    "a state that changes": (
        fnn.recurrent(needs_a_state()), (X, np.ones(())), r"makes a state float64\[2, 4\] of one",
    ),
    "x alone": (CELL, X[:, 0], "tuple of 2 inputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str) -> None:
    net, x, message = WRONG[case]
    with pytest.raises(BlockError, match=message):
        net.forward(net.init(jax.random.key(0), x), x)
