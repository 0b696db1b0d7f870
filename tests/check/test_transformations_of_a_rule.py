"""A rule, or its forward itself, that does not run under one of JAX's transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.check.report import SKIPPED, WRONG

X = np.linspace(-1.0, 1.0, 6).reshape(3, 2)
ALL = frozenset(fnn.check.PROPERTIES)


def where(wanted: Callable[[Any], bool]) -> Callable[[Any], None]:
    """Raises where ``wanted`` is true of a value."""

    def stop(x: Any) -> None:
        if wanted(x):
            raise RuntimeError("not here")

    return stop


outside_jit = where(lambda x: not isinstance(x, jax.core.Tracer))
under_vmap = where(lambda x: "Batch" in type(x).__name__)
CASES: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "jit": ("jit", outside_jit, "runs under jit but not without it"),
    "vmap": ("vmap", under_vmap, "cannot be mapped by jax.vmap"),
}


def checked(forward: Any, backward: Any, name: str) -> Any:
    skip = tuple(ALL - {"cotangents", name})
    return fnn.check.pair(forward, backward, X, skip=skip, timed=False)[name]


@pytest.mark.parametrize("case", CASES)
def test_a_backward_that_does_not_run_there_is_wrong(case: str) -> None:
    name, stop, words = CASES[case]

    def backward(x: Any, dy: Any) -> Any:
        stop(x)
        return (dy * jnp.cos(x),)

    result = checked(lambda x: (jnp.sin(x), x), backward, name)
    assert result.status == WRONG and words in str(result.problems[0])


@pytest.mark.parametrize("case", CASES)
def test_a_forward_that_does_not_run_there_itself_is_no_mistake_of_backward(case: str) -> None:
    name, stop, _ = CASES[case]

    def forward(x: Any) -> Any:
        stop(x)
        return jnp.sin(x), x

    result = checked(forward, lambda x, dy: (dy * jnp.cos(x),), name)
    assert result.status == SKIPPED
