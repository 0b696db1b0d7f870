"""Folders of pictures to train on: the class of every picture, all checked before training.

A folder contains a folder of pictures for each class, or pictures and a ``labels.tsv``; or such
folders ``train`` and ``val`` (or ``validation``, ``valid``), and perhaps ``test``.
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
from experiments.googlenet.images import Labelled, PictureError, Pixels, few, labelled

TRAIN, VALIDATION, TEST = "train", ("val", "validation", "valid"), "test"
HELD_OUT = 10  # one picture in this many is held out where there is no folder for validation
_ANY = 10**9


class Split(NamedTuple):
    """The names of the classes, and the pictures; ``test`` may be empty."""

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

    Without a folder for validation, a tenth of the pictures of each class is held out, chosen by
    the seed. Hidden files (``.name``) do not count; every other file is a picture.

    Raises:
      PictureError: a missing or empty folder, fewer than two classes, a class without a picture
        (or with a single one, if some must be held out), a class that only ``val`` or ``test``
        has; and like :func:`~experiments.googlenet.images.labelled`.
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
        part = next((folder / name for name in choices if (folder / name).is_dir()), None)
        parts.append(_renumbered(part, names) if part else [])
    validation, test = parts
    if not validation:
        train, validation = _held_out(folder / TRAIN, names, train, seed)
    return Split(names, train, validation, test)


def _is_split(folder: Path) -> bool:
    """Whether ``train`` holds the training set, and is not a class (beside plane, car, ...)."""
    train = folder / TRAIN
    if not train.is_dir():
        return False
    others = any((folder / name).is_dir() for name in (*VALIDATION, TEST))
    return others or (train / "labels.tsv").is_file() or any(p.is_dir() for p in train.iterdir())


def _pictures(
    folder: Path, train_names: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], list[Labelled]]:
    """The classes in alphabetical order and their pictures; or as numbered by labels.tsv, with the
    names ``train_names``, if any."""
    if (folder / "labels.tsv").is_file():
        pictures = labelled(folder, len(train_names) or _ANY)
        labels = {picture.label for picture in pictures}
        if not train_names and (gaps := max(labels) + 1 - len(labels)):
            missing = next(i for i in itertools.count() if i not in labels)
            raise PictureError(
                f"{folder / 'labels.tsv'}: no pictures of class {missing}, and {gaps} of the "
                f"classes to {max(labels)} have none; number them from 0 without gaps"
            )
        names = train_names or tuple(str(label) for label in sorted(labels))
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
        raise PictureError(
            f"{folder}: no pictures of class {few(empty)}; add some, or remove the folder"
        )


def _renumbered(folder: Path, names: tuple[str, ...]) -> list[Labelled]:
    """Pictures for validation or test, with the labels that their classes have in training."""
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
    splits = hold_out(str(folder), labels, max(1, len(labels) // HELD_OUT), seed)
    train, validation = ([pictures[i] for i in rows] for rows in splits)
    return train, validation


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
      skip: leave broken pictures out instead of raising.
      progress: called with the number of pictures read since the last call.

    Returns:
      The readable pictures, the errors of the others, and the mean and standard deviation of each
      channel.

    Raises:
      PictureError: a picture cannot be read; names the first.
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
        for start in range(0, len(pictures), 256):  # not a million futures at once
            some = pictures[start : start + 256]
            for picture, result in zip(some, pool.map(look, some), strict=True):
                if isinstance(result, PictureError):
                    faults.append(result)
                else:
                    good.append(picture)
                    count, sums, squares = count + result[0], sums + result[1], squares + result[2]
            progress(len(some))
    if faults and not skip:
        others = f" (nor can {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise PictureError(f"{faults[0]}{others}; replace it, or leave it out with --skip-broken")
    mean = sums / max(count, 1)
    # At least 1: the deviation of a single colour is 0.
    deviation = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1.0))
    return good, faults, Moments(tuple(map(float, mean)), tuple(map(float, deviation)))
