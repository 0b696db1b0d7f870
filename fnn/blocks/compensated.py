"""Sums with twice the digits of their dtype, in one reading of what is summed.

A pair (a, b) is the number a + b, b being what rounding left of a. Where such a sum takes the place
of one that is computed and then corrected by the sum of what is left, arrays are read once and not
twice. Ogita, Rump and Oishi 2005, Accurate sum and dot product (SIAM J. Sci. Comput. 26); the
product of two numbers without rounding is Dekker's, 1971.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arrays import count_of

Pair = tuple[jax.Array, jax.Array]


def exactly(a: jax.Array) -> Pair:
    """A pair of a number and nothing left."""
    return a, jnp.zeros_like(a)


def product(a: jax.Array, b: jax.Array) -> Pair:
    """a b: rounded, and what that left.

    >>> [float(part) for part in product(*2 * [jnp.float32(1 + 2**-12)])]
    [1.00048828125, 5.960464477539063e-08]
    """
    info = jnp.finfo(a.dtype)
    # Halves of the digits, of which products are exact.
    upper_a, upper_b = (
        lax.reduce_precision(v, info.nexp, (info.nmant + 1) // 2 - 1) for v in (a, b)
    )
    lower_a, lower_b, rounded = a - upper_a, b - upper_b, a * b
    left = (upper_a * upper_b - rounded) + upper_a * lower_b + lower_a * upper_b
    return rounded, left + lower_a * lower_b


def totals(pairs: Sequence[Pair], axes: Sequence[int]) -> list[Pair]:
    """The sum of each over some axes, which stay with size 1.

    >>> ((total, left),) = totals([exactly(jnp.array([1e8, 1.0, -1e8], jnp.float32))], [0])
    >>> float((total + left)[0])
    1.0
    """
    return _totals(pairs, tuple(axes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))  # JAX has none of such a reduction
def _totals(pairs: Sequence[Pair], axes: tuple[int, ...]) -> list[Pair]:
    operands = [part for pair in pairs for part in pair]
    zeros = [jnp.zeros((), part.dtype) for part in operands]

    def together(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        added = (_sum(a[i : i + 2], b[i : i + 2]) for i in range(0, len(a), 2))
        return tuple(part for pair in added for part in pair)

    sums = lax.reduce(tuple(operands), tuple(zeros), together, axes)
    sums = [jnp.expand_dims(part, axes) for part in sums]
    return list(zip(sums[::2], sums[1::2], strict=True))


@_totals.defjvp
def _(axes: tuple[int, ...], primals: Any, tangents: Any) -> tuple[list[Pair], list[Pair]]:
    rounded = [jnp.sum(a + b, axes, keepdims=True) for a, b in tangents[0]]
    return _totals(*primals, axes), [exactly(total) for total in rounded]


def _sum(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> Pair:
    first = a[0] + b[0]
    of_b = first - a[0]
    left = (a[1] + b[1]) + ((a[0] - (first - of_b)) + (b[0] - of_b))
    total = first + left  # or what is left of many would be as large as their sum
    return total, left - (total - first)


def quotient(a: Pair, b: Pair) -> Pair:
    """a / b."""
    rounded = a[0] / b[0]
    whole, part = product(rounded, b[0])
    return rounded, ((a[0] - whole) - part + a[1] - rounded * b[1]) / b[0]


def mean(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The mean over some axes, which stay with size 1, as its dtype rounds it.

    >>> float(mean(jnp.array([1e8, 1.0, -1e8, 1.0], jnp.float32), [0])[0])
    0.5
    """
    (total,) = totals([exactly(x)], axes)
    rounded, left = quotient(total, exactly(jnp.full_like(total[0], count_of(x, axes))))
    return rounded + left
