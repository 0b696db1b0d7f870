"""A network from its shapes: parameters, floating-point operations, what is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
import fnn.models
from fnn.introspect.flops import flops
from fnn.introspect.text import clean, readable_count


def spec(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("f", "shapes", "expected"),
    [
        (lambda a, b: a @ b, ((4, 8), (8, 3)), 2 * 4 * 8 * 3),
        (lambda a: jnp.sum(jnp.tanh(a), 0), ((4, 8),), 2 * 32),
        (lambda a: a.T.reshape(-1)[2:], ((4, 8),), 0),
        (lambda a: jnp.where(a > 0, a, 0), ((4, 8),), 0),
        (lambda a: jnp.argsort(jnp.arange(8) + 1) * 2, ((4,),), 0),
        (lambda a: jax.lax.scan(lambda c, _: (c * a, None), a, None, 7)[0], ((4,),), 7 * 4),
        (lambda a: jax.lax.cond(a[0] > 0, jnp.exp, lambda a: a @ a * a, a), ((4,),), 12),
        (lambda a: jax.nn.relu(a) + jax.jit(jnp.exp)(a), ((4,),), 3 * 4),
        (
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=2,
            ),
            ((1, 8, 8, 4), (3, 3, 2, 6)), 2 * (4 * 4 * 6) * (3 * 3 * 2),
        ),
    ],
)  # fmt: skip
def test_operations_are_counted(f, shapes, expected):
    assert flops(f, *(spec(*shape) for shape in shapes)) == expected


def test_as_many_as_the_compiler_counts():
    """XLA's own count of the forward and backward of a network without loops."""
    net = fnn.serial(a=fnn.linear(16), tanh=fnn.tanh(), b=fnn.linear(4))
    x = spec(8, 12)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    run = fnn.value_and_grad(net, fnn.squared_error())
    analysis = jax.jit(run).lower(params, x, spec(8, 4)).cost_analysis()
    ours = flops(run, params, x, spec(8, 4))
    assert 0.9 < ours / (analysis["flops"] + analysis["transcendentals"]) < 1.1


def test_what_is_kept_has_its_name():
    net = fnn.serial(
        hidden=fnn.linear(16),
        act=fnn.relu(),
        drop=fnn.dropout(0.5),
        out=fnn.linear(4),
    )
    found = fnn.summary(fnn.with_loss(net, fnn.softmax_cross_entropy()),
                        (spec(8, 12), spec(8, dtype="int32")))  # fmt: skip
    assert {row.path: row.residuals for row in found.rows} == {
        "net/hidden": "x", "net/act": "uint8[8,16]", "net/drop": "key<fry>[]", "net/out": "x",
        "loss": "x/0, x/1",
    }  # fmt: skip
    assert found.forward_flops == sum(row.forward_flops for row in found.rows)
    assert found.rows[0].forward_flops == 2 * 8 * 12 * 16 + 8 * 16
    # dW = x' dy, dx = dy W', db = the sum of dy
    assert found.rows[0].backward_flops == 2 * (2 * 8 * 12 * 16) + 8 * 16


def test_an_array_kept_twice_counts_once():
    two = fnn.fan_out(a=fnn.linear(3), b=fnn.linear(3))
    found = fnn.summary(two, spec(8, 12))
    assert [row.residual_bytes for row in found.rows] == [384, 384]
    assert found.residual_bytes == 384


@pytest.mark.slow
def test_googlenet_without_allocating():
    found = fnn.summary(fnn.models.googlenet(auxiliary=False), spec(1, 224, 224, 3))
    assert found.parameters == 6_998_552
    assert round(found.forward_flops / 2e9, 1) == 1.6  # about 1.5 billion products, as published
    assert 1.9 < found.backward_flops / found.forward_flops < 2.1


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 K"), (12_345, "12.3 K"), (5.6e12, "5.60 T")],
)
def test_readable_counts(number, text):
    assert readable_count(number) == text


def test_extended_dtypes_and_numbers_among_the_residuals():
    block = fnn.square()._replace(forward=lambda params, x, key=None: (x * x, (x, 3, None)))
    block = block._replace(backward=lambda params, kept, dy: ({}, 2 * kept[0] * dy))
    found = fnn.summary(block, np.ones((2, 3), np.float32))
    assert found.rows[0].residuals == "x"


@pytest.mark.parametrize(
    "text", ["\u05d0\u05d1", "a = \u05d0", "\u2068\u05d0", "x\u2069", "ab", " "]
)
def test_what_is_clean_stays_as_it_is(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert once.count("\u2068") == once.count("\u2069")
    joined = f"{once} = f({once})"
    assert clean(joined) == joined
    cut = clean(joined, 5)
    assert cut.count("\u2068") == cut.count("\u2069")
