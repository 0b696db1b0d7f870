"""Laws that a right gradient obeys: which one is broken says more than "it is wrong"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def broken_law(exercise: str, name: str, inputs: Sequence[np.ndarray], got: np.ndarray) -> str:
    """The kind of mistake, for :mod:`experiments.course.hints`; '' if no law is broken."""
    laws = LAWS.get((exercise, name), {})
    return next((kind for kind, sums in laws.items() if not _zero(sums(got, *inputs), got)), "")


def _zero(sums: np.ndarray, got: np.ndarray) -> bool:
    return bool(np.max(np.abs(sums)) <= 1e-9 * np.max(np.abs(got)))


def _columns(dx: np.ndarray, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    """Of batch norm: all of a column moved by one number changes no output."""
    return dx.sum(0)


def _spread(dx: np.ndarray, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    """Of batch norm: a column stretched about its mean changes no output."""
    return np.sum((x - x.mean(0)) * dx, 0)


def _rows(dz: np.ndarray, *_: np.ndarray) -> np.ndarray:
    """Of softmax: all of a row moved by one number changes no probability."""
    return dz.sum(1)


LAWS: dict[tuple[str, str], dict[str, Callable[..., np.ndarray]]] = {
    ("batch_norm", "dx"): {"columns": _columns, "spread": _spread},
    ("softmax", "dz"): {"rows": _rows},
}
