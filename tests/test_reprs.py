"""What objects print: a call that makes the same, and a line where a record holds many arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.block import Block
from tests.zoo import CASES


def leaves(block: Block) -> list[Block]:
    if block.graph is None:
        return [block, *(leaf for part in block.kind.of for leaf in leaves(part))]
    return [leaf for node in block.graph.nodes for leaf in leaves(node.block)]


@pytest.mark.core
def test_a_block_prints_the_call_that_makes_it() -> None:
    """Pasted, it makes a block of the same kind; what is the default is left out."""
    seen = set()
    for case in CASES:
        for block in leaves(case.make()):
            kind = block.kind
            if kind.of or kind.maker not in fnn.__all__ or kind.maker == "elementwise":
                continue  # its blocks are listed below it; its functions are the reader's
            if kind.maker == "linear" and kind.args[0] is None:
                continue  # a neuron's sum
            seen.add(kind.call)
            made = eval(f"fnn.{kind.call}", {"fnn": fnn})
            assert (made.kind.maker, made.kind.args) == (kind.maker, kind.args), kind.call
    assert {"linear(4)", "avg_pool(2, ceil_mode='caffe')", "gelu(approximate=True)"} <= seen
    net = fnn.serial(a=fnn.conv(32, 3, stride=2), b=fnn.neuron(fnn.tanh()))
    assert repr(net) == "serial\n  a: conv(32, 3, stride=2)\n  b: neuron\n    linear()\n    tanh()"
    assert repr(fnn.inference(fnn.batch_norm())) == "batch_norm()"


def test_a_network_of_several_blocks_prints_its_call_first() -> None:
    """A block that it was given, such as a nonlinearity, is among those listed below."""
    reads = fnn.attention(8, 4, causal=True, key_heads=2, query_key=fnn.rotary(), masked=True)
    calls = [
        (reads, "attention(8, 4, causal=True, key_heads=2, masked=True)"),
        (fnn.attention(4, 2, use_bias=False), "attention(4, 2, use_bias=False)"),
        (fnn.layer(4, fnn.tanh(), use_bias=False), "layer(4, use_bias=False)"),
        (fnn.gated(4, fnn.silu()), "gated(4)"),
        (fnn.models.mlp((4, 2), fnn.tanh(), dropout=0.5), "mlp((4, 2), dropout=0.5)"),
        (
            fnn.models.transformer(8, 8, 1, 2, length=8, use_bias=False, keep="products"),
            "transformer(8, 8, 1, 2, length=8, use_bias=False, keep='products')",
        ),
        (fnn.models.microgpt(5), "microgpt(5)"),
        (fnn.serial(fnn.tanh()), "serial"),
    ]
    for net, call in calls:
        assert repr(net).splitlines()[0] == call
    assert "  query_turned: rotary()" in repr(reads)
    within = fnn.serial(read=fnn.attention(4, 2, causal=True))
    assert repr(within).splitlines()[:2] == ["serial", "  read: attention(4, 2, causal=True)"]


@pytest.mark.core
def test_records_print_a_line() -> None:
    made = [
        fnn.sgd(0.1), fnn.sgd(0.1, 0.9, nesterov=True), fnn.adam(0.001, b2=0.9),
        fnn.averaged(fnn.sgd(0.1), 0.5), fnn.loss_scaled(fnn.adam(0.1)), fnn.sgd(lambda step: 0.1),
    ]  # fmt: skip
    assert list(map(repr, made)) == [
        "sgd(0.1)", "sgd(0.1, 0.9, nesterov=True)", "adam(0.001, b2=0.9)",
        "averaged(sgd(0.1), 0.5)", "loss_scaled(adam(0.1))", "sgd(...)",
    ]  # fmt: skip
    x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    fitted = fnn.fit(
        fnn.linear(1), fnn.squared_error(), x, y, epochs=2, key=jax.random.key(0), progress=False
    )
    assert repr(fitted.checkpoint).startswith("Checkpoint(after 2 epochs, best after epoch ")
    report = fnn.check.mutants(fnn.negate(), jax.ShapeDtypeStruct((3,), "float32"))
    assert repr(report) == str(report)


def test_what_a_notebook_shows() -> None:
    """Beside tests/test_notebook.py, where a notebook is executed."""
    net = fnn.serial(a=fnn.linear(2), b=fnn.tanh())
    x = jnp.ones((4, 3))
    assert "linear(2)" in net._repr_html_() and "<pre" in net._repr_html_()
    summary = fnn.summary(net, x)
    assert repr(summary) == str(summary) and summary._repr_html_().count("<tr>") >= 4
    report = fnn.check.block(fnn.square(), x, quick=True, timed=False)
    assert repr(report) == str(report) and "autodiff" in report._repr_html_()
    wrong = fnn.square()._replace(backward=lambda params, x, dy: ({}, x * dy))
    assert "times the truth" in fnn.check.block(wrong, x, quick=True, timed=False)._repr_html_()
    fitted = fnn.fit(net, fnn.squared_error(), x, jnp.ones((4, 2)), epochs=1, progress=False,
                     diagnostics=True)  # fmt: skip
    assert repr(fitted.diagnostics) == str(fitted.diagnostics)
    assert "<pre" in fitted.diagnostics._repr_html_()
