"""Normalisation: of a position across its neighbouring channels, and of a row across its features.

Symbols: C channels or features, the last axis unless another is named; B... any leading axes.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.block import (
    Block,
    BlockValueError,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    compute_dtype,
    no_params,
    require_floating,
    require_params,
    whole_number,
)


def local_response_norm(
    size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Block:
    """y_c = x_c / u_c^beta, u_c = k + alpha / size (the sum of x_j^2 over size channels around c).

    For x and y of shape (B..., C). Krizhevsky et al. 2012, section 3.3, but for the division by
    ``size``: Caffe and PyTorch divide alpha by it, the papers of AlexNet and GoogLeNet do not.
    To have the papers' formula, give ``alpha=size * alpha``; weights that were trained with Caffe
    or PyTorch, GoogLeNet's among them, need what is here. An even window has the larger half below
    c, as in PyTorch. Beyond the first and last channel there are zeros.

    Derivative: dx_i = dy_i u_i^-beta - 2 alpha beta / size x_i (the sum of dy_j x_j u_j^(-beta - 1)
    over the channels j whose windows hold i).

    Args:
      size: the number of channels in a window.
      alpha, beta, k: as above; alpha at least 0, k more than 0, so that u is never 0.

    Computed in float32 at least. Residuals: x. u is computed again: that takes no longer than
    reading it, and x is often kept already by what comes before.

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
    size = whole_number(name, "size", size)
    for what, value, least in (("alpha", alpha, 0), ("beta", beta, -math.inf), ("k", k, 0)):
        if not least <= value < math.inf or (what == "k" and value == 0):
            needs = {"alpha": "0 or more", "beta": "a finite number", "k": "more than 0"}[what]
            raise BlockValueError(name, f"{what} is {value!r}, needs {needs}")
    below, above = size // 2, (size - 1) // 2
    scale = math.sqrt(alpha / size)  # before squaring: x^2 leaves the range where this does not

    def check(x: Any) -> None:
        require_floating(name, "x", x)
        if len(x.shape) == 0:
            raise BlockValueError(name, "x has no axes, needs a last one of channels")

    def powers(scaled: jax.Array) -> tuple[jax.Array, jax.Array]:
        """u^-beta and u^(-beta - 1)."""
        return _powers(k + _window_sum(jnp.square(scaled), below, above), beta)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        check(x)
        wide = x.astype(compute_dtype(x.dtype))
        return (wide * powers(wide * scale)[0]).astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y_j = x_j u_j^-beta, and u_j has x_i in it for the j whose windows hold i: those
        # of the window turned around.
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

    Roots are faster than powers and exactly rounded. Both results are products of one number:
    XLA stores what is costly and used twice, and one array in memory is faster than three.
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


def layer_norm(
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
) -> Block:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, along an axis or several.

    Ba, Kiros and Hinton 2016. The variance is the mean of (x - mean)^2, over n and not n - 1: of
    the differences, so that it is never negative and right where the mean is large. Where a
    row is constant y is the bias, and gradients are finite: sqrt(epsilon) divides them.

    Derivative, with z = (x - mean) / deviation and g = dy scale:
    dx = (g - mean(g) - z mean(g z)) / deviation; dscale = the sum of dy z and dbias that of dy,
    over all other axes.

    Args:
      axis: what is normalised; scale and bias have its size (of several axes, in x's order).
      epsilon: added to the variance, more than 0.
      use_scale, use_bias: whether there are parameters ``scale`` (ones at first) and ``bias``
        (zeros).

    Computed in float32 at least. Residuals: x, and for each row its mean and 1 / deviation; z
    would be a second array of x's size.

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
    if not 0 < epsilon < math.inf:
        raise BlockValueError(name, f"epsilon is {epsilon!r}, needs a number more than 0")
    needed = {leaf for leaf, use in (("scale", use_scale), ("bias", use_bias)) if use}

    def axes_of(x: Any) -> tuple[int, ...]:
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

    def init(key: Key, x: Any) -> Params:
        shape = tuple(x.shape[a] for a in axes_of(x))
        dtype = compute_dtype(x.dtype)
        made = {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}
        return {leaf: made[leaf] for leaf in sorted(needed)}

    def check_params(params: Params, x: Any, axes: tuple[int, ...]) -> None:
        require_params(name, params, needed)
        shape = tuple(x.shape[a] for a in axes)
        for leaf, value in params.items():
            if value.shape != shape:
                raise BlockValueError(
                    name,
                    f"{leaf} has shape {value.shape}, x of shape {tuple(x.shape)} needs {shape} "
                    f"along axis {axis}: give such inputs, or make parameters for these with "
                    "init(key, x)",
                )

    def along(leaf: jax.Array, x: Any, axes: tuple[int, ...], dtype: Any) -> jax.Array:
        """A parameter in a shape that spreads over x."""
        shape = [size if a in axes else 1 for a, size in enumerate(x.shape)]
        return leaf.reshape(shape).astype(dtype)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        axes = axes_of(x)
        check_params(params, x, axes)
        wide = x.astype(compute_dtype(x.dtype))
        mean = jnp.mean(wide, axes, keepdims=True)
        # The rounding of a large mean would shift the whole row: take out what it left.
        rest = jnp.mean(wide - mean, axes, keepdims=True)
        variance = jnp.mean(jnp.square(wide - mean - rest), axes, keepdims=True)
        inverse = 1 / jnp.sqrt(variance + epsilon)
        y = (wide - mean - rest) * inverse
        if use_scale:
            y = y * along(params["scale"], x, axes, y.dtype)
        if use_bias:
            y = y + along(params["bias"], x, axes, y.dtype)
        return y.astype(x.dtype), (x, mean, rest, inverse)

    def backward(params: Params, kept: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = z scale + bias, z = (x - mean) inverse, and mean and inverse hold x, too.
        x, mean, rest, inverse = kept
        axes = axes_of(x)
        others = tuple(a for a in range(x.ndim) if a not in axes)
        g = d = dy.astype(mean.dtype)
        z = (x.astype(mean.dtype) - mean - rest) * inverse
        dparams = {}
        if use_bias:
            dparams["bias"] = jnp.sum(d, others).astype(params["bias"].dtype)
        if use_scale:
            dparams["scale"] = jnp.sum(d * z, others).astype(params["scale"].dtype)
            g = d * along(params["scale"], x, axes, d.dtype)
        g = g - jnp.mean(g, axes, keepdims=True)
        dx = inverse * (g - z * jnp.mean(g * z, axes, keepdims=True))
        return dparams, dx.astype(x.dtype)

    kind = Kind(
        name, (axis if isinstance(axis, int) else tuple(axis), epsilon, use_scale, use_bias)
    )
    return Block(init, forward, backward, name, kind)


def batch_norm(momentum: float = 0.9, epsilon: float = 1e-5) -> Block:
    r"""y = scale (x - mean) / sqrt(var + epsilon) + bias, over all axes but the last.

    x and y are (B..., C), the rest (C,). ``mean`` and ``var`` are the batch's own, var the mean
    of squared deviations, which is never negative. Statistics and sums are in float32 or wider.

    Parameters: ``scale`` (ones at first), ``bias`` (zeros) and ``statistics``, the running
    ``mean`` (zeros) and ``var`` (ones), whose gradient is None. After every training step they
    become momentum x old + (1 - momentum) x the batch's: ``momentum`` weighs the old, as in
    Flax and Keras, and is 1 minus PyTorch's. ``make_step``, ``make_epoch`` and ``fit`` do that; a
    loop of your own calls ``net.rules.update_statistics(params, residuals)`` with what forward
    has kept. ``inference(net)`` reads the running statistics in place of the batch's.

    Backward, with x' = (x - mean) / sqrt(var + epsilon) and means over the batch:
    dx = scale / sqrt(var + epsilon) (dy - mean(dy) - x' mean(dy x')).

    Residuals: ``x``, the batch's mean and variance.

    Raises:
      BlockValueError: x has no axis but channels, or other parameters' number of channels.
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
    if not 0 <= momentum <= 1:
        raise BlockValueError(name, f"momentum is {momentum}, needs 0 <= momentum <= 1")
    if not epsilon >= 0:
        raise BlockValueError(name, f"epsilon is {epsilon}, needs a number of at least 0")

    def init(key: Key, x: Any) -> Params:
        _check(name, x)
        zeros, ones = (make(x.shape[-1], compute_dtype(x.dtype)) for make in (jnp.zeros, jnp.ones))
        return {"scale": ones, "bias": zeros, "statistics": {"mean": zeros, "var": ones}}

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        _check(name, x, params)
        wide = x.astype(compute_dtype(x.dtype))
        mean = _mean(wide)
        var = _mean(jnp.square(wide - mean))
        return _normalise(params, x, mean, var, epsilon), (x, mean, var)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = scale x' + bias; x' depends on x directly and through mean and var.
        x, mean, var = residuals
        wide = dy.astype(mean.dtype)
        rate = lax.rsqrt(var + epsilon)
        deviation = (x.astype(mean.dtype) - mean) * rate
        d, along = _mean(wide), _mean(wide * deviation)
        scale = _row(params["scale"], x)
        dx = scale * rate * (wide - d - deviation * along)
        count = float(x.size // x.shape[-1])
        return _gradients(params, along * count, d * count), dx.astype(x.dtype)

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


def _with_running_statistics(init: Any, epsilon: float, kind: Kind) -> Block:
    """The block at inference: linear in x. Residuals: ``x``."""
    name = "batch_norm"

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        _check(name, x, params)
        mean, var = (_row(params["statistics"][leaf], x) for leaf in ("mean", "var"))
        return _normalise(params, x, mean, var, epsilon), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = scale (x - mean) / sqrt(var + epsilon) + bias, mean and var constants.
        mean, var = (_row(params["statistics"][leaf], x) for leaf in ("mean", "var"))
        wide, rate = dy.astype(mean.dtype), lax.rsqrt(var + epsilon)
        batch = tuple(range(x.ndim - 1))
        along = jnp.sum(wide * ((x.astype(mean.dtype) - mean) * rate), batch)
        dx = wide * (_row(params["scale"], x) * rate)
        return _gradients(params, along, jnp.sum(wide, batch)), dx.astype(x.dtype)

    return Block(init, forward, backward, name, kind)


def _check(name: str, x: Any, params: Params | None = None) -> None:
    require_floating(name, "x", x)
    if len(x.shape) < 2:
        raise BlockValueError(name, f"x has shape {x.shape}, needs a batch axis and channels")
    if params is None:
        return
    require_params(name, params, ("scale", "bias", "statistics"))
    if params["scale"].shape != x.shape[-1:]:
        raise BlockValueError(
            name, f"x has {x.shape[-1]} channels (shape {x.shape}), scale has shape "
            f"{params['scale'].shape}: are these another network's parameters?",
        )  # fmt: skip


def _mean(x: jax.Array) -> jax.Array:
    """Over all axes but the last, which are kept; 0 of an empty batch."""
    count = float(max(x.size // max(x.shape[-1], 1), 1))
    return jnp.sum(x, tuple(range(x.ndim - 1)), keepdims=True) / count


def _normalise(
    params: Params, x: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> jax.Array:
    wide = x.astype(mean.dtype)
    scale, bias = (_row(params[leaf], x) for leaf in ("scale", "bias"))
    return ((wide - mean) * lax.rsqrt(var + epsilon) * scale + bias).astype(x.dtype)


def _row(leaf: jax.Array, x: jax.Array) -> jax.Array:
    """Numbers of the channels, in the rank of x and the dtype in which it is computed."""
    return leaf.astype(compute_dtype(x.dtype)).reshape((1,) * (x.ndim - 1) + leaf.shape)


def _gradients(params: Params, dscale: jax.Array, dbias: jax.Array) -> Params:
    return {
        "scale": dscale.ravel().astype(params["scale"].dtype),
        "bias": dbias.ravel().astype(params["bias"].dtype),
        "statistics": {"mean": None, "var": None},
    }
