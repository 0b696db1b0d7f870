"""What fnn.check says is wrong, what it notes, and what it takes: other people's functions."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.check import CheckError, Report
from fnn.check import run as running
from fnn.check.report import OutOfTime
from fnn.check.subject import Subject
from tests.slow import one_of


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def custom(f: Any, backward: Any, forward: Any = None) -> Any:
    rule = jax.custom_vjp(lambda *x: f(*x))
    rule.defvjp(forward or (lambda *x: (f(*x), x)), backward)
    return rule


def with_slope(f: Any, slope: Callable[[Any], Any]) -> Any:
    rule = jax.custom_jvp(f)
    rule.defjvp(lambda primals, tangents: (f(*primals), slope(*primals) * tangents[0]))
    return rule


def check(f: Any, *x: Any, **options: Any) -> Report:
    return fnn.check.function(f, *x, **({"timed": False} | options))


# ---- wrong: the gradient itself ----------------------------------------------------------------

cos_above_5 = with_slope(jnp.sin, lambda x: jnp.where(x > 5, 0, jnp.cos(x)))
conj_forgotten = custom(jnp.multiply, lambda kept, dy: (dy * jnp.conj(kept[1]), dy * kept[0]))


def kernel_unflipped(kept: Any, dy: Any) -> Any:
    x, k = kept
    _, pull_back = jax.vjp(lambda x, k: jnp.convolve(x, k), x, k)
    return jnp.convolve(dy, k, "valid"), pull_back(dy)[1]


WRONG: dict[str, tuple[Any, tuple[Any, ...], str, str]] = {
    "another value under the rule": (
        custom(jnp.sin, lambda x, dy: (dy * jnp.cos(x),), lambda x: (jnp.sin(x) + 1, x)),
        (shape(4),), "value", "has 1 added in every entry",
    ),
    "a custom_jvp, wrong far off": (
        cos_above_5, (np.array([1.0, 1.2, 0.9]),), "autodiff", "inputs times 8",
    ),
    "the same inside a scan": (
        lambda x: jax.lax.scan(lambda c, v: (c, cos_above_5(v)), 0.0, x)[1],
        (np.array([1.0, 1.2, 0.9]),), "differences", "zero everywhere",
    ),
    "the second derivative": (
        custom(jnp.sin, lambda kept, dy: (dy * jax.lax.stop_gradient(jnp.cos(kept[0])),)),
        (shape(4),), "second order", "does backward stop the gradient",
    ),
    "a conjugate": (
        conj_forgotten, (shape(4, dtype="complex64"),) * 2, "autodiff", "conj is missing or extra",
    ),
    "a kernel that is not flipped": (
        custom(lambda x, k: jnp.convolve(x, k[::-1], "full"), lambda kept, dy: (
            jnp.convolve(dy, kept[1][::-1], "valid"),
            jax.vjp(lambda k: jnp.convolve(kept[0], k[::-1], "full"), kept[1])[1](dy)[0],
        )), (shape(8), shape(3)), "autodiff", "a kernel is not flipped",
    ),
    "a running sum that is not reversed": (
        custom(lambda x: jnp.cumsum(x, 1), lambda kept, dy: (jnp.cumsum(dy, 1),)),
        (shape(3, 5),), "autodiff", "has to run the other way",
    ),
    "a sum over the wrong axis": (
        custom(jax.nn.softmax, lambda kept, dy: (
            (y := jax.nn.softmax(kept[0])) * (dy - jnp.sum(dy * y, 0, keepdims=True)),
        )), (shape(4, 5),), "autodiff", "sums over axis 0, needs to sum over axis 1",
    ),
    "the second derivative by dy": (
        custom(jnp.sin, lambda kept, dy: (jax.lax.stop_gradient(dy) * jnp.cos(kept[0]),)),
        (shape(4),), "second order", "does it stop the gradient of dy",
    ),
    "half a diagonal": (
        custom(lambda a: a + a.T, lambda kept, dy: ((dy + dy.T) * (1 - jnp.eye(4) / 2),)),
        (shape(4, 4),), "autodiff", "on the diagonal, where it is 0.5 times",
    ),
    "autodiff's NaN at a smooth point that was given": (
        lambda x: jnp.linalg.norm(x) ** 2, (np.zeros(2),), "kinks",
        "the derivative is 0, and backward gives nan",
    ),
    "a NaN at an ordinary point that was given": (
        custom(lambda x: x * jnp.tanh(x), lambda kept, dy: (
            dy * (jnp.tanh(x := kept[0]) + x * (1 - jnp.tanh(x) ** 2)) * x / x,
        )), (np.array([0.0, 1.0, -2.0]),), "differences", "NaN in 1 of 3 entries",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", one_of(3, WRONG))
def test_a_wrong_gradient_is_wrong_and_explained(name: str) -> None:
    f, x, where, words = WRONG[name]
    report = check(f, *x)
    assert not report.correct and where in report.wrong, str(report)
    assert words in "\n".join(map(str, report[where].problems)), str(report)


def test_a_large_array_is_moved_along_directions() -> None:
    wrong = custom(jnp.sin, lambda kept, dy: (1.01 * dy * jnp.cos(kept[0]),))
    report = check(wrong, shape(50, 50), quick=True, skip=("autodiff", "linear"))
    assert "directions" in report["differences"].figure
    assert "is 1.01 times the truth along every direction" in str(report.problems[0])


def test_a_rule_that_is_compared_with_itself_is_no_proof() -> None:
    assert check(jnp.sin, shape(3), quick=True)["autodiff"].status == "skipped"
    rule = with_slope(jnp.sin, jnp.cos)  # autodiff of the sine itself
    assert check(rule, shape(3), quick=True)["autodiff"].status == "right"


# ---- notes: right for all that -----------------------------------------------------------------

NOTES: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "NaN of a norm at 0": (jnp.linalg.norm, (shape(4),), "kinks"),
    "NaN in, a number out": (lambda x: jnp.where(x > 0, x, 0.1 * x), (shape(4),), "edges"),
    "digits lost in a tail": (
        custom(jax.nn.softplus, lambda kept, dy: (dy * (1 - jnp.exp(-jax.nn.softplus(kept[0]))),)),
        (shape(6),), "float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_what_is_worth_knowing_is_wrong_only_where_asked_for(name: str) -> None:
    f, x, where = NOTES[name]
    report = check(f, *x)
    assert report.correct and report[where].status == "note", str(report)
    assert report.notes and "\nnote: x/0" in str(report)
    if name != "digits lost in a tail":
        assert where in check(f, *x, strict=where).wrong


# ---- what is taken -----------------------------------------------------------------------------


class Module(NamedTuple):
    """As Equinox has them: arrays and functions in one pytree."""

    w: Any
    activation: Any
    bias: Any = None


jax.tree_util.register_pytree_node(type(jnp.tanh), lambda f: ((), f), lambda f, _: f)


def in_float32(x: jax.Array) -> jax.Array:
    return jnp.sin(x.astype(jnp.float32))


def root(a: jax.Array) -> jax.Array:
    """Newton's square root, to a tolerance."""
    return jax.lax.while_loop(
        lambda y: jnp.max(jnp.abs(y * y - a)) > 1e-6, lambda y: (y + a / y) / 2, a
    )


def on_the_host(x: Any) -> Any:
    if np.any(np.asarray(x) < 0):
        raise ValueError("a negative number")
    return np.sqrt(x)


root_on_the_host = custom(
    lambda x: jax.pure_callback(
        on_the_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
    ),
    lambda kept, dy: (dy / (2 * jnp.sqrt(kept[0])),),
)
solved = custom(root, lambda kept, dy: (dy / (2 * root(kept[0])),))

TAKEN: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "float32 inside": (in_float32, (shape(4),), {}),
    "float32 inside, float64 outside": (
        lambda x: in_float32(x).astype(x.dtype), (shape(4),), {}),
    "None": (lambda x, b: jnp.sin(x) if b is None else x + b, (shape(4), None), {}),
    "a static axis": (lambda x, axis, how: getattr(jnp, how)(x * x, axis), (shape(4, 3), 1, "sum"),
                      {}),
    "a key": (lambda x, key: x * jax.random.normal(key, x.shape), (shape(4), jax.random.key(0)),
              {}),
    "a raw key": (lambda x, key: x * jax.random.normal(key, x.shape),
                  (shape(4), jax.random.PRNGKey(0)), {}),
    "rounded to float32": (
        lambda x: 2 * jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=23), (shape(4),),
        {}),
    "one triangle of a symmetric matrix": (
        lambda a, b: jax.scipy.linalg.solve(a, b, assume_a="pos"),
        (np.array([[2.0, 0.5, 0.1], [0.5, 3.0, 0.2], [0.1, 0.2, 1.5]]), shape(3)), {}),
    "a module": (lambda m, x: m.activation(x @ m.w), (Module(shape(3, 2), jnp.tanh), shape(4, 3)),
                 {}),
    "complex numbers": (lambda a, b: jnp.exp(a) * jnp.conj(b), (shape(3, dtype="complex64"),) * 2,
                        {}),
    "keyword arguments": (lambda x, *, power: x**power, (shape(4),), {"kwargs": {"power": 3}}),
    "one argument of two": (lambda x, y: x * jnp.floor(y), (shape(4), shape(4)), {"argnums": [0]}),
    "a result up to a tolerance": (solved, (np.array([1.0, 2.0, 3.0]),), {}),
    "an integer output": (lambda x: (x * x, jnp.argmax(x)), (shape(4),), {}),
    ".at in a rule": (
        custom(lambda x: x[1:], lambda kept, dy: (jnp.zeros_like(kept[0]).at[1:].set(dy),)),
        (shape(4),), {}),
    "a leaf without gradient": (
        lambda x, b: jax.nn.standardize(x @ jnp.ones((3, 2)) + b[None], 0), (shape(5, 3), shape(2)),
        {}),
    "raises off its domain": (root_on_the_host, (np.array([0.2, 1.0, 3.0]),), {}),
    "a stopped gradient": (lambda x: jax.lax.stop_gradient(x) * x, (shape(4),),
                           {"declared": lambda x, dy: dy * x}),
    "a clipped cotangent": (
        custom(jnp.sin, lambda kept, dy: (jnp.clip(dy, -1, 1) * jnp.cos(kept[0]),)), (shape(4),),
        {"declared": lambda x, dy: jnp.clip(dy, -1, 1) * jnp.cos(x)}),
}  # fmt: skip


@pytest.mark.parametrize("name", one_of(4, TAKEN))
def test_what_people_have_is_taken(name: str) -> None:
    f, x, options = TAKEN[name]
    report = check(f, *x, **options)
    assert report.correct, str(report)
    assert report["differences"].status in ("right", "note") or "declared" in options, str(report)


@pytest.mark.parametrize("computed_in", ["float64", "float32", "float32 inside"])
def test_a_sum_that_is_0(computed_in: str) -> None:
    """y and all gradients are nothing but rounding."""

    def f(x: Any, b: Any) -> Any:
        x = x.astype(jnp.float32) if "inside" in computed_in else x
        return jnp.sum(jax.nn.standardize(x + b[None].astype(x.dtype)))

    report = check(f, shape(5, 3), shape(3), dtype=computed_in.split()[0])
    assert report.correct, str(report)


def test_parameters_in_any_container() -> None:
    net, x = fnn.linear(2), np.ones((3, 4))
    params = collections.OrderedDict(w=np.ones((4, 2)), b=np.zeros(2))
    report = fnn.check.block(net, x, params, quick=True)
    assert report.correct, str(report)


@pytest.mark.slow
def test_a_declared_rule_is_held_to_what_it_declares() -> None:
    clipped, x, _ = TAKEN["a clipped cotangent"]
    assert not check(clipped, *x).correct
    assert not check(clipped, *x, declared=lambda x, dy: dy * jnp.cos(x)).correct
    net = fnn.serial(fnn.linear(3), fnn.straight_through(fnn.step(), fnn.logistic()))
    assert fnn.check.block(net, shape(4, 2), timed=False).correct


@pytest.mark.parametrize(
    "run, words",
    [
        (lambda: check(jnp.sin, np.ma.masked_array([1.0, 2.0], [True, False])), "masked array"),
        (lambda: check(jnp.sin, shape(3), argnums=1), "argnums is .1,., needs numbers"),
        (lambda: fnn.check.mutants(fnn.relu(), shape(3), seed="a"), "seed is .a., needs a whole"),

        (lambda: check(jnp.sin, shape(3), rtol=-1.0), "rtol is -1.0"),
        (lambda: check(jnp.sin, shape(3), seconds=0), "seconds is 0"),
        (lambda: check(jnp.sin, shape(3), strict=("float23",)), "strict is ..float23.,., needs"),
        (lambda: check(jnp.sin, shape(3), skip="float"), "skip is 'float', needs"),
        (lambda: check(jnp.argmax, shape(3)), "no floating output"),
        (lambda: check(jnp.sin, np.array(["a"])), "needs numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(run: Callable[[], Any], words: str) -> None:
    with pytest.raises(CheckError, match=words):
        run()


# ---- how long, and how much --------------------------------------------------------------------


def test_a_tolerance_is_what_the_user_says() -> None:
    nearly = custom(jnp.sin, lambda kept, dy: (dy * jnp.cos(kept[0]) * (1 + 1e-5),))
    assert not check(nearly, shape(4), quick=True).correct
    assert check(nearly, shape(4), quick=True, rtol=1e-4).correct
    added = custom(jnp.sin, lambda kept, dy: (dy * (jnp.cos(kept[0]) + 1e-5),))
    assert check(added, shape(4), quick=True, atol=1e-3).correct


def test_quick_runs_what_finds_most_mistakes() -> None:
    report = check(jnp.sin, shape(4), quick=True)
    assert tuple(result.property for result in report.results) == fnn.check.QUICK


def test_a_budget_ends_a_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]

    def later() -> float:
        now[0] += 0.7
        return now[0]

    monkeypatch.setattr(time, "monotonic", later)
    report = check(jnp.sin, shape(4), seconds=60)
    assert report.correct and report["linear"].status == "right"
    assert "not run" in report["cost"].figure
    assert "checking sin: " in capsys.readouterr().err


def test_the_end_of_the_budget_is_no_mistake_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Subject.run

    def late(self: Subject, sample: Any, dy: Any) -> Any:
        if len(jax.tree.leaves(sample.x)[0]) < 4:  # a half of the batch
            raise OutOfTime
        return run(self, sample, dy)

    monkeypatch.setattr(Subject, "run", late)
    report = check(jnp.sin, shape(4))
    assert report.correct and "not run" in report["microbatches"].figure, str(report)


def test_time_between_cases_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {case.id: case for case in fnn.check.cases(fnn.square(), shape(4), timed=False)}
    cases["value"].values[0]()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    cases["autodiff"].values[0]()  # not skipped


def test_cases_run_their_own_property(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name, property in running._CHECKS.items():

        def watched(*a: Any, name: str = name, property: Any = property, **k: Any) -> Any:
            ran.append(name)
            return property(*a, **k)

        monkeypatch.setitem(running._CHECKS, name, watched)
    cases = fnn.check.cases(fnn.square(), shape(4), timed=False)
    next(case for case in cases if case.id == "vmap").values[0]()
    assert ran == ["vmap"]


@pytest.mark.parametrize("mode", ["disable_jit", "debug_nans"])
def test_under_debugging_modes(mode: str) -> None:
    with getattr(jax, mode)(True):
        assert fnn.check.block(fnn.linear(2), shape(3, 2), timed=False).correct


def test_the_block_of_the_contributing_page_is_right() -> None:
    def slope(x: jax.Array) -> jax.Array:
        return -2 * x * jnp.exp(-jnp.square(x))

    gaussian = fnn.elementwise("gaussian", lambda x: jnp.exp(-jnp.square(x)), slope)
    report = fnn.check.block(gaussian, jnp.array([-1.0, 0.0, 2.0]), timed=False)
    assert report.correct, str(report)
