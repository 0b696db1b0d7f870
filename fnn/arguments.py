"""Arguments of public functions, checked by their annotations: in one place, before anything runs.

What an annotation means is a table here (:func:`_converted`): a number is finite, a count at least
1, a flag True or False, a block a Block. NumPy's numbers, fractions and 0-d arrays become Python's,
lists and arrays of numbers tuples.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import operator
import os
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_array
from fnn.block import Block, BlockError, BlockTypeError, BlockValueError
from fnn.refusals import A_KEY, described, is_key
from fnn.spelling import argument_meant, call_meant, remember

F = TypeVar("F", bound=Callable[..., Any])


class Needs(NamedTuple):
    """A narrower kind of number: in words, with {} for the argument's name, and as a condition."""

    words: str
    fits: Callable[[Any], bool]


def _is_float_dtype(value: Any) -> bool:
    if not isinstance(value, (str, type, np.dtype)):
        return False
    try:
        return bool(jnp.issubdtype(jnp.dtype(value), jnp.floating))
    except TypeError:
        return False


def _descends(value: Any) -> bool:
    return hasattr(value, "init") and hasattr(value, "update")


Count = Annotated[int, Needs("a whole number of at least 1", lambda n: n >= 1)]
Natural = Annotated[int, Needs("a whole number of at least 0", lambda n: n >= 0)]
Positive = Annotated[float, Needs("a finite number above 0", lambda v: v > 0)]
NonNegative = Annotated[float, Needs("a finite number of at least 0", lambda v: v >= 0)]
FloatDType = Annotated[Any, Needs("a floating dtype, such as 'float32'", _is_float_dtype)]
RandomKey = Annotated[Any, Needs(A_KEY, is_key)]
AnyOptimizer = Annotated[
    Any, Needs("one with init and update: fnn.sgd(0.1) or one of Optax's", _descends)
]
Share = Annotated[float, Needs("0 <= {} < 1", lambda v: 0 <= v < 1)]  # 1 is all

_MISFIT = object()


def checked(make: F) -> F:
    """Refuses arguments that the function's annotations do not allow.

    >>> @checked
    ... def double(n: Count) -> int:
    ...     return 2 * n
    >>> double(np.int64(3))
    6
    >>> double(0)
    Traceback (most recent call last):
    ...
    fnn.block.BlockValueError: double: n is 0, needs a whole number of at least 1
    """
    bound = binding(make)
    remember(make)

    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = bound(*args, **kwargs)
        return make(*given.args, **given.kwargs)

    return typing.cast(F, call)


def made_once(make: F) -> F:
    """Returns the same block at every call with the same arguments, so that its functions, where
    they are :func:`~fnn.compiling.traced_once`, are so for all of a network's.

    >>> import fnn
    >>> fnn.tanh() is fnn.tanh()
    True
    """
    return typing.cast(F, functools.lru_cache(maxsize=None, typed=True)(make))


def binding(make: Callable[..., Any]) -> Callable[..., inspect.BoundArguments]:
    """``bound(*args, **kwargs)``: the arguments as the annotations of ``make`` have them; raises
    BlockValueError or BlockTypeError for those that they do not allow."""
    name, signature = make.__name__, inspect.signature(make)
    hints = typing.get_type_hints(make, include_extras=True)

    def bound(*args: Any, **kwargs: Any) -> inspect.BoundArguments:
        try:
            require_call(name, make, args, kwargs)
            given = signature.bind(*args, **kwargs)
            for what, value in given.arguments.items():
                given.arguments[what] = _require(name, what, hints[what], value)
        except BlockError:
            if args and hints.get("return") is Block and np.ndim(_array_or_none(args[0])):
                raise BlockTypeError(
                    name,
                    f"got {described(args[0])}, needs no data: it makes a block, and "
                    f"block.forward(params, x) applies it",
                ) from None
            raise
        return given

    return bound


def require_call(
    name: str, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Refuses a call that does not fit the signature of f, in the name of what made f."""
    signature = inspect.signature(f)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        words = _misuse(f.__name__, signature, args, kwargs)
        words = words or f"{error}, needs {usage(f.__name__, signature)}"
        raise BlockTypeError(name, words) from None


def method(f: F) -> F:
    """Refuses calls of a method that do not fit its signature, with the right spelling."""

    @functools.wraps(f)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        require_call(f.__name__, f.__get__(self), args, kwargs)
        return f(self, *args, **kwargs)

    return typing.cast(F, call)


def usage(name: str, signature: inspect.Signature) -> str:
    """A call with the arguments that are needed, such as ``conv(features, kernel, ...)``."""
    parameters = signature.parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    return f"{name}({', '.join([*needed, '...'][: len(signature.parameters)])})"


def _array_or_none(value: Any) -> Any:
    return value if is_array(value) else None


# Other libraries' makers of these take the number of inputs, at this place.
_INPUTS_AT = {
    **dict.fromkeys(
        ("linear", "layer", "conv", "conv_transpose", "batch_norm", "instance_norm"), 0
    ),
    "group_norm": 1,
}


def _misuse(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """What is wrong with a call that does not fit the signature, and the right spelling; or ''."""
    parameters = signature.parameters
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return ""
    if unknown := [wrong for wrong in kwargs if wrong not in parameters]:
        there_are = f"there are: {', '.join(parameters)}" if parameters else "there are none"
        hints = (argument_meant(wrong, parameters) or there_are for wrong in unknown)
        pairs = zip(unknown, hints, strict=True)
        return f"there is no argument {', '.join(f'{wrong!r} ({hint})' for wrong, hint in pairs)}"
    by_place = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if len(args) <= len(by_place):
        return ""

    def spelled(given: tuple[Any, ...]) -> str:
        words = []
        for i, (what, value) in enumerate(zip(parameters, given, strict=False)):
            text = repr(value) if type(value) in (bool, int, float, str, tuple) else what
            words.append(text if i < len(by_place) else f"{what}={text}")
        return f"{name}({', '.join(words)})"

    right = spelled(args)
    if name in _INPUTS_AT and all(type(part) is int for part in args):
        at = _INPUTS_AT[name]
        without = spelled((*args[:at], *args[at + 1 :]))
        inputs_first = f"{without} if {args[at]} is the number of inputs, which x tells"
        right = f"{inputs_first}; else {right}" if name.startswith("conv") else inputs_first
    takes = f"{', '.join(by_place)} by position, the rest" if by_place else "its arguments"
    got = f"{len(args)} positional arguments" if len(args) > 1 else "a positional argument"
    if not parameters:
        return f"got {got}, takes none: {name}()"
    return f"got {got}, takes {takes} by name: {right}"


def _require(name: str, what: str, hint: Any, value: Any) -> Any:
    converted = _converted(hint, value)
    if converted is not _MISFIT:
        return converted
    is_uncalled = isinstance(value, types.FunctionType) and "a function" not in _needs(hint)
    fix = _fix(_needs(hint), value, is_uncalled)
    is_value = isinstance(value, (numbers.Number, str, tuple, list)) and not is_uncalled
    error = BlockValueError if is_value and not isinstance(value, Block) else BlockTypeError
    raise error(name, f"{what} is {described(value)}, needs {_needs(hint).format(what)}{fix}")


def _fix(needs: str, value: Any, is_uncalled: bool) -> str:
    """What to give in place of a value that does not do; or ''."""
    if type(value) is int and value >= 2**31:
        return ", and below 2^31"
    if "a Block" in needs or "init and update" in needs:
        if type(value) in (list, tuple) and value and all(isinstance(v, Block) for v in value):
            return ": give fnn.serial(*blocks)"
        if is_uncalled and value.__name__ == "<lambda>":
            return ": make a block of it, with its own backward (docs/howto/own_block)"
        if not is_uncalled and not is_array(value) and (call := call_meant(value)):
            return f": {call}"
    return f": call it, {value.__name__}(...)" if is_uncalled else ""


def _converted(hint: Any, value: Any) -> Any:
    """The value as the annotation has it, or _MISFIT."""
    if hint is Any:
        return value
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        number = _converted(inside[0], value)
        return number if number is not _MISFIT and inside[1].fits(number) else _MISFIT
    if origin in (typing.Union, types.UnionType):
        fitting = (v for v in (_converted(each, value) for each in inside) if v is not _MISFIT)
        return next(fitting, _MISFIT)
    if origin is Literal:
        return value if any(type(v) is type(value) and v == value for v in inside) else _MISFIT
    if origin in (tuple, collections.abc.Sequence):
        is_array = isinstance(value, (np.ndarray, jax.Array)) and value.ndim > 0
        if not is_array and not isinstance(value, (tuple, list, range)):
            return _MISFIT
        each = inside if origin is tuple else inside * len(value)
        parts = tuple(map(_converted, each, value)) if len(each) == len(value) else (_MISFIT,)
        return _MISFIT if any(part is _MISFIT for part in parts) else parts
    if hint in (int, float):
        return _number(hint, value)
    if hint is bool:
        return bool(value) if isinstance(value, (bool, np.bool_)) else _MISFIT
    if _is_function(hint):
        return value if callable(value) and not isinstance(value, (type, Block)) else _MISFIT
    kind = origin or hint
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return value if isinstance(value, kind) else _MISFIT
    return value


def _is_function(hint: Any) -> bool:
    if hint is Block:  # which has a __call__ only to refuse
        return False
    return typing.get_origin(hint) is collections.abc.Callable or "__call__" in vars(hint)


def _number(kind: type, value: Any) -> Any:
    if isinstance(value, (bool, np.bool_, jax.core.Tracer)):
        return _MISFIT
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.shape == ():
        value = value.item() if jnp.issubdtype(value.dtype, jnp.number) else None
    if kind is int:
        whole = operator.index(value) if isinstance(value, numbers.Integral) else 2**31
        return whole if abs(whole) < 2**31 else _MISFIT
    if not isinstance(value, (int, float, numbers.Real)):
        return _MISFIT
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        finite = False
    if not finite:
        return _MISFIT
    return value if type(value) is int and abs(value) < 2**31 else float(value)


def _needs(hint: Any) -> str:
    """What an annotation allows, in words."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return inside[1].words
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_needs(each) for each in inside if each is not jax.core.Tracer)
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin is tuple:
        return f"({', '.join(map(_needs, inside))})"
    if origin is collections.abc.Sequence:
        return f"a tuple, each {_needs(inside[0])}"
    names = {
        int: "a whole number", float: "a finite number", bool: "True or False", str: "text",
        Block: "a Block", type(None): "None", os.PathLike: "a path",
    }  # fmt: skip
    kind = origin or hint
    return "a function" if _is_function(hint) else names.get(kind, f"a {kind.__name__}")
