"""No right block is flagged: fnn.check over every row of the table of blocks."""

from __future__ import annotations

import pytest

from fnn.check.checks import first_wrong, subject_for
from tests import zoo


@pytest.mark.slow
@pytest.mark.parametrize("case", [*filter(zoo.is_checked, zoo.CASES)], ids=lambda case: case.id)
def test_no_right_block_is_flagged(case: zoo.Case) -> None:
    params, x, key, _ = zoo.sample(case)
    wrong = first_wrong(subject_for(case.make(), x, params, key))
    assert wrong is None, wrong
