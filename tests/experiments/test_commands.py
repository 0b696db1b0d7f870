"""The command line: every flag is explained, a slip of the pen is answered, a pipe may end."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from experiments.__main__ import EXPERIMENTS, main
from tests.slow import one_of

pytestmark = pytest.mark.as_users


def flags(parser: Any) -> Iterator[Any]:
    """All arguments of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                yield from flags(inner)
        else:
            yield action


@pytest.mark.filterwarnings("ignore:get_parser:DeprecationWarning")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_says_what_every_flag_does(name: str) -> None:
    module = importlib.import_module(f"experiments.{name}")
    explained = 0
    for action in flags(tyro.extras.get_parser(module.Options)):
        words = (action.help or "").partition("(default")[0].partition("(required")[0].split()
        assert len(words) > 1, f"{name}: {action.option_strings or action.dest} {action.help!r}"
        explained += 1
    assert explained > 1


@pytest.mark.parametrize(
    "slip, meant", [("nueron", "neuron"), ("lectur", "lecture"), ("four-neurons", "four_neurons")]
)
def test_a_misspelt_experiment(slip: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([slip]) == 2
    assert f"there is no experiment '{slip}'; did you mean {meant}" in capsys.readouterr().err


PIPED = {
    "a run": (["experiments", "circuit"], 0),
    "a check": (["fnn.check", "fnn:square", "--input", "3", "--quick"], 0),
    "a list": (["experiments", "--list"], 0),
    "help": (["experiments", "digits", "--help"], 0),
    "help of a check": (["fnn.check", "fnn:square", "--help"], 0),
    "a wrong rule": (["fnn.check", "wrong:halved", "--input", "3", "--quick"], 1),
}
WRONG = """
import fnn

halved = fnn.square()._replace(backward=lambda params, x, dy: ({}, x * dy))
"""


@pytest.mark.parametrize("name", one_of(2, PIPED))
def test_a_reader_may_leave(name: str, tmp_path: Path) -> None:
    """Before anything is printed: no traceback, and the status is what it is anyway."""
    words, status = PIPED[name]
    (tmp_path / "wrong.py").write_text(WRONG)
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    run = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    with run.stderr:
        errors = run.stderr.read().decode()
    assert (run.wait(), errors) == (status, "")
