"""The gated linear unit: one linear layer that says how much of another passes."""

from __future__ import annotations

from fnn.arguments import Count, checked
from fnn.block import Block, Kind
from fnn.blocks.gates import multiply
from fnn.blocks.linear import Initializer, glorot, linear, zeros
from fnn.executor import graph


@checked
def gated(
    features: Count,
    nonlinearity: Block,
    *,
    use_bias: bool = False,
    w_init: Initializer = glorot,
    b_init: Initializer = zeros,
) -> Block:
    """y = f(x V) * (x W): a gated linear unit.

    With ``silu()`` it is SwiGLU, with ``gelu()`` GEGLU, with ``logistic()`` the first of them
    (Shazeer 2020, arXiv 2002.05202).

    Args:
      features: of y.
      nonlinearity: f, a block such as ``silu()``.
      use_bias: whether the two linear layers have a b.
      w_init, b_init: from ``jax.nn.initializers``.

    Returns:
      A graph from x (B..., I) to y (B..., features), with parameters ``gate`` and ``value``, each
      with ``w`` of (I, features). Residuals: those of its blocks.

    Raises:
      BlockValueError, BlockTypeError: as :func:`linear`; the nonlinearity is not a block.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.gated(1, fnn.relu())
    >>> params = {"gate": {"w": jnp.array([[2.0]])}, "value": {"w": jnp.array([[5.0]])}}
    >>> net.forward(params, jnp.array([[1.0], [-1.0]]))[0].ravel()
    Array([10., -0.], dtype=float32)
    """
    one = linear(features, use_bias=use_bias, w_init=w_init, b_init=b_init)
    nodes = [
        ("gate", one, "x"), ("open", nonlinearity, "gate"), ("value", one, "x"),
        ("product", multiply(), ("open", "value")),
    ]  # fmt: skip
    whole = graph("x", nodes, "product", name="gated")
    return whole._replace(kind=Kind("gated", (features, None, use_bias)))
