"""Finding the first block whose output or cotangent is not finite."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import Block, Key, Params, Residuals, Value, is_floating
from fnn.graph import map_nodes


class NonFinite(NamedTuple):
    """Where the first NaN or infinity appeared: which block, in which pass, from what."""

    path: str
    direction: str  # "forward" or "backward"
    inputs: str

    def __str__(self) -> str:
        what = "output" if self.direction == "forward" else "cotangents"
        where = f"{what} of {self.path} ({self.direction})"
        return f"first non-finite value: {where}, from {self.inputs}"


def first_nonfinite(block: Block, params: Params, x: Value, key: Key = None) -> NonFinite | None:
    """The first block, in order of execution, that makes a number that is not finite.

    Runs the block forward, then backward from a cotangent of ones, with every block inside it
    watched. Runs eagerly: meant for the moment after something went wrong.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.serial(shift=fnn.negate(), root=fnn.sqrt())
    >>> print(fnn.check.first_nonfinite(net, {}, jnp.array([1.0])))
    first non-finite value: output of root (forward), from x: float32[1] from -1 to -1
    """
    found: list[NonFinite] = []

    def report(direction: str, path: tuple[str, ...], made: Value, **given: Value) -> None:
        # Blocks inside are asked before the ones around them, so the first is the innermost.
        if not found and not all_finite(made):
            found.append(NonFinite("/".join(path) or block.name, direction, _describe(given)))

    def watch(path: tuple[str, ...], inner: Block) -> Block:
        if inner.graph is not None:
            inner = map_nodes(inner, lambda name, node: watch((*path, name), node))

        def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
            y, residuals = inner.forward(params, x, key)
            report("forward", path, y, x=x, params=params)
            return y, residuals

        def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
            made = inner.backward(params, residuals, dy)
            report("backward", path, made, dy=dy, params=params)
            return made

        return inner._replace(forward=forward, backward=backward)

    watched = watch((), block)
    y, residuals = watched.forward(params, x, key)
    if not found:
        watched.backward(params, residuals, jax.tree.map(jnp.ones_like, y))
    return found[0] if found else None


def all_finite(value: Value) -> bool:
    """Whether every floating number in a pytree is finite."""
    leaves = [leaf for leaf in map(jnp.asarray, jax.tree.leaves(value)) if is_floating(leaf)]
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)


def _describe(given: dict[str, Value]) -> str:
    """Shape, range and number of bad values of every float array given."""
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(given):
        leaf = jnp.asarray(leaf)
        if not is_floating(leaf):
            continue
        a = np.asarray(leaf, np.float64)
        good = a[np.isfinite(a)]
        text = f"{jax.tree_util.keystr(path, simple=True, separator='/')}: "
        text += f"{leaf.dtype}{list(a.shape)}"
        if good.size:
            text += f" from {good.min():.4g} to {good.max():.4g}"
        if good.size < a.size:
            text += f" and {a.size - good.size} not finite"
        parts.append(text)
    return "; ".join(parts)
