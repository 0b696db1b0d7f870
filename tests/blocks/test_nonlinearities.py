"""Nonlinearities, apart from their digits in 32 and 16 bits (test_exhaustive.py): digits
in float64, residual bytes, second derivatives, transformations; softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import fnn as nl
from experiments.selftest.peers import BLOCKS, JAX
from experiments.selftest.references import exact, zero_of
from fnn.block import Block, BlockTypeError, BlockValueError


@pytest.fixture(autouse=True)
def single_precision():
    """float32 by default, unlike conftest.py: digits are counted in it."""
    with jax.enable_x64(False):
        yield


mp.mp.dps = 50
INF = float("inf")
ONE_BYTE = ("relu", "leaky_relu", "hard_tanh", "hard_sigmoid", "absolute")
NOTHING = (
    "step",
    "identity",
    "negate",
    "exp",
    "log",
    "square",
    "sqrt",
)  # gates have their own file
ALL = [name for name in BLOCKS if name not in NOTHING and not name.startswith("power")]
SMOOTH = [name for name in ALL if name not in ONE_BYTE]

each = pytest.mark.parametrize("name", [*ALL, "step", "identity"])
each_smooth = pytest.mark.parametrize("name", SMOOTH)


def both(block: Block, x, dy=None):
    """Value and dx under jit, with dy = 1 unless given."""

    @jax.jit
    def run(x, dy):
        y, residuals = block.forward({}, x)
        return y, block.backward({}, residuals, dy)[1]

    y, dx = run(x, jnp.ones_like(x) if dy is None else dy)
    assert y.dtype == dx.dtype == x.dtype and y.shape == dx.shape == x.shape
    return np.asarray(y), np.asarray(dx)


@each_smooth
def test_digits_float64(name):
    rng = np.random.default_rng(2)
    parts = [rng.normal(size=40) * 3, rng.uniform(-700, 30, 40), rng.uniform(-37, 0, 60)]
    if (zero := zero_of(name)) is not None:
        parts.append(zero + rng.normal(size=15) * 2.0 ** rng.uniform(-40, 0, 15))
    x = np.concatenate(parts)
    with jax.enable_x64(True):
        got = both(BLOCKS[name], jnp.asarray(x))
    assert all(a.dtype == np.float64 for a in got)
    for point, *results in zip(x, *got, strict=True):
        for result, truth in zip(results, exact(name, float(point)), strict=True):
            if abs(truth) >= np.finfo(np.float64).tiny:
                assert abs(float(result) - truth) <= 1e-14 * abs(truth), point


@pytest.mark.parametrize("name", ALL)
def test_same_function_as_jax_and_no_more_residual_bytes(name):
    block = BLOCKS[name]
    x = jnp.asarray(np.random.default_rng(3).normal(size=(64, 3)) * 3, jnp.float32)
    dy = jnp.asarray(np.random.default_rng(4).normal(size=(64, 3)), jnp.float32)
    _, pull = jax.jit(lambda x: jax.vjp(JAX[name], x))(x)
    with jax.enable_x64(True):  # JAX's own derivatives lose up to 2e-5 in float32
        wide = [jnp.asarray(np.asarray(v), jnp.float64) for v in (x, dy)]
        y, exact_pull = jax.vjp(JAX[name], wide[0])
        exact = np.asarray(exact_pull(wide[1])[0])
    mine, dx = both(block, x, dy)
    np.testing.assert_allclose(mine, y, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(dx, exact, rtol=2e-6, atol=1e-7)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(block.forward({}, x)[1]))
    assert kept == x.size * (1 if name in ONE_BYTE else 4)
    plain = sum(leaf.nbytes for leaf in jax.tree.leaves(pull) if leaf.size == x.size)
    assert kept <= plain


@pytest.mark.parametrize("block", [nl.step(), nl.identity()])
def test_no_residual_at_all(block):
    assert jax.tree.leaves(block.forward({}, jnp.ones(3))[1]) == []


@each_smooth
def test_second_derivative(name):
    # jvp through the hand-written backward; at 0 jnp.abs inside a formula would make it wrong
    block = BLOCKS[name]
    if name in ("elu(0.3)", "selu", "softsign"):  # kinks of the derivative at 0
        x = np.array([-3.0, -1.25, 0.75, 2.5], np.float32)
    else:
        x = np.array([-30.0, -3.0, -1.25, -0.7, 0.0, 0.75, 2.5, 30.0], np.float32)
    if name in ("elu", "celu(1.7)"):
        x = x[x != 0]

    def slope(x):
        return block.backward({}, block.forward({}, x)[1], jnp.ones_like(x))[1]

    got = jax.jit(lambda x: jax.jvp(slope, (x,), (jnp.ones_like(x),))[1])(x)
    want = [float(mp.diff(lambda t: exact(name, t)[1], mp.mpf(float(v)), h=1e-15)) for v in x]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64])
def test_strict_promotion(name, dtype):
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        x = jax.ShapeDtypeStruct((2, 3, 4), dtype)

        def run(x):
            y, residuals = BLOCKS[name].forward({}, x)
            return y, BLOCKS[name].backward({}, residuals, y)[1]

        for out in jax.eval_shape(run, x):
            assert out.shape == x.shape and out.dtype == x.dtype


@each
def test_vmap_and_scan(name):
    block = BLOCKS[name]
    x = jnp.linspace(-4.0, 4.0, 24).reshape(6, 4)

    def run(x):
        y, residuals = block.forward({}, x)
        return y, block.backward({}, residuals, 2 * jnp.ones_like(x))[1]

    @jax.jit
    def three_ways(x):
        scanned = jax.lax.scan(lambda carry, row: (carry, run(row)), 0, x)[1]
        return run(x), jax.vmap(run)(x), scanned

    want, *others = three_ways(x)
    for got in others:
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    for empty in jax.eval_shape(run, jnp.zeros((0, 4))):
        assert empty.shape == (0, 4)


@pytest.mark.parametrize("name", [*ALL, "step"])
def test_integers_are_refused(name):
    with pytest.raises(BlockTypeError, match="cast it first"):
        BLOCKS[name].forward({}, jnp.arange(3))


def test_the_names_of_the_field_are_aliases():
    assert nl.sigmoid is nl.logistic and nl.heaviside is nl.step
    assert nl.sigmoid().name == "logistic" and nl.heaviside().kind.maker == "step"


def test_celu_needs_a_width():
    with pytest.raises(BlockValueError, match="alpha is 0"):
        nl.celu(0.0)


def test_a_zero_slope_stops_any_cotangent():
    _, dx = both(nl.relu(), jnp.array([-1.0, 1.0]), jnp.array([INF, INF]))
    assert dx.tolist() == [0.0, INF]


# ---- softmax and log_softmax -----------------------------------------------------------------


def exact_softmax(x, dy):
    """y, dx of softmax and of log_softmax for one finite row, at 50 digits."""
    x, dy = [mp.mpf(float(v)) for v in x], [mp.mpf(float(v)) for v in dy]
    top = max(x)
    e = [mp.exp(v - top) for v in x]
    p = [v / mp.fsum(e) for v in e]
    mean = mp.fsum(a * b for a, b in zip(p, dy, strict=True))
    total = mp.fsum(dy)
    log_p = [v - top - mp.log(mp.fsum(e)) for v in x]
    return (
        (p, [a * (b - mean) for a, b in zip(p, dy, strict=True)]),
        (log_p, [b - a * total for a, b in zip(p, dy, strict=True)]),
    )


ROWS = {
    "plain": ([0.3, -1.2, 2.0, 0.1], [1.0, -0.5, 0.3, 0.7]),
    "confident": ([20.0, 0.0, -3.0, 1.0], [1.0, 0.0, 0.0, 0.0]),
    "confident, mixed dy": ([16.0, 0.0, -3.0, 1.0], [0.7, -0.4, 0.9, 0.2]),
    "dy nearly constant": ([12.0, 0.0, 1.0, 2.0], [100.0, 100.0, 101.0, 100.5]),
    "huge and equal": ([3e38, 3e38, 3e38, 3e38], [1.0, 2.0, -1.0, 0.5]),
    "tie at the top": ([5.0, 5.0, -30.0, 5.0], [1.0, 2.0, -1.0, 0.5]),
    "far apart": ([0.0, -80.0, -60.0, -1.0], [0.1, 1.0, 1.0, -1.0]),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("which", [0, 1], ids=["softmax", "log_softmax"])
def test_softmax_digits(row, which):
    x, dy = (np.array(v, np.float32) for v in ROWS[row])
    block = (nl.softmax(), nl.log_softmax())[which]
    got = both(block, jnp.asarray(x), jnp.asarray(dy))
    for a, b in zip(got, exact_softmax(x, dy)[which], strict=True):
        np.testing.assert_allclose(a, [float(v) for v in b], rtol=1.5e-6, atol=1e-38)


def test_softmax_masked_and_infinite_rows():
    x = jnp.array([[0.0, -INF, 0.0], [-INF, -INF, -INF], [INF, 1.0, INF], [jnp.nan, 0.0, 1.0]])
    dy = jnp.array([[1.0, 2.0, 3.0]] * 4)
    y, dx = both(nl.softmax(), x, dy)
    np.testing.assert_array_equal(y[:3], [[0.5, 0, 0.5], [0, 0, 0], [0.5, 0, 0.5]])
    np.testing.assert_array_equal(dx[:3], [[-0.5, 0, 0.5], [0, 0, 0], [-0.5, 0, 0.5]])
    assert np.isnan(y[3]).all() and np.isnan(dx[3]).all()

    dy = dy.at[:, 1].set(0.0).at[1].set(0.0)  # a log-probability of -inf has no finite weight
    y, dx = both(nl.log_softmax(), x, dy)
    half = -np.log(np.float32(2))
    np.testing.assert_allclose(y[:3], [[half, -INF, half], [-INF] * 3, [half, -INF, half]])
    np.testing.assert_array_equal(dx[:3], [[-1, 0, 1], [0, 0, 0], [-1, 0, 1]])
    assert np.isnan(y[3]).all() and np.isnan(dx[3]).all()


@pytest.mark.parametrize("make", [nl.softmax, nl.log_softmax])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_softmax_every_axis(make, rank):
    rng = np.random.default_rng(rank)
    x, dy = rng.normal(size=(2, *(2, 3, 4, 5)[:rank])).astype(np.float32)
    for axis in sorted({0, rank // 2, -1}):
        e = np.exp(x.astype(np.float64))
        p = e / e.sum(axis, keepdims=True)
        if make is nl.softmax:
            want = p, p * (dy - (p * dy).sum(axis, keepdims=True))
        else:
            want = np.log(p), dy - p * dy.sum(axis, keepdims=True)
        for a, b in zip(both(make(axis), jnp.asarray(x), jnp.asarray(dy)), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.jit(make().forward)({}, x)[1]))
    assert kept == x.nbytes


@pytest.mark.parametrize("make", [nl.softmax, nl.log_softmax])
def test_softmax_empty_batch_low_precision_and_second_order(make):
    assert both(make(), jnp.zeros((0, 3)))[0].shape == (0, 3)
    x, dy = jnp.array([[2.0, -1.0, 0.5]]), jnp.array([[1.0, -2.0, 0.25]])
    y, dx = both(make(), x, dy)
    for dtype in (jnp.bfloat16, jnp.float16):
        low_y, low_dx = both(make(), x.astype(dtype), dy.astype(dtype))
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(low_y.astype(np.float32), y, rtol=eps)
        np.testing.assert_allclose(low_dx.astype(np.float32), dx, rtol=2 * eps, atol=eps)

    def gradient(x):
        return make().backward({}, make().forward({}, x)[1], dy)[1]

    plain = jax.nn.softmax if make is nl.softmax else jax.nn.log_softmax

    @jax.jit
    def second(x):
        autodiff = jax.grad(lambda x: jnp.sum(plain(x) * dy))
        return jax.jvp(gradient, (x,), (dy,))[1], jax.jvp(autodiff, (x,), (dy,))[1]

    np.testing.assert_allclose(*second(x), rtol=1e-5, atol=1e-6)


# ---- straight_through ------------------------------------------------------------------------


def test_straight_through_is_one_forward_and_the_other_backward():
    x, dy = jnp.array([-2.0, 0.0, 0.5]), jnp.array([1.0, -3.0, 0.5])
    y, dx = both(nl.straight_through(nl.step(), nl.logistic()), x, dy)
    np.testing.assert_array_equal(y, both(nl.step(), x)[0])
    np.testing.assert_array_equal(dx, both(nl.logistic(), x, dy)[1])


def test_straight_through_trains_a_network_of_binary_units():
    unit = nl.straight_through(nl.step(), nl.logistic())
    rng = np.random.default_rng(0)
    x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    target = jnp.array([0.0, 1.0, 1.0, 0.0])  # exclusive or: a single threshold cannot
    w = jnp.asarray(rng.normal(size=(2, 16)), jnp.float32)
    b = jnp.asarray(rng.normal(size=(1, 16)), jnp.float32)
    v = jnp.asarray(rng.normal(size=16) / 4, jnp.float32)

    @jax.jit
    def train(w, b, v):
        def step(carry, _):
            w, b, v = carry
            h, residuals = unit.forward({}, x @ w + b)
            error = h @ v - target
            _, dz = unit.backward({}, residuals, error[:, None] * v[None, :])
            new = w - 0.1 * (x.T @ dz), b - 0.1 * dz.sum(0, keepdims=True), v - 0.1 * (h.T @ error)
            return new, jnp.mean(error**2)

        return jax.lax.scan(step, (w, b, v), length=500)

    (w_new, _, _), losses = train(w, b, v)
    assert losses[-1] < 1e-3 < 0.1 < losses[0]
    assert jnp.abs(w_new - w).max() > 1e-3  # the layer under the threshold learned
