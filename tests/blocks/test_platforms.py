"""What each platform's branch computes, run here: the same as autodiff of the plain formula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.compiling import as_on, by_platform
from tests.blocks.test_zoo import agrees_with_autodiff, by_hand, cast, close, lab, lowered
from tests.slow import one_of
from tests.zoo import CASES, Case

PLATFORMS = ("cpu", "cuda", "tpu")
# Blocks of which a platform has a way of its own, and one that has them inside.
BRANCHING = ("conv", "max_pool", "avg_pool", "linear", "embedding", "rematerialize", "cnn")
ROWS = [case for case in CASES if case.name in BRANCHING]
FIRST = [case for case in ROWS if not case.further]  # the others are in tests/outside


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest) -> Iterator[str]:
    """Programs are traced anew: what was compiled for another platform is left out."""
    lab.cache_clear()
    with as_on(request.param):
        yield request.param
    lab.cache_clear()


@pytest.mark.parametrize("case", one_of(2, FIRST, ids=lambda case: case.id))
def test_gradients_on_every_platform(case: Case, platform: str) -> None:
    agrees_with_autodiff(case)


@pytest.mark.parametrize("case", one_of(2, FIRST, ids=lambda case: case.id))
def test_16_bits_on_every_platform(case: Case, platform: str) -> None:
    here = lab(case)
    low = lowered(here.block, here.sample, jnp.bfloat16)
    got = jax.jit(lambda s: by_hand(here.block)(*s))(low)
    wanted = here.run(*cast(tuple(low), jnp.float64))
    # Once more rounded than on CPU: cuDNN's results are bfloat16.
    close(cast(got, jnp.float64), wanted, 2 * case.ulps * float(jnp.finfo(jnp.bfloat16).eps))


def test_a_weight_gradient_beyond_float16_is_finite(platform: str) -> None:
    """The parameters are float32, so that nothing says that it has to be infinite."""
    x = jnp.full((4, 8, 8, 1), 100, jnp.float16)
    net, params = fnn.conv(1, 3), {"w": jnp.ones((3, 3, 1, 1)), "b": jnp.zeros(1)}
    params = cast(params, jnp.float32)
    dw = jax.jit(lambda: net.backward(params, x, x)[0]["w"])()
    assert dw.dtype == jnp.float32 and float(dw[1, 1, 0, 0]) == 4 * 8 * 8 * 100**2


def test_every_branch_is_chosen_in_one_place() -> None:
    """And so is run by these tests."""
    blocks = Path(fnn.__file__).parent
    direct = [p.name for p in blocks.rglob("*.py") if "platform_dependent" in p.read_text("utf-8")]
    assert direct == ["compiling.py"]
    branching = {p.stem for p in blocks.rglob("*.py") if "by_platform(" in p.read_text("utf-8")}
    assert branching == {
        "attention", "combinators", "compiling", "conv", "embedding", "linear", "pooling",
    }  # fmt: skip


def test_the_branch_of_a_platform_is_taken() -> None:
    def f(x: float) -> float:
        return by_platform(x, cuda=lambda x: 2 * x, default=lambda x: x)

    assert jax.jit(f)(1.0) == f(1.0) == 1
    with as_on("cuda"):
        assert f(1.0) == 2
    with as_on("tpu"):
        assert f(1.0) == 1
