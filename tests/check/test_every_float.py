"""fnn.check.every_float: which errors it counts, at which numbers, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn.check import CheckError, every_float, ulps
from fnn.check.all_floats import CHUNK


def double(x: jax.Array) -> jax.Array:
    return 2 * x


def ones(x: jax.Array) -> jax.Array:
    return jnp.where(x == x, jnp.ones_like(x), x)


def twos(x: jax.Array) -> jax.Array:
    return 2 * ones(x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_right_at_every_number(dtype: str) -> None:
    report = every_float(double, twos, (double, twos), dtype)
    assert report.ok(0) and report.inputs == 2**16
    for score in (report.value, report.derivative):
        assert sum(tally.count for tally in score.tallies.values()) == 2**16
        assert score.counts[2:] == (0, 0, 0)
    assert "65,536 inputs" in str(report) and "largest 0" in repr(report)


def test_the_derivative_of_the_truth_is_taken_by_autodiff() -> None:
    def twice(x: jax.Array) -> jax.Array:
        return (2 * x).astype(x.dtype)

    assert every_float(jnp.square, twice, jnp.square, "float16", between=(-100, 100)).ok()
    assert every_float(jnp.square, twice, jnp.square, "float16", between=(100, 1e300)).ok()
    wrong = every_float(jnp.square, lambda x: 3 * x, jnp.square, "float16", between=(1, 2))
    assert not wrong.ok() and wrong.value.worst.worst <= 0.5
    assert wrong.derivative.worst.over == wrong.inputs == 2**10 + 1


@pytest.mark.parametrize(
    "derivative, words, wrong_at",
    [
        (lambda x: jnp.where(x > 3, jnp.nan, twos(x)), "NaN", 4.0),
        (lambda x: jnp.where(x == -3, jnp.inf, twos(x)), "1 infinite", -3.0),
        (lambda x: jnp.where(x == 5, -2.0, twos(x)), "1 wrong sign", 5.0),
        (lambda x: jnp.where(x == 7, 2.1, twos(x)), "1 above 1", 7.0),
    ],
    ids=["NaN", "infinite", "sign", "digits"],
)
def test_a_wrong_number_is_counted_and_named(
    derivative: Callable[[Any], Any], words: str, wrong_at: float
) -> None:
    def narrow(x: jax.Array) -> jax.Array:
        return derivative(x).astype(x.dtype)

    report = every_float(double, narrow, (double, twos), "float16")
    assert not report.ok() and words in str(report), report
    assert report.value.worst.worst == 0
    at = ulps.as_float(report.derivative.worst.bits, "float16")
    assert at == wrong_at if words != "NaN" else at > 3


def test_a_part_of_float32() -> None:
    calls: list[tuple[int, int]] = []
    report = every_float(
        double, twos, (double, twos), between=(-1.0, 2.0), stride=2**12,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    above, below = 2**30, 127 * 2**23  # floats from 0 to 2, and from -1 to 0
    assert report.inputs == -(-(above + below + 1) // 2**12)
    assert report.ok(0)
    assert calls[0] == (CHUNK, report.inputs) and calls[-1] == (report.inputs, report.inputs)


def test_the_ends_of_a_range_are_looked_at() -> None:
    for end in (-1.5, 0.25):
        wrong = every_float(
            double, lambda x, end=end: jnp.where(x == end, 9, twos(x)).astype(x.dtype),
            (double, twos), "bfloat16", between=(-1.5, 0.25),
        )  # fmt: skip
        assert wrong.derivative.worst.over == 1


def test_units_do_not_depend_on_the_precision_outside() -> None:
    with jax.enable_x64(False):
        narrow = every_float(double, twos, (double, twos), "bfloat16")
    assert narrow == every_float(double, twos, (double, twos), "bfloat16")


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        ((double, twos, double, "float64"), {}, "needs one of float32, bfloat16, float16"),
        ((lambda x: x.sum(), twos, double), {}, r"value returns float32\(\) for float32"),
        ((double, lambda x: x.astype(np.float32), double, "float16"), {}, "derivative returns"),
        ((double, lambda x: x.nothing, double), {}, "derivative raises AttributeError"),
        ((double, twos, double), {"between": (2, 1)}, "the smaller first"),
        ((double, twos, double), {"stride": 0}, "stride is 0"),
    ],
)
def test_what_is_refused(arguments: Any, options: Any, words: str) -> None:
    with pytest.raises(CheckError, match=words):
        every_float(*arguments, **options)
