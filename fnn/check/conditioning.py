"""How far results of a rule move when all inputs move by about their last digit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from fnn.check.rule import Sample, cached
from fnn.check.subject import Cotangents, Subject
from fnn.check.trials import Trial
from fnn.compiling import jit_for_few_runs
from fnn.pytrees import split_floats

CHANGES = 16  # random changes of all inputs, enough for each entry to meet one near its worst
WIDE = 8.0  # units, of every other change: far enough to cross a kink that rounding may cross
LEAST, MOST = 90, 127  # 127ths of the full change; were all equal, two would cancel to the last bit


def conditioning(subject: Subject, trial: Trial, unit: float) -> Cotangents:
    """The largest change of each entry when every input moves by about one unit.

    Every other change is a wide one, and what it moves is divided by its width: where a gradient
    jumps, as at a kink, rounding on the way may carry it over, though a last digit of an input
    does not.
    """
    widths = np.where(np.arange(CHANGES) % 2, WIDE, 1.0)
    return _largest_change(subject, trial, _noise(subject, trial), widths, unit)


def jumps(subject: Subject, trial: Trial, unit: float, tiny: str, factor: float) -> Cotangents:
    """How far results jump when a leaf of x that was made tiny moves by a unit of its former size.

    Rounding inside a network may carry it as far, because its last digits are gone from sums of
    larger terms: windows of a pool become ties, for instance. 0 where results only move in
    proportion. Where one entry jumps, others of its leaf would for other moves than these few.
    """
    noise = _noise(subject, trial)
    sizes = [leaf.size for leaf in subject.floats(trial.sample)]
    leaf = subject.names.index(tiny)
    start = sum(sizes[:leaf])
    noise[:, :start] = 0
    noise[:, start + sizes[leaf] :] = 0
    near, far = (
        _largest_change(subject, trial, noise, np.ones(CHANGES), size)
        for size in (unit, unit / factor)
    )
    return [
        None if f is None else np.full_like(f, np.max(f, where=f > 10 * n / factor, initial=0))
        for n, f in zip(near, far, strict=True)
    ]


def _noise(subject: Subject, trial: Trial) -> np.ndarray:
    """For each change and each floating number: 127ths of the full change, of either sign."""
    rng = np.random.default_rng(subject.seed + 8)
    floats = split_floats((trial.sample.params, trial.sample.x, trial.dy))[0]
    shape = (CHANGES, sum(np.size(v) for v in floats))
    signs = np.array([-1, 1], np.int8)
    return rng.integers(LEAST, MOST + 1, shape, np.int8) * rng.choice(signs, shape)


def _largest_change(
    subject: Subject, trial: Trial, noise: np.ndarray, widths: np.ndarray, unit: float
) -> Cotangents:
    """The largest change of each entry, each divided by its width."""
    truth = [t for t in trial.got if t is not None]
    program = _changes(subject.programs.traced)
    changes = iter(program(trial.sample, trial.dy, truth, noise, widths, unit))
    return [None if t is None else np.nan_to_num(next(changes), nan=np.inf) for t in trial.got]


@cached
def _changes(traced: Callable[..., Any]) -> Callable[..., Any]:
    """The largest change of each cotangent over the rows of noise, in one loop."""

    def run(sample: Sample, dy: Any, truth: Any, noise: Any, widths: Any, unit: Any) -> Any:
        floats, put = split_floats((sample.params, sample.x, dy))
        vector, unravel = ravel_pytree(floats)

        def body(largest: Any, row_and_width: Any) -> Any:
            row, width = (v.astype(vector.dtype) for v in row_and_width)
            factors = 1 + row * (width * unit.astype(width.dtype) / MOST)
            params, x, moved_dy = put(unravel(vector * factors))
            moved = split_floats(traced(params, x, sample.key, moved_dy)[1:])[0]
            changes = [jax.lax.abs(m - t) / width for m, t in zip(moved, truth, strict=True)]
            return jax.tree.map(jax.lax.max, largest, changes), None

        nothing = [jax.lax.full_like(t, 0) for t in truth]
        return jax.lax.scan(body, nothing, (noise, widths))[0]

    return jit_for_few_runs(run)
