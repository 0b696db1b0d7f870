"""What a batch is of its examples: does the rule treat them separately, and batches of any size?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import is_floating
from fnn.check.derivative import Trial, sizes_of
from fnn.check.diagnosis import Case, constant_ratio, explain, worst_entry
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result
from fnn.check.rule import Sample
from fnn.check.subject import Lab, compiled, is_none
from fnn.check.transformations import compare, first_line
from fnn.pytrees import flat

MOST = 2**15  # numbers in a batch that is made larger
LARGER = 37  # examples: more than any tile that a loop goes by, and no multiple of one


class Batch(NamedTuple):
    """How the examples lie in x: their number, for each leaf of x whether its first axis counts
    them, and what y is of its parts: "rows", their "mean" or their "sum"."""

    size: int
    leaves: tuple[bool, ...]
    kind: str

    def rows(self, sample: Sample, rows: Any) -> Sample:
        """Some of the examples."""
        leaves, tree = flat(sample.x)
        some = [
            np.asarray(leaf)[rows] if along else leaf
            for leaf, along in zip(leaves, self.leaves, strict=True)
        ]
        return sample._replace(x=tree.unflatten(some))


def batches(lab: Lab, tried: Sequence[Trial]) -> list[Result]:
    """Two properties of a block that treats examples separately: parts and other sizes."""
    trial = tried[0]
    found = find(lab, trial)
    if isinstance(found, Batch):
        return [_parts(lab, trial, found), _other_sizes(lab, trial, found)]
    if isinstance(found, Problem):
        wrong = Result("batch sizes", WRONG, "backward raises", (found,))
        return [Result("microbatches", SKIPPED, "backward raises for half a batch"), wrong]
    return [Result("microbatches", SKIPPED, found), Result("batch sizes", SKIPPED, found)]


def find(lab: Lab, trial: Trial) -> Batch | Problem | str:
    """How the examples lie in x; what is wrong with half of them; or why there are none."""
    if trial.sample.key is not None:
        return "a random key: other batches draw other numbers"
    why = "the inputs have no common first axis of two or more"
    for size, leaves in _guesses(lab, trial):
        batch = Batch(size, leaves, "")
        halves = [batch.rows(trial.sample, cut) for cut in _cuts(size)]
        raised = ""
        try:
            try:
                dys = [lab.cotangent(np.random.default_rng(0), half) for half in halves]
                ys = [lab.run(half, dy)[0] for half, dy in zip(halves, dys, strict=True)]
            except Exception as error:  # by forward, or by backward alone?
                raised = first_line(error)
                ys = [compiled(lab.rule.forward)(*half)[0] for half in halves]
        except Exception as error:
            why = f"half a batch raises {first_line(error)}"
            continue
        why = "the examples of a batch are not separate"
        if kind := _kind(trial.y, ys, [size // 2, size - size // 2]):
            if raised:
                return Problem("backward", f"raises for a batch of {size // 2}: {raised}")
            return batch._replace(kind=kind)
    return why


def _guesses(lab: Lab, trial: Trial) -> Iterator[tuple[int, tuple[bool, ...]]]:
    """Which leaves of x may hold examples along their first axis: all; else, where weights are
    among them, those that are as long as y, or the first alone."""
    lengths = [np.shape(v)[0] if np.ndim(v) else 0 for v in jax.tree.leaves(trial.sample.x)]
    if len(set(lengths)) == 1 and lengths[0] > 1:
        yield lengths[0], (True,) * len(lengths)
    if len(lengths) < 2 or lab.rule.block is not None:
        return
    outputs = {np.shape(v)[0] if np.ndim(v) else 0 for v in jax.tree.leaves(trial.y)}
    n = outputs.pop() if len(outputs) == 1 else 0
    n = n or lengths[0]  # of a loss: the first is the data
    some = tuple(length == n for length in lengths)
    if n > 1 and any(some) and not all(some):
        yield n, some
    if lengths[0] > 1:
        yield lengths[0], (True, *(False,) * (len(lengths) - 1))


def _cuts(size: int) -> tuple[slice, slice]:
    return slice(0, size // 2), slice(size // 2, size)


def _kind(y: Any, parts: Sequence[Any], counts: Sequence[int]) -> str:
    """What the output of a batch is of its parts: "rows", their "mean" or their "sum"."""
    leaves = [jax.tree.leaves(v) for v in (y, *parts)]
    if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in leaves[0]):
        return ""

    def close(a: Any, b: Any) -> bool:
        return np.shape(a) == np.shape(b) and np.allclose(a, b, 1e-9, 1e-12, equal_nan=True)

    if any(len(part) != len(leaves[0]) for part in leaves):
        return ""

    total = sum(counts)
    shares = [n / total for n in counts]
    if all(
        np.ndim(w) and np.shape(a)[1:] == np.shape(b)[1:] and close(np.concatenate([a, b]), w)
        for w, a, b in zip(*leaves, strict=True)
    ):
        return "rows"
    if any(len({np.shape(v) for v in parts}) > 1 for parts in zip(*leaves, strict=True)):
        return ""
    if all(close(shares[0] * np.asarray(a) + shares[1] * np.asarray(b), w)
           for w, a, b in zip(*leaves, strict=True)):  # fmt: skip
        return "mean"
    if all(close(np.asarray(a) + np.asarray(b), w) for w, a, b in zip(*leaves, strict=True)):
        return "sum"
    return ""


def _parts(lab: Lab, trial: Trial, batch: Batch) -> Result:
    results = []
    for cut in _cuts(batch.size):
        share = (cut.stop - cut.start) / batch.size if batch.kind == "mean" else 1.0
        dy = jax.tree.map(
            lambda d, c=cut, s=share: d[c] if batch.kind == "rows" else s * d, trial.dy
        )  # fmt: skip
        results.append(lab.programs.run(*batch.rows(trial.sample, cut), dy))
    (_, dp1, dx1), (_, dp2, dx2) = results

    def add(a: Any, b: Any) -> Any:
        return None if a is None else np.asarray(a) + np.asarray(b)

    def join(along: bool, a: Any, b: Any) -> Any:
        if a is None or not along:
            return add(a, b)
        return np.concatenate([a, b])

    along = flat(trial.sample.x)[1].unflatten(batch.leaves)
    want = (trial.y, jax.tree.map(add, dp1, dp2, is_leaf=is_none),
            jax.tree.map(join, along, dx1, dx2, is_leaf=is_none))  # fmt: skip
    got = (trial.y, *lab.programs.run(*trial.sample, trial.dy)[1:])
    return compare(lab, "microbatches", got, want, 1e-9,
                   "of the whole batch is not that of its halves together", _of_parts)  # fmt: skip


def _of_parts(case: Case) -> str:
    if r := constant_ratio(case.got, case.want):
        return (
            f"{r:.6g} times as much everywhere, though the outputs agree: the size of the batch "
            "enters the rule, hard-coded or as a mean in place of a sum"
        )
    return explain(case)


def _other_sizes(lab: Lab, trial: Trial, batch: Batch) -> Result:
    """One example, and many, or one more than given (ragged sizes): against autodiff."""
    if lab.no_autodiff:
        return Result("batch sizes", SKIPPED, lab.no_autodiff)
    rng = np.random.default_rng(lab.seed + 5)
    problems, tried = dict[str, Problem](), []
    here = lab.autodiff(trial.sample, trial.dy)
    entries = sum(np.size(v) for v in jax.tree.leaves(trial.sample.x)) // batch.size
    fits = batch.size + 1 < LARGER <= MOST // max(entries, 1)
    for n in (1, LARGER if fits else batch.size + 1):
        sample = batch.rows(trial.sample, np.arange(n) % batch.size)
        sample = sample._replace(x=jax.tree.map(
            lambda v: v * rng.uniform(0.8, 1.2, v.shape) if is_floating(v) else v, sample.x
        ))  # fmt: skip
        dy = lab.cotangent(rng, sample)
        try:
            y, got = lab.run(sample, dy)
        except Exception as error:
            text = f"raises for a batch of {n}: {first_line(error)}"
            problems.setdefault("backward", Problem("backward", text))
            continue
        want = lab.autodiff(sample, dy)
        there = Trial(f"batch {n}", sample, dy, y, got)
        tried.append(n)
        for i, name in enumerate(lab.names):
            if got[i] is None:
                continue
            if got[i].shape != want[i].shape:
                text = f"has shape {got[i].shape} for a batch of {n}, needs {want[i].shape}"
                problems.setdefault(name, Problem(name, text))
                continue
            known = np.isfinite(want[i])
            limit = lab.loose(1e-8) * np.max(np.abs(want[i][known]), initial=0) + 1e-300
            if not np.max(np.abs(got[i] - want[i])[known], initial=0) <= limit:
                floats = lab.floats(sample)
                again = [(trial.got[i], here[i], sizes_of(lab, trial))]
                case = Case(got[i], want[i], floats[i], {}, {}, sizes_of(lab, there), again)
                text = f"for a batch of {n}: {explain(case)}"
                problems.setdefault(name, Problem(name, text, worst_entry(case)))
    figure = f"right for batches of {', '.join(map(str, tried))} too"
    if problems:
        return Result("batch sizes", WRONG, f"{len(problems)} leaves", tuple(problems.values()))
    return Result("batch sizes", RIGHT, figure)
