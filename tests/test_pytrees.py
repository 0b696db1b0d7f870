"""Cotangents in the containers of what they belong to."""

from typing import Any

import chex

from fnn.pytrees import in_form_of


def test_a_mapping_that_is_a_dataclass() -> None:
    """chex's: JAX names its fields as attributes."""
    state = chex.dataclass(type("State", (), {"__annotations__": {"w": Any, "b": Any}}))
    got = in_form_of(state(w=1, b=2), {"b": 3, "w": 4})
    assert (got.w, got.b) == (4, 3) and isinstance(got, state)
