"""The float64 reference of a sweep against 50 digits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.selftest.references import exact, float64, zero_of
from fnn.check import ulps
from fnn.check.all_floats import spread

MAX_ERROR = 1e-12  # relative: some 1e-5 units of float32
POINTS = 4096  # inputs, spread evenly over the bit patterns
NEIGHBOURS = 8  # floats on either side of every special point

# Where formulas have kinks, change over, saturate, overflow or underflow, in fnn or elsewhere.
SPECIAL = (
    0.03, 0.25, 0.5, 0.6, 0.7, 1.0, 2.0, 3.0, 4.0, 5.23, 9.0, 13.0, 14.4, 17.0, 20.0, 40.0, 61.0,
    80.0, 87.33, 88.0, 88.72, 91.8, 103.97, 150.0, 1000.0, 1e-30,
)  # fmt: skip


@dataclass(frozen=True)
class Verified:
    """The largest relative error of the reference over some inputs, and where it is."""

    points: int
    error: float
    x: float

    @property
    def ok(self) -> bool:
        """Whether the reference is accurate enough."""
        return self.error <= MAX_ERROR

    def __str__(self) -> str:
        return (
            f"the reference's largest relative error is {self.error:.1e} at {self.x:.9g}, of "
            f"{self.points:,} inputs against 50 digits"
        )


def verify(name: str, dtype: str, worst: Iterable[int], points: int = POINTS) -> Verified:
    """Compares the reference with 50 digits on a sample and at the worst inputs' bit patterns."""
    x = np.unique(sample(name, dtype, points, worst))
    with jax.enable_x64(True):
        truths = jax.device_get(float64(name)(jnp.asarray(x)))
    error = np.array([_error(name, dtype, *row) for row in zip(x, *truths, strict=True)])
    at = int(np.argmax(error))
    return Verified(len(x), float(error[at]), float(x[at]))


def _error(name: str, dtype: str, x: float, *truths: float) -> float:
    """The relative error of value or derivative; infinite if only one of the two numbers is NaN,
    0 or infinite."""
    info = jnp.finfo(dtype)
    low, high = 2.0 ** (info.minexp - info.nmant - 1), 2.0**info.maxexp
    try:
        wants = exact(name, float(x))
    except ZeroDivisionError:
        return 0.0  # a pole has no truth but a limit
    worst = 0.0
    for truth, want in zip(map(float, truths), wants, strict=True):
        if want != want or truth != truth:
            right = want != want and truth != truth
        elif abs(want) <= low:
            right = abs(truth) <= 2 * low
        elif abs(want) >= high:
            right = abs(truth) >= high * (1 - MAX_ERROR)
        else:
            right = True
            worst = max(worst, float(abs((truth - want) / want)))
        worst = worst if right else np.inf
    return worst


def sample(name: str, dtype: str, points: int, extra: Iterable[int]) -> np.ndarray:
    """Finite inputs in float64: spread over all bit patterns, and around every special point."""
    bits = 8 * jnp.dtype(dtype).itemsize
    patterns = [spread(0, points, 2**bits // points), np.array(list(extra), np.int64)]
    special = np.array([*SPECIAL, *(-s for s in SPECIAL), zero_of(name) or 0.0], np.float32)
    centres = special.astype(jnp.dtype(dtype)).view(f"uint{bits}").astype(np.int64)
    near = centres[:, None] + np.arange(-NEIGHBOURS, NEIGHBOURS + 1)
    patterns.append(np.clip(near, 0, 2**bits - 1).ravel())
    with np.errstate(invalid="ignore"):  # NaN that warn when they are cast
        x = ulps.floats(np.concatenate(patterns), dtype).astype(np.float64)
    return x[np.isfinite(x)]
