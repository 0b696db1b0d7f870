"""Normalisation: over neighbouring channels, over the features of a row, over a batch.

Symbols: C channels or features, the last axis unless another is named; B... any leading axes.

Layer and batch normalisation share a derivation. Over n numbers, with mean m and variance v (the
mean of (x - m)^2),

    z = (x - m) / d, d = sqrt(v + epsilon), y = scale z + bias

Since dm/dx_j = 1/n and dv/dx_j = 2 (x_j - m) / n (the deviations sum to 0), dd/dx_j = z_j / n, so

    dz_i/dx_j = ([i = j] - 1/n - z_i z_j / n) / d

and with g = dy scale, the cotangent of z,

    dx_j = sum_i g_i dz_i/dx_j = (g_j - mean(g) - z_j mean(g z)) / d

dscale is the sum of dy z and dbias that of dy, over all entries that share them. The two differ in
which n numbers these are: the features of one example, or one feature of all examples.

Local response normalisation has y_j = x_j u_j^-beta with u_j = k + alpha / size (the sum of x_i^2
over the window of j). Then du_j/dx_i = 2 alpha / size x_i for the i in that window, and

    dx_i = dy_i u_i^-beta - 2 alpha beta / size x_i (sum of dy_j x_j u_j^(-beta - 1))

over the channels j whose windows hold i: those of the window turned around.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import Count, Needs, NonNegative, Positive, checked
from fnn.block import (
    Block,
    BlockValueError,
    Init,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    Spec,
    compute_dtype,
    no_params,
    require_floating,
    require_shapes,
)

Momentum = Annotated[float, Needs("0 <= momentum <= 1", lambda m: 0 <= m <= 1)]


@checked
def local_response_norm(
    size: Count = 5, alpha: NonNegative = 1e-4, beta: float = 0.75, k: Positive = 1.0
) -> Block:
    """y_c = x_c / u_c^beta, u_c = k + alpha / size (the sum of x_j^2 over size channels around c).

    For x and y of shape (B..., C), computed in float32 at least. Krizhevsky et al. 2012, section
    3.3, except that alpha is divided by ``size``, as in Caffe and PyTorch and unlike the papers of
    AlexNet and GoogLeNet. For the papers' formula give ``alpha=size * alpha``; weights trained with
    Caffe or PyTorch, GoogLeNet's among them, need the formula here. An even window has its larger
    half below c, as in PyTorch. Beyond the first and last channel there are zeros.

    Args:
      size: the number of channels in a window.
      alpha, beta, k: as above; alpha at least 0, k more than 0, so that u is never 0.

    Returns:
      A block without parameters. Residuals: x. Computing u again takes no longer than reading it,
      and x is often kept already by the block before. The derivation of its backward is in
      :mod:`fnn.blocks.normalization`.

    Raises:
      BlockValueError: an argument outside its range, or x without axes.
      BlockTypeError: x is not floating.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.local_response_norm(size=3, alpha=3.0, beta=1.0)
    >>> y, residuals = net.forward({}, jnp.array([1.0, 2.0, 0.0]))  # u is 1 + 5, 1 + 5, 1 + 4
    >>> y
    Array([0.16666667, 0.33333334, 0.        ], dtype=float32)
    >>> net.backward({}, residuals, jnp.array([0.0, 0.0, 1.0]))[1]
    Array([0. , 0. , 0.2], dtype=float32)
    """
    name = "local_response_norm"
    below, above = size // 2, (size - 1) // 2
    scale = math.sqrt(alpha / size)  # before squaring: x^2 leaves the range where this does not

    def powers(scaled: jax.Array) -> tuple[jax.Array, jax.Array]:
        """u^-beta and u^(-beta - 1)."""
        return _powers(k + _window_sum(jnp.square(scaled), below, above), beta)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_floating(name, "x", x)
        if x.ndim == 0:
            raise BlockValueError(name, "x has no axes, needs a last one of channels")
        wide = x.astype(compute_dtype(x.dtype))
        return (wide * powers(wide * scale)[0]).astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y_j = x_j u_j^-beta, and u_j depends on x_i where the window of j holds i: for
        # the j in the window of i turned around.
        d, scaled = dy.astype(compute_dtype(dy.dtype)), x.astype(compute_dtype(x.dtype)) * scale
        power, steeper = powers(scaled)
        through_u = _window_sum(d * scaled * steeper, above, below)
        return {}, (d * power - 2 * beta * scaled * through_u).astype(x.dtype)

    return Block(no_params, forward, backward, name, Kind(name, (size, alpha, beta, k)))


def _window_sum(x: jax.Array, below: int, above: int) -> jax.Array:
    """The sum over a window of the last axis, by shifted slices of x with zeros around it.

    A product with a banded matrix is slower (measured), and one infinite entry would make
    all channels NaN.
    """
    around = [(0, 0, 0)] * (x.ndim - 1) + [(below, above, 0)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), around)
    shifts = range(below + above + 1)
    slices = (lax.slice_in_dim(padded, i, i + x.shape[-1], 1, -1) for i in shifts)
    return functools.reduce(operator.add, slices)


def _powers(u: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """u^-beta and u^(-beta - 1).

    Roots are faster than powers and exactly rounded. Both results are products of one root: XLA
    stores what is costly and used twice, and storing one array is faster than three.
    """
    if beta == 0.75:
        root = 1 / jnp.sqrt(jnp.sqrt(u))
        power = root * root * root
        return power, power * power * root
    if beta == 0.5:
        root = 1 / jnp.sqrt(u)
        return root, root * root * root
    if beta == 1:
        return 1 / u, jnp.square(1 / u)
    power = jnp.power(u, -beta)
    return power, power / u


@checked
def layer_norm(
    axis: int | Sequence[int] = -1,
    epsilon: Positive = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
) -> Block:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, along an axis or several.

    Ba, Kiros and Hinton 2016. The variance is the mean of (x - mean)^2, over n and not n - 1, from
    the differences, so that it is never negative and right where the mean is large. Where a row is
    constant y is the bias, and gradients are finite: sqrt(epsilon) divides them. Computed in
    float32 at least.

    Args:
      axis: what is normalised; scale and bias have its size (of several axes, in x's order).
      epsilon: added to the variance, more than 0.
      use_scale, use_bias: whether there are parameters ``scale`` (ones at first) and ``bias``
        (zeros).

    Returns:
      A block. Residuals: x, and for each row its mean and 1 / sqrt(variance + epsilon); z would be
      a second array of x's size. The derivation of its backward is in
      :mod:`fnn.blocks.normalization`.

    Raises:
      BlockValueError: an axis that x does not have, or an empty one; parameters of another size.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, x = fnn.layer_norm(epsilon=1e-12), jnp.array([[1.0, 3.0], [5.0, 5.0]])
    >>> params = net.init(jax.random.key(0), x)
    >>> y, residuals = net.forward(params, x)
    >>> y
    Array([[-1.,  1.],
           [ 0.,  0.]], dtype=float32)
    >>> net.backward(params, residuals, jnp.array([[2.0, 3.0], [0.0, 0.0]]))[0]["scale"]
    Array([-2.,  3.], dtype=float32)
    """
    name = "layer_norm"
    leaves = [leaf for leaf, use in (("bias", use_bias), ("scale", use_scale)) if use]

    def init(key: jax.Array, x: Spec) -> Params:
        shape = tuple(x.shape[a] for a in _axes(name, axis, x))
        start = {"bias": jnp.zeros, "scale": jnp.ones}
        return {leaf: start[leaf](shape, compute_dtype(x.dtype)) for leaf in leaves}

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        axes = _axes(name, axis, x)
        require_shapes(name, params, dict.fromkeys(leaves, tuple(x.shape[a] for a in axes)), x)
        wide = x.astype(compute_dtype(x.dtype))
        mean = jnp.mean(wide, axes, keepdims=True)
        # A large mean is rounded, which would shift the whole row: subtract that error as well.
        rest = jnp.mean(wide - mean, axes, keepdims=True)
        variance = jnp.mean(jnp.square(wide - mean - rest), axes, keepdims=True)
        inverse = 1 / jnp.sqrt(variance + epsilon)
        y = (wide - mean - rest) * inverse
        if use_scale:
            y = y * _spread(params["scale"], x, axes)
        if use_bias:
            y = y + _spread(params["bias"], x, axes)
        return y.astype(x.dtype), (x, mean, rest, inverse)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = z scale + bias, z = (x - mean) inverse, where mean and inverse depend on x,
        # so dx = inverse (g - mean(g) - z mean(g z)) with g = dy scale.
        x, mean, rest, inverse = residuals
        axes = _axes(name, axis, x)
        others = tuple(a for a in range(x.ndim) if a not in axes)
        g = d = dy.astype(mean.dtype)
        z = (x.astype(mean.dtype) - mean - rest) * inverse
        dparams = {}
        if use_bias:
            dparams["bias"] = jnp.sum(d, others).astype(params["bias"].dtype)
        if use_scale:
            dparams["scale"] = jnp.sum(d * z, others).astype(params["scale"].dtype)
            g = d * _spread(params["scale"], x, axes)
        along = jnp.mean(g * z, axes, keepdims=True)
        r = g - jnp.mean(g, axes, keepdims=True) - z * along
        # mean(r) = 0 and mean(r z) = along epsilon inverse^2, because mean(z z) = 1 - epsilon
        # inverse^2. Where g is nearly a + b z, r is as small as the rounding errors in it: their
        # parts along 1 and z are taken out as well.
        error = jnp.mean(r * z, axes, keepdims=True) - along * (epsilon * jnp.square(inverse))
        dx = inverse * (r - jnp.mean(r, axes, keepdims=True) - z * error)
        return dparams, dx.astype(x.dtype)

    kind = Kind(name, (axis, epsilon, use_scale, use_bias))
    return Block(init, forward, backward, name, kind)


def _axes(name: str, axis: int | Sequence[int], x: Spec) -> tuple[int, ...]:
    """The axes of x that are asked for, from 0 on, in order."""
    require_floating(name, "x", x)
    rank, asked = len(x.shape), (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(sorted({a % rank for a in asked if -rank <= a < rank}))
    if not asked or len(axes) < len(asked):
        raise BlockValueError(
            name,
            f"axis {axis} does not fit x of shape {tuple(x.shape)}: needs different axes from "
            f"{-rank} to {rank - 1}",
        )
    if any(x.shape[a] == 0 for a in axes):
        raise BlockValueError(
            name, f"axis {axis} of x, of shape {tuple(x.shape)}, is empty: it has no mean"
        )
    return axes


def _spread(leaf: jax.Array, x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """A parameter of these axes in the rank of x, and in the dtype that x is computed in."""
    shape = [size if a in axes else 1 for a, size in enumerate(x.shape)]
    return leaf.reshape(shape).astype(compute_dtype(x.dtype))


@checked
def batch_norm(momentum: Momentum = 0.9, epsilon: NonNegative = 1e-5) -> Block:
    """y = scale (x - mean) / sqrt(var + epsilon) + bias, over all axes but the last.

    Ioffe and Szegedy 2015. x and y are (B..., C), all else (C,). ``mean`` and ``var`` are the
    batch's own, var the mean of squared deviations, which is never negative. Statistics and sums
    are in float32 or wider.

    Parameters: ``scale`` (ones at first), ``bias`` (zeros) and ``statistics``, the running
    ``mean`` (zeros) and ``var`` (ones), whose gradient is None. After every training step they
    become momentum x old + (1 - momentum) x the batch's. ``make_step``, ``make_epoch`` and ``fit``
    do that, the last two for a smaller last batch in proportion to its size; a loop of your own
    calls ``net.rules.update_statistics(params, residuals)`` with what forward kept. The running
    ``var`` is of the batches' own, over n (PyTorch's over n - 1). ``inference(net)`` uses the
    running statistics in place of the batch's.

    Args:
      momentum: the weight of the old statistics, from 0 to 1, as in Flax and Keras; 1 minus
        PyTorch's.
      epsilon: added to the variance, at least 0.

    Returns:
      A block. Residuals: ``x``, the batch's mean and variance. The derivation of its backward is in
      :mod:`fnn.blocks.normalization`.

    Raises:
      BlockValueError: x has no axis but channels, or parameters are of another number of channels.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, x = fnn.batch_norm(), jnp.array([[1.0, 5.0], [3.0, 5.0]])
    >>> params = net.init(jax.random.key(0), x)
    >>> y, residuals = net.forward(params, x)
    >>> y.round(3)
    Array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    >>> net.rules.update_statistics(params, residuals)["statistics"]["mean"]
    Array([0.2, 0.5], dtype=float32)
    """
    name = "batch_norm"

    def init(key: jax.Array, x: Spec) -> Params:
        _require_batch(name, x)
        leaf = x.shape[-1:], compute_dtype(x.dtype)
        # Four arrays, as a step may be given the memory of each.
        statistics = {"mean": jnp.zeros(*leaf), "var": jnp.ones(*leaf)}
        return {"scale": jnp.ones(*leaf), "bias": jnp.zeros(*leaf), "statistics": statistics}

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        _require_batch(name, x, params)
        wide = x.astype(compute_dtype(x.dtype))
        mean = _batch_mean(wide)
        var = _batch_mean(jnp.square(wide - mean))
        return _normalized(params, x, mean, var, epsilon), (x, mean, var)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = scale z + bias, z = (x - mean) rate, where mean and rate depend on x,
        # so dx = scale rate (dy - mean(dy) - z mean(dy z)).
        x, mean, var = residuals
        d, rate = dy.astype(mean.dtype), lax.rsqrt(var + epsilon)
        z = (x.astype(mean.dtype) - mean) * rate
        mean_d, mean_dz = _batch_mean(d), _batch_mean(d * z)
        dx = _per_channel(params["scale"], x) * rate * (d - mean_d - z * mean_dz)
        count = float(x.size // x.shape[-1])
        return _gradients(params, mean_dz * count, mean_d * count), dx.astype(x.dtype)

    def update_statistics(params: Params, residuals: Residuals) -> Params:
        _, *batch = residuals
        old = params["statistics"]
        new = {
            name: momentum * old[name] + (1 - momentum) * value.ravel().astype(old[name].dtype)
            for name, value in zip(("mean", "var"), batch, strict=True)
        }
        return params | {"statistics": new}

    kind = Kind(name, (momentum, epsilon))
    rules = Rules(
        inference=lambda: _with_running_statistics(init, epsilon, kind),
        update_statistics=update_statistics,
    )
    return Block(init, forward, backward, name, kind, rules=rules)


def _with_running_statistics(init: Init, epsilon: float, kind: Kind) -> Block:
    """The block at inference: linear in x. Residuals: ``x``."""
    name = "batch_norm"

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        _require_batch(name, x, params)
        mean, var = (_per_channel(params["statistics"][leaf], x) for leaf in ("mean", "var"))
        return _normalized(params, x, mean, var, epsilon), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = scale (x - mean) rate + bias, with mean and rate constant: dx = scale rate dy
        mean, var = (_per_channel(params["statistics"][leaf], x) for leaf in ("mean", "var"))
        d, rate = dy.astype(mean.dtype), lax.rsqrt(var + epsilon)
        batch = tuple(range(x.ndim - 1))
        dscale = jnp.sum(d * ((x.astype(mean.dtype) - mean) * rate), batch)
        dx = d * (_per_channel(params["scale"], x) * rate)
        return _gradients(params, dscale, jnp.sum(d, batch)), dx.astype(x.dtype)

    return Block(init, forward, backward, name, kind)


def _require_batch(name: str, x: Spec, params: Params = None) -> None:
    """Refuses an x without batch axes and, if they are given, parameters of other shapes."""
    require_floating(name, "x", x)
    if len(x.shape) < 2:
        raise BlockValueError(name, f"x has shape {x.shape}, needs a batch axis and channels")
    if params is not None:
        c = tuple(x.shape[-1:])
        statistics = {"mean": c, "var": c}
        require_shapes(name, params, {"scale": c, "bias": c, "statistics": statistics}, x)


def _batch_mean(x: jax.Array) -> jax.Array:
    """Over all axes but the last, each of which stays with size 1; 0 of an empty batch."""
    count = float(max(x.size // max(x.shape[-1], 1), 1))
    return jnp.sum(x, tuple(range(x.ndim - 1)), keepdims=True) / count


def _per_channel(leaf: jax.Array, x: jax.Array) -> jax.Array:
    return _spread(leaf, x, (x.ndim - 1,))


def _normalized(
    params: Params, x: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> jax.Array:
    wide = x.astype(mean.dtype)
    scale, bias = (_per_channel(params[leaf], x) for leaf in ("scale", "bias"))
    return ((wide - mean) * lax.rsqrt(var + epsilon) * scale + bias).astype(x.dtype)


def _gradients(params: Params, dscale: jax.Array, dbias: jax.Array) -> Params:
    return {
        "scale": dscale.ravel().astype(params["scale"].dtype),
        "bias": dbias.ravel().astype(params["bias"].dtype),
        "statistics": {"mean": None, "var": None},
    }
