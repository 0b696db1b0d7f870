"""Batch normalisation (Ioffe and Szegedy, ICML 2015)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.block import (
    Block,
    BlockValueError,
    Key,
    Params,
    Residuals,
    compute_dtype,
    require_floating,
    require_params,
)


def batch_norm(momentum: float = 0.9, epsilon: float = 1e-5) -> Block:
    r"""y = scale (x - mean) / sqrt(var + epsilon) + bias, over all axes but the last.

    x and y are (B..., C), the rest (C,). ``mean`` and ``var`` are the batch's own, var the mean
    of squared deviations, which is never negative. Statistics and sums are in float32 or wider.

    Parameters: ``scale`` (ones at first), ``bias`` (zeros) and ``statistics``, the running
    ``mean`` (zeros) and ``var`` (ones), whose gradient is None. After every training step they
    become momentum x old + (1 - momentum) x the batch's: ``momentum`` weighs the old, as in
    Flax and Keras, and is 1 minus PyTorch's. ``make_step``, ``make_epoch`` and ``fit`` do that; a
    loop of your own calls ``net.track(params, residuals)`` with what forward has kept.
    ``inference(net)`` reads the running statistics in place of the batch's.

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
    >>> net.track(params, residuals)["statistics"]["mean"]
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

    def track(params: Params, residuals: Residuals) -> Params:
        _, *batch = residuals
        old = params["statistics"]
        new = {
            name: momentum * old[name] + (1 - momentum) * value.ravel().astype(old[name].dtype)
            for name, value in zip(("mean", "var"), batch, strict=True)
        }
        return params | {"statistics": new}

    return Block(
        init, forward, backward, name, track=track,
        inference=lambda: _with_running_statistics(init, epsilon),
    )  # fmt: skip


def _with_running_statistics(init: Any, epsilon: float) -> Block:
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

    return Block(init, forward, backward, name)


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
