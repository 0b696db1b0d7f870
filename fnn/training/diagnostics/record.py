"""What was measured of a training run, layer by layer, and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fnn.markup import preformatted
from fnn.training.diagnostics.data_summary import DataSummary
from fnn.training.diagnostics.overfit import Overfit


class Layer(NamedTuple):
    """A block that is not itself a graph: its path, its kind, and where its parameters are.

    ``number``: how many layers with parameters there are up to this one, itself included.
    ``params``: the path of its own parameters, None if it has none of its own.
    """

    path: str
    kind: str
    number: int
    params: tuple[str, ...] | None


class Finding(NamedTuple):
    """One fault: its name, where it is, what was measured, what to try.

    >>> print(Finding("dead units", "layer 3 (act_3)", "94 % of units are dead since epoch 2",
    ...               "lower the learning rate or use He initialisation"))
    layer 3 (act_3): 94 % of units are dead since epoch 2; lower the learning rate or use He
    initialisation
    """

    name: str
    where: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.advice}"


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """Measurements of a run: NumPy arrays, with NaN where a number does not apply.

    ``layers``: L of them, in the order in which they run.
    ``watched`` (W,): the epochs after which they were measured, on the same sample each time; 0 is
    before training.
    Each of these is (W, L):
    ``mean``, ``spread`` (standard deviation): of the output, over examples and units.
    ``dead``, ``saturated``: the fraction of units (last axis) without a slope at any example, and
    of those with hardly any at most examples.
    ``signal``, ``gradient``: the norm of the gradient of the output, and of the parameters.
    ``update``: the norm of a step's change of the parameters, divided by their norm.
    ``accuracy`` (W,): on training examples. ``history``: as in ``Fitted``. ``peaks``: the largest
    loss of a step in each epoch. ``initial_loss``: before training. ``parameters``: how many
    numbers. ``data``: a summary of the examples. ``overfit``: whether a small batch can be
    overfitted. ``status``: as in ``Fitted``. ``faults``: what :meth:`findings` lists.
    """

    layers: tuple[Layer, ...]
    watched: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    dead: np.ndarray
    saturated: np.ndarray
    signal: np.ndarray
    gradient: np.ndarray
    update: np.ndarray
    accuracy: np.ndarray
    history: list[dict[str, float]]
    peaks: np.ndarray
    initial_loss: float
    parameters: int
    data: DataSummary
    overfit: Overfit
    status: str
    faults: tuple[Finding, ...] = ()

    def findings(self) -> list[Finding]:
        """What is wrong and what to try, causes first; empty if all is well."""
        return list(self.faults)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return preformatted(str(self))

    def __str__(self) -> str:
        return describe(self)


def describe(d: Diagnostics) -> str:
    """The report as text: before training, the layers at the end, and the findings."""
    start = f"before training: loss {d.initial_loss:.4g}"
    if not math.isnan(d.data.losses.chance_loss):
        start += f" (by chance {d.data.losses.chance_loss:.4g})"
    verb = {True: "overfits", False: "does not overfit", None: "does not yet overfit"}
    lines = [
        f"{start}; {verb[d.overfit.success]} {d.overfit.examples} examples in "
        f"{d.overfit.steps} steps, to loss {d.overfit.loss:.2g}",
        f"after epoch {d.watched[-1]}:",
    ]
    largest = np.fmax.accumulate(d.update, axis=0)
    columns: list[tuple[str, np.ndarray, Callable[[float], str]]] = [
        ("mean", d.mean, "{:.3g}".format),
        ("spread", d.spread, "{:.3g}".format),
        ("dead", d.dead, percent),
        ("saturated", d.saturated, percent),
        ("gradient", d.gradient, "{:.1e}".format),
        # The largest: after a schedule's last step there is none.
        ("largest update/parameters", largest, "{:.1e}".format),
    ]
    rows = [["layer", *(name for name, _, _ in columns)]]
    for i, layer in enumerate(d.layers):
        values = [(table[-1, i], text) for _, table, text in columns]
        rows.append([layer.path, *("" if np.isnan(v) else text(v) for v, text in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for path, *cells in rows:
        padded = [cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([path.ljust(widths[0]), *padded]).rstrip())
    findings = [f"- {finding}" for finding in d.findings()]
    return "\n".join([*lines, *(findings or ["nothing stands out"])])


def percent(fraction: float) -> str:
    """A fraction in percent.

    >>> percent(0.941)
    '94 %'
    """
    return f"{100 * fraction:.0f} %"
