"""Saddle points of networks that learn: the higher the loss, the more directions lead down.

After Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional
non-convex optimization" (2014), on MNIST at 10 x 10 pixels; and Pennington and Bahri, "Geometry of
neural network loss surfaces via random matrix theory" (2017), on random data: they predict that
the share of negative eigenvalues grows as (E - E_c)^(3/2), and that minima have the energy
(1 - phi)^2 / 2, where phi is parameters over numbers in the data.

On MNIST the loss is the squared error, and beside it cross-entropy, which has no minimum here: it
falls to 0 as the weights grow, and so does its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    FLAT,
    KINDS,
    Found,
    descended,
    finder,
    found_from,
    minimum,
    shares,
    small_enough,
    spread_over,
    threads,
)  # fmt: skip
from experiments.landscape.study import Study, interval, progress

TITLE = "Saddle points of networks that learn"
MNIST = "MNIST, squared error"
CROSS_ENTROPY = "MNIST, cross-entropy"
NOISE = 0.1  # the largest standard deviation of what is added to the weights at a start
ENOUGH = 1e-12  # the squared norm of the gradient at which a search ends
UNITS = 16  # inputs, hidden units and outputs of the networks on random data


@dataclass(kw_only=True)
class Saddles(Study):
    """Critical points of small tanh networks: how many directions lead down, by loss."""

    data_dir: Path | None = None
    """folder with the MNIST files, if they are somewhere unusual"""
    hidden: int = 5
    """hidden units of the network on MNIST"""
    examples: int = 200
    """images of MNIST"""
    starts: int = 10
    """searches from along training, on MNIST with each of two losses and for each phi"""
    minima: int = 5
    """searches from where saddle-free Newton ends, from as many initial weights"""
    phi: tuple[float, ...] = (0.25, 0.5, 0.75)
    """parameters over numbers in the random data"""
    steps: int = 1000
    """steps of a search, at most"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 1, "hidden", "steps")
        at_least(self, 10, "examples")
        at_least(self, 4, "starts")
        at_least(self, 0, "minima")
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


def slope(groups: Sequence[np.ndarray]) -> float:
    """p of negative = c (E - E_c)^p with the same p for all groups and a c for each; the columns
    of a group are E - E_c and negative."""
    logs = [np.log(group) for group in groups if len(group)]
    x, y = np.concatenate([own - own.mean(0) for own in logs]).T
    return float(x @ y / (x @ x))


class Problem(NamedTuple):
    """A network and its data.

    rate: of gradient descent.
    scale: what the loss is divided by.
    labels: the classes, of which some are recognised; None for regression.
    """

    net: fnn.Block
    loss: fnn.Block
    data: Split
    rate: float
    scale: float = 1.0
    labels: Any = None

    def run(self, params: Any) -> tuple[Any, Any]:
        """The loss and its gradient."""
        value = fnn.value_and_grad(self.net, self.loss)(params, *self.data)
        return jax.tree.map(lambda v: v / self.scale, value)

    def value(self, params: Any) -> Any:
        return self.run(params)[0]

    def gradient(self, params: Any) -> Any:
        return self.run(params)[1]

    def error(self, params: Any) -> float:
        """The share of wrong answers; NaN for regression."""
        if self.labels is None:
            return float("nan")
        answers = self.net.forward(params, self.data.x)[0].argmax(1)
        return float((answers != self.labels).mean())


def problems(options: Saddles) -> dict[str, Problem]:
    """What is searched, by name."""
    x, labels = digits(options.seed, options.data_dir, options.examples)
    net = fnn.models.mlp((options.hidden, 10), fnn.tanh())
    squared, cross_entropy = fnn.squared_error(), fnn.softmax_cross_entropy()
    rng = np.random.default_rng(options.seed)
    return {
        MNIST: Problem(net, squared, Split(x, np.eye(10)[labels]), 0.1, labels=labels),
        CROSS_ENTROPY: Problem(net, cross_entropy, Split(x, labels), 0.3, labels=labels),
        **{
            f"phi = {phi:g}": Problem(random_network(), squared, random_data(phi, rng), 2.0, UNITS)
            for phi in options.phi
        },
    }


def searched(problem: Problem, options: Saddles, tick: Callable[[], None]) -> list[Found]:
    """The points found from along the training of one network, and from near minima."""
    keys = jax.random.split(jax.random.key(options.seed), options.minima + 1)
    first, *others = (problem.net.init(key, jnp.asarray(problem.data.x)) for key in keys)
    path = jax.jit(partial(descended, problem.run, steps=4000, rate=problem.rate))(first)
    starts = spread_over(path, options.starts, NOISE, np.random.default_rng(options.seed))
    descend = minimum(problem.value, problem.gradient, 300)
    search = finder(problem.value, problem.gradient, options.steps, ENOUGH)
    return [
        *found_from(starts, search, tick),
        *found_from(others, lambda start: search(descend(start)), tick),
    ]


def saddles(options: Saddles) -> int:
    with jax.enable_x64(True), threads(111 * options.hidden + 10), progress() as bar:
        every = problems(options)
        task = bar.add_task("", total=len(every) * (options.starts + options.minima))
        by_name = {}
        for name, problem in every.items():
            bar.update(task, description=name)
            by_name[name] = searched(problem, options, partial(bar.advance, task))
        errors = {
            name: [every[name].error(f.params) for f in found] for name, found in by_name.items()
        }
    _report(options, by_name, errors)
    return 0


# ---- what is shown ---------------------------------------------------------------------------


def correlation(pairs: np.ndarray) -> Any:
    """Of two columns, over the last axis but one."""
    a, b = np.moveaxis(pairs - pairs.mean(-2, keepdims=True), -1, 0)
    size = np.sqrt(np.sum(a * a, -1) * np.sum(b * b, -1))
    return np.sum(a * b, -1) / np.where(size > 0, size, np.nan)


def _correlation(pairs: np.ndarray, seed: int) -> str:
    """Of the index with the error or the loss, and its 95 % interval."""
    if len(pairs) < 4:
        return f"only {len(pairs)} points"
    rng = np.random.default_rng(seed)
    drawn = correlation(pairs[rng.integers(0, len(pairs), (2000, len(pairs)))])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{float(correlation(pairs)):.2f} ({low:.2f} to {high:.2f})"


def _exponent(pairs: np.ndarray, seed: int) -> str:
    """The exponent of the law over those of the points that are no minima."""
    up = pairs[pairs[:, 1] > 0]
    if len(up) < 5:
        return f"only {len(up)} points"
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(200):
        rows = rng.integers(0, len(up), len(up))
        if len(set(rows)) > 3:
            drawn.append(exponent(*up[rows].T)[0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{exponent(*up.T)[0]:.2f} ({low:.2f} to {high:.2f})"


def _pooled(groups: Sequence[np.ndarray], seed: int) -> str:
    """The exponent over all phi; E_c is the mean loss of a phi's minima."""
    above = []
    for pairs in groups:
        energy = pairs[:, 0] - pairs[pairs[:, 1] == 0, 0].mean()
        above.append(np.stack([energy, pairs[:, 1]], 1)[(pairs[:, 1] > 0) & (energy > 0)])
    count = sum(map(len, above))
    if count < 5:
        return f"only {count} points"
    rng = np.random.default_rng(seed)
    which = np.repeat(np.arange(len(above)), [len(group) for group in above])
    rows, drawn = np.concatenate(above), []
    for _ in range(2000):
        drawn_rows = rng.integers(0, count, count)
        if len(set(drawn_rows)) > len(above) + 1:
            own = rows[drawn_rows], which[drawn_rows]
            drawn.append(slope([own[0][own[1] == i] for i in range(len(above))]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{slope(above):.2f} ({low:.2f} to {high:.2f}), {count} points"


def _minima(pairs: np.ndarray, seed: int) -> str:
    """The mean loss of minima and its 95 % interval."""
    losses = pairs[pairs[:, 1] == 0, 0]
    if len(losses) < 2:
        return f"only {len(losses)} points"
    low, high = interval(losses, lambda drawn: drawn.mean(-1), seed)
    return f"{losses.mean():.4f} ({low:.4f} to {high:.4f})"


def _laws(
    by_name: dict[str, list[Found]], errors: dict[str, list[float]], seed: int
) -> list[tuple[str, ...]]:
    """Rows for a table: what the index depends on, and the loss of minima, beside theory."""
    rows: list[tuple[str, ...]] = []
    for name, found in by_name.items():
        random = name not in (MNIST, CROSS_ENTROPY)
        energy = np.array([(f.loss, f.negative) for f in found], float)
        error = energy if random else np.array([errors[name], energy[:, 1]]).T
        critical = np.array([f.critical for f in found])
        for which, own in (("critical", critical), ("all", np.full(len(found), True))):
            rows.append(
                (
                    name, which, _correlation(error[own], seed), _minima(energy[own], seed),
                    f"{(1 - float(name.split()[-1])) ** 2 / 2:.4f}" if random else "",
                    _exponent(energy[own], seed) if random else "",
                )
            )  # fmt: skip
    every_phi = [found for name, found in by_name.items() if name not in (MNIST, CROSS_ENTROPY)]
    for which, wanted in (("critical", True), ("all", False)):
        groups = [
            np.array([(f.loss, f.negative) for f in found if f.critical or not wanted], float)
            for found in every_phi
        ]
        groups = [pairs for pairs in groups if len(pairs) and (pairs[:, 1] == 0).any()]
        rows.append(("every phi", which, "", "", "", _pooled(groups, seed)))
    return rows


def _zeros(found: Sequence[Found]) -> str:
    shares = [f.zero for f in found]
    return f"{min(shares):.0%} to {max(shares):.0%}"


def _report(
    options: Saddles, by_name: dict[str, list[Found]], errors: dict[str, list[float]]
) -> None:
    write_csv(
        options.out / "saddles.csv",
        [
            {"network": name, "error": error, **f.row()}
            for name, found in by_name.items()
            for f, error in zip(found, errors[name], strict=True)
        ],
    )
    kinds = [
        (name, *(f"{n} ({share})" for _, n, share in shares(found)))
        for name, found in by_name.items()
    ]
    columns = ("searches", *KINDS)
    table(TITLE, columns, kinds)
    laws = _laws(by_name, errors, options.seed)
    law_columns = (
        "", "points", "correlation", "loss of minima", "theory", "exponent (theory: 3/2)",
    )  # fmt: skip
    table("The index by error (MNIST) or loss (random data)", law_columns, laws)
    everything = [f for found in by_name.values() for f in found]
    flat = np.mean([f.kind == "gradient-flat" for f in everything])
    short = np.mean([f.kind == "not converged" for f in everything])
    words = (
        f"{flat:.0%} of the searches ended in gradient-flat points and {short:.0%} had not "
        f"converged after {options.steps} steps: they are no critical points. The cut-off decides: "
        f"of {sum(f.critical for f in everything)} critical points "
        f"{sum(f.critical and f.surely for f in everything)} remain where |H g| must be above "
        f"{10 * FLAT:g} |H| |g| instead of {FLAT:g}."
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
            "minima have the energy (1 - phi)^2 / 2 (Pennington and Bahri, 2017). On random data "
            "the correlation is that of the index with the loss."
        ),
        page.paragraph(
            words + " Frye et al. (2021) doubt what was said of deep networks after less strict "
            "searches; so the table has both: critical points alone, and all."
        ),
        page.paragraph(
            "A short gradient is no proof of a critical point. With cross-entropy the points of "
            "the lowest loss are on the way to infinite weights, where the loss is 0: their "
            "gradient is below any cut-off sooner or later. And on MNIST the searches often "
            f"creep below the cut-off after hundreds of steps; {_zeros(by_name[MNIST])} of the "
            "Hessian's eigenvalues are 0 at these points: saturated units, and pixels that are "
            "always black, leave the loss as it is."
        ),
        page.figure(_drawn(by_name, errors), options.out / "saddles.png",
            "Left: the share of directions that lead down (index) against the error on MNIST. "
            "Middle: the Hessian's eigenvalues at the highest and at the lowest of these points. "
            "Right: the index against the loss on random data, with the law where five saddles or "
            "more can be fitted (dotted: the energy of minima from theory). Filled: critical; "
            "open: not, and left out of the fit.",
        ),
        page.numbers(columns, kinds),
        page.numbers(law_columns, laws),
        page.code(pixels, searched, exponent, finder, minimum),
    )  # fmt: skip
    console.print(f"saved in {options.out}: report.html, saddles.png, saddles.csv")


def _drawn(by_name: dict[str, list[Found]], errors: dict[str, list[float]]) -> Any:
    picture, axes = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    _by_error(axes[0], by_name[MNIST], errors[MNIST])
    _spectra(axes[1], [f for f in by_name[MNIST] if f.critical] or by_name[MNIST])
    random = {name: own for name, own in by_name.items() if name not in (MNIST, CROSS_ENTROPY)}
    for (name, found), color in zip(random.items(), (GREEN, BLUE, ORANGE, RED) * 9, strict=False):
        _law(axes[2], name, found, color)
    axes[2].set(xlabel="loss", ylabel="index", title="Random data")
    axes[2].legend(frameon=False, loc="upper left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return picture


def _by_error(axis: Any, found: list[Found], errors: list[float]) -> None:
    for kind, color in KINDS.items():
        of_kind = [(e, f.negative) for e, f in zip(errors, found, strict=True) if f.kind == kind]
        if of_kind:
            face = color if kind == "critical" else "none"
            axis.scatter(*np.array(of_kind).T, s=40, facecolors=face, edgecolors=color, label=kind)
    axis.set(xlabel="training error", ylabel="index", title=MNIST)
    axis.legend(frameon=False)


def _spectra(axis: Any, found: list[Found]) -> None:
    ordered = sorted(found, key=lambda f: f.loss)
    for f, color, name in ((ordered[-1], RED, "highest"), (ordered[0], BLUE, "lowest")):
        at = np.linspace(0, 1, len(f.eigenvalues))
        axis.plot(at, f.eigenvalues, color=color, lw=2, label=f"{name}: loss {f.loss:.3f}")
    axis.axhline(0, color=GREY, lw=0.8)
    axis.set_yscale("symlog", linthresh=1e-4)
    axis.set(xlabel="share of eigenvalues", title="Eigenvalues of the Hessian, sorted")
    axis.legend(frameon=False, loc="upper left")


def _law(axis: Any, name: str, found: list[Found], color: str) -> None:
    for filled in (True, False):
        own = [(f.loss, f.negative) for f in found if f.critical == filled]
        if own:
            axis.scatter(*np.array(own, float).T, s=30, edgecolors=color,
                         facecolors=color if filled else "none")  # fmt: skip
    axis.axvline((1 - float(name.split()[-1])) ** 2 / 2, color=color, lw=1, ls=":")
    axis.plot([], [], "o", color=color, label=name)
    up = np.array([(f.loss, f.negative) for f in found if f.critical and f.negative > 0], float)
    if len(up) > 4:
        power, least = exponent(*up.T)
        c = np.exp(np.mean(np.log(up[:, 1]) - power * np.log(up[:, 0] - least)))
        at = np.linspace(least, up[:, 0].max(), 100)
        axis.plot(at, c * (at - least) ** power, color=color, lw=1.2)
