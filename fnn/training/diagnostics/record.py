"""What was seen of a training run, layer by layer, and what was found wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fnn.training.diagnostics.data_summary import Facts
from fnn.training.diagnostics.findings import Finding, describe, find
from fnn.training.diagnostics.overfit import ByHeart


class Layer(NamedTuple):
    """A block that is not itself a graph: its path, its kind, and where its parameters are.

    ``number``: how many layers with parameters there are up to it, itself included.
    ``params``: the path of its own parameters, None where it has none of its own.
    """

    path: str
    kind: str
    number: int
    params: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """What was seen of a run: plain NumPy arrays, NaN where something does not apply.

    ``layers``: L of them, in the order in which they run. ``watched``: the W epochs after which
    they were looked at; 0 is before training. Of shape (W, L), on the same sample each time:
    ``mean`` and ``spread`` (standard deviation) of the output over examples and units; ``dead``
    and ``saturated``, fractions of the units (the last axis) that have no slope for any of the
    examples, or hardly any for most; ``signal``, the norm of the gradient of the output;
    ``gradient``, that of its parameters; ``update``, the norm of the step's change of the
    parameters over the norm of the parameters. ``accuracy`` (W,): on training examples.
    ``history``: the rows of ``Fitted.history``. ``peaks``: the largest loss of a step in each
    epoch. ``initial_loss``: before training. ``parameters``: how many numbers.
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
    facts: Facts
    by_heart: ByHeart
    status: str

    def findings(self) -> list[Finding]:
        """What is wrong and what to try, causes before their consequences; empty where all is
        well."""
        return find(self)

    def __str__(self) -> str:
        return describe(self)
