"""A block of one's own, or a call, that breaks the contract: one error, with the right way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block, BlockError, BlockTypeError

X, TARGET = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
KEY, LOSS = jax.random.key(0), fnn.squared_error()
NET = fnn.serial(a=fnn.linear(2), b=fnn.tanh())
PARAMS = NET.init(KEY, X)
OPTIONS: dict[str, Any] = {"epochs": 1, "progress": False}


def init(key: Any, x: Any) -> Any:
    return {"a": jnp.ones((1, x.shape[-1]), x.dtype)}


def forward(params: Any, x: Any, key: Any = None) -> Any:
    return params["a"] * x, x


def backward(params: Any, x: Any, dy: Any) -> Any:
    return {"a": jnp.sum(dy * x, 0, keepdims=True)}, params["a"] * dy


def block(init: Any = init, forward: Any = forward, backward: Any = backward) -> Block:
    return Block(init, forward, backward, "mine")


def only_if_positive(x: Any) -> Any:
    return x if x.sum() > 0 else -x


BROKEN: dict[str, tuple[Block, str]] = {
    "y alone": (
        block(forward=lambda params, x, key=None: params["a"] * x),
        r"mine\)?: forward returned float32 of shape .*, needs to return \(y, residuals\) .docs/",
    ),
    "no key": (
        block(forward=lambda params, x: (x, x)),
        r"called as forward\(params, x, key=None\), which its own does not take: .*own_block",
    ),
    "no key to init": (block(init=lambda x: {}), r"called as init\(key, x\), which its own does"),
    "dx alone": (
        block(backward=lambda params, x, dy: params["a"] * dy),
        r"backward returned float32 of shape .*, needs to return \(dparams, dx\) .docs/howto",
    ),
    "no residuals to backward": (
        block(backward=lambda params, dy: ({}, dy)), r"called as backward\(params, residuals, d"),
    "swapped": (
        block(backward=lambda params, x, dy: backward(params, x, dy)[::-1]),
        r"as dparams, needs what params are, a dict of \['a'\]: return \(dparams, dx\) in this ord",
    ),
    "swapped, without parameters": (
        Block(lambda key, x: {}, lambda params, x, key=None: (x, ()),
              lambda params, residuals, dy: (dy, {}), "mine"),
        r"as dparams, needs what params are, a dict of \[\]",
    ),
    "not summed": (
        block(backward=lambda params, x, dy: ({"a": dy * x}, params["a"] * dy)),
        r"backward returned a gradient of shape \(4, 3\) for params of shape .* at '.*a'.*sum",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_block_is_named_by_fit(case: str) -> None:
    own, words = BROKEN[case]
    net = fnn.serial(own=own, out=fnn.linear(2))
    with pytest.raises(BlockError, match=words) as error:
        fnn.fit(net, LOSS, X, TARGET, **OPTIONS)
    assert "own" in str(error.value)


@pytest.mark.parametrize("case", [case for case in BROKEN if case != "not summed"])
def test_a_broken_block_is_named_without_a_network_around(case: str) -> None:
    own, words = BROKEN[case]
    with pytest.raises(BlockError, match=words):
        fnn.fit(own, LOSS, X, X, **OPTIONS)


def test_a_pair_is_no_array_of_two_rows() -> None:
    own = block(forward=lambda params, x, key=None: x, backward=lambda params, x, dy: dy)
    with pytest.raises(BlockTypeError, match=r"forward returned float32 of shape .2, 3., needs"):
        fnn.serial(own).forward({"0_mine": {"a": 1.0}}, X[:2])


def test_errors_from_inside_keep_their_words() -> None:
    def mistaken(params: Any, x: Any, key: Any = None) -> Any:
        return len(5), x  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        fnn.serial(block(forward=mistaken)).init(KEY, X)


TRACED: dict[str, Callable[[Any], Any]] = {
    "if": only_if_positive,
    "NumPy": lambda x: np.asarray(x) * 2,
    "float": lambda x: x * float(x[0, 0]),
    "an index": lambda x: x * [1, 2][x[0, 0].astype(int)],
}


@pytest.mark.parametrize("case", TRACED)
def test_what_cannot_be_compiled_has_a_note(case: str) -> None:
    own = block(forward=lambda params, x, key=None: (TRACED[case](x), x))
    for net in (fnn.serial(fnn.serial(own=own)), own):
        with pytest.raises(TypeError) as error:
            fnn.fit(net, LOSS, X, X, **OPTIONS)
        notes = "\n".join(error.value.__notes__)
        assert notes.count("use jax.numpy in place of NumPy") == 1
        assert "forward of block 'mine' is compiled" in notes


FITTED = fnn.fit(NET, LOSS, X, TARGET, **OPTIONS)
Y, RESIDUALS = NET.forward(PARAMS, X)
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "y for residuals": (
        lambda: NET.backward(PARAMS, Y, Y), "serial: residuals are float32 of .*, need what forwa"),
    "no residuals": (lambda: NET.backward(PARAMS, Y), "need what forward returned: y, residuals ="),  # type: ignore[call-arg]
    "swapped": (lambda: NET.backward(PARAMS, Y, RESIDUALS), "residuals are float32 of shape"),
    "no dy": (lambda: NET.backward(PARAMS, RESIDUALS), "got no dy, needs that of y"),  # type: ignore[call-arg]
    "others' residuals": (
        lambda: NET.backward(PARAMS, {"a": X}, Y), r"residuals are a dict of \['a'\], need what"),
    "forward of x": (lambda: NET.forward(X), r"params is float32 .*call forward\(params, x\)"),  # type: ignore[call-arg]
    "a block's forward of x": (lambda: fnn.relu().forward(X), r"got no x.*forward\(params, x\)"),  # type: ignore[call-arg]
    "init of x": (lambda: NET.init(X), r"needs a key made by .*: init\(key, x\)"),  # type: ignore[call-arg]
    "a block's init of x": (lambda: fnn.linear(2).init(X), r"key is float32 .*init\(key, x"),  # type: ignore[call-arg]
    "init of a key": (lambda: fnn.linear(2).init(KEY), r"got no x, needs one: init\(key, x\)"),  # type: ignore[call-arg]
    "predict of x": (
        lambda: fnn.make_predict(NET)(X), r"missing .*'x', needs predict\(params, x\)"),  # type: ignore[call-arg]
    "predict with a target": (
        lambda: FITTED.predict(X, TARGET), r"got 2 positional arguments, .*predict\(x, proba=p"),  # type: ignore[misc]
    "sklearn's evaluate": (
        lambda: FITTED.evaluate(X, TARGET, sample_weight=X), "no argument 'sample_weight'"),  # type: ignore[call-arg]
    "fitted for params": (lambda: NET.forward(FITTED, X), "params is a Fitted, .*fitted.params"),
    "fitted to a block": (lambda: fnn.relu().forward(FITTED, X), "give fitted.params"),
    "fitted to fit": (
        lambda: fnn.fit(NET, LOSS, X, TARGET, params=FITTED, **OPTIONS), "give fitted.params"),
    "network to save": (
        lambda: fnn.models.save_weights("w.npz", NET), "save_weights: params is .*block"),
    "network to load like": (
        lambda: fnn.models.load_weights("w.npz", NET), "load_weights: like is .*block"),
    "network to step": (
        lambda: fnn.make_step(NET, LOSS, fnn.sgd(0.1))(NET, (), X, TARGET), "make_step: params is"),
    "network to predict": (lambda: fnn.make_predict(NET)(NET, X), "make_predict: params is"),
    "network to fit": (
        lambda: fnn.fit(NET, LOSS, X, TARGET, params=NET, **OPTIONS), "fit: params is .*init"),
    "fitted to predict": (lambda: fnn.make_predict(NET)(FITTED, X), "predict: params is a Fitted"),
    "fitted to a file": (
        lambda: fnn.models.save_weights("w.npz", FITTED), "save_weights: .* give fitted.params"),
    "a checkpoint": (lambda: NET.forward(FITTED.checkpoint, X), "params is a Checkpoint, needs i"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_a_wrong_call_is_answered_with_the_right_one(case: str) -> None:
    call, words = CALLS[case]
    with pytest.raises(BlockError, match=words):
        call()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("predict_proba", r"fitted.predict\(x, proba=True\)"),
        ("score", r"fitted.evaluate\(x, target\)"),
        ("save", r"fnn.models.save_weights\(path, fitted.params\)"),
        ("loss", r"fitted.history\[-1\]\['loss'\]"),
        ("frobnicate", "^Fitted has no 'frobnicate'$"),
    ],
)
def test_a_method_that_fitted_does_not_have(name: str, words: str) -> None:
    assert not hasattr(FITTED, name)
    with pytest.raises(AttributeError, match=words):
        getattr(FITTED, name)


def test_none_stands_for_a_cotangent_of_integers() -> None:
    """backward takes None for dy, as jax.grad has it for an output without a gradient."""
    assert NET.backward(PARAMS, RESIDUALS, None) == ({"a": None}, None)
