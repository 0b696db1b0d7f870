"""Rotary position encoding: each pair of features is turned by an angle that grows with the place.

For the pair (a, b) number i of D / 2, at place t, with the angle u = t base^(-2 i / D),

    a' = a cos u - b sin u
    b' = a sin u + b cos u

The product of a query turned by t and a key turned by s depends on t - s alone. A turn is undone by
the opposite one, and its transpose is its inverse, so backward turns dy back.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fnn.arguments import Positive, checked
from fnn.arrays import Shape, compute_dtype
from fnn.block import Block, BlockTypeError, BlockValueError, Key, Kind, Params, Residuals, Value
from fnn.refusals import as_cotangent, elementary, require_array, require_floating


@checked
def rotary(*, base: Positive = 10_000.0, interleaved: bool = False) -> Block:
    """y = x with each pair of features turned by its place times base^(-2 i / D).

    Su et al. 2021 (arXiv 2104.09864). Angles, sines and cosines are in float32 at least.

    Args:
      base: of the angles' falling powers.
      interleaved: pairs are features (0, 1), (2, 3), ..., as in the paper and in GPT-J; by default
        (0, D/2), (1, D/2 + 1), ..., as in Llama's and GPT-NeoX's weights.

    Returns:
      A block of x (B..., T, H, D), at places 0 to T - 1, or of ``(x, places)`` with integers
      (B..., T); y is like x. No parameters. Residuals: the places, if any were given.

    Raises:
      BlockValueError: x without these axes, an odd D, places of another shape.
      BlockTypeError: x is not floating, or places are not integers.

    >>> import fnn, jax.numpy as jnp
    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 2)
    >>> net = fnn.rotary()
    >>> y, residuals = net.forward({}, (x, jnp.array([2])))  # by an angle of 2
    >>> [round(v, 4) for v in y.ravel().tolist()]
    [-0.4161, 0.9093]
    >>> net.backward({}, residuals, y)[1][0].ravel().round(4)
    Array([1., 0.], dtype=float32)
    """
    name = "rotary"

    def turned(x: jax.Array, places: jax.Array | None, sign: int) -> jax.Array:
        d, wide = x.shape[-1], compute_dtype(x.dtype)
        at = jnp.arange(x.shape[-3]) if places is None else places
        speed = base ** (-jnp.arange(0, d, 2).astype(wide) / d)
        angle = at.astype(wide)[..., None, None] * speed.reshape((1,) * (at.ndim + 1) + speed.shape)
        angle = angle.reshape((1,) * (x.ndim - angle.ndim) + angle.shape)
        cos, sin = jnp.cos(angle), sign * jnp.sin(angle)
        # Halves are widened, not x: XLA for TPUs would keep a wider x, which both halves are of.
        if interleaved:
            pairs = x.reshape(*x.shape[:-1], d // 2, 2)
            a, b = pairs[..., 0].astype(wide), pairs[..., 1].astype(wide)
        else:
            a, b = (half.astype(wide) for half in jnp.split(x, 2, -1))
        parts = [v.astype(x.dtype) for v in (a * cos - b * sin, a * sin + b * cos)]
        return jnp.stack(parts, -1).reshape(x.shape) if interleaved else jnp.concatenate(parts, -1)

    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        x, places = with_places(name, x, axes=("T", "heads", "D"))
        if x.shape[-1] % 2:
            raise BlockValueError(
                name, f"x has shape {x.shape}, needs (B..., T, heads, D) with an even number D"
            )
        return turned(x, places, 1), (Shape.of(x), places)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, Value]:
        # forward: y = x turned by an angle, so dx = dy turned by the opposite one.
        like, places = residuals
        dx = turned(as_cotangent(name, dy, like.shape), places, -1).astype(like.dtype)
        return {}, dx if places is None else (dx, None)

    return elementary(forward, backward, name, Kind(name, (base, interleaved)))


def with_places(name: str, x: Any, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array | None]:
    """x and the places of its steps, None where x comes alone; refused where they do not fit.

    ``axes``: the last of x, of which the first is the sequence.
    """
    places: Any
    x, places = x if isinstance(x, (tuple, list)) and len(x) == 2 else (x, None)
    require_floating(name, "x", x)
    if len(x.shape) < len(axes):
        raise BlockValueError(name, f"x has shape {x.shape}, needs (B..., {', '.join(axes)})")
    x = x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)
    if places is None:
        return x, None
    require_array(name, "places", places)
    if not jnp.issubdtype(places.dtype, jnp.integer):
        raise BlockTypeError(
            name, f"places have dtype {places.dtype}, need integers: places.astype(jax.numpy.int32)"
        )
    if places.shape != x.shape[: 1 - len(axes)]:
        raise BlockValueError(
            name,
            f"places have shape {places.shape}, need one for each step, {x.shape[: 1 - len(axes)]}",
        )
    places = places if isinstance(places, jax.ShapeDtypeStruct) else jnp.asarray(places)
    return x, places
