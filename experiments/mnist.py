"""The standard benchmark: MNIST or Fashion-MNIST, with a 784-128-64-10 or a convolutional net."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fnn
from experiments.common.classify import classify_images
from experiments.common.console import console
from experiments.common.data import Dataset, load
from experiments.common.options import Training
from experiments.common.run import scheduled


@dataclass
class Options(Training):
    data: Literal["mnist", "fashion_mnist"] = "mnist"
    """which data set"""
    model: Literal["mlp", "cnn"] = "mlp"
    """a multilayer perceptron, or a convolutional network"""
    hidden: tuple[int, ...] = (128, 64)
    """units of each hidden layer (of the mlp)"""
    channels: tuple[int, ...] = (32, 64)
    """of each convolution (of the cnn)"""
    dropout: float = 0.25
    """rate before the linear layers (of the cnn)"""
    schedule: Literal["constant", "cosine"] = "cosine"
    """of the learning rate: constant, or falling along a half cosine to 0"""
    weight_decay: float = 3e-4
    """pulls every parameter towards 0: this much of it is added to its gradient"""
    data_dir: Path | None = None
    """folder that holds mnist/ and fashion_mnist/; else $FNN_DATA, the cache, or a download"""
    batch_size: int = 64
    learning_rate: float = 0.05
    out: Path | None = None  # type: ignore[assignment]
    """folder for the report, parameters and figures; results/DATA by default"""


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
    if options.model == "cnn":
        data = _as_images(data)
        net = fnn.models.cnn(10, options.channels, hidden=128, dropout=options.dropout)
    else:
        net = fnn.models.mlp((*options.hidden, 10), fnn.relu())
    steps = options.epochs * -(-len(data.train.x) // options.batch_size)
    optimizer = scheduled(options, options.schedule, steps, options.weight_decay)
    return classify_images(options, net, data, optimizer)


def _as_images(data: Dataset) -> Dataset:
    """The same examples in the shape in which a convolution takes them."""
    assert data.image_shape is not None
    shape = (-1, *data.image_shape)
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    images = {name: part._replace(x=part.x.reshape(shape)) for name, part in parts.items()}
    return dataclasses.replace(data, **images)
