"""What is kept once instead of twice, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import again
from fnn.block import Block
from fnn.compiling import as_on

LAYERS = 4
UNITS: dict[str, tuple[Callable[[], Block], Callable[..., Any]]] = {
    "tanh": (fnn.tanh, jnp.tanh),
    "logistic": (fnn.logistic, jax.nn.sigmoid),
    "silu": (fnn.silu, jax.nn.silu),
}


def chain(unit: Block, width: int) -> Block:
    return fnn.models.mlp((width,) * LAYERS + (2,), unit)


def backpropagated(net: Block) -> Callable[..., Any]:
    def gradient(params: Any, x: Any) -> Any:
        y, residuals = net.forward(params, x)
        return net.backward(params, residuals, jnp.ones_like(y))

    return gradient


@pytest.mark.parametrize("name", UNITS)
def test_a_step_keeps_one_array_of_each_unit(name: str) -> None:
    """As many as jax.grad keeps, and room for one more: not two for each layer."""
    make, value = UNITS[name]
    net, width = chain(make(), 512), 512
    x = jax.ShapeDtypeStruct((again.ENOUGH // 4 // width, width), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)

    def formula(params: Any, x: Any) -> Any:
        for p in list(params.values())[:-1]:
            x = value(x @ p["w"] + p["b"][None])
        return x @ params["out"]["w"] + params["out"]["b"][None]

    def plain(params: Any, x: Any) -> Any:
        y, pull = jax.vjp(formula, params, x)
        return pull(jnp.ones_like(y))

    def temporary(f: Callable[..., Any]) -> int:
        compiled = jax.jit(f).lower(params, x).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert temporary(backpropagated(net)) < temporary(plain) + 1.1 * again.ENOUGH


@pytest.mark.parametrize("name", ["tanh", "logistic"])
@pytest.mark.parametrize("layer", [fnn.linear(3), fnn.conv(3, 3, stride=2), fnn.neuron(fnn.exp())])
def test_on_cpu_a_layer_is_given_what_it_kept_computed_again(
    name: str, layer: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, calls = UNITS[name][0](), []

    def counted(params: Any, x: Any, key: Any = None) -> Any:
        calls.append(x)
        return unit.forward(params, x)

    net = fnn.serial(unit=unit._replace(forward=counted), layer=layer, last=fnn.square())
    x = jax.random.normal(jax.random.key(1), (2, 5, 4, 3), jnp.float32)
    params = net.init(jax.random.key(0), x)

    def run(expected: int, platform: str = "cpu") -> Any:
        calls.clear()
        with as_on(platform):
            result = jax.jit(backpropagated(net))(params, x)
        assert len(calls) == expected
        return result

    kept = run(1)
    monkeypatch.setattr(again, "ENOUGH", 0)
    is_within = layer.kind.maker == "neuron"  # in a graph of its own, which does not know of unit
    jax.tree.map(np.testing.assert_array_equal, kept, run(1 if is_within else 2))
    run(1, "cuda")


def test_a_layer_that_keeps_something_else_is_given_that() -> None:
    doubled = fnn.linear(2)._replace(
        forward=lambda params, x, key=None: (fnn.linear(2).forward(params, x)[0], 2 * x)
    )
    for layer, kept in ((fnn.linear(2), again.Output), (doubled, jax.Array)):
        net = fnn.serial(unit=fnn.tanh(), layer=layer)
        params = net.init(jax.random.key(0), jnp.ones((2, 3)))
        assert isinstance(net.forward(params, jnp.ones((2, 3)))[1]["layer"], kept)


def test_with_sizes_that_are_open_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "ENOUGH", 0)
    net = chain(fnn.tanh(), 2)
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 2"), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.float32))
    jax.export.export(jax.jit(backpropagated(net)))(params, x)
    jax.jit(backpropagated(net)).lower(params, jax.ShapeDtypeStruct((0, 2), jnp.float32))


def test_a_block_with_two_outputs_after_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "ENOUGH", 0)
    both = Block(
        lambda key, x: {},
        lambda params, x, key=None: ((x, x), x),
        lambda params, x, dy: ({}, dy[0] + dy[1]),
    )
    net = fnn.serial(unit=fnn.tanh(), both=both)
    x, dy = jnp.ones((2, 2)), (jnp.ones((2, 2)),) * 2
    _, dx = jax.jit(lambda x: net.backward({}, net.forward({}, x)[1], dy))(x)
    np.testing.assert_allclose(dx, 2 / np.cosh(x) ** 2, rtol=1e-12)
