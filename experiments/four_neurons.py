"""A 1-layer network with 4 neurons reads the four bits of a digit; then a hidden layer helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import fnn
from experiments.common import figures
from experiments.common.console import console
from experiments.common.data import Split, load
from experiments.common.options import Training
from experiments.common.report import Report
from experiments.common.run import conclude, predict, train

BITS = (8, 4, 2, 1)  # most significant first: 6 = 4 + 2 is 0110
COLUMNS = (*(f"bit {bit}" for bit in BITS), "all four")


@dataclass
class Options(Training):
    hidden: int = 64
    """units in the hidden layer of the second network"""
    epochs: int = 40
    out: Path = Path("results/four_neurons")


def bits(label: np.ndarray) -> np.ndarray:
    """The binary digits of a label: int (n,) -> 0.0 or 1.0, (n, 4).

    >>> bits(np.array([6, 9])).tolist()
    [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
    """
    return ((label[:, None] & np.array(BITS)) > 0).astype(np.float32)


def all_right(logits: np.ndarray, target: np.ndarray) -> float:
    """The fraction of examples with all four bits right."""
    return float(np.mean(np.all((logits > 0) == (target > 0.5), axis=-1)))


def main(options: Options) -> int:
    options.prepare()
    data = load("digits", options.seed)
    sets = {name: Split(s.x, bits(s.target)) for name, s in data.splits.items()}
    console.print(
        "[bold]Four neurons, four bits[/bold]: from the image of a digit to its value in "
        "binary. Every neuron answers a yes-or-no question of its own, by binary cross-entropy:"
    )
    for i, bit in enumerate(BITS):
        ones = [k for k in range(10) if k & bit]
        console.print(f"  neuron {i + 1}, bit {bit}: is the digit one of {ones}?")
    networks = {
        "one layer": fnn.linear(len(BITS)),
        "hidden layer": fnn.models.mlp((options.hidden, len(BITS)), fnn.relu()),
    }
    page = Report(options)
    accuracy: dict[str, np.ndarray] = {}  # by COLUMNS, on the test images
    in_training, fits = [], []
    for name, net in networks.items():
        console.print(f"\n[bold]{name}[/bold]")
        fitted = train(
            options, net, fnn.binary_cross_entropy(), sets["train"], sets["validation"],
            {"bits": fnn.accuracy, "all_four": all_right}, name=name.replace(" ", "_"),
            page=page,
        )  # fmt: skip
        fits.append(fitted)
        train_logits, logits = (
            predict(net, fitted.params, sets[part].x, options.jax_dtype)
            for part in ("train", "test")
        )
        in_training.append(all_right(train_logits, sets["train"].target))
        target = sets["test"].target
        by_bit = np.mean((logits > 0) == (target > 0.5), axis=0)
        accuracy[name] = np.append(by_bit, all_right(logits, target))
    console.print()
    page.table(
        "Accuracy on the test images",
        ("network", *COLUMNS),
        [(name, *(f"{a:.3f}" for a in row)) for name, row in accuracy.items()],
    )
    first, second = in_training
    console.print(
        "\nWhy one layer is not enough: a neuron asks whether w·x + b > 0, on which side of a "
        "plane x lies.\nBit 1 separates odd from even, but 1, 3, 5, 7, 9 look no more like each "
        "other than like 0, 2, 4, 6, 8:\nthe pixels of a 3 are pixels of an 8 too, and no plane "
        "has all odd digits on one side. More training\ndoes not help: one layer gets "
        f"{first:.1%} of its own training images right, a hidden layer {second:.1%}.\n"
        "Hidden units detect strokes, and the bits are nearly weighted sums of strokes."
    )
    w = np.asarray(fits[0].params["w"])
    page.picture(
        "What the neurons see", _neurons_drawn(w, accuracy["one layer"][:-1]),
        options.out / "neurons.png",
        "The weights of the four neurons: ink on red pixels is evidence for 1, on blue ones for 0.",
    )  # fmt: skip
    page.picture(
        "Four neurons, four bits", _accuracy_drawn(accuracy), options.out / "accuracy.png",
        "Accuracy on the test images, in percent, for each bit and for all four together.",
    )  # fmt: skip
    results = {
        f"test accuracy, all four bits, {n}": float(row[-1])
        for n, row in reversed(accuracy.items())
    }
    failed = next((f for f in fits if not f.success), fits[-1])
    return conclude(options.out, results, failed, page)


def _neurons_drawn(w: np.ndarray, accuracy: np.ndarray) -> Figure:
    """The weights of each neuron of the single layer. w: (64, 4)."""
    figure, axes = plt.subplots(1, len(BITS), figsize=(11, 3.4))
    for axis, bit, column, right in zip(axes, BITS, w.T, accuracy, strict=True):
        figures.image(axis, column.reshape(8, 8))
        ones = " ".join(str(k) for k in range(10) if k & bit)
        zeros = " ".join(str(k) for k in range(10) if not k & bit)
        title = f"bit {bit}: {right:.1%} right\nyes: {ones}\nno: {zeros}"
        axis.set_title(title, fontsize=10)
    figure.suptitle(
        "The weights of the four neurons (red: ink there is evidence for 1, blue: for 0)", y=1.06
    )
    return figure


def _accuracy_drawn(accuracy: Mapping[str, np.ndarray]) -> Figure:
    figure, axis = plt.subplots(figsize=(7.5, 3.8))
    places = np.arange(len(COLUMNS))
    colors = figures.ORANGE, figures.BLUE
    for i, ((name, heights), color) in enumerate(zip(accuracy.items(), colors, strict=True)):
        bars = axis.bar(places + 0.4 * (i - 0.5), heights, 0.38, color=color, label=name)
        axis.bar_label(bars, [f"{100 * h:.1f}" for h in heights], fontsize=8, padding=1)
    axis.set_xticks(places, COLUMNS)
    # Bars are compared by length, so they start at 0.
    axis.set(ylim=(0, 1.22), ylabel="accuracy on the test images", title="Four neurons, four bits")
    axis.set_yticks(np.linspace(0, 1, 6), [f"{k}%" for k in range(0, 101, 20)])
    axis.legend(loc="upper right", ncols=2, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
