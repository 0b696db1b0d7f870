"""Convolution in one and two dimensions.

Symbols: B batch, H and W height and width, I channels in, O channels out, g groups; in one
dimension read the shapes without H. Images are NHWC, weights HWIO.

From the definition to the rule, along one axis of stride s, dilation d and padding p (a second
axis, channels and batch are summed over likewise):

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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import Count, checked
from fnn.arrays import Spec, compute_dtype, is_split
from fnn.block import Block, BlockValueError, Key, Kind, Params
from fnn.blocks.linear import Initializer, contract, he, weights, zeros
from fnn.blocks.windows import Axis, Padding, Sizes, Windows
from fnn.compiling import by_platform
from fnn.refusals import as_cotangent, elementary, require_shapes, warn

NHWC = ("NHWC", "HWIO", "NHWC")

MAX_COPY_ELEMENTS = 2**20  # of x, that one matrix product of a weight gradient reads on CPU

Image = tuple[Axis, Axis]  # height and width


@checked
def conv(
    features: Count,
    kernel: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    groups: Count = 1,
    use_bias: bool = True,
    w_init: Initializer = he,
    b_init: Initializer = zeros,
) -> Block:
    """y[h, w, o] = sum over i, j, c of x[s h + d i - p, s w + d j - p, c] W[i, j, c, o] + b[o].

    x is (B, H, W, I) or (B, W, I), y (B, H', W', O) or (B, W', O): the rank of x decides, unless
    ``kernel`` is a pair. W is (kernel..., I / groups, O), b is (O,). (A cross-correlation, as in
    every neural-network library: the kernel is not flipped.) Computed in x's dtype, with sums in
    float32 or wider. On GPUs results in bfloat16 are rounded to it, dW too, which is float32
    elsewhere; the parameters' cotangents have their dtype everywhere.

    Args:
      features: O.
      kernel, stride, dilation: one number, or one for each of height and width.
      padding: "SAME" (output size = input size / stride, rounded up), "VALID" (none), a number
        of zeros on every side, or pairs (before, after) for each axis.
      groups: channels in and out are split into this many groups that do not see each other;
        with groups = I it is a depthwise convolution.
      use_bias: whether there is a b.
      w_init, b_init: from ``jax.nn.initializers``; fan-in is kernel size times I / groups.

    Returns:
      A block with parameters ``w`` and ``b``. Residuals: ``x``. The derivation of its backward is
      in :mod:`fnn.blocks.conv`.

    Raises:
      BlockValueError: wrong rank, channels, padding or groups; a kernel larger than the padded
        input; parameters of other shapes.
      BlockTypeError: x is not floating.

    Warns:
      UserWarning: by ``init``, where x looks like images with their channels first, or without an
        axis of channels or of examples.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.conv(1, 2, padding="VALID", use_bias=False)
    >>> params = {"w": jnp.array([1.0, 10.0]).reshape(2, 1, 1)}
    >>> y, x = net.forward(params, jnp.array([1.0, 2.0, 4.0]).reshape(1, 3, 1))
    >>> y.ravel()
    Array([21., 42.], dtype=float32)
    >>> dparams, dx = net.backward(params, x, jnp.array([1.0, 0.0]).reshape(1, 2, 1))
    >>> dx.ravel(), dparams["w"].ravel()
    (Array([ 1., 10.,  0.], dtype=float32), Array([1., 2.], dtype=float32))
    """
    name = "conv"
    if features % groups:
        raise BlockValueError(name, f"features is {features}, needs a multiple of groups, {groups}")
    windows = Windows(name, kernel, stride, padding, dilation, window="kernel")

    def shapes(x: Spec) -> dict[str, tuple[int, ...]]:
        sizes = [axis.window for axis in windows.over(x)]
        if x.shape[-1] == 0 or x.shape[-1] % groups:
            raise BlockValueError(
                name,
                f"x has {x.shape[-1]} channels (shape {x.shape}), which cannot be split into "
                f"{groups} equal groups",
            )
        w = (*sizes, x.shape[-1] // groups, features)
        return {"w": w, "b": (features,)} if use_bias else {"w": w}

    def init(key: jax.Array, x: Spec) -> Params:
        of_leaves = shapes(x)  # which refuses an x of another kind
        if words := _likely_misread(x.shape, rank_is_given=not isinstance(kernel, int)):
            warn(f"conv: x of shape {x.shape} is {words}")
        return weights(name, key, x, of_leaves, w_init, b_init)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_shapes(name, params, shapes(x), x)
        axes = windows.over(x)
        image, w = _as_image(x), _as_image(params["w"], 0).astype(x.dtype)
        y = _forward(image, w, params.get("b"), _image(axes), groups)
        return y.astype(x.dtype).reshape(x.shape[0], *(axis.out for axis in axes), features), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = conv(x, W) + b, linear in each of the three.
        require_shapes(name, params, shapes(x), x)
        over = windows.over(x)
        shape = (x.shape[0], *(axis.out for axis in over), features)
        dy = as_cotangent(name, dy, shape, x.dtype)
        w, axes, image, dimage = params["w"], _image(over), _as_image(x), _as_image(dy)
        dx = _input_gradient(dimage, _as_image(w, 0).astype(dy.dtype), image, axes, groups)
        dw = _weight_gradient(image, dimage, _as_image(w, 0), axes, groups)
        dparams = {"w": dw.reshape(w.shape).astype(w.dtype)}
        if use_bias:
            db = jnp.sum(dimage.astype(compute_dtype(dy.dtype)), (0, 1, 2))
            dparams["b"] = db.astype(params["b"].dtype)
        return dparams, dx.astype(x.dtype).reshape(x.shape)

    arguments = (features, windows.size, windows.stride, windows.padding, windows.dilation)
    kind = Kind(name, (*arguments, groups, use_bias))
    return elementary(forward, backward, name, kind, init=init)


def _likely_misread(shape: tuple[int, ...], rank_is_given: bool) -> str:
    """What x is taken for, where that is probably not what it is; or ''."""
    is_square = len(shape) > 2 and shape[-1] == shape[-2] > 4
    if len(shape) == 4 and is_square and shape[1] in (1, 3):
        return (
            f"taken for images of {shape[1]} x {shape[2]} pixels with {shape[3]} channels; if the "
            "channels come first, move them last: x.transpose(0, 2, 3, 1)"
        )
    if len(shape) == 3 and is_square and not rank_is_given:
        return (
            f"taken for sequences of {shape[1]} steps with {shape[2]} channels; images need an "
            "axis of channels: x[..., None]; for sequences give the kernel as a tuple, (3,)"
        )
    is_image = len(shape) == 3 and shape[0] == shape[1] > 4 and shape[2] in (1, 3)
    if is_image and not rank_is_given:
        return (
            f"taken for {shape[0]} sequences of {shape[1]} steps; one image needs an axis of "
            "examples: x[None]; for sequences give the kernel as a tuple, (3,)"
        )
    return ""


# ---- the three convolutions, over images: a sequence is an image of height 1 ------------------


def _as_image(a: jax.Array, height: int = 1) -> jax.Array:
    """A sequence (B, W, C) as (B, 1, W, C); with ``height=0`` weights (W, I, O) as (1, W, I, O)."""
    return a if a.ndim == 4 else jnp.expand_dims(a, height)


def _image(axes: tuple[Axis, ...]) -> Image:
    height = Axis(size=1, window=1, stride=1, dilation=1, low=0, high=0, out=1)
    return (axes[0], axes[1]) if len(axes) == 2 else (height, axes[0])


def _is_matmul(axes: Image, groups: int) -> bool:
    """A 1x1 kernel without padding is a matrix product at every place (of a grid)."""
    return groups == 1 and all(a.window == 1 and a.low == a.high == 0 for a in axes)


def _strides(axes: Image) -> tuple[int, int]:
    return axes[0].stride, axes[1].stride


def _dilations(axes: Image) -> tuple[int, int]:
    return axes[0].dilation, axes[1].dilation


def _forward(
    x: jax.Array, w: jax.Array, b: jax.Array | None, axes: Image, groups: int
) -> jax.Array:
    """(B, H, W, I) * (kh, kw, I/g, O) + (O,) -> (B, H', W', O)"""
    if _is_matmul(axes, groups):
        y = contract(_subsample(x, axes), w[0, 0], ((3,), (0,)))
        return y if b is None else y + b.astype(y.dtype).reshape(1, 1, 1, -1)
    return _convolve(
        x,
        w,
        b,
        window_strides=_strides(axes),
        padding=tuple((a.low, a.high) for a in axes),
        rhs_dilation=_dilations(axes),
        feature_group_count=groups,
    )


def _input_gradient(
    dy: jax.Array, w: jax.Array, x: jax.Array, axes: Image, groups: int
) -> jax.Array:
    """(B, H', W', O) * (kh, kw, O/g, I), turned around -> (B, H, W, I), like x"""
    if _is_matmul(axes, groups):
        return _dilate(contract(dy, w[0, 0], ((3,), (1,)), _subsample(x, axes)), axes)
    if groups == 1:  # as XLA for GPUs knows the gradient of a convolution
        turned, layout = lax.rev(w, (0, 1)), ("NHWC", "HWOI", "NHWC")
    else:
        kh, kw, i, o = w.shape
        turned = lax.rev(w, (0, 1)).reshape(kh, kw, i, groups, o // groups)
        turned = turned.transpose(0, 1, 4, 3, 2).reshape(kh, kw, o // groups, groups * i)
        layout = NHWC
    return _convolve(
        dy,
        turned,
        window_strides=(1, 1),
        # dx[t] starts at t = 0 and reads dilated dy from -(d (k - 1) - p) on, up to t = n - 1.
        padding=tuple(
            (a.span - 1 - a.low, a.size + a.low - a.stride * (a.out - 1) - 1) for a in axes
        ),
        lhs_dilation=_strides(axes),
        rhs_dilation=_dilations(axes),
        dimension_numbers=layout,
        feature_group_count=groups,
        out_sharding=jax.typeof(x).sharding,
    )


def _weight_gradient(
    x: jax.Array, dy: jax.Array, w: jax.Array, axes: Image, groups: int
) -> jax.Array:
    """x (B, H, W, I), dy (B, H', W', O) -> (kh, kw, I/g, O), like w"""
    if _is_matmul(axes, groups):
        return contract(_subsample(x, axes), dy, ((0, 1, 2), (0, 1, 2)), w[0, 0])[None, None]
    if groups > 1 or is_split(x) or not isinstance(x.shape[0], int):  # jax.export left it open
        return _by_convolution(x, dy, w, axes, groups)
    return by_platform(
        x,
        dy,
        # On CPU XLA's convolutions are slow where the kernel, here dy, is large.
        cpu=lambda x, dy: _by_matmul(x, dy, axes),
        default=lambda x, dy: _by_convolution(x, dy, w, axes, groups),
    )


def _read_padding(axes: Image) -> list[tuple[int, int]]:
    """x's padding as far as windows read it: the last stride may leave some of it out."""
    return [(a.low, a.stride * (a.out - 1) + a.span - a.size - a.low) for a in axes]


def _by_matmul(x: jax.Array, dy: jax.Array, axes: Image) -> jax.Array:
    """im2col: dW[(i, j, c), o] = sum over b, h, w of columns[(i, j, c), b, h, w] dy[b, h, w, o].

    The columns are kh kw copies of x, each shifted to where the kernel's entry (i, j) reads. With
    channels first they are the rows of a matrix, made by copying long stretches of memory. Strips
    of at most MAX_COPY_ELEMENTS (some images, or some rows of one) bound the memory; larger ones
    are no faster.
    """
    (kh, sh, dh), (kw, sw, dw) = ((a.window, a.stride, a.dilation) for a in axes)
    batch, height, width, features = dy.shape
    row = kh * kw * x.shape[-1] * width  # elements of the copies for a row of dy
    images = _divisor(batch, MAX_COPY_ELEMENTS // (row * height))
    rows = _divisor(height, MAX_COPY_ELEMENTS // row) if images == 1 else height
    across, down = sw * (width - 1) + 1, sh * (rows - 1) + 1
    around = [(low, high, 0) for low, high in _read_padding(axes)]

    def of_images(b: int | jax.Array) -> jax.Array:
        # Padded here, in the loop: XLA would pad all of x in forward, and keep that as well.
        some = lax.dynamic_slice(x, (b * images, 0, 0, 0), (images, *x.shape[1:]))
        some = lax.pad(some, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])

        def of_strip(n: int | jax.Array) -> jax.Array:
            h = n * rows
            size = (images, down + dh * (kh - 1), *some.shape[2:])
            part = lax.dynamic_slice(some, (0, sh * h, 0, 0), size).transpose(3, 0, 1, 2)
            # Stacked, not joined along the channels: these may be split over devices.
            columns = jnp.stack([part[..., j * dw :][..., :across:sw] for j in range(kw)])
            columns = jnp.stack([columns[..., i * dh :, :][..., :down:sh, :] for i in range(kh)])
            size = (images, rows, width, features)
            dy_part = lax.dynamic_slice(dy, (b * images, h, 0, 0), size)
            return contract(columns, dy_part, ((3, 4, 5), (0, 1, 2)))

        return _sum(height // rows, of_strip)

    return _sum(batch // max(images, 1), of_images)


def _sum(count: int, term: Callable[[int | jax.Array], jax.Array]) -> jax.Array:
    """term(0) + term(1) + ... + term(count - 1), one at a time."""
    if count <= 1:
        return term(0)  # also of no examples
    zero = jnp.zeros_like(jax.eval_shape(lambda: term(0)))  # varies as it does under shard_map
    return lax.fori_loop(0, count, lambda n, total: total + term(n), zero)


def _by_convolution(
    x: jax.Array, dy: jax.Array, w: jax.Array, axes: Image, groups: int
) -> jax.Array:
    """(I/g, H, W, g B) * (H', W', B, O) -> (I/g, kh, kw, O), with its axes put in order."""
    options: dict[str, Any]
    if groups == 1 or is_split(x):  # whose axis of examples is not merged with another
        lhs, options = x.transpose(3, 1, 2, 0), {"batch_group_count": groups}
    else:
        *rest, channels = x.shape
        lhs = x.reshape(*rest, groups, channels // groups).transpose(4, 1, 2, 3, 0)
        lhs = lhs.reshape(*lhs.shape[:3], groups * x.shape[0])
        options = {"feature_group_count": groups}
    dw = _convolve(
        lhs,
        dy.transpose(1, 2, 0, 3),
        window_strides=_dilations(axes),
        padding=_read_padding(axes),
        rhs_dilation=_strides(axes),
        out_sharding=jax.typeof(w.transpose(2, 0, 1, 3)).sharding,
        **options,
    )
    return dw.transpose(1, 2, 0, 3)


def _convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    bias: jax.Array | None = None,
    dimension_numbers: Any = NHWC,
    **options: Any,
) -> jax.Array:
    """A convolution with sums in float32 at least, plus a bias."""
    wide = compute_dtype(lhs.dtype)

    def product(lhs: jax.Array, rhs: jax.Array, to: Any = wide) -> jax.Array:
        y = lax.conv_general_dilated(
            lhs, rhs, dimension_numbers=dimension_numbers, preferred_element_type=to, **options
        )
        return y if bias is None else y + bias.astype(to).reshape(1, 1, 1, -1)

    if lhs.dtype == wide:
        return product(lhs, rhs)
    # As in linear.contract: on CPU 16-bit operands are widened, elsewhere they are the fast ones.
    # cuDNN sums them in float32 by itself, bias included; asked for a float32 result, XLA would
    # widen its operands first. float16 is widened: a dW beyond its range has to stay finite.
    narrow = lhs.dtype if lhs.dtype == jnp.bfloat16 else wide
    return by_platform(
        lhs,
        rhs,
        cpu=lambda a, b: product(a.astype(wide), b.astype(wide)),
        cuda=lambda a, b: product(a, b, narrow).astype(wide),
        default=product,
    )


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most ``most``; 1 where there is none, 0 of 0."""
    return next((d for d in range(min(number, most), 1, -1) if number % d == 0), min(number, 1))


def _subsample(x: jax.Array, axes: Image) -> jax.Array:
    """The entries of x at multiples of the strides."""
    sh, sw = _strides(axes)
    return x if sh == sw == 1 else x[:, ::sh, ::sw]


def _dilate(dx: jax.Array, axes: Image) -> jax.Array:
    """The transpose of :func:`_subsample`: zeros between, and up to the shape of x."""
    if _strides(axes) == (1, 1):
        return dx
    zeros = [(0, a.size - (a.out - 1) * a.stride - 1, a.stride - 1) for a in axes]
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *zeros, (0, 0, 0)])
