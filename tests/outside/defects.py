"""Wrong gradients of public packages, each in its smallest case, with the right value.

``noted``: wrong at one special point, or in a narrow dtype: the checker may say it in its notes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import mpmath as mp
import numpy as np


class Defect(NamedTuple):
    """``make(package) -> (f, *args)``; ``true``: the derivatives of sum(f(*args)); None where the
    value is wrong."""

    package: str
    name: str
    make: Callable[[Any], tuple[Any, ...]]
    true: Callable[[], tuple[Any, ...]] | None
    noted: bool = False

    def __str__(self) -> str:
        return f"{self.package}: {self.name}"


def _partials(f: Callable[..., Any], *at: float) -> tuple[float, ...]:
    """Partial derivatives by mpmath."""
    ones = [tuple(int(i == j) for j in range(len(at))) for i in range(len(at))]
    return tuple(float(mp.diff(f, at, one)) for one in ones)


def _power_law(x: float, low: Any, high: Any, alpha: Any) -> Any:
    n = alpha + 1
    return mp.log(n * mp.mpf(x) ** alpha / (high**n - low**n))


def _spence(x: float) -> float:
    return float(-mp.log(x) / (x - 1)) if x != 1 else -1.0


_X = jnp.array(1.5)
_MARGINALS = np.array([0.45, 0.55]), np.array([0.25, 0.35, 0.4])


DEFECTS = [
    Defect(
        "numpyro.distributions",
        "DoublyTruncatedPowerLaw.log_prob by its bounds",
        lambda d: (
            lambda low, high, a: d.DoublyTruncatedPowerLaw(a, low, high).log_prob(_X),
            *(0.2, 4.0, 0.7),
        ),
        lambda: _partials(lambda *args: _power_law(1.5, *args), 0.2, 4, 0.7),
    ),
    Defect(
        "numpyro.distributions",
        "DoublyTruncatedPowerLaw.log_prob by its bounds, alpha -1",
        lambda d: (
            lambda low, high: d.DoublyTruncatedPowerLaw(-1.0, low, high).log_prob(_X),
            *(0.2, 4.0),
        ),
        lambda: _partials(lambda low, high: -mp.log(1.5 * mp.log(high / low)), 0.2, 4),
    ),
    Defect(
        "numpyro.distributions",
        "DoublyTruncatedPowerLaw.cdf by its upper bound, alpha -1",
        lambda d: (
            lambda low, high: d.DoublyTruncatedPowerLaw(-1.0, low, high).cdf(_X),
            *(0.2, 4.0),
        ),
        lambda: _partials(lambda low, high: mp.log(1.5 / low) / mp.log(high / low), 0.2, 4),
    ),
    Defect(
        "numpyro.distributions",
        "StudentT.cdf at its middle",
        lambda d: (lambda x: d.StudentT(4.0).cdf(x), np.array([0.0, 0.3])),
        # The density.
        lambda: ([float(0.375 * (1 + mp.mpf(x) ** 2 / 4) ** -2.5) for x in (0, 0.3)],),
        noted=True,
    ),
    Defect(
        "jax.scipy.special",
        "spence above 1",
        lambda s: (s.spence, np.array([0.5, 1.5, 2.5])),
        lambda: ([_spence(x) for x in (0.5, 1.5, 2.5)],),
    ),
    Defect(
        "jax.scipy.special",
        "spence at 1",
        lambda s: (s.spence, np.array([0.5, 1.0])),
        lambda: ([_spence(x) for x in (0.5, 1)],),
        noted=True,
    ),
    Defect(
        "jaxopt.projection",
        "projection_transport by the similarities",
        lambda p: (
            lambda s: p.projection_transport(
                s, (np.array([0.45, 0.55]), np.array([0.25, 0.35, 0.4]))
            )[0, 0],
            np.array([[0.03, -0.03, 0.1], [0.02, -0.1, 0.07]]),
        ),
        # Inside the polytope the projection centres rows and columns.
        lambda: (np.outer([1 / 2, -1 / 2], [2 / 3, -1 / 3, -1 / 3]),),
    ),
    Defect(
        "rlax",
        "signed_hyperbolic at 0",
        lambda m: (m.signed_hyperbolic, np.array([0.0, 0.1])),
        lambda: ([0.501, float(mp.diff(lambda x: mp.sqrt(x + 1) + 1e-3 * x, 0.1))],),
        noted=True,
    ),
    Defect(
        "rlax",
        "signed_parabolic at 0",
        lambda m: (m.signed_parabolic, np.array([0.0])),
        # The inverse of the above.
        lambda: ([1 / 0.501],),
        noted=True,
    ),
    Defect(
        "distrax",
        "RationalQuadraticSpline at an inner knot, the identity: half the slope",
        lambda d: (d.RationalQuadraticSpline(np.zeros(13), -2.0, 2.0).forward, np.array([0.0])),
        lambda: ([1.0],),
        noted=True,
    ),
    Defect(
        "optax.losses",
        "sigmoid_focal_loss by labels of exactly 0 and 1",
        lambda o: (lambda y: o.sigmoid_focal_loss(np.array([0.3, 0.4]), y), np.array([0.0, 1.0])),
        lambda: (
            [float(mp.diff(lambda y, x=x: _focal(x, y), y)) for x, y in ((0.3, 0), (0.4, 1))],
        ),
        noted=True,
    ),
    Defect(
        "ott.math.utils",
        "logsumexp of a row of -inf: 0 under a gradient, -inf without",
        lambda m: (lambda x: m.logsumexp(x, axis=-1), np.array([[-np.inf, -np.inf], [0.0, 1.0]])),
        None,
    ),
    Defect(
        "jax.scipy.special",
        "bessel_jn in float32",
        lambda s: (lambda x: s.bessel_jn(x, v=3)[3], np.float32([6.517])),
        lambda: ([float(mp.besselj(3, 6.517, 1))],),
        noted=True,
    ),
    Defect(
        "jax.numpy",
        "sinc in bfloat16, near 0",
        lambda jnp: (jnp.sinc, jnp.array([-0.0139], jnp.bfloat16)),
        lambda: ([float(mp.diff(lambda x: mp.sinc(mp.pi * x), x)) for x in (-0.0139,)],),
        noted=True,
    ),
]


def _focal(logit: float, y: Any, gamma: float = 2.0) -> Any:
    p = 1 / (1 + mp.exp(-mp.mpf(logit)))
    cross_entropy = -y * mp.log(p) - (1 - y) * mp.log(1 - p)
    return cross_entropy * (p * (1 - y) + (1 - p) * y) ** gamma
