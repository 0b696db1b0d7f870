"""No right block is flagged: fnn.check over every row of the table of blocks."""

from __future__ import annotations

import pytest

from fnn.check.checks import first_wrong, subject_for
from tests import zoo
from tests.check import odd_inputs

CHECKED = [*filter(zoo.is_checked, zoo.CASES)]
FIRST = [case for case in CHECKED if not case.further]  # the others are in tests/outside


def assert_right(case: zoo.Case) -> None:
    params, x, key, _ = zoo.sample(case)
    wrong = first_wrong(subject_for(case.make(), x, params, key), noted=case.noted)
    assert wrong is None, wrong


@pytest.mark.slow
@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.id)
def test_no_right_block_is_flagged(case: zoo.Case) -> None:
    assert_right(case)


@pytest.mark.parametrize("kind", ["zeros", "equal"])
def test_equal_logits_have_a_second_derivative(kind: str) -> None:
    """At a tie jax.jvp through the maximum of a row gave 0: every row of a fresh network."""
    for case in FIRST:
        if case.name in ("softmax", "log_softmax"):
            report = odd_inputs.report(case, kind)
            assert report is not None and report["second order"].status == "right", str(report)
