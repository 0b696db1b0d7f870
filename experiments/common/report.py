"""report.html: one run on one self-contained page.

A :class:`Report` collects sections during a run; each is a title and HTML. Curves are inline SVG
by matplotlib, small images are inline PNG data. All text from outside is escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import importlib.metadata
import io
import math
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

import fnn
import fnn.whiteboard
from experiments.common import runs
from experiments.common.console import GRADIENT_COLUMNS, SUMMARY_COLUMNS, summary_rows, table
from experiments.common.figures import GREY, plt
from experiments.common.html import html_table, picture, section, text, whole_page
from fnn.block import Block
from fnn.compiling import jit_for_few_runs
from fnn.training.diagnostics.record import Diagnostics

AGAIN = "How to run it again"
# The sections in the order of the page; an experiment's own come after the first.
TITLES = (
    "What stands out", "Learning", "Layers over time", "Confusion matrix", "Worst mistakes",
    "First-layer filters", "One example on the whiteboard", "Gradient check", "The network",
    AGAIN,
)  # fmt: skip
PAGE = "report.html"
PACKAGES = ("fnn", "jax", "jaxlib", "numpy", "optax", "matplotlib", "scikit-learn")
# Distinct on white and on black, for colour-blind readers too.
BLUE, ORANGE, GREEN, RED = "#2f8fd0", "#d98a00", "#1f9e77", "#d9622b"
DEPTH = LinearSegmentedColormap.from_list("depth", [BLUE, GREEN, ORANGE, RED])
MAX_CONFUSION_CLASSES = 40
WHITEBOARD_WIDTH = 1000  # pixels: a section of the page on a desktop, without its margins


class Report:
    """The page of one run: ``add`` sections, ``write`` the file, both any number of times.

    ``facts``: the results in a line, by name; the first is the headline. ``parts``: the reports of
    single networks, by name, which are sections of this page. ``thumbnail``: the name of a picture
    beside the page, or the SVG of one.
    """

    def __init__(self, options: Any, name: str = "") -> None:
        module = type(options).__module__
        doc = sys.modules[module].__doc__ or ""
        experiment = module.removeprefix("experiments.").partition(".")[0]
        self.title = " · ".join(filter(None, (experiment, name)))
        self.lead = doc.strip().split("\n\n")[0].replace("\n", " ")
        self.options = options
        self.facts: dict[str, str] = {}
        self.sections: dict[str, str] = {}
        self.parts: dict[str, Report] = {}
        self.thumbnail = ""

    def add(self, title: str, *content: str) -> None:
        """Adds or replaces the section with this title.

        Those of ``TITLES`` have their places; the experiment's own come before them, in order.
        """
        self.sections[title] = "".join(content)

    def picture(self, title: str, figure: Figure, path: Path, caption: str) -> None:
        """Adds a section with a figure, which is also saved as PNG."""
        self.add(title, picture(figure, path, caption))
        self.thumbnail = self.thumbnail or path.name

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *below: str
    ) -> None:
        """Prints a table and adds it as a section, with ``below`` (HTML) below it."""
        table(title, columns, rows)
        self.add(title, html_table(columns, rows), *below)

    def part(self, name: str) -> Report:
        """The report of one of several networks, a section of this page."""
        return self.parts.setdefault(name, Report(self.options, name))

    def training(self, fitted: fnn.Fitted, label: str = "training") -> None:
        """Adds the sections that every training has. ``label``: names the training loss."""
        history, diagnostics = fitted.history, fitted.diagnostics
        if history:
            seconds = f"{history[-1]['seconds']:.1f}"
            self.facts |= {"epochs": f"{len(history)}", "seconds": seconds}
            self.facts["training"] = fitted.status
            self.add("Learning", learning(history, fitted.best_epoch, diagnostics, label))
        else:
            self.facts["stopped"] = fitted.message
        if diagnostics is not None:
            self.add("What stands out", findings(diagnostics))
            self.add("Layers over time", layers(diagnostics))

    def classified(
        self, probabilities: np.ndarray, target: np.ndarray, names: Sequence[str],
        see: Callable[[int], np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        """Adds the confusion matrix, if it is small enough to read, and the worst mistakes."""
        if len(names) <= MAX_CONFUSION_CLASSES:
            self.add("Confusion matrix", confusion(probabilities.argmax(-1), target, names))
        self.add("Worst mistakes", mistakes(see, probabilities, target, names))

    def write(self, out: Path) -> None:
        """Writes ``out/report.html``, and what the page of all runs needs to know of it."""
        self.add(AGAIN, _settings(self.options))
        whole = self._ordered()
        again = {AGAIN: whole.pop(AGAIN)}
        whole |= {name: part._inside() for name, part in self.parts.items()} | again
        sections = (section(title, content) for title, content in whole.items())
        page = whole_page(self.title, self.lead, whole, *sections, facts=self._facts())
        (out / PAGE).write_text(page, encoding="utf-8")
        runs.leave(
            out, title=self.title, about=self.lead, facts=self.facts, page=PAGE,
            thumbnail=self.thumbnail or _first_drawing(self.sections.get("Learning", "")),
            command=getattr(self.options, "command", ""),
        )  # fmt: skip

    def _ordered(self) -> dict[str, str]:
        first, *last = TITLES
        own = [title for title in self.sections if title not in TITLES]
        return {t: self.sections[t] for t in (first, *own, *last) if t in self.sections}

    def _inside(self) -> str:
        """The sections of a part, each to be opened."""
        return self._facts() + "".join(
            f"<details{' open' * (title == 'Learning')}><summary>{text(title)}</summary>"
            f"{content}</details>"
            for title, content in self._ordered().items()
        )

    def _facts(self) -> str:
        facts = "".join(
            f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>"
            for name, value in self.facts.items()
        )
        return f"<dl>{facts}</dl>"


# ---- sections --------------------------------------------------------------------------------


def findings(d: Diagnostics) -> str:
    """What is wrong and what to try, or that nothing is; and the two checks before training."""
    cards = "".join(
        f'<li class="finding"><strong>{text(f.name)}</strong><span class="where">'
        f"{text(f.where)}</span><p>{text(_sentence(f.what))}</p>"
        f'<p class="advice">{text(_sentence(f.advice))}</p></li>'
        for f in d.findings()
    )
    nothing = "<strong>Nothing stands out</strong><p>The diagnostics found no fault.</p>"
    cards = cards or f'<li class="finding fine">{nothing}</li>'
    start = f"The loss before training was {d.initial_loss:.4g}"
    if not math.isnan(d.data.losses.chance_loss):
        start += f"; by chance it would be {d.data.losses.chance_loss:.4g}"
    verb = "overfits" if d.overfit.success else "does not overfit"
    check = f"It {verb} {d.overfit.examples} examples in {d.overfit.steps} steps"
    return f"<ul>{cards}</ul><p>{start}. {check}.</p>"


def learning(
    history: Sequence[Mapping[str, float]], best_epoch: int, d: Diagnostics | None = None,
    label: str = "training",
) -> str:  # fmt: skip
    """Loss by epoch, on a linear and a logarithmic scale, the metrics, and a table of numbers."""
    epochs = [row["epoch"] for row in history]
    chance = math.nan if d is None else d.data.losses.chance_loss

    def losses(axis: Axes) -> None:
        _curve(axis, epochs, [row["loss"] for row in history], BLUE, label)
        if "validation_loss" in history[0]:
            validation = [row["validation_loss"] for row in history]
            _curve(axis, epochs, validation, ORANGE, "validation")
        if not math.isnan(chance):
            axis.axhline(chance, color=GREY, lw=1, ls=":", label="chance")
        _kept(axis, best_epoch)

    log = min(row["loss"] for row in history) > 0
    plots = [_drawing("Loss", losses), _drawing("Loss, log scale", losses, log)]
    for name in history[0]:
        if name.startswith("validation_") and name != "validation_loss":
            metric = name.removeprefix("validation_")

            def metrics(axis: Axes, name: str = name, metric: str = metric) -> None:
                if metric == "accuracy" and d is not None and not np.isnan(d.accuracy).all():
                    _curve(axis, d.watched, d.accuracy, BLUE, "training (sample)")
                _curve(axis, epochs, [row[name] for row in history], ORANGE, "validation")
                _kept(axis, best_epoch)

            plots.append(_drawing(metric.replace("_", " ").capitalize(), metrics))
    columns = [name for name in history[0] if name != "seconds"]
    rows = [
        [f"{row[c]:.0f}" if c == "epoch" else f"{row[c]:.4g}" for c in columns] for row in history
    ]
    table = html_table([c.replace("_", " ") for c in columns], rows)
    return f"{_grid(plots)}<details><summary>Numbers by epoch</summary>{table}</details>"


def layers(d: Diagnostics) -> str:
    """Every statistic of every layer by epoch: one picture each, a line for each layer."""
    count = max(1, len(d.layers) - 1)
    colors = [to_hex(DEPTH(i / count)) for i in range(len(d.layers))]

    def picture(title: str, values: np.ndarray, log: bool) -> str:
        def draw(axis: Axes) -> None:
            # Later lines are thinner, so that one on top of another does not hide it.
            widths = np.linspace(4.2, 1.2, len(colors)) if len(colors) > 1 else (1.7,)
            for column, color, width in zip(values.T, colors, widths, strict=True):
                if not np.isnan(column).all():
                    _curve(axis, d.watched, column, color, width=width)

        return _drawing(title, draw, log and bool(np.nanmax(values) > 0))

    statistics = [
        ("Output: mean", d.mean, False), ("Output: spread (standard deviation)", d.spread, False),
        ("Dead units, %", 100 * d.dead, False), ("Saturated units, %", 100 * d.saturated, False),
        ("Gradient of the output, norm", d.signal, True),
        ("Gradient of the parameters, norm", d.gradient, True),
        ("Update / parameters, norms", d.update, True),
    ]  # fmt: skip
    plots = [picture(*statistic) for statistic in statistics if not np.isnan(statistic[1]).all()]
    chips = "".join(
        f'<span><i style="background:{color}"></i>{text(layer.path)}</span>'
        for layer, color in zip(d.layers, colors, strict=True)
    )
    return (
        f"<p>The same training examples each time; epoch 0 is before training.</p><div "
        f'class="chips">{chips}</div>{_grid(plots)}'
    )


def confusion(prediction: np.ndarray, target: np.ndarray, names: Sequence[str]) -> str:
    """Counts of true class (rows) by predicted class (columns); mistakes stand out."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (target, prediction), 1)
    wrong = np.where(np.eye(len(names), dtype=bool), 0, counts)
    heat = wrong / max(wrong.max(), 1)

    def cell(i: int, j: int) -> str:
        if i == j:
            return f'<td class="right">{counts[i, j]}</td>'
        return f'<td style="--heat:{heat[i, j]:.2f}">{counts[i, j] or ""}</td>'

    head = "".join(f'<th scope="col"><span>{text(n)}</span></th>' for n in names)
    rows = ""
    for i, name in enumerate(names):
        cells = "".join(cell(i, j) for j in range(len(names)))
        rows += f'<tr><th scope="row">{text(name)}</th>{cells}</tr>'
    pairs = [divmod(int(k), len(names)) for k in np.argsort(-wrong, axis=None)[:3]]
    mixed = [f"{names[i]} read as {names[j]} ({wrong[i, j]})" for i, j in pairs if wrong[i, j]]
    caption = f"{wrong.sum()} of {len(target)} wrong. Rows: true class; columns: predicted class."
    caption += f" Most often: {'; '.join(mixed)}." if mixed else ""
    return (
        f'<p>{text(caption)}</p><div class="wide"><table class="confusion"><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def mistakes(
    see: Callable[[int], np.ndarray] | None, probabilities: np.ndarray, target: np.ndarray,
    names: Sequence[str], count: int = 24,
) -> str:  # fmt: skip
    """The misclassified examples, the least probable true class first, at most ``count``.

    ``see(i)`` is the i-th image, (height, width) or with three colours; None for a table instead.
    """
    order = np.argsort(probabilities[np.arange(len(target)), target])
    guesses = probabilities.argmax(-1)
    wrong = order[guesses[order] != target[order]]
    if not len(wrong):
        return f"<p>None: all {len(target)} were read right.</p>"
    shown = f"{count} of {len(wrong)}" if count < len(wrong) else f"All {len(wrong)}"
    caption = f"<p>{shown} mistakes, the least probable true class first"
    if see is None:
        rows = [
            (str(i), names[target[i]], names[guesses[i]], f"{probabilities[i, guesses[i]]:.1%}")
            for i in wrong[:count]
        ]
        columns = ("example", "true class", "read as", "probability")
        return f"{caption}.</p>{html_table(columns, rows)}"
    figures = []
    for i in wrong[:count]:
        name = f"{names[target[i]]}, read as {names[guesses[i]]}"
        figures.append(
            f"<figure>{_image(see(i), 'gray_r', name)}<figcaption>{text(name)}"
            f"<small>{probabilities[i, guesses[i]]:.0%}</small></figcaption></figure>"
        )
    return (
        f"{caption}. Below each: the probability of what it was read as.</p>"
        f'<div class="tiles">{"".join(figures)}</div>'
    )


def filters(w: np.ndarray, shape: tuple[int, ...], count: int = 48) -> str:
    """The weights (pixels, units) of a first layer: red where positive, blue where negative.

    ``shape`` is that of an image: (height, width), or with three colours; then each weight is
    plots in its colour, and grey is 0.
    """
    strongest = np.argsort(-np.linalg.norm(w, axis=0))[:count]
    limit = np.abs(w).max(axis=0) + 1e-30
    tiles = "".join(
        f"<figure>{_image(w[:, i].reshape(shape) / limit[i], 'RdBu_r', f'unit {i}', 1.0)}</figure>"
        for i in strongest
    )
    shown = f"{count} of {w.shape[1]}" if count < w.shape[1] else f"All {w.shape[1]}"
    caption = f"{shown} units, the largest weights first. "
    if len(shape) == 3:
        caption += "Each is the image that excites the unit most; grey: no weight."
    else:
        caption += "Red: ink here excites the unit; blue: it inhibits the unit."
    return f'<p>{caption}</p><div class="tiles small">{tiles}</div>'


def whiteboard(net: Block, loss: Block, params: Any, example: tuple[Any, Any]) -> str:
    """Values and gradients of one example through the network at inference, plots."""

    trace = functools.partial(fnn.whiteboard.trace, fnn.inference(net), loss=loss)
    drawing = jit_for_few_runs(trace)(params, *example).svg(width=WHITEBOARD_WIDTH)
    return f'<div class="wide">{drawing}</div>'


def gradient_check(rows: Iterable[Sequence[str]]) -> str:
    """The rows of :func:`experiments.common.console.gradient_check`."""
    return (
        "<p>The hand-written backward pass against <code>jax.grad</code> before training, both in "
        f"float64: the difference is rounding.</p>{html_table(GRADIENT_COLUMNS, rows)}"
    )


def network(net: Block, x: Any) -> str:
    """The summary, block by block."""
    return html_table(SUMMARY_COLUMNS, summary_rows(fnn.summary(net, x)))


def _settings(options: Any) -> str:
    names = [f.name for f in dataclasses.fields(options) if f.name != "command"]
    rows = [(name.replace("_", " "), _plain(getattr(options, name))) for name in names]
    device = jax.devices()[0]
    versions = [
        *([name, v] for name in PACKAGES if (v := _version(name))),
        ["python", platform.python_version()],
        ["device", f"{device.platform}, {device.device_kind}"],
        ["machine", f"{platform.system()} {platform.machine()}"],
    ]
    settings, software = (
        html_table(("setting", "value"), rows), html_table(("software", "version"), versions),
    )  # fmt: skip
    command = f"<pre><code>{text(getattr(options, 'command', ''))}</code></pre>"
    return f"{command}<div class='two'>{settings}{software}</div>"


# ---- parts -----------------------------------------------------------------------------------


def _first_drawing(content: str) -> str:
    """The first SVG in some HTML, or ''."""
    _, start, rest = content.partition("<svg")
    return f"{start}{rest.partition('</svg>')[0]}</svg>" if start else ""


def _version(package: str) -> str:
    """'' if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>'


def _kept(axis: Axes, epoch: int) -> None:
    if epoch:
        axis.axvline(epoch, color=GREY, lw=1, ls="--", label=f"kept: epoch {epoch}")


def _curve(axis: Axes, x: Any, y: Any, color: str, label: str = "", width: float = 1.7) -> None:
    marker = "o" if len(x) < 30 else ""
    axis.plot(x, y, color=color, label=label, marker=marker, ms=1.8 * width, lw=width)


def _drawing(title: str, draw: Callable[[Axes], None], log: bool = False) -> str:
    """A figure by matplotlib as SVG inside the page."""
    style: Any = {  # rc_context wants its own type of keys
        "svg.fonttype": "none", "svg.hashsalt": "fnn", "axes.spines.top": False,
        "axes.spines.right": False, "font.size": 9, "axes.linewidth": 0.8,
        "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.edgecolor": GREY, "xtick.color": GREY,
        "ytick.color": GREY, "grid.color": GREY,  # texts take the page's colour
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axis = plt.subplots(figsize=(4.4, 2.7), layout="constrained")
        draw(axis)
        axis.set(xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(alpha=0.18)
        if log:
            axis.set_yscale("log")
            low, high = axis.get_ylim()
            if high < 20 * low:  # too little for powers of ten alone
                axis.yaxis.set_major_locator(MaxNLocator(6))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_locator(NullLocator())
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = buffer.getvalue()
    start = svg.index("viewBox")
    svg = (
        f'<svg role="img" aria-label="{text(title)}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" {svg[start:]}'
    )
    return f"<figure><figcaption>{text(title)}</figcaption>{svg}</figure>"


def _image(pixels: np.ndarray, colors: str, alt: str, limit: float | None = None) -> str:
    """A small image as PNG data.

    Values range from -limit to limit, or without a limit from the smallest to the largest; three
    colours without a limit are uint8.
    """
    low, high = (None, None) if limit is None else (-limit, limit)
    if pixels.ndim == 3 and limit is not None:
        pixels = (pixels / limit + 1) / 2
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, pixels, vmin=low, vmax=high, cmap=colors, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{data}">'
