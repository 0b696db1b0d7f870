"""A 1-layer network with 4 neurons reads the four bits of a digit; then with a hidden layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import fnn
from experiments.common import figures
from experiments.common.console import console, table
from experiments.common.data import Split, load
from experiments.common.options import Training
from experiments.common.run import conclude, predict, train

BITS = (8, 4, 2, 1)  # most significant first: 6 = 4 + 2 is 0110


@dataclass
class Options(Training):
    hidden: int = 64
    """units of the hidden layer of the second network"""
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
        "[bold]Four neurons, four bits[/bold]: from the picture of a digit to its value in "
        "binary. Every neuron answers its own yes-or-no question, so each has a "
        "binary cross-entropy:"
    )
    for i, bit in enumerate(BITS):
        ones = [k for k in range(10) if k & bit]
        console.print(f"  neuron {i + 1}, bit {bit}: is the digit one of {ones}?")
    networks = {
        "one layer": fnn.linear(len(BITS)),
        "hidden layer": fnn.models.mlp((options.hidden, len(BITS)), fnn.relu()),
    }
    by_bit: dict[str, np.ndarray] = {}
    together: dict[str, float] = {}
    learned: dict[str, float] = {}  # of the training images, all four bits right
    fits = []
    for name, net in networks.items():
        console.print(f"\n[bold]{name}[/bold]")
        fitted = train(
            options, net, fnn.binary_cross_entropy(), sets["train"], sets["validation"],
            {"bits": fnn.accuracy, "all_four": all_right}, name=name.replace(" ", "_"),
        )  # fmt: skip
        fits.append(fitted)
        logits = predict(net, fitted.params, sets["train"].x, options.jax_dtype)
        learned[name] = all_right(logits, sets["train"].target)
        target = sets["test"].target
        logits = predict(net, fitted.params, sets["test"].x, options.jax_dtype)
        by_bit[name] = np.mean((logits > 0) == (target > 0.5), axis=0)
        together[name] = all_right(logits, target)
    console.print()
    table(
        "Right on the test images",
        ("network", *(f"bit {bit}" for bit in BITS), "all four"),
        [(n, *(f"{a:.3f}" for a in by_bit[n]), f"{together[n]:.3f}") for n in networks],
    )
    first, second = learned.values()
    console.print(
        "\nWhy one layer is not enough: a neuron sees w·x + b > 0, one side of a plane. Bit 1 "
        "asks for odd\nagainst even, but 1, 3, 5, 7, 9 look no more like each other than like "
        "0, 2, 4, 6, 8: the pixels\nthat speak for 3 speak for 8 as well, and no plane has all "
        "the odd ones on one side. More training\ndoes not help: one layer gets "
        f"{first:.1%} of its own training images right, with a hidden layer it\nis {second:.1%}. "
        "Hidden units find strokes first, and of strokes the bits are nearly a weighted sum."
    )
    _draw_neurons(np.asarray(fits[0].params["w"]), by_bit["one layer"], options.out)
    _draw_accuracy(by_bit, together, options.out / "accuracy.png")
    worst = next((f for f in fits if not f.success), fits[-1])
    return conclude(
        options.out,
        {f"test accuracy, all four bits, {name}": together[name] for name in networks},
        worst,
    )


def _draw_neurons(w: np.ndarray, accuracy: np.ndarray, out: Path) -> None:
    """What each neuron of the single layer looks for. w: (64, 4)."""
    figure, axes = plt.subplots(1, len(BITS), figsize=(11, 3.4))
    for axis, bit, column, right in zip(axes, BITS, w.T, accuracy, strict=True):
        figures.image(axis, column.reshape(8, 8))
        ones = [k for k in range(10) if k & bit]
        zeros = [k for k in range(10) if not k & bit]
        axis.set_title(
            f"bit {bit}: {right:.1%} right\nyes: {' '.join(map(str, ones))}\n"
            f"no: {' '.join(map(str, zeros))}",
            fontsize=10,
        )
    figure.suptitle("The weights of the four neurons (red: ink speaks for 1, blue: for 0)", y=1.06)
    figures.save(figure, out / "neurons.png")


def _draw_accuracy(
    by_bit: Mapping[str, np.ndarray], together: Mapping[str, float], path: Path
) -> None:
    figure, axis = plt.subplots(figsize=(7.5, 3.8))
    places = np.arange(len(BITS) + 1)
    for i, (name, color) in enumerate(zip(by_bit, (figures.ORANGE, figures.BLUE), strict=True)):
        heights = [*by_bit[name], together[name]]
        bars = axis.bar(places + 0.4 * (i - 0.5), heights, 0.38, color=color, label=name)
        axis.bar_label(bars, [f"{100 * h:.1f}" for h in heights], fontsize=8, padding=1)
    axis.set_xticks(places, [*(f"bit {bit}" for bit in BITS), "all four"])
    # A bar is read by its length, so it starts at 0.
    axis.set(ylim=(0, 1.22), ylabel="right on the test images", title="Four neurons, four bits")
    axis.set_yticks(np.linspace(0, 1, 6), [f"{k}%" for k in range(0, 101, 20)])
    axis.legend(loc="upper right", ncols=2, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path)
