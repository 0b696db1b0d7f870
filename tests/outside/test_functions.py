"""fnn.check.function on functions of public packages: no false alarm, no crash, in its time."""

from __future__ import annotations

import time
from typing import Any

import pytest

import fnn
from tests.outside import richardson
from tests.outside.functions import RIGHT, Draw, Row

pytestmark = pytest.mark.as_users
BUDGET = 60  # seconds of the process for one check, by default


def verdict(report: fnn.check.Report) -> bool:
    return getattr(report, "correct", report.ok)


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


def test_the_table_has_many_packages() -> None:
    packages = {row.package.split(".")[0] for row in RIGHT}
    assert len(RIGHT) >= 250 and len(packages) >= 15
