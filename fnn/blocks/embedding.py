"""Embedding: one learned row of numbers for each id of a vocabulary, and the way back to ids.

Symbols: V ids in the vocabulary, F features, T ids given (any shape, flattened).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fnn.arguments import Count, checked
from fnn.arrays import Shape, Spec, compute_dtype
from fnn.block import Block, BlockTypeError, BlockValueError, Key, Kind, Params, Rules, Value
from fnn.blocks.linear import Initializer, contract, initial
from fnn.compiling import by_platform
from fnn.refusals import (
    as_array,
    as_cotangent,
    elementary,
    require_floating,
    require_shapes,
    shape_hint,
)

normal = jax.nn.initializers.normal(1.0)
small = jax.nn.initializers.normal(0.02)  # as in GPT-2

RUN = 32  # ids that are compared with each other at a time
MAX_ONE_HOT_IDS = 4096  # of the vocabulary, for which a product with one-hot rows is fast


@checked
def embedding(vocabulary: Count, features: Count, *, w_init: Initializer = normal) -> Block:
    """y = the rows of w at the ids: integers of any shape (B...) to (B..., F), for w of (V, F).

    An id that is negative or not less than V has no row: its y is NaN, and it adds nothing to any
    gradient. (It is not clamped, unlike in plain JAX indexing; ``fit`` refuses it where ids are the
    network's input.) Ids that JAX would wrap to 32 bits
    are refused (but JAX wraps NumPy's int64 before it calls a function that you jit). y has the
    dtype of w.

    The gradient of a row of w is the sum of dy over the places of its id, in float32 at least; ids
    have none (None). On accelerators, where this is a matrix product for small vocabularies, an
    infinite dy makes all rows NaN.

    Args:
      vocabulary: V, at least 1.
      features: F, at least 1.
      w_init: from ``jax.nn.initializers``; of variance 1 by default, as in PyTorch.

    Returns:
      A block with parameter ``w``. Residuals: the ids.

    Raises:
      BlockTypeError: ids are not integers.
      BlockValueError: w has another shape.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.embedding(3, 2)
    >>> params = {"w": jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])}
    >>> y, residuals = net.forward(params, jnp.array([2, 0, 2, -1]))
    >>> y
    Array([[ 4.,  5.],
           [ 0.,  1.],
           [ 4.,  5.],
           [nan, nan]], dtype=float32)
    >>> net.backward(params, residuals, jnp.ones((4, 2)))[0]["w"]
    Array([[1., 1.],
           [0., 0.],
           [2., 2.]], dtype=float32)
    """
    name = "embedding"
    shape = (vocabulary, features)

    def init(key: jax.Array, ids: Spec) -> Params:
        check(ids)
        return {"w": initial(name, "w_init", w_init, key, shape, jnp.float32)}

    def forward(params: Params, ids: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        check(ids)
        ids = as_array(name, "ids", ids)
        require_shapes(name, params, {"w": shape})
        w = jnp.asarray(params["w"])
        return w.at[rows_of(ids, vocabulary)].get(mode="fill", fill_value=jnp.nan), ids

    def backward(params: Params, ids: jax.Array, dy: jax.Array) -> tuple[Params, None]:
        # forward: y[t] = w[ids[t]], so dw[v] = the sum of dy[t] over the t with ids[t] = v.
        require_shapes(name, params, {"w": shape})
        dy = as_cotangent(name, dy, (*ids.shape, features))
        rows = rows_of(ids, vocabulary).reshape(-1)
        wide = dy.reshape(-1, features).astype(compute_dtype(dy.dtype))
        return {"w": sums_by_id(rows, wide, vocabulary).astype(params["w"].dtype)}, None

    def check(ids: Spec) -> None:
        dtype = getattr(ids, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
            got = f"have dtype {dtype}" if dtype is not None else f"are a {type(ids).__name__}"
            fix = shape_hint(ids, "int32") or "ids.astype(jax.numpy.int32)"
            raise BlockTypeError(name, f"ids {got}, need an integer dtype: {fix}")

    def validate(x: Value) -> None:
        ids = np.asarray(x)
        low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
        if low < 0 or high >= vocabulary:
            raise BlockValueError(
                name,
                f"ids go from {low} to {high}, and the vocabulary is {vocabulary}: ids from 0 to "
                f"{vocabulary - 1} have a row",
            )

    rules = Rules(validate=validate)
    return elementary(forward, backward, name, Kind(name, shape), rules, init)


def rows_of(ids: jax.Array, vocabulary: int) -> jax.Array:
    """The ids as int32, and V where there is no such row; -1 does not mean the last one."""
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids  # int8 cannot hold V
    return jnp.where((ids >= 0) & (ids < vocabulary), ids, vocabulary).astype(jnp.int32)


@checked
def unembedding(vocabulary: Count, *, factored: bool = False, w_init: Initializer = small) -> Block:
    """y = x w^T: how well x matches each row of an embedding; the head of a language model.

    Its w (V, F) is laid out as that of :func:`embedding`, so both can be the same: in a graph,
    ``("head", unembedding(V), "x", "embedding")`` uses the parameters of the node "embedding", and
    the gradients of both add (Press and Wolf 2017, arXiv 1608.05859).

    Args:
      vocabulary: V, at least 1.
      factored: y is the pair (x, w), not yet multiplied, for :func:`linear_softmax_cross_entropy`,
        which never has all of x w^T. At inference it is multiplied.
      w_init: from ``jax.nn.initializers``; of standard deviation 0.02 by default.

    Returns:
      A block from x (B..., F) to logits (B..., V), with parameter ``w``. Residuals: x; none where
      ``factored``.

    Raises:
      BlockValueError: x has no features, or w has another shape.
      BlockTypeError: x is not floating.

    >>> import fnn, jax.numpy as jnp
    >>> net, params = fnn.unembedding(2), {"w": jnp.array([[1.0, 0.0], [1.0, 2.0]])}
    >>> y, residuals = net.forward(params, jnp.array([3.0, 4.0]))
    >>> y
    Array([ 3., 11.], dtype=float32)
    >>> net.backward(params, residuals, jnp.array([0.0, 1.0]))[1]
    Array([1., 2.], dtype=float32)
    """
    name = "unembedding"

    def shapes(x: Spec) -> dict[str, tuple[int, ...]]:
        require_floating(name, "x", x)
        if len(x.shape) == 0 or x.shape[-1] == 0:
            raise BlockValueError(
                name, f"x has shape {x.shape}, needs a last axis of at least one feature"
            )
        return {"w": (vocabulary, x.shape[-1])}

    def init(key: jax.Array, x: Spec) -> Params:
        return {"w": initial(name, "w_init", w_init, key, shapes(x)["w"], compute_dtype(x.dtype))}

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[Value, Value]:
        require_shapes(name, params, shapes(x), x)
        w = jnp.asarray(params["w"])
        if factored:
            return (x, w), (Shape.of(x), Shape.of(w))
        return contract(x, w.astype(x.dtype), ((x.ndim - 1,), (1,))).astype(x.dtype), x

    def backward(params: Params, residuals: Value, dy: Value) -> tuple[Params, Value]:
        if factored:
            # forward: y = (x, w), so dx and dw are the two parts of dy.
            parts = zip(dy, residuals, strict=True)
            dx, dw = (None if d is None else as_cotangent(name, d, v.shape) for d, v in parts)
            return {"w": dw}, dx
        # forward: y = x w^T, so dx = dy w and dw = dy^T x, summed over the batch:
        # (B, V) (V, F) = (B, F) and (V, B) (B, F) = (V, F).
        x = residuals
        require_shapes(name, params, shapes(x), x)
        dy, w = as_cotangent(name, dy, (*x.shape[:-1], vocabulary)), params["w"]
        batch = tuple(range(x.ndim - 1))
        dx = contract(dy, w.astype(dy.dtype), ((dy.ndim - 1,), (0,)), like=x).astype(x.dtype)
        return {"w": contract(dy, x, (batch, batch), like=w).astype(w.dtype)}, dx

    rules = Rules(inference=lambda: unembedding(vocabulary)) if factored else Rules()
    return elementary(forward, backward, name, Kind(name, (vocabulary, factored)), rules, init)


# ---- sums by id ------------------------------------------------------------------------------
# From rows (T,), where V means none, and dy (T, F) to (V, F).


def sums_by_id(rows: jax.Array, dy: jax.Array, vocabulary: int) -> jax.Array:
    """The sum of dy for each id, by the method that is fastest on the machine.

    On CPU a scatter-add is fastest for every vocabulary: 0.1 ms where a product with one-hot rows
    takes 1.6 and sorting 0.8 (4096 ids of 256, 64 features), and an infinite dy affects its own row
    only. On GPU float32 scatter-adds are atomic, in no fixed order, and in jaxlib 0.10.2 to 0.11.0
    up to 2000 times slower than they should be (jax issue 38806); on TPU they run one by one.
    There small vocabularies use a matrix product, and large ones sort.
    """
    elsewhere = _by_one_hot if vocabulary <= MAX_ONE_HOT_IDS else _by_sorting
    return by_platform(
        rows,
        dy,
        cpu=functools.partial(_by_scatter, vocabulary=vocabulary),
        default=functools.partial(elsewhere, vocabulary=vocabulary),
    )


def _by_scatter(rows: jax.Array, dy: jax.Array, vocabulary: int) -> jax.Array:
    start = jnp.zeros((vocabulary, dy.shape[1]), dy.dtype)
    return start.at[rows].add(dy, mode="drop")


def _by_one_hot(rows: jax.Array, dy: jax.Array, vocabulary: int) -> jax.Array:
    """(V, T) (T, F), without the rounding of dy that is the default on GPU and TPU."""
    valid = rows[:, None] < vocabulary
    hot = (rows[:, None] == jnp.arange(vocabulary, dtype=rows.dtype)[None]).astype(dy.dtype)
    contract = (((0,), (0,)), ((), ()))
    return lax.dot_general(hot, jnp.where(valid, dy, 0), contract, precision=lax.Precision.HIGHEST)


def _by_sorting(rows: jax.Array, dy: jax.Array, vocabulary: int) -> jax.Array:
    """Sort by id, sum along each run of equal ids, and take the last sum of each."""
    if not isinstance(rows.size, int):  # open to jax.export
        return _by_scatter(rows, dy, vocabulary)
    if rows.size == 0:
        return jnp.zeros((vocabulary, dy.shape[1]), dy.dtype)
    order = jnp.argsort(rows)
    rows, sums = rows[order], _along_runs(rows[order], dy[order])
    place = jnp.arange(rows.size, dtype=rows.dtype)
    is_last = jnp.append(rows[1:] != rows[:-1], True) & (rows < vocabulary)
    to = jnp.where(is_last, rows, vocabulary + place)  # each once, and those beyond are dropped

    def taken(to: jax.Array, sums: jax.Array) -> jax.Array:
        last = jnp.full(vocabulary, -1, to.dtype)
        last = last.at[to].set(place, mode="drop", unique_indices=True)
        return jnp.where((last >= 0)[:, None], sums[last], 0)

    def put(to: jax.Array, sums: jax.Array) -> jax.Array:
        start = jnp.zeros((vocabulary, sums.shape[1]), sums.dtype)
        return start.at[to].set(sums, mode="drop", unique_indices=True)

    # On GPU in one kernel; a TPU moves rows one by one, and the ids are fewer than the vocabulary.
    return by_platform(to, sums, cuda=taken, default=put)


def _along_runs(rows: jax.Array, dy: jax.Array) -> jax.Array:
    """The sum of dy (T, F) from where a run of equal rows begins to each place.

    In pieces of RUN places; what a run brings from the pieces before is the same of their last
    places. That takes a kernel or two where ``lax.associative_scan`` takes five for each doubling,
    with seconds to compile them.
    """
    t, features = dy.shape
    count = -(-t // RUN)
    fill = count * RUN - t
    rows = jnp.pad(rows, (0, fill), constant_values=-1).reshape(count, RUN)
    dy = jnp.pad(dy, ((0, fill), (0, 0))).reshape(count, 1, RUN, features)
    to, of = (lax.broadcasted_iota(jnp.int32, (RUN, RUN), axis) for axis in (0, 1))
    adds = (rows[:, :, None] == rows[:, None]) & (of <= to)[None]
    sums = jnp.sum(jnp.where(adds[..., None], dy, 0), 2)  # (count, RUN, F)
    if count > 1:
        so_far = _along_runs(rows[:-1, -1], sums[:-1, -1])[:, None]
        goes_on = rows[1:] == rows[:-1, -1:]
        sums = sums.at[1:].add(jnp.where(goes_on[..., None], so_far, 0))
    return sums.reshape(-1, features)[:t]
