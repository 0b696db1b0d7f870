"""The properties are siblings: each can be read, changed and left out without the others."""

from __future__ import annotations

import pytest

import fnn
from tests.test_imports import imports

PROPERTIES = {
    f"fnn.check.{name}"
    for name in (
        "derivative", "transformations", "batches", "precision", "nonfinite_inputs", "kinks",
        "cost",
    )
}  # fmt: skip


@pytest.mark.parametrize("module", sorted(PROPERTIES))
def test_no_property_imports_another(module: str) -> None:
    assert {name for name, _ in imports(module)}.isdisjoint(PROPERTIES)


def test_their_order_in_a_report() -> None:
    assert fnn.check.PROPERTIES == (
        "cotangents", "value", "autodiff", "differences", "linear", "jit", "vmap", "microbatches",
        "batch sizes", "scan", "second order", "kinks", "float32", "bfloat16", "float16", "edges",
        "cost", "residuals",
    )  # fmt: skip
