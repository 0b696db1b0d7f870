# ruff: noqa: RUF001 - a product is written ×, as on the board
"""The chain rule on a 1-hidden-layer binary network, factor by factor, as on paper.

    h = logistic(x W1),   z = h w2,   yhat = logistic(z),   E = cross-entropy(yhat, t)

The lecture's network without biases, on a few examples of real data. It computes five local
derivatives one by one, multiplies them to dE/dw2 and dE/dW1, and compares those with ``jax.grad``
and with fnn's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

import fnn
from experiments.common import figures
from experiments.common.console import console, copied, table
from experiments.common.data import load
from experiments.common.html import html_table, printed
from experiments.common.options import seeded, writable
from experiments.common.report import PAGE, Report

FEATURES = ("mean radius", "mean texture", "mean smoothness")
EXAMPLES, UNITS = 6, 4
TOLERANCE = 1e-12
REUSED = "#FFE9B8"
RED = "#C62828"  # the lecture's


@dataclass
class Options:
    seed: int = 0
    """seeds the split, the examples and the weights"""
    out: Path = Path("results/backprop_by_hand")
    """folder for the figure"""


class ByHand(NamedTuple):
    """All quantities on the paper: n = 6 examples, i = 3 features, j = 4 hidden units."""

    h: jax.Array  # (n, j)
    z: jax.Array  # (n,)
    yhat: jax.Array  # (n,)
    E: jax.Array  # ()
    dE_dyhat: jax.Array  # (n,)
    dyhat_dz: jax.Array  # (n,)
    dz_dw2: jax.Array  # (n, j)
    dz_dh: jax.Array  # (j,)
    dh_dW1: jax.Array  # (n, i, j): unit j by its weight from feature i
    dE_dz: jax.Array  # (n,)
    dE_dh: jax.Array  # (n, j)
    dE_dw2: jax.Array  # (j,)
    dE_dW1: jax.Array  # (i, j)


def by_hand(W1: jax.Array, w2: jax.Array, x: jax.Array, t: jax.Array) -> ByHand:
    """Forward and backward in plain arithmetic, one line for every factor."""
    n = len(t)

    # Forward, from x to E.
    h = 1 / (1 + jnp.exp(-(x @ W1)))
    z = h @ w2
    yhat = 1 / (1 + jnp.exp(-z))
    E = -jnp.mean(t * jnp.log(yhat) + (1 - t) * jnp.log(1 - yhat))

    # The five local derivatives, one for each arrow of the network, at the values just computed.
    dE_dyhat = ((1 - t) / (1 - yhat) - t / yhat) / n
    dyhat_dz = yhat * (1 - yhat)
    dz_dw2 = h
    dz_dh = w2
    dh_dW1 = x[:, :, None] * (h * (1 - h))[:, None, :]

    # The chain rule: upstream times local, summed over the examples because they share weights.
    dE_dz = dE_dyhat * dyhat_dz  # computed once, used twice
    dE_dw2 = dE_dz @ dz_dw2
    dE_dh = dE_dz[:, None] * dz_dh
    dE_dW1 = jnp.sum(dE_dh[:, None, :] * dh_dW1, axis=0)

    return ByHand(
        h, z, yhat, E, dE_dyhat, dyhat_dz, dz_dw2, dz_dh, dh_dW1, dE_dz, dE_dh, dE_dw2, dE_dW1
    )


def energy(W1: jax.Array, w2: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """E in JAX's own functions, for ``jax.grad``."""
    yhat = jax.nn.sigmoid(jax.nn.sigmoid(x @ W1) @ w2)
    return -jnp.mean(t * jnp.log(yhat) + (1 - t) * jnp.log1p(-yhat))


def by_blocks(
    W1: jax.Array, w2: jax.Array, x: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(E, dE/dw2, dE/dW1) by fnn: the same network in blocks."""
    net = fnn.serial(
        hidden=fnn.layer(UNITS, fnn.logistic(), use_bias=False),
        out=fnn.neuron(fnn.logistic(), use_bias=False),
    )
    loss = fnn.binary_cross_entropy(from_logits=False)  # of probabilities, as in the lecture
    params = {"hidden": {"linear": {"w": W1}}, "out": {"linear": {"w": w2}}}
    E, grads = fnn.value_and_grad(net, loss)(params, x, t)
    return E, grads["out"]["linear"]["w"], grads["hidden"]["linear"]["w"]


def main(options: Options) -> int:
    seeded(options)
    writable(options.out)
    x, t = _batch(options.seed)
    rng = np.random.default_rng(options.seed)
    with jax.enable_x64(True):
        W1 = rng.normal(size=(len(FEATURES), UNITS)) / np.sqrt(len(FEATURES))
        w2 = rng.normal(size=UNITS)
        arguments = tuple(jnp.asarray(a, jnp.float64) for a in (W1, w2, x, t))
        hand = by_hand(*arguments)
        auto = (energy(*arguments), *jax.grad(energy, argnums=(1, 0))(*arguments))
        blocks = by_blocks(*arguments)
    page = Report(options)
    path = options.out / "backprop.png"
    page.picture(
        "The network in blocks", drawn(arguments, hand), path,
        "Values go right, in green; gradients return, in red. Shaded: what is computed once and "
        "used for both weights.",
    )  # fmt: skip
    with copied() as lines:
        _print_forward(arguments, hand)
        _print_factors(hand)
    page.add("Factor by factor", printed(lines[0]))
    worst = _print_comparison(hand, auto, blocks, page)
    equal = worst <= TOLERANCE
    console.print(
        f"\n[bold]largest relative difference[/bold]: {worst:.1e}, "
        f"{'within' if equal else 'NOT within'} {TOLERANCE:g}"
    )
    page.facts = {"largest relative difference": f"{worst:.1e}"}
    page.write(options.out)
    console.print(f"saved {path}\n[bold]open {path.parent / PAGE}[/bold]")
    return 0 if equal else 1


def _batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A few training examples of breast cancer, half from each class."""
    data = load("breast_cancer", seed)
    x, target = data.train
    rows = np.r_[tuple(np.flatnonzero(target == label)[: EXAMPLES // 2] for label in (0, 1))]
    return x[rows][:, data.columns(FEATURES)], target[rows]


# ---- text ------------------------------------------------------------------------------------


def _print_forward(arguments: Any, hand: ByHand) -> None:
    W1, w2, x, t = arguments
    console.print(
        f"[bold]A 1-hidden-layer binary network[/bold] on {EXAMPLES} examples (n) of breast "
        f"cancer,\n{len(FEATURES)} features (i): {', '.join(FEATURES)}; {UNITS} hidden units (j). "
        "float64, no biases.\n"
    )
    _matrix("W1, weights of the hidden layer (i, j)", W1)
    _matrix("w2, weights of the output (j)", w2)
    console.print("\n[bold green]Forward[/bold green]: from x to E.")
    _matrix("x, the examples (n, i)", x)
    _matrix("h = logistic(x W1) (n, j)", hand.h)
    _matrix("z = h w2 (n)", hand.z)
    _matrix("yhat = logistic(z) (n)", hand.yhat)
    _matrix("t, 1 is benign (n)", t)
    console.print(f"  E = -mean(t ln yhat + (1-t) ln(1-yhat)) = [bold]{float(hand.E):.6f}[/bold]")


def _print_factors(hand: ByHand) -> None:
    console.print(
        "\n[bold red]Backward, 1[/bold red]: the five local derivatives, from the values of the "
        "forward pass."
    )
    rows = [
        ("dE/dyhat", "((1-t)/(1-yhat) - t/yhat) / n", hand.dE_dyhat, "dw2 and dW1"),
        ("dyhat/dz", "yhat (1 - yhat)", hand.dyhat_dz, "dw2 and dW1"),
        ("dz/dw2", "h", hand.dz_dw2, "dw2"),
        ("dz/dh", "w2", hand.dz_dh, "dW1"),
        ("dh/dW1", "x_i h_j (1 - h_j)", hand.dh_dW1, "dW1"),
    ]
    cells = [(name, formula, values.shape, use) for name, formula, values, use in rows]
    table("", ("factor", "formula", "shape", "used in"), cells)
    for name, _, values, _ in rows[:4]:
        _matrix(f"{name} {values.shape}", values)
    _matrix(f"dh/dW1 {hand.dh_dW1.shape}, of the first example (i, j)", hand.dh_dW1[0])

    console.print("\n[bold red]Backward, 2[/bold red]: their products; n is summed over.")
    console.print("  dE/dw2 = [yellow]dE/dyhat × dyhat/dz[/yellow] × dz/dw2")
    console.print("  dE/dW1 = [yellow]dE/dyhat × dyhat/dz[/yellow] × dz/dh × dh/dW1")
    console.print(
        "  [yellow]Reused[/yellow]: the product of the first two, dE/dz, is computed once and "
        "used twice.\n  Forward's h and yhat are reused too: no derivative needs another exp."
    )
    _matrix("dE/dz (n), which is (yhat - t) / n", hand.dE_dz, "yellow")
    _matrix("dE/dh = dE/dz × dz/dh (n, j)", hand.dE_dh)


def _print_comparison(
    hand: ByHand, auto: tuple[jax.Array, ...], blocks: tuple[jax.Array, ...], page: Report
) -> float:
    """Prints every entry of E, dE/dw2, dE/dW1 three ways; returns the largest difference."""
    names, own = ("E", "dE/dw2", "dE/dW1"), (hand.E, hand.dE_dw2, hand.dE_dW1)
    rows, worst = [], 0.0
    for name, *values in zip(names, own, auto, blocks, strict=True):
        for index in np.ndindex(*values[0].shape):
            hand_, auto_, fnn_ = (float(value[index]) for value in values)
            # Relative to each entry, so that no large neighbour hides a small one.
            error = max(abs(hand_ - auto_), abs(fnn_ - auto_)) / (abs(auto_) or 1.0)
            worst = max(worst, error)
            place = f"[{','.join(map(str, index))}]" if index else ""
            cells = (f"{v:+.9f}" for v in (hand_, auto_, fnn_))
            rows.append((f"{name}{place}", *cells, f"{error:.1e}"))
    console.print()
    title = "The same numbers computed three ways, with the larger relative difference"
    columns = ("", "by hand", "jax.grad", "fnn's blocks", "difference")
    table(title, columns, [(name.replace("[", r"\["), *cells) for name, *cells in rows])
    page.add(title, html_table(columns, rows))
    return worst


def _matrix(title: str, values: Any, style: str | None = None) -> None:
    """Prints a vector on the line of its title, a matrix below it."""
    values = np.asarray(values)
    console.print(f"  {title}:", markup=False, style=style, end="\n" if values.ndim > 1 else "  ")
    for row in np.atleast_2d(values):
        text = "".join(f"{v + 0.0:9.4f}" for v in row)
        console.print(f"    {text}" if values.ndim > 1 else text.strip(), markup=False, style=style)


# ---- picture ---------------------------------------------------------------------------------


def drawn(arguments: Any, hand: ByHand) -> Figure:
    """The block view: values go right in green, gradients return in red."""
    figure, axis = plt.subplots(figsize=(13.5, 5.4))
    axis.set(xlim=(-0.2, 13.4), ylim=(-1.95, 3.55))
    axis.axis("off")

    def write(x: float, y: float, text: str, va: str, size: int, color: str = "black") -> Text:
        return axis.text(x, y, text, ha="center", va=va, fontsize=size, color=color)

    def arrow(start: tuple[float, float], end: tuple[float, float], color: str) -> None:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 2, "color": color})

    boxes = (
        (1.2, "$h = \\sigma(x\\,W_1)$", r"$\frac{\partial h}{\partial W_1}$", False),
        (4.4, "$z = h\\,w_2$",
         r"$\frac{\partial z}{\partial h}$  $\frac{\partial z}{\partial w_2}$", False),
        (7.6, r"$\hat y = \sigma(z)$", r"$\frac{\partial \hat y}{\partial z}$", True),
        (10.8, r"$E(\hat y, t)$", r"$\frac{\partial E}{\partial \hat y}$", True),
    )  # fmt: skip
    for x, formula, local, reused in boxes:
        axis.add_patch(
            FancyBboxPatch(
                (x, 0), 1.7, 1.8, boxstyle="round,pad=0.04", lw=1.6, edgecolor="black",
                facecolor=REUSED if reused else "#EEF3F8",
            )
        )  # fmt: skip
        write(x + 0.85, 1.35, formula, "center", 16)
        write(x + 0.85, 0.52, local, "center", 21)
    n = 0  # the example drawn
    wires = (
        (0.05, 1.12, "$x$", _few(arguments[2][n]), "", ""),
        (3.0, 4.3, "$h$", _few(hand.h[n]), r"$\frac{\partial E}{\partial h}$", _few(hand.dE_dh[n])),
        (6.2, 7.5, "$z$", _few(hand.z[n]), r"$\frac{\partial E}{\partial z}$", _few(hand.dE_dz[n])),
        (9.4, 10.7, r"$\hat y$", _few(hand.yhat[n]), r"$\frac{\partial E}{\partial \hat y}$",
         _few(hand.dE_dyhat[n])),
        (12.6, 13.2, "$E$", f"{float(hand.E):.3f}", "$1$", ""),
    )  # fmt: skip
    for start, end, name, value, gradient, number in wires:
        middle = (start + end) / 2
        arrow((start, 1.35), (end, 1.35), figures.GREEN)
        write(middle, 1.45, name, "bottom", 17, figures.GREEN)
        write(middle, 1.85, value, "bottom", 10, figures.GREEN)
        if gradient:
            arrow((end, 0.55), (start, 0.55), RED)
            label = write(middle, 0.42, gradient, "top", 19, RED)
            if name == "$z$":
                label.set_bbox({"facecolor": REUSED, "edgecolor": "none", "pad": 2})
            write(middle, -0.28, number, "top", 10, RED)
    for x, name, product in (
        (2.05, "W_1", r"\frac{\partial E}{\partial z}\,\frac{\partial z}{\partial h}\,"
         r"\frac{\partial h}{\partial W_1}"),
        (5.25, "w_2", r"\frac{\partial E}{\partial z}\,\frac{\partial z}{\partial w_2}"),
    ):  # fmt: skip
        arrow((x - 0.2, 2.6), (x - 0.2, 1.9), figures.GREEN)
        write(x - 0.2, 2.65, f"${name}$", "bottom", 17, figures.GREEN)
        arrow((x, -0.06), (x, -1.05), RED)
        write(x, -1.1, rf"$\frac{{\partial E}}{{\partial {name}}} = {product}$", "top", 19, RED)
    note = write(9.35, -1.1, "reused: computed once, used for both weights", "top", 13)
    note.set_bbox({"facecolor": REUSED, "edgecolor": "none", "pad": 4})
    write(6.6, 3.5, "Values forward, gradients back: each is upstream times local", "top", 15)
    numbers = f"numbers: example 1 of {EXAMPLES}; E is the mean over all"
    write(9.35, 2.65, numbers, "bottom", 10, figures.GREY)
    return figure


def _few(values: Any) -> str:
    """Numbers in at most two columns, to fit above an arrow."""
    cells = [f"{v + 0.0:.3f}" for v in np.ravel(values)]
    return "\n".join("  ".join(cells[i : i + 2]) for i in range(0, len(cells), 2))
