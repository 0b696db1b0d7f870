"""From their public homes, checked: BVLC's GoogLeNet, the names of its classes, photographs."""

from __future__ import annotations

import csv
import hashlib
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rich.progress import track

import fnn
from experiments.common.console import console
from experiments.common.idx import DataError
from experiments.googlenet.caffe import read_caffemodel

HOME = "http://dl.caffe.berkeleyvision.org/"
MODEL, SHA1 = "bvlc_googlenet.caffemodel", "405fc5acd08a3bb12de8ee5e23a96bec22f08204"
LISTS, NAMES = "caffe_ilsvrc12.tar.gz", "synset_words.txt"
AUXILIARY = ("loss1/", "loss2/")  # heads for training alone
# Of the names and bytes of all weights but these, sorted by name.
WEIGHTS_SHA256 = "9da8bb15f26cb0c787b43b830ef3615f8eba137d12402995361fa216643452e8"
# One picture for each of a hundred classes of ImageNet; the table says which.
PICTURES = "https://raw.githubusercontent.com/EliSchwartz/imagenet-sample-images/master/"
TABLE = Path(__file__).with_name("photographs.tsv")


def download(file: str, folder: Path, sha256: Mapping[str, str]) -> Path:
    """The weights (as ``.npz``) or the names in a folder, downloaded and checked.

    Args:
      file: its name there.
      sha256: of the files of which the bytes are known.

    Raises:
      DataError: there is no way to its home, or something else came.
    """
    make = _weights if file.endswith(".npz") else _names
    path = folder / file
    data = make(_fetched, folder)
    if file in sha256 and (got := hashlib.sha256(data).hexdigest()) != sha256[file]:
        raise DataError(f"{HOME}{LISTS}: {file} has SHA-256 {got}, needs {sha256[file]}")
    path.write_bytes(data)
    return path


def photographs(folder: Path) -> Path:
    """The photographs of ``photographs.tsv`` in a folder, with their ``labels.tsv``.

    Raises:
      DataError: there is no way to their home, or other files came.
    """
    import pooch

    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    pooch.get_logger().setLevel("WARNING")
    known = {row["file"]: f"sha256:{row['sha256']}" for row in rows}
    home = pooch.create(folder, PICTURES, registry=known)
    for row in track(rows, "downloading", console=console, transient=True):
        try:
            home.fetch(row["file"])
        except (OSError, ValueError) as error:
            raise DataError(
                f"no way to download {PICTURES}{row['file']} ({error}): put the pictures of "
                f"{TABLE} into {folder}, or name a folder of pictures with --data-dir"
            ) from error
    lines = ["file\tclass_index", *(f"{row['file']}\t{row['class_index']}" for row in rows)]
    (folder / "labels.tsv").write_text("\n".join(lines) + "\n")
    return folder


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """The weights of a ``.caffemodel``, without the heads for training."""
    arrays = read_caffemodel(path)
    return {name: a for name, a in arrays.items() if not name.startswith(AUXILIARY)}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names and numbers."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return whole.hexdigest()


def _fetched(file: str, folder: Path, known: str | None) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its bar says enough
    try:
        return Path(pooch.retrieve(HOME + file, known, file, folder, progressbar=True))
    except (OSError, ValueError) as error:
        raise DataError(
            f"no way to download {HOME}{file} ({error}): put that file into {folder}, or set "
            "FNN_DATA to the folder that holds googlenet/"
        ) from error


Fetch = Callable[[str, Path, str | None], Path]


def _weights(fetched: Fetch, folder: Path) -> bytes:
    path = fetched(MODEL, folder, f"sha1:{SHA1}")
    arrays = weights_of(path)
    if digest(arrays) != WEIGHTS_SHA256:
        raise DataError(f"{path}: not BVLC's weights; delete the file and try again")
    to = folder / "converted.npz"
    fnn.models.save_weights(to, arrays)
    data = to.read_bytes()
    to.unlink()
    return data


def _names(fetched: Fetch, folder: Path) -> bytes:
    path = fetched(LISTS, folder, None)
    try:
        with tarfile.open(path) as archive:
            member = archive.extractfile(NAMES)
            return b"" if member is None else member.read()
    except (tarfile.TarError, KeyError) as error:
        raise DataError(f"{path}: holds no {NAMES} ({error}); delete it and try again") from error
