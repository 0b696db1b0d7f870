"""Normalisation: over neighbouring channels, over the features of a row, over a batch.

Symbols: C channels or features, the last axis unless another is named; B... any leading axes.

Layer and batch normalisation standardise numbers (:mod:`fnn.blocks.moments`): the features of one
example, or one feature of all examples. Forward and backward of layer_norm move 1.06 to 1.12 times
the bytes of jax.vjp of the plain formula for it (XLA's count, on a CPU), in about the same time.

Local response normalisation has y_j = x_j u_j^-beta with u_j = k + alpha / size (the sum of x_i^2
over the window of j). Then du_j/dx_i = 2 alpha / size x_i for the i in that window, and

    dx_i = dy_i u_i^-beta - 2 alpha beta / size x_i (sum of dy_j x_j u_j^(-beta - 1))

over the channels j whose windows hold i: those of the window turned around.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import Count, Needs, NonNegative, Positive, checked
from fnn.arrays import Spec, compute_dtype, count_of
from fnn.block import Block, BlockValueError, Init, Key, Kind, Params, Residuals, Rules
from fnn.blocks import compensated
from fnn.blocks.moments import (
    Moments,
    average,
    is_few,
    mean_from,
    moments_of,
    nan_if_overflowed,
    near_mean,
    rate_of,
    spread,
    standardised,
    subtrahend,
)
from fnn.blocks.sums import sums
from fnn.compiling import by_platform
from fnn.refusals import as_cotangent, axes_of, elementary, require_floating, require_shapes

Momentum = Annotated[float, Needs("0 <= momentum <= 1", lambda m: 0 <= m <= 1)]


@checked
def local_response_norm(
    size: Count = 5, *, alpha: NonNegative = 1e-4, beta: float = 0.75, k: Positive = 1.0
) -> Block:
    """y_c = x_c / u_c^beta, u_c = k + alpha / size (the sum of x_j^2 over size channels around c).

    For x and y of shape (B..., C), computed in float32 at least, there within 6 units in the last
    place. Where ``beta`` is 0.75, dx is computed by roots: ten times as fast as by powers, and two
    to three times as far off (11 units of its terms at most, as measured, and jax.vjp 5).
    Krizhevsky et al. 2012, section 3.3, except that alpha is divided by ``size``, as in Caffe and
    PyTorch and unlike the papers of AlexNet and GoogLeNet. For the papers' formula give
    ``alpha=size * alpha``; weights trained with Caffe or PyTorch, GoogLeNet's among them, need the
    formula here. An even window has its larger half below c, as in PyTorch. Beyond the first and
    last channel there are zeros.

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
    cancels = abs(2 * beta - 1) < 0.4

    def squares(x: jax.Array) -> jax.Array:
        return jnp.square(x.astype(compute_dtype(x.dtype)) * scale)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_floating(name, "x", x)
        if x.ndim == 0:
            raise BlockValueError(name, "x has shape (), needs a last axis of channels")
        u = k + _window_sum(x, below, above, squares)
        return _divided(x.astype(u.dtype), u, beta).astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y_j = x_j u_j^-beta, and u_j depends on x_i where the window of j holds i: for
        # the j in the window of i turned around.
        wide, dy = compute_dtype(x.dtype), as_cotangent(name, dy, x.shape)
        # XLA for TPUs would keep forward's u, in float32: a barrier has it computed again.
        again = lax.optimization_barrier
        x, dy = by_platform(x, dy, tpu=lambda x, dy: again((x, dy)), default=lambda x, dy: (x, dy))
        d, scaled = dy.astype(wide), x.astype(wide) * scale
        power, steeper = _powers(k + _window_sum(x, below, above, squares), beta)
        term = d * scaled * steeper
        if not cancels:
            through_u = _window_sum(term, above, below)
            return {}, (d * power - 2 * beta * scaled * through_u).astype(x.dtype)
        # Of j = i the two terms nearly cancel where x_i is most of its window: so they are one,
        # dy_i u_i^-beta (the others' part of u_i + (1 - 2 beta) x_i's own) / u_i.
        own, through_others = squares(x), _window_sum(term, above, below, skip=above)
        others = k + _window_sum(x, below, above, squares, skip=below)
        whole = others + own
        share = jnp.where(whole < jnp.inf, (others + (1 - 2 * beta) * own) / whole, 0)
        return {}, (d * power * share - 2 * beta * scaled * through_others).astype(x.dtype)

    return elementary(forward, backward, name, Kind(name, (size, alpha, beta, k)))


def _window_sum(
    x: jax.Array,
    below: int,
    above: int,
    of: Callable[[jax.Array], jax.Array] = lambda x: x,
    skip: int | None = None,
) -> jax.Array:
    """The sum of ``of(x)``, 0 at 0, over a window of the last axis, by slices with zeros around.

    ``skip``: the number of a slice that is left out.

    A product with a banded matrix is slower (measured), and one infinite entry would make
    all channels NaN.
    """

    def shifted(x: jax.Array) -> list[jax.Array]:
        around = [(0, 0, 0)] * (x.ndim - 1) + [(below, above, 0)]
        padded = lax.pad(x, jnp.zeros((), x.dtype), around)
        shifts = (i for i in range(below + above + 1) if i != skip)
        return [lax.slice_in_dim(padded, i, i + x.shape[-1], 1, -1) for i in shifts]

    # XLA for TPUs writes what is shifted to memory: that is x itself there, in 16 bits where it has
    # them. Elsewhere it does not, and each number is squared once.
    return by_platform(
        x,
        tpu=lambda x: sum(map(of, shifted(x)), jnp.zeros_like(of(x))),
        default=lambda x: sum(shifted(of(x)), jnp.zeros_like(of(x))),
    )


def _divided(x: jax.Array, u: jax.Array, beta: float) -> jax.Array:
    """x / u^beta. Roots are faster than powers and exactly rounded."""
    if beta == 0.75:
        root = jnp.sqrt(u)
        return x / (root * jnp.sqrt(root))
    if beta == 0.5:
        return x / jnp.sqrt(u)
    if beta == 1:
        return x / u
    return x * jnp.power(u, -beta)


def _powers(u: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """u^-beta and u^(-beta - 1).

    Both are products of one root: XLA stores what is costly and used twice, and storing one array
    is faster than three. Powers by other roots, half as far off, take three times as long, and the
    powers of ``jax.vjp`` fourteen times (measured).
    """
    if beta == 0.75:
        root = jnp.sqrt(1 / jnp.sqrt(u))
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
    *,
    epsilon: Positive = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
) -> Block:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, along an axis or several.

    Ba, Kiros and Hinton 2016. The variance is the mean of (x - mean)^2, over n and not n - 1. Where
    a row is constant y is the bias, and gradients are finite: sqrt(epsilon) divides them. Computed
    in float32 at least, and accurate also where the mean is large beside the spread
    (:mod:`fnn.blocks.normalization`).

    Args:
      axis: what is normalised; scale and bias have its size (of several axes, in x's order).
      epsilon: added to the variance, more than 0.
      use_scale, use_bias: whether there are parameters ``scale`` (ones at first) and ``bias``
        (zeros).

    Returns:
      A block. Residuals: x, and each row's mean (in two parts) and variance; z would be a second
      array of x's size. The derivation of its backward is in
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
        wide, mean_of = x.astype(compute_dtype(x.dtype)), lambda v: average(v, axes)
        mean = by_platform(
            wide,
            tpu=lambda x: compensated.mean(x, axes),  # which reads x once more for another sum
            default=lambda x: mean_from(mean_of(x), x, mean_of),
        )
        moments = moments_of(wide, mean, mean_of)
        y = nan_if_overflowed(moments, standardised(x, moments, epsilon))
        if use_scale:
            y = y * spread(params["scale"], x, axes)
        if use_bias:
            y = y + spread(params["bias"], x, axes)
        return y.astype(x.dtype), (x, moments)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = z scale + bias, z = (x - mean) rate, where mean and rate depend on x,
        # so dx = rate (g - mean(g) - z mean(g z)) with g = dy scale.
        x, moments = residuals
        axes = _axes(name, axis, x)
        require_shapes(name, params, dict.fromkeys(leaves, tuple(x.shape[a] for a in axes)), x)
        dy = as_cotangent(name, dy, x.shape)
        others = tuple(a for a in range(x.ndim) if a not in axes)
        z, g = standardised(x, moments, epsilon), dy.astype(compute_dtype(x.dtype))
        shares = [g * z if leaf == "scale" else g for leaf in leaves]
        dparams = {
            leaf: total.astype(params[leaf].dtype)
            for leaf, total in zip(leaves, sums(shares, others), strict=True)
        }
        if use_scale:
            g = g * spread(params["scale"], x, axes)
        rate = rate_of(moments, epsilon)
        # XLA for TPUs reads x and dy again for each sum that needs another one. So of many numbers
        # both parts of g along z are one there, and what rounding leaves of it stays.
        along = by_platform(
            g, z,
            tpu=lambda g, z: average(g * z, axes) if is_few(x, axes) else jnp.zeros_like(rate),
            default=lambda g, z: average(g * z, axes),
        )  # fmt: skip
        r = g - subtrahend(average(g, axes)) - z * along
        # mean(r) = 0 and mean(r z) = along epsilon rate^2, because mean(z z) = 1 - epsilon rate^2.
        # Where g is nearly a + b z, r is as small as the rounding errors in it: their parts along
        # 1 and z are taken out as well.
        error = average(r * z, axes) - along * (epsilon * jnp.square(rate))
        dx = rate * (r - average(r, axes) - z * error)
        return dparams, dx.astype(x.dtype)

    kind = Kind(name, (axis, epsilon, use_scale, use_bias))
    return elementary(forward, backward, name, kind, init=init)


def _axes(name: str, axis: int | Sequence[int], x: Spec) -> tuple[int, ...]:
    """The axes of x that are asked for, from 0 on, in order."""
    require_floating(name, "x", x)
    axes = axes_of(name, axis, x)
    if not axes:
        raise BlockValueError(name, f"axis is {axis}, needs different axes of x, one at least")
    if any(x.shape[a] == 0 for a in axes):
        raise BlockValueError(
            name, f"axis {axis} of x, of shape {tuple(x.shape)}, is empty: it has no mean"
        )
    return axes


@checked
def batch_norm(*, momentum: Momentum = 0.9, epsilon: NonNegative = 1e-5) -> Block:
    """y = scale (x - mean) / sqrt(var + epsilon) + bias, over all axes but the last.

    Ioffe and Szegedy 2015. x and y are (B..., C), all else (C,). ``mean`` and ``var`` are the
    batch's own, var the mean of squared deviations. Computed in float32 at least, and accurate also
    where a mean is large beside the spread (:mod:`fnn.blocks.normalization`).

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
      epsilon: added to the variance, at least 0. Without it, gradients of a channel that is
        constant are 0, as its y before scale and bias is.

    Returns:
      A block. Residuals: ``x``, the batch's mean (in two parts) and variance. The derivation of its
      backward is in
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
        batch = _batch_axes(x)
        wide, mean_of = x.astype(compute_dtype(x.dtype)), lambda v: average(v, batch)
        moments = moments_of(wide, mean_from(near_mean(x, batch), wide, mean_of), mean_of)
        z = nan_if_overflowed(moments, standardised(x, moments, epsilon))
        scale, bias = (_per_channel(params[leaf], x) for leaf in ("scale", "bias"))
        return (z * scale + bias).astype(x.dtype), (x, moments)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = scale z + bias, z = (x - mean) rate, where mean and rate depend on x,
        # so dx = scale rate (dy - mean(dy) - z mean(dy z)).
        x, moments = residuals
        _require_batch(name, x, params)
        dy = as_cotangent(name, dy, x.shape)
        d, batch = dy.astype(moments[0].dtype), _batch_axes(x)
        z = standardised(x, moments, epsilon)
        # Where dy is nearly constant, rounding is left in dx, half as much as in that of jax.vjp.
        # To take that out, as layer_norm does, is another pass over x.
        mean, along, count = average(d, batch), average(d * z, batch), count_of(x, batch)
        factor = _per_channel(params["scale"], x) * rate_of(moments, epsilon)
        dx = factor * (d - mean - z * along)
        return _gradients(params, along * count, mean * count), dx.astype(x.dtype)

    def update_statistics(params: Params, residuals: Residuals) -> Params:
        _, (mean, rest, var) = residuals
        old, batch = params["statistics"], {"mean": mean + rest, "var": var}
        new = {
            leaf: momentum * old[leaf] + (1 - momentum) * value.ravel().astype(old[leaf].dtype)
            for leaf, value in batch.items()
        }
        return {**params, "statistics": new}

    kind = Kind(name, (momentum, epsilon))
    rules = Rules(
        inference=lambda: _with_running_statistics(init, epsilon, kind),
        update_statistics=update_statistics,
    )
    return elementary(forward, backward, name, kind, rules=rules, init=init)


def _with_running_statistics(init: Init, epsilon: float, kind: Kind) -> Block:
    """The block at inference: linear in x. Residuals: ``x``."""
    name = "batch_norm"

    def running(params: Params, x: jax.Array) -> Moments:
        mean, var = (_per_channel(params["statistics"][leaf], x) for leaf in ("mean", "var"))
        return mean, jnp.zeros_like(mean), var

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        _require_batch(name, x, params)
        scale, bias = (_per_channel(params[leaf], x) for leaf in ("scale", "bias"))
        return (standardised(x, running(params, x), epsilon) * scale + bias).astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = scale z + bias, z = (x - mean) rate, with mean and rate constant.
        _require_batch(name, x, params)
        dy = as_cotangent(name, dy, x.shape)
        moments, d, batch = running(params, x), dy.astype(compute_dtype(dy.dtype)), _batch_axes(x)
        dscale = jnp.sum(d * standardised(x, moments, epsilon), batch)
        dx = d * (_per_channel(params["scale"], x) * rate_of(moments, epsilon))
        return _gradients(params, dscale, jnp.sum(d, batch)), dx.astype(x.dtype)

    return elementary(forward, backward, name, kind, init=init)


def _require_batch(name: str, x: Spec, *params: Params) -> None:
    """Refuses an x without batch axes and, if they are given, parameters of other shapes."""
    require_floating(name, "x", x)
    if len(x.shape) < 2:
        raise BlockValueError(name, f"x has shape {x.shape}, needs a batch axis and channels")
    c = tuple(x.shape[-1:])
    for given in params:
        statistics = {"mean": c, "var": c}
        require_shapes(name, given, {"scale": c, "bias": c, "statistics": statistics}, x)


def _batch_axes(x: Spec) -> tuple[int, ...]:
    return tuple(range(len(x.shape) - 1))


def _per_channel(leaf: jax.Array, x: jax.Array) -> jax.Array:
    return spread(leaf, x, (x.ndim - 1,))


def _gradients(params: Params, dscale: jax.Array, dbias: jax.Array) -> Params:
    return {
        "scale": dscale.ravel().astype(params["scale"].dtype),
        "bias": dbias.ravel().astype(params["bias"].dtype),
        "statistics": {"mean": None, "var": None},
    }
