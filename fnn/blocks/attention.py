"""Attention: each query reads a mean of the values, weighted by how well their keys match it.

Symbols: B... batch axes; T queries and S keys; H heads of the queries and G of the keys and values,
each of which serves R = H / G heads; D features of queries and keys, E of the values.

For one head, with the scale c,

    s = c q k^T    (T, S), -inf where a query may not look
    p = softmax(s) (T, S), along the keys
    y = p v        (T, E)

By the rule of a matrix product dv = p^T dy and dp = dy v^T; by that of softmax ds = p (dp - m),
where m is the mean of a row of dp weighted by p: sum_j p_ij (dy_i . v_j) = dy_i . y_i, one number
a query. Then dq = c ds k and dk = c ds^T q.

p is neither kept nor ever whole, except for short inputs on GPUs (see KEPT). Forward and backward
take the queries in chunks and compute a chunk's rows of p: forward from s, backward again from s,
the row's largest s and its sum of exponentials, which were kept. (Dao et al. 2022, arXiv
2205.14135, also cut the keys. Here a row is whole, so no sum is rescaled.) In causal attention a
chunk ends at the last key that it may look at.
That takes the time of the products and the memory of a chunk.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from fnn.arguments import Positive, checked
from fnn.arrays import compute_dtype
from fnn.block import Block, BlockTypeError, BlockValueError, Key, Kind, Params, Residuals, Value
from fnn.blocks.softmax import softmax
from fnn.compiling import by_platform
from fnn.refusals import as_cotangent, described, elementary, require_array, require_floating

LENGTHS = 8  # of the keys that a chunk sees in causal attention, at most: each is compiled
FEWEST, MOST = 128, 256  # queries in a chunk: fewer make slow products, more waste masked entries
ON_GPUS = 512, 512  # there a chunk reads and writes the sums for the keys: half the bytes of 128
CACHED = 2**20  # entries of p at a time on CPU: they stay in the cache
AT_ONCE = 2**26  # and elsewhere, where all heads go together
# On GPUs, of T and S up to here p is whole, and backward computes it just as forward did, so that
# XLA keeps p, in the inputs' dtype, in place of s: that moves less than computing p again. At
# T = 1024, where XLA does not see that chunks are the same, computing again moves less than
# autodiff does (``python -m experiments.benchmarks accelerators --only transformer``, attention).
KEPT = 512


@checked
def dot_product_attention(*, causal: bool = False, scale: Positive | None = None) -> Block:
    """y = softmax(scale q k^T) v, for each head; softmax along the keys.

    Vaswani et al. 2017 (arXiv 1706.03762). Exact, with sums and exponentials in float32 at least.
    Neither forward nor backward has an array of T x S, except short ones on GPUs; the derivation
    is in :mod:`fnn.blocks.attention`.

    Args:
      causal: whether query t looks at keys 0 to t only.
      scale: of the products; 1/sqrt(D) by default.

    Returns:
      A block of ``(q, k, v)`` or ``(q, k, v, mask)``: q (B..., T, H, D), k (B..., S, G, D), v
      (B..., S, G, E) to y (B..., T, H, E). H is a multiple of G: head h reads the keys and values
      of head h // (H / G) (grouped queries; Ainslie et al. 2023, arXiv 2305.13245). ``mask``:
      booleans that broadcast to (B..., H, T, S), True where a query may look. A query that may look
      at nothing gives zeros, and no gradient. Residuals: the inputs and y, and two numbers for each
      query and head.

    Raises:
      BlockValueError: shapes that do not fit, or heads that do not divide.
      BlockTypeError: inputs that are not floating, or a mask that is not of booleans.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.dot_product_attention(causal=True)
    >>> q = k = jnp.zeros((3, 1, 2))  # every key matches as well as any other
    >>> y, residuals = net.forward({}, (q, k, jnp.array([3.0, 5.0, 1.0]).reshape(3, 1, 1)))
    >>> y.ravel()
    Array([3., 4., 3.], dtype=float32)
    >>> net.backward({}, residuals, jnp.ones((3, 1, 1)))[1][2].ravel().round(4)  # 1 + 1/2 + 1/3
    Array([1.8333, 0.8333, 0.3333], dtype=float32)
    """
    name, rows = "dot_product_attention", softmax()

    def scores(q: jax.Array, k: jax.Array, mask: jax.Array | None, first: Any) -> jax.Array:
        """s of some queries; ``first``: the number of the first."""
        s = _product("bgrtd,bgsd->bgrts", q, k, k.dtype) * factor(q)
        if causal:
            t, j = (lax.broadcasted_iota(jnp.int32, s.shape[-2:], axis) for axis in (0, 1))
            s = jnp.where(first + t >= j, s, -jnp.inf)
        return s if mask is None else jnp.where(mask, s, -jnp.inf)

    def factor(q: jax.Array) -> float:
        return 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale

    def read(queries: Arrays, keys: Arrays, mask: Any, first: Any) -> tuple[Arrays, Arrays]:
        (q,), (k, v) = queries, keys
        s = scores(q, k, mask, first)
        # y is the same for every number that is subtracted: it is a constant to a derivative.
        top = lax.stop_gradient(jnp.max(s, -1, keepdims=True, initial=-jnp.inf))
        top = jnp.where(top == -jnp.inf, 0, top)
        e = jnp.exp(s - top)
        total = jnp.sum(e, -1, keepdims=True)
        y = _product("bgrts,bgse->bgrte", e, v, v.dtype) / _or_one(total)
        return (y.astype(q.dtype), top, total), ()

    def whole(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any) -> jax.Array:
        """All of p."""
        return rows.forward({}, scores(q, k, mask, 0))[0].astype(v.dtype)

    def read_whole(queries: Arrays, keys: Arrays, mask: Any, first: Any) -> tuple[Arrays, Arrays]:
        (q,), (k, v) = queries, keys
        (_, top, total), sums = read(queries, keys, mask, first)  # residuals like all platforms'
        y = _product("bgrts,bgse->bgrte", whole(q, k, v, mask), v, v.dtype)
        return (y.astype(q.dtype), top, total), sums

    def whole_back(queries: Arrays, keys: Arrays, mask: Any, first: Any) -> tuple[Arrays, Arrays]:
        # forward: y = p v with p = softmax(s) and s = c q k^T, so dv = p^T dy, dp = dy v^T, ds by
        # the rule of softmax, dq = c ds k and dk = c ds^T q.
        (q, _, _, _, dy), (k, v) = queries, keys
        p = whole(q, k, v, mask)
        ds = rows.backward({}, p, _product("bgrte,bgse->bgrts", dy, v, v.dtype))[1]
        dq = _product("bgrts,bgsd->bgrtd", ds, k, k.dtype) * factor(q)
        dk = _product("bgrts,bgrtd->bgsd", ds, q, q.dtype) * factor(q)
        dv = _product("bgrts,bgrte->bgse", p, dy, v.dtype)
        return (dq.astype(q.dtype),), tuple(jnp.swapaxes(a, -1, -2) for a in (dk, dv))

    def read_back(queries: Arrays, keys: Arrays, mask: Any, first: Any) -> tuple[Arrays, Arrays]:
        # forward: y = p v with p = e / total, so dv = p^T dy and ds = p (dy v^T - dy . y), and from
        # s = c q k^T, dq = c ds k and dk = c ds^T q. The division is done on dy, once a query.
        (q, y, top, total, dy), (k, v) = queries, keys
        e, d = jnp.exp(scores(q, k, mask, first) - top), dy.astype(total.dtype) / _or_one(total)
        mean = jnp.sum(d * y.astype(d.dtype), -1, keepdims=True)
        ds = e * (_product("bgrte,bgse->bgrts", d, v, v.dtype) - mean)
        # The ds of a row sum to 0. Where one key has most of the weight, its own is less than the
        # rounding of the difference above, and is computed from the others'.
        most = e > total / 2
        ds = jnp.where(most, -jnp.sum(jnp.where(most, 0, ds), -1, keepdims=True), ds)
        dq = _product("bgrts,bgsd->bgrtd", ds, k, k.dtype) * factor(q)
        dk = _product("bgrtd,bgrts->bgds", q, ds, q.dtype) * factor(q)
        return (dq.astype(q.dtype),), (dk, _product("bgrte,bgrts->bges", d, e, v.dtype))

    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        q, k, v, mask = _inputs(name, x)
        (y, top, total), () = _for_all(read, read_whole, causal, (q,), (k, v), mask)
        return y, (q, k, v, mask, y, top, total)

    def backward(
        params: Params, residuals: Residuals, dy: jax.Array
    ) -> tuple[Params, tuple[jax.Array | None, ...]]:
        q, k, v, mask, y, top, total = residuals
        queries = q, y, top, total, as_cotangent(name, dy, y.shape)
        (dq,), (dk, dv) = _for_all(read_back, whole_back, causal, queries, (k, v), mask)
        dx = dq, dk.astype(k.dtype), dv.astype(v.dtype)
        return {}, dx if mask is None else (*dx, None)

    return elementary(forward, backward, name, Kind(name, (causal, scale)))


def _inputs(name: str, x: Value) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """q, k, v and the mask, refused unless their shapes belong together."""
    if not isinstance(x, (tuple, list)) or len(x) not in (3, 4):
        raise BlockTypeError(name, f"x is {described(x)}, needs (q, k, v) or (q, k, v, mask)")
    for what, a in zip("qkv", x, strict=False):
        require_floating(name, what, a)
        if a.ndim < 3:
            raise BlockValueError(
                name, f"{what} has shape {a.shape}, needs (B..., length, heads, features)"
            )
    q, k, v = map(jnp.asarray, x[:3])
    shapes = f"q has shape {q.shape}, k {k.shape} and v {v.shape}"
    if k.shape[:-1] != v.shape[:-1] or q.shape[:-3] != k.shape[:-3]:
        raise BlockValueError(
            name, f"{shapes}: k and v need the same batch, length and heads, q the same batch"
        )
    if q.shape[-1] != k.shape[-1]:
        raise BlockValueError(name, f"{shapes}: q and k need the same number of features")
    if not k.shape[-2] or q.shape[-2] % k.shape[-2]:
        raise BlockValueError(
            name, f"{shapes}: the heads of q need to be a multiple of those of k and v"
        )
    return q, k, v, None if len(x) == 3 else _mask(name, x[3], q, k)


def _mask(name: str, mask: Any, q: jax.Array, k: jax.Array) -> jax.Array:
    require_array(name, "mask", mask)
    if mask.dtype != bool:
        raise BlockTypeError(
            name, f"mask has dtype {mask.dtype}, needs booleans, True where a query may look: "
            "mask.astype(bool)",
        )  # fmt: skip
    needed = (*q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3])
    fits = len(mask.shape) <= len(needed) and all(
        size in (1, need) for size, need in zip(mask.shape[::-1], needed[::-1], strict=False)
    )
    if not fits:
        raise BlockValueError(
            name, f"mask has shape {mask.shape}, needs one that broadcasts to (B..., heads, "
            f"queries, keys), {needed}: padding (B, S) is mask[:, None, None, :]",
        )  # fmt: skip
    return jnp.asarray(mask)


# ---- all heads, in parts ---------------------------------------------------------------------
# Inside, arrays of queries are (B, G, R, T, ...), those of keys (B, G, S, ...), a mask
# (B, G, R, T, S) with 1 where it is the same for all. A rule takes some of the queries:
# rule(queries, keys, mask, first) -> (arrays of these queries, sums over them for the keys), the
# sums as (B, G, ..., S): the product q^T ds is two to four times as fast as ds^T q on CPU.

Arrays = tuple[jax.Array, ...]
Rule = Callable[[Arrays, Arrays, Any, Any], tuple[Arrays, Arrays]]


def _for_all(
    rule: Rule, of_whole: Rule, causal: bool, queries: Arrays, keys: Arrays, mask: jax.Array | None
) -> tuple[Arrays, Arrays]:
    """The rule for all heads and queries, in chunks whose p is small.

    ``queries``: (B..., T, H, ...) each, ``keys``: (B..., S, G, ...).

    On CPU one head after another is fastest, as their p stays in the cache (4 x 1024 queries, 8
    heads: 1.6 times as fast as all at once); elsewhere all together, as the machine is wide.
    ``of_whole``: the rule where p is kept, on GPUs.
    """
    batch, heads, groups = queries[0].shape[:-3], queries[0].shape[-2], keys[0].shape[-2]
    rank, count, grouped = len(batch), math.prod(batch), heads // groups

    def of_one_batch(a: jax.Array) -> jax.Array:
        return a.reshape(count, *a.shape[rank:])

    def outward(a: jax.Array) -> jax.Array:
        a = jnp.moveaxis(a, -2, 1)
        return a.reshape(*batch, a.shape[1], math.prod(a.shape[2:-1]), a.shape[-1])

    if mask is not None:
        mask = mask.reshape((1,) * (rank + 3 - mask.ndim) + mask.shape)
        each = batch if any(size != 1 for size in mask.shape[:rank]) else (1,) * rank
        of_heads = (1, 1) if mask.shape[rank] == 1 else (groups, grouped)
        mask = jnp.broadcast_to(mask, (*each, *mask.shape[rank:]))
        mask = mask.reshape(math.prod(each), *of_heads, *mask.shape[-2:])
    run = functools.partial(_heads, rule, causal)
    on_gpus = functools.partial(run, entries=AT_ONCE, apart=False, between=ON_GPUS)
    lengths = queries[0].shape[-3], keys[0].shape[-3]
    if all(isinstance(n, int) and n <= KEPT for n in lengths):
        on_gpus = functools.partial(
            _heads, of_whole, causal, entries=sys.maxsize, apart=False, between=ON_GPUS
        )
    of_queries, of_keys = by_platform(
        tuple(map(of_one_batch, queries)), tuple(map(of_one_batch, keys)), mask,
        cpu=functools.partial(run, entries=CACHED, apart=True),
        cuda=on_gpus,
        default=functools.partial(run, entries=AT_ONCE, apart=False),
    )  # fmt: skip
    of_keys = tuple(jnp.swapaxes(a, -1, -2) for a in of_keys)
    return tuple(map(outward, of_queries)), tuple(map(outward, of_keys))


def _heads(
    rule: Rule, causal: bool, queries: Arrays, keys: Arrays, mask: Any, *, entries: int,
    apart: bool, between: tuple[int, int] = (FEWEST, MOST),
) -> tuple[Arrays, Arrays]:  # fmt: skip
    """All heads at once, or where their p would be large, those of one key after another.

    ``queries``: (B, T, H, ...) each, ``keys``: (B, S, G, ...). Only the heads that run are turned
    into the order below, so that no copy of all is needed.
    """
    batch, t, heads = queries[0].shape[:3]
    s, groups = keys[0].shape[1:3]
    grouped = heads // groups

    def run(queries: Arrays, keys: Arrays, mask: Any) -> tuple[Arrays, Arrays]:
        split = (
            a.reshape(*a.shape[:2], a.shape[2] // grouped, grouped, *a.shape[3:]) for a in queries
        )
        inward = tuple(tuple(jnp.moveaxis(a, 1, -2) for a in some) for some in (split, keys))
        return _queries(rule, causal, inward[0], inward[1], mask, entries=entries, between=between)

    is_open = not all(isinstance(n, int) for n in (batch, t, s))  # to jax.export
    if not apart or is_open or batch * heads * min(t, between[0]) * s <= entries:
        return run(queries, keys, mask)

    def one(place: jax.Array) -> tuple[Arrays, Arrays]:
        b, g = place // groups, place % groups

        def own(a: jax.Array, axis: int, size: int) -> jax.Array:
            a = lax.dynamic_slice_in_dim(a, b, 1, 0) if a.shape[0] > 1 else a
            return lax.dynamic_slice_in_dim(a, g * size, size, axis) if a.shape[axis] > 1 else a

        found = run(
            tuple(own(a, 2, grouped) for a in queries),
            tuple(own(a, 2, 1) for a in keys),
            None if mask is None else own(mask, 1, 1),
        )
        return jax.tree.map(lambda a: a[0, 0], found)

    found = lax.map(one, jnp.arange(batch * groups, dtype=jnp.int32))
    return jax.tree.map(lambda a: a.reshape(batch, groups, *a.shape[1:]), found)


def _queries(
    rule: Rule, causal: bool, queries: Arrays, keys: Arrays, mask: Any, *, entries: int,
    between: tuple[int, int],
) -> tuple[Arrays, Arrays]:  # fmt: skip
    """All queries, some at a time, the first of them perhaps fewer.

    A loop, and not one after another in the program: XLA would run them side by side, and they
    would all need their memory. In causal attention each sees the keys up to about its last query,
    of one of LENGTHS lengths.
    """
    t, s = queries[0].shape[3], keys[0].shape[2]
    if not isinstance(t * s, int):  # open to jax.export
        return rule(queries, keys, mask, 0)
    beside = math.prod(queries[0].shape[:3])
    most = entries // max(beside * s, 1) if isinstance(beside, int) else between[1]
    if causal:
        most = min(most, max(between[0], -(-t // LENGTHS)))
    count = max(-(-t // max(min(between[1], most), 16)), 1)
    size = -(-t // count)
    first = t - size * (count - 1)
    lengths = min(LENGTHS, count - 1) if causal else 1

    def some(size: int, seen: int, sums: Arrays | None, start: Any) -> tuple[Arrays, Arrays]:
        def cut(a: jax.Array) -> jax.Array:
            return a if a.shape[3] == 1 != size else lax.dynamic_slice_in_dim(a, start, size, 3)

        looks = None if mask is None else cut(mask)[..., :seen]
        these = tuple(a[:, :, :seen] for a in keys)
        found, more = rule(tuple(map(cut, queries)), these, looks, start)
        if sums is None:
            rest = [(0, 0), (0, 0), (0, 0), (0, s - seen)]
            return tuple(jnp.pad(a, rest) for a in more), found
        return tuple(a.at[..., :seen].add(b) for a, b in zip(sums, more, strict=True)), found

    sums, found = some(first, min(first, s) if causal else s, None, 0)
    if count == 1:
        return found, sums
    branches = []
    for i in range(lengths):
        last = first + size * -(-(count - 1) * (i + 1) // lengths)
        branches.append(functools.partial(some, size, min(last, s) if causal else s))

    def body(sums: Arrays, i: jax.Array) -> tuple[Arrays, Arrays]:
        return lax.switch(i * lengths // (count - 1), branches, sums, first + i * size)

    sums, rest = lax.scan(body, sums, jnp.arange(count - 1, dtype=jnp.int32))
    joined = (
        jnp.moveaxis(a, 0, 3).reshape(*a.shape[1:4], size * (count - 1), a.shape[-1]) for a in rest
    )
    return tuple(jnp.concatenate([a, b], 3) for a, b in zip(found, joined, strict=True)), sums


def _product(spec: str, a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    """einsum with sums in float32 at least, of operands of this dtype, and on CPU of wider ones,
    which XLA has no batched product of 16 bits for (as in :func:`fnn.blocks.linear.contract`)."""
    wide = max((a.dtype, b.dtype, compute_dtype(dtype)), key=lambda d: jnp.finfo(d).bits)

    def product(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
        return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=wide)

    in_wide, in_own = (functools.partial(product, dtype=d) for d in (wide, dtype))
    if jnp.finfo(dtype).bits >= 32:
        return in_wide(a, b)
    return by_platform(a, b, cpu=in_wide, default=in_own)


def _or_one(total: jax.Array) -> jax.Array:
    """A sum of exponentials, or 1 where a query may look at nothing."""
    return jnp.where(total == 0, 1, total)
