"""Mistakes that are right elsewhere: what a cotangent would be if something were the other way.

A kernel that is not flipped gives the right cotangent of another kernel, a cumulative sum that is
not reversed that of a reversed dy, a forgotten conjugate that of the conjugate.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from fnn.check.subject import Subject, map_floats
from fnn.check.trials import Trial

MAX_NUMBERS = 2**16  # in all leaves: more would take long


def if_it_were(subject: Subject, trial: Trial, leaf: int) -> Iterator[tuple[str, np.ndarray]]:
    """(what is the other way, the cotangent that would then be right)."""
    if subject.rule.declared is not None:
        return
    floats = subject.floats(trial.sample)
    if sum(f.size for f in floats) > MAX_NUMBERS:
        return
    for other, (name, value) in enumerate(zip(subject.names, floats, strict=True)):
        if value.ndim == 2 and value.shape[0] == value.shape[1]:
            words = f"{name} were transposed: it is used the wrong way round"
            yield words, _with(subject, trial, leaf, other, value.T)
        if other == leaf:
            continue
        if name.endswith("/imag"):
            which = name.removesuffix("/imag")
            yield (
                f"the conjugate of {which} stood in for it: conj is missing or extra",
                _with(subject, trial, leaf, other, -value),
            )
        for axes in _axes(value):
            words = (
                f"{name} were reversed along axis {', '.join(map(str, axes))}: a kernel is not "
                "flipped, or flipped twice"
            )
            yield words, _with(subject, trial, leaf, other, np.flip(value, axes))
    for axis in range(floats[leaf].ndim):
        same = all(np.ndim(d) > axis and np.shape(d)[axis] > 1 for d in _leaves(trial.dy))
        if same and floats[leaf].shape[axis] > 1:
            dy = map_floats(functools.partial(np.flip, axis=axis), trial.dy)
            words = (
                f"forward ran from the end of axis {axis}: backward of a running sum (a scan) has "
                "to run the other way"
            )
            yield words, np.flip(subject.autodiff(trial.sample, dy)[leaf], axis)


def _leaves(tree: Any) -> list[Any]:
    leaves: list[Any] = []
    map_floats(leaves.append, tree)
    return leaves


def _axes(value: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Pairs of neighbouring axes, as a kernel has them, and single ones."""
    long = [axis for axis in range(value.ndim) if value.shape[axis] > 1]
    yield from ((a, b) for a, b in itertools.pairwise(long) if b == a + 1)
    yield from ((axis,) for axis in long)


def _with(subject: Subject, trial: Trial, leaf: int, other: int, value: np.ndarray) -> Any:
    sample = subject.with_leaf(trial.sample, other, value)
    return subject.autodiff(sample, trial.dy)[leaf]
