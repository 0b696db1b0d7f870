"""Habits from other libraries: taken, or refused with the right spelling; never another network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

import fnn
from fnn.block import BlockError

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
    "inputs of a norm": (lambda: fnn.batch_norm(10), r"by name: batch_norm\(\) if 10 is the num"),
    "a flag by place": (lambda: fnn.linear(6, False), r"linear\(6, use_bias=False\)"),
    "a flag of a layer": (lambda: fnn.layer(6, fnn.relu(), False), r"nonlinearity, use_bias=False"),
    "a number for a flag": (lambda: fnn.linear(6, use_bias=1), "use_bias is 1, needs True or F"),
    "another name": (lambda: fnn.conv(16, 3, strides=2), "no argument 'strides'; did you mean str"),
    "PyTorch's name": (lambda: fnn.conv(16, 3, bias=False), "did you mean use_bias"),
    "a list of blocks": (lambda: fnn.serial([fnn.relu()]), r"is a list of 1, .* serial\(\*blocks"),
    "swapped": (lambda: fit(LOSS, NET, X, LABELS), "give the network first, then its loss"),
    "swapped, in a loop": (lambda: fnn.value_and_grad(LOSS, NET), "give the network first"),
    "a function of Optax's": (lambda: fit(NET, LOSS, X, LABELS, optimizer=optax.adam), "call it"),
    "an optimiser by place": (lambda: fit(NET, LOSS, X, LABELS, 0.1), "optimizer=0.1"),
    "a rate": (lambda: fit(NET, LOSS, X, LABELS, lr=0.1), r"optimizer=fnn.sgd\(learning_rate\)"),
    "no such argument": (lambda: fit(NET, LOSS, X, LABELS, shuffle=False), "'shuffle'; there are"),
    "a tensor": (lambda: NET.forward(PARAMS, Tensor()), "x is a tests.Tensor of shape .4, 6., ne"),
    "a tensor to init": (lambda: NET.init(KEY, Tensor()), r"needs an array: jax\.numpy\.asarray"),
    "a tensor, compiled": (lambda: fnn.make_predict(NET)(PARAMS, Tensor()), "predict: x is a t"),
    "a number to conv": (lambda: fnn.conv(2, 3).init(KEY, 0), "conv: x "),
    "a tensor to check": (lambda: fnn.check.block(NET, Tensor()), "got a tests.Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_habit_is_refused_with_the_right_spelling(name: str) -> None:
    call, words = CALLS[name]
    with pytest.raises((BlockError, fnn.check.CheckError), match=words):
        call()


@pytest.mark.parametrize(
    "name, here",
    [
        ("Linear", "linear"), ("conv2d", "conv"), ("Dense", "linear"), ("ReLU", "relu"),
        ("crossentropy", "softmax_cross_entropy (of logits) or cross_entropy"), ("Adam", "adam"),
        ("MSELoss", "squared_error"), ("Sequential", "serial"), ("BatchNorm2d", "batch_norm"),
        ("save", "models.save_weights"), ("whiteborad", "whiteboard"),
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
        (3, (2, 3, 20, 32)),
        (1, (1, 2, 2)),
    ],
)
def test_what_is_laid_out_as_it_should_be_is_not(kernel: Any, x: tuple[int, ...]) -> None:
    fnn.conv(4, kernel).init(KEY, np.zeros(x))
