"""The protocol: a block is three pure functions, and everything in fnn is a block.

A gate, a layer, a loss, a whole network, a network with its loss: each has an ``init``, a
``forward`` and a hand-written ``backward``, and blocks compose into blocks (see
:mod:`fnn.executor`, the one place where the chain rule is applied).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any  # a pytree whose leaves are all arrays; {} where there are none
Residuals = Any  # a pytree: what forward keeps for backward, and nothing else
Value = Any  # an array, or a tuple of arrays for a block with several inputs or outputs
Key = Any  # a jax.random key, or None

Init = Callable[[Key, Value], Params]
Forward = Callable[..., tuple[Value, Residuals]]
Backward = Callable[[Params, Residuals, Value], tuple[Params, Value]]


class Block(NamedTuple):
    """Three pure functions: how to initialise, how to go forward, how to go back.

    ``init(key, x) -> params``
        ``x`` is an array or a ``jax.ShapeDtypeStruct``; only shapes and dtypes are read.
    ``forward(params, x, key=None) -> (y, residuals)``
        ``residuals`` is whatever ``backward`` needs and nothing else. ``key`` is randomness,
        for the blocks that use it.
    ``backward(params, residuals, dy) -> (dparams, dx)``
        The chain rule through this block: from the cotangent of ``y`` to those of ``params``
        and ``x``, each of the shape and dtype of what it belongs to. ``None`` stands for a
        cotangent that does not exist (an integer input) or is not computed (a frozen
        parameter). Where ``y`` is a tuple, ``dy`` has None for an output without a gradient.

    The other fields are optional:

    ``name``: what the block is called in paths and messages.
    ``graph``: the :class:`~fnn.graph.Graph` inside, where the block is made of others.
    ``inference``: makes the block that this one is at inference; ``None`` means itself, or the
    graph of what its nodes are.
    ``validate``: looks at concrete data on the host before training, for blocks (losses)
    that can refuse bad values; raises :class:`BlockError`.
    ``track``: ``(params, residuals) -> params``, for blocks with running statistics: the
    parameters with those moved towards what forward has just seen. Training steps call it.
    ``subgradient``: ``(x, dy) -> dx`` at points without a derivative, as the block declares it;
    :mod:`fnn.check` holds ``backward`` to it there.

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
    graph: Graph | None = None
    inference: Callable[[], Block] | None = None
    validate: Callable[[Value], None] | None = None
    track: Callable[[Params, Residuals], Params] | None = None
    subgradient: Callable[[Value, Value], Value] | None = None


class Node(NamedTuple):
    """A named block in a graph: which values it reads, and whose parameters it uses."""

    name: str
    block: Block
    inputs: tuple[str, ...]
    params_of: str


class Graph(NamedTuple):
    """A network as data: nodes in an order in which every value is made before it is read.

    ``at_inference``: the outputs that are left there.
    """

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    at_inference: tuple[str, ...]


def no_params(key: Key, x: Value) -> Params:
    """The ``init`` of a block without parameters."""
    return {}


class BlockError(Exception):
    """A block refuses what it was given; the message says where, what, and the fix.

    ``path`` is where the block sits in the network, outermost first; the executor fills it
    in as the error passes through (see :func:`located`).
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
    """A value, shape or parameter that does not fit."""


class BlockTypeError(BlockError, TypeError):
    """A dtype or kind of input that does not fit."""


@contextmanager
def located(name: str) -> Iterator[None]:
    """Adds ``name`` to the path of any error raised inside, and to the compiled program.

    An error that is not fnn's own (say, from a user's block) keeps its type and text and
    gets a note.
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


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shape:
    """A residual that keeps an array's shape and dtype, and none of its bytes.

    It is a pytree without leaves, so it passes through ``jit``, ``vmap`` and ``scan``.
    """

    shape: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, x: Any) -> Shape:
        return cls(tuple(x.shape), jnp.dtype(x.dtype))


def is_floating(x: Any) -> bool:
    """Whether ``x`` has a gradient: float, not integer, boolean or key."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def require_floating(name: str, what: str, x: Any) -> None:
    """Refuses an input without a gradient, with the cast that mends it."""
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise BlockTypeError(
            name, f"{what} is a {type(x).__name__}, needs one array: jax.numpy.asarray(...)"
        )
    if not is_floating(x):
        raise BlockTypeError(
            name,
            f"{what} has dtype {x.dtype} and needs a floating dtype; cast it first, for example "
            f"{what}.astype(jax.numpy.float32) (and scale bytes: / 255)",
        )


def require_params(name: str, params: Any, needed: Collection[str]) -> None:
    """Refuses parameters that are not a dict of those leaves."""
    if not isinstance(params, dict) or set(params) != set(needed):
        got = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise BlockTypeError(
            name, f"params hold {got}, need {sorted(needed)}: make them with init(key, x)"
        )


def require_block(name: str, what: str, value: Any) -> None:
    """Refuses what is no block, and says how to make one of a function that makes them."""
    if not isinstance(value, Block):
        hint = " (call it: blocks are made by functions)" if callable(value) else ""
        raise BlockTypeError(name, f"{what} needs a Block, got {type(value).__name__}{hint}")


def whole_number(name: str, what: str, value: Any, least: int = 1) -> int:
    """The number as an int (of NumPy's kinds too), or a refusal."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise BlockValueError(
            name, f"{what} is {value!r}, needs a whole number of at least {least}"
        )
    return number


def compute_dtype(dtype: Any) -> Any:
    """The dtype in which sums and transcendental functions of ``dtype`` are computed.

    bfloat16 and float16 have too few digits to accumulate in: float32 for both.
    """
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
