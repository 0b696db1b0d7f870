"""Every public block that is no part of a convolutional network, with arrays of a real size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import fnn
from experiments.benchmarks.cases import Case, Ids
from fnn.block import Block

Plain = Callable[[Any, Any], Any]

# Makers of blocks that no row is about, and why.
ELSEWHERE = {
    **dict.fromkeys(("serial", "graph", "with_loss"), "the steps are made of them"),
    **dict.fromkeys(
        ("identity", "flatten", "item", "split_heads", "merge_heads"), "nothing is computed"
    ),
    **dict.fromkeys(("rnn_cell", "gru_cell"), "like lstm_cell, the cell of recurrent"),
    "lstm_cell": "in recurrent",
    "attention": "a graph of linear and dot_product_attention",
    **dict.fromkeys(("inference", "map_nodes"), "they change a network, and compute nothing"),
    "freeze": "a part of its block's backward pass is left out",
    **dict.fromkeys(("sigmoid", "heaviside"), "other names of logistic and step"),
}


def cases(rows: int, features: int = 1024) -> list[Case]:
    """Blocks of rows of features, of attention, embeddings and losses."""
    return [
        *_layers(rows, features), *_elementwise(rows, features), *_gates(rows, features),
        *_attention(rows), *_losses(rows), *_combinators(rows, features),
    ]  # fmt: skip


def _cast(value: Any, x: Any) -> Any:
    return value.astype(x.dtype)


def _affine(params: Any, x: Any) -> Any:
    return x @ _cast(params["w"], x) + _cast(params["b"], x)


def _layers(rows: int, features: int) -> list[Case]:
    def case(name: str, block: Block, plain: Plain) -> Case:
        return Case("dense", name, block, ((rows, features),), plain)

    def layer_norm(params: Any, x: Any) -> Any:
        mean, var = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
        z = (x - mean) * lax.rsqrt(var + 1e-5)
        return z * _cast(params["scale"], x) + _cast(params["bias"], x)

    def rms_norm(params: Any, x: Any) -> Any:
        rate = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        return x * rate * _cast(params["scale"], x)

    def dropout(_: Any, x: Any) -> Any:
        return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.9, x.shape), x / 0.9, 0)

    def layer(params: Any, x: Any) -> Any:
        return jax.nn.relu(_affine(params["linear"], x))

    def neuron(params: Any, x: Any) -> Any:
        return jax.nn.sigmoid(_affine(params["linear"], x))

    return [
        case(f"linear {features}->{features}", fnn.linear(features), _affine),
        case(f"layer {features}->{features}", fnn.layer(features, fnn.relu()), layer),
        case("neuron", fnn.neuron(fnn.logistic()), neuron),
        case("dropout", _with_a_key(fnn.dropout(0.1)), dropout),
        case("layer_norm", fnn.layer_norm(), layer_norm),
        case("rms_norm", fnn.rms_norm(), rms_norm),
        case("softmax", fnn.softmax(), lambda _, x: jax.nn.softmax(x)),
        case("log_softmax", fnn.log_softmax(), lambda _, x: jax.nn.log_softmax(x)),
    ]


def _with_a_key(block: Block) -> Block:
    def forward(params: Any, x: Any, key: Any = None) -> Any:
        return block.forward(params, x, jax.random.key(0))

    return block._replace(forward=forward)


def _elementwise(rows: int, features: int) -> list[Case]:
    def case(name: str, block: Block, f: Callable[[Any], Any]) -> Case:
        return Case("elementwise", name, block, ((rows, features),), lambda _, x: f(x))

    def heaviside(x: Any) -> Any:
        return (x >= 0).astype(x.dtype)

    def through(x: Any) -> Any:
        return jax.nn.sigmoid(x) + lax.stop_gradient(heaviside(x) - jax.nn.sigmoid(x))

    def cube(x: Any) -> Any:
        return x * x * x

    return [
        case("relu", fnn.relu(), jax.nn.relu),
        case("leaky_relu", fnn.leaky_relu(), jax.nn.leaky_relu),
        case("step", fnn.step(), heaviside),
        case("logistic", fnn.logistic(), jax.nn.sigmoid),
        case("tanh", fnn.tanh(), jnp.tanh),
        case("hard_tanh", fnn.hard_tanh(), jax.nn.hard_tanh),
        case("hard_sigmoid", fnn.hard_sigmoid(), jax.nn.hard_sigmoid),
        case("absolute", fnn.absolute(), jnp.abs),
        case("elu", fnn.elu(), jax.nn.elu),
        case("selu", fnn.selu(), jax.nn.selu),
        case("celu", fnn.celu(), jax.nn.celu),
        case("softplus", fnn.softplus(), jax.nn.softplus),
        case("softsign", fnn.softsign(), jax.nn.soft_sign),
        case("silu", fnn.silu(), jax.nn.silu),
        case("mish", fnn.mish(), jax.nn.mish),
        case("gelu", fnn.gelu(), lambda x: jax.nn.gelu(x, approximate=False)),
        case("gelu approximate", fnn.gelu(approximate=True), jax.nn.gelu),
        case("elementwise", fnn.elementwise("cube", cube, lambda x: 3 * x * x), cube),
        case("straight_through", fnn.straight_through(fnn.step(), fnn.logistic()), through),
        case("negate", fnn.negate(), jnp.negative),
        case("scale", fnn.scale(0.5), lambda x: 0.5 * x),
        case("exp", fnn.exp(), jnp.exp),
        case("log", fnn.log(), jnp.log),
        case("square", fnn.square(), jnp.square),
        case("sqrt", fnn.sqrt(), jnp.sqrt),
        case("power 3", fnn.power(3), cube),
    ]


def _gates(rows: int, features: int) -> list[Case]:
    def case(name: str, block: Block, f: Callable[[Any, Any], Any]) -> Case:
        return Case("gates", name, block, ((rows, features),) * 2, lambda _, xy: f(*xy))

    def reduction(name: str, block: Block, f: Callable[..., Any]) -> Case:
        return Case("gates", name, block, ((rows, features),), lambda _, x: f(x, -1))

    return [
        case("add", fnn.add(), jnp.add),
        case("subtract", fnn.subtract(), jnp.subtract),
        case("multiply", fnn.multiply(), jnp.multiply),
        case("divide", fnn.divide(), jnp.divide),
        case("maximum", fnn.maximum(), jnp.maximum),
        case("minimum", fnn.minimum(), jnp.minimum),
        case("power", fnn.power(), jnp.power),
        case("concatenate", fnn.concatenate(), lambda x, y: jnp.concatenate([x, y], -1)),
        reduction("sum", fnn.sum(-1), jnp.sum),
        reduction("mean", fnn.mean(-1), jnp.mean),
    ]


def _attention(rows: int) -> list[Case]:
    places, heads, width = max(rows // 4, 1), 8, 64
    shape = (4, places, heads, width)

    def attend(_: Any, x: Any) -> Any:
        return jax.nn.dot_product_attention(*x, is_causal=True, implementation="xla")

    def turn(_: Any, x: Any) -> Any:
        half = width // 2
        angle = jnp.outer(jnp.arange(places), 10_000.0 ** (-jnp.arange(half) / half))[:, None]
        cos, sin = _cast(jnp.cos(angle), x), _cast(jnp.sin(angle), x)
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def row(params: Any, ids: Any) -> Any:
        return params["w"][ids]

    def swiglu(params: Any, x: Any) -> Any:
        gate, value = (_cast(params[name]["w"], x) for name in ("gate", "value"))
        return jax.nn.silu(x @ gate) * (x @ value)

    def lstm(params: Any, x: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            h, c = state
            a = _affine(params["input"], x) + h @ _cast(params["hidden"]["w"], x)
            i, f, g, o = jnp.split(a, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros_like(x[:, 0])
        return jnp.moveaxis(lax.scan(step, (zeros, zeros), jnp.moveaxis(x, 1, 0))[1], 0, 1)

    attention = fnn.dot_product_attention(causal=True)
    return [
        Case("attention", "dot_product_attention causal", attention, (shape,) * 3, attend),
        Case("attention", "rotary", fnn.rotary(), (shape,), turn),
        Case("attention", "position_embedding", fnn.position_embedding(places),
             ((4, places, heads * width),), lambda p, x: x + _cast(p["w"], x)),
        Case("attention", "recurrent", fnn.recurrent(fnn.lstm_cell(256)),
             ((4, places, 256),), lstm),
        Case("attention", "gated", fnn.gated(1024, fnn.silu()), ((rows, 512),), swiglu),
        Case("attention", "unembedding", fnn.unembedding(4096), ((rows, 256),),
             lambda p, x: x @ _cast(p["w"], x).T),
        Case("attention", "embedding", fnn.embedding(32768, 256), (Ids((rows,), 32768),), row),
    ]  # fmt: skip


def _losses(rows: int) -> list[Case]:
    classes = 1000
    labels = Ids((rows,), classes)

    def case(name: str, block: Block, target: Any, f: Callable[[Any, Any], Any]) -> Case:
        """``f(prediction, target)``: the losses of the examples."""
        inputs = (rows, classes), target
        plain = lambda _, x: jnp.mean(f(*x).astype(jnp.float32))  # noqa: E731
        return Case("losses", name, block, inputs, plain)

    def chosen(rows: Any, labels: Any) -> Any:
        return -jnp.take_along_axis(rows, labels[:, None], 1)

    def binary(z: Any, t: Any) -> Any:
        return jnp.sum(jax.nn.softplus(z) - z * t.astype(z.dtype), -1)

    # With a head of its own, whose w is a parameter.
    pair = fnn.unembedding(32768, factored=True)
    nodes = [("head", pair, "x"), ("loss", fnn.linear_softmax_cross_entropy(), ("head", "t"))]
    head = fnn.graph(("x", "t"), nodes, "loss")

    def fused(params: Any, x: Any) -> Any:
        h, t = x
        z = (h @ _cast(params["head"]["w"], h).T).astype(jnp.float32)
        return jnp.mean(chosen(jax.nn.log_softmax(z), t))

    return [
        case("softmax_cross_entropy", fnn.softmax_cross_entropy(), labels,
             lambda z, t: chosen(jax.nn.log_softmax(z), t)),
        Case("losses", "linear_softmax_cross_entropy", head,
             ((rows, 256), Ids((rows,), 32768)), fused),
        case("cross_entropy", fnn.cross_entropy(), labels, lambda p, t: chosen(jnp.log(p), t)),
        case("binary_cross_entropy", fnn.binary_cross_entropy(), Ids((rows, classes), 2), binary),
        case("squared_error", fnn.squared_error(), (rows, classes),
             lambda y, t: jnp.sum((y - t) ** 2, -1) / 2),
    ]  # fmt: skip


def _combinators(rows: int, features: int) -> list[Case]:
    """What is inside is large enough that it is not all that is measured."""

    def case(name: str, block: Block, plain: Plain) -> Case:
        return Case("combinators", name, block, ((rows, features),), plain)

    def hidden(params: Any, x: Any) -> Any:
        return jnp.tanh(_affine(params["linear"], x))

    def repeated(params: Any, x: Any) -> Any:
        return lax.scan(lambda x, layer: (hidden(layer, x), None), x, params)[0]

    @jax.checkpoint
    def twice(params: Any, x: Any) -> Any:
        return jax.nn.silu(jax.nn.silu(_affine(params["0_linear"], x)))

    def both(params: Any, x: Any) -> Any:
        return x * x, _affine(params["1_linear"], x)

    layer = fnn.layer(features, fnn.tanh())
    rematerialized = fnn.serial(fnn.linear(features), fnn.silu(), fnn.silu())
    return [
        case("residual", fnn.residual(layer), lambda p, x: x + hidden(p["block"], x)),
        case("repeat 4", fnn.repeat(layer, 4), repeated),
        case("rematerialize", fnn.rematerialize(rematerialized), twice),
        case("fan_out", fnn.fan_out(fnn.square(), fnn.linear(features)), both),
    ]
