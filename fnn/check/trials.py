"""Shared by the properties: evaluations of the rule, their comparison, and the batch in x."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.check.diagnosis import Case, explain, worst_entry
from fnn.check.report import WRONG, Problem, Result, verdict
from fnn.check.rule import Sample, redraw
from fnn.check.subject import Cotangents, Subject, compiled, largest, leaves_of, map_floats
from fnn.pytrees import flat

STIRS = 4  # small changes of the inputs: by one alone what is near 0 may stay as it is
ROUNDINGS = 10  # times what they do is no error in a narrow dtype


class Trial(NamedTuple):
    """One evaluation: where, under which upstream cotangent, and what the rule returned."""

    sample: Sample
    dy: Any
    y: Any
    got: Cotangents


def evaluate(subject: Subject) -> list[Trial]:
    """The rule at the given inputs under two random cotangents; then at other and at large ones,
    where it runs there."""
    rng = np.random.default_rng(subject.seed)
    here = subject.sample
    trials = [trial_at(subject, here, rng) for _ in range(2)]
    samples = [Sample(redraw(here.params, rng), redraw(here.x, rng), here.key)]
    if not subject.iterates:  # a loop may not end there
        samples.append(scaled(here, 3.0))
    return [*trials, *filter(None, (trial_if_it_runs(subject, s, rng) for s in samples))]


def trial_if_it_runs(subject: Subject, sample: Sample, rng: np.random.Generator) -> Trial | None:
    """The rule at a sample that the user did not give: None if it raises, which is its right."""
    callbacks = logging.getLogger("jax._src.callback")  # which reports what raises in them
    level = callbacks.level
    callbacks.setLevel(logging.CRITICAL)
    try:
        return trial_at(subject, sample, rng)
    except Exception:
        return None
    finally:
        callbacks.setLevel(level)


def trial_at(subject: Subject, sample: Sample, rng: np.random.Generator) -> Trial:
    """The rule at a sample, under a random cotangent."""
    dy = subject.random_cotangent(rng, sample)
    return Trial(sample, dy, *subject.run(sample, dy))


def noise(subject: Subject, trial: Trial) -> list[np.ndarray]:
    """How far rounding may carry each entry: what a change of some units in the inputs does."""
    if id(trial.got) in subject.noise:
        return subject.noise[id(trial.got)][1]

    def moved_by(number: int) -> Cotangents:
        moved = _stirred(subject, trial, number)[1]
        return [
            np.zeros(1)
            if a is None or b is None
            else np.nan_to_num(np.abs(a - b).astype(np.float64), posinf=0.0)
            for a, b in zip(trial.got, moved, strict=True)
        ]

    if subject.is_coarse:  # the tolerance is wide already, but where a whole leaf is rounding
        all_moved = zip(*(moved_by(number) for number in range(STIRS)), strict=True)
        changes = [np.full(leaf[0].shape, ROUNDINGS * largest(leaf)) for leaf in all_moved]
    else:
        finite = [c for c in trial.got if c is not None and np.isfinite(c).all()]
        size = largest([*filter(is_floating, jax.tree.leaves(trial.dy)), *finite])
        changes = [1e3 * change + 1e-15 * size for change in moved_by(0)]
    subject.noise[id(trial.got)] = trial.got, changes  # kept, so that the id stays its own
    return changes


def noise_of_y(subject: Subject, trial: Trial) -> Any:
    """How far rounding may carry each entry of y, likewise: where terms cancel, as in the sum of
    what was normalised, that is more than y itself."""
    if id(trial.y) in subject.noise:
        return subject.noise[id(trial.y)][1]

    def larger(change: Any, a: Any, b: Any) -> Any:
        if not is_floating(a):
            return change
        return np.maximum(change, np.nan_to_num(np.abs(a - b).astype(np.float64), posinf=0.0))

    changes = jax.tree.map(lambda v: np.zeros(v.shape), trial.y)
    for number in range(STIRS):
        moved, _ = _stirred(subject, trial, number)
        changes = jax.tree.map(larger, changes, trial.y, moved)
    subject.noise[id(trial.y)] = trial.y, changes
    return changes


def rounding_of_y(subject: Subject, trial: Trial, path: str) -> float:
    """What is no error in a leaf of y."""
    largest_change = np.max(dict(leaves_of((), (), noise_of_y(subject, trial)))[path], initial=0)
    return float(largest_change) * (ROUNDINGS if subject.is_coarse else 1e3)


def _stirred(subject: Subject, trial: Trial, number: int) -> tuple[Any, Cotangents]:
    """What the rule returns when every input moves by up to 4 units in its last place."""
    rng = np.random.default_rng(subject.seed + 1 + number)
    distance = 4 * subject.unit

    def stir(v: Any) -> Any:
        return (np.asarray(v) * (1 + distance * rng.uniform(-1, 1, np.shape(v)))).astype(v.dtype)

    params, x, key = trial.sample
    params, x = map_floats(stir, (params, x))
    return subject.run(Sample(params, x, key), map_floats(stir, trial.dy))


def scaled(sample: Sample, factor: float) -> Sample:
    """The sample with its inputs, not its parameters, times a factor."""
    return sample._replace(x=map_floats(lambda v: factor * v, sample.x))


def sizes_of(subject: Subject, trial: Trial) -> dict[str, int]:
    """The sizes that a constant factor may come from, by what they are."""
    sizes: dict[str, int] = {}
    for name, leaf in zip(subject.names, subject.floats(trial.sample), strict=True):
        for axis, n in enumerate(leaf.shape):
            batch = name.startswith("x") and axis == 0 and leaf.ndim > 1
            sizes[f"the batch size {n}" if batch else f"{n}, axis {axis} of {name}"] = n
        sizes[f"{leaf.size}, the entries of {name}"] = leaf.size
    for part in jax.tree.leaves(trial.y):
        for axis, n in enumerate(part.shape):
            sizes.setdefault(f"{n}, axis {axis} of y", n)
    return sizes


def in_one_line(error: Exception, length: int = 120) -> str:
    """The type of an exception and the beginning of its message, in one line.

    Of an exception in a callback, which JAX wraps in one of its own, the callback's.
    """
    kind, text = type(error).__name__, str(error)
    if "\nTraceback (most recent call last)" in f"\n{text}" or "callback: Traceback" in text:
        kind, _, text = re.split(r"\n(?=\S)", text, maxsplit=1)[-1].partition(": ")
    return f"{kind}: {' '.join(text.split())[:length]}"


def raises(property: str, words: str, error: Exception) -> Result:
    """The result of a property in which backward raised an exception."""
    return Result(
        property, WRONG, "raises", (Problem("backward", f"{words} {in_one_line(error)}"),)
    )


def compare(
    subject: Subject,
    trial: Trial,
    property: str,
    got: Any,
    want: Any,
    tolerance: float,
    words: str,
    diagnose: Callable[[Case], str] = explain,
) -> Result:
    """Two (y, dparams, dx) that should be the same numbers.

    The size of an error is relative to the largest cotangent of all: where a leaf's gradient is
    0, as that of a bias before a normalisation, the rounding of others is left in it.
    """
    problems, worst = [], 0.0
    changes = zip(subject.names, noise(subject, trial), strict=True)
    rounding = {name: float(np.max(change, initial=0)) for name, change in changes}
    leaves, right = (leaves_of(dparams, dx, y) for y, dparams, dx in (got, want))
    cotangents = [
        np.asarray(b)
        for path, b in right
        if b is not None and not path.startswith("y") and is_floating(b)
    ]
    whole = largest(cotangents)
    for (path, a), (_, b) in zip(leaves, right, strict=True):
        if a is None or b is None:
            if (a is None) != (b is None):
                problems.append(Problem(path, f"{words}: None in one of the two"))
            continue
        if not is_floating(b):
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            problems.append(Problem(path, f"{words}: shapes {a.shape} and {b.shape}"))
            continue
        size = largest([b]) if path.startswith("y") else whole
        error = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
        error = np.max(np.nan_to_num(error, nan=np.inf), initial=0)
        worst = max(worst, float(error / (size or 1.0)))
        allowed = subject.tolerance(tolerance) * size + rounding.get(path, 0.0)
        allowed += subject.atol + 1e-300
        if error > allowed and path.startswith("y"):
            allowed += rounding_of_y(subject, trial, path)
        if error > allowed:
            case = Case(a, b)
            problems.append(Problem(path, f"{words}: {diagnose(case)}", worst_entry(case)))
    return verdict(property, f"largest difference {min(worst, 1e300):.1e}", problems)


# ---- the batch -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The batch in x.

    ``size``: the number of examples. ``along``: for each leaf of x whether its first axis is the
    batch. ``kind``: the output of a batch is the "rows" of its parts, their "mean" or their "sum".
    """

    size: int
    along: Any
    kind: str

    def rows(self, sample: Sample, rows: Any) -> Sample:
        """Some of the examples."""

        def one(along: bool, leaf: Any) -> Any:
            return np.asarray(leaf)[rows] if along else leaf

        return sample._replace(x=jax.tree.map(one, self.along, sample.x))

    @property
    def halves(self) -> tuple[slice, slice]:
        """The examples of each half."""
        return slice(0, self.size // 2), slice(self.size // 2, self.size)


def find_batch(subject: Subject, trial: Trial) -> Batch | Problem | str:
    """The batch in x; the problem with half of it; or why there is none."""
    if trial.sample.key is not None:
        return "a random key: other batches draw other numbers"
    why = "the inputs have no common first axis of two or more"
    for size, leaves in _batch_axes(subject, trial):
        batch = Batch(size, flat(trial.sample.x)[1].unflatten(leaves), "")
        halves = [batch.rows(trial.sample, cut) for cut in batch.halves]
        raised = ""
        try:
            ys = [trial_at(subject, h, np.random.default_rng(0)).y for h in halves]
        except Exception as either:  # by forward, or by backward alone?
            raised = in_one_line(either)
            try:
                ys = [compiled(subject.rule.forward)(*half)[0] for half in halves]
            except Exception as error:
                why = f"half a batch raises {in_one_line(error)}"
                continue
        why = "the examples of a batch are not separate"
        if kind := _kind(trial.y, ys, [size // 2, size - size // 2]):
            if raised:
                return Problem("backward", f"raises for a batch of {size // 2}: {raised}")
            return batch._replace(kind=kind)
    return why


def _batch_axes(subject: Subject, trial: Trial) -> Iterator[tuple[int, tuple[bool, ...]]]:
    """Candidates: the length of the batch, and which leaves of x have it as their first axis.

    All leaves; else, where weights are among them, those that are as long as y, or the first
    leaf alone.
    """
    lengths = [np.shape(v)[0] if np.ndim(v) else 0 for v in jax.tree.leaves(trial.sample.x)]
    if len(set(lengths)) == 1 and lengths[0] > 1:
        yield lengths[0], (True,) * len(lengths)
    if len(lengths) < 2 or subject.rule.block is not None:
        return
    outputs = {np.shape(v)[0] if np.ndim(v) else 0 for v in jax.tree.leaves(trial.y)}
    n = outputs.pop() if len(outputs) == 1 else 0
    n = n or lengths[0]  # a loss: the first leaf is the data
    some = tuple(length == n for length in lengths)
    if n > 1 and any(some) and not all(some):
        yield n, some
    if lengths[0] > 1:
        yield lengths[0], (True, *(False,) * (len(lengths) - 1))


def _kind(y: Any, parts: Sequence[Any], counts: Sequence[int]) -> str:
    """Whether y is the "rows" of its parts, their "mean" or their "sum"; '' if none of them."""
    leaves = [jax.tree.leaves(v) for v in (y, *parts)]
    if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in leaves[0]):
        return ""
    if any(len(part) != len(leaves[0]) for part in leaves) or not any(map(np.any, leaves[0])):
        return ""

    def close(a: Any, b: Any) -> bool:
        same = np.shape(a) == np.shape(b)
        return same and np.allclose(a, b, 1e-9, 1e-12 * largest([b]), equal_nan=True)

    def adds_up(first: float, second: float) -> bool:
        return all(
            np.shape(a) == np.shape(b) and close(first * a + second * b, whole)
            for whole, a, b in zip(*leaves, strict=True)
        )

    if all(
        np.ndim(whole)
        and np.shape(a)[1:] == np.shape(b)[1:]
        and close(np.concatenate([a, b]), whole)
        for whole, a, b in zip(*leaves, strict=True)
    ):
        return "rows"
    fits = [kind for kind, shares in (("mean", [n / sum(counts) for n in counts]),
                                      ("sum", [1.0, 1.0])) if adds_up(*shares)]  # fmt: skip
    return fits[0] if len(fits) == 1 else ""  # of zeros and NaN it is both
