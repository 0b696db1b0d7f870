"""No right block is flagged: fnn.check over every row of the table of blocks."""

from __future__ import annotations

import pytest

from fnn.check.checks import first_wrong, subject_for
from tests import zoo

EMPTY = ("sum/empty axis", "mean/empty axis")  # without a number there is no gradient to check

CASES = [case for case in zoo.CASES if not case.surrogate and case.id not in EMPTY]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_no_right_block_is_flagged(case: zoo.Case) -> None:
    params, x, key, _ = zoo.sample(case)
    wrong = first_wrong(subject_for(case.make(), x, params, key))
    assert wrong is None, wrong
