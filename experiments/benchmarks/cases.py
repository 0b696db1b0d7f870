"""What is compared with autodiff: a block, what it gets, and the plain formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.block import Block


class Ids(NamedTuple):
    """Whole numbers from 0 to ``below`` - 1, as input."""

    shape: tuple[int, ...]
    below: int


class Case(NamedTuple):
    """A block, the shapes of its inputs, and the plain formula in JAX."""

    network: str
    name: str
    block: Block
    inputs: tuple[tuple[int, ...] | Ids, ...]
    plain: Callable[[Any, Any], Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first input."""
        first = self.inputs[0]
        return first.shape if isinstance(first, Ids) else first

    def spec(self, dtype: str) -> Any:
        """x, without values."""
        return self._x(
            lambda i, shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
            lambda i, ids: jax.ShapeDtypeStruct(ids.shape, jnp.int32),
        )

    def drawn(self, dtype: str) -> Any:
        """x, with random values: positive, so that each block takes them."""
        keys = jax.random.split(jax.random.key(0), len(self.inputs))
        return self._x(
            lambda i, shape: jax.random.uniform(keys[i], shape, jnp.dtype(dtype), 0.1, 0.9),
            lambda i, ids: jax.random.randint(keys[i], ids.shape, 0, ids.below),
        )

    def _x(self, floats: Callable[[int, Any], Any], whole: Callable[[int, Ids], Any]) -> Any:
        values = tuple(
            whole(i, given) if isinstance(given, Ids) else floats(i, given)
            for i, given in enumerate(self.inputs)
        )
        return values if len(values) > 1 else values[0]


Pass = Callable[[Any, Any, Any], Any]  # (params, x, dy) -> (y, (dparams, dx))


def passes(case: Case) -> dict[str, Pass]:
    """Forward and backward of a case together, by hand and by ``jax.vjp`` of its plain formula."""

    def by_hand(params: Any, x: Any, dy: Any) -> Any:
        y, residuals = case.block.forward(params, x)
        return y, case.block.backward(params, residuals, dy)

    def by_autodiff(params: Any, x: Any, dy: Any) -> Any:
        y, pull_back = jax.vjp(case.plain, params, x)
        dparams, dx = pull_back(dy)
        return y, (dparams, jax.tree.map(_none_of_integers, dx))

    return {"by hand": by_hand, "autodiff": by_autodiff}


def _none_of_integers(dx: Any) -> Any:
    """The cotangent of an integer is None, as by hand."""
    return None if dx.dtype == jax.dtypes.float0 else dx
