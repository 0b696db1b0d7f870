"""Nonlinearities: elementwise functions with the derivative beside the value.

Each is written as ``value(x)`` and ``derivative(x)``, both computed from the *input*. The
textbook shortcuts from the output (``y * (1 - y)``, ``1 - y * y``) lose every digit once the
output saturates: in float32, logistic'(20) is 2.06e-9 and ``y * (1 - y)`` gives 0.

What holds for all of them (tests/test_nonlinearities.py):

- Value and derivative are within 4 units in the last place in float32 on CPU (the derivative
  of the tanh form of gelu within 5), and within 1e-14
  relative in float64, wherever the true result is a normal number, zeros of a derivative
  included. (XLA on CPU flushes subnormal numbers, below 1.2e-38 in float32, to zero.)
- Infinities give the limit. NaN gives NaN, forward and backward; ``step`` and ``identity``,
  which keep no residual, are the two exceptions in backward.
- x and y have one shape, any shape, and one floating dtype; params are ``{}``.

Three tools recur below. ``e = exp(-|x|)`` never overflows, and one formula in e for each sign
of x is all a sigmoid-like function needs. Where a derivative crosses zero, at r, the formula
is rewritten in ``d = x - r`` so that every term has the sign of d and nothing cancels. And
``exp`` of a product is computed from an exact head and a small tail of the product: rounding
an exponent near -80 to one unit costs forty units in the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fnn.block import (
    Block,
    BlockValueError,
    Key,
    Params,
    Residuals,
    Value,
    compute_dtype,
    inference,
    no_params,
    require_floating,
)
from fnn.softmax import log_softmax as log_softmax
from fnn.softmax import softmax as softmax

FAR = 1000.0  # exp(-FAR) is 0 in every dtype; clipping there keeps inf * 0 out of a formula


def elementwise(
    name: str,
    value: Callable[[jax.Array], jax.Array],
    derivative: Callable[[jax.Array], jax.Array],
) -> Block:
    """A block from a function of one number and its derivative.

    forward: y = value(x); backward: dx = dy * derivative(x). bfloat16 and float16 are
    computed in float32 and rounded once.

    Residuals: ``x``, from which the derivative is accurate also where ``y`` has saturated.
    """

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_floating(name, "x", x)
        return value(x.astype(compute_dtype(x.dtype))).astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        wide = compute_dtype(x.dtype)
        return {}, (dy.astype(wide) * derivative(x.astype(wide))).astype(x.dtype)

    return Block(no_params, forward, backward, name)


def piecewise_linear(
    name: str,
    value: Callable[[jax.Array], jax.Array],
    piece: Callable[[jax.Array], jax.Array],
    slopes: Sequence[float],
) -> Block:
    """A block from a function made of straight pieces.

    forward: y = value(x), with x on piece number ``piece(x)`` (0, 1, ...);
    backward: dx = slopes[piece] * dy, and NaN where x was NaN.

    Residuals: the number of the piece, one byte an element. A NaN has a number of its own,
    ``len(slopes)``, because NaN must not turn into a silent 0 on the way back. Where a slope
    is 0, dx is 0 whatever dy, as in jax.nn.relu.
    """

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_floating(name, "x", x)
        code = jnp.where(jnp.isnan(x), len(slopes), piece(x).astype(jnp.uint8))
        return value(x.astype(compute_dtype(x.dtype))).astype(x.dtype), code

    def backward(params: Params, code: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        wide = dy.astype(compute_dtype(dy.dtype))
        dx = jnp.full_like(wide, jnp.nan)
        for number, slope in enumerate(slopes):
            dx = jnp.where(code == number, slope * wide if slope else 0.0, dx)
        return {}, dx.astype(dy.dtype)

    return Block(no_params, forward, backward, name)


# ---- tools -----------------------------------------------------------------------------------


def _magnitude(x: jax.Array) -> jax.Array:
    """|x| whose own derivative at 0 is 1, whatever jnp.abs chooses: with ``x < 0`` as the test
    beside it, the formulas below are differentiable at 0 and second derivatives right."""
    return jnp.where(x < 0, -x, x)


def _single(x: jax.Array) -> bool:
    return x.dtype == jnp.float32


def _exp_parts(x: jax.Array, tail: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """exp(x + tail) for x <= 0 as a product of two factors, neither of which is subnormal.

    x exp(x) is a normal float32 down to x = -91.8, exp(x) only down to -87.3. The shift is
    exact, because x and the shift are within a factor of two of each other. What rounding
    takes from x + tail, where |tail| < |x|, is known exactly and put back as a factor.
    """
    total = x if tail is None else x + tail
    shift = 61.0 if _single(x) else 512.0  # float32 holds exp(-61) to 0.02 units
    far = total < -shift
    power = jnp.exp(jnp.where(far, total + shift, total))
    if tail is not None:
        power = power + power * (tail - (total - x))
    return power, jnp.where(far, math.exp(-shift), 1.0)


def _expm1_series(x: jax.Array) -> jax.Array:
    """exp(x) - 1 for |x| < 0.7 by its Taylor series, to the last digit of the dtype."""
    terms = 9 if _single(x) else 17
    y = jnp.full_like(x, 1 / math.factorial(terms))
    for k in range(terms - 1, 1, -1):
        y = 1 / math.factorial(k) + x * y
    return x + x * (x * y)  # one rounding of size x; x * (1 + x * y) has two


def _expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1 for x <= 0. (XLA's own is 5.6 units off near 0.03.)"""
    return jnp.where(x > -0.7, _expm1_series(x), jnp.exp(x) - 1)


def _head(x: jax.Array, bits: int | None = None) -> jax.Array:
    """x rounded to ``bits`` significant bits; by default half of them, so that the product of
    two heads is exact."""
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, (bits or (info.nmant + 1) // 2) - 1)


def _split(constant: str | Fraction, x: jax.Array, bits: int | None = None) -> tuple[float, float]:
    """A constant as head + tail: the head has ``bits`` significant bits (by default all those
    of x's dtype), the tail is what is left."""
    exact = Fraction(constant)
    exponent = (bits or jnp.finfo(x.dtype).nmant + 1) - math.frexp(float(exact))[1]
    head = Fraction(round(exact * Fraction(2) ** exponent)) / Fraction(2) ** exponent
    return float(head), float(exact - head)


def _minus_root(x: jax.Array, root: str) -> jax.Array:
    """x - root to full relative accuracy near the root, which no floating number equals.

    The tail of the root is scaled by x / root, about 1 there: XLA adds the two constants of
    ``x - head - tail`` up, and so loses the tail.
    """
    head, tail = _split(root, x)
    return (x - head) - x * (tail / head)


# ---- the lecture's four ----------------------------------------------------------------------


def step() -> Block:
    """The binary threshold: y = 1 where x >= 0, 0 where x < 0 (McCulloch and Pitts, 1943).

    Derivative: 0 everywhere, at the jump too, so nothing below a step learns; see
    :func:`straight_through`. step(0) = 1: the unit fires when it reaches its threshold.

    Residuals: none. NaN gives NaN forward; backward is 0 even there, as a byte an element to
    remember where x was NaN would buy nothing that the NaN in y does not already show.

    >>> import jax.numpy as jnp
    >>> from fnn import step
    >>> step().forward({}, jnp.array([-1.0, 0.0, 1.0]))[0]
    Array([0., 1., 1.], dtype=float32)
    """

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, tuple[()]]:
        require_floating("step", "x", x)
        return jnp.where(jnp.isnan(x), x, (x >= 0).astype(x.dtype)), ()

    def backward(params: Params, residuals: tuple[()], dy: jax.Array) -> tuple[Params, jax.Array]:
        return {}, jnp.zeros_like(dy)

    return Block(no_params, forward, backward, "step")


def logistic() -> Block:
    r"""The logistic function, the lecture's sigmoid: y = 1 / (1 + exp(-x)).

    Derivative: :math:`e / (1 + e)^2` with :math:`e = \exp(-|x|)`, which equals
    y (1 - y) and keeps its digits in both tails.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import logistic
    >>> y, x = logistic().forward({}, jnp.array([0.0, 20.0]))
    >>> logistic().backward({}, x, jnp.ones(2))[1]
    Array([2.5000000e-01, 2.0611537e-09], dtype=float32)
    """

    def derivative(x: jax.Array) -> jax.Array:
        e = jnp.exp(-_magnitude(x))
        return e / (1 + e * (2 + e))

    return elementwise("logistic", jax.nn.sigmoid, derivative)


def tanh() -> Block:
    r"""The hyperbolic tangent: y = (1 - e) / (1 + e) with :math:`e = \exp(-2|x|)`, odd, and an
    odd polynomial where :math:`|x| < 0.6`. (XLA's own is 4.6 units off near 5 in float32.)

    Derivative: :math:`1 / \cosh^2 x = 4 e / (1 + e)^2`.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import tanh
    >>> y, x = tanh().forward({}, jnp.array([0.0, 20.0]))
    >>> tanh().backward({}, x, jnp.ones(2))[1]  # 1 - y * y would be 0 at 20
    Array([1.0000000e+00, 1.6993417e-17], dtype=float32)
    """

    # (tanh(x) / x - 1) / x^2 as a polynomial in x^2 < 0.36, Chebyshev fit, error 3e-8
    small = (-0.333333303, 0.133329154, -0.0538739488, 0.021110959, -0.00626911971)

    def value(x: jax.Array) -> jax.Array:
        if not _single(x):
            return jnp.tanh(x)
        square = x * x
        y = jnp.zeros_like(x)
        for coefficient in reversed(small):
            y = y * square + coefficient
        e = jnp.exp(-2 * _magnitude(x))
        large = jnp.where(x < 0, e - 1, 1 - e) / (1 + e)
        return jnp.where(jnp.abs(x) < 0.6, x + x * (square * y), large)

    def derivative(x: jax.Array) -> jax.Array:
        power, shift = _exp_parts(-2 * _magnitude(x))
        e = power * shift
        return 4 * shift * power / (1 + e * (2 + e))

    return elementwise("tanh", value, derivative)


def relu() -> Block:
    """The rectifier: y = max(x, 0) (Nair and Hinton, ICML 2010).

    Derivative: 1 where x > 0, else 0; relu'(0) = 0.

    Residuals: one byte an element (see :func:`piecewise_linear`); jax.vjp of
    ``jnp.maximum(x, 0)`` keeps x, four.

    >>> import jax.numpy as jnp
    >>> from fnn import relu
    >>> y, code = relu().forward({}, jnp.array([-1.0, 0.0, 2.0]))
    >>> relu().backward({}, code, jnp.ones(3))[1]
    Array([0., 0., 1.], dtype=float32)
    """
    return piecewise_linear("relu", lambda x: jnp.maximum(x, 0), lambda x: x > 0, (0.0, 1.0))


# ---- piecewise linear ------------------------------------------------------------------------


def leaky_relu(slope: float = 0.01) -> Block:
    """A rectifier that leaks: y = x where x > 0, else slope * x (Maas, Hannun and Ng, 2013).

    Derivative: 1 where x > 0, else slope; leaky_relu'(0) = slope.

    Residuals: one byte an element, see :func:`piecewise_linear`.

    >>> import jax.numpy as jnp
    >>> from fnn import leaky_relu
    >>> leaky_relu(0.1).forward({}, jnp.array([-1.0, 2.0]))[0]
    Array([-0.1,  2. ], dtype=float32)
    """
    return piecewise_linear(
        "leaky_relu",
        lambda x: jnp.where(x > 0, x, slope * x),
        lambda x: x > 0,
        (slope, 1.0),
    )


def hard_tanh() -> Block:
    """tanh made of lines: y = min(max(x, -1), 1).

    Derivative: 1 where |x| < 1, else 0; hard_tanh'(-1) = hard_tanh'(1) = 0.

    Residuals: one byte an element, see :func:`piecewise_linear`.

    >>> import jax.numpy as jnp
    >>> from fnn import hard_tanh
    >>> hard_tanh().forward({}, jnp.array([-2.0, 0.5, 2.0]))[0]
    Array([-1. ,  0.5,  1. ], dtype=float32)
    """
    return piecewise_linear(
        "hard_tanh", lambda x: jnp.clip(x, -1, 1), lambda x: jnp.abs(x) < 1, (0.0, 1.0)
    )


def hard_sigmoid() -> Block:
    """The logistic function made of lines: y = min(max(x + 3, 0), 6) / 6
    (Howard et al., MobileNetV3, 2019; also jax.nn.hard_sigmoid).

    Derivative: 1/6 where |x| < 3, else 0; hard_sigmoid'(-3) = hard_sigmoid'(3) = 0.

    Residuals: one byte an element, see :func:`piecewise_linear`.

    >>> import jax.numpy as jnp
    >>> from fnn import hard_sigmoid
    >>> hard_sigmoid().forward({}, jnp.array([-4.0, 0.0, 4.0]))[0]
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    return piecewise_linear(
        "hard_sigmoid",
        lambda x: jnp.clip(x + 3, 0, 6) / 6,
        lambda x: jnp.abs(x) < 3,
        (0.0, 1 / 6),
    )


def absolute() -> Block:
    """The absolute value: y = |x|.

    Derivative: the sign of x; |x|'(0) = 0, the middle of [-1, 1].

    Residuals: one byte an element, see :func:`piecewise_linear`.

    >>> import jax.numpy as jnp
    >>> from fnn import absolute
    >>> y, code = absolute().forward({}, jnp.array([-2.0, 0.0, 2.0]))
    >>> absolute().backward({}, code, jnp.ones(3))[1]
    Array([-1.,  0.,  1.], dtype=float32)
    """

    def piece(x: jax.Array) -> jax.Array:
        return (x >= 0).astype(jnp.uint8) + (x > 0).astype(jnp.uint8)

    return piecewise_linear("absolute", jnp.abs, piece, (-1.0, 0.0, 1.0))


def identity() -> Block:
    """y = x. Derivative: 1.

    Residuals: none, so backward passes dy on as it is, also where x was NaN (y shows it).

    >>> import jax.numpy as jnp
    >>> from fnn import identity
    >>> identity().forward({}, jnp.array([-2.0, 2.0]))[0]
    Array([-2.,  2.], dtype=float32)
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, tuple[()]]:
        return x, ()

    def backward(params: Params, residuals: tuple[()], dy: Value) -> tuple[Params, Value]:
        return {}, dy

    return Block(no_params, forward, backward, "identity")


# ---- exponential below zero ------------------------------------------------------------------


def _exponential_unit(name: str, scale: float, alpha: float, width: float) -> Block:
    """scale * x above 0, scale * alpha * (exp(x / width) - 1) below."""

    def exponent(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x / width as exact head and small tail; 0 where x > 0."""
        x = jnp.where(x > 0, 0.0, jnp.maximum(x, -FAR * width))
        if width == 1:
            return x, jnp.zeros_like(x)
        head, tail = _split(1 / Fraction(width), x, (jnp.finfo(x.dtype).nmant + 1) // 2)
        return _head(x) * head, (x - _head(x)) * head + x * tail

    def value(x: jax.Array) -> jax.Array:
        head, tail = exponent(x)
        below = scale * alpha * _expm1(head + tail)
        if width != 1:  # the quotient of a tiny x may be subnormal
            below = jnp.where(x > -1e-30, scale * alpha / width * x, below)
        return jnp.where(x > 0, scale * x, below)

    def derivative(x: jax.Array) -> jax.Array:
        power, shift = _exp_parts(*exponent(x))
        return jnp.where(x > 0, scale, scale * alpha / width * shift * power)

    return elementwise(name, value, derivative)


def elu(alpha: float = 1.0) -> Block:
    """The exponential linear unit: y = x where x > 0, else alpha * (exp(x) - 1)
    (Clevert, Unterthiner and Hochreiter, ICLR 2016).

    Derivative: 1 where x > 0, else alpha * exp(x); elu'(0) = alpha, from the left, as in jax.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import elu
    >>> elu().forward({}, jnp.array([-1.0, 0.0, 2.0]))[0]
    Array([-0.63212055,  0.        ,  2.        ], dtype=float32)
    """
    return _exponential_unit("elu", 1.0, alpha, 1.0)


def selu() -> Block:
    """The self-normalising elu: y = scale * elu(x, alpha), with the two constants for which
    zero mean and unit variance are a fixed point (Klambauer et al., NeurIPS 2017).

    Derivative: scale where x > 0, else scale * alpha * exp(x); selu'(0) = scale * alpha.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import selu
    >>> selu().forward({}, jnp.array([-1.0, 0.0, 1.0]))[0]
    Array([-1.1113307,  0.       ,  1.050701 ], dtype=float32)
    """
    return _exponential_unit("selu", 1.0507009873554804934193, 1.6732632423543772848170, 1.0)


def celu(alpha: float = 1.0) -> Block:
    """The continuously differentiable elu: y = x where x > 0, else alpha * (exp(x / alpha) - 1)
    (Barron, 2017, arXiv:1704.07483).

    Derivative: 1 where x > 0, else exp(x / alpha); celu'(0) = 1, no kink. x / alpha is taken
    as head and tail, see the top of the file.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import celu
    >>> celu(2.0).forward({}, jnp.array([-1.0, 0.0, 2.0]))[0]
    Array([-0.78693867,  0.        ,  2.        ], dtype=float32)
    """
    if not alpha > 0:
        raise BlockValueError("celu", f"alpha is {alpha} and must be positive: it is a width")
    return _exponential_unit("celu", 1.0, alpha, alpha)


# ---- smooth ----------------------------------------------------------------------------------


def softplus() -> Block:
    r"""A smooth rectifier: y = log(1 + exp(x)) = max(x, 0) + log1p(e), :math:`e = \exp(-|x|)`.

    Derivative: the logistic function.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import softplus
    >>> softplus().forward({}, jnp.array([-20.0, 0.0, 20.0]))[0]
    Array([2.0611537e-09, 6.9314718e-01, 2.0000000e+01], dtype=float32)
    """

    def value(x: jax.Array) -> jax.Array:
        return jnp.where(x < 0, 0.0, x) + jnp.log1p(jnp.exp(-_magnitude(x)))

    return elementwise("softplus", value, jax.nn.sigmoid)


def softsign() -> Block:
    """y = x / (1 + |x|).

    Derivative: 1 / (1 + |x|)^2, which is differentiable once at 0 and no more.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import softsign
    >>> softsign().forward({}, jnp.array([-jnp.inf, -1.0, 0.0, 3.0]))[0]
    Array([-1.  , -0.5 ,  0.  ,  0.75], dtype=float32)
    """

    def value(x: jax.Array) -> jax.Array:
        largest = float(jnp.finfo(x.dtype).max)
        x = jnp.clip(x, -largest, largest)  # inf / inf
        return x / (1 + jnp.abs(x))

    def derivative(x: jax.Array) -> jax.Array:
        return 1 / jnp.square(1 + jnp.abs(x))

    return elementwise("softsign", value, derivative)


def silu() -> Block:
    r"""y = x / (1 + exp(-x)), also called swish (Elfwing, Uchibe and Doya, 2018;
    Ramachandran, Zoph and Le, 2017).

    Derivative: for x < 0, :math:`e (1 + x + e) / (1 + e)^2` with :math:`e = \exp(x)`, and
    silu'(x) = 1 - silu'(-x). It is 0 at r = -1.278, where :math:`1 + r = -\exp(r)`; near there
    :math:`1 + x + e = d + \exp(r) (\exp(d) - 1)` with d = x - r has no cancellation.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import silu
    >>> y, x = silu().forward({}, jnp.array([-2.0, -1.2784645, 0.0, 2.0]))
    >>> silu().backward({}, x, jnp.ones(4))[1]
    Array([-9.0784252e-02, -2.8270397e-09,  5.0000000e-01,  1.0907843e+00],      dtype=float32)
    """
    root = "-1.278464542761073795109358739022980155439"

    def value(x: jax.Array) -> jax.Array:
        x = jnp.maximum(x, -FAR)
        power, shift = _exp_parts(-_magnitude(x))
        return x * jnp.where(x < 0, shift, 1.0) * jnp.where(x < 0, power, 1) / (1 + power * shift)

    def derivative(x: jax.Array) -> jax.Array:
        low = -jnp.minimum(_magnitude(x), FAR)
        power, shift = _exp_parts(low)
        e = power * shift
        d = _minus_root(low, root)
        near = d + math.exp(float(root)) * _expm1_series(d)
        below = jnp.where(jnp.abs(d) < 0.5, near, 1 + low + e) * shift * power / (1 + e * (2 + e))
        return jnp.where(x < 0, below, 1 - below)

    return elementwise("silu", value, derivative)


def mish() -> Block:
    r"""y = x tanh(log(1 + exp(x))) (Misra, BMVC 2020).

    With :math:`e = \exp(x)` and :math:`n = e (e + 2)`, tanh(log(1 + e)) = n / (n + 2), for
    x < 0 taken as :math:`e - e\,e (1 + e) / (n + 2)`, which rounds fewer times.

    Derivative: for x < 0, :math:`e w / (n + 2)^2` with
    :math:`w = 4 (1 + x) + e (4 x + 6) + 4 e^2 + e^3`; for x >= 0 the same with numerator and
    denominator divided by :math:`e^4`. w is 0 at r = -1.192; with d = x - r, t = exp(d) - 1 and
    E = exp(r), :math:`w = 4 d (1 + e) + t (a + t (b + t E^3))`,
    :math:`a = E (4 r + 6) + 8 E^2 + 3 E^3`, :math:`b = 4 E^2 + 3 E^3`, has no cancellation.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import mish
    >>> mish().forward({}, jnp.array([-jnp.inf, -1.0, 0.0, 100.0]))[0]
    Array([  0.        ,  -0.30340147,   0.        , 100.        ], dtype=float32)
    """
    root = "-1.192431214515495212137588340420739405601"

    def value(x: jax.Array) -> jax.Array:
        x = jnp.maximum(x, -FAR)
        power, shift = _exp_parts(-_magnitude(x))
        e = power * shift
        below = x * shift * power
        below = below - below * (e * (1 + e) / (2 + e * (2 + e)))
        above = x * (1 + 2 * e) / (1 + e * (2 + 2 * e))
        return jnp.where(x < 0, below, above)

    def derivative(x: jax.Array) -> jax.Array:
        size = jnp.minimum(_magnitude(x), FAR)
        power, shift = _exp_parts(-size)
        e = power * shift
        d = _minus_root(-size, root)
        t, r, at_root = _expm1_series(d), float(root), math.exp(float(root))
        a = at_root * (4 * r + 6 + at_root * (8 + 3 * at_root))
        b = at_root**2 * (4 + 3 * at_root)
        near = 4 * d * (1 + e) + t * (a + t * (b + t * at_root**3))
        w = 4 * (1 - size) + e * (6 - 4 * size + e * (4 + e))
        w = jnp.where(jnp.abs(d) < 0.5, near, w)
        below = w * shift * power / (4 + e * (8 + e * (8 + e * (4 + e))))
        above = 1 + e * (4 + e * (6 + 4 * e + 4 * size * (1 + e)))
        above = above / (1 + e * (4 + e * (8 + e * (8 + 4 * e))))
        return jnp.where(x < 0, below, above)

    return elementwise("mish", value, derivative)


# Chebyshev coefficients in q = 2 a / (a + 4) - 1, a >= 0, of two functions of the normal
# distribution, with P its lower tail and p its density (computed with mpmath, 40 digits):
# (1 + a / 4) P(-a) exp(a^2 / 2), the tail over the density, and
# (P(-a) - a p(a)) exp(a^2 / 2) / (r - a), gelu'(-a) likewise, its zero r divided out.
# The idea of such a map for erfc: Shepherd and Laframboise, Math. Comp. 36, 1981.
# fmt: off
_TAIL = (
    0.24261280114151915, -0.18792720420989265, 0.05554838891881276, -0.012129438315111521,
    0.0017314801240606202, -8.014961859953749e-05, -2.5136847908026697e-05,
    4.725842254926741e-06, 2.5258922136865774e-07, -1.536333687349456e-07,
    -8.452550300172939e-10, 5.171627015435708e-09, -2.8206509081173767e-11,
    -1.9435038070971737e-10, -2.485356047851177e-12, 7.936207374645758e-12,
    4.606201711176235e-13, -3.2821541166777413e-13, -4.353840663163703e-14,
    1.2268185079261061e-14, 3.232846081541394e-15, -3.0451658804315853e-16,
    -2.0130368431552333e-16, -7.151235360654053e-18, 1.0142661060838386e-17,
)
_GELU_SLOPE = (
    0.49595474370069426, -0.12545248682662027, 0.03490510198467443, -0.007524010441293161,
    0.0011560284436263372, -9.36772720640145e-05, -5.6597012302996885e-06,
    2.3677309066664844e-06, -8.107593380313914e-08, -5.1877747208246695e-08,
    4.570057475859399e-09, 1.365617100370196e-09, -1.602660258606792e-10,
    -4.555152315040624e-11, 4.92768477171383e-12, 1.828653400261278e-12,
    -1.166767494573978e-13, -8.041463817134733e-14, -1.8590888190635316e-16,
    3.5183502280906947e-15, 3.0491112181259736e-16, -1.367841210303818e-16,
    -2.8875126980827283e-17,
)
# fmt: on


def _chebyshev(coefficients: Sequence[float], q: jax.Array) -> jax.Array:
    """The sum of a Chebyshev series at |q| <= 1; float32 needs its first twelve terms."""
    some = coefficients[:12] if _single(q) else coefficients
    y = jnp.zeros_like(q)
    for power in np.polynomial.chebyshev.cheb2poly(some)[::-1]:
        y = y * q + float(power)
    return y


def gelu(approximate: bool = False) -> Block:
    r"""y = x P(x), P the standard normal distribution (Hendrycks and Gimpel, 2016).

    Derivative: P(x) + x p(x), p the normal density, in the form
    :math:`\exp(-x^2/2) (r - a) T(a)` for x = -a < 0 (T smooth and positive, r = 0.752 where
    the derivative is 0), and gelu'(x) = 1 - gelu'(-x). P is computed likewise as density
    times a smooth function: 1 + erf(x / sqrt 2) loses every digit at -6, and erfc many through
    the rounding of its argument.

    ``approximate=True`` is the paper's formula with tanh in place of P,
    y = x / (1 + exp(-v)), :math:`v = 2 \sqrt{2/\pi}\,(x + 0.044715 x^3)`, exact in itself. The
    two differ by up to 5e-4; forward and backward always use the same.

    Residuals: ``x``.

    >>> import jax.numpy as jnp
    >>> from fnn import gelu
    >>> gelu().forward({}, jnp.array([-13.0, -1.0, 0.0, 1.0]))[0]
    Array([-7.9523144e-38, -1.5865526e-01,  0.0000000e+00,  8.4134471e-01],      dtype=float32)
    >>> gelu(approximate=True).forward({}, jnp.array([-1.0, 0.0, 1.0]))[0]
    Array([-0.15880802,  0.        ,  0.841192  ], dtype=float32)
    """
    if approximate:
        return _gelu_tanh()
    root = "0.7517915246935644574579049467795240396645"

    def density(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        """exp(-a^2 / 2) in two factors, from the exact square of a's head."""
        head = _head(a)
        return _exp_parts(-head * head / 2, (head - a) * (head + a) / 2)

    def value(x: jax.Array) -> jax.Array:
        a = jnp.minimum(_magnitude(x), 40.0)  # exp(-40^2 / 2) is 0 in every dtype
        power, shift = density(a)
        g = 4 * a / (a + 4)
        tail = g * _chebyshev(_TAIL, g / 2 - 1) * shift * power  # a P(-a)
        return jnp.where(x < 0, -tail, x - tail)

    def derivative(x: jax.Array) -> jax.Array:
        a = jnp.minimum(_magnitude(x), 40.0)
        power, shift = density(a)
        slope = -_minus_root(a, root) * _chebyshev(_GELU_SLOPE, 2 * a / (a + 4) - 1) * shift * power
        return jnp.where(x < 0, slope, 1 - slope)

    return elementwise("gelu", value, derivative)


def _gelu_tanh() -> Block:
    """gelu with tanh, as silu with v(x) in place of x: y = x / (1 + exp(-v)).

    Derivative: for x < 0, e (1 + e + x v') / (1 + e)^2 with e = exp(v), and
    y'(x) = 1 - y'(-x). It is 0 at r = -0.752; near there the bracket is
    exp(v(r)) (exp(v(x) - v(r)) - 1) + x v'(x) - r v'(r), both differences multiples of d = x - r.
    """
    cubic = Fraction("0.044715")
    gain = Fraction("1.595769121605730711759784239737")  # 2 sqrt(2 / pi)
    root = "-0.7524614220710162584879544432889160906"

    def exp_minus_v(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        """exp(-v(a)) in two factors, a >= 0: v = c u with u = a (a^2 + k).

        u is h (h^2 + k_head), exact for h on a coarse grid, plus a small rest; then c u is the
        product of two heads, exact, plus a small rest.
        """
        half = (jnp.finfo(a.dtype).nmant + 1) // 2
        k_head, k_tail = _split(1 / cubic, a, 8)
        c_head, c_tail = _split(gain * cubic, a, half)
        grid = 16 if _single(a) else 4096
        h = jnp.round(a * grid) / grid
        u = h * (h * h + k_head)
        rest = (a - h) * (h * h + a * (h + a) + k_head) + k_tail * a
        u_head = _head(u)
        small = (u - u_head) * c_head + u * c_tail + rest * (c_head + c_tail)
        return _exp_parts(-u_head * c_head, -small)

    def value(x: jax.Array) -> jax.Array:
        a = jnp.minimum(_magnitude(x), 40.0)  # exp(-v(40)) is 0 in every dtype
        power, shift = exp_minus_v(a)
        below = -a * shift * power
        return jnp.where(x < 0, below, x) / (1 + power * shift)

    def derivative(x: jax.Array) -> jax.Array:
        a = jnp.minimum(_magnitude(x), 40.0)
        power, shift = exp_minus_v(a)
        e = power * shift
        c1, c3, at_root = float(gain), float(gain * cubic), float(Fraction(root))
        d = _minus_root(-a, root)
        squares = a * (a - at_root) + at_root**2  # (x^3 - r^3) / (x - r), x = -a, r < 0
        e_root = math.exp(at_root * (c1 + c3 * at_root**2))
        rise = e_root * _expm1_series(d * (c1 + c3 * squares))
        rise = jnp.where(jnp.abs(d) < 0.25, rise, e - e_root)
        bracket = rise + d * (c1 + 3 * c3 * squares)
        bracket = jnp.where(a < 2, bracket, 1 + e - a * (c1 + 3 * c3 * (a * a)))
        below = bracket * shift * power / (1 + e * (2 + e))
        return jnp.where(x < 0, below, 1 - below)

    return elementwise("gelu_tanh", value, derivative)


# ---- training through a block without a useful derivative -------------------------------------


def straight_through(block: Block, surrogate: Block) -> Block:
    """Forward through ``block``, backward through ``surrogate`` (Bengio, Leonard and
    Courville, 2013, arXiv:1308.3432).

    So a network of binary thresholds can be trained: ``straight_through(step(), logistic())``.
    Both blocks see the same params, input and key; init is ``block``'s. The gradient is not
    that of the forward function, on purpose, and a gradient check rightly refuses it.

    Residuals: whatever the surrogate's backward needs; its value is not used, and ``jit``
    drops its computation.

    >>> import jax.numpy as jnp
    >>> from fnn import logistic, step, straight_through
    >>> unit = straight_through(step(), logistic())
    >>> y, residuals = unit.forward({}, jnp.array([-1.0, 0.0]))
    >>> y, unit.backward({}, residuals, jnp.ones(2))[1]
    (Array([0., 1.], dtype=float32), Array([0.19661193, 0.25      ], dtype=float32))
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        y, _ = block.forward(params, x, key)
        _, residuals = surrogate.forward(params, x, key)
        return y, residuals

    return Block(
        block.init,
        forward,
        surrogate.backward,
        f"straight_through({block.name}, {surrogate.name})",
        inference=lambda: straight_through(inference(block), inference(surrogate)),
    )
