"""The truth of a sweep: every function of one number, written without fnn's code.

A definition is written once and evaluated in two ways: on float64 arrays by JAX, stable
everywhere, and on single numbers by mpmath at 50 digits, which verifies the former. Where a
derivative crosses zero, float64 would cancel; there it is the Taylor series of the 50-digit one
around the zero. At a kink the derivative is the one that the block declares.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.check.report import CheckError

DIGITS = 50
BEYOND = 2.0**300  # stands for infinity in float64: every power below is finite, every limit met
RADIUS, TERMS = 1 / 16, 10  # of the series around a zero: what it leaves out is below 1e-16

Functions = Any  # exp, log, ... of one kind of number: Double or Exact
Number = Any  # a float64 array, or an mpmath number
Definition = Callable[[Functions, Number], Number]


class Reference(NamedTuple):
    """``value`` and ``derivative``; ``zero``: near where the derivative crosses zero, if it does;
    ``clipped``: infinity is read as :data:`BEYOND`."""

    value: Definition
    derivative: Definition
    zero: float | None = None
    clipped: bool = True


class Double:
    """The functions that the definitions need, on float64 arrays."""

    exp, expm1, log, log1p, sqrt = jnp.exp, jnp.expm1, jnp.log, jnp.log1p, jnp.sqrt
    tanh, where = jnp.tanh, jnp.where
    number = float

    @staticmethod
    def normal_cdf(x: jax.Array) -> jax.Array:
        return jax.scipy.special.erfc(-x * 0.5**0.5) / 2


class Exact:
    """The same on mpmath's numbers; functions that are not defined here are mpmath's own."""

    def __init__(self, context: Any) -> None:
        self.context, self.number = context, context.mpf

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def where(self, test: bool, a: Number, b: Number) -> Number:
        return a if test else b

    def normal_cdf(self, x: Number) -> Number:
        return self.context.erfc(-x / self.context.sqrt(2)) / 2

    def log(self, x: Number) -> Number:
        return self.context.log(x) if x > 0 else self.context.nan  # not a complex number

    def sqrt(self, x: Number) -> Number:
        return self.context.sqrt(x) if x >= 0 else self.context.nan


@functools.cache
def exact_functions() -> Exact:
    """mpmath's functions at 50 digits.

    Raises:
      CheckError: mpmath is not installed.
    """
    try:
        import mpmath
    except ModuleNotFoundError as error:
        raise CheckError(
            "the reference needs mpmath, which is not installed: pip install mpmath"
        ) from error
    context = mpmath.MPContext()  # private: other users of mpmath keep their digits
    context.dps = DIGITS
    return Exact(context)


# ---- definitions -----------------------------------------------------------------------------

SLOPE = 0.01  # leaky_relu's


def sigmoid(m: Functions, x: Number) -> Number:
    """1 / (1 + e^-x)."""
    return 1 / (1 + m.exp(-x))


def _sigmoid_slope(m: Functions, x: Number) -> Number:
    return sigmoid(m, x) * sigmoid(m, -x)


def softplus(m: Functions, x: Number) -> Number:
    """ln(1 + e^x)."""
    return m.where(x > 0, x, 0 * x) + m.log1p(m.exp(-abs(x)))


def _mish_slope(m: Functions, x: Number) -> Number:
    s = softplus(m, x)
    u = m.exp(-2 * s)  # sech^2 s = 4 u / (1 + u)^2
    return m.tanh(s) + x * 4 * u / ((1 + u) * (1 + u)) * sigmoid(m, x)


def _gelu_slope(m: Functions, x: Number) -> Number:
    density = m.number("0.3989422804014326779399460599343818684758586311649") * m.exp(-x * x / 2)
    return m.normal_cdf(x) + x * density


def _gelu_v(m: Functions, x: Number) -> tuple[Number, Number]:
    """v = 2 sqrt(2 / pi) (x + 0.044715 x^3) and its derivative (Hendrycks and Gimpel, 2016)."""
    gain = m.number("1.595769121605730711759784239737527473903434524659")
    cubic = m.number("0.044715")
    return gain * (x + cubic * x * x * x), gain * (1 + 3 * cubic * x * x)


def _gelu_tanh(m: Functions, x: Number) -> Number:
    return x * sigmoid(m, _gelu_v(m, x)[0])


def _gelu_tanh_slope(m: Functions, x: Number) -> Number:
    v, dv = _gelu_v(m, x)
    return sigmoid(m, v) + x * dv * _sigmoid_slope(m, v)


def _exponential_unit(scale: str, alpha: float | str, width: float) -> Reference:
    """scale * x above 0, scale * alpha * (exp(x / width) - 1) below."""

    def value(m: Functions, x: Number) -> Number:
        below = m.number(alpha) * m.expm1(m.where(x > 0, 0 * x, x) / width)
        return m.number(scale) * m.where(x > 0, x, below)

    def derivative(m: Functions, x: Number) -> Number:
        below = m.number(alpha) / width * m.exp(m.where(x > 0, 0 * x, x) / width)
        return m.number(scale) * m.where(x > 0, 1 + 0 * x, below)

    return Reference(value, derivative)


def _inside(m: Functions, x: Number, edge: float, slope: Number) -> Number:
    return m.where(abs(x) < edge, slope + 0 * x, 0 * x)


def _steps(m: Functions, x: Number, at_zero: float, below: float = 0.0) -> Number:
    """1 above zero, ``at_zero`` there, ``below`` below."""
    return m.where(x > 0, 1 + 0 * x, m.where(x < 0, below + 0 * x, at_zero + 0 * x))


def _constant(m: Functions, x: Number, number: float) -> Number:
    """The derivative of a block without residuals: a constant even at NaN, as documented."""
    return m.where(x == x, number + 0 * x, number)


REFERENCES: dict[str, Reference] = {
    "identity": Reference(lambda m, x: x, lambda m, x: _constant(m, x, 1.0)),
    "step": Reference(lambda m, x: _steps(m, x, 1.0), lambda m, x: _constant(m, x, 0.0)),
    "logistic": Reference(sigmoid, _sigmoid_slope),
    "tanh": Reference(lambda m, x: m.tanh(x), lambda m, x: 4 * _sigmoid_slope(m, 2 * x)),
    "relu": Reference(lambda m, x: m.where(x > 0, x, 0 * x), lambda m, x: _steps(m, x, 0.0)),
    "leaky_relu": Reference(
        lambda m, x: m.where(x > 0, x, SLOPE * x), lambda m, x: _steps(m, x, SLOPE, SLOPE)
    ),
    "hard_tanh": Reference(
        lambda m, x: m.where(abs(x) < 1, x, _steps(m, x, 0.0, -1.0)),
        lambda m, x: _inside(m, x, 1, 1),
    ),
    "hard_sigmoid": Reference(
        lambda m, x: m.where(abs(x) < 3, (x + 3) / 6, _steps(m, x, 0.0)),
        lambda m, x: _inside(m, x, 3, m.number(1) / 6),
    ),
    "absolute": Reference(lambda m, x: abs(x), lambda m, x: _steps(m, x, 0.0, -1.0)),
    "elu": _exponential_unit("1", 1.0, 1.0),
    "elu(0.3)": _exponential_unit("1", 0.3, 1.0),
    # The constants: Klambauer et al., NeurIPS 2017.
    "selu": _exponential_unit(
        "1.0507009873554804934193349852946", "1.6732632423543772848170429916717", 1.0
    ),
    "celu(1.7)": _exponential_unit("1", 1.7, 1.7),  # a width that is no power of two
    "softplus": Reference(softplus, sigmoid),
    "softsign": Reference(
        lambda m, x: x / (1 + abs(x)), lambda m, x: 1 / ((1 + abs(x)) * (1 + abs(x)))
    ),
    "silu": Reference(
        lambda m, x: x * sigmoid(m, x),
        lambda m, x: sigmoid(m, x) + x * _sigmoid_slope(m, x),
        zero=-1.278,
    ),
    "mish": Reference(lambda m, x: x * m.tanh(softplus(m, x)), _mish_slope, zero=-1.192),
    "gelu": Reference(lambda m, x: x * m.normal_cdf(x), _gelu_slope, zero=-0.752),
    "gelu_tanh": Reference(_gelu_tanh, _gelu_tanh_slope, zero=-0.752),
    "negate": Reference(lambda m, x: -x, lambda m, x: _constant(m, x, -1.0)),
    "exp": Reference(lambda m, x: m.exp(x), lambda m, x: m.exp(x)),
    "log": Reference(lambda m, x: m.log(x), lambda m, x: 1 / x, clipped=False),
    "square": Reference(lambda m, x: x * x, lambda m, x: 2 * x),
    # abs: the slope at -0 is infinity, as at 0
    "sqrt": Reference(lambda m, x: m.sqrt(x), lambda m, x: 0.5 / abs(m.sqrt(x))),
    "power(2)": Reference(lambda m, x: x * x, lambda m, x: 2 * x),
    "power(3)": Reference(lambda m, x: x * x * x, lambda m, x: 3 * x * x),
    "power(-1)": Reference(lambda m, x: 1 / x, lambda m, x: -1 / (x * x)),
    # (-inf)^p is inf for 0 < p and 0 for p < 0, as in IEEE 754, whose pow asks for no root.
    "power(0.5)": Reference(
        lambda m, x: m.where(x == -BEYOND, abs(x), m.sqrt(x)),
        lambda m, x: m.where(x == -BEYOND, 0 * x, 0.5 / abs(m.sqrt(x))),
    ),
}


# ---- the two evaluations ----------------------------------------------------------------------


@functools.cache
def float64(name: str) -> jax.stages.Wrapped:
    """Value and derivative on a float64 array, compiled; for use under ``jax.enable_x64``."""
    reference = REFERENCES[name]
    centre, series = _series(name)

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.clip(x, -BEYOND, BEYOND) if reference.clipped else x
        slope = reference.derivative(Double, x)
        if series:
            d, near = x - centre, jnp.zeros_like(x)  # near the zero d is exact for a float32 x
            for coefficient in reversed(series):
                near = near * d + coefficient
            slope = jnp.where(abs(d) < RADIUS, near, slope)
        return reference.value(Double, x), slope

    return jax.jit(both)


def exact(name: str, x: float) -> tuple[Any, Any]:
    """Value and derivative at one finite number, at 50 digits."""
    m, reference = exact_functions(), REFERENCES[name]
    return reference.value(m, m.mpf(x)), reference.derivative(m, m.mpf(x))


def zero_of(name: str) -> float | None:
    """The float64 number nearest to the derivative's zero, if it has one."""
    return _series(name)[0] if REFERENCES[name].zero is not None else None


@functools.cache
def _series(name: str) -> tuple[float, tuple[float, ...]]:
    """The derivative's Taylor series around the float64 number nearest to its zero."""
    reference = REFERENCES[name]
    if reference.zero is None:
        return 0.0, ()
    m = exact_functions()
    derivative = functools.partial(reference.derivative, m)
    centre = float(m.findroot(derivative, reference.zero))
    return centre, tuple(float(c) for c in m.taylor(derivative, centre, TERMS))
