"""The standard benchmark: MNIST or Fashion-MNIST with a 784-128-64-10 network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fnn
from experiments.classify import classify_images
from experiments.console import console
from experiments.data import load
from experiments.options import Training
from experiments.run import scheduled


@dataclass
class Options(Training):
    data: Literal["mnist", "fashion_mnist"] = "mnist"
    """which data set"""
    hidden: tuple[int, ...] = (128, 64)
    """units of each hidden layer"""
    schedule: Literal["constant", "cosine"] = "cosine"
    """of the learning rate: constant, or falling along a half cosine to 0"""
    weight_decay: float = 3e-4
    """pulls every parameter towards 0: this much of it is added to its gradient"""
    data_dir: Path | None = None
    """folder that holds mnist/ and fashion_mnist/; else $FNN_DATA, the cache, or a download"""
    batch_size: int = 64
    learning_rate: float = 0.05
    out: Path | None = None  # type: ignore[assignment]
    """folder for history.csv, the parameters and the pictures; results/DATA by default"""


def main(options: Options) -> int:
    options.out = options.out or Path("results") / options.data
    options.prepare()
    if not 0 <= options.weight_decay < float("inf"):
        raise ValueError(f"--weight-decay is {options.weight_decay}, needs 0 or more")
    data = load(options.data, options.seed, options.data_dir)
    console.print(
        f"[bold]{data.about}[/bold] {len(data.train.x)} images to learn from, "
        f"{len(data.validation.x)} to choose the best epoch by, {len(data.test.x)} to be judged on."
    )
    steps = options.epochs * -(-len(data.train.x) // options.batch_size)
    net = fnn.models.mlp((*options.hidden, 10), fnn.relu())
    optimizer = scheduled(options, options.schedule, steps, options.weight_decay)
    return classify_images(options, net, data, optimizer)
