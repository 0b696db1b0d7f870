"""Convolutional networks: structure, running statistics, auxiliary heads, gradients, errors."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments.benchmarks.conv_cases import plain_googlenet
from fnn.block import Block, BlockValueError


def trained(params: Any) -> int:
    """The number of trained parameters, without running statistics."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if "statistics" not in str(path))


def images(*shape: int, dtype: Any = jnp.float64) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


# ---- GoogLeNet -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, parameters",
    [
        (fnn.models.googlenet, 13_378_280),
        (lambda: fnn.models.googlenet(auxiliary=False), 6_998_552),
        (fnn.models.googlenet_batch_norm, 6_624_904),
    ],
)
def test_parameters_are_as_published(make: Any, parameters: int) -> None:
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(make().init, jax.random.key(0), x)
    assert trained(params) == parameters


def test_shapes_are_those_of_table_1() -> None:
    shapes: dict[str, tuple[int, ...]] = {}

    def watched(name: str, block: fnn.Block) -> fnn.Block:
        def forward(params: Any, x: Any, key: Any = None) -> Any:
            y, residuals = block.forward(params, x, key)
            shapes[name] = y.shape[1:]
            return y, residuals

        return block._replace(forward=forward)

    net = fnn.map_nodes(fnn.models.googlenet(), watched)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    shapes.clear()
    jax.eval_shape(net.forward, params, x, jax.random.key(0))
    table = {
        "conv1": (112, 112, 64),
        "pool1": (56, 56, 64),
        "conv2": (56, 56, 192),
        "pool2": (28, 28, 192),
        "inception_3a": (28, 28, 256),
        "inception_3b": (28, 28, 480),
        "pool3": (14, 14, 480),
        "inception_4a": (14, 14, 512),
        "inception_4b": (14, 14, 512),
        "inception_4c": (14, 14, 512),
        "inception_4d": (14, 14, 528),
        "inception_4e": (14, 14, 832),
        "pool4": (7, 7, 832),
        "inception_5a": (7, 7, 832),
        "inception_5b": (7, 7, 1024),
        "pool5": (1024,),
        "loss1": (1000,),
        "loss2": (1000,),
        "loss3": (1000,),
    }
    assert {name: shapes[name] for name in table} == table


def drawn(net: Block, x: jax.Array) -> Any:
    """Parameters of He's scale, without compiling ``init``, which takes many seconds."""
    rng = np.random.default_rng(2)

    def one(leaf: Any) -> jax.Array:
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(one, jax.eval_shape(net.init, jax.random.key(0), x))


@pytest.mark.slow
def test_gradients_of_googlenet_are_those_of_the_plain_formula() -> None:
    net = fnn.models.googlenet(3, auxiliary=False, width=0.04, dropout_rate=0.0)
    x, key = images(2, 65, 65, 3), jax.random.key(0)
    params = drawn(net, x)
    dy = images(2, 3)
    rng = np.random.default_rng(1)
    line = jax.tree.map(lambda p: rng.standard_normal(p.shape), params)

    @jax.jit
    def by_hand(params: Any) -> Any:
        y, residuals = net.forward(params, x, key)
        return y, net.backward(params, residuals, dy)[0]

    @jax.jit
    def along(params: Any, line: Any) -> Any:  # forward mode compiles in a third of the time
        with jax.numpy_rank_promotion("allow"):
            return jax.jvp(lambda p: plain_googlenet(p, x), (params,), (line,))

    (y, grads), (plain, slope) = by_hand(params), along(params, line)
    np.testing.assert_allclose(y, plain, rtol=1e-9)
    terms = [np.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (grads, line)), strict=True)]
    np.testing.assert_allclose(sum(terms), np.sum(dy * slope), rtol=1e-9)


@pytest.mark.slow
def test_auxiliary_heads_are_trained_and_gone_at_inference() -> None:
    net = fnn.models.googlenet(3, width=0.03)
    x = images(2, 80, 80, 3, dtype=jnp.float32)
    params = drawn(net, x)
    loss = fnn.models.deep_supervision(fnn.softmax_cross_entropy())
    gradient = jax.jit(fnn.value_and_grad(net, loss))
    value, grads = gradient(params, x, jnp.array([0, 2]), jax.random.key(1))
    assert np.isfinite(value)
    assert np.any(grads["loss1"]["classifier"]["w"]) and np.any(grads["loss2"]["conv"]["w"])
    reading = fnn.inference(net)
    y = jax.jit(lambda p: reading.forward(p, x)[0])
    without = {name: p for name, p in params.items() if name not in ("loss1", "loss2")}
    assert y(params).shape == (2, 3)
    np.testing.assert_array_equal(y(params), y(without))


def test_a_narrow_network_needs_a_positive_width() -> None:
    with pytest.raises(BlockValueError, match="width is 0"):
        fnn.models.googlenet(width=0)


# ---- running statistics ----------------------------------------------------------------------


def test_training_steps_move_the_running_statistics_and_inference_reads_them() -> None:
    net = fnn.serial(fnn.linear(3), fnn.batch_norm(momentum=0.5), out=fnn.linear(1))
    x, target = images(16, 2, dtype=jnp.float32), jnp.ones((16, 1))
    optimizer = fnn.sgd(0.1, momentum=0.9)
    params = net.init(jax.random.key(0), x)
    step = fnn.make_step(net, fnn.squared_error(), optimizer)
    hidden = x @ params["0_linear"]["w"] + params["0_linear"]["b"][None]
    moved, _, _ = step(params, optimizer.init(params), x, target)
    statistics = moved["1_batch_norm"]["statistics"]
    np.testing.assert_allclose(statistics["mean"], 0.5 * np.mean(hidden, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.5 + 0.5 * np.var(hidden, 0), rtol=1e-5)
    bn = fnn.inference(fnn.batch_norm())
    y, _ = bn.forward(moved["1_batch_norm"], hidden)
    want = (hidden - statistics["mean"][None]) / np.sqrt(statistics["var"] + 1e-5)[None]
    scale, bias = (moved["1_batch_norm"][leaf][None] for leaf in ("scale", "bias"))
    np.testing.assert_allclose(y, want * scale + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", ["repeat", "rematerialize", "freeze"])
def test_statistics_inside_other_blocks(wrap: str) -> None:
    inner = fnn.serial(fnn.batch_norm(), fnn.tanh())
    make = {
        "repeat": lambda: fnn.repeat(inner, 2),
        "rematerialize": fnn.rematerialize,
        "freeze": fnn.freeze,
    }[wrap]
    net = make() if wrap == "repeat" else make(inner)  # type: ignore[operator]
    x = 3 + images(8, 2, dtype=jnp.float32)
    params = net.init(jax.random.key(0), x)
    _, residuals = net.forward(params, x)
    if wrap == "freeze":
        assert net.rules.update_statistics is None
        return
    assert net.rules.update_statistics is not None
    mean = net.rules.update_statistics(params, residuals)["0_batch_norm"]["statistics"]["mean"]
    first = mean[0] if wrap == "repeat" else mean
    np.testing.assert_allclose(first, 0.1 * np.mean(x, 0), rtol=1e-5)


def test_constant_rows_are_finite() -> None:
    net, x = fnn.batch_norm(epsilon=1e-5), jnp.full((4, 2), 1e4)
    params = net.init(jax.random.key(0), x)
    y, residuals = net.forward(params, x)
    _, dx = net.backward(params, residuals, jnp.ones_like(y))
    np.testing.assert_array_equal(y, np.zeros_like(y))
    assert np.isfinite(dx).all()


# ---- graphs ----------------------------------------------------------------------------------


def test_outputs_at_inference_have_to_exist() -> None:
    with pytest.raises(BlockValueError, match="'head' is not a node"):
        fnn.graph("x", [("y", fnn.exp(), "x")], "y", at_inference="head")


# ---- errors of conv --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, shape, words",
    [
        (
            lambda: fnn.conv(2, 5, padding="VALID"),
            (1, 3, 3, 1),
            "a kernel of 5 does not fit: ax",
        ),
        (lambda: fnn.conv(4, 3, groups=3), (1, 3, 3, 3), "multiple of groups"),
        (lambda: fnn.conv(4, 3, groups=2), (1, 3, 3, 3), "3 channels .* 2 equal groups"),
        (lambda: fnn.conv(2, 3, padding=-1), (1, 3, 3, 1), "padding is -1"),
        (lambda: fnn.conv(2, 3, padding="same size"), (1, 3, 3, 1), "'SAME' or 'VALID'"),
        (lambda: fnn.conv(2, (3, 3)), (1, 3, 1), "has 2 entries, and x"),
        (lambda: fnn.conv(2, 3), (3, 1), r"x\[None\]"),
        (lambda: fnn.conv(2, 0), (1, 3, 3, 1), "kernel is 0"),
        (lambda: fnn.conv(2, 3, stride=0), (1, 3, 3, 1), "stride is 0"),
        (lambda: fnn.conv(2, 3), (1, 3, 3, 0), "0 channels"),
        (lambda: fnn.conv(2, 3), (1, 2, 3, 3, 3, 1), "depth, height, width"),
        (
            lambda: fnn.conv_transpose(2, 3, stride=2, output_padding=1),
            (1, 3, 3, 1),
            "needs 0 with padding='SAME'",
        ),
        (
            lambda: fnn.conv_transpose(2, 3, stride=2, padding=1, output_padding=2),
            (1, 3, 3, 1),
            "output_padding is 2, needs less than the stride, 2, along axis 1",
        ),
        (
            lambda: fnn.conv_transpose(2, 3, padding=2, output_padding=(0, 0)),
            (1, 2, 5, 1),
            "axis 1 of x .* makes a y without places",
        ),
        (lambda: fnn.conv_transpose(2, 3), (1, 0, 5, 1), "y without places: give a larger x"),
        (
            lambda: fnn.conv_transpose(2, 3, padding=0, output_padding=(0, 0)),
            (1, 5, 1),
            "output_padding .0, 0. has 2 entries, and x",
        ),
        (lambda: fnn.conv_transpose(4, 3, groups=2), (1, 3, 3, 3), "3 channels .* 2 equal groups"),
        (lambda: fnn.conv_transpose(3, 3, groups=2), (1, 3, 3, 2), "multiple of groups, 2"),
        (lambda: fnn.conv_transpose(2, 3, padding="same"), (1, 3, 3, 1), "'SAME' or 'VALID'"),
    ],
)
def test_misfits_are_refused(make: Any, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(BlockValueError, match=words):
        jax.eval_shape(make().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    "make, shape, words",
    [
        (lambda: fnn.group_norm(4), (2, 3, 6), "6 channels .* cannot be split into 4 equal groups"),
        (lambda: fnn.group_norm(0), (2, 3, 6), "groups is 0, needs a whole number of at least 1"),
        (lambda: fnn.group_norm(2), (6,), "needs an axis of examples"),
        (lambda: fnn.group_norm(2), (2, 0, 6), "none of them empty"),
        (fnn.instance_norm, (2, 6), "needs several places between batch and channels"),
        (fnn.instance_norm, (2, 1, 1, 6), "one is its own mean, so that y would be the bias"),
    ],
)
def test_norms_refuse_what_they_cannot_normalise(
    make: Any, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(BlockValueError, match=words):
        jax.eval_shape(make().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_parameters_of_another_network_are_named() -> None:
    net = fnn.serial(a=fnn.conv(4, 3))
    params = net.init(jax.random.key(0), jnp.zeros((1, 5, 5, 2)))
    with pytest.raises(BlockValueError, match=r"^a \(conv\): w has shape \(3, 3, 2, 4\), needs"):
        net.forward(params, jnp.zeros((1, 5, 5, 3)))


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"dilation": (1, 2)}, {"stride": (2, 1), "padding": ((2, 0), (1, 3))}],
    ids=str,
)
@pytest.mark.parametrize("parts", [2, 4, 8, 10**6], ids=str)
def test_large_weight_gradients_are_a_loop(
    parts: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over images, or some of their rows; tests/zoo.py has no large inputs."""
    net, x = fnn.conv(3, (3, 2), **options), images(4, 8, 6, 2)
    params = drawn(net, x)
    y, residuals = net.forward(params, x)
    dy = np.random.default_rng(2).standard_normal(y.shape)

    def program() -> str:  # another function each time, which JAX has not traced before
        return str(jax.make_jaxpr(lambda *a: net.backward(*a))(params, residuals, dy))

    once = program()
    copied = 3 * 2 * 2 * y[..., 0].size
    monkeypatch.setattr(
        sys.modules["fnn.blocks.convolutions"], "MAX_COPY_ELEMENTS", copied // parts
    )
    assert "scan" in program() and "scan" not in once
    line = jax.tree.map(lambda v: np.sin(5 * v), (params, x))

    def by_hand(params: Any, x: jax.Array) -> Any:
        return net.backward(params, net.forward(params, x)[1], dy)

    def by_autodiff(params: Any, x: jax.Array) -> Any:
        return jax.vjp(lambda p, x: net.forward(p, x)[0], params, x)[1](dy)

    # Values and second derivatives.
    got = jax.jit(lambda: jax.jvp(by_hand, (params, x), line))()
    wanted = jax.jit(lambda: jax.jvp(by_autodiff, (params, x), line))()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_loop_of_a_weight_gradient_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many operations, and images are padded as they are read: no padded copy of all is kept."""
    net, x = fnn.conv(8, 3), jax.ShapeDtypeStruct((32, 8, 8, 4), np.float32)
    once = fnn.summary(net, x)
    monkeypatch.setattr(sys.modules["fnn.blocks.convolutions"], "MAX_COPY_ELEMENTS", 2**13)
    loop = fnn.summary(net, x)
    sums = 16 * 8 * 4 * 9  # of dW, two images at a time
    assert loop.backward_flops <= once.backward_flops + sums
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    y = jax.eval_shape(lambda *a: net.forward(*a)[0], params, x)
    program = str(jax.make_jaxpr(lambda *a: net.backward(*a))(params, x, y))
    assert "f32[2,10,10,4] = pad" in program and "f32[32,10,10,4] = pad" not in program


@pytest.mark.parametrize("kernel", [(2, 3), (2, 3, 2)], ids=str)
def test_the_gradient_of_a_kernel_that_is_larger_than_dy(kernel: tuple[int, ...]) -> None:
    """XLA for CPUs ends the process where such a gradient is a convolution of dilated dy, as it is
    for jax.vjp: so it is compared with forward, which is linear."""
    net = fnn.conv(3, kernel, stride=2, padding=1, use_bias=False)
    x = images(2, 4, *(1,) * (len(kernel) - 1), 2)
    params, v = drawn(net, x), jnp.sin(5 * x)
    y = jax.jit(net.forward)(params, x)[0]
    dx = jax.jit(lambda p, x, dy: net.backward(p, x, dy)[1])(params, x, y)
    np.testing.assert_allclose(np.sum(dx * v), np.sum(y * net.forward(params, v)[0]), rtol=1e-12)


def test_deep_kernels_are_convolved_as_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as from images with the channels of several."""
    net, x = (
        fnn.conv(4, (2, 3, 1), stride=(2, 1, 1), dilation=(2, 1, 1), groups=2),
        images(2, 5, 4, 3, 2),
    )
    params = drawn(net, x)

    def run() -> Any:  # another function each time, which JAX has not traced before
        def both(params: Any, x: jax.Array) -> Any:
            y, residuals = net.forward(params, x)
            return y, net.backward(params, residuals, jnp.sin(y))

        return jax.make_jaxpr(both)(params, x), jax.jit(both)(params, x)

    program, got = run()
    monkeypatch.setattr(sys.modules["fnn.blocks.volumes"], "MAX_DEPTH", 0)
    other, wanted = run()
    assert str(program) != str(other)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "kernel, stride, padding", [(3, 2, "SAME"), (2, 3, "SAME"), (3, 1, "VALID"), (2, 3, "VALID")]
)
def test_conv_transpose_is_jax_s_and_flax_s(kernel: int, stride: int, padding: Any) -> None:
    """Flax takes jax.lax.conv_transpose without ``transpose_kernel``."""
    more = max(stride - kernel, 0) if padding == "VALID" else 0
    net = fnn.conv_transpose(
        2, kernel, stride=stride, padding=padding, output_padding=more, use_bias=False
    )
    x, w = images(2, 3, 4, 3), images(kernel, kernel, 2, 3)
    y = net.forward({"w": w}, x)[0]
    options = {"strides": (stride, stride), "padding": padding}
    wanted = jax.lax.conv_transpose(x, w, **options, transpose_kernel=True)
    np.testing.assert_allclose(y, wanted, rtol=1e-12, atol=1e-12)
    turned = jnp.swapaxes(jnp.flip(w, (0, 1)), -1, -2)
    np.testing.assert_allclose(
        y, jax.lax.conv_transpose(x, turned, **options), rtol=1e-12, atol=1e-12
    )


def test_weights_of_a_transposed_convolution_start_as_those_of_one_forward() -> None:
    """Turned around in each group, so that the initialiser sees the right fan-in."""
    asked: list[Any] = []

    def w_init(key: Any, shape: Any, dtype: Any) -> jax.Array:
        asked.append(shape)
        return jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)

    net = fnn.conv_transpose(4, (2, 1), groups=2, w_init=w_init)
    w = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 3, 3, 6), jnp.float32))["w"]
    assert asked == [(2, 1, 3, 4)] and w.shape == (2, 1, 2, 6)
    forward = np.arange(24).reshape(2, 1, 3, 4)
    np.testing.assert_array_equal(w[..., :3], np.swapaxes(forward[..., :2], -1, -2))
    np.testing.assert_array_equal(w[..., 3:], np.swapaxes(forward[..., 2:], -1, -2))


def test_an_even_kernel_with_same_keeps_the_size() -> None:
    y = jax.eval_shape(
        lambda x: fnn.conv(2, 2).forward({"w": jnp.zeros((2, 2, 1, 2)), "b": jnp.zeros(2)}, x)[0],
        jax.ShapeDtypeStruct((1, 5, 4, 1), jnp.float32),
    )
    assert y.shape == (1, 5, 4, 2)
