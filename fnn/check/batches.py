"""Does the rule treat examples separately, in batches of any size?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fnn.check.diagnosis import Case, constant_ratio, explain, worst_entry
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result, verdict
from fnn.check.subject import Subject, all_finite, largest, map_floats
from fnn.check.suspicion import suspects
from fnn.check.trials import (
    Batch,
    Trial,
    compare,
    find_batch,
    in_one_line,
    noise,
    sizes_of,
    trial_at,
)

MAX_INPUTS = 2**15  # numbers in x, up to which the batch is made larger
MANY = 37  # examples: more than any tile that a loop goes by, and no multiple of one


def microbatches(subject: Subject, trials: Sequence[Trial]) -> Result:
    """The gradient of a batch is put together from those of its halves."""
    trial = trials[0]
    batch = find_batch(subject, trials[min(2, len(trials) - 1)])  # at no special numbers
    if isinstance(batch, str):
        return Result("microbatches", SKIPPED, batch)
    if isinstance(batch, Problem):
        return Result("microbatches", SKIPPED, "backward raises for half a batch")
    if not all_finite(trial.y):
        return Result("microbatches", SKIPPED, "y is not finite")

    def of_half(cut: slice) -> tuple[Any, Any]:
        share = (cut.stop - cut.start) / batch.size if batch.kind == "mean" else 1.0
        dy = jax.tree.map(lambda d: d[cut] if batch.kind == "rows" else share * d, trial.dy)
        _, dparams, dx = subject.programs.run(*batch.rows(trial.sample, cut), dy)
        return dparams, dx

    def join(along: bool, a: Any, b: Any) -> Any:
        if a is None:
            return None
        return np.concatenate([a, b]) if along else np.add(a, b)

    (dparams1, dx1), (dparams2, dx2) = map(of_half, batch.halves)
    dx = jax.tree.map(join, batch.along, dx1, dx2)
    want = (trial.y, jax.tree.map(np.add, dparams1, dparams2), dx)
    got = (trial.y, *subject.programs.run(*trial.sample, trial.dy)[1:])
    words = "of the whole batch is not that of its halves together"
    result = compare(subject, trial, "microbatches", got, want, 1e-9, words, _explain_halves)
    if result.status == WRONG and _halves_are_right(subject, trial, batch):
        return Result("microbatches", SKIPPED, "the gradients of a batch's halves are not its own")
    return result


def _halves_are_right(subject: Subject, trial: Trial, batch: Batch) -> bool:
    """Whether autodiff agrees on each half: then, at these numbers, y alone is that of halves."""
    if subject.no_autodiff:
        return False
    for cut in batch.halves:
        half = trial_at(subject, batch.rows(trial.sample, cut), np.random.default_rng(0))
        want = subject.autodiff(half.sample, half.dy)
        limit = subject.tolerance(1e-6) * largest(want)
        for whole, g, w in zip(trial.got, half.got, want, strict=True):
            if whole is None:
                continue
            if g is None or g.shape != w.shape or not np.all(np.abs(g - w) <= limit):
                return False
    return True


def _explain_halves(case: Case) -> str:
    if r := constant_ratio(case.got, case.want):
        return (
            f"{r:.6g} times as much everywhere, though the outputs agree: the size of the batch "
            "enters the rule, hard-coded or as a mean in place of a sum"
        )
    return explain(case)


def batch_sizes(subject: Subject, trials: Sequence[Trial]) -> Result:
    """One example, and many, or one more than given (ragged sizes): against autodiff."""
    trial = trials[0]
    batch = find_batch(subject, trials[min(2, len(trials) - 1)])  # at no special numbers
    if isinstance(batch, str):
        return Result("batch sizes", SKIPPED, batch)
    if isinstance(batch, Problem):
        return Result("batch sizes", WRONG, "backward raises", (batch,))
    if subject.no_autodiff:
        return Result("batch sizes", SKIPPED, subject.no_autodiff)
    rng = np.random.default_rng(subject.seed + 5)
    problems, sizes, wrong = dict[str, Problem](), [], dict[int, None]()
    here = subject.autodiff(trial.sample, trial.dy)
    per_example = sum(np.size(v) for v in jax.tree.leaves(trial.sample.x)) // batch.size
    fits = batch.size + 1 < MANY <= MAX_INPUTS // max(per_example, 1)
    for n in (1, MANY if fits else batch.size + 1):
        sample = batch.rows(trial.sample, np.arange(n) % batch.size)
        sample = sample._replace(
            x=map_floats(lambda v: v * rng.uniform(0.8, 1.2, v.shape), sample.x)
        )
        try:
            other = trial_at(subject, sample, rng)
        except Exception as error:
            text = f"raises for a batch of {n}: {in_one_line(error)}"
            problems.setdefault("backward", Problem("backward", text))
            wrong[n] = None
            continue
        got, want = other.got, subject.autodiff(sample, other.dy)
        sizes.append(n)
        floats = subject.floats(sample)
        limit = subject.tolerance(1e-8) * largest(want) + subject.atol + 1e-300
        for i, name in enumerate(subject.names):
            if got[i] is None:
                continue
            if got[i].shape != want[i].shape:
                text = f"has shape {got[i].shape} for a batch of {n}, needs {want[i].shape}"
                problems.setdefault(name, Problem(name, text))
                wrong[n] = None
                continue
            allowed = limit + noise(subject, other)[i]
            off = suspects(subject, other, i, want[i], allowed)
            if off.any():
                again = [(trial.got[i], here[i], sizes_of(subject, trial))]
                case = Case(got[i], want[i], floats[i], sizes=sizes_of(subject, other), again=again)
                text = f"for a batch of {n}: {explain(case)}"
                problems.setdefault(name, Problem(name, text, worst_entry(case)))
                wrong[n] = None
    if problems:
        words = f"wrong for a batch of {' and of '.join(map(str, wrong))}"
        return verdict("batch sizes", words, problems.values())
    return Result("batch sizes", RIGHT, f"right for batches of {', '.join(map(str, sizes))} too")
