"""Inputs at which a rule may lose digits in a narrow dtype: saturated, tiny, in long batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.check.rule import Sample
from fnn.check.subject import Subject, map_floats, path_of
from fnn.check.trials import Batch, Trial, find_batch, scaled
from fnn.pytrees import flat

INPUT_FACTORS = (1.0, 0.25, 8.0, 30.0)  # times all of x: as given, nearly linear, saturated
TINY_FACTOR = 1e-3  # times one leaf of x; of all at once only rounding of differences would be left
SATURATION = 20.0  # magnitude of every input: float32 holds e^-20, but rounds 1 - e^-20 to 1
LONG_BATCH = 1024  # examples: a sum of ones in bfloat16 stops at 256, in float16 at 2048
MAX_LONG_BATCH = 2**18  # numbers in x of the long batch: more would take minutes
MAX_ROLLS = 8  # entries of a row of logits that are each made the largest once


class Narrow(NamedTuple):
    """A sample for a narrow dtype.

    ``one_hot``: dy is 1 at each row's largest y, else 0, as a loss picks its label: there 1 - p
    must not cancel. ``tiny``: the leaf of x that is tiny, or ''. ``long``: whether it is a batch
    so long that a sum over it in the narrow dtype loses its digits.
    """

    what: str
    sample: Sample
    one_hot: bool = False
    tiny: str = ""
    long: bool = False


def narrow_samples(subject: Subject, long: Sample | None) -> Iterator[Narrow]:
    """The samples, those as given first; ``long``: a long batch, if there is one."""
    here = subject.sample
    for factor in INPUT_FACTORS:
        what = "as given" if factor == 1 else f"inputs times {factor:g}"
        sample = scaled(here, factor)
        yield Narrow(what, sample)
        yield Narrow(f"{what}, dy 1 at each row's largest y, else 0", sample, one_hot=True)
    factor = INPUT_FACTORS[-1]
    large = scaled(here, factor)
    for by in range(1, _row_length(subject) if long is None else 1):
        sample = here._replace(x=map_floats(functools.partial(_rolled, by), large.x))
        yield Narrow(f"inputs times {factor:g}, rolled by {by}", sample)
    for i, (name, leaf) in enumerate(zip(subject.names, subject.floats(here), strict=True)):
        if name.startswith("x"):
            sample = subject.with_leaf(here, i, TINY_FACTOR * leaf)
            yield Narrow(f"{name} times {TINY_FACTOR:g}", sample, tiny=name)
    for sign in (1, -1):
        size = sign * SATURATION
        what = f"inputs {size:g} times their sign"
        saturated = map_floats(functools.partial(_saturated, size), here.x)
        yield Narrow(what, here._replace(x=saturated))
    if long is not None:
        yield Narrow(f"a batch of {LONG_BATCH}", long, long=True)


def _rolled(by: int, v: np.ndarray) -> np.ndarray:
    return np.roll(v, by, -1) if v.ndim else v


def _saturated(size: float, v: np.ndarray) -> np.ndarray:
    return size * np.where(v < 0, -1.0, 1.0)


def _row_length(subject: Subject) -> int:
    """The entries of a row of x, some at most; 0 where no labels pick one of them."""
    leaves = [np.asarray(v) for v in jax.tree.leaves(subject.sample.x)]
    rows = [v.shape[-1] for v in leaves if is_floating(v) and v.ndim > 1]
    labelled = any(not is_floating(v) for v in leaves)
    return min(max(rows, default=0), MAX_ROLLS) if labelled else 0


def long_batch(subject: Subject, trial: Trial) -> tuple[Sample | None, frozenset[str]]:
    """A long batch, if one can be made; and the leaves of x along it, which are no sums over it."""
    leaves, tree = flat(subject.sample.x)
    along = _batch_leaves(subject, trial, leaves)
    n = next((np.shape(v)[0] for v, a in zip(leaves, along, strict=True) if a), 0)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(subject.sample.x)]
    rows = frozenset(path_of(path, "x") for path, a in zip(paths, along, strict=True) if a)
    if not 0 < n < LONG_BATCH or not set(subject.names) - rows:
        return None, rows
    if sum(np.size(v) for v in leaves) // n * LONG_BATCH > MAX_LONG_BATCH:
        return None, rows
    rng = np.random.default_rng(subject.seed + 6)

    def tiled(v: Any, a: bool) -> Any:
        if not a:
            return v
        many = np.asarray(v)[np.arange(LONG_BATCH) % n]
        # All of one sign, so that the sum is as large as its terms make it.
        return np.abs(many) * rng.uniform(0.5, 1.5, many.shape) if is_floating(v) else many

    x = tree.unflatten([tiled(v, a) for v, a in zip(leaves, along, strict=True)])
    return subject.sample._replace(x=x), rows


def _batch_leaves(subject: Subject, trial: Trial, leaves: Sequence[Any]) -> tuple[bool, ...]:
    """Which leaves of x have the batch as their first axis; none where that is not known."""
    if subject.rule.block is None:
        batch = find_batch(subject, trial)
        along = jax.tree.leaves(batch.along) if isinstance(batch, Batch) else [False] * len(leaves)
        return tuple(along)
    sizes = {v.shape[0] if np.ndim(v) > 1 else 0 for v in leaves if is_floating(v)}
    fits = len(sizes) == 1 and 0 not in sizes and subject.sample.key is None
    fits = fits and all(np.ndim(v) and v.shape[0] in sizes for v in leaves)
    return (fits,) * len(leaves)
