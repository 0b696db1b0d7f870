"""Multilayer perceptrons on MNIST: seconds per epoch and to 97 %, fnn beside its peers.

    python -m experiments.benchmarks mlp
    python -m experiments.benchmarks mlp --repeats 3 --contenders fnn torch --no-process

Everything is measured in one run, on the same threads, in alternation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import jax
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.benchmarks import report, timing
from experiments.benchmarks.mlp_process import mnist, order_of
from experiments.benchmarks.peers import CONTENDERS, Array, Problem, Trainer, he_normal
from experiments.benchmarks.report import Recorded, Table

Network = Literal["784-128-64-10", "784-1024-1024-10"]
Library = Literal[
    "fnn", "jax", "equinox", "flax", "torch", "torch.compile", "scikit-learn", "products"
]
NETWORKS = {"784-128-64-10": 128, "784-1024-1024-10": 256}  # sizes: batch
PACKAGES = ("jax", "equinox", "flax", "optax", "torch", "scikit-learn", "numpy")
ACCURACY = 0.97
MOST_EPOCHS = 20  # a process gives up after these
PROCESS_EPOCHS = 4  # estimate for a process in the time to finish
Tick = Callable[[str, float], None]  # (what is done now, units done)
COLUMNS = (
    "network",
    "contender",
    "s/epoch (quartiles)",
    "ratio to fnn",
    "first epoch, s",
    f"to {ACCURACY:.0%}, s (epochs)",
    "GFLOP/s",
    "of matmul",
    "temp. MB",
)
ABOUT = """\
- s/epoch: the median of the repeats and their quartiles. In each repeat every contender trains
  from the same weights on the same order of examples; they take turns in random order, with pauses.
- ratio: the median of each repeat's time over fnn's in the same repeat; above 1 is slower.
- first epoch: the first one in this process, with tracing and compilation, without imports.
- to 97 %: from the start of a new process to a test accuracy of 97 %: import, data, compilation,
  epochs, a test after each; the median. No compilation comes from a cache on disk.
- GFLOP/s counts the matrix products alone: per example and weight 2 forward, 2 for its gradient
  and 2 for its input's gradient, which the first layer does not need. Of matmul: the fraction of
  the rate of a square float32 `jnp` product, measured in the same rotation.
- The JAX libraries all run an epoch in the same `lax.scan`, PyTorch slices a resident tensor that
  was permuted once per epoch, torch.compile compiles network and loss.
- The products alone: a step's matrix products and the reading of its rows, nothing between them;
  no library that leaves them to XLA can be faster.
- temp.: the temporary memory that XLA reports for the compiled epoch."""


@dataclass(kw_only=True)
class Options(Recorded):
    """Measures training of two MLPs on MNIST beside peers, in one table."""

    repeats: int = 9
    """rounds; in each, every contender is timed once"""
    epochs_per_repeat: int = 1
    """epochs that are timed together, from the initial weights"""
    networks: tuple[Network, ...] = get_args(Network)
    """networks, by their sizes"""
    contenders: tuple[Library, ...] = get_args(Library)
    """libraries"""
    examples: int = 60_000
    """training examples, the first of MNIST's"""
    process: bool = True
    """whole processes, too; --no-process leaves them out"""
    process_repeats: int = 3
    """rounds of whole processes"""


@dataclass
class Row:
    """The measurements of one contender on one network; failed if ``failure`` says why."""

    network: str
    contender: str
    seconds: timing.Seconds = field(default_factory=dict)
    first: float | None = None
    temporary: int | None = None
    process: list[float] = field(default_factory=list)
    process_epochs: int = 0
    failure: str = ""

    def cells(self, rival: Row | None, flops: int, matmul: float | None) -> list[str]:
        """The table's row. rival: fnn's row; flops: those of an epoch; matmul: GFLOP/s."""
        speed = relative = rate = fraction = "-"
        if self.seconds:
            low, middle, high = timing.quartiles(self.seconds)
            speed, gigaflops = f"{middle:.3f} ({low:.3f}-{high:.3f})", flops / middle / 1e9
            rate, fraction = f"{gigaflops:.0f}", f"{gigaflops / matmul:.0%}" if matmul else "-"
            if rival and rival.seconds:
                relative = f"{timing.ratio(self.seconds, rival.seconds):.2f}"
        process = f"{median(self.process):.2f} ({self.process_epochs})" if self.process else "-"
        return [
            f"{self.network}, batch {NETWORKS[self.network]}",
            CONTENDERS[self.contender].label,
            self.failure or speed,
            relative,
            "-" if self.first is None else f"{self.first:.2f}",
            process,
            rate,
            fraction,
            "-" if self.temporary is None else f"{self.temporary / 1e6:.2f}",
        ]


@dataclass
class Measured:
    """All measurements so far: an interrupted run still shows them."""

    rows: list[Row] = field(default_factory=list)
    matmul: dict[str, list[float]] = field(default_factory=dict)  # GFLOP/s, by network
    warnings: list[str] = field(default_factory=list)

    def table(self, examples: int) -> Table:
        """The table, in the order of the rows."""
        fnn = {row.network: row for row in self.rows if row.contender == "fnn"}
        lines = []
        for row in self.rows:
            rates = self.matmul.get(row.network)
            flops = problem_of(row.network).flops(examples)
            lines.append(row.cells(fnn.get(row.network), flops, median(rates) if rates else None))
        return Table(COLUMNS, lines)


def problem_of(network: str, threads: int = 1, device: str = "cpu") -> Problem:
    """The problem of that name."""
    sizes = tuple(int(size) for size in network.split("-"))
    return Problem(sizes, NETWORKS[network], threads=threads, device=device)


def main(options: Options) -> None:
    """Measures, prints the table, and records it. Ctrl-C prints what there is."""
    if options.repeats < 1 or options.epochs_per_repeat < 1 or options.process_repeats < 1:
        raise ValueError("--repeats, --epochs-per-repeat and --process-repeats start at 1")
    threads = report.limit_threads(options.threads)
    measured = Measured([Row(n, c) for n in options.networks for c in options.contenders])
    measured.warnings += report.other_work()  # asked before our own work
    warm_up()
    data = mnist(options.examples)
    examples, device = len(data[0]), jax.default_backend()
    problems = {str(name): problem_of(name, threads, device) for name in options.networks}
    where = report.conditions(threads, PACKAGES)
    where += " scikit-learn on the CPU." if device != "cpu" else ""
    print("\n".join([where, *(f"WARNING: {warning}" for warning in measured.warnings)]))

    interrupted = False
    with ticking(options, sum(p.flops(examples) for p in problems.values()) / 1e9) as tick:
        try:
            for name, problem in problems.items():
                rows = [row for row in measured.rows if row.network == name]
                measure_epochs(problem, data, rows, measured, options, tick)
            if options.process:
                measure_processes(problems, examples, measured, options, tick)
        except KeyboardInterrupt:
            interrupted = True

    table = measured.table(examples)
    table.show()
    repeats = max(len(row.seconds) for row in measured.rows)
    processes = max(len(row.process) for row in measured.rows)
    what = (
        f"{examples:,} examples; timed for each: {repeats} x {options.epochs_per_repeat} epochs "
        f"and {processes} processes; float32, SGD with learning rate {Problem.learning_rate} and "
        f"momentum {Problem.momentum}, the last smaller batch included."
    )
    if rates := [rate for each in measured.matmul.values() for rate in each]:
        size = matmul_size(device)
        what += f" Square product: {size} x {size}, {median(rates):.0f} GFLOP/s."
    warnings = [f"WARNING: {warning}" for warning in measured.warnings]
    print("\n".join([what, *warnings]))
    if interrupted:
        print("interrupted: these are the measurements so far; nothing is recorded")
    else:
        parts = (table.markdown(), what, *warnings, ABOUT)
        report.record(options.out, f"mlp, {device.upper()}", where, *parts)


def matmul_size(device: str) -> int:
    """The side of a square product that is large enough for full speed."""
    return 2048 if device == "cpu" else 8192


def warm_up() -> None:
    """Trains a tiny network with plain JAX.

    JAX's start (of XLA, tracing its own helpers) would otherwise be charged to the first contender.
    """
    trainer = CONTENDERS["jax"].make(Problem((3, 2, 2), 2))
    trainer.start(he_normal((3, 2, 2)))
    x, target = np.ones((5, 3), np.float32), np.zeros(5, np.int32)
    trainer.load(x, target, x, target)
    trainer.epoch(np.arange(5, dtype=np.int32))
    trainer.accuracy()


@contextmanager
def ticking(options: Options, per_epoch: float) -> Iterator[Tick]:
    """A progress bar with the time to finish.

    Units are GFLOP, so that a wide network's epoch counts for more than a small one's.
    """
    epochs = 1 + options.repeats * options.epochs_per_repeat
    if options.process:
        epochs += PROCESS_EPOCHS * options.process_repeats
    columns = (
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        TextColumn("to finish"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, speed_estimate_period=600, transient=True) as progress:
        task = progress.add_task("starting", total=epochs * len(options.contenders) * per_epoch)
        yield lambda what, units: progress.update(task, description=what, advance=units)


# ---------------------------------------------------------------- epochs in this process


def measure_epochs(
    problem: Problem,
    data: tuple[Array, Array, Array, Array],
    rows: Sequence[Row],
    measured: Measured,
    options: Options,
    tick: Tick,
) -> None:
    """Fills in one network's rows: a first epoch each, then the alternating repeats."""
    network, examples = rows[0].network, len(data[0])
    weights = he_normal(problem.sizes)
    orders = [order_of(epoch, examples) for epoch in range(options.epochs_per_repeat)]
    unit = problem.flops(examples) / 1e9
    matmul = timing.matmul_rate(matmul_size(problem.device))
    rates = measured.matmul.setdefault(network, [])

    trainers: dict[str, Trainer] = {}
    first: dict[str, tuple[Array, float]] = {}
    for row in rows:
        tick(f"{network} {row.contender}: first epoch", 0)
        try:
            trainer = CONTENDERS[row.contender].make(problem)
            trainer.start(weights)
            trainer.load(*data)
            began = time.perf_counter()
            losses = trainer.epoch(orders[0])
            row.first = time.perf_counter() - began
            first[row.contender] = losses, trainer.accuracy()
            row.temporary = trainer.temporary_bytes()
            trainers[row.contender] = trainer
        except Exception as error:
            if row.contender == "fnn":
                raise  # there is nothing to compare with
            row.failure = reason(error)
        tick(f"{network} {row.contender}", unit)
    measured.warnings += disagreements(network, first, problem.batch, examples)

    running = {row.contender: row for row in rows if row.contender in trainers}
    for number, name in timing.turns(["matmul", *running], options.repeats):
        time.sleep(timing.PAUSE_SECONDS)
        if name == "matmul":
            rates.append(matmul())
            continue
        tick(f"{network} {name}: repeat {number + 1} of {options.repeats}", 0)
        trainer = trainers[name]
        trainer.start(weights)
        began = time.perf_counter()
        for order in orders:
            trainer.epoch(order)
        running[name].seconds[number] = (time.perf_counter() - began) / len(orders)
        tick(f"{network} {name}", unit * len(orders))


def reason(error: Exception) -> str:
    """Why a row is empty, in one line."""
    if isinstance(error, ModuleNotFoundError):
        return "not installed: pip install -e '.[bench]'"
    text = (str(error).strip().splitlines() or [""])[0][:100].replace("|", "/")
    return f"does not work here: {type(error).__name__}: {text}"


def disagreements(
    network: str, first: dict[str, tuple[Array, float]], batch: int, examples: int
) -> list[str]:
    """Warnings for contenders whose first epoch is not the same training as fnn's.

    They started from the same weights, so their loss curves agree but for rounding. Compared
    are tenths of the epoch, or the whole of it where a library tells only its mean.
    """
    if "fnn" not in first:
        return []
    sizes = np.full(-(-examples // batch), batch)
    sizes[-1] = examples - batch * (len(sizes) - 1)

    def parts(losses: Array, count: int) -> Array:
        if len(losses) == 1:
            return losses
        pairs = zip(np.array_split(losses, count), np.array_split(sizes, count), strict=True)
        return np.array([np.average(loss, weights=size) for loss, size in pairs])

    reference, accuracy = first["fnn"]
    warnings = []
    for name, (losses, its_accuracy) in first.items():
        if not CONTENDERS[name].trains:
            continue
        count = 1 if 1 in (len(losses), len(reference)) else min(10, len(sizes))
        expected = parts(reference, count)
        off = float(np.max(np.abs(parts(losses, count) / expected - 1)))
        if not off <= 0.01:  # so that NaN warns, too
            warnings.append(f"{network}: {name}'s loss differs from fnn's by {off:.1%}")
        if not abs(its_accuracy - accuracy) <= 0.01:
            both = f"{its_accuracy:.2%}, fnn's {accuracy:.2%}"
            warnings.append(f"{network}: {name}'s test accuracy after an epoch is {both}")
    return warnings


# ---------------------------------------------------------------- whole processes


def measure_processes(
    problems: dict[str, Problem], examples: int, measured: Measured, options: Options, tick: Tick
) -> None:
    """Fills in how long whole processes take to the accuracy; contenders take turns."""
    for network, problem in problems.items():
        unit = PROCESS_EPOCHS * problem.flops(examples) / 1e9
        rows = {
            row.contender: row
            for row in measured.rows
            if row.network == network and CONTENDERS[row.contender].trains
        }
        for number, name in timing.turns(rows, options.process_repeats):
            tick(f"{network} {name}: process {number + 1} of {options.process_repeats}", 0)
            if not rows[name].failure:
                process(problem, examples, rows[name], measured)
            tick(f"{network} {name}", unit)


def process(problem: Problem, examples: int, row: Row, measured: Measured) -> None:
    """Times one process from its start until it has reached the accuracy."""
    task = {"problem": asdict(problem), "examples": examples}
    task |= {"accuracy": ACCURACY, "epochs": MOST_EPOCHS}
    module = "experiments.benchmarks.mlp_process"
    command = [sys.executable, "-m", module, row.contender, json.dumps(task)]
    environment = os.environ.copy()
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # everyone compiles everything
    root = Path(__file__).resolve().parents[2]
    began = time.time()  # the clock that both processes read
    child = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if child.returncode:
        last = (child.stderr.splitlines() or [f"exit status {child.returncode}"])[-1].strip()
        measured.warnings.append(f"{row.network}: {row.contender}'s process failed: {last}")
        return
    result = json.loads(child.stdout)
    if result["accuracy"] < ACCURACY:
        warning = f"{row.contender}'s process came to {result['accuracy']:.2%} in {MOST_EPOCHS}"
        measured.warnings.append(f"{row.network}: {warning} epochs, not to {ACCURACY:.0%}")
        return
    row.process.append(result["end"] - began)
    row.process_epochs = result["epochs"]
