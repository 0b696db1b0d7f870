"""Where other libraries' gradients were reported wrong, fnn's are right to the last few units."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import failures
from experiments.benchmarks.defects import DEFECTS
from experiments.benchmarks.failure_cases import CASES, Case
from tests.slow import one_of


@pytest.mark.parametrize("case", one_of(2, CASES, lambda case: case.cite))
def test_fnn_is_right_where_others_were_not(case: Case) -> None:
    found = failures.gradients(case, reported=False)
    assert found.fnn.shape == np.shape(found.truth)
    for ours in (found.fnn, found.compiled):
        assert failures.units_off(ours, found.truth, case.x.dtype) <= 4


REPORTED = [case for case in CASES if case.note]  # those rules stay what they were


@pytest.mark.parametrize("case", one_of(3, REPORTED, lambda case: case.cite))
def test_the_reported_formula_fails(case: Case) -> None:
    found = failures.gradients(case)
    word = failures.verdict(found.reported, found.truth, case.x.dtype)
    assert word in ("NaN", "wrong", "inaccurate")


def test_citations_are_of_issues_and_unique() -> None:
    cites = [case.cite for case in CASES]
    assert len(set(cites)) == len(cites) >= 15
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#[1-9]\d*", cite) for cite in cites)


@pytest.mark.slow
def test_checkers_tell_a_reversed_mask() -> None:
    (case,) = (case for case in CASES if case.title == "relu's mask")
    for checker in (failures.by_check_grads, failures.by_fnn):
        assert checker(case.ours.value, case.rule, case.x) == failures.YES
        assert checker(case.ours.value, case.ours.gradient, case.x) == failures.NO


@pytest.mark.slow
def test_fnn_check_notes_what_is_lost_in_a_narrow_dtype() -> None:
    case = next(case for case in CASES if case.title == "sigmoid, right tail")
    x = jnp.asarray(case.ordinary, case.x.dtype)
    assert failures.by_fnn(case.ours.value, case.rule, x) == failures.NOTED
    assert failures.by_fnn(case.ours.value, case.ours.gradient, x) == failures.NO


def test_verdicts() -> None:
    one = np.ones(1)
    assert failures.verdict(one * np.nan, one, np.float32) == "NaN"
    assert failures.verdict(one * 0, one, np.float32) == "wrong"
    assert failures.verdict(one * 1.01, one, np.float32) == "inaccurate"
    assert failures.verdict(one, one, np.float32) == "right here today"
    assert failures.units_off(one * 0, one * 0, np.float64) == 0


def test_record_of_the_gradients_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "CASES", [case for case in CASES if case.torch is None][:2])
    failures.main(failures.Options(checkers=False, out=tmp_path / "FAILURES.md"))
    text = (tmp_path / "FAILURES.md").read_text()
    assert "jax-ml/jax#40342" in text and "2 reports" in text


@pytest.mark.slow
@pytest.mark.as_users
def test_record_of_what_fnn_check_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cg,) = (d for d in DEFECTS if "cg" in d.name)
    gone = cg._replace(package="no_such_package.math")
    right = cg._replace(name="what it gives", true=cg.got)
    monkeypatch.setattr(failures, "DEFECTS", (cg, gone, right))
    failures.found(tmp_path / "FAILURES.md", "here")
    text = (tmp_path / "FAILURES.md").read_text()
    assert "## Found by fnn.check" in text and text.count("WRONG: x/0: ") == 2
    assert "2 defects, 1 of which show here. Right here today: jax.scipy.sparse.linalg: " in text
    assert "Left out, not installed: no_such_package (" in text
