"""What blocks refuse, in words: wrong inputs, parameters, cotangents and keys.

``require_...`` raises where a value does not do; ``as_...`` also returns it as JAX has it. Every
message says which block, what it got, what it needs, and the fix.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fnn.arrays import Spec, is_array, is_floating
from fnn.block import (
    Backward,
    Block,
    BlockTypeError,
    BlockValueError,
    Forward,
    Init,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    Value,
    no_params,
)
from fnn.spelling import call_meant

A_KEY = "a key made by jax.random.key(seed)"
_NOT_THE_CALLER = (
    os.path.dirname(__file__) + os.sep, os.path.dirname(jax.__file__) + os.sep, contextlib.__file__,
)  # fmt: skip


def warn(words: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line outside fnn and JAX from which all this was called."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_code.co_filename.startswith(_NOT_THE_CALLER):
        frame, level = frame.f_back, level + 1
    warnings.warn(words, category, stacklevel=level)


def is_key(value: Any) -> bool:
    """Whether a value is one random key, typed or raw."""
    if not is_array(value):
        return False
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return value.shape == () if typed else value.dtype == jnp.uint32 and value.shape == (2,)


def is_real(value: Any, *shapes: Sequence[int]) -> bool:
    """Whether a value is real numbers or booleans of one of these shapes, Python's included."""
    value = np.asarray(value) if isinstance(value, (int, float)) else value
    if not is_array(value) or value.shape not in shapes:
        return False
    return any(jnp.issubdtype(value.dtype, k) for k in (jnp.floating, jnp.integer, jnp.bool_))


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
    if hasattr(value, "shape") and not isinstance(value, type):
        module = type(value).__module__.partition(".")[0]
        return f"a {module}.{kind} of shape {tuple(value.shape)}"
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


def require_array(name: str, what: str, x: Any) -> None:
    """Refuses what has no dtype and shape, arrays of objects, text or random keys, and those of
    another byte order, which JAX does not take."""
    is_numpy = isinstance(x, (np.ndarray, np.generic))
    is_text = is_numpy and x.dtype.kind in "OUSMm"
    if not is_array(x) or is_text or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        to_array = ".toarray()" if hasattr(x, "toarray") else "jax.numpy.asarray(...)"
        fix = shape_hint(x) or to_array
        raise BlockTypeError(name, f"{what} is {described(x)}, needs an array: {fix}")
    if is_numpy and not x.dtype.isnative:
        raise BlockTypeError(
            name,
            f"{what} has dtype {x.dtype}, its bytes in another order than this machine's: "
            f"convert it by .astype('{x.dtype.name}')",
        )


def shape_hint(x: Any, dtype: str = "float32") -> str:
    """What to give where a tuple of integers was meant as a shape; or ''.

    >>> shape_hint((1, 10)), shape_hint(10)
    ("if a shape is meant, give jax.ShapeDtypeStruct((1, 10), 'float32')", '')
    """
    is_shape = type(x) is tuple and x and all(type(v) is int and v >= 0 for v in x)
    return f"if a shape is meant, give jax.ShapeDtypeStruct({x}, '{dtype}')" if is_shape else ""


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


def require_floating(name: str, what: str, x: Any) -> None:
    """Refuses an input without a gradient; the message has the cast that helps."""
    require_array(name, what, x)
    if not is_floating(x):
        raise BlockTypeError(
            name,
            f"{what} has dtype {x.dtype} and needs a floating dtype; cast it first, for example "
            f"{what}.astype(jax.numpy.float32) (and scale bytes: / 255)",
        )


def require_real(name: str, what: str, x: Any) -> None:
    """Refuses what is neither a Python number nor an array of real numbers, and integers that JAX
    would wrap."""
    is_number = isinstance(x, float) or (isinstance(x, int) and abs(x) < 2**63)
    x = np.asarray(x) if is_number else x
    require_array(name, what, x)
    require_numbers(name, what, x)
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool) or x.dtype.kind == "c":
        raise BlockTypeError(name, f"{what} has dtype {x.dtype}, needs real numbers or booleans")
    if words := misfit(x):
        raise BlockValueError(name, f"{what} {words}")


def as_held(tree: Any) -> Any:
    """The tree with NumPy's float64 as JAX holds it: as float32, unless 64 bits are switched on.

    Asked for float64 by name, JAX warns.
    """

    def one(a: Any) -> Any:
        is_wide = isinstance(a, (np.ndarray, np.generic)) and a.dtype == np.float64
        return jnp.asarray(a) if is_wide else a

    return jax.tree.map(one, tree)


def require_entries(name: str, what: str, value: Any, shape: tuple[int, ...], or_one: bool) -> None:
    """Refuses what a user's function returned, unless it is one real number for each entry of x, or
    one for all where that is allowed."""
    if not is_real(value, shape, *[()][:or_one]):
        raise BlockTypeError(
            name,
            f"{what} is {described(value)}, needs real numbers of x's shape {shape}: return an "
            "array with one for each entry",
        )


def as_floating(name: str, what: str, x: Any) -> jax.Array:
    """x as an array, also where it is a Python number; refused if it has no gradient."""
    if isinstance(x, float) or (type(x) is int and abs(x) < 2**1023):
        x = jnp.asarray(x, float) if isinstance(x, int) else jnp.asarray(x)
    require_floating(name, what, x)  # a tuple too: it would be stacked silently
    require_numbers(name, what, x)
    return jnp.asarray(x)


def as_array(name: str, what: str, x: Any) -> jax.Array:
    """Real numbers as JAX has them, also a Python number."""
    require_real(name, what, x)
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


def require_groups(name: str, x: Spec, groups: int) -> None:
    """Refuses channels of x that cannot be split into equal groups."""
    channels, shape = x.shape[-1], tuple(x.shape)
    if channels == 0 or channels % groups:
        raise BlockValueError(
            name,
            f"x has {channels} channels (shape {shape}), which cannot be split into {groups} equal "
            f"groups: needs a multiple of {groups}, or groups that divide {channels}",
        )


def require_key(name: str, key: Any, usage: str = "") -> None:
    """Refuses what is no random key; ``usage``: the call that was meant, for the message."""
    if not is_key(key):
        hint = f": {usage}" if usage else ""
        raise BlockTypeError(name, f"key is {described(key)}, needs {A_KEY}{hint}")


def require_no_model(name: str, params: Any, what: str = "params") -> None:
    """Refuses what fit returned, or the network itself, in place of the parameters, and parameters
    in a mapping that JAX does not know."""
    if isinstance(params, Block):
        raise BlockTypeError(
            name,
            f"{what} is {described(params)}, needs its parameters: make them with init(key, x)",
        )
    if hasattr(params, "params") and hasattr(params, "history"):
        raise BlockTypeError(
            name, f"{what} is a {type(params).__name__}, needs its parameters: give fitted.params"
        )
    if isinstance(params, Mapping) and jax.tree_util.all_leaves([params]):
        raise BlockTypeError(
            name,
            f"{what} is a {type(params).__name__}, which JAX does not know as a pytree: give "
            "dict(...) of it",
        )


def require_params(name: str, params: Any, needed: Collection[str]) -> None:
    """Refuses parameters that are not a dict of those leaves."""
    require_no_model(name, params)
    if not isinstance(params, Mapping) or set(params) != set(needed):
        got = sorted(map(str, params)) if isinstance(params, Mapping) else described(params)
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
        meant = "" if is_array(value) else call_meant(value)
        if callable(value) and not isinstance(value, type) and not meant:
            meant = "call it: a function that returns a block is not one"
        hint = f" ({meant})" if meant else ""
        raise BlockTypeError(name, f"{what} is {described(value)}, needs a Block{hint}")


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

    def require_x(x: Value, usage: str) -> None:
        if x is None:
            raise BlockTypeError(name, f"got no x, needs one: {usage}")

    def checked_init(key: jax.Array, x: Value = None) -> Params:
        require_key(name, key, "init(key, x)")
        require_x(x, "init(key, x)")
        return init(key, as_held(x))

    def checked_forward(
        params: Params, x: Value = None, key: Key = None
    ) -> tuple[Value, Residuals]:
        require_x(x, "params = init(key, x), then forward(params, x)")
        if key is not None:
            require_key(name, key)
        if init is no_params:
            require_params(name, params, ())
        require_no_model(name, params)
        require_numbers(name, "params", params)
        require_numbers(name, "x", x)
        return forward(as_held(params), as_held(x), key)

    def checked_backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        if init is no_params:
            require_params(name, params, ())
        return backward(as_held(params), residuals, as_held(dy))

    own_init = init if init is no_params else checked_init
    return Block(own_init, checked_forward, checked_backward, name, kind, rules=rules)
