"""Images as a source for ``fnn.fit``, and the predictions of a network for images."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import fnn
from experiments.common.data import Array
from experiments.googlenet.examples import Examples
from experiments.googlenet.images import Pixels, batches
from fnn.block import Block

Scaling = Callable[[Any], Any]  # from pixels to what the network sees


class Images:
    """A source for ``fnn.fit``: images as the network sees them, read in threads.

    Args:
      examples: the images and their labels.
      scaling: from pixels to the input of the network.
      seed: if given, images are varied, in another way in each epoch.
    """

    def __init__(self, examples: Examples, scaling: Scaling, seed: int | None = None) -> None:
        self.examples, self.scaling, self.seed, self.epoch = examples, scaling, seed, 0

    def __len__(self) -> int:
        return len(self.examples.labels)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, rows: Array) -> tuple[Array, Array]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pixels = np.stack(list(pool.map(self._read, rows.tolist())))
        return np.asarray(self.scaling(pixels)), self.examples.labels[rows]

    def _read(self, i: int) -> Pixels:
        """The i-th image of this epoch, whichever thread reads it."""
        if self.seed is None:
            return self.examples.see(i)
        return self.examples.vary(i, np.random.default_rng((self.seed, self.epoch, i)))


def make_predict(net: Block, scaling: Scaling, batch_size: int) -> Callable[..., list[Array]]:
    """``predict(examples, params, ...)``: logits at inference, with each set of parameters.

    The examples are read once for all of them.
    """
    infer = fnn.make_predict(net)

    def predict(examples: Examples, *several: Any) -> list[Array]:
        rows: list[list[Array]] = [[] for _ in several]
        size = min(batch_size, len(examples.labels))
        for pixels, count in batches(range(len(examples.labels)), size, examples.see):
            x = scaling(pixels)
            for own, params in zip(rows, several, strict=True):
                own.append(np.asarray(infer(params, x), np.float32)[:count])
        return [np.concatenate(own) for own in rows]

    return predict
