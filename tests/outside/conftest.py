"""Tests against other libraries, which only ``make test-outside`` installs and runs."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "outside" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # what others warn of
