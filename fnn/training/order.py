"""The order in which an epoch uses the examples: a function of the run's key and the epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

WHOLE = 2**24  # up to this many examples, an order is kept in memory: 64 MB at most
ROUNDS = 8

# A permutation: order[start:stop] are the examples in these places.
Order = Any


def orders(seed: list[int], n: int, whole: int = WHOLE) -> Iterator[Order]:
    """The orders of n examples in epoch 1, 2, ...: permutations.

    Args:
      seed: words of the run's key.
      n: examples.
      whole: up to how many examples a permutation is drawn and kept; of more it is computed where
        it is read, so that memory does not grow with the data.

    >>> first, second = zip(range(2), orders([0, 1], 6))
    >>> sorted(first[1][0:6].tolist()), bool((first[1] == second[1]).all())
    ([0, 1, 2, 3, 4, 5], False)
    """
    draw = np.random.default_rng(seed)
    while True:
        yield draw.permutation(n).astype(np.int32) if n <= whole else Scattered(n, draw)


def orders_within(seed: list[int], n: int, batch_size: int) -> Iterator[np.ndarray]:
    """Orders of examples that are split over devices: each finds its part of a batch in its own.

    The examples are taken for gcd(n, batch_size) parts, one after another, of which each batch has
    equally many, in order. So the order is the same whatever the number of devices, which divides
    both n and the size of a batch.

    >>> order = next(orders_within([0], 8, 4)).tolist()
    >>> [i // 2 for i in order]
    [0, 1, 2, 3, 0, 1, 2, 3]
    """
    draw, parts = np.random.default_rng(seed), math.gcd(n, batch_size)
    full = n // batch_size * batch_size
    while True:
        rows = draw.permuted(np.arange(n, dtype=np.int32).reshape(parts, -1), axis=1)
        batches = rows[:, : full // parts].reshape(parts, -1, batch_size // parts).swapaxes(0, 1)
        yield np.concatenate([batches.ravel(), rows[:, full // parts :].ravel()])


class Scattered:
    """A pseudo-random permutation of 0, ..., n - 1 in constant memory: a Feistel network.

    Each round xors one half of a number's bits with a hash of the other half. That can be undone,
    so the whole is a permutation of 2^b numbers (Luby and Rackoff 1988). Where a number comes out
    above n - 1, it is permuted again (Black and Rogaway 2002).

    >>> order = Scattered(1000, np.random.default_rng(0))
    >>> len({*order[0:600].tolist(), *order[600:1000].tolist()})
    1000
    """

    def __init__(self, n: int, draw: np.random.Generator) -> None:
        self.n, self.half = n, np.uint64((max(n - 1, 1).bit_length() + 1) // 2)
        self.mask = np.uint64((1 << int(self.half)) - 1)
        self.keys = draw.integers(2**64, size=ROUNDS, dtype=np.uint64)

    def __getitem__(self, places: slice) -> np.ndarray:
        start, stop, _ = places.indices(self.n)
        rows = self._permuted(np.arange(start, stop, dtype=np.uint64))
        while (beyond := rows >= self.n).any():
            rows[beyond] = self._permuted(rows[beyond])
        return rows.astype(np.int64)

    def _permuted(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self.half, numbers & self.mask
        for key in self.keys:
            left, right = right, left ^ (_hashed(right ^ key) & self.mask)
        return (left << self.half) | right


def _hashed(a: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of a: the finaliser of SplitMix64."""
    a = (a ^ (a >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    a = (a ^ (a >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return a ^ (a >> np.uint64(31))
