"""Infinities and NaN: does the rule give limits there, and does a NaN never become a number?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.check.report import SKIPPED, Problem, Result, verdict
from fnn.check.rule import Sample
from fnn.check.subject import Subject, all_finite, flat_floats
from fnn.check.trials import Trial

NEARLY_INFINITE = (1e4, 1e8)  # inputs at which a limit shows


def edges(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Infinite inputs give the limit of large ones; NaN gives NaN; zero divides nothing."""
    if subject.iterates or subject.decomposes:
        words = "forward has a loop or a decomposition that may not end at infinity"
        return Result("edges", SKIPPED, words)
    trial = trials[0]
    problems, limits = dict[str, Problem](), 0
    floats = subject.floats(trial.sample)
    for leaf, name in enumerate(subject.names):
        if not name.startswith("x") or not floats[leaf].size:
            continue
        size = floats[leaf].size
        texts = []
        for place in sorted({0, size // 2, size - 1}):
            if not np.isfinite(floats[leaf].reshape(-1)[place]):
                continue
            texts += [_limit(subject, trial, leaf, place, sign) for sign in (-1, 1)]
            texts.append(_nan(subject, trial, leaf, place))
            limits += 2
        texts.append(_masked_row(subject, trial, leaf))
        for text in filter(None, texts):
            problems.setdefault(name, Problem(name, text))
    if not limits:
        return Result("edges", SKIPPED, "x has no floating entries")
    figure = f"{limits} limits at infinity, NaN in NaN out, rows of -inf"
    if problems:
        figure = f"{len(problems)} inputs with something unusual, of {figure}"
    return verdict("edges", figure, problems.values())


def _with_entry(subject: Subject, trial: Trial, leaf: int, place: int, value: float) -> Sample:
    """The sample with another value in one entry of a leaf."""
    changed = subject.floats(trial.sample)[leaf].copy()
    changed.reshape(-1)[place] = value
    return subject.with_leaf(trial.sample, leaf, changed)


def _masked_row(subject: Subject, trial: Trial, leaf: int) -> str:
    rows = subject.floats(trial.sample)[leaf].copy()
    if not rows.ndim or rows.shape[-1] < 2 or trial.sample.key is not None:
        return ""
    rows[(0,) * (rows.ndim - 1)] = -np.inf
    y, got = subject.run(subject.with_leaf(trial.sample, leaf, rows), trial.dy)
    if all_finite(y) and got[leaf] is not None and np.isnan(got[leaf]).any():
        return "is NaN for a row of -inf (fully masked), where y is finite"
    return ""


def _limit(subject: Subject, trial: Trial, leaf: int, place: int, sign: int) -> str:
    (_, near), (far_y, far), (y, got) = (
        subject.run(_with_entry(subject, trial, leaf, place, sign * size), trial.dy)
        for size in (*NEARLY_INFINITE, np.inf)
    )
    for v, far_v in zip(jax.tree.leaves(y), jax.tree.leaves(far_y), strict=True):
        # Where y itself does not have the limit (several infinities meet), no slope has to.
        if is_floating(v) and not np.allclose(v, far_v, 1e-3, 1e-6):
            return ""
    for i, name in enumerate(subject.names):
        # A weight's gradient may be 0 times the infinite input. Of a function any argument may
        # be a weight.
        if not name.startswith("x") or (subject.rule.block is None and i != leaf):
            continue
        if near[i] is None or got[i] is None or far[i] is None or not near[i].size:
            continue
        size = np.max(np.abs(far[i]), initial=0) + 1e-300
        settled = np.isfinite(far[i]) & (np.abs(near[i] - far[i]) <= 1e-3 * size)
        wrong = settled & ~(np.abs(got[i] - far[i]) <= 2e-3 * size)
        if wrong.any():
            spot = np.unravel_index(np.argmax(wrong), wrong.shape)
            return (
                f"with an input of {sign * np.inf}, {name}{[int(p) for p in spot]} is "
                f"{got[i][spot]:g}, where the limit is {far[i][spot]:.6g} and y is not NaN"
            )
    return ""


def _nan(subject: Subject, trial: Trial, leaf: int, place: int) -> str:
    """A NaN must show in y; and in the cotangent, where that depends on the input."""

    def at(value: float) -> tuple[np.ndarray, Any]:
        y, got = subject.run(_with_entry(subject, trial, leaf, place, value), trial.dy)
        return flat_floats(y), None if got[leaf] is None else np.ravel(got[leaf])[place]

    value = float(subject.floats(trial.sample)[leaf].reshape(-1)[place])
    probes = [at(v) for v in (value, -value + 0.37, 3 * value - 0.21)]
    probes = [(y, d) for y, d in probes if np.isfinite(y).all()]
    y, d = at(np.nan)
    depends = any(not np.array_equal(other, probes[0][0]) for other, _ in probes[1:])
    if depends and not np.isnan(y).any():
        return "forward turns a NaN into a number: NaN in must be NaN out"
    if d is None or np.isnan(d) or not any(other != probes[0][1] for _, other in probes[1:]):
        return ""
    block = subject.rule.block
    if block is not None and block.rules.subgradient is not None:
        at_nan = _with_entry(subject, trial, leaf, place, np.nan)
        declared = jax.tree.leaves(block.rules.subgradient(at_nan.x, trial.dy))
        if len(declared) == 1 and np.isclose(np.ravel(declared[0])[place], d, 1e-9, 0):
            return ""  # the block's own choice where there is no derivative; the NaN shows in y
    if not subject.no_autodiff and block is None:
        sample = _with_entry(subject, trial, leaf, place, np.nan)
        if np.ravel(subject.autodiff(sample, trial.dy)[leaf])[place] == d:
            return ""  # a branch of JAX's own, such as max: the NaN shows in y
    return f"is {d:g} where the input is NaN: NaN in must be NaN out, never a number"
