"""Smooth nonlinearities beyond the lecture's: softplus, softsign, silu, mish, gelu.

What holds for all nonlinearities is said in :mod:`fnn.nonlinearities`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import (
    Block,
)
from fnn.elementwise import elementwise
from fnn.precise import (
    FAR,
    exp_parts,
    expm1_series,
    head_of,
    is_single,
    magnitude,
    minus_root,
    split,
)


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
        return jnp.where(x < 0, 0.0, x) + jnp.log1p(jnp.exp(-magnitude(x)))

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
        power, shift = exp_parts(-magnitude(x))
        return x * jnp.where(x < 0, shift, 1.0) * jnp.where(x < 0, power, 1) / (1 + power * shift)

    def derivative(x: jax.Array) -> jax.Array:
        low = -jnp.minimum(magnitude(x), FAR)
        power, shift = exp_parts(low)
        e = power * shift
        d = minus_root(low, root)
        near = d + math.exp(float(root)) * expm1_series(d)
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
        power, shift = exp_parts(-magnitude(x))
        e = power * shift
        below = x * shift * power
        below = below - below * (e * (1 + e) / (2 + e * (2 + e)))
        above = x * (1 + 2 * e) / (1 + e * (2 + 2 * e))
        return jnp.where(x < 0, below, above)

    def derivative(x: jax.Array) -> jax.Array:
        size = jnp.minimum(magnitude(x), FAR)
        power, shift = exp_parts(-size)
        e = power * shift
        d = minus_root(-size, root)
        t, r, at_root = expm1_series(d), float(root), math.exp(float(root))
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
    some = coefficients[:12] if is_single(q) else coefficients
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
        head = head_of(a)
        return exp_parts(-head * head / 2, (head - a) * (head + a) / 2)

    def value(x: jax.Array) -> jax.Array:
        a = jnp.minimum(magnitude(x), 40.0)  # exp(-40^2 / 2) is 0 in every dtype
        power, shift = density(a)
        ratio = _chebyshev(_TAIL, 2 * a / (a + 4) - 1) * (4 / (a + 4))  # P(-a) exp(a^2 / 2)
        # Not x - x P(-x): where that product is subnormal XLA makes it 0, and the result x.
        above = x * (1 - ratio * shift * power)
        return jnp.where(x < 0, -a * ratio * shift * power, above)

    def derivative(x: jax.Array) -> jax.Array:
        a = jnp.minimum(magnitude(x), 40.0)
        power, shift = density(a)
        slope = -minus_root(a, root) * _chebyshev(_GELU_SLOPE, 2 * a / (a + 4) - 1) * shift * power
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
        k_head, k_tail = split(1 / cubic, a, 8)
        c_head, c_tail = split(gain * cubic, a, half)
        grid = 16 if is_single(a) else 4096
        h = jnp.round(a * grid) / grid
        u = h * (h * h + k_head)
        rest = (a - h) * (h * h + a * (h + a) + k_head) + k_tail * a
        u_head = head_of(u)
        small = (u - u_head) * c_head + u * c_tail + rest * (c_head + c_tail)
        return exp_parts(-u_head * c_head, -small)

    def value(x: jax.Array) -> jax.Array:
        a = jnp.minimum(magnitude(x), 40.0)  # exp(-v(40)) is 0 in every dtype
        power, shift = exp_minus_v(a)
        below = -a * shift * power
        return jnp.where(x < 0, below, x) / (1 + power * shift)

    def derivative(x: jax.Array) -> jax.Array:
        a = jnp.minimum(magnitude(x), 40.0)
        power, shift = exp_minus_v(a)
        e = power * shift
        c1, c3, at_root = float(gain), float(gain * cubic), float(Fraction(root))
        d = minus_root(-a, root)
        squares = a * (a - at_root) + at_root**2  # (x^3 - r^3) / (x - r), x = -a, r < 0
        e_root = math.exp(at_root * (c1 + c3 * at_root**2))
        rise = e_root * expm1_series(d * (c1 + c3 * squares))
        rise = jnp.where(jnp.abs(d) < 0.25, rise, e - e_root)
        bracket = rise + d * (c1 + 3 * c3 * squares)
        bracket = jnp.where(a < 2, bracket, 1 + e - a * (c1 + 3 * c3 * (a * a)))
        below = bracket * shift * power / (1 + e * (2 + e))
        return jnp.where(x < 0, below, 1 - below)

    return elementwise("gelu_tanh", value, derivative)
