"""Gates where the zoo's random inputs do not reach: ties, zeros, infinities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import fnn
from fnn.block import Block, BlockTypeError, BlockValueError

INF, NAN = np.inf, np.nan


def through(block: Block, x: Any, dy: Any = None) -> tuple[Any, Any]:
    y, residuals = block.forward({}, x)
    return y, block.backward({}, residuals, jnp.ones_like(y) if dy is None else dy)[1]


@pytest.mark.parametrize(
    ("gate", "x", "wanted"),
    [
        (fnn.maximum(), (1.0, 1.0), (0.5, 0.5)),  # a tie is shared
        (fnn.minimum(), (1.0, 1.0), (0.5, 0.5)),
        (fnn.maximum(), (0.0, -0.0), (0.5, 0.5)),
        (fnn.maximum(), (INF, INF), (0.5, 0.5)),
        (fnn.maximum(), (-INF, 2.0), (0.0, 1.0)),
        (fnn.minimum(), (-INF, 2.0), (1.0, 0.0)),
        (fnn.maximum(), (NAN, 2.0), (NAN, NAN)),  # no silent 0
        (fnn.minimum(), (2.0, NAN), (NAN, NAN)),
        (fnn.power(), (0.0, 2.0), (0.0, 0.0)),
        (fnn.power(), (0.0, 1.0), (1.0, 0.0)),
        (fnn.power(), (3.0, 0.0), (0.0, np.log(3.0))),
        (fnn.power(), (0.0, 0.0), (0.0, -INF)),
        (fnn.power(), (-2.0, 2.0), (-4.0, NAN)),
        (fnn.power(), (1.0, 5.0), (5.0, 0.0)),
        (fnn.divide(), (0.0, 2.0), (0.5, 0.0)),
        # The square of x2 would overflow or vanish, the quotient does not.
        (fnn.divide(), (1e200, 1e200), (1e-200, -1e-200)),
        (fnn.divide(), (1e-200, 1e-200), (1e200, -1e200)),
    ],
)
def test_derivatives_at_special_points(gate: Block, x: Any, wanted: Any) -> None:
    with jax.debug_nans(not np.isnan(wanted).any()):  # no NaN on the way to a number
        np.testing.assert_allclose(through(gate, x)[1], wanted, rtol=1e-14)


@pytest.mark.parametrize(
    ("gate", "x", "wanted"),
    [
        (fnn.power(0), 0.0, 0.0),
        (fnn.power(1), 0.0, 1.0),
        (fnn.power(2), 0.0, 0.0),
        (fnn.power(3), -2.0, 12.0),
        (fnn.power(-1), -2.0, -0.25),
        (fnn.power(0.5), 0.0, INF),
        (fnn.sqrt(), 0.0, INF),
        (fnn.square(), 0.0, 0.0),
        (fnn.exp(), -INF, 0.0),
        (fnn.log(), INF, 0.0),
        (fnn.log(), 1e-300, 1e300),
    ],
)
def test_derivatives_of_single_gates_at_special_points(gate: Block, x: Any, wanted: Any) -> None:
    np.testing.assert_allclose(through(gate, x)[1], wanted, rtol=1e-14)


def test_ties_share_in_every_dtype_and_sum_to_the_cotangent() -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x = jnp.array([1.0, 2.0, 3.0], dtype), jnp.array([3.0, 2.0, 1.0], dtype)
        _, (d1, d2) = through(fnn.maximum(), x, jnp.array([2.0, 2.0, 2.0], dtype))
        assert d1.tolist() == [0, 1, 2] and d2.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "numbers", [(3.0, -4.0), (3, -4), (np.float64(3), -4), (jnp.array(3.0), -4)]
)
def test_python_numbers_are_floats(numbers: Any) -> None:
    y, (dx, dz) = through(fnn.multiply(), numbers)
    assert (float(y), float(dx), float(dz)) == (-12, -4, 3)


def test_a_python_number_takes_the_other_inputs_dtype() -> None:
    x = jnp.ones((2, 3), jnp.bfloat16)
    y, (dx, dz) = through(fnn.multiply(), (x, 2.0))
    assert y.dtype == dx.dtype == dz.dtype == jnp.bfloat16 and dz.shape == ()
    assert float(dz) == 6


def test_long_sums_of_low_precision_do_not_stall() -> None:
    """4096 ones: bfloat16 addition would stop at 256."""
    for dtype in (jnp.bfloat16, jnp.float16):
        ones = jnp.ones(4096, dtype)
        assert float(fnn.sum().forward({}, ones)[0]) == 4096
        assert float(fnn.mean().forward({}, ones)[0]) == 1
        # the same on the way back, where a copied scalar's cotangents add
        assert float(through(fnn.add(), (jnp.ones((), dtype), ones))[1][0]) == 4096


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3, min_side=0), st.data())
def test_any_shapes_that_broadcast(shapes: Any, data: Any) -> None:
    """Against NumPy: the cotangent of an input is summed over its copies."""
    x = [np.ones(shape) for shape in shapes.input_shapes]
    dy = np.arange(1.0, 1 + np.prod(shapes.result_shape)).reshape(shapes.result_shape)
    y, dxs = through(fnn.add(), tuple(map(jnp.asarray, x)), jnp.asarray(dy))
    assert y.shape == shapes.result_shape
    for a, dx in zip(x, dxs, strict=True):
        assert dx.shape == a.shape
        # each element's cotangent: the sum of dy over the places where it is used
        index = np.broadcast_to(np.arange(a.size).reshape(a.shape), dy.shape)
        wanted = np.bincount(index.ravel(), dy.ravel(), a.size).reshape(a.shape)
        np.testing.assert_allclose(dx, wanted)


def test_reductions_of_nothing() -> None:
    y, dx = through(fnn.sum(), jnp.ones((0, 3)))
    assert float(y) == 0 and dx.shape == (0, 3)
    assert through(fnn.sum(axis=0), jnp.ones((0, 3)))[0].shape == (3,)


def test_what_is_refused() -> None:
    with pytest.raises(BlockTypeError, match=r"add: x is .*, needs a tuple of inputs"):
        fnn.add().forward({}, jnp.ones(3))
    with pytest.raises(BlockTypeError, match="needs a tuple of inputs"):
        fnn.add().forward({}, (1.0,))
    with pytest.raises(BlockTypeError, match="subtract: got 3 inputs, needs 2"):
        fnn.subtract().forward({}, (1.0, 2.0, 3.0))
    with pytest.raises(BlockValueError, match=r"\(2, 3\).*do not broadcast together"):
        fnn.add().forward({}, (jnp.ones((2, 3)), jnp.ones(2)))
    with pytest.raises(BlockTypeError, match="cast them to one first"):
        fnn.multiply().forward({}, (jnp.ones(2), jnp.ones(2, jnp.float32)))
    with pytest.raises(BlockTypeError, match=r"astype\(jax.numpy.float32\)"):
        fnn.exp().forward({}, jnp.ones(2, jnp.int32))
    with pytest.raises(BlockTypeError, match="needs a floating dtype"):
        fnn.add().forward({}, (jnp.ones(2), jnp.ones(2, jnp.uint8)))
    for make in (fnn.exp, fnn.square, fnn.tanh, fnn.negate, fnn.sum):  # not stacked silently
        with pytest.raises(BlockTypeError, match="x is a tuple of 2, needs an array"):
            make().forward({}, (jnp.ones(2), jnp.ones(2)))
    with pytest.raises(BlockValueError, match="axis 2 does not fit x of shape"):
        fnn.sum(axis=2).forward({}, jnp.ones((2, 3)))


@pytest.mark.parametrize("make", [fnn.add, fnn.subtract, fnn.multiply, fnn.divide, fnn.maximum])
def test_upstream_cotangents_may_be_python_numbers(make: Any) -> None:
    _, residuals = make().forward({}, (6.0, 3.0))
    by_number, by_array = (make().backward({}, residuals, d)[1] for d in (2.0, jnp.array(2.0)))
    assert jax.tree.map(float, by_number) == jax.tree.map(float, by_array)


# ---- sixteen bits ----------------------------------------------------------------------------


def sixteen(block: Any, *x: Any, dy: float, dtype: str = "float16") -> list[np.ndarray]:
    arrays = tuple(jnp.asarray(v, dtype) for v in x)
    y, residuals = block.forward({}, arrays if len(arrays) > 1 else arrays[0])
    dx = block.backward({}, residuals, jnp.broadcast_to(jnp.asarray(dy, dtype), y.shape))[1]
    return [np.asarray(v, np.float64) for v in (y, *jax.tree.leaves(dx))]


def test_sixteen_bits_are_computed_in_thirty_two() -> None:
    """Intermediate values that overflow, underflow or lose digits where the result does not."""
    assert sixteen(fnn.add(), 256, *[1] * 8, dy=1, dtype="bfloat16")[0] == 264
    assert sixteen(fnn.add(), 60000, 60000, -60000, dy=1)[0] == 60000
    np.testing.assert_allclose(sixteen(fnn.divide(), 1, 1e-3, dy=1e-3)[2], -1e3, rtol=2e-3)
    np.testing.assert_allclose(sixteen(fnn.power(), 300, 2, dy=1e-3)[2], 513.3, rtol=2e-3)
    np.testing.assert_allclose(sixteen(fnn.exp(), 11.5, dy=0.01)[1], 987.2, rtol=2e-3)
    np.testing.assert_allclose(sixteen(fnn.exp(), -16, dy=1000)[1], 1.1254e-4, rtol=2e-3)
    wide = jnp.full(4, 300, jnp.float16)
    _, residuals = fnn.multiply().forward({}, (wide, jnp.float16(1)))
    dy = jnp.array([300, -300, 300, -300], jnp.float16)
    assert float(fnn.multiply().backward({}, residuals, dy)[1][1]) == 0


def test_the_mean_of_more_than_float16_can_count() -> None:
    mean = fnn.mean()
    _, residuals = mean.forward({}, jnp.ones(70000, jnp.float16))
    dx = mean.backward({}, residuals, jnp.float16(1))[1]
    np.testing.assert_allclose(np.asarray(dx, np.float64), 1 / 70000, rtol=2e-3)


def test_numbers_mix_with_narrow_arrays_under_jit_too() -> None:
    x = jnp.ones(3, jnp.bfloat16)
    f = jax.jit(lambda x, c: fnn.multiply().forward({}, (x, c))[0])
    assert f(x, 2.0).dtype == jnp.bfloat16


def test_where_nothing_comes_from_above_nothing_goes_down() -> None:
    for block in (fnn.sqrt(), fnn.log()):
        _, residuals = block.forward({}, jnp.zeros(1))
        assert block.backward({}, residuals, jnp.zeros(1))[1] == 0
    _, residuals = fnn.maximum().forward({}, (jnp.ones(1), jnp.zeros(1)))
    winner, loser = fnn.maximum().backward({}, residuals, jnp.array([INF]))[1]
    assert (float(winner[0]), float(loser[0])) == (INF, 0)


def test_nothing_times_infinity_is_nothing_on_the_way_back() -> None:
    """A norm's gradient at 0 is 0; below a limit that clips exp nothing passes."""
    norm = fnn.serial(fnn.square(), fnn.sum(), fnn.sqrt())
    x = jnp.zeros(3)
    _, residuals = norm.forward({}, x)
    np.testing.assert_array_equal(norm.backward({}, residuals, jnp.ones(()))[1], x)
    exp = fnn.exp()
    y, residuals = exp.forward({}, jnp.array([1000.0, 1.0]))
    assert jnp.isinf(y[0])
    assert exp.backward({}, residuals, jnp.zeros(2))[1][0] == 0


@pytest.mark.parametrize("size", [1e-170, 1e170])
def test_divide_survives_compilation(size: float) -> None:
    """XLA compiles x1 / x2 / x2 to x1 / x2^2, and the square leaves the range."""

    def gradient(x: tuple[jax.Array, jax.Array]) -> Any:
        _, residuals = fnn.divide().forward({}, x)
        return fnn.divide().backward({}, residuals, jnp.ones(()))[1]

    x = (jnp.array(size), jnp.array(size))
    np.testing.assert_allclose(jax.jit(gradient)(x), [1 / size, -1 / size], rtol=1e-14)
