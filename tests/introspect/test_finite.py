"""The first block whose output or cotangent is not finite, with what it read."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import fnn


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ([1.0, 3.0], "finite: 2 outputs and cotangents"),
        ([-1.0, 3.0], "output of sqrt (forward), from x: float64[2] from -1 to 3, mean 1"),
        ([1.0, jnp.nan, 3.0, -jnp.inf],
         "output of sqrt (forward), from x: float64[4] from 1 to 3, mean 2 and 2 not finite"),
        ([jnp.nan], "output of sqrt (forward), from x: float64[1] and 1 not finite"),
        ([0.0], "cotangents of sqrt (backward), from dy: float64[1] from 1 to 1, mean 1"),
    ],
)  # fmt: skip
def test_what_is_not_finite_and_what_it_came_from(x: Any, said: str) -> None:
    found = str(fnn.check.finite(fnn.sqrt())({}, jnp.array(x)))
    assert found.removeprefix("first non-finite value: ") == said
