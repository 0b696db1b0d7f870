"""What image models are made of beside the blocks of GoogLeNet: of decoders and of volumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

import fnn
from experiments.benchmarks.cases import Case
from fnn.block import Block


def cases(batch: int) -> list[Case]:
    """A decoder's layers, from 16 x 16 pixels to 32 x 32, and those of a network of volumes."""

    def case(
        name: str, block: Block, shape: tuple[int, ...], plain: Callable[[Any, Any], Any]
    ) -> Case:
        return Case("images", name, block, ((batch, *shape),), plain)

    volume = max(batch // 8, 1), 16, 32, 32, 32
    return [
        case("conv_transpose 4x4/2 128->64", fnn.conv_transpose(64, 4, stride=2), (16, 16, 128),
             _upsampled),
        case("group_norm 32", fnn.group_norm(32), (32, 32, 128), _grouped(32)),
        case("instance_norm", fnn.instance_norm(), (32, 32, 128), _grouped(128)),
        Case("images", "conv 3x3x3 32->32", fnn.conv(32, 3), (volume,), _conv_of_volumes),
        Case("images", "conv_transpose 2x2x2/2 32->16", fnn.conv_transpose(16, 2, stride=2),
             (volume,), _upsampled),
    ]  # fmt: skip


def _with_bias(y: Any, params: Any) -> Any:
    return y + params["b"].astype(y.dtype)


def _upsampled(params: Any, x: Any) -> Any:
    space = "DHW"[2 - x.ndim :]
    layout = (f"N{space}C", f"{space}IO", f"N{space}C")
    w, strides = params["w"].astype(x.dtype), (2,) * len(space)
    y = lax.conv_transpose(
        x, w, strides, "SAME", dimension_numbers=layout, transpose_kernel=True
    )  # fmt: skip
    return _with_bias(y, params)


def _conv_of_volumes(params: Any, x: Any) -> Any:
    layout = ("NDHWC", "DHWIO", "NDHWC")
    w = params["w"].astype(x.dtype)
    y = lax.conv_general_dilated(x, w, (1, 1, 1), "SAME", dimension_numbers=layout)
    return _with_bias(y, params)


def _grouped(groups: int) -> Callable[[Any, Any], Any]:
    def plain(params: Any, x: Any) -> Any:
        parts = x.reshape(*x.shape[:-1], groups, -1)
        axes = (*range(1, x.ndim - 1), x.ndim)
        mean, var = (f(parts, axes, keepdims=True) for f in (jnp.mean, jnp.var))
        z = ((parts - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape)
        return z * params["scale"].astype(x.dtype) + params["bias"].astype(x.dtype)

    return plain
