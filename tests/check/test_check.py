"""fnn.check: right rules pass, wrong ones are caught and explained, and bad input is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block
from fnn.check import CheckError, Report, differences
from tests.slow import one_of

FLOATS = jax.ShapeDtypeStruct((4, 6), jnp.float32)
LABELS = np.array([0, 5, 2, 3])
STRICT = {"timed": False, "strict": True}  # as fnn wants its own blocks


def check(block: Block, x: Any = FLOATS, **options: Any) -> Report:
    return fnn.check.block(block, x, **(STRICT | options))


def broken(block: Block, change: Callable[[Any, Any], tuple[Any, Any]]) -> Block:
    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        return change(*block.backward(params, residuals, dy))

    return block._replace(backward=backward)


@pytest.mark.parametrize(
    "block, x",
    [
        (fnn.linear(3), FLOATS),
        pytest.param(fnn.softmax_cross_entropy(), (FLOATS, LABELS), marks=pytest.mark.slow),
        (fnn.serial(fnn.layer(5, fnn.tanh()), fnn.linear(2)), FLOATS),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_right_rules_pass(block: Block, x: Any) -> None:
    report = check(block, x)
    assert report.ok, str(report)
    assert {result.property for result in report.results} == set(fnn.check.PROPERTIES)


def saturated(params: Any, x: jax.Array, key: Any = None) -> Any:
    y = jax.nn.sigmoid(x)
    return y, y


def tie_to_both(params: Any, residuals: Any, dy: Any) -> Any:
    x1, x2 = residuals
    return {}, (jnp.where(x1 >= x2, dy, 0), jnp.where(x2 >= x1, dy, 0))


def nan_at_minus_infinity(params: Any, x: Any, dy: Any) -> Any:
    return {}, dy * jnp.exp(x) * (x / x)


WRONG: dict[str, tuple[Block, Any, str, str]] = {
    "sign": (
        broken(fnn.linear(3), lambda dp, dx: (dp, -dx)), FLOATS, "autodiff",
        r"-1 times the truth everywhere: the sign is wrong",
    ),
    "bias not summed": (
        broken(fnn.linear(3), lambda dp, dx: (dp | {"b": jnp.ones((4, 1)) * dp["b"][None]}, dx)),
        FLOATS, "cotangents", r"has shape \(4, 3\), needs \(3,\)",
    ),
    "mean for sum": (
        broken(fnn.linear(3), lambda dp, dx: (dp | {"b": dp["b"] / dx.shape[0]}, dx)), FLOATS,
        "autodiff", r"a mean where a sum is needed: it is divided by the batch size",
    ),
    "transposed": (
        broken(fnn.linear(6), lambda dp, dx: (dp | {"w": dp["w"].T}, dx)), FLOATS, "autodiff",
        "is transposed",
    ),
    "dropped": (
        broken(fnn.linear(3), lambda dp, dx: (dp | {"b": 0 * dp["b"]}, dx)), FLOATS, "autodiff",
        "is zero everywhere",
    ),
    "right for dy = 1 only": (
        fnn.square()._replace(backward=lambda params, x, dy: ({}, 2 * x)), FLOATS, "linear",
        "same for every upstream cotangent",
    ),
    "swapped": (
        broken(fnn.multiply(), lambda dp, dx: (dp, (dx[1], dx[0]))), (FLOATS, FLOATS), "autodiff",
        "swapped",
    ),
    "off by one": (
        broken(fnn.square(), lambda dp, dx: (dp, jnp.roll(dx, 1, -1))), FLOATS, "autodiff",
        "by 1 along axis 1: an index is off by one",
    ),
    "hard-coded batch": (
        broken(fnn.mean(), lambda dp, dx: (dp, dx * dx.shape[0] / 4)), FLOATS, "batch sizes",
        "hard-coded|batch size",
    ),
    "saturated tail": (
        fnn.logistic()._replace(
            forward=saturated, backward=lambda params, y, dy: ({}, dy * y * (1 - y))
        ), FLOATS, "float32", "saturation|digits cancel",
    ),
    "a tie to both": (
        fnn.maximum()._replace(
            forward=lambda params, x, key=None: (jnp.maximum(*x), x), backward=tie_to_both
        ), (FLOATS, FLOATS), "kinks", "only at ties|only at a kink",
    ),
    "NaN at -inf": (
        fnn.exp()._replace(
            forward=lambda params, x, key=None: (jnp.exp(x), x), backward=nan_at_minus_infinity
        ), FLOATS, "edges", r"-inf, x\[.*\] is nan",
    ),
    "float32 on the way": (
        broken(fnn.square(), lambda dp, dx: (dp, dx.astype(jnp.float32).astype(dx.dtype))),
        FLOATS, "autodiff", "accuracy of float32",
    ),
    "only negative inputs": (
        fnn.square()._replace(
            backward=lambda params, x, dy: ({}, jnp.where(x < 0, 0, 2 * x * dy))
        ), FLOATS, "autodiff", "where the input is negative, where it is 0",
    ),
    "a missing term": (
        broken(fnn.residual(fnn.layer(6, fnn.tanh())), lambda dp, dx: (dp, dx))._replace(
            backward=lambda params, residuals, dy: (
                lambda out: (out[0], out[1] - dy)
            )(fnn.residual(fnn.layer(6, fnn.tanh())).backward(params, residuals, dy))
        ), FLOATS, "autodiff", "lacks a term, which equals dy",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", one_of(6, WRONG))
def test_wrong_rules_are_caught_and_explained(name: str) -> None:
    block, x, property, words = WRONG[name]
    report = check(block, x)
    assert property in report.wrong, str(report)
    assert any(re.search(words, problem.diagnosis) for problem in report.problems), str(report)
    with pytest.raises(AssertionError, match="WRONG in"):
        report.assert_correct()


@pytest.mark.parametrize(
    "block, wrong",
    [
        (fnn.relu(), lambda params, x, dy: ({}, jnp.where(x >= 0, dy, 0))),
        pytest.param(fnn.absolute(), lambda params, x, dy: ({}, jnp.where(x >= 0, dy, -dy)),
                     marks=pytest.mark.slow),
        pytest.param(fnn.hard_tanh(),
                     lambda params, x, dy: ({}, jnp.where(jnp.abs(x) <= 1, dy, 0)),
                     marks=pytest.mark.slow),
        pytest.param(fnn.selu(),
                     lambda params, x, dy: ({}, jnp.where(x >= 0, 1.0507009873554805 * dy,
                                                          1.7580993408473766 * jnp.exp(x) * dy)),
                     marks=pytest.mark.slow),
    ],
    ids=["relu", "absolute", "hard_tanh", "selu"],
)  # fmt: skip
def test_another_subgradient_than_the_declared_is_named(block: Block, wrong: Any) -> None:
    """Each lies between the slopes from both sides, so only the declaration tells."""
    assert check(block)["kinks"].status == "right"
    other = block._replace(
        forward=lambda params, x, key=None: (block.forward(params, x)[0], x), backward=wrong
    )
    report = check(other)
    assert "kinks" in report.wrong, str(report)
    assert "the declared subgradient" in report["kinks"].problems[0].diagnosis


@pytest.mark.slow
def test_a_tie_that_goes_to_one_side_is_not_what_maximum_declares() -> None:
    assert check(fnn.maximum(), (FLOATS, FLOATS))["kinks"].status == "right"
    first = fnn.maximum()._replace(
        forward=lambda params, x, key=None: (jnp.maximum(*x), x),
        backward=lambda params, x, dy: (
            {}, (jnp.where(x[0] >= x[1], dy, 0), jnp.where(x[0] >= x[1], 0, dy))
        ),
    )  # fmt: skip
    assert "kinks" in check(first, (FLOATS, FLOATS)).wrong


def test_a_residual_that_nobody_reads_is_named() -> None:
    block = fnn.square()
    more = block._replace(
        forward=lambda params, x, key=None: (x * x, {"x": x, "spare": 2 * x}),
        backward=lambda params, kept, dy: ({}, 2 * kept["x"] * dy),
    )
    problem = check(more)["residuals"].problems[0]
    assert problem.leaf == "residuals/spare"


def test_functions_with_a_custom_rule() -> None:
    @jax.custom_vjp
    def softplus(x: jax.Array) -> jax.Array:
        return jnp.log1p(jnp.exp(x))

    softplus.defvjp(lambda x: (jnp.log1p(jnp.exp(x)), x), lambda x, dy: (dy * jax.nn.sigmoid(x),))
    report = fnn.check.function(softplus, jax.ShapeDtypeStruct((5,), jnp.float32), timed=False)
    assert report["autodiff"].status == "right", str(report)
    assert report["differences"].status == "right", str(report)


def test_pairs_of_plain_functions() -> None:
    report = fnn.check.pair(
        lambda x, w: (x @ w, (x, w)),
        lambda kept, dy: (dy @ kept[1].T, kept[0].T @ dy),
        FLOATS, jax.ShapeDtypeStruct((6, 3), jnp.float32), timed=False,
    )  # fmt: skip
    assert report["autodiff"].status == "right"
    assert report["differences"].status == "right"


@pytest.mark.parametrize(
    "run, message",
    [
        (lambda: check(fnn.relu), r"block is the function relu, needs a Block: call it"),
        (lambda: check(fnn.linear(3), np.ones((4, 6), int)), "floating"),
        (lambda: check(fnn.multiply(), (FLOATS, jax.ShapeDtypeStruct((5,), "float32"))),
         "do not broadcast"),
        (lambda: check(fnn.relu(), {}), "empty pytree"),
        (lambda: check(fnn.relu(), "x"), "arrays or jax.ShapeDtypeStruct"),
        (lambda: check(fnn.dropout(0.5)), "needs a key"),
        (lambda: check(fnn.relu(), skip=("autodif",)), "skip is ..autodif.,., needs"),
        (lambda: fnn.check.pair(lambda x: x, lambda r, dy: (dy,), FLOATS), "return \\(y, res"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(run: Callable[[], Report], message: str) -> None:
    with pytest.raises(CheckError, match=message):
        run()


@pytest.mark.parametrize("holds", fnn.check.cases(fnn.square(), FLOATS, timed=False))
def test_cases_are_tests(holds: Callable[[], None]) -> None:
    holds()


# ---- found by mutants and by others' reports ---------------------------------------------------


@pytest.mark.slow
def test_a_tail_is_looked_for_on_both_sides() -> None:
    """p - t of logits that are small and on the wrong side, as they happen to be given."""
    E = fnn.binary_cross_entropy()
    wrong = E._replace(
        forward=lambda params, x, key=None: (E.forward(params, x)[0], x),
        backward=lambda params, x, dy: (
            {}, ((dy * (jax.nn.sigmoid(x[0]) - x[1].astype(x[0].dtype)) / 2).astype(x[0].dtype),
                 None)
        ),
    )  # fmt: skip
    x = (np.array([0.2, -0.02]), np.array([0, 1]))
    assert check(E, x).ok
    assert "float32" in check(wrong, x).wrong


def test_nan_at_the_edge_of_a_domain_is_wrong() -> None:
    """jax-ml/jax#347: a root whose value is not used."""

    def backward(x: Any, dy: Any) -> Any:
        return (dy * jnp.where(x > 1, 1, 0) / (2 * jnp.sqrt(x)) + 0 * dy / x,)

    report = fnn.check.pair(
        lambda x: (jnp.maximum(jnp.sqrt(x), 1), x), backward, np.array([0.7, 1.3, 0.4]),
        **STRICT,
    )  # fmt: skip
    assert any("an edge of the domain" in p.diagnosis for p in report["kinks"].problems)


@pytest.mark.slow
def test_where_several_kinks_meet_any_choice_of_each_is_right() -> None:
    """A layer without bias at 0: all of its units are at their kinks at once."""
    layer = fnn.layer(5, fnn.relu(), use_bias=False)
    own = layer._replace(
        graph=None, backward=lambda params, kept, dy: layer.backward(params, kept, dy)
    )
    report = check(own)
    assert report["kinks"].status != "WRONG", str(report)


@pytest.mark.parametrize("near", [3e-6, -3e-6])
def test_a_kink_closer_than_the_smallest_step_is_no_evidence(near: float) -> None:
    """All steps agree on the mean of the slopes on both sides, which is neither of them."""
    values = np.abs(differences.steps() - near)[:, None]
    mean = differences.both_sides(values)
    assert abs(mean.value[0]) < 1e-3 and mean.error[0] < 1e-3
    slope_there = differences.both_sides(values, None, np.array([abs(near)]))
    assert np.isinf(slope_there.error[0])
    smooth = np.sin(differences.steps() + 1)[:, None]
    slope = differences.both_sides(smooth, None, np.array([np.sin(1)]))
    assert abs(slope.value[0] - np.cos(1)) < 1e-10 and slope.error[0] < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("near", [1e-9, -1e-9])
def test_a_network_close_to_a_kink_is_right(near: float) -> None:
    x = np.array([[near, 1.0], [2.0, -1.0]])
    assert check(fnn.serial(fnn.relu(), fnn.tanh()), x).ok
    assert "differences" in check(broken(fnn.relu(), lambda dp, dx: (dp, 1.1 * dx)), x).wrong


def test_a_constant_that_is_added_is_named() -> None:
    report = check(broken(fnn.square(), lambda dp, dx: (dp, dx + 0.01)))
    assert "has 0.01 added in every entry" in report.problems[0].diagnosis
