"""The experiments with sequences, small: language, names and recurrent."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import fnn
from experiments import language, names, recurrent
from experiments.__main__ import main
from experiments.benchmarks import beside_torch, sequence_cases, sequences
from experiments.common import texts
from experiments.common.idx import DataError


def run(name: str, out: Path, *options: str, status: int = 0) -> dict[str, Any]:
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        assert main([name, *options, "--out", str(out)]) == status
    assert "<pre>" in (out / "report.html").read_text() or name == "recurrent"
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["transformer", "lstm"])
def test_language_learns_something(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--layers", "1", "--heads", "2", "--width", "16", "--length", "8")
    results = run(
        "language", tmp_path, *small, "--steps", "60", "--evaluate-every", "30", "--warmup", "10",
        "--learning-rate", "0.01", "--characters", "30", "--model", model,
    )  # fmt: skip
    assert results["validation loss"] < 3.6  # by chance 4.17
    printed = capsys.readouterr().out
    assert "step 30" in printed and "step 60" in printed
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


TINY = (
    "--layers", "1", "--heads", "2", "--width", "8", "--length", "8", "--batch-size", "2",
    "--steps", "9", "--evaluate-every", "3", "--characters", "9",
)  # fmt: skip


def saved_in(out: Path) -> Any:
    """All that the last look has, but for the seconds."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((out / "checkpoint" / "9" / "arrays").absolute())
    facts = json.loads((out / "checkpoint" / "9" / "facts" / "metadata").read_text())
    for row in facts["rows"]:
        del row["seconds"]
    return {name: a.tobytes() for name, a in arrays.items()}, facts


@pytest.mark.slow
@pytest.mark.as_users
def test_a_run_that_was_killed_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, the optimiser's state, losses and texts are those of one that was not."""
    parts, command = tmp_path / "parts", [sys.executable, "-u", "-m", "experiments", "language"]
    with subprocess.Popen(
        [*command, *TINY, "--out", str(parts)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        while not child.stdout.readline().startswith("step 6"):
            assert child.poll() is None
        child.kill()
    assert not (parts / "report.html").exists()
    run("language", parts, *TINY, "--resume")
    assert "goes on after step 6" in capsys.readouterr().out
    run("language", tmp_path / "whole", *TINY)
    arrays, facts = saved_in(parts)
    if importlib.util.find_spec("torch"):  # a run that has ended can still be timed
        times = beside_torch.Beside(1.0, 2.0, 2.5, ([], []))
        monkeypatch.setattr(beside_torch, "beside", lambda *_: times)
        results = run("language", parts, *TINY, "--resume", "--beside-torch", "5")
        assert results["PyTorch's time / fnn's"] == 2.5
        assert "PyTorch eager in turns" in (parts / "report.html").read_text()
    assert (arrays, facts) == saved_in(tmp_path / "whole")
    assert len(facts["rows"]) == len(facts["written"]) == 3
    assert sum(name.startswith("[1]") for name in arrays) > len(arrays) / 2  # moments and counts


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as usual, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_what_was_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([1.0])

    def evaluate(params: Any) -> float:
        for value in looks:
            return value
        os.kill(os.getpid(), signal.SIGINT)
        return 2.0

    monkeypatch.setattr(language, "_evaluation", lambda *_: evaluate)
    run("language", tmp_path, *TINY, status=1)
    assert "interrupted: what was learned until step 6 is kept" in capsys.readouterr().out
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    assert any((tmp_path / "params").iterdir())
    assert "after step 6 of 9" in (tmp_path / "report.html").read_text()
    assert main(["language", *TINY, "--width", "4", "--resume", "--out", str(tmp_path)]) == 2
    assert f"--width is 4, but the run in {tmp_path} has 8" in capsys.readouterr().err
    assert main(["names", "--resume", "--out", str(tmp_path)]) == 2
    assert "is not of such a run" in capsys.readouterr().err


@pytest.mark.slow
def test_names_are_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_draw", lambda *_: None)  # tests/models/test_transformers.py draws
    results = run("names", tmp_path, "--steps", "40", "--evaluate-every", "40", "--warmup", "5")
    assert results["validation loss"] < 2.9 < results["by chance"]
    assert "4192 parameters" in capsys.readouterr().out


@pytest.mark.slow
def test_recurrent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "CELLS", {"gru": fnn.gru_cell})
    results = run("recurrent", tmp_path, "--length", "8", "--width", "8", "--steps", "20")
    assert len(results) == 2 and all(map(np.isfinite, results.values()))


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_recurrent_keeps_what_was_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "STRETCH", 3)
    problem, calls = recurrent.problem, iter(range(9))

    def press(*arguments: Any) -> Any:
        if next(calls) == 2:  # while the first cell learns
            os.kill(os.getpid(), signal.SIGINT)
        return problem(*arguments)

    monkeypatch.setattr(recurrent, "problem", press)
    small = ("--length", "8", "--width", "8", "--steps", "7")
    results = run("recurrent", tmp_path, *small, status=1)
    words = "rnn has learned for 3 of 7 updates; gru has not begun; lstm has not begun"
    assert f"interrupted: {words}" in " ".join(capsys.readouterr().out.split())
    assert words in (tmp_path / "report.html").read_text()
    assert [*results] == ["error, rnn", "gradient first / last, rnn"]


def test_the_adding_problem() -> None:
    x, t = jax.jit(lambda key: recurrent.problem(key, 50, 10))(jax.random.key(0))
    numbers, marks = np.moveaxis(np.asarray(x), -1, 0)
    np.testing.assert_allclose((numbers * marks).sum(1), t[:, 0])
    np.testing.assert_array_equal(marks[:, :5].sum(1), 1)
    np.testing.assert_array_equal(marks[:, 5:].sum(1), 1)


@pytest.mark.slow
def test_the_last_step_s_backward() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    report = fnn.check.block(recurrent.last(), x)
    assert report.ok, str(report)


def test_windows_cover_the_text_once() -> None:
    windows = language._windows(np.arange(21), 5)
    np.testing.assert_array_equal(windows[:, 1:].ravel(), np.arange(1, 21))
    np.testing.assert_array_equal(windows[1:, 0], windows[:-1, -1])


def test_characters_are_ids_and_back() -> None:
    alphabet = texts.Alphabet.of("to be")
    assert alphabet.characters == " beot"
    assert alphabet.written(alphabet.ids("toe")) == "toe"


def test_another_text_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "names.txt").write_text("emma")
    monkeypatch.setenv("FNN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"names.txt: found SHA-256 .* needs SHA-256 0a30"):
        texts.text("names")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["language", "--steps", "0"], "--steps is 0"),
        (["language", "--heads", "3"], "features is 128 and heads is 3"),
        (["language", "--beside-torch", "9", "--model", "lstm"], "is of a transformer in GPT-2's"),
        (["recurrent", "--length", "2"], "--length is 2, needs at least 4"),
    ],
)
def test_what_cannot_work_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


SMALL = {
    "attention": lambda: sequence_cases.attention(1, 8),
    "head": lambda: sequence_cases.head_and_loss(6, 11, 4),
    "lstm": lambda: sequence_cases.lstm(2, 4, 3),
    "language": lambda: sequence_cases.language("language", 11, 8, 1, 2, 2, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_what_is_timed_is_the_same_for_all(name: str) -> None:
    task = SMALL[name]()
    arguments = task.arguments(np.random.default_rng(0))
    # Flax's modules have weights of their own: of them, only shapes are compared.
    own = name in ("lstm", "language")
    if not importlib.util.find_spec("flax"):
        task.programs.pop(sequence_cases.FLAX, None)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        made = {name: jax.jit(make())(*arguments) for name, make in task.programs.items()}
    wanted = made.pop(sequence_cases.JAX)
    for name, got in made.items():
        if own and name == sequence_cases.FLAX:
            assert jax.tree.leaves(got)[0].shape == jax.tree.leaves(wanted)[0].shape
            continue
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())


@pytest.mark.slow
def test_the_benchmark_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sequences, "tasks", lambda: [SMALL["attention"]()])
    monkeypatch.setattr(sequences.timing, "PAUSE_SECONDS", 0.0)
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    sequences.main(sequences.Options(repeats=2, out=None))
    printed = capsys.readouterr().out
    assert "causal attention, batch 1, T 8" in printed and "jax.grad" in printed
    assert "left out: PyTorch" in printed
