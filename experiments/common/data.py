"""Data sets of the experiments: found or downloaded, checked, split, scaled.

    data = load("mnist")
    data.train.x         # float32 (55000, 784), in 0..1
    data.train.target    # int32 (55000,)

Every file is checked by the SHA-256 of its uncompressed bytes, so its contents are the same
wherever it was found. Every fault is a `DataError` raised before training starts: nothing is
clipped, coerced or repaired in silence.

scikit-learn and pooch are imported where they are needed: the import of scikit-learn takes longer
than all of `load("mnist")`, and files that are there need no downloader.
"""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class DataError(ValueError):
    """Data that cannot be used: one line with the file, what it has, what it needs, the fix."""


def _error(where: object, got: str, needs: str, fix: str) -> DataError:
    line = f"{where}: found {got}; needs {needs}; fix: {fix}"
    return DataError(" ".join(line.split()))  # one line, even if a quoted cause has several


class Split(NamedTuple):
    """Examples and what to predict for each; as a NamedTuple it is a pytree of two arrays.

    x: (n, d), float32 (or as it is stored, with `raw`).
    target: (n,) int32 labels for classes, (n, 1) float32 for a regression.
    """

    x: Array
    target: Array


class Scale(NamedTuple):
    """How stored values became those of the data set: `(stored - mean) / std`.

    mean, std: float64, of shape () or (d,). Stored units are `value * std + mean`.
    """

    mean: Array
    std: Array


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, split and scaled.

    name: as given to `load`.
    train, validation, test: disjoint; validation may have no examples.
    x_scale: applied to `x` (or, with `raw`, not yet applied).
    target_scale: applied to the target of a regression; None for classes.
    feature_names: d names.
    class_names: the name of label 0, 1, ...; () for a regression.
    image_shape: (height, width, channels) for `x.reshape(-1, *image_shape)`; None if no image.
    about: source and licence.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    x_scale: Scale
    target_scale: Scale | None
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    about: str

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def sizes(self, examples: str = "examples") -> str:
        """How many examples each split has, in words."""
        train, validation, test = (len(split.x) for split in self.splits.values())
        return f"{train} {examples} for training, {validation} for validation, {test} for testing"

    def columns(self, names: Sequence[str]) -> list[int]:
        """The columns of x with these features."""
        return [self.feature_names.index(name) for name in names]


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

# Bundled with scikit-learn: source and licence.
BUNDLED: dict[str, str] = {
    "breast_cancer": "Breast Cancer Wisconsin (Diagnostic): Wolberg, Mangasarian, Street and "
    "Street, 1995, UCI Machine Learning Repository. CC BY 4.0.",
    "digits": "Optical Recognition of Handwritten Digits, test set: Alpaydin and Kaynak, 1998, "
    "UCI Machine Learning Repository. CC BY 4.0.",
    "diabetes": "Diabetes: Efron, Hastie, Johnstone and Tibshirani, Least Angle Regression, 2004; "
    "as distributed with scikit-learn, BSD 3-Clause.",
}

NAMES: tuple[str, ...] = (*BUNDLED, *IDX)


def load(
    name: str,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    validation: int | None = None,
    raw: bool = False,
) -> Dataset:
    """Loads a data set by name.

    The bundled sets lose a fifth of their examples to the test split (scikit-learn's
    `train_test_split`, stratified for classes); the IDX sets have an official one. Validation
    examples are then held out of the training examples, stratified for classes. The test split
    depends on the seed alone, never on `validation`.

    `x` is scaled: pixels to 0..1, other features to mean 0 and standard deviation 1 over the
    *training* split; a regression's target likewise.

    IDX files are taken from the first of these that has them, compressed or not:
    `data_dir/<name>/`, `$FNN_DATA/<name>/`, the user's cache folder; otherwise they are
    downloaded into the cache folder.

    Args:
      name: one of `NAMES`.
      seed: the same seed gives the same splits.
      data_dir: a folder that contains `mnist/` and `fashion_mnist/`.
      validation: how many training examples to hold out, 0 allowed. By default 5,000 of the IDX
        sets, a tenth of all examples of the others.
      raw: leave `x` unscaled: pixels as uint8 (a quarter of the memory, to be scaled on the
        device), other features as float32 in their units.

    Raises:
      DataError: the name or `validation` is not valid, a file is missing or broken, or the data
        are empty or not finite. Its message says what to do.
      ModuleNotFoundError: a bundled set is asked for and scikit-learn is not installed.
    """
    if name in IDX:
        return _load_idx(name, seed, data_dir, 5000 if validation is None else validation, raw)
    if name in BUNDLED:
        return _load_bundled(name, seed, validation, raw)
    raise _error("load", f"the name {name!r}", f"one of {', '.join(NAMES)}", "choose one of these")


# ---------------------------------------------------------------- checks and splits


def check_examples(where: object, x: Array, target: Array, classes: int = 0) -> None:
    """Raises DataError unless examples and targets can be trained on.

    Args:
      where: the start of the message, usually a file or data set.
      x: (n, ...), with n at least 1; finite.
      target: (n, ...); finite, and for classes in 0..classes - 1.
      classes: how many classes, 0 for a regression.
    """
    if len(x) != len(target):
        counts = f"{len(x)} examples and {len(target)} targets"
        fix = "use files or arrays that belong together"
        raise _error(where, counts, "as many targets as examples", fix)
    if x.size == 0:
        raise _error(
            where, f"no data, shape {x.shape}", "at least one example", "use the full data"
        )
    for kind, array in (("x", x), ("target", target)):
        # Integers are finite: no need to read 47 million pixels.
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            first = tuple(int(i) for i in np.argwhere(~finite)[0])
            bad = f"{np.sum(~finite)} NaN or infinite values in {kind}, the first at index {first}"
            raise _error(where, bad, "finite numbers", "remove or fill these examples")
    if classes and not (target.min() >= 0 and target.max() < classes):
        labels = f"labels from {target.min()} to {target.max()}"
        fix = "use the labels that belong to the data"
        raise _error(where, labels, f"labels from 0 to {classes - 1}", fix)


def hold_out(
    name: str, strata: Array, count: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Splits range(n) into (training, validation), both ascending, with `count` in the latter.

    strata: (n,), the class of each example. Each class gives its share, rounded up or down.
    """
    n = len(strata)
    if not isinstance(count, int | np.integer) or not 0 <= count < n:
        needs = f"a whole number from 0 to {n - 1}, fewer than the {n} examples to hold out from"
        raise _error(name, f"validation={count!r}", needs, "choose another number")
    # Shuffle, sort by class, take every (n / count)th: evenly spaced picks meet each class in
    # proportion, and within a class the order is random. Integer arithmetic, so exact.
    order = np.random.default_rng(seed).permutation(n)
    order = order[np.argsort(strata[order], kind="stable")]
    held_out = np.zeros(n, bool)
    held_out[order[np.arange(count) * n // max(count, 1)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


# ---------------------------------------------------------------- bundled with scikit-learn


def _load_bundled(name: str, seed: int, validation: int | None, raw: bool) -> Dataset:
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        error.msg = f"the data set {name!r} is bundled with scikit-learn: pip install scikit-learn"
        raise
    # Not `scaled`: that standardises by the test examples too.
    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(**options)
    regression = name == "diabetes"
    x: Array = np.asarray(bunch.data, np.float64)
    target: Array = np.asarray(bunch.target, np.float64 if regression else np.int32)
    classes = () if regression else tuple(str(c) for c in bunch.target_names)
    check_examples(name, x, target, len(classes))

    rest, test = train_test_split(
        np.arange(len(x)), test_size=0.2, random_state=seed, stratify=target if classes else None
    )
    count = len(x) // 10 if validation is None else validation
    strata = target[rest] if classes else np.zeros(len(rest))
    rows, held_out = hold_out(name, strata, count, seed)
    train = rest[rows]

    image_shape = (8, 8, 1) if name == "digits" else None
    x_scale = Scale(np.zeros(()), np.full((), 16.0)) if image_shape else _scale(name, x[train])
    target_scale = None
    if regression:
        target = target[:, None]  # the shape of a network's output, so that nothing broadcasts
        target_scale = _scale(name, target[train])
        target = _apply(target_scale, target)
    x = x.astype(np.uint8 if image_shape else np.float32) if raw else _apply(x_scale, x)
    return Dataset(
        name,
        train=Split(x[train], target[train]),
        validation=Split(x[rest[held_out]], target[rest[held_out]]),
        test=Split(x[test], target[test]),
        x_scale=x_scale,
        target_scale=target_scale,
        feature_names=tuple(str(f) for f in bunch.feature_names),
        class_names=classes,
        image_shape=image_shape,
        about=BUNDLED[name],
    )


def _scale(name: str, x: Array) -> Scale:
    """The mean and standard deviation of each column of x (n, d); raises where one is constant."""
    scale = Scale(x.mean(0), x.std(0))
    if not scale.std.all():
        constant = f"no spread in column {int(np.argmin(scale.std))} of {len(x)} training examples"
        needs = "at least two different values to standardise by"
        raise _error(name, constant, needs, "hold out fewer validation examples")
    return scale


def _apply(scale: Scale, x: Array) -> NDArray[np.float32]:
    return ((x - scale.mean) / scale.std).astype(np.float32)  # float64 until the last step


# ---------------------------------------------------------------- IDX files


def _load_idx(
    name: str, seed: int, data_dir: str | os.PathLike[str] | None, validation: int, raw: bool
) -> Dataset:
    source = IDX[name]
    paths = [_locate(name, file, data_dir) for file in FILES]
    with ThreadPoolExecutor() as pool:  # zlib and hashlib release the GIL
        images, labels, test_images, test_labels = pool.map(
            lambda path, file, ndim: read_idx(path, ndim, source.sha256[file], _fix(name, path)),
            *(paths, FILES, (3, 1, 3, 1)),
        )
    for path, x, y in ((paths[0], images, labels), (paths[2], test_images, test_labels)):
        check_examples(path, x, y, len(source.class_names))
    height, width = images.shape[1:]
    rows, held_out = hold_out(name, labels, validation, seed)

    def split(pixels: Array, target: Array, rows: Any) -> Split:
        x = pixels.reshape(len(pixels), -1)[rows]
        return Split(x if raw else x / np.float32(255), target[rows].astype(np.int32))

    return Dataset(
        name,
        train=split(images, labels, rows),
        validation=split(images, labels, held_out),
        test=split(test_images, test_labels, slice(None)),
        x_scale=Scale(np.zeros(()), np.full((), 255.0)),
        target_scale=None,
        feature_names=tuple(f"pixel_{r}_{c}" for r in range(height) for c in range(width)),
        class_names=source.class_names,
        image_shape=(height, width, 1),
        about=source.about,
    )


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
        raise _error(path, f"no readable file ({error})", "a readable file", fix) from error
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
        raise _error(where, truncated, "the complete gzip file", fix) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _error(where, f"corrupted gzip data ({error})", "an intact gzip file", fix) from error


def _check_sha256(where: object, data: bytes, sha256: str, fix: str) -> None:
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise _error(where, f"SHA-256 {got} of the uncompressed bytes", f"SHA-256 {sha256}", fix)


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
        raise _error(where, got, needs, fix)
    if len(data) < header:
        raise _error(where, f"{len(data)} bytes", f"a header of {header} bytes", fix)
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", ndim, offset=4))
    size = header + math.prod(shape)  # Python's integers: four huge sizes cannot wrap round
    if len(data) != size:
        needs = f"{size} bytes, for the shape {shape} in its header"
        raise _error(where, f"{len(data)} uncompressed bytes", needs, fix)
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


# ---------------------------------------------------------------- finding and downloading


def cache(name: str) -> Path:
    """The user's cache folder for one data set."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fnn" / name


def _fix(name: str, path: Path) -> str:
    """What to do about a broken file: only fnn's own downloads may be thrown away."""
    if path.parent == cache(name):
        return "delete this file from the cache folder; the next run downloads it again"
    return f"replace it by the official file from {IDX[name].url}"


def _locate(name: str, file: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Finds an IDX file, or downloads it into the cache folder."""
    folders = []
    for what, root in (("--data-dir", data_dir), ("FNN_DATA", os.environ.get("FNN_DATA"))):
        if not root:
            continue
        if not Path(root).is_dir():
            needs = "an existing folder that contains mnist/ or fashion_mnist/"
            raise _error(root, f"no folder, but {what} names it", needs, f"correct {what}")
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
        raise _error(
            f"{name}/{file}",
            f"no such file in {', '.join(map(str, folders))}, and no way to download {url} to "
            f"{cache(name)} ({error})",
            "the official file, compressed (.gz) or not",
            f"connect to the network, or {fix}",
        ) from error
    return Path(path)
