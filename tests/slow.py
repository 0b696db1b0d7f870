"""Which tests are slow ones: make test-slow runs them, make test does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_of(n: int, values: Iterable[Any], ids: Any = str) -> list[Any]:
    """Parameters for all values, of which every n-th, from the first, is not slow."""
    return [
        pytest.param(value, id=ids(value), marks=[pytest.mark.slow] if i % n else [])
        for i, value in enumerate(values)
    ]
