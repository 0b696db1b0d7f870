"""The protocol: a block is three pure functions, and everything in fnn is a block.

A gate, a layer, a loss, a whole network, a network with its loss: each has an ``init``, a
``forward`` and a hand-written ``backward``, and blocks compose into blocks (see
:mod:`fnn.executor`, the one place where the chain rule is applied).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

import jax

from fnn.markup import preformatted
from fnn.spelling import attribute_meant, call_of

Params = Any  # a pytree whose leaves are all arrays; {} where there are none
Residuals = Any  # a pytree: what forward keeps for backward
Value = Any  # an array, or a tuple of arrays for a block with several inputs or outputs
Key = jax.Array | None  # a jax.random key


class Init(Protocol):
    """``init(key, x) -> params``: fresh parameters for inputs like ``x``.

    Args:
      key: a ``jax.random`` key.
      x: an array, a ``jax.ShapeDtypeStruct``, or a tuple of such; only shapes and dtypes are read.

    Returns:
      A pytree whose leaves are all arrays; ``{}`` where the block has no parameters.
    """

    def __call__(self, key: jax.Array, x: Value, /) -> Params: ...


class Forward(Protocol):
    """``forward(params, x, key=None) -> (y, residuals)``: the function, and what backward needs.

    Args:
      params: as ``init`` makes them.
      x: an array, or a tuple of arrays for a block with several inputs.
      key: randomness, for the blocks that use it.

    Returns:
      ``y``: an array, or a tuple of arrays for a block with several outputs.
      ``residuals``: a pytree with whatever ``backward`` needs and nothing else.
    """

    def __call__(self, params: Params, x: Value, /, key: Key = None) -> tuple[Value, Residuals]: ...


class Backward(Protocol):
    """``backward(params, residuals, dy) -> (dparams, dx)``: the chain rule through the block.

    Args:
      params: those that forward was given.
      residuals: what forward kept.
      dy: the cotangent of ``y``; where ``y`` is a tuple, None for an output without a gradient.

    Returns:
      The cotangents of ``params`` and of ``x``, each of the shape and dtype of what it belongs to.
      ``None`` stands for one that does not exist (an integer input) or is not computed (a frozen
      parameter).
    """

    def __call__(
        self, params: Params, residuals: Residuals, dy: Value, /
    ) -> tuple[Params, Value]: ...


class InferenceRule(Protocol):
    """``inference() -> block``: the block that this one is at inference, with the same params."""

    def __call__(self) -> Block: ...


class ValidateRule(Protocol):
    """``validate(x)``: checks concrete data on the host, before training starts.

    For blocks, losses above all, that know bad values: labels out of range, for example. ``fit``
    asks the loss, and the blocks that read the network's input as it comes.

    Args:
      x: the block's input as NumPy arrays; for a loss ``(prediction, target)``, where the
        prediction may be a ``jax.ShapeDtypeStruct``.

    Raises:
      BlockError: the block cannot be trained on this data.
    """

    def __call__(self, x: Value, /) -> None: ...


class UpdateStatistics(Protocol):
    """``update_statistics(params, residuals) -> params``: running statistics, updated once a step.

    Running statistics are parameters whose cotangent is None. Training steps call this with
    forward's residuals; the result has the structure, shapes and dtypes of ``params``.
    """

    def __call__(self, params: Params, residuals: Residuals, /) -> Params: ...


class SubgradientRule(Protocol):
    """``subgradient(x, dy) -> dx``: the block's choice at points without a derivative.

    Elsewhere its result is ignored. :mod:`fnn.check` compares ``backward`` with it.
    """

    def __call__(self, x: Value, dy: Value, /) -> Value: ...


class Factors(Protocol):
    """``factors(params, residuals, dy) -> (a, g)``: the two factors of each example's gradient.

    Example n's gradient of a weight matrix is the outer product of ``a[n]`` and ``g[n]``, from
    which per-example gradients and curvature are built.
    """

    def __call__(
        self, params: Params, residuals: Residuals, dy: Value, /
    ) -> tuple[Value, Value]: ...


class Rules(NamedTuple):
    """The optional rules beside ``backward``; None where the block has none.

    Which of them the blocks made by combinators keep is a table in :mod:`fnn.blocks.combinators`.
    """

    inference: InferenceRule | None = None
    validate: ValidateRule | None = None
    update_statistics: UpdateStatistics | None = None
    subgradient: SubgradientRule | None = None
    factors: Factors | None = None


class Kind(NamedTuple):
    """What a block is: the function that made it, its arguments, and the blocks it wraps.

    ``Kind("power", (2,))``, ``Kind("freeze", (), (block,))``. Whatever depends on the kind of a
    block (initialisers, formulas, which units can die) is a table by ``maker``. A graph's blocks
    are its nodes', not ``of``.
    """

    maker: str
    args: tuple[Any, ...] = ()
    of: tuple[Block, ...] = ()

    @property
    def call(self) -> str:
        """The call that makes the block, without what is the default: ``conv(32, 3)``."""
        return call_of(self.maker, self.args, len(self.of))


class Block(NamedTuple):
    """Three pure functions: how to initialise, how to go forward, how to go back.

    ``init(key, x) -> params``: :class:`Init`.
    ``forward(params, x, key=None) -> (y, residuals)``: :class:`Forward`.
    ``backward(params, residuals, dy) -> (dparams, dx)``: :class:`Backward`.

    The other fields are optional:

    ``name``: a label for paths and messages. Nothing depends on it.
    ``kind``: what the block is: :class:`Kind`. Your own blocks may have one.
    ``graph``: the :class:`Graph` inside, where the block is made of others.
    ``rules``: the optional rules: :class:`Rules`.

    Example: a block that doubles its input, and its use.

    >>> import jax.numpy as jnp
    >>> from fnn import Block
    >>> double = Block(
    ...     init=lambda key, x: {},
    ...     forward=lambda params, x, key=None: (2 * x, ()),
    ...     backward=lambda params, residuals, dy: ({}, 2 * dy),  # forward: y = 2x
    ...     name="double",
    ... )
    >>> y, residuals = double.forward({}, jnp.array([1.0, 2.0]))
    >>> double.backward({}, residuals, jnp.array([1.0, 10.0]))[1]
    Array([ 2., 20.], dtype=float32)
    """

    init: Init
    forward: Forward
    backward: Backward
    name: str = "block"
    kind: Kind = Kind("custom")
    graph: Graph | None = None
    rules: Rules = Rules()

    def __repr__(self) -> str:
        return "\n".join(_outline(self, self.name))

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


def _no_attribute(block: Block, name: str) -> NoReturn:
    hint = attribute_meant("block", name)
    graph = object.__getattribute__(block, "graph")
    if graph is not None and name in {node.name for node in graph.nodes}:
        hint = f"its parameters are params[{name!r}], and net.graph.nodes holds the block"
    raise AttributeError(f"a block has no {name!r}{f': {hint}' if hint else ''}")


def _no_call(block: Block, *args: Any, **kwargs: Any) -> NoReturn:
    raise BlockTypeError(
        block.name, f"a block is not called, its functions are: {attribute_meant('block', 'call')}"
    )


def _no_arithmetic(block: Block, other: Any) -> NoReturn:
    raise BlockTypeError(
        block.name,
        "blocks are not added or multiplied: fnn.serial(a, b) runs one after the other, "
        "fnn.repeat(block, 2) twice the same, and fnn.add() adds values",
    )


if not TYPE_CHECKING:  # which knows that a block has none of these
    Block.__getattr__, Block.__call__ = _no_attribute, _no_call
    Block.__add__ = Block.__mul__ = Block.__rmul__ = _no_arithmetic


def _outline(block: Block, label: str) -> Iterator[str]:
    """The block and, indented, those inside it: names, makers and their arguments.

    >>> import fnn
    >>> print(fnn.serial(hidden=fnn.linear(16), act=fnn.tanh()))
    serial
      hidden: linear(16)
      act: tanh()
    """
    waiting = [("", label, block)]
    while waiting:
        indent, label, block = waiting.pop()
        if block.graph is not None:
            own = block.kind.call if block.kind.args else block.kind.maker
            own = label if own == "graph" else own
            inside = [(node.name, node.block) for node in block.graph.nodes]
        else:
            own = block.kind.call
            inside = [(part.name, part) for part in block.kind.of]
        own = f"{own:.80}"
        yield indent + (own if label in (block.kind.maker, own) else f"{label}: {own}")
        waiting += [(indent + "  ", name, part) for name, part in reversed(inside)]


def unwrapped(block: Block) -> Block:
    """The block inside wrappers that change neither its function nor its derivative.

    >>> import fnn
    >>> unwrapped(fnn.freeze(fnn.rematerialize(fnn.relu()))).kind.maker
    'relu'
    """
    while block.kind.maker in ("freeze", "rematerialize") and block.kind.of:
        (block,) = block.kind.of
    return block


class Node(NamedTuple):
    """A named block in a graph: which values it reads, and whose parameters it uses."""

    name: str
    block: Block
    inputs: tuple[str, ...]
    params_of: str


class Graph(NamedTuple):
    """A network as data: nodes in an order in which every value is computed before it is read.

    ``at_inference``: names of the outputs that :func:`~fnn.executor.inference` keeps.
    """

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    at_inference: tuple[str, ...]


def no_params(key: jax.Array, x: Value) -> Params:
    """The ``init`` of a block without parameters."""
    return {}


class BlockError(Exception):
    """A block refuses its input or parameters; the message says where, what, and the fix.

    ``path``: where the block is in the network, outermost first; the executor fills it in as the
    error passes through (see :func:`located`).
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message
        self.path: list[str] = []

    def __str__(self) -> str:
        where = f"{'/'.join(self.path)} ({self.name})" if self.path else self.name
        return f"{where}: {self.message}"


class BlockValueError(BlockError, ValueError):
    """A wrong value, shape or parameter."""


class BlockTypeError(BlockError, TypeError):
    """A wrong dtype or type of input."""


# What JAX raises where Python or NumPy needs a number that is known only when the program runs.
NOT_TRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@contextmanager
def located(name: str) -> Iterator[None]:
    """Adds ``name`` to the path of any error raised inside, and to names in the compiled program.

    Errors that are not fnn's own (from a user's block, for example) keep their type and text and
    get a note.
    """
    try:
        with jax.named_scope(name):
            yield
    except BlockError as error:
        error.path.insert(0, name)
        raise
    except (ValueError, TypeError) as error:
        error.add_note(f"in block {name!r}")
        raise
    except RecursionError as error:
        explain_depth(error)
        raise


def explain_depth(error: RecursionError) -> None:
    """Says what helps where graphs are nested more deeply than Python calls within calls."""
    if not hasattr(error, "__notes__"):
        error.add_note(
            f"networks are nested too deeply for Python's {sys.getrecursionlimit()} calls within "
            "calls: give serial all blocks in a row, not serial within serial; fnn.repeat for many "
            "alike; or raise sys.setrecursionlimit"
        )
