"""Exponentials and differences to the last digit: the tools of the nonlinearities.

Some are written in roundabout ways because XLA folds constants together and merges exponentials,
which undoes the simpler ones; tests at every float16 and at a dense float32 sample show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fnn.compiling import traced_once

_LN2 = Fraction("0.69314718055994530941723212145817656807550013436")
FAR_EXPONENT = (
    1000.0  # exp(-FAR_EXPONENT) is 0 in every dtype; clipping there keeps inf * 0 out of a formula
)


def magnitude(x: jax.Array) -> jax.Array:
    """|x| with derivative 1 at 0, unlike jnp.abs: formulas that also branch on ``x < 0`` are then
    differentiable at 0, and their second derivatives right."""
    return jnp.where(x < 0, -x, x)


def is_single(x: jax.Array) -> bool:
    return x.dtype == jnp.float32


# (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2 and (2^f - 1) / f for |f| <= 1/2: Chebyshev fits with
# errors of 6e-8 and 8e-9.
_EXP = (0.5, 0.16666577, 0.04166646, 0.00836318, 0.00139337)
_EXP2 = (0.693147188, 0.240226509, 0.055503571, 0.00961805667, 0.00133908674, 0.000154614475)


@traced_once
def exp(x: jax.Array) -> jax.Array:
    """exp(x) up to where it overflows. (XLA's own is 5.5 units off above 88.5 in float32.)

    exp(x) = 2^k exp(r) with r = x - k ln 2 (Cody and Waite, Software Manual for the Elementary
    Functions, 1980). The power is applied as two factors, since float32 has no 2^128.
    """
    if not is_single(x):
        return jnp.exp(x)
    x = jnp.maximum(x, -104.0)  # exp(-104) is 0
    whole = jnp.minimum(jnp.round(x * (1 / math.log(2))), 128.0)  # above, exp(r) overflows
    head, tail = split(_LN2, x, 10)  # whole * head is exact
    r = (x - whole * head) - whole * tail
    y = 1 + (r + r * r * polynomial(_EXP, r))
    half = jnp.floor(whole / 2)
    return y * _power_of_two(half) * _power_of_two(whole - half)


def one_minus_exp2(t: jax.Array) -> jax.Array:
    """1 - 2^t in float32 for -126 <= t <= 0.

    The power of two is a factor, not an addition to the exponent bits, so that its derivative is
    right too.
    """
    whole = jnp.round(t)
    power, f = _power_of_two(whole), t - whole
    return (1 - power) - power * (f * polynomial(_EXP2, f))


def polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    """The first coefficient, plus the second times x, and so on."""
    y = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        y = y * x + coefficient
    return y


def _power_of_two(whole: jax.Array) -> jax.Array:
    """2^whole in float32, for whole numbers from -126 to 127."""
    return lax.bitcast_convert_type((whole.astype(jnp.int32) + 127) << 23, jnp.float32)


def exp_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """exp(x) for x <= 0 as a product of two factors, neither of which is subnormal.

    x exp(x) is a normal float32 down to x = -91.8, exp(x) only down to -87.3. The shift is
    exact, because x and the shift are within a factor of two of each other.
    """
    shift = 61.0 if is_single(x) else 512.0  # float32 holds exp(-61) to 0.02 units
    far = x < -shift
    return jnp.exp(jnp.where(far, x + shift, x)), jnp.where(far, math.exp(-shift), 1.0)


def exp_of_sum(x: jax.Array, tail: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """exp(x + tail) for x <= 0 and |tail| < |x| as power * shift * (1 + rest), nothing subnormal.

    The shift is a power of two. ``rest`` is the exact rounding error of x + tail (TwoSum), which a
    caller adds where it rounds another sum anyway.
    """
    total = x + tail
    halvings = 88 if is_single(x) else 739
    head, small = split(halvings * _LN2, x)
    far = total < -head
    power = jnp.exp(jnp.where(far, total + head, total))
    rest = (tail - (total - x)) + jnp.where(far, small, 0.0)
    return power, jnp.where(far, 2.0**-halvings, 1.0), rest


def expm1_series(x: jax.Array) -> jax.Array:
    """exp(x) - 1 for |x| < 0.7 by its Taylor series, to the last digit of the dtype."""
    terms = 9 if is_single(x) else 17
    y = polynomial([1 / math.factorial(k) for k in range(2, terms + 1)], x)
    return x + x * (x * y)  # one rounding of size x; x * (1 + x * y) has two


def expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1 for x <= 0. (XLA's own is 5.6 units off near 0.03.)"""
    return jnp.where(x > -0.7, expm1_series(x), jnp.exp(x) - 1)


def two_diff_error(a: jax.Array, b: jax.Array) -> jax.Array:
    """The exact rounding error of a - b (TwoDiff: Knuth, The Art of Computer Programming 2,
    4.2.2); 0 where the difference is infinite."""
    difference = a - b
    is_finite = jnp.isfinite(difference)
    difference = jnp.where(is_finite, difference, 0.0)  # no inf - inf on the way, for debug_nans
    minus_b = difference - a
    error = (a - (difference - minus_b)) - (b + minus_b)
    return jnp.where(is_finite, error, 0.0)


def chebyshev(
    coefficients: Sequence[float], q: jax.Array, rest: jax.Array | float = 0.0, terms: int = 12
) -> jax.Array:
    """The sum of a Chebyshev series at |q| <= 1, times 1 + rest within the same last rounding.

    ``terms``: how many of them float32 needs.
    """
    needed = coefficients[:terms] if is_single(q) else coefficients
    first, *others = (float(c) for c in np.polynomial.chebyshev.cheb2poly(needed))
    y = jnp.zeros_like(q)
    for coefficient in reversed(others):
        y = (y + coefficient) * q
    return first + (y + (first + y) * rest)


def round_to_bits(x: jax.Array, bits: int | None = None) -> jax.Array:
    """x rounded to ``bits`` significant bits; by default to half of them, so that the product of
    two such numbers is exact."""
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, (bits or (info.nmant + 1) // 2) - 1)


def split(constant: str | Fraction, x: jax.Array, bits: int | None = None) -> tuple[float, float]:
    """A constant as head + tail: the head has ``bits`` significant bits (by default as many as
    x's dtype), the tail is the rest."""
    exact = Fraction(constant)
    exponent = (bits or jnp.finfo(x.dtype).nmant + 1) - math.frexp(float(exact))[1]
    head = Fraction(round(exact * Fraction(2) ** exponent)) / Fraction(2) ** exponent
    return float(head), float(exact - head)


def minus_root(x: jax.Array, root: str) -> jax.Array:
    """x - root to full relative accuracy near the root, which is no floating-point number.

    The root's tail is scaled by x / root, about 1 there, because XLA would fold the two constants
    of ``x - head - tail`` into one and lose the tail.
    """
    head, tail = split(root, x)
    return (x - head) - x * (tail / head)
