"""Networks that are drawn seldom: names twice, long chains, two losses, blocks that wrap others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.whiteboard import trace
from fnn.whiteboard.board import board, in_line
from fnn.whiteboard.live import program
from fnn.whiteboard.page import page_board

X, TARGET, MSE = jnp.ones((1, 2)), jnp.zeros((1, 2)), fnn.squared_error()


def test_a_name_of_the_network_that_is_taken() -> None:
    net = fnn.serial(target=fnn.tanh(), loss=fnn.relu())
    t = trace(net, {}, X, TARGET, MSE)
    assert in_line(t) is t and "target" in t.svg()


def test_a_long_network_is_opened_all_the_same() -> None:
    blocks = {f"n{i}": fnn.negate() if i % 2 else fnn.relu() for i in range(30)}
    net = fnn.serial(target=fnn.tanh(), loss=fnn.relu(), **blocks)  # it stays one box of two
    opened = board(trace(net, {}, X, TARGET, MSE))
    assert len(opened.trace.nodes) == 2 and opened.unfolded == {"net"}


def test_two_losses_make_no_prediction() -> None:
    """Of which of them is the network's output?"""
    both = fnn.graph(
        ("y", "target"),
        [("one", MSE, ("y", "target")), ("two", MSE, ("y", "target")),
         ("E", fnn.add(), ("one", "two"))], "E",
    )  # fmt: skip
    assert "ŷ" not in trace(both, {}, (X, TARGET)).svg()


@pytest.mark.parametrize("kind", ["dropout", "a network, several times"])
def test_what_is_computed_in_the_page(kind: str) -> None:
    if kind == "dropout":
        net, x = fnn.serial(a=fnn.linear(2), b=fnn.dropout(0.0)), X
    else:
        net, x = fnn.repeat(fnn.residual(fnn.tanh()), 2), X
    params = net.init(jax.random.key(1), x)
    is_live = program(page_board(trace(net, params, x, key=jax.random.key(0)))[0]) is not None
    assert is_live == (kind == "dropout")
