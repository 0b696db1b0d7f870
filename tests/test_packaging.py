"""What pyproject.toml says about the package is so; make wheel tries the package itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import fnn

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_said_once() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fnn.__version__"}
    heading = re.search(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heading and fnn.__version__.startswith(heading[1])


def test_files_that_are_not_python_are_in_the_package() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["fnn"]
    held = {path for pattern in patterns for path in (ROOT / "fnn").glob(pattern)}
    others = {
        path
        for path in (ROOT / "fnn").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert held == others


def test_every_folder_of_python_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "fnn").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_what_the_extras_need_is_pinned() -> None:
    """But for accelerators, whose libraries are the user's choice."""
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    extras = PROJECT["project"]["optional-dependencies"]
    needed = {
        re.split(r"[\[<>=]", requirement)[0]
        for extra, requirements in extras.items()
        if extra not in ("cuda", "tpu")
        for requirement in requirements
    }
    canonical = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    assert {name.lower() for name in needed} - canonical - {"fnn"} == set()
