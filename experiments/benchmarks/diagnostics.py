"""The cost of diagnostics: fit(..., diagnostics=True) beside fit without.

    python -m experiments.benchmarks diagnostics
    python -m experiments.benchmarks diagnostics --only digits --repeats 30

A test holds that both learn the same parameters: tests/training/test_diagnostics.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
from rich.progress import track

import fnn
from experiments.benchmarks.report import Recorded, Table, conditions, limit_threads, record
from experiments.benchmarks.timing import Seconds, ratio, turns
from experiments.common.data import load

COLUMNS = (
    "data", "network", "batch", "an epoch, ms", "with diagnostics, ms", "extra",
    "before training, extra s",
)  # fmt: skip
ABOUT = """\
Extra: the median over rounds, in which the two runs follow each other in random order, of the
time of their epochs without the first, which also compiles. Before training: compilation of the
watched step, the watch of the initial network, and overfitting 20 examples."""


class Case(NamedTuple):
    """A network and its data, and how many epochs of training a round has."""

    data: str
    hidden: tuple[int, ...]
    batch: int
    epochs: int


CASES = (
    Case("digits", (256,), 32, 40),
    Case("digits", (64, 64, 64), 32, 40),
    Case("mnist", (128, 64), 64, 3),
)


@dataclass(kw_only=True)
class Options(Recorded):
    """Measures training with diagnostics beside training without."""

    repeats: int = 15
    """rounds; in each, both are timed once"""
    only: str = ""
    """only data sets whose name contains this"""
    data_dir: Path | None = None
    """folder that holds mnist/; else $FNN_DATA, the cache, or a download"""


def main(options: Options) -> None:
    """Measures, prints the table and records it."""
    threads = limit_threads(options.threads)
    cases = [case for case in CASES if options.only in case.data]
    table = Table(COLUMNS, [_row(case, options) for case in track(cases, transient=True)])
    table.show()
    head = f"{conditions(threads, ('jax', 'numpy'))} float32."
    name = f"diagnostics, {jax.default_backend().upper()}"
    record(None if options.only else options.out, name, head, table.markdown(), ABOUT)


def _row(case: Case, options: Options) -> list[str]:
    data = load(case.data, 0, options.data_dir)
    net = fnn.models.mlp((*case.hidden, 10), fnn.relu())

    def train(diagnostics: bool) -> tuple[float, float]:
        """Seconds of an epoch after the first, and those up to its end."""
        began = time.perf_counter()
        fitted = fnn.fit(
            net, fnn.softmax_cross_entropy(), *data.train, optimizer=fnn.sgd(0.05, 0.9),
            batch_size=case.batch, epochs=case.epochs, diagnostics=diagnostics, progress=False,
        )  # fmt: skip
        wall = time.perf_counter() - began
        first, *_, last = (row["seconds"] for row in fitted.history)
        return (last - first) / (case.epochs - 1), wall - last

    epochs: dict[str, Seconds] = {"with": {}, "without": {}}
    starts: dict[str, Seconds] = {"with": {}, "without": {}}
    for number, name in turns(epochs, options.repeats):
        epochs[name][number], starts[name][number] = train(diagnostics=name == "with")
    milliseconds = {name: 1e3 * median(times.values()) for name, times in epochs.items()}
    extra = ratio(epochs["with"], epochs["without"]) - 1
    start = median(starts["with"][i] - starts["without"][i] for i in range(options.repeats))
    layers = "-".join(map(str, (data.train.x.shape[1], *case.hidden, 10)))
    return [
        case.data, layers, str(case.batch), f"{milliseconds['without']:.1f}",
        f"{milliseconds['with']:.1f}", f"{100 * extra:.1f} %", f"{start:.1f}",
    ]  # fmt: skip
