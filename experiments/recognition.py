"""A trained GoogLeNet that names what is in photographs: its weights, classes and probabilities."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import fnn
from experiments.console import console
from experiments.data import DataError
from experiments.photographs import SIDE, PictureError, batches
from fnn.block import Block

CLASSES = 1000
WEIGHTS, NAMES = "bvlc_googlenet.npz", "synset_words.txt"
# Of the files found by default; a file that is asked for may be any.
SHA256 = {
    WEIGHTS: "e735aef30442c96b6537b11498a9545c65901186bfaa7b0ab30292853f7181e7",
    NAMES: "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355",
}


class Network(NamedTuple):
    """A network that weights can be of, and how its pixels are scaled: from RGB in 0..255."""

    net: Block
    unwanted: tuple[str, ...]  # the auxiliary heads, which a file of weights may have
    scale: float
    mean: tuple[float, float, float]
    bgr: bool


def networks() -> dict[str, Network]:
    """By name: BVLC's, with Caffe's preprocessing, and torchvision's, with its own."""
    return {
        # Blue, green, red, minus the mean of ImageNet.
        "bvlc": Network(
            fnn.models.googlenet(CLASSES, auxiliary=False), ("loss1", "loss2"), 1.0,
            (104.0, 117.0, 123.0), True,
        ),
        # torchvision normalises by ImageNet's mean and deviation and then (``transform_input``)
        # by others, as TensorFlow did, from which the weights come: together -1..1.
        "torchvision": Network(
            fnn.models.googlenet_batch_norm(CLASSES), ("aux1", "aux2"), 127.5,
            (127.5, 127.5, 127.5), False,
        ),
    }  # fmt: skip


@dataclass(frozen=True)
class Recogniser:
    """A network with weights, and the names of its classes."""

    name: str
    network: Network
    params: Any
    names: tuple[str, ...]

    def probabilities(
        self, paths: Sequence[Path], batch_size: int, upright: bool = False
    ) -> np.ndarray:
        """Of every class for every picture: float32 (n, classes).

        Compiled once, for batches of one size, with a bar and the time to finish.

        Raises:
          PictureError: a picture cannot be used; or the weights give what is not finite.
        """
        size = min(batch_size, len(paths))
        rows = []
        with _Progress(len(paths)) as progress:
            run = self._compile(size)
            for pixels, count in batches(paths, size, upright):
                rows.append(np.asarray(run(self.params, pixels))[:count])
                progress(count)
        whole = np.concatenate(rows)
        if not np.isfinite(whole).all():
            i = int(np.argmin(np.isfinite(whole).all(1)))
            raise PictureError(
                f"{paths[i]}: the network's probabilities are not finite; are the weights right?"
            )
        return whole

    def _compile(self, size: int) -> Any:
        reading, network = fnn.inference(self.network.net), self.network

        def run(params: Any, pixels: jax.Array) -> jax.Array:
            x = pixels[..., ::-1] if network.bgr else pixels
            x = (x.astype(jnp.float32) - jnp.array(network.mean)) / network.scale
            return jax.nn.softmax(reading.forward(params, x)[0])

        shape = jax.ShapeDtypeStruct((size, SIDE, SIDE, 3), jnp.uint8)
        return jax.jit(run).lower(self.params, shape).compile()


class _Progress:
    """A bar with the time to finish, in pictures."""

    def __init__(self, total: int) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("compiling", total=total)
        self.warnings = warnings.catch_warnings()

    def __enter__(self) -> Any:
        self.bar.start()
        self.warnings.__enter__()
        # Pillow warns of what is refused here anyway.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return lambda count: self.bar.update(self.task, advance=count, description="looking")

    def __exit__(self, *error: Any) -> None:
        self.warnings.__exit__(*error)
        self.bar.stop()


# ---- weights and names -------------------------------------------------------------------------


def recogniser(name: str, weights: Path | None, names: Path | None) -> Recogniser:
    """Reads the weights and the names of the classes.

    Raises:
      DataError: a file is not found, or not what it should be.
      ValueError: the weights are not those of the network.
    """
    known = networks()
    path = weights or _default(WEIGHTS, "--weights")
    if weights and not weights.is_file():
        raise DataError(f"--weights {weights}: no such file")
    try:
        params = _load(path, known[name])
    except ValueError as error:
        others = [other for other in known if other != name and _fits(path, known[other])]
        hint = f"; they fit --network {others[0]}" if others else ""
        raise DataError(f"{error}{hint}") from error
    beside = path.with_name(NAMES)
    names = names or (beside if beside.is_file() else _default(NAMES, "--names"))
    return Recogniser(name, known[name], params, tuple(_read_names(names)))


def _load(path: Path, network: Network) -> Any:
    x = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    like = jax.eval_shape(network.net.init, jax.random.key(0), x)
    return fnn.models.load_weights(path, like, drop=network.unwanted)


def _fits(path: Path, network: Network) -> bool:
    try:
        _load(path, network)
    except ValueError:
        return False
    return True


def _default(file: str, option: str) -> Path:
    """The file in the data folder, checked."""
    folders = list(_folders())
    for folder in folders:
        path = folder / file
        if path.is_file():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != SHA256[file]:
                raise DataError(
                    f"{path}: SHA-256 {found}, needs {SHA256[file]}; replace it by an intact file, "
                    f"or name another with {option}"
                )
            return path
    raise DataError(
        f"there is no {file} in {' or '.join(map(str, folders))}; set FNN_DATA to the folder that "
        f"holds googlenet/, or name the file with {option}"
    )


def _folders() -> Iterator[Path]:
    if root := os.environ.get("FNN_DATA"):
        yield Path(root) / "googlenet"
    cache = os.environ.get("XDG_CACHE_HOME")
    yield (Path(cache) if cache else Path.home() / ".cache") / "fnn" / "googlenet"


def _read_names(path: Path) -> Iterator[str]:
    """The classes, one a line, in the network's order: "n01440764 tench, Tinca tinca"."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"--names {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from error
    if len(lines) != CLASSES or not all(line.strip() for line in lines):
        raise DataError(f"{path}: {len(lines)} lines, needs {CLASSES}: a class each, none empty")
    for line in lines:
        first, _, rest = line.strip().partition(" ")
        is_synset = first[:1] == "n" and first[1:].isdigit()
        yield rest if is_synset and rest else line.strip()
