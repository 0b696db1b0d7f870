"""A multi-class network learns to read handwritten digits (8x8 pixels, bundled data)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import fnn
from experiments.common.classify import classify_images
from experiments.common.console import console
from experiments.common.data import load
from experiments.common.options import Training


@dataclass
class Options(Training):
    # These width, depth and dropout rate had the highest validation accuracy of those tried, over
    # six splits: with only 1,258 images, a wide layer needs dropout.
    hidden: tuple[int, ...] = (256,)
    """units in each hidden layer"""
    dropout: float = 0.3
    """fraction of hidden units dropped at random in each step; 0: none"""
    epochs: int = 60
    out: Path = Path("results/digits")


def main(options: Options) -> int:
    options.prepare()
    data = load("digits", options.seed)
    console.print(
        f"[bold]Reading handwritten digits[/bold]: {data.sizes('images')}.\nEvery gradient comes "
        "from fnn's hand-written backward pass."
    )
    net = fnn.models.mlp((*options.hidden, 10), fnn.relu(), dropout=options.dropout)
    status = classify_images(options, net, data)
    console.print(
        "Next (after . .venv/bin/activate): python -m experiments whiteboard (a backward pass,\n"
        "step by step), course (write it yourself), mnist --model cnn (99 %), --list (all of them)."
    )
    return status
