"""Norms: against NumPy, where plain formulas lose digits, on constant rows, their errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockError, BlockTypeError, BlockValueError

# ---- local_response_norm ---------------------------------------------------------------------


def channel_by_channel(x: Any, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    y = np.zeros_like(x)
    for c in range(x.shape[-1]):
        first, last = max(0, c - size // 2), c + (size - 1) // 2
        total = np.sum(x[..., first : last + 1] ** 2, -1)
        y[..., c] = x[..., c] / (k + alpha / size * total) ** beta
    return y


@pytest.mark.parametrize("beta", [0.75, 0.5, 1, 1.0, 0.6, 0, -0.5])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_response_channel_by_channel(size: int, beta: float) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 7))
    y, _ = fnn.local_response_norm(size, alpha=2.0, beta=beta, k=0.5).forward({}, jnp.asarray(x))
    np.testing.assert_allclose(y, channel_by_channel(x, size, 2.0, beta, 0.5), rtol=1e-13)


def test_response_divides_alpha_by_the_window() -> None:
    """As in Caffe and PyTorch; multiplying alpha gives the papers' formula."""
    x = jnp.full((1, 9), 10.0)
    y, _ = fnn.local_response_norm(5, alpha=1e-4, beta=0.75).forward({}, x)
    assert float(y[0, 4]) == pytest.approx(10 / (1 + 1e-4 / 5 * 500) ** 0.75, rel=1e-13)
    y, _ = fnn.local_response_norm(5, alpha=5 * 1e-4, beta=0.75).forward({}, x)
    assert float(y[0, 4]) == pytest.approx(10 / (1 + 1e-4 * 500) ** 0.75, rel=1e-13)


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.6])
def test_response_in_float32_is_within_a_few_units(beta: float) -> None:
    block = fnn.local_response_norm(5, alpha=1e-2, beta=beta)
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(scale=s, size=(500, 16)).astype(np.float32) for s in (30, 1))

    def run(x: Any, dy: Any) -> Any:
        y, residuals = block.forward({}, x)
        return y, block.backward({}, residuals, dy)[1]

    got, wanted = run(x, dy), run(jnp.asarray(x, float), jnp.asarray(dy, float))
    y, truth = np.asarray(got[0], float), np.asarray(wanted[0])
    assert np.max(np.abs(y - truth) / np.spacing(np.abs(truth).astype(np.float32))) < 6
    np.testing.assert_allclose(got[1], wanted[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 0.6])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_response_where_one_channel_is_most_of_its_window(size: int, beta: float) -> None:
    """There dy / sqrt(u) and what x does to its own u cancel."""
    block = fnn.local_response_norm(size, alpha=1.0, beta=beta)
    x = np.array([[0.5, 300.0, -0.25, 0.125, 2000.0, 1.0]])
    dy = np.array([[0, 1.0, 0, 0, 1, 0]])  # of the large ones
    got, wanted = (
        block.backward({}, v, d)[1] for v, d in ((x.astype("f4"), dy.astype("f4")), (x, dy))
    )
    np.testing.assert_allclose(got, wanted, rtol=2e-6)
    huge = jnp.full((1, 6), 1e25, jnp.float32)  # whose u is infinite
    assert not np.any(block.backward({}, huge, jnp.ones((1, 6), jnp.float32))[1])


def test_response_of_numbers_whose_squares_leave_the_range() -> None:
    x = jnp.array([[1e20, 2e20, 0]], jnp.float32)
    block = fnn.local_response_norm(3)
    y, residuals = block.forward({}, x)
    _, dx = block.backward({}, residuals, jnp.ones_like(y))
    wide, _ = block.forward({}, x.astype(float))
    np.testing.assert_allclose(y, wide, rtol=1e-6)
    assert np.all(np.abs(dx) < 1e-26)  # u^-0.75


def test_response_to_an_infinity_stays_within_its_window() -> None:
    x = jnp.ones((1, 9)).at[0, 0].set(jnp.inf)
    y, residuals = fnn.local_response_norm(3).forward({}, x)
    _, dx = fnn.local_response_norm(3).backward({}, residuals, jnp.ones((1, 9)))
    assert np.isfinite(y[0, 2:]).all() and np.isfinite(dx[0, 3:]).all() and float(y[0, 1]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0, needs a whole number"),
        ({"size": 2.5}, "size is 2.5"),
        ({"alpha": -1.0}, "alpha is -1.0, needs a finite number of at least 0"),
        ({"k": 0.0}, "k is 0.0, needs a finite number above 0"),
        ({"k": float("nan")}, "k is nan"),
        ({"beta": float("inf")}, "beta is inf, needs a finite number"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(BlockValueError, match=message):
        fnn.local_response_norm(**arguments)


def test_response_to_what_has_no_channels_is_refused() -> None:
    with pytest.raises(BlockValueError, match="needs a last axis of channels"):
        fnn.local_response_norm().forward({}, jnp.ones(()))
    with pytest.raises(BlockTypeError, match="floating"):
        fnn.local_response_norm().forward({}, jnp.ones((1, 3), int))


# ---- layer_norm ------------------------------------------------------------------------------


def run(block: Any, params: Any, x: Any, dy: Any) -> Any:
    y, residuals = block.forward(params, x)
    return (y, *block.backward(params, residuals, dy))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_constant_rows_have_finite_gradients(dtype: str) -> None:
    block = fnn.layer_norm()
    for value in (0.0, 3.0, -1000.0, 0.1):
        x = jnp.full((2, 7), value, dtype)
        params = block.init(jax.random.key(0), x)
        y, dparams, dx = run(block, params, x, jnp.ones((2, 7), dtype).at[0, 0].set(2))
        assert np.isfinite(np.asarray(dx, float)).all() and dx.dtype == dtype
        assert not np.any(np.asarray(y, float))  # the bias, and no rounding of the mean
        assert np.isfinite(dparams["scale"]).all() and float(dparams["bias"][0]) == 3


NORMS = ("layer_norm", "batch_norm", "group_norm")


def rows_of(norm: str, **options: Any) -> Any:
    """``(x, dy) -> (y, dparams, dx)`` of a norm of rows, in the dtype of x; batch_norm's are
    the columns, and group_norm's the places of one channel."""
    block = getattr(fnn, norm)(*[1] * (norm == "group_norm"), **options)
    laid, back = {
        "layer_norm": (lambda v: v, lambda v: v),
        "batch_norm": (lambda v: v.T, lambda v: v.T),
        "group_norm": (lambda v: v[..., None], lambda v: v[..., 0]),
    }[norm]

    @jax.jit
    def of(x: jax.Array, dy: jax.Array) -> Any:
        x, dy = laid(x), laid(dy)
        params = block.init(jax.random.key(0), x)
        params = jax.tree.map(lambda p: p.astype(x.dtype), params)
        y, dparams, dx = run(block, params, x, dy)
        return back(y), dparams, back(dx)

    return of


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", [1, 3, 100, 1000, 50_001])
def test_a_constant_becomes_exactly_0(norm: str, n: int) -> None:
    of = rows_of(norm)
    for value in (12345.678, 0.1, -1e-30, 1.6e7, 3e15, -2e31, 1e-38):
        x = jnp.full((1, n), value, jnp.float32)
        y, _, dx = of(x, x * 0 + 1)
        assert not np.any(y) and np.max(np.abs(dx)) < 1e-4, value


def test_a_constant_channel_without_epsilon() -> None:
    x = jnp.array([[1.0, 3.0], [2.0, 3.0], [3.0, 3.0]])
    net = fnn.batch_norm(epsilon=0.0, momentum=0.0)
    params = net.init(jax.random.key(0), x)
    y, residuals = net.forward(params, x)
    dx = net.backward(params, residuals, x)[1]
    np.testing.assert_allclose(y, [[-(1.5**0.5), 0], [0, 0], [1.5**0.5, 0]], rtol=1e-12)
    np.testing.assert_allclose(dx, 0, atol=1e-12)  # of z along itself, and of a constant
    moved = net.rules.update_statistics(params, residuals)
    np.testing.assert_allclose(fnn.inference(net).forward(moved, x)[0], y, rtol=1e-12)


@pytest.mark.parametrize(("norm", "mean"), [*((norm, 0) for norm in NORMS), ("layer_norm", 1e4)])
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6, 1.6e7])
def test_a_large_mean_loses_no_digits(norm: str, mean: float, offset: float) -> None:
    """In float32, as good as float64 from the same rounded x and dy."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(20, 3000)) + offset).astype(np.float32)
    dy, of = (mean + rng.normal(size=x.shape)).astype(np.float32), rows_of(norm)
    got, wanted = of(x, dy), of(x.astype(float), dy.astype(float))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.max(np.abs(b)))
    np.testing.assert_allclose(np.mean(got[0], -1, dtype=float), 0, atol=1e-7)
    np.testing.assert_allclose(np.std(got[0], -1, dtype=float), 1, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_four_neighbouring_numbers(norm: str) -> None:
    """pytorch#5410: their mean is not a float32."""
    x = jnp.array([[1.6e7, 1.6e7 + 1, 1.6e7 + 2, 1.6e7 + 3]], jnp.float32)
    y, _, dx = rows_of(norm, epsilon=1e-12)(x, jnp.array([[0, 0, 0, 1]], jnp.float32))
    z = np.array([-3, -1, 1, 3]) / 5**0.5
    np.testing.assert_allclose(y[0], z, rtol=2e-7)
    wanted = (np.array([0, 0, 0, 1]) - 0.25 - z * z[3] / 4) / 1.25**0.5
    np.testing.assert_allclose(dx[0], wanted, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_what_leaves_the_range_is_not_a_silent_0(norm: str) -> None:
    x, of = np.array([[0.0, 1.0, 2.0, 5.0]], np.float32), rows_of(norm)
    dy = np.array([[0.0, 0.0, 3.0, 1.0]], np.float32)
    for scale in (1e-30, 1e-19, 1e-10, 1.0, 1e10, 1e18):
        y, _, dx = of(scale * x, dy)
        wanted = of(scale * x.astype(float), dy.astype(float))
        np.testing.assert_allclose(y, wanted[0], rtol=1e-6, atol=1e-6 * np.max(wanted[0]))
        np.testing.assert_allclose(dx, wanted[2], rtol=1e-5, atol=1e-6 * np.max(wanted[2]))
    assert np.isnan(of(np.float32(1e30) * x, dy)[0]).all()


def test_the_variance_is_never_negative() -> None:
    """In float32 the mean of squares minus the square of the mean would be."""
    x = jnp.asarray(np.float32(1e4) + np.float32(1e-3) * np.arange(64, dtype=np.float32))[None]
    block = fnn.layer_norm(epsilon=1e-12, use_scale=False, use_bias=False)
    y, _, dx = run(block, {}, x, jnp.ones_like(x))
    assert np.isfinite(y).all() and np.isfinite(dx).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_statistics_are_in_float32(dtype: str) -> None:
    x = jnp.tile(jnp.asarray([100.0, 101.0], dtype), (1, 2048))  # squares and sums leave float16
    y, _ = fnn.layer_norm(use_scale=False, use_bias=False).forward({}, x)
    np.testing.assert_allclose(np.abs(np.asarray(y, float)), 1, rtol=1e-2)


def test_parameters_have_the_sizes_of_their_axes() -> None:
    x = jax.ShapeDtypeStruct((2, 3, 4, 5), "bfloat16")
    axes: list[tuple[Any, Any]] = [
        (-1, (5,)), (1, (3,)), ((-1, 1), (3, 5)), ((1, 2, 3), (3, 4, 5)),
    ]  # fmt: skip
    for axis, shape in axes:
        params = fnn.layer_norm(axis).init(jax.random.key(0), x)
        assert {leaf: (p.shape, str(p.dtype)) for leaf, p in params.items()} == {
            "bias": (shape, "float32"),
            "scale": (shape, "float32"),
        }
        assert np.all(params["scale"] == 1) and not np.any(params["bias"])


def test_misfits_are_refused() -> None:
    net, x = fnn.layer_norm(), jnp.ones((2, 4))
    params = net.init(jax.random.key(0), x)
    wrong: list[tuple[Any, Any, Any, type[BlockError], str]] = [
        (net, params, jnp.ones((2, 5)), BlockValueError, r"bias has shape \(4,\).*needs \(5,\)"),
        (net, {}, x, BlockTypeError, r"params hold \[\], need \['bias', 'scale'\]"),
        (net, None, x, BlockTypeError, "params hold None"),
        (net, params, jnp.ones((2, 0)), BlockValueError, "is empty: it has no mean"),
        (net, params, jnp.ones((2, 4), int), BlockTypeError, "floating"),
        (net, params, jnp.ones(()), BlockValueError, "does not fit x of shape"),
        (fnn.layer_norm(2), params, x, BlockValueError, "different axes from -2 to 1"),
        (fnn.layer_norm((1, -1)), params, x, BlockValueError, "different axes"),
        (fnn.layer_norm(()), params, x, BlockValueError, "different axes"),
        (fnn.batch_norm(), params, jnp.ones(4), BlockValueError, "needs a batch axis and channels"),
    ]
    for block, bad_params, bad_x, kind, message in wrong:
        with pytest.raises(kind, match=message):
            block.forward(bad_params, bad_x)
    for epsilon in (0, -1, float("nan"), float("inf")):
        with pytest.raises(BlockValueError, match="epsilon is"):
            fnn.layer_norm(epsilon=epsilon)


def test_a_mean_is_the_same_wherever_it_is_subtracted() -> None:
    """XLA computes it once more in each loop; where one fused its last product with the
    subtraction, this entry was wrong by 165 units of its row's largest."""
    net, seed, entry = fnn.layer_norm(1), 78, (0, 1, 1, 2)
    x = np.random.default_rng(seed).standard_normal((2, 3, 2, 4)).astype(np.float32)
    params = {"scale": np.float32([0.85, 0.42, -0.53]), "bias": np.zeros(3, np.float32)}
    dy = np.zeros_like(x)
    dy[:, 1] = 1

    def dx(params: Any, x: Any, dy: Any) -> Any:
        return net.backward(params, net.forward(params, x)[1], dy)[1]

    full = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    got = jax.jit(dx, compiler_options=full)(params, x, dy)
    want = dx(*jax.tree.map(np.float64, (params, x, dy)))
    unit = np.finfo(np.float32).eps / 2 * np.abs(want[0, :, 1, 2]).max()
    assert abs(np.float64(got)[entry] - want[entry]) < 4 * unit
