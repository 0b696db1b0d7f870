"""GoogLeNet learns from Fashion-MNIST or a folder of pictures, by the recipe of its paper.

Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6: stochastic gradient
descent with momentum 0.9; a learning rate that falls by 4 % every 8 epochs; the losses of two
auxiliary classifiers, which count 0.3 each; Polyak averaging, which makes the final network;
random parts of the pictures, of 8 to 100 % of their area. Unlike there, one machine takes the
steps, the network may be narrow, colours are not distorted, and one network sees one view.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fnn
from experiments.common import report
from experiments.common.console import TrainingProgress, console, gradient_check, print_summary
from experiments.common.options import (
    at_least,
    fractions,
    positive_rate,
    resumable,
    seeded,
    writable,
)
from experiments.common.report import Report
from experiments.common.run import checkpoint, conclude, print_ending, save, write_json
from experiments.googlenet.examples import Data, grey_images, photographs
from experiments.googlenet.recognition import AUXILIARY, DESCRIPTION, describe
from experiments.googlenet.streaming import Images, make_predict
from fnn.block import Block
from fnn.compiling import jit_for_few_runs

# Strides of the stem. For small pictures the first convolution keeps every pixel, which tells more
# apart than one with stride 2 on larger pictures, and costs the same.
PUBLISHED, SMALL = (2, 2, 2), (1, 2, 1)
NARROWEST = 1 / 16  # one channel where the published network has the fewest, 16
MOMENTUM, DECAY, EPOCHS_A_DECAY = 0.9, 0.96, 8


@dataclass(kw_only=True)
class Train:
    """GoogLeNet learns, from a folder of pictures or from Fashion-MNIST."""

    data_dir: Path | None = None
    """folder with a folder of pictures for each class, or with pictures and labels.tsv, or with
    such folders train and val (and test); if none is named, --data"""
    data: Literal["fashion_mnist", "mnist"] = "fashion_mnist"
    """what to learn from without --data-dir"""
    width: float = 0.25
    """channels, as a fraction of the published network's"""
    size: int = 24
    """side of the pictures in pixels, at least 24; 224 in the paper"""
    stem_strides: tuple[int, int, int] | None = None
    """strides of conv1, pool1 and pool2: 2 2 2 as published; 1 2 1 for pictures below 79 pixels,
    which would become too small for the auxiliary classifiers"""
    epochs: int = 12
    """passes over the training pictures"""
    batch_size: int = 64
    """pictures per step"""
    learning_rate: float = 0.02
    """learning rate in the first 8 epochs"""
    averaging: float = 0.999
    """Polyak averaging: the average keeps this much of itself at each step"""
    dropout: float = 0.4
    """rate before the main classifier; it is 0.7 in the auxiliary ones"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the computation; parameters are float32"""
    check: bool = False
    """compare the gradients with jax.grad first, and draw those of one picture at the end: minutes
    of compilation"""
    skip_broken: bool = False
    """leave out pictures that cannot be read, rather than refuse the folder"""
    out: Path = Path("results/googlenet_trained")
    """folder for report.html, history.csv, the parameters, and weights.npz"""
    resume: bool = False
    """go on where an earlier run in --out was stopped; give its other options again"""
    seed: int = 0
    """seeds what is held out, the initial weights, the order, the parts of pictures, dropout"""
    command: Annotated[str, tyro.conf.Suppress] = ""

    def prepare(self) -> None:
        """Refuses what cannot work, before any data are read."""
        seeded(self)
        at_least(self, 1, "epochs", "batch_size", "size")
        positive_rate(self)
        fractions(self, "averaging", "dropout")
        if not NARROWEST <= self.width < math.inf:
            raise ValueError(
                f"--width is {self.width}, needs at least {NARROWEST}: the narrowest convolutions "
                "have 16 channels in the published network, and would have none"
            )
        strides = " ".join(map(str, self.strides))
        if min(self.strides) < 1:
            raise ValueError(f"--stem-strides is {strides}, needs three of at least 1")
        if not fits(self.size, self.strides):
            smallest = next(n for n in itertools.count(1) if fits(n, self.strides))
            raise ValueError(
                f"--size is {self.size}, needs at least {smallest} with --stem-strides {strides}: "
                "the auxiliary classifiers average windows of 5 x 5"
            )
        writable(self.out)
        resumable(self)

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.stem_strides or (PUBLISHED if fits(self.size, PUBLISHED) else SMALL)


def fits(size: int, stem_strides: Sequence[int]) -> bool:
    """Whether pictures of this side leave the 5 x 5 values that an auxiliary classifier needs."""
    first, *pools = stem_strides
    side = (size - 1) // first + 1  # conv1: 7 x 7, three zeros around
    for stride in (*pools, 2):  # pool1, pool2, pool3: 3 x 3, rounded up
        side = -(-(side - 3) // stride) + 1
    return side >= 5


def train(options: Train) -> int:
    if options.data_dir:
        data = photographs(options.data_dir, options.size, options.seed, options.skip_broken)
    else:
        data = grey_images(options.data, options.size, options.seed)
    console.print(data.about, style="bold", markup=False)
    console.print(
        f"{len(data.names)} classes; {len(data.train.labels)} pictures for training, "
        f"{len(data.validation.labels)} for validation, {len(data.test.labels)} for testing."
    )
    net = fnn.models.googlenet(
        len(data.names), width=options.width, dropout_rate=options.dropout,
        stem_strides=options.strides,
    )  # fmt: skip
    shape = (options.batch_size, options.size, options.size, data.channels)
    batch = jax.ShapeDtypeStruct(shape, options.dtype)
    print_summary(net, batch, parts=False)
    page = Report(options)
    page.add("The network", report.network(net, batch))
    # It runs once, and would take longer to optimise than to run.
    params = jit_for_few_runs(net.init)(jax.random.key(options.seed), jnp.zeros((1, *shape[1:])))
    if options.check:
        two = np.stack([data.train.see(i) for i in (0, 1)])
        loss = fnn.models.deep_supervision(fnn.softmax_cross_entropy())
        rows = gradient_check(net, loss, params, data.scaled(two), data.train.labels[:2])
        page.add("Gradient check", report.gradient_check(rows))
    return _train(options, net, data, params, page)


def _train(options: Train, net: Block, data: Data, params: Any, page: Report) -> int:
    loss = fnn.softmax_cross_entropy()

    def inputs(pixels: Any) -> jax.Array:
        return jnp.asarray(data.scaled(pixels), options.dtype)

    predict = make_predict(net, inputs, 2 * options.batch_size)
    steps = -(-len(data.train.labels) // options.batch_size)
    falling = optax.exponential_decay(
        options.learning_rate, EPOCHS_A_DECAY * steps, DECAY, staircase=True
    )
    optimizer = fnn.averaged(optax.sgd(falling, MOMENTUM), options.averaging)

    def on_epoch(params: Any, state: Any, history: list[dict[str, float]]) -> None:
        (logits,) = predict(data.validation, params)
        history[-1]["validation_accuracy"] = fnn.accuracy(logits, data.validation.labels)

    wall, cpu = time.perf_counter(), time.process_time()
    with TrainingProgress(options.epochs) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the reason is printed below
        fitted = fnn.fit(
            net,
            fnn.models.deep_supervision(loss),
            Images(data.train, data.scaled, options.seed),
            optimizer=optimizer,
            epochs=options.epochs,
            batch_size=options.batch_size,
            key=jax.random.key(options.seed),
            params=params,
            validation=Images(data.validation, data.scaled),
            loss_at_inference=loss,
            metrics={"accuracy_averaged": fnn.accuracy},
            dtype=options.dtype,
            steps_per_call=1,
            progress=progress,
            on_epoch=on_epoch,
            checkpoint=checkpoint(options.resume, options.out),
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print_ending(fitted)
    # As in the paper the average at the end is the network, not the best of all epochs.
    assert optimizer.evaluated is not None
    average = optimizer.evaluated(fitted.state, fitted.last)
    save(options.out, {"params": fitted.last, "average": average}, fitted.history)
    main = {name: p for name, p in average.items() if name not in AUXILIARY}
    fnn.models.save_weights(options.out / "weights.npz", main)
    says = describe(options.width, options.strides, data.view, data.moments, data.names)
    write_json(options.out / DESCRIPTION, says)
    labels = data.test.labels
    raw, averaged = predict(data.test, fitted.last, average)
    accuracy = fnn.accuracy(averaged, labels)
    on = "validation" if data.test is data.validation else "test"
    page.training(fitted._replace(best_epoch=0), "training, all three classifiers")
    page.classified(np.asarray(jax.nn.softmax(averaged)), labels, data.names, data.seen)
    w = np.asarray(average["conv1"]["7x7_s2"]["w"])  # (height, width, channels, units)
    shape = w.shape[: 2 if data.channels == 1 else 3]
    page.add("First-layer filters", report.filters(w.reshape(-1, w.shape[-1]), shape))
    if options.check:
        example = inputs(data.train.see(0)[None]), data.train.labels[:1]
        drawn = report.whiteboard(net, loss, average, example)
        page.add("One example on the whiteboard", drawn)
    results = {
        f"{on} accuracy": accuracy,
        f"{on} accuracy without averaging": fnn.accuracy(raw, labels),
        "wrong": f"{np.sum(averaged.argmax(-1) != labels)} of {len(labels)}",
        "minutes": round(wall / 60, 1),
        "CPU minutes": round(cpu / 60, 1),
    }
    return conclude(options.out, results, fitted, page)
