"""A recurrent network: one cell, applied to each step of a sequence, and its state passed on.

    (y_t, s_t) = cell(x_t, s_{t-1}),  t = 1 ... T

Backward through time: the state of step t is read by step t + 1 and by y_t, so, from the last step
to the first, the cell's own backward turns the cotangents of y_t and s_t into those of x_t and
s_{t-1}, and the gradients of the parameters, which all steps share, add.

Only what depends on the state has to go step by step. Layers of the cell that read x alone run
before the scan, on all steps at once, and going back after it. So do the products that make the
weights' gradients in this library's cells: they are one over all steps, not one a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import Count, checked
from fnn.arrays import Shape, compute_dtype
from fnn.block import (
    Block,
    BlockError,
    BlockTypeError,
    BlockValueError,
    Key,
    Kind,
    Node,
    Params,
    Residuals,
    Rules,
    Value,
)
from fnn.blocks.cells import gradients_of, pair_of_cotangents
from fnn.blocks.combinators import rematerialize as rematerialized
from fnn.executor import check_params, graph, inference, is_network
from fnn.refusals import (
    as_cotangent,
    as_held,
    described,
    require_floating,
    require_key,
    require_numbers,
)

Piece = tuple[Block, Callable[[Value], Value]]

_STEPS = ("rnn_step", "gru_step", "lstm_step")


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
    over = _scanned(cell, truncate or 0)
    name = "recurrent"
    if rematerialize is not None:
        if truncate is not None:
            raise BlockValueError(
                name, f"got truncate={truncate} and rematerialize={rematerialize}, needs one of "
                "them: give a sequence in parts, (x, state), to truncate its gradient",
            )  # fmt: skip
        over = _in_parts(cell, rematerialize)

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

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        require_numbers(name, "x", x)
        x, state, has_state = split(as_held(x))
        if key is not None:
            require_key(name, key)
        xs = in_time(jnp.asarray(x))
        state = _first_state(cell, params, xs, state, key)
        (ys, last), residuals = over.forward(params, (xs, state), key)
        y = jax.tree.map(out_of_time, ys)
        return ((y, last), {"with state": residuals}) if has_state else (y, {"alone": residuals})

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        ((kind, residuals),) = residuals.items()
        has_state = kind == "with state"
        dys, d_last = pair_of_cotangents(name, dy) if has_state else (dy, None)
        dys = jax.tree.map(cotangent_in_time, dys)
        dparams, (dxs, d_state) = over.backward(params, residuals, (dys, d_last))
        dx = out_of_time(dxs)
        return dparams, ((dx, d_state) if has_state else dx)

    def cotangent_in_time(dy: Value) -> jax.Array:
        dy = as_cotangent(name, dy)
        if dy.ndim < 2:
            raise BlockValueError(
                name, f"dy has shape {dy.shape}, needs that of y, (B..., T, features)"
            )
        return in_time(dy)

    def in_time(a: jax.Array) -> jax.Array:
        """(B..., T, F) as (T, B..., F), the first step first."""
        a = jnp.moveaxis(a, -2, 0)
        return jnp.flip(a, 0) if reverse else a

    def out_of_time(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(jnp.flip(a, 0) if reverse else a, 0, -2)

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


def _first_state(cell: Block, params: Params, xs: jax.Array, state: Value, key: Key) -> Value:
    """The state before the first step, of the shapes and dtypes that the cell passes on."""

    def after(state: Value) -> Value:
        return _types(lambda p, x, k: cell.forward(p, (x[0], state), k)[0][1], params, xs, key)

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


def _types(f: Callable[..., Value], *arguments: Any) -> Value:
    """The shapes and dtypes of f's results, how they are split, and under shard_map vary."""
    return jax.jit(f).eval_shape(*arguments)


def _words(shapes: Any) -> str:
    leaves = jax.tree.leaves(shapes, is_leaf=lambda s: isinstance(s, Shape))
    return ", ".join(f"{s.dtype}{list(s.shape)}" for s in leaves)


class _Halves(NamedTuple):
    """A cell in two: ``early`` reads x alone, ``late`` all else; None where nothing is early."""

    early: Block | None
    late: Block
    names: tuple[str, ...]  # of the nodes of early
    reads_x: bool  # whether late does, besides what early makes of it
    step: Node | None  # of late, where it is all of it and one of this library's steps


def _halves(cell: Block) -> _Halves:
    """Which part of a cell can run before the scan: its linear layers of x."""
    whole = cell.graph
    alone = _Halves(None, cell, (), True, None)
    if whole is None or not is_network(cell) or len(whole.inputs) != 2:
        return alone
    x, state = whole.inputs
    shared = {node.params_of for node in whole.nodes if node.params_of != node.name}
    early = [
        node for node in whole.nodes
        if node.block.kind.maker == "linear" and node.inputs == (x,) and node.name not in shared
        and node.params_of == node.name and node.name not in whole.outputs
    ]  # fmt: skip
    late = [node for node in whole.nodes if node not in early]
    if not early:
        return alone
    names = tuple(node.name for node in early)
    own = (x,) if any(x in node.inputs for node in late) or x in whole.outputs else ()
    return _Halves(
        graph(x, [(node.name, node.block, node.inputs) for node in early], names),
        graph(
            (*names, *own, state),
            [(n.name, n.block, n.inputs, n.params_of) for n in late],
            whole.outputs,
            name=cell.name,
        ),
        names,
        bool(own),
        late[0] if len(late) == 1 and late[0].block.kind.maker in _STEPS else None,
    )


def _scanned(cell: Block, truncate: int) -> Block:
    """The block of (xs, state) to (ys, last state), with the axis of steps first."""
    early, late, names, reads_x, own_step = _halves(cell)

    def parted(params: Params) -> tuple[Params, Params]:
        if early is None or cell.graph is None:
            return {}, params
        check_params(cell.graph, params, cell.name)
        require_numbers(cell.name, "params", params)
        first = {name: params[name] for name in names if name in params}
        return first, {name: p for name, p in params.items() if name not in first}

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        xs, state = x
        first, rest = parted(params)
        inputs: tuple[Value, ...] = (xs,) * reads_x
        kept_early: Residuals = ()
        if early is not None:
            zs, kept_early = early.forward(first, xs)
            inputs = (*(zs if len(names) > 1 else (zs,)), *inputs)
        keys = None if key is None else jax.random.split(key, xs.shape[0])

        def body(state: Value, step: tuple[Value, Key]) -> tuple[Value, tuple[Value, Residuals]]:
            (y, state), residuals = late.forward(rest, (*step[0], state), step[1])
            return state, (y, residuals)

        last, (ys, kept) = lax.scan(body, state, (inputs, keys))
        like = jax.tree.map(Shape.of, (ys, last))
        return (ys, last), (kept_early, kept, like)

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        # forward: (y_t, s_t) = cell(x_t, s_{t-1}), so ds_{t-1} is what the cell's backward makes of
        # dy_t and ds_t, from the last step to the first.
        kept_early, kept, (like_y, like_state) = residuals
        first, rest = parted(params)
        dys, d_last = (
            jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like, is_leaf=_is_shape)
            if d is None else jax.tree.map(as_like, like, d, is_leaf=_is_shape)
            for d, like in zip(dy, (like_y, like_state), strict=True)
        )  # fmt: skip
        steps = jax.tree.leaves(dys)[0].shape[0]

        def at_a_step(rest: Params, kept: Residuals, dys: Value) -> tuple[Params, Value]:
            first, d = jax.tree.map(lambda a: a[0], (kept, dys))
            return late.backward(rest, first, (d, d_last))

        like_params, (*_, like_before) = _types(at_a_step, rest, kept, dys)
        if dy[1] is None:
            d_last = jax.tree.map(jnp.zeros_like, like_before)
        start = None  # of the sums over steps; None for a parameter that has no gradient
        if not own_step:
            start = jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=compute_dtype(p.dtype)), like_params
            )

        def body(carry: Value, step: Value) -> tuple[Value, Value]:
            (d_state, total), (t, d_y, residuals) = carry, step
            dparams, (*d_inputs, before) = late.backward(rest, residuals, (d_y, d_state))
            if truncate:
                cut = (t % truncate == 0) & (t > 0)
                before = jax.tree.map(lambda d: jnp.where(cut, 0, d), before)
            if not own_step:
                total = jax.tree.map(lambda a, d: a + d.astype(a.dtype), total, dparams)
            return (before, total), tuple(d_inputs)

        order = jnp.arange(steps, dtype=jnp.int32)
        (d_state, total), d_inputs = lax.scan(
            body, (d_last, start), (order, dys, kept), reverse=True, length=steps
        )
        if own_step:
            step, at = own_step.block, own_step.name
            dlate = {at: gradients_of(step, rest[at], kept[at], d_inputs[0])}
        else:
            dlate = jax.tree.map(lambda d, like: d.astype(like.dtype), total, like_params)
        if early is None:
            return dlate, (d_inputs[0], d_state)
        d_early = d_inputs[: len(names)]
        dearly, dxs = early.backward(first, kept_early, d_early if len(names) > 1 else d_early[0])
        if reads_x:
            dxs = dxs + d_inputs[-1]
        return {**dearly, **dlate}, (dxs, d_state)

    def as_like(like: Shape, d: Any) -> jax.Array:
        return as_cotangent("recurrent", d, like.shape, like.dtype)

    def init(key: jax.Array, x: Value) -> Params:
        xs, state = x
        return cell.init(key, (jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype), state))

    return Block(init, forward, backward, cell.name)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, Shape)


def _in_parts(cell: Block, size: int) -> Block:
    """The same, of which only the states between parts of ``size`` steps are kept.

    A scan of rematerialised scans; the steps that are left over come first, in a part of their own.
    """
    inner = rematerialized(_scanned(cell, 0))
    outer = _scanned(inner, 0)

    def pieces(steps: int) -> list[Piece]:
        """What runs, and what it takes of all steps: a part that is smaller, and all others."""
        left_over = steps % size

        def first(xs: Value) -> Value:
            return jax.tree.map(lambda a: a[:left_over], xs)

        def others(xs: Value) -> Value:
            return jax.tree.map(lambda a: a[left_over:].reshape(-1, size, *a.shape[1:]), xs)

        return [(inner, first)] * (left_over > 0) + [(outer, others)] * (steps >= size)

    def joined(parts: list[Value], run: list[Piece]) -> Value:
        whole = [
            jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), part) if over is outer else part
            for part, (over, _) in zip(parts, run, strict=True)
        ]
        return jax.tree.map(lambda *a: jnp.concatenate(a), *whole)

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        xs, state = x
        run = pieces(xs.shape[0])
        keys = [None] * len(run) if key is None else [*jax.random.split(key, len(run))]
        ys, kept = list[Value](), list[Residuals]()
        for (over, of), own in zip(run, keys, strict=True):
            (y, state), residuals = over.forward(params, (of(xs), state), own)
            ys, kept = [*ys, y], [*kept, residuals]
        return (joined(ys, run), state), kept

    def backward(params: Params, kept: Residuals, dy: Value) -> tuple[Params, Value]:
        # forward: each piece starts with the state that the one before it ended with.
        dys, d_state = dy
        run = pieces(jax.tree.leaves(dys)[0].shape[0])
        dxs, found = list[Value](), list[Params]()
        for (over, of), residuals in reversed([*zip(run, kept, strict=True)]):
            dparams, (dx, d_state) = over.backward(params, residuals, (of(dys), d_state))
            dxs, found = [dx, *dxs], [*found, dparams]
        return jax.tree.map(lambda *d: sum(d[1:], d[0]), *found), (joined(dxs, run), d_state)

    return Block(cell.init, forward, backward, cell.name)
