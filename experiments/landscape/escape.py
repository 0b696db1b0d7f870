"""Leaving a saddle: which method is fastest, in steps and in seconds.

After Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional
non-convex optimization" (2014): Newton's method goes to a saddle, gradient descent leaves it
slowly, and Newton's method with the absolute values of the eigenvalues leaves it at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

import fnn
from experiments.common.console import console, table
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, RED, plt
from experiments.common.options import at_least
from experiments.common.run import write_csv
from experiments.landscape import page
from experiments.landscape.critical import Found, cautious, finder, small_enough, threads
from experiments.landscape.saddles import digits
from experiments.landscape.study import Study, progress

TITLE = "Leaving a saddle"
LOSS = fnn.softmax_cross_entropy()
COLORS = (GREY, BLUE, GREEN, "black", "#CC79A7", RED, "#F0A080", ORANGE)


@dataclass(kw_only=True)
class Escape(Study):
    """Eight methods leave one saddle of a network on MNIST: loss by steps and by seconds."""

    data_dir: Path | None = None
    """folder with the MNIST files, if they are somewhere unusual"""
    hidden: int = 5
    """hidden units"""
    examples: int = 300
    """images of MNIST, at 10 x 10 pixels"""
    batch_size: int = 50
    """examples per step of the methods of first order; the others take all"""
    steps: int = 500
    """steps of the methods of first order"""
    newton_steps: int = 40
    """steps of the methods of second order"""
    rates: tuple[float, ...] = (0.01, 0.1, 0.5)
    """learning rates that each method of first order tries: the best is shown"""
    krylov: int = 20
    """dimension of the subspace of saddle-free Newton in its Krylov version"""
    perturbation: float = 1e-3
    """standard deviation of what is added to the saddle's weights at the start"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 1, "hidden", "batch_size", "steps", "newton_steps", "krylov")
        at_least(self, 10, "examples")
        for name in ("rates", "perturbation"):
            for value in np.atleast_1d(getattr(self, name)):
                if not 0 < value < float("inf"):
                    raise ValueError(f"--{name} is {value}, needs a number above 0")
        if self.batch_size > self.examples:
            raise ValueError(
                f"--batch-size is {self.batch_size}, needs at most --examples, {self.examples}"
            )
        small_enough(111 * self.hidden + 10)


class Run(NamedTuple):
    """A method's losses, before the first step and after each, and the seconds of a step."""

    name: str
    losses: np.ndarray
    seconds: float

    def steps_to(self, loss: float) -> int | None:
        """The steps after which the loss stays below this one."""
        above = np.flatnonzero(~(self.losses < loss))
        left = int(above[-1]) + 1 if len(above) else 0
        return left if left < len(self.losses) else None


def trust_region(product: Any, loss: Callable[[Any], Any]) -> Any:
    """A step, (params, radius, grads) -> (params, radius), to the lowest point of the quadratic
    model within a radius; the radius follows how right the model was (More and Sorensen, 1983)."""

    def step(params: Any, radius: Any, grads: Any) -> tuple[Any, Any]:
        g, unravel = ravel_pytree(grads)
        e, vectors = jnp.linalg.eigh(fnn.curvature.matrix(product, params))
        along = vectors.T @ g

        def length(shift: Any) -> Any:
            return jnp.linalg.norm(along / (e + shift))

        # |d| falls as H + shift becomes more positive: halve the interval, on a logarithmic scale.
        floor = jnp.maximum(0.0, -e[0])
        low, high = jnp.log(1e-12), jnp.log(jnp.linalg.norm(g) / radius + jnp.abs(e).max() + 1)

        def halve(_: Any, ends: Any) -> Any:
            low, high = ends
            middle = (low + high) / 2
            far = length(floor + jnp.exp(middle)) > radius
            return jnp.where(far, middle, low), jnp.where(far, high, middle)

        shift = floor + jnp.exp(lax.fori_loop(0, 60, halve, (low, high))[1])
        d = -along / (e + shift)
        promised = -(along @ d + d @ (e * d) / 2)
        to = fnn.apply_updates(params, unravel(vectors @ d))
        share = (loss(params) - loss(to)) / promised
        params = jax.tree.map(lambda old, new: jnp.where(share > 0, new, old), params, to)
        radius = radius * jnp.where(share > 0.75, 2.0, jnp.where(share > 0.25, 1.0, 0.25))
        return params, radius

    return step


def saddle(net: fnn.Block, x: Any, target: Any, seed: int) -> Found:
    """The saddle nearest to small random weights."""
    run = fnn.value_and_grad(net, LOSS)
    search = finder(lambda p: run(p, x, target)[0], lambda p: run(p, x, target)[1], 100)
    params = net.init(jax.random.key(seed), x)
    return search(jax.tree.map(lambda w: 0.3 * w, params))


def timed(
    name: str, step: Callable[..., Any], params: Any, state: Any, data: list[Any],
    loss: Callable[[Any], Any],
) -> Run:  # fmt: skip
    """Runs a step, (params, state, datum) -> (params, state), over data; compiled beforehand."""
    step, loss = jax.jit(step).lower(params, state, data[0]).compile(), jax.jit(loss)
    losses, seconds = [float(loss(params))], 0.0
    for datum in data:
        begin = time.perf_counter()
        params, state = jax.block_until_ready(step(params, state, datum))
        seconds += time.perf_counter() - begin
        losses.append(float(loss(params)))
    return Run(name, np.array(losses), seconds / len(data))


def first_order(
    options: Escape, net: fnn.Block, x: Any, target: Any, start: Any,
    make: Callable[[float], Any], name: str, loss: Callable[[Any], Any],
) -> Run:  # fmt: skip
    """The run of the best of the rates."""
    gradient = fnn.value_and_grad(net, LOSS)
    runs = []
    for rate in options.rates:
        optimizer = make(rate)

        def step(params: Any, state: Any, rows: Any, optimizer: Any = optimizer) -> Any:
            grads = gradient(params, x[rows], target[rows])[1]
            updates, state = optimizer.update(grads, state, params)
            return fnn.apply_updates(params, updates), state

        rng = np.random.default_rng(options.seed)
        size = options.batch_size
        rows = [rng.choice(len(x), size, replace=False) for _ in range(options.steps)]
        full = f"{name}, rate {rate:g}"
        runs.append(timed(full, step, start, optimizer.init(start), rows, loss))
    return min(runs, key=lambda run: np.nan_to_num(run.losses[-50:].mean(), nan=np.inf))


def escape(options: Escape) -> int:
    data = digits(options.seed, options.data_dir, options.examples)
    with jax.enable_x64(True), threads(111 * options.hidden + 10), progress() as bar:
        task = bar.add_task("looking for a saddle", total=10)
        x, target = jnp.asarray(data.x), jnp.asarray(data.target)
        net = fnn.models.mlp((options.hidden, 10), fnn.tanh())
        found = saddle(net, x, target, options.seed)
        bar.advance(task, 2)
        rng = np.random.default_rng(options.seed)
        size = options.perturbation
        start = jax.tree.map(lambda w: jnp.asarray(w + size * rng.normal(size=w.shape)),
                             found.params)  # fmt: skip
        both = fnn.value_and_grad(net, LOSS)

        def loss(params: Any) -> Any:
            return both(params, x, target)[0]

        def gradient(params: Any) -> Any:
            return both(params, x, target)[1]

        runs = []
        makers = {
            "SGD": fnn.sgd, "momentum": lambda r: fnn.sgd(r, 0.9), "Adam": optax.adam,
        }  # fmt: skip
        for name, make in makers.items():
            bar.update(task, description=name)
            runs.append(first_order(options, net, x, target, start, make, name, loss))
            bar.advance(task)
        h, ggn = fnn.curvature.hvp(gradient), fnn.curvature.ggn_vp(net, LOSS, x, target)
        sfn = fnn.curvature.saddle_free_newton
        newton = fnn.curvature.newton(h)

        def plain(params: Any, state: Any, grads: Any) -> Any:
            updates, state = newton.update(grads, state, params)
            return fnn.apply_updates(params, updates), state

        exact, few = sfn(h, 1.0), sfn(h, 1.0, options.krylov)
        gauss = fnn.curvature.newton(ggn, 1.0)
        second: dict[str, tuple[Any, Any]] = {
            "Newton": (plain, newton.init(start)),
            "trust region": (trust_region(h, loss), jnp.asarray(1.0)),
            "saddle-free Newton": (cautious(exact, loss), exact.init(start)),
            f"saddle-free Newton, Krylov {options.krylov}": (
                cautious(few, loss), few.init(start),
            ),
            "Gauss-Newton": (cautious(gauss, loss), gauss.init(start)),
        }  # fmt: skip
        for name, (step, state) in second.items():
            bar.update(task, description=name)

            def whole(params: Any, state: Any, _: Any, step: Any = step) -> Any:
                return step(params, state, gradient(params))

            runs.append(timed(name, whole, start, state, [0.0] * options.newton_steps, loss))
            bar.advance(task)
    _report(options, found, runs)
    return 0


# ---- what is shown ---------------------------------------------------------------------------


def _report(options: Escape, found: Found, runs: list[Run]) -> None:
    lowest = min(float(np.nanmin(run.losses)) for run in runs)
    goals = [float(found.loss) - share * (float(found.loss) - lowest) for share in (0.1, 0.5, 0.9)]
    cells = []
    for run in runs:
        steps = [run.steps_to(goal) for goal in goals]
        cells.append(
            (
                run.name,
                *("not reached" if n is None else f"{n} ({n * run.seconds:.2f} s)" for n in steps),
                f"{1e3 * run.seconds:.2f}", f"{run.losses[-1]:.4f}",
            )
        )  # fmt: skip
    columns = ("method", "10 % of the way down", "50 %", "90 %", "ms a step", "last loss")
    table(TITLE, columns, cells)
    write_csv(
        options.out / "escape.csv",
        [
            {"method": run.name, "step": i, "seconds": i * run.seconds, "loss": loss}
            for run in runs
            for i, loss in enumerate(run.losses)
        ],
    )
    down = int((found.eigenvalues < -1e-5).sum())
    words = (
        f"The saddle ({found.kind}, |g|^2 = {found.squared_norm:.0e} after {found.steps} steps) "
        f"has a loss of {found.loss:.4f}, and {down} of its {len(found.eigenvalues)} directions "
        "lead down."
    )
    console.print(words)
    page.write(
        options.out, "escape", TITLE,
        page.paragraph(
            "All methods start next to the same saddle. " + words + " Newton's method goes back "
            "to it; gradient descent leaves slowly, because the gradient is small; saddle-free "
            "Newton divides by the absolute values of the eigenvalues and so goes away from it as "
            "fast as Newton's method goes there. Its steps are expensive: in seconds the order "
            "may be another one."
        ),
        page.figure(_drawn(found, runs), options.out / "escape.png",
            "The loss on all examples, by steps and by seconds (without compilation).",
        ),
        page.numbers(columns, cells),
        page.paragraph(
            f"The methods of first order see {options.batch_size} examples at a step, and of "
            f"their learning rates {', '.join(f'{r:g}' for r in options.rates)} the best is "
            f"shown; the others see all {options.examples} and adapt their damping or radius "
            "themselves. The way down is from the saddle to the lowest loss that any of them "
            "reached; a goal is reached when the loss stays below it."
        ),
        page.code(cautious, trust_region, fnn.curvature.saddle_free_newton),
    )  # fmt: skip
    console.print(f"saved in {options.out}: report.html, escape.png, escape.csv")


def _drawn(found: Found, runs: list[Run]) -> Any:
    picture, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    for run, color in zip(runs, COLORS, strict=True):
        steps = np.arange(len(run.losses))
        axes[0].plot(steps, run.losses, color=color, lw=1.6, label=run.name)
        axes[1].plot((steps * run.seconds)[1:], run.losses[1:], color=color, lw=1.6)
    axes[0].set(xscale="symlog", xlabel="step", ylabel="loss", title="By steps", xlim=(0, None))
    axes[1].set(xscale="log", xlabel="seconds", title="By seconds")
    least = min(float(np.nanmin(run.losses)) for run in runs)
    for axis in axes:
        axis.axhline(found.loss, color=GREY, lw=0.8, ls=":")
        axis.set_ylim(least - 0.05, found.loss * 1.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8.5, loc="lower left")
    return picture
