"""Pictures with bars of their best classes beside them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.figures import BLUE, GREEN, GREY, RED, plt, save


class Guess(NamedTuple):
    """A picture (height, width, 3), its name, its best classes and their probabilities.

    ``right``: the true class; None if it is not known.
    """

    image: np.ndarray
    title: str
    classes: Sequence[str]
    probabilities: np.ndarray
    right: str | None = None


def draw_guesses(guesses: Sequence[Guess], path: Path, per_page: int = 8) -> list[Path]:
    """Draws the guesses in two columns.

    Returns:
      The pages: ``path`` alone, or numbered files beside it.
    """
    pages = [guesses[i : i + per_page] for i in range(0, len(guesses), per_page)]
    numbered = [path.with_stem(f"{path.stem}_{i}") for i in range(1, len(pages) + 1)]
    paths = numbered if len(pages) > 1 else [path]
    for page, file in zip(pages, paths, strict=True):
        _draw_page(page, file)
    return paths


def _draw_page(page: Sequence[Guess], path: Path) -> None:
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
        # A file's name may have dollar signs, which matplotlib would read as mathematics.
        photograph.set_title(_cut(guess.title, 36), fontsize=9, color=GREY, parse_math=False)
        colors = [GREEN if name == guess.right else RED for name in guess.classes]
        if guess.right is None:  # no true class is known: the best guess stands out
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
        # Letters that the font lacks are drawn as boxes, without a warning.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        save(figure, path)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
