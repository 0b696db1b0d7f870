"""Combinators: the savings of repeat, rematerialize and freeze, measured in compiled programs."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block, BlockError, BlockTypeError, BlockValueError, no_params

X = np.linspace(-1, 1, 8).reshape(2, 4)
DY = np.cos(np.arange(8.0)).reshape(2, 4)


def backprop(block: Block, key: Any = None) -> Any:
    def f(params: Any, x: Any, dy: Any) -> Any:
        y, residuals = block.forward(params, x, key)
        return (y, *block.backward(params, residuals, dy))

    return f


def equal(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, tolerance, 1e-14), a, b)


# ---- repeat ----------------------------------------------------------------------------------


def test_repeat_equals_the_unrolled_network() -> None:
    block, n = fnn.layer(4, fnn.tanh()), 3
    rolled, unrolled = fnn.repeat(block, n), fnn.serial(*[block] * n)
    params = rolled.init(jax.random.key(0), X)
    apart = {
        node.name: jax.tree.map(lambda p, i=i: p[i], params)
        for i, node in enumerate(unrolled.graph.nodes)
    }
    y, dparams, dx = backprop(rolled)(params, X, DY)
    y2, each, dx2 = backprop(unrolled)(apart, X, DY)
    equal((y, dx), (y2, dx2))
    equal(dparams, jax.tree.map(lambda *p: jnp.stack(p), *each.values()))


def test_repeats_layers_start_differently() -> None:
    w = fnn.repeat(fnn.linear(4), 3).init(jax.random.key(0), X)["w"]
    assert w.shape == (3, 4, 4)
    assert not np.array_equal(w[0], w[1]) and not np.array_equal(w[1], w[2])


def test_repeat_draws_a_new_mask_for_every_layer() -> None:
    # Two masks keep a quarter of the entries; the same mask twice would keep a half.
    y = fnn.repeat(fnn.dropout(0.5), 2).forward({}, jnp.ones(4096), jax.random.key(0))[0]
    assert abs(np.mean(np.asarray(y) > 0) - 0.25) < 0.03


def test_repeats_program_does_not_grow_with_depth() -> None:
    def size(n: int) -> int:
        net = fnn.repeat(fnn.layer(4, fnn.tanh()), n)
        params = jax.eval_shape(net.init, jax.random.key(0), X)
        text = jax.jit(backprop(net)).lower(params, X, DY).as_text()
        return len(re.sub(r"\d+", "", text))  # the same text but for the numbers in it

    assert size(2) == size(200)


def test_repeat_works_with_any_number_of_inputs_and_outputs() -> None:
    swap = fnn.graph(("u", "v"), [("s", fnn.add(), ("u", "v"))], ("v", "s"))  # Fibonacci
    y, _ = fnn.repeat(swap, 10).forward({}, (jnp.asarray(0.0), jnp.asarray(1.0)))
    assert tuple(map(float, y)) == (55, 89)


@pytest.mark.parametrize("n", [0, -1, 2.0, "2"])
def test_repeat_needs_a_whole_number(n: Any) -> None:
    with pytest.raises(BlockValueError, match="whole number of at least 1"):
        fnn.repeat(fnn.relu(), n)


def test_repeat_refuses_a_change_of_shape_or_dtype() -> None:
    with pytest.raises(BlockValueError, match=r"linear turns float64\[2, 4\] into float64\[2, 3\]"):
        fnn.repeat(fnn.linear(3), 2).init(jax.random.key(0), X)
    halve = Block(
        no_params,
        lambda params, x, key=None: (x.astype(jnp.float32), ()),
        lambda params, residuals, dy: ({}, dy),
        "narrow",
    )
    with pytest.raises(BlockValueError, match="input's shape and dtype"):
        fnn.repeat(halve, 2).forward({}, jnp.asarray(X))


def test_repeat_refuses_the_parameters_of_another_depth() -> None:
    params = fnn.repeat(fnn.linear(4), 3).init(jax.random.key(0), X)
    with pytest.raises(BlockValueError, match="needs a leading axis of 2"):
        fnn.repeat(fnn.linear(4), 2).forward(params, X)


# ---- rematerialize ---------------------------------------------------------------------------


def deep_chain() -> Block:
    """Eight segments, each with residuals many times its input."""
    wide = fnn.serial(*[fnn.tanh(), fnn.exp(), fnn.softplus(), fnn.silu()] * 4)
    return wide


def test_rematerialize_gives_the_same_gradients() -> None:
    net = fnn.serial(fnn.linear(4), fnn.dropout(0.5), fnn.tanh())
    params = net.init(jax.random.key(0), X)
    key = jax.random.key(1)
    again = fnn.rematerialize(net)
    equal(*(jax.jit(backprop(b, key))(params, X, DY) for b in (net, again)))
    equal(params, again.init(jax.random.key(0), X))


@pytest.mark.slow
def test_rematerialize_needs_less_memory() -> None:
    """In the compiled program, where the barrier prevents the compiler from undoing it."""
    segments, x = 6, jax.ShapeDtypeStruct((4096,), jnp.float64)

    def temporary(wrap: Any) -> int:
        net = fnn.serial(*[wrap(deep_chain()) for _ in range(segments)])
        compiled = jax.jit(backprop(net)).lower({}, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain, less = temporary(lambda block: block), temporary(fnn.rematerialize)
    assert less < 0.5 * plain, (less, plain)


def test_of_a_transformers_layer_11_numbers_are_kept_for_each_place_and_feature() -> None:
    """llm.c keeps 16, and 12 where it computes GELU again."""

    def kept(layers: int) -> float:
        net = fnn.models.transformer(9, 64, layers, 2, length=32, keep="products")
        params = jax.eval_shape(net.init, jax.random.key(0), IDS)
        residuals = jax.eval_shape(net.forward, params, IDS)[1]
        return sum(leaf.size for leaf in jax.tree.leaves(residuals)) / (IDS.size * 64)

    assert 10 < kept(2) - kept(1) < 11.5


IDS = np.zeros((2, 32), np.int32)


def test_products_are_not_computed_again() -> None:
    net = fnn.serial(fnn.tanh(), fnn.linear(4), fnn.exp(), fnn.linear(4))
    products = [count(b) for b in (net, fnn.rematerialize(net, keep="products"))]
    assert products[0] == products[1] < count(fnn.rematerialize(net))


def count(net: Block) -> int:
    """Of the matrix products in the compiled backward pass."""
    params = net.init(jax.random.key(0), X)
    residuals = net.forward(params, X)[1]
    program = jax.jit(net.backward).lower(params, residuals, DY).compile().as_text()
    return program.count(" dot(")


def test_rematerialize_keeps_input_and_key_only() -> None:
    net = fnn.rematerialize(fnn.serial(fnn.linear(4), fnn.exp(), fnn.exp()))
    params = net.init(jax.random.key(0), X)
    residuals = jax.eval_shape(net.forward, params, X)[1]
    assert [leaf.shape for leaf in jax.tree.leaves(residuals)] == [X.shape]


# ---- freeze ----------------------------------------------------------------------------------


def flops(net: Block, params: Any, x: Any) -> float:
    def gradients(params: Any, x: Any) -> Any:
        y, residuals = net.forward(params, x)
        return net.backward(params, residuals, jnp.ones_like(y))[0]

    cost = jax.jit(gradients).lower(params, x).compile().cost_analysis()
    return cost["flops"]


def test_freezing_saves_exactly_the_frozen_weight_gradients() -> None:
    """Neither the first layers' gradients nor the cotangents that lead to them are computed."""
    batch, features = 8, 16
    body = fnn.serial(
        a=fnn.linear(features, use_bias=False), b=fnn.linear(features, use_bias=False)
    )
    head = fnn.linear(features, use_bias=False)
    x = jax.ShapeDtypeStruct((batch, features), jnp.float32)
    trained, frozen = fnn.serial(body=body, head=head), fnn.serial(body=fnn.freeze(body), head=head)
    params = jax.eval_shape(trained.init, jax.random.key(0), x)
    matmul = 2 * batch * features * features
    # Without freezing: dW of a, b and head, and dx of head and b. Frozen: dW of head alone.
    assert flops(trained, params, x) - flops(frozen, params, x) == 4 * matmul


def test_gradients_flow_through_frozen_blocks() -> None:
    net = fnn.serial(first=fnn.linear(4), middle=fnn.freeze(fnn.layer(4, fnn.tanh())))
    params = net.init(jax.random.key(0), X)
    _, dparams, dx = backprop(net)(params, X, DY)
    thawed = fnn.serial(first=fnn.linear(4), middle=fnn.layer(4, fnn.tanh()))
    _, wanted, dx2 = backprop(thawed)(params, X, DY)
    equal((dparams["first"], dx), (wanted["first"], dx2))
    assert dparams["middle"] == {"linear": {"w": None, "b": None}}


def test_freezing_keeps_parameters_names_and_inference() -> None:
    net = fnn.models.mlp((4, 4), dropout=0.5)
    frozen = fnn.freeze(net)
    equal(net.init(jax.random.key(0), X), frozen.init(jax.random.key(0), X))
    params = net.init(jax.random.key(0), X)
    equal(fnn.inference(net).forward(params, X)[0], fnn.inference(frozen).forward(params, X)[0])
    dparams = fnn.inference(frozen).backward(
        params, fnn.inference(frozen).forward(params, X)[1], DY
    )[0]
    assert jax.tree.leaves(dparams) == []


def test_a_frozen_and_shared_block_trains_where_it_is_not_frozen() -> None:
    shared = fnn.graph(
        "x", [("a", fnn.freeze(fnn.linear(4)), "x"), ("b", fnn.linear(4), "a", "a")], "b"
    )
    params = shared.init(jax.random.key(0), X)
    _, dparams, _ = backprop(shared)(params, X, DY)
    h = X @ np.asarray(params["a"]["w"])
    np.testing.assert_allclose(dparams["a"]["w"], h.T @ DY, rtol=1e-12)


# ---- the small ones --------------------------------------------------------------------------


def test_names_say_position_and_kind() -> None:
    names = [node.name for node in fnn.serial(*[fnn.relu()] * 11, out=fnn.exp()).graph.nodes]
    assert names[:2] == ["00_relu", "01_relu"] and names[-2:] == ["10_relu", "out"]
    assert names == sorted(names)


@pytest.mark.parametrize("combine", [fnn.serial, fnn.fan_out])
def test_an_uncalled_factory_is_refused(combine: Any) -> None:
    with pytest.raises(BlockTypeError, match=r"argument 1 is the function tanh, needs a Block"):
        combine(fnn.relu(), fnn.tanh)
    with pytest.raises(BlockTypeError, match="'act' is the function tanh, needs a Block"):
        combine(fnn.relu(), act=fnn.tanh)


def test_a_name_used_twice_is_refused() -> None:
    with pytest.raises(BlockError):
        fnn.serial(fnn.relu(), **{"0_relu": fnn.tanh()})


def test_fan_out_needs_two() -> None:
    with pytest.raises(BlockValueError, match="needs two or more"):
        fnn.fan_out(fnn.relu())


def test_residual_refuses_to_broadcast() -> None:
    net = fnn.residual(fnn.linear(1))
    params = net.init(jax.random.key(0), jax.ShapeDtypeStruct((2, 1), jnp.float64))
    assert net.forward(params, X[:, :1])[0].shape == (2, 1)
    with pytest.raises(BlockValueError, match="shortcut=linear"):
        net.init(jax.random.key(0), X)


def test_concatenate_refuses_what_does_not_fit() -> None:
    join = fnn.concatenate().forward
    with pytest.raises(BlockValueError, match="do not agree"):
        join({}, (jnp.ones((2, 3)), jnp.ones((3, 3))))
    with pytest.raises(BlockValueError, match="do not agree"):
        join({}, (jnp.ones((2, 3)), jnp.ones(3)))
    with pytest.raises(BlockTypeError, match="dtypes differ"):
        join({}, (jnp.ones(3), jnp.ones(3, jnp.float32)))
    with pytest.raises(BlockTypeError, match="needs a tuple"):
        join({}, jnp.ones(3))
    with pytest.raises(BlockValueError):
        fnn.concatenate(axis=2).forward({}, (jnp.ones((2, 3)), jnp.ones((2, 3))))


@pytest.mark.parametrize(
    ("index", "x", "got"),
    [(2, (1.0, 2.0), "(1.0, 2.0)"), (-3, [1.0, 2.0], "[1.0, 2.0]"), (0, (), "()"),
     (0, jnp.ones((5, 5)), "float32 of shape (5, 5)")],
)  # fmt: skip
def test_item_needs_a_tuple_with_that_entry(index: int, x: Any, got: str) -> None:
    message = re.escape(f"x is {got}, needs a tuple with an entry {index}")
    with pytest.raises(BlockTypeError, match=message):
        fnn.item(index).forward({}, x)
    assert fnn.item(-2).forward({}, (1.0, 2.0))[0] == 1.0


def test_flatten_needs_its_axes() -> None:
    with pytest.raises(BlockValueError, match="needs 2 axes"):
        fnn.flatten(keep=2).forward({}, jnp.ones(3))
