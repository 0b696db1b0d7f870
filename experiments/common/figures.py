"""The pictures that several experiments share. Nothing is shown on a screen: all are files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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
    history: Sequence[Mapping[str, float]],
    path: Path,
    best_epoch: int | None = None,
    training: str = "training",
) -> None:
    """Loss by epoch on a log scale, and beside it every metric; ``training`` names the former."""
    epochs = [row["epoch"] for row in history]
    metrics = [n for n in history[0] if n.startswith("validation_") and n != "validation_loss"]
    figure, axes = plt.subplots(
        1, 1 + bool(metrics), figsize=(5 + 5 * bool(metrics), 3.6), squeeze=False
    )
    loss, *rest = axes[0]
    marker = "o" if len(epochs) < 40 else ""
    loss.semilogy(
        epochs, [row["loss"] for row in history], marker=marker, ms=3, color=BLUE, label=training
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


class Guess(NamedTuple):
    """A picture (height, width, 3), its name, its best classes and their probabilities.

    ``right`` is the class that it shows, where that is known.
    """

    image: np.ndarray
    title: str
    classes: Sequence[str]
    probabilities: np.ndarray
    right: str | None = None


def guesses(shown: Sequence[Guess], path: Path, on_page: int = 8) -> list[Path]:
    """Pictures with bars of their best classes beside them, two columns of them on a page.

    Returns:
      The pages: ``path``, or where there are several ``path`` with a number each.
    """
    pages = [shown[i : i + on_page] for i in range(0, len(shown), on_page)]
    paths = [path]
    if len(pages) > 1:
        paths = [path.with_stem(f"{path.stem}_{i}") for i in range(1, len(pages) + 1)]
    for page, file in zip(pages, paths, strict=True):
        _page_of_guesses(page, file)
    return paths


def _page_of_guesses(page: Sequence[Guess], path: Path) -> None:
    columns = min(2, len(page))
    rows = -(-len(page) // columns)
    figure, axes = plt.subplots(
        rows, 2 * columns, figsize=(7.2 * columns, 2.9 * rows), squeeze=False,
        width_ratios=[1, 1.35] * columns, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for guess, photograph, bars in zip(page, axes.flat[::2], axes.flat[1::2], strict=False):
        photograph.imshow(guess.image)
        # The name of a file is not mathematics, whatever dollar signs it has.
        photograph.set_title(_cut(guess.title, 36), fontsize=9, color=GREY, parse_math=False)
        is_right = [guess.right in (None, name) for name in guess.classes]
        colors = [GREEN if yes else RED for yes in is_right]
        if guess.right is None:  # nobody says what is right: the best stands out
            colors = [BLUE] + ["#9CC9E3"] * (len(guess.classes) - 1)
        else:
            bars.set_title(f"is: {_cut(guess.right, 30)}", fontsize=9, loc="left", color=GREEN)
        at = np.arange(len(guess.classes))
        bars.barh(at, guess.probabilities, height=0.34, color=colors)
        for y, name, probability in zip(at, guess.classes, guess.probabilities, strict=True):
            # Above its bar: a long name then has the whole width.
            weight = "bold" if y == 0 else "normal"
            bars.text(0, y - 0.24, _cut(name, 34), fontsize=9.5, va="bottom", weight=weight)
            chance = f"{probability:.1%}" if probability >= 0.001 else "< 0.1%"
            bars.text(1, y - 0.24, chance, fontsize=9.5, va="bottom", ha="right")
        bars.set(xlim=(0, 1), ylim=(len(at) - 0.6, -0.85))
    figure.set_layout_engine("constrained", hspace=0.06, wspace=0.03)
    with warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes, not complained about.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        save(figure, path)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
