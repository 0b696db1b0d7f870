"""GoogLeNet's weights from Caffe's own file, which an encoder of its own writes here."""

from __future__ import annotations

import os
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common.idx import DataError
from experiments.googlenet import published, recognition
from experiments.googlenet.caffe import read_caffemodel

DATA = Path(os.environ.get("FNN_DATA", "../shared/data")) / "googlenet"
ARRAYS = {
    "conv1/7x7_s2/w": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),  # (H, W, I, O)
    "conv1/7x7_s2/b": np.array([300.0, -2.0], np.float32),
    "loss1/fc/w": np.ones((2, 3), np.float32),
    "loss3/classifier/w": np.arange(6, dtype=np.float32).reshape(2, 3),  # (I, O)
    "loss3/classifier/b": np.zeros(3, np.float32),
}


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(a: np.ndarray, old: bool) -> bytes:
    a = a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T
    data = field(5, np.ascontiguousarray(a, "<f4").tobytes())
    if old:
        shape = (1,) * (4 - a.ndim) + a.shape
        return b"".join(field(i, n) for i, n in enumerate(shape, 1)) + data
    return field(7, field(1, b"".join(map(varint, a.shape)))) + data


def caffemodel(arrays: Mapping[str, np.ndarray], old: bool) -> bytes:
    layer, name_field, blob_field = (2, 4, 6) if old else (100, 1, 7)
    net = field(1, b"GoogleNet")
    for name in dict.fromkeys(key.rpartition("/")[0] for key in arrays):
        blobs = [blob(arrays[f"{name}/{leaf}"], old) for leaf in "wb" if f"{name}/{leaf}" in arrays]
        rate = varint(8 << 3 | 5) + struct.pack("<f", 1.0)  # a field that is passed over
        body = field(name_field, name.encode()) + rate
        net += field(layer, body + b"".join(field(blob_field, b) for b in blobs))
    return net + field(layer, field(name_field, b"data"))


def equal(got: Mapping[str, np.ndarray], needed: Mapping[str, np.ndarray]) -> None:
    assert sorted(got) == sorted(needed)
    for name in needed:
        np.testing.assert_array_equal(got[name], needed[name])


@pytest.mark.parametrize("old", [True, False], ids=["as it was", "as it is"])
def test_both_ways_of_writing_layers_are_read(old: bool, tmp_path: Path) -> None:
    file = tmp_path / "net.caffemodel"
    file.write_bytes(caffemodel(ARRAYS, old))
    equal(read_caffemodel(file), ARRAYS)
    assert "loss1/fc/w" not in published.weights_of(file)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "without any weights"),
        (b"<html>not found</html>", "not a .caffemodel, or cut off"),
        (caffemodel(ARRAYS, True)[:-70], "not a .caffemodel, or cut off"),
        (
            field(100, field(1, b"a") + field(7, field(5, bytes(8)) + field(1, 3))),
            "not a .caffemod",
        ),
    ],
)
def test_what_is_none_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "net.caffemodel"
    file.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_caffemodel(file)


@pytest.mark.slow
def test_the_published_weights_are_downloaded_converted_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a home that has the same weights, in Caffe's format."""
    with np.load(DATA / "bvlc_googlenet.npz") as file:
        arrays = dict(file)
    home = tmp_path / "home"
    home.mkdir()
    (home / published.MODEL).write_bytes(caffemodel(ARRAYS | arrays | {
        "loss1/fc/w": np.ones((2, 3), np.float32)}, True))  # fmt: skip
    with tarfile.open(home / published.LISTS, "w:gz") as archive:
        archive.add(DATA / "synset_words.txt", "synset_words.txt")

    def fetched(file: str, folder: Path, known: Any) -> Path:
        assert known in (None, f"sha1:{published.SHA1}")
        return home / file

    monkeypatch.setattr(published, "_fetched", fetched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FNN_DATA")
    for _ in range(2):  # the second time from the cache
        recogniser = recognition.recogniser("bvlc", None, None)
        assert recogniser.names[0] == "tench, Tinca tinca" and len(recogniser.names) == 1000
        w = recogniser.params["conv1"]["7x7_s2"]["w"]
        np.testing.assert_array_equal(w, arrays["conv1/7x7_s2/w"])
        monkeypatch.setattr(published, "_fetched", None)


def test_without_a_network_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    def retrieve(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError, match=r"bvlc_googlenet.caffemodel .*no route .*or set FNN"):
        published.download("bvlc_googlenet.npz", tmp_path, {})


@pytest.mark.parametrize("intact", [True, False])
def test_the_hundred_photographs_are_downloaded_and_checked(
    intact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    home = DATA.parent / "imagenet_samples"
    asked = []

    class Near:
        """In place of the way to their home."""

        def __call__(self, url: str, to: str, _: Any) -> None:
            asked.append(url)
            content = (home / url.removeprefix(published.PICTURES)).read_bytes()
            Path(to).write_bytes(content if intact else content[:-1])

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda *_, **__: Near())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FNN_DATA")
    if not intact:
        with pytest.raises(DataError, match=r"tiger_shark.JPEG .*hash .*or name a folder"):
            recognition.samples()
        return
    folder = recognition.samples()
    assert (folder / "labels.tsv").read_text() == (home / "labels.tsv").read_text()
    assert len(list(folder.glob("*.JPEG"))) == len(asked) == 100
    assert recognition.samples() == folder and len(asked) == 100  # from the cache
