"""Folders of pictures to train on: which picture shows which class, all of it checked before.

A folder has a folder of pictures for each class, or pictures and a ``labels.tsv``; or it has
such folders ``train`` and ``val`` (or ``validation``, ``valid``) and perhaps ``test``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.data import Array, hold_out
from experiments.googlenet.images import Labelled, PictureError, Pixels, labelled

TRAIN, VALIDATION, TEST = "train", ("val", "validation", "valid"), "test"
HELD_OUT = 10  # of so many pictures one, where no folder is for validation
_ANY = 10**9


class Split(NamedTuple):
    """The names of the classes, and pictures to learn from, to watch by and to be judged on.

    ``test`` may be empty.
    """

    names: tuple[str, ...]
    train: list[Labelled]
    validation: list[Labelled]
    test: list[Labelled]


class Moments(NamedTuple):
    """The mean and the standard deviation of each channel, in grey levels (at least 1)."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def image_folder(folder: Path, seed: int) -> Split:
    """Finds the pictures and their classes.

    Without a folder for validation, a tenth of the pictures are held out for it, of each class
    its share, chosen by the seed. Hidden files (``.name``) do not count; any other is a picture.

    Raises:
      PictureError: no or an empty folder, fewer than two classes, a class without a picture (or
        with a single one, where some must be held out), a class that only ``val`` or ``test``
        has; or as :func:`~experiments.googlenet.images.labelled`.
    """
    if not folder.is_dir():
        raise PictureError(f"{folder}: no such folder; --data-dir needs one with pictures")
    if not _is_split(folder):
        names, pictures = _pictures(folder)
        check_classes(folder, names, pictures)
        return Split(names, *_held_out(folder, names, pictures, seed), [])
    names, train = _pictures(folder / TRAIN)
    check_classes(folder / TRAIN, names, train)
    parts: list[list[Labelled]] = []
    for choices in (VALIDATION, (TEST,)):
        found = next((folder / name for name in choices if (folder / name).is_dir()), None)
        parts.append(_renumbered(found, names) if found else [])
    validation, test = parts
    if not validation:
        train, validation = _held_out(folder / TRAIN, names, train, seed)
    return Split(names, train, validation, test)


def _is_split(folder: Path) -> bool:
    """Whether ``train`` is for training, and not one class of several, such as plane and train."""
    train = folder / TRAIN
    if not train.is_dir():
        return False
    others = any((folder / name).is_dir() for name in (*VALIDATION, TEST))
    return others or (train / "labels.tsv").is_file() or any(p.is_dir() for p in train.iterdir())


def _pictures(folder: Path, known: tuple[str, ...] = ()) -> tuple[tuple[str, ...], list[Labelled]]:
    """The classes in alphabetical order and the pictures of each; or as labels.tsv numbers them,
    which may be those that are ``known``."""
    if (folder / "labels.tsv").is_file():
        pictures = labelled(folder, len(known) or _ANY)
        labels = {picture.label for picture in pictures}
        if not known and (gaps := max(labels) + 1 - len(labels)):
            missing = next(i for i in itertools.count() if i not in labels)
            raise PictureError(
                f"{folder / 'labels.tsv'}: no pictures of class {missing}, and {gaps} of the "
                f"classes to {max(labels)} have none; number them from 0 without gaps"
            )
        names = known or tuple(str(label) for label in sorted(labels))
    else:
        classes = sorted(p for p in folder.iterdir() if p.is_dir() and not _hidden(p))
        if not classes:
            raise PictureError(
                f"{folder}: {'no folders in it' if any(folder.iterdir()) else 'an empty folder'}; "
                "needs a folder of pictures for each class, or pictures and labels.tsv"
            )
        names = tuple(path.name for path in classes)
        pictures = [
            Labelled(path, label)
            for label, inside in enumerate(classes)
            for path in sorted(inside.iterdir())
            if path.is_file() and not _hidden(path)
        ]
    return names, pictures


def check_classes(folder: Path, names: Sequence[str], pictures: Sequence[Labelled]) -> None:
    """Refuses fewer than two classes, and a class without a picture."""
    if len(names) < 2:
        raise PictureError(
            f"{folder}: one class only, {names[0]}; needs two or more to tell apart, a folder each"
        )
    counts = np.bincount([picture.label for picture in pictures], minlength=len(names))
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        few = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
        raise PictureError(f"{folder}: no pictures of class {few}; add some, or remove the folder")


def _renumbered(folder: Path, names: tuple[str, ...]) -> list[Labelled]:
    """Pictures to judge by, with the numbers that their classes have in training."""
    own, pictures = _pictures(folder, names)
    if unknown := [name for name in own if name not in names]:
        raise PictureError(
            f"{folder}: class {unknown[0]} is not among those to learn, which are in "
            f"{folder.parent / TRAIN}; give it pictures there, or remove it here"
        )
    if not pictures:
        raise PictureError(f"{folder}: no pictures in its folders; add some, or remove {folder}")
    return [Labelled(path, names.index(own[label])) for path, label in pictures]


def _held_out(
    folder: Path, names: tuple[str, ...], pictures: list[Labelled], seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    labels = np.array([picture.label for picture in pictures])
    if (counts := np.bincount(labels)).min() < 2:
        raise PictureError(
            f"{folder}: one picture only of class {names[counts.argmin()]}, and some are held out; "
            f"add another, or make folders {TRAIN} and {VALIDATION[0]}"
        )
    kept, held = hold_out(str(folder), labels, max(1, len(labels) // HELD_OUT), seed)
    return [pictures[i] for i in kept], [pictures[i] for i in held]


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def readable(
    pictures: Sequence[Labelled],
    read: Callable[[Path], Pixels],
    skip: bool,
    progress: Callable[[int], None],
) -> tuple[list[Labelled], list[PictureError], Moments]:
    """Reads every picture once, so that training does not stop at a broken one.

    Args:
      skip: leave broken ones out, rather than refuse them.
      progress: called with how many more were read.

    Returns:
      The pictures that can be read, why the others cannot, and the mean and the deviation of the
      values of each channel.

    Raises:
      PictureError: a picture cannot be read; of several it names the first.
    """
    good: list[Labelled] = []
    faults: list[PictureError] = []
    count, sums, squares = 0, np.zeros(1), np.zeros(1)

    def look(picture: Labelled) -> tuple[int, Array, Array] | PictureError:
        try:
            pixels = read(picture.path).reshape(-1, 3).astype(np.float64)
        except PictureError as error:
            return error
        return len(pixels), pixels.sum(0), np.square(pixels).sum(0)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(pictures), 256):  # a million would wait in memory otherwise
            some = pictures[start : start + 256]
            for picture, found in zip(some, pool.map(look, some), strict=True):
                if isinstance(found, PictureError):
                    faults.append(found)
                else:
                    good.append(picture)
                    count, sums, squares = count + found[0], sums + found[1], squares + found[2]
            progress(len(some))
    if faults and not skip:
        others = f" (nor can {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise PictureError(f"{faults[0]}{others}; replace it, or leave it out with --skip-broken")
    mean = sums / max(count, 1)
    # The deviation of one colour only is 0, by which nothing can be divided.
    deviation = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1.0))
    return good, faults, Moments(tuple(map(float, mean)), tuple(map(float, deviation)))
