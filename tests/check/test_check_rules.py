"""Rules of other people's kinds, right and wrong, as pairs of functions: each wrong one is caught
by the property that should, and explained; none of the right ones is flagged."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.check import CheckError, Report
from tests.slow import one_of


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def elementwise(f: Any, slope: Any) -> tuple[Any, Any]:
    return lambda x: (f(x), x), lambda x, dy: (dy * slope(x),)


def by_autodiff(f: Any) -> tuple[Any, Any]:
    return lambda *x: (f(*x), x), lambda x, dy: jax.vjp(f, *x)[1](dy)


def check(rule: tuple[Any, Any], *x: Any, **options: Any) -> Report:
    return fnn.check.pair(*rule, *x, **({"timed": False, "strict": True} | options))


def wrong_in(dtype: Any, factor: float) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jnp.cos(x) * (factor if x.dtype == dtype else 1)


def widened(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def masked_entropy(z: Any, labels: Any, mask: Any) -> Any:
    picked = jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1)[:, 0]
    return -jnp.sum(picked * mask) / jnp.sum(mask)


def p_minus_t(kept: Any, dy: Any) -> Any:
    z, labels, mask = kept
    off = jax.nn.softmax(z) - jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
    return off * mask[:, None] / jnp.sum(mask) * dy, None, None


def narrow_sum(kept: Any, dy: Any) -> Any:
    zero = jnp.zeros_like(dy[0])
    return dy, jax.lax.scan(lambda total, row: (total + row, None), zero, dy)[0]


def tiles_of_four(kept: Any, dy: Any) -> Any:
    x, w = kept
    n = len(x) // 4 * 4
    return dy @ w.T, x[:n].T @ dy[:n]


def product(x: Any, w: Any) -> Any:
    return x @ w, (x, w)


def gelu_from_its_tail(x: jax.Array) -> jax.Array:
    density = jnp.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return (1 + jax.lax.erf(x / np.sqrt(2))) / 2 + x * density


def nan_or_positive(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(x), x, (x > 0).astype(x.dtype))


def huber(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - 0.5)


X, ROWS = shape(4, 5), shape(8, 3)
LABELS, MASK = np.array([0, 3, 2, 5]), np.array([1.0, 1.0, 0.0, 1.0])

WRONG: dict[str, tuple[tuple[Any, Any], tuple[Any, ...], str, str]] = {
    "not cut off above": (
        elementwise(lambda x: jnp.clip(x, 0, 6), nan_or_positive),
        (X,), "autodiff", "inputs times 8: .* where it should be 0",
    ),
    "saturates too early": (
        elementwise(jax.nn.softplus, lambda x: jnp.where(x > 5, 1.0, jax.nn.sigmoid(x))),
        (X,), "autodiff", "inputs times 8: .* where the input is large",
    ),
    "tail of the square root's kind": (
        elementwise(huber, lambda x: x), (shape(18),), "autodiff", r"where \|input\| is large",
    ),
    "NaN of a norm at 0": (by_autodiff(jnp.linalg.norm), (shape(4),), "kinks", "gives nan"),
    "lost in a tail, with NumPy's constants": (
        elementwise(lambda x: jax.nn.gelu(x, approximate=False), gelu_from_its_tail),
        (X,), "float32", "digits cancel",
    ),
    "another dtype comes back": (
        (lambda x: (jnp.sin(x), x), lambda x, dy: (widened(dy * jnp.cos(x)),)),
        (X,), "bfloat16", "comes back as float32 for bfloat16",
    ),
    "a narrow sum": (
        (lambda x, b: (x + b[None], None), narrow_sum), (ROWS, shape(3)),
        "bfloat16", "a batch of 1024",
    ),
    "tiles without the ragged end": (
        (product, tiles_of_four), (ROWS, shape(3, 2)), "batch sizes", "for a batch of",
    ),
    "clipped": (
        (lambda x: (jnp.sin(x), x), lambda x, dy: (jnp.clip(dy, -10, 10) * jnp.cos(x),)),
        (X,), "linear", "clipped",
    ),
    "a factor in bfloat16 alone": (
        elementwise(jnp.sin, wrong_in(jnp.bfloat16, 1.1)), (X,), "bfloat16",
        r"is 1\.1\d* times the truth everywhere",
    ),
    "a sign in float16 alone": (
        elementwise(jnp.sin, wrong_in(jnp.float16, -1)), (X,), "float16",
        r"is -(1|0\.999\d*) times",
    ),
    "wrong for many examples": (
        (lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x) * (2 if len(x) > 8 else 1),)),
        (X,), "batch sizes", "right for one batch size and 2 times",
    ),
    "the size of the batch as a number": (
        (lambda x: (jnp.mean(x * x), x), lambda x, dy: (dy * x / 9,)), (shape(6, 3),),
        "microbatches", "the size of the batch enters the rule",
    ),
    "another function's derivative": (
        elementwise(jnp.exp, lambda x: x), (shape(),), "autodiff",
        "a factor that depends on the inputs",
    ),
    "a constant with six digits": (
        elementwise(lambda x: np.pi * x, lambda x: 3.14159), (X,), "autodiff",
        r"is 0\.99999915\d* times the truth everywhere",
    ),
    "the mean's own part": (
        (lambda x: (x - jnp.mean(x)[None], None), lambda _, dy: (dy,)), (shape(4),), "autodiff",
        "a sum or mean over the entries",
    ),
    "one cotangent too few": (
        (lambda x, y: (x * y, (x, y)), lambda kept, dy: (dy * kept[1],)), (X, X), "cotangents",
        "a tuple of 1, needs a tuple of 2",
    ),
}  # fmt: skip

RIGHT: dict[str, tuple[tuple[Any, Any], tuple[Any, ...]]] = {
    "an odd first axis that is no batch": (by_autodiff(jnp.cumsum), (shape(5),)),
    "a weight that is as odd": (by_autodiff(lambda x, w: jnp.convolve(x[0], w)),
                                (shape(3, 9), shape(3))),
    "a shape as residual": (
        (lambda x: (jnp.sum(x), x.shape), lambda s, dy: (jnp.broadcast_to(dy, s),)), (X,)),
    "an array kept for its shape": (
        (lambda x: (jnp.sum(x), x), lambda x, dy: (jnp.broadcast_to(dy, x.shape),)), (X,)),
    "relu as JAX has it": (by_autodiff(jax.nn.relu), (X,)),
    "sorting": (by_autodiff(lambda x: jnp.sort(x, -1)), (X,)),
    "a product that overflows in float16": (by_autodiff(lambda x: jnp.cumprod(x, -1)), (X,)),
    "no curvature": (by_autodiff(lambda x: jnp.sum(jnp.abs(x))), (shape(2, 3),)),
}  # fmt: skip


@pytest.mark.parametrize("name", one_of(3, WRONG))
def test_a_wrong_rule_is_caught_and_explained(name: str) -> None:
    rule, x, where, words = WRONG[name]
    result = check(rule, *x)[where]
    assert result.status == "WRONG", str(result)
    assert any(re.search(words, str(p), re.DOTALL) for p in result.problems), result.problems


@pytest.mark.parametrize("name", one_of(3, RIGHT))
def test_a_right_rule_is_not_flagged(name: str) -> None:
    rule, x = RIGHT[name]
    report = check(rule, *x)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "rule, x",
    [
        ((lambda *x: (masked_entropy(*x), x), p_minus_t), (shape(4, 6), LABELS, MASK)),
    ],
    ids=["p - t"],
)
def test_a_rule_that_loses_no_more_digits_than_autodiff_is_not_wrong(rule: Any, x: Any) -> None:
    """A block's is, where strict asks for it: see the mutants of the same names."""
    result = check(rule, *x)["float32"]
    assert result.status == "note" and "as jax.vjp of forward" in result.problems[0].diagnosis


@pytest.mark.slow
def test_networks_with_infinities_that_meet_and_sums_that_cancel_are_right() -> None:
    net = fnn.with_loss(fnn.linear(3), fnn.softmax_cross_entropy())
    report = fnn.check.block(net, (shape(4, 3), np.array([0, 1, 2, 1])), timed=False)
    assert report.ok, str(report)


@pytest.mark.slow
def test_a_block_that_knows_float32_only() -> None:
    options = {"dtype": np.float32, "timed": False}
    net = fnn.serial(fnn.linear(3), fnn.tanh())
    report = fnn.check.block(net, shape(4, 5), **options)
    assert report.ok, str(report)
    assert report["differences"].status == "right" and report["float32"].status == "skipped"
    wrong = net._replace(backward=lambda *a: jax.tree.map(lambda d: 1.01 * d, net.backward(*a)))
    assert "1.01 times the truth" in str(fnn.check.block(wrong, shape(4, 5), **options))


@pytest.mark.parametrize(
    "run, words",
    [
        (lambda: fnn.check.block(fnn.square(), shape(0)), "empty"),
        (lambda: fnn.check.block(fnn.square(), (4, 3)), r"ShapeDtypeStruct\(\(4, 3\)"),
        (lambda: fnn.check.block(fnn.square(), X, dtype="flot"), "float64' or"),
        (lambda: fnn.check.block(fnn.square(), X, seed=-1), "seed is -1"),
        (lambda: fnn.check.block(fnn.linear(2), X, {"w": "a"}), "params need to be arrays"),
        (lambda: check((lambda x: (x, x), lambda _, dy: [dy]), X), "returned list"),
        (lambda: fnn.check.block(fnn.square()._replace(backward=lambda *_: None), X),
         "got NoneType"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_words(run: Callable[[], Any], words: str) -> None:
    with pytest.raises(CheckError, match=words):
        run()
