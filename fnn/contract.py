"""A block's three functions as they are called, and the contract between them: in words where a
block of one's own breaks it.

This runs while a program is traced; the compiled program has no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from fnn.arrays import is_array
from fnn.block import NOT_TRACEABLE, Block, BlockTypeError, Key, Params, Residuals, Value
from fnn.refusals import described

RULES = "(docs/howto/own_block)"


def run_init(block: Block, key: jax.Array, x: Value) -> Params:
    """``block.init(key, x)``."""
    return _call(block, "init(key, x)", block.init, key, x)


def run_forward(block: Block, params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
    """``block.forward(params, x, key)``, refused where that is no pair."""
    returned = _call(block, "forward(params, x, key=None)", block.forward, params, x, key)
    y, residuals = _pair(block, "forward", returned, "(y, residuals)")
    return y, residuals


def run_backward(
    block: Block, params: Params, residuals: Residuals, dy: Value
) -> tuple[Params, Value]:
    """``block.backward(params, residuals, dy)``, refused where that is no pair, or its first part
    not like the parameters."""
    usage = "backward(params, residuals, dy)"
    returned = _call(block, usage, block.backward, params, residuals, dy)
    dparams, dx = _pair(block, "backward", returned, "(dparams, dx)")
    if not _is_like(dparams, params):
        raise BlockTypeError(
            block.name,
            f"backward returned {described(dparams)} as dparams, needs what params are, "
            f"{described(params)}: return (dparams, dx) in this order {RULES}",
        )
    return dparams, dx


def _call(block: Block, usage: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except NOT_TRACEABLE as error:
        if not getattr(error, "__notes__", ()):
            name = usage.partition("(")[0]
            error.add_note(
                f"{name} of block {block.name!r} is compiled: use jax.numpy in place of NumPy, and "
                f"jax.numpy.where in place of if {RULES}"
            )
        raise
    except TypeError as error:
        traceback = error.__traceback__
        if traceback is None or traceback.tb_next is not None:  # raised inside the function
            raise
        raise BlockTypeError(
            block.name, f"it is called as {usage}, which its own does not take: {error} {RULES}"
        ) from None


def _pair(block: Block, function: str, returned: Any, needed: str) -> Any:
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise BlockTypeError(
            block.name,
            f"{function} returned {described(returned)}, needs to return {needed} {RULES}",
        )
    return returned


def _is_like(dparams: Params, params: Params) -> bool:
    """Whether cotangents could be those of the parameters, by their outermost container."""
    if dparams is None or not jax.tree.leaves(params):
        return not jax.tree.leaves(dparams)
    if isinstance(params, Mapping):
        return isinstance(dparams, Mapping) and set(dparams) == set(params)
    return is_array(dparams) or not is_array(params)
