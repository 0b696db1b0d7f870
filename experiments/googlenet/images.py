"""Photographs: read, cropped for GoogLeNet, and listed with their labels.

Every fault is a :class:`PictureError` of one line, with the file and what to do.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SHORT, SIDE = 256, 224  # the short side is scaled to SHORT; the network sees a centre of SIDE
# Pillow reads more formats; some start other programs (EPS) or are no pictures.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
LARGEST = 89_478_485  # pixels: Pillow's own limit, against small files that fill the memory
_ORIENTATION = 0x0112  # in EXIF; 1 is upright

Pixels = NDArray[np.uint8]
Item = TypeVar("Item")


class PictureError(ValueError):
    """A picture or a folder of pictures that cannot be used; one line."""


class Labelled(NamedTuple):
    """A picture and its class."""

    path: Path
    label: int


class View(NamedTuple):
    """The centre of a picture, ``side`` x ``side``, after scaling its short side to ``short``."""

    side: int = SIDE
    short: int = SHORT


PUBLISHED = View()


def read_picture(path: Path, upright: bool = False, view: View = PUBLISHED) -> Pixels:
    """The part of a picture that the network sees: uint8 (224, 224, 3), RGB.

    The short side is scaled to 256 with Pillow's bilinear filter, and the centre is cut out. A
    grey picture gets three equal channels; CMYK is converted without a colour profile; 16 bits
    are rounded to 8; transparent pixels are put on white; of an animation this is the first
    frame.

    Args:
      upright: turn the picture by its EXIF orientation. By default pixels are taken as stored,
        as Caffe did for the reference.
      view: sizes, if not 224 and 256.

    Raises:
      PictureError: no file, not a picture, not whole, or larger than ``LARGEST``.
    """
    return _read(path, upright, lambda picture: _centre(picture, view))


def read_part(path: Path, side: int, rng: np.random.Generator) -> Pixels:
    """A random part of a picture, for training: uint8 (side, side, 3), RGB.

    As in the paper: its area is uniform in 8 to 100 % of the picture's, its width is 3/4 to 4/3
    of its height, and it is scaled to the network's size. Half of the parts are mirrored. Raises
    like :func:`read_picture`.
    """
    return _read(path, False, lambda picture: _random_part(picture, side, rng))


def _random_part(picture: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    width, height = picture.size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            break
    else:  # hardly any part of a long thin picture has such a shape
        w = h = min(width, height)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    box = (left, top, min(left + w, width), min(top + h, height))
    part = picture.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def _read(path: Path, upright: bool, cut: Callable[[Image.Image], Image.Image]) -> Pixels:
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise _enormous(path, f"{image.width} x {image.height} pixels")
            image.load()
            picture = _to_rgb(ImageOps.exif_transpose(image) if upright else image)
            return np.asarray(cut(picture))
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _enormous(path, "too many pixels") from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(
            f"{path}: not a picture; needs one of {', '.join(FORMATS)}, whole from its first byte"
        ) from error
    except FileNotFoundError as error:
        raise PictureError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise PictureError(
            f"{path}: a folder, needs a picture; for all of a folder with labels.tsv: "
            f"python -m experiments googlenet evaluate --data-dir {path}"
        ) from error
    except Exception as error:  # decoders of broken files raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        fault = f"{path}: cannot be read as a picture, it is broken: {reason}"
        raise PictureError(fault) from error


def is_turned(path: Path) -> bool:
    """Whether EXIF says that the stored pixels are turned or mirrored."""
    with Image.open(path, formats=FORMATS) as image:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)


def _enormous(path: Path, size: str) -> PictureError:
    return PictureError(
        f"{path}: {size}, needs at most {LARGEST / 1e6:.0f} million; scale it down first"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow converts everything above 255 to white.
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}); save it with 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _centre(image: Image.Image, view: View) -> Image.Image:
    side, short = view
    width, height = image.size
    scale = short / min(width, height)
    scaled = tuple(max(short, round(length * scale)) for length in (width, height))
    left, top = ((length - side) // 2 for length in scaled)
    if max(scaled) <= 16 * short:
        whole = image.resize((scaled[0], scaled[1]), Image.Resampling.BILINEAR)
        return whole.crop((left, top, left + side, top + side))
    # A single line of pixels, scaled whole, would not fit in memory: scale its centre alone. That
    # differs by a grey level here and there, so others are scaled whole, like the reference.
    x, y = width / scaled[0], height / scaled[1]
    box = (left * x, top * y, (left + side) * x, (top + side) * y)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def batches(
    items: Sequence[Item], size: int, read: Callable[[Item], Pixels]
) -> Iterator[tuple[Pixels, int]]:
    """Yields batches of pictures, uint8 (size, height, width, 3), and how many are not padding.

    The last batch is padded with its last picture, so that all have one shape. While one is in
    use, threads read the next.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def ask(start: int) -> list[Future[Pixels]]:
            return [pool.submit(read, item) for item in items[start : start + size]]

        try:
            upcoming = ask(0)
            for start in range(0, len(items), size):
                current, upcoming = upcoming, ask(start + size)
                pictures = [future.result() for future in current]
                filled = pictures + pictures[-1:] * (size - len(pictures))
                yield np.stack(filled), len(pictures)
        finally:
            pool.shutdown(cancel_futures=True)


def few(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def labelled(folder: Path, classes: int) -> list[Labelled]:
    """The pictures of a folder, in the order of its ``labels.tsv``.

    The file has a line ``file<TAB>class_index``, and below it one for each picture. ``classes``:
    how many classes there are.

    Raises:
      PictureError: no folder, a missing or malformed labels.tsv, a picture that is missing or
        named twice, a class outside 0..classes - 1, or no pictures at all.
    """
    path = folder / "labels.tsv"
    if not folder.is_dir():
        raise PictureError(f"{folder}: no such folder; --data-dir needs one with labels.tsv")
    if not path.is_file():
        what = "no labels.tsv in this folder" if any(folder.iterdir()) else "an empty folder"
        raise PictureError(
            f"{folder}: {what}; needs pictures and labels.tsv, which has the columns file and "
            "class_index, with a tab between them"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PictureError(f"{path}: not UTF-8 text ({error.reason})") from error
    rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or rows[0] != ["file", "class_index"]:
        first = "\t".join(rows[0]) if rows else ""
        raise PictureError(f"{path}: the first line is {first!r}, needs to be 'file\\tclass_index'")
    pictures: dict[Path, int] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        name, index = row if len(row) == 2 else ("", "")
        if not name:
            raise PictureError(
                f"{path}, line {number}: {len(row)} columns, needs 2: a file and its class"
            )
        if not (re.fullmatch(r"[0-9]{1,9}", index) and int(index) < classes):
            raise PictureError(
                f"{path}, line {number}: class {index[:20]!r} of {name}, needs a whole number from "
                f"0 to {classes - 1}"
            )
        if folder / name in pictures:
            raise PictureError(f"{path}, line {number}: {name} is there twice; remove one")
        pictures[folder / name] = int(index)
    if not pictures:
        raise PictureError(f"{path}: no pictures below its first line")
    if absent := [p.name for p in pictures if not p.is_file()]:
        count = f"{len(absent)} of its {len(pictures)} pictures"
        raise PictureError(f"{path}: {count} are not in {folder}: {few(absent)}")
    return [Labelled(*item) for item in pictures.items()]
