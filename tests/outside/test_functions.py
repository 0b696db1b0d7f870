"""fnn.check.function on functions of public packages: no false alarm, no crash, in its time; their
known defects, and rules broken on purpose, are found and named."""

from __future__ import annotations

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments.benchmarks.defects import DEFECTS, Defect, says
from tests.outside import richardson
from tests.outside.broken import BROKEN, Broken, Rule
from tests.outside.functions import RIGHT, SURROGATES, Draw, Row

pytestmark = pytest.mark.as_users
BUDGET = 60  # seconds of the process for one check, by default


def verdict(report: fnn.check.Report) -> bool:
    return report.correct


def made(row: Row) -> tuple[Any, ...]:
    return row.make(pytest.importorskip(row.package), Draw(row))


def checked(row: Row) -> fnn.check.Report:
    f, *args = made(row)
    return fnn.check.function(f, *args, name=row.name, **row.options)


@pytest.mark.parametrize("row", RIGHT, ids=str)
def test_a_right_gradient_is_found_right(row: Row) -> None:
    start = time.process_time()
    report = checked(row)
    if not verdict(report):
        pytest.fail(str(report), pytrace=False)
    assert time.process_time() - start < 1.5 * BUDGET


@pytest.mark.slow
@pytest.mark.parametrize("row", RIGHT, ids=str)
def test_the_table_is_right(row: Row) -> None:
    f, *args = made(row)
    tolerance = row.options.get("rtol", 1e-3 if "dtype" in row.options else 1e-7)
    error, doubt = richardson.errors(f, *args)
    assert error < tolerance and doubt < tolerance


@pytest.mark.parametrize("row", SURROGATES, ids=str)
def test_a_declared_surrogate_is_right_and_another_is_not(row: Row) -> None:
    f, *args = made(row)
    assert verdict(checked(row))

    def twice(*args: Any) -> Any:
        return jax.tree.map(lambda d: 2 * d, row.options["declared"](*args))

    assert not verdict(fnn.check.function(f, *args, declared=twice))


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_of_a_package_is_found(defect: Defect) -> None:
    pytest.importorskip(defect.package)
    if defect.is_right():
        pytest.skip("this version is right")
    assert says(defect.report()) == defect.says


@pytest.mark.parametrize("defect", [d for d in DEFECTS if not d.of_value], ids=str)
def test_the_truth_of_a_defect_is_that_of_differences(defect: Defect) -> None:
    pytest.importorskip(defect.package)
    with jax.enable_x64(True):
        f, *args = defect.case()
        args = [np.asarray(arg, np.float64) for arg in args]
        total = jax.jit(lambda *args: jnp.sum(f(*args)))
        for i, true in enumerate(defect.true()):
            for at in np.ndindex(args[i].shape):

                def value(t: float, i: int = i, at: tuple[int, ...] = at) -> float:
                    moved = [np.array(arg) for arg in args]
                    moved[i][at] += t
                    return float(total(*moved))

                got, _ = richardson.slope(value, 1e-3 * min(1, 100 * abs(args[i][at])) or 1e-3)
                assert np.isclose(got, np.asarray(true)[at], 1e-3, 1e-6)


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_broken_rule_is_found_and_named(broken: Broken | Rule) -> None:
    report = fnn.check.function(broken.rule(), *broken.args)
    assert not verdict(report)
    assert re.search(broken.words, str(report.problems[0])), report.problems[0]


def test_the_tables_are_large() -> None:
    packages = {row.package.split(".")[0] for row in RIGHT}
    assert len(RIGHT) >= 250 and len(packages) >= 15
    assert len(BROKEN) >= 60
