"""Finds critical points of any gradient: minima, saddles and maxima, where it is 0.

Newton's method made to converge: every step lowers the squared norm of the gradient g. Frye et
al., "Critical point-finding methods reveal gradient-flat regions of deep network losses" (2021),
find a step by iteration and shorten it. Here the networks are small, so that each step is solved
exactly, with several dampings of which the best is taken, as Dauphin et al. (2014) do. A search
can still stop where the gradient is not 0 but in the kernel of the Hessian, H g = 0: such points
are gradient-flat, and not critical.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

import fnn
from experiments.common.figures import BLUE, GREY, ORANGE

CRITICAL = 1e-10  # the squared norm of the gradient below which a point is critical
NEGATIVE = -1e-5  # an eigenvalue below this is negative; both as in Frye et al.
FLAT = 1e-3  # of |H g| relative to |H| |g|
EXACT = 1e-22  # no use in going on
TRIED = np.array([0.01, 0.2, 1.0, 5.0])  # times the last damping
LIMITS = 1e-7, 10.0  # of the damping, relative to the size of the Hessian


KINDS = {"critical": BLUE, "gradient-flat": ORANGE, "not converged": GREY}


class Found(NamedTuple):
    """Where the search ended.

    params: the point.
    loss, squared_norm: the loss there, and |g|^2 of its gradient g.
    flatness: |H g| / (|H| |g|), from 0 (gradient-flat) to 1.
    eigenvalues: of the Hessian, ascending.
    norms: |g|^2 at the start and after each step; NaN after the last.
    """

    params: Any
    loss: Any
    squared_norm: Any
    flatness: Any
    eigenvalues: Any
    norms: Any

    @property
    def critical(self) -> bool:
        return bool(self.squared_norm < CRITICAL)

    @property
    def flat(self) -> bool:
        """Not critical, and stuck: the gradient is in the kernel of the Hessian."""
        return not self.critical and bool(self.flatness < FLAT)

    @property
    def steps(self) -> int:
        return int(np.isfinite(self.norms).sum()) - 1

    @property
    def kind(self) -> str:
        return "critical" if self.critical else "gradient-flat" if self.flat else "not converged"

    @property
    def negative(self) -> float:
        """The index, as the share of negative eigenvalues: 0 at minima."""
        return float((self.eigenvalues < NEGATIVE).mean())

    def row(self) -> dict[str, Any]:
        """For a CSV file."""
        return {
            "kind": self.kind, "loss": float(self.loss), "index": self.negative,
            "squared_norm": float(self.squared_norm), "flatness": float(self.flatness),
            "steps": self.steps,
        }  # fmt: skip


def finder(
    loss: Callable[[Any], Any], gradient: Callable[[Any], Any], steps: int
) -> Callable[[Any], Found]:
    """A function from a start to the point found from there; compiled once for all starts."""
    hessian = partial(fnn.curvature.hessian, gradient)

    def found(start: Any) -> Found:
        begin, unravel = ravel_pytree(start)

        def gradient_at(w: Any) -> Any:
            return ravel_pytree(gradient(unravel(w)))[0]

        def go_on(state: Any) -> Any:
            _, g, norms, n, _ = state
            slow = (n > 0) & (g @ g > (1 - 1e-6) * norms[n - 1])
            return (n < steps) & (g @ g > EXACT) & ~slow

        def step(state: Any) -> Any:
            w, g, norms, n, damping = state
            # Levenberg-Marquardt for 1/2 |g|^2: downhill for every damping, Newton for small ones.
            h = hessian(unravel(w))
            square, slope, scale = h @ h, h @ g, jnp.max(jnp.sum(jnp.abs(h), 1))
            dampings = jnp.clip(damping * TRIED, *LIMITS)

            def end(damping: Any) -> Any:
                positive = square + jnp.square(damping * scale) * jnp.eye(len(w))
                to = w - cho_solve(cho_factor(positive), slope)
                return to, gradient_at(to)

            ends, gradients = lax.map(end, dampings)
            sizes = jnp.nan_to_num(jnp.sum(gradients**2, 1), nan=jnp.inf)
            best = jnp.argmin(sizes)
            better = sizes[best] < g @ g
            w, g = jnp.where(better, ends[best], w), jnp.where(better, gradients[best], g)
            return w, g, norms.at[n + 1].set(g @ g), n + 1, dampings[best]

        g = gradient_at(begin)
        norms = jnp.full(steps + 1, jnp.nan).at[0].set(g @ g)
        w, g, norms, _, _ = lax.while_loop(go_on, step, (begin, g, norms, 0, 1.0))
        point = unravel(w)
        curvature = hessian(point)
        e = jnp.linalg.eigvalsh(curvature)
        flatness = jnp.linalg.norm(curvature @ g) / (jnp.max(jnp.abs(e)) * jnp.linalg.norm(g))
        return Found(point, loss(point), g @ g, flatness, e, norms)

    compiled = jax.jit(found)
    return lambda start: jax.device_get(compiled(start))


def threads(parameters: int) -> AbstractContextManager[Any]:
    """How many threads work on one matrix: several only get in each other's way where it is small
    (eigenvalues for 565 parameters: 4.1 s instead of 0.03 s on two busy cores)."""
    import scipy.linalg  # noqa: F401 (JAX takes its LAPACK; the limit holds for what is loaded)

    return threadpool_limits(1 if parameters < 1000 else None, "blas")


def shares(found: Sequence[Found]) -> list[tuple[str, str, str]]:
    """Rows for a table: how many searches ended in a point of each kind."""
    counts = {kind: sum(f.kind == kind for f in found) for kind in KINDS}
    return [(kind, str(n), f"{n / len(found):.1%}") for kind, n in counts.items()]


def small_enough(parameters: int, memory: float = 250e6) -> None:
    """Refuses a network of which the Hessian is too large to be factorised at every step."""
    size = 8 * parameters**2
    if size > memory:
        raise ValueError(
            f"a network of {parameters} parameters has a Hessian of {size / 1e6:.0f} MB in "
            f"float64, needs at most {memory / 1e6:.0f} MB, or --hidden with fewer units; for "
            "larger networks fnn.curvature.lanczos and spectrum need no matrix "
            "(python -m experiments landscape spectrum)"
        )


def spread_over(
    path: tuple[Any, Any], count: int, noise: float, rng: np.random.Generator
) -> list[Any]:
    """Points of a path (parameters, losses), evenly over the height of the loss, and with noise
    of several sizes up to ``noise``, a standard deviation."""
    points, losses = jax.tree.map(np.asarray, path)
    heights = np.linspace(losses.min(), losses.max(), count)
    places = [int(np.argmin(np.abs(losses - height))) for height in heights]
    sizes = noise * 10 ** rng.uniform(-2, 0, count)
    return [
        jax.tree.map(lambda w, i=i, s=s: w[i] + s * rng.normal(size=w[i].shape), points)
        for i, s in zip(places, sizes, strict=True)
    ]


def descended(
    run: Callable[[Any], tuple[Any, Any]], params: Any, steps: int, rate: float
) -> tuple[Any, Any]:
    """The parameters along gradient descent, and the losses; ``run(params) -> (loss, grads)``."""

    def step(params: Any, _: Any) -> tuple[Any, Any]:
        value, grads = run(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), (params, value)

    return lax.scan(step, params, length=steps)[1]
