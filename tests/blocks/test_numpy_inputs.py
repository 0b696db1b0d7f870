"""NumPy makes float64 by default: every block takes it with 64 bits switched off, without a
warning (which is an error here), and computes in float32."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from fnn.arrays import is_floating
from tests.slow import one_of
from tests.zoo import CASES, Case, sample


def as_numpy(tree: Any) -> Any:
    def one(leaf: Any) -> Any:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if is_key else np.asarray(leaf)

    return jax.tree.map(one, tree)


@pytest.mark.parametrize("case", one_of(4, CASES, lambda case: case.id))
def test_float64_of_numpy_is_taken_as_float32(case: Case) -> None:
    block = case.make()
    params, x, key, dy = as_numpy(tuple(sample(case)))
    with jax.enable_x64(False):
        jax.eval_shape(lambda: block.init(jax.random.key(0), x))

        def run() -> Any:
            y, residuals = block.forward(params, x, key)
            return y, *block.backward(params, residuals, dy)

        for leaf in filter(is_floating, jax.tree.leaves(jax.eval_shape(run))):
            assert leaf.dtype == np.float32
