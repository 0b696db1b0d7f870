"""Whole networks whose steps are compared on accelerators, and their plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import fnn
from experiments.benchmarks import conv_cases, conv_peers
from fnn.block import Block


class Network(NamedTuple):
    """A network, its plain formula in JAX, the shape of x, the classes, and PyTorch's, if any."""

    net: Block
    plain: Callable[[Any, Any], Any]
    shape: tuple[int, ...]
    classes: int
    torch: Any = None


def networks(rows: int, batch: int) -> dict[str, Network]:
    """By name, with ``rows`` examples of the MLP and ``batch`` of GoogLeNet."""
    google = fnn.models.googlenet(auxiliary=False, dropout_rate=0.0)
    few = 4 * batch  # of small pictures
    return {
        f"MLP 784-1024-1024-10, batch {rows}": Network(
            fnn.models.mlp((1024, 1024, 10)), plain_mlp, (rows, 784), 10
        ),
        f"CNN, batch {few}": Network(
            fnn.models.cnn(hidden=0), conv_cases.plain_cnn, (few, 28, 28, 1), 10,
            conv_peers.torch_cnn,
        ),
        f"residual CNN with batch norm, batch {few}": Network(
            conv_cases.residual_cnn(), conv_cases.plain_residual_cnn, (few, 32, 32, 3), 10
        ),
        f"GoogLeNet, batch {batch}": Network(
            google, conv_cases.plain_googlenet, (batch, 224, 224, 3), 1000,
            conv_peers.torch_googlenet,
        ),
    }  # fmt: skip


def plain_mlp(params: Any, x: Any) -> Any:
    """The network of ``fnn.models.mlp``."""
    layers = [params[name] for name in sorted(params, key=lambda name: name == "out")]
    for i, layer in enumerate(layers):
        x = x @ layer["w"].astype(x.dtype) + layer["b"].astype(x.dtype)
        x = jax.nn.relu(x) if i < len(layers) - 1 else x
    return x
