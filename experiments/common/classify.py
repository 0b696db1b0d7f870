"""Trains a classifier of images and reports what it does: shared by digits and mnist."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import fnn
from experiments.common import report
from experiments.common.console import console
from experiments.common.data import Dataset
from experiments.common.options import Training
from experiments.common.report import Report
from experiments.common.run import conclude, predict, train
from fnn.block import Block


def classify_images(options: Training, net: Block, data: Dataset, optimizer: Any = None) -> int:
    """Trains, keeps the epoch that is best on validation, and evaluates it once on the test."""
    page = Report(options)
    fitted = train(
        options, net, fnn.softmax_cross_entropy(), data.train, data.validation,
        {"accuracy": fnn.accuracy}, optimizer=optimizer, page=page,
    )  # fmt: skip
    if jax.process_index():
        return int(not fitted.success)
    logits = predict(net, fitted.params, data.test.x, options.jax_dtype)
    target = data.test.target
    accuracy = fnn.accuracy(logits, target)
    assert data.image_shape is not None
    images = data.test.x.reshape(-1, *data.image_shape[:2])
    # hidden_1 or conv_1; out in a network without either.
    first = np.asarray(fitted.params[min(fitted.params)]["w"])
    shape = first.shape[:2] if first.ndim == 4 else data.image_shape[:2]
    facts = {"kept": f"epoch {fitted.best_epoch}"}
    page.facts |= facts
    probabilities = np.asarray(jax.nn.softmax(logits))
    page.classified(probabilities, target, data.class_names, images.__getitem__)
    page.add("First-layer filters", report.filters(first.reshape(-1, first.shape[-1]), shape))
    _show_examples(images, logits, data)
    wrong = f"{np.sum(logits.argmax(-1) != target)} of {len(images)}"
    return conclude(options.out, {"test accuracy": accuracy, "wrong": wrong}, fitted, page)


def _show_examples(images: np.ndarray, logits: np.ndarray, data: Dataset, count: int = 8) -> None:
    """Prints a few test images as text, with what the network reads."""
    step = max(1, images.shape[1] // 14)  # a pixel is two characters wide
    small = images[:count, ::step, ::step]
    width = 2 * small.shape[2] + 2
    fits = max(1, min(count, console.width // width))
    shades = np.array([2 * shade for shade in " .:-=+*#%@"])
    ink = shades[np.minimum(10 * small[:fits], 9).astype(int)]
    console.print("\nThe first test images, and what the network reads:")
    for lines in ink.swapaxes(0, 1):
        console.print("  ".join(map("".join, lines)).rstrip(), markup=False)
    names = [data.class_names[k] for k in logits[:fits].argmax(-1)]
    console.print("".join(f"{name:^{width}}" for name in names))
