"""The experiments that train: they run, write what they promise, and reach their figures."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments import deep, features, four_neurons
from experiments.__main__ import EXPERIMENTS, main
from experiments.common.console import TrainingProgress
from experiments.common.run import save

pytestmark = pytest.mark.as_users
needs_mnist = pytest.mark.skipif(
    not os.environ.get("FNN_DATA"), reason="FNN_DATA does not name a folder with mnist/"
)


@pytest.fixture(autouse=True)
def x64_as_it_was() -> Iterator[None]:
    """--dtype float64 sets this for the whole process, which here is that of all tests."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


def run(name: str, out: Path, *options: str) -> dict[str, float | str]:
    assert main([name, "--out", str(out), *options]) == 0
    return json.loads((out / "results.json").read_text())


def history(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def check_files(out: Path, pictures: list[str], trained: list[str]) -> None:
    for name in pictures:
        assert (out / name).read_bytes().startswith(b"\x89PNG"), name
    for folder in trained:
        assert history(out / folder), folder
        assert (out / folder / "params").is_dir(), folder
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") >= len(pictures)
    headings = re.findall("<h2>([^<]*)</h2>", page)
    assert {*trained} - {"committee", "."} <= {*headings}
    assert [*out.rglob("report.html")] == [out / "report.html"]
    facts = json.loads((out / "run.json").read_text())["facts"]
    assert {*json.loads((out / "results.json").read_text())} <= {*facts}


@pytest.mark.slow
def test_digits_reaches_0_97(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run("digits", tmp_path)
    assert results["test accuracy"] >= 0.97
    check_files(tmp_path, [], ["."])
    assert len(history(tmp_path)) == 60
    printed = capsys.readouterr().out
    for part in ("The network", "hidden_1/w", "largest relative error", "epoch 60", "test acc"):
        assert part in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer", "adam", "--learning-rate", "0.001"),
        pytest.param(("--dtype", "bfloat16"), marks=pytest.mark.slow),
        pytest.param(("--dtype", "float64"), marks=pytest.mark.slow),
    ],
)
def test_digits_with_other_options(tmp_path: Path, options: tuple[str, ...]) -> None:
    results = run("digits", tmp_path, *options, "--epochs", "8", "--hidden", "64")
    assert results["test accuracy"] > 0.85
    assert len(history(tmp_path)) == 8


@pytest.mark.slow
def test_four_neurons_hidden_layer_wins(tmp_path: Path) -> None:
    results = run("four_neurons", tmp_path)
    one = results["test accuracy, all four bits, one layer"]
    hidden = results["test accuracy, all four bits, hidden layer"]
    assert hidden > one + 0.1
    check_files(tmp_path, ["neurons.png", "accuracy.png"], ["one_layer", "hidden_layer"])


def test_bits() -> None:
    values = four_neurons.bits(np.arange(10)) @ np.array(four_neurons.BITS)
    np.testing.assert_array_equal(values, np.arange(10))
    logits = np.array([[1.0, -1.0], [1.0, 1.0]])
    assert four_neurons.all_right(logits, np.array([[1, 0], [1, 0]])) == 0.5


@pytest.mark.slow
def test_regression_reaches_least_squares(tmp_path: Path) -> None:
    results = run("regression", tmp_path, "--members", "2", "--folds", "5", "--epochs", "30")
    assert results["test R2"] == pytest.approx(results["test R2, least squares"], abs=1e-9)
    assert abs(float(results["neuron's loss above least squares"])) < 1e-14
    check_files(tmp_path, ["predictions.png", "learning.png"], ["neuron", "network", "committee"])


@pytest.mark.slow
def test_deep(tmp_path: Path) -> None:
    results = run("deep", tmp_path, "--depth", "4", "--width", "8", "--epochs", "1")
    assert len(results) == 6
    check_files(tmp_path, ["gradients.png", "learning.png"], ["logistic", "relu_residual"])


def test_gradients_vanish_without_residual_connections() -> None:
    rng = np.random.default_rng(0)
    few = features.Split(rng.random((32, 64), np.float32), rng.integers(0, 10, 32))
    options = deep.Options()

    def ratio(residual: bool) -> float:
        net = deep.network(fnn.logistic(), residual, options, tapped=True)
        norms = deep.gradient_norms(net, few, jax.random.key(0))
        assert norms["W"].shape == norms["h"].shape == (options.depth,)
        return float(norms["W"][0] / norms["W"][-1])

    assert ratio(residual=False) < 1e-20
    assert 0.1 < ratio(residual=True) < 10


@pytest.mark.slow
def test_features(tmp_path: Path) -> None:
    results = run("features", tmp_path, "--hidden", "16", "--epochs", "3", "--linear-epochs", "2")
    assert len(results) == 3
    check_files(
        tmp_path, ["filters.png", "scatter.png"],
        ["network", "linear_pixels", "linear_PCA", "linear_hidden_units"],
    )  # fmt: skip


def test_part_of_a_network_is_what_the_whole_computes_on_the_way() -> None:
    net = fnn.models.mlp((5, 3), fnn.relu())
    x = jax.random.normal(jax.random.key(1), (4, 6))
    params = net.init(jax.random.key(0), x)
    hidden, _ = features.up_to(net, "relu_1").forward({"hidden_1": params["hidden_1"]}, x)
    z = x @ params["hidden_1"]["w"] + params["hidden_1"]["b"]
    np.testing.assert_allclose(hidden, jnp.maximum(z, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@needs_mnist
def test_mnist_learns_within_one_epoch(tmp_path: Path) -> None:
    results = run("mnist", tmp_path, "--epochs", "1")
    assert results["test accuracy"] > 0.94
    check_files(tmp_path, [], ["."])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--optimizer", "sdg"], "--optimizer 'sdg'"),
        (["digits", "--epochs", "0"], "--epochs is 0"),
        (["digits", "--learning-rate", "-1"], "--learning-rate"),
        (["deep", "--depth", "1"], "--depth is 1"),
        (["regression", "--folds", "1"], "--folds is 1"),
        (["features", "--hidden", "65"], "--hidden is 65"),
        (["mnist", "--weight-decay", "-1"], "--weight-decay is -1"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1 and "Traceback" not in complaint


def test_a_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["digits", "--out", str(tmp_path / "file" / "below")]) == 2
    complaint = capsys.readouterr().err
    assert "--out" in complaint and complaint.count("\n") == 1 and "Traceback" not in complaint


def test_unknown_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digit"]) == 2
    complaint = capsys.readouterr().err
    assert "did you mean digits;" in complaint and complaint.count("\n") == 1


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in EXPERIMENTS)


# ---- interrupts and what is saved ------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def read_params(out: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((out / "params").absolute())


@pytest.mark.usefixtures("listening")
def test_an_interrupt_while_saving_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, {"w": jnp.ones(3)}, [{"epoch": 1}])
    remove = shutil.rmtree

    def interrupted(path: Path, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # between the old parameters and the new
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, {"w": jnp.zeros(3)}, [{"epoch": 1}, {"epoch": 2}])
    np.testing.assert_array_equal(read_params(tmp_path)["w"], np.zeros(3))
    assert len(history(tmp_path)) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.csv", "params"]


def test_a_failure_while_saving_keeps_the_earlier_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, {"w": jnp.ones(3)}, [{"epoch": 1}])

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, {"w": jnp.zeros(3)}, [{"epoch": 1}])
    np.testing.assert_array_equal(read_params(tmp_path)["w"], np.ones(3))


@pytest.mark.slow
@pytest.mark.usefixtures("listening")
def test_an_interrupt_ends_a_run_of_several_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(progress: TrainingProgress, row: dict[str, float], left: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "__call__", press)
    assert main(["four_neurons", "--out", str(tmp_path)]) == 130
    assert f"what was learned so far is saved in {tmp_path}" in capsys.readouterr().err
    assert len(history(tmp_path / "one_layer")) == 1
    assert read_params(tmp_path / "one_layer")["w"].shape == (64, 4)
    assert not (tmp_path / "hidden_layer").exists()


@pytest.mark.slow
def test_a_diverging_run_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", "--learning-rate", "1e30", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "Try a lower learning rate" in printed
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(read_params(tmp_path)))


@pytest.mark.slow
def test_a_closed_pipe_does_not_lose_a_training(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments", "neuron", "--epochs", "2", "--out", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
    assert child.returncode == 0
    assert (tmp_path / "results.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("name", ["digits", "four_neurons"])
def test_a_run_that_was_interrupted_is_resumed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its history, its parameters and its pictures are those of one that was not."""
    options = ["--epochs", "3", "--hidden", "8"]
    run(name, tmp_path / "whole", *options)

    def press(progress: TrainingProgress, row: dict[str, float], left: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "__call__", press)
        for more in ([], ["--resume"]):
            assert main([name, *options, *more, "--out", str(tmp_path / "parts")]) in (1, 130)
    run(name, tmp_path / "parts", *options, "--resume")
    learned = [learned_in(tmp_path / part) for part in ("whole", "parts")]
    assert learned[0] == learned[1] and len(learned[0]) >= 3
    assert len(history(next((tmp_path / "parts").rglob("history.csv")).parent)) == 3


def learned_in(out: Path) -> dict[str, object]:
    pictures = re.findall("data:image/png;base64,[^\"']*", (out / "report.html").read_text())
    learned: dict[str, object] = {"pictures": pictures}
    for path in sorted(out.rglob("history.csv")):
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history(path.parent)]
        leaves = jax.tree.leaves(read_params(path.parent))
        learned[str(path.relative_to(out))] = rows, [np.asarray(a).tobytes() for a in leaves]
    learned["results"] = json.loads((out / "results.json").read_text())
    return learned


def test_nothing_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digits", "--resume", "--out", str(tmp_path / "new")]) == 2
    assert "new holds no checkpoint to go on from; name the folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
