"""Transformers that read a sequence of ids and say of every place what may come next.

A layer adds what it finds to what it reads, twice ("pre-norm": Radford et al. 2019, GPT-2):

    x = x + attention(norm(x))        reads the places before
    x = x + mlp(norm(x))              each place by itself

so that the gradient reaches the first layer unchanged, through the sums.
"""

from __future__ import annotations

import math
from typing import Literal

import jax

from fnn.arguments import Count, Share, checked
from fnn.block import Block, BlockValueError, Kind
from fnn.blocks.combinators import repeat, serial
from fnn.blocks.dropout import dropout as dropout_block
from fnn.blocks.embedding import embedding, unembedding
from fnn.blocks.gated import gated
from fnn.blocks.gates import add
from fnn.blocks.gelu import gelu
from fnn.blocks.heads import attention
from fnn.blocks.linear import Initializer, linear
from fnn.blocks.nonlinearities import relu
from fnn.blocks.normalization import layer_norm
from fnn.blocks.positions import position_embedding
from fnn.blocks.rematerialized import rematerialize
from fnn.blocks.rms_norm import rms_norm
from fnn.blocks.rotary import rotary
from fnn.blocks.smooth import silu
from fnn.executor import Entry, graph


@checked
def transformer(
    vocabulary: Count,
    width: Count,
    layers: Count,
    heads: Count,
    *,
    length: Count | None = None,
    style: Literal["gpt2", "llama"] = "gpt2",
    key_heads: Count | None = None,
    hidden: Count | None = None,
    use_bias: bool | None = None,
    dropout: Share = 0.0,
    tied: bool = True,
    factored: bool = False,
    scanned: bool = False,
    keep: Literal["all", "products", "input"] = "all",
) -> Block:
    """A causal language model: ids to the logits of the next id, at every place.

    In the shape of GPT-2 (Radford et al. 2019): learned positions, layer_norm, gelu, biases. Or of
    Llama (Touvron et al. 2023, arXiv 2302.13971): rotary positions, rms_norm, SwiGLU, no biases.
    Weights start from N(0, 0.02^2), those that are added to x from 0.02 / sqrt(2 layers), as in
    GPT-2.

    Args:
      vocabulary: how many ids there are.
      width: features of a place.
      layers: how many.
      heads: of each layer's attention, a divisor of ``width``.
      length: of the longest sequence, for "gpt2", which has a row for each place.
      style: "gpt2" or "llama".
      key_heads: of keys and values, a divisor of ``heads``; as many by default.
      hidden: features inside a layer's MLP: by default 4 width, or for "llama", whose MLP has three
        matrices in place of two, 8/3 width, to a multiple of 8.
      use_bias: whether linear layers and layer_norm have a b; as the style has by default.
      dropout: rate, of the embedding and of what is added to x.
      tied: whether the head's weights are the embedding's.
      factored: whether y is the pair (x, w) for ``linear_softmax_cross_entropy``, in place of its
        product, the logits.
      scanned: whether the layers are one :func:`repeat`, which compiles in the time of one layer,
        in place of nodes that can be drawn and changed one by one.
      keep: of each layer for the way back: "all" for a layer whose blocks can be drawn, or as
        :func:`~fnn.rematerialize` has it: with "products" a layer of "gpt2" keeps 11 numbers for
        each place and feature in place of 17, with "input" one.

    Returns:
      A graph from ids (B..., T) to logits (B..., T, vocabulary), for ``softmax_cross_entropy`` of
      the ids one place on.

    Raises:
      BlockValueError: heads that do not divide; "gpt2" without a length; a longer sequence.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.models.transformer(65, 128, 4, 4, length=64, use_bias=False)
    >>> ids = jax.ShapeDtypeStruct((12, 64), "int32")
    >>> params = jax.eval_shape(net.init, jax.random.key(0), ids)
    >>> sum(p.size for p in jax.tree.leaves(params))  # nanoGPT's "0.80M", with the positions
    804096
    >>> jax.eval_shape(net.forward, params, ids)[0].shape
    (12, 64, 65)
    """
    name, is_gpt2 = "transformer", style == "gpt2"
    if is_gpt2 and length is None:
        raise BlockValueError(
            name, "length is None, needs that of the longest sequence, or 'llama'"
        )
    use_bias = is_gpt2 if use_bias is None else use_bias
    start, last = (jax.nn.initializers.normal(0.02 / math.sqrt(n)) for n in (1, 2 * layers))
    norm = layer_norm(use_bias=use_bias) if is_gpt2 else rms_norm(epsilon=1e-5)
    reads = attention(
        width, heads, causal=True, key_heads=key_heads, query_key=None if is_gpt2 else rotary(),
        use_bias=use_bias, w_init=start, out_init=last,
    )  # fmt: skip
    if is_gpt2:
        first = linear(hidden or 4 * width, use_bias=use_bias, w_init=start)
        inner = {"hidden": first, "act": gelu(approximate=True)}
    else:
        features = hidden or -(-8 * width // 24) * 8
        inner = {"hidden": gated(features, silu(), use_bias=use_bias, w_init=start)}
    mlp = serial(**inner, out=linear(width, use_bias=use_bias, w_init=last))
    layer = _layer(norm, reads, mlp, dropout)
    if keep != "all":
        layer = rematerialize(layer, keep=keep)

    nodes: list[Entry] = [("embedding", embedding(vocabulary, width, w_init=start), "ids")]
    if is_gpt2:
        assert length is not None
        nodes.append(("positions", position_embedding(length), "embedding"))
    if dropout:
        nodes.append(("dropout", dropout_block(dropout), nodes[-1][0]))
    if scanned:
        nodes.append(("layers", repeat(layer, layers), nodes[-1][0]))
    else:
        for i in range(1, layers + 1):
            nodes.append((f"layer_{i}", layer, nodes[-1][0]))
    head = unembedding(vocabulary, factored=factored, w_init=start)
    nodes.append(("norm", norm, nodes[-1][0]))
    nodes.append(("head", head, "norm", "embedding") if tied else ("head", head, "norm"))
    options = (
        vocabulary, width, layers, heads, length, style, key_heads, hidden,
        None if use_bias is is_gpt2 else use_bias, dropout, tied, factored, scanned, keep,
    )  # fmt: skip
    return graph("ids", nodes, "head", name=name)._replace(kind=Kind(name, options))


@checked
def microgpt(vocabulary: Count = 27, *, length: Count = 16) -> Block:
    """The smallest GPT there is, to be drawn whole: 1 layer, 16 wide, 4 heads, 4192 parameters.

    The network of Karpathy's microgpt (2026), which makes up names: rms_norm without a scale, ReLU,
    no biases, a head of its own.

    Args:
      vocabulary: how many ids; 26 letters and the end of a name by default.
      length: of the longest sequence.

    Returns:
      A graph from ids (B..., T) to logits (B..., T, vocabulary).

    Raises:
      BlockValueError: a sequence longer than ``length``.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.models.microgpt()
    >>> params = net.init(jax.random.key(0), jnp.zeros((1, 5), int))
    >>> sum(p.size for p in jax.tree.leaves(params))
    4192
    """
    start: Initializer = jax.nn.initializers.normal(0.08)
    width, norm = 16, rms_norm(epsilon=1e-5, use_scale=False)
    mlp = serial(
        hidden=linear(4 * width, use_bias=False, w_init=start),
        act=relu(),
        out=linear(width, use_bias=False, w_init=start),
    )
    reads = attention(width, 4, causal=True, use_bias=False, w_init=start)
    nodes: list[Entry] = [
        ("embedding", embedding(vocabulary, width, w_init=start), "ids"),
        ("positions", position_embedding(length, w_init=start), "embedding"),
        ("norm", norm, "positions"),
        ("layer", _layer(norm, reads, mlp, 0.0), "norm"),
        ("head", unembedding(vocabulary, w_init=start), "layer"),
    ]
    whole = graph("ids", nodes, "head", name="microgpt")
    return whole._replace(kind=Kind("microgpt", (vocabulary, length)))


def _layer(norm: Block, reads: Block, mlp: Block, dropout: float) -> Block:
    nodes: list[Entry] = [("norm_1", norm, "x"), ("attention", reads, "norm_1")]
    if dropout:
        nodes.append(("dropout_1", dropout_block(dropout), "attention"))
    nodes += [
        ("sum", add(), ("x", nodes[-1][0])), ("norm_2", norm, "sum"), ("mlp", mlp, "norm_2"),
    ]  # fmt: skip
    if dropout:
        nodes.append(("dropout_2", dropout_block(dropout), "mlp"))
    nodes.append(("y", add(), ("sum", nodes[-1][0])))
    return graph("x", nodes, "y", name="layer")
