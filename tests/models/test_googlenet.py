"""The experiment googlenet: the reference's answers, and what is done with odd pictures."""

import csv
import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pooch
import pytest
from PIL import Image

import fnn
from experiments.__main__ import main
from experiments.googlenet import commands, images, published, recognition
from experiments.googlenet.images import PictureError, read_picture

pytestmark = pytest.mark.as_users
DATA = os.environ.get("FNN_DATA")  # read before the fixture below hides it
needs_photographs = pytest.mark.skipif(
    not DATA or not (Path(DATA) / "imagenet_samples").is_dir(),
    reason="FNN_DATA does not name a folder with googlenet/ and imagenet_samples/",
)


@pytest.fixture(autouse=True)
def no_user_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Messages are short, and no test sees the user's data unless it asks."""
    monkeypatch.delenv("FNN_TRACEBACK", raising=False)
    monkeypatch.delenv("FNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["googlenet", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


# ---- the reference -----------------------------------------------------------------------------


@needs_photographs
def test_the_hundred_pictures_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FNN_DATA", str(DATA))
    assert main(["googlenet", "evaluate", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "top-1: 0.7400, 74 of 100" in printed
    assert "top-5: 0.9200, 92 of 100" in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {"pictures": 100, "top-1": 0.74, "top-5": 0.92}
    assert (tmp_path / "mistakes.png").read_bytes().startswith(b"\x89PNG")

    reference = json.loads((Path(str(DATA)) / "googlenet" / "reference_top5.json").read_text())
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(reference)
    for name, expected in reference.items():
        classes = [int(rows[name][f"class_{i}"]) for i in range(1, 6)]
        chances = np.array([float(rows[name][f"probability_{i}"]) for i in range(1, 6)])
        probability = np.array(expected["probability"])
        np.testing.assert_allclose(chances, probability, rtol=0, atol=1e-4, err_msg=name)
        if classes != expected["top5"]:  # then only where two are as good as equal
            for ours, theirs, p in zip(classes, expected["top5"], probability, strict=True):
                near = [
                    k
                    for k, q in zip(expected["top5"], probability, strict=True)
                    if abs(p - q) <= 1e-3
                ]
                assert ours == theirs or ours in near or p - probability[-1] <= 1e-3, name


@needs_photographs
def test_classify_as_a_user_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FNN_DATA", str(DATA))
    pizza = Path(str(DATA)) / "imagenet_samples" / "n07873807_pizza.JPEG"
    assert main(["googlenet", "classify", str(pizza), "--out", str(tmp_path)]) == 0
    rows = re.findall(r"│ (\S.*?) +│ +(0\.\d{4}|1\.0000) │", capsys.readouterr().out)
    assert len(rows) == 5
    assert rows[0][0] == "pizza, pizza pie" and float(rows[0][1]) > 0.99
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")

    # Its weights are not those of torchvision's network; and its file can be damaged.
    weights = Path(str(DATA)) / "googlenet" / recognition.WEIGHTS
    error = refused(capsys, "classify", pizza, "--network", "torchvision", "--out", tmp_path)
    assert "weights of another network" in error and "they fit --network bvlc" in error
    (tmp_path / "googlenet").mkdir()
    (tmp_path / "googlenet" / recognition.WEIGHTS).write_bytes(weights.read_bytes()[:-1])
    monkeypatch.setenv("FNN_DATA", str(tmp_path))
    assert "SHA-256" in refused(capsys, "classify", pizza, "--out", tmp_path)


# ---- one picture -------------------------------------------------------------------------------


def gradient(height: int = 300, width: int = 400) -> np.ndarray:
    """Red grows to the right, green downwards: what is turned or cut shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 255 * columns / max(width - 1, 1), 255 * rows / max(height - 1, 1)
    return np.stack([red, green, np.full(red.shape, 40)], -1).astype(np.uint8)


def written(path: Path, image: Image.Image | np.ndarray, **options: Any) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def near(got: np.ndarray, expected: np.ndarray, levels: float = 1) -> None:
    assert got.dtype == np.uint8 and got.shape == (224, 224, 3)
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= levels


def test_short_side_256_and_centre_224(tmp_path: Path) -> None:
    got = read_picture(written(tmp_path / "a.png", gradient(512, 1024)))
    # Half the size is 256 x 512; the centre begins at row 16 and column 144.
    rows, columns = np.arange(224) + 16.5, np.arange(224) + 144.5
    np.testing.assert_allclose(got[100, :, 0], 255 * columns / 512, atol=1.5)
    np.testing.assert_allclose(got[:, 100, 1], 255 * rows / 256, atol=1.5)


def test_modes_of_colour(tmp_path: Path) -> None:
    rgb = Image.fromarray(gradient())
    plain = read_picture(written(tmp_path / "rgb.png", rgb))
    grey = read_picture(written(tmp_path / "l.png", rgb.convert("L")))
    assert (grey == grey[..., :1]).all()
    near(read_picture(written(tmp_path / "la.png", rgb.convert("LA"))), grey)
    near(
        read_picture(written(tmp_path / "one.png", rgb.convert("1"))),
        read_picture(written(tmp_path / "l1.png", rgb.convert("1").convert("L"))),
    )
    near(read_picture(written(tmp_path / "cmyk.tif", rgb.convert("CMYK"))), plain)
    # JPEG loses some colour, of CMYK as of RGB.
    near(read_picture(written(tmp_path / "cmyk.jpg", rgb.convert("CMYK"), quality=95)), plain, 12)
    near(read_picture(written(tmp_path / "p.gif", rgb.convert("P"))), plain, 60)
    near(read_picture(written(tmp_path / "a.webp", rgb, lossless=True)), plain)


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    red = gradient()[..., 0]
    eight = read_picture(written(tmp_path / "8.png", red))
    near(read_picture(written(tmp_path / "16.png", red.astype(np.uint16) * 257)), eight)
    near(read_picture(written(tmp_path / "16.tif", red.astype(np.uint16) * 257)), eight)
    for number, dtype in enumerate((np.int32, np.float32)):
        with pytest.raises(PictureError, match="32-bit numbers"):
            read_picture(written(tmp_path / f"{number}.tif", red.astype(dtype)))


def test_transparent_pixels_are_on_white(tmp_path: Path) -> None:
    pixels = np.concatenate([gradient(), np.full((300, 400, 1), 255, np.uint8)], -1)
    near(
        read_picture(written(tmp_path / "opaque.png", pixels)),
        read_picture(written(tmp_path / "rgb.png", gradient())),
    )
    pixels[..., 3] = 0
    assert (read_picture(written(tmp_path / "clear.png", pixels)) == 255).all()
    palette = Image.fromarray(np.zeros((9, 9), np.uint8)).convert("P")
    assert (read_picture(written(tmp_path / "p.png", palette, transparency=0)) == 255).all()


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (50, 40), color) for color in ("red", "blue")]
    path = written(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    near(read_picture(path), np.broadcast_to(np.uint8([255, 0, 0]), (224, 224, 3)))


def test_exif_orientation_turns_only_when_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    path = written(tmp_path / "turned.png", gradient(), exif=exif)
    plain = read_picture(written(tmp_path / "plain.png", gradient()))
    near(read_picture(path), plain)
    near(read_picture(path, upright=True), np.rot90(plain, -1))
    assert images.is_turned(path) and not images.is_turned(tmp_path / "plain.png")


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (3, 2), (60_000, 1), (1, 60_000)])
def test_thin_and_small_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    got = read_picture(written(tmp_path / "a.png", Image.new("RGB", size, (10, 20, 30))))
    near(got, np.broadcast_to(np.uint8([10, 20, 30]), (224, 224, 3)))


def test_the_centre_of_a_line_is_that_of_the_whole_scaled(tmp_path: Path) -> None:
    thin = gradient(4, 4 * 17)
    got = read_picture(written(tmp_path / "a.png", thin))
    whole = Image.fromarray(thin).resize((17 * 256, 256), Image.Resampling.BILINEAR)
    left = (17 * 256 - 224) // 2
    near(got, np.asarray(whole.crop((left, 16, left + 224, 240))))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file's header with any size, and next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def jpeg(tmp_path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    return written(tmp_path / "whole.jpg", noise).read_bytes()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_not_a_picture(tmp_path: Path) -> None:
    whole = jpeg(tmp_path)
    faults = {
        "empty.jpg": (b"", "not a picture"),
        "text.jpg": (b"hello", "not a picture"),
        "page.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        "half.jpg": (whole[: len(whole) // 2], "broken: image file is truncated"),
        "header.jpg": (whole[:100], "picture"),
        "short.png": (png_of_size(300, 300), "broken"),
        "large.png": (png_of_size(10_000, 10_000), "at most 89 million"),
        "bomb.png": (png_of_size(60_000, 60_000), "at most 89 million"),
    }
    for name, (content, message) in faults.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PictureError, match=message) as caught:
            read_picture(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(PictureError, match="no such file"):
        read_picture(tmp_path / "none.jpg")
    with pytest.raises(PictureError, match="a folder, needs a picture"):
        read_picture(tmp_path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of the damage
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_damage_is_a_picture_error_or_a_picture(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a.{suffix}", gradient(30, 40))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[int(min(len(whole) - 1, rng.exponential(100)))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_picture(path).shape == (224, 224, 3)
        except PictureError as error:
            assert "\n" not in str(error)


def test_batches_are_of_one_size_and_in_order(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"{i}.png", Image.new("L", (9, 9), 10 * i)) for i in range(5)
    ]  # fmt: skip
    got = list(images.batches(paths, 2, read_picture))
    assert [(pixels.shape, count) for pixels, count in got] == [
        ((2, 224, 224, 3), 2), ((2, 224, 224, 3), 2), ((2, 224, 224, 3), 1)
    ]  # fmt: skip
    assert [int(pixels[i, 0, 0, 0]) for pixels, n in got for i in range(n)] == [0, 10, 20, 30, 40]


# ---- the commands, with a small network --------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Options that name the weights of a network of one layer, whose class is how red it is."""
    net = fnn.serial(pool=fnn.global_avg_pool(), loss3=fnn.linear(1000))
    network = recognition.Network(net, ("loss1", "loss2"), 1.0, (0.0, 0.0, 0.0), True)
    monkeypatch.setattr(recognition, "networks", lambda: {"bvlc": network})
    weights = np.zeros((3, 1000), np.float32)
    weights[2, 7], weights[1, 8], weights[0, 9] = 0.1, 0.1, 0.1
    b = np.where(np.arange(1000) < 10, 0, -99).astype(np.float32)
    fnn.models.save_weights(tmp_path / "small.npz", {"loss3": {"w": weights, "b": b}})
    lines = [f"n{i:08} name {i}, other name {i}" for i in range(1000)]
    (tmp_path / "names.txt").write_text("\n".join(lines))
    return [
        "--weights", str(tmp_path / "small.npz"), "--names", str(tmp_path / "names.txt"),
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def folder(path: Path, labels: str | bytes | None) -> Path:
    """Three pictures, red, green and blue, and a labels.tsv."""
    path.mkdir(exist_ok=True)
    for color in ("red", "green", "blue"):
        written(path / f"{color}.png", Image.new("RGB", (8, 8), color))
    if labels is not None:
        (path / "labels.tsv").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    return path


def test_classify_draws_pages_of_any_names(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["[bold]$x_$ [a.png", "日本.png", *(f"{i}.png" for i in range(7))]
    paths = [written(tmp_path / name, Image.new("RGB", (8, 8), "red")) for name in names]
    assert main(["googlenet", "classify", *map(str, paths), *small, "--batch-size", "4"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert printed.count("│ name 7, other name 7 │") == len(names)
    assert (tmp_path / "out" / "classes_1.png").exists()
    assert (tmp_path / "out" / "classes_2.png").exists()


def test_evaluate_a_folder(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As written on Windows, with a mark of its encoding and an empty line.
    labels = "\ufefffile\tclass_index\r\nred.png\t7\r\ngreen.png\t1\r\n\r\nblue.png\t500\r\n"
    path = folder(tmp_path / "data", labels)
    assert main(["googlenet", "evaluate", "--data-dir", str(path), *small]) == 0
    printed = capsys.readouterr().out
    assert "top-1: 0.3333, 1 of 3" in printed
    assert "top-5: 0.6667, 2 of 3" in printed
    assert (tmp_path / "out" / "mistakes.png").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labels.tsv in this folder"),
        ("", "the first line is ''"),
        ("red.png\t7\n", "the first line is 'red.png\\t7'"),
        ("file\tclass_index\n", "no pictures below"),
        ("file\tclass_index\nred.png\n", "line 2: 1 columns"),
        ("file\tclass_index\nred.png 7\n", "line 2: 1 columns"),
        ("file\tclass_index\n\t7\n", "line 2"),
        ("file\tclass_index\nred.png\t1000\n", "line 2: class '1000' of red.png, needs a whole"),
        ("file\tclass_index\nred.png\t-1\n", "from 0 to 999"),
        ("file\tclass_index\nred.png\tcat\n", "class 'cat'"),
        ("file\tclass_index\nred.png\t" + "9" * 5000 + "\n", "from 0 to 999"),
        ("file\tclass_index\nred.png\t1\nred.png\t2\n", "line 3: red.png is there twice"),
        ("file\tclass_index\nred.png\t1\nno.png\t2\n", "1 of its 2 pictures are not in"),
        (b"file\tclass_index\n\xff\xfe.png\t1\n", "not UTF-8"),
    ],
)
def test_labels_that_cannot_be_used(
    labels: str | None,
    message: str,
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = folder(tmp_path / "data", labels)
    assert message in refused(capsys, "evaluate", "--data-dir", path, *small)


def test_folders_that_cannot_be_used(
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (("empty", "an empty folder"), ("none", "no such folder")):
        assert message in refused(capsys, "evaluate", "--data-dir", tmp_path / path, *small)
    monkeypatch.setattr(published, "PICTURES", "http://localhost:1/")
    assert "or name a folder of pictures with --data-dir" in refused(capsys, "evaluate", *small)


def test_options_that_cannot_be_used(
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    red = folder(tmp_path / "data", None) / "red.png"

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("offline")

    monkeypatch.setattr(pooch, "retrieve", offline)

    def says(message: str, *arguments: Any) -> None:
        assert message in refused(capsys, *arguments)

    says("no picture is named", "classify", *small)
    says("no such file", "classify", tmp_path / "none.png", *small)
    (tmp_path / "half.jpg").write_bytes(jpeg(tmp_path)[:3000])
    says("half.jpg: cannot be read", "classify", red, tmp_path / "half.jpg", *small)
    (tmp_path / "bomb.png").write_bytes(png_of_size(12_000, 12_000))
    says("at most 89 million", "classify", tmp_path / "bomb.png", *small)
    says("--batch-size is 0", "classify", red, *small, "--batch-size", 0)
    says("cannot be written to", "classify", red, *small, "--out", red / "below")
    says("no such file", "classify", red, *small, "--weights", tmp_path / "none.npz")
    says("no such file", "classify", red, *small, "--names", tmp_path / "none.txt")
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    says("2 lines, needs 1000", "classify", red, *small, "--names", tmp_path / "two.txt")
    says("there is no bvlc_googlenet.npz in", "classify", red, "--out", tmp_path)
    monkeypatch.setenv("FNN_DATA", str(tmp_path / "nowhere"))
    says("nowhere/googlenet or", "classify", red, "--out", tmp_path)
    bad = {"loss3": {"w": jnp.full((3, 1000), jnp.nan), "b": jnp.zeros(1000)}}
    fnn.models.save_weights(tmp_path / "nan.npz", bad)
    says("are not finite", "classify", red, *small, "--weights", tmp_path / "nan.npz")
    other = fnn.linear(3).init(jax.random.key(0), jnp.zeros((1, 3)))
    fnn.models.save_weights(tmp_path / "other.npz", other)
    says("weights of another network", "classify", red, *small, "--weights", tmp_path / "other.npz")


def test_both_networks_take_their_own_weights_and_equal_ones_are_ranked_in_order() -> None:
    assert set(recognition.networks()) == {"bvlc", "torchvision"}
    assert commands.best(np.array([0.1, 0.3, 0.1, 0.3, 0.1, 0.1])).tolist() == [1, 3, 0, 2, 4]
