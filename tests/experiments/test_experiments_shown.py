# ruff: noqa: RUF001 - products are shown with ×
"""circuit, backprop_by_hand, nonlinearities and neuron: run as a user does, in small."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import fnn
from experiments import backprop_by_hand, circuit, nonlinearities
from experiments.__main__ import main
from fnn.whiteboard import Trace
from tests.slow import one_of

pytestmark = pytest.mark.as_users


@pytest.fixture(autouse=True)
def no_display_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are short, as a user sees them."""
    monkeypatch.delenv("FNN_TRACEBACK", raising=False)


def run_circuit(expression: str, **at: float) -> Trace:
    with jax.enable_x64(True):
        return circuit.run(circuit.parse(expression), at)


def reference(expression: str, **at: float) -> dict[str, float]:
    with jax.enable_x64(True):
        return circuit.by_jax_grad(circuit.parse(expression), at)


# ---- circuit ---------------------------------------------------------------------------------


def test_circuit_of_the_lecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["circuit", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "q = x + y = 3.0" in shown
    assert "f = q z = −12.0" in shown
    assert "df/df × df/dq = 1 × (−4) = −4   because df/dq = z" in shown
    assert "df/dq × dq/dx = −4 × 1 = −4   because dq/dx = 1" in shown
    assert "The gradient of f = -12" in shown
    gradients = re.findall(r"│ ([xyz]) +│ +(\S+) │ +(\S+) │ +(\S+) │", shown)
    assert gradients == [("x", "-2", "-4", "-4"), ("y", "5", "-4", "-4"), ("z", "-4", "3", "3")]
    assert (tmp_path / "circuit.svg").read_text().startswith("<svg ")


def test_circuit_given_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expression = "x*y + sigmoid(z)**2 - max(x, 2*z)/3"
    for at in (["x=1.5", "y=-2", "z=0.3"], ["x=1.5,y=-2,", "z=0.3"]):
        assert main(["circuit", expression, "--at", *at, "--out", str(tmp_path)]) == 0
        assert "x forks: (−0.3333) + (−2) = −2.333" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", one_of(3, [["--list"], ["circuit", "--help"], ["circuit"]]))
def test_a_reader_who_leaves_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    """As ``| head -0``: the other end of the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "experiments", *arguments]
    ran = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "expression, at",
    [
        ("x*x + x", {"x": 3.0}),
        ("-x / (y - 2)", {"x": 3.0, "y": 1.0}),
        ("(x - 3)**3 + x**-2 + x**0.5", {"x": 2.0}),
        ("x**y + 2**y", {"x": 1.5, "y": -0.7}),
        ("exp(x) * log(y) + sqrt(y) + square(x)", {"x": -0.5, "y": 2.5}),
        ("logistic(x) + tanh(y) + relu(x) + abs(y) + softplus(x)", {"x": 0.3, "y": -1.2}),
        ("max(x, y) * min(x, 2*y)", {"x": 2.0, "y": 2.0}),
        ("f * q + out", {"f": 1.0, "q": 2.0, "out": 3.0}),
        ("+x - -2", {"x": 2.0}),
        ("x * 0.1 * 0.1", {"x": 2.0}),
    ],
)
def test_circuit_agrees_with_jax_grad(expression: str, at: dict[str, float]) -> None:
    run, theirs = run_circuit(expression, **at), reference(expression, **at)
    for name, gradient in theirs.items():
        np.testing.assert_allclose(run.values[name][1], gradient, rtol=1e-13)


def test_downstream_is_upstream_times_local_and_forks_add() -> None:
    gates = circuit.parse("x * exp(x) + x / y").gates
    run = run_circuit("x * exp(x) + x / y", x=0.5, y=3.0)
    arrived: dict[str, float] = {}
    for gate in gates:
        node = run[gate.name]
        local, downstream = (jax.tree.leaves(d) for d in (node.local[1], node.dx))
        for source, slope, down in zip(gate.inputs, local, downstream, strict=True):
            np.testing.assert_allclose(down, node.dy * slope, rtol=1e-15)
            arrived[source] = arrived.get(source, 0.0) + float(down)
    for name, total in arrived.items():
        np.testing.assert_allclose(run.values[name][1], total, rtol=1e-15)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["(x + y * z"], "syntax error at position 1"),
        (["x +"], "syntax error at position 4"),
        ([""], "syntax error"),
        (["cosh(x)", "--at", "x=1"], "there is no function 'cosh'"),
        (["exp(x, y)", "--at", "x=1", "y=1"], "exp takes 1 input, got 2"),
        (["exp + x", "--at", "x=1"], "exp is a function"),
        (["x < y"], "'x < y' is not a number"),
        (["x.real + 1"], "'x.real' is not a number"),
        (["__import__('os')"], "there is no function '__import__'"),
        (["x * 1e999", "--at", "x=1"], "too large"),
        (["2 * 3"], "has no variable"),
        (["x", "--at", "x=1"], "has no gate"),
        (["x * y", "--at", "x=1"], "no value for y; add: --at y=1"),
        (["x * x", "--at", "x=1", "w=2"], "gives w, which the expression does not have"),
        (["x * x", "--at", "x=one"], "'one' is not a number"),
        (["x * x", "--at", "x"], "needs NAME=NUMBER"),
        (["x * x", "--at", "x=nan"], "needs to be finite"),
        (["3 / x", "--at", "x=0"], "gate f = 3 / x = inf, which is not a finite number"),
        (["2 + log(x)", "--at", "x=-1"], "gate q = log(x) = nan"),
        (["sqrt(x)", "--at", "x=0"], "its local derivative by x is inf"),
        (["(" * 3000 + "x" + ")" * 3000], "nested"),
    ],
)
def test_circuit_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expression, *at = arguments
    assert main(["circuit", expression, *at, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


# ---- backprop_by_hand ------------------------------------------------------------------------


def test_backprop_by_hand_equals_jax_grad_and_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backprop_by_hand", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for name in ("dE/dyhat", "dyhat/dz", "dz/dw2", "dz/dh", "dh/dW1"):
        assert f"│ {name}" in shown
    differences = [float(d) for d in re.findall(r"│ +(\d\.\de[-+]\d\d) │", shown)]
    assert len(differences) == 1 + 4 + 12
    assert max(differences) <= 1e-12
    assert (tmp_path / "backprop.png").exists()


def test_backprop_by_hand_says_when_it_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = backprop_by_hand.by_hand

    def wrong(*arguments: jax.Array) -> backprop_by_hand.ByHand:
        hand = right(*arguments)
        return hand._replace(dE_dw2=hand.dE_dw2 * (1 + 1e-11))

    monkeypatch.setattr(backprop_by_hand, "by_hand", wrong)
    assert main(["backprop_by_hand", "--seed", "1", "--out", str(tmp_path)]) == 1
    assert "NOT within 1e-12" in capsys.readouterr().out


# ---- nonlinearities --------------------------------------------------------------------------


_MODULES = (
    "fnn.blocks.nonlinearities",
    "fnn.blocks.smooth",
    "fnn.blocks.gelu",
    "fnn.blocks.elementwise",
    "fnn.blocks.softmax",
)


@pytest.mark.slow
def test_nonlinearities_shows_every_one_that_fnn_exports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = {
        f.__name__ for f in vars(fnn).values() if getattr(f, "__module__", None) in _MODULES
    } - {"elementwise", "piecewise_linear"}
    assert set(nonlinearities.NONLINEARITIES) == exported
    assert list(nonlinearities.NONLINEARITIES)[:4] == ["step", "logistic", "tanh", "relu"]

    assert main(["nonlinearities", "--out", str(tmp_path)]) == 0
    assert "…" not in capsys.readouterr().out  # no cell is cut off
    with open(tmp_path / "nonlinearities.csv", newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert set(table) == exported
    assert table["relu"]["kinks"] == "at 0: 0 (0 | 1)"
    assert float(table["logistic"]["largest |y'|"]) == 0.25
    assert table["logistic"]["saturates"] == "x < -6.9, x > 6.9"
    assert table["step"]["saturates"] == "everywhere"
    for name in ("nonlinearities.png", "accuracy.png"):
        assert (tmp_path / name).exists()


# ---- neuron ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_neuron_is_logistic_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["neuron", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test accuracy"] >= 0.95
    assert float(results["difference"].split(",")[0]) <= 1e-9
    shown = capsys.readouterr().out
    errors = re.findall(r"│ linear/[wb] .* (\S+) │", shown)
    assert len(errors) == 2
    assert max(map(float, errors)) < 1e-12
    for name in ("history.csv", "report.html", "neuron.png", "weights.png", "descent.png"):
        assert (tmp_path / name).exists()
    assert (tmp_path / "params").is_dir()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epochs", "0"], "--epochs is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--learning-rate", "-1"], "--learning-rate is -1"),
        (["--optimizer", "nothing"], "--optimizer 'nothing' is not one"),
    ],
)
def test_neuron_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["neuron", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["circuit", "backprop_by_hand", "nonlinearities", "neuron"])
def test_refuses_a_folder_that_cannot_be_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main([name, "--out", str(tmp_path / "file" / "below")]) == 2
    error = capsys.readouterr().err
    assert "cannot be written to" in error
    assert error.count("\n") == 1
