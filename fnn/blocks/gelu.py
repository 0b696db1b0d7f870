"""The Gaussian error linear unit, in its exact form and in the one with tanh.

What holds for all nonlinearities is said in :mod:`fnn.blocks.nonlinearities`.
"""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from fnn.arguments import checked, made_once
from fnn.block import Block, Kind
from fnn.blocks.elementwise import elementwise
from fnn.blocks.numerics import (
    chebyshev,
    exp_of_sum,
    is_single,
    magnitude,
    minus_root,
    polynomial,
    round_to_bits,
    split,
)
from fnn.compiling import traced_once

# Chebyshev coefficients in q = 2 a / (a + 4) - 1, a >= 0, of two functions of the normal
# distribution, with P its lower tail and p its density (computed with mpmath, 40 digits):
# (1 + a / 4) P(-a) exp(a^2 / 2), the tail over the density, and
# (P(-a) - a p(a)) exp(a^2 / 2) / (r - a), the same for gelu'(-a), divided by r - a at its zero r.
# The idea of such a map for erfc: Shepherd and Laframboise, Math. Comp. 36, 1981.
# Then in q = 1 - a, 0 <= a <= 2, gelu'(-a) / (r - a), and the same of the form with tanh.
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
_GELU_SLOPE_NEAR = (
    0.35426346305559, 0.3169737403462857, 0.015338370937471217, -0.019161652849358692,
    -0.0030838686807882253, 0.0005942115650720913, 0.00016816609673895832, -8.903173373454286e-06,
    -5.612946581915718e-06, -5.821509714553159e-08, 1.3445881372168325e-07, 7.193080663953315e-09,
    -2.4680609253570866e-09, -2.2844457232960334e-10, 3.5644058812872335e-11,
    4.92385540234937e-12, -4.021352072361059e-13, -8.336265234330785e-14, 3.2849889543334918e-15,
    1.1742853988756017e-15, -1.2106641370014765e-17, -1.418759015519736e-17,
)
_GELU_TANH_SLOPE = (
    0.35413402480288, 0.31610233524216347, 0.015617600164606756, -0.018923456489615173,
    -0.003174131203378583, 0.0005630457931626753, 0.00017941922330255513, -6.454451955988953e-06,
    -6.4989517304029945e-06, -1.8938737987095742e-07, 1.9084611973337375e-07,
    1.3373637648833476e-08, -5.583207033216139e-09, -5.67796401521812e-10, 1.800797580093496e-10,
    2.5261445224369147e-11, -5.756196510742605e-12, -1.1693243314095154e-12,
    1.534757319371641e-13, 4.948045676132463e-14, -2.7118305558525287e-15,
    -1.8269556724400024e-15, -5.4583750677198954e-18, 5.95887842473505e-17,
    3.0860044303487336e-18, -1.770071097456696e-18, -1.78078893048906e-19, 4.9043899124367974e-20,
    7.798213792346616e-21, -1.2596466517435484e-21, -3.060469658326853e-22,
    2.8082728433754276e-23,
)
# fmt: on


@checked
@made_once
def gelu(*, approximate: bool = False) -> Block:
    r"""y = x P(x), P the standard normal distribution (Hendrycks and Gimpel, 2016).

    Derivative: P(x) + x p(x), p the normal density, in the form
    :math:`\exp(-x^2/2) (r - a) T(a)` for x = -a < 0 (T smooth and positive, r = 0.752 where
    the derivative is 0), and gelu'(x) = 1 - gelu'(-x). P is also computed as a density
    times a smooth function: 1 + erf(x / sqrt 2) loses every digit at -6, and erfc many by
    rounding its argument. Near 0, and near r for the derivative, a polynomial rounds fewer times.

    ``approximate=True`` is the paper's formula with tanh in place of P,
    y = x / (1 + exp(-v)), :math:`v = 2 \sqrt{2/\pi}\,(x + 0.044715 x^3)`, with the derivative of
    that formula. The two differ by up to 5e-4.

    Args:
      approximate: whether P is replaced by the paper's formula with tanh.

    Returns:
      A block without parameters. Residuals: ``x``.

    Raises:
      BlockTypeError: x is not floating.

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

    def density(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """exp(-a^2 / 2) as :func:`exp_of_sum` gives it, from the exact square of a's head."""
        head = round_to_bits(a)
        return exp_of_sum(-head * head / 2, (head - a) * (head + a) / 2)

    @traced_once
    def value(x: jax.Array) -> jax.Array:
        a = jnp.minimum(magnitude(x), 40.0)  # exp(-40^2 / 2) is 0 in every dtype
        power, shift, rest = density(a)
        g = 4 * a / (a + 4)
        tail = g * chebyshev(_TAIL, g / 2 - 1, rest) * shift * power  # a P(-a)
        tail = jnp.where(a < 0.8, a * (0.5 - a * _middle(a * a)), tail)
        # x / 2 twice: where the tail of a tiny x is subnormal, so is x / 2, and both become 0.
        return jnp.where(x < 0, -tail, x / 2 + (x / 2 - tail))

    @traced_once
    def derivative(x: jax.Array) -> jax.Array:
        a = jnp.minimum(magnitude(x), 40.0)
        power, shift, rest = density(a)
        smooth = chebyshev(_GELU_SLOPE, 2 * a / (a + 4) - 1, rest)
        d = -minus_root(a, root)
        near = d * chebyshev(_GELU_SLOPE_NEAR, 1 - a)
        slope = jnp.where(a < 1.25, near, d * smooth * shift * power)
        return jnp.where(x < 0, slope, 1 - slope)

    return elementwise("gelu", value, derivative, Kind("gelu", (False,)))


def _middle(s: jax.Array) -> jax.Array:
    """(1/2 - P(-a)) / a for s = a^2 < 0.64, by its Taylor series."""
    terms = range(8 if is_single(s) else 15)
    root = math.sqrt(2 * math.pi)
    return polynomial([(-0.5) ** n / (math.factorial(n) * (2 * n + 1) * root) for n in terms], s)


def _gelu_tanh() -> Block:
    """gelu with tanh, as silu with v(x) in place of x: y = x / (1 + exp(-v)).

    Derivative: for x < 0, e (1 + e + x v') / (1 + e)^2 with e = exp(v), and
    y'(x) = 1 - y'(-x). It is 0 at r = -0.752; for -1.5 < x < 0 it is x - r times a polynomial.
    """
    cubic = Fraction("0.044715")
    gain = Fraction("1.595769121605730711759784239737")  # 2 sqrt(2 / pi)
    root = "-0.7524614220710162584879544432889160906"

    def exp_minus_v(a: jax.Array) -> tuple[jax.Array, ...]:
        """v(a) as head and tail, and exp(-v(a)) as :func:`exp_of_sum` gives it, a >= 0.

        v = c u with u = a (a^2 + k). u is h (h^2 + k_head), exact for h on a coarse grid, plus
        a small rest; then c u is the product of two heads, exact, plus a small rest.
        """
        half = (jnp.finfo(a.dtype).nmant + 1) // 2
        k_head, k_tail = split(1 / cubic, a, 8)
        c_head, c_tail = split(gain * cubic, a, half)
        grid = 16 if is_single(a) else 4096
        h = jnp.round(a * grid) / grid
        u = h * (h * h + k_head)
        rest = (a - h) * (h * h + a * (h + a) + k_head) + k_tail * a
        u_head = round_to_bits(u)
        small = (u - u_head) * c_head + u * c_tail + rest * (c_head + c_tail)
        return u_head * c_head, small, *exp_of_sum(-u_head * c_head, -small)

    @traced_once
    def value(x: jax.Array) -> jax.Array:
        a = jnp.minimum(magnitude(x), 40.0)  # exp(-v(40)) is 0 in every dtype
        *_, power, shift, rest = exp_minus_v(a)
        below = -(a + a * rest) * shift * power
        return jnp.where(x < 0, below, x) / (1 + (power + power * rest) * shift)

    @traced_once
    def derivative(x: jax.Array) -> jax.Array:
        a = jnp.minimum(magnitude(x), 40.0)
        v_head, v_tail, power, shift, rest = exp_minus_v(a)
        e = (power + power * rest) * shift
        c1, c3 = float(gain), float(gain * cubic)
        # 1 + e - a v'(a), with 2 taken out of v': the largest terms of a small a are exact then.
        exact, other = 1 - 2 * a, e - a * (c1 - 2 + 3 * c3 * (a * a))
        bracket = other + (exact + (exact + other) * rest)
        # For a large a, a v' = 3 v - 2 c1 a, v as its exact head and small tail.
        far = 1 + 2 * c1 * a - 3 * v_tail
        far = (far + (far - 3 * v_head) * rest) - v_head - 2 * v_head
        bracket = jnp.where(a > 7, far, bracket)
        below = bracket * shift * power
        below = below - below * (e * (2 + e) / (1 + e * (2 + e)))
        near = minus_root(-a, root) * chebyshev(_GELU_TANH_SLOPE, 1 - a, terms=14)
        below = jnp.where(a < 1.5, near, below)
        return jnp.where(x < 0, below, 1 - below)

    return elementwise("gelu_tanh", value, derivative, Kind("gelu", (True,)))
