"""Colours, weights as an image, and saving: what the experiments' figures share."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # before pyplot; figures become files, no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for colour-blind readers.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#888888"


def save(figure: Figure, path: Path) -> None:
    """Writes a figure and frees it."""
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def image(axis: Axes, weights: np.ndarray) -> None:
    """Draws weights as an image: red positive, blue negative, white zero."""
    limit = np.abs(weights).max() or 1.0
    axis.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.axis("off")
