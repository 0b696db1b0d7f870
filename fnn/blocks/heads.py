"""Attention with its projections: a graph of a few blocks, each product of which can be seen.

Symbols: B... batch axes; T queries and S keys; C features; H heads of the queries and G of the keys
and values; D = C / H features of a head.

    query = x Wq, (T, C)       in heads: (T, H, D)
    key   = x Wk, (S, G D)     in heads: (S, G, D)
    value = x Wv, (S, G D)     in heads: (S, G, D)
    y = (what each head reads, side by side) Wo

The cotangents of the three projections of x add, as everywhere where a value forks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.arguments import Count, checked
from fnn.arrays import Shape
from fnn.block import Block, BlockValueError, Key, Kind, Params, Value
from fnn.blocks.attention import dot_product_attention
from fnn.blocks.linear import Initializer, glorot, linear, zeros
from fnn.executor import Entry, graph
from fnn.refusals import as_cotangent, elementary, require_floating


@checked
def attention(
    features: Count,
    heads: Count,
    *,
    causal: bool = False,
    key_heads: Count | None = None,
    query_key: Block | None = None,
    cross: bool = False,
    masked: bool = False,
    use_bias: bool = True,
    w_init: Initializer = glorot,
    b_init: Initializer = zeros,
    out_init: Initializer | None = None,
) -> Block:
    """Multi-head attention with its projections: each place reads from all, by how well they match.

    y = concat_h(softmax(q_h k_h^T / sqrt(D)) v_h) Wo, where q = x Wq, k = x Wk, v = x Wv, in heads
    of D = features / heads (Vaswani et al. 2017, arXiv 1706.03762). It is a graph of
    :func:`linear`, :func:`split_heads`, :func:`dot_product_attention` and :func:`merge_heads`.

    Args:
      features: of y, a multiple of ``heads``; for a residual connection those of x.
      heads: H, of the queries.
      causal: whether place t reads places 0 to t only.
      key_heads: G, of keys and values, a divisor of ``heads``; as many by default. Fewer are read
        by several heads of queries each (grouped queries; Ainslie et al. 2023, arXiv 2305.13245).
      query_key: a block that queries and keys go through before they are compared, each with
        parameters of its own: :func:`rotary`, or ``serial(rms_norm(), rotary())``.
      cross: whether keys and values come from another input, the context.
      masked: whether the last input is a mask.
      use_bias: whether the projections have a b; that of the keys only with ``query_key``, without
        which its gradient would always be 0.
      w_init, b_init: of the projections, from ``jax.nn.initializers``.
      out_init: of Wo; ``w_init`` by default.

    Returns:
      A graph from x (B..., T, C) to y (B..., T, features); of ``(x, context)`` with the context
      (B..., S, C2) where ``cross``; with a mask as the last input where ``masked``: booleans that
      broadcast to (B..., H, T, S), True where a place may read, such as ``causal_mask(T)``, or
      ``mask[:, None, None, :]`` of padding (B, S). Parameters ``query``, ``key``, ``value`` and
      ``out``, each with ``w`` and ``b``. Residuals: those of its blocks; no array of T x S.

    Raises:
      BlockValueError: heads that do not divide; inputs of other shapes than these.
      BlockTypeError: x is not floating, a mask is not of booleans.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.attention(8, 4, causal=True, key_heads=2)
    >>> params = net.init(jax.random.key(0), jnp.ones((2, 5, 8)))
    >>> {name: p["w"].shape for name, p in params.items()}
    {'query': (8, 8), 'key': (8, 4), 'value': (8, 4), 'out': (8, 8)}
    >>> net.forward(params, jnp.ones((2, 5, 8)))[0].shape
    (2, 5, 8)
    """
    name, groups = "attention", heads if key_heads is None else key_heads
    if features % heads or heads % groups:
        got, of = (features, heads) if features % heads else (heads, groups)
        whole, part = ("features", "heads") if features % heads else ("heads", "key_heads")
        raise BlockValueError(
            name, f"{whole} is {got} and {part} is {of}, needs {whole} to be a multiple of {part}, "
            f"such as {-(-got // of) * of}",
        )  # fmt: skip

    def project(part: str, n: int) -> Block:
        # A b of the keys would add the same to all scores of a query, and softmax would not see it.
        seen = use_bias and (part != "key" or query_key is not None)
        return linear(n * each, use_bias=seen, w_init=w_init, b_init=b_init)

    source, each = "context" if cross else "x", features // heads
    nodes: list[Entry] = []
    for part, read, n in (
        ("query", "x", heads),
        ("key", source, groups),
        ("value", source, groups),
    ):
        nodes += [(part, project(part, n), read), (f"{part}_heads", split_heads(n), part)]
    query, key = "query_heads", "key_heads"
    if query_key is not None:
        nodes += [("query_turned", query_key, query), ("key_turned", query_key, key)]
        query, key = "query_turned", "key_turned"
    mask = ("mask",) * masked
    out = linear(features, use_bias=use_bias, w_init=out_init or w_init, b_init=b_init)
    nodes += [
        ("read", dot_product_attention(causal=causal), (query, key, "value_heads", *mask)),
        ("merged", merge_heads(), "read"),
        ("out", out, "merged"),
    ]
    inputs = ("x", *("context",) * cross, *mask)
    # query_key, a block, is among the nodes.
    options = (features, heads, causal, key_heads, None, cross, masked, use_bias)
    return graph(inputs, nodes, "out", name=name)._replace(kind=Kind(name, options))


@checked
def causal_mask(length: Count, *, window: Count | None = None) -> jax.Array:
    """Booleans (T, T): True where place t may read place s, which is s <= t.

    Args:
      length: T.
      window: how many places t reads at most, itself included; all by default.

    Returns:
      A mask for :func:`attention` and :func:`dot_product_attention`, to combine with others by &.

    >>> import fnn
    >>> fnn.causal_mask(4, window=2).astype(int)
    Array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 1, 1]], dtype=int32)
    """
    t, s = (jnp.arange(length).reshape(shape) for shape in ((-1, 1), (1, -1)))
    return (s <= t) if window is None else (s <= t) & (s > t - window)


@checked
def split_heads(heads: Count) -> Block:
    """The last axis in equal parts, on an axis of its own: (B..., C) to (B..., heads, C / heads).

    Args:
      heads: how many parts.

    Returns:
      A block without parameters. Residuals: the shape, no bytes.

    Raises:
      BlockValueError: the last axis is no multiple of ``heads``.

    >>> import fnn, jax.numpy as jnp
    >>> fnn.split_heads(2).forward({}, jnp.arange(4.0))[0]
    Array([[0., 1.],
           [2., 3.]], dtype=float32)
    """
    name = "split_heads"

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Shape]:
        require_floating(name, "x", x)
        if not x.ndim or x.shape[-1] % heads:
            raise BlockValueError(
                name, f"x has shape {x.shape}, needs a last axis that is a multiple of {heads}"
            )
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads), Shape.of(x)

    def backward(params: Params, like: Shape, dy: jax.Array) -> tuple[Params, Value]:
        # forward: y has the entries of x in the same order, so dx has those of dy.
        *batch, features = like.shape
        return {}, as_cotangent(name, dy, (*batch, heads, features // heads)).reshape(like.shape)

    return elementary(forward, backward, name, Kind(name, (heads,)))


@checked
def merge_heads() -> Block:
    """The last two axes as one: (B..., heads, D) to (B..., heads D). It undoes :func:`split_heads`.

    Returns:
      A block without parameters. Residuals: the shape, no bytes.

    Raises:
      BlockValueError: x has less than two axes.

    >>> import fnn, jax.numpy as jnp
    >>> fnn.merge_heads().forward({}, jnp.array([[0.0, 1.0], [2.0, 3.0]]))[0]
    Array([0., 1., 2., 3.], dtype=float32)
    """
    name = "merge_heads"

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Shape]:
        require_floating(name, "x", x)
        if x.ndim < 2:
            raise BlockValueError(name, f"x has shape {x.shape}, needs (B..., heads, features)")
        return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]), Shape.of(x)

    def backward(params: Params, like: Shape, dy: jax.Array) -> tuple[Params, Value]:
        # forward: y has the entries of x in the same order, so dx has those of dy.
        *batch, heads, each = like.shape
        return {}, as_cotangent(name, dy, (*batch, heads * each)).reshape(like.shape)

    return elementary(forward, backward, name, Kind(name))
