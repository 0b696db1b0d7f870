"""The standard benchmark: MNIST or Fashion-MNIST, by a 784-128-64-10 or convolutional network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fnn
from experiments.common.classify import classify_images
from experiments.common.console import console
from experiments.common.data import Dataset, load, load_mapped
from experiments.common.options import Training
from experiments.common.processes import Processes, started
from experiments.common.run import scheduled


@dataclass
class Options(Processes, Training):
    data: Literal["mnist", "fashion_mnist"] = "mnist"
    """data set to train on"""
    model: Literal["mlp", "cnn"] = "mlp"
    """a multilayer perceptron, or a convolutional network"""
    hidden: tuple[int, ...] = (128, 64)
    """units in each hidden layer (mlp)"""
    channels: tuple[int, ...] = (32, 64)
    """channels of each convolution (cnn)"""
    dropout: float = 0.25
    """rate before the linear layers (cnn)"""
    schedule: Literal["constant", "cosine"] = "cosine"
    """learning rate: constant, or falling along a half cosine to 0"""
    weight_decay: float = 3e-4
    """pulls every parameter towards 0: this times it is added to its gradient"""
    data_dir: Path | None = None
    """folder that holds mnist/ and fashion_mnist/; else $FNN_DATA, the cache, or a download"""
    batch_size: int = 64
    learning_rate: float = 0.05
    out: Path | None = None  # type: ignore[assignment]
    """folder for the report, parameters and figures; results/DATA by default"""


def main(options: Options) -> int:
    options.out = options.out or Path("results") / options.data
    status = started(options)
    if status is not None:
        return status
    options.prepare()
    if not 0 <= options.weight_decay < float("inf"):
        raise ValueError(f"--weight-decay is {options.weight_decay}, needs 0 or more")
    several = options.processes > 1  # each reads what it trains on
    data = (load_mapped if several else load)(options.data, options.seed, options.data_dir)
    console.print(f"[bold]{data.about}[/bold] {data.sizes('images')}.")
    if options.model == "cnn":
        data = _as_images(data)
        net = fnn.models.cnn(10, channels=options.channels, hidden=128, dropout=options.dropout)
    else:
        net = fnn.models.mlp((*options.hidden, 10), fnn.relu())
    optimizer = scheduled(options, options.schedule, data.train, options.weight_decay)
    return classify_images(options, net, data, optimizer)


def _as_images(data: Dataset) -> Dataset:
    """The same examples, of the shape that a convolution takes."""
    assert data.image_shape is not None
    shape = (-1, *data.image_shape)
    train, validation, test = (s._replace(x=s.x.reshape(shape)) for s in data.splits.values())
    return dataclasses.replace(data, train=train, validation=validation, test=test)
