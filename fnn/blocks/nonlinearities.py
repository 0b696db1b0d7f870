"""Nonlinearities: elementwise functions with the derivative beside the value.

Each is written as ``value(x)`` and ``derivative(x)``, both computed from the *input*. The
textbook shortcuts from the output (``y * (1 - y)``, ``1 - y * y``) lose every digit once the
output saturates: in float32, logistic'(20) is 2.06e-9 and ``y * (1 - y)`` gives 0.

What holds for all of them (tests/experiments/test_exhaustive.py and test_nonlinearities.py):

- Value and derivative are within 4 units in the last place in float32 on CPU, at every float32
  (experiments/benchmarks/ACCURACY.md), within 1 in bfloat16 and float16, and within 1e-14
  relative in float64, wherever the true result is a normal number, zeros of a derivative
  included. (XLA on CPU flushes subnormal numbers, below 1.2e-38 in float32, to zero.)
- Infinities give the limit. NaN gives NaN, forward and backward; ``step`` and ``identity``,
  which keep no residual, are the two exceptions in backward, and on TPUs those that are made of
  lines, which keep a bit: dx is NaN there where dy is.
- x and y have one shape, any shape, and one floating dtype; params are ``{}``.

Three tools recur below. ``e = exp(-|x|)`` never overflows, and a sigmoid-like function needs only
one formula in e for each sign of x. A derivative that crosses zero at r is computed as ``x - r``
times a smooth function, a polynomial near r, so that nothing cancels. And ``exp`` of a product is
computed from an exact head and a small tail of the product: an error of one unit in an exponent
near -80 is one of forty units in the result.
"""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from fnn.arguments import Positive, checked, made_once
from fnn.block import Block, Key, Kind, Params, Rules, Value
from fnn.blocks.elementwise import elementwise, piecewise_linear, subgradient_at, widened
from fnn.blocks.numerics import (
    FAR_EXPONENT,
    exp_of_sum,
    exp_parts,
    expm1,
    is_single,
    magnitude,
    one_minus_exp2,
    round_to_bits,
    split,
)
from fnn.compiling import traced_once
from fnn.refusals import as_cotangent, elementary, require_floating

# ---- the lecture's four ----------------------------------------------------------------------


@checked
def step() -> Block:
    """The binary threshold: y = 1 where x >= 0, 0 where x < 0 (McCulloch and Pitts, 1943).

    Derivative: 0 everywhere, at the jump too, so nothing below a step learns; see
    :func:`straight_through`. step(0) = 1: the unit fires when it reaches its threshold.

    Returns:
      A block without parameters. Residuals: none. NaN gives NaN forward, and 0 backward: a byte an
      element to remember where x was NaN would only repeat what y shows.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import step
    >>> step().forward({}, jnp.array([-1.0, 0.0, 1.0]))[0]
    Array([0., 1., 1.], dtype=float32)
    """

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, tuple[()]]:
        require_floating("step", "x", x)
        # Widened as slopes are: XLA for TPUs does not join comparisons of 16 bits to their kernel.
        return widened(lambda x: jnp.where(jnp.isnan(x), x, (x >= 0).astype(x.dtype)))(x), ()

    def backward(params: Params, residuals: tuple[()], dy: jax.Array) -> tuple[Params, jax.Array]:
        return {}, jnp.zeros_like(as_cotangent("step", dy))

    rules = Rules(subgradient=subgradient_at({0.0: 0.0}))
    return elementary(forward, backward, "step", Kind("step"), rules)


@checked
@made_once
def logistic() -> Block:
    r"""The logistic function, the lecture's sigmoid: y = 1 / (1 + exp(-x)).

    Derivative: :math:`e / (1 + e)^2` with :math:`e = \exp(-|x|)`, which equals
    y (1 - y) and keeps its digits in both tails.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import logistic
    >>> y, x = logistic().forward({}, jnp.array([0.0, 20.0]))
    >>> logistic().backward({}, x, jnp.ones(2))[1]
    Array([2.5000000e-01, 2.0611537e-09], dtype=float32)
    """

    @traced_once
    def derivative(x: jax.Array) -> jax.Array:
        e = jnp.exp(-magnitude(x))
        return e / (1 + e * (2 + e))

    return elementwise("logistic", jax.nn.sigmoid, derivative, Kind("logistic"))


@checked
@made_once
def tanh() -> Block:
    r"""The hyperbolic tangent, odd: y = m / (2 - m) with :math:`m = 1 - \exp(-2x)` for x >= 0.
    (XLA's own is 4.9 units off near 5 in float32.)

    Derivative: :math:`1 / \cosh^2 x = 4 e / (1 + e)^2`.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import tanh
    >>> y, x = tanh().forward({}, jnp.array([0.0, 20.0]))
    >>> tanh().backward({}, x, jnp.ones(2))[1]  # 1 - y * y would be 0 at 20
    Array([1.0000000e+00, 1.6993417e-17], dtype=float32)
    """

    @traced_once
    def value(x: jax.Array) -> jax.Array:
        if not is_single(x):
            return jnp.tanh(x)
        minus = jnp.signbit(x)  # so that tanh(-0) is -0
        size = jnp.where(minus, -x, x)
        m = one_minus_exp2(jnp.minimum(size, 12.0) * (-2 / math.log(2)))  # tanh(12) is 1
        return jnp.where(minus, -m, m) / (2 - m)

    @traced_once
    def derivative(x: jax.Array) -> jax.Array:
        power, shift = exp_parts(-2 * magnitude(x))
        e = power * shift
        return 4 * shift * power / (1 + e * (2 + e))

    return elementwise("tanh", value, derivative, Kind("tanh"))


@checked
def relu() -> Block:
    """The rectifier: y = max(x, 0) (Nair and Hinton, ICML 2010).

    Derivative: 1 where x > 0, else 0; relu'(0) = 0.

    Returns:
      A block without parameters. Residuals: one byte an element (see :func:`piecewise_linear`);
      jax.vjp of ``jnp.maximum(x, 0)`` keeps x, four.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import relu
    >>> y, code = relu().forward({}, jnp.array([-1.0, 0.0, 2.0]))
    >>> relu().backward({}, code, jnp.ones(3))[1]
    Array([0., 0., 1.], dtype=float32)
    """
    return piecewise_linear(
        "relu",
        lambda x: jnp.maximum(x, 0),
        lambda x: ~(x <= 0),
        (0.0, 1.0),
        {0.0: 0.0},
        Kind("relu"),
    )


# The field's names for two of the lecture's: the same functions.
sigmoid = logistic
heaviside = step


# ---- piecewise linear ------------------------------------------------------------------------


@checked
def leaky_relu(slope: float = 0.01) -> Block:
    """A rectifier that leaks: y = x where x > 0, else slope * x (Maas, Hannun and Ng, 2013).

    Derivative: 1 where x > 0, else slope; leaky_relu'(0) = slope.

    Args:
      slope: that below 0.

    Returns:
      A block without parameters. Residuals: one byte an element, see :func:`piecewise_linear`.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import leaky_relu
    >>> leaky_relu(0.1).forward({}, jnp.array([-1.0, 2.0]))[0]
    Array([-0.1,  2. ], dtype=float32)
    """
    below = widened(lambda x: slope * x)
    return piecewise_linear(
        "leaky_relu",
        lambda x: jnp.where(x > 0, x, below(x)) if slope else jnp.maximum(x, 0),
        lambda x: ~(x <= 0),
        (slope, 1.0),
        {0.0: slope},
        Kind("leaky_relu", (slope,)),
    )


@checked
def hard_tanh() -> Block:
    """tanh made of lines: y = min(max(x, -1), 1).

    Derivative: 1 where |x| < 1, else 0; hard_tanh'(-1) = hard_tanh'(1) = 0.

    Returns:
      A block without parameters. Residuals: one byte an element, see :func:`piecewise_linear`.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import hard_tanh
    >>> hard_tanh().forward({}, jnp.array([-2.0, 0.5, 2.0]))[0]
    Array([-1. ,  0.5,  1. ], dtype=float32)
    """
    return piecewise_linear(
        "hard_tanh",
        lambda x: jnp.clip(x, -1, 1),
        lambda x: ~(jnp.abs(x) >= 1),
        (0.0, 1.0),
        {-1.0: 0.0, 1.0: 0.0},
        Kind("hard_tanh"),
    )


@checked
def hard_sigmoid() -> Block:
    """The logistic function made of lines: y = min(max(x + 3, 0), 6) / 6
    (Howard et al., MobileNetV3, 2019; also jax.nn.hard_sigmoid).

    Derivative: 1/6 where |x| < 3, else 0; hard_sigmoid'(-3) = hard_sigmoid'(3) = 0.

    Returns:
      A block without parameters. Residuals: one byte an element, see :func:`piecewise_linear`.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import hard_sigmoid
    >>> hard_sigmoid().forward({}, jnp.array([-4.0, 0.0, 4.0]))[0]
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    above = widened(lambda x: jnp.minimum(x + 3, 6) / 6)
    return piecewise_linear(
        "hard_sigmoid",
        lambda x: jnp.where(x > -3, above(x), jnp.maximum(x, -3) + 3),
        lambda x: ~(jnp.abs(x) >= 3),
        (0.0, 1 / 6),
        {-3.0: 0.0, 3.0: 0.0},
        Kind("hard_sigmoid"),
    )


@checked
def absolute() -> Block:
    """The absolute value: y = |x|.

    Derivative: the sign of x; |x|'(0) = 0, the middle of [-1, 1].

    Returns:
      A block without parameters. Residuals: one byte an element, see :func:`piecewise_linear`.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import absolute
    >>> y, code = absolute().forward({}, jnp.array([-2.0, 0.0, 2.0]))
    >>> absolute().backward({}, code, jnp.ones(3))[1]
    Array([-1.,  0.,  1.], dtype=float32)
    """

    def piece(x: jax.Array) -> jax.Array:
        return (x >= 0).astype(jnp.uint8) + (x > 0).astype(jnp.uint8)

    return piecewise_linear(
        "absolute", jnp.abs, piece, (-1.0, 0.0, 1.0), {0.0: 0.0}, Kind("absolute")
    )


@checked
def identity() -> Block:
    """y = x. Derivative: 1.

    Returns:
      A block without parameters. Residuals: none, so backward passes dy on even where x was NaN.

    >>> import jax.numpy as jnp
    >>> from fnn import identity
    >>> identity().forward({}, jnp.array([-2.0, 2.0]))[0]
    Array([-2.,  2.], dtype=float32)
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, tuple[()]]:
        return x, ()

    def backward(params: Params, residuals: tuple[()], dy: Value) -> tuple[Params, Value]:
        return {}, jax.tree.map(lambda d: as_cotangent("identity", d), dy)

    return elementary(forward, backward, "identity", Kind("identity"))


# ---- exponential below zero ------------------------------------------------------------------


def _exponential_unit(kind: Kind, scale: float, alpha: float, width: float) -> Block:
    """scale * x above 0, scale * alpha * (exp(x / width) - 1) below."""

    def exponent(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x / width as exact head and small tail; 0 where x > 0."""
        x = jnp.where(x > 0, 0.0, jnp.maximum(x, -FAR_EXPONENT * width))
        if width == 1:
            return x, jnp.zeros_like(x)
        head, tail = split(1 / Fraction(width), x, (jnp.finfo(x.dtype).nmant + 1) // 2)
        return round_to_bits(x) * head, (x - round_to_bits(x)) * head + x * tail

    @traced_once
    def value(x: jax.Array) -> jax.Array:
        head, tail = exponent(x)
        below = scale * alpha * expm1(head + tail)
        if width != 1:  # the quotient of a tiny x may be subnormal
            below = jnp.where(x > -1e-30, scale * alpha / width * x, below)
        return jnp.where(x > 0, scale * x, below)

    @traced_once
    def derivative(x: jax.Array) -> jax.Array:
        power, shift, rest = exp_of_sum(*exponent(x))
        return jnp.where(x > 0, scale, scale * alpha / width * shift * (power + power * rest))

    at_zero = scale * alpha / width  # from the left
    rules = Rules(subgradient=subgradient_at({0.0: at_zero}))
    return elementwise(kind.maker, value, derivative, kind)._replace(rules=rules)


@checked
@made_once
def elu(alpha: float = 1.0) -> Block:
    """The exponential linear unit: y = x where x > 0, else alpha * (exp(x) - 1)
    (Clevert, Unterthiner and Hochreiter, ICLR 2016).

    Derivative: 1 where x > 0, else alpha * exp(x); elu'(0) = alpha, from the left, as in jax.

    Args:
      alpha: minus the limit of y at -inf.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import elu
    >>> elu().forward({}, jnp.array([-1.0, 0.0, 2.0]))[0]
    Array([-0.63212055,  0.        ,  2.        ], dtype=float32)
    """
    return _exponential_unit(Kind("elu", (alpha,)), 1.0, alpha, 1.0)


@checked
@made_once
def selu() -> Block:
    """The self-normalising elu: y = scale * elu(x, alpha), with the two constants for which
    zero mean and unit variance are a fixed point (Klambauer et al., NeurIPS 2017).

    Derivative: scale where x > 0, else scale * alpha * exp(x); selu'(0) = scale * alpha.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import selu
    >>> selu().forward({}, jnp.array([-1.0, 0.0, 1.0]))[0]
    Array([-1.1113307,  0.       ,  1.050701 ], dtype=float32)
    """
    return _exponential_unit(Kind("selu"), 1.0507009873554804934193, 1.6732632423543772848170, 1.0)


@checked
@made_once
def celu(alpha: Positive = 1.0) -> Block:
    """The continuously differentiable elu: y = x where x > 0, else alpha * (exp(x / alpha) - 1)
    (Barron, 2017, arXiv:1704.07483).

    Derivative: 1 where x > 0, else exp(x / alpha); celu'(0) = 1, no kink. x / alpha is computed
    as head and tail, see :mod:`fnn.blocks.nonlinearities`.

    Args:
      alpha: the width of the curve, and minus the limit of y at -inf; more than 0.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockValueError: alpha is not positive.
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import celu
    >>> celu(2.0).forward({}, jnp.array([-1.0, 0.0, 2.0]))[0]
    Array([-0.78693867,  0.        ,  2.        ], dtype=float32)
    """
    return _exponential_unit(Kind("celu", (alpha,)), 1.0, alpha, alpha)
