"""Cheap compilation."""

from __future__ import annotations

import jax
import pytest

from fnn.compiling import quick


def test_other_backends_get_none_of_the_options_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would refuse to compile."""
    assert quick.__wrapped__()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert quick.__wrapped__() == {}
