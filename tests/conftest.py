"""Strict settings for every test: warnings are errors (pyproject.toml), and so is what JAX lets
pass by default. The doctests in fnn/ run without these, in float32, as a reader would; so do
tests marked ``as_users`` (of experiments and benchmarks, which run other libraries too)."""

import contextlib
import gc
import os
from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # for test_transformations.py
gc.set_threshold(50_000, 20, 100)  # JAX keeps many objects: walking them all takes its time


PART = int(os.environ.get("FNN_PART", "1"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of slow tests, and of those beside other libraries, one out of FNN_PART stays."""
    many = [i for i in items if i.get_closest_marker("slow") or "outside" in i.path.parts]
    left_out = {item for number, item in enumerate(many) if number % PART}
    if left_out:
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests stay


@pytest.fixture(autouse=True)
def strict(request: pytest.FixtureRequest) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if request.node.get_closest_marker("as_users") is None:
            stack.enter_context(jax.enable_x64(True))  # gradients are compared to 1e-12
            stack.enter_context(jax.numpy_dtype_promotion("strict"))  # no float32 + bfloat16
            stack.enter_context(jax.numpy_rank_promotion("raise"))  # no silent (n, 1) - (n,)
            # NVIDIA GPUs multiply float32 matrices with ten-bit fractions (TF32) otherwise.
            stack.enter_context(jax.default_matmul_precision("highest"))
        yield
