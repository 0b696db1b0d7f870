"""Numbers standardised by their mean and variance: what several normalisations share.

Over n numbers, with mean m and variance v (the mean of (x - m)^2),

    z = (x - m) / d, d = sqrt(v + epsilon), y = scale z + bias

Since dm/dx_j = 1/n and dv/dx_j = 2 (x_j - m) / n (the deviations sum to 0), dd/dx_j = z_j / n, so

    dz_i/dx_j = ([i = j] - 1/n - z_i z_j / n) / d

and with g = dy scale, the cotangent of z,

    dx_j = sum_i g_i dz_i/dx_j = (g_j - mean(g) - z_j mean(g z)) / d

dscale is the sum of dy z and dbias that of dy, over all entries that share them. Layer, batch and
group normalisation differ in which n numbers these are.

In floating point the mean is rounded, which would shift every x - m: by a lot where the mean is
large beside the spread. So the mean is corrected by the mean of what is left when it, or a
number near it, is subtracted, which makes that of equal numbers exact, and what rounding leaves
even then is subtracted as a second part. So y and dx have their digits for x of any offset, and z
is 0 where x is constant.

What the dtype does not hold: where the sum of n numbers or a squared deviation leaves its range (in
float32 deviations above 1e19), y is NaN; squared deviations below it count as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arrays import Spec, compute_dtype, count_of, is_split

FEW = 8.0  # numbers
Moments = tuple[jax.Array, jax.Array, jax.Array]  # the mean in two parts, and the variance


def average(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The mean over some axes, which stay with size 1; 0 of no entries."""
    return jnp.sum(x, axes, keepdims=True) / count_of(x, axes)


def subtrahend(mean: jax.Array) -> jax.Array:
    """A mean with a bit less, which is the same number wherever it is subtracted.

    XLA computes a mean again in each loop that subtracts it, and some of these loops fuse its last
    product with the subtraction, without rounding in between: they would see another mean.
    """
    info = jnp.finfo(mean.dtype)
    return lax.reduce_precision(mean, info.nexp, info.nmant - 1)


def mean_from(
    start: jax.Array, x: jax.Array, mean_of: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The mean, rounded, as a number near it and the mean of what is left."""
    start = subtrahend(lax.stop_gradient(start.astype(x.dtype)))
    return start + subtrahend(mean_of(x - start))


def is_few(x: Spec, axes: Sequence[int]) -> bool:
    """Whether they are few numbers along some axes: there g may well be nearly a + b z, and dx as
    small as the rounding errors in it."""
    count = count_of(x, axes)
    return isinstance(count, float) and count <= FEW


def near_mean(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """About the mean over some axes: that of a 64th of them, which takes as little of a reading of
    x. It is within 8 standard deviations."""
    axis = axes[min(1, len(axes) - 1)]  # rows of all images: TPUs may lay out images together
    n = x.shape[axis]
    if is_split(x) or not isinstance(n, int):  # a batch that jax.export leaves open
        return average(x.astype(compute_dtype(x.dtype)), axes)
    part = lax.slice_in_dim(x, 0, -(-n // 64), axis=axis)  # before XLA writes x in float32 for it
    return average(part.astype(compute_dtype(x.dtype)), axes)


def moments_of(x: jax.Array, mean: jax.Array, mean_of: Callable[[jax.Array], jax.Array]) -> Moments:
    """The mean and variance of groups of entries.

    Args:
      x: the entries, in the dtype to compute in.
      mean: the mean of each group, rounded.
      mean_of: ``mean_of(v)`` is the means of v, one for each group.
    """
    rest = subtrahend(mean_of(x - mean))
    # rest is about a unit of the mean's last place, or as small beside the spread: of the two terms
    # the first is larger by the variance, which is more than that of numbers that differ in that
    # place.
    var = mean_of(jnp.square(x - mean)) - jnp.square(rest)
    return mean, rest, var


def rate_of(moments: Moments, epsilon: float) -> jax.Array:
    """1 / sqrt(var + epsilon)."""
    size = moments[2] + epsilon
    if epsilon:
        return 1 / jnp.sqrt(size)
    is_constant = size == 0  # without epsilon z has no derivative there: y and dx are 0
    return jnp.where(is_constant, 0, 1 / jnp.sqrt(jnp.where(is_constant, 1, size)))


def standardised(x: jax.Array, moments: Moments, epsilon: float) -> jax.Array:
    """z = (x - mean) / sqrt(var + epsilon)."""
    mean, rest, _ = moments
    return (x.astype(mean.dtype) - mean - rest) * rate_of(moments, epsilon)


def nan_if_overflowed(moments: Moments, z: jax.Array) -> jax.Array:
    """Not a silent 0 where the variance is infinite."""
    return jnp.where(moments[2] < jnp.inf, z, jnp.nan)


def spread(leaf: jax.Array, x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """A parameter of these axes in the rank of x, and in the dtype that x is computed in."""
    shape = [size if a in axes else 1 for a, size in enumerate(x.shape)]
    return leaf.reshape(shape).astype(compute_dtype(x.dtype))
