"""Rules of rare kinds, wrong in rare ways: each runs the one property that has something to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.check import CheckError, Report, transformations
from fnn.check.report import OutOfTime, Result
from fnn.check.subject import Subject
from tests.slow import one_of

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 2))
LABELS = np.array([0, 2, 1, 0])
ALL = frozenset(fnn.check.PROPERTIES)


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def only(name: str, **options: Any) -> dict[str, Any]:
    return {"skip": tuple(ALL - {"cotangents", name}), "timed": False} | options


def pair(forward: Any, backward: Any, *x: Any) -> Callable[..., Report]:
    return lambda **options: fnn.check.pair(forward, backward, *x, **options)


def block(forward: Any, backward: Any, x: Any, params: Any = None) -> Callable[..., Report]:
    """A block of functions of (params, x) and (params, residuals, dy)."""
    rule = fnn.Block(
        lambda key, x: {} if params is None else params,
        lambda params, x, key=None: forward(params, x),
        backward,
    )
    return lambda **options: fnn.check.block(rule, x, **options)


def function(f: Any, *x: Any, **own: Any) -> Callable[..., Report]:
    return lambda **options: fnn.check.function(f, *x, **(own | options))


def custom(f: Any, backward: Any) -> Any:
    rule = jax.custom_vjp(f)
    rule.defvjp(lambda *x: (f(*x), x), backward)
    return rule


def softmax(x: Any) -> Any:
    return (y := jax.nn.softmax(x)), y


def sum_of(rows: Any) -> Any:
    return jnp.sum(rows, -1, keepdims=True)


def sine(x: Any) -> Any:
    return jnp.sin(x), x


def cosine(x: Any, dy: Any) -> Any:
    return (dy * jnp.cos(x),)


def unless(refused: Callable[[Any], bool]) -> Any:
    """The derivative of the sine, raising where ``refused(x)``."""

    def backward(x: Any, dy: Any) -> Any:
        if refused(x):
            raise RuntimeError("no tile of that size")
        return cosine(x, dy)

    return backward


def on_the_host(f: Callable[[np.ndarray], np.ndarray], x: Any) -> Any:
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(f, like, x, vmap_method="sequential")


def root_up_to_four(x: np.ndarray) -> np.ndarray:
    if np.any(x > 4):
        raise ValueError("beyond the table")
    return np.sqrt(x)


def noisy(x: Any, dy: Any) -> Any:
    noise = on_the_host(lambda v: np.random.default_rng().normal(size=v.shape), x)
    return (dy * jnp.cos(x) + noise,)


def plus_its_sum(x: Any) -> Any:
    """x, but with the derivative of x + sum(x)."""
    total = jnp.sum(x)
    return x + total - jax.lax.stop_gradient(total)


own_relu = custom(lambda x: jnp.maximum(x, 0), lambda x, dy: (jnp.where(x[0] > 0, dy, 0),))


def hidden_relu(x: Any) -> Any:
    """Where fnn.check does not take the custom rule out."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    along = jax.sharding.PartitionSpec("i")
    return jax.shard_map(own_relu, mesh=mesh, in_specs=along, out_specs=along)(x)


def host_relu(x: Any) -> Any:
    """Which JAX cannot differentiate."""
    return on_the_host(lambda v: np.maximum(v, 0), x)


def of_sum(x: Any, dy: Any) -> Any:
    return (dy + jnp.sum(dy),)


def of_sum_custom(x: Any, dy: Any) -> Any:
    return of_sum(x, jnp.where(x > 0, dy, 0))


def product(x: Any, w: Any) -> Any:
    return x @ w, (x, w)


def of_product(kept: Any, dy: Any) -> Any:
    x, w = kept
    return dy @ w.T, x.T @ dy


def with_rows_of_w(kept: Any, dy: Any) -> Any:
    """Right for a batch of 4; one axis too many for any other."""
    dx, dw = of_product(kept, dy)
    return dx, dw if len(dx) == 4 else dw[None]


def half_None(x: Any, dy: Any) -> Any:
    return (dy * jnp.cos(x) if len(x) == 4 else None,)


def with_index(x: Any) -> Any:
    return (jnp.sin(x), jnp.argmax(x, 1)), x


def of_first(x: Any, dy: Any) -> Any:
    return cosine(x, dy[0])


def tall(x: Any, w: Any) -> Any:
    return x @ w + host_relu(x[:, :1]), (x, w)


def float_for_labels(kept: Any, dy: Any) -> Any:
    return dy * jnp.cos(kept), jnp.zeros(4)


def gradient_of_cosh(x: Any) -> Any:
    return jnp.sum(jnp.cosh(x))


def doubled_below(x: Any, dy: Any) -> Any:
    return (dy * jnp.cos(x) * jnp.where(dy.dtype == jnp.float64, 1, jnp.nan),)


def long_sum(x: Any, b: Any) -> Any:
    return x + b[None], None


def rounded_sums(_: Any, dy: Any) -> Any:
    """A running sum in the dtype of dy."""
    zero = jnp.zeros_like(dy[0])
    total = jax.lax.scan(lambda s, row: (s + row, None), zero, dy)[0]
    return dy, total


def lost_tail(kept: Any, dy: Any) -> Any:
    return (dy * (1 - jnp.exp(-jax.nn.softplus(kept[0]))),)


def branches(x: Any) -> Any:
    return jax.lax.cond(jnp.sum(x) > 0, jax.nn.relu, jnp.tanh, x)


twisted = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 1.0]])
SYMMETRIC = X.T @ X + np.eye(3)


@jax.tree_util.register_dataclass
@dataclass
class Weights:
    w: Any


class Case(NamedTuple):
    """``check(**options)`` runs ``property``, which has the status and says the words."""

    check: Callable[..., Report]
    property: str
    status: str
    words: str
    options: dict[str, Any] = {}  # noqa: RUF012


CASES: dict[str, Case] = {
    # ---- structure
    "nested otherwise": Case(
        pair(lambda x, y: (x * y, (x, y)), lambda kept, dy: (dy * kept[1], (dy * kept[0],)), X, X),
        "cotangents", "WRONG", "x/1: the cotangent is a tuple of 1, needs one array",
    ),
    "one of two": Case(
        pair(lambda x: (x[0] * x[1], x), lambda x, dy: ((dy * x[1],),), (X, X)),
        "cotangents", "WRONG", "x/0: the cotangent is a tuple of 1, needs a tuple of 2",
    ),
    "an array for an object": Case(
        pair(lambda m: (m.w * 2, None), lambda _, dy: (2 * dy,), Weights(X)),
        "cotangents", "WRONG", "x/0: the cotangent is one array, needs a Weights",
    ),
    "an array for a dict": Case(
        block(lambda _, x: (x["a"] + x["b"], None), lambda p, _, dy: ({}, dy), {"a": X, "b": X}),
        "cotangents", "WRONG", "the cotangent is one array, needs a dict of ['a', 'b']",
    ),
    "a cotangent for labels": Case(
        pair(lambda x, labels: sine(x), float_for_labels, X, LABELS),
        "cotangents", "WRONG", "is an integer: its cotangent needs to be None, got float",
    ),
    "another dtype": Case(
        pair(sine, lambda x, dy: (cosine(x, dy)[0].astype(jnp.float32),), X),
        "cotangents", "WRONG", "has dtype float32, needs float64",
    ),
    "another shape, without autodiff": Case(
        pair(tall, lambda kept, dy: (kept[0], jnp.zeros((1, 3, 2))), X, W),
        "cotangents", "WRONG", "has shape (1, 3, 2), needs (3, 2)",
    ),
    # ---- autodiff and differences
    "y that overflows far off": Case(
        pair(lambda x: (jnp.exp(x), x), lambda x, dy: (dy * jnp.exp(x),), np.array([40.0, 1.0])),
        "autodiff", "right", "error",
    ),
    "wrong, without autodiff": Case(
        function(custom(host_relu, lambda x, dy: (dy * x[0],)), X), "differences", "WRONG",
        "worst at",
    ),
    "a custom rule out of sight": Case(
        pair(lambda x: (hidden_relu(x), x), of_sum_custom, X), "autodiff", "skipped",
        "forward has a custom_vjp_call inside, which autodiff would use",
    ),
    "infinity in, NaN out, at an infinite y": Case(
        pair(lambda x: (jnp.exp(x) * x, x), lambda x, dy: (dy * jnp.exp(x) * (1 + x) * x / x,),
             np.array([np.inf, 1.0, 2.0])),
        "autodiff", "right", "error",
    ),
    "a branch with a custom rule": Case(
        function(custom(branches, lambda x, dy: jax.vjp(branches, *x)[1](dy)), X),
        "autodiff", "right", "error",
    ),
    "no floating output": Case(
        pair(lambda x: (x[:0], x), lambda x, dy: (jnp.zeros_like(x),), X),
        "differences", "skipped", "nothing to differentiate",
    ),
    "steep beyond any step": Case(
        pair(lambda x: (jnp.sin(1e14 * x), x), lambda x, dy: (1e14 * dy * jnp.cos(1e14 * x),), X),
        "differences", "skipped", "nothing converged",
    ),
    "frozen": Case(
        pair(product, lambda kept, dy: (dy @ kept[1].T, None), X, W), "differences", "right",
        "whole Jacobian",
    ),
    "frozen, and large": Case(
        pair(product, lambda kept, dy: (dy @ kept[1].T, None), shape(40, 30), shape(30, 2)),
        "differences", "right", "directions",
    ),
    "raises far off": Case(
        pair(lambda x: (on_the_host(root_up_to_four, x), x),
             lambda x, dy: (dy / (2 * jnp.sqrt(x)),), np.array([0.3, 1.0, 1.3])),
        "differences", "right", "whole Jacobian",
    ),
    "a matrix that stays symmetric": Case(
        pair(lambda a: (jnp.linalg.slogdet(a)[1], a),
             lambda a, dy: (dy * jnp.linalg.inv(a).T,), SYMMETRIC),
        "differences", "right", "whole Jacobian",
    ),
    "not what it declares": Case(
        function(custom(jnp.sin, lambda x, dy: (2 * dy * jnp.cos(x[0]),)), X,
                 declared=lambda x, dy: dy * jnp.cos(x) ** 2),
        "autodiff", "WRONG", "against the declared cotangents",
    ),
    "wrong in many numbers": Case(
        pair(sine, lambda x, dy: (dy * jnp.cos(x) ** 2,), shape(300, 300)), "autodiff", "WRONG",
        "is wrong, by",
    ),
    # ---- linearity
    "other numbers on each call": Case(
        pair(sine, noisy, X), "linear", "WRONG", "differs on a second call",
    ),
    "cut off": Case(
        pair(sine, lambda x, dy: (jnp.clip(dy * jnp.cos(x), -0.1, 0.1),), X),
        "linear", "WRONG", "it seems cut off (between -0.1 and 0.1)",
    ),
    # ---- the batch
    "not for half a batch": Case(
        pair(sine, unless(lambda x: len(x) == 2), X), "microbatches", "skipped",
        "backward raises for half a batch",
    ),
    "not for half a batch, said once": Case(
        pair(sine, unless(lambda x: len(x) == 2), X), "batch sizes", "WRONG",
        "raises for a batch of 2: RuntimeError",
    ),
    "not for one example": Case(
        pair(sine, unless(lambda x: len(x) == 1), X), "batch sizes", "WRONG",
        "raises for a batch of 1: RuntimeError",
    ),
    "an axis too many for other batches": Case(
        pair(product, with_rows_of_w, X, W), "batch sizes", "WRONG", "for a batch of 1, needs (3,",
    ),
    "an axis too many for half a batch": Case(
        pair(product, with_rows_of_w, X, W), "microbatches", "WRONG", "shapes (3, 2) and (1, 3, 2)",
    ),
    "None for half a batch": Case(
        pair(sine, half_None, X), "microbatches", "WRONG", "None in one of the two",
    ),
    "an infinite y": Case(
        pair(lambda x: (jnp.log(x), x), lambda x, dy: (dy / x,), np.array([[0.0], [1.0], [2.0]])),
        "microbatches", "skipped", "y is not finite",
    ),
    "the value of halves, not their gradient": Case(
        pair(lambda x: (plus_its_sum(x), x), of_sum, X), "microbatches", "skipped",
        "the gradients of a batch's halves are not its own",
    ),
    "the same, beside a frozen weight": Case(
        pair(lambda x, b: (plus_its_sum(x) + b[None], x),
             lambda x, dy: (*of_sum(x, dy), None), X, X[0]),
        "microbatches", "skipped", "the gradients of a batch's halves are not its own",
    ),
    "the same, without autodiff": Case(
        pair(lambda x: (host_relu(x), x), of_sum_custom, X), "microbatches", "WRONG",
        "is not that of its halves",
    ),
    "an integer output": Case(
        pair(with_index, of_first, X), "vmap", "right", "largest difference",
    ),
    "an integer output of a batch": Case(
        pair(with_index, of_first, X), "microbatches", "skipped", "not separate",
    ),
    "a tiny number beside a large one": Case(
        pair(lambda a, b: (a / b, (a, b)),
             lambda kept, dy: (dy / kept[1], -dy * (kept[0] / kept[1]) / kept[1]),
             np.array([1e-200, 1.0]), np.array([1e-200, 3.0])),
        "differences", "right", "whole Jacobian",
    ),
    # ---- second order
    "a gradient that cannot be differentiated forward": Case(
        block(lambda p, x: sine(x), lambda p, x, dy: ({}, custom(jnp.cos, lambda k, d: (
            -d * jnp.sin(k[0]),))(x) * dy), X),
        "second order", "WRONG", "jax.jvp through it raises",
    ),
    "a field that is no gradient": Case(
        block(lambda p, x: (jnp.sum(x**2), x), lambda p, x, dy: ({}, dy * x @ twisted), X[0]),
        "second order", "WRONG", "the Hessian is not symmetric",
    ),
    "one that loses its own": Case(
        pair(softmax, lambda y, dy: jax.lax.stop_gradient(y) * (dy - sum_of(y * dy)), X),
        "second order", "WRONG", "jax.jvp through backward",
    ),
    "of a confident softmax, which is less than the rounding of dy": Case(
        pair(softmax, lambda y, dy: y * (dy - sum_of(y * dy)),
             np.array([[700.0, 0.0, -700.0], [50.0, 0.0, 0.0]])),
        "second order", "right", "error",
    ),
    "beside a large offset": Case(
        function(jax.nn.standardize, 1e3 + X), "second order", "right", "error",
    ),
    "a declared gradient": Case(
        function(jnp.sin, X, declared=lambda x, dy: dy), "second order", "skipped", "declared",
    ),
    # ---- notes
    "a transposed weight is kept": Case(
        block(lambda p, x: (x @ p["w"], (x, p["w"].T, p["w"])),
              lambda p, kept, dy: ({"w": kept[0].T @ dy}, dy @ kept[1] + 0 * (dy @ kept[2].T)), X,
              {"w": W}),
        "residuals", "note", "1 is params/w, transposed; 2 is params/w",
    ),
    "timed": Case(pair(sine, cosine, X), "cost", "note", " us", {"timed": True}),
    "an infinite entry": Case(
        pair(lambda x: (jnp.tanh(x), x), lambda x, dy: (dy * (1 - jnp.tanh(x) ** 2),),
             np.array([np.inf, 1.0, 2.0])),
        "edges", "right", "4 limits",
    ),
    "None for one of two": Case(
        block(lambda p, x: (jnp.tanh(x[0]), x[0]),
              lambda p, x, dy: ({}, (dy * (1 - jnp.tanh(x) ** 2), None)), (X, X)),
        "edges", "right", "limits",
    ),
    "NaN in, a number out": Case(
        pair(lambda x: (jnp.nan_to_num(x) ** 2, x), lambda x, dy: (2 * dy * jnp.nan_to_num(x),), X),
        "edges", "note", "forward turns a NaN into a number",
    ),
    "not finite in a narrow dtype": Case(
        pair(sine, doubled_below, X), "bfloat16", "note", "is nan in bfloat16 where the truth is",
    ),
    "a sum in bfloat16": Case(
        pair(long_sum, rounded_sums, shape(8, 2), shape(2)), "bfloat16", "note",
        "over a batch of 1024",
    ),
    "a batch too wide to be made long": Case(
        pair(product, of_product, shape(2, 600), shape(600, 2)), "bfloat16", "right", "units",
    ),
    "wrong digits under a declared rule": Case(
        function(custom(jnp.sin, lambda x, dy: (dy * jnp.cos(x[0]) * (1 + 1e-3),)), X,
                 declared=lambda x, dy: 1.001 * dy * jnp.cos(x)),
        "float32", "right", "units",
    ),
    "digits lost under a declared rule": Case(
        function(custom(jax.nn.softplus, lost_tail), X,
                 declared=lambda x, dy: dy * jax.nn.sigmoid(x)),
        "float32", "note", "digits cancel",
    ),
    "digits lost without autodiff": Case(
        pair(lambda x: (jax.nn.softplus(x) + host_relu(0 * x), (x,)), lost_tail, X),
        "float32", "note", "digits cancel",
    ),
    # ---- arguments
    "a Python number and None": Case(
        pair(lambda x, a, b: (a * jnp.sin(x), (x, a)),
             lambda kept, dy: (dy * kept[1] * jnp.cos(kept[0]), jnp.sum(dy * jnp.sin(kept[0])),
                               None), X, 2.0, None),
        "autodiff", "right", "error",
    ),
    "complex numbers": Case(
        pair(lambda a: (a * a, a), lambda a, dy: (2 * a * dy,), np.array([1 + 2j, 3 - 1j])),
        "autodiff", "right", "error",
    ),
    "integers to be drawn": Case(
        function(lambda x, i: x[i], shape(4), shape(3, dtype="int32")), "differences", "right",
        "whole Jacobian",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", one_of(4, CASES))
def test_a_rare_rule(name: str) -> None:
    case = CASES[name]
    report = case.check(**only(case.property, **case.options))
    result: Result = report[case.property]
    assert result.status == case.status, str(report)
    assert case.words in "\n".join([result.figure, *map(str, result.problems)]), str(report)


@pytest.mark.parametrize(
    "run, words",
    [
        (lambda: fnn.check.block(fnn.square(), np.ma.masked_array([1.0, 2.0], [True, False])),
         "masked array, give one without"),
        (lambda: fnn.check.block(fnn.square()._replace(forward=lambda p, x, key=None: x * x), X),
         r"forward needs to return \(y, residuals\)"),
        (lambda: fnn.check.block(fnn.square()._replace(backward=lambda p, r, dy: (1, 2, 3)), X),
         "got a tuple of 3"),
        (lambda: fnn.check.pair(
            lambda x: (on_the_host(root_up_to_four, x), x), cosine, 5 + X**2, timed=False),
         "raises when it is run: .*beyond the table"),
        (lambda: fnn.check.pair(sine, cosine, SimpleNamespace(shape=(3,), dtype="float32")),
         "got a types.SimpleNamespace: give a NumPy or JAX array"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(run: Callable[[], Any], words: str) -> None:
    with pytest.raises(CheckError, match=words):
        run()


def test_cases_fail_and_skip_as_tests_do() -> None:
    wrong = fnn.square()._replace(backward=lambda params, x, dy: ({}, x * dy))
    cases = {case.id: case.values[0] for case in fnn.check.cases(wrong, shape(), timed=False)}
    with pytest.raises(AssertionError, match=r"is 0\.5 times the truth"):
        cases["autodiff"]()
    with pytest.raises(pytest.skip.Exception, match="first axis"):
        cases["microbatches"]()


def test_a_report_says_which_properties_there_are() -> None:
    report = fnn.check.block(fnn.square(), shape(4), quick=True)
    with pytest.raises(KeyError, match="no property 'speed'; there are: cotangents, value"):
        report["speed"]


def test_inside_a_network_what_has_no_floating_input_is_passed_over() -> None:
    hot = fnn.Block(
        lambda key, x: {}, lambda p, x, key=None: (jax.nn.one_hot(x, 3, dtype=jnp.float64), None),
        lambda p, _, dy: ({}, None),
    )  # fmt: skip
    out = fnn.linear(2)
    net = fnn.serial(hot=hot, out=out._replace(backward=lambda *a: (
        jax.tree.map(lambda d: 2 * d, out.backward(*a)[0]), out.backward(*a)[1])))  # fmt: skip
    report = fnn.check.block(net, LABELS, dtype="float64", quick=True)
    wrong = [problem.leaf for problem in report.inside]
    assert wrong == ["in out (linear), params/b", "in out (linear), params/w"], str(report)


def test_the_end_of_memory_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setitem(fnn.check.run._CHECKS, "jit", run)
    with pytest.raises(MemoryError):
        fnn.check.pair(sine, cosine, X, **only("jit"))


@pytest.mark.parametrize("first, status", [(True, "skipped"), (False, "right")])
def test_a_precision_that_runs_out_of_time_counts_what_it_has(
    first: bool, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = Subject.run, []

    def late(self: Subject, sample: Any, dy: Any) -> Any:
        calls.append(jax.tree.leaves(sample.x)[0].dtype == jnp.bfloat16)
        if sum(calls) > (0 if first else 1) and calls[-1]:
            raise OutOfTime
        return run(self, sample, dy)

    monkeypatch.setattr(Subject, "run", late)
    result = fnn.check.pair(sine, cosine, X, **only("bfloat16"))["bfloat16"]
    assert result.status == status


@pytest.mark.parametrize(
    "where, status", [("precision.conditioning", "skipped"), ("subject.Subject.autodiff", "note")]
)
def test_a_precision_in_which_the_reference_raises(
    where: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no such dtype")

    monkeypatch.setattr(f"fnn.check.{where}", fails)
    rule = lambda x: (jax.nn.softplus(x), (x,))  # noqa: E731
    result = fnn.check.pair(rule, lost_tail, X, **only("float32"))["float32"]
    assert result.status == status


@pytest.mark.parametrize(
    "forward_runs, status", [(True, "WRONG"), (False, "skipped")], ids=["runs", "raises"]
)
def test_what_does_not_run_inside_a_scan(forward_runs: bool, status: str) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no scan")

    subject: Any = SimpleNamespace(
        programs=SimpleNamespace(looped=fails),
        rule=SimpleNamespace(primal=(lambda params, x, key: x) if forward_runs else fails),
    )
    trial: Any = SimpleNamespace(sample=({}, X, None), dy=X)
    assert transformations.scan(subject, [trial]).status == status
