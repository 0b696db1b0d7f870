"""The spectrum of the Hessian along training, and the edge of stability.

After Sagun et al., "Empirical analysis of the Hessian" (2017): most eigenvalues stay near 0, and a
few large ones leave the bulk, about as many as there are classes. The density by stochastic Lanczos
quadrature (Ghorbani et al., 2019) is drawn over the exact eigenvalues. Then Cohen et al.,
"Gradient descent on neural networks typically occurs at the edge of stability" (2021): the largest
eigenvalue rises to 2 / learning rate, where full-batch descent would diverge on a quadratic, and
stays there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

import fnn
from experiments.common.console import console, table
from experiments.common.data import Dataset, Split, load
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, RED, plt
from experiments.common.options import at_least, positive_rate
from experiments.common.run import write_csv
from experiments.landscape import page
from experiments.landscape.study import Study, progress
from fnn.curvature import Spectrum as Density
from fnn.curvature import gradient_of, hessian, hvp, lanczos
from fnn.curvature import spectrum as quadrature

TITLE = "The spectrum of the Hessian"
EDGE_TITLE = "The edge of stability"
LARGEST = 25  # eigenvalues among which the end of the outliers is looked for


@dataclass(kw_only=True)
class Spectrum(Study):
    """Eigenvalues of the Hessian along training, and the largest beside 2 / learning rate."""

    hidden: int = 24
    """hidden units of the network whose whole spectrum is computed"""
    epochs: tuple[int, ...] = (0, 3, 30)
    """after how many passes over the data the spectrum is computed"""
    batch_size: int = 64
    """examples per step"""
    learning_rate: float = 0.1
    """step size"""
    probes: int = 10
    """random vectors of the quadrature"""
    steps: int = 80
    """steps of Lanczos for each"""
    rates: tuple[float, ...] = (0.4, 0.25, 0.16)
    """learning rates of full-batch descent, for the edge of stability"""
    descent_steps: int = 6000
    """steps of that descent"""
    every: int = 40
    """steps from one measurement of the largest eigenvalue to the next"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 1, "hidden", "batch_size", "probes", "steps", "descent_steps", "every")
        at_least(self, 0, "epochs")
        positive_rate(self)
        for rate in self.rates:
            if not 0 < rate < float("inf"):
                raise ValueError(f"--rates has {rate}, needs numbers above 0")


class Exact(NamedTuple):
    """The spectrum after some epochs: exact eigenvalues, and what the quadrature makes of it."""

    epochs: int
    eigenvalues: np.ndarray
    density: Density

    @property
    def width(self) -> float:
        """Of the smoothing: a hundredth of the spectrum's."""
        return float(np.ptp(self.eigenvalues)) / 100

    def smoothed(self, grid: np.ndarray) -> np.ndarray:
        """The exact density, smoothed as that of the quadrature is."""
        z = (grid[:, None] - self.eigenvalues) / self.width
        return np.exp(-(z**2) / 2).sum(1) / (
            len(self.eigenvalues) * self.width * np.sqrt(2 * np.pi)
        )

    def estimated(self, grid: np.ndarray) -> np.ndarray:
        """The density by the quadrature."""
        with jax.enable_x64(True):
            return np.asarray(self.density.density(jax.device_put(grid), self.width)[0])

    def error(self) -> float:
        """The area between the two densities; 2 if they had nothing in common."""
        low, high = self.eigenvalues[[0, -1]] + np.array([-5, 5]) * self.width
        grid = np.linspace(low, high, 2000)
        return float(np.trapezoid(np.abs(self.estimated(grid) - self.smoothed(grid)), grid))

    def outliers(self) -> int:
        """How many large eigenvalues there are before the largest gap, as a ratio, to the next."""
        largest = np.maximum(self.eigenvalues[::-1][: LARGEST + 1], 1e-12)
        return int(np.argmax(largest[:-1] / largest[1:])) + 1


def sharpness(gradient: Any, params: Any, start: Any, steps: int = 15) -> tuple[Any, Any]:
    """The largest eigenvalue of the Hessian and its vector, by Lanczos from one close to it."""
    found = lanczos(partial(hvp(gradient), params), start, steps).ritz()
    return found.values[-1], found.vectors[-1]


def descend(gradient: Any, rate: float, params: Any, steps: int) -> Any:
    """Full-batch gradient descent."""

    def step(params: Any, _: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient(params)), None

    return lax.scan(step, params, length=steps)[0]


def spectrum(options: Spectrum) -> int:
    data = load("digits", options.seed)
    with progress() as bar:
        total = max(options.epochs) + 15 * len(options.epochs) + 20 * len(options.rates)
        task = bar.add_task("", total=total)
        bar.update(task, description="spectra")
        exact = _spectra(options, data, partial(bar.advance, task))
        bar.update(task, description="edge of stability")
        edges = []
        for rate in options.rates:
            count = max(1, options.descent_steps // options.every)
            edges.append(_edge(options, data.train, rate, partial(bar.advance, task, 20 / count)))
    _report(options, exact, edges)
    return 0


def _spectra(options: Spectrum, data: Dataset, tick: Callable[..., None]) -> list[Exact]:
    """The spectrum of a small network after each of the epochs, in float64."""
    net, loss = fnn.models.mlp((options.hidden, 10), fnn.tanh()), fnn.softmax_cross_entropy()
    x, target = jax.device_put(data.train)
    optimizer = fnn.sgd(options.learning_rate, 0.9)
    epoch = fnn.make_epoch(net, loss, optimizer, options.batch_size)
    params = net.init(jax.random.key(options.seed), x)
    state, rng = optimizer.init(params), np.random.default_rng(options.seed)
    found = []
    for number in range(max(options.epochs) + 1):
        if number in options.epochs:
            with jax.enable_x64(True):
                wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
                found.append(_exact(options, net, loss, wide, data.train, number))
            tick(15)
        params, state, _ = epoch(params, state, x, target, rng.permutation(len(x)))
        tick(1)
    return found


def _exact(options: Spectrum, net: Any, loss: Any, params: Any, data: Split, number: int) -> Exact:
    gradient = gradient_of(net, loss, np.asarray(data.x, np.float64), data.target)
    eigenvalues = np.linalg.eigvalsh(np.asarray(jax.jit(partial(hessian, gradient))(params)))
    matvec, key = partial(hvp(gradient), params), jax.random.key(options.seed)
    run = jax.jit(lambda: quadrature(matvec, params, key, options.probes, options.steps))
    return Exact(number, eigenvalues, jax.device_get(run()))


class Edge(NamedTuple):
    """Full-batch descent at one rate: loss and largest eigenvalue along it."""

    rate: float
    steps: np.ndarray
    losses: np.ndarray
    largest: np.ndarray

    def settled(self) -> float:
        """The largest eigenvalue in units of 2 / rate: the median over the last quarter."""
        return float(np.median(self.largest[-max(1, len(self.largest) // 4) :]) * self.rate / 2)


def _edge(options: Spectrum, data: Split, rate: float, tick: Callable[[], None]) -> Edge:
    net, loss = fnn.models.mlp((64, 64, 10), fnn.tanh()), fnn.squared_error()
    centered = data.x - data.x.mean(0)  # or the mean picture alone makes a large eigenvalue
    x, target = jax.device_put((centered, np.eye(10, dtype=np.float32)[data.target]))
    gradient = gradient_of(net, loss, x, target)
    value = fnn.value_and_grad(net, loss)

    @jax.jit
    def some(params: Any, start: Any) -> Any:
        largest, vector = sharpness(gradient, params, start)
        later = descend(gradient, rate, params, options.every)
        return later, value(params, x, target)[0], largest, vector

    params = net.init(jax.random.key(options.seed), x)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    vector = jax.random.normal(jax.random.key(options.seed), flat.shape)
    rows = []
    for number in range(max(1, options.descent_steps // options.every)):
        params, loss_now, largest, vector = some(params, unravel(vector))
        rows.append((number * options.every, float(loss_now), float(largest)))
        tick()
    return Edge(rate, *np.array(rows).T)


# ---- what is shown ---------------------------------------------------------------------------


def _report(options: Spectrum, exact: list[Exact], edges: list[Edge]) -> None:
    cells = [
        (
            e.epochs, len(e.eigenvalues), f"{e.eigenvalues[-1]:.3f}", f"{e.eigenvalues[0]:.3f}",
            f"{np.mean(np.abs(e.eigenvalues) < e.eigenvalues[-1] / 100):.1%}", e.outliers(),
            f"{e.error():.3f}",
        )
        for e in exact
    ]  # fmt: skip
    columns = (
        "epochs", "eigenvalues", "largest", "smallest", "near 0", "outliers", "quadrature's error",
    )  # fmt: skip
    table(TITLE, columns, cells)
    edge_cells = [
        (f"{e.rate:g}", f"{2 / e.rate:.1f}", f"{e.largest[0]:.2f}", f"{e.largest.max():.2f}",
         f"{e.settled():.3f}", f"{e.losses[-1]:.5f}")
        for e in edges
    ]  # fmt: skip
    edge_columns = (
        "rate", "2 / rate", "largest eigenvalue", "at most", "at last, of 2 / rate", "loss",
    )  # fmt: skip
    table(EDGE_TITLE, edge_columns, edge_cells)
    write_csv(
        options.out / "spectrum.csv",
        [{"epochs": e.epochs, "eigenvalue": v} for e in exact for v in e.eigenvalues],
    )
    write_csv(
        options.out / "edge.csv",
        [
            {"rate": e.rate, "step": int(s), "loss": v, "largest_eigenvalue": w}
            for e in edges
            for s, v, w in zip(*e[1:], strict=True)
        ],
    )
    page.write(
        options.out, "spectrum", TITLE,
        page.paragraph(
            f"All {len(exact[0].eigenvalues)} eigenvalues of the Hessian of a small network that "
            "learns the digits. Most are near 0 (within a hundredth of the largest); a few leave "
            "the bulk. Outliers: how many there are above the largest gap. The quadrature sees "
            f"products alone, {options.probes} times {options.steps} of them; its error is the "
            "area between the two smoothed densities, of 2 at most."
        ),
        page.figure(_spectra_drawn(exact), options.out / "spectrum.png",
            "The density of eigenvalues, exact (filled) and by the quadrature (line).",
        ),
        page.numbers(columns, cells),
        page.code(_exact),
        f"<h2>{EDGE_TITLE}</h2>",
        page.paragraph(
            "Full-batch gradient descent with three learning rates. The largest eigenvalue rises "
            "until it reaches 2 / rate (dotted), where a step along its direction overshoots as "
            "far as it descends, and stays about there, while the loss goes on falling."
        ),
        page.figure(_edges_drawn(edges), options.out / "edge.png",
            "Left: the largest eigenvalue and 2 / rate. Right: the loss.",
        ),
        page.numbers(edge_columns, edge_cells),
        page.code(sharpness, descend),
    )  # fmt: skip
    console.print(
        f"saved in {options.out}: report.html, spectrum.png, edge.png, spectrum.csv, edge.csv"
    )


def _spectra_drawn(exact: list[Exact]) -> Any:
    picture, axes = plt.subplots(
        1, len(exact), figsize=(4.3 * len(exact), 3.6), layout="constrained", squeeze=False
    )
    for axis, e in zip(axes.flat, exact, strict=True):
        grid = np.linspace(e.eigenvalues[0] - 5 * e.width, e.eigenvalues[-1] + 5 * e.width, 1000)
        axis.fill_between(grid, e.smoothed(grid), color=BLUE, alpha=0.35, lw=0, label="exact")
        axis.plot(grid, e.estimated(grid), color=ORANGE, lw=1.5, label="quadrature")
        axis.plot(e.eigenvalues, np.full(len(e.eigenvalues), 2e-6), "|", color=GREY, ms=6)
        axis.set(yscale="log", ylim=(1e-6, None), xlabel="eigenvalue")
        axis.set_title("before training" if e.epochs == 0 else f"after {e.epochs} epochs")
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].legend(frameon=False)
    return picture


def _edges_drawn(edges: list[Edge]) -> Any:
    picture, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for e, color in zip(edges, (RED, ORANGE, GREEN, BLUE, GREY), strict=False):
        left.plot(e.steps, e.largest, color=color, lw=1.3, label=f"rate {e.rate:g}")
        left.axhline(2 / e.rate, color=color, ls=":", lw=1.5)
        right.plot(e.steps, e.losses, color=color, lw=1.3)
    left.set(
        xlabel="step", title="Largest eigenvalue", ylim=(0, 1.25 * max(2 / e.rate for e in edges))
    )
    right.set(xlabel="step", title="Loss", yscale="log")
    left.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return picture
