"""Troubles that people reported of other libraries, each with its source: what is right here."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

import fnn
from fnn.block import Block, BlockError
from fnn.refusals import described
from fnn.training.arrays import checked_arrays
from fnn.training.loss_scale import ScaledState
from fnn.training.optimizers import AveragedState, OptimizerState
from tests.zoo import CASES, Case, sample

KEY = jax.random.key(0)
CE = fnn.softmax_cross_entropy()
X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
T = (X[:, 0] > 0).astype(np.int32)
STEP: dict[str, Any] = {"epochs": 1, "progress": False}


class Table:
    """A column of a table of another library: what it becomes is seen only by converting it."""

    def __init__(self, values: Any) -> None:
        self.values, self.shape, self.dtype = np.asarray(values), np.shape(values), "Int64"

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


class Tensor(Table):
    """An array of another library that needs a step of its own."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("use tensor.detach()")


def masked(a: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.masked_array(a, mask=np.arange(a.size).reshape(a.shape) == 5)


# ---- data: right, or one refusal with the fix --------------------------------------------------

WIDE = T.astype(np.int64) + 2**32
FIELDS = np.zeros(20, [("a", "f4"), ("b", "f4")])
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "jax#13795": (masked(X), T, r"x is a masked array.*a.filled\(value\)"),
    "jax#13795, target": (X, masked(T), r"target is a masked array"),
    "jax#13795, a part": ((X, masked(X)), T, r"x is a masked array"),
    "objects": (X.astype(object), T, r"dtype object, needs real numbers: .*astype\(float\)"),
    "objects, target": (X, T.astype(object), r"target has dtype object.*astype\(int\) for labels"),
    "missing values of a table": (X, Table([None, *T[1:]]), "target has dtype object"),
    "sparse": (scipy.sparse.csr_matrix(X), T, r"x has dtype object.*\.toarray\(\)"),
    "sparse array": (scipy.sparse.coo_array(X), T, r"\.toarray\(\)"),
    "names": (X, T.astype(str), r"target has dtype <U11.*numpy.unique"),
    "bytes": (X, T.astype("S1"), r"numpy.unique"),
    "dates": (X.astype("M8[s]"), T, r"datetime64\[s\].*subtract a date"),
    "durations": (X.astype("m8[s]"), T, r"timedelta64\[s\].*divide by"),
    "complex": (X.astype(complex), T, "complex128, needs real numbers: .* as two features"),
    "complex target": (X, T.astype(complex), "target has dtype complex128"),
    "fields": (FIELDS, T, "structured_to_unstructured"),
    "a tensor": (
        Tensor(X),
        T,
        r"x does not become one array, needs numbers: use tensor.detach\(\)",
    ),
    "long double": (X.astype(np.longdouble), T, r"float128.*a.astype\(numpy.float64\)"),
    "lists of unequal length": ([[1.0], [1.0, 2.0]], T[:2], "x holds a list, needs arrays"),
    "a list in a tuple": ((X, X.tolist()), T, "x holds a list, needs arrays"),
    "jax#18385, label": (
        X,
        T.astype(int) + 2**32,
        "target has integers from .*, which int32 cannot hold",
    ),
    "jax#18385, unsigned": (X, T.astype(np.uint64) + np.uint64(2**63), "which uint32 cannot hold"),
    "jax#18385, ids": (
        T[:, None].astype(int) + 2**32,
        T,
        "x has integers from .* int32 cannot hold.*enable_x64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_is_refused_with_the_fix(case: str) -> None:
    x, target, message = REFUSED[case]
    with jax.enable_x64(False):
        for options in ({}, {"validation": (x, target)}):
            data = (X, T) if options else (x, target)
            with pytest.raises((ValueError, TypeError), match=message):
                fnn.fit(fnn.linear(2), CE, *data, **STEP, **options)
        if "#" in case and "part" not in case:  # one example after another, of which some are bad
            with pytest.raises(ValueError, match=message.split(" ", 1)[1]):
                fnn.fit(fnn.linear(2), CE, list(zip(x, target, strict=True)), **STEP)


LABELS: dict[str, Callable[[np.ndarray], Any]] = {
    **{d: lambda t, d=d: t.astype(d) for d in ("int8", "uint8", "int16", "int64", "uint64")},
    "a table": Table,
    "nothing is masked": lambda t: np.ma.masked_array(t, mask=False),
    "JAX": jnp.asarray,
    "memory": lambda t: np.array(t)[::1].view(np.memmap),
    "big endian": lambda t: t.astype(">i4"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_are_the_same_labels(kind: str) -> None:
    labels = LABELS[kind](T)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            x, target = checked_arrays("x", X, labels, None)
        np.testing.assert_array_equal(target, T)
        assert target.dtype == jax.dtypes.canonicalize_dtype(target.dtype) and x is X
        assert target.dtype.isnative  # JAX has no others


def test_examples_of_a_source_may_have_integers_of_several_widths() -> None:
    """They are read in a thread of their own, in which x64 is not switched on."""
    wide = [np.uint8, np.int64, np.uint64, int, np.int32]
    pairs = [(x, wide[i % 5](t)) for i, (x, t) in enumerate(zip(X, T, strict=True))]
    got, expected = (fnn.fit(fnn.linear(2), CE, *data, **STEP) for data in ((pairs,), (X, T)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b), got.params, expected.params)


def test_wide_ids_are_exact_where_jax_has_them() -> None:
    """jax#18385: an id that int32 cannot hold has no row, and is not another one's."""
    ids, net = np.array([2**32 + 1]), fnn.embedding(5, 1)
    assert np.isnan(net.forward({"w": np.ones((5, 1))}, ids)[0]).all()
    with pytest.raises(BlockError, match="ids go from 4294967297 to 4294967297, and the vocabula"):
        fnn.fit(net, fnn.squared_error(), ids, np.zeros((1, 1)), **STEP)


SERIES = np.arange(64).reshape(16, 4)


@pytest.mark.parametrize("kind", ["arrays", "a source", "two inputs"])
def test_ids_without_a_row_are_named_before_training(kind: str) -> None:
    net = fnn.serial(fnn.serial(ids=fnn.freeze(fnn.embedding(5, 3))), fnn.flatten(), fnn.linear(2))
    data: Any = (SERIES, SERIES[:, 0] % 2)
    where = r"0_serial/ids \(embedding\): x"
    if kind == "a source":
        data, where = (list(zip(*data, strict=True)),), f"{where} of example 15"
    elif kind == "two inputs":
        net = fnn.graph(("ids", "a"), [("e", net, "ids"), ("f", fnn.add(), ("e", "a"))], "f")
        data, where = ((SERIES, np.zeros((16, 2), np.float32)), data[1]), "e/0_serial/ids"
    with pytest.raises(BlockError, match=rf"^{where}.*: ids go from \d+ to 63, and the vocabula"):
        fnn.fit(net, CE, *data, **STEP)


def test_one_example_to_predict() -> None:
    net = fnn.serial(fnn.conv(2, 3), fnn.flatten(), fnn.linear(2))
    x = np.zeros((4, 8, 8, 1), np.float32)
    fitted = fnn.fit(net, CE, x, np.arange(4) % 2, **STEP)
    assert fitted.predict(x[:1]).shape == (1, 2)
    with pytest.raises(ValueError, match=r"shape of one example, \(8, 8, 1\), needs .*: x\[None\]"):
        fitted.predict(x[0])
    with pytest.raises(BlockError, match="conv"):
        fitted.predict(x[0, 0])


# ---- metrics -----------------------------------------------------------------------------------

LOGITS = np.array([[5.0, 1, 2], [1, 4, 3], [1, 4, 3], [0, 0, 0]])
ROWS = np.eye(3)
RIGHT: dict[str, tuple[Any, Any, dict[str, Any], float]] = {
    "labels": (LOGITS, [0, 1, 2, 0], {}, 0.75),
    "labels, uint64": (LOGITS, np.array([0, 1, 2, 0], np.uint64), {}, 0.75),
    "labels, whole floats": (LOGITS, [0.0, 1.0, 2.0, 0.0], {}, 0.75),
    "labels, bool": (LOGITS[:, :2], [False, True, True, True], {}, 0.75),
    "sequences": (LOGITS[None], [[0, 1, 2, 0]], {}, 0.75),
    "one example": (LOGITS[0], 0, {}, 1.0),
    "classes against classes": ([0, 1, 2], [0, 2, 1], {}, 1 / 3),
    "bool against bool": ([True, False], [True, True], {}, 0.5),
    "binary logits": ([-2.0, 3.0, 0.2], [0, 1, 0], {}, 2 / 3),
    "binary logits, a column": ([[-2.0], [3.0], [0.2]], [[0], [1], [0]], {}, 2 / 3),
    "binary logits, JAX": (jnp.array([-2.0, 3.0, 0.2]), jnp.array([0, 1, 0]), {}, 2 / 3),
    "probabilities": ([0.2, 0.7, 0.4], [0, 1, 0], {"threshold": 0.5}, 1.0),
    "answers": ([[-1.0, 2.0], [-1.0, 2.0]], [[0, 1], [1, 1]], {}, 0.75),
    "answers that are rows": ([[-1.0, 2.0]], [[0, 1]], {"threshold": 0}, 1.0),
    "NaN is no class": (np.full((4, 3), np.nan), [0, 0, 1, 2], {}, 0.0),
    "one NaN": ([[np.nan, 1.0], [0.0, 1.0]], [1, 1], {}, 0.5),
    "NaN is no answer": ([np.nan, np.nan, 1.0], [0, 1, 1], {}, 1 / 3),
}


@pytest.mark.parametrize("case", RIGHT)
def test_accuracy(case: str) -> None:
    prediction, target, options, expected = RIGHT[case]
    assert fnn.accuracy(prediction, target, **options) == pytest.approx(expected, abs=1e-15)


WRONG: dict[str, tuple[Any, Any, str]] = {
    "mxnet#9582": (LOGITS[:2], ROWS[:2], r"every row of target sums to 1; .*target.argmax\(-1\)"),
    "mxnet#9582, all wrong": (np.full((2, 10), -1.0), np.eye(10)[:2], r"target.argmax\(-1\)"),
    "probability rows": (LOGITS[:3], np.full((3, 3), 1 / 3), r"target.argmax\(-1\)"),
    "one-hot classes": (np.eye(3, dtype=int), np.eye(3, dtype=int)[::-1], r"target.argmax\(-1\)"),
    "a column of logits": ([[2.0], [3.0]], [0, 1], r"one column.*prediction\[..., 0\]"),
    "a column of labels": (LOGITS, [[0], [1], [2], [0]], r"shape \(4, 3\) and target \(4, 1\)"),
    "a column of answers": ([2.0, 3.0], [[0], [1]], r"shape \(2,\) and target \(2, 1\)"),
    "labels from 1": (LOGITS, [1, 2, 3, 1], "labels from 1 to 3, needs whole numbers from 0 to 2"),
    "jax#18385": (LOGITS, np.array([0, 1, 2, 2**32]), "labels from 0 to 4294967296"),
    "a label to ignore": (LOGITS, [0, 1, 2, -100], "labels from -100 to 2"),
    "fractions": (LOGITS, [0.0, 1.5, 2.0, 0.0], "whole numbers from 0 to 2"),
    "NaN labels": (LOGITS, [0.0, np.nan, 2.0, 0.0], "whole numbers from 0 to 2"),
    "signs": ([2.0, -3.0], [1, -1], r"targets need to be 0 or 1; they go from -1 to 1"),
    "float classes": ([0.0, 1.0, 2.0], [0, 1, 2], "targets need to be 0 or 1"),
    "integer logits": ([-2, 3], [0, 1], "prediction has labels from -2 to 3"),
    "no examples": (np.zeros((0, 3)), np.zeros(0, int), "there are no predictions"),
    "jax#13795": (LOGITS, np.ma.masked_array([0, 1, 2, 0], mask=[0, 0, 0, 1]), "masked array"),
    "jax#13795, in a list": (LOGITS, [0, 1, 2, np.ma.masked], "masked array"),
    "objects": (LOGITS, np.array([0, 1, 2, None]), "dtype object, needs real numbers"),
    "lists of unequal length": (
        [[1.0], [1.0, 2.0]],
        [0, 1],
        "does not become one array, needs numbers",
    ),
    "names": (LOGITS, list("abca"), "numpy.unique"),
    "complex": (LOGITS + 1j, [0, 1, 2, 0], "complex128, needs real numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_accuracy_refuses_what_it_would_have_to_guess(case: str) -> None:
    prediction, target, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=message):
        fnn.accuracy(prediction, target)


def test_probabilities_without_a_threshold_are_said() -> None:
    with pytest.warns(UserWarning, match=r"give threshold=0.5 if they are probabilities"):
        fnn.accuracy([0.2, 0.7], [0, 1])


COLUMNS = np.random.default_rng(1).normal(size=(9, 3))
R2: dict[str, tuple[Any, Any]] = {
    "evaluate#803, exact": ([5.0, 5.0], [5.0, 5.0]),
    "evaluate#803, not exact": ([1.0, 2.0], [5.0, 5.0]),
    "a constant that is rounded": ([0.1, 0.1, 0.2], [0.1, 0.1, 0.1]),
    "a line": ([1.0, 2.0, 2.5], [1.0, 2.0, 3.0]),
    "outputs": (COLUMNS + 0.3 * COLUMNS[::-1], COLUMNS),
    "outputs, one constant": (COLUMNS, COLUMNS * [1, 0, 2]),
    "integers": (np.array([1, 2, 3], np.uint8), np.array([3, 2, 1], np.uint8)),
    "float16": (np.array([6e4, 5e4], np.float16), np.array([5e4, 6e4], np.float16)),
}


@pytest.mark.parametrize("case", R2)
def test_r2_is_that_of_scikit_learn(case: str) -> None:
    from sklearn.metrics import r2_score

    prediction, target = R2[case]
    expected = 0.0 if "rounded" in case else r2_score(np.array(target, float), prediction)
    assert fnn.r2(prediction, target) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_r2_refuses_what_would_broadcast_and_is_nan_where_it_has_no_value() -> None:
    for prediction, target in (([1.0, 2.0], [[1.0], [2.0]]), (1.0, 1.0)):
        with pytest.raises(ValueError, match="needs one shape with a first axis of examples"):
            fnn.r2(prediction, target)
    with pytest.raises(ValueError, match="there are no predictions"):
        fnn.r2([], [])
    with pytest.raises(ValueError, match="masked array"):
        fnn.r2([1.0, 2.0], masked(np.zeros(7))[4:6])
    assert np.isnan(fnn.r2([1.0], [1.0]))
    assert np.isnan(fnn.r2([np.nan, 5.0], [5.0, 5.0])) and np.isnan(fnn.r2([1, np.nan], [1, 2]))


@pytest.mark.parametrize("value", [None, np.zeros(3), "0.5 of them"])
def test_a_metric_returns_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"metrics: 'mine' returned .* needs to return one number"):
        fnn.fit(fnn.linear(2), CE, X, T, validation=(X, T), metrics={"mine": lambda y, t: value},
                **STEP)  # fmt: skip


def test_a_metric_that_raises_does_so_before_training() -> None:
    def mine(prediction: Any, target: Any) -> float:
        raise KeyError("classes")

    words = r"metrics: 'mine' raises KeyError for .*float32 of shape .*int.* of shape .*'classes'"
    with pytest.raises(ValueError, match=words):
        fnn.fit(fnn.linear(2), CE, X, T, validation=(X, T), metrics={"mine": mine},
                on_epoch=lambda *_: pytest.fail("trained"), **STEP)  # fmt: skip


HALF_SQUARES = Block(  # of whatever the network returns
    lambda key, x: {},
    lambda params, x, key=None: (sum(jnp.sum(y * y) / 2 for y in jax.tree.leaves(x[0])), x[0]),
    lambda params, y, dy: ({}, (jax.tree.map(lambda v: v * dy, y), None)),
)


# ---- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch_size"), [(129, 128), (130, 128), (129, 64)])
def test_a_small_last_batch_does_not_spoil_running_statistics(n: int, batch_size: int) -> None:
    """pytorch#7716: the variance of one example is 0."""
    x = 2 + 5 * np.random.default_rng(0).normal(size=(n, 4))
    net = fnn.serial(bn=fnn.batch_norm(), out=fnn.linear(1))
    fitted = fnn.fit(net, fnn.squared_error(), x, x[:, :1], epochs=60, batch_size=batch_size,
                     optimizer=fnn.sgd(1e-3), progress=False)  # fmt: skip
    statistics = fitted.params["bn"]["statistics"]
    np.testing.assert_allclose(statistics["var"], x.var(0), rtol=0.03)
    np.testing.assert_allclose(statistics["mean"], x.mean(0), rtol=0.05)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "netket#908": lambda step: 0.1 if step < 2 else 0.01,
    "NumPy": lambda step: 0.1 * np.cos(step),
    "an index": lambda step: [0.1, 0.01, 0.001][step],
    "float": lambda step: 0.1 / float(step + 1),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "fnn.adam": fnn.adam, "optax.sgd": optax.sgd, "optax.adam": optax.adam,
    "fnn.averaged": lambda schedule: fnn.averaged(fnn.sgd(schedule), 0.9),
}  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [*(("fnn.sgd", s) for s in SCHEDULES), *((o, "netket#908") for o in OPTIMIZERS)],
)
def test_a_schedule_that_cannot_be_traced_is_named(optimizer: str, schedule: str) -> None:
    made = OPTIMIZERS.get(optimizer, fnn.sgd)(SCHEDULES[schedule])
    library, name = optimizer.split(".")
    name = "the optimizer" if library == "optax" else "sgd" if name == "averaged" else name
    message = rf"^{name}.* cannot be compiled.*jnp\.where\(step"
    net, loss = fnn.linear(1), fnn.squared_error()
    with jax.numpy_dtype_promotion("standard"):  # Optax's
        with pytest.raises(TypeError, match=message):
            fnn.fit(net, loss, X, X[:, :1], optimizer=made, **STEP)
        params = net.init(KEY, X)
        with pytest.raises(TypeError, match=message):
            fnn.make_step(net, loss, made)(params, made.init(params), X, X[:, :1])


@pytest.mark.parametrize("rate", [np.ones(2), "a", None, 1j, jnp.cos], ids=described)
def test_a_schedule_gives_one_number(rate: Any) -> None:
    optimizer = fnn.sgd(lambda step: rate)
    words = rf"sgd: learning_rate is {re.escape(described(rate))}, needs one number"
    with pytest.raises(ValueError, match=words):
        fnn.fit(fnn.linear(2), CE, X, T, optimizer=optimizer, **STEP)


def test_init_returns_no_array_twice() -> None:
    """optax PR#1059: a step is given the memory of the parameters, of each once."""
    for case in CASES:
        if case.further and "batch_norm" not in case.id:
            continue
        x = sample(case).x
        leaves = jax.tree.leaves(case.make().init(KEY, x))
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size}) == sum(
            leaf.size > 0 for leaf in leaves
        ), case.id


def test_a_donated_step_takes_the_same_array_twice() -> None:
    """optax PR#1059: the state of optax.lbfgs holds the parameters themselves at first, as here."""

    def update(grads: Any, state: Any, params: Any) -> Any:
        return jax.tree.map(lambda g: -0.1 * g, grads), params

    optimizer, net = fnn.Optimizer(lambda params: params, update), fnn.batch_norm()
    params = net.init(KEY, X)
    params["scale"] = params["statistics"]["var"]
    expected, *_ = fnn.make_step(net, HALF_SQUARES, optimizer)(params, params, X, T)
    donating = fnn.make_step(net, HALF_SQUARES, optimizer, donate=True)
    new, *_ = donating(params, optimizer.init(params), X, T)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, expected)
    assert params["bias"].is_deleted()


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if not c.further], ids=lambda case: case.id)
def test_donated_steps_work_with_every_block(case: Case) -> None:
    """optax PR#1059: also in a jit of one's own."""
    block, (_, x, key, _), optimizer = case.make(), sample(case), fnn.adam(0.1)
    params = block.init(KEY, x)
    step = fnn.make_step(block, HALF_SQUARES, optimizer, donate=True)
    data = (x, jnp.zeros(1), key)
    params, state, _ = step(params, optimizer.init(params), *data)
    params, state, _ = step(params, state, *data)
    new = block.init(KEY, x)
    jax.jit(fnn.make_step(block, HALF_SQUARES, optimizer), donate_argnums=(0, 1))(new, state, *data)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(new) if leaf.size)


# ---- JAX's settings and tools ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax#5698", "BrainPy#605"])
def test_fit_under_debug_nans_and_without_jit(name: str) -> None:
    """Nothing stops where all numbers are finite; the parameters are the same."""
    net = fnn.serial(a=fnn.linear(3), r=fnn.relu(), n=fnn.batch_norm(), d=fnn.dropout(0.2),
                     b=fnn.linear(2))  # fmt: skip
    settings = {"jax#5698": lambda: jax.debug_nans(True), "BrainPy#605": jax.disable_jit}
    options = STEP | {"batch_size": 12, "validation": (X, T), "metrics": {"a": fnn.accuracy}}
    expected = fnn.fit(net, CE, X, T, **options)
    with settings[name]():
        got = fnn.fit(net, CE, X, T, **options, diagnostics=name == "jax#5698")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got.params,
                 expected.params)  # fmt: skip
    assert got.history[0]["validation_loss"] == pytest.approx(
        expected.history[0]["validation_loss"]
    )


@pytest.mark.parametrize("state", [OptimizerState, AveragedState, ScaledState])
def test_optimizer_states_are_registered_with_jax_export(state: type) -> None:
    """So that a program that takes one can be written to a file (for which flatbuffers is needed).

    JAX refuses a second registration.
    """
    with pytest.raises(ValueError, match="Duplicate"):
        jax.export.register_namedtuple_serialization(state, serialized_name="another")


STATES: dict[str, Any] = {
    "adamw": lambda: optax.adamw(0.1),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(0.1), "s": optax.sgd(0.1)}, {"w": "a", "b": "s"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9),
    "masked": lambda: optax.masked(optax.adam(0.1), {"w": True, "b": False}),
}


@jax.numpy_dtype_promotion("standard")  # which Optax needs
@pytest.mark.parametrize("make", [pytest.param(f, id=name) for name, f in STATES.items()])
def test_a_step_registers_the_states_of_optax(make: Callable[[], Any]) -> None:
    """With jax.export, by their names, and once: optax's states are written and read back."""
    optimizer, net = make(), fnn.linear(2)
    params = net.init(KEY, X)
    state = optimizer.init(params)
    step, again = (fnn.make_step(net, CE, optimizer) for _ in range(2))
    jax.jit(step).trace(params, state, X, T)
    jax.jit(again).trace(params, state, X, T)  # where all are known
    kinds = set()

    def note(node: Any) -> bool:
        if hasattr(node, "_fields"):
            kinds.add(type(node))
        return False

    jax.tree.leaves(state, is_leaf=note)
    assert kinds
    for kind in kinds:
        with pytest.raises(ValueError, match=f"{kind.__module__}.{kind.__qualname__}"):
            jax.export.register_namedtuple_serialization(kind, serialized_name="another")
    if importlib.util.find_spec("flatbuffers"):
        program = jax.export.export(jax.jit(step))(params, state, X, T)
        read = jax.export.deserialize(program.serialize())
        got, expected = (run(params, state, X, T) for run in (read.call, step))
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@jax.numpy_dtype_promotion("standard")
def test_a_step_that_is_run_registers_nothing() -> None:
    """So that a program which registers the states itself can do so after it has trained."""

    class State(NamedTuple):
        count: jax.Array

    optimizer = fnn.Optimizer(
        lambda params: State(jnp.zeros(())), lambda grads, state, params=None: (grads, state)
    )
    net = fnn.linear(2)
    step, params = fnn.make_step(net, CE, optimizer), net.init(KEY, X)
    step(params, optimizer.init(params), X, T)
    fnn.fit(net, CE, X, T, optimizer=optimizer, epochs=1, progress=False)
    jax.export.register_namedtuple_serialization(State, serialized_name="own")


READER = """
import pickle, sys, jax, fnn
step = fnn.load_step(sys.argv[1])
arguments = jax.tree.unflatten(step.in_tree, pickle.load(open(sys.argv[2], "rb")))[0]
pickle.dump(jax.device_get(jax.tree.leaves(step.call(*arguments))), open(sys.argv[2], "wb"))
"""


@pytest.mark.slow
@jax.numpy_dtype_promotion("standard")
@pytest.mark.skipif(not importlib.util.find_spec("flatbuffers"), reason="JAX writes with it")
def test_another_process_reads_a_step(tmp_path: Path) -> None:
    optimizer, net = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), fnn.linear(2)
    step, params = fnn.make_step(net, CE, optimizer), net.init(KEY, X)
    arguments = params, optimizer.init(params), X, T
    file, leaves = tmp_path / "step", tmp_path / "leaves"
    file.write_bytes(jax.export.export(step)(*arguments).serialize())  # type: ignore[arg-type]
    leaves.write_bytes(pickle.dumps(jax.device_get(jax.tree.leaves(arguments))))
    subprocess.run([sys.executable, "-c", READER, file, leaves], check=True)
    expected = jax.tree.leaves(step(*arguments))
    jax.tree.map(np.testing.assert_array_equal, pickle.loads(leaves.read_bytes()), expected)
    for wrong in (b"a text", file.read_bytes()[:999]):
        with pytest.raises(ValueError, match="load_step: what was given is not a whole program"):
            fnn.load_step(wrong)
    with pytest.raises(TypeError, match="load_step: file is None, needs a path"):
        fnn.load_step(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("donate", [False, True])
def test_a_step_is_exported(donate: bool) -> None:
    net, optimizer = fnn.linear(2), fnn.averaged(fnn.adam(0.1), 0.9)
    step, params = fnn.make_step(net, CE, optimizer, donate=donate), net.init(KEY, X)
    arguments = (params, optimizer.init(params), X, T)
    program = jax.export.export(step)(*arguments)  # type: ignore[arg-type]
    got, expected = program.call(*jax.tree.map(jnp.copy, arguments)), step(*arguments)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
