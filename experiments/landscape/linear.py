"""Critical points that are known: a deep linear autoencoder.

After Baldi and Hornik, "Neural networks and principal component analysis" (1989), and Frye et
al., "Critical point-finding methods reveal gradient-flat regions of deep network losses" (2021),
who tested their finders of critical points on this network before they trusted them on others.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from experiments.common.console import console, table
from experiments.common.data import load
from experiments.common.figures import GREY, plt
from experiments.common.options import at_least
from experiments.common.run import write_csv
from experiments.landscape import page
from experiments.landscape.critical import (
    CRITICAL,
    KINDS,
    Found,
    descended,
    finder,
    shares,
    spread_over,
    threads,
)  # fmt: skip
from experiments.landscape.study import Study, progress

TITLE = "Critical points that are known"
LOSS = fnn.squared_error()
CLOSE = 1e-6  # a value found is one of the known values if it is as close as this


@dataclass(kw_only=True)
class Linear(Study):
    """The critical points of a deep linear autoencoder, found and compared with theory."""

    hidden: int = 4
    """hidden units; the inputs are 16 pixels"""
    networks: int = 20
    """networks whose training the searches start from"""
    starts: int = 15
    """searches from each of them"""
    steps: int = 1000
    """steps of a search, at most"""
    noise: float = 1.0
    """the largest standard deviation of what is added to the weights at a start"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 1, "hidden", "networks", "starts", "steps")
        if self.hidden > 16:
            raise ValueError(f"--hidden is {self.hidden}, needs at most 16, the number of inputs")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"--noise is {self.noise}, needs a number of at least 0")


def network(hidden: int, inputs: int) -> fnn.Block:
    """The input through a narrow layer and back: y = x A B."""
    code, out = (fnn.linear(width, use_bias=False) for width in (hidden, inputs))
    return fnn.serial(code=code, out=out)


def known(covariance: np.ndarray, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """The values and indices of all critical points of E = 1/2 mean |x A B - x|^2.

    At a critical point A B projects on a set S of at most k eigenvectors of the data's covariance
    (Baldi and Hornik, 1989), and E is half the sum of the other eigenvalues. The loss curves
    downwards by exchanging a vector in S for one of a larger eigenvalue, and wherever a unit that
    is not used could take on a vector outside S:

        index = #{i in S, j not in S: e_j > e_i} + (k - |S|) (n - |S|).
    """
    e = np.linalg.eigvalsh(covariance)
    n = len(e)
    values, indices = [], []
    for size in range(hidden + 1):
        for inside in itertools.combinations(range(n), size):
            outside = np.delete(e, inside)
            better = np.sum(outside[:, None] > e[list(inside)])
            values.append(outside.sum() / 2)
            indices.append(better + (hidden - size) * (n - size))
    order = np.argsort(values)
    return np.array(values)[order], np.array(indices)[order] / (2 * n * hidden)


def images(seed: int) -> np.ndarray:
    """The digits as 4 x 4 pixels, centred, of variance 1 on average."""
    x = load("digits", seed).train.x.astype(np.float64)
    x = x.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    x -= x.mean(0)
    return x / x.std()


def examples(covariance: np.ndarray) -> Any:
    """As many examples as inputs, with this covariance: the loss depends on nothing else."""
    e, vectors = np.linalg.eigh(covariance)
    return jnp.asarray(np.sqrt(len(e)) * (vectors * np.sqrt(np.maximum(e, 0))) @ vectors.T)


def linear(options: Linear) -> int:
    x = images(options.seed)
    covariance = x.T @ x / len(x)
    rng = np.random.default_rng(options.seed)
    with jax.enable_x64(True), threads(2 * options.hidden * 16), progress() as bar:
        x = examples(covariance)
        net = network(options.hidden, len(covariance))
        search = finder(
            lambda params: LOSS.forward({}, (net.forward(params, x)[0], x))[0],
            fnn.curvature.gradient_of(net, LOSS, x, x),
            options.steps,
        )
        task = bar.add_task("searches", total=options.networks * options.starts)

        @jax.jit
        def path(key: Any) -> Any:
            params = jax.tree.map(lambda w: 0.1 * w, net.init(key, x))
            return descended(lambda p: fnn.value_and_grad(net, LOSS)(p, x, x), params, 400, 0.05)

        found = []
        for key in jax.random.split(jax.random.key(options.seed), options.networks):
            for start in spread_over(path(key), options.starts, options.noise, rng):
                found.append(search(start))
                bar.advance(task)
    _report(options, found, *known(covariance, options.hidden))
    return 0


# ---- what is shown ---------------------------------------------------------------------------


def _report(options: Linear, found: list[Found], values: np.ndarray, indices: np.ndarray) -> None:
    nearest = [int(np.argmin(np.abs(values - f.loss))) for f in found]
    rows = [
        {
            **f.row(), "known_loss": values[i],
            "known_index": indices[i], "error": abs(values[i] - float(f.loss)),
        }
        for f, i in zip(found, nearest, strict=True)
    ]  # fmt: skip
    write_csv(options.out / "linear.csv", rows)
    write_csv(
        options.out / "linear_known.csv",
        [{"loss": v, "index": i} for v, i in zip(values, indices, strict=True)],
    )
    points = [row for row in rows if row["kind"] == "critical"]
    close = [row for row in points if row["error"] < CLOSE]
    agree = [row for row in close if round(abs(row["index"] - row["known_index"]), 9) == 0]
    worst = max((row["error"] for row in points), default=np.nan)
    chance = 2 * CLOSE * len(values) / (values.max() - values.min())
    cells = [
        ("searches", str(len(found)), ""),
        *shares(found),
        ("values found, different", str(len({round(r["loss"], 6) for r in points})),
         f"of {len(values)}"),
        ("value is a known one", f"{len(close)} of {len(points)}",
         f"within {CLOSE:g}; {chance:.2%} by chance"),
        ("index is the known one", f"{len(agree)} of {len(close)}", ""),
        ("largest error of a value", f"{worst:.1e}", ""),
        ("saddles among them", str(sum(r["index"] > 0 for r in points)), "the others are minima"),
    ]  # fmt: skip
    columns = ("", "found", "")
    table(TITLE, columns, cells)
    rejected = sum(f.kind != "critical" for f in found) / len(found)
    words = (
        f"{rejected:.1%} of the searches were rejected: they ended where the gradient is not 0, "
        f"{sum(f.flat for f in found) / len(found):.1%} in gradient-flat points."
    )
    console.print(words)
    page.write(
        options.out, "linear", TITLE,
        page.paragraph(
            f"An autoencoder of 16 pixels, {options.hidden} linear hidden units and 16 outputs is "
            "a linear function, and yet its loss is not convex. All its critical points are known "
            "(Baldi and Hornik, 1989): the network projects its input on at most "
            f"{options.hidden} principal components of the data, any of them. These are "
            f"{len(values)} values of the loss, of which the lowest alone is a minimum; all the "
            "others are saddles. The higher a saddle, the more of its directions lead down."
        ),
        page.paragraph(
            f"Can they be found from points along training? {len(found)} searches say so. Points "
            f"with a squared gradient norm above {CRITICAL:g} are rejected. {words}"
        ),
        page.figure(_drawn(found, values, indices), options.out / "linear.png",
            "Left: the share of directions that lead down (index) against the loss; grey: all "
            "critical points, from theory. Right: the squared norm of the gradient during each "
            "search. It may hardly fall for many steps, as if gradient-flat, until it suddenly "
            "does.",
        ),
        page.numbers(columns, cells),
        page.code(known, network, spread_over, finder),
    )  # fmt: skip
    console.print(f"saved in {options.out}: report.html, linear.png, linear.csv")


def _drawn(found: list[Found], values: np.ndarray, indices: np.ndarray) -> Any:
    picture, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    axes[0].scatter(values, indices, s=5, color=GREY, alpha=0.5, lw=0, label="known")
    for kind, color in KINDS.items():
        of_kind = [f for f in found if f.kind == kind]
        if of_kind:
            axes[0].scatter(
                [f.loss for f in of_kind], [f.negative for f in of_kind], s=36, facecolors="none",
                edgecolors=color, lw=1.3, label=f"found: {kind}",
            )  # fmt: skip
        for f in of_kind:
            axes[1].plot(f.norms[: f.steps + 1], color=color, lw=0.8, alpha=0.6)
    axes[0].set(xlabel="loss", ylabel="index", title="Critical points")
    axes[0].legend(frameon=False, loc="upper left")
    axes[1].axhline(CRITICAL, color="black", lw=1, ls=":")
    axes[1].annotate("critical below", (1, CRITICAL), va="top", xytext=(0, -3),
                     textcoords="offset points", fontsize=9)  # fmt: skip
    axes[1].set(xscale="symlog", yscale="log", ylim=(1e-26, None), xlabel="step",
                title="Squared norm of the gradient")  # fmt: skip
    axes[1].set_xticks([0, 1, 10, 100, 1000], [0, 1, 10, 100, 1000])
    axes[1].set_xlim(0, None)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return picture
