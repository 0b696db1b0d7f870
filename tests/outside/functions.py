"""Functions of public packages, with arguments, for fnn.check.function: what a checker meets that
its authors did not write. The gradient of each at its arguments is right: by the differences of
tests/outside/richardson.py, which share no code with fnn.

A row's ``make(package, draw)`` returns ``(f, *args)``; ``options`` are those that an informed
user gives fnn.check.function (a tolerance, for what is right to a tolerance by design).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Row(NamedTuple):
    package: str
    name: str
    make: Callable[..., tuple[Any, ...]]

    @property
    def options(self) -> dict[str, Any]:
        return getattr(self.make, "options", {})

    def __str__(self) -> str:
        return f"{self.package}: {self.name}"


def given(make: Callable[..., tuple[Any, ...]], **options: Any) -> Callable[..., tuple[Any, ...]]:
    make.options = options
    return make


class Draw:
    """Numbers for a row, the same in every run."""

    def __init__(self, row: Row) -> None:
        self.rng = np.random.default_rng(zlib.crc32(str(row).encode()))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        return self.rng.uniform(low, high, shape)

    def positive(self, *shape: int) -> np.ndarray:
        return self.between(0.5, 2.5, *shape)

    def unit(self, *shape: int) -> np.ndarray:
        return self.between(0.1, 0.9, *shape)

    def rows(self, *shape: int) -> np.ndarray:
        """Rows of probabilities."""
        p = self.unit(*shape)
        return p / p.sum(-1, keepdims=True)

    def ids(self, n: int, *shape: int) -> np.ndarray:
        return self.rng.integers(0, n, shape).astype(np.int32)

    def bits(self, *shape: int) -> np.ndarray:
        """Zeros and ones, as floats: a mask or targets."""
        return self.rng.integers(0, 2, shape).astype(np.float64)

    def complex(self, *shape: int) -> np.ndarray:
        return self.normal(*shape) + 1j * self.normal(*shape)

    def spd(self, n: int) -> np.ndarray:
        """A symmetric positive definite matrix."""
        a = self.normal(n, n)
        return a @ a.T / n + np.eye(n)

    def matrix(self, n: int) -> np.ndarray:
        """A well-conditioned square matrix."""
        return self.normal(n, n) + 3 * np.eye(n)


def raw_key(seed: int = 0) -> jax.Array:
    """A key as a uint32 array, as many packages still want them."""
    return jax.random.PRNGKey(seed)


# ---- flax, haiku, equinox: a module and its parameters as arguments ---------------------------


def _linen(module: Any, *inputs: Any, **options: Any) -> tuple[Any, ...]:
    variables = module.init(jax.random.key(0), *map(jnp.float32, inputs), **options)
    return (
        lambda variables, *inputs: module.apply(variables, *inputs, **options),
        variables,
        *inputs,
    )


def _linen_trained(module: Any, x: Any) -> tuple[Any, ...]:
    """With batch statistics, which a step also returns."""
    variables = module.init(jax.random.key(0), jnp.float32(x))
    return lambda v, x: module.apply(v, x, mutable=["batch_stats"]), variables, x


def _nnx(nnx: Any, module: Any, *inputs: Any) -> tuple[Any, ...]:
    definition, state = nnx.split(module)
    return lambda state, *inputs: nnx.merge(definition, state)(*inputs), state, *inputs


def _haiku(hk: Any, f: Callable[..., Any], *inputs: Any) -> tuple[Any, ...]:
    net = hk.without_apply_rng(hk.transform(f))
    return net.apply, net.init(jax.random.key(0), *map(jnp.float32, inputs)), *inputs


def _partitioned(eqx: Any, module: Any, *inputs: Any) -> tuple[Any, ...]:
    """The module's arrays as the first argument, with None in place of all else."""
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    return lambda arrays, *inputs: eqx.combine(arrays, rest)(*inputs), arrays, *inputs


def _solved(solution: Any) -> Any:
    return solution.value


def _point_cloud(x: Any, y: Any) -> Any:
    from ott.geometry.pointcloud import PointCloud

    return PointCloud(x, y, epsilon=0.5)


KEY = jax.random.key(7)

FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "jax.nn": {
        "softmax": lambda nn, r: (nn.softmax, r.normal(3, 4)),
        "softmax of what a mask leaves": lambda nn, r: (
            lambda x, where: nn.softmax(x, where=where),
            r.normal(3, 4),
            np.eye(3, 4) < 1,
        ),
        "log_softmax": lambda nn, r: (nn.log_softmax, r.normal(3, 4)),
        "gelu": lambda nn, r: (nn.gelu, r.normal(6)),
        "gelu, exact": lambda nn, r: (functools.partial(nn.gelu, approximate=False), r.normal(6)),
        "relu6": lambda nn, r: (nn.relu6, 4 * r.normal(8)),
        "celu": lambda nn, r: (lambda x: nn.celu(x, 1.7), r.normal(6)),
        "celu, alpha an argument": lambda nn, r: (nn.celu, r.normal(6), 1.7),
        "mish": lambda nn, r: (nn.mish, r.normal(6)),
        "hard_tanh": lambda nn, r: (nn.hard_tanh, r.normal(6)),
        "squareplus": lambda nn, r: (nn.squareplus, r.normal(6), r.positive(6)),
        "sparse_plus": lambda nn, r: (nn.sparse_plus, r.normal(6)),
        "glu": lambda nn, r: (nn.glu, r.normal(3, 6)),
        "log1mexp": lambda nn, r: (nn.log1mexp, r.positive(6)),
        "standardize": lambda nn, r: (nn.standardize, r.normal(3, 5)),
        "logsumexp, weighted": lambda nn, r: (
            lambda x, b: nn.logsumexp(x, -1, b),
            r.normal(3, 4),
            r.positive(3, 4),
        ),
        "dot_product_attention": given(
            lambda nn, r: (nn.dot_product_attention, *(r.normal(2, 3, 2, 4) for _ in range(3))),
            dtype=np.float32,
        ),
        "dot_product_attention, causal, with a mask of rows": given(
            lambda nn, r: (
                lambda q, k, v, mask: nn.dot_product_attention(q, k, v, mask=mask, is_causal=True),
                *(r.normal(2, 3, 2, 4) for _ in range(3)),
                np.array([[[[True, True, False]]], [[[True, True, True]]]]),
            ),
            dtype=np.float32,
        ),
    },
    "jax.numpy": {
        "sinc": lambda np_, r: (np_.sinc, r.normal(6)),
        "logaddexp": lambda np_, r: (np_.logaddexp, r.normal(4), r.normal(3, 4)),
        "hypot": lambda np_, r: (np_.hypot, r.normal(5), r.normal(5)),
        "arctan2": lambda np_, r: (np_.arctan2, r.normal(5), r.normal(5)),
        "cumprod along axis 0": lambda np_, r: (lambda x: np_.cumprod(x, 0), r.normal(4, 3)),
        "interp": lambda np_, r: (np_.interp, r.between(0, 3, 5), np.arange(4.0), r.normal(4)),
        "quantile": lambda np_, r: (
            lambda x: np_.quantile(x, np.array([0.2, 0.7]), axis=0),
            r.normal(7, 2),
        ),
        "median": lambda np_, r: (np_.median, r.normal(7)),
        "sort": lambda np_, r: (np_.sort, r.normal(3, 4)),
        "nansum": lambda np_, r: (lambda x: np_.nansum(x * x, -1), r.normal(3, 4)),
        "convolve": lambda np_, r: (np_.convolve, r.normal(6), r.normal(3)),
        "convolve, the mode an argument": lambda np_, r: (
            lambda x, k, mode: np_.convolve(x, k, mode),
            r.normal(6),
            r.normal(3),
            "same",
        ),
        "einsum of three": lambda np_, r: (
            lambda a, b, c: np_.einsum("bi,ij,bj->b", a, b, c),
            r.normal(3, 2),
            r.normal(2, 4),
            r.normal(3, 4),
        ),
        "prod": lambda np_, r: (np_.prod, r.normal(5)),
        "var, one degree of freedom": lambda np_, r: (
            lambda x: np_.var(x, -1, ddof=1),
            r.normal(3, 5),
        ),
        "take by ids": lambda np_, r: (
            lambda w, ids: np_.take(w, ids, axis=0),
            r.normal(5, 3),
            r.ids(5, 7),
        ),
        "add at ids": lambda np_, r: (
            lambda x, ids, v: x.at[ids].add(v * v),
            r.normal(5),
            r.ids(5, 7),
            r.normal(7),
        ),
        "multiply at one id": lambda np_, r: (lambda x, v: x.at[2].mul(v), r.normal(5), r.normal()),
        "where, a mask as float": lambda np_, r: (
            lambda x, mask: np_.where(mask > 0.5, np_.sin(x), 0),
            r.normal(8),
            r.bits(8),
        ),
        "rfft, its magnitude": lambda np_, r: (lambda x: np_.abs(np_.fft.rfft(x)), r.normal(8)),
        "fft, complex out": lambda np_, r: (np_.fft.fft, r.normal(6)),
        "power of complex": lambda np_, r: (lambda z: z**3, r.complex(4)),
        "abs of complex": lambda np_, r: (np_.abs, r.complex(4)),
        "matmul of complex and real": lambda np_, r: (np_.matmul, r.complex(2, 3), r.normal(3, 2)),
        "polyval": lambda np_, r: (np_.polyval, r.normal(4), r.normal(5)),
        "integers beside floats": lambda np_, r: (lambda x, n: x * n + n, r.normal(4), r.ids(5, 4)),
        "None for an optional bias": lambda np_, r: (
            lambda x, w, b: x @ w if b is None else x @ w + b,
            r.normal(3, 4),
            r.normal(4, 2),
            None,
        ),
        "y with None and integers": lambda np_, r: (
            lambda x: {"y": np_.sin(x), "n": np_.argmax(x), "aux": None},
            r.normal(5),
        ),
        "a branch chosen by a bool argument": lambda np_, r: (
            lambda x, square: x * x if square else x,
            r.normal(4),
            True,
        ),
    },
    "jax.scipy.special": {
        "gammaln": lambda s, r: (s.gammaln, r.positive(6)),
        "digamma": lambda s, r: (s.digamma, r.positive(6)),
        "polygamma": lambda s, r: (lambda x: s.polygamma(1, x), r.positive(6)),
        "betaln": lambda s, r: (s.betaln, r.positive(5), r.positive(5)),
        "betainc by x": lambda s, r: (lambda x: s.betainc(1.3, 2.1, x), r.unit(3)),
        "gammainc": lambda s, r: (s.gammainc, r.positive(4), r.positive(4)),
        "erfinv": lambda s, r: (s.erfinv, r.between(-0.9, 0.9, 6)),
        "exp1 near 0": lambda s, r: (s.exp1, np.array([2e-3, 1e-3, 5e-4, 3e-4])),
        "erfcx": lambda s, r: (s.erfcx, r.normal(6)),
        "dawsn": lambda s, r: (s.dawsn, r.normal(6)),
        "fresnel": lambda s, r: (s.fresnel, r.normal(6)),
        "sici": lambda s, r: (s.sici, r.positive(6)),
        "expi": lambda s, r: (s.expi, r.positive(4)),
        "i0e": lambda s, r: (s.i0e, r.normal(6)),
        "i1": lambda s, r: (s.i1, r.normal(6)),
        "ndtri": lambda s, r: (s.ndtri, r.unit(6)),
        "log_ndtr": lambda s, r: (s.log_ndtr, r.normal(6)),
        "logit": lambda s, r: (s.logit, r.unit(6)),
        "xlogy": lambda s, r: (s.xlogy, r.positive(5), r.positive(5)),
        "entr": lambda s, r: (s.entr, r.unit(6)),
        "rel_entr": lambda s, r: (s.rel_entr, r.unit(5), r.unit(5)),
        "kl_div": lambda s, r: (s.kl_div, r.unit(5), r.unit(5)),
        "owens_t": lambda s, r: (s.owens_t, r.normal(4), r.normal(4)),
        "multigammaln": lambda s, r: (lambda a: s.multigammaln(a, 3), 2 + r.positive(4)),
        "multigammaln, d an argument": lambda s, r: (s.multigammaln, 2 + r.positive(4), 3),
        "boxcox": lambda s, r: (s.boxcox, r.positive(4), r.positive(4)),
    },
    "jax.scipy.stats": {
        "norm.logcdf": lambda s, r: (s.norm.logcdf, r.normal(5), r.normal(5), r.positive(5)),
        "t.logpdf": lambda s, r: (s.t.logpdf, r.normal(5), r.positive(5)),
        "beta.logpdf": lambda s, r: (s.beta.logpdf, r.unit(5), r.positive(5), r.positive(5)),
        "gamma.logpdf": lambda s, r: (s.gamma.logpdf, r.positive(5), r.positive(5)),
        "dirichlet.logpdf": lambda s, r: (
            lambda a: s.dirichlet.logpdf(np.array([0.2, 0.3, 0.5]), a),
            r.positive(3),
        ),
        "multivariate_normal.logpdf": lambda s, r: (
            s.multivariate_normal.logpdf,
            r.normal(4, 3),
            r.normal(3),
            r.spd(3),
        ),
        "vonmises.logpdf": lambda s, r: (s.vonmises.logpdf, r.normal(5), r.positive(5)),
        "truncnorm.logpdf": lambda s, r: (
            s.truncnorm.logpdf,
            r.between(-0.5, 0.5, 4),
            -r.positive(4),
            r.positive(4),
        ),
        "poisson.logpmf": lambda s, r: (s.poisson.logpmf, r.ids(5, 6), r.positive(6)),
        "nbinom.logpmf": lambda s, r: (s.nbinom.logpmf, r.ids(5, 6), r.positive(6), r.unit(6)),
        "gaussian_kde": lambda s, r: (
            lambda data, at: s.gaussian_kde(data)(at),
            r.normal(8),
            r.normal(3),
        ),
    },
    "jax.numpy.linalg": {
        "inv": lambda s, r: (s.inv, r.matrix(3)),
        "det": lambda s, r: (s.det, r.matrix(3)),
        "slogdet": lambda s, r: (s.slogdet, r.matrix(3)),
        "solve": lambda s, r: (s.solve, r.matrix(3), r.normal(3, 2)),
        "cholesky": lambda s, r: (s.cholesky, r.spd(3)),
        "eigvalsh": lambda s, r: (s.eigvalsh, r.spd(3)),
        "eigvals, complex out": lambda s, r: (s.eigvals, r.normal(3, 3)),
        "svd with its vectors": lambda s, r: (
            lambda x: s.svd(x, full_matrices=False),
            r.normal(3, 3),
        ),
        "svdvals": lambda s, r: (s.svdvals, r.normal(4, 3)),
        "qr": lambda s, r: (s.qr, r.normal(4, 3)),
        "norm of vectors": lambda s, r: (lambda x: s.norm(x, axis=-1), r.normal(4, 3)),
        "norm, nuclear": lambda s, r: (lambda x: s.norm(x, "nuc"), r.normal(4, 3)),
        "pinv": lambda s, r: (s.pinv, r.normal(4, 3)),
        "matrix_power": lambda s, r: (lambda x: s.matrix_power(x, 3), r.normal(3, 3)),
        "solve, complex": lambda s, r: (s.solve, r.complex(3, 3), r.complex(3)),
    },
    "jax.scipy.linalg": {
        "expm": lambda s, r: (s.expm, r.normal(3, 3)),
        "solve_triangular": lambda s, r: (
            lambda a, b: s.solve_triangular(a, b, lower=True),
            np.tril(r.matrix(3)),
            r.normal(3, 2),
        ),
        "cho_solve": lambda s, r: (
            lambda a, b: s.cho_solve((s.cholesky(a @ a.T, lower=True), True), b),
            r.matrix(3),
            r.normal(3),
        ),
        "toeplitz": lambda s, r: (s.toeplitz, r.normal(4), r.normal(3)),
    },
    "jax.scipy.signal": {
        "convolve in two dimensions": lambda s, r: (
            lambda x, k: s.convolve2d(x, k, "same"),
            r.normal(4, 5),
            r.normal(2, 3),
        ),
    },
    "jax.scipy.ndimage": {
        "map_coordinates": lambda s, r: (
            lambda x, at: s.map_coordinates(x, [at, at], 1),
            r.normal(4, 4),
            r.between(0.2, 2.8, 5),
        ),
    },
    "jax.scipy.sparse.linalg": {
        "cg": given(
            lambda s, r: (
                lambda a, b: s.cg(lambda x: a @ x, b, tol=1e-13)[0],
                r.spd(4),
                r.normal(4),
            ),
            rtol=1e-6,
        ),
    },
    "jax.image": {
        "resize, cubic": lambda s, r: (
            lambda x: s.resize(x, (2, 5, 7, 1), "cubic"),
            r.normal(2, 4, 4, 1),
        ),
    },
    "jax.lax": {
        "scan of a recurrence": lambda lax, r: (
            lambda w, h, xs: lax.scan(lambda h, x: ((h := jnp.tanh(w @ h + x)), h), h, xs),
            r.normal(3, 3),
            r.normal(3),
            r.normal(4, 3),
        ),
        "associative_scan": lambda lax, r: (
            lambda x: lax.associative_scan(jnp.multiply, x),
            r.normal(6),
        ),
        "cumlogsumexp": lambda lax, r: (lax.cumlogsumexp, r.normal(6)),
        "cummax": lambda lax, r: (lax.cummax, r.normal(6)),
        "fori_loop of fixed length": lambda lax, r: (
            lambda x: lax.fori_loop(0, 3, lambda i, x: x * jnp.sin(x + i), x),
            r.normal(4),
        ),
        "cond by an integer": lambda lax, r: (
            lambda n, x: lax.cond(n > 2, jnp.sin, jnp.cos, x),
            np.int32(3),
            r.normal(4),
        ),
        "switch by the sign": lambda lax, r: (
            lambda x: lax.map(lambda v: lax.cond(v > 0, jnp.sin, jnp.expm1, v), x),
            r.normal(5),
        ),
        "top_k": lambda lax, r: (lambda x: lax.top_k(x, 2), r.normal(3, 5)),
        "convolution": lambda lax, r: (
            lambda x, w: lax.conv(x, w, (2, 1), "SAME"),
            r.normal(2, 3, 5, 5),
            r.normal(4, 3, 3, 2),
        ),
        "windows of maxima": lambda lax, r: (
            lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 2), (1, 1), "VALID"),
            r.normal(3, 5),
        ),
        "dynamic_slice": lambda lax, r: (
            lambda x, i: lax.dynamic_slice(x, (i,), (3,)),
            r.normal(6),
            np.int32(2),
        ),
        "custom_root": lambda lax, r: (
            lambda a: lax.custom_root(
                lambda x: x**3 + a * x - 1,
                jnp.ones_like(a),
                lambda f, x: lax.fori_loop(0, 30, lambda i, x: x - f(x) / (3 * x * x + a), x),
                lambda g, y: y / g(jnp.ones_like(y)),
            ),
            r.positive(4),
        ),
        "custom_linear_solve": lambda lax, r: (
            lambda a, b: lax.custom_linear_solve(
                lambda x: a @ x,
                b,
                lambda _, b: jnp.linalg.solve(a, b),
                lambda _, b: jnp.linalg.solve(a.T, b),
            ),
            r.matrix(3),
            r.normal(3),
        ),
    },
    "jax.random": {
        "normal of a typed key": lambda random, r: (
            lambda key, mean, sd: mean + sd * random.normal(key, mean.shape, mean.dtype),
            KEY,
            r.normal(4),
            r.positive(4),
        ),
        "normal of a raw key": lambda random, r: (
            lambda key, mean, sd: mean + sd * random.normal(key, mean.shape),
            raw_key(),
            r.normal(4),
            r.positive(4),
        ),
        "normal of a key closed over": lambda random, r: (
            lambda mean, sd: mean + sd * random.normal(KEY, mean.shape),
            r.normal(4),
            r.positive(4),
        ),
        "dirichlet": lambda random, r: (lambda a: random.dirichlet(KEY, a), r.positive(4)),
        "dropout of a raw key": lambda random, r: (
            lambda key, x: jnp.where(random.bernoulli(key, 0.7, x.shape), x / 0.7, 0),
            raw_key(),
            r.normal(8),
        ),
    },
    "jax.experimental.ode": {
        "odeint": given(
            lambda ode, r: (
                lambda y, k: ode.odeint(
                    lambda y, t, k: -k * y * y,
                    y,
                    jnp.array([0.0, 0.5, 1.0]),
                    k,
                    rtol=1e-9,
                    atol=1e-9,
                ),
                r.positive(2),
                r.positive(2),
            ),
            rtol=1e-5,
        ),
    },
    "jax.experimental.sparse": {
        "a sparse matrix times a vector": lambda sparse, r: (
            lambda a, x: a @ x,
            sparse.BCOO.fromdense(jnp.array([[1.0, 0, 2], [0, -3, 0]])),
            r.normal(3),
        ),
    },
    "flax.linen": {
        "Dense": lambda nn, r: _linen(nn.Dense(3), r.normal(4, 5)),
        "Conv": lambda nn, r: _linen(nn.Conv(3, (3, 2), 2), r.normal(2, 5, 5, 2)),
        "ConvTranspose": lambda nn, r: _linen(nn.ConvTranspose(2, (3,), 2), r.normal(2, 4, 3)),
        "LayerNorm": lambda nn, r: _linen(nn.LayerNorm(), r.normal(3, 6)),
        "GroupNorm": lambda nn, r: _linen(nn.GroupNorm(2), r.normal(3, 4, 6)),
        "RMSNorm": lambda nn, r: _linen(nn.RMSNorm(), r.normal(3, 6)),
        "WeightNorm": lambda nn, r: _linen(nn.WeightNorm(nn.Dense(3)), r.normal(4, 5)),
        "BatchNorm after Dense: its bias has no gradient": lambda nn, r: _linen_trained(
            nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False)]), r.normal(6, 4)
        ),
        "MultiHeadDotProductAttention: the keys' bias has none": lambda nn, r: _linen(
            nn.MultiHeadDotProductAttention(2), r.normal(2, 3, 4)
        ),
        "PReLU": lambda nn, r: _linen(nn.PReLU(), r.normal(3, 4)),
        "Embed by integers": lambda nn, r: (
            lambda w, ids: nn.Embed(5, 3).apply({"params": {"embedding": w}}, ids),
            r.normal(5, 3),
            r.ids(5, 2, 4),
        ),
        "Dropout, rng an argument": lambda nn, r: (
            lambda x, key: nn.Dropout(0.4, deterministic=False).apply({}, x, rngs={"dropout": key}),
            r.normal(4, 5),
            raw_key(),
        ),
        "RNN of GRUCell": lambda nn, r: _linen(
            nn.RNN(nn.GRUCell(3)), r.normal(2, 4, 3), initial_carry=np.ones((2, 3))
        ),
        "RNN of LSTMCell": lambda nn, r: _linen(
            nn.RNN(nn.OptimizedLSTMCell(3)),
            r.normal(2, 3, 2),
            initial_carry=(np.ones((2, 3)), np.ones((2, 3))),
        ),
        "remat of Dense": lambda nn, r: _linen(nn.remat(nn.Dense)(3), r.normal(4, 5)),
        "make_causal_mask in self-attention": lambda nn, r: (
            lambda x: nn.dot_product_attention(x, x, x, mask=nn.make_causal_mask(x[..., 0, 0])),
            r.normal(2, 3, 2, 4),
        ),
    },
    "flax.nnx": {
        "Linear": lambda nnx, r: _nnx(nnx, nnx.Linear(5, 3, rngs=nnx.Rngs(0)), r.normal(4, 5)),
        "the module an argument": lambda nnx, r: (
            lambda module, x: module(x),
            nnx.Linear(5, 3, rngs=nnx.Rngs(0)),
            r.normal(4, 5),
        ),
        "MultiHeadAttention": given(
            lambda nnx, r: _nnx(
                nnx, nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0)), r.normal(2, 3, 4)
            ),
            dtype=np.float32,
        ),
        "LayerNorm": lambda nnx, r: _nnx(nnx, nnx.LayerNorm(6, rngs=nnx.Rngs(0)), r.normal(3, 6)),
        "LoRA": lambda nnx, r: _nnx(nnx, nnx.LoRA(5, 2, 3, rngs=nnx.Rngs(0)), r.normal(4, 5)),
    },
    "haiku": {
        "Linear": lambda hk, r: _haiku(hk, lambda x: hk.Linear(3)(x), r.normal(4, 5)),
        "LayerNorm": lambda hk, r: _haiku(
            hk, lambda x: hk.LayerNorm(-1, True, True)(x), r.normal(3, 5)
        ),
        "Conv2D": lambda hk, r: _haiku(hk, lambda x: hk.Conv2D(3, 3, 2)(x), r.normal(2, 5, 5, 2)),
        "MLP": lambda hk, r: _haiku(hk, lambda x: hk.nets.MLP([4, 2])(x), r.normal(4, 5)),
        "LSTM over time": lambda hk, r: _haiku(
            hk,
            lambda x: hk.dynamic_unroll(core := hk.LSTM(3), x, core.initial_state(2)),
            r.normal(4, 2, 3),
        ),
        "MultiHeadAttention: the keys' bias has none": lambda hk, r: _haiku(
            hk,
            lambda x: hk.MultiHeadAttention(2, 3, w_init=hk.initializers.VarianceScaling())(
                x, x, x
            ),
            r.normal(2, 3, 4),
        ),
        "dropout of an rng": lambda hk, r: (
            lambda key, x: hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.4, x)).apply(
                {}, key, x
            ),
            raw_key(),
            r.normal(4, 5),
        ),
        "DepthwiseConv1D": lambda hk, r: _haiku(
            hk, lambda x: hk.DepthwiseConv1D(2, 3)(x), r.normal(2, 5, 3)
        ),
    },
    "equinox": {
        "nn.MLP in two parts: arrays and None": lambda eqx, r: _partitioned(
            eqx, eqx.nn.MLP(4, 2, 5, 2, jax.nn.gelu, key=KEY), r.normal(4)
        ),
        "nn.MLP closed over": lambda eqx, r: (
            eqx.nn.MLP(4, 2, 5, 2, jnp.tanh, key=KEY),
            r.normal(4),
        ),
        "nn.MLP with its functions an argument": lambda eqx, r: (
            lambda module, x: module(x),
            eqx.nn.MLP(4, 2, 5, 2, jax.nn.silu, key=KEY),
            r.normal(4),
        ),
        "nn.MultiheadAttention": lambda eqx, r: _partitioned(
            eqx, eqx.nn.MultiheadAttention(2, 4, key=KEY), *(r.normal(3, 4) for _ in range(3))
        ),
        "nn.LSTMCell": lambda eqx, r: _partitioned(
            eqx, eqx.nn.LSTMCell(3, 2, key=KEY), r.normal(3), (r.normal(2), r.normal(2))
        ),
        "nn.GRUCell": lambda eqx, r: _partitioned(
            eqx, eqx.nn.GRUCell(3, 2, key=KEY), r.normal(3), r.normal(2)
        ),
        "nn.Conv2d": lambda eqx, r: _partitioned(
            eqx, eqx.nn.Conv2d(2, 3, 3, 2, 1, key=KEY), r.normal(2, 5, 5)
        ),
        "nn.GroupNorm": lambda eqx, r: _partitioned(eqx, eqx.nn.GroupNorm(2, 4), r.normal(4, 6)),
        "nn.LayerNorm": lambda eqx, r: _partitioned(eqx, eqx.nn.LayerNorm(6), r.normal(6)),
        "nn.WeightNorm": lambda eqx, r: _partitioned(
            eqx, eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=KEY)), r.normal(4)
        ),
        "nn.PReLU": lambda eqx, r: _partitioned(eqx, eqx.nn.PReLU(), r.normal(5)),
        "nn.RotaryPositionalEmbedding": given(
            lambda eqx, r: (eqx.nn.RotaryPositionalEmbedding(4), r.normal(3, 4)), rtol=1e-6
        ),
        "nn.Dropout, a typed key": lambda eqx, r: (
            lambda x, key: eqx.nn.Dropout(0.4)(x, key=key),
            r.normal(8),
            KEY,
        ),
        "error_if negative": lambda eqx, r: (
            lambda x: jnp.sqrt(eqx.error_if(x, jnp.any(x < 0), "negative")),
            r.positive(5),
        ),
        "a while loop with checkpoints": lambda eqx, r: (
            lambda x: eqx.internal.while_loop(
                lambda c: c[0] < 4,
                lambda c: (c[0] + 1, jnp.sin(c[1]) * x),
                (0, x),
                max_steps=8,
                kind="checkpointed",
            )[1],
            r.normal(4),
        ),
    },
    "optax": {
        "tree.norm": lambda optax, r: (optax.tree.norm, {"w": r.normal(3, 2), "b": r.normal(2)}),
        "clip_by_global_norm": lambda optax, r: (
            lambda g: optax.clip_by_global_norm(1.0).update(g, optax.EmptyState())[0],
            {"w": r.normal(3, 2), "b": r.normal(2)},
        ),
        "a step of adam, by the gradients": lambda optax, r: (
            lambda g: optax.adam(0.1).update(g, optax.adam(0.1).init(g))[0],
            r.normal(4),
        ),
    },
    "optax.losses": {
        "softmax_cross_entropy, one-hot": lambda o, r: (
            o.softmax_cross_entropy,
            r.normal(3, 4),
            np.eye(4)[[0, 3, 1]],
        ),
        "softmax_cross_entropy, rows": lambda o, r: (
            o.softmax_cross_entropy,
            r.normal(3, 4),
            r.rows(3, 4),
        ),
        "softmax_cross_entropy_with_integer_labels": lambda o, r: (
            o.softmax_cross_entropy_with_integer_labels,
            r.normal(3, 4),
            r.ids(4, 3),
        ),
        "safe_softmax_cross_entropy, one-hot": lambda o, r: (
            o.safe_softmax_cross_entropy,
            r.normal(3, 4),
            np.eye(4)[[0, 3, 1]],
        ),
        "sigmoid_binary_cross_entropy, zeros and ones": lambda o, r: (
            o.sigmoid_binary_cross_entropy,
            r.normal(8),
            r.bits(8),
        ),
        "sigmoid_focal_loss, soft labels": lambda o, r: (
            lambda x, y: o.sigmoid_focal_loss(x, y, alpha=0.3),
            r.normal(6),
            r.unit(6),
        ),
        "poly_loss_cross_entropy": lambda o, r: (
            o.poly_loss_cross_entropy,
            r.normal(3, 4),
            np.eye(4)[[0, 3, 1]],
        ),
        "huber_loss": lambda o, r: (o.huber_loss, 2 * r.normal(6), r.normal(6)),
        "log_cosh": lambda o, r: (o.log_cosh, r.normal(6), r.normal(6)),
        "cosine_distance": lambda o, r: (o.cosine_distance, r.normal(3, 4), r.normal(3, 4)),
        "kl_divergence": lambda o, r: (o.kl_divergence, np.log(r.rows(3, 4)), r.rows(3, 4)),
        "hinge_loss": lambda o, r: (o.hinge_loss, r.normal(8), 2 * r.bits(8) - 1),
        "multiclass_sparsemax_loss": lambda o, r: (
            o.multiclass_sparsemax_loss,
            r.normal(3, 4),
            r.ids(4, 3),
        ),
        "triplet_margin_loss": lambda o, r: (
            o.triplet_margin_loss,
            r.normal(3, 4),
            r.normal(3, 4),
            r.normal(3, 4),
        ),
        "ctc_loss, labels with paddings": lambda o, r: (
            lambda x, labels: o.ctc_loss(
                x,
                np.array([[0.0, 0, 0, 1], [0, 0, 0, 0]]),
                labels,
                np.array([[0.0, 0, 1], [0, 1, 1]]),
            ),
            r.normal(2, 4, 3),
            np.array([[1, 2, 0], [2, 0, 0]]),
        ),
        "ntxent": lambda o, r: (o.ntxent, r.normal(6, 4), np.array([0, 1, 2, 0, 1, 2])),
        "ranking_softmax_loss, a mask": lambda o, r: (
            lambda x, y, where: o.ranking_softmax_loss(x, y, where=where),
            r.normal(3, 4),
            r.unit(3, 4),
            np.tri(3, 4, 1) > 0,
        ),
        "dice_loss": lambda o, r: (o.dice_loss, r.normal(3, 4, 2), r.bits(3, 4, 2)),
    },
    "optax.projections": {
        "projection_simplex": lambda o, r: (o.projection_simplex, r.normal(5)),
        "projection_l2_ball": lambda o, r: (o.projection_l2_ball, 2 + r.unit(5), 1.5),
        "projection_box": lambda o, r: (lambda x: o.projection_box(x, -0.7, 0.8), r.normal(8)),
    },
    "distrax": {
        "Normal.log_prob": lambda d, r: (
            lambda x, m, s: d.Normal(m, s).log_prob(x),
            r.normal(4),
            r.normal(4),
            r.positive(4),
        ),
        "Normal sampled by a raw key": lambda d, r: (
            lambda key, m, s: d.Normal(m, s).sample(seed=key),
            raw_key(),
            r.normal(4),
            r.positive(4),
        ),
        "MultivariateNormalTri.log_prob": lambda d, r: (
            lambda x, m, t: d.MultivariateNormalTri(m, t).log_prob(x),
            r.normal(4, 3),
            r.normal(3),
            np.linalg.cholesky(r.spd(3)),
        ),
        "Beta.entropy": lambda d, r: (
            lambda a, b: d.Beta(a, b).entropy(),
            r.positive(4),
            r.positive(4),
        ),
        "Categorical.entropy": lambda d, r: (
            lambda x: d.Categorical(logits=x).entropy(),
            r.normal(3, 4),
        ),
        "Categorical.log_prob of integers": lambda d, r: (
            lambda x, k: d.Categorical(logits=x).log_prob(k),
            r.normal(3, 4),
            r.ids(4, 3),
        ),
        "MixtureSameFamily.log_prob": lambda d, r: (
            lambda w, m, s, x: d.MixtureSameFamily(
                d.Categorical(logits=w), d.Normal(m, s)
            ).log_prob(x),
            r.normal(3),
            r.normal(3),
            r.positive(3),
            r.normal(4),
        ),
        "kl of Dirichlets": lambda d, r: (
            lambda a, b: d.Dirichlet(a).kl_divergence(d.Dirichlet(b)),
            r.positive(3),
            r.positive(3),
        ),
        "Tanh bijector, with its log determinant": lambda d, r: (
            lambda x: d.Tanh().forward_and_log_det(x),
            r.normal(6),
        ),
        "RationalQuadraticSpline between the knots": lambda d, r: (
            lambda p, x: d.RationalQuadraticSpline(p, -2.0, 2.0).forward(x),
            r.normal(13),
            r.between(-1.7, 1.7, 5),
        ),
    },
    "rlax": {
        "lambda_returns": lambda m, r: (m.lambda_returns, r.normal(5), r.unit(5), r.normal(5), 0.9),
        "truncated_generalized_advantage_estimation": lambda m, r: (
            m.truncated_generalized_advantage_estimation,
            r.normal(5),
            r.unit(5),
            0.9,
            r.normal(6),
        ),
        "signed_logp1": lambda m, r: (m.signed_logp1, r.normal(6)),
        "huber_loss": lambda m, r: (m.huber_loss, 2 * r.normal(6)),
        "expectile_loss": lambda m, r: (
            lambda x, t: m.expectile_loss(x, t, 0.7),
            r.normal(6),
            r.normal(6),
        ),
        "categorical_l2_project": lambda m, r: (
            lambda p: m.categorical_l2_project(
                np.array([-0.8, 0.1, 1.3, 1.9]), p, np.linspace(-1, 2, 4)
            ),
            r.rows(4),
        ),
        "policy_gradient_loss of the logits": lambda m, r: (
            lambda x, a: m.policy_gradient_loss(x, a, np.array([0.5, -1.0, 2.0]), np.ones(3)),
            r.normal(3, 4),
            r.ids(4, 3),
        ),
        "quantile_regression_loss of the source": lambda m, r: (
            lambda x: m.quantile_regression_loss(
                x, np.array([0.2, 0.5, 0.8]), np.array([-1.1, 0.2, 0.9]), 1.0
            ),
            r.normal(3),
        ),
        "multivariate_normal_kl_divergence": lambda m, r: (
            m.multivariate_normal_kl_divergence,
            r.normal(3),
            r.positive(3),
            r.normal(3),
            r.positive(3),
        ),
        "entropy_loss": lambda m, r: (m.entropy_loss, r.normal(3, 4), r.positive(3)),
    },
    "numpyro.distributions": {
        "StudentT.log_prob": lambda d, r: (
            lambda x, f, m, s: d.StudentT(f, m, s).log_prob(x),
            r.normal(4),
            r.positive(4),
            r.normal(4),
            r.positive(4),
        ),
        "VonMises.log_prob": lambda d, r: (
            lambda x, m, c: d.VonMises(m, c).log_prob(x),
            r.normal(4),
            r.normal(4),
            r.positive(4),
        ),
        "TruncatedNormal.log_prob": lambda d, r: (
            lambda x, m, s: d.TruncatedNormal(m, s, low=-1.0, high=2.0).log_prob(x),
            r.between(-0.9, 1.9, 4),
            r.normal(4),
            r.positive(4),
        ),
        "ZeroInflatedPoisson.log_prob of integers": lambda d, r: (
            lambda g, rate, k: d.ZeroInflatedPoisson(g, rate).log_prob(k),
            r.unit(5),
            r.positive(5),
            np.array([0, 1, 2, 0, 4]),
        ),
        "BetaBinomial.log_prob of integers": lambda d, r: (
            lambda a, b, k: d.BetaBinomial(a, b, 5).log_prob(k),
            r.positive(4),
            r.positive(4),
            np.array([0, 1, 2, 5]),
        ),
        "Dirichlet.log_prob": lambda d, r: (
            lambda a: d.Dirichlet(a).log_prob(np.array([0.2, 0.3, 0.5])),
            r.positive(3),
        ),
        "LKJCholesky.log_prob": lambda d, r: (
            lambda c: d.LKJCholesky(3, c).log_prob(
                np.linalg.cholesky(np.array([[1, 0.3, 0.1], [0.3, 1, -0.2], [0.1, -0.2, 1]]))
            ),
            r.positive(2),
        ),
        "MultivariateNormal.log_prob": lambda d, r: (
            lambda x, m, c: d.MultivariateNormal(m, c).log_prob(x),
            r.normal(4, 3),
            r.normal(3),
            r.spd(3),
        ),
        "OrderedLogistic.log_prob of integers": lambda d, r: (
            lambda x, cuts, k: d.OrderedLogistic(x, cuts).log_prob(k),
            r.normal(4),
            np.array([-1.1, 0.2, 0.9]),
            r.ids(4, 4),
        ),
        "GaussianRandomWalk.log_prob": lambda d, r: (
            lambda s, x: d.GaussianRandomWalk(s, 4).log_prob(x),
            r.positive(2),
            r.normal(2, 4),
        ),
    },
    "numpyro.distributions.transforms": {
        "StickBreakingTransform": lambda t, r: (t.StickBreakingTransform(), r.normal(2, 3)),
        "CorrCholeskyTransform": lambda t, r: (t.CorrCholeskyTransform(), r.normal(3)),
        "L1BallTransform": lambda t, r: (t.L1BallTransform(), r.normal(2, 3)),
    },
    "numpyro.distributions.util": {
        "cholesky_update": lambda u, r: (
            lambda a, x: u.cholesky_update(jnp.linalg.cholesky(a), x, 0.7),
            r.spd(3),
            r.normal(3),
        ),
        "logmatmulexp": lambda u, r: (u.logmatmulexp, r.normal(2, 3), r.normal(3, 2)),
        "binary_cross_entropy_with_logits": lambda u, r: (
            u.binary_cross_entropy_with_logits,
            r.normal(6),
            r.bits(6),
        ),
    },
    "tensorflow_probability.substrates.jax.math": {
        "lambertw": lambda m, r: (m.lambertw, r.positive(5)),
        "bessel_kve by the argument": given(
            lambda m, r: (lambda z: m.bessel_kve(1.3, z), r.positive(4)), rtol=1e-6
        ),
        "log_cosh": lambda m, r: (m.log_cosh, r.normal(6)),
        "log_add_exp": lambda m, r: (m.log_add_exp, r.normal(5), r.normal(5)),
        "log_sub_exp": lambda m, r: (m.log_sub_exp, 2 + r.unit(5), r.unit(5)),
        "log_cumsum_exp": lambda m, r: (m.log_cumsum_exp, r.normal(6)),
        "fill_triangular": lambda m, r: (m.fill_triangular, r.normal(2, 6)),
        "smootherstep": lambda m, r: (m.smootherstep, r.unit(6)),
        "sqrt1pm1": lambda m, r: (m.sqrt1pm1, r.between(-0.5, 2, 6)),
        "softplus_inverse": lambda m, r: (m.softplus_inverse, r.positive(6)),
        "owens_t": lambda m, r: (m.owens_t, r.normal(4), r.normal(4)),
        "erfcinv": lambda m, r: (m.erfcinv, r.between(0.2, 1.8, 5)),
        "betainc by x": lambda m, r: (lambda x: m.betainc(1.3, 2.1, x), r.unit(4)),
        "hpsd_logdet": lambda m, r: (lambda a: m.hpsd_logdet(a @ a.T + np.eye(3)), r.normal(3, 3)),
    },
    "tensorflow_probability.substrates.jax.bijectors": {
        "SoftClip": given(
            lambda b, r: (
                lambda x, low, high: b.SoftClip(low, high).forward(x),
                r.normal(6),
                -1.0,
                2.0,
            ),
            rtol=1e-6,
        ),
        "SinhArcsinh": lambda b, r: (
            lambda x, s, t: b.SinhArcsinh(s, t).forward(x),
            r.normal(5),
            r.normal(5),
            r.positive(5),
        ),
    },
    "tensorflow_probability.substrates.jax.distributions": {
        "StudentT.log_prob": lambda d, r: (
            lambda x, f, m, s: d.StudentT(f, m, s).log_prob(x),
            r.normal(4),
            r.positive(4),
            r.normal(4),
            r.positive(4),
        ),
        "kl of Gammas": lambda d, r: (
            lambda a, b, c, e: d.kl_divergence(d.Gamma(a, b), d.Gamma(c, e)),
            *(r.positive(3) for _ in range(4)),
        ),
    },
    "lineax": {
        "linear_solve": lambda lx, r: (
            lambda a, b: _solved(lx.linear_solve(lx.MatrixLinearOperator(a), b)),
            r.matrix(3),
            r.normal(3),
        ),
        "linear_solve, Cholesky": lambda lx, r: (
            lambda a, b: _solved(
                lx.linear_solve(
                    lx.MatrixLinearOperator(a @ a.T, lx.positive_semidefinite_tag), b, lx.Cholesky()
                )
            ),
            r.matrix(3),
            r.normal(3),
        ),
        "linear_solve, least squares by QR": lambda lx, r: (
            lambda a, b: _solved(lx.linear_solve(lx.MatrixLinearOperator(a), b, lx.QR())),
            r.normal(4, 2),
            r.normal(4),
        ),
        "linear_solve, conjugate gradients": given(
            lambda lx, r: (
                lambda a, b: _solved(
                    lx.linear_solve(
                        lx.MatrixLinearOperator(a @ a.T, lx.positive_semidefinite_tag),
                        b,
                        lx.CG(1e-12, 1e-12),
                    )
                ),
                r.matrix(3),
                r.normal(3),
            ),
            rtol=1e-6,
        ),
        "two_norm": lambda lx, r: (lx.internal.two_norm, {"w": r.normal(3, 2), "b": r.normal(2)}),
        "rms_norm": lambda lx, r: (lx.internal.rms_norm, [r.normal(3), r.normal(2)]),
    },
    "optimistix": {
        "root_find, Newton": given(
            lambda o, r: (
                lambda a: _solved(
                    o.root_find(
                        lambda x, a: x**3 + a * x - 1, o.Newton(1e-12, 1e-12), jnp.ones(3), a
                    )
                ),
                r.positive(3),
            ),
            rtol=1e-6,
        ),
        "fixed_point": given(
            lambda o, r: (
                lambda a: _solved(
                    o.fixed_point(
                        lambda x, a: 0.5 * jnp.cos(x + a),
                        o.FixedPointIteration(1e-12, 1e-12),
                        jnp.zeros(3),
                        a,
                    )
                ),
                r.normal(3),
            ),
            rtol=1e-6,
        ),
        "minimise, BFGS": given(
            lambda o, r: (
                lambda a: _solved(
                    o.minimise(
                        lambda x, a: jnp.sum(jnp.cosh(x - a)) + jnp.sum(x * x),
                        o.BFGS(1e-10, 1e-10),
                        jnp.zeros(2),
                        a,
                    )
                ),
                r.normal(2),
            ),
            rtol=1e-6,
        ),
        "least_squares, Levenberg-Marquardt": given(
            lambda o, r: (
                lambda a: _solved(
                    o.least_squares(
                        lambda x, a: jnp.array(
                            [jnp.exp(x[0]) - a[0], x[1] * x[0] - a[1], x[1] - a[0]]
                        ),
                        o.LevenbergMarquardt(1e-12, 1e-12),
                        jnp.ones(2),
                        a,
                    )
                ),
                r.positive(2),
            ),
            rtol=1e-6,
        ),
    },
    "diffrax": {
        "diffeqsolve, Tsit5": given(
            lambda d, r: (
                lambda y, k: (
                    d.diffeqsolve(
                        d.ODETerm(lambda t, y, k: -k * y),
                        d.Tsit5(),
                        0,
                        1,
                        0.1,
                        y,
                        k,
                        stepsize_controller=d.PIDController(rtol=1e-9, atol=1e-9),
                    ).ys
                ),
                r.normal(2),
                r.positive(2),
            ),
            rtol=1e-6,
        ),
        "diffeqsolve, constant steps, saved": lambda d, r: (
            lambda y, k: (
                d.diffeqsolve(
                    d.ODETerm(lambda t, y, k: jnp.sin(k * y)),
                    d.Heun(),
                    0,
                    1,
                    0.2,
                    y,
                    k,
                    saveat=d.SaveAt(ts=jnp.array([0.3, 0.9])),
                ).ys
            ),
            r.normal(2),
            r.positive(2),
        ),
        "LinearInterpolation": lambda d, r: (
            lambda ys: d.LinearInterpolation(jnp.arange(4.0), ys).evaluate(1.3),
            r.normal(4, 2),
        ),
    },
    "jaxopt.projection": {
        "projection_simplex": lambda p, r: (p.projection_simplex, r.normal(5)),
        "projection_l1_ball": lambda p, r: (p.projection_l1_ball, r.normal(5), 0.8),
        "projection_hyperplane": lambda p, r: (
            lambda x, a, b: p.projection_hyperplane(x, (a, b)),
            r.normal(4),
            r.normal(4),
            r.normal(),
        ),
    },
    "jaxopt.prox": {
        "prox_lasso": lambda p, r: (p.prox_lasso, r.normal(6), 0.4),
        "prox_elastic_net": lambda p, r: (
            lambda x, a, b: p.prox_elastic_net(x, (a, b)),
            r.normal(6),
            0.4,
            0.6,
        ),
    },
    "jaxopt.isotonic": {
        "isotonic_l2_pav": lambda p, r: (p.isotonic_l2_pav, r.normal(6)),
    },
    "jaxopt.loss": {
        "multiclass_logistic_loss": lambda p, r: (
            lambda k, x: jax.vmap(p.multiclass_logistic_loss)(k, x),
            r.ids(4, 3),
            r.normal(3, 4),
        ),
        "binary_sparsemax_loss": lambda p, r: (
            lambda k, x: jax.vmap(p.binary_sparsemax_loss)(k, x),
            r.ids(2, 6),
            r.normal(6),
        ),
    },
    "jaxopt": {
        "GradientDescent of ridge regression, implicit": given(
            lambda o, r: (
                lambda l2, x, y: (
                    o.GradientDescent(
                        lambda w, l2, x, y: jnp.sum((x @ w - y) ** 2) + l2 * jnp.sum(w * w),
                        tol=1e-10,
                        maxiter=2000,
                    )
                    .run(jnp.zeros(2, x.dtype), l2, x, y)
                    .params
                ),
                r.positive(),
                r.normal(6, 2),
                r.normal(6),
            ),
            rtol=1e-4,
        ),
    },
    "ott.math.utils": {
        "logsumexp": lambda m, r: (lambda x: m.logsumexp(x, axis=-1), r.normal(3, 4)),
        "norm": lambda m, r: (lambda x: m.norm(x, axis=-1), r.normal(3, 4)),
        "lambertw": given(lambda m, r: (m.lambertw, r.positive(5)), rtol=1e-6),
        "kl": lambda m, r: (m.kl, r.rows(4), r.rows(4)),
    },
    "ott.geometry.costs": {
        "Cosine, all pairs": lambda c, r: (c.Cosine().all_pairs, r.normal(3, 4), r.normal(2, 4)),
        "SoftDTW": lambda c, r: (c.SoftDTW(1.0), r.normal(4), r.normal(5)),
    },
    "ott.solvers.linear": {
        "Sinkhorn's cost of two point clouds": given(
            lambda linear, r: (
                lambda x, y: linear.solve(_point_cloud(x, y), threshold=1e-10).reg_ot_cost,
                r.normal(4, 2),
                r.normal(3, 2),
            ),
            rtol=1e-6,
            skip="second order",  # by Danskin's theorem it has a first derivative only
        ),
        "Sinkhorn's plan, implicit": given(
            lambda linear, r: (
                lambda x, y: linear.solve(_point_cloud(x, y), threshold=1e-10).matrix,
                r.normal(4, 2),
                r.normal(3, 2),
            ),
            rtol=1e-6,
        ),
    },
    "jaxlie": {
        "SO3.exp as a matrix": lambda j, r: (lambda w: j.SO3.exp(w).as_matrix(), r.normal(3)),
        "SO3.log of a matrix": lambda j, r: (lambda w: j.SO3.exp(w).log(), r.normal(3)),
        "SE3.exp on a point": lambda j, r: (
            lambda t, p: j.SE3.exp(t) @ p,
            r.normal(6),
            r.normal(3),
        ),
        "SE3, the group element an argument": lambda j, r: (
            lambda g, h: (g @ h).inverse().log(),
            j.SE3.exp(jnp.array([0.3, -0.2, 0.5, 0.7, -0.4, 0.2])),
            j.SE3.exp(jnp.array([-0.1, 0.4, 0.2, 0.3, 0.6, -0.8])),
        ),
        "SE2.adjoint": lambda j, r: (lambda t: j.SE2.exp(t).adjoint(), r.normal(3)),
    },
    "e3nn_jax": {
        "spherical_harmonics": lambda e, r: (
            lambda x: e.spherical_harmonics("0e+1o+2e", x, False).array,
            r.normal(4, 3),
        ),
        "tensor_product": lambda e, r: (
            lambda x, y: e.tensor_product(e.IrrepsArray("1o+0e", x), e.IrrepsArray("1o", y)).array,
            r.normal(2, 4),
            r.normal(2, 3),
        ),
        "sus": lambda e, r: (e.sus, r.normal(6)),
        "soft_envelope": lambda e, r: (e.soft_envelope, r.unit(6)),
        "bessel": lambda e, r: (lambda x: e.bessel(x, 4, 2.0), r.positive(5)),
        "soft_one_hot_linspace": lambda e, r: (
            lambda x: e.soft_one_hot_linspace(
                x, start=0.0, end=2.0, number=4, basis="gaussian", cutoff=False
            ),
            r.unit(5),
        ),
        "norm of irreps": lambda e, r: (
            lambda x: e.norm(e.IrrepsArray("1o+1o", x)).array,
            r.normal(3, 6),
        ),
        "angles_to_matrix": lambda e, r: (e.angles_to_matrix, r.normal(3), r.unit(3), r.normal(3)),
    },
    "chex": {
        "a dataclass an argument": lambda chex, r: (
            lambda state: state.mean**2 + jnp.sin(state.scale),
            chex.dataclass(type("State", (), {"__annotations__": {"mean": Any, "scale": Any}}))(
                mean=r.normal(3), scale=r.normal(3)
            ),
        ),
    },
}

RIGHT = [
    Row(package, name, make)
    for package, functions in FUNCTIONS.items()
    for name, make in functions.items()
]


def _of_probabilities(x: Any, dy: Any) -> Any:
    return jax.vjp(jax.nn.softmax, x)[1](dy)


# Not the derivative, on purpose: what is meant is declared.
SURROGATES = [
    Row(package, name, make)
    for package, functions in {
        "jax.lax": {
            "stop_gradient in a straight-through rounding": given(
                lambda lax, r: (lambda x: x + lax.stop_gradient(jnp.round(x) - x), r.normal(6)),
                declared=lambda x, dy: (dy,),
            ),
            "stop_gradient of one factor": given(
                lambda lax, r: (lambda x: x * lax.stop_gradient(jnp.exp(x)), r.normal(6)),
                declared=lambda x, dy: (dy * jnp.exp(x),),
            ),
        },
        "rlax": {
            "clip_gradient": given(
                lambda m, r: (lambda x: m.clip_gradient(x, -0.5, 0.5), r.normal(6)),
                declared=lambda x, dy: (jnp.clip(dy, -0.5, 0.5),),
            ),
            "td_learning, the target stopped": given(
                lambda m, r: (m.td_learning, *(r.normal() for _ in range(4))),
                declared=lambda v, r, g, w, dy: (-dy, 0 * dy, 0 * dy, 0 * dy),
            ),
        },
        "optax": {
            "scale_gradient": given(
                lambda optax, r: (lambda x: optax.scale_gradient(x, 0.3), r.normal(6)),
                declared=lambda x, dy: (0.3 * dy,),
            ),
        },
        "tensorflow_probability.substrates.jax.math": {
            "clip_by_value_preserve_gradient": given(
                lambda m, r: (
                    lambda x: m.clip_by_value_preserve_gradient(x, -0.5, 0.5),
                    r.normal(6),
                ),
                declared=lambda x, dy: (dy,),
            ),
        },
        "distrax": {
            "straight_through_wrapper": given(
                lambda d, r: (
                    lambda x: d.straight_through_wrapper(d.OneHotCategorical)(x).sample(seed=KEY),
                    r.normal(3, 4),
                ),
                declared=_of_probabilities,
            ),
        },
        "jax.random": {
            "gamma, reparameterised implicitly": given(
                lambda random, r: (lambda a: random.gamma(KEY, a), r.positive(5)),
                declared=lambda a, dy: (
                    dy * jax.lax.random_gamma_grad(a, jax.random.gamma(KEY, a)),
                ),
            ),
        },
    }.items()
    for name, make in functions.items()
]
