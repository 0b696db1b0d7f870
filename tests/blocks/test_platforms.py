"""What each platform's branch computes, run here: the same as autodiff of the plain formula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir

import fnn
from fnn.compiling import as_on, by_platform
from tests.blocks import test_normalization as norms
from tests.blocks import test_pooling as pooling
from tests.blocks.test_zoo import agrees_with_autodiff, by_hand, cast, close, lab, lowered
from tests.slow import one_of
from tests.zoo import CASES, Case

PLATFORMS = ("cpu", "cuda", "tpu")
# Blocks of which a platform has a way of its own, and one that has them inside.
BRANCHING = ("conv", "conv_transpose", "max_pool", "avg_pool", "linear", "softmax", "log_softmax",
             "embedding", "local_response_norm", "linear_softmax_cross_entropy", "rematerialize",
             "cnn", "exp", "dot_product_attention")  # fmt: skip
ROWS = [case for case in CASES if case.name in BRANCHING]
# Sums of columns are computed in parts of 64 rows or more there.
SUMMING = ("layer_norm", "rms_norm", "group_norm", "linear", "neuron")
LONG = [c._replace(batch=(2, 64)) for c in CASES if c.id in SUMMING]
ALSO = ("conv/1x1, stride",)  # a product on CPU, a convolution elsewhere
FIRST = [c for c in ROWS if not c.further or c.id in ALSO] + LONG  # others are in tests/outside


def as_on_tpus(source: jax.Array, operand: jax.Array, *, select_prim: Any, **windows: Any) -> Any:
    """Select-and-scatter as JAX hands it to XLA for TPUs. For CPUs it pads the operand first, with
    what would win by a comparison that JAX does not know."""
    zero = jnp.zeros((), operand.dtype)
    select, add = (jax.make_jaxpr(f)(zero, zero).jaxpr for f in (select_prim.bind, lax.add))
    return lax.select_and_scatter_p.bind(
        operand, source, zero, select_jaxpr=select, select_consts=(), scatter_jaxpr=add,
        scatter_consts=(), **windows,
    )  # fmt: skip


lowering = mlir.lower_fun(as_on_tpus, multiple_results=False)
mlir.register_lowering(lax.select_and_scatter_add_p, lowering, platform="cpu")


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


@pytest.mark.parametrize("way", one_of(12, pooling.windows()))
def test_pools_on_every_platform(way: Any, platform: str) -> None:
    pooling.test_against_single_windows(way)


@pytest.mark.parametrize("platform", ["tpu"], indirect=True)
def test_sums_keep_their_digits_on_tpus(platform: str) -> None:
    """In float32: of rows far from 0, of equal numbers, and of a probability near 1."""
    norms.test_a_large_mean_loses_no_digits("layer_norm", 1e4, 1.6e7)
    norms.test_a_constant_becomes_exactly_0("layer_norm", 50_001)
    net, x = fnn.softmax(), jnp.array([[20.0, 0, 1]], jnp.float32)
    dy = jnp.array([[3.0, 100, 0]], jnp.float32)

    def dx(x: Any, dy: Any) -> Any:
        return net.backward({}, net.forward({}, x)[1], dy)[1]

    wanted = dx(x.astype(float), dy.astype(float))
    np.testing.assert_allclose(jax.jit(dx)(x, dy), wanted, rtol=4e-6)
    tangents = jax.jvp(dx, (x.astype(float), dy.astype(float)), (dy.astype(float),) * 2)[1]
    with as_on("cpu"):
        plain = jax.jvp(dx, (x.astype(float), dy.astype(float)), (dy.astype(float),) * 2)[1]
    np.testing.assert_allclose(tangents, plain, rtol=1e-9)


@pytest.mark.parametrize("platform", ["tpu"], indirect=True)
@pytest.mark.parametrize(
    "made", [fnn.relu, fnn.leaky_relu, fnn.hard_tanh, fnn.hard_sigmoid, fnn.absolute]
)
def test_nan_does_not_become_a_silent_0_on_tpus(made: Any, platform: str) -> None:
    """No bit is kept for it: dy, which has the NaN of y, is passed on."""
    y, code = made().forward({}, jnp.array([jnp.nan]))
    assert jnp.isnan(y).all() and jnp.isnan(made().backward({}, code, y)[1]).all()
    assert made().backward({}, code, jnp.ones(1))[1] != 0


@pytest.mark.parametrize("platform", ["tpu"], indirect=True)
def test_the_same_entries_win_on_tpus(platform: str) -> None:
    """Ties, padding beside -inf, and the sum of many cotangents in 16 bits."""
    pooling.test_a_tie_goes_to_the_first_of_its_window_and_overlaps_add()
    pooling.test_zero_and_minus_zero_tie()
    pooling.test_padding_never_wins("bfloat16")
    pooling.test_sums_are_in_float32("bfloat16")


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
        "again", "attention", "compiling", "convolutions", "convolve", "elementwise", "embedding",
        "fused_loss", "linear", "maxima", "normalization", "pooling", "rematerialized", "rms_norm",
        "softmax", "sums",
    }  # fmt: skip


def test_the_branch_of_a_platform_is_taken() -> None:
    def f(x: float) -> float:
        return by_platform(x, cuda=lambda x: 2 * x, default=lambda x: x)

    assert jax.jit(f)(1.0) == f(1.0) == 1
    with as_on("cuda"):
        assert f(1.0) == 2
    with as_on("tpu"):
        assert f(1.0) == 1
