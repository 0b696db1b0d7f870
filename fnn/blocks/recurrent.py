"""A recurrent network: one cell, applied to each step of a sequence, and its state passed on.

    (y_t, s_t) = cell(x_t, s_{t-1}),  t = 1 ... T

Backward through time: the state of step t is read by step t + 1 and by y_t, so, from the last step
to the first, the cell's own backward turns the cotangents of y_t and s_t into those of x_t and
s_{t-1}, and the gradients of the parameters, which all steps share, add.

Only what depends on the state has to go step by step. Layers of the cell that read x alone run
before the scan, on many steps at once, and going back after it. In this library's cells, so do the
local slopes, and the products that make the weights' gradients: one over many steps, not one a
step. Many, not all: a sequence goes in parts, whose arrays between stay in the cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import Count, checked
from fnn.arrays import Shape
from fnn.block import (
    Block,
    BlockError,
    BlockTypeError,
    BlockValueError,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    Value,
)
from fnn.blocks.cells import pair_of_cotangents
from fnn.blocks.steps import rounded, steps_of, types
from fnn.executor import inference
from fnn.refusals import (
    as_cotangent,
    as_held,
    described,
    require_floating,
    require_key,
    require_numbers,
)

# About how many vectors, of all its steps and the batch, a part has, and how many steps at least.
# 512 are fastest on CPU (LSTM, 32 x 256 steps, 128 wide): they stay in the cache, and make products
# that are large enough.
ROWS, FEWEST = 512, 8


@checked
def recurrent(
    cell: Block,
    *,
    reverse: bool = False,
    truncate: Count | None = None,
    rematerialize: Count | None = None,
) -> Block:
    """The cell at every step of a sequence, one after another, as one ``lax.scan``.

    Werbos 1990, "Backpropagation through time". Two layers are ``serial(recurrent(a),
    recurrent(b))``; both directions ``serial(fan_out(recurrent(a), recurrent(b, reverse=True)),
    concatenate())``.

    Args:
      cell: a block of (x_t, state) to (y_t, state), such as :func:`lstm_cell`; a state is an array
        or a tuple of arrays, and keeps its shapes and dtypes. One of your own that takes None for
        its first state can be used without one.
      reverse: whether it goes from the last step to the first.
      truncate: the gradient of the state is cut after every so many steps (truncated
        backpropagation; Williams and Peng 1990). Forward is the same.
      rematerialize: keep the state of every so many steps only, and run forward again between them
        going back: memory of T / k states and k steps, for the time of one more forward.

    Returns:
      A block from x (B..., T, I) to y (B..., T, F), the state None at first; or from ``(x, state)``
      to ``(y, last state)``, for a sequence in parts (what ``truncate`` is within one part). The
      parameters are the cell's. Residuals: the cell's, with an axis of steps.

    Raises:
      BlockValueError: a sequence without steps; a state of another batch, or that the cell changes
        in shape or dtype.
      BlockTypeError: x is not floating; a cell that needs a first state and got none.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.recurrent(fnn.rnn_cell(1))
    >>> params = {"input": {"w": jnp.array([[1.0]]), "b": jnp.zeros(1)},
    ...           "hidden": {"w": jnp.array([[1.0]])}}
    >>> y, residuals = net.forward(params, jnp.array([[0.5], [0.0], [0.0]]))
    >>> [round(v, 3) for v in y.ravel().tolist()]
    [0.462, 0.432, 0.407]
    >>> dy = jnp.array([[0.0], [0.0], [1.0]])  # back through three tanh
    >>> [round(v, 3) for v in net.backward(params, residuals, dy)[1].ravel().tolist()]
    [0.534, 0.679, 0.834]
    """
    name, steps = "recurrent", steps_of(cell, truncate or 0)

    def split(x: Value) -> tuple[Any, Any, bool]:
        has_state = isinstance(x, (tuple, list))
        if has_state and len(x) != 2:
            raise BlockTypeError(name, f"x is {described(x)}, needs x or (x, state)")
        x, state = x if has_state else (x, None)
        require_floating(name, "x", x)
        if len(x.shape) < 2 or x.shape[-2] == 0:
            raise BlockValueError(
                name, f"x has shape {tuple(x.shape)}, needs (B..., T, features) with a step or more"
            )
        return x, state, has_state

    def init(key: jax.Array, x: Value) -> Params:
        require_key(name, key, "init(key, x)")
        x, state, _ = split(x)
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        one = jax.ShapeDtypeStruct((*x.shape[:-2], x.shape[-1]), dtype)
        with _asking_for_a_state(cell, state):
            return cell.init(key, (one, state))

    def turned(tree: Value) -> Value:
        """Sequences in the order of the steps, and back."""
        return jax.tree.map(lambda a: jnp.flip(a, -2), tree) if reverse else tree

    def keys_of(key: Key, piece: _Piece, first: Any, count: int) -> Any:
        if key is None:
            return None
        return lax.dynamic_slice_in_dim(jax.random.split(key, count), first, piece.size)

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        require_numbers(name, "x", x)
        x, state, has_state = split(as_held(x))
        if key is not None:
            require_key(name, key)
        x = jnp.asarray(x)
        state, xs, count = _first_state(cell, params, x, state, key), turned(x), x.shape[-2]

        def some(piece: _Piece, state: Value, first: Any, _: None) -> tuple[Value, Any]:
            keys = keys_of(key, piece, first, count)
            (ys, last), kept = steps.forward(params, piece.of(xs, first), state, keys)
            return last, (_batch_first(ys), state if rematerialize else kept)

        made = []
        for piece in _pieces(x, rematerialize):
            state, (ys, kept) = piece.run(functools.partial(some, piece), state, None)
            made.append((piece.joined(ys), kept))
        y = turned(_concatenated([ys for ys, _ in made]))
        like = jax.tree.map(Shape.of, (y, state))
        residuals = (x, [kept for _, kept in made], key if rematerialize else None, like)
        return ((y, state), {"with state": residuals}) if has_state else (y, {"alone": residuals})

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        # forward: one part after another, so back from the last to the first; the gradients of the
        # parameters, which all share, add.
        ((kind, (x, kept, key, (like_y, like_state))),) = residuals.items()
        dy, dlast = pair_of_cotangents(name, dy) if kind == "with state" else (dy, None)
        dlast = None if dlast is None else _cotangents(like_state, dlast)
        xs, dys, count = turned(x), turned(_cotangents(like_y, dy)), x.shape[-2]

        def some(piece: _Piece, carry: Any, first: Any, kept: Residuals) -> tuple[Any, Any]:
            (dlast, total), part = carry, piece.of(xs, first)
            if rematerialize:
                keys = keys_of(key, piece, first, count)
                kept = steps.forward(params, part, kept, keys)[1]
            (sums, like), dxs, dstate = steps.backward(
                params, part, kept, piece.of(dys, first), dlast, first
            )
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
            return (dstate, total), (_batch_first(dxs), like)

        carry: Any = (dlast, None)
        dxs = list[Value]()
        for piece, own in reversed([*zip(_pieces(x, rematerialize), kept, strict=True)]):
            back = functools.partial(some, piece)
            if piece.parts > 1 and carry[1] is None:  # a scan starts with sums
                of_one = jax.tree.map(lambda a: a[0], own)
                start = jax.tree.map(jnp.zeros_like, types(back, carry, 0, of_one)[0])
                carry = start if dlast is None else (dlast, start[1])
            carry, (d, like) = piece.run(back, carry, own, reverse=True)
            dxs = [piece.joined(d), *dxs]
        dstate, total = carry
        dx = turned(_concatenated(dxs))
        return rounded(total, like), ((dx, dstate) if kind == "with state" else dx)

    options = (reverse, truncate, rematerialize)
    rules = Rules(
        inference=lambda: recurrent(
            inference(cell), reverse=reverse, truncate=truncate, rematerialize=rematerialize
        )
    )
    return Block(init, forward, backward, name, Kind(name, options, (cell,)), rules=rules)


@contextmanager
def _asking_for_a_state(cell: Block, state: Value) -> Iterator[None]:
    """Says of a cell that fails at None that it needs a first state."""
    try:
        yield
    except BlockError as error:
        if state is None:
            error.add_note("the first state was None; if the cell needs a state: give (x, state)")
        raise
    except (TypeError, AttributeError) as error:
        if state is not None:
            raise
        raise BlockTypeError(
            "recurrent",
            f"the cell {cell.name} got None as its first state, and does not take it ({error}): "
            "it needs a state: give (x, state) in place of x",
        ) from error


def _first_state(cell: Block, params: Params, x: jax.Array, state: Value, key: Key) -> Value:
    """The state before the first step, of the shapes and dtypes that the cell passes on."""

    def after(state: Value) -> Value:
        return types(
            lambda p, x, k: cell.forward(p, (x, state), k)[0][1], params, x[..., 0, :], key
        )

    if state is None:
        with _asking_for_a_state(cell, state):
            shapes = after(None)
        return jax.tree.map(jnp.zeros_like, shapes)
    got, needed = (jax.tree.map(Shape.of, s) for s in (after(state), state))
    if got != needed:
        raise BlockValueError(
            "recurrent",
            f"the cell {cell.name} makes a state {_words(got)} of one {_words(needed)}, needs the "
            "same shapes and dtypes",
        )
    return jax.tree.map(jnp.asarray, state)


def _words(shapes: Any) -> str:
    leaves = jax.tree.leaves(shapes, is_leaf=_is_shape)
    return ", ".join(f"{s.dtype}{list(s.shape)}" for s in leaves)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, Shape)


def _cotangents(like: Any, d: Value) -> Value:
    """Those of arrays like these; None for zeros."""
    if d is None:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like, is_leaf=_is_shape)
    return jax.tree.map(
        lambda s, d: as_cotangent("recurrent", d, s.shape, s.dtype), like, d, is_leaf=_is_shape
    )


# ---- a sequence in parts ---------------------------------------------------------------------


class _Piece(NamedTuple):
    """``parts`` parts of ``size`` steps, from step ``first``."""

    first: int
    size: int
    parts: int

    def of(self, xs: Value, first: Any) -> Value:
        """A part of sequences, (B..., T, F) each, as (size, B..., F)."""

        def part(a: jax.Array) -> jax.Array:
            if a.shape[-2] != self.size:
                a = lax.dynamic_slice_in_dim(a, first, self.size, a.ndim - 2)
            return jnp.moveaxis(a, -2, 0)

        return jax.tree.map(part, xs)

    def run(self, f: Any, carry: Value, given: Value, reverse: bool = False) -> tuple[Value, Any]:
        """``f(carry, first step, given) -> (carry, made)`` for each part."""
        if self.parts == 1:
            return f(carry, self.first, given)

        def body(carry: Value, part: tuple[jax.Array, Value]) -> tuple[Value, Any]:
            return f(carry, self.first + self.size * part[0], part[1])

        order = jnp.arange(self.parts, dtype=jnp.int32)
        return lax.scan(body, carry, (order, given), reverse=reverse)

    def joined(self, made: Value) -> Value:
        """What the parts made, (B..., size, F) each, as (B..., T, F)."""

        def join(a: jax.Array) -> jax.Array:
            a = jnp.moveaxis(a, 0, -3)
            return a.reshape(*a.shape[:-3], self.parts * self.size, a.shape[-1])

        return made if self.parts == 1 else jax.tree.map(join, made)


def _pieces(x: jax.Array, size: int | None) -> list[_Piece]:
    """The parts of x (B..., T, F); those steps that are left over come last."""
    count, batch = x.shape[-2], math.prod(x.shape[:-2])
    if size is None:
        size = max(ROWS // max(batch, 1), FEWEST) if isinstance(batch, int) else FEWEST
        fits = (n for n in range(size, size // 2, -1) if count % n == 0)
        size = count if count <= size else next(fits, size)
    parts, left_over = divmod(count, size)
    pieces = [_Piece(0, size, parts), _Piece(parts * size, left_over, 1)]
    return [piece for piece in pieces if piece.size * piece.parts]


def _batch_first(tree: Value) -> Value:
    """(N, B..., F) as (B..., N, F)."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2), tree)


def _concatenated(parts: list[Value]) -> Value:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a, -2), *parts)
