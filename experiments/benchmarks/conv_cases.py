"""The blocks of GoogLeNet and of the CNN at their shapes, and the plain formulas."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import fnn
from experiments.benchmarks.cases import Case
from fnn.block import Block
from fnn.models.inception_v1 import INCEPTIONS

NHWC = ("NHWC", "HWIO", "NHWC")


def plain_conv(params: Any, x: Any, stride: int = 1, padding: Any = "SAME") -> Any:
    """A convolution with bias."""
    w = params["w"].astype(x.dtype)
    y = lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=NHWC)
    return y + params["b"].astype(x.dtype)


def plain_max_pool(x: Any, window: int, stride: int, padding: Any = "CEIL") -> Any:
    """A max-pool; "CEIL": the output's size rounds up."""
    if padding == "CEIL":
        n = x.shape[1]
        more = -(-(n - window) // stride) * stride + window - n
        padding = ((0, 0), (0, more), (0, more), (0, 0))
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, x.dtype.type(-jnp.inf), lax.max, sizes, strides, padding)


def plain_avg_pool(x: Any, window: int, stride: int) -> Any:
    """An average pool without padding."""
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, x.dtype.type(0), lax.add, sizes, strides, "VALID") / window**2


def plain_lrn(x: Any) -> Any:
    """Local response normalisation over five channels."""
    zero = x.dtype.type(0)
    total = lax.reduce_window(x * x, zero, lax.add, (1, 1, 1, 5), (1, 1, 1, 1), "SAME")
    return x * (1 + 1e-4 / 5 * total) ** -0.75


def plain_batch_norm(params: Any, x: Any) -> Any:
    """Batch normalisation by the batch's statistics."""
    mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
    scale, bias = (params[name].astype(x.dtype) for name in ("scale", "bias"))
    return (x - mean) * lax.rsqrt(var + 1e-5) * scale + bias


def cases(batch: int, pixels: int) -> list[Case]:
    """All blocks; equal blocks of equal shapes once."""
    distinct: dict[Any, Case] = {}

    def put(network: str, name: str, block: Block, shape: tuple[int, ...], plain: Any) -> None:
        distinct.setdefault((block.kind, shape), Case(network, name, block, (shape,), plain))

    def conv(network: str, name: str, size: int, i: int, o: int, k: int, n: int = batch) -> None:
        put(network, f"conv {k}x{k} {i}->{o}, {name}", fnn.conv(o, k), (n, size, size, i),
            plain_conv)  # fmt: skip

    def pool(network: str, size: int, c: int, window: int, stride: int, n: int = batch) -> None:
        padding = "SAME" if stride == 1 else "CEIL"
        options: dict[str, Any] = {"padding": "SAME"} if stride == 1 else {"ceil_mode": "caffe"}
        put(network, f"max_pool {window}x{window}/{stride}",
            fnn.max_pool(window, stride, **options), (n, size, size, c),
            lambda _, x: plain_max_pool(x, window, stride, padding))  # fmt: skip

    conv("CNN", "conv_1", 28, 1, 32, 3, 64)
    pool("CNN", 28, 32, 2, 2, 64)
    conv("CNN", "conv_2", 14, 32, 64, 3, 64)
    pool("CNN", 14, 64, 2, 2, 64)
    name = "GoogLeNet"
    half, quarter = -(-pixels // 2), -(-pixels // 4)
    put(name, "conv 7x7/2 3->64, conv1", fnn.conv(64, 7, stride=2, padding=3),
        (batch, pixels, pixels, 3),
        lambda params, x: plain_conv(params, x, 2, ((3, 3), (3, 3))))  # fmt: skip
    pool(name, half, 64, 3, 2)
    for channels in (64, 192):
        put(name, f"local_response_norm {channels}", fnn.local_response_norm(),
            (batch, quarter, quarter, channels), lambda _, x: plain_lrn(x))  # fmt: skip
    conv(name, "conv2/3x3_reduce", quarter, 64, 64, 1)
    conv(name, "conv2/3x3", quarter, 64, 192, 3)
    pool(name, quarter, 192, 3, 2)
    size, channels = -(-quarter // 2), 192
    for module, (one, r3, three, r5, five, proj) in INCEPTIONS.items():
        for part, i, o, k in (
            ("1x1", channels, one, 1), ("3x3_reduce", channels, r3, 1), ("3x3", r3, three, 3),
            ("5x5_reduce", channels, r5, 1), ("5x5", r5, five, 5), ("pool_proj", channels, proj, 1),
        ):  # fmt: skip
            conv(name, f"{module}/{part}", size, i, o, k)
        pool(name, size, channels, 3, 1)
        channels = one + three + five + proj
        if module in ("4a", "4d"):
            put(name, f"avg_pool 5x5/3 {module}", fnn.avg_pool(5, 3), (batch, size, size, channels),
                lambda _, x: plain_avg_pool(x, 5, 3))  # fmt: skip
        if module in ("3b", "4e"):
            pool(name, size, channels, 3, 2)
            size = -(-size // 2)
    put(name, "global_avg_pool", fnn.global_avg_pool(), (batch, size, size, channels),
        lambda _, x: jnp.mean(x, (1, 2)))  # fmt: skip
    for width, features in ((quarter, 192), (28, 128), (14, 224)):
        put("GoogLeNet, batch norm", f"batch_norm {features}", _without_statistics(),
            (batch, width, width, features), plain_batch_norm)  # fmt: skip
    return list(distinct.values())


def _without_statistics() -> Block:
    """batch_norm without its running statistics, which have no gradient to compare."""
    block = fnn.batch_norm()

    def whole(params: Any) -> Any:
        one = jnp.ones_like(params["scale"])
        return params | {"statistics": {"mean": 0 * one, "var": one}}

    def trained(params: Any) -> Any:
        return {name: params[name] for name in ("scale", "bias")}

    def init(key: Any, x: Any) -> Any:
        return trained(block.init(key, x))

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = block.backward(whole(params), residuals, dy)
        return trained(dparams), dx

    def forward(params: Any, x: Any, key: Any = None) -> Any:
        return block.forward(whole(params), x)

    return block._replace(init=init, forward=forward, backward=backward)


def plain_cnn(params: Any, x: Any) -> Any:
    """The network of ``fnn.models.cnn(hidden=0)``."""
    for i in (1, 2):
        x = plain_max_pool(jax.nn.relu(plain_conv(params[f"conv_{i}"], x)), 2, 2)
    out = params["out"]
    return x.reshape(len(x), -1) @ out["w"] + out["b"]


def residual_cnn() -> Block:
    """Convolution, two residual units and a classifier, with batch normalisation throughout."""

    def convolved() -> dict[str, Block]:
        return {"conv": fnn.conv(64, 3, use_bias=False), "norm": fnn.batch_norm()}

    def unit() -> Block:
        one, two = fnn.serial(**convolved(), relu=fnn.relu()), fnn.serial(**convolved())
        return fnn.serial(unit=fnn.residual(fnn.serial(one=one, two=two)), relu=fnn.relu())

    return fnn.serial(
        stem=fnn.serial(**convolved(), relu=fnn.relu()), first=unit(), second=unit(),
        mean=fnn.global_avg_pool(), out=fnn.linear(10),
    )  # fmt: skip


def plain_residual_cnn(params: Any, x: Any) -> Any:
    """The network of ``residual_cnn``."""

    def convolved(p: Any, x: Any) -> Any:
        w = p["conv"]["w"].astype(x.dtype)
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
        return plain_batch_norm(p["norm"], y)

    x = jax.nn.relu(convolved(params["stem"], x))
    for name in ("first", "second"):
        p = params[name]["unit"]["block"]
        inner = convolved(p["two"], jax.nn.relu(convolved(p["one"], x)))
        x = jax.nn.relu(x + inner)
    out = params["out"]
    return jnp.mean(x, (1, 2)) @ out["w"].astype(x.dtype) + out["b"].astype(x.dtype)


def plain_googlenet(params: Any, x: Any) -> Any:
    """The network of ``fnn.models.googlenet(auxiliary=False)``, without dropout."""

    def conv(part: Any, x: Any, *options: Any) -> Any:
        return jax.nn.relu(plain_conv(part, x, *options))

    def inception(p: Any, x: Any) -> Any:
        branches = [
            conv(p["1x1"], x),
            conv(p["3x3"], conv(p["3x3_reduce"], x)),
            conv(p["5x5"], conv(p["5x5_reduce"], x)),
            conv(p["pool_proj"], plain_max_pool(x, 3, 1, "SAME")),
        ]
        return jnp.concatenate(branches, -1)

    x = conv(params["conv1"]["7x7_s2"], x, 2, ((3, 3), (3, 3)))
    x = plain_lrn(plain_max_pool(x, 3, 2))
    x = conv(params["conv2"]["3x3"], conv(params["conv2"]["3x3_reduce"], x))
    x = plain_max_pool(plain_lrn(x), 3, 2)
    for name in INCEPTIONS:
        x = inception(params[f"inception_{name}"], x)
        if name in ("3b", "4e"):
            x = plain_max_pool(x, 3, 2)
    classifier = params["loss3"]["classifier"]
    return jnp.mean(x, (1, 2)) @ classifier["w"] + classifier["b"]
