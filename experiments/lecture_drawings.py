# ruff: noqa: RUF001 - formulas are written as on a board
"""The lecture's figures that are no whiteboards: a neuron, curves, a landscape, photographs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import fnn
from experiments.common import report
from experiments.common.figures import plt
from experiments.landscape import surface
from experiments.landscape.surface_figures import Drawn, picture
from experiments.nonlinearities import NONLINEARITIES, curve
from fnn.whiteboard import FORMULAS, Trace
from fnn.whiteboard.array_text import number
from fnn.whiteboard.primitives import dot, width_of, words

LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
STEPS, RATE = 300, 0.1  # of gradient descent on the landscape


def neuron(t: Trace) -> str:
    """A neuron of one example as a circle, each weight on its edge, the bias on that of a 1.

    Args:
      t: the trace of ``fnn.neuron(nonlinearity)`` at x (features,).
    """
    (affine, curved), params = t.nodes, t.params[t.nodes[0].name]
    symbol = curved.formula.symbol if curved.formula else "f"
    x, w = np.ravel(t.x), np.ravel(params["w"])
    entries = [(f"x{i}", f"w{i}", x[i - 1], w[i - 1]) for i in range(1, len(x) + 1)]
    entries += [("", "b", 1.0, float(params["b"]))]
    high = 74 * len(entries)
    middle, left, center, radius = high / 2, 150, 430, 58
    parts = []
    for i, (name, weight, value, factor) in enumerate(entries):
        y = 37 + 74 * i
        label = f"{name.translate(LOWERED)} = {number(float(value))}" if name else "1"
        parts.append(f'<path class="wire" d="M{left},{y}L{center - radius},{middle}"/>')
        parts.append(f'<g transform="translate({left},{y})">{dot(0)}</g>')
        parts.append(_right(left - 12, y + 6, label, "v" if name else "quiet", 18))
        at = 0.3  # of the way along the edge
        ex, ey = left + at * (center - radius - left), y + at * (middle - y)
        text = f"{weight.translate(LOWERED)} = {number(float(factor))}"
        wide = width_of(text, 17) + 12
        place = f'x="{ex - 26:g}" y="{ey - 12:g}" width="{wide:g}" height="24"'
        parts.append(f'<rect {place} fill="#fff"/>')
        parts.append(words(ex - 20, ey + 6, text, "name", 17))
    z, result = (number(float(np.ravel(node.y)[0])) for node in (affine, curved))
    parts.append(
        f'<circle cx="{center}" cy="{middle}" r="{radius}" class="shape"/>'
        f'<path class="wire" d="M{center},{middle - radius}V{middle + radius}'
        f'M{center + radius},{middle}H{center + radius + 110}"/>'
        f"{words(center - 38, middle + 10, 'Σ', 'symbol', 28)}"
        f"{words(center + 16, middle + 10, symbol, 'symbol', 26)}"
        f"{words(center - radius - 4, middle + radius + 26, f'z = {z}', 'v', 18)}"
        f"{words(center + radius + 12, middle - 12, f'y = {result}', 'v', 18)}"
    )
    sum_ = " + ".join(f"w{i} x{i}".translate(LOWERED) for i in range(1, len(x) + 1))
    label = f"a neuron: y = {symbol}({sum_} + b) = {result}"
    return (
        f'<figure><svg class="wb drawn" viewBox="0 0 640 {high + 30}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg></figure>'
    )


def _right(x: float, y: float, text: str, css: str, size: float) -> str:
    """Words that end at x."""
    return words(x, y, text, css, size).replace("<text ", '<text text-anchor="end" ', 1)


def nonlinearities(names: Iterable[str]) -> str:
    """A table: name, equation, derivative, and a plot of both, computed by forward and backward."""
    rows = []
    for name in names:
        formula, own = FORMULAS[name].filled(getattr(fnn, name)().kind.args), NONLINEARITIES[name]
        slope = formula.written(formula.local[0], ("x",), "y").split(" = ")[-1]
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td>y = {escape(_typeset(own.formula))}</td>'
            f"<td>dy/dx = {escape(slope)}</td><td>{_plot(name)}</td></tr>"
        )
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("", "equation", "derivative", "y (green) and dy/dx (red, dashed)")
    )
    return (
        f'<div class="sideways"><table class="curves"><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def _typeset(text: str) -> str:
    return text.replace(">=", "≥").replace("-", "−")


def _plot(name: str) -> str:
    """Both curves; what is beyond the picture is cut off at its edges."""
    x = np.linspace(-4, 4, 161, dtype=np.float32)
    y, slope = curve(NONLINEARITIES[name], x)

    def line(values: np.ndarray, css: str) -> str:
        at = zip(110 + 26 * x, 84 - 30 * values, strict=True)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        return f'<polyline class="{css}" points="{points}"/>'

    return (
        f'<svg viewBox="0 0 220 130" width="220" height="130" role="img" aria-label="{name}">'
        '<path d="M4,84H216M110,4V126" stroke="#9aa7b4"/>'
        '<path d="M84,81V87M136,81V87M107,54H113" stroke="#9aa7b4"/>'
        f"{line(y, 'y')}{line(slope, 'dy')}</svg>"
    )


def landscape(land: surface.Landscape) -> str:
    """The error over two weights, with its saddle, its minima, and the paths of three methods."""
    with jax.enable_x64(True):
        local = surface.by_fnn(land)
        passed = {
            name: surface.paths(land, optimizer, land.starts, STEPS)
            for name, optimizer in surface.methods(land, RATE).items()
        }
        labels = {}
        for name, w in land.critical.items():
            low, high = np.linalg.eigvalsh(np.asarray(local(w).hessian))
            index = int((np.array([low, high]) < -1e-9).sum())
            labels[f"{name}: index {index}\nλ = {number(low, 2)} and {number(high, 2)}"] = w
        heights = surface.heights(land)
        drawn = Drawn(land.title, heights, labels, land.view, land.mesh, land.camera, passed)
        figure, buffer = picture(drawn), io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    plt.close(figure)
    return f"<figure>{_png(buffer.getvalue(), land.title)}</figure>"


def photograph(path: Path, pixels: Any, guesses: Sequence[tuple[str, float]], truth: str) -> str:
    """A photograph as the network sees it, its class, and the most probable guesses."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "png")
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><meter min="0" max="1" value="{p:.4f}">'
        f"</meter> {100 * p:.1f} %</td></tr>"
        for name, p in guesses
    )
    best = guesses[0][0]
    return (
        f'<figure class="photograph">{_png(buffer.getvalue(), truth or path.name)}'
        f"<figcaption>GoogLeNet says: <b>{escape(best)}</b>. "
        f"{f'It is: {escape(truth)}.' if truth else ''}<table>{rows}</table></figcaption></figure>"
    )


def filters(w: Any, shape: tuple[int, ...]) -> str:
    """The weights (pixels, units) of a first layer as images; see the report's."""
    return report.filters(np.asarray(w), shape, 64)


def _png(data: bytes, alt: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'
