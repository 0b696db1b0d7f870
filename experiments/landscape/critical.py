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
from concurrent.futures import ThreadPoolExecutor
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
FLAT = 1e-4  # of |H g| relative to |H| |g|
EXACT = 1e-22  # no use in going on
STUCK = 200, 0.99  # over so many steps the squared norm did not fall below this share
TRIED = np.array([0.01, 0.2, 1.0, 5.0])  # times the last damping
RAISED = 100.0  # times the last damping, where none of them lowered the norm
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
        return bool(self.squared_norm < CRITICAL) and not self.flat

    @property
    def flat(self) -> bool:
        """What is left of the gradient is in the kernel of the Hessian, however short it is."""
        return bool(self.squared_norm > EXACT and self.flatness < FLAT)

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

    @property
    def surely(self) -> bool:
        """Not gradient-flat at a cut-off ten times as strict."""
        return bool(self.squared_norm <= EXACT or self.flatness >= 10 * FLAT)

    @property
    def zero(self) -> float:
        """The share of eigenvalues that are 0 up to the cut-off of negative ones."""
        return float((np.abs(self.eigenvalues) < -NEGATIVE).mean())

    def row(self) -> dict[str, Any]:
        """For a CSV file."""
        return {
            "kind": self.kind, "loss": float(self.loss), "index": self.negative,
            "zero": self.zero,
            "squared_norm": float(self.squared_norm), "flatness": float(self.flatness),
            "steps": self.steps,
        }  # fmt: skip


def finder(
    loss: Callable[[Any], Any], gradient: Callable[[Any], Any], steps: int, enough: float = EXACT
) -> Callable[[Any], Found]:
    """A function from a start to the point found from there; compiled once for all starts.

    A search ends after ``steps``, when the squared norm of the gradient is below ``enough``, or
    when it is stuck: no damping lowers the norm any more, or hardly.
    """
    hessian = partial(fnn.curvature.hessian, gradient)

    def found(start: Any) -> Found:
        begin, unravel = ravel_pytree(start)

        def gradient_at(w: Any) -> Any:
            return ravel_pytree(gradient(unravel(w)))[0]

        def go_on(state: Any) -> Any:
            _, g, norms, n, damping = state
            far, share = STUCK
            stuck = (n >= far) & (g @ g > share * norms[n - far])
            return (n < steps) & (g @ g > enough) & (damping <= LIMITS[1]) & ~stuck

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
            damping = jnp.where(better, dampings[best], damping * RAISED)
            return w, g, norms.at[n + 1].set(g @ g), n + 1, damping

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


def found_from(
    starts: Sequence[Any], search: Callable[[Any], Found], tick: Callable[[], None]
) -> list[Found]:
    """The points found from all starts, two at a time: one search keeps only one core busy."""

    def run(start: Any) -> Found:
        with jax.enable_x64(True):  # it holds for a thread
            found = search(start)
        tick()
        return found

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, starts))


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


def cautious(optimizer: Any, loss: Callable[[Any], Any]) -> Any:
    """A step, (params, state, grads) -> (params, state), that adapts the damping: a step that
    raises the loss is not taken, and the next one is shorter (Levenberg and Marquardt)."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        to = fnn.apply_updates(params, updates)
        good = loss(to) < loss(params)
        params = jax.tree.map(lambda old, new: jnp.where(good, new, old), params, to)
        return params, state._replace(damping=state.damping * jnp.where(good, 0.5, 4.0))

    return step


def minimum(
    loss: Callable[[Any], Any], gradient: Callable[[Any], Any], steps: int
) -> Callable[[Any], Any]:
    """A function from a start to a point near a minimum, by saddle-free Newton."""
    optimizer = fnn.curvature.saddle_free_newton(fnn.curvature.hvp(gradient), 0.1)
    step = cautious(optimizer, loss)

    def low(start: Any) -> Any:
        def go_on(carry: Any) -> Any:
            _, _, grads, n = carry
            return (n < steps) & (sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)) > CRITICAL)

        def down(carry: Any) -> Any:
            params, state, grads, n = carry
            params, state = step(params, state, grads)
            return params, state, gradient(params), n + 1

        first = start, optimizer.init(start), gradient(start), 0
        return lax.while_loop(go_on, down, first)[0]

    return jax.jit(low)
