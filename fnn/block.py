"""The protocol: a block is three pure functions, and everything in fnn is a block.

A gate, a layer, a loss, a whole network, a network with its loss: each has an ``init``, a
``forward`` and a hand-written ``backward``, and blocks compose into blocks (see
:mod:`fnn.executor`, the one place where the chain rule is applied).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

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

    For blocks, losses above all, that know bad values: labels out of range, for example.

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


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shape:
    """A residual of an array's shape and dtype, without its bytes.

    It is a pytree without leaves, which passes through ``jit``, ``vmap`` and ``scan``.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, x: Spec) -> Shape:
        return cls(tuple(x.shape), jnp.dtype(x.dtype))


Spec = jax.Array | jax.ShapeDtypeStruct | Shape  # what has a shape and a dtype, all init reads


def is_floating(x: Any) -> bool:
    """Whether ``x`` has a gradient: it is float, not integer, boolean or a key."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def is_array(x: Any) -> bool:
    """Whether ``x`` has a dtype and a shape: an array, or a ``jax.ShapeDtypeStruct``."""
    return hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, type)


def require_array(name: str, what: str, x: Any) -> None:
    """Refuses what has no dtype and shape, and arrays of objects or text."""
    is_numpy = isinstance(x, (np.ndarray, np.generic))
    if not is_array(x) or (is_numpy and x.dtype.kind in "OUSMm"):
        raise BlockTypeError(
            name, f"{what} is {described(x)}, needs an array: jax.numpy.asarray(...)"
        )


def require_numbers(name: str, what: str, tree: Any, or_shapes: bool = False) -> None:
    """Refuses leaves that are neither arrays (or shapes) nor Python numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        here = f"{what}{jax.tree_util.keystr(path)}"
        if isinstance(leaf, jax.ShapeDtypeStruct) and not or_shapes:
            raise BlockTypeError(
                name,
                f"{here} is {described(leaf)} without its numbers, needs arrays: give a "
                "jax.ShapeDtypeStruct to init, or to jax.eval_shape(forward, ...)",
            )
        if not isinstance(leaf, float) and (type(leaf) is not int or abs(leaf) >= 2**63):
            require_array(name, here, leaf)


def is_split(x: jax.Array) -> bool:
    """Whether an array is split over an explicit mesh, which must be told what becomes of parts."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def require_floating(name: str, what: str, x: Any) -> None:
    """Refuses an input without a gradient; the message has the cast that helps."""
    require_array(name, what, x)
    if not is_floating(x):
        raise BlockTypeError(
            name,
            f"{what} has dtype {x.dtype} and needs a floating dtype; cast it first, for example "
            f"{what}.astype(jax.numpy.float32) (and scale bytes: / 255)",
        )


def as_floating(name: str, what: str, x: Any) -> jax.Array:
    """x as an array, also where it is a Python number; refused if it has no gradient."""
    if isinstance(x, float) or (type(x) is int and abs(x) < 2**1023):
        x = jnp.asarray(x, float) if isinstance(x, int) else jnp.asarray(x)
    require_floating(name, what, x)  # a tuple too: it would be stacked silently
    require_numbers(name, what, x)
    return jnp.asarray(x)


def as_cotangent(
    name: str, dy: Any, shape: Sequence[int] | None = None, dtype: Any = None
) -> jax.Array:
    """dy as an array, also where it is a Python number; refused unless it has y's shape, and its
    dtype where that matters."""
    dy = as_floating(name, "dy", dy)
    if dtype is not None and dy.dtype != dtype:
        raise BlockTypeError(name, f"dy is {dy.dtype}, needs the dtype of y: dy.astype({dtype})")
    if shape is not None and dy.shape != tuple(shape):
        raise BlockValueError(
            name,
            f"dy has shape {dy.shape}, needs that of y, {tuple(shape)}: give the cotangent "
            "of what forward returned",
        )
    return dy


def axes_of(name: str, axis: int | Sequence[int] | None, x: Spec) -> tuple[int, ...]:
    """The axes of x that are asked for (all for None), from 0 on, in order."""
    rank = len(x.shape)
    asked = range(rank) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = tuple(sorted({a % rank for a in asked if -rank <= a < rank}))
    if len(axes) < len(asked):
        raise BlockValueError(
            name,
            f"axis {axis} does not fit x of shape {tuple(x.shape)}: needs different axes from "
            f"{-rank} to {rank - 1}",
        )
    return axes


A_KEY = "a key made by jax.random.key(seed)"


def is_key(value: Any) -> bool:
    """Whether a value is one random key, typed or raw."""
    if not is_array(value):
        return False
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return value.shape == () if typed else value.dtype == jnp.uint32 and value.shape == (2,)


def require_key(name: str, key: Any) -> None:
    """Refuses what is no random key."""
    if not is_key(key):
        raise BlockTypeError(name, f"key is {described(key)}, needs {A_KEY}")


def described(value: Any) -> str:
    """A value in a few words, for messages.

    >>> described({"b": 0, "w": 1}), described(np.zeros((2, 3))), described(repr)
    ("a dict of ['b', 'w']", 'float64 of shape (2, 3)', 'the function repr')
    """
    kind = type(value).__name__
    if is_array(value):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, Block):
        return f"the block {value.name}"
    if isinstance(value, Mapping):
        return f"a {kind} of {sorted(map(str, value))}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    text = " ".join(repr(value).split())
    is_sequence = isinstance(value, (tuple, list))
    if is_sequence and (len(text) > 60 or any(map(is_array, value))):
        return f"a {kind} of {len(value)}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def misfit(integers: Any, dtype: DTypeLike | None = None) -> str:
    """Why integers do not fit a dtype, in words; "" where they do, or where they are traced.

    The dtype is by default the one that JAX makes of theirs: it wraps NumPy's int64 to int32 where
    64 bits are switched off, so that 2^32 + 1 would be 1.

    >>> misfit(np.array([2**32 + 1]))[:60]
    'has integers from 4294967297 to 4294967297, which int32 cann'
    """
    if not isinstance(integers, (np.ndarray, np.generic)) or integers.dtype.kind not in "iu":
        return ""
    dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(integers.dtype) if dtype is None else dtype)
    if dtype == integers.dtype or not integers.size:
        return ""
    low, high, limits = int(integers.min()), int(integers.max()), jnp.iinfo(dtype)
    if limits.min <= low and high <= limits.max:
        return ""
    return (
        f"has integers from {low} to {high}, which {dtype} cannot hold: make them smaller, or "
        "switch on jax.config.update('jax_enable_x64', True)"
    )


def require_real(name: str, what: str, x: Any) -> None:
    """Refuses what is neither a Python number nor an array of real numbers, and integers that JAX
    would wrap."""
    x = np.asarray(x) if isinstance(x, (int, float)) else x
    require_array(name, what, x)
    require_numbers(name, what, x)
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool) or x.dtype.kind == "c":
        raise BlockTypeError(name, f"{what} has dtype {x.dtype}, needs real numbers or booleans")
    if words := misfit(x):
        raise BlockValueError(name, f"{what} {words}")


def as_array(name: str, what: str, x: Any) -> jax.Array:
    """Real numbers as JAX has them, also a Python number."""
    require_real(name, what, x)
    return jnp.asarray(x)


def require_params(name: str, params: Any, needed: Collection[str]) -> None:
    """Refuses parameters that are not a dict of those leaves."""
    if not isinstance(params, Mapping) or set(params) != set(needed):
        got = sorted(map(str, params)) if isinstance(params, Mapping) else type(params).__name__
        raise BlockTypeError(
            name, f"params hold {got}, need {sorted(needed)}: make them with init(key, x)"
        )


def require_shapes(
    name: str, params: Any, shapes: Mapping[str, Any], x: Spec | None = None
) -> None:
    """Refuses parameters that are not a dict of leaves of these shapes, which x asks for."""
    require_params(name, params, shapes)
    for leaf, shape in shapes.items():
        if isinstance(shape, Mapping):
            require_shapes(name, params[leaf], shape, x)
            continue
        require_floating(name, f"params[{leaf!r}]", params[leaf])
        if params[leaf].shape != shape:
            reason = "" if x is None else f" for x of shape {tuple(x.shape)}"
            raise BlockValueError(
                name,
                f"{leaf} has shape {params[leaf].shape}, needs {shape}{reason}: are these another "
                "network's parameters? Make some for this one with init(key, x)",
            )


def require_block(name: str, what: str, value: Any) -> None:
    """Refuses what is no block; of a function that makes blocks the message says to call it."""
    if not isinstance(value, Block):
        hint = " (call it: a function that returns a block is not one)" if callable(value) else ""
        raise BlockTypeError(name, f"{what} needs a Block, got {type(value).__name__}{hint}")


def whole_number(name: str, what: str, value: Any, least: int = 1) -> int:
    """The number as an int, NumPy's included; refused unless it is whole and at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise BlockValueError(
            name, f"{what} is {value!r}, needs a whole number of at least {least}"
        )
    return number


def compute_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which sums and transcendental functions of ``dtype`` are computed.

    float32 for bfloat16 and float16, which have too few digits to accumulate in.
    """
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def count_of(x: Spec, axes: Sequence[int] | None = None) -> Any:
    """The number of entries along some axes, all by default, as a float; 1 where there are none.

    A float, because int32 does not hold every count, and an array where jax.export leaves a size
    open.
    """
    count = math.prod(x.shape if axes is None else [x.shape[a] for a in axes])
    if isinstance(count, int):
        return float(max(count, 1))
    return jnp.maximum(jnp.asarray(count, compute_dtype(x.dtype)), 1)


def elementary(
    forward: Forward,
    backward: Backward,
    name: str,
    kind: Kind,
    rules: Rules = Rules(),  # noqa: B008
    init: Init = no_params,
) -> Block:
    """A block that is not made of others, and refuses what none of these takes.

    A key that is no key, parameters where it has none, a shape in place of an array: what it does
    not look at would be ignored.
    """

    def checked_init(key: jax.Array, x: Value) -> Params:
        require_key(name, key)
        return init(key, x)

    def checked_forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        if key is not None:
            require_key(name, key)
        if init is no_params:
            require_params(name, params, ())
        require_numbers(name, "params", params)
        require_numbers(name, "x", x)
        return forward(params, x, key)

    def checked_backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        require_params(name, params, ())
        return backward(params, residuals, dy)

    if init is no_params:
        return Block(init, checked_forward, checked_backward, name, kind, rules=rules)
    return Block(checked_init, checked_forward, backward, name, kind, rules=rules)
