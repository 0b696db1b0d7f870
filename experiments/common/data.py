"""Data sets of the experiments: found or downloaded, checked, split, scaled.

    data = load("mnist")
    data.train.x         # float32 (55000, 784), in 0..1
    data.train.target    # int32 (55000,)

Every fault is a `DataError` raised before training starts: nothing is clipped, coerced or
repaired in silence.

scikit-learn is imported where it is needed: its import takes longer than all of `load("mnist")`.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.common.idx import FILES, IDX, advice, cache, fault, locate, read_idx

Array = NDArray[Any]


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
    raise fault("load", f"the name {name!r}", f"one of {', '.join(NAMES)}", "choose one of these")


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
        raise fault(where, counts, "as many targets as examples", fix)
    if x.size == 0:
        raise fault(where, f"no data, shape {x.shape}", "at least one example", "use the full data")
    for kind, array in (("x", x), ("target", target)):
        # Integers are finite: no need to read 47 million pixels.
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            first = tuple(int(i) for i in np.argwhere(~finite)[0])
            bad = f"{np.sum(~finite)} NaN or infinite values in {kind}, the first at index {first}"
            raise fault(where, bad, "finite numbers", "remove or fill these examples")
    if classes and not (target.min() >= 0 and target.max() < classes):
        labels = f"labels from {target.min()} to {target.max()}"
        fix = "use the labels that belong to the data"
        raise fault(where, labels, f"labels from 0 to {classes - 1}", fix)


def hold_out(
    name: str, strata: Array, count: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Splits range(n) into (training, validation), both ascending, with `count` in the latter.

    strata: (n,), the class of each example. Each class gives its share, rounded up or down.
    """
    n = len(strata)
    if not isinstance(count, int | np.integer) or not 0 <= count < n:
        needs = f"a whole number from 0 to {n - 1}, fewer than the {n} examples to hold out from"
        raise fault(name, f"validation={count!r}", needs, "choose another number")
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
        raise fault(name, constant, needs, "hold out fewer validation examples")
    return scale


def _apply(scale: Scale, x: Array) -> NDArray[np.float32]:
    return ((x - scale.mean) / scale.std).astype(np.float32)  # float64 until the last step


# ---------------------------------------------------------------- IDX files


def _load_idx(
    name: str, seed: int, data_dir: str | os.PathLike[str] | None, validation: int, raw: bool
) -> Dataset:
    source = IDX[name]
    paths = [locate(name, file, data_dir) for file in FILES]
    with ThreadPoolExecutor() as pool:  # zlib and hashlib release the GIL
        images, labels, test_images, test_labels = pool.map(
            lambda path, file, ndim: read_idx(path, ndim, source.sha256[file], advice(name, path)),
            *(paths, FILES, (3, 1, 3, 1)),
        )
    for path, x, y in ((paths[0], images, labels), (paths[2], test_images, test_labels)):
        check_examples(path, x, y, len(source.class_names))
    rows, held_out = hold_out(name, labels, validation, seed)

    def split(pixels: Array, target: Array, rows: Any) -> Split:
        x = pixels.reshape(len(pixels), -1)[rows]
        return Split(x if raw else x / np.float32(255), target[rows].astype(np.int32))

    train, held = split(images, labels, rows), split(images, labels, held_out)
    test = split(test_images, test_labels, slice(None))
    return _of_images(name, (train, held, test), *images.shape[1:])


def _of_images(name: str, splits: Sequence[Split], height: int, width: int) -> Dataset:
    source, (train, validation, test) = IDX[name], splits
    return Dataset(
        name,
        train=train,
        validation=validation,
        test=test,
        x_scale=Scale(np.zeros(()), np.full((), 255.0)),
        target_scale=None,
        feature_names=tuple(f"pixel_{r}_{c}" for r in range(height) for c in range(width)),
        class_names=source.class_names,
        image_shape=(height, width, 1),
        about=source.about,
    )


def load_mapped(
    name: str, seed: int = 0, data_dir: str | os.PathLike[str] | None = None
) -> Dataset:
    """The images of `load`, in memory-mapped files, so that a process reads what it uses alone.

    The files are made in the user's cache folder when they are first asked for.
    """
    folder = cache(name) / f"mapped, seed {seed}"
    if not folder.is_dir():
        data = load(name, seed, data_dir)
        assert data.image_shape is not None
        cache(name).mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=cache(name)))
        for which, split in data.splits.items():
            np.save(part / f"{which} x.npy", split.x.reshape(-1, *data.image_shape[:2]))
            np.save(part / f"{which} target.npy", split.target)
        try:
            part.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(part)
    found = []
    for which in ("train", "validation", "test"):
        x = np.load(folder / f"{which} x.npy", mmap_mode="r")
        found.append(Split(x.reshape(len(x), -1), np.load(folder / f"{which} target.npy")))
    return _of_images(name, found, *x.shape[1:])
