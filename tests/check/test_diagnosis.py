"""What fnn.check says of a wrong cotangent: each explanation by the smallest numbers it fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fnn.check.diagnosis import Case, alike, constant_ratio, explain, explain_shape, worst_entry

rng = np.random.default_rng(0)
WANT = rng.normal(size=(4, 6))
CUBE = rng.normal(size=(2, 3, 4))
SQUARE = rng.normal(size=(5, 5))
TERM = rng.normal(size=(4, 6))
ROW, COLUMN = np.indices(SQUARE.shape)
BATCH = {"the batch size 7": 7}


def marked(at: Any, factor: float = 3.0, want: np.ndarray = WANT) -> np.ndarray:
    """``want``, times a factor at some places."""
    got = want.copy()
    got[at] *= factor
    return got


CASES: dict[str, tuple[Case, str]] = {
    "another shape": (Case(WANT[0], WANT), r"has shape (6,), needs (4, 6)"),
    "pi too often": (Case(np.pi * WANT, WANT), "a factor pi is extra"),
    "pi too rarely": (Case(WANT / np.pi, WANT), "a factor pi is missing"),
    "the sign, and ln 2": (Case(-np.log(2) * WANT, WANT), "the sign is wrong, and a factor ln 2"),
    "n twice": (Case(49 * WANT, WANT, sizes=BATCH), "the batch size 7 enters twice too often"),
    "the root of n": (Case(WANT / 7**0.5, WANT, sizes=BATCH), "the square root of the batch"),
    "n - 1": (Case(WANT * 7 / 6, WANT, sizes=BATCH), "n - 1 in place of n, for the batch size 7"),
    "axes in another order": (Case(CUBE[:, :2].transpose(2, 1, 0), CUBE[:, :2].transpose(2, 0, 1)),
                              "has its axes in the order (0, 2, 1): transposed"),
    "shifted, zeros at the edge": (Case(np.pad(WANT[:, :-1], [(0, 0), (1, 0)]), WANT),
                                   "is shifted by 1 along axis 1"),
    "permuted": (Case(WANT[[2, 0, 3, 1]], WANT), "the right numbers in wrong places"),
    "a term of the wrong sign": (Case(WANT - 2 * TERM, WANT, arrays={"x": TERM}),
                                 "has a term of the wrong sign, which equals x"),
    "a factor too often": (Case(-WANT * TERM, WANT, arrays={"y": TERM[0], "x": TERM}),
                           "has the factor minus x too often"),
    "a factor too rarely": (Case(WANT, WANT * (1 - TERM**2), arrays={"y": TERM}),
                            "lacks the factor (1 - (y)^2)"),
    "infinite everywhere": (Case(np.full_like(WANT, np.inf), WANT),
                            "infinite in 24 of 24 entries where the truth is finite"),
    "the edges": (Case(marked((slice(None), [0, -1])), WANT),
                  "at the first and the last of 6 along axis 1, the edges"),
    "every second": (Case(marked((slice(None), slice(1, None, 2))), WANT),
                     "at one in every 2 along axis 1, from 1 on"),
    "some of a row": (Case(marked(((0, 2), (1, 4))), WANT), "wrong only in 2 of 24 entries"),
    "above the diagonal": (Case(marked(ROW < COLUMN, 3.0, SQUARE), SQUARE), ": above the diagonal"),
    "two matrices, two patterns": (
        Case(marked(np.stack([ROW < COLUMN, ROW > COLUMN]), 3.0, np.stack([SQUARE, SQUARE])),
             np.stack([SQUARE, SQUARE])), "wrong only in 20 of 50 entries"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_explanation(name: str) -> None:
    case, words = CASES[name]
    assert words in explain(case)


@pytest.mark.parametrize(
    "got, want, words",
    [
        (CUBE, CUBE.transpose(2, 0, 1), "it is transposed"),
        (CUBE, CUBE.sum(1), "not summed over axis 1"),
        (CUBE.sum((0, 2)), CUBE, "summed over axis 0, 2, which it should keep"),
        (CUBE.reshape(6, 4), CUBE, "reshape it"),
    ],
)
def test_a_wrong_shape(got: np.ndarray, want: np.ndarray, words: str) -> None:
    assert words in explain_shape(got, want)


def test_arrays_of_other_shapes_are_compared_with_nothing() -> None:
    assert not alike(WANT, WANT[0]) and not alike(np.full(3, np.nan), np.ones(3))
    assert constant_ratio(WANT[0], WANT) is None
    assert worst_entry(Case(WANT[0], WANT)) == "got shape (6,), expected (4, 6)"
