"""Smooth nonlinearities beyond the lecture's: softplus, softsign, silu, mish.

What holds for all nonlinearities is said in :mod:`fnn.blocks.nonlinearities`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.arguments import checked, made_once
from fnn.block import Block, Kind
from fnn.blocks.elementwise import elementwise
from fnn.blocks.numerics import FAR_EXPONENT, chebyshev, exp_parts, magnitude, minus_root
from fnn.compiling import traced_once


@checked
@made_once
def softplus() -> Block:
    r"""A smooth rectifier: y = log(1 + exp(x)) = max(x, 0) + log1p(e), :math:`e = \exp(-|x|)`.

    Derivative: the logistic function.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import softplus
    >>> softplus().forward({}, jnp.array([-20.0, 0.0, 20.0]))[0]
    Array([2.0611537e-09, 6.9314718e-01, 2.0000000e+01], dtype=float32)
    """

    @traced_once
    def value(x: jax.Array) -> jax.Array:
        return jnp.where(x < 0, 0.0, x) + jnp.log1p(jnp.exp(-magnitude(x)))

    return elementwise("softplus", value, jax.nn.sigmoid, Kind("softplus"))


@checked
@made_once
def softsign() -> Block:
    """y = x / (1 + |x|).

    Derivative: 1 / (1 + |x|)^2, which is differentiable once at 0 and no more.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import softsign
    >>> softsign().forward({}, jnp.array([-jnp.inf, -1.0, 0.0, 3.0]))[0]
    Array([-1.  , -0.5 ,  0.  ,  0.75], dtype=float32)
    """

    @traced_once
    def value(x: jax.Array) -> jax.Array:
        largest = float(jnp.finfo(x.dtype).max)
        x = jnp.clip(x, -largest, largest)  # avoids inf / inf
        return x / (1 + jnp.abs(x))

    @traced_once
    def derivative(x: jax.Array) -> jax.Array:
        return 1 / jnp.square(1 + jnp.abs(x))

    return elementwise("softsign", value, derivative, Kind("softsign"))


# Chebyshev coefficients in q = 1 + x, -2 <= x <= 0, of the derivatives divided by x - r, r their
# zero: silu'(x) / (x - r) and mish'(x) / (x - r) (computed with mpmath, 40 digits).
# fmt: off
_SILU_SLOPE = (
    0.2596073997276233, 0.1375346494646022, -0.0006684877559423296, -0.005001373771253524,
    -0.0005058970829935856, 0.00010390359510283619, 2.5248778299760374e-05,
    -5.066178223191742e-07, -7.488132347600307e-07, -5.755029958134906e-08,
    1.4492151445850296e-08, 2.8676904735553123e-09, -1.0739703827660117e-10,
    -8.33322419567009e-11, -4.980475881519086e-12, 1.6352542862945729e-12, 2.7427383109254926e-13,
    -1.542397032057646e-14, -8.163163377702561e-15, -3.6509612466709835e-16, 1.65898663745064e-16,
    2.3900339707443366e-17,
)
_MISH_SLOPE = (
    0.31498003136789066, 0.19285184315815704, 0.005391389058853237, -0.008401435757310506,
    -0.0017775645505279576, 3.6263229594200864e-05, 8.100212647066977e-05, 1.360567236227574e-05,
    -7.059564219714273e-07, -6.675620063469484e-07, -9.62965936675266e-08, 7.895111107410181e-09,
    5.1164331968145945e-09, 6.385991730715612e-10, -7.490754453823154e-11, -3.728874498054578e-11,
    -3.985975916430374e-12, 6.4616452417549e-13, 2.6125123208185337e-13, 2.3461363377760335e-14,
    -5.215223426539289e-15, -1.7728708382965998e-15, -1.2959507363370494e-16,
    4.0063030427754594e-17, 1.171414460911167e-17, 6.603595487062615e-19, -2.9622384730077264e-19,
)
# fmt: on


@checked
@made_once
def silu() -> Block:
    r"""y = x / (1 + exp(-x)), also called swish (Elfwing, Uchibe and Doya, 2018;
    Ramachandran, Zoph and Le, 2017).

    Derivative: for x < 0, :math:`e (1 + x + e) / (1 + e)^2` with :math:`e = \exp(x)`, and
    silu'(x) = 1 - silu'(-x). It is 0 at r = -1.278; for -1.8 < x < 0 it is computed as x - r
    times a polynomial, so that nothing cancels.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import silu
    >>> y, x = silu().forward({}, jnp.array([-2.0, -1.2784645, 0.0, 2.0]))
    >>> [f"{d:.6g}" for d in silu().backward({}, x, jnp.ones(4))[1].tolist()]
    ['-0.0907843', '-2.82704e-09', '0.5', '1.09078']
    """
    root = "-1.278464542761073795109358739022980155439"

    @traced_once
    def value(x: jax.Array) -> jax.Array:
        x = jnp.maximum(x, -FAR_EXPONENT)
        power, shift = exp_parts(-magnitude(x))
        return x * jnp.where(x < 0, shift, 1.0) * jnp.where(x < 0, power, 1) / (1 + power * shift)

    @traced_once
    def derivative(x: jax.Array) -> jax.Array:
        low = -jnp.minimum(magnitude(x), FAR_EXPONENT)
        power, shift = exp_parts(low)
        e = power * shift
        far = (1 + low + e) * shift * power / (1 + e * (2 + e))
        near = minus_root(low, root) * chebyshev(_SILU_SLOPE, 1 + low)
        below = jnp.where(low > -1.8, near, far)
        return jnp.where(x < 0, below, 1 - below)

    return elementwise("silu", value, derivative, Kind("silu"))


@checked
@made_once
def mish() -> Block:
    r"""y = x tanh(log(1 + exp(x))) (Misra, BMVC 2020).

    With :math:`e = \exp(x)` and :math:`n = e (e + 2)`, tanh(log(1 + e)) = n / (n + 2), for
    x < 0 computed as :math:`e - e\,e (1 + e) / (n + 2)`, which rounds fewer times.

    Derivative: for x < 0, :math:`e w / (n + 2)^2` with
    :math:`w = 4 (1 + x) + e (4 x + 6) + 4 e^2 + e^3`; for x >= 0 the same with numerator and
    denominator divided by :math:`e^4`. It is 0 at r = -1.192; for -1.7 < x < 0 it is computed
    as x - r times a polynomial, as in silu.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

    >>> import jax.numpy as jnp
    >>> from fnn import mish
    >>> mish().forward({}, jnp.array([-jnp.inf, -1.0, 0.0, 100.0]))[0]
    Array([  0.        ,  -0.30340147,   0.        , 100.        ], dtype=float32)
    """
    root = "-1.192431214515495212137588340420739405601"

    @traced_once
    def value(x: jax.Array) -> jax.Array:
        power, shift = exp_parts(-jnp.minimum(magnitude(x), FAR_EXPONENT))  # as in the derivative
        e = power * shift
        x = jnp.maximum(x, -FAR_EXPONENT)
        below = x * shift * power
        below = below - below * (e * (1 + e) / (2 + e * (2 + e)))
        above = x * (1 + 2 * e) / (1 + e * (2 + 2 * e))
        return jnp.where(x < 0, below, above)

    @traced_once
    def derivative(x: jax.Array) -> jax.Array:
        size = jnp.minimum(magnitude(x), FAR_EXPONENT)
        power, shift = exp_parts(-size)
        e = power * shift
        w = 4 * (1 - size) + e * (6 - 4 * size + e * (4 + e))
        below = w * shift * power / (4 + e * (8 + e * (8 + e * (4 + e))))
        near = minus_root(-size, root) * chebyshev(_MISH_SLOPE, 1 - size)
        below = jnp.where(size < 1.7, near, below)
        above = 1 + e * (4 + e * (6 + 4 * e + 4 * size * (1 + e)))
        above = above / (1 + e * (4 + e * (8 + e * (8 + 4 * e))))
        return jnp.where(x < 0, below, above)

    return elementwise("mish", value, derivative, Kind("mish"))
