"""No right block is flagged: fnn.check over every row of the table of blocks."""

from __future__ import annotations

import pytest

from fnn.check.checks import first_wrong
from tests import zoo

# Of these the check finds what is declared: a gradient on purpose not forward's.
CASES = [case for case in zoo.CASES if not case.surrogate]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_no_right_block_is_flagged(case: zoo.Case) -> None:
    params, x, key, _ = zoo.sample(case)
    wrong = first_wrong(case.make(), x, params, key=key, name=case.id)
    assert wrong is None, wrong
