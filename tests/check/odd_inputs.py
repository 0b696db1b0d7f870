"""Inputs that people have and random numbers are not: zeros, ties, masks, huge, tiny, infinite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.check import CheckError
from fnn.check.checks import subject_for
from fnn.check.precision import DTYPES
from fnn.check.report import Report
from fnn.check.run import Options, Run
from tests import zoo

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _first(value: float) -> Change:
    return lambda v, rng: np.where(np.arange(v.size).reshape(v.shape) == 0, value, v)


def _times(factor: float) -> Change:
    return lambda v, rng: factor * v


CHANGES: dict[str, Change] = {
    "zeros": lambda v, rng: np.zeros_like(v),
    "ones": lambda v, rng: np.ones_like(v),
    "equal": lambda v, rng: np.full_like(v, 0.5),
    "whole numbers": lambda v, rng: rng.integers(-2, 3, v.shape).astype(v.dtype),
    "zeros and ones": lambda v, rng: (rng.uniform(size=v.shape) < 0.3).astype(v.dtype),
    "half of them 0": lambda v, rng: np.where(rng.uniform(size=v.shape) < 0.5, 0, v),
    "the same rows": lambda v, rng: np.broadcast_to(v[:1], v.shape).copy() if v.ndim else v,
    "a NaN": _first(np.nan),
    "an infinity": _first(np.inf),
    "minus infinity": _first(-np.inf),
    "times 1e-30": _times(1e-30),
    "times 1e-200": _times(1e-200),
    "times 1e30": _times(1e30),
    "times 1e200": _times(1e200),
}
# Digits in narrow dtypes are notes, and cost is no verdict.
LEFT_OUT = frozenset([*DTYPES, "cost"])


def report(case: zoo.Case, change: str) -> Report | None:
    """The check of a row of the zoo at such inputs; None where it cannot be run there."""
    with jax.enable_x64(True):
        params, x, key, _ = zoo.sample(case)
    rng = np.random.default_rng(0)

    def one(leaf: Any) -> Any:
        array = np.asarray(leaf)
        return CHANGES[change](array, rng) if is_floating(array) else leaf

    try:
        subject = subject_for(case.make(), jax.tree.map(one, x), params, key)
    except CheckError:
        return None  # the block refuses such numbers
    return Run(subject, Options(frozenset(), LEFT_OUT, np.inf, timed=False)).report()
