"""The options of a check, and what their annotations allow: see :mod:`fnn.arguments`."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import jax.numpy as jnp
import numpy as np

from fnn.arguments import Needs, binding
from fnn.block import BlockError
from fnn.check.report import CheckError
from fnn.check.run import PROPERTIES

F = TypeVar("F", bound=Callable[..., Any])


def _is_precision(value: Any) -> bool:
    if not isinstance(value, (str, type, np.dtype)):
        return False
    try:
        return jnp.dtype(value) in (jnp.float32, jnp.float64)
    except TypeError:
        return False


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


Name = Annotated[str, Needs(f"one of {', '.join(PROPERTIES)}", lambda name: name in PROPERTIES)]
Names = Name | Sequence[Name]
Precision = Annotated[Any, Needs("'float64' or 'float32'", _is_precision)] | None
Seconds = Annotated[Any, Needs("a number above 0", _is_positive)]


def checked(check: F) -> F:
    """Refuses, by a CheckError, arguments that the function's annotations do not allow."""
    bound = binding(check)

    @functools.wraps(check)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = bound(*args, **kwargs)
        except BlockError as error:
            raise CheckError(f"fnn.check.{error}") from None
        return check(*given.args, **given.kwargs)

    return typing.cast(F, call)
