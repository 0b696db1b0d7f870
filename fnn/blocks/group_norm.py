"""Group and instance normalisation: over the places of one example, in groups of channels.

Symbols: B batch, S the spatial axes (any number, of n places together), C channels in g groups.

Each example and group has a mean and a variance over n C / g numbers, and y = scale z + bias with
a scale and a bias for each channel (:mod:`fnn.blocks.moments`, with the derivation of

    dx = (e - mean(e) - z mean(e z)) / d,   e = dy scale

for one group). Scale is the same at all places. So with the sums over places, for each channel,

    D = sum dy,   A = sum dy z

the four sums that backward needs are sums of these few: mean(e) and mean(e z) over the channels of
a group, of scale D and scale A; dbias and dscale over the batch, of D and A. One reading of x and
dy finds all, and a second one dx. Means of groups, too, are found from those of channels: x is
never cut into groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from fnn.arguments import Count, Positive, checked
from fnn.arrays import Spec, compute_dtype, count_of, is_split
from fnn.block import Block, BlockValueError, Key, Kind, Params, Residuals
from fnn.blocks.moments import (
    FEW,
    mean_from,
    moments_of,
    nan_if_overflowed,
    rate_of,
    spread,
    standardised,
)
from fnn.blocks.sums import sums
from fnn.refusals import (
    as_cotangent,
    elementary,
    require_floating,
    require_groups,
    require_shapes,
)


@checked
def group_norm(
    groups: Count, *, epsilon: Positive = 1e-5, use_scale: bool = True, use_bias: bool = True
) -> Block:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, over places and groups of channels.

    Wu and He 2018 (arXiv 1803.08494); PyTorch's ``GroupNorm(groups, C)``. x and y are (B, S..., C)
    with any number of axes S, also none. Each example has ``groups`` means and variances, of C /
    groups neighbouring channels at all places. Unlike :func:`batch_norm` it does not depend on the
    batch, and is the same at inference. Computed in float32 at least, and accurate also where the
    mean is large beside the spread. Where a group is constant y is the bias, and gradients are
    finite.

    Args:
      groups: their number, which divides C. With 1, all of an example is one group.
      epsilon: added to the variance, more than 0.
      use_scale, use_bias: whether there are parameters ``scale`` (ones at first) and ``bias``
        (zeros), with an entry for each channel.

    Returns:
      A block. Residuals: x, and each group's mean (in two parts) and variance. The derivation of
      its backward is in :mod:`fnn.blocks.group_norm`.

    Raises:
      BlockValueError: channels that cannot be split into the groups, x without an axis of examples
        or without places; parameters of another size.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, x = fnn.group_norm(2, epsilon=1e-12), jnp.array([[1.0, 3.0, 5.0, 5.0]])
    >>> params = net.init(jax.random.key(0), x)
    >>> y, residuals = net.forward(params, x)
    >>> y
    Array([[-1.,  1.,  0.,  0.]], dtype=float32)
    >>> net.backward(params, residuals, jnp.array([[2.0, 3.0, 0.0, 1.0]]))[0]["scale"]
    Array([-2.,  3.,  0.,  0.], dtype=float32)
    """
    name = "group_norm"
    kind = Kind(name, (groups, epsilon, use_scale, use_bias))
    return _by_group(kind, lambda x: groups, epsilon, use_scale, use_bias)


@checked
def instance_norm(
    *, epsilon: Positive = 1e-5, use_scale: bool = True, use_bias: bool = True
) -> Block:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, over the places of each channel.

    Ulyanov, Vedaldi and Lempitsky 2016 (arXiv 1607.08022); PyTorch's ``InstanceNorm1d`` to ``3d``
    with ``affine=True`` and without running statistics. x and y are (B, S..., C) with at least one
    axis S. It is :func:`group_norm` with as many groups as channels: each example and channel has
    a mean and a variance of its own.

    Args:
      epsilon, use_scale, use_bias: as for :func:`group_norm`.

    Returns:
      A block. Residuals: x, and each channel's mean (in two parts) and variance. The derivation of
      its backward is in :mod:`fnn.blocks.group_norm`.

    Raises:
      BlockValueError: x has no spatial axis or a single place, which is its own mean; parameters of
        another size.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, x = fnn.instance_norm(epsilon=1e-12), jnp.array([[[1.0, 5.0], [3.0, 5.0]]])
    >>> params = net.init(jax.random.key(0), x)
    >>> y, residuals = net.forward(params, x)
    >>> y
    Array([[[-1.,  0.],
            [ 1.,  0.]]], dtype=float32)
    >>> net.backward(params, residuals, y)[0]["scale"]
    Array([2., 0.], dtype=float32)
    """
    name = "instance_norm"

    def groups(x: Spec) -> int:
        if len(x.shape) < 3 or math.prod(x.shape[1:-1]) == 1:
            raise BlockValueError(
                name,
                f"x has shape {tuple(x.shape)}, needs several places between batch and channels: "
                "one is its own mean, so that y would be the bias; take group_norm or layer_norm",
            )
        return x.shape[-1]

    kind = Kind(name, (epsilon, use_scale, use_bias))
    return _by_group(kind, groups, epsilon, use_scale, use_bias)


def _by_group(
    kind: Kind,
    groups_of: Callable[[Spec], int],
    epsilon: float,
    use_scale: bool,
    use_bias: bool,
) -> Block:
    """The block whose groups are so many."""
    name = kind.maker
    leaves = [leaf for leaf, use in (("bias", use_bias), ("scale", use_scale)) if use]

    def check(x: Spec, *params: Params) -> int:
        """Refuses what does not do; returns how many channels a group has."""
        require_floating(name, "x", x)
        if len(x.shape) < 2 or 0 in x.shape[1:]:
            raise BlockValueError(
                name,
                f"x has shape {tuple(x.shape)}, needs an axis of examples, then places, if any, "
                "and channels, none of them empty",
            )
        groups = groups_of(x)
        require_groups(name, x, groups)
        for given in params:
            require_shapes(name, given, dict.fromkeys(leaves, tuple(x.shape[-1:])), x)
        return x.shape[-1] // groups

    def init(key: jax.Array, x: Spec) -> Params:
        check(x)
        start, dtype = {"bias": jnp.zeros, "scale": jnp.ones}, compute_dtype(x.dtype)
        return {leaf: start[leaf](x.shape[-1:], dtype) for leaf in leaves}

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        size = check(x, params)

        def mean_of(v: jax.Array) -> jax.Array:
            return _of_groups(_over_places(v)[0], size, _count(x, size))

        wide = x.astype(compute_dtype(x.dtype))
        moments = moments_of(wide, mean_from(mean_of(wide), wide, mean_of), mean_of)
        y = nan_if_overflowed(moments, standardised(x, moments, epsilon))
        if use_scale:
            y = y * spread(params["scale"], x, (x.ndim - 1,))
        if use_bias:
            y = y + spread(params["bias"], x, (x.ndim - 1,))
        return y.astype(x.dtype), (x, tuple(m[..., ::size] for m in moments))

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = z scale + bias, z = (x - mean) rate, where mean and rate depend on x,
        # so dx = rate (e - mean(e) - z mean(e z)) with e = dy scale.
        x, of_groups = residuals
        size = check(x, params)
        d = as_cotangent(name, dy, x.shape).astype(compute_dtype(x.dtype))
        mean, rest, var = (_of_channels(m, size) for m in of_groups)
        moments = mean, rest, var
        z = standardised(x, moments, epsilon)
        totals = dict(zip(("bias", "scale"), _over_places(d, d * z), strict=True))
        dparams = {
            leaf: jnp.sum(totals[leaf], range(x.ndim - 1)).astype(params[leaf].dtype)
            for leaf in leaves
        }
        scale = spread(params["scale"], x, (x.ndim - 1,)) if use_scale else 1.0
        count, rate = _count(x, size), rate_of(moments, epsilon)
        mean_e, along = (
            _of_groups(totals[leaf] * scale, size, count) for leaf in ("bias", "scale")
        )
        r = d * scale - mean_e - z * along
        if isinstance(count, float) and count <= FEW:
            # Where e is nearly a + b z, which of few numbers it may well be, r is as small as the
            # rounding errors in it. They are taken out as in layer_norm; of more, for which that
            # would be another reading of x and dy, they are left in, as in batch_norm.
            mean_r, along_r = (_of_groups(v, size, count) for v in _over_places(r, r * z))
            r = r - mean_r - z * (along_r - along * (epsilon * jnp.square(rate)))
        return dparams, (rate * r).astype(x.dtype)

    return elementary(forward, backward, name, kind, init=init)


def _over_places(*arrays: jax.Array) -> Sequence[jax.Array]:
    """Sums over all axes but examples and channels, which stay with size 1."""
    places = range(1, arrays[0].ndim - 1)
    return [jnp.expand_dims(total, tuple(places)) for total in sums(arrays, places)]


def _count(x: Spec, size: int) -> jax.Array | float:
    """How many numbers a group has."""
    return count_of(x, range(1, len(x.shape) - 1)) * size


def _of_groups(totals: jax.Array, size: int, count: jax.Array | float) -> jax.Array:
    """Sums of channels to the mean of each one's group."""
    *others, channels = totals.shape
    parts = totals.reshape(*others, channels // size, size)
    return _of_channels(jnp.sum(parts, -1) / count, size)


def _of_channels(of_groups: jax.Array, size: int) -> jax.Array:
    """A number of each group, for each of its channels."""
    # Where axes of a mesh are explicit, JAX wants to be told how the result is split.
    sharding = jax.typeof(of_groups).sharding if is_split(of_groups) else None
    return jnp.repeat(of_groups, size, -1, out_sharding=sharding)
