"""A trained GoogLeNet that recognises photographs: its weights, classes and probabilities."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import fnn
from experiments.common.console import console
from experiments.common.idx import DataError, cache
from experiments.googlenet import images, published
from experiments.googlenet.images import PictureError, Pixels, View
from fnn.block import Block

CLASSES = 1000
WEIGHTS, NAMES = "bvlc_googlenet.npz", "synset_words.txt"
SAMPLES = "imagenet_samples"
AUXILIARY = ("loss1", "loss2")  # heads for training alone
DESCRIPTION = "network.json"  # beside weights that were trained here
LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue in grey, as in Pillow (ITU-R 601-2)
# Of the default files; a file named by the user may be any.
SHA256 = {
    WEIGHTS: "e735aef30442c96b6537b11498a9545c65901186bfaa7b0ab30292853f7181e7",
    NAMES: "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355",
}


class Network(NamedTuple):
    """A network architecture, and how it scales pixels, RGB in 0..255."""

    net: Block
    unwanted: tuple[str, ...]  # auxiliary heads that a file of weights may have
    scale: float | tuple[float, ...]
    mean: tuple[float, ...]
    bgr: bool = False
    view: View = images.PUBLISHED
    channels: int = 3  # 1: it sees grey

    def scaled(self, pixels: jax.Array) -> jax.Array:
        """Bytes (..., height, width, RGB) as inputs of the network."""
        x = (pixels[..., ::-1] if self.bgr else pixels).astype(jnp.float32)
        if self.channels == 1:
            x = x @ jnp.array(LUMA)[:, None]
        return (x - jnp.array(self.mean)) / jnp.array(self.scale)


def networks() -> dict[str, Network]:
    """By name: BVLC's, with Caffe's preprocessing, and torchvision's, with its own."""
    return {
        # Blue, green, red, minus the mean of ImageNet.
        "bvlc": Network(
            fnn.models.googlenet(CLASSES, auxiliary=False), AUXILIARY, 1.0,
            (104.0, 117.0, 123.0), bgr=True,
        ),
        # torchvision normalises by ImageNet's mean and deviation and then (``transform_input``)
        # as TensorFlow did for these weights: together to -1..1.
        "torchvision": Network(
            fnn.models.googlenet_batch_norm(CLASSES), ("aux1", "aux2"), 127.5,
            (127.5, 127.5, 127.5),
        ),
    }  # fmt: skip


@dataclass(frozen=True)
class Recogniser:
    """A network with weights, and the names of its classes."""

    network: Network
    params: Any
    names: tuple[str, ...]

    def probabilities(
        self, paths: Sequence[Path], batch_size: int, upright: bool = False
    ) -> np.ndarray:
        """The probability of every class for every picture: float32 (n, classes).

        Compiled once, for one batch size; shows a bar with the time to finish.

        Raises:
          PictureError: a picture cannot be used, or the probabilities are not finite.
        """
        size = min(batch_size, len(paths))
        rows = []
        with picture_progress(len(paths), "classifying") as progress:
            run = self._compile(size)
            for pixels, count in images.batches(paths, size, lambda path: self.see(path, upright)):
                rows.append(np.asarray(run(self.params, pixels))[:count])
                progress(count)
        whole = np.concatenate(rows)
        if not np.isfinite(whole).all():
            i = int(np.argmin(np.isfinite(whole).all(1)))
            raise PictureError(
                f"{paths[i]}: the network's probabilities are not finite; are the weights right?"
            )
        return whole

    def see(self, path: Path, upright: bool) -> Pixels:
        """The part of a picture that the network sees."""
        return images.read_picture(path, upright, self.network.view)

    def _compile(self, size: int) -> Any:
        reading, network = fnn.inference(self.network.net), self.network

        def run(params: Any, pixels: jax.Array) -> jax.Array:
            return jax.nn.softmax(reading.forward(params, network.scaled(pixels))[0])

        side = network.view.side
        shape = jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8)
        return jax.jit(run).lower(self.params, shape).compile()


@contextmanager
def picture_progress(
    total: int, doing: str, first: str = "compiling"
) -> Iterator[Callable[[int], None]]:
    """A bar with the time to finish, in pictures; before the first it says ``first``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task(first, total=total)
    with bar, warnings.catch_warnings():
        # Pillow warns about pictures that are refused here anyway.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield lambda count: bar.update(task, advance=count, description=doing)


# ---- weights and names -------------------------------------------------------------------------


def recogniser(name: str, weights: Path | None, names: Path | None) -> Recogniser:
    """Reads the weights and the names of the classes.

    A ``network.json`` beside the weights, written by training here, describes their network;
    ``name`` is then ignored.

    Raises:
      DataError: a file is missing or not what it should be.
      ValueError: the weights are those of another network.
    """
    by_name = networks()
    path = weights or _default(WEIGHTS, "--weights")
    if weights and not weights.is_file():
        raise DataError(f"--weights {weights}: no such file")
    description = path.with_name(DESCRIPTION)
    if weights and description.is_file():
        network, own = _described(description)
        own = _read_names(names, len(own)) if names else own
        return Recogniser(network, _load(path, network), own)
    try:
        params = _load(path, by_name[name])
    except ValueError as error:
        others = [other for other in by_name if other != name and _fits(path, by_name[other])]
        hint = f"; they fit --network {others[0]}" if others else ""
        raise DataError(f"{error}{hint}") from error
    beside = path.with_name(NAMES)
    names = names or (beside if beside.is_file() else _default(NAMES, "--names"))
    return Recogniser(by_name[name], params, _read_names(names, CLASSES))


def describe(
    width: float, stem_strides: Sequence[int], view: View,
    moments: tuple[Sequence[float], Sequence[float]], names: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """The content of ``network.json``: what the weights of a GoogLeNet trained here do not say.

    ``moments`` are the mean and the deviation of each channel, by which pixels are scaled.
    """
    return {
        "width": width, "stem_strides": [*stem_strides], "side": view.side, "short": view.short,
        "mean": [*moments[0]], "deviation": [*moments[1]], "names": [*names],
    }  # fmt: skip


def _described(path: Path) -> tuple[Network, tuple[str, ...]]:
    """The network that a ``network.json`` describes, and its classes."""
    try:
        says: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names, mean = tuple(map(str, says["names"])), tuple(map(float, says["mean"]))
        net = fnn.models.googlenet(
            len(names), auxiliary=False, width=says["width"], stem_strides=says["stem_strides"]
        )
        view = View(int(says["side"]), int(says["short"]))
        deviation = tuple(map(float, says["deviation"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: not a description of a network ({type(error).__name__}: {error}); "
            "keep the one that training wrote beside the weights"
        ) from error
    return Network(net, AUXILIARY, deviation, mean, view=view, channels=len(mean)), names


def _load(path: Path, network: Network) -> Any:
    side = network.view.side
    x = jax.ShapeDtypeStruct((1, side, side, network.channels), jnp.float32)
    like = jax.eval_shape(network.net.init, jax.random.key(0), x)
    if path.suffix != ".caffemodel":
        return fnn.models.load_weights(path, like, drop=network.unwanted, flattened={})
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / f"{path.stem}.npz"
        fnn.models.save_weights(converted, published.weights_of(path))
        return fnn.models.load_weights(converted, like, flattened={})


def _fits(path: Path, network: Network) -> bool:
    try:
        _load(path, network)
    except ValueError:
        return False
    return True


def _default(file: str, option: str) -> Path:
    """The file in the data folder or the user's cache, checked; else it is downloaded."""
    root = os.environ.get("FNN_DATA")
    folders = [*([Path(root) / "googlenet"] if root else []), cache("googlenet")]
    for path in (folder / file for folder in folders):
        if path.is_file():
            got = hashlib.sha256(path.read_bytes()).hexdigest()
            if got != SHA256[file] and not _is_published(path):
                raise DataError(
                    f"{path}: SHA-256 {got}, needs {SHA256[file]}; replace it by an intact file, "
                    f"or name another with {option}"
                )
            return path
    lacking = f"there is no {file} in {' or '.join(map(str, folders))}"
    console.print(f"{lacking}: downloading it")
    folders[-1].mkdir(parents=True, exist_ok=True)
    try:
        return published.download(file, folders[-1], {NAMES: SHA256[NAMES]})
    except DataError as error:
        raise DataError(f"{lacking}; {error}; or name the file with {option}") from error


def _is_published(path: Path) -> bool:
    """Whether these are the weights that were downloaded and converted here."""
    if path.suffix != ".npz":
        return False
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return published.digest(arrays) == published.WEIGHTS_SHA256
    except (ValueError, OSError, zipfile.BadZipFile):
        return False


def _read_names(path: Path, count: int) -> tuple[str, ...]:
    """The classes in the network's order, one per line: "n01440764 tench, Tinca tinca"."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"--names {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from error
    if len(lines) != count or not all(line.strip() for line in lines):
        raise DataError(f"{path}: {len(lines)} lines, needs {count}: a class each, none empty")
    return tuple(re.sub(r"^n\d+ +", "", line.strip()) for line in lines)


def samples() -> Path:
    """The folder of a hundred labelled photographs: the data folder's, or downloaded.

    Raises:
      DataError: neither is there.
    """
    root = os.environ.get("FNN_DATA")
    folders = [*([Path(root)] if root else []), cache("googlenet")]
    for folder in (folder / SAMPLES for folder in folders):
        if (folder / "labels.tsv").is_file():
            return folder
    console.print(f"there are no photographs in {' or '.join(map(str, folders))}: downloading them")
    return published.photographs(folders[-1] / SAMPLES)
