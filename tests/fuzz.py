"""Random wrong calls of every public function: right result, or one clear error.

``python -m tests.fuzz 100000`` makes that many and prints what it found, by kind, each with its
smallest call. tests/test_wrong_calls.py makes some of them in every run of the suite.

A wrong call is a valid one (:func:`calls`) in which one or two arguments are replaced by something
else (:func:`mutants`), left out or added. What has to come of it (:func:`verdict`):

- a clear error: ValueError or TypeError, raised by a ``raise`` of fnn's own (not by JAX, NumPy or
  Python on the way), which names the function, the block or the file, says what it got, and what
  it needs. Python's own words for a wrong number of arguments, and JAX's for what no compiled
  function takes, are clear too;
- or a right result: every argument is something that its annotation allows, and the result is that
  of the plain formula, or of the valid call where the argument means the same (np.int64(3) is 3).
"""

from __future__ import annotations

import collections
import contextlib
import dis
import functools
import inspect
import itertools
import math
import random
import re
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
import fnn.arguments
import fnn.check.options
from fnn.arrays import is_floating
from tests.zoo import CASES, Case, sample

Choose = Callable[[Sequence[Any]], Any]  # random.choice, or what hypothesis draws
FNN = str(Path(fnn.__file__).parent)
SLOW = 30.0  # seconds, that no call may take
# What a message says about what is needed, and how Python refuses a number of arguments.
FIX = re.compile(
    r"\b(needs?|give|make|cast|call|convert|pad|remove|rename|use|pass|switch|save|missing)\b", re.I
)
INSIDE = re.compile(r"[\w/]+ \(\w+\): ")  # the path of a block in a network, and its name
FILES = ("load_weights", "save_weights", "torch_names")
BINDING = (fnn.arguments.__file__, fnn.check.options.__file__)
ARITY = re.compile(r"\(\) (got|missing|takes)\b.* argument")


class Call(NamedTuple):
    """A valid call. ``judge(args, result)`` raises AssertionError of a wrong result; ``names``:
    one of these or the function's is in an error; ``fixed``: arguments left as they are.
    """

    name: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}
    judge: Callable[[Sequence[Any], Any], None] = lambda args, result: None
    names: tuple[str, ...] = ()
    fixed: tuple[int, ...] = ()

    def __str__(self) -> str:
        words = [show(a) for a in self.args] + [f"{k}={show(v)}" for k, v in self.kwargs.items()]
        return f"{self.name}({', '.join(words)})"


def show(value: Any) -> str:
    """A value in a line: arrays by dtype and shape."""
    if isinstance(value, np.ndarray | jax.Array):
        kind = "np" if isinstance(value, np.ndarray) else "jax"
        return f"{kind}:{value.dtype}{list(value.shape)}"
    if isinstance(value, fnn.Block):
        return f"<{value.name}>"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in value.items()) + "}"
    if type(value) in (tuple, list):
        inside = ", ".join(map(show, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside},)"
    return getattr(value, "__name__", None) or f"{value!r:.50}"


# ---- what replaces an argument -----------------------------------------------------------------

ANYTHING: list[Any] = [
    None, "2", "SAME", True, [], [1.0, 2.0], (), (1, 2), (2, 2, 2), {}, {"w": np.ones(2)},
    -1, 0, 1, 3, 1000, 2**70, -1.0, 0.0, 0.5, 1.0, 2.5, 1e300, math.nan, math.inf, 1j,
    np.int64(-1), np.int8(1), np.float32(0.5), np.bool_(True), Fraction(1, 2),
    np.array(2), np.array([1, 1]), np.array([[1, 1], [0, 1]]), np.array("a"), np.array([None]),
    np.ones((2, 3)), np.ones((2, 3), np.float32), np.ones((2, 3), complex), np.zeros((0, 3)),
    np.ones((2, 3), bool), object(), int, fnn.relu, fnn.Block, fnn.tanh(), fnn.linear(2),
    fnn.serial(fnn.linear(2), fnn.relu()), fnn.squared_error(), fnn.sgd, fnn.sgd(0.1),
    jax.nn.initializers.he_normal, lambda *args: None,
    jax.ShapeDtypeStruct((2, 3), np.float32),
]  # fmt: skip


@functools.cache
def anything() -> list[Any]:
    return [
        *ANYTHING,
        jax.random.key(0),
        jax.random.PRNGKey(0),
        jax.random.split(jax.random.key(0)),
    ]


def mutants(value: Any, choose: Choose) -> Any:
    """Something else in place of a value: anything, or the value changed a little."""
    near: list[Callable[[], Any]] = []
    if _is_array(value):
        a = np.asarray(value)
        near += [
            lambda: a, lambda: a.tolist(), lambda: a[None], lambda: a[..., None],
            lambda: a.astype(np.float32), lambda: a.astype(np.float16), lambda: a.astype(complex),
            lambda: jnp.asarray(a, jnp.bfloat16), lambda: a > 0, lambda: a.astype(np.int32),
            lambda: a.astype(object), lambda: a.astype(str),
        ]  # fmt: skip
        if a.ndim:
            near += [lambda: a[:0], lambda: a[:1], lambda: a[..., :1], lambda: a[0], lambda: a.T]
            near += [lambda: np.concatenate([a, a]), lambda: np.concatenate([a, a], -1)]
    elif isinstance(value, dict) and value:
        near += [lambda: _in_tree(value, choose)] * 20
        key = choose(sorted(value, key=str))
        near += [
            lambda: {k: v for k, v in value.items() if k != key},
            lambda: value | {"extra": np.ones(2)}, lambda: list(value.values()),
            lambda: {k.upper(): v for k, v in value.items()}, lambda: {key: value},
            lambda: list(value.items()), lambda: collections.OrderedDict(value),
        ]  # fmt: skip
    elif isinstance(value, tuple | list) and value and not isinstance(value, fnn.Block):
        near += [lambda: _in_tree(value, choose)] * 20
        near += [
            lambda: list(value), lambda: value[0], lambda: value[:-1], lambda: value[::-1],
            lambda: (*value, value[-1]),
        ]  # fmt: skip
    elif type(value) is int:
        near += [lambda: np.int64(value), lambda: float(value), lambda: np.array(value)]
        near += [lambda: jnp.array(value), lambda: -value, lambda: (value,), lambda: str(value)]
    elif type(value) is float:
        near += [lambda: np.float32(value), lambda: np.array(value), lambda: jnp.array(value)]
        near += [
            lambda: -value,
            lambda: 1 / (value or 3),
            lambda: Fraction(value),
            lambda: str(value),
        ]
    if near and choose([True, True, False]):
        return choose(near)()
    return choose(anything())


def _in_tree(value: Any, choose: Choose) -> Any:
    """A dict or tuple with one entry replaced."""
    if isinstance(value, dict):
        key = choose(sorted(value, key=str))
        return {**value, key: mutants(value[key], choose)}
    i = choose(range(len(value)))
    changed = [*value[:i], mutants(value[i], choose), *value[i + 1 :]]
    return tuple(changed) if type(value) is tuple else changed


def _is_array(value: Any) -> bool:
    is_one = isinstance(value, np.ndarray | jax.Array) and not _is_key(value)
    return is_one and value.dtype.kind in "biufcV" and value.dtype != object


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def wrong(call: Call, choose: Choose) -> tuple[Call, list[Any]]:
    """The call with one argument, sometimes two, replaced, left out or added; and what was."""
    args, kwargs = list(call.args), dict(call.kwargs)
    slots: list[Any] = [i for i in range(len(args)) if i not in call.fixed] + sorted(kwargs)
    got: list[Any] = []
    for _ in range(choose([1, 1, 1, 2])):
        how = choose(["replace"] * 30 + ["drop", "add", "name"])
        if how == "add" or not slots:
            args.append(choose(anything()))
            got.append(args[-1])
        elif how == "name":
            kwargs["no_such_argument"] = 1
            got.append("no_such_argument")
        elif how == "drop":
            args = args[:-1]
            got.append(None)
            slots = [s for s in slots if isinstance(s, str) or s < len(args)]
        else:
            slot = choose(slots)
            slots.remove(slot)
            into: Any = args if isinstance(slot, int) else kwargs
            into[slot] = mutants(into[slot], choose)
            got.append(into[slot])
    return call._replace(args=tuple(args), kwargs=kwargs), got


# ---- what has to come of it --------------------------------------------------------------------


def verdict(valid: Call, call: Call, got: list[Any]) -> str:
    """ "" for a right result, "clear" for a clear error, or what is wrong."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = call.f(*call.args, **call.kwargs)
    except Exception as error:
        if time.perf_counter() - start > SLOW:
            return "slow error"
        return unclear(call, got, error) or "clear"
    if time.perf_counter() - start > SLOW:
        return "slow"
    return wrong_result(valid, call, result)


def unclear(call: Call, got: list[Any], error: Exception) -> str:
    """What an error lacks; "" if it is clear."""
    frames = list(traceback.walk_tb(error.__traceback__))
    frame = frames[-1][0]
    where = (
        f"{type(error).__name__} in {Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
    )
    message = str(error)
    if not isinstance(error, ValueError | TypeError):
        return f"wrong type: {where}"
    if ARITY.search(message):
        return ""
    if frame.f_code.co_filename in BINDING and "argument" in message:
        return ""  # the same, in other words
    if "as an abstract array" in message and "path" in message:
        return ""  # jax.jit names the function, the argument's path and its type
    if not frame.f_code.co_filename.startswith(FNN):
        return f"not fnn's: {where}"
    opcode = dis.opname[frame.f_code.co_code[(error.__traceback__ and _last(error).tb_lasti) or 0]]
    if opcode not in ("RAISE_VARARGS", "RERAISE"):
        return f"not raised on purpose: {where}: {message[:60]}"
    names = {call.name.split(".")[0], *call.names}
    if call.name in FILES:  # a file or an array in it
        names |= {str(key) for v in got for key in (v if isinstance(v, dict) else [v])}
    if not (isinstance(error, fnn.BlockError) or any(_in(n, message) for n in names)):
        return f"names no function: {where}: {message[:60]}"
    if not FIX.search(message):
        return f"says no fix: {where}: {message[:60]}"
    if INSIDE.match(message):
        return ""  # what a block inside got is what those before made of it
    if not any(_in(word, message) for value in got for word in words(value)):
        return f"does not say what it got: {where}: {message[:60]}"
    return ""


def _last(error: Exception) -> Any:
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return tb


def _in(word: str, message: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) is not None


def words(value: Any) -> Iterator[str]:
    """What a message may call a value."""
    yield repr(value)[:20].rstrip("(")
    yield type(value).__name__
    if isinstance(value, float | int | complex | np.generic | Fraction):
        yield from (
            str(value),
            str(float(np.real(value))),
            "()",
            "scalar",
            str(np.asarray(value).dtype),
        )  # as an array
    if inspect.isfunction(value):
        yield "None"  # which it may return
    if isinstance(value, str):
        yield from (value, str(np.array(value).dtype))
    if isinstance(value, dict | tuple | list) and not value:
        yield ""  # nothing: there is nothing to say
    if hasattr(value, "shape"):
        yield str(tuple(value.shape))
        yield str(value.dtype)
        yield from map(str, value.shape)
        if value.shape[-1:] == (1,):
            yield "one"
        if np.size(value) <= 4 and isinstance(value, np.ndarray | jax.Array) and not _is_key(value):
            yield str(tuple(np.asarray(value).tolist())) if value.ndim else ""
    if isinstance(value, fnn.Block):
        yield from _names(value)
        yield from (value.name, str(len(value)), "nothing", "function")
        yield "prediction"  # which a network makes
    elif isinstance(value, dict):
        yield str(sorted(value, key=str))
        for key, inner in value.items():
            yield from (str(key), *words(inner))
    elif isinstance(value, tuple | list):
        yield str(len(value))
        for inner in value:
            yield from words(inner)
    if not hasattr(value, "shape"):
        yield from ("()", "nothing", "object")  # as an array
    else:
        yield from ("prediction", "nothing")  # of what a network makes of it
        if not np.prod(value.shape):
            yield ""
    if _is_key(value):
        yield "PRNGKey"
    if isinstance(value, jax.ShapeDtypeStruct):
        yield "object"
    if callable(value):
        yield from (getattr(value, "__name__", "function"), "NoneType")  # or what it returns
    if value is None:
        yield from ("None", "no", "none", "nothing", "without")


def wrong_result(valid: Call, call: Call, result: Any) -> str:
    """Why an accepted call should not have been; "" if it is right."""
    try:
        hints = annotations(call.f)
        bound = inspect.signature(call.f).bind(*call.args, **call.kwargs).arguments
        for name, value in bound.items():
            several = (name == "blocks" and value) or (name == "named" and value.values())
            for one in several or [value]:
                if name in hints and not allows(hints[name], one):
                    return f"accepted: {name} of another type"
        call.judge(call.args, result)
        if same(valid, call):
            again = valid.f(*valid.args, **valid.kwargs)
            assert equal(again, result), "another result than with the same as a Python value"
    except Exception as error:
        return f"wrong result: {type(error).__name__}: {str(error)[:80]}"
    return ""


@functools.cache
def _hints(f: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(f)
    except Exception:
        return {}


def annotations(f: Callable[..., Any]) -> dict[str, Any]:
    return _hints(inspect.unwrap(f))


def allows(hint: Any, value: Any) -> bool:
    """Whether an annotation allows a value: numbers are whole or finite, of Python or NumPy."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        value = _plain(value)
        kind = int if hint is int else int | float | Fraction
        return isinstance(value, kind) and type(value) is not bool and abs(value) < math.inf
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint in (str, fnn.Block, type(None)):
        return isinstance(value, hint)
    if origin is typing.Literal:
        return any(type(value) is type(v) and value == v for v in inside)
    if origin is Sequence or origin is collections.abc.Sequence:
        is_sequence = isinstance(value, list | tuple) or np.ndim(value) > 0
        return (
            is_sequence
            and not isinstance(value, fnn.Block)
            and all(allows(inside[0], v) for v in value)
        )
    if inside and "Union" in str(origin) + type(hint).__name__:
        return any(allows(h, value) for h in inside)
    return True


def same(valid: Call, call: Call) -> bool:
    """Whether all arguments mean the same as the valid ones."""
    return (
        len(valid.args) == len(call.args)
        and valid.kwargs.keys() == call.kwargs.keys()
        and all(_means(a, b) for a, b in zip(valid.args, call.args, strict=True))
        and all(_means(valid.kwargs[name], v) for name, v in call.kwargs.items())
    )


def _means(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, int | float | str | bool) and not isinstance(a, np.generic):
        b = _plain(b)
        return isinstance(b, int | float | str | Fraction) and bool(a == b)
    return (
        isinstance(a, np.ndarray | jax.Array)
        and isinstance(b, np.ndarray)
        and (not _is_key(a) and a.shape == b.shape and a.dtype == b.dtype and bool(np.all(a == b)))
    )


def _plain(value: Any) -> Any:
    """NumPy's and JAX's numbers as Python's."""
    is_number = hasattr(value, "item") and np.shape(value) == () and not _is_key(value)
    return value.item() if is_number else value


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, fnn.Fitted):
        return equal(a.params, b.params)  # not the seconds that it took
    if isinstance(a, fnn.check.Report | fnn.check.EveryFloat | fnn.check.Mutants):
        return type(a) is type(b) and getattr(a, "correct", True) == getattr(b, "correct", True)
    if isinstance(a, fnn.Block):
        return a.kind.maker == b.kind.maker and a.kind.args == b.kind.args
    leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(leaves) == len(others) and all(map(_equal_leaves, leaves, others))


def _equal_leaves(a: Any, b: Any) -> bool:
    if callable(a) or _is_key(a):
        return True
    if isinstance(a, str):
        return bool(a == b)
    if isinstance(a, jax.ShapeDtypeStruct):
        return (a.shape, a.dtype) == (b.shape, b.dtype)
    return np.shape(a) == np.shape(b) and np.allclose(a, b, 1e-6, equal_nan=True)


# ---- the functions that make blocks ------------------------------------------------------------

ROWS, IMAGE = np.linspace(-1, 1, 12).reshape(3, 4), np.linspace(-1, 1, 96).reshape(2, 6, 4, 2)
IDS, PAIR = np.arange(6).reshape(2, 3) % 5, (ROWS, ROWS)
LABELS = np.array([0, 3, 1])
HEADS = np.linspace(-1, 1, 24).reshape(3, 2, 4)


def makes(f: Callable[..., Any], *args: Any, x: Any = ROWS, **kwargs: Any) -> Call:
    """A call that makes a block, which then has to work on x, if there is one, or refuse it.

    Arguments that f takes by name only may be given by position.
    """
    parameters = inspect.signature(f).parameters.values()
    if all(p.kind is not p.VAR_POSITIONAL for p in parameters):
        by_place = sum(p.kind is not p.KEYWORD_ONLY for p in parameters)
        names = [p.name for p in parameters][by_place:]
        kwargs = dict(zip(names, args[by_place:], strict=False)) | kwargs
        args = args[:by_place]

    def judge(args: Sequence[Any], block: Any) -> None:
        assert isinstance(block, fnn.Block), f"returned a {type(block).__name__}"
        if x is None:  # large networks take seconds
            return
        key = jax.random.key(0)
        try:
            params = jax.eval_shape(block.init, key, x)
            y, residuals = jax.eval_shape(block.forward, params, x, key)
            dparams, dx = jax.eval_shape(block.backward, params, residuals, y)
        except (ValueError, TypeError) as error:
            if lacks := unclear(made, [], error):
                assert lacks.startswith(("does not say what it got", "names no")), lacks
            return
        for like, d in ((x, dx), (params, dparams)):
            for v, dv in zip(_leaves(like), _leaves(d), strict=True):
                assert dv is None or np.shape(v) == dv.shape, "a cotangent of another shape"
        assert all(leaf.dtype != object for leaf in jax.tree.leaves(y))

    made = Call(f.__name__, f, args, kwargs)
    return made._replace(judge=judge)


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)


def makers() -> list[Call]:
    init, act, lin = jax.nn.initializers.he_normal(), fnn.tanh(), fnn.linear(4)
    bias = jax.nn.initializers.zeros
    loss, net = fnn.squared_error(), fnn.serial(a=fnn.linear(4), b=fnn.tanh())
    m = fnn.models
    plain = [
        fnn.identity, fnn.step, fnn.logistic, fnn.tanh, fnn.relu, fnn.hard_tanh, fnn.hard_sigmoid,
        fnn.absolute, fnn.selu, fnn.softplus, fnn.softsign, fnn.silu, fnn.mish, fnn.negate,
        fnn.exp, fnn.log, fnn.square, fnn.sqrt,
    ]  # fmt: skip
    joins = [fnn.add, fnn.subtract, fnn.multiply, fnn.divide, fnn.maximum, fnn.minimum]
    return [
        *(makes(f) for f in plain),
        *(makes(f, x=PAIR) for f in joins),
        makes(fnn.global_avg_pool, x=IMAGE),
        makes(fnn.squared_error, x=PAIR),
        makes(fnn.softmax_cross_entropy, x=(ROWS, LABELS)),
        makes(fnn.linear_softmax_cross_entropy, 0, 0.1, 1e-4, x=((ROWS, ROWS), LABELS)),
        makes(fnn.cross_entropy, x=(abs(ROWS), LABELS)),
        makes(fnn.binary_cross_entropy, True, x=PAIR),
        makes(fnn.linear, 3, True, init, bias),
        makes(fnn.neuron, act, True, init, bias),
        makes(fnn.layer, 3, act, True, init, bias),
        makes(fnn.conv, 4, 3, 1, "SAME", 1, 2, True, init, bias, x=IMAGE),
        makes(fnn.conv, 4, (3, 2), (1, 2), ((1, 1), (0, 1)), (1, 1), 1, x=IMAGE),
        makes(fnn.conv_transpose, 4, 3, 2, "VALID", 1, 1, 2, True, init, bias, x=IMAGE),
        makes(fnn.conv_transpose, 4, (3, 2), (1, 2), ((1, 1), (0, 1)), (0, 1), (1, 2), 1, x=IMAGE),
        makes(fnn.max_pool, 2, 2, "VALID", None, x=IMAGE),
        makes(fnn.max_pool, (3, 2), (2, 1), ((1, 0), (0, 1)), "torch", x=IMAGE),
        makes(fnn.avg_pool, 2, 2, 1, None, True, x=IMAGE),
        makes(fnn.local_response_norm, 3, 1e-4, 0.75, 1.0),
        makes(fnn.layer_norm, -1, 1e-5, True, True),
        makes(fnn.group_norm, 2, 1e-5, True, True, x=IMAGE),
        makes(fnn.instance_norm, 1e-5, True, True, x=IMAGE),
        makes(fnn.rms_norm, 1e-6, True), makes(fnn.rotary, 100.0, True, x=HEADS),
        makes(fnn.dot_product_attention, False, 0.5, x=(HEADS, HEADS, HEADS)),
        makes(fnn.attention, 4, 2, True, 1, fnn.rms_norm(), False, False, True, init, bias, init,
              x=ROWS[None]),
        makes(fnn.rnn_cell, 4, init, init, bias, x=PAIR),
        makes(fnn.gru_cell, 4, init, init, bias, x=PAIR),
        makes(fnn.lstm_cell, 4, 1.0, init, init, bias, x=(ROWS, (ROWS, ROWS))),
        makes(fnn.recurrent, fnn.rnn_cell(2), True, None, 2, x=ROWS[None]),
        makes(fnn.recurrent, fnn.rnn_cell(2), False, 2, None, x=ROWS[None]),
        makes(fnn.split_heads, 2, x=HEADS), makes(fnn.merge_heads, x=HEADS),
        makes(fnn.position_embedding, 9, init, x=ROWS[None]),
        makes(fnn.gated, 3, act, True, init, bias),
        makes(fnn.unembedding, 3, False, init),
        makes(fnn.layer_norm, (1, -1), 1e-5, x=IMAGE),
        makes(fnn.batch_norm, 0.9, 1e-5),
        makes(fnn.embedding, 5, 3, init, x=IDS),
        makes(fnn.dropout, 0.5),
        makes(fnn.softmax, -1),
        makes(fnn.log_softmax, -1),
        makes(fnn.leaky_relu, 0.1),
        makes(fnn.elu, 0.5),
        makes(fnn.celu, 0.5),
        makes(fnn.gelu, False),
        makes(fnn.power, 2.0),
        makes(fnn.scale, 2.0),
        makes(fnn.sum, 0, False),
        makes(fnn.mean, (0, 1), False),
        makes(fnn.flatten, 1, x=IMAGE),
        makes(fnn.concatenate, -1, x=PAIR),
        makes(fnn.item, 0, x=PAIR),
        makes(fnn.elementwise, "cube", lambda x: x**3, lambda x: 3 * x**2, fnn.Kind("cube"), "x"),
        makes(fnn.straight_through, fnn.step(), act),
        makes(fnn.serial, lin, act, head=lin),
        makes(fnn.fan_out, lin, act, head=lin),
        makes(fnn.residual, lin, act),
        makes(fnn.repeat, lin, 2),
        makes(fnn.rematerialize, lin),
        makes(fnn.rematerialize, net, "products"),
        makes(fnn.freeze, lin),
        makes(fnn.freeze, net),
        makes(fnn.inference, fnn.dropout(0.5)),
        makes(fnn.map_nodes, net, lambda name, block: fnn.freeze(block)),
        makes(fnn.graph, ("x",), [("a", lin, "x"), ("b", act, ("a",)), ("c", lin, "b", "a")],
              ("b", "c"), at_inference="b", name="g"),
        makes(fnn.with_loss, net, loss, False, x=PAIR),
        makes(m.logistic_regression, 3),
        makes(m.mlp, (5, 4), act, use_bias=True, dropout=0.5),
        makes(m.cnn, 3, (2, 3), 4, 3, 0.5, x=IMAGE),
        makes(m.transformer, 5, 4, 1, 2, 8, "gpt2", 1, 8, True, 0.1, True, True, False, x=IDS),
        makes(m.transformer, 5, 4, 1, 2, None, "llama", 1, 8, False, 0.1, False, False, True,
              x=IDS),
        makes(m.microgpt, 5, 8, x=IDS),
        makes(m.inception, 1, 2, 1, 1, 2, 1, x=IMAGE),
        makes(m.deep_supervision, loss, (1.0, 0.3), x=(PAIR, ROWS)),
        makes(m.googlenet, 3, True, 0.1, 0.4, (1, 1, 1), x=None),
        makes(m.googlenet_batch_norm, 3, 0.2, 1e-3, x=None),
    ]  # fmt: skip


# ---- the functions of blocks -------------------------------------------------------------------


def traced(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, traced but not run: errors are raised while tracing."""

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jax.eval_shape(lambda: f(*args, **kwargs))

    return call


KEEP_NOTHING = {"identity", "item", "negate", "scale", "step", "dropout"}  # so dy has any shape


def block_calls(case: Case) -> list[Call]:
    """init, forward and backward of a row of the zoo."""
    block, s = case.make(), sample(case)
    key = jax.random.key(0)
    residuals = jax.tree.map(
        lambda r: key if _is_key(r) else np.full(r.shape, 0.5 if is_floating(r) else 1, r.dtype),
        jax.eval_shape(block.forward, s.params, s.x, key)[1],
    )  # of the right shapes: nothing is compiled
    names = tuple({case.name, block.name, *_names(block)})

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda a: getattr(a, "shape", None), tree)

    def judge_init(args: Sequence[Any], params: Any) -> None:
        wanted = jax.eval_shape(block.init, key, s.x)
        if len(args) > 1 and shapes(args[1]) == shapes(s.x):
            assert shapes(params) == shapes(wanted), "parameters of other shapes"

    def judge_forward(args: Sequence[Any], result: Any) -> None:
        y, _ = result
        params, x, *_ = args
        if case.id not in ("identity", "flatten", "concatenate", "item"):
            assert not any(jnp.iscomplexobj(v) for v in jax.tree.leaves(y)), "complex"
        assert _paths(params) == _paths(s.params), "other params"
        same_rank = jax.tree.map(np.ndim, x) == jax.tree.map(np.ndim, s.x)
        if case.plain is not None and not case.needs_key and same_rank:
            x = jax.tree.map(lambda v: jnp.asarray(v, float if type(v) is int else None), x)
            x = tuple(x) if isinstance(x, list) else x
            try:
                wanted = jax.eval_shape(case.plain, params, x)
            except (TypeError, ValueError):  # of mixed dtypes, say: nothing to compare with
                return
            assert jax.tree.map(np.shape, y) == jax.tree.map(np.shape, wanted), "another shape"

    def judge_backward(args: Sequence[Any], result: Any) -> None:
        params, _, dy = args
        if dy is None:  # no gradient arrives: none is computed
            return
        y = jax.eval_shape(block.forward, s.params, s.x, key)[0]
        assert _paths(params) == _paths(s.params), "other params"
        if case.id in KEEP_NOTHING:
            return
        dy = tuple(dy) if isinstance(dy, list) else dy
        if isinstance(dy, tuple) and len(dy) == len(y):  # None is zero
            y = tuple(None if d is None else v for d, v in zip(dy, y, strict=True))
        assert jax.tree.map(np.shape, dy) == jax.tree.map(np.shape, y), "dy of another shape"
        for like, d in ((s.params, result[0]), (s.x, result[1])):
            wanted, found = _shapes(like), _shapes(d)  # without those that are None
            assert found.items() <= wanted.items(), "a cotangent of another shape"

    call = functools.partial(Call, names=names)
    return [
        call(f"{case.id}.init", traced(block.init), (key, s.x), {}, judge_init),
        call(f"{case.id}.forward", traced(block.forward), (s.params, s.x, key), {}, judge_forward),
        call(f"{case.id}.backward", traced(block.backward), (s.params, residuals, s.dy), {},
             judge_backward, fixed=(1,)),
    ]  # fmt: skip


def _paths(params: Any) -> set[str]:
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """By path: an OrderedDict has an order of its own."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def _names(block: fnn.Block) -> Iterator[str]:
    yield block.name
    yield block.kind.maker
    nodes = block.graph.nodes if block.graph else ()
    for node in nodes:
        yield node.name
    for inner in (*block.kind.of, *(node.block for node in nodes)):
        yield from _names(inner)


# ---- training, and what looks at networks ------------------------------------------------------


def functions() -> list[Call]:
    net, loss, sgd = fnn.serial(a=fnn.linear(3), b=fnn.tanh()), fnn.squared_error(), fnn.sgd(0.1)
    key = jax.random.key(0)
    x, t, w = jnp.asarray(ROWS), jnp.asarray(ROWS[:, :3]), jnp.ones(3)
    params = net.init(key, x)
    gpt = fnn.models.microgpt(5)
    gpt_params = gpt.init(key, IDS)
    state, adam = sgd.init(params), fnn.adam(0.1)
    average, scaled = fnn.averaged(sgd, 0.9), fnn.loss_scaled(sgd)
    grads, order = jax.tree.map(jnp.ones_like, params), np.arange(3)
    folder = Path(tempfile.mkdtemp())
    file = folder / "net.npz"
    fnn.models.save_weights(file, params)
    torch = {"a.weight": np.ones((3, 4)), "a.bias": np.ones(3)}
    fit = functools.partial(Call, "fit", fnn.fit)

    def in_a_folder(*args: Any, **kwargs: Any) -> fnn.Fitted:
        """Whatever is named as a checkpoint is made there."""
        with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
            return fnn.fit(*args, **kwargs)

    def like(valid: Callable[[], Any]) -> Callable[[Sequence[Any], Any], None]:
        """The result has the structure, shapes and dtypes of the valid call's."""
        answer = functools.cache(valid)

        def judge(args: Sequence[Any], result: Any) -> None:
            wanted = answer()
            assert _paths(result) == _paths(wanted), "another structure"
            assert _shapes(result) == _shapes(wanted), "another shape"

        return judge

    def predicted(args: Sequence[Any], y: Any) -> None:
        assert y.shape == (*args[1].shape[:-1], 3), "another shape"

    def went_on(args: Sequence[Any], result: Any) -> None:
        assert _paths(result[0]) == _paths(params), "other parameters"

    def updated(args: Sequence[Any], result: Any) -> None:
        assert _paths(result) == _paths(args[0]), "another structure"

    def descended(args: Sequence[Any], result: Any) -> None:
        """Without parameters, sgd knows no structure but that of the gradients."""
        like = args[2] if len(args) > 2 and args[2] is not None else args[0]
        assert _paths(result[0]) == _paths(like), "another structure"

    def is_callable(args: Sequence[Any], result: Any) -> None:
        assert callable(result)

    def fitted(args: Sequence[Any], result: fnn.Fitted) -> None:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))

    def called(name: str, f: Any, args: Any, **kwargs: Any) -> Call:
        return Call(name, f, args, kwargs, like(lambda: f(*args, **kwargs)), names=NAMES)

    NAMES = ("a", "linear", "b", "tanh", "squared_error", "with_loss", "serial", "params", "sgd")
    grad = fnn.value_and_grad(net, loss)
    step, epoch = fnn.make_step(net, loss, sgd), fnn.make_epoch(net, loss, sgd, 2)
    predict = fnn.make_predict(net, 2)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    return [
        Call("value_and_grad", fnn.value_and_grad, (net, loss), {}, is_callable),
        called("value_and_grad.f", traced(grad), (params, x, t, key, w)),
        Call("as_function", fnn.as_function, (net,), {}, is_callable),
        Call("as_function.f", traced(fnn.as_function(net)), (params, x, key), {}, predicted, NAMES),
        Call("make_step", fnn.make_step, (net, loss, sgd), {"microbatches": 2, "donate": False,
             "sharding": mesh}, is_callable),
        called("make_step.step", traced(step), (params, state, x, t, key, w)),
        Call("make_epoch", fnn.make_epoch, (net, loss, sgd, 2), {"microbatches": 2,
             "sharding": mesh}, is_callable),
        Call("make_epoch.epoch", traced(epoch), (params, state, x, t, order, key, 0), {},
             went_on, NAMES),
        Call("make_predict", fnn.make_predict, (net, 2), {"sharding": mesh}, is_callable),
        Call("make_predict.predict", traced(predict), (params, x), {}, predicted, NAMES),
        fit((net, loss, np.asarray(x), np.asarray(t)),
            {"optimizer": sgd, "epochs": 1, "batch_size": 2, "microbatches": 2, "key": key,
             "params": params,
             "validation": (np.asarray(x), np.asarray(t)), "loss_at_inference": loss,
             "metrics": {"r2": fnn.r2}, "dtype": np.float32, "min_improvement": 0.5, "patience": 1,
             "steps_per_call": 1, "sharding": mesh, "diagnostics": False, "progress": False,
             "on_epoch": lambda params, state, history: None}, fitted,
            names=(*NAMES, "accuracy", "r2")),
        Call("fit", in_a_folder, (net, loss, np.asarray(x), np.asarray(t)),
             {"epochs": 1, "progress": False, "checkpoint": "run", "save_every": 1.0}, fitted,
             names=NAMES),
        Call("sgd", fnn.sgd, (0.1, 0.9), {"nesterov": False}),
        Call("adam", fnn.adam, (0.1, 0.9, 0.999, 1e-8), {}),
        Call("averaged", fnn.averaged, (sgd, 0.9), {}),
        Call("loss_scaled", fnn.loss_scaled, (sgd, 1024.0, 10), {}),
        called("sgd.init", sgd.init, (params,)),
        Call("sgd.update", sgd.update, (grads, state, params), {}, descended, NAMES),
        called("adam.update", adam.update, (grads, adam.init(params), params)),
        called("averaged.update", average.update, (grads, average.init(params), params)),
        called("loss_scaled.update", scaled.update, (grads, scaled.init(params), params)),
        called("averaged.evaluated", average.evaluated, (average.init(params), params)),
        Call("apply_updates", fnn.apply_updates, (params, grads), {}, updated),
        Call("generate", fnn.models.generate, (gpt, gpt_params, IDS, 2, key), {"temperature": 0.5}),
        Call("causal_mask", fnn.causal_mask, (4,), {"window": 2}),
        called("accuracy", fnn.accuracy, (np.asarray(ROWS), LABELS, 0.5)),
        called("r2", fnn.r2, (ROWS[0], ROWS[1])),
        Call("summary", fnn.summary, (net, x, key), {}, names=NAMES),
        Call("trace", fnn.whiteboard.trace, (net, params, x, t, loss),
             {"key": key, "check": "none"}, names=NAMES),
        Call("load_weights", fnn.models.load_weights, (file, params),
             {"names": "auto", "drop": ("b",)}, names=("net.npz",)),
        Call("save_weights", fnn.models.save_weights, (folder / "saved.npz", params), {},
             names=("saved.npz",)),
        Call("torch_names", fnn.models.torch_names, (torch,), {}),
    ]  # fmt: skip


# ---- fnn.check ---------------------------------------------------------------------------------


def checks() -> list[Call]:
    """A check of one property alone: what a wrong call comes to is decided before any other."""
    x, key = np.linspace(-1, 1, 6).reshape(2, 3), jax.random.key(0)
    params = {"b": np.ones(2), "w": np.ones((3, 2))}
    rest = tuple(name for name in fnn.check.PROPERTIES if name != "cotangents")
    options: dict[str, Any] = {
        "dtype": "float64", "seed": 0, "rtol": 1e-6, "atol": 0.0, "strict": ("kinks",),
        "skip": rest, "quick": True, "seconds": 60.0,
    }  # fmt: skip

    def forward(x: Any) -> Any:
        return 2 * x, ()

    def backward(residuals: Any, dy: Any) -> Any:
        return (2 * dy,)

    def double(x: Any) -> Any:
        return 2 * x

    def judge(args: Sequence[Any], report: Any) -> None:
        assert isinstance(report, fnn.check.Report)

    called = functools.partial(Call, judge=judge)
    small = {"between": (1.0, 1.1), "stride": 1}
    NAMES = ("linear", "identity", "double", "backward", "serial", "inputs", "params", "argnums",
             "between", "array", "squared_error")  # fmt: skip
    return [
        called("block", fnn.check.block, (fnn.linear(2), x, params), {"key": key, **options},
               names=NAMES),
        called("pair", fnn.check.pair, (forward, backward, x), {"argnums": (0,), **options},
               names=NAMES, fixed=(0, 1, 2)),
        called("function", fnn.check.function, (double, x), {"argnums": (0,), **options},
               names=NAMES, fixed=(0, 1)),
        Call("errors", traced(fnn.check.errors), (fnn.linear(2), params, x, None, key),
             names=("linear",)),
        Call("finite", fnn.check.finite, (fnn.linear(2), fnn.squared_error())),
        Call("every_float", fnn.check.every_float, (jnp.square, double, jnp.square, "bfloat16"),
             small, names=NAMES, fixed=(0, 1, 2, 3)),
        Call("mutants", fnn.check.mutants, (fnn.identity(), np.ones(2), {}, key, 0),
             names=NAMES),
    ]  # fmt: skip


# ---- fnn.curvature -----------------------------------------------------------------------------


def curvature() -> list[Call]:
    c, key = fnn.curvature, jax.random.key(0)
    net, loss = fnn.serial(a=fnn.linear(3), b=fnn.tanh()), fnn.squared_error()
    x, t, w = jnp.asarray(ROWS), jnp.asarray(ROWS[:, :3]), jnp.ones(3)
    params = net.init(key, x)
    gradient = c.gradient_of(net, loss, x, t)
    hessian, ggn = c.hvp(gradient), c.ggn_vp(net, loss, x, t)
    matvec, grads = functools.partial(hessian, params), jax.tree.map(jnp.ones_like, params)
    newton, krylov = c.newton(hessian, 0.1), c.saddle_free_newton(hessian, 0.1, 3)

    def is_callable(args: Sequence[Any], result: Any) -> None:
        assert callable(result)

    def is_square(args: Sequence[Any], result: Any) -> None:
        assert result.ndim == 2 and result.shape[0] == result.shape[1]

    def like_params(args: Sequence[Any], result: Any) -> None:
        assert _paths(result) == _paths(params)

    def updates(args: Sequence[Any], result: Any) -> None:
        like_params(args, result[0])

    names = ("a", "linear", "b", "tanh", "squared_error", "with_loss", "serial", "params", "matrix",
             "lanczos", "v", "newton", "hvp", "ggn_vp")  # fmt: skip
    call = functools.partial(Call, names=names)
    data = (net, loss, x, t, key, w)
    return [
        call("gradient_of", c.gradient_of, data, judge=is_callable),
        call("gradient_of.gradient", traced(gradient), (params,), judge=like_params),
        call("hvp", c.hvp, (gradient,), judge=is_callable),
        call("hvp.product", traced(hessian), (params, params), judge=like_params),
        call("ggn_vp", c.ggn_vp, data, judge=is_callable),
        call("ggn_vp.product", traced(ggn), (params, params), judge=like_params),
        call("matrix", traced(c.matrix), (hessian, params, 2), judge=is_square),
        call("hessian", traced(c.hessian), (gradient, params, 2), judge=is_square),
        call("ggn", traced(c.ggn), (net, loss, params, x, t, key, w, 2), judge=is_square,
             fixed=(1,)),
        call("lanczos", traced(c.lanczos), (matvec, params, 3)),
        call("spectrum", traced(c.spectrum), (matvec, params, key, 2, 3)),
        call("newton", c.newton, (hessian, 0.1, 3)),
        call("saddle_free_newton", c.saddle_free_newton, (hessian, 0.1, 3)),
        call("newton.init", newton.init, (params,)),
        call("newton.update", traced(newton.update), (grads, newton.init(params), params),
             judge=updates, fixed=(1,)),
        call("saddle_free_newton.update", traced(krylov.update),
             (grads, krylov.init(params), params), judge=updates, fixed=(1,)),
    ]  # fmt: skip


# What no table row has: records, which hold what they are given; modules.
NOT_CALLED = {
    "Block", "BlockError", "Diagnostics", "Finding", "Fitted", "Kind", "Optimizer", "Rules",
    "Source", "check", "curvature", "load_step", "models", "whiteboard",
}  # fmt: skip


@functools.cache
def calls() -> list[Call]:
    """A valid call, or several, of every public function and every function of a block."""
    rows = (case for case in CASES if not case.further)
    blocks = itertools.chain.from_iterable(map(block_calls, rows))
    return [*makers(), *blocks, *functions(), *checks(), *curvature()]


# ---- the program -------------------------------------------------------------------------------


def main(count: int, seed: int = 0) -> int:
    """Makes ``count`` calls, prints what was found by kind, and returns how many kinds."""
    rng = random.Random(seed)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_traceback_filtering", "off")
    tally: collections.Counter[str] = collections.Counter()
    finds: dict[str, tuple[int, str]] = {}
    table, slowest = calls(), (0.0, "")
    for i in range(count):
        valid = table[i % len(table)]
        call, got = wrong(valid, rng.choice)
        start = time.perf_counter()
        what = verdict(valid, call, got)
        slowest = max(slowest, (time.perf_counter() - start, str(call)))
        tally["right" if not what else "clear" if what == "clear" else "faults"] += 1
        if what not in ("", "clear"):
            kind = f"{what}  [{call.name}]"
            times, smallest = finds.get(kind, (0, str(call)))
            finds[kind] = times + 1, min(smallest, str(call), key=len)
    for kind, (times, smallest) in sorted(finds.items()):
        print(f"{times:5}  {kind}\n       {smallest[:200]}")
    print(f"slowest: {slowest[0]:.1f} s, {slowest[1][:150]}")
    print(f"{count} calls: {dict(tally)}, {len(finds)} kinds of faults")
    return len(finds)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)
