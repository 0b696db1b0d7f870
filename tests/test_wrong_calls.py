"""Wrong calls end in a right result, or in one error that names what was got, what is needed and
the fix: random ones (tests/fuzz.py), and those that once did not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fnn
from tests.fuzz import NOT_CALLED, Call, calls, verdict, wrong

X = np.ones((2, 3), np.float32)
KEY = jax.random.key(0)
NET, LOSS, SGD = fnn.linear(2), fnn.squared_error(), fnn.sgd(0.1)
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
INIT = jax.nn.initializers.zeros


def went_back(block: fnn.Block, like: np.ndarray) -> Any:
    """backward with a cotangent like that, after forward in float32."""
    x = np.ones(like.shape, np.float32)
    params = block.init(KEY, x)
    return block.backward(params, block.forward(params, x)[1], like)


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_a_wrong_call_is_right_or_refused(data: st.DataObject) -> None:
    """``make fuzz`` makes many more."""

    def choose(options: Any) -> Any:
        return options[data.draw(st.integers(0, len(options) - 1))]

    valid = choose(calls())
    call, got = wrong(valid, choose)
    what = verdict(valid, call, got)
    assert what in ("", "clear"), f"{what}: {call}"


@pytest.mark.slow
def test_every_public_function_is_called() -> None:
    names = {call.name.split(".")[0].split("/")[0] for call in calls()}
    assert {*fnn.__all__, *fnn.models.__all__} - NOT_CALLED - names == {"heaviside", "sigmoid"}
    for call in calls():
        assert verdict(call, call, []) == "", call


# ---- what the verdict notices ------------------------------------------------------------------


def refuse(message: str, kind: type[Exception] = ValueError) -> Callable[[Any], None]:
    def call(n: int) -> None:
        raise kind(message)

    return call


NOT_RIGHT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another type of error": (lambda n: {}[n], "wrong type: KeyError"),
    "not from fnn": (refuse("call: n is 'a', needs a number"), "not fnn's: ValueError"),
    "in JAX's words": (lambda n: jnp.zeros(n), "not fnn's: TypeError"),
    "taken": (lambda n: n, "accepted: n of another type"),
}


@pytest.mark.parametrize("name", NOT_RIGHT)
def test_the_verdict_notices(name: str) -> None:
    f, words = NOT_RIGHT[name]

    def call(n: int) -> Any:
        return f(n)

    valid = Call("call", call, (1,))
    assert verdict(valid, valid._replace(args=("a",)), ["a"]).startswith(words)


MESSAGES = {
    "relu: n is 'text', needs a whole number": "clear",
    "n is 'text', needs a whole number": "names no function",
    "relu: n is 'text'": "says no fix",
    "relu: needs a whole number": "does not say what it got",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_the_verdict_reads_the_message(message: str) -> None:
    """Raised in fnn: by a rule of a graph that only raises what it is given."""

    def judged(kind: Any) -> str:
        source = "def call(n):\n    raise kind(message)\n"
        scope = {"kind": kind, "message": message}
        exec(compile(source, fnn.__file__, "exec"), scope)
        valid = Call("relu", scope["call"], (1,))
        return verdict(valid, valid._replace(args=("text",)), ["text"])

    assert judged(ValueError).startswith(MESSAGES[message])


# ---- what was found ----------------------------------------------------------------------------


def derivative(wrong: Callable[[Any], Any]) -> Any:
    block = fnn.elementwise("cube", lambda x: x**3, wrong)
    y, residuals = block.forward({}, X)
    return block.backward({}, residuals, y)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: fnn.repeat(fnn.relu, 2), "repeat: block is the function relu, .* Block: call it"),  # type: ignore[arg-type]
    (lambda: fnn.freeze(None), "freeze: block is None, needs a Block"),  # type: ignore[arg-type]
    (lambda: fnn.inference(fnn.relu), "inference: block is the function relu"),  # type: ignore[arg-type]
    (lambda: fnn.straight_through(fnn.step(), fnn.tanh), "surrogate is the function tanh"),  # type: ignore[arg-type]
    (lambda: fnn.as_function(None), "as_function: block is None"),  # type: ignore[arg-type]
    (lambda: fnn.summary(fnn.relu, X), "summary: net is the function relu"),  # type: ignore[arg-type]
    (lambda: fnn.make_step(NET, LOSS, fnn.sgd), "make_step: optimizer is the function sgd"),
    (lambda: fnn.make_epoch(NET, LOSS, None, 2), "make_epoch: optimizer is None"),
    (lambda: fnn.linear(2, use_bias=INIT), "linear: use_bias is .* needs True or False"),  # type: ignore[arg-type]
    (lambda: fnn.scale("2"), "scale: factor is '2', needs a finite number"),  # type: ignore[arg-type]
    (lambda: fnn.leaky_relu(None), "leaky_relu: slope is None"),  # type: ignore[arg-type]
    (lambda: fnn.elu(np.nan), "elu: alpha is nan"),
    (lambda: fnn.sgd(np.inf), "sgd: learning_rate is inf"),
    (lambda: fnn.models.googlenet(width=np.inf), "googlenet: width is inf"),
    (lambda: fnn.models.cnn(channels=3), "cnn: channels is 3, needs a tuple"),  # type: ignore[arg-type]
    (lambda: fnn.flatten(-2), "flatten: keep is -2"),
    (lambda: fnn.softmax("a"), "softmax: axis is 'a', needs a whole number"),  # type: ignore[arg-type]
    (lambda: fnn.softmax(5).forward({}, X), "softmax: axis 5 does not fit x of shape"),
    (lambda: fnn.mean(5).forward({}, X), "mean: axis 5 does not fit x of shape"),
    (lambda: fnn.graph("x", [("a", NET, "x")], None), "graph: outputs is None, needs a name"),  # type: ignore[arg-type]
    (lambda: fnn.fit(NET, LOSS, X, X, SGD), "fit: got 5 positional arguments, takes net"),  # type: ignore[misc]
    (lambda: fnn.fit(NET, LOSS, X, X, progress=3), "fit: progress is 3"),  # type: ignore[arg-type]
    (lambda: fnn.fit(NET, LOSS, X, X, metrics=[fnn.r2]), "fit: metrics is"),  # type: ignore[arg-type]
    (
        lambda: fnn.fit(NET, LOSS, X, X, dtype="float7"),
        "dtype is .float7., needs a floating dtype",
    ),
    (lambda: fnn.relu().forward(PARAMS, X), r"relu: params hold \['b', 'w'\], need \[\]"),
    (lambda: fnn.relu().forward({}, X, X), "relu: key is float32 of shape .*, needs a key"),
    (lambda: fnn.relu().forward({}, jax.ShapeDtypeStruct((2,), "float32")), "without its numbers"),
    (lambda: NET.init(5, X), "linear: key is 5, needs a key made by jax.random.key"),  # type: ignore[arg-type]
    (lambda: NET.forward(PARAMS | {"w": [1.0]}, X), r"params\['w'\] is \[1.0\], needs an array"),
    (lambda: NET.forward(PARAMS | {"w": 1}, X), r"params\['w'\] is 1, needs an array"),
    (lambda: NET.backward(PARAMS, X, np.ones((2, 3))), r"dy has shape \(2, 3\), needs that of y"),
    (lambda: NET.backward(None, X, np.ones((2, 2))), "linear: params hold None"),
    (lambda: fnn.batch_norm().forward(None, X), "batch_norm: params hold None"),
    (lambda: fnn.dropout(0.5).forward({}, X, 5), "dropout: key is 5"),  # type: ignore[arg-type]
    (lambda: LOSS.forward({}, (X, None)), "squared_error: target is None, needs an array"),
    (lambda: LOSS.forward({}, (X, "a")), r"squared_error: x\[1\] is 'a', needs an array"),
    (lambda: LOSS.forward({}, (X, X * 1j)), "target has dtype complex64, needs real numbers"),
    (lambda: SGD.update(PARAMS, "a"), "sgd: state is 'a', needs what init"),
    (lambda: fnn.apply_updates({"w": X}, {"w": X.T}), "updates hold float of shape .3, 2. at w"),
    (lambda: fnn.add().backward({}, fnn.add().forward({}, (X, X))[1], None), "add: dy is None"),
    *(
        (functools.partial(derivative, wrong), rf"cube: derivative.x. is {words}, needs real")
        for wrong, words in (
            (lambda x: jnp.cos, "the function cos"), (lambda x: None, "None"),
            (lambda x: (x, x), "a tuple of 2"), (lambda x: x[:1], "float32 of shape .1, 3."),
            (lambda x: jax.lax.complex(x, x), "complex64 of shape .2, 3."),
        )
    ),
    (lambda: fnn.elementwise("cube", lambda x: x[0], jnp.cos).forward({}, X), "cube: value.x. is "
     "float32 of shape .3,., needs real numbers of x's shape .2, 3.: return an array"),
    (lambda: fnn.fit(NET, LOSS, X, X, dtype=3), "dtype is 3, needs a floating dtype"),
    (lambda: fnn.scale(10**400), "factor is 1000.*, needs a finite number"),
    (lambda: fnn.graph("x", 5, "y"), "nodes is 5 .*, needs a list of nodes"),  # type: ignore[arg-type]
    (lambda: went_back(fnn.fan_out(a=fnn.tanh(), b=fnn.relu()), X), "needs a tuple, one for each"),
    (lambda: went_back(fnn.repeat(fnn.tanh(), 2), np.float16(X)), "needs the dtype of y: float32"),
    (lambda: went_back(fnn.conv(2, 3), np.ones((1, 4, 2), np.float16)), r"dy.astype\(float32\)"),
    (lambda: fnn.models.googlenet(width=1e7), "width is 10000000.0, needs a factor below 2097152"),
    (lambda: SGD.update({"w": np.ones(3, int)}, SGD.init(PARAMS)), "hold int64 .* at w, need"),
    (lambda: SGD.update({"w": X}, SGD.init(PARAMS), PARAMS), "hold nothing at b, need float"),
    (lambda: SGD.update(list(PARAMS.values()), SGD.init(PARAMS), tuple(PARAMS.values())),
     "need the kind of containers that the parameters have"),
    (lambda: NET.forward(PARAMS, X.astype(">f4")),
     r"linear: x has dtype >f4, .* another order than this machine's: convert it by .astype"),
    (lambda: fnn.make_step(NET, LOSS, SGD)(PARAMS, SGD.init(PARAMS), X, X.astype(">f4")),
     "make_step: target has dtype >f4"),
    (lambda: NET.init(KEY, scipy.sparse.csr_array(X)), r"a scipy.csr_array of shape .* .toarray"),
    (lambda: fnn.make_predict(NET)(PARAMS, scipy.sparse.csr_array(X)), r"make_predict: .*toarray"),
    (lambda: NET.forward(MappingProxyType(PARAMS), X),  # type: ignore[arg-type]
     "linear: params is a mappingproxy, which JAX does not know as a pytree: give dict"),
    (lambda: fnn.make_step(NET, LOSS, SGD)({"w": 2**70}, SGD.init(PARAMS), X, X),
     "params/w is 1180591620717411303424, needs an array"),
    (lambda: fnn.make_epoch(NET, LOSS, SGD, 2)(
        PARAMS, SGD.init(PARAMS), X, X, np.arange(2), None, 1.5),
     "first is float.* of shape .., needs an integer"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_found_and_refused(number: int) -> None:
    call, words = REFUSED[number]
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_found_and_taken() -> None:
    """Numbers and sizes of other kinds mean what Python's do."""
    assert fnn.layer_norm(np.int64(-1)).kind == fnn.layer_norm(-1).kind  # type: ignore[arg-type]
    assert fnn.sum(np.int64(0)).kind == fnn.sum(0).kind  # type: ignore[arg-type]
    assert fnn.power(Fraction(1, 2)).kind == fnn.power(0.5).kind  # type: ignore[arg-type]
    padded = fnn.conv(2, 3, padding=np.array([[1, 0], [0, 1]]))  # type: ignore[arg-type]
    assert padded.kind == fnn.conv(2, 3, padding=((1, 0), (0, 1))).kind
    assert fnn.models.mlp(np.array([4, 2])).kind == fnn.models.mlp((4, 2)).kind  # type: ignore[arg-type]
    assert fnn.elementwise("twice", lambda x: 2 * x, lambda x: 2.0).backward({}, X, X)[1][0, 0] == 2
    assert fnn.relu().init(KEY, X) == {}
    y = fnn.relu().forward({}, X, KEY)[0]  # composition passes a key to every block
    assert np.all(y == X)
