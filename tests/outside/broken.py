"""Rules broken on purpose, one mistake each, and the words that a true diagnosis has in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from jax import lax


class Broken(NamedTuple):
    """``backward(dy, *args) -> dargs`` of ``f(*args)``, and a regular expression that the first
    problem of the report has to match."""

    name: str
    f: Callable[..., Any]
    backward: Callable[..., Any]
    args: tuple[Any, ...]
    words: str

    def __str__(self) -> str:
        return self.name

    def rule(self) -> Callable[..., Any]:
        """f with the broken backward as its custom_vjp."""

        def back(args: Any, dy: Any) -> Any:
            dargs = self.backward(dy, *args)
            return dargs if isinstance(dargs, tuple) else (dargs,)

        rule = jax.custom_vjp(lambda *args: self.f(*args))  # without optional arguments
        rule.defvjp(lambda *args: (self.f(*args), args), back)
        return rule


class Rule(NamedTuple):
    """A whole rule, for mistakes that are not in a backward."""

    name: str
    make: Callable[[], Callable[..., Any]]
    args: tuple[Any, ...]
    words: str

    def __str__(self) -> str:
        return self.name

    def rule(self) -> Callable[..., Any]:
        return self.make()


def true(f: Callable[..., Any], dy: Any, *args: Any) -> tuple[Any, ...]:
    """The right cotangents, for a rule that spoils them."""
    return jax.vjp(f, *args)[1](dy)


def spoiled(f: Callable[..., Any], by: Callable[[Any], Any]) -> Callable[..., Any]:
    """A backward that gives the right cotangents after ``by``."""
    return lambda dy, *args: tuple(map(by, true(f, dy, *args)))


def _draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


X = _draw(7)
ROWS = _draw(4, 5)
SQUARE = _draw(4, 4) + 3 * np.eye(4)
WEIGHTS = _draw(5, 3)
KERNEL = _draw(3)
ORDER = np.array([3, 0, 4, 1, 2])
IDS = np.array([2, 0, 2, 1, 2])
TIES = np.array([[1.0, 3, 3], [2, 2, 2], [5, 1, 0]])


# ---- functions -------------------------------------------------------------------------------


def linear(x: Any, w: Any) -> Any:
    return x @ w


def affine(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


def convolve(x: Any, k: Any) -> Any:
    return jnp.convolve(x, k, "valid")


def correlate_2d(x: Any, k: Any) -> Any:
    return lax.conv(x[None, None], k[None, None], (1, 1), "VALID")[0, 0]


def attention(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.softmax(q @ k.T / 2) @ v  # 2 is the square root of the width, 4


def layer_norm(x: Any) -> Any:
    return jax.nn.standardize(x, epsilon=1e-6)


def mean_square(x: Any) -> Any:
    return jnp.mean(x * x)


def huber(x: Any) -> Any:
    return jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - 0.5)


def tied_max(x: Any) -> Any:
    return jnp.max(x, -1)


def recurrence(w: Any, xs: Any) -> Any:
    return lax.scan(lambda h, x: ((h := jnp.tanh(w * h + x)), h), jnp.zeros_like(xs[0]), xs)[1]


def trace_of_gram(x: Any) -> Any:
    return jnp.sum(x @ x.T, -1)


def overwritten(dy: Any, w: Any) -> Any:
    """Rows by ids, whose cotangents need to be added where ids are equal."""
    return jnp.zeros_like(w).at[IDS].set(dy)


def by_one_batch(dy: Any, x: Any) -> Any:
    return true(mean_square, dy, x)[0] * x.shape[0] / 4


def mapped(dtype: Any) -> Callable[[Any], Any]:
    return lambda d: d.astype(dtype).astype(d.dtype)


BROKEN: list[Broken | Rule] = [
    # A constant factor, a sign.
    Broken("sin, the sign", jnp.sin, lambda dy, x: -dy * jnp.cos(x), (X,), "sign is wrong"),
    Broken("square, the 2", jnp.square, lambda dy, x: dy * x, (X,), "a half is lost"),
    Broken(
        "erf, 2 / sqrt(pi)",
        special.erf,
        lambda dy, x: dy * jnp.exp(-x * x),
        (X,),
        r"2 / sqrt\(pi\) is missing",
    ),
    Broken(
        "ndtr, 1 / sqrt(2 pi)",
        special.ndtr,
        lambda dy, x: dy * jnp.exp(-x * x / 2),
        (X,),
        r"sqrt\(2 pi\) is extra",
    ),
    Broken(
        "log2, ln 2", jnp.log2, lambda dy, x: dy / x, (np.exp(X),), "ln 2 is missing|ln 2 is extra"
    ),
    Broken(
        "log10, ln 10",
        jnp.log10,
        lambda dy, x: dy / x,
        (np.exp(X),),
        "ln 10 is missing|ln 10 is extra",
    ),
    Broken(
        "sum, divided by n",
        jnp.sum,
        lambda dy, x: dy * jnp.ones_like(x) / x.size,
        (ROWS,),
        "a mean where a sum is needed",
    ),
    Broken(
        "mean, not divided by n",
        jnp.mean,
        lambda dy, x: dy * jnp.ones_like(x),
        (ROWS,),
        "a sum where a mean is needed",
    ),
    Broken(
        "mean of squares, n of one batch",
        mean_square,
        by_one_batch,
        (_draw(6, 5),),
        "hard-coded|batch size",
    ),
    Broken(
        "attention, the root of its width",
        attention,
        lambda dy, q, k, v: tuple(
            d * s for d, s in zip(true(attention, dy, q, k, v), (2, 2, 1), strict=True)
        ),
        (_draw(3, 4), _draw(5, 4), _draw(5, 2)),
        "square root of 4|counted twice",
    ),
    Broken(
        "var, n - 1 for n",
        jnp.var,
        lambda dy, x: dy * 2 * (x - jnp.mean(x)) / (x.size - 1),
        (X,),
        "n - 1",
    ),
    Broken(
        "1.01 of one leaf",
        affine,
        lambda dy, x, w, b: (dy @ w.T, x.T @ dy, 1.01 * dy.sum(0)),
        (ROWS, WEIGHTS, _draw(3)),
        "x/2: is 1.01 times",
    ),
    Broken(
        "fft, scaled as its inverse",
        lambda x: jnp.fft.fft(x).real,
        lambda dy, x: jnp.fft.fft(dy).real / x.size,
        (X,),
        "a mean where a sum is needed|divided by",
    ),
    # dy.
    Broken(
        "exp, without dy",
        jnp.exp,
        lambda dy, x: jnp.exp(x),
        (X,),
        "same for every upstream cotangent",
    ),
    Broken("exp, zero", jnp.exp, lambda dy, x: 0 * dy, (X,), "zero everywhere"),
    Broken(
        "exp, dy clipped", jnp.exp, lambda dy, x: jnp.clip(dy * jnp.exp(x), -1, 1), (X,), "cut off"
    ),
    Broken(
        "exp, dy squared",
        jnp.exp,
        lambda dy, x: dy * dy * jnp.exp(x),
        (X,),
        "factor dy too often|linear in dy",
    ),
    Broken(
        "square, 0.001 added",
        jnp.square,
        lambda dy, x: 2 * x * dy + 1e-3,
        (X,),
        "0.001 added in every entry",
    ),
    # A factor or a term.
    Broken(
        "logistic, 1 - y",
        jax.nn.sigmoid,
        lambda dy, x: dy * jax.nn.sigmoid(x),
        (X,),
        r"lacks the factor \(1 - y\)",
    ),
    Broken(
        "tanh, 1 - y",
        jnp.tanh,
        lambda dy, x: dy * (1 - jnp.tanh(x)),
        (X,),
        r"lacks the factor \(1 \+ y\)",
    ),
    Broken(
        "tan, 1 - y^2 for 1 + y^2",
        jnp.tan,
        lambda dy, x: dy * (1 - jnp.tan(x) ** 2),
        (X / 3,),
        "is wrong, by",
    ),
    Broken(
        "cube, one x too many",
        lambda x: x**3,
        lambda dy, x: 3 * x**3 * dy,
        (X,),
        "factor x/0 too often",
    ),
    Broken("abs, the sign", jnp.abs, lambda dy, x: dy, (X,), "sign of x/0|input is negative"),
    Broken(
        "exp of a matrix, by its entries",
        lambda w: jnp.exp(w),
        lambda dy, w: dy * jnp.exp(w) * jnp.exp(w),
        (SQUARE,),
        r"factor (y|exp\(x/0\)) too often",
    ),
    Broken(
        "product, a term",
        lambda x: x * jnp.sin(x),
        lambda dy, x: dy * x * jnp.cos(x),
        (X,),
        "is wrong, by|lacks a term",
    ),
    Broken(
        "layer_norm, the mean of dy",
        layer_norm,
        lambda dy, x: (
            (dy - layer_norm(x) * jnp.mean(dy * layer_norm(x), -1, keepdims=True))
            / jnp.std(x, -1, keepdims=True)
        ),
        (ROWS,),
        "sum or mean over the entries|is wrong, by",
    ),
    Broken(
        "logsumexp, not normalised",
        special.logsumexp,
        lambda dy, x: dy * jnp.exp(x),
        (X,),
        "depends on the inputs|factor exp",
    ),
    Broken(
        "x x^T, one of both",
        trace_of_gram,
        lambda dy, x: dy[:, None] * x.sum(0, keepdims=True),
        (ROWS,),
        "is wrong, by|term",
    ),
    # Axes and places.
    Broken(
        "softmax, over the wrong axis",
        jax.nn.softmax,
        lambda dy, x: (y := jax.nn.softmax(x)) * (dy - jnp.sum(y * dy, 0)),
        (_draw(4, 5),),
        "sums over axis 0, needs to sum over axis 1",
    ),
    Broken(
        "log_softmax, over the wrong axis",
        jax.nn.log_softmax,
        lambda dy, x: dy - jnp.exp(jax.nn.log_softmax(x)) * jnp.sum(dy, 0),
        (_draw(4, 5),),
        "sums over axis 0, needs to sum over axis 1",
    ),
    Broken(
        "linear, dW transposed",
        linear,
        lambda dy, x, w: (dy @ w.T, dy.T @ x),
        (_draw(4, 4, seed=1), SQUARE),
        "x/1: is transposed",
    ),
    Broken(
        "linear, w not transposed",
        linear,
        lambda dy, x, w: (dy @ w, x.T @ dy),
        (_draw(3, 4), SQUARE),
        "transposed",
    ),
    Broken(
        "inv, not transposed",
        jnp.linalg.inv,
        lambda dy, a: -(i := jnp.linalg.inv(a)) @ dy @ i,
        (SQUARE,),
        "transposed",
    ),
    Broken(
        "solve, not transposed",
        jnp.linalg.solve,
        lambda dy, a, b: (-(z := jnp.linalg.solve(a, dy)) @ jnp.linalg.solve(a, b).T, z),
        (SQUARE, _draw(4, 2)),
        "transposed",
    ),
    Broken(
        "det, not transposed",
        jnp.linalg.det,
        lambda dy, a: dy * jnp.linalg.det(a) * jnp.linalg.inv(a),
        (SQUARE,),
        "transposed",
    ),
    Broken(
        "multiply, swapped",
        jnp.multiply,
        lambda dy, a, b: (dy * a, dy * b),
        (X, _draw(7, seed=1)),
        "swapped",
    ),
    Broken(
        "subtract, both the same",
        jnp.subtract,
        lambda dy, a, b: (dy, dy),
        (X, _draw(7, seed=1)),
        "sign is wrong",
    ),
    Broken(
        "sum over rows, copied back",
        lambda x: 2 * x,
        lambda dy, x: jnp.broadcast_to(2 * dy.sum(0), x.shape),
        (ROWS,),
        "summed over axis 0",
    ),
    Broken(
        "mean over columns, copied back",
        lambda x: 2 * x,
        lambda dy, x: jnp.broadcast_to(2 * dy.mean(1, keepdims=True), x.shape),
        (ROWS,),
        "averaged over axis 1",
    ),
    Broken(
        "a permutation, not inverted",
        lambda x: x[ORDER],
        lambda dy, x: dy[ORDER],
        (_draw(5),),
        "right numbers in wrong places|inverse",
    ),
    Broken(
        "sort, not put back",
        jnp.sort,
        lambda dy, x: dy,
        (X,),
        "right numbers in wrong places|inverse",
    ),
    Broken(
        "flip, not flipped",
        lambda x: jnp.flip(x, 1),
        lambda dy, x: dy,
        (ROWS,),
        "reversed along axis 1|run the other way",
    ),
    Broken(
        "roll, by one more",
        lambda x: jnp.roll(x, 2),
        lambda dy, x: jnp.roll(dy, -1),
        (X,),
        "rolled by 1 along axis 0",
    ),
    Broken(
        "diff, off by one",
        lambda x: x,
        lambda dy, x: jnp.concatenate([dy[1:], 0 * dy[:1]]),
        (X,),
        "shifted by -1|off by one",
    ),
    Broken(
        "cumsum, not reversed",
        jnp.cumsum,
        lambda dy, x: jnp.cumsum(dy),
        (X,),
        "run the other way|reversed",
    ),
    Broken(
        "cumsum of rows, not reversed",
        lambda x: jnp.cumsum(x, 1),
        lambda dy, x: jnp.cumsum(dy, 1),
        (ROWS,),
        "run the other way|reversed",
    ),
    Broken(
        "convolve, the kernel not flipped",
        convolve,
        lambda dy, x, k: (jnp.convolve(dy, k), true(convolve, dy, x, k)[1]),
        (_draw(8), KERNEL),
        "flipped",
    ),
    Broken(
        "conv in two dimensions, the kernel not flipped",
        correlate_2d,
        lambda dy, x, k: (
            true(correlate_2d, dy, x, k[::-1, ::-1])[0],
            true(correlate_2d, dy, x, k)[1],
        ),
        (_draw(5, 6), _draw(2, 3)),
        "flipped",
    ),
    Broken(
        "rows by ids, overwritten for added",
        lambda w: w[IDS],
        overwritten,
        (_draw(4, 3),),
        "index 2 along axis 0",
    ),
    Broken(
        "the diagonal halved",
        lambda a: a + a.T,
        lambda dy, a: (dy + dy.T) * (1 - jnp.eye(4) / 2),
        (_draw(4, 4),),
        "on the diagonal, where it is 0.5 times",
    ),
    Broken(
        "the upper triangle lost",
        lambda a: a * a,
        lambda dy, a: jnp.tril(2 * a * dy),
        (SQUARE,),
        "above the diagonal, where it is 0",
    ),
    Broken(
        "one entry of many",
        lambda x: x * x,
        lambda dy, x: (2 * x * dy).at[17, 3].multiply(1.5),
        (_draw(40, 6),),
        r"at \[17, 3\] alone",
    ),
    Broken(
        "two rows of a mask",
        lambda x: x * x,
        lambda dy, x: (2 * x * dy).at[:, jnp.array([2, 4])].set(0),
        (_draw(3, 6),),
        "at indices 2, 4 along axis 1, where it is 0",
    ),
    Broken(
        "the ragged end of chunks",
        lambda x: x * x,
        lambda dy, x: (2 * x * dy).at[8:].set(0),
        (_draw(10, 3),),
        "at the last 2 of 10 along axis 0",
    ),
    Broken(
        "one of a batch's edges",
        lambda x: x * x,
        lambda dy, x: (2 * x * dy).at[0].multiply(3),
        (_draw(6, 3),),
        "at the first of 6 along axis 0, where it is 3 times",
    ),
    # Where the input is negative, large, tied.
    Broken(
        "relu, a leak",
        jax.nn.relu,
        lambda dy, x: jnp.where(x > 0, dy, 0.01 * dy),
        (X,),
        "input is negative",
    ),
    Broken("huber, its slope not cut", huber, lambda dy, x: dy * x, (2 * X,), "large"),
    Broken(
        "softplus, in saturation",
        jax.nn.softplus,
        lambda dy, x: jnp.where(x > 2, 0, dy * jax.nn.sigmoid(x)),
        (2 * X,),
        "large|in saturation|where it is 0",
    ),
    Broken(
        "max, all of a tie",
        tied_max,
        lambda dy, x: jnp.where(x == tied_max(x)[:, None], dy[:, None], 0),
        (TIES,),
        "tie",
    ),
    Broken(
        "sqrt, 1e-3 under the root",
        jnp.sqrt,
        lambda dy, x: dy / (2 * jnp.sqrt(x + 1e-3)),
        (np.exp(X),),
        "is wrong, by|depends on the inputs",
    ),
    Broken(
        "norm, NaN at 0",
        lambda x: x * jnp.tanh(x),
        lambda dy, x: dy * (jnp.tanh(x) + x * (1 - jnp.tanh(x) ** 2)) * x / x,
        (np.append(X, 0.0),),
        "NaN .* where the input is 0",
    ),
    # Digits.
    Broken(
        "gelu, the approximation's slope for the exact one",
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda dy, x: true(jax.nn.gelu, dy, x)[0],
        (X,),
        r"is wrong, by (?!.*cast)",
    ),
    Broken(
        "tanh, cast to float16",
        jnp.tanh,
        spoiled(jnp.tanh, mapped(jnp.float16)),
        (X,),
        "accuracy of float16",
    ),
    Broken(
        "tanh, cast to bfloat16",
        jnp.tanh,
        spoiled(jnp.tanh, mapped(jnp.bfloat16)),
        (X,),
        "accuracy of bfloat16",
    ),
    Broken(
        "matmul, cast to float32",
        linear,
        spoiled(linear, mapped(jnp.float32)),
        (ROWS, WEIGHTS),
        "accuracy of float32",
    ),
    # Complex.
    Broken(
        "product of complex numbers, conjugated",
        jnp.multiply,
        lambda dy, a, b: (dy * jnp.conj(b), dy * jnp.conj(a)),
        (_draw(4) + 1j * _draw(4, seed=1), _draw(4, seed=2) + 1j * _draw(4, seed=3)),
        "conj",
    ),
    Broken(
        "|z|^2, not conjugated",
        lambda z: (z * jnp.conj(z)).real,
        lambda dy, z: 2 * dy * z,
        (_draw(4) + 1j * _draw(4, seed=1),),
        "conj|/imag: is -1 times|sign is wrong",
    ),
    # Loops.
    Broken(
        "a recurrence, its carry cut off",
        recurrence,
        lambda dy, w, xs: true(
            lambda w, xs: jnp.tanh(
                w
                * jnp.concatenate(
                    [jnp.zeros_like(xs[:1]), lax.stop_gradient(recurrence(w, xs))[:-1]]
                )
                + xs
            ),
            dy,
            w,
            xs,
        ),
        (_draw(3), _draw(5, 3)),
        "is wrong|wrong only",
    ),
    Rule(
        "fwd returns another value than f",
        lambda: _of(jnp.sin, lambda x: (jnp.sin(x) + 1, x), lambda x, dy: (dy * jnp.cos(x),)),
        (X,),
        "value under the rule",
    ),
    Rule(
        "fwd returns a value of fewer digits",
        lambda: _of(
            jnp.exp,
            lambda x: (mapped(jnp.float32)(jnp.exp(x)), x),
            lambda x, dy: (dy * jnp.exp(x),),
        ),
        (X,),
        "value under the rule",
    ),
    Rule(
        "a custom_jvp, wrong above 5",
        lambda: _jvp(jnp.square, lambda x, t: jnp.where(x > 5, 3, 2) * x * t),
        (np.abs(X) + 0.5,),
        "large|times 8|times 30|is 1.5 times the truth",
    ),
    Rule(
        "a custom_jvp in a scan, wrong above 5",
        lambda: (
            lambda x: lax.scan(
                lambda c, v: (c, _jvp(jnp.square, lambda x, t: jnp.where(x > 5, 3, 2) * x * t)(v)),
                0.0,
                x,
            )[1]
        ),
        (np.abs(X) + 0.5,),
        "large|times 8|times 30|is 1.5 times the truth",
    ),
    Rule(
        "the second derivative, lost",
        lambda: _of(
            jnp.sin, lambda x: (jnp.sin(x), x), lambda x, dy: (dy * lax.stop_gradient(jnp.cos(x)),)
        ),
        (X,),
        "by jax.grad of it|zero",
    ),
    Rule(
        "the second derivative of a custom_jvp, lost",
        lambda: _jvp(jnp.exp, lambda x, t: lax.stop_gradient(jnp.exp(x)) * t),
        (X,),
        "by jax.grad of it|zero",
    ),
    Rule(
        "backward counts the rows of its first batch",
        lambda: _of(
            jnp.mean,
            lambda x: (jnp.mean(x), x),
            lambda x, dy: (jnp.full(x.shape, dy / (6 * x.shape[1])),),
        ),
        (_draw(6, 3),),
        "hard-coded|batch",
    ),
]


def _of(f: Any, fwd: Any, bwd: Any) -> Any:
    rule = jax.custom_vjp(lambda *args: f(*args))
    rule.defvjp(fwd, bwd)
    return rule


def _jvp(f: Any, slope: Callable[[Any, Any], Any]) -> Any:
    rule = jax.custom_jvp(f)
    rule.defjvp(lambda primals, tangents: (f(*primals), slope(*primals, *tangents)))
    return rule
