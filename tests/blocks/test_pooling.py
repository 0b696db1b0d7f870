"""Pooling: against windows taken one by one in NumPy, ties, NaN, padding, ceil modes, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block, BlockError, BlockTypeError, BlockValueError
from tests.slow import one_of

# ---- one window at a time --------------------------------------------------------------------


def number_of_windows(n: int, k: int, s: int, low: int, high: int, mode: str | None) -> int:
    """Caffe's and PyTorch's formulas, as written there."""
    if mode is None:
        return (n + low + high - k) // s + 1
    out = math.ceil((n + low + high - k) / s) + 1
    if (mode == "torch" or low or high) and (out - 1) * s >= n + low:
        out -= 1
    return out


def by_window(
    kind: str, x: np.ndarray, dy: Any, k: Any, s: Any, pads: Any, mode: Any, counted: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(y, dx) with a loop over windows and their entries; dy(shape) draws the cotangent."""
    spatial = x.shape[1:-1]
    outs = [number_of_windows(n, k[i], s[i], *pads[i], mode) for i, n in enumerate(spatial)]
    y = np.zeros((x.shape[0], *outs, x.shape[-1]))
    d, dx = dy(y.shape), np.zeros(x.shape)
    for b, c in itertools.product(range(x.shape[0]), range(x.shape[-1])):
        for out in np.ndindex(*outs):
            inside, count = [], 0
            for offset in np.ndindex(*k):
                at = [o * s[i] + offset[i] - pads[i][0] for i, o in enumerate(out)]
                real = all(0 <= a < n for a, n in zip(at, spatial, strict=True))
                padded = all(-pads[i][0] <= a < spatial[i] + pads[i][1] for i, a in enumerate(at))
                count += padded if counted else real
                if real:
                    inside.append((b, *at, c))
            values = [x[place] for place in inside]
            if kind == "max":
                won = next((i for i, v in enumerate(values) if v != v), int(np.argmax(values)))
                y[(b, *out, c)] = values[won]
                dx[inside[won]] += d[(b, *out, c)]
            else:
                y[(b, *out, c)] = sum(values) / count
                for place in inside:
                    dx[place] += d[(b, *out, c)] / count
    return y, dx


def windows() -> Any:
    """Many windows: kernels, strides, paddings, sizes, modes."""
    rng = np.random.default_rng(0)
    checked = 0
    while checked < 36:
        rank = int(rng.integers(1, 3))
        k, s = rng.integers(1, 5, rank).tolist(), rng.integers(1, 5, rank).tolist()
        pads = [tuple(rng.integers(0, k[i], 2).tolist()) for i in range(rank)]
        pads = pads if rng.integers(2) else [(0, 0)] * rank
        sizes = rng.integers(1, 8, rank).tolist()
        mode = (None, "caffe", "torch")[checked % 3]
        ways = list(zip(sizes, k, s, pads, strict=True))
        if any(n + sum(p) < k or p[0] >= k for n, k, _, p in ways):
            continue
        if any((number_of_windows(n, k, s, *p, mode) - 1) * s >= n + p[0] for n, k, s, p in ways):
            continue  # a window of padding only is refused: see below
        checked += 1
        yield tuple(sizes), tuple(k), tuple(s), tuple(pads), mode


@pytest.mark.parametrize("way", one_of(3, windows()))
def test_against_single_windows(way: Any) -> None:
    """Also with ties, among whole numbers; every way of counting."""
    sizes, k, s, pads, mode = way
    rng = np.random.default_rng(1)
    shape = (2, *sizes, 2)
    ties = rng.integers(-1, 2, shape).astype(float)
    blocks: list[tuple[str, Any, bool]] = [
        ("max", fnn.max_pool(k, s, padding=pads, ceil_mode=mode), True)
    ]
    blocks += [
        ("avg", fnn.avg_pool(k, s, padding=pads, ceil_mode=mode, count_padding=c), c)
        for c in (True, False)
    ]
    for (kind, block, counted), x in itertools.product(blocks, (ties, rng.normal(size=shape))):
        draw = lambda shape: np.random.default_rng(2).normal(size=shape)  # noqa: E731
        wanted = by_window(kind, x, draw, k, s, pads, mode, counted)
        y, residuals = jax.jit(block.forward)({}, x)
        assert y.shape == wanted[0].shape
        _, dx = jax.jit(block.backward)({}, residuals, draw(y.shape))
        np.testing.assert_allclose(y, wanted[0], rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(dx, wanted[1], rtol=1e-13, atol=1e-15)
        if kind == "max":
            declared = block.rules.subgradient(x, draw(y.shape))
            np.testing.assert_allclose(declared, wanted[1], rtol=1e-13, atol=1e-15)


# ---- maxima ----------------------------------------------------------------------------------


def pooled(x: Any, dy: Any, *args: Any) -> tuple[np.ndarray, np.ndarray]:
    """(y, dx) of a sequence of numbers, as two lists of numbers."""
    block = fnn.max_pool(*args)
    y, residuals = block.forward({}, jnp.asarray(x, float)[None, :, None])
    _, dx = block.backward({}, residuals, jnp.asarray(dy, float)[None, :, None])
    return np.asarray(y[0, :, 0]), np.asarray(dx[0, :, 0])


def test_a_tie_goes_to_the_first_of_its_window_and_overlaps_add() -> None:
    y, dx = pooled([1, 3, 3, 3, 2], [10, 20, 30], 3, 1)
    assert y.tolist() == [3, 3, 3] and dx.tolist() == [0, 30, 30, 0, 0]
    block = fnn.max_pool(2, 1)  # row-major: left before right, above before below
    x = jnp.asarray([[0.0, 1.0], [1.0, 1.0]])[None, :, :, None]
    dx = block.backward({}, block.forward({}, x)[1], jnp.ones((1, 1, 1, 1)))[1]
    assert dx[0, :, :, 0].tolist() == [[0, 1], [0, 0]]
    dx = block.backward({}, block.forward({}, x.at[0, 0, 1].set(0))[1], jnp.ones((1, 1, 1, 1)))[1]
    assert dx[0, :, :, 0].tolist() == [[0, 0], [1, 0]]


def test_zero_and_minus_zero_tie() -> None:
    assert pooled([-0.0, 0.0], [5], 2)[1].tolist() == [5, 0]


def test_nan_wins_and_the_first_of_them_gets_dy() -> None:
    y, dx = pooled([1, np.nan, np.nan, np.inf, 1, 2], [10, 20], 3)
    np.testing.assert_array_equal(y, [np.nan, np.inf])
    np.testing.assert_array_equal(dx, [0, 10, 0, 20, 0, 0])
    y, dx = pooled([1, 5, np.nan, 4], [10, 20, 30], 2, 1)
    np.testing.assert_array_equal(y, [5, np.nan, np.nan])
    np.testing.assert_array_equal(dx, [0, 10, 50, 0])


@pytest.mark.parametrize("dtype", one_of(3, ["float64", "float32", "bfloat16", "float16"]))
def test_padding_never_wins(dtype: str) -> None:
    """Neither over -inf nor over the smallest finite numbers: the first entry of x wins."""
    for value in (-np.inf, float(jnp.finfo(dtype).min)):
        x = jnp.full((1, 3, 3, 2), value, dtype)
        block = fnn.max_pool(3, 1, padding=1)
        y, residuals = block.forward({}, x)
        assert np.all(np.asarray(y, float) == np.asarray(x, float))
        _, dx = block.backward({}, residuals, jnp.ones(y.shape, dtype))
        assert np.asarray(dx, float)[0, :, :, 0].tolist() == [[4, 2, 0], [2, 1, 0], [0, 0, 0]]


def test_an_infinite_cotangent_stays_where_it_belongs() -> None:
    _, dx = pooled([1, 2, 3, 4], [np.inf, 1], 2)
    assert dx.tolist() == [0, np.inf, 0, 1]


@pytest.mark.parametrize(
    ("window", "dtype"), [(2, "uint8"), (16, "uint8"), ((3, 43), "uint8"), ((7, 37), "uint16")]
)
def test_a_place_is_a_byte_for_each_output(window: Any, dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 16, 48, 3))
    block = fnn.max_pool(window, 5)
    y, (place, same) = jax.jit(block.forward)({}, x)
    assert place.dtype == dtype and place.shape == y.shape and np.array_equal(same, x)
    _, dx = jax.jit(block.backward)({}, (place, x), jnp.ones(y.shape))
    assert float(dx.sum()) == y.size
    # Each maximum's gradient is at a place that holds it.
    assert np.isin(np.asarray(x)[np.asarray(dx) > 0], np.asarray(y)).all()


@pytest.mark.parametrize("stride", [1, 7, 300])
def test_large_windows_are_a_loop(stride: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 50, (1, 300 + 2 * stride, 1)).astype(float)
    for kind, make in (("max", fnn.max_pool), ("avg", fnn.avg_pool)):
        block = make(300, stride, padding=5)
        y, residuals = jax.jit(block.forward)({}, x)
        dy = rng.normal(size=y.shape)
        _, dx = jax.jit(block.backward)({}, residuals, dy)
        ways = [300], [stride], [(5, 5)]
        wanted = by_window(kind, x, lambda shape, dy=dy: dy, *ways, None)
        np.testing.assert_allclose(y, wanted[0], rtol=1e-12)
        np.testing.assert_allclose(dx, wanted[1], rtol=1e-12, atol=1e-14)


def test_the_place_in_a_very_large_window() -> None:
    x = jnp.zeros((1, 70000, 1)).at[0, 69999, 0].set(1)
    place = jax.jit(fnn.max_pool(70000).forward)({}, x)[1][0]
    assert place.dtype == "uint32" and int(place[0, 0, 0]) == 69999


# ---- means -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", one_of(2, ["bfloat16", "float16"]))
def test_sums_are_in_float32(dtype: str) -> None:
    """The mean of 4096 ones is one; in bfloat16 their sum would stop at 256."""
    x = jnp.ones((1, 64, 64, 1), dtype)
    for block in (fnn.avg_pool(64), fnn.global_avg_pool()):
        y, residuals = block.forward({}, x)
        assert y.dtype == dtype and float(y.ravel()[0]) == 1
        _, dx = block.backward({}, residuals, jnp.ones(y.shape, dtype))
        assert dx.dtype == dtype and float(dx[0, 0, 0, 0]) == 2.0**-12
    x = jnp.ones((1, 600, 1), dtype)  # 300 windows with an entry in each
    for block in (fnn.avg_pool(300, 1), fnn.max_pool(300, 1)):
        y, residuals = jax.jit(block.forward)({}, x)
        _, dx = jax.jit(block.backward)({}, residuals, jnp.ones(y.shape, dtype))
        middle = float(dx.max() if block.name == "max_pool" else dx[0, 300, 0])
        assert middle == pytest.approx(1, rel=0.01)


def test_global_average_is_an_average_over_all_that_there_is() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 4)))
    y, _ = fnn.global_avg_pool().forward({}, x)
    same, _ = fnn.avg_pool((3, 5)).forward({}, x)
    np.testing.assert_allclose(y, same[:, 0, 0], rtol=1e-13)


# ---- sizes of known networks -----------------------------------------------------------------


def test_googlenets_sizes() -> None:
    """Caffe's GoogLeNet: 112, 56, 28, 14, 7 by windows of 3 and stride 2, rounded up."""
    for n, out in ((112, 56), (56, 28), (28, 14), (14, 7)):
        x = jax.ShapeDtypeStruct((1, n, n, 2), "float32")
        for mode in ("caffe", "torch"):
            y = jax.eval_shape(fnn.max_pool(3, 2, ceil_mode=mode).forward, {}, x)[0]
            assert y.shape == (1, out, out, 2)
        assert jax.eval_shape(fnn.max_pool(3, 2).forward, {}, x)[0].shape[1] == out - 1
        same = jax.eval_shape(fnn.max_pool(3, 1, padding="SAME").forward, {}, x)[0]
        assert same.shape == x.shape


def test_without_padding_caffe_keeps_a_last_window_that_torch_drops() -> None:
    x = jnp.ones((1, 3, 1))
    y, _ = fnn.max_pool(1, 3, ceil_mode="torch").forward({}, x)
    assert y.shape == (1, 1, 1)
    with pytest.raises(BlockValueError, match=r"nothing of axis 1.*ceil_mode='torch'"):
        fnn.max_pool(1, 3, ceil_mode="caffe").forward({}, x)


# ---- errors ----------------------------------------------------------------------------------


def made(make: Any, window: Any, stride: Any = None, *rest: Any) -> Block:
    """With padding and ceil_mode by position."""
    return make(window, stride, **dict(zip(("padding", "ceil_mode"), rest, strict=False)))


@pytest.mark.parametrize("make", [fnn.max_pool, fnn.avg_pool])
def test_misfits_are_refused(make: Any) -> None:
    image, sequence = jnp.ones((2, 5, 5, 3)), jnp.ones((2, 5, 3))
    at_once: list[tuple[Any, str]] = [
        ((0,), "window is 0, needs a whole number of at least 1"),
        ((2.5,), "window is 2.5"),
        (((2, 0),), r"window is \(2, 0\), needs a whole number of at least 1 or a tuple"),
        ((2, 0), "stride is 0"),
        ((2, 1, -1), "padding is -1"),
        ((2, 1, ((0, -1), (0, 0))), r"padding is \(\(0, -1\)"),
        ((2, 1, (1, 1)), r"or a tuple, each \(a whole number"),
        ((2, 1, "same"), "needs 'SAME' or 'VALID'"),
        ((2, 1, "VALID", "up"), "needs 'caffe' or 'torch' or None"),
        ((2, 1, "VALID", True), "needs 'caffe' or 'torch' or None"),
    ]
    for args, message in at_once:
        with pytest.raises(BlockValueError, match=message):
            made(make, *args)
    with_x: list[tuple[Any, Any, type[BlockError], str]] = [
        ((6,), image, BlockValueError, "a window of 6 does not fit: axis 1 of x has length 5, w"),
        (((2, 8), 1, 1), image, BlockValueError, r"of 8 .* axis 2 .*5, with 1 \+ 1 of padding"),
        (((2, 2),), sequence, BlockValueError, "has 2 entries.*1 spatial axis: give one number"),
        ((2, (1,)), image, BlockValueError, "stride.*2 spatial axes"),
        ((2, 1, ((1, 1),)), image, BlockValueError, "padding.*2 spatial axes"),
        ((2, 1, 2), image, BlockValueError, "pad by less than the window"),
        ((2, 1, ((0, 0), (0, 2))), image, BlockValueError, "pad by less than the window"),
        ((2,), jnp.ones((5, 3)), BlockValueError, "needs .batch, height, width, channels"),
        ((2,), jnp.ones((2, 0, 5, 3)), BlockValueError, "does not fit"),
        ((2,), image.astype(int), BlockTypeError, "needs a floating dtype"),
    ]
    for args, x, kind, message in with_x:
        with pytest.raises(kind, match=message):
            made(make, *args).forward({}, x)


def test_an_error_names_the_path() -> None:
    net = fnn.serial(body=fnn.serial(small=fnn.max_pool(9)))
    with pytest.raises(BlockValueError, match=r"^body/small \(max_pool\): a window of 9 does"):
        net.forward({"body": {"small": {}}}, jnp.ones((1, 4, 4, 1)))


def test_the_global_average_of_nothing_is_refused() -> None:
    for x, message in ((jnp.ones((2, 0, 3)), "no entries"), (jnp.ones((2, 3)), "needs .batch")):
        with pytest.raises(BlockValueError, match=message):
            fnn.global_avg_pool().forward({}, x)
