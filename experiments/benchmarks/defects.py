"""Wrong gradients of public packages that ``fnn.check`` found, each in its smallest case, with the
right value: of ``experiments.benchmarks failures``, and of tests/outside, which checks them too.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

import fnn

Cotangents = tuple[Any, ...]
WRONG, NOTED, RIGHT = "WRONG", "noted", "right"  # what fnn.check says


class Defect(NamedTuple):
    """``make(package) -> (f, *args)``; ``true()``: the derivatives of sum(f(*args)) by each of
    them, and ``by``: how they are known. ``says``: the verdict of fnn.check."""

    package: str
    name: str
    make: Callable[[Any], tuple[Any, ...]]
    true: Callable[[], Cotangents]
    by: str
    says: str = WRONG
    of_value: bool = False  # the value is what is wrong, and ``true`` is of it

    def __str__(self) -> str:
        return f"{self.package}: {self.name}"

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package.split(".")[0]) is not None

    def case(self) -> tuple[Any, ...]:
        """(f, *args), from the package."""
        return self.make(importlib.import_module(self.package))

    def got(self) -> Cotangents:
        """What the package gives in the place of ``true``."""
        with jax.enable_x64(True):
            f, *args = self.case()
            y, back = jax.vjp(f, *map(jnp.asarray, args))
            return (y,) if self.of_value else back(jnp.ones_like(y))

    def is_right(self) -> bool:
        """Whether the installed version is right."""
        pairs = zip(self.got(), self.true(), strict=True)
        return all(np.allclose(d, true, 1e-3, 1e-9, equal_nan=True) for d, true in pairs)

    def report(self) -> fnn.check.Report:
        """What fnn.check finds in it by default, however slow the machine; its cost is left out."""
        f, *args = self.case()
        return fnn.check.function(f, *args, name=self.name, skip=("cost",), seconds=600)


def says(report: fnn.check.Report) -> str:
    """The verdict of a report, in a word."""
    if not report.correct:
        return WRONG
    return NOTED if report.notes else RIGHT


# ---- the truths ------------------------------------------------------------------------------


def _partials(f: Callable[..., Any], *at: float) -> Cotangents:
    """Partial derivatives by mpmath."""
    ones = [tuple(int(i == j) for j in range(len(at))) for i in range(len(at))]
    return tuple(float(mp.diff(f, at, one)) for one in ones)


def _slopes(f: Callable[[Any], Any], *at: float) -> Cotangents:
    """Derivatives of a function of one number at each of some, by mpmath."""
    return ([float(mp.diff(f, x)) for x in at],)


def _power_law(x: float, low: Any, high: Any, alpha: Any) -> Any:
    n = alpha + 1
    return mp.log(n * mp.mpf(x) ** alpha / (high**n - low**n))


def _spence(*at: float) -> Cotangents:
    return ([float(-mp.log(x) / (x - 1)) if x != 1 else -1.0 for x in at],)


def _focal(logit: float, y: Any, gamma: float = 2.0) -> Any:
    p = 1 / (1 + mp.exp(-mp.mpf(logit)))
    cross_entropy = -y * mp.log(p) - (1 - y) * mp.log(1 - p)
    return cross_entropy * (p * (1 - y) + (1 - p) * y) ** gamma


MARGINALS = np.array([0.45, 0.55]), np.array([0.25, 0.35, 0.4])

# ---- the defects -----------------------------------------------------------------------------

# fmt: off
DEFECTS = (
    Defect("numpyro.distributions",
           "DoublyTruncatedPowerLaw.log_prob at 1.5, by low, high, alpha",
           lambda d: (lambda low, high, alpha:
                      d.DoublyTruncatedPowerLaw(alpha, low, high).log_prob(jnp.array(1.5)),
                      0.2, 4.0, 0.7),
           lambda: _partials(lambda *args: _power_law(1.5, *args), 0.2, 4, 0.7),
           "mpmath: log(n x^alpha / (high^n - low^n)), n = alpha + 1"),
    Defect("numpyro.distributions",
           "DoublyTruncatedPowerLaw.log_prob at 1.5, by low, high; alpha -1",
           lambda d: (lambda low, high:
                      d.DoublyTruncatedPowerLaw(-1.0, low, high).log_prob(jnp.array(1.5)),
                      0.2, 4.0),
           lambda: _partials(lambda low, high: -mp.log(1.5 * mp.log(high / low)), 0.2, 4),
           "mpmath: -log(x log(high / low))"),
    Defect("numpyro.distributions",
           "DoublyTruncatedPowerLaw.cdf at 1.5, by low, high; alpha -1",
           lambda d: (lambda low, high:
                      d.DoublyTruncatedPowerLaw(-1.0, low, high).cdf(jnp.array(1.5)),
                      0.2, 4.0),
           lambda: _partials(lambda low, high: mp.log(1.5 / low) / mp.log(high / low), 0.2, 4),
           "mpmath: log(x / low) / log(high / low)"),
    Defect("numpyro.distributions", "StudentT(4).cdf",
           lambda d: (lambda x: d.StudentT(4.0).cdf(x), np.array([0.0, 0.3])),
           lambda: ([float(0.375 * (1 + mp.mpf(x) ** 2 / 4) ** -2.5) for x in (0, 0.3)],),
           "the density, 3/8 (1 + x^2 / 4)^(-5/2)"),
    Defect("jax.scipy.special", "spence above 1",
           lambda s: (s.spence, np.array([0.5, 1.5, 2.5])), lambda: _spence(0.5, 1.5, 2.5),
           "-log(x) / (x - 1)"),
    Defect("jax.scipy.special", "spence at 1",
           lambda s: (s.spence, np.array([0.5, 1.0])), lambda: _spence(0.5, 1),
           "-log(x) / (x - 1), its limit at 1"),
    Defect("jax.scipy.special", "bessel_jn, order 3",
           lambda s: (lambda x: s.bessel_jn(x, v=3)[3], np.array([6.517], np.float32)),
           lambda: ([float(mp.besselj(3, 6.517, 1))],), "mpmath: besselj(3, x, 1)", NOTED),
    Defect("jax.numpy", "sinc near 0",
           lambda jnp: (jnp.sinc, np.array([-0.0139], jnp.bfloat16)),
           lambda: _slopes(lambda x: mp.sinc(mp.pi * x), float(jnp.bfloat16(-0.0139))),
           "mpmath: sinc(pi x)", NOTED),
    Defect("jax.scipy.sparse.linalg", "cg, 2 x0 = b0, 3 x1 = b1, its value for a NaN in b",
           lambda s: (lambda b: s.cg(lambda x: np.array([2.0, 3.0]) * x, b)[0],
                      np.array([np.nan, 1.0])),
           lambda: ([np.nan, 1 / 3],), "the quotients", of_value=True),
    Defect("jaxopt.projection", "projection_transport onto (0.45, 0.55), (0.25, 0.35, 0.4), [0, 0]",
           lambda p: (lambda s: p.projection_transport(s, MARGINALS)[0, 0],
                      np.array([[0.03, -0.03, 0.1], [0.02, -0.1, 0.07]])),
           lambda: (np.outer([1 / 2, -1 / 2], [2 / 3, -1 / 3, -1 / 3]),),
           "inside the polytope the projection centres rows and columns"),
    Defect("rlax", "signed_hyperbolic at 0",
           lambda m: (m.signed_hyperbolic, np.array([0.0, 0.1])),
           lambda: _slopes(lambda x: mp.sign(x) * (mp.sqrt(abs(x) + 1) - 1) + 1e-3 * x, 0, 0.1),
           "mpmath: sign(x) (sqrt(abs(x) + 1) - 1) + x / 1000"),
    Defect("rlax", "signed_parabolic at 0",
           lambda m: (m.signed_parabolic, np.array([0.0])), lambda: ([1 / 0.501],),
           "1 / 0.501: the inverse of signed_hyperbolic"),
    Defect("distrax", "RationalQuadraticSpline, two bins, all parameters 0, at the inner knot",
           lambda d: (lambda x: d.RationalQuadraticSpline(jnp.zeros(7), -1.0, 1.0).forward(x),
                      np.array([0.0])),
           lambda: ([1.0],), "the identity"),
    Defect("distrax._src.utils.math", "power_no_nan, of Multinomial.entropy, by x, y",
           lambda m: (m.power_no_nan, np.array([0.0]), np.array([2.0])),
           lambda: ([0.0], [0.0]), "0^y is 0 for all y above 0, 2 x is 0"),
    Defect("optax.losses", "sigmoid_focal_loss of logits 0.3, 0.4, by labels",
           lambda o: (lambda y: o.sigmoid_focal_loss(np.array([0.3, 0.4], y.dtype), y),
                      np.array([0.0, 1.0])),
           lambda: ([float(mp.diff(lambda y: _focal(0.3, y), 0)),
                     float(mp.diff(lambda y: _focal(0.4, y), 1))],),
           "mpmath: the formula, a polynomial in y"),
    Defect("ott.math.utils", "logsumexp, its value under a gradient for a row of -inf",
           lambda m: (lambda x: m.logsumexp(x, axis=-1), np.array([[-np.inf, -np.inf], [0, 1]])),
           lambda: ([-np.inf, float(mp.log(1 + mp.e))],), "log 0, log(1 + e)", of_value=True),
    Defect("e3nn_jax", "bessel, one function, cutoff 2, near 0",
           lambda e: (lambda x: e.bessel(x, 1, 2.0), np.array([1e-3], np.float32)),
           lambda: _slopes(lambda x: mp.sin(mp.pi * x / 2) / x, 1e-3),
           "mpmath: sin(pi x / 2) / x", NOTED),
    Defect("jaxlie", "SE3.exp((0, 0, 1, x, 0, 0)), second coordinate",
           lambda j: (lambda x: j.SE3.exp(jnp.array([0, 0, 1, x, 0, 0], x.dtype)).translation()[1],
                      np.float32(1e-3)),
           lambda: (float(mp.diff(lambda x: -(1 - mp.cos(x)) / x, 1e-3)),),
           "mpmath: -(1 - cos x) / x"),
)
# fmt: on
