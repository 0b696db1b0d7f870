"""GoogLeNet names what is in photographs, with its trained weights, or learns.

    python -m experiments googlenet classify PICTURE ...
    python -m experiments googlenet evaluate --data-dir FOLDER
    python -m experiments googlenet train [--data-dir FOLDER]

classify prints the five best classes of each picture and draws them beside it; evaluate counts
how often the true class is first and among the first five; train makes weights for both, for
a network of any width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.markup import escape

from experiments.common.console import console, table
from experiments.common.html import html_table, paragraph, saved_picture
from experiments.common.options import at_least, writable
from experiments.common.report import Report
from experiments.common.run import write_csv, write_json
from experiments.googlenet.guesses import Guess, draw_guesses
from experiments.googlenet.images import Labelled, PictureError, is_turned, labelled
from experiments.googlenet.recognition import Recogniser, recogniser, samples
from experiments.googlenet.train import Train, train

BEST = 5
MAX_DRAWN_MISTAKES = 8


@dataclass(kw_only=True)
class Recognising:
    """Options of the commands that classify photographs."""

    weights: Path | None = None
    """a .npz or .safetensors file; googlenet/bvlc_googlenet.npz of the data folder by default"""
    network: Literal["bvlc", "torchvision"] = "bvlc"
    """the weights' GoogLeNet: as published, or torchvision's with batch norm"""
    names: Path | None = None
    """names of the classes, one per line; synset_words.txt beside the weights by default"""
    upright: bool = False
    """turn pictures by their EXIF orientation; by default pixels are taken as stored"""
    batch_size: int = 16
    """pictures per batch"""
    out: Path = Path("results/googlenet")
    """folder for figures and tables"""
    seed: int = 0
    """accepted by every experiment; nothing here is random"""

    def prepare(self) -> None:
        """Refuses options that cannot work, before anything is read."""
        at_least(self, 1, "batch_size")
        writable(self.out)

    def recogniser(self) -> Recogniser:
        return recogniser(self.network, self.weights, self.names)


@dataclass(kw_only=True)
class Classify(Recognising):
    """The five best classes of each picture, printed and drawn."""

    pictures: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE ...")
    ]
    """JPEG, PNG, GIF, BMP, TIFF, WebP, ..."""


@dataclass(kw_only=True)
class Evaluate(Recognising):
    """How often the true class is first, and among the first five."""

    data_dir: Path | None = None
    """folder with pictures and labels.tsv; by default a hundred that are downloaded"""


def classify(options: Classify) -> int:
    if not options.pictures:
        raise PictureError("no picture is named: python -m experiments googlenet classify PICTURE")
    for path in options.pictures:  # before anything is downloaded
        if not path.is_file():
            raise PictureError(f"{path}: no such file")
    network = options.recogniser()
    probabilities = network.probabilities(options.pictures, options.batch_size, options.upright)
    tables = []
    for path, row in zip(options.pictures, probabilities, strict=True):
        title = escape(path.name)
        if not options.upright and is_turned(path):
            title += " (its EXIF says to turn it: --upright)"
        rows = [(network.names[k], f"{row[k]:.4f}") for k in best(row)]
        columns = ("class", "probability")
        table(title, columns, rows)
        tables += [paragraph(path.name), html_table(columns, rows)]
    figures = _draw(network, options, options.pictures, probabilities, options.out / "classes.png")
    page = Report(options)
    _add_pictures(page, "The best classes", figures)
    page.add("Probabilities", *tables)
    page.facts = {"pictures": str(len(options.pictures))}
    page.write(options.out)
    console.print(f"saved {', '.join(map(str, figures))}, report.html", markup=False)
    return 0


def evaluate(options: Evaluate) -> int:
    folder = options.data_dir or samples()
    network = options.recogniser()
    examples = labelled(folder, len(network.names))
    paths, labels = [e.path for e in examples], np.array([e.label for e in examples])
    begin = time.perf_counter()
    probabilities = network.probabilities(paths, options.batch_size, options.upright)
    seconds = time.perf_counter() - begin
    ranked = best(probabilities)
    first, five = ranked[:, 0] == labels, (ranked == labels[:, None]).any(1)

    page = Report(options)
    wrong = np.flatnonzero(~first)
    certainty = probabilities.max(-1)
    surest = wrong[np.argsort(-certainty[wrong], kind="stable")][:MAX_DRAWN_MISTAKES]
    if len(surest):
        rows = []
        for i in surest:
            true, guess = (_short(network.names[k]) for k in (labels[i], ranked[i, 0]))
            rows.append((escape(paths[i].name), true, guess, f"{certainty[i]:.4f}"))
        columns = ("picture", "true", "guess", "probability")
        table("The most confident mistakes", columns, rows)
        page.add("The most confident mistakes", html_table(columns, rows))
        file, drawn = options.out / "mistakes.png", [paths[i] for i in surest]
        figures = _draw(network, options, drawn, probabilities[surest], file, labels[surest])
        _add_pictures(page, "Mistakes, drawn", figures)
    _write(options.out, examples, probabilities, ranked)
    results = {"pictures": len(labels), "top-1": first.mean(), "top-5": five.mean()}
    write_json(options.out / "results.json", results)
    page.facts = {
        "top-1": f"{first.mean():.4f}", "top-5": f"{five.mean():.4f}", "pictures": str(len(labels)),
    }  # fmt: skip
    page.write(options.out)
    console.print(
        f"\n[bold]top-1[/bold]: {first.mean():.4f}, {first.sum()} of {len(labels)}\n"
        f"[bold]top-5[/bold]: {five.mean():.4f}, {five.sum()} of {len(labels)}\n"
        f"{seconds:.1f} s with compilation, {1000 * seconds / len(labels):.0f} ms a picture\n"
        f"saved in {escape(str(options.out))}: predictions.csv, report.html, results.json"
        + (", mistakes.png" if len(surest) else "")
    )
    return 0


def best(probabilities: np.ndarray, count: int = BEST) -> np.ndarray:
    """The most probable classes, (..., classes) -> (..., count); ties go to the first."""
    return np.argsort(-probabilities, axis=-1, kind="stable")[..., :count]


def _short(name: str) -> str:
    return name.split(",")[0]


def _draw(
    network: Recogniser,
    options: Recognising,
    paths: Sequence[Path],
    probabilities: np.ndarray,
    path: Path,
    labels: np.ndarray | None = None,
) -> list[Path]:
    """Draws pages of pictures, as the network sees them, beside their best classes."""
    guesses = []
    for i, (picture, row) in enumerate(zip(paths, probabilities, strict=True)):
        ranked, image = best(row), network.see(picture, options.upright)
        classes = [_short(network.names[k]) for k in ranked]
        right = None if labels is None else _short(network.names[labels[i]])
        guesses.append(Guess(image, picture.name, classes, row[ranked], right))
    return draw_guesses(guesses, path)


def _add_pictures(page: Report, title: str, files: Sequence[Path]) -> None:
    page.add(title, *(saved_picture(file, "Pictures with their best classes.") for file in files))
    page.thumbnail = files[0].name


def _write(
    out: Path, examples: Sequence[Labelled], probabilities: np.ndarray, ranked: np.ndarray
) -> None:
    """predictions.csv: label, best classes and their probabilities for each picture."""
    rows = []
    for example, row, order in zip(examples, probabilities, ranked, strict=True):
        classes = {f"class_{i}": k for i, k in enumerate(order, 1)}
        chances = {f"probability_{i}": f"{row[k]:.6f}" for i, k in enumerate(order, 1)}
        rows.append({"file": example.path.name, "label": example.label, **classes, **chances})
    write_csv(out / "predictions.csv", rows)


# A command is a dataclass of its options and a function.
COMMANDS: dict[type, Callable[[Any], int]] = {Classify: classify, Evaluate: evaluate, Train: train}

Options = (
    Annotated[Classify, tyro.conf.subcommand("classify", prefix_name=False)]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate", prefix_name=False)]
    | Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)]
)


def main(options: Recognising | Train) -> int:
    options.prepare()
    return COMMANDS[type(options)](options)
