"""Transposed convolution: what :mod:`fnn.blocks.conv` does on the way back, as a layer.

A convolution from y to x, with weights W and no bias, takes a gradient of x to one of y. That is
this layer's forward, so along one axis of stride s, dilation d and padding p

    y[t] = sum over i, o with s o + d i - p = t of x[o] W[i]

The sum of y dy is that of x conv(dy), where conv is that convolution. So backward is

    dx = conv(dy),   dW = what conv's W gets for the input dy and the cotangent x

and each of the three is one of :mod:`fnn.blocks.convolutions`, with other arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import Count, Natural, checked
from fnn.arrays import Shape, Spec, compute_dtype
from fnn.block import Block, BlockValueError, Key, Kind, Params
from fnn.blocks.convolutions import convolved, input_gradient, weight_gradient
from fnn.blocks.linear import Initializer, he, weights, zeros
from fnn.blocks.windows import Axis, Padding, Sizes, Windows, require_image, warn_if_misread, where
from fnn.refusals import as_cotangent, elementary, require_groups, require_shapes

Lengths = Natural | Sequence[Natural]


@checked
def conv_transpose(
    features: Count,
    kernel: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    output_padding: Lengths = 0,
    dilation: Sizes = 1,
    groups: Count = 1,
    use_bias: bool = True,
    w_init: Initializer = he,
    b_init: Initializer = zeros,
) -> Block:
    """y[s o + d i - p] += x[o] W[i] for every place o and entry i, summed over channels, plus b.

    The transpose of :func:`conv` with these arguments, from what that returns to what it takes:
    for decoders, and to undo strides. x is (B, W, I), (B, H, W, I) or (B, D, H, W, I), and y has O
    channels; W is (kernel..., O / groups, I), b is (O,). Computed as :func:`conv` is.

    It is PyTorch's ``ConvTranspose1d`` to ``3d`` with the same ``stride``, ``padding`` (a number),
    ``output_padding`` (below the stride), ``dilation`` and ``groups``; PyTorch's weights
    (I, O / groups, kernel...) have their first axes moved to the end, in turn. With 'SAME' and
    'VALID' it is ``jax.lax.conv_transpose(x, W, strides, padding, transpose_kernel=True)`` and
    Keras' ``Conv2DTranspose``, if the kernel is at least as long as the stride; where it is
    shorter, give 'VALID' the difference as ``output_padding``. Flax's ``ConvTranspose`` is this
    too, with a W that is flipped in space and has its last two axes swapped.

    Args:
      features: O.
      kernel, stride, dilation: one number, or one for each axis (height and width, say).
      padding: what is cut off, as :func:`conv` would have padded y. "SAME": y's size is that of x
        times the stride. "VALID": nothing, (n - 1) s + d (k - 1) + 1. A number for every side, or
        pairs (before, after) for each axis: less by these.
      output_padding: how much longer y is at its end, 0 to stride - 1: sizes that a stride rounds
        to the same.
      groups: as for :func:`conv`.
      use_bias: whether there is a b.
      w_init, b_init: from ``jax.nn.initializers``. ``w_init`` is asked for :func:`conv`'s shape,
        (kernel..., I / groups, O), so that its fan-in is right, and turned around.

    Returns:
      A block with parameters ``w`` and ``b``. Residuals: ``x``. The derivation of its backward is
      in :mod:`fnn.blocks.conv_transpose`.

    Raises:
      BlockValueError: wrong rank, channels, padding or groups; a y without places; parameters of
        other shapes.
      BlockTypeError: x is not floating.

    Warns:
      UserWarning: by ``init``, as for :func:`conv`.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.conv_transpose(1, 3, stride=2, padding="VALID", use_bias=False)
    >>> params = {"w": jnp.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)}
    >>> y, x = net.forward(params, jnp.array([1.0, 2.0]).reshape(1, 2, 1))
    >>> y.ravel()
    Array([  1.,  10., 102.,  20., 200.], dtype=float32)
    >>> dparams, dx = net.backward(params, x, jnp.array([0.0, 0.0, 1.0, 0.0, 0.0]).reshape(1, 5, 1))
    >>> dx.ravel(), dparams["w"].ravel()
    (Array([100.,   1.], dtype=float32), Array([2., 0., 1.], dtype=float32))
    """
    name = "conv_transpose"
    if features % groups:
        raise BlockValueError(name, f"features is {features}, needs a multiple of groups, {groups}")
    if padding == "SAME" and np.any(output_padding):
        raise BlockValueError(
            name,
            f"output_padding is {output_padding}, needs 0 with padding='SAME', which makes y "
            "stride times as long as x: leave it out, or give padding as numbers",
        )
    windows = Windows(name, kernel, stride, padding, dilation, window="kernel")

    def axes_of(x: Spec) -> tuple[Axis, ...]:
        return _laid_over_y(windows, output_padding, x, features)

    def shapes(x: Spec) -> dict[str, tuple[int, ...]]:
        sizes = [axis.window for axis in axes_of(x)]
        require_groups(name, x, groups)
        w = (*sizes, features // groups, x.shape[-1])
        return {"w": w, "b": (features,)} if use_bias else {"w": w}

    def init(key: jax.Array, x: Spec) -> Params:
        leaves = shapes(x)
        warn_if_misread(name, x, kernel)
        *k, o, i = leaves["w"]
        params = weights(name, key, x, {**leaves, "w": (*k, i // groups, features)}, w_init, b_init)
        w = params["w"].reshape(*k, i // groups, groups, o)
        return {**params, "w": jnp.swapaxes(w, -3, -1).reshape(leaves["w"])}

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_shapes(name, params, shapes(x), x)
        w, axes = params["w"].astype(x.dtype), axes_of(x)
        return input_gradient(x, w, axes, groups, params.get("b")).astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = conv^T(x, W) + b, linear in each of the three.
        require_shapes(name, params, shapes(x), x)
        axes, w = axes_of(x), params["w"]
        dy = as_cotangent(name, dy, (x.shape[0], *(a.size for a in axes), features), x.dtype)
        dx = convolved(dy, w.astype(dy.dtype), axes, groups, like=x)
        dparams = {"w": weight_gradient(dy, x, w, axes, groups).astype(w.dtype)}
        if use_bias:
            db = jnp.sum(dy.astype(compute_dtype(dy.dtype)), range(dy.ndim - 1))
            dparams["b"] = db.astype(params["b"].dtype)
        return dparams, dx.astype(x.dtype)

    arguments = (features, kernel, stride, padding, output_padding, dilation, groups, use_bias)
    return elementary(forward, backward, name, Kind(name, arguments), init=init)


def _laid_over_y(windows: Windows, more: Lengths, x: Spec, features: int) -> tuple[Axis, ...]:
    """The axes of y, with windows that are the places of x; ``more``: of y, at its end."""
    require_image(windows.name, x)
    given, lengths = windows.padding, []
    arguments: dict[str, Any] = {
        "kernel": windows.size, "stride": windows.stride, "dilation": windows.dilation,
        "output_padding": more, "padding": 0 if isinstance(given, str) else given,
    }  # fmt: skip
    each = [windows.each(what, value, x) for what, value in arguments.items()]
    for dim, (n, k, s, d, rest, pad) in enumerate(zip(x.shape[1:-1], *each, strict=True), 1):
        low, high = (pad, pad) if isinstance(pad, int) else pad
        length = n * s if given == "SAME" else (n - 1) * s + d * (k - 1) + 1 - low - high + rest
        if n == 0 or length < 1:
            raise BlockValueError(
                windows.name,
                f"{where(dim, x)} of length {n}, with a kernel of {k}, stride {s} and padding "
                f"{low} + {high}, makes a y without places: give a larger x or less padding",
            )
        if rest >= s:
            raise BlockValueError(
                windows.name,
                f"output_padding is {rest}, needs less than the stride, {s}, along axis {dim}: a "
                "longer y would have more windows than x has places",
            )
        lengths.append(length)
    return windows.over(Shape((x.shape[0], *lengths, features), x.dtype))
