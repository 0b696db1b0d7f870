"""One convolution, as :mod:`fnn.blocks.convolutions` has it: with sums in float32 at least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arrays import compute_dtype
from fnn.blocks.volumes import convolved_as_images, is_faster_as_images
from fnn.blocks.windows import Axis
from fnn.compiling import by_platform

Axes = Sequence[Axis]


def strides_of(axes: Axes) -> tuple[int, ...]:
    return tuple(a.stride for a in axes)


def plus_bias(y: jax.Array, b: jax.Array | None) -> jax.Array:
    return y if b is None else y + b.astype(y.dtype).reshape((1,) * (y.ndim - 1) + b.shape)


def convolve(
    lhs: jax.Array, rhs: jax.Array, bias: jax.Array | None = None, layout: str = "", **options: Any
) -> jax.Array:
    """A convolution with sums in float32 at least, plus a bias; ``layout`` of rhs: HWIO, say."""
    wide, space = compute_dtype(lhs.dtype), "DHW"[2 - lhs.ndim :]
    numbers = (f"N{space}C", layout or f"{space}IO", f"N{space}C")

    def product(lhs: jax.Array, rhs: jax.Array, to: Any = wide) -> jax.Array:
        y = lax.conv_general_dilated(
            lhs, rhs, dimension_numbers=numbers, preferred_element_type=to, **options
        )
        return plus_bias(y, bias)

    as_images = not layout and is_faster_as_images(lhs, rhs, options)

    def on_cpu(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        lhs, rhs = lhs.astype(wide), rhs.astype(wide)
        if as_images:
            return plus_bias(convolved_as_images(lhs, rhs, options), bias)
        return product(lhs, rhs)

    if lhs.dtype == wide:
        return by_platform(lhs, rhs, cpu=on_cpu, default=product) if as_images else on_cpu(lhs, rhs)
    # As in linear.contract: on CPU 16-bit operands are widened, elsewhere they are the fast ones.
    # cuDNN sums them in float32 by itself, bias included; asked for a float32 result, XLA would
    # widen its operands first. float16 is widened: a dW beyond its range has to stay finite.
    narrow = lhs.dtype if lhs.dtype == jnp.bfloat16 else wide
    return by_platform(
        lhs,
        rhs,
        cpu=on_cpu,
        cuda=lambda a, b: product(a, b, narrow).astype(wide),
        default=product,
    )
