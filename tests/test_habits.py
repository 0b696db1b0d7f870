"""Habits from other libraries: taken, or refused with the right spelling; never another network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import spelling
from fnn.arguments import Count, checked
from fnn.block import BlockError, BlockTypeError

X, LABELS = np.zeros((4, 6), np.float32), np.array([0, 1, 1, 0])
NET, LOSS = fnn.serial(fnn.linear(8), fnn.relu(), fnn.linear(2)), fnn.softmax_cross_entropy()
KEY = jax.random.key(0)
PARAMS = NET.init(KEY, X)


class Tensor:
    """As PyTorch's: a shape, and a dtype that NumPy does not know."""

    shape, dtype = (4, 6), "torch.float32"


def fit(*args: Any, **options: Any) -> Any:
    return fnn.fit(*args, progress=False, **options)


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "inputs first, linear": (lambda: fnn.linear(6, 32), r"linear\(32\) if 6 is the number of inp"),
    "inputs first, conv": (lambda: fnn.conv(1, 16, 3), r"conv\(16, 3\) if 1 is the number of inpu"),
    "a stride by place": (lambda: fnn.conv(16, 3, 2), r"else conv\(16, 3, stride=2\)"),
    "inputs first, transposed": (
        lambda: fnn.conv_transpose(1, 16, 3), r"conv_transpose\(16, 3\) if 1 is the number of inp"),
    "inputs of a norm": (lambda: fnn.batch_norm(10), r"by name: batch_norm\(\) if 10 is the num"),
    "inputs of a norm of groups": (
        lambda: fnn.group_norm(4, 32), r"group_norm\(4\) if 32 is the number of inputs"),
    "inputs of an instance norm": (
        lambda: fnn.instance_norm(32), r"by name: instance_norm\(\) if 32 is the number of inp"),
    "channels of a norm": (
        lambda: fnn.group_norm(num_groups=4, num_channels=32),
        r"'num_groups' .did you mean groups.*'num_channels' .leave it out: x tells how many"),
    "a flag by place": (lambda: fnn.linear(6, False), r"linear\(6, use_bias=False\)"),
    "a flag of a layer": (lambda: fnn.layer(6, fnn.relu(), False), r"nonlinearity, use_bias=False"),
    "a number for a flag": (lambda: fnn.linear(6, use_bias=1), "use_bias is 1, needs True or F"),
    "another name": (lambda: fnn.conv(16, 3, strides=2), "no argument 'strides' .did you mean str"),
    "PyTorch's name": (lambda: fnn.conv(16, 3, bias=False), "did you mean use_bias"),
    "a list of blocks": (lambda: fnn.serial([fnn.relu()]), r"is a list of 1, .* serial\(\*blocks"),
    "swapped": (lambda: fit(LOSS, NET, X, LABELS), "give the network first, then its loss"),
    "swapped, in a loop": (lambda: fnn.value_and_grad(LOSS, NET), "give the network first"),
    "a function of Optax's": (lambda: fit(NET, LOSS, X, LABELS, optimizer=optax.adam), "call it"),
    "an optimiser by place": (lambda: fit(NET, LOSS, X, LABELS, 0.1), "optimizer=0.1"),
    "a rate": (lambda: fit(NET, LOSS, X, LABELS, lr=0.1), r"optimizer=fnn.sgd\(learning_rate\)"),
    "no such argument": (lambda: fit(NET, LOSS, X, LABELS, shuffle=False), "'shuffle' .leave it"),
    "a tensor": (lambda: NET.forward(PARAMS, Tensor()), "x is a tests.Tensor of shape .4, 6., ne"),
    "a tensor to init": (lambda: NET.init(KEY, Tensor()), r"needs an array: jax\.numpy\.asarray"),
    "a tensor, compiled": (lambda: fnn.make_predict(NET)(PARAMS, Tensor()), "predict: x is a t"),
    "a number to conv": (lambda: fnn.conv(2, 3).init(KEY, 0), "conv: x "),
    "several names": (
        lambda: fnn.conv(in_channels=1, out_channels=32, kernel_size=3),
        r"'in_channels' .leave it out: x tells.*'out_channels' .did you mean features.*mean kernel",
    ),
    "a pool's kernel": (lambda: fnn.max_pool(kernel_size=2), "did you mean window"),
    "an activation": (lambda: fnn.linear(8, activation="relu"), r"fnn.layer\(8, fnn.relu\(\)\)"),
    "a decay": (lambda: fnn.adam(0.1, weight_decay=0.1), "take optax.adamw"),
    "other names of data": (lambda: fit(NET, LOSS, X=X, y=LABELS), "'y' .did you mean target"),
    "betas": (lambda: fnn.adam(0.1, betas=(0.9, 0.9)), "give b1 and b2"),
    "a seed": (lambda: fit(NET, LOSS, X, LABELS, seed=0), r"give key=jax.random.key\(0\)"),
    "talk": (lambda: fnn.fit(NET, LOSS, X, LABELS, verbose=0), "give progress=False to print"),
    "the loss by name": (lambda: fit(NET, "mse", X, LABELS), r"did you mean fnn.squared_error\(\)"),
    "an optimiser by name": (
        lambda: fit(NET, LOSS, X, LABELS, optimizer="adam"), r"did you mean fnn.adam\(0.001\)\?"),
    "a list as net": (lambda: fit([NET, fnn.relu()], LOSS, X, LABELS), r"give fnn.serial\(\*blo"),
    "a function as loss": (lambda: fit(NET, lambda y, t: 0.0, X, LABELS), "docs/howto/own_block"),
    "JAX's function": (lambda: fnn.serial(jax.nn.relu), r"a Block .did you mean fnn.relu\(\)"),
    "a word for a block": (lambda: fnn.layer(8, "relu"), r"a Block: did you mean fnn.relu\(\)"),
    "data to a maker": (lambda: fnn.relu(X), "got float32 of shape .4, 6., needs no data: it"),
    "data to another": (lambda: fnn.leaky_relu(X), "needs no data: it makes a block"),
    "a number to a maker": (lambda: fnn.relu(3), r"a positional argument, takes none: relu\(\)"),
    "no such": (lambda: fnn.relu(inplace=True), "there is no argument 'inplace' .there are none"),
    "arguments that are needed": (
        lambda: fnn.models.load_weights("w"), r"needs load_weights\(path, like, \.\.\.\)"),
    "swapped, a file": (lambda: fnn.models.save_weights(PARAMS, "w.npz"), "needs text or a path$"),
    "a shape": (lambda: NET.init(KEY, (1, 6)), r"give jax.ShapeDtypeStruct\(\(1, 6\), 'float32'\)"),
    "a shape to summary": (lambda: fnn.summary(NET, (1, 6)), "if a shape is meant, give jax.Shape"),
    "a shape of ids": (lambda: fnn.embedding(3, 2).init(KEY, (4,)), r"\(\(4,\), 'int32'\)"),
    "a block as a function": (lambda: NET(X), r"not called, .*net.forward\(params, x\), or fnn."),
    "a sum of blocks": (lambda: NET + NET, r"fnn.serial\(a, b\) runs one after the other"),
    "twice a block": (lambda: 2 * NET, r"fnn.repeat\(block, 2\)"),
    "a tensor to check": (lambda: fnn.check.block(NET, Tensor()), "got a tests.Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_habit_is_refused_with_the_right_spelling(name: str) -> None:
    call, words = CALLS[name]
    with pytest.raises((BlockError, fnn.check.CheckError), match=words):
        call()


@pytest.mark.parametrize("name", [name for name in spelling._OF_BLOCKS if name != "call"])
def test_a_method_that_a_block_does_not_have(name: str) -> None:
    assert not hasattr(NET, name)
    with pytest.raises(AttributeError, match=f"^a block has no '{name}': .*(fnn|net)"):
        getattr(NET, name)


def test_a_node_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"its parameters are params.'0_linear'., and net.g"):
        getattr(NET, "0_linear")
    with pytest.raises(AttributeError, match=r"^a block has no 'frobnicate'$"):
        NET.frobnicate  # noqa: B018


def test_a_step_with_the_state_of_another_optimiser() -> None:
    step = fnn.make_step(NET, LOSS, fnn.sgd(0.1, 0.9))
    for other, moments in ((fnn.adam(0.1), 2), (fnn.sgd(0.1), 0)):
        with pytest.raises(ValueError, match=f"sgd: state has {moments} moments, needs 1: is it"):
            step(PARAMS, other.init(PARAMS), X, LABELS)


@pytest.mark.parametrize(
    "name, here",
    [
        ("Linear", "linear"), ("conv2d", "conv"), ("Dense", "linear"), ("ReLU", "relu"),
        ("crossentropy", "softmax_cross_entropy (of logits) or cross_entropy"), ("Adam", "adam"),
        ("MSELoss", "squared_error"), ("Sequential", "serial"), ("BatchNorm2d", "batch_norm"),
        ("save", "models.save_weights"), ("nn", "fnn.linear, fnn.relu, "),
        ("whiteborad", "whiteboard"), ("ConvTranspose2d", "conv_transpose"), ("Conv3d", "conv"),
        ("GroupNorm", "group_norm"), ("InstanceNorm2d", "instance_norm"),
    ],
)  # fmt: skip
def test_another_librarys_name(name: str, here: str) -> None:
    with pytest.raises(AttributeError, match="did you mean") as error:
        getattr(fnn, name)
    assert f"did you mean {here}" in str(error.value)


def test_a_name_that_nothing_is_close_to_has_no_hint() -> None:
    with pytest.raises(AttributeError, match=r"^fnn has no 'frobnicate'$"):
        fnn.frobnicate  # noqa: B018
    assert not hasattr(fnn, "__wrapped__")
    assert dir(fnn) == sorted(fnn.__all__)


@pytest.mark.parametrize(
    "x, words",
    [
        (np.zeros((2, 1, 28, 28)), "1 x 28 pixels with 28 channels.*channels come first"),
        (np.zeros((2, 3, 32, 32)), r"move them last: x\.transpose\(0, 2, 3, 1\)"),
        (
            np.zeros((2, 3, 8, 8, 8)),
            r"3 x 8 x 8 pixels .* them last: x\.transpose\(0, 2, 3, 4, 1\)",
        ),
        (np.zeros((8, 8, 1)), r"8 sequences of 8 steps; one image needs .* examples: x\[None\]"),
        (np.zeros((2, 28, 28)), r"sequences of 28 steps .* axis of channels: x\[\.\.\., None\]"),
    ],
)
def test_images_in_another_layout_are_noticed(x: np.ndarray, words: str) -> None:
    net = fnn.serial(conv=fnn.conv(4, 3), act=fnn.relu())
    with pytest.warns(UserWarning, match=words) as caught:
        net.init(KEY, x)
    with pytest.warns(UserWarning, match=words) as traced:
        jax.jit(net.init)(KEY, x)
    assert {warning.filename for warning in (*caught, *traced)} == {__file__}


@pytest.mark.parametrize(
    "kernel, x",
    [
        (3, (2, 28, 28, 1)),
        (3, (2, 28, 20)),
        ((3,), (2, 28, 28)),
        ((3,), (8, 8, 1)),
        (3, (2, 3, 20, 32)),
        (1, (1, 2, 2)),
    ],
)
def test_what_is_laid_out_as_it_should_be_is_not(kernel: Any, x: tuple[int, ...]) -> None:
    fnn.conv(4, kernel).init(KEY, np.zeros(x))


def test_a_function_of_any_number_of_arguments_keeps_pythons_words() -> None:
    @checked
    def most(first: Count, *others: Any) -> int:
        return max(first, *others)

    assert most(1, 3, 2) == 3
    with pytest.raises(BlockTypeError, match=r"missing a required argument: 'first', needs most\("):
        most()


def test_a_function_that_makes_no_block_is_to_be_called() -> None:
    with pytest.raises(BlockTypeError, match="call it: a function that returns a block is not"):
        fnn.serial(lambda: fnn.relu())


def test_a_cotangent_for_each_input() -> None:
    product = fnn.multiply()._replace(backward=lambda params, residuals, dy: ({}, dy))
    net = fnn.graph(("a", "b"), [("product", product, ("a", "b"))], "product")
    x = (jnp.ones(2), jnp.ones(2))
    residuals = net.forward({}, x)[1]
    with pytest.raises(BlockTypeError, match="as dx, needs a tuple, one for each of 2 inputs"):
        net.backward({}, residuals, jnp.ones(2))


def test_an_error_of_the_optimiser_comes_through() -> None:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        raise TypeError("mine")

    broken = fnn.Optimizer(lambda params: (), update)
    net, x = fnn.linear(1), jnp.ones((2, 1))
    with pytest.raises(TypeError, match=r"\Amine"):
        fnn.make_step(net, fnn.squared_error(), broken)(net.init(KEY, x), (), x, x)


def test_a_gradient_that_is_no_array_is_described() -> None:
    sgd, params = fnn.sgd(0.1, 0.9), {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match="grads hold 'much' at w, need floating"):
        sgd.update({"w": "much"}, sgd.init(params), params)
