"""googlenet train: the loop and its average, folders of pictures, and what is refused."""

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import fnn
from experiments.__main__ import main
from experiments.common import data, report
from experiments.common.console import TrainingProgress
from experiments.googlenet import examples, streaming
from experiments.googlenet import train as train_googlenet
from experiments.googlenet.image_folder import image_folder
from experiments.googlenet.images import PictureError, View, batches, read_part, read_picture
from fnn.block import BlockError, BlockValueError

pytestmark = pytest.mark.as_users
COLORS = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def no_user_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FNN_TRACEBACK", raising=False)
    monkeypatch.delenv("FNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(path: Path, color: str, size: tuple[int, int] = (40, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of each of three colours, in a folder each."""
    for color in COLORS:
        for i in range(10):
            picture(tmp_path / "data" / color / f"{i}.png", color)
    return tmp_path / "data"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """In GoogLeNet's place a network of two layers, also with three heads: it compiles at once."""

    def net(classes: int, auxiliary: bool = True, **_: Any) -> fnn.Block:
        nodes: list[Any] = [
            ("conv1", fnn.serial(**{"7x7_s2": fnn.conv(3, 1)}), "x"),
            ("pool", fnn.global_avg_pool(), "conv1"),
        ]
        heads = ("loss3", "loss1", "loss2") if auxiliary else ("loss3",)
        nodes += [(name, fnn.linear(classes), "pool") for name in heads]
        if not auxiliary:
            return fnn.graph("x", nodes, "loss3")
        return fnn.graph("x", nodes, heads, at_inference="loss3")

    monkeypatch.setattr(fnn.models, "googlenet", net)


def train(out: Path, *arguments: Any, status: int = 0) -> dict[str, Any]:
    options = ["--epochs", 6, "--batch-size", 8, "--averaging", 0.8, "--learning-rate", 0.1]
    options += [*arguments, "--out", out]
    assert main(["googlenet", "train", *map(str, options)]) == status
    return json.loads((out / "results.json").read_text())


def history(out: Path) -> list[dict[str, str]]:
    with open(out / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["googlenet", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_folder_is_learned_and_its_weights_classify(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    results = train(out, "--data-dir", folder, "--check")
    assert results["validation accuracy"] == results["validation accuracy without averaging"] == 1
    assert results["wrong"] == "0 of 3"
    assert [row["epoch"] for row in history(out)] == list("123456")
    assert {"validation_accuracy", "validation_accuracy_averaged"} <= history(out)[0].keys()
    printed = capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "python -m experiments googlenet train --epochs 6" in page
    for part in report.TITLES[1:2] + report.TITLES[3:]:  # but what diagnostics say
        assert f"<h2>{part}</h2>" in page
    for part in ("The network", "largest relative error", "epoch 6", "3 classes; 27 pictures"):
        assert part in printed

    red = picture(tmp_path / "a.png", "red")
    weights = ["--weights", str(out / "weights.npz"), "--out", str(tmp_path / "classified")]
    assert main(["googlenet", "classify", str(red), *weights]) == 0
    best = capsys.readouterr().out.partition("├")[0].splitlines()
    assert any(line.startswith("│ red") for line in best)

    rows = ["file\tclass_index", *(f"{color}/0.png\t{i}" for i, color in enumerate(COLORS))]
    (folder / "labels.tsv").write_text("\n".join(rows))
    assert main(["googlenet", "evaluate", "--data-dir", str(folder), *weights]) == 0
    assert "top-1: 1.0000, 3 of 3" in capsys.readouterr().out

    (out / "network.json").write_text("{}")
    assert "not a description of a network" in refused(capsys, "classify", red, *weights)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, "--data-dir", folder, "--epochs", 2, "--seed", seed)
        weights.append(np.load(tmp_path / name / "weights.npz")["loss3/w"])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.any(weights[0] != weights[2])


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_grey_images_are_scaled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.repeat(np.uint8([[40], [220]] * 30), 28 * 28, axis=1)
    parts = [data.Split(pixels, np.int32([0, 1] * 30)) for _ in range(3)]
    scale = data.Scale(np.zeros(()), np.ones(()))
    found = data.Dataset("x", *parts, scale, None, (), ("dark", "light"), (28, 28, 1), "about")
    monkeypatch.setattr(examples, "load", lambda *a, **b: found)
    got = examples.grey_images("mnist", 32, 0)
    assert got.train.see(1).shape == (32, 32, 1) and (got.train.see(1) == 220).all()
    assert got.moments.mean == (130,) and got.moments.deviation == (90,)
    results = train(tmp_path / "out", "--size", 32)
    assert results["test accuracy"] == 1
    # Its weights read a picture in grey.
    light = picture(tmp_path / "a.png", "white")
    looking = ["--weights", str(tmp_path / "out" / "weights.npz"), "--out", str(tmp_path)]
    assert main(["googlenet", "classify", str(light), *looking]) == 0


def linear_problem(n: int = 22) -> tuple[fnn.Block, examples.Examples, Callable[[Any], jax.Array]]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 1, 1, 2), np.uint8)
    labels = (pixels[:, 0, 0, 0] > 127).astype(np.int32)
    net = fnn.serial(flat=fnn.flatten(), out=fnn.linear(2))
    see = examples.Examples(labels, lambda i: pixels[i], lambda i, rng: pixels[i])
    return net, see, lambda pixels: jnp.asarray(pixels / 255, jnp.float32)


class Silent(TrainingProgress):
    def within(self, epoch: int, part: float, left: float) -> None:
        assert 0 < part <= 1 and left >= 0

    def __call__(self, row: dict[str, float], left: float) -> None:
        assert left >= 0 and (left == 0) == (row["epoch"] == self.epochs)


@pytest.mark.slow
def test_the_steps_are_momentum_s_and_the_average_is_the_weighted_mean_of_what_they_gave() -> None:
    net, images, scaling = linear_problem()
    loss, decay, key = fnn.softmax_cross_entropy(), 0.8, jax.random.key(3)
    params = net.init(jax.random.key(0), scaling(np.stack([images.see(0)])))
    optimizer = fnn.averaged(optax.sgd(0.3, 0.9), decay)
    source, saved = streaming.Images(images, scaling, 3), []
    fitted = fnn.fit(
        net, loss, source, optimizer=optimizer, epochs=3, batch_size=4, key=key, params=params,
        validation=source, progress=Silent(3), steps_per_call=1,
        on_epoch=lambda params, state, history: saved.append(len(history)),
    )  # fmt: skip
    assert fitted.status == "finished" and fitted.message == "after 3 epochs"
    assert saved == [1, 2, 3]

    # The same by hand: p -= v, v = 0.9 v + 0.3 gradient; 6 steps an epoch, the last of 2 examples.
    rng, gradient = np.random.default_rng([0, 3]), fnn.value_and_grad(net, loss)
    speed, path, epochs = jax.tree.map(jnp.zeros_like, params), [], []
    for _ in range(3):
        for rows in np.split(rng.permutation(22), range(4, 22, 4)):
            x = scaling(np.stack([images.see(i) for i in rows]))
            _, grads = gradient(params, x, images.labels[rows])
            speed = jax.tree.map(lambda v, g: 0.9 * v + 0.3 * g, speed, grads)
            params = jax.tree.map(lambda p, v: p - v, params, speed)
            path.append(params["out"]["w"])
        weights = decay ** np.arange(len(path))[::-1]
        epochs.append(np.average(np.stack(path), axis=0, weights=weights))
    np.testing.assert_allclose(fitted.last["out"]["w"], path[-1], rtol=1e-5)
    average = optimizer.evaluated(fitted.state, fitted.last)
    np.testing.assert_allclose(average["out"]["w"], epochs[-1], rtol=1e-5)
    # Evaluated and returned are averages.
    np.testing.assert_allclose(fitted.params["out"]["w"], epochs[fitted.best_epoch - 1], rtol=1e-5)


def test_predictions_are_of_every_example_once() -> None:
    net, images, scaling = linear_problem(7)
    params = {"out": {"w": jnp.array([[-9.0, 9.0], [0, 0]]), "b": jnp.array([4.5, -4.5])}}
    predict = streaming.make_predict(net, scaling, 3)
    right, wrong = predict(images, params, jax.tree.map(jnp.negative, params))
    np.testing.assert_array_equal(right.argmax(-1), images.labels)
    np.testing.assert_array_equal(wrong.argmax(-1), 1 - images.labels)


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("small", "listening")
@pytest.mark.parametrize("at", [(1, 8 / 27), (2, 16 / 27)])
def test_ctrl_c_keeps_what_was_learned(
    at: tuple[int, float], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def within(progress: TrainingProgress, epoch: int, part: float, left: float) -> None:
        if (epoch, part) == at:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "within", within)
    train(tmp_path / "out", "--data-dir", folder, status=1)
    assert f"stopped by Ctrl-C in epoch {at[0]}" in capsys.readouterr().out
    assert np.load(tmp_path / "out" / "weights.npz")["loss3/w"].shape == (3, 3)
    assert (tmp_path / "out" / "history.csv").exists() == (at[0] > 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_divergence_says_what_to_do_and_leaves_finite_parameters(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "--data-dir", folder, "--learning-rate", "1e38", status=1)
    assert "Try a lower learning rate" in capsys.readouterr().out
    assert np.isfinite(np.load(tmp_path / "weights.npz")["loss3/w"]).all()


# ---- the network -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strides", "least"),
    [
        pytest.param((2, 2, 2), 79, marks=pytest.mark.slow),
        ((2, 1, 1), 27),
        pytest.param((1, 2, 1), 24, marks=pytest.mark.slow),
    ],
)
def test_the_smallest_pictures(strides: tuple[int, int, int], least: int) -> None:
    net = fnn.models.googlenet(3, width=0.0625, stem_strides=strides)

    def shape(side: int) -> Any:
        x = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
        return jax.eval_shape(net.init, jax.random.key(0), x)

    assert train_googlenet.fits(least, strides) and shape(least)
    assert not train_googlenet.fits(least - 1, strides)
    with pytest.raises(BlockError, match="ave_pool"):
        shape(least - 1)


@pytest.mark.slow
def test_strides_of_the_stem_change_no_parameter_of_the_main_network() -> None:
    x = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
    nets = [
        fnn.models.googlenet(3, auxiliary=False, stem_strides=strides)
        for strides in ((2, 2, 2), (2, 1, 1))
    ]
    plain, other = (jax.eval_shape(net.init, jax.random.key(0), x) for net in nets)
    assert plain == other
    with pytest.raises(BlockValueError, match="stem_strides is"):
        fnn.models.googlenet(stem_strides=(2, 2))
    with pytest.raises(BlockValueError, match="stem_strides"):
        fnn.models.googlenet(stem_strides=(2, 2, 0))


# ---- parts of pictures -------------------------------------------------------------------------


def test_random_parts_have_the_paper_s_areas_and_shapes(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:256, 0:256].astype(np.uint8)
    pixels = np.stack([columns, rows, np.zeros_like(rows)], -1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    areas, aspects, mirrored = [], [], 0
    for seed in range(200):
        part = read_part(tmp_path / "a.png", 32, np.random.default_rng(seed)).astype(float)
        assert part.shape == (32, 32, 3)
        width, height = np.ptp(part[16, :, 0]) * 32 / 31, np.ptp(part[:, 16, 1]) * 32 / 31
        areas.append(width * height / 256**2)
        aspects.append(width / height)
        mirrored += part[16, 0, 0] > part[16, -1, 0]
    assert 0.07 < min(areas) < 0.15 and 0.85 < max(areas) < 1.01
    assert min(aspects) > 0.72 and max(aspects) < 1.4
    assert 70 < mirrored < 130
    again = read_part(tmp_path / "a.png", 32, np.random.default_rng(199))
    np.testing.assert_array_equal(again, part)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (500, 2)])
def test_random_parts_of_thin_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", "red", size)
    assert (read_part(path, 8, np.random.default_rng(0)) == (255, 0, 0)).all()


def test_views_of_other_sizes(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", "red", (28, 28))
    assert read_picture(path, view=View(28, 28)).shape == (28, 28, 3)
    assert read_picture(path, view=View(64, 73)).shape == (64, 64, 3)


def test_a_fault_in_a_batch_comes_through(tmp_path: Path) -> None:
    paths = [picture(tmp_path / "a.png", "red"), tmp_path / "none.png"]
    reading = batches(paths, 1, read_picture)
    next(reading)
    with pytest.raises(PictureError, match="no such file"):
        next(reading)


# ---- folders -----------------------------------------------------------------------------------


def test_a_tenth_of_a_folder_is_held_out(folder: Path) -> None:
    (folder / "red" / ".hidden").write_text("")
    found = image_folder(folder, 0)
    assert found.names == COLORS and not found.test
    assert len(found.train) == 27
    assert sorted(p.label for p in found.validation) == [0, 1, 2]
    assert not {p.path for p in found.train} & {p.path for p in found.validation}
    for example in (*found.train, *found.validation):
        assert example.path.parent.name == COLORS[example.label]


def test_folders_for_training_validation_and_test(folder: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    split.mkdir()
    folder.rename(split / "train")
    for name in ("val", "test"):
        picture(split / name / "red" / "1.png", "red")
    found = image_folder(split, 0)
    assert found.names == COLORS and len(found.train) == 30
    assert [p.label for p in found.validation] == [p.label for p in found.test] == [2]
    picture(split / "val" / "white" / "1.png", "white")
    with pytest.raises(PictureError, match="class white is not among those to learn"):
        image_folder(split, 0)


def test_labels_in_a_file(folder: Path) -> None:
    rows = ["file\tclass_index"]
    rows += [f"{color}/{i}.png\t{k}" for k, color in enumerate(COLORS) for i in range(4)]
    (folder / "labels.tsv").write_text("\n".join(rows))
    found = image_folder(folder, 0)
    assert found.names == ("0", "1", "2")
    assert len(found.train) + len(found.validation) == 12
    (folder / "labels.tsv").write_text("\n".join(rows[:5] + rows[9:]))
    with pytest.raises(PictureError, match=r"no pictures of class 1, and 1 of the .* without gaps"):
        image_folder(folder, 0)
    (folder / "labels.tsv").write_text("\n".join([*rows, "red/9.png\t999999999"]))
    with pytest.raises(PictureError, match="no pictures of class 3, and 999999996 of the"):
        image_folder(folder, 0)


def test_labels_in_files_for_training_and_validation(folder: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    for name, labels in (("train", (0, 1, 2)), ("val", (2,))):
        for label in labels:
            picture(split / name / f"{label}.png", COLORS[label])
        rows = [f"{label}.png\t{label}" for label in labels]
        (split / name / "labels.tsv").write_text("\n".join(["file\tclass_index", *rows]))
    found = image_folder(split, 0)
    assert [p.label for p in found.train] == [0, 1, 2] and found.validation[0].label == 2


def test_train_may_be_the_name_of_a_class(folder: Path) -> None:
    (folder / "red").rename(folder / "train")
    assert image_folder(folder, 0).names == ("blue", "green", "train")


def test_folders_that_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(message: str, path: Path) -> None:
        out = tmp_path / "out"
        assert message in refused(capsys, "train", "--data-dir", path, "--out", out)

    says("no such folder", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    says("an empty folder; needs a folder of pictures for each class", tmp_path / "empty")
    says("no folders in it", folder / "red")
    picture(tmp_path / "one" / "cat" / "1.png", "red")
    says("one class only, cat; needs two", tmp_path / "one")
    (tmp_path / "one" / "dog").mkdir()
    says("no pictures of class dog; add some", tmp_path / "one")
    picture(tmp_path / "one" / "dog" / "1.png", "red")
    says("one picture only of class cat", tmp_path / "one")
    (tmp_path / "flat" / "val").mkdir(parents=True)
    picture(tmp_path / "flat" / "train" / "1.png", "red")
    says("train: no folders in it", tmp_path / "flat")


@pytest.mark.usefixtures("small")
def test_broken_pictures_are_named_or_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "red" / "note.txt").write_text("not a picture")
    (folder / "green" / "x.png").write_bytes((folder / "green" / "0.png").read_bytes()[:60])
    out = tmp_path / "out"
    error = refused(capsys, "train", "--data-dir", folder, "--out", out)
    assert "x.png: cannot be read" in error and "(nor can 1 more)" in error
    assert "--skip-broken" in error
    train(out, "--data-dir", folder, "--skip-broken", "--epochs", 1)
    assert capsys.readouterr().out.count("left out: ") == 2
    for path in (folder / "red").iterdir():
        path.write_bytes(b"")
    error = refused(capsys, "train", "--data-dir", folder, "--skip-broken", "--out", out)
    assert "no pictures of class red" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", 0.05], "--width is 0.05, needs at least 0.0625"),
        (["--width", "nan"], "--width is nan"),
        (["--size", 23], "--size is 23, needs at least 24 with --stem-strides 1 2 1"),
        (["--size", 78, "--stem-strides", 2, 2, 2], "needs at least 79 with --stem-strides 2 2 2"),
        (["--stem-strides", 2, 0, 1], "--stem-strides is 2 0 1"),
        (["--epochs", 0], "--epochs is 0"),
        (["--batch-size", 0], "--batch-size is 0"),
        (["--learning-rate", 0], "--learning-rate is 0"),
        (["--averaging", 1], "--averaging is 1"),
        (["--dropout", 1], "--dropout is 1"),
        (["--seed", -1], "--seed is -1"),
    ],
)
def test_options_that_are_refused(
    arguments: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "train", *arguments, "--out", tmp_path)
