"""The three convolutions of a layer: forward, and the gradients of x and of W.

Symbols: B batch, I channels in, O channels out, g groups; S and S' the sizes of one to three
spatial axes, of x and of y, and K those of the kernel. x is (B, S, I), y (B, S', O), and W is
(K, I / g, O): NWC, NHWC or NDHWC, with weights WIO, HWIO or DHWIO.

From the definition to the rule, along one axis of stride s, dilation d and padding p (further
axes, channels and batch are summed over likewise):

    y[o] = sum_i x[s o + d i - p] W[i]

Every y[o] in which x[t] occurs, with t = s o + d i - p, adds dy[o] W[i] to its gradient:

    dx[t] = sum over i, o with s o = t + p - d i of dy[o] W[i]

With u[s o] = dy[o] and zeros between (dy dilated by s), dx[t] = sum_i u[t + p - d i] W[i], and
with i turned around, i = k - 1 - j, it is again a convolution, of stride 1 and dilation d:

    dx[t] = sum_j u[t + d j - (d (k - 1) - p)] W[k - 1 - j]

And W[i] occurs in every y[o], times x[s o + d i - p]:

    dW[i] = sum_o x[s o + d i - p] dy[o]

a convolution of x in which dy is the kernel, stride and dilation changing places; channels and
batch change places as well, because the sum is over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arrays import is_split
from fnn.blocks.convolve import Axes, convolve, plus_bias, strides_of
from fnn.blocks.linear import contract
from fnn.blocks.phases import by_phases, needs_phases, padding_of_dy
from fnn.compiling import by_platform

MAX_COPY_ELEMENTS = 2**20  # of x, that one matrix product of a weight gradient reads on CPU


def convolved(
    x: jax.Array,
    w: jax.Array,
    axes: Axes,
    groups: int,
    b: jax.Array | None = None,
    like: jax.Array | None = None,
) -> jax.Array:
    """(B, S, I) * (K, I/g, O) + (O,) -> (B, S', O); ``like``: an array that it is sharded like."""

    def multiplied(x: jax.Array, w: jax.Array) -> jax.Array:
        product = contract(_subsample(x, axes), _only(w, axes), ((x.ndim - 1,), (0,)), like)
        return plus_bias(product, b)

    def slid(x: jax.Array, w: jax.Array) -> jax.Array:
        return convolve(
            x,
            w,
            b,
            window_strides=strides_of(axes),
            padding=tuple((a.low, a.high) for a in axes),
            rhs_dilation=_dilations(axes),
            feature_group_count=groups,
            out_sharding=_sharding(like),
        )

    return _as_matmul(multiplied, slid, x, w) if _is_matmul(axes, groups) else slid(x, w)


def input_gradient(
    dy: jax.Array,
    w: jax.Array,
    axes: Axes,
    groups: int,
    b: jax.Array | None = None,
    like: jax.Array | None = None,
) -> jax.Array:
    """(B, S', O) * (K, O/g, I), turned around -> (B, S, I); ``b``: what is added, (I,)."""

    def multiplied(dy: jax.Array, w: jax.Array) -> jax.Array:
        thin = None if like is None else _subsample(like, axes)
        product = contract(dy, _only(w, axes), ((dy.ndim - 1,), (1,)), thin)
        return plus_bias(_dilate(product, axes), b)

    def dilated(dy: jax.Array, w: jax.Array) -> jax.Array:
        return _by_dilation(dy, w, axes, groups, b, like)

    def phased(dy: jax.Array, w: jax.Array) -> jax.Array:
        return plus_bias(by_phases(dy, w, axes, groups), b)

    if _is_matmul(axes, groups):
        return _as_matmul(multiplied, dilated, dy, w)
    if is_split(dy) or is_split(w) or not needs_phases(axes):
        return dilated(dy, w)
    return by_platform(dy, w, cpu=phased, default=dilated)


def weight_gradient(
    x: jax.Array, dy: jax.Array, w: jax.Array, axes: Axes, groups: int
) -> jax.Array:
    """x (B, S, I), dy (B, S', O) -> (K, I/g, O), like w"""

    def multiplied(x: jax.Array, dy: jax.Array) -> jax.Array:
        batch = tuple(range(x.ndim - 1))
        dw = contract(_subsample(x, axes), dy, (batch, batch), _only(w, axes))
        return dw.reshape(w.shape)

    def slid(x: jax.Array, dy: jax.Array) -> jax.Array:
        return _by_convolution(x, dy, w, axes, groups)

    if _is_matmul(axes, groups):
        return _as_matmul(multiplied, slid, x, dy)
    if groups > 1 or is_split(x) or not isinstance(x.shape[0], int):  # jax.export left it open
        return slid(x, dy)
    return by_platform(
        x,
        dy,
        # On CPU XLA's convolutions are slow where the kernel, here dy, is large.
        cpu=lambda x, dy: _by_matmul(x, dy, w, axes),
        default=slid,
    )


# ---- a kernel of one entry -------------------------------------------------------------------


def _is_matmul(axes: Axes, groups: int) -> bool:
    """Such a kernel without padding is a matrix product at every place (of a grid)."""
    return groups == 1 and all(a.window == 1 and a.low == a.high == 0 for a in axes)


def _as_matmul(
    multiplied: Callable[..., jax.Array], slid: Callable[..., jax.Array], *arrays: jax.Array
) -> jax.Array:
    """On CPU the product, which is several times as fast there; elsewhere the convolution.

    On NVIDIA's GPUs a product that sums over examples, dW, is written in parts before these are
    summed, and on TPUs one of 16 bits is copied (1.05 and 1.06 times the convolution's bytes).
    """
    return by_platform(*arrays, cpu=multiplied, default=slid)


def _only(w: jax.Array, axes: Axes) -> jax.Array:
    """The one matrix of such a kernel."""
    return w[(0,) * len(axes)]


def _subsample(x: jax.Array, axes: Axes) -> jax.Array:
    """The entries of x at multiples of the strides."""
    if all(a.stride == 1 for a in axes):
        return x
    return x[(slice(None), *(slice(None, None, a.stride) for a in axes))]


def _dilate(dx: jax.Array, axes: Axes) -> jax.Array:
    """The transpose of :func:`_subsample`: zeros between, and up to the shape of x."""
    if all(a.stride == 1 for a in axes):
        return dx
    zeros = [(0, a.size - (a.out - 1) * a.stride - 1, a.stride - 1) for a in axes]
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *zeros, (0, 0, 0)])


# ---- the gradient of x -----------------------------------------------------------------------


def _by_dilation(
    dy: jax.Array,
    w: jax.Array,
    axes: Axes,
    groups: int,
    b: jax.Array | None,
    like: jax.Array | None,
) -> jax.Array:
    """The convolution of dy with zeros between."""
    n = len(axes)

    def product(dy: jax.Array, turned: jax.Array, layout: str = "") -> jax.Array:
        return convolve(
            dy,
            turned,
            b,
            window_strides=(1,) * n,
            padding=padding_of_dy(axes),
            lhs_dilation=strides_of(axes),
            rhs_dilation=_dilations(axes),
            layout=layout,
            feature_group_count=groups,
            out_sharding=_sharding(like),
        )

    turned = lax.rev(w, range(n))
    if groups > 1:
        *k, i, o = w.shape
        turned = jnp.swapaxes(turned.reshape(*k, i, groups, o // groups), -3, -1)
        return product(dy, turned.reshape(*k, o // groups, groups * i))
    return by_platform(
        dy,
        turned,
        # XLA on CPU has a fast convolution for this layout of the kernel alone. Within a loop it
        # would take the other one, but for the barrier (a CNN's steps in a scan: twice the time).
        cpu=lambda dy, w: product(dy, lax.optimization_barrier(jnp.swapaxes(w, -1, -2))),
        # as XLA for GPUs knows the gradient of a convolution
        default=lambda dy, w: product(dy, w, f"{'DHW'[-n:]}OI"),
    )


# ---- the gradient of W -----------------------------------------------------------------------


def _read_padding(axes: Axes) -> list[tuple[int, int]]:
    """x's padding as far as windows read it: the last stride may leave some of it out."""
    return [(a.low, a.stride * (a.out - 1) + a.span - a.size - a.low) for a in axes]


def _by_matmul(x: jax.Array, dy: jax.Array, w: jax.Array, axes: Axes) -> jax.Array:
    """im2col: dW[(i, c), o] = sum over b, t of columns[(i, c), b, t] dy[b, t, o].

    The columns are copies of x, as many as the kernel has entries, each shifted to where the
    kernel's entry i reads. With channels first they are the rows of a matrix, made by copying long
    stretches of memory. Strips of at most MAX_COPY_ELEMENTS (some images, or some rows of one)
    bound the memory; larger ones are no faster.
    """
    batch, height, *across, features = dy.shape
    n, first = len(axes), axes[0]
    row = w.size // features * math.prod(across)  # elements of the copies for a row of dy
    images = _divisor(batch, MAX_COPY_ELEMENTS // (row * height))
    rows = _divisor(height, MAX_COPY_ELEMENTS // row) if images == 1 else height
    around = [(low, high, 0) for low, high in _read_padding(axes)]

    def of_images(b: int | jax.Array) -> jax.Array:
        # Padded here, in the loop: XLA would pad all of x in forward, and keep that as well.
        some = lax.dynamic_slice_in_dim(x, b * images, images)
        some = lax.pad(some, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])

        def of_strip(s: int | jax.Array) -> jax.Array:
            h, down = s * rows, first.stride * (rows - 1) + 1
            part = lax.dynamic_slice_in_dim(some, first.stride * h, down + first.span - 1, 1)
            columns = jnp.moveaxis(part, -1, 0)
            # Stacked, not joined along the channels: these may be split over devices.
            for dim, axis in reversed(list(enumerate(axes, -n))):
                entries = axis.stride * ((rows if dim == -n else axis.out) - 1) + 1
                columns = jnp.stack([
                    lax.slice_in_dim(columns, start, start + entries, axis.stride, dim)
                    for start in range(0, axis.span, axis.dilation)
                ])  # fmt: skip
            size = (images, rows, *across, features)
            dy_part = lax.dynamic_slice(dy, (b * images, h, *(0 for _ in across), 0), size)
            return contract(columns, dy_part, (range(n + 1, 2 * n + 2), range(n + 1)))

        return _sum(height // rows, of_strip)

    return _sum(batch // max(images, 1), of_images)


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most ``most``; 1 where there is none, 0 of 0."""
    return next((d for d in range(min(number, most), 1, -1) if number % d == 0), min(number, 1))


def _sum(count: int, term: Callable[[int | jax.Array], jax.Array]) -> jax.Array:
    """term(0) + term(1) + ... + term(count - 1), one at a time."""
    if count <= 1:
        return term(0)  # also of no examples
    zero = jnp.zeros_like(jax.eval_shape(lambda: term(0)))  # varies as it does under shard_map
    return lax.fori_loop(0, count, lambda n, total: total + term(n), zero)


def _by_convolution(
    x: jax.Array, dy: jax.Array, w: jax.Array, axes: Axes, groups: int
) -> jax.Array:
    """(I/g, S, g B) * (S', B, O) -> (I/g, K, O), with its axes put in order."""
    n = len(axes)
    space = range(1, n + 1)
    options: dict[str, Any]
    if groups == 1 or is_split(x):  # whose axis of examples is not merged with another
        lhs, options = x.transpose(n + 1, *space, 0), {"batch_group_count": groups}
    else:
        *rest, channels = x.shape
        lhs = x.reshape(*rest, groups, channels // groups).transpose(n + 2, *space, n + 1, 0)
        lhs = lhs.reshape(*lhs.shape[:-2], groups * x.shape[0])
        options = {"feature_group_count": groups}
    dw = convolve(
        lhs,
        dy.transpose(*space, 0, n + 1),
        window_strides=_dilations(axes),
        padding=_read_padding(axes),
        rhs_dilation=strides_of(axes),
        out_sharding=_sharding(w.transpose(n, *range(n), n + 1)),
        **options,
    )
    return dw.transpose(*space, 0, n + 1)


# ---- what they share -------------------------------------------------------------------------


def _dilations(axes: Axes) -> tuple[int, ...]:
    return tuple(a.dilation for a in axes)


def _sharding(like: jax.Array | None) -> Any:
    return None if like is None else jax.typeof(like).sharding
