"""Some steps of a sequence by one cell: what :func:`~fnn.recurrent` does with each of its parts.

Here arrays of steps are (N, B..., F), the first step first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arrays import Shape, compute_dtype, is_array, is_floating
from fnn.block import Block, Node, Params, Residuals, Value
from fnn.blocks.cells import RULES, gradients_of, with_slopes
from fnn.executor import check_params, graph, is_network
from fnn.refusals import as_held, require_numbers


class Steps(NamedTuple):
    """The two functions of a cell over steps.

    ``forward(params, xs, state, keys) -> ((ys, last state), residuals)``.
    ``backward(params, xs, residuals, dys, dlast, first) -> (sums, dxs, dstate)``: dlast None for
    zeros, ``first`` the number of the first step; the sums over steps of the parameters' gradients
    in float32 at least, with the dtypes to round them to: :func:`rounded`.
    """

    forward: Callable[[Params, jax.Array, Value, Any], tuple[tuple[Value, Value], Residuals]]
    backward: Callable[..., tuple[tuple[Params, Any], jax.Array, Value]]


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
        late[0] if len(late) == 1 and late[0].block.kind.maker in RULES else None,
    )


def steps_of(cell: Block, truncate: int) -> Steps:
    """The cell over steps; ``truncate``: cut the state's gradient after every so many; 0: never."""
    early, late, names, reads_x, own_step = _halves(cell)

    def parted(params: Params) -> tuple[Params, Params]:
        if early is None or cell.graph is None:
            return {}, params
        check_params(cell.graph, params, cell.name)
        require_numbers(cell.name, "params", params)
        first = {name: params[name] for name in names if name in params}
        return first, {name: p for name, p in params.items() if name not in first}

    def forward(
        params: Params, xs: jax.Array, state: Value, keys: Any
    ) -> tuple[tuple[Value, Value], Residuals]:
        first, rest = parted(params)
        inputs: tuple[Value, ...] = (xs,) * reads_x
        kept_early: Residuals = ()
        if early is not None:
            zs, kept_early = early.forward(first, xs)
            inputs = (*(zs if len(names) > 1 else (zs,)), *inputs)
            # What it keeps of x is x, which the whole sequence keeps.
            kept_early = jax.tree.map(lambda a: _X if a is xs else a, kept_early)

        def body(state: Value, step: tuple[Value, Any]) -> tuple[Value, tuple[Value, Residuals]]:
            (y, state), residuals = late.forward(rest, (*step[0], state), step[1])
            return state, (y, residuals)

        last, (ys, kept) = lax.scan(body, state, (inputs, keys))
        return (ys, last), (kept_early, kept)

    def backward(
        params: Params, xs: jax.Array, residuals: Residuals, dys: Value, dlast: Value, number: Any
    ) -> tuple[tuple[Params, Any], jax.Array, Value]:
        # forward: (y_t, s_t) = cell(x_t, s_{t-1}), so ds_{t-1} is what the cell's backward makes of
        # dy_t and ds_t, from the last step to the first.
        kept_early, kept = residuals
        first, rest = parted(params)
        if own_step:  # the local slopes of all steps at once
            kept = {own_step.name: with_slopes(own_step.block, kept[own_step.name])}

        def at_a_step(rest: Params, kept: Residuals, dys: Value) -> tuple[Params, Value]:
            one, d = jax.tree.map(lambda a: a[0], (kept, dys))
            return late.backward(rest, one, (d, dlast))

        like_params, (*_, like_before) = types(at_a_step, rest, kept, dys)
        if dlast is None:
            dlast = jax.tree.map(jnp.zeros_like, like_before)
        start: Any = None  # of the sums over steps; None for a parameter that has no gradient
        if not own_step:
            start = jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=compute_dtype(p.dtype)), like_params
            )

        def body(carry: Value, step: Value) -> tuple[Value, Value]:
            (dstate, total), (t, dy, residuals) = carry, step
            dparams, (*d_inputs, before) = late.backward(rest, residuals, (dy, dstate))
            if truncate:
                cut = (t % truncate == 0) & (t > 0)
                before = jax.tree.map(lambda d: jnp.where(cut, 0, d), before)
            if not own_step:
                total = jax.tree.map(lambda a, d: a + d.astype(a.dtype), total, dparams)
            return (before, total), tuple(d_inputs)

        count = xs.shape[0]
        order = number + jnp.arange(count, dtype=jnp.int32)
        (dstate, total), d_inputs = lax.scan(
            body, (dlast, start), (order, dys, kept), reverse=True, length=count
        )
        if own_step:
            block, at = own_step.block, own_step.name
            total = {at: gradients_of(block, _wide(rest[at]), kept[at], d_inputs[0])}
        like = jax.tree.map(Shape.of, like_params)
        if early is None:
            return (total, like), d_inputs[0], dstate
        kept_early = jax.tree.map(
            lambda a: xs if isinstance(a, _OfX) else a, kept_early,
            is_leaf=lambda a: isinstance(a, _OfX),
        )  # fmt: skip
        d_early = d_inputs[: len(names)]
        dearly, dxs = early.backward(
            _wide(first), kept_early, d_early if len(names) > 1 else d_early[0]
        )
        if reads_x:
            dxs = dxs + d_inputs[-1]
        like_early = jax.tree.map(lambda d, p: Shape.of(p), dearly, as_held(first))
        return ({**dearly, **total}, {**like_early, **like}), dxs, dstate

    return Steps(forward, backward)


def rounded(sums: Params, like: Any) -> Params:
    """The sums over steps, of the dtypes of the parameters."""
    return jax.tree.map(lambda d, s: d.astype(s.dtype), sums, like)


def types(f: Callable[..., Value], *arguments: Any) -> Value:
    """The shapes and dtypes of f's results, how they are split, and under shard_map vary."""
    return jax.jit(f).eval_shape(*arguments)


def _wide(params: Params) -> Params:
    """The parameters as their gradients are summed: in the same dtype or float32."""

    def wide(p: Any) -> Any:  # what is no array is refused by its block
        return p.astype(compute_dtype(p.dtype)) if is_array(p) and is_floating(p) else p

    return jax.tree.map(wide, as_held(params))


class _OfX(NamedTuple):
    """In place of x among what is kept: a pytree without leaves."""


_X = _OfX()
