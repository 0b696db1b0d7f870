"""Values of forward along lines through a sample, and their differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.check import differences
from fnn.check.differences import Slope
from fnn.check.rule import Sample, cached
from fnn.check.subject import Subject, flat_floats, scale_of, typical
from fnn.check.trials import Trial, noise_of_y
from fnn.compiling import jit_for_few_runs

MAX_LINES = 96  # of one run of the program
MAX_NUMBERS = 2**22  # that one run returns


@cached
def _mover(forward: Callable[..., Any], lines: int) -> Callable[..., Any]:
    """Flat y at every step along several lines, each a part of one flat direction.

    One program for single entries (a part of length one) and for whole leaves, because it takes
    longer to compile than to run.
    """
    ts = differences.steps()

    def moved(sample: Sample, direction: Any, starts: Any, stops: Any, count: Any) -> Any:
        leaves = sample.floats
        flat = jnp.concatenate([jnp.ravel(v).astype(direction.dtype) for v in leaves])
        places, cuts = jnp.arange(flat.size), np.cumsum([v.size for v in leaves])[:-1]

        def at(number: Any) -> Any:
            line, step = number // len(ts), number % len(ts)
            moves = (places >= starts[line]) & (places < stops[line])
            there = flat + jnp.where(moves, jnp.asarray(ts)[step] * direction, 0.0)
            parts = [
                part.reshape(v.shape).astype(v.dtype)
                for part, v in zip(jnp.split(there, cuts), leaves, strict=True)
            ]
            y = forward(*sample.with_floats(parts))[0]
            return jnp.concatenate(
                [v.ravel().astype(flat.dtype) for v in jax.tree.leaves(y) if is_floating(v)]
            )

        values = jnp.zeros((lines * len(ts), jax.eval_shape(at, 0).size))
        return jax.lax.fori_loop(0, count * len(ts), lambda i, v: v.at[i].set(at(i)), values)

    return jit_for_few_runs(moved)


def along(
    subject: Subject, sample: Sample, direction: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> np.ndarray:
    """Flat y at the steps along each part [start, stop) of a flat direction: (steps, lines, y)."""
    outputs = sum(v.size for v in jax.tree.leaves(subject.y_shape(sample)) if is_floating(v))
    ts = len(differences.steps())
    most = min(MAX_LINES, max(1, MAX_NUMBERS // (ts * max(outputs, 1))))
    program = _mover(subject.rule.forward, most)
    parts = []
    for first in range(0, len(starts), most):
        subject.in_time()
        some = slice(first, first + most)
        count = len(starts[some])
        fill = (0, most - count)
        lines = (np.pad(starts[some], fill), np.pad(stops[some], fill))
        values = np.asarray(program(sample, direction, *lines, count))
        parts.append(values.reshape(most, ts, -1)[:count])
    return np.concatenate(parts).swapaxes(0, 1)


def scales(subject: Subject, sample: Sample) -> np.ndarray:
    """The scale on which each entry varies."""
    return np.concatenate([np.ravel(scale_of(leaf)) for leaf in subject.floats(sample)])


def by_entry(
    subject: Subject, sample: Sample, entries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values of flat y around the sample, moved along single entries; and the steps' scales.

    Returns (steps, entries, y) and (entries,).
    """
    steps = scales(subject, sample)
    return along(subject, sample, steps, entries, entries + 1), steps[entries]


def jacobian(subject: Subject, trial: Trial) -> Slope:
    """dy/d(entry) by differences: (entries, y)."""
    entries = np.arange(sum(leaf.size for leaf in trial.sample.floats))
    values, steps = by_entry(subject, trial.sample, entries)
    # A small output may be a difference of terms as large as the other outputs.
    size = np.max(np.abs(values), -1, keepdims=True, initial=0)
    size = np.maximum(size, np.max(rounded_terms(subject, trial), initial=0))
    size = np.broadcast_to(size, values.shape)
    slope = differences.both_sides(values, size, flat_floats(trial.y), subject.unit)
    return Slope(slope.value / steps[:, None], slope.error / steps[:, None])


def rounded_terms(subject: Subject, trial: Trial) -> np.ndarray:
    """For each output the size of terms whose rounding would move it as inputs' rounding does."""
    return flat_floats(noise_of_y(subject, trial)) / subject.unit


def along_leaves(
    subject: Subject, trials: Sequence[Trial], repeats: int
) -> tuple[Slope, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Derivatives of <dy, y> along random directions, each within one leaf; the trials are at one
    sample.

    Returns the slopes by differences, the same by the cotangents, and the sum of the sizes of
    the latter's terms, each (leaves, repeats, trials); and the directions.
    """
    sample = trials[0].sample
    leaves = subject.floats(sample)
    stops = np.cumsum([leaf.size for leaf in leaves])
    starts = stops - [leaf.size for leaf in leaves]
    upstream = np.stack([flat_floats(trial.dy) for trial in trials], 1)
    shape = (len(leaves), repeats, len(trials))
    sums, sizes = np.zeros(shape), np.zeros(shape)
    values, terms, directions = [], [], []
    for repeat in range(repeats):
        parts = [
            _direction(leaf, 1000 * subject.seed + number * repeats + repeat, number)
            for number, leaf in enumerate(leaves)
        ]
        directions.append(np.concatenate(parts))
        around = along(subject, sample, directions[-1], starts, stops)
        values.append(around @ upstream)
        terms.append((np.abs(around) + rounded_terms(subject, trials[0])) @ np.abs(upstream))
        for k, trial in enumerate(trials):
            for number, (part, c) in enumerate(zip(parts, trial.got, strict=True)):
                if c is not None:
                    products = part * np.ravel(c)
                    sums[number, repeat, k] = np.sum(products)
                    sizes[number, repeat, k] = np.sum(np.abs(products))
    still = flat_floats(trials[0].y) @ upstream
    slope = differences.both_sides(np.stack(values, 2), np.stack(terms, 2), still, subject.unit)
    return slope, sums, sizes, directions


def _direction(leaf: np.ndarray, seed: int, number: int) -> np.ndarray:
    """A flat direction as long as the leaf's entries: irrational steps around a circle."""
    angle = np.arange(leaf.size) * 2.399963229728653
    return (typical(leaf) or 1.0) * np.sin(angle + 1.7 * seed + number)
