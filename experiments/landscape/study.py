"""What all studies of the landscape share: options, progress, bootstrapped intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import fnn
from experiments.common.console import console
from experiments.common.options import seeded, writable


@dataclass(kw_only=True)
class Study:
    """Options of every study."""

    seed: int = 0
    """seeds data, initial weights and random directions"""
    out: Path = Path("results/landscape")
    """folder for report.html, figures and numbers as CSV"""
    command: Annotated[str, tyro.conf.Suppress] = ""

    def prepare(self) -> None:
        """Refuses options that cannot work, before anything is computed."""
        seeded(self)
        writable(self.out)


def descent(learning_rate: float, epochs: int, batch_size: int, examples: int) -> fnn.Optimizer:
    """SGD with momentum, at a rate that falls to 0 as a cosine."""
    steps = epochs * -(-examples // batch_size)

    def rate(step: Any) -> Any:
        return learning_rate * (1 + jnp.cos(jnp.pi * step / steps)) / 2

    return fnn.sgd(rate, 0.9)


def progress() -> Progress:
    """A bar with the time that is left."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip


def interval(
    values: np.ndarray, statistic: Callable[[np.ndarray], Any], seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """The 95 % interval of a statistic over the last axis, by bootstrap."""
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(0, len(values), (resamples, len(values)))]
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    return float(low), float(high)
