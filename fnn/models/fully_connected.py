"""From one neuron to deep networks of linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from fnn.arguments import Count, Share, checked
from fnn.block import Block, BlockTypeError, BlockValueError, Kind
from fnn.blocks.combinators import serial
from fnn.blocks.dropout import dropout as dropout_block
from fnn.blocks.linear import initializer_for, linear, neuron, node_name
from fnn.blocks.nonlinearities import identity, relu


@checked
def logistic_regression(classes: int = 2) -> Block:
    """Logistic regression: one neuron for two classes, a linear layer for more.

    Args:
      classes: 2 or more.

    Returns:
      A block from x of (B, I) to the logit z = w^T x + b of (B,), for ``binary_cross_entropy``;
      the probability is logistic(z). With more than two classes, to logits (B, classes) for
      ``softmax_cross_entropy``.

    Raises:
      BlockValueError: fewer than two classes.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.models.logistic_regression()
    >>> params = net.init(jax.random.key(0), jnp.ones((8, 30)))
    >>> net.forward(params, jnp.ones((8, 30)))[0].shape
    (8,)
    """
    if classes < 2:
        raise BlockValueError("logistic_regression", f"classes is {classes}, needs 2 or more")
    net = neuron(identity()) if classes == 2 else linear(classes)
    return net._replace(name="logistic_regression")


@checked
def mlp(
    sizes: Sequence[Count],
    nonlinearity: Block | None = None,
    *,
    use_bias: bool = True,
    dropout: Share = 0.0,
) -> Block:
    """A multi-layer perceptron: linear layers with a nonlinearity between them.

    Args:
      sizes: features of each layer, the last being the outputs: ``(128, 64, 10)``. ``init`` reads
        the input size from the data.
      nonlinearity: a block such as ``relu()`` (the default), after every layer but the last. It
        decides how weights start: He for ReLU and its kin, Glorot for sigmoid and tanh.
      use_bias: whether the layers have a b.
      dropout: rate of dropout after each hidden layer; 0 for none.

    Returns:
      A graph from x of (B..., I) to logits of (B..., sizes[-1]) (or, for a regression, values):
      pair them with ``softmax_cross_entropy``, ``binary_cross_entropy`` or ``squared_error``.

    Raises:
      BlockTypeError: ``sizes`` is empty or a number; the nonlinearity is not a block.
      BlockValueError: a size or rate out of its range.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.models.mlp((128, 64, 10), fnn.relu())
    >>> params = net.init(jax.random.key(0), jnp.ones((1, 784)))
    >>> {name: p["w"].shape for name, p in params.items()}
    {'hidden_1': (784, 128), 'hidden_2': (128, 64), 'out': (64, 10)}
    """
    if not sizes:
        raise BlockTypeError("mlp", f"sizes is {sizes!r}, needs features per layer: (128, 10)")
    nonlinearity = relu() if nonlinearity is None else nonlinearity
    label = node_name(nonlinearity, taken=("hidden", "dropout"))
    *hidden, out = sizes
    blocks: dict[str, Block] = {}
    for i, features in enumerate(hidden, start=1):
        w_init = initializer_for(nonlinearity)
        blocks[f"hidden_{i}"] = linear(features, use_bias=use_bias, w_init=w_init)
        blocks[f"{label}_{i}"] = nonlinearity
        if dropout:
            blocks[f"dropout_{i}"] = dropout_block(dropout)
    blocks["out"] = linear(out, use_bias=use_bias)
    kind = Kind("mlp", (tuple(sizes), None, use_bias, dropout))
    return serial(**blocks)._replace(name="mlp", kind=kind)
