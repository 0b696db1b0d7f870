"""The gradient of a strided convolution's input, without zeros between the numbers of dy.

Symbols as in :mod:`fnn.blocks.convolutions`. dx[t] is the sum over i, o with s o + d i = t + p of
dy[o] W[i]. A dilated kernel is one with zeros between, so let d = 1. With t + p = s q + r and
i = r + s j, 0 <= r < s, it is o = q - j:

    dx[s q + r - p] = sum_j dy[q - j] W[r + s j]

For each phase r of the stride this is a convolution of stride 1, with every s-th entry of W.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fnn.blocks.convolve import Axes, convolve, strides_of


def padding_of_dy(axes: Axes) -> list[tuple[int, int]]:
    """dx[t] starts at t = 0 and reads dilated dy from -(d (k - 1) - p) on, up to t = n - 1."""
    return [(a.span - 1 - a.low, a.size + a.low - a.stride * (a.out - 1) - 1) for a in axes]


def needs_phases(axes: Axes) -> bool:
    """Whether XLA for CPUs had better not see zeros between the numbers of dy.

    In three dimensions it has a slow loop for them (75 times as slow for a kernel of 3 and stride
    2, as measured). And along an axis with a kernel and a stride of 2, without padding, its
    algebraic simplifier takes such a convolution for a grouped one, and ends the process where the
    whole kernel is larger than dy.
    """
    is_mistaken = (
        a.window == a.stride == 2 and a.dilation == 1 and pad == (0, 0)
        for a, pad in zip(axes, padding_of_dy(axes), strict=True)
    )
    return any(is_mistaken) or (len(axes) == 3 and any(a.stride > 1 for a in axes))


def by_phases(dy: jax.Array, w: jax.Array, axes: Axes, groups: int) -> jax.Array:
    """The entries of dx at each phase of the stride by a convolution of their own.

    All of these are one convolution, whose channels, r among them, are put in their places
    afterwards.
    """
    n, (*_, i, o) = len(axes), w.shape
    per = [-(-a.span // a.stride) for a in axes]  # entries of the kernel for a phase
    first = [a.low // a.stride for a in axes]  # q of t = 0
    last = [(a.low + a.size - 1) // a.stride for a in axes]
    fill = [(0, k * a.stride - a.span, a.dilation - 1) for k, a in zip(per, axes, strict=True)]
    w = lax.pad(w, jnp.zeros((), w.dtype), [*fill, (0, 0, 0), (0, 0, 0)])
    split = [size for k, a in zip(per, axes, strict=True) for size in (k, a.stride)]
    w = lax.rev(w.reshape(*split, i, groups, o // groups), range(0, 2 * n, 2))
    w = w.transpose(*range(0, 2 * n, 2), 2 * n + 2, 2 * n + 1, *range(1, 2 * n, 2), 2 * n)
    dx = convolve(
        dy,
        w.reshape(*per, o // groups, -1),
        window_strides=(1,) * n,
        padding=[
            (k - 1 - q, end - a.out + 1)
            for k, q, end, a in zip(per, first, last, axes, strict=True)
        ],
        feature_group_count=groups,
    )
    batch, *blocks, _ = dx.shape
    dx = dx.reshape(batch, *blocks, groups, *strides_of(axes), i)
    in_place = [axis for d in range(n) for axis in (1 + d, n + 2 + d)]
    dx = dx.transpose(0, *in_place, n + 1, 2 * n + 2)
    dx = dx.reshape(batch, *(q * a.stride for q, a in zip(blocks, axes, strict=True)), groups * i)
    for dim, (q, a) in enumerate(zip(first, axes, strict=True), 1):
        skip = a.low - a.stride * q
        dx = lax.slice_in_dim(dx, skip, skip + a.size, 1, dim)
    return dx
