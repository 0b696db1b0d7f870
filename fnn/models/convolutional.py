"""A small convolutional network in the manner of LeNet (LeCun et al., 1998)."""

from __future__ import annotations

from collections.abc import Sequence

from fnn.arguments import Count, Natural, Share, checked
from fnn.block import Block, BlockValueError, Kind
from fnn.blocks.combinators import flatten, serial
from fnn.blocks.conv import conv
from fnn.blocks.dropout import dropout as dropout_block
from fnn.blocks.linear import linear
from fnn.blocks.nonlinearities import relu
from fnn.blocks.pooling import max_pool


@checked
def cnn(
    classes: Count = 10,
    *,
    channels: Sequence[Count] = (32, 64),
    hidden: Natural = 128,
    kernel: Count = 3,
    dropout: Share = 0.0,
) -> Block:
    """Convolution, ReLU and 2x2 max-pool for each of ``channels``, then one or two linear layers.

    Args:
      classes: the number of outputs.
      channels: output channels of each convolution.
      hidden: units of a linear layer with ReLU before the last; 0 for none.
      kernel: size of the convolutions, whose output is as large as their input.
      dropout: rate before each linear layer; 0 for none.

    Returns:
      A graph from images (B, H, W, C) to logits (B, classes), for ``softmax_cross_entropy``.

    Raises:
      BlockValueError: no channels, or a number out of its range; images too small for the pools.

    >>> import fnn, jax
    >>> net = fnn.models.cnn(hidden=0)
    >>> x = jax.ShapeDtypeStruct((64, 28, 28, 1), "float32")
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x)
    >>> {name: p["w"].shape for name, p in params.items()}
    {'conv_1': (3, 3, 1, 32), 'conv_2': (3, 3, 32, 64), 'out': (3136, 10)}
    """
    if not channels:
        raise BlockValueError("cnn", "channels is empty, needs the channels of each convolution")
    blocks: dict[str, Block] = {}
    for i, features in enumerate(channels, start=1):
        blocks |= {
            f"conv_{i}": conv(features, kernel),
            f"relu_{i}": relu(),
            f"pool_{i}": max_pool(2),
        }
    blocks["flatten"] = flatten()
    widths = [hidden] if hidden else []
    for i, features in enumerate([*widths, classes], start=1):
        if dropout:
            blocks[f"dropout_{i}"] = dropout_block(dropout)
        last = i > len(widths)
        blocks["out" if last else "hidden"] = linear(features)
        if not last:
            blocks["relu"] = relu()
    return serial(**blocks)._replace(name="cnn", kind=Kind("cnn"))
