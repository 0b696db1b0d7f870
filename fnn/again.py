"""What is kept once instead of twice: a unit's output, computed again from its input going back.

A tanh keeps its input z, as 1 - y^2 has no digit left where y is near 1, and the linear layer after
it keeps y. JAX derives tanh and logistic from y, so plain JAX keeps y alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fnn.arrays import is_split
from fnn.block import Block, Residuals, Value
from fnn.compiling import always, by_platform

# Of the others jax.grad keeps the input and the output, or more.
MAKERS = frozenset({"tanh", "logistic"})

ENOUGH = 2**20  # bytes: what is smaller stays in a processor's cache, and is kept


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """A residual that is y = unit(z), where the unit itself keeps z."""

    y: jax.Array

    def again(self, unit: Block, z: Residuals, dy: Value) -> jax.Array:
        """y, on CPU computed from z when dy is there: no array of y waits for its way back.

        GPUs and TPUs read y again, as to compute it would move more bytes.
        """
        y = self.y
        if not _is_worth_it(y, dy):
            return y

        def computed(y: jax.Array, z: jax.Array, dy: jax.Array) -> jax.Array:
            # XLA cannot prove the condition, so the y that follows is not the one that it has: it
            # computes it when dy is there. One number of each example is enough; devices that
            # share a batch have their own, those that share the features send it.
            number = dy[(slice(None),) + (slice(1),) * (dy.ndim - 1)]
            known = always(number).reshape((-1,) + (1,) * (z.ndim - 1))
            return unit.forward({}, jnp.where(known, z, 0))[0]

        return by_platform(y, z, dy, cpu=computed, default=lambda y, z, dy: y)


def _is_worth_it(y: jax.Array, dy: Value) -> bool:
    """Whether y is large, in a program that is compiled, and each of its examples has a dy."""
    if not isinstance(y, jax.core.Tracer) or not isinstance(dy, jax.Array):
        return False
    if y.ndim < 2 or dy.shape[:1] != y.shape[:1] or 0 in dy.shape or is_split(y) or is_split(dy):
        return False
    return isinstance(y.size, int) and y.size * y.dtype.itemsize >= ENOUGH  # no symbol, as exported
