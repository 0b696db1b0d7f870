"""Convolution in one and two dimensions.

Symbols: B batch, H and W height and width, I channels in, O channels out, g groups; in one
dimension read the shapes without H. Images are NHWC, weights HWIO.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fnn.block import (
    Block,
    BlockValueError,
    Key,
    Kind,
    Params,
    compute_dtype,
    require_params,
    whole_number,
)
from fnn.blocks.linear import Initializer, contract, he, zeros
from fnn.blocks.windows import Padding, Sizes, Window, checked_padding, checked_sizes, window_over

NHWC = ("NHWC", "HWIO", "NHWC")

LARGE = 2**21  # numbers in the copies of x that a matrix product reads at a time, on CPU


def conv(
    features: int,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    groups: int = 1,
    use_bias: bool = True,
    w_init: Initializer = he,
    b_init: Initializer = zeros,
) -> Block:
    """y[h, w, o] = sum over i, j, c of x[s h + d i - p, s w + d j - p, c] W[i, j, c, o] + b[o].

    x is (B, H, W, I) or (B, W, I), y (B, H', W', O) or (B, W', O): the rank of x decides, unless
    ``kernel`` is a pair. W is (kernel..., I / groups, O), b is (O,). (A cross-correlation, as in
    every neural-network library: the kernel is not flipped.)

    Args:
      features: O.
      kernel, stride, dilation: one number, or one for each of height and width.
      padding: "SAME" (output size = input size / stride, rounded up), "VALID" (none), a number
        of zeros on every side, or pairs (before, after) for each axis.
      groups: channels in and out fall into so many groups that do not see each other; with
        groups = I it is a depthwise convolution.
      use_bias: whether there is a b.
      w_init, b_init: from ``jax.nn.initializers``; fan-in is kernel size times I / groups.

    Sums are in float32 or wider. Residuals: ``x``.

    Backward: dx is a convolution of dy with the kernel turned around; dW a convolution of x with
    dy, in which channels and batch change places (on CPU matrix products, see ``_Plan``); db the
    sum of dy. All are written as the NHWC convolutions or matrix products that
    XLA runs fast in and out of loops.

    Raises:
      BlockValueError: wrong rank, channels, padding or groups; a kernel larger than the padded
        input.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.conv(1, 2, padding="VALID", use_bias=False)
    >>> params = {"w": jnp.array([1.0, 10.0]).reshape(2, 1, 1)}  # a difference of neighbours
    >>> y, x = net.forward(params, jnp.array([1.0, 2.0, 4.0]).reshape(1, 3, 1))
    >>> y.ravel()
    Array([21., 42.], dtype=float32)
    >>> dparams, dx = net.backward(params, x, jnp.array([1.0, 0.0]).reshape(1, 2, 1))
    >>> dx.ravel(), dparams["w"].ravel()
    (Array([ 1., 10.,  0.], dtype=float32), Array([1., 2.], dtype=float32))
    """
    name = "conv"
    features = whole_number(name, "features", features)
    groups = whole_number(name, "groups", groups)
    if features % groups:
        raise BlockValueError(name, f"features is {features}, needs a multiple of groups, {groups}")

    each = ((kernel, "the window"), (stride, "stride"), (dilation, "dilation"))
    size, strides, dilations = (checked_sizes(name, what, value) for value, what in each)
    around = checked_padding(name, padding)

    def window(x: Any) -> Window:
        found = window_over(name, x, size, strides, around, dilations)
        if x.shape[-1] == 0 or x.shape[-1] % groups:
            raise BlockValueError(
                name,
                f"x has {x.shape[-1]} channels (shape {x.shape}), which do not fall into "
                f"{groups} equal groups",
            )
        return found

    def init(key: Key, x: Any) -> Params:
        shape = (*window(x).size, x.shape[-1] // groups, features)
        dtype = compute_dtype(x.dtype)  # parameters are float32 at least
        w_key, b_key = jax.random.split(key)
        w = w_init(w_key, shape, dtype)
        return {"w": w, "b": b_init(b_key, (features,), dtype)} if use_bias else {"w": w}

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        geometry = window(x)
        _check_params(name, params, x, (*geometry.size, x.shape[-1] // groups, features), use_bias)
        plan = _Plan(geometry, groups)
        y = plan.forward(_image(x), _image(params["w"], 0).astype(x.dtype))
        if use_bias:
            y = y + params["b"].astype(y.dtype).reshape(1, 1, 1, features)
        return y.astype(x.dtype).reshape(x.shape[0], *geometry.out, features), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = conv(x, W) + b, linear in each of the three.
        geometry, w = window(x), params["w"]
        plan, image, dimage = _Plan(geometry, groups), _image(x), _image(dy)
        dx = plan.input_gradient(dimage, _image(w, 0).astype(dy.dtype), image.shape)
        dw = plan.weight_gradient(image, dimage)
        dparams = {"w": dw.reshape(w.shape).astype(w.dtype)}
        if use_bias:
            wide = dimage.astype(compute_dtype(dy.dtype))
            dparams["b"] = jnp.sum(wide, (0, 1, 2)).astype(params["b"].dtype)
        return dparams, dx.astype(x.dtype).reshape(x.shape)

    kind = Kind(name, (features, size, strides, around, dilations, groups, use_bias))
    return Block(init, forward, backward, name, kind)


def _image(a: jax.Array, height: int = 1) -> jax.Array:
    """A sequence (B, W, C) as an image of height 1; weights (W, I, O) with ``height=0``."""
    return a if a.ndim == 4 else jnp.expand_dims(a, height)


class _Plan(NamedTuple):
    """How the three convolutions are carried out. Everything is an image here: two dimensions."""

    window: Window
    groups: int

    @property
    def _two(self) -> Window:
        return self.window.as_image()

    @property
    def _is_matmul(self) -> bool:
        """A 1x1 kernel without padding is a matrix product at every place (of a grid)."""
        w = self._two
        return self.groups == 1 and w.size == (1, 1) and w.padding == ((0, 0), (0, 0))

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """(B, H, W, I) * (kh, kw, I/g, O) -> (B, H', W', O)"""
        two = self._two
        if self._is_matmul:
            return contract(_every(x, two.stride), w[0, 0], ((3,), (0,)))
        return _convolve(
            x, w, window_strides=two.stride, padding=two.padding, rhs_dilation=two.dilation,
            feature_group_count=self.groups,
        )  # fmt: skip

    def input_gradient(self, dy: jax.Array, w: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """(B, H', W', O) * (kh, kw, O/g, I), turned around -> (B, H, W, I)"""
        two = self._two
        if self._is_matmul:
            dx = contract(dy, w[0, 0], ((3,), (1,)))
            return _spread(dx, two.stride, shape)
        kh, kw, i, o = w.shape
        g = self.groups
        turned = w[::-1, ::-1].reshape(kh, kw, i, g, o // g)
        turned = turned.transpose(0, 1, 4, 3, 2).reshape(kh, kw, o // g, g * i)
        # Every input must be reached: pad dy by what the kernel overhangs, less x's own padding.
        padding = tuple(
            (d * (k - 1) - lo, n + lo - s * (m - 1) - 1)
            for n, m, k, s, d, (lo, _) in zip(
                shape[1:3], dy.shape[1:3], two.size, two.stride, two.dilation, two.padding,
                strict=True,
            )
        )  # fmt: skip
        return _convolve(
            dy, turned, window_strides=(1, 1), padding=padding, lhs_dilation=two.stride,
            rhs_dilation=two.dilation, feature_group_count=g,
        )  # fmt: skip

    def weight_gradient(self, x: jax.Array, dy: jax.Array) -> jax.Array:
        """x (B, H, W, I), dy (B, H', W', O) -> (kh, kw, I/g, O)"""
        two = self._two
        if self._is_matmul:
            return contract(_every(x, two.stride), dy, ((0, 1, 2), (0, 1, 2)))[None, None]
        # What of x the kernel passes over: its padding, less what the last stride leaves out.
        padding = [
            (lo, s * (m - 1) + d * (k - 1) + 1 - n - lo)
            for n, m, k, s, d, (lo, _) in zip(
                x.shape[1:3], dy.shape[1:3], two.size, two.stride, two.dilation, two.padding,
                strict=True,
            )
        ]  # fmt: skip
        if self.groups > 1:
            return self._by_convolution(x, dy, padding)
        return lax.platform_dependent(
            x, dy,
            # On CPU XLA's convolutions are slow where the kernel, here dy, is large.
            cpu=lambda x, dy: self._by_products(x, dy, padding),
            default=lambda x, dy: self._by_convolution(x, dy, padding),
        )  # fmt: skip

    def _by_products(
        self, x: jax.Array, dy: jax.Array, padding: list[tuple[int, int]]
    ) -> jax.Array:
        """dW[(i, j, c), o] = sum over b, h, w of columns[(i, j, c), b, h, w] dy[b, h, w, o], where
        columns are kh kw copies of x, each shifted to where the kernel's place (i, j) reads.
        Channels come first: they are the rows of a matrix product, and copies are of long
        stretches of memory. The sum is taken over some pictures, or some rows of one, at a time:
        so the copies never take much memory, and large ones are no faster."""
        (kh, kw), (sh, sw), (dh, dw) = self._two.size, self._two.stride, self._two.dilation
        batch, high, wide, features = dy.shape
        row = kh * kw * x.shape[-1] * wide  # numbers in the copies, for a row of dy
        pictures = _divisor(batch, LARGE // (row * high))
        rows = _divisor(high, LARGE // row) if pictures == 1 else high
        across, down = sw * (wide - 1) + 1, sh * (rows - 1) + 1
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])

        def part(b: Any, h: Any) -> jax.Array:
            seen = (pictures, down + dh * (kh - 1), *x.shape[2:])
            some = lax.dynamic_slice(x, (b, sh * h, 0, 0), seen).transpose(3, 0, 1, 2)
            columns = jnp.concatenate([some[..., j * dw :][..., :across:sw] for j in range(kw)])
            columns = jnp.concatenate([columns[:, :, i * dh :][:, :, :down:sh] for i in range(kh)])
            of = lax.dynamic_slice(dy, (b, h, 0, 0), (pictures, rows, wide, features))
            return contract(columns, of, ((1, 2, 3), (0, 1, 2)))

        if (pictures, rows) == (batch, high):
            total = part(0, 0)
        else:
            strips = high // rows
            total = lax.fori_loop(
                0, batch // pictures * strips,
                lambda n, total: total + part(n // strips * pictures, n % strips * rows),
                jnp.zeros((kh * kw * x.shape[-1], features), compute_dtype(x.dtype)),
            )  # fmt: skip
        return total.reshape(kh, kw, x.shape[-1], features)

    def _by_convolution(
        self, x: jax.Array, dy: jax.Array, padding: list[tuple[int, int]]
    ) -> jax.Array:
        """(I/g, H, W, g B) * (H', W', B, O) -> (I/g, kh, kw, O), and its axes in order"""
        b, h, wide, channels = x.shape
        g = self.groups
        split = x.reshape(b, h, wide, g, channels // g)
        lhs = split.transpose(4, 1, 2, 3, 0).reshape(channels // g, h, wide, g * b)
        dw = _convolve(
            lhs, dy.transpose(1, 2, 0, 3), window_strides=self._two.dilation, padding=padding,
            rhs_dilation=self._two.stride, feature_group_count=g,
        )  # fmt: skip
        return dw.transpose(1, 2, 0, 3)


def _convolve(lhs: jax.Array, rhs: jax.Array, **options: Any) -> jax.Array:
    """An NHWC, HWIO convolution with sums in float32 at least."""
    wide = compute_dtype(lhs.dtype)

    def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            lhs, rhs, dimension_numbers=NHWC, preferred_element_type=wide, **options
        )

    if lhs.dtype == wide:
        return product(lhs, rhs)
    # As in linear.contract: on CPU narrow operands are widened, elsewhere they are the fast ones.
    return lax.platform_dependent(
        lhs, rhs, cpu=lambda a, b: product(a.astype(wide), b.astype(wide)), default=product
    )


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most ``most``; 1 where there is none, 0 of 0."""
    return next((d for d in range(min(number, most), 1, -1) if number % d == 0), min(number, 1))


def _every(x: jax.Array, stride: tuple[int, ...]) -> jax.Array:
    return x if stride == (1, 1) else x[:, :: stride[0], :: stride[1]]


def _spread(dx: jax.Array, stride: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """The transpose of :func:`_every`: zeros between, and up to the shape of x."""
    if stride == (1, 1):
        return dx
    between = [
        (0, n - (m - 1) * s - 1, s - 1)
        for n, m, s in zip(shape[1:3], dx.shape[1:3], stride, strict=True)
    ]
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *between, (0, 0, 0)])


def _check_params(
    name: str, params: Params, x: jax.Array, shape: tuple[int, ...], use_bias: bool
) -> None:
    require_params(name, params, ("w", "b") if use_bias else ("w",))
    if params["w"].shape != shape:
        raise BlockValueError(
            name,
            f"w has shape {params['w'].shape}, needs {shape} for x with {x.shape[-1]} channels "
            f"(shape {x.shape}): are these another network's parameters?",
        )
    if use_bias and params["b"].shape != shape[-1:]:
        raise BlockValueError(name, f"b has shape {params['b'].shape}, needs {shape[-1:]}")
