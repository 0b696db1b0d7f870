"""Saddle points of networks that learn: the higher the loss, the more directions lead down.

After Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional
non-convex optimization" (2014), on MNIST at 10 x 10 pixels; and Pennington and Bahri, "Geometry of
neural network loss surfaces via random matrix theory" (2017), on random data: they predict that
the share of negative eigenvalues grows as (E - E_c)^(3/2), and that minima have the energy
(1 - phi)^2 / 2, where phi is parameters over numbers in the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from experiments.common.console import console, table
from experiments.common.data import Split, load
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, RED, plt
from experiments.common.options import at_least
from experiments.common.run import write_csv
from experiments.landscape import page
from experiments.landscape.critical import (
    KINDS,
    Found,
    descended,
    finder,
    shares,
    small_enough,
    spread_over,
    threads,
)  # fmt: skip
from experiments.landscape.study import Study, progress

TITLE = "Saddle points of networks that learn"
UNITS = 16  # inputs, hidden units and outputs of the networks on random data


@dataclass(kw_only=True)
class Saddles(Study):
    """Critical points of small tanh networks: how many directions lead down, by loss."""

    data_dir: Path | None = None
    """folder with the MNIST files, if they are somewhere unusual"""
    hidden: int = 5
    """hidden units of the network on MNIST"""
    examples: int = 300
    """images of MNIST"""
    starts: int = 10
    """searches on MNIST, from along training"""
    phi: tuple[float, ...] = (0.25, 0.5, 0.75)
    """parameters over numbers in the random data"""
    random_starts: int = 8
    """searches for each phi"""
    steps: int = 200
    """steps of a search, at most"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 1, "hidden", "steps")
        at_least(self, 10, "examples")
        at_least(self, 4, "starts", "random_starts")
        for phi in self.phi:
            if not 0 < phi < 1:
                raise ValueError(f"--phi is {phi}, needs numbers between 0 and 1")
        small_enough(101 * self.hidden + 10 * self.hidden + 10)


def pixels(x: np.ndarray, size: int = 10) -> np.ndarray:
    """Images of 28 x 28 as size x size: each pixel is the mean of the area it covers."""
    edges = np.arange(size + 1) * 28 / size
    covered = np.minimum(edges[1:, None], np.arange(1, 29)) - np.maximum(
        edges[:-1, None], np.arange(28)
    )
    mean = np.maximum(covered, 0) * size / 28
    small = np.einsum("ai,nij,bj->nab", mean, x.reshape(-1, 28, 28).astype(np.float64), mean)
    return small.reshape(len(x), -1)


def digits(seed: int, folder: Path | None, examples: int) -> Split:
    """A part of MNIST, at 10 x 10 pixels."""
    train = load("mnist", seed, folder).train
    x = pixels(train.x[:examples])
    return Split((x - x.mean()) / x.std(), train.target[:examples])


def random_data(phi: float, rng: np.random.Generator) -> Split:
    """Random inputs and targets, phi times fewer than the network has parameters."""
    count = round(2 * UNITS / phi)
    return Split(*(rng.normal(size=(count, UNITS)) for _ in range(2)))


def random_network() -> fnn.Block:
    """As many hidden units and outputs as inputs, no biases."""
    hidden, out = (fnn.linear(UNITS, use_bias=False) for _ in range(2))
    return fnn.serial(hidden=hidden, act=fnn.tanh(), out=out)


def exponent(energy: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """p and E_c of negative = c (E - E_c)^p, by least squares of its logarithm, E_c below all E."""
    below = energy.min() - np.geomspace(1e-4, 0.2, 60) * np.ptp(energy)
    fits = []
    for least in below:
        at = np.log(energy - least)
        line, residual, *_ = np.polyfit(at, np.log(negative), 1, full=True)
        fits.append((float(residual[0]) if len(residual) else 0.0, float(line[0]), float(least)))
    return min(fits)[1:]


def searched(
    net: fnn.Block, loss: fnn.Block, data: Split, options: Saddles, count: int, scale: float,
    rate: float, tick: Callable[[], None],
) -> list[Found]:  # fmt: skip
    """The points found from along the training of one network; losses are divided by scale."""
    x, target = jax.tree.map(jnp.asarray, data)
    run = fnn.value_and_grad(net, loss)

    def scaled(params: Any) -> Any:
        return jax.tree.map(lambda v: v / scale, run(params, x, target))

    params = net.init(jax.random.key(options.seed), x)
    path = jax.jit(partial(descended, scaled, steps=4000, rate=rate))(params)
    path = jax.tree.map(lambda v: v[::10], path)
    search = finder(lambda p: scaled(p)[0], lambda p: scaled(p)[1], options.steps)
    found = []
    for start in spread_over(path, count, 0.03, np.random.default_rng(options.seed)):
        found.append(search(start))
        tick()
    return found


def saddles(options: Saddles) -> int:
    data = digits(options.seed, options.data_dir, options.examples)
    rng = np.random.default_rng(options.seed)
    by_phi: dict[float, list[Found]] = {}
    with jax.enable_x64(True), threads(111 * options.hidden + 10), progress() as bar:
        total = options.starts + len(options.phi) * options.random_starts
        task = bar.add_task("MNIST", total=total)
        tick = partial(bar.advance, task)
        net, loss = fnn.models.mlp((options.hidden, 10), fnn.tanh()), fnn.softmax_cross_entropy()
        mnist = searched(net, loss, data, options, options.starts, 1.0, 0.3, tick)
        error = jax.jit(lambda p: jnp.mean(jnp.argmax(net.forward(p, data.x)[0], 1) != data.target))
        errors = [float(error(f.params)) for f in mnist]
        for phi in options.phi:
            bar.update(task, description=f"phi = {phi:g}")
            by_phi[phi] = searched(
                random_network(), fnn.squared_error(), random_data(phi, rng), options,
                options.random_starts, UNITS, 2.0, tick,
            )  # fmt: skip
    _report(options, mnist, errors, by_phi)
    return 0


# ---- what is shown ---------------------------------------------------------------------------


def correlation(pairs: np.ndarray) -> Any:
    """Of two columns, over the last axis but one."""
    a, b = np.moveaxis(pairs - pairs.mean(-2, keepdims=True), -1, 0)
    size = np.sqrt(np.sum(a * a, -1) * np.sum(b * b, -1))
    return np.sum(a * b, -1) / np.where(size > 0, size, np.nan)


def _correlation(found: Sequence[Found], values: Sequence[float], seed: int) -> str:
    """Of the index with other values, and its 95 % interval."""
    if len(found) < 4:
        return f"only {len(found)} points"
    pairs = np.array([(value, f.negative) for value, f in zip(values, found, strict=True)])
    rng = np.random.default_rng(seed)
    drawn = correlation(pairs[rng.integers(0, len(pairs), (2000, len(pairs)))])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{float(correlation(pairs)):.2f} ({low:.2f} to {high:.2f})"


def _exponent(found: Sequence[Found], seed: int) -> str:
    """The exponent of the law over those of the points that are no minima."""
    up = [(float(f.loss), f.negative) for f in found if f.negative > 0]
    if len(up) < 5:
        return f"only {len(up)} points"
    energy, negative = np.array(up).T
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(200):
        rows = rng.integers(0, len(up), len(up))
        if len(set(rows)) > 3:
            drawn.append(exponent(energy[rows], negative[rows])[0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{exponent(energy, negative)[0]:.2f} ({low:.2f} to {high:.2f})"


def _report(
    options: Saddles, mnist: list[Found], errors: list[float], by_phi: dict[float, list[Found]]
) -> None:
    groups = {"MNIST": mnist} | {f"phi = {phi:g}": found for phi, found in by_phi.items()}
    write_csv(
        options.out / "saddles.csv",
        [
            {"network": name, "error": errors[i] if name == "MNIST" else "", **f.row()}
            for name, found in groups.items()
            for i, f in enumerate(found)
        ],
    )
    kinds = [
        (name, *(f"{n} ({share})" for _, n, share in shares(found)))
        for name, found in groups.items()
    ]
    columns = ("searches", *KINDS)
    table(TITLE, columns, kinds)
    laws = []
    for name, found in groups.items():
        critical = [f for f in found if f.kind == "critical"]
        for which, own in (("critical", critical), ("all points", found)):
            of_own = [e for e, f in zip(errors, mnist, strict=True) if any(f is g for g in own)]
            values = of_own if name == "MNIST" else [float(f.loss) for f in own]
            with_error = _correlation(own, values, options.seed)
            power = "" if name == "MNIST" else _exponent(own, options.seed)
            lowest = [float(f.loss) for f in own if f.negative == 0]
            theory = "" if name == "MNIST" else f"{(1 - float(name.split()[-1])) ** 2 / 2:.3f}"
            minimum = f"{min(lowest):.4f}" if lowest else "none found"
            laws.append((name, which, with_error, power, minimum, theory))
    law_columns = (
        "", "points", "correlation with the index", "exponent (3/2)", "lowest minimum", "theory",
    )  # fmt: skip
    table("How the index grows", law_columns, laws)
    everything = [f for found in groups.values() for f in found]
    flat = np.mean([f.kind == "gradient-flat" for f in everything])
    short = np.mean([f.kind == "not converged" for f in everything])
    words = (
        f"{flat:.0%} of the searches ended in gradient-flat points and {short:.0%} had not "
        f"converged after {options.steps} steps: they are no critical points."
    )
    console.print(words)
    page.write(
        options.out, "saddles", TITLE,
        page.paragraph(
            f"A network with {options.hidden} tanh units learns {options.examples} digits at "
            "10 x 10 pixels. Searches start from points along its training. Where the error is "
            "high many directions lead down; where it is low, few or none: so high points are "
            "saddles, and minima are low and about the same (Dauphin et al., 2014)."
        ),
        page.paragraph(
            "On random data theory says how many directions: as many as (E - E_c)^(3/2), and "
            "minima have the energy (1 - phi)^2 / 2 (Pennington and Bahri, 2017). " + words + " "
            "Frye et al. (2021) found the same, and doubt what was said of deep networks with "
            "less strict searches; so the table has both: critical points alone, and all."
        ),
        page.figure(_drawn(mnist, errors, by_phi), options.out / "saddles.png",
            "Left: the share of directions that lead down (index) against the error on MNIST. "
            "Middle: the Hessian's eigenvalues at the highest and at the lowest of these points. "
            "Right: the index against the loss on random data, with the fitted law (all points; "
            "dotted: the energy of minima from theory). Filled: critical; open: not.",
        ),
        page.numbers(columns, kinds),
        page.numbers(law_columns, laws),
        page.code(pixels, searched, exponent, finder),
    )  # fmt: skip
    console.print(f"saved in {options.out}: report.html, saddles.png, saddles.csv")


def _drawn(mnist: list[Found], errors: list[float], by_phi: dict[float, list[Found]]) -> Any:
    picture, axes = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    for kind, color in KINDS.items():
        of_kind = [(e, f.negative) for e, f in zip(errors, mnist, strict=True) if f.kind == kind]
        if of_kind:
            face = color if kind == "critical" else "none"
            axes[0].scatter(
                *np.array(of_kind).T, s=40, facecolors=face, edgecolors=color, label=kind
            )
    axes[0].set(xlabel="training error", ylabel="index", title="MNIST, 10 x 10 pixels")
    axes[0].legend(frameon=False)
    order = np.argsort([f.loss for f in mnist])
    for place, color, name in ((order[-1], RED, "highest"), (order[0], BLUE, "lowest")):
        e = mnist[place].eigenvalues
        axes[1].plot(np.linspace(0, 1, len(e)), e, color=color, lw=2,
                     label=f"{name}: loss {mnist[place].loss:.3f}")  # fmt: skip
    axes[1].axhline(0, color=GREY, lw=0.8)
    axes[1].set_yscale("symlog", linthresh=1e-4)
    axes[1].set(xlabel="share of eigenvalues", title="Eigenvalues of the Hessian, sorted")
    axes[1].legend(frameon=False, loc="upper left")
    for (phi, found), color in zip(by_phi.items(), (GREEN, BLUE, ORANGE, RED) * 9, strict=False):
        for filled in (True, False):
            own = [(f.loss, f.negative) for f in found if (f.kind == "critical") == filled]
            if own:
                axes[2].scatter(*np.array(own, float).T, s=30, edgecolors=color,
                                facecolors=color if filled else "none")  # fmt: skip
        axes[2].axvline((1 - phi) ** 2 / 2, color=color, lw=1, ls=":")
        axes[2].plot([], [], "o", color=color, label=f"phi = {phi:g}")
        up = np.array([(f.loss, f.negative) for f in found if f.negative > 0], float)
        if len(up) > 4:
            power, least = exponent(*up.T)
            c = np.exp(np.mean(np.log(up[:, 1]) - power * np.log(up[:, 0] - least)))
            at = np.linspace(least, up[:, 0].max(), 100)
            axes[2].plot(at, c * (at - least) ** power, color=color, lw=1.2)
    axes[2].set(xlabel="loss", ylabel="index", title="Random data")
    axes[2].legend(frameon=False, loc="upper left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return picture
