"""The pictures that several experiments share. Nothing is shown on a screen: all are files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # before pyplot: no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#888888"


def save(figure: Figure, path: Path) -> None:
    """Writes a figure and frees it."""
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def learning_curves(
    history: Sequence[Mapping[str, float]], path: Path, best_epoch: int | None = None
) -> None:
    """Loss by epoch on a log scale, and beside it every metric."""
    epochs = [row["epoch"] for row in history]
    metrics = [n for n in history[0] if n.startswith("validation_") and n != "validation_loss"]
    figure, axes = plt.subplots(
        1, 1 + bool(metrics), figsize=(5 + 5 * bool(metrics), 3.6), squeeze=False
    )
    loss, *rest = axes[0]
    marker = "o" if len(epochs) < 40 else ""
    loss.semilogy(
        epochs, [row["loss"] for row in history], marker=marker, ms=3, color=BLUE, label="training"
    )
    if "validation_loss" in history[0]:
        loss.semilogy(
            epochs, [row["validation_loss"] for row in history], marker=marker, ms=3, color=ORANGE,
            label="validation",
        )  # fmt: skip
    if best_epoch:
        loss.axvline(best_epoch, color=GREY, lw=1, ls=":", label=f"kept: epoch {best_epoch}")
    loss.set(xlabel="epoch", ylabel="loss", title="Loss")
    loss.legend()
    for axis in rest:
        for name, color in zip(metrics, (ORANGE, GREEN, RED, BLUE), strict=False):
            label = name.removeprefix("validation_").replace("_", " ")
            values = [row[name] for row in history]
            axis.plot(epochs, values, marker=marker, ms=3, color=color, label=label)
        axis.set(xlabel="epoch", title="On validation examples")
        axis.legend()
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    save(figure, path)


def confusion_matrix(
    prediction: np.ndarray, target: np.ndarray, names: Sequence[str], path: Path
) -> None:
    """Counts of true class (rows) by predicted class (columns); mistakes stand out."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (target, prediction), 1)
    wrong = np.where(np.eye(len(names), dtype=bool), 0, counts)
    size = 2 + 0.45 * len(names)
    figure, axis = plt.subplots(figsize=(size, size))
    axis.imshow(wrong, cmap="Oranges")
    for i, j in np.ndindex(*counts.shape):
        if counts[i, j]:
            dark = wrong[i, j] > 0.6 * max(wrong.max(), 1)
            axis.text(
                j, i, str(counts[i, j]), ha="center", va="center", fontsize=8,
                color="white" if dark else GREEN if i == j else "black",
                weight="bold" if i == j else "normal",
            )  # fmt: skip
    rotation = 45 if max(map(len, names)) > 3 else 0
    ticks = range(len(names))
    axis.set_xticks(ticks, names, rotation=rotation, ha="right" if rotation else "center")
    axis.set_yticks(ticks, names)
    axis.set(
        xlabel="predicted", ylabel="true",
        title=f"{int(wrong.sum())} of {len(target)} wrong",
    )  # fmt: skip
    save(figure, path)


def worst_mistakes(
    images: np.ndarray,
    probabilities: np.ndarray,
    target: np.ndarray,
    names: Sequence[str],
    path: Path,
    count: int = 24,
) -> None:
    """The test images whose true class got the least probability.

    Args:
      images: (n, height, width).
      probabilities: (n, classes).
      target: (n,) labels.
    """
    order = np.argsort(probabilities[np.arange(len(target)), target])[:count]
    columns = 8
    figure, axes = plt.subplots(
        -(-count // columns), columns, figsize=(1.4 * columns, 1.75 * -(-count // columns))
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, order, strict=False):
        guess = probabilities[i].argmax()
        axis.imshow(images[i], cmap="gray_r")
        wrong = guess != target[i]
        axis.set_title(
            f"{names[target[i]]}, read as\n{names[guess]} ({probabilities[i, guess]:.0%})"
            if wrong
            else f"{names[target[i]]}\n({probabilities[i, guess]:.0%})",
            fontsize=8, color=RED if wrong else "black",
        )  # fmt: skip
    figure.suptitle("The least certain of the true class")
    figure.tight_layout()
    save(figure, path)


def filters(w: np.ndarray, shape: tuple[int, int], path: Path, title: str, count: int = 64) -> None:
    """The weights of a first layer as pictures: what each unit looks for.

    Args:
      w: (pixels, units).
      shape: (height, width) of an image.
    """
    count = min(count, w.shape[1])
    columns = min(16, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(0.7 * columns, 0.7 * rows + 0.5), squeeze=False
    )
    strongest = np.argsort(-np.linalg.norm(w, axis=0))[:count]
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, strongest, strict=False):
        image(axis, w[:, i].reshape(shape))
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def image(axis: Axes, weights: np.ndarray) -> None:
    """Weights as a picture: red positive, blue negative, white zero."""
    limit = np.abs(weights).max() or 1.0
    axis.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.axis("off")
