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
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import numpy as np

from experiments.benchmarks.mlp_process import mnist, order_of
from experiments.benchmarks.peers import CONTENDERS, Array, Problem, Trainer, he_normal
from experiments.benchmarks.report import RESULTS, Table, limit_threads, machine, record, versions

NETWORKS = {"784-128-64-10": 128, "784-1024-1024-10": 256}  # sizes: batch
PACKAGES = ("jax", "equinox", "flax", "optax", "torch", "scikit-learn", "numpy")
ACCURACY = 0.97
PAUSE = 0.5  # seconds before a measurement, in which threads of the one before fall asleep
MOST_EPOCHS = 20  # that a process may take to reach it
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
  from the same weights in the same order; which follows which changes, after a pause.
- ratio: the median of each repeat's time over fnn's in the same repeat; above 1 is slower.
- first epoch: the first one in this process, with tracing and compilation, without imports.
- to 97 %: from the start of a new process to a test accuracy of 97 % known: import, data,
  compilation, epochs, a test after each; the median. No compilation comes from a cache on disk.
- GFLOP/s counts the matrix products alone: per example and weight 2 forward, 2 for its gradient
  and 2 for its input's gradient, which the first layer does not need. Of matmul: as a fraction of
  the rate of a square float32 `jnp` product, measured in the same rotation.
- The JAX libraries all run an epoch in the same `lax.scan`, PyTorch slices a resident tensor that
  was permuted once per epoch, torch.compile compiles network and loss.
- temp.: the temporary memory that XLA reports for the compiled epoch."""


@dataclass
class Options:
    """Measures training of two MLPs on MNIST beside peers, in one table."""

    repeats: int = 9
    """Rounds; in each, every contender is timed once, in rotating order."""
    epochs_per_repeat: int = 1
    """Epochs that are timed together, from the initial weights."""
    networks: tuple[Literal["784-128-64-10", "784-1024-1024-10"], ...] = (
        "784-128-64-10",
        "784-1024-1024-10",
    )
    """Which networks, by their sizes."""
    contenders: tuple[
        Literal["fnn", "jax", "equinox", "flax", "torch", "torch.compile", "scikit-learn"], ...
    ] = ("fnn", "jax", "equinox", "flax", "torch", "torch.compile", "scikit-learn")
    """Which contenders."""
    examples: int = 60_000
    """The first so many of MNIST's training examples."""
    threads: int = 0
    """Threads of every library; 0 for as many as there are cores."""
    process: bool = True
    """Also time whole processes."""
    process_repeats: int = 3
    """Rounds of whole processes."""
    out: Path | None = RESULTS
    """The Markdown file whose section is replaced; None to write nothing."""


@dataclass
class Row:
    """What is known of one contender on one network; seconds are by round."""

    network: str
    contender: str
    seconds: dict[int, float] = field(default_factory=dict)
    first: float | None = None
    temporary: int | None = None
    process: list[float] = field(default_factory=list)
    epochs: int = 0  # that its processes took
    failure: str = ""

    def cells(self, rival: Row | None, flops: int, matmul: float | None) -> list[str]:
        """The table's row. rival: fnn's row; flops: of an epoch; matmul: GFLOP/s."""
        network = f"{self.network}, batch {NETWORKS[self.network]}"
        speed = ratio = rate = fraction = "-"
        if self.seconds:
            times = list(self.seconds.values())
            middle = median(times)
            low, _, high = quantiles(times, method="inclusive") if len(times) > 1 else times * 3
            speed, rate = f"{middle:.3f} ({low:.3f}-{high:.3f})", f"{flops / middle / 1e9:.0f}"
            fraction = f"{flops / middle / 1e9 / matmul:.0%}" if matmul else "-"
            pairs = self.seconds.keys() & rival.seconds.keys() if rival else ()
            if rival and pairs:
                ratio = f"{median(self.seconds[r] / rival.seconds[r] for r in pairs):.2f}"
        process = f"{median(self.process):.2f} ({self.epochs})" if self.process else "-"
        return [
            network,
            CONTENDERS[self.contender].label,
            self.failure or speed,
            ratio,
            "-" if self.first is None else f"{self.first:.2f}",
            process,
            rate,
            fraction,
            "-" if self.temporary is None else f"{self.temporary / 1e6:.2f}",
        ]


@dataclass
class Measured:
    """All that a run has found so far, so that an interrupted run can still show it."""

    rows: list[Row] = field(default_factory=list)
    matmul: dict[str, list[float]] = field(default_factory=dict)  # GFLOP/s, by network
    matmul_size: int = 0
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
    threads = limit_threads(options.threads)
    import jax

    warm_up()
    x, target, test_x, test_target = mnist(options.examples)
    device = jax.default_backend()
    networks: tuple[str, ...] = options.networks
    problems = {name: problem_of(name, threads, device) for name in networks}
    measured = Measured([Row(n, c) for n in networks for c in options.contenders])
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5:
        # OpenMP and OpenBLAS wait by spinning: with a core short they become ten times slower,
        # XLA hardly two, so the ratios would flatter the JAX libraries.
        measured.warnings.append(f"other work on this machine: load average {busy:.1f} at start")
        print(f"WARNING: {measured.warnings[-1]}")
    where = f"{machine()}, {threads} threads"
    if device != "cpu":
        where += f", {jax.devices()[0].device_kind}; scikit-learn on the CPU"
    print(f"{where}\n{versions(PACKAGES)}")

    interrupted = False
    per_epoch = {name: problem.flops(len(x)) / 1e9 for name, problem in problems.items()}
    with ticking(options, per_epoch) as tick:
        try:
            for name, problem in problems.items():
                rows = [row for row in measured.rows if row.network == name]
                data = (x, target, test_x, test_target)
                measure_epochs(problem, data, rows, measured, options, tick)
            if options.process:
                measure_processes(problems, len(x), measured, options, tick)
        except KeyboardInterrupt:
            interrupted = True

    table = measured.table(len(x))
    table.show()
    rates = [rate for each in measured.matmul.values() for rate in each]
    repeats = max(len(row.seconds) for row in measured.rows)
    processes = max(len(row.process) for row in measured.rows)
    lines = [
        f"{where}. {versions(PACKAGES)}.",
        "",
        table.markdown(),
        f"{len(x):,} examples; timed for each: {repeats} x {options.epochs_per_repeat} epochs "
        f"and {processes} processes; "
        f"float32, SGD with learning rate {Problem.learning_rate} and momentum "
        f"{Problem.momentum}, the last smaller batch included.",
    ]
    if rates:
        size = measured.matmul_size
        lines[-1] += f" Square product: {size} x {size}, {median(rates):.0f} GFLOP/s."
    print(lines[-1])
    if measured.warnings:
        lines += ["", *(f"- WARNING: {warning}" for warning in measured.warnings)]
        print("\n".join(f"WARNING: {warning}" for warning in measured.warnings))
    if interrupted:
        print("interrupted: this is what was measured so far; nothing is recorded")
    elif options.out is not None:
        record(options.out, f"mlp, {device.upper()}", "\n".join(lines), ABOUT)


def warm_up() -> None:
    """Trains a tiny network with plain JAX.

    What JAX does once in a process (starting XLA, tracing its own helpers) would else be
    charged to whichever contender comes first.
    """
    trainer = CONTENDERS["jax"].make(Problem((3, 2, 2), 2))
    trainer.start(he_normal((3, 2, 2)))
    x, target = np.ones((5, 3), np.float32), np.zeros(5, np.int32)
    trainer.load(x, target, x, target)
    trainer.epoch(np.arange(5, dtype=np.int32))
    trainer.accuracy()


@contextmanager
def ticking(options: Options, per_epoch: dict[str, float]) -> Iterator[Any]:
    """A progress bar with the time to finish; yields tick(what, units done).

    Units are GFLOP, so that a wide network's epoch counts for more than a small one's.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    epochs = 1 + options.repeats * options.epochs_per_repeat
    if options.process:
        epochs += PROCESS_EPOCHS * options.process_repeats
    total = epochs * len(options.contenders) * sum(per_epoch.values())
    text, elapsed = TextColumn("{task.description}"), TimeElapsedColumn()
    columns = (text, BarColumn(), elapsed, TextColumn("to finish"), Remaining())
    with Progress(*columns, speed_estimate_period=600, transient=True) as progress:
        task = progress.add_task("starting", total=total)

        def tick(what: str, units: float) -> None:
            progress.update(task, description=what, advance=units)

        yield tick


PROCESS_EPOCHS = 4  # what a whole process is reckoned at in the time to finish


# ---------------------------------------------------------------- epochs in this process


def measure_epochs(
    problem: Problem,
    data: tuple[Array, Array, Array, Array],
    rows: Sequence[Row],
    measured: Measured,
    options: Options,
    tick: Any,
) -> None:
    """Fills in one network's rows: a first epoch each, then the alternating repeats."""
    weights = he_normal(problem.sizes)
    orders = [order_of(epoch, len(data[0])) for epoch in range(options.epochs_per_repeat)]
    unit = problem.flops(len(data[0])) / 1e9
    rates = measured.matmul.setdefault(rows[0].network, [])
    measured.matmul_size, matmul = square_matmul(problem.device)
    rates.append(matmul())

    trainers: dict[str, Trainer] = {}
    first: dict[str, tuple[Array, float]] = {}
    for row in rows:
        tick(f"{row.network} {row.contender}: first epoch", 0)
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
        tick(f"{row.network} {row.contender}", unit)
    measured.warnings += disagreements(rows[0].network, first, problem.batch, len(data[0]))

    running = [row for row in rows if row.contender in trainers]
    for repeat in range(options.repeats):
        rates.append(matmul())
        # In a new order every time: in rotation each would always follow the same one, and OpenMP
        # and OpenBLAS leave threads spinning for a while; so there is a pause as well.
        for i in np.random.default_rng(repeat).permutation(len(running)):
            row = running[i]
            time.sleep(PAUSE)
            tick(f"{row.network} {row.contender}: repeat {repeat + 1} of {options.repeats}", 0)
            trainer = trainers[row.contender]
            trainer.start(weights)
            began = time.perf_counter()
            for order in orders:
                trainer.epoch(order)
            row.seconds[repeat] = (time.perf_counter() - began) / len(orders)
            tick(f"{row.network} {row.contender}", unit * len(orders))


def reason(error: Exception) -> str:
    """Why a row is empty, in one line."""
    if isinstance(error, ModuleNotFoundError):
        return "not installed: pip install 'fnn[bench]'"
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
        count = 1 if 1 in (len(losses), len(reference)) else min(10, len(sizes))
        expected = parts(reference, count)
        off = float(np.max(np.abs(parts(losses, count) / expected - 1)))
        if not off <= 0.01:  # so that NaN warns, too
            warnings.append(f"{network}: {name}'s loss differs from fnn's by {off:.1%}")
        if not abs(its_accuracy - accuracy) <= 0.01:
            warnings.append(
                f"{network}: {name}'s test accuracy after an epoch is {its_accuracy:.2%}, "
                f"fnn's {accuracy:.2%}"
            )
    return warnings


def square_matmul(device: str) -> tuple[int, Any]:
    """The size of a square product large enough for the machine's best, and its stopwatch.

    The stopwatch returns the rate in GFLOP/s: the median of five products.
    """
    import jax
    import jax.numpy as jnp

    size = 2048 if device == "cpu" else 8192
    a = jax.device_put(np.random.default_rng(0).standard_normal((size, size)).astype(np.float32))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()

    def rate() -> float:
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            multiply(a, a).block_until_ready()
            seconds.append(time.perf_counter() - began)
        return 2 * size**3 / median(seconds) / 1e9

    return size, rate


# ---------------------------------------------------------------- whole processes


def measure_processes(
    problems: dict[str, Problem], examples: int, measured: Measured, options: Options, tick: Any
) -> None:
    """Fills in how long whole processes take to the accuracy, alternating between contenders."""
    for network, problem in problems.items():
        unit = PROCESS_EPOCHS * problem.flops(examples) / 1e9
        rows = [row for row in measured.rows if row.network == network]
        for repeat in range(options.process_repeats):
            shift = repeat % len(rows)
            for row in rows[shift:] + rows[:shift]:
                round_ = f"process {repeat + 1} of {options.process_repeats}"
                tick(f"{network} {row.contender}: {round_}", 0)
                if not row.failure:
                    process(problem, examples, row, measured)
                tick(f"{network} {row.contender}", unit)


def process(problem: Problem, examples: int, row: Row, measured: Measured) -> None:
    """Times one process from its start to the line that says that the accuracy is reached."""
    task = {
        "problem": asdict(problem),
        "examples": examples,
        "accuracy": ACCURACY,
        "epochs": MOST_EPOCHS,
    }
    module = "experiments.benchmarks.mlp_process"
    command = [sys.executable, "-m", module, row.contender, json.dumps(task)]
    environment = os.environ.copy()
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # everyone compiles everything
    root = Path(__file__).resolve().parents[2]
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        errors: list[str] = []
        # Read beside stdout, or a talkative child would fill the pipe and wait for ever.
        reader = threading.Thread(target=errors.extend, args=(child.stderr,))
        reader.start()
        try:
            line = child.stdout.readline()
            seconds = time.perf_counter() - began
            child.wait()
        finally:
            child.kill()
            reader.join()
    if child.returncode or not line:
        last = errors[-1].strip() if errors else f"exit status {child.returncode}"
        measured.warnings.append(f"{row.network}: {row.contender}'s process failed: {last}")
        return
    result = json.loads(line)
    if result["accuracy"] < ACCURACY:
        warning = f"{row.contender}'s process came to {result['accuracy']:.2%} in {MOST_EPOCHS}"
        measured.warnings.append(f"{row.network}: {warning} epochs, not to {ACCURACY:.0%}")
        return
    row.process.append(seconds)
    row.epochs = result["epochs"]
