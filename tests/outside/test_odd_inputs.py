"""No right block is flagged: the further rows of the table, and whatever numbers they get."""

from __future__ import annotations

import pytest

from tests import zoo
from tests.check import odd_inputs
from tests.check.test_zoo_is_right import CHECKED, FIRST, assert_right


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.id)
def test_no_right_block_is_flagged_at_odd_inputs(case: zoo.Case) -> None:
    for kind in odd_inputs.CHANGES:
        report = odd_inputs.report(case, kind)
        assert report is None or report.correct, f"{kind}\n{report}"


@pytest.mark.parametrize(
    "case", [case for case in CHECKED if case.further], ids=lambda case: case.id
)
def test_no_right_block_is_flagged(case: zoo.Case) -> None:
    assert_right(case)
