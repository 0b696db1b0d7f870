"""Further rows of the table of blocks under what takes long; each block's first row is under it in
make test and make test-slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.blocks import test_platforms, test_zoo
from tests.blocks.test_platforms import platform
from tests.test_transformations import BATCHED, SETTINGS, TRANSFORMATIONS
from tests.test_transformations import test_settings as under_a_setting
from tests.test_transformations import test_transformations as transformed
from tests.zoo import CASES, Case

__all__ = ["platform"]


def further(rows: list[Case], ways: Any) -> list[Any]:
    return [
        pytest.param(case, way, id=f"{case.id}-{getattr(way, '__name__', way)}")
        for case in rows
        if case.further
        for way in ways
    ]


@pytest.mark.parametrize(("case", "holds"), further(CASES, test_zoo.PROPERTIES))
def test_block(case: Case, holds: Callable[[Case], None]) -> None:
    if test_zoo.PROPERTIES[holds](case):
        holds(case)


@pytest.mark.parametrize(("case", "setting"), further(CASES, SETTINGS))
def test_settings(case: Case, setting: str) -> None:
    under_a_setting(case, setting)


@pytest.mark.parametrize(("case", "name"), further(BATCHED, TRANSFORMATIONS))
def test_transformations(case: Case, name: str) -> None:
    transformed(case, name)


@pytest.mark.parametrize("case", [case for case in test_platforms.ROWS if case.further])
def test_platforms_agree(case: Case, platform: str) -> None:
    test_platforms.test_gradients_on_every_platform(case, platform)
    test_platforms.test_16_bits_on_every_platform(case, platform)
