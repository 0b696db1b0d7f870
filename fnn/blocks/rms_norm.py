"""Root mean square normalisation: a row divided by its size.

Over the n numbers of a row, with z = x r, r = 1 / sqrt(mean(x^2) + epsilon),

    y = z scale

Since dr/dx_i = -r^3 x_i / n, dz_j/dx_i = r ([i = j] - z_i z_j / n), and with g = dy scale

    dx_i = r (g_i - z_i mean(g z))

It is :func:`~fnn.layer_norm` without the mean, and without its term.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.arguments import Positive, checked
from fnn.arrays import Spec, compute_dtype
from fnn.block import Block, BlockValueError, Key, Kind, Params, Residuals
from fnn.blocks.moments import is_few
from fnn.blocks.sums import sums
from fnn.compiling import by_platform
from fnn.refusals import as_cotangent, elementary, require_floating, require_shapes


@checked
def rms_norm(*, epsilon: Positive = 1e-6, use_scale: bool = True) -> Block:
    """y = x / sqrt(mean(x^2) + epsilon) * scale, along the last axis.

    Zhang and Sennrich 2019 (arXiv 1910.07467). Computed in float32 at least, and rounded once at
    the end; dx is within 3 units of the largest |dy| r of its row, on TPUs within 6 (measured).
    Where a row is 0, y is 0 and gradients are finite: sqrt(epsilon) divides them. Where mean(x^2)
    leaves the dtype's range (in float32 |x| above 1e19), y is NaN.

    Args:
      epsilon: added to the mean square, more than 0.
      use_scale: whether there is a parameter ``scale`` (ones at first), of the size of the axis.

    Returns:
      A block. x and y are (B..., C). Residuals: x and r, one number a row. The derivation of its
      backward is in :mod:`fnn.blocks.rms_norm`.

    Raises:
      BlockValueError: x without axes or with an empty last one; a scale of another size.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, x = fnn.rms_norm(), jnp.array([[3.0, -3.0], [0.0, 0.0]])
    >>> params = net.init(jax.random.key(0), x)
    >>> y, residuals = net.forward(params, x)
    >>> y.round(4)
    Array([[ 1., -1.],
           [ 0.,  0.]], dtype=float32)
    >>> net.backward(params, residuals, jnp.array([[2.0, 3.0], [0.0, 0.0]]))[0]["scale"].round(4)
    Array([ 2., -3.], dtype=float32)
    """
    name = "rms_norm"
    leaves = ["scale"] * use_scale

    def check(x: Spec) -> None:
        require_floating(name, "x", x)
        if not x.shape or x.shape[-1] == 0:
            raise BlockValueError(
                name, f"x has shape {tuple(x.shape)}, needs a last axis of numbers"
            )

    def init(key: jax.Array, x: Spec) -> Params:
        check(x)
        return {leaf: jnp.ones(x.shape[-1:], compute_dtype(x.dtype)) for leaf in leaves}

    def scale_of(params: Params, x: jax.Array) -> jax.Array:
        """The parameter in the rank of x, and in the dtype that x is computed in."""
        require_shapes(name, params, dict.fromkeys(leaves, x.shape[-1:]), x)
        wide = compute_dtype(x.dtype)
        scale = params["scale"].astype(wide) if use_scale else jnp.ones(x.shape[-1:], wide)
        return scale.reshape((1,) * (x.ndim - 1) + x.shape[-1:])

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        check(x)
        scale, wide = scale_of(params, x), x.astype(compute_dtype(x.dtype))
        size = jnp.mean(jnp.square(wide), -1, keepdims=True) + epsilon
        rate = jnp.where(size < jnp.inf, 1 / jnp.sqrt(size), jnp.nan)  # not a silent 0
        return (wide * rate * scale).astype(x.dtype), (x, rate)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = z scale, z = x rate, where rate depends on x, so with g = dy scale
        # dx = rate (g - z mean(g z)).
        x, rate = residuals
        scale = scale_of(params, x)
        d, z = as_cotangent(name, dy, x.shape).astype(rate.dtype), x.astype(rate.dtype) * rate
        g = d * scale
        along = jnp.mean(g * z, -1, keepdims=True)
        rest = g - z * along

        # mean(rest z) = along epsilon rate^2, because mean(z z) = 1 - epsilon rate^2. Where g is
        # nearly along z, the rest is as small as the rounding error in it, which is taken out. XLA
        # for TPUs would read x and dy once more for that: of many numbers it stays there.
        def without_error(rest: jax.Array, z: jax.Array, along: jax.Array) -> jax.Array:
            left = jnp.mean(rest * z, -1, keepdims=True) - along * (epsilon * jnp.square(rate))
            return rest - z * left

        rest = by_platform(
            rest, z, along,
            tpu=without_error if is_few(x, (-1,)) else lambda rest, *_: rest,
            default=without_error,
        )  # fmt: skip
        dx = (rate * rest).astype(x.dtype)
        if not use_scale:
            return {}, dx
        (dscale,) = sums([d * z], range(x.ndim - 1))
        return {"scale": dscale.astype(params["scale"].dtype)}, dx

    return elementary(forward, backward, name, Kind(name, (epsilon, use_scale)), init=init)
