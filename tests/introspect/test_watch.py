"""Every block by its path, innermost first."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import fnn
from fnn.block import Block
from fnn.executor import is_network
from fnn.introspect.watch import watch


def paths(net: Block) -> list[str]:
    visited: list[str] = []

    def wrap(path: str, block: Block) -> Block:
        visited.append(path)
        return block

    watch(net, wrap)
    return visited


def test_every_block_is_wrapped_innermost_first() -> None:
    net = fnn.serial(a=fnn.layer(3, fnn.relu()), b=fnn.square())
    assert paths(net) == ["a/linear", "a/relu", "a", "b", ""]
    assert paths(fnn.square()) == [""]


def test_a_graph_with_a_backward_of_its_own_is_one_block() -> None:
    inner = fnn.serial(c=fnn.square(), d=fnn.negate())
    own = inner._replace(backward=lambda params, residuals, dy: ({}, dy))
    net = fnn.serial(a=own, b=fnn.square())
    assert not is_network(own) and is_network(net)
    assert paths(net) == ["a", "b", ""]
    assert [row.path for row in fnn.summary(net, jnp.ones(2)).rows] == ["a", "b"]


def test_what_is_wrapped_is_what_runs() -> None:
    net = fnn.serial(a=fnn.serial(b=fnn.square(), c=fnn.negate()), d=fnn.square())
    twice = fnn.graph("x", [("p", net, "x"), ("q", net, "p")], "q")

    def plus_one(path: str, block: Block) -> Block:
        if is_network(block):
            return block
        return block._replace(
            forward=lambda params, x, key=None: (block.forward(params, x)[0] + 1, ())
        )

    assert float(watch(twice, plus_one).forward({}, 1.0)[0]) == 17.0
    assert jax.eval_shape(watch(twice, lambda _, block: block).forward, {}, 1.0)[0].shape == ()
