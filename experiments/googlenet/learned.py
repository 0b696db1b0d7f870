"""Features that GoogLeNet learned: its first filters, and the photographs that excite a unit most.

What of a photograph a unit sees is read off the backward pass: the pixels that its value has a
gradient to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import fnn
from experiments.common.figures import plt, save
from experiments.googlenet.images import Pixels, batches, labelled
from experiments.googlenet.recognition import Recogniser, picture_progress, recogniser, samples
from fnn.block import Block

LAYERS = ("conv2", "inception_3b", "inception_4c", "inception_5b")
UNITS, PHOTOGRAPHS = 5, 6  # rows of each layer, and columns
CROP = 96  # pixels of what is drawn


class Unit(NamedTuple):
    """A unit of a layer, and what of the photographs excites it most, the strongest first."""

    number: int
    crops: list[np.ndarray]


def up_to(net: Block, name: str) -> Block:
    """The network up to the node ``name``, a slice of its graph.

    It takes the same parameters, without those of the later nodes.

    >>> net = fnn.serial(a=fnn.square(), b=fnn.negate(), c=fnn.exp())
    >>> float(up_to(net, "b").forward({}, 3.0)[0])
    -9.0
    """
    assert net.graph is not None
    names = [node.name for node in net.graph.nodes]
    return fnn.graph(net.graph.inputs, net.graph.nodes[: names.index(name) + 1], name)


def seen(body: Block, params: Any, x: jax.Array, row: Any, column: Any, unit: Any) -> jax.Array:
    """The pixels (height, width) to which the value of a unit at a place has a gradient."""
    y, residuals = body.forward(params, x[None])
    dy = jnp.zeros_like(y).at[0, row, column, unit].set(1)
    _, dx = body.backward(params, residuals, dy)
    return jnp.any(dx[0] != 0, -1)


def what_photographs_show(folder: Path | None, out: Path, batch_size: int = 10) -> list[Path]:
    """Draws the first filters, and for some units of some layers the photographs they like.

    Args:
      folder: pictures with ``labels.tsv``; those of the data folder by default.
      out: where ``first_filters.png`` and ``exciting.png`` are written.
      batch_size: pictures at a time.

    Returns:
      The two files.
    """
    network = recogniser("bvlc", None, None)
    examples = labelled(folder or samples(), len(network.names))
    pictures = [network.see(example.path, False) for example in examples]
    files = out / "first_filters.png", out / "exciting.png"
    _draw_filters(np.asarray(network.params["conv1"]["7x7_s2"]["w"]), files[0])
    liked = {}
    with picture_progress(len(LAYERS) * len(pictures), "looking") as tick:
        for layer in LAYERS:
            liked[layer] = _liked(network, layer, pictures, batch_size, tick)
    _draw_liked(liked, files[1])
    return list(files)


def _liked(
    network: Recogniser, layer: str, pictures: Sequence[Pixels], batch_size: int, tick: Any
) -> list[Unit]:
    """The units of a layer that tell photographs apart most, and what they like."""
    body = up_to(fnn.inference(network.network.net), layer)
    assert body.graph is not None
    names = {node.name for node in body.graph.nodes}
    params = {name: own for name, own in network.params.items() if name in names}
    scaled = jax.jit(network.network.scaled)
    forward = jax.jit(lambda params, x: body.forward(params, x)[0])
    values = []
    for pixels, count in batches(pictures, min(batch_size, len(pictures)), lambda p: p):
        values.append(np.asarray(forward(params, scaled(pixels)))[:count])
        tick(count)
    whole = np.concatenate(values)  # (photographs, height, width, units)
    strongest = whole.max((1, 2))
    # Those that a few photographs excite far more than most.
    contrast = np.sort(strongest, 0)[-PHOTOGRAPHS:].mean(0) / (np.median(strongest, 0) + 1)
    trace = jax.jit(lambda *arguments: seen(body, *arguments))
    found = []
    for unit in np.argsort(-contrast)[:UNITS]:
        crops = []
        for i in np.argsort(-strongest[:, unit])[:PHOTOGRAPHS]:
            place = np.unravel_index(whole[i, :, :, unit].argmax(), whole.shape[1:3])
            x = scaled(jnp.asarray(pictures[i])[None])[0]
            pixels = np.asarray(trace(params, x, *place, unit))
            crops.append(_crop(np.asarray(pictures[i]), pixels))
        found.append(Unit(int(unit), crops))
    return found


def _crop(picture: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The smallest square of the picture around some pixels, enlarged."""
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    size = 1 + max(int(np.ptp(rows)), int(np.ptp(columns)))
    top = min(int(rows[0]), max(0, len(picture) - size))
    left = min(int(columns[0]), max(0, picture.shape[1] - size))
    image = Image.fromarray(picture[top : top + size, left : left + size])
    return np.asarray(image.resize((CROP, CROP), Image.Resampling.BICUBIC))


def _draw_filters(w: np.ndarray, path: Path) -> None:
    """All filters (height, width, colours, units) of the first layer, each in its colours."""
    columns = 16
    figure, axes = plt.subplots(-(-w.shape[-1] // columns), columns, figsize=(10, 2.7))
    for axis in axes.flat:
        axis.axis("off")
    for axis, one in zip(axes.flat, np.moveaxis(w[:, :, ::-1], -1, 0), strict=False):
        axis.imshow(0.5 + one / (2 * np.abs(one).max()))  # the weights are of blue, green, red
    figure.suptitle("GoogLeNet's first filters: edges, colours, gratings")
    save(figure, path)


def _draw_liked(liked: dict[str, list[Unit]], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 10.2), layout="constrained")
    for axis, (layer, units) in zip(axes.flat, liked.items(), strict=True):
        gap = np.full((4, CROP + 4, 3), 255, np.uint8)
        rows = []
        for unit in units:
            framed = [np.pad(c, ((2, 2), (2, 2), (0, 0)), constant_values=255) for c in unit.crops]
            rows += [np.concatenate(framed, 1), np.tile(gap, (1, len(framed), 1))]
        axis.imshow(np.concatenate(rows))
        height = CROP + 8
        axis.set_yticks([height * i + height / 2 for i in range(len(units))],
                        [str(unit.number) for unit in units])  # fmt: skip
        axis.set(title=layer, xticks=[], ylabel="unit")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    figure.suptitle("What of the photographs excites a unit most, the strongest first")
    save(figure, path)
