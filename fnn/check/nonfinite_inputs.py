"""Infinities and NaN: does the rule give limits there, and is it never silent?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fnn.block import is_floating
from fnn.check.derivative import Trial
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result
from fnn.check.rule import Sample
from fnn.check.subject import Cotangents, Lab

FAR = (1e4, 1e8)  # where a limit shows


def edges(lab: Lab, tried: Sequence[Trial]) -> Result:
    """Infinite inputs give the limit of large ones; NaN gives NaN; zero divides nothing."""
    trial = tried[0]
    problems, looked = dict[str, Problem](), 0
    floats = lab.floats(trial.sample)
    dy = trial.dy
    for leaf, name in enumerate(lab.names):
        if not name.startswith("x") or not floats[leaf].size:
            continue
        size = floats[leaf].size
        for place in sorted({0, size // 2, size - 1}):
            for sign in (-1, 1):
                found = _limit(lab, trial, leaf, place, sign)
                looked += 1
                if found:
                    problems.setdefault(name, Problem(name, found))
            if found := _nan(lab, trial, leaf, place):
                problems.setdefault(name, Problem(name, found))
        rows = floats[leaf].copy()
        if rows.ndim and rows.shape[-1] > 1 and trial.sample.key is None:
            rows[(0,) * (rows.ndim - 1)] = -np.inf
            y, got = lab.run(_with(lab, trial.sample, leaf, rows), dy)
            finite = all(np.isfinite(v).all() for v in jax.tree.leaves(y) if is_floating(v))
            if finite and got[leaf] is not None and np.isnan(got[leaf]).any():
                text = "is NaN for a row of -inf (fully masked), where y is finite"
                problems.setdefault(name, Problem(name, text))
    if not looked:
        return Result("edges", SKIPPED, "x has no floating entries")
    figure = f"{looked} limits at infinity, NaN in NaN out, rows of -inf"
    return Result("edges", WRONG if problems else RIGHT, figure, tuple(problems.values()))


def _with(lab: Lab, sample: Sample, leaf: int, value: np.ndarray) -> Sample:
    floats = lab.floats(sample)
    floats[leaf] = value
    return lab.fill(sample, floats)


def _set(a: np.ndarray, place: int, value: float) -> np.ndarray:
    a = np.array(a)
    a.reshape(-1)[place] = value
    return a


def _limit(lab: Lab, trial: Trial, leaf: int, place: int, sign: int) -> str:
    base = lab.floats(trial.sample)[leaf]

    def at(value: float) -> tuple[Any, Cotangents]:
        return lab.run(_with(lab, trial.sample, leaf, _set(base, place, value)), trial.dy)

    (_, near), (far_y, far) = (at(sign * f) for f in FAR)
    y, got = at(sign * np.inf)
    for v, near_by in zip(jax.tree.leaves(y), jax.tree.leaves(far_y), strict=True):
        # Where y itself does not have the limit (several infinities meet), no slope has to.
        if is_floating(v) and not np.allclose(v, near_by, 1e-3, 1e-6):
            return ""
    for i, other in enumerate(lab.names):
        if not other.startswith("x"):
            continue  # a weight's gradient may be 0 times the infinite input
        if near[i] is None or got[i] is None or far[i] is None or not near[i].size:
            continue
        size = np.max(np.abs(far[i]), initial=0) + 1e-300
        settled = np.isfinite(far[i]) & (np.abs(near[i] - far[i]) <= 1e-3 * size)
        off = np.abs(got[i] - far[i])
        wrong = settled & ~(off <= 2e-3 * size)
        if wrong.any():
            spot = np.unravel_index(np.argmax(wrong), wrong.shape)
            infinity = "-inf" if sign < 0 else "inf"
            value = got[i][spot]
            return (
                f"with an input of {infinity}, {other}{[int(p) for p in spot]} is {value:g}, where "
                f"the limit is {far[i][spot]:.6g} and y is not NaN"
            )
    return ""


def _nan(lab: Lab, trial: Trial, leaf: int, place: int) -> str:
    """A NaN must show in y; and in the cotangent, where that depends on the input."""
    base = lab.floats(trial.sample)[leaf]

    def at(value: float) -> tuple[Any, np.ndarray | None]:
        y, got = lab.run(_with(lab, trial.sample, leaf, _set(base, place, value)), trial.dy)
        d = got[leaf]
        flat = np.concatenate([np.ravel(v) for v in jax.tree.leaves(y) if is_floating(v)])
        return flat, None if d is None else np.ravel(d)

    value = float(base.reshape(-1)[place])
    probes = [at(value), at(-value + 0.37), at(3 * value - 0.21)]
    probes = [(y, d) for y, d in probes if np.isfinite(y).all()]
    y, d = at(np.nan)
    depends = any(not np.array_equal(a, probes[0][0]) for a, _ in probes[1:])
    if depends and not np.isnan(y).any():
        return "forward turns a NaN into a number: NaN in must be NaN out"
    ds = [p[1] for p in probes if p[1] is not None]
    if d is None or len(ds) < 2:
        return ""
    varies = any(p[place] != ds[0][place] for p in ds[1:])
    if varies and not np.isnan(d[place]):
        if not lab.no_autodiff and lab.rule.block is None:
            sample = _with(lab, trial.sample, leaf, _set(base, place, np.nan))
            if np.array_equal(np.ravel(lab.autodiff(sample, trial.dy)[leaf])[place], d[place]):
                return ""  # a branch of JAX's own, such as max: y tells of the NaN
        return f"is {d[place]:g} where the input is NaN: NaN in must be NaN out, never a number"
    return ""
