"""GoogLeNet's training data: pictures of one size with labels, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.common.console import console
from experiments.common.data import Array, load
from experiments.common.data import Split as Arrays
from experiments.googlenet import images
from experiments.googlenet.image_folder import Moments, check_classes, image_folder, readable
from experiments.googlenet.images import Labelled, PictureError, Pixels, View
from experiments.googlenet.recognition import picture_progress

MAX_PRINTED_FAULTS = 5


class Examples(NamedTuple):
    """Pictures with labels.

    ``see(i)`` is the i-th picture for evaluation, uint8 (side, side, channels); ``vary(i, rng)``
    for training, perhaps different each time.
    """

    labels: Array
    see: Callable[[int], Pixels]
    vary: Callable[[int, np.random.Generator], Pixels]


@dataclass(frozen=True)
class Data:
    """Examples for training, validation and test, and how pixels are scaled.

    The network sees (pixels - mean) / deviation, by channel over the training pictures.
    """

    about: str
    names: tuple[str, ...]
    view: View
    moments: Moments
    train: Examples
    validation: Examples
    test: Examples

    @property
    def channels(self) -> int:
        return len(self.moments.mean)

    def scaled(self, pixels: Pixels) -> Array:
        """Pixels as the network sees them, float32."""
        mean, deviation = np.array(self.moments, np.float32)
        return (pixels.astype(np.float32) - mean) / deviation

    def seen(self, i: int) -> Pixels:
        """The i-th test picture for drawing: (side, side) if it is grey."""
        pixels = self.test.see(i)
        return pixels[..., 0] if self.channels == 1 else pixels


def grey_images(name: str, size: int, seed: int) -> Data:
    """MNIST or Fashion-MNIST, scaled to ``size`` with Pillow's bilinear filter; not varied."""
    data = load(name, seed, raw=True)
    assert data.image_shape is not None
    shape = data.image_shape[:2]

    def examples(part: Arrays) -> Examples:
        all_pixels = part.x.reshape(-1, *shape)

        def see(i: int) -> Pixels:
            image = all_pixels[i]
            if image.shape != (size, size):
                scaled = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
                image = np.asarray(scaled)
            return image[..., None]

        return Examples(part.target, see, lambda i, rng: see(i))

    pixels = data.train.x
    moments = Moments((float(pixels.mean()),), (float(pixels.std()),))
    parts = [examples(part) for part in (data.train, data.validation, data.test)]
    return Data(data.about, data.class_names, View(size, size), moments, *parts)


def photographs(folder: Path, size: int, seed: int, skip: bool) -> Data:
    """A folder of pictures, each read once to make sure that it can be.

    Training takes random parts, half of them mirrored; evaluation takes centres, as GoogLeNet does.
    Without a folder ``test``, the validation pictures are the test pictures too.
    """
    folders = image_folder(folder, seed)
    view = View(size, round(size * images.SHORT / images.SIDE))
    total = len(folders.train) + len(folders.validation) + len(folders.test)

    def see(path: Path) -> Pixels:
        return images.read_picture(path, view=view)

    doing = "reading every picture once"
    with picture_progress(total, doing, doing) as progress:
        (train, broken, moments), (validation, more, _), (test, most, _) = (
            readable(part, see, skip, progress)
            for part in (folders.train, folders.validation, folders.test)
        )
    broken += more + most
    for fault in broken[:MAX_PRINTED_FAULTS]:
        console.print(f"left out: {fault}", markup=False)
    if len(broken) > MAX_PRINTED_FAULTS:
        console.print(f"left out: {len(broken) - MAX_PRINTED_FAULTS} more")
    check_classes(folder, folders.names, train)
    if not validation:
        raise PictureError(f"{folder}: none of the pictures to judge by can be read; replace them")

    def examples(part: Sequence[Labelled]) -> Examples:
        paths = [picture.path for picture in part]
        return Examples(
            np.array([picture.label for picture in part], np.int32),
            lambda i: see(paths[i]),
            lambda i, rng: images.read_part(paths[i], size, rng),
        )

    watched = examples(validation)
    judged = examples(test) if test else watched
    return Data(f"{folder}.", folders.names, view, moments, examples(train), watched, judged)
