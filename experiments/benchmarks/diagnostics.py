"""What looking at every layer costs: fit(..., diagnostics=True) beside fit without.

    python -m experiments.benchmarks diagnostics
    python -m experiments.benchmarks diagnostics --only digits --repeats 30

That the parameters learned are the same is a test: tests/training/test_diagnostics.py.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from experiments.benchmarks.report import RESULTS, Table, limit_threads, machine, record, versions

COLUMNS = (
    "data", "network", "batch", "an epoch, ms", "with diagnostics, ms", "extra",
    "before training, extra s",
)  # fmt: skip
ABOUT = """\
Extra: the median over rounds, in which the two runs follow each other in random order, of the
time of their epochs but the first, which also compiles. Before training: compilation of the step
that looks, the look at the initial network, and 20 examples learned by heart."""


class Case(NamedTuple):
    """Who trains on what, and for how many epochs in a round."""

    data: str
    hidden: tuple[int, ...]
    batch: int
    epochs: int


CASES = (
    Case("digits", (256,), 32, 40),
    Case("digits", (64, 64, 64), 32, 40),
    Case("mnist", (128, 64), 64, 3),
)


@dataclass
class Options:
    """Measures training with diagnostics beside training without."""

    repeats: int = 15
    """Rounds; in each, both are timed once."""
    only: str = ""
    """Data sets whose name contains this."""
    threads: int = 0
    """Of XLA; 0 for as many as there are cores."""
    data_dir: Path | None = None
    """Folder that holds mnist/; else $FNN_DATA, the cache, or a download."""
    out: Path | None = RESULTS
    """The Markdown file whose section is replaced; None to write nothing."""


def main(options: Options) -> None:
    """Measures, prints the table and records it."""
    threads = limit_threads(options.threads)
    import jax
    from rich.progress import track

    cases = [case for case in CASES if options.only in case.data]
    table = Table(COLUMNS, [_row(case, options) for case in track(cases, transient=True)])
    table.show()
    if options.out is not None and not options.only:
        device = jax.devices()[0].platform.upper()
        head = f"{machine()}, {threads} threads. {versions(('jax', 'numpy'))}. float32."
        record(options.out, f"diagnostics, {device}", head, table.markdown(), ABOUT)


def _row(case: Case, options: Options) -> list[str]:
    import fnn
    from experiments.common.data import load

    data = load(case.data, 0, options.data_dir)
    net = fnn.models.mlp((*case.hidden, 10), fnn.relu())

    def train(diagnostics: bool) -> tuple[float, float]:
        """Seconds of an epoch but the first, and those before the first."""
        began = time.perf_counter()
        fitted = fnn.fit(
            net, fnn.softmax_cross_entropy(), *data.train, optimizer=fnn.sgd(0.05, 0.9),
            batch_size=case.batch, epochs=case.epochs, diagnostics=diagnostics, progress=False,
        )  # fmt: skip
        wall = time.perf_counter() - began
        first, *_, last = (row["seconds"] for row in fitted.history)
        return (last - first) / (case.epochs - 1), wall - last

    order = random.Random(0)
    rounds: list[dict[bool, Any]] = []
    for _ in range(options.repeats):
        which = order.sample([False, True], 2)
        rounds.append({diagnostics: train(diagnostics) for diagnostics in which})
    epoch = {d: 1e3 * median(r[d][0] for r in rounds) for d in (False, True)}
    extra = median(r[True][0] / r[False][0] - 1 for r in rounds)
    start = median(r[True][1] - r[False][1] for r in rounds)
    layers = "-".join(map(str, (data.train.x.shape[1], *case.hidden, 10)))
    cells = (f"{epoch[False]:.1f}", f"{epoch[True]:.1f}", f"{100 * extra:.1f} %", f"{start:.1f}")
    return [case.data, layers, str(case.batch), *cells]
