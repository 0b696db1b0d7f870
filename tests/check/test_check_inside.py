"""A wrong network: fnn.check names the block inside that is wrong."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block
from fnn.check import Report
from fnn.check.localize import blame
from fnn.check.rule import Sample

FLOATS = jax.ShapeDtypeStruct((4, 6), jnp.float32)
# What is not about values takes most of the time and plays no part here.
SKIP = ("second order", "float32", "bfloat16", "float16", "vmap", "scan", "jit", "microbatches")


def turned(block: Block) -> Block:
    """With the sign of its input's gradient wrong."""

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = block.backward(params, residuals, dy)
        return dparams, -dx

    return block._replace(backward=backward)


def check(net: Block, x: Any = FLOATS, **options: Any) -> Report:
    return fnn.check.block(net, x, timed=False, skip=SKIP, **options)


def test_the_wrong_block_is_named_by_its_path() -> None:
    net = fnn.serial(
        fnn.layer(5, fnn.relu()),
        fnn.residual(fnn.serial(a=fnn.linear(5), b=turned(fnn.tanh()))),
        out=fnn.linear(2),
    )
    report = check(net)
    assert {problem.leaf for problem in report.inside} == {"in 1_residual/block/b (tanh), x"}
    assert "-1 times the truth" in report.inside[0].diagnosis
    assert "\n1. in 1_residual/block/b (tanh), x: is -1 times" in str(report)


@pytest.mark.slow
def test_each_wrong_block_is_named_and_a_repeated_one_once() -> None:
    wrong = turned(fnn.square())
    net = fnn.serial(a=wrong, b=fnn.linear(6), c=wrong, d=fnn.linear(6), e=turned(fnn.exp()))
    paths = {problem.leaf.split(",")[0] for problem in check(net).inside}
    assert paths == {"in a (square)", "in e (exp)"}


@pytest.mark.slow
def test_inside_a_network_with_its_loss_and_a_key() -> None:
    net = fnn.serial(fnn.linear(5), fnn.dropout(0.4), turned(fnn.tanh()), fnn.linear(3))
    whole = fnn.with_loss(net, fnn.softmax_cross_entropy())
    report = check(whole, (FLOATS, np.array([0, 1, 2, 0])), key=jax.random.key(0))
    assert {problem.leaf for problem in report.inside} == {"in net/2_tanh (tanh), x"}


def test_a_backward_in_place_of_the_graphs_own() -> None:
    net = fnn.serial(fnn.linear(4), fnn.linear(3))
    report = check(turned(net))
    (problem,) = report.inside
    assert problem.leaf == "serial"
    assert "a forward or backward of its own" in problem.diagnosis


def test_a_network_of_right_blocks_says_so() -> None:
    net = fnn.serial(a=fnn.exp(), b=fnn.negate())
    (problem,) = blame(net, Sample({}, jnp.ones(3), None), lambda part: ())
    assert problem.leaf == "serial" and "each of the 2 blocks inside is right" in problem.diagnosis


@pytest.mark.slow
def test_right_networks_and_plain_blocks_blame_nothing() -> None:
    assert check(fnn.serial(fnn.linear(4), fnn.tanh())).inside == ()
    assert check(turned(fnn.tanh())).inside == ()
