"""Data: right splits and scales, and one clear line for all that can be broken."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.common import data, idx
from experiments.common.data import load
from experiments.common.idx import DataError

FILES = idx.FILES
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES
OFFICIAL = os.environ.get("FNN_DATA")  # read before the fixture below hides it


def idx_bytes(array: np.ndarray, dtype: int = 8) -> bytes:
    """An IDX file, written independently of the parser."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, dtype, array.ndim, *array.shape) + bytes(array)


def small_files() -> dict[str, bytes]:
    """Four files like MNIST's: 60 and 20 images of 4 x 5 pixels; labels 0..9, unevenly."""
    rng = np.random.default_rng(7)
    files = {}
    for kind, n in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 4, 5), np.uint8)
        labels = np.minimum(np.arange(n) % 12, 9).astype(np.uint8)
        files[f"{kind}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{kind}-labels-idx1-ubyte"] = idx_bytes(labels)
    return files


def put(folder: Path, files: dict[str, bytes], compressed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def no_user_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's data, cache or network."""
    monkeypatch.delenv("FNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, source in idx.IDX.items():
        monkeypatch.setitem(idx.IDX, name, source._replace(url="http://127.0.0.1:9/"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, no_user_files: None) -> dict[str, bytes]:
    """The small files, with their checksums in place of the official ones."""
    files = small_files()
    use_checksums(monkeypatch, files)
    return files


def use_checksums(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    table = {name: hashlib.sha256(files[name]).hexdigest() for name in FILES}
    monkeypatch.setitem(idx.IDX, "mnist", idx.IDX["mnist"]._replace(sha256=table))


@pytest.fixture
def official() -> str:
    if not OFFICIAL:
        pytest.skip("FNN_DATA is not set")
    return OFFICIAL


def fails(*parts: str) -> "pytest.RaisesExc[DataError]":
    """A DataError on one line, with what was found, what is needed, the fix, and these parts."""

    def check(error: DataError) -> bool:
        line = str(error)
        assert "\n" not in line
        assert re.fullmatch(r".+: found .+; needs .+; fix: .+", line), line
        for part in parts:
            assert part in line, f"{part!r} not in {line!r}"
        return True

    return pytest.raises(DataError, check=check)


# ---------------------------------------------------------------- bundled sets


@pytest.mark.parametrize(
    ("name", "n", "d", "classes"),
    [("breast_cancer", 569, 30, 2), ("digits", 1797, 64, 10), ("diabetes", 442, 10, 0)],
)
def test_bundled_sets(name: str, n: int, d: int, classes: int) -> None:
    loaded = load(name)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert loaded.name == name and loaded.about
    assert sum(len(s.x) for s in splits) == n
    assert len(loaded.test.x) == -(-n // 5) and len(loaded.validation.x) == n // 10
    assert len(loaded.feature_names) == d and len(loaded.class_names) == classes
    assert all(type(word) is str for word in (*loaded.feature_names, *loaded.class_names))
    for x, target in splits:
        assert x.dtype == np.float32 and x.shape == (len(target), d)
        assert np.isfinite(x).all()
        if classes:
            assert target.dtype == np.int32 and target.ndim == 1
            assert set(target) == set(range(classes))
        else:
            assert target.dtype == np.float32 and target.shape == (len(x), 1)
    assert loaded.image_shape == ((8, 8, 1) if name == "digits" else None)
    # Disjoint: every example is in one split only (digits are all different, and so are the rest).
    assert len(np.unique(np.concatenate([s.x for s in splits]), axis=0)) == n


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes"])
def test_standardised_by_the_training_split_alone(name: str) -> None:
    loaded, raw = load(name), load(name, raw=True)
    x = raw.train.x.astype(np.float64)
    np.testing.assert_allclose(loaded.x_scale.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(loaded.x_scale.std, x.std(0), rtol=1e-5)
    np.testing.assert_allclose(loaded.train.x.mean(0, np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(loaded.train.x.std(0, dtype=np.float64), 1, rtol=1e-6)
    assert abs(loaded.test.x.mean(0)).max() > 0.02  # not standardised by its own mean
    for split in ("train", "validation", "test"):
        back = getattr(loaded, split).x * loaded.x_scale.std + loaded.x_scale.mean
        np.testing.assert_allclose(back, getattr(raw, split).x, rtol=1e-5, atol=1e-5)


def test_bundled_test_split_is_scikit_learns() -> None:
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    x, y = load_breast_cancer(return_X_y=True)
    _, x_test, _, y_test = train_test_split(x, y, test_size=0.2, random_state=3, stratify=y)
    loaded = load("breast_cancer", seed=3, raw=True)
    np.testing.assert_array_equal(loaded.test.x, x_test.astype(np.float32))
    np.testing.assert_array_equal(loaded.test.target, y_test)
    assert loaded.class_names == ("malignant", "benign")


def test_digits_are_pixels_from_0_to_1() -> None:
    loaded, raw = load("digits"), load("digits", raw=True)
    assert raw.train.x.dtype == np.uint8 and raw.train.x.max() == 16
    np.testing.assert_array_equal(loaded.train.x, raw.train.x.astype(np.float32) / 16)


def test_diabetes_target_returns_to_its_units() -> None:
    from sklearn.datasets import load_diabetes

    loaded = load("diabetes")
    assert loaded.target_scale is not None and loaded.class_names == ()
    parts = [s.target for s in (loaded.train, loaded.validation, loaded.test)]
    units = np.concatenate(parts) * loaded.target_scale.std + loaded.target_scale.mean
    expected = np.sort(load_diabetes().target)
    np.testing.assert_allclose(np.sort(units[:, 0]), expected, rtol=1e-5)
    np.testing.assert_allclose(loaded.train.target.mean(dtype=np.float64), 0, atol=1e-6)


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "diabetes"])
def test_splits_follow_the_seed(name: str) -> None:
    first, again, other = load(name, seed=1), load(name, seed=1), load(name, seed=2)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, split).x, getattr(again, split).x)
        assert not np.array_equal(getattr(first, split).x, getattr(other, split).x)
    # The test split does not move with the validation split.
    fewer = load(name, seed=1, validation=0, raw=True)
    np.testing.assert_array_equal(fewer.test.x, load(name, seed=1, raw=True).test.x)
    assert fewer.validation.x.shape == (0, fewer.train.x.shape[1])


def test_breast_cancer_splits_are_stratified() -> None:
    loaded = load("breast_cancer")
    shares = [s.target.mean() for s in (loaded.train, loaded.validation, loaded.test)]
    np.testing.assert_allclose(shares, 357 / 569, atol=0.01)


def test_hold_out_gives_each_class_its_share() -> None:
    strata = np.random.default_rng(0).choice(4, 997, p=[0.6, 0.3, 0.09, 0.01])
    for count in (0, 1, 10, 333, 996):
        kept, held = data.hold_out("x", strata, count, seed=0)
        np.testing.assert_array_equal(np.sort(np.append(kept, held)), np.arange(997))
        assert len(held) == count and (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
        share = np.bincount(strata, minlength=4) * count / 997
        assert (abs(np.bincount(strata[held], minlength=4) - share) < 1).all()


# ---------------------------------------------------------------- IDX sets


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_set(small: dict[str, bytes], tmp_path: Path, compressed: bool) -> None:
    put(tmp_path / "mnist", small, compressed)
    loaded = load("mnist", data_dir=tmp_path, validation=0)
    images = np.frombuffer(small[TRAIN_IMAGES], np.uint8, offset=16).reshape(60, 20)
    labels = np.frombuffer(small[TRAIN_LABELS], np.uint8, offset=8)
    np.testing.assert_array_equal(loaded.train.x, images.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(loaded.train.target, labels)
    assert loaded.train.x.dtype == np.float32 and loaded.train.target.dtype == np.int32
    assert loaded.validation.x.shape == (0, 20) and loaded.validation.target.shape == (0,)
    assert loaded.test.x.shape == (20, 20) and loaded.test.target.shape == (20,)
    assert loaded.image_shape == (4, 5, 1) and loaded.class_names == tuple("0123456789")
    assert len(loaded.feature_names) == 20 and loaded.feature_names[-1] == "pixel_3_4"
    assert loaded.x_scale.std == 255 and loaded.target_scale is None

    raw = load("mnist", data_dir=str(tmp_path), validation=0, raw=True)
    assert raw.train.x.dtype == np.uint8
    np.testing.assert_array_equal(raw.train.x, images)


def test_idx_validation_is_held_out_of_training(small: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path / "mnist", small)
    whole = load("mnist", data_dir=tmp_path, validation=0)
    first, again, other = (load("mnist", s, tmp_path, validation=24) for s in (0, 0, 1))
    assert len(first.train.x) == 36 and len(first.validation.x) == 24
    both = np.concatenate([first.train.x, first.validation.x])
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(whole.train.x, axis=0))
    share = np.bincount(whole.train.target) * 24 / 60
    assert (abs(np.bincount(first.validation.target, minlength=10) - share) < 1).all()
    np.testing.assert_array_equal(first.validation.x, again.validation.x)
    assert not np.array_equal(first.validation.x, other.validation.x)
    for loaded in (first, other):
        np.testing.assert_array_equal(loaded.test.x, whole.test.x)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_official_files(official: str, name: str) -> None:
    loaded = load(name, data_dir=official)
    assert loaded.train.x.shape == (55000, 784) and loaded.validation.x.shape == (5000, 784)
    assert loaded.test.x.shape == (10000, 784) and loaded.image_shape == (28, 28, 1)
    assert (loaded.train.x.min(), loaded.train.x.max()) == (0, 1)
    first = [7, 2, 1, 0, 4, 1, 4, 9] if name == "mnist" else [9, 2, 1, 1, 6, 1, 4, 6]
    assert loaded.test.target[:8].tolist() == first
    assert len(loaded.class_names) == 10


# ---------------------------------------------------------------- where files are found


def test_order_of_folders(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, env, cache = tmp_path / "given", tmp_path / "env", tmp_path / "cache" / "fnn"
    for folder in (given, env, cache):
        put(folder / "mnist", small)
    find = functools.partial(idx.locate, "mnist", TRAIN_IMAGES)
    monkeypatch.setenv("FNN_DATA", str(env))
    expected = f"mnist/{TRAIN_IMAGES}.gz"
    assert find(given) == given / expected
    assert find(None) == env / expected
    (given / expected).unlink()  # one file missing: the next folder has the very same bytes
    assert find(given) == env / expected
    monkeypatch.delenv("FNN_DATA")
    assert find(given) == find(None) == cache / expected
    put(cache / "mnist", small, compressed=False)
    assert find(None) == cache / "mnist" / TRAIN_IMAGES  # nothing to unzip


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert idx.cache("mnist") == tmp_path / "cache" / "fnn" / "mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert idx.cache("mnist") == tmp_path / ".cache" / "fnn" / "mnist"


@pytest.mark.parametrize("what", ["data_dir", "FNN_DATA"])
def test_named_folder_must_exist(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "typo"
    if what == "FNN_DATA":
        monkeypatch.setenv(what, str(missing))
    fix = "correct " + ("--data-dir" if what == "data_dir" else what)
    with fails(str(missing), "no folder", fix):
        load("mnist", data_dir=missing if what == "data_dir" else None)


# ---------------------------------------------------------------- downloads


@pytest.fixture
def home(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A server of the compressed files on this machine, and their folder."""
    folder = tmp_path / "home"
    put(folder, small)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setitem(idx.IDX, "mnist", idx.IDX["mnist"]._replace(url=url))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def cached() -> list[str]:
    folder = idx.cache("mnist")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_download_once(home: Path, capsys: pytest.CaptureFixture) -> None:
    loaded = load("mnist", validation=0)
    assert len(loaded.train.x) == 60
    assert cached() == sorted(FILES)  # uncompressed, and no temporary file is left
    out, err = capsys.readouterr()
    assert out == "" and "100%" in err
    for path in home.iterdir():
        path.unlink()
    again = load("mnist", validation=0)
    np.testing.assert_array_equal(loaded.train.x, again.train.x)


def test_interrupted_download_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gzip, "decompress", interrupt)
        load("mnist")
    assert cached() == []
    assert len(load("mnist", validation=0).train.x) == 60


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (gzip.compress(b"other data", mtime=0), ["found SHA-256", "needs SHA-256"]),
        (gzip.compress(b"cut off", mtime=0)[:-9], ["truncated gzip data"]),
        (b"<html>Log in</html>", ["corrupted gzip data", "Not a gzipped file"]),
    ],
)
def test_download_of_another_file(home: Path, content: bytes, parts: list[str]) -> None:
    (home / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    with fails(f"{TRAIN_IMAGES}.gz", *parts, "try again later", "FNN_DATA"):
        load("mnist")
    assert cached() == []


def test_file_gone_from_its_home(home: Path, tmp_path: Path) -> None:
    (home / f"{TRAIN_LABELS}.gz").unlink()
    (tmp_path / "given").mkdir()
    with fails(f"mnist/{TRAIN_LABELS}", "404", "FNN_DATA", str(tmp_path / "given")):
        load("mnist", data_dir=tmp_path / "given")
    assert cached() == [TRAIN_IMAGES]


def test_no_network() -> None:
    url = idx.IDX["mnist"].url
    with fails(f"mnist/{TRAIN_IMAGES}", f"{url}{TRAIN_IMAGES}.gz", str(idx.cache("mnist")),
               "FNN_DATA", "connect to the network"):  # fmt: skip
        load("mnist")


def test_cache_that_cannot_be_written(home: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with fails(f"mnist/{TRAIN_IMAGES}", str(idx.cache("mnist")), "Not a directory", "FNN_DATA"):
        load("mnist")


# ---------------------------------------------------------------- broken files


def flip(content: bytes, at: int) -> bytes:
    """The content with every bit of one byte inverted; `at` counts as an index does."""
    changed = bytearray(content)
    changed[at] ^= 0xFF
    return bytes(changed)


ZIPPED = gzip.compress(small_files()[TRAIN_IMAGES], mtime=0)


@pytest.mark.parametrize(
    ("broken", "parts"),
    [
        (ZIPPED[:-1], ["truncated gzip data", "the complete gzip file"]),
        (ZIPPED[:600], ["truncated gzip data (600 bytes)"]),
        (ZIPPED[:5], ["truncated gzip data (5 bytes)"]),
        (flip(ZIPPED, -8), ["corrupted gzip data (CRC check failed", "an intact gzip file"]),
        (flip(ZIPPED, 10), ["corrupted gzip data (Error -3"]),
        (ZIPPED + b"more", ["corrupted gzip data (Not a gzipped file"]),
        (b"<html>", ["corrupted gzip data (Not a gzipped file"]),
        (b"", ["found no bytes", "magic number 0x00000803 (uint8, 3 dimensions)"]),
    ],
)
def test_broken_gzip(
    small: dict[str, bytes], tmp_path: Path, broken: bytes, parts: list[str]
) -> None:
    put(tmp_path / "mnist", small)
    path = tmp_path / "mnist" / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(broken)
    with fails(str(path), *parts, "replace it by the official file", idx.IDX["mnist"].url):
        load("mnist", data_dir=tmp_path)
    assert path.read_bytes() == broken  # the user's file is the user's


IMAGES = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"\0\0\x08", ["magic number 0x000008;", "needs magic number 0x00000803"]),
        (b"GIF89a..........", ["magic number 0x47494638;"]),
        (idx_bytes(IMAGES[0, 0]), ["0x00000801 (uint8, 1 dimensions)", "3 dimensions"]),
        (idx_bytes(IMAGES, 13), ["0x00000d03 (float32, 3 dimensions)", "(uint8, 3 dimensions)"]),
        (idx_bytes(IMAGES)[:9], ["found 9 bytes", "a header of 16 bytes"]),
        (idx_bytes(IMAGES)[:-3], ["73 uncompressed bytes", "76 bytes, for the shape (3, 4, 5)"]),
        (idx_bytes(IMAGES) + b"\n", ["77 uncompressed bytes", "76 bytes"]),
        (b"\0\0\x08\3" + b"\xff" * 12, ["16 uncompressed bytes", "79228162458924105385300197391"]),
    ],
)
def test_broken_idx(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with fails(str(path), *parts, "fix: replace the file by an intact one"):
        idx.read_idx(path, 3)


def test_read_idx(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(IMAGES))
    array = idx.read_idx(path, 3)
    np.testing.assert_array_equal(array, IMAGES)
    assert array.dtype == np.uint8 and not array.flags.writeable
    with fails("found SHA-256", "needs SHA-256 00"):
        idx.read_idx(path, 3, "00")
    with fails(str(tmp_path), "no readable file"):
        idx.read_idx(tmp_path, 3)


def test_wrong_checksum_of_a_users_file(small: dict[str, bytes], tmp_path: Path) -> None:
    other = flip(small[TRAIN_IMAGES], -1)
    put(tmp_path / "mnist", {**small, TRAIN_IMAGES: other})
    expected, got = (hashlib.sha256(f).hexdigest() for f in (small[TRAIN_IMAGES], other))
    with fails(f"{TRAIN_IMAGES}.gz", f"found SHA-256 {got}", f"needs SHA-256 {expected}"):
        load("mnist", data_dir=tmp_path)


def test_broken_file_in_the_cache_is_named_not_deleted(small: dict[str, bytes]) -> None:
    put(idx.cache("mnist"), small, compressed=False)
    path = idx.cache("mnist") / TEST_LABELS
    path.write_bytes(path.read_bytes()[:-1])
    with fails(str(path), "27 uncompressed bytes", "28 bytes", "delete this file from the cache"):
        load("mnist")
    assert path.exists()


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({TRAIN_LABELS: np.zeros(20)}, [TRAIN_IMAGES, "60 examples and 20 targets", "as many"]),
        ({TEST_IMAGES: np.zeros((0, 4, 5)), TEST_LABELS: np.zeros(0)},
         [TEST_IMAGES, "no data, shape (0, 4, 5)", "at least one example"]),
        ({TRAIN_LABELS: np.full(60, 10)}, ["labels from 10 to 10", "labels from 0 to 9"]),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arrays: dict[str, np.ndarray], parts: list[str],
) -> None:  # fmt: skip
    small |= {file: idx_bytes(array.astype(np.uint8)) for file, array in arrays.items()}
    use_checksums(monkeypatch, small)
    put(tmp_path / "mnist", small)
    with fails(*parts):
        load("mnist", data_dir=tmp_path)


# ---------------------------------------------------------------- other errors


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["x", "target"])
def test_values_that_are_not_finite(bad: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import datasets

    bunch = datasets.load_diabetes(scaled=False)
    array, at = (bunch.data, (17, 3)) if kind == "x" else (bunch.target, (17,))
    array[at] = bad
    array[-1] = bad
    monkeypatch.setattr(datasets, "load_diabetes", lambda scaled: bunch)
    with fails("diabetes", f"NaN or infinite values in {kind}, the first at index {at}", "finite"):
        load("diabetes")


def test_unknown_name() -> None:
    with fails("'minst'", "breast_cancer, digits, diabetes, mnist, fashion_mnist"):
        load("minst")


@pytest.mark.parametrize("validation", [-1, 60, 0.1, "5"])
def test_validation_that_cannot_be(
    small: dict[str, bytes], tmp_path: Path, validation: int
) -> None:
    put(tmp_path / "mnist", small)
    with fails(f"mnist: found validation={validation!r}", "a whole number from 0 to 59"):
        load("mnist", data_dir=tmp_path, validation=validation)


def test_too_few_examples_to_standardise() -> None:
    with fails("diabetes", "no spread in column 0 of 1 training examples", "fewer validation"):
        load("diabetes", validation=352)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match="'digits' is bundled with scikit-learn: pip"):
        load("digits")


def test_import_is_light() -> None:
    code = (
        "import sys, experiments.common.data; print({'sklearn', 'rich', 'jax'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()", ran.stdout


def test_dataset_is_frozen_and_split_is_a_pytree() -> None:
    import jax

    loaded = load("diabetes")
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "other"  # type: ignore[misc]
    assert len(jax.tree.leaves(loaded.train)) == 2
