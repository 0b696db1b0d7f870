"""Exponentials and differences to the last digit: the tools of the nonlinearities.

XLA adds up constants and merges exponentials where it can, which undoes what looks like the
simpler way to write some of these; the tests on every float16 and a dense float32 sample tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LN2 = Fraction("0.69314718055994530941723212145817656807550013436")
FAR = 1000.0  # exp(-FAR) is 0 in every dtype; clipping there keeps inf * 0 out of a formula


def magnitude(x: jax.Array) -> jax.Array:
    """|x| whose own derivative at 0 is 1, whatever jnp.abs chooses: with ``x < 0`` as the test
    beside it, the formulas below are differentiable at 0 and second derivatives right."""
    return jnp.where(x < 0, -x, x)


def is_single(x: jax.Array) -> bool:
    return x.dtype == jnp.float32


def exp(x: jax.Array) -> jax.Array:
    """exp(x) up to where it overflows. (XLA's own is 5.5 units off above 88.5 in float32.)"""
    high = x > 88 if is_single(x) else x > jnp.inf
    y = jnp.exp(jnp.where(high, x - 3, x))
    return jnp.where(high, y * math.exp(3), y)  # float32 holds exp(3) to 0.02 units


# 2^f for |f| <= 1/2, Chebyshev fit, error 8e-8
_EXP2 = (1.0000000754548972, 0.6931471880262288, 0.2402210748530834, 0.05550357114219078,
         0.009676031918322054, 0.0013390863364671234)  # fmt: skip


def exp2_short(t: jax.Array) -> jax.Array:
    """2^t in float32 for -126 <= t <= 0 to some 3 units, at half of what XLA's exp costs.

    The power of two is a factor, not added to the bits, so that the derivative is right too.
    """
    whole = jnp.round(t)
    y = jnp.zeros_like(t)
    for coefficient in reversed(_EXP2):
        y = y * (t - whole) + coefficient
    return y * lax.bitcast_convert_type((whole.astype(jnp.int32) + 127) << 23, jnp.float32)


def exp_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """exp(x) for x <= 0 as a product of two factors, neither of which is subnormal.

    x exp(x) is a normal float32 down to x = -91.8, exp(x) only down to -87.3. The shift is
    exact, because x and the shift are within a factor of two of each other.
    """
    shift = 61.0 if is_single(x) else 512.0  # float32 holds exp(-61) to 0.02 units
    far = x < -shift
    return jnp.exp(jnp.where(far, x + shift, x)), jnp.where(far, math.exp(-shift), 1.0)


def exp_sum(x: jax.Array, tail: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """exp(x + tail) for x <= 0 and |tail| < |x| as power * shift * (1 + rest), nothing subnormal.

    The shift is a power of two. What rounding takes from the sum is known exactly and is the
    rest, which a caller adds where another sum is rounded anyway.
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
    y = jnp.full_like(x, 1 / math.factorial(terms))
    for k in range(terms - 1, 1, -1):
        y = 1 / math.factorial(k) + x * y
    return x + x * (x * y)  # one rounding of size x; x * (1 + x * y) has two


def expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1 for x <= 0. (XLA's own is 5.6 units off near 0.03.)"""
    return jnp.where(x > -0.7, expm1_series(x), jnp.exp(x) - 1)


def rest_of_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """(a - b) less what it is rounded to, exactly (Knuth, The Art of Computer Programming 2,
    4.2.2); 0 where the difference is infinite."""
    rounded = a - b
    moved = rounded - a
    rest = (a - (rounded - moved)) - (b + moved)
    return jnp.where(jnp.isfinite(rounded), rest, 0.0)


def chebyshev(
    coefficients: Sequence[float], q: jax.Array, rest: jax.Array | float = 0.0, terms: int = 12
) -> jax.Array:
    """The sum of a Chebyshev series at |q| <= 1, times 1 + rest in the same last rounding.

    float32 needs its first few terms.
    """
    some = coefficients[:terms] if is_single(q) else coefficients
    first, *others = (float(c) for c in np.polynomial.chebyshev.cheb2poly(some))
    y = jnp.zeros_like(q)
    for coefficient in reversed(others):
        y = (y + coefficient) * q
    return first + (y + (first + y) * rest)


def head_of(x: jax.Array, bits: int | None = None) -> jax.Array:
    """x rounded to ``bits`` significant bits; by default half of them, so that the product of
    two heads is exact."""
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, (bits or (info.nmant + 1) // 2) - 1)


def split(constant: str | Fraction, x: jax.Array, bits: int | None = None) -> tuple[float, float]:
    """A constant as head + tail: the head has ``bits`` significant bits (by default all those
    of x's dtype), the tail is what is left."""
    exact = Fraction(constant)
    exponent = (bits or jnp.finfo(x.dtype).nmant + 1) - math.frexp(float(exact))[1]
    head = Fraction(round(exact * Fraction(2) ** exponent)) / Fraction(2) ** exponent
    return float(head), float(exact - head)


def minus_root(x: jax.Array, root: str) -> jax.Array:
    """x - root to full relative accuracy near the root, which no floating number equals.

    The tail of the root is scaled by x / root, about 1 there: XLA adds the two constants of
    ``x - head - tail`` up, and so loses the tail.
    """
    head, tail = split(root, x)
    return (x - head) - x * (tail / head)
