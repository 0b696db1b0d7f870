"""MNIST's and Fashion-MNIST's IDX files: found or downloaded, checked and parsed.

Every file is checked by the SHA-256 of its uncompressed bytes, so its contents are the same
wherever it was found.
"""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """Data that cannot be used: one line with the file, what it has, what it needs, the fix."""


def fault(where: object, got: str, needs: str, fix: str) -> DataError:
    line = f"{where}: found {got}; needs {needs}; fix: {fix}"
    return DataError(" ".join(line.split()))  # one line, even if a quoted cause has several


class IdxSource(NamedTuple):
    """A data set of four IDX files and their public home.

    url: the folder with the files, gzip-compressed, ending in a slash.
    sha256: file name in `FILES` -> SHA-256 of the uncompressed file.
    """

    url: str
    sha256: Mapping[str, str]
    class_names: tuple[str, ...]
    about: str


FILES: tuple[str, str, str, str] = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _by_file(*sha256: str) -> Mapping[str, str]:
    return dict(zip(FILES, sha256, strict=True))


IDX: dict[str, IdxSource] = {
    "mnist": IdxSource(
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        sha256=_by_file(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        class_names=tuple("0123456789"),
        about="MNIST handwritten digits: LeCun, Cortes and Burges. CC BY-SA 3.0.",
    ),
    "fashion_mnist": IdxSource(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        sha256=_by_file(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        about="Fashion-MNIST: Xiao, Rasul and Vollgraf, 2017, Zalando SE. MIT licence.",
    ),
}

# ---------------------------------------------------------------- finding and downloading


def cache(name: str) -> Path:
    """The user's cache folder for one data set."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fnn" / name


def advice(name: str, path: Path) -> str:
    """What to do about a broken file: only fnn's own downloads may be thrown away."""
    if path.parent == cache(name):
        return "delete this file from the cache folder; the next run downloads it again"
    return f"replace it by the official file from {IDX[name].url}"


def locate(name: str, file: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Finds an IDX file, or downloads it into the cache folder."""
    folders = []
    for what, root in (("--data-dir", data_dir), ("FNN_DATA", os.environ.get("FNN_DATA"))):
        if not root:
            continue
        if not Path(root).is_dir():
            needs = "an existing folder that contains mnist/ or fashion_mnist/"
            raise fault(root, f"no folder, but {what} names it", needs, f"correct {what}")
        folders.append(Path(root) / name)
    folders.append(cache(name))
    for folder in folders:
        for path in (folder / file, folder / f"{file}.gz"):  # nothing to unzip in the first
            if path.exists():
                return path
    return _download(name, file, folders)


def _download(name: str, file: str, folders: list[Path]) -> Path:
    """Downloads an IDX file into the cache folder, uncompressed: later runs then start sooner.

    pooch shows the progress and moves the file there when it is complete and checked.
    """
    import pooch

    source, url = IDX[name], f"{IDX[name].url}{file}.gz"
    fix = f"put the file into a folder {name}/ and set FNN_DATA (or --data-dir) to its parent"
    # "identity": the file is unzipped here, so no server or client may do it on the way.
    fetch = pooch.HTTPDownloader(True, 2**16, headers={"Accept-Encoding": "identity"})

    def unzipped(url: str, output: str, _: object) -> None:
        packed, again = Path(f"{output}.gz"), f"try again later, or {fix}"
        try:
            fetch(url, str(packed), None)
            data = _gunzip(url, packed.read_bytes(), again)
        finally:
            packed.unlink(missing_ok=True)
        _check_sha256(url, data, source.sha256[file], again)
        Path(output).write_bytes(data)

    try:
        path = pooch.retrieve(url, source.sha256[file], file, cache(name), downloader=unzipped)
    except OSError as error:
        raise fault(
            f"{name}/{file}",
            f"no such file in {', '.join(map(str, folders))}, and no way to download {url} to "
            f"{cache(name)} ({error})",
            "the official file, compressed (.gz) or not",
            f"connect to the network, or {fix}",
        ) from error
    return Path(path)


# ---------------------------------------------------------------- reading


def read_idx(path: Path, ndim: int, sha256: str | None = None, fix: str = "") -> NDArray[np.uint8]:
    """Reads one IDX file of unsigned bytes, gzip-compressed if its name ends in .gz.

    Args:
      path: the file.
      ndim: how many dimensions it must have: 3 for images, 1 for labels.
      sha256: that of the uncompressed bytes, in hexadecimal; None to skip the check.
      fix: the last part of an error message.

    Returns:
      A read-only uint8 array with the file's shape.

    Raises:
      DataError: the file cannot be read or decompressed, or is not the file that it should be.
    """
    fix = fix or "replace the file by an intact one"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise fault(path, f"no readable file ({error})", "a readable file", fix) from error
    if path.suffix == ".gz":
        data = _gunzip(path, data, fix)
    # Structure before checksum: "3 bytes short" helps more than two different checksums.
    array = _parse_idx(path, data, ndim, fix)
    if sha256 is not None:
        _check_sha256(path, data, sha256, fix)
    return array


def _gunzip(where: object, data: bytes, fix: str) -> bytes:
    try:
        return gzip.decompress(data)
    except EOFError as error:
        truncated = f"truncated gzip data ({len(data)} bytes)"
        raise fault(where, truncated, "the complete gzip file", fix) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise fault(where, f"corrupted gzip data ({error})", "an intact gzip file", fix) from error


def _check_sha256(where: object, data: bytes, sha256: str, fix: str) -> None:
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise fault(where, f"SHA-256 {got} of the uncompressed bytes", f"SHA-256 {sha256}", fix)


# The third byte of an IDX file; all but uint8 are here for error messages.
_IDX_DTYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}


def _parse_idx(where: object, data: bytes, ndim: int, fix: str) -> NDArray[np.uint8]:
    """A view of the elements: after 0, 0, dtype, ndim and big-endian uint32 sizes."""
    header = 4 + 4 * ndim
    magic = bytes((0, 0, 8, ndim))
    needs = f"magic number 0x{magic.hex()} (uint8, {ndim} dimensions)"
    if data[:4] != magic:
        got = f"magic number 0x{data[:4].hex()}" if data else "no bytes"
        if len(data) >= 4 and data[:2] == b"\0\0" and data[2] in _IDX_DTYPES:
            got += f" ({_IDX_DTYPES[data[2]]}, {data[3]} dimensions)"
        raise fault(where, got, needs, fix)
    if len(data) < header:
        raise fault(where, f"{len(data)} bytes", f"a header of {header} bytes", fix)
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", ndim, offset=4))
    size = header + math.prod(shape)  # Python's integers: four huge sizes cannot wrap round
    if len(data) != size:
        needs = f"{size} bytes, for the shape {shape} in its header"
        raise fault(where, f"{len(data)} uncompressed bytes", needs, fix)
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
