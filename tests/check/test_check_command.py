"""python -m fnn.check: exit status 0, 1 or 2, and a message that says the fix."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from fnn.check.__main__ import main
from fnn.check.command import Settings, check, draw_input, parse_arg

RULES = """
import fnn, jax, jax.numpy as jnp

def halved(scale=1.0):
    block = fnn.square()
    return block._replace(backward=lambda params, x, dy: ({}, scale * x * dy))

right = fnn.square()

@jax.custom_vjp
def doubled(x):
    return 2 * x

doubled.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * dy,))

def forward(x):
    return jnp.sin(x), x

def backward(x, dy):
    return (-dy * jnp.cos(x),)

def of_arrays(x):
    return doubled(x) + 1

def raises():
    raise RuntimeError("no such file")

def interrupted():
    raise KeyboardInterrupt

def no_block(n=1):
    return n

number = 3
"""


@pytest.fixture(autouse=True)
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rules.py").write_text(RULES)
    (tmp_path / "own_faults.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        pytest.param(["fnn:linear", "--input", "4,3", "--arg", "features=2"], 0, "linear: right",
                     marks=pytest.mark.slow),
        pytest.param(["fnn:softmax_cross_entropy", "--input", "4,3", "4:0..2"], 0, "right",
                     marks=pytest.mark.slow),
        (["fnn:neuron", "--input", "4", "--arg", "nonlinearity=fnn:tanh()", "--quick"], 0, "right"),
        pytest.param(["fnn:dropout", "--input", "4", "--arg", "rate=0.5", "--key", "--quick"], 0,
                     "right", marks=pytest.mark.slow),
        (["own_rules:right", "--input", "5"], 0, "square: right"),
        (["own_rules:doubled", "--input", "5", "--quick"], 0, "right"),
        (["own_rules:of_arrays", "--input", "5", "--quick"], 0, "right"),
        (["own_rules:halved", "--input", "5", "--quick"], 1, "is 0.5 times the truth everywhere"),
        (["own_rules:forward,backward", "--input", "5"], 1, "the sign is wrong"),
        (["fnn:linear", "--input", "4,3"], 2, "missing a required argument"),
        (["fnn:linear", "--input", "4,3", "--arg", "feature=2"], 2, "features"),
        (["fnn:relu"], 2, "give the shapes of the inputs, such as --input 8,16"),
        (["fnn:relu", "--input", "4x3"], 2, "needs a shape such as 8,16"),
        (["fnn:relu", "--input", "4:few"], 2, "needs LOW..HIGH"),
        (["fnn:relu", "--input", "4", "--arg", "x"], 2, "needs to be NAME=VALUE"),
        (["fnn:rellu", "--input", "4"], 2, "did you mean relu"),
        (["fmm:relu", "--input", "4"], 2, "cannot import 'fmm'"),
        (["fnn:relu", "--input", "4:0..9"], 2, "floating"),
        (["own_rules:raises", "--input", "4"], 2, "raises RuntimeError: no such file"),
        (["own_rules:no_block", "--input", "4", "--arg", "n=2"], 2, "needs to return a Block"),
        (["own_rules:number", "--input", "4"], 2, "needs to be a Block or a function"),
        (["own_faults:relu", "--input", "4"], 2, "importing 'own_faults' raises ZeroDivisionError"),
        (["own_rules:", "--input", "4"], 2, "names no object: write package.module:name"),
        (["own_rules:forward,backward,right", "--input", "4"], 2, "name one object, or a forward"),
        (["own_rules:interrupted", "--input", "4"], 130, "interrupted"),
        (["relu"], 2, "is not a rule: package.module:name"),
    ],
)  # fmt: skip
def test_status_and_message(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--skip", "cost", "kinks", "second order"]) == status
    printed = capsys.readouterr()
    assert words in (printed.err if status >= 2 else printed.out)
    assert "Traceback" not in printed.err


def test_other_errors_end_in_a_line_or_by_wish_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        raise RuntimeError("out of disk")

    monkeypatch.setattr("fnn.check.command.run", run)
    assert main(["fnn:relu", "--input", "4"]) == 2
    assert "could not be checked: RuntimeError: out of disk" in capsys.readouterr().err
    monkeypatch.setenv("FNN_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="out of disk"):
        main(["fnn:relu", "--input", "4"])


def test_without_tyro_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["fnn:relu", "--input", "4"]) == 2
    assert "install it with: pip install tyro" in capsys.readouterr().err


def test_help_says_where_the_self_tests_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "python -m experiments.selftest" in capsys.readouterr().out


def test_inputs_are_drawn_as_described() -> None:
    rng = np.random.default_rng(0)
    assert draw_input("", rng).shape == ()
    assert draw_input("8,16", rng).shape == (8, 16)
    labels = draw_input("100:0..2", rng)
    assert labels.dtype == np.int32 and set(labels.tolist()) == {0, 1, 2}
    unit = draw_input("50:0.25..0.5", rng)
    assert unit.min() >= 0.25 and unit.max() <= 0.5
    assert draw_input("6:bool", rng).dtype == bool


def test_arguments_are_python_values_or_objects() -> None:
    assert parse_arg("sizes=(4, 3)") == ("sizes", (4, 3))
    assert parse_arg("padding=SAME") == ("padding", "SAME")
    assert parse_arg("f=fnn:relu()")[1].name == "relu"


@pytest.mark.slow
def test_a_seed_repeats_the_report() -> None:
    settings = Settings(input=("3",), timed=False, seed=5)
    assert str(check("own_rules:halved", settings)) == str(check("own_rules:halved", settings))


class Left(io.StringIO):
    """Where a reader has left: it takes nothing."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self.file = file

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        return self.file


def test_a_reader_who_leaves_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is the verdict all the same; beside subprocesses in test_experiments_shown.py."""
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Left(file.fileno()))
        assert main(["fnn:relu", "--input", "4", "--quick"]) == 0
        assert main(["--help"]) == 0
        monkeypatch.undo()
