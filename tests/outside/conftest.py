"""Tests against other libraries, which only ``make test-outside`` installs and runs."""

import os

import pytest

PART = int(os.environ.get("FNN_OUTSIDE_PART", "1"))  # one test out of so many, for CI


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    outside = [item for item in items if "outside" in item.path.parts]
    for item in outside:
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # what others warn of
    left_out = {item for number, item in enumerate(outside) if number % PART}
    if left_out:
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]
