"""Convolution in one to three dimensions; its rules are in :mod:`fnn.blocks.convolutions`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.arguments import Count, checked
from fnn.arrays import Spec, compute_dtype
from fnn.block import Block, BlockValueError, Key, Kind, Params
from fnn.blocks.convolutions import convolved, input_gradient, weight_gradient
from fnn.blocks.linear import Initializer, he, weights, zeros
from fnn.blocks.windows import Padding, Sizes, Windows, warn_if_misread
from fnn.refusals import as_cotangent, elementary, require_groups, require_shapes


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

    x is (B, W, I), (B, H, W, I) or (B, D, H, W, I), and y has O channels: sequences, images or
    volumes. The rank of x decides, unless ``kernel`` is a tuple. W is (kernel..., I / groups, O),
    b is (O,). (A cross-correlation, as in every neural-network library: the kernel is not
    flipped.) Computed in x's dtype, with sums in float32 or wider. On GPUs results in bfloat16 are
    rounded to it, dW too, which is float32 elsewhere; the parameters' cotangents have their dtype
    everywhere.

    Args:
      features: O.
      kernel, stride, dilation: one number, or one for each axis (height and width, say).
      padding: "SAME" (output size = input size / stride, rounded up), "VALID" (none), a number
        of zeros on every side, or pairs (before, after) for each axis.
      groups: channels in and out are split into this many groups that do not see each other;
        with groups = I it is a depthwise convolution.
      use_bias: whether there is a b.
      w_init, b_init: from ``jax.nn.initializers``; fan-in is kernel size times I / groups.

    Returns:
      A block with parameters ``w`` and ``b``. Residuals: ``x``. The derivation of its backward is
      in :mod:`fnn.blocks.convolutions`.

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
        require_groups(name, x, groups)
        w = (*sizes, x.shape[-1] // groups, features)
        return {"w": w, "b": (features,)} if use_bias else {"w": w}

    def init(key: jax.Array, x: Spec) -> Params:
        of_leaves = shapes(x)  # which refuses an x of another kind
        warn_if_misread(name, x, kernel)
        return weights(name, key, x, of_leaves, w_init, b_init)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_shapes(name, params, shapes(x), x)
        y = convolved(x, params["w"].astype(x.dtype), windows.over(x), groups, params.get("b"))
        return y.astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = conv(x, W) + b, linear in each of the three.
        require_shapes(name, params, shapes(x), x)
        axes, w = windows.over(x), params["w"]
        dy = as_cotangent(name, dy, (x.shape[0], *(a.out for a in axes), features), x.dtype)
        dx = input_gradient(dy, w.astype(dy.dtype), axes, groups, like=x)
        dparams = {"w": weight_gradient(x, dy, w, axes, groups).astype(w.dtype)}
        if use_bias:
            db = jnp.sum(dy.astype(compute_dtype(dy.dtype)), range(dy.ndim - 1))
            dparams["b"] = db.astype(params["b"].dtype)
        return dparams, dx.astype(x.dtype)

    arguments = (features, windows.size, windows.stride, windows.padding, windows.dilation)
    kind = Kind(name, (*arguments, groups, use_bias))
    return elementary(forward, backward, name, kind, init=init)
