"""Every nonlinearity against its mathematical definition: digits, edges, kinks, bytes.

The reference is written from the definition in NumPy's long double, checked here against mpmath
at 50 digits, and shares no formula with the code under test.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy.special import erfcx

import fnn as nl
from fnn.block import Block, BlockTypeError, BlockValueError


@pytest.fixture(autouse=True)
def single_precision():
    """float32 by default, unlike conftest.py: digits are counted in it."""
    with jax.enable_x64(False):
        yield


mp.mp.dps = 50
LONG = np.longdouble
TINY = float(np.finfo(np.float32).tiny)
CELU = 1.7  # an alpha that is no power of two
SLOPE = 0.01
SCALE, ALPHA = "1.0507009873554804934193349852946", "1.6732632423543772848170429916717"


def number(text, x):
    """A constant at the precision of x: mpmath's or long double."""
    return mp.mpf(text) if isinstance(x, mp.mpf) else LONG(text)


# ---- the reference: one definition, read in mpmath or in long double -------------------------


class Long:
    """The functions that the definitions need, on long double arrays."""

    exp, expm1, log1p, tanh = np.exp, np.expm1, np.log1p, np.tanh
    where = staticmethod(np.where)

    @staticmethod
    def normal_cdf(x):
        a = np.minimum(np.abs(x), 60)
        tail = np.exp(-a * a / 2) * erfcx((a / np.sqrt(LONG(2))).astype(np.float64)) / 2
        return np.where(x < 0, tail, 1 - tail)


class Exact:
    """The same in mpmath, one number at a time."""

    exp, expm1, log1p, tanh = mp.exp, mp.expm1, mp.log1p, mp.tanh

    @staticmethod
    def where(test, a, b):
        return a if test else b

    @staticmethod
    def normal_cdf(x):
        return mp.erfc(-x / mp.sqrt(2)) / 2


def sigmoid(m, x):
    return 1 / (1 + m.exp(-x))


def sigmoid_slope(m, x):
    return sigmoid(m, x) * sigmoid(m, -x)


def below(m, x):
    return m.where(x > 0, 0 * x, x)


def softplus(m, x):
    return m.where(x > 0, x + m.log1p(m.exp(-x)), m.log1p(m.exp(x)))


def gelu_v(x):
    pi = number("3.14159265358979323846264338327950288", x)
    return 2 * (2 / pi) ** number("0.5", x) * (x + number("0.044715", x) * x**3)


def gelu_dv(x):
    pi = number("3.14159265358979323846264338327950288", x)
    return 2 * (2 / pi) ** number("0.5", x) * (1 + 3 * number("0.044715", x) * x**2)


def density(m, x):
    pi = number("3.14159265358979323846264338327950288", x)
    return m.exp(-x * x / 2) / (2 * pi) ** number("0.5", x)


def elu(m, x, scale, alpha, width):
    return scale * m.where(x > 0, x, alpha * m.expm1(below(m, x) / width))


def elu_slope(m, x, scale, alpha, width):
    return scale * m.where(x > 0, 1 + 0 * x, alpha / width * m.exp(below(m, x) / width))


def constants(x):
    return number(SCALE, x), number(ALPHA, x), 1


def mish_slope(m, x):
    t = m.tanh(softplus(m, x))
    u = m.exp(-2 * softplus(m, x))  # sech^2(s) = 4 u / (1 + u)^2
    return t + x * 4 * u / (1 + u) ** 2 * sigmoid(m, x)


def inside(m, x, edge, slope):
    return m.where(abs(x) < edge, slope + 0 * x, 0 * x)


# name: (block, value, derivative, zeros of the derivative, limit in units for the derivative)
SMOOTH = {
    "logistic": (nl.logistic(), sigmoid, sigmoid_slope),
    "tanh": (
        nl.tanh(),
        lambda m, x: m.tanh(x),
        lambda m, x: 4 * sigmoid_slope(m, 2 * x),
    ),
    "elu": (
        nl.elu(),
        lambda m, x: elu(m, x, 1, 1, 1),
        lambda m, x: elu_slope(m, x, 1, 1, 1),
    ),
    "elu(0.3)": (
        nl.elu(0.3),
        lambda m, x: elu(m, x, 1, number(0.3, x), 1),
        lambda m, x: elu_slope(m, x, 1, number(0.3, x), 1),
    ),
    "selu": (
        nl.selu(),
        lambda m, x: elu(m, x, *constants(x)),
        lambda m, x: elu_slope(m, x, *constants(x)),
    ),
    "celu": (
        nl.celu(CELU),
        lambda m, x: elu(m, x, 1, number(CELU, x), number(CELU, x)),
        lambda m, x: elu_slope(m, x, 1, number(CELU, x), number(CELU, x)),
    ),
    "softplus": (nl.softplus(), softplus, sigmoid),
    "softsign": (
        nl.softsign(),
        lambda m, x: x / (1 + abs(x)),
        lambda m, x: 1 / (1 + abs(x)) ** 2,
    ),
    "silu": (
        nl.silu(),
        lambda m, x: x * sigmoid(m, x),
        lambda m, x: sigmoid(m, x) + x * sigmoid_slope(m, x),
    ),
    "mish": (nl.mish(), lambda m, x: x * m.tanh(softplus(m, x)), mish_slope),
    "gelu": (
        nl.gelu(),
        lambda m, x: x * m.normal_cdf(x),
        lambda m, x: m.normal_cdf(x) + x * density(m, x),
    ),
    "gelu_tanh": (
        nl.gelu(approximate=True),
        lambda m, x: x * sigmoid(m, gelu_v(x)),
        lambda m, x: sigmoid(m, gelu_v(x)) + x * gelu_dv(x) * sigmoid_slope(m, gelu_v(x)),
    ),
}
PIECEWISE = {
    "relu": (nl.relu(), lambda m, x: m.where(x > 0, x, 0 * x), lambda m, x: (x > 0) + 0 * x),
    "leaky_relu": (
        nl.leaky_relu(SLOPE),
        lambda m, x: m.where(x > 0, x, number(SLOPE, x) * x),
        lambda m, x: m.where(x > 0, 1 + 0 * x, number(SLOPE, x) + 0 * x),
    ),
    "hard_tanh": (
        nl.hard_tanh(),
        lambda m, x: m.where(abs(x) < 1, x, m.where(x > 0, 1 + 0 * x, -1 + 0 * x)),
        lambda m, x: inside(m, x, 1, 1),
    ),
    "hard_sigmoid": (
        nl.hard_sigmoid(),
        lambda m, x: m.where(abs(x) < 3, (x + 3) / 6, m.where(x > 0, 1 + 0 * x, 0 * x)),
        lambda m, x: inside(m, x, 3, 1 / number(6, x)),
    ),
    "absolute": (
        nl.absolute(),
        lambda m, x: abs(x),
        lambda m, x: m.where(x > 0, 1 + 0 * x, m.where(x < 0, -1 + 0 * x, 0 * x)),
    ),
    "step": (
        nl.step(),
        lambda m, x: m.where(x < 0, 0 * x, 1 + 0 * x),
        lambda m, x: 0 * x,
    ),
    "identity": (nl.identity(), lambda m, x: x, lambda m, x: 1 + 0 * x),
}
ALL = SMOOTH | PIECEWISE
ROOTS = (-1.278464542761073795, -1.192431214515495212, -0.751791524693564457, -0.752461422071016)
UNITS = {"gelu_tanh": (4.0, 5.0)}  # the rest: 4 for value and derivative

each = pytest.mark.parametrize("name", ALL)
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


def sample() -> np.ndarray:
    """Normal float32 inputs: every exponent, the tails densely, and around every root."""
    rng = np.random.default_rng(20)
    parts = [
        rng.integers(0, 2**32, 40_000, dtype=np.uint32).view(np.float32),
        rng.choice([-1.0, 1.0], 40_000) * 2.0 ** rng.uniform(-12, 7, 40_000),
        rng.uniform(-15, 2, 40_000),
        rng.uniform(-180, 100, 30_000),
    ]
    for root in ROOTS:
        near = np.float32(root).view(np.int32) + np.arange(-300, 300)
        parts.append(near.astype(np.int32).view(np.float32))
        parts.append(root + rng.normal(size=3000) * 2.0 ** rng.uniform(-24, 0, 3000))
    x = np.concatenate([part.astype(np.float32) for part in parts])
    return x[np.isfinite(x) & (np.abs(x) >= TINY)]


def reference(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, value, derivative = ALL[name]
    with np.errstate(all="ignore"):
        wide = x.astype(LONG)
        # beyond 1e4 every derivative has reached its limit; clipped so that inf * 0 stays out
        narrow = wide if name == "softsign" else np.clip(wide, -1e4, 1e4)
        y = value(Long, wide if name != "gelu_tanh" else narrow)
        y = (
            np.where(wide > 1e4, value(Long, LONG(1e4) + 0 * wide) + wide - 1e4, y)
            if (name in ("gelu_tanh", "mish"))
            else y
        )
        return y, derivative(Long, narrow)


def units(got: np.ndarray, want: np.ndarray, kind=np.float32) -> np.ndarray:
    """Error in units in the last place of ``kind`` where the truth is normal, else 0."""
    info = jnp.finfo(kind)
    size = np.abs(want).astype(np.float64)
    normal = (size >= float(info.tiny)) & (size <= float(info.max))
    unit = 2.0 ** (np.floor(np.log2(np.where(normal, size, 1.0))) - info.nmant)
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(LONG) - want).astype(np.float64) / unit
    return np.where(normal, np.where(np.isnan(error), np.inf, error), 0.0)


@each
def test_reference_is_right(name):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=40) * 3, rng.uniform(-13, 5, 40), rng.uniform(-90, 90, 40)])
    x = np.concatenate([x, ROOTS]).astype(np.float32)
    _, value, derivative = ALL[name]
    for got, exact in zip(reference(name, x), (value, derivative), strict=True):
        want = [exact(Exact, mp.mpf(float(point))) for point in x]
        for point, a, b in zip(x, got, want, strict=True):
            slack = 5e-16 if abs(point) < 2 else 0  # erfcx is a double; gelu' has a zero there
            if abs(b) >= TINY:
                assert abs(mp.mpf(repr(float(a))) - b) <= 2e-9 * abs(b) + slack, (point, a, b)


@each
def test_digits_float32(name):
    x = sample()
    got, want = both(ALL[name][0], x), reference(name, x)
    for what, a, b, limit in zip(("y", "dx"), got, want, UNITS.get(name, (4.0, 4.0)), strict=True):
        error = units(a, b)
        worst = error.argmax()
        assert error[worst] <= limit, (what, error[worst], x[worst], a[worst], float(b[worst]))


@each_smooth
def test_digits_float64(name):
    rng = np.random.default_rng(2)
    parts = [rng.normal(size=40) * 3, rng.uniform(-700, 30, 40), rng.uniform(-37, 0, 60)]
    parts += [root + rng.normal(size=15) * 2.0 ** rng.uniform(-40, 0, 15) for root in ROOTS]
    x = np.concatenate(parts)
    block, value, derivative = ALL[name]
    with jax.enable_x64(True):
        got = both(block, jnp.asarray(x))
    for a, exact in zip(got, (value, derivative), strict=True):
        assert a.dtype == np.float64
        for point, number_ in zip(x, a, strict=True):
            truth = exact(Exact, mp.mpf(float(point)))
            if abs(truth) >= np.finfo(np.float64).tiny:
                assert abs(mp.mpf(float(number_)) - truth) <= 1e-14 * abs(truth), point


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_every_16_bit_input(name, dtype):
    x = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(dtype)
    wide = x.astype(np.float32)
    usable = np.isfinite(wide) & ((np.abs(wide) >= TINY) | (wide == 0))
    x, wide = x[usable], wide[usable]
    for a, b in zip(both(ALL[name][0], jnp.asarray(x)), reference(name, wide), strict=True):
        error = units(a.astype(np.float64), b, dtype)
        assert error.max() <= 0.51, (x[error.argmax()], a[error.argmax()])  # rounded once


INF = float("inf")
LIMITS = {  # y(-inf), y(inf), dx(-inf), dx(inf)
    "logistic": (0, 1, 0, 0),
    "tanh": (-1, 1, 0, 0),
    "elu": (-1, INF, 0, 1),
    "elu(0.3)": (np.float32(-0.3), INF, 0, 1),
    "selu": (-float(SCALE) * float(ALPHA), INF, 0, float(SCALE)),
    "celu": (-CELU, INF, 0, 1),
    "softplus": (0, INF, 0, 1),
    "softsign": (-1, 1, 0, 0),
    "silu": (0, INF, 0, 1),
    "mish": (0, INF, 0, 1),
    "gelu": (0, INF, 0, 1),
    "gelu_tanh": (0, INF, 0, 1),
    "relu": (0, INF, 0, 1),
    "leaky_relu": (-INF, INF, SLOPE, 1),
    "hard_tanh": (-1, 1, 0, 0),
    "hard_sigmoid": (0, 1, 0, 0),
    "absolute": (INF, INF, -1, 1),
    "step": (0, 1, 0, 0),
    "identity": (-INF, INF, 1, 1),
}


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_edges(name, dtype):
    block = ALL[name][0]
    huge = float(jnp.finfo(dtype).max)
    y, dx = both(
        block, jnp.array([-INF, INF, -huge, huge, jnp.nan, 0.0, -0.0, 1e-38, -1e-38], dtype)
    )
    y, dx = y.astype(np.float64), dx.astype(np.float64)
    digits = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose([*y[:2], *dx[:2]], LIMITS[name], rtol=digits)
    np.testing.assert_allclose(dx[2:4], LIMITS[name][2:], rtol=digits, atol=1e-9)
    for end, value in zip(LIMITS[name][:2], y[2:4], strict=True):
        if np.isfinite(end):
            np.testing.assert_allclose(value, end, rtol=digits, atol=2e-5)
        else:
            assert abs(value) >= huge * min(SLOPE, 1) * 0.99
    assert np.isnan(y[4])
    assert np.isnan(dx[4]) or name in ("step", "identity")
    at_zero = float(ALL[name][1](Exact, mp.mpf(0)))
    np.testing.assert_allclose(y[5:], at_zero, rtol=digits, atol=1e-37)
    assert np.isfinite(dx[5:]).all()


KINKS = {  # name: (x, the declared derivative there)
    "relu": ([0.0, -0.0], 0.0),
    "leaky_relu": ([0.0, -0.0], SLOPE),
    "hard_tanh": ([-1.0, 1.0], 0.0),
    "hard_sigmoid": ([-3.0, 3.0], 0.0),
    "absolute": ([0.0, -0.0], 0.0),
    "step": ([0.0, -0.0], 0.0),
    "elu": ([0.0, -0.0], 1.0),
    "elu(0.3)": ([0.0, -0.0], 0.3),
    "selu": ([0.0, -0.0], float(SCALE) * float(ALPHA)),
    "celu": ([0.0, -0.0], 1.0),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_have_the_declared_derivative(name):
    x, want = KINKS[name]
    _, dx = both(ALL[name][0], jnp.array(x))
    np.testing.assert_allclose(dx, [want, want], rtol=2e-7)


def test_step_fires_at_its_threshold():
    assert both(nl.step(), jnp.array([-1e-30, 0.0, 1e-30]))[0].tolist() == [0.0, 1.0, 1.0]


JAX = {
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "absolute": jnp.abs,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": lambda x: jax.nn.celu(x, CELU),
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@pytest.mark.parametrize("name", JAX)
def test_same_function_as_jax_and_no_more_residual_bytes(name):
    block = ALL[name][0]
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
    assert kept == x.size * (1 if name in PIECEWISE else 4)
    plain = sum(leaf.nbytes for leaf in jax.tree.leaves(pull) if leaf.size == x.size)
    assert kept <= plain


@pytest.mark.parametrize("block", [nl.step(), nl.identity()])
def test_no_residual_at_all(block):
    assert jax.tree.leaves(block.forward({}, jnp.ones(3))[1]) == []


@each_smooth
def test_second_derivative(name):
    # jvp through the hand-written backward; 0 is where |x| inside a formula would spoil it
    block, _, derivative = ALL[name]
    if name in ("elu(0.3)", "selu", "softsign"):  # kinks of the derivative at 0
        x = np.array([-3.0, -1.25, 0.75, 2.5], np.float32)
    else:
        x = np.array([-30.0, -3.0, -1.25, -0.7, 0.0, 0.75, 2.5, 30.0], np.float32)
    if name in ("elu", "celu"):
        x = x[x != 0]

    def slope(x):
        return block.backward({}, block.forward({}, x)[1], jnp.ones_like(x))[1]

    got = jax.jit(lambda x: jax.jvp(slope, (x,), (jnp.ones_like(x),))[1])(x)
    want = [float(mp.diff(lambda t: derivative(Exact, t), mp.mpf(float(v)), h=1e-15)) for v in x]
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
            y, residuals = ALL[name][0].forward({}, x)
            return y, ALL[name][0].backward({}, residuals, y)[1]

        for out in jax.eval_shape(run, x):
            assert out.shape == x.shape and out.dtype == x.dtype


@each
def test_vmap_and_scan(name):
    block = ALL[name][0]
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


@pytest.mark.parametrize("name", [n for n in ALL if n != "identity"])
def test_integers_are_refused(name):
    with pytest.raises(BlockTypeError, match="cast it first"):
        ALL[name][0].forward({}, jnp.arange(3))


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
