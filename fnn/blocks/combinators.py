"""Combinators: blocks from blocks. Those that only wire are graphs.

Which rules (:class:`fnn.block.Rules`) of the blocks inside a combinator keeps:

==================  ============  ========  =================  ===========  =========
combinator          inference     validate  update_statistics  subgradient  factors
==================  ============  ========  =================  ===========  =========
graph, serial, ...  node by node  none      node by node       none         none
map_nodes           node by node  kept      node by node       none         none
freeze              frozen        kept      none               kept         none
repeat              repeated      kept      each its own       none         none
recurrent           of the cell   none      none               none         none
rematerialize       rebuilt       kept      run again          kept         run again
straight_through    of both       block's   block's            surrogate's  none
==================  ============  ========  =================  ===========  =========

A graph has no subgradient or factors of its own, only its nodes have: a kink inside depends on
what the nodes before it make of x. A frozen block has no gradient to factor, and its statistics
stay as they are. tests/blocks/test_rules.py holds this table.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import Count, Natural, checked
from fnn.arrays import Shape
from fnn.block import (
    Block,
    BlockTypeError,
    BlockValueError,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    Value,
)
from fnn.blocks.gates import add
from fnn.executor import Entry, graph, inference, mapped, rebuilt
from fnn.refusals import (
    as_array,
    as_cotangent,
    as_held,
    described,
    elementary,
    require_array,
    require_block,
    require_floating,
    require_key,
)


def _named(kind: str, blocks: tuple[Block, ...], named: dict[str, Block]) -> dict[str, Block]:
    """Names for blocks given by position: the position and the block's own name."""
    for position, block in enumerate(blocks):
        if isinstance(block, (list, tuple)) and not isinstance(block, Block):
            raise BlockTypeError(
                kind,
                f"argument {position} is a {type(block).__name__} of {len(block)}, needs a Block: "
                f"give the blocks themselves, {kind}(*blocks)",
            )
        require_block(kind, f"argument {position}", block)
    width = len(str(len(blocks) - 1))  # so that the names sort in order
    positional = {f"{i:0{width}}_{block.name}": block for i, block in enumerate(blocks)}
    if twice := sorted(positional.keys() & named.keys()):
        raise BlockValueError(
            kind, f"the name {twice[0]!r} is used twice: by keyword and by position; rename one"
        )
    return {**positional, **named}


def serial(*blocks: Block, **named: Block) -> Block:
    """Blocks one after another: y = f_n(... f_2(f_1(x))).

    Args:
      *blocks: named by position and block name: ``serial(linear(4), relu())`` has the
        parameters ``0_linear/w`` and ``0_linear/b``.
      **named: named by keyword; they come after the positional ones.

    Returns:
      A :func:`~fnn.graph` in which every block reads the one before it; without any
      block, the identity. Residuals: those of the blocks, by name.

    Raises:
      BlockTypeError: an argument that is not a block.
      BlockValueError: a name that is used twice, or holds a "/".

    >>> import fnn, jax
    >>> net = fnn.serial(hidden=fnn.linear(128), act=fnn.relu(), out=fnn.linear(10))
    >>> params = net.init(jax.random.key(0), jax.ShapeDtypeStruct((32, 784), "float32"))
    >>> jax.tree.map(lambda p: p.shape, params)
    {'hidden': {'b': (128,), 'w': (784, 128)}, 'out': {'b': (10,), 'w': (128, 10)}}
    """
    nodes: list[Entry] = []
    previous = "x"
    for name, block in _named("serial", blocks, named).items():
        nodes.append((name, block, previous))
        previous = name
    return graph("x", nodes, previous, name="serial")._replace(kind=Kind("serial"))


def fan_out(*blocks: Block, **named: Block) -> Block:
    """The same input to every block, and a tuple of their outputs: y = (f(x), g(x), ...).

    Going back, the cotangents of the shared input add.

    Args:
      *blocks, **named: as for :func:`serial`, two or more.

    Returns:
      A graph with a tuple as output. Residuals: those of the blocks, by name.

    Raises:
      BlockValueError, BlockTypeError: as :func:`serial`; fewer than two blocks.

    >>> import fnn
    >>> both = fnn.fan_out(fnn.square(), fnn.negate())
    >>> y, residuals = both.forward({}, 3.0)
    >>> [float(v) for v in y]
    [9.0, -3.0]
    >>> float(both.backward({}, residuals, (1.0, 1.0))[1])  # 2x - 1
    5.0
    """
    branches = _named("fan_out", blocks, named)
    if len(branches) < 2:
        raise BlockValueError("fan_out", f"got {len(branches)} blocks, needs two or more")
    nodes: list[Entry] = [(name, block, "x") for name, block in branches.items()]
    return graph("x", nodes, list(branches), name="fan_out")._replace(kind=Kind("fan_out"))


@checked
def residual(block: Block, shortcut: Block | None = None) -> Block:
    """A block with a way around it: y = f(x) + x, or f(x) + shortcut(x).

    The shortcut passes dy to x unchanged, so the gradient reaches the first layers of a deep
    network (He et al. 2016, "Identity mappings in deep residual networks").

    Args:
      block: f.
      shortcut: the block on the other way; the identity by default.

    Returns:
      A graph with nodes ``block``, ``shortcut`` (where there is one) and ``add``.

    Raises:
      BlockValueError: ``f(x)`` and the shortcut differ in shape (they are not broadcast).
      BlockTypeError: an argument that is not a block.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.residual(fnn.square())
    >>> y, residuals = net.forward({}, jnp.array([1.0, 3.0]))
    >>> y
    Array([ 2., 12.], dtype=float32)
    >>> net.backward({}, residuals, jnp.ones(2))[1]  # 2x + 1
    Array([3., 7.], dtype=float32)
    """
    plus = add()

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        branch, around = x
        if jnp.shape(branch) != jnp.shape(around):
            raise BlockValueError(
                "residual",
                f"the block's output has shape {jnp.shape(branch)} and the shortcut's "
                f"{jnp.shape(around)}; they need the same: give residual(block, "
                "shortcut=linear(features)) or change the block",
            )
        return plus.forward(params, x)

    nodes: list[Entry] = [("block", block, "x")]
    if shortcut is not None:
        nodes.append(("shortcut", shortcut, "x"))
    around = "x" if shortcut is None else "shortcut"
    nodes.append(("add", plus._replace(forward=forward), ("block", around)))
    return graph("x", nodes, "add", name="residual")._replace(kind=Kind("residual"))


@checked
def repeat(block: Block, n: Count) -> Block:
    """The same block ``n`` times in a row, each time with parameters of its own.

    Parameters, keys and residuals are stacked on a leading axis and the network runs as one
    ``lax.scan``, so 200 layers compile in about the time of two. (It is not a graph, to avoid
    unrolled nodes. The chain rule over its steps is the reversed scan.)

    Args:
      block: its output has the shape and dtype of its input.
      n: how many times, at least 1.

    Returns:
      A block whose parameters and residuals are the inner block's, each with a leading axis of n.

    Raises:
      BlockValueError: n is not a whole number of at least 1; an output unlike the input;
        parameters without the leading axis.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.repeat(fnn.layer(8, fnn.tanh()), 200)
    >>> params = net.init(jax.random.key(0), jnp.ones((4, 8)))
    >>> params["linear"]["w"].shape
    (200, 8, 8)
    """

    def check(y: Value, x: Value) -> None:
        got, needed = (jax.tree.map(Shape.of, v) for v in (y, x))
        if got != needed:
            raise BlockValueError(
                "repeat",
                f"{block.name} turns {_describe(x)} into {_describe(y)}; a repeated block "
                "needs an output of the input's shape and dtype",
            )

    def require_stacked(params: Params) -> None:
        for leaf in jax.tree.leaves(params):
            require_floating("repeat", "a parameter", leaf)
            if leaf.shape[:1] != (n,):
                raise BlockValueError(
                    "repeat",
                    f"a parameter has shape {leaf.shape}, needs a leading axis of {n}, one "
                    "slice for each repetition: make parameters with init(key, x)",
                )

    def init(key: jax.Array, x: Value) -> Params:
        require_key("repeat", key)
        for leaf in jax.tree.leaves(x):
            require_array("repeat", "x", leaf)
        keys = jax.random.split(key, n)
        shape = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), as_held(x))
        one = jax.eval_shape(block.init, key, shape)
        check(jax.eval_shape(block.forward, one, shape, key)[0], shape)
        return jax.vmap(lambda k: block.init(k, shape))(keys)

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        if key is not None:
            require_key("repeat", key)
        keys = None if key is None else jax.random.split(key, n)

        def body(x: Value, layer: tuple[Params, Key]) -> tuple[Value, Residuals]:
            y, residuals = block.forward(layer[0], x, layer[1])
            check(y, x)
            return y, residuals

        require_stacked(params)
        x = jax.tree.map(lambda v: as_array("repeat", "x", v), x)
        return lax.scan(body, x, (params, keys), length=n)

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        # forward: x_{i+1} = f(params_i, x_i), so dy goes through the layers from last to first.
        require_stacked(params)

        def body(dy: Value, layer: tuple[Params, Residuals]) -> tuple[Value, Params]:
            dparams, dx = block.backward(layer[0], layer[1], dy)
            if jax.tree.map(Shape.of, dx) != jax.tree.map(Shape.of, dy):
                raise BlockTypeError(
                    "repeat", f"dy is {_describe(dy)}, needs the dtype of y: {_describe(dx)}"
                )
            return dx, dparams

        dy = jax.tree.map(lambda d: as_cotangent("repeat", d), dy)
        dx, dparams = lax.scan(body, dy, (params, residuals), length=n, reverse=True)
        return dparams, dx

    statistics = block.rules.update_statistics
    rules = Rules(
        inference=lambda: repeat(inference(block), n),
        validate=block.rules.validate,
        update_statistics=None if statistics is None else jax.vmap(statistics),
    )
    kind = Kind("repeat", (n,), (block,))
    return Block(init, forward, backward, f"repeat_{block.name}", kind, rules=rules)


def _describe(x: Value) -> str:
    return ", ".join(f"{v.dtype}{list(v.shape)}" for v in jax.tree.leaves(x))


@checked
def freeze(block: Block) -> Block:
    """The same function, with parameters that are not trained.

    Their cotangents are ``None`` and not computed: the compiled program has no trace of them. The
    gradient still flows through to the blocks before. ``value_and_grad`` returns zeros for them,
    and ``make_step`` leaves them exactly as they are, whatever the optimiser (weight decay,
    momentum) would do. Running statistics also stay as they are.

    Args:
      block: any block; a graph is frozen node by node.

    Returns:
      A block with the same parameters and residuals.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.serial(body=fnn.freeze(fnn.linear(3)), head=fnn.linear(1))
    >>> params = net.init(jax.random.key(0), jnp.ones((2, 4)))
    >>> y, residuals = net.forward(params, jnp.ones((2, 4)))
    >>> net.backward(params, residuals, jnp.ones((2, 1)))[0]["body"]["w"] is None
    True
    """
    return _frozen(block)


def _frozen(block: Block) -> Block:
    if block.graph is not None:
        return rebuilt(block, mapped(block, lambda _, inner: _frozen(inner)))

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        _, dx = block.backward(params, residuals, dy)
        return jax.tree.map(lambda _: None, params), dx

    return block._replace(
        backward=backward,
        name=f"freeze_{block.name}",
        kind=Kind("freeze", (), (block,)),
        rules=Rules(
            inference=lambda: _frozen(inference(block)),
            validate=block.rules.validate,
            subgradient=block.rules.subgradient,
        ),
    )


@checked
def concatenate(axis: int = -1) -> Block:
    """A tuple of arrays joined along an axis.

    Going back, the cotangent is split at the same places.

    Args:
      axis: the axis along which sizes may differ; all other sizes and the dtype agree.

    Returns:
      A block without parameters. Residuals: shapes, no bytes.

    Raises:
      BlockValueError: shapes that differ along another axis, or have no such axis.
      BlockTypeError: the input is no tuple, or has several dtypes.

    >>> import fnn, jax.numpy as jnp
    >>> y, _ = fnn.concatenate().forward({}, (jnp.zeros((2, 3)), jnp.ones((2, 1))))
    >>> y.shape
    (2, 4)
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        if not isinstance(x, (tuple, list)) or not x:
            raise BlockTypeError("concatenate", f"x is {described(x)}, needs a tuple of arrays")
        for i, v in enumerate(x):
            require_array("concatenate", f"x[{i}]", v)
        shapes = [v.shape for v in x]
        rank = len(shapes[0])
        if not -rank <= axis < rank or any(
            len(s) != rank or _without(s, axis) != _without(shapes[0], axis) for s in shapes
        ):
            raise BlockValueError(
                "concatenate",
                f"shapes {shapes} do not agree in all but axis {axis}, as they need to",
            )
        if len({v.dtype for v in x}) > 1:
            raise BlockTypeError(
                "concatenate", f"dtypes differ: {[str(v.dtype) for v in x]}; cast them first"
            )
        return jnp.concatenate(x, axis), tuple(Shape.of(v) for v in x)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, Value]:
        # forward: y[a_i : a_{i+1}] = x_i, so dx_i is that slice of dy.
        *ends, total = itertools.accumulate(part.shape[axis] for part in residuals)
        shape = list(residuals[0].shape)
        shape[axis] = total
        return {}, tuple(jnp.split(as_cotangent("concatenate", dy, shape), ends, axis))

    return elementary(forward, backward, "concatenate", Kind("concatenate", (axis,)))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


@checked
def item(index: int) -> Block:
    """One of the values of a tuple: y = x[index]. The others get no cotangent (None).

    Args:
      index: from 0, or from the end below 0.

    Returns:
      A block without parameters. Residuals: the number of values.

    Raises:
      BlockTypeError: the input is no tuple, or has no such entry.

    >>> import fnn
    >>> y, residuals = fnn.item(1).forward({}, (2.0, 3.0))
    >>> y, fnn.item(1).backward({}, residuals, 5.0)[1]
    (3.0, (None, Array(5., dtype=float32, weak_type=True)))
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        if not isinstance(x, (tuple, list)) or not -len(x) <= index < len(x):
            raise BlockTypeError(
                "item", f"x is {described(x)}, needs a tuple with an entry {index}"
            )
        return x[index], Shape((len(x),), jnp.dtype(bool))

    def backward(params: Params, residuals: Shape, dy: Value) -> tuple[Params, Value]:
        (count,) = residuals.shape
        dx: list[Value] = [None] * count
        dx[index] = jax.tree.map(lambda d: as_cotangent("item", d), dy)
        return {}, tuple(dx)

    return elementary(forward, backward, "item", Kind("item", (index,)))


@checked
def flatten(keep: Natural = 1) -> Block:
    """Every example as one row: the first ``keep`` axes stay, the rest become one.

    Args:
      keep: the number of axes that stay.

    Returns:
      A block without parameters. Residuals: the shape, no bytes.

    Raises:
      BlockValueError: x has fewer axes.

    >>> import fnn, jax.numpy as jnp
    >>> fnn.flatten().forward({}, jnp.zeros((2, 28, 28, 1)))[0].shape
    (2, 784)
    """

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[Value, Residuals]:
        require_array("flatten", "x", x)
        if x.ndim < keep:
            raise BlockValueError("flatten", f"x has shape {x.shape}, needs {keep} axes or more")
        features = math.prod(x.shape[keep:])  # -1 would not work for an empty batch
        return x.reshape(*x.shape[:keep], features), Shape.of(x)

    def backward(params: Params, residuals: Shape, dy: jax.Array) -> tuple[Params, Value]:
        # forward: y has the entries of x in the same order, so dx has those of dy.
        shape = residuals.shape
        dy = as_cotangent("flatten", dy, (*shape[:keep], math.prod(shape[keep:])))
        return {}, dy.reshape(shape)

    return elementary(forward, backward, "flatten", Kind("flatten", (keep,)))
