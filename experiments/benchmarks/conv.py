"""Convolutional networks: fnn's rules beside what autodiff makes of the plain lax formulas.

    python -m experiments.benchmarks conv
    python -m experiments.benchmarks conv --only max_pool --repeats 20
    python -m experiments.benchmarks conv --no-blocks

Two tables, each measured in one run in alternation: every block of GoogLeNet and of the CNN at the
shapes that it has there, by itself; then training steps and inference, beside Flax and PyTorch.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from experiments.benchmarks.report import RESULTS, Table, limit_threads, machine, record, versions

PACKAGES = ("jax", "flax", "optax", "torch", "numpy")
SLOW = 2.0  # seconds: what takes longer is run once
PAUSE = 0.3  # seconds before a measurement, in which threads of the one before fall asleep
BLOCKS = (
    "network", "block", "x", "fnn, ms", "jax.vjp / fnn", "in scan: fnn, ms",
    "in scan: jax.vjp / fnn",
    "backward alone: jax.vjp / fnn", "temporary, fnn / jax.vjp", "kept, fnn / jax.vjp",
)  # fmt: skip
STEPS = ("what", "contender", "ms (quartiles)", "ratio to fnn", "compilation, s", "temporary, MB")
ABOUT = """\
- Blocks: forward and backward together, from a random cotangent to those of parameters and input;
  jax.vjp of the plain lax formula with the same parameters. Above 1, fnn is faster. "In scan": the
  same inside `lax.scan`. Backward alone: from what forward kept. Temporary: what XLA reports for
  the compiled program; kept: the bytes from forward to backward, parameters left out, x counted
  once.
- Steps: forward, backward and the update of plain SGD; ratios are medians of those within a round.
- The median of the rounds; in each, all contenders run once, in random order after a pause."""


@dataclass
class Options:
    """Measures convolutional blocks and training steps beside autodiff, Flax and PyTorch."""

    repeats: int = 9
    """Rounds; in each, every contender is timed once."""
    blocks: bool = True
    """Measure single blocks."""
    steps: bool = True
    """Measure whole steps."""
    only: str = ""
    """Rows of the blocks whose name contains this."""
    batch: int = 8
    """Of GoogLeNet."""
    pixels: int = 224
    """Height and width of GoogLeNet's pictures."""
    threads: int = 0
    """Threads of every library; 0 for as many as there are cores."""
    dtype: str = "float32"
    """float32, or bfloat16 for inputs and computation."""
    out: Path | None = RESULTS
    """The Markdown file whose section is replaced; None to write nothing."""


class Measured(NamedTuple):
    """Seconds by round, those of compilation, and temporary bytes."""

    seconds: dict[int, float]
    compilation: float
    temporary: int | None


def main(options: Options) -> None:
    """Measures, prints the tables, and records them. Ctrl-C prints what there is."""
    threads = limit_threads(options.threads)
    import jax

    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    device = jax.devices()[0]
    where = f"{machine()}, {threads} threads. {versions(PACKAGES)}"
    if device.platform != "cpu":
        where = f"{device.device_kind}. {where}"
    warning = f"WARNING: other work on this machine: load average {busy:.1f} at start"
    print("\n".join([where, *([warning] if busy > 0.5 else [])]))
    tables: list[Table] = []
    rows: list[list[str]] = []
    interrupted = False
    try:
        if options.blocks:
            tables.append(Table(BLOCKS, rows))
            blocks(options, rows)
        if options.steps:
            rows = []
            tables.append(Table(STEPS, rows))
            steps(options, threads, rows)
    except KeyboardInterrupt:
        interrupted = True
    for table in tables:
        table.show()
    if options.out is None or interrupted:
        return
    parts = [f"{where}. {options.dtype}.", *([warning] if busy > 0.5 else [])]
    parts += [*(table.markdown() for table in tables), ABOUT]
    name = {"cpu": "CPU", "gpu": "GPU"}.get(device.platform, device.platform)
    record(options.out, f"conv, {name}, {options.dtype}", *parts)


# ---- measuring -------------------------------------------------------------------------------


def compiled(f: Callable[..., Any], *arguments: Any) -> tuple[Any, float, int]:
    """The program, seconds of compilation, and temporary bytes."""
    import jax

    began = time.perf_counter()
    program = jax.jit(f).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    return program, seconds, int(getattr(program.memory_analysis(), "temp_size_in_bytes", 0))


def alternating(
    programs: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[int, float]]:
    """Seconds of each by round. Programs wait for their result themselves."""
    seconds: dict[str, dict[int, float]] = {name: {} for name in programs}
    slow = set()
    for name, program in programs.items():  # first touches of memory are not counted
        began = time.perf_counter()
        program()
        if time.perf_counter() - began > SLOW:
            slow.add(name)
    order = random.Random(0)
    for number in range(repeats):
        for name in order.sample(sorted(programs), len(programs)):
            if number and name in slow:
                continue
            time.sleep(PAUSE if len(programs) > 4 else 0.0)
            began = time.perf_counter()
            programs[name]()
            seconds[name][number] = time.perf_counter() - began
    return seconds


def ratio(of: dict[int, float], to: dict[int, float]) -> float:
    """The median of the quotients within a round, or of the medians where rounds differ."""
    both = of.keys() & to.keys()
    if len(both) > 1:
        return median(of[number] / to[number] for number in both)
    return median(of.values()) / median(to.values())


# ---- blocks ----------------------------------------------------------------------------------


def blocks(options: Options, rows: list[list[str]]) -> None:
    """A row for each block, as it is measured."""
    from rich.progress import track

    from experiments.benchmarks.conv_cases import cases

    chosen = [case for case in cases(options.batch, options.pixels) if options.only in case.name]
    for case in track(chosen, "blocks", transient=True):
        rows.append(block_row(case, options))


def block_row(case: Any, options: Options) -> list[str]:
    """One block, by hand and by ``jax.vjp`` of its plain formula."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    dtype = jnp.dtype(options.dtype)
    x = jax.random.normal(jax.random.key(0), case.shape, dtype)
    params = case.block.init(jax.random.key(1), x)
    shape = jax.eval_shape(case.block.forward, params, x)[0]
    dy = jax.random.normal(jax.random.key(2), shape.shape, dtype)

    def by_hand(params: Any, x: Any, dy: Any) -> Any:
        y, residuals = case.block.forward(params, x)
        return y, case.block.backward(params, residuals, dy)

    def by_autodiff(params: Any, x: Any, dy: Any) -> Any:
        y, pull_back = jax.vjp(case.plain, params, x)
        return y, pull_back(dy)

    def looped(f: Callable[..., Any]) -> Callable[..., Any]:
        def body(carry: Any, _: Any) -> Any:  # each step needs the one before: none is hoisted
            params, x, dy = carry
            _, (dparams, dx) = f(params, x, dy)
            return (
                jax.tree.map(lambda p, d: p - 1e-6 * d, params, dparams),
                x + 1e-6 * dx,
                dy,
            ), None

        return lambda params, x, dy: lax.scan(body, (params, x, dy), length=2)[0]

    programs, temporary = {}, []
    for name, f in {"by hand": by_hand, "autodiff": by_autodiff}.items():
        program, _, memory = compiled(f, params, x, dy)
        temporary.append(memory)
        programs[name] = ready(program, params, x, dy)
        program, _, _ = compiled(looped(f), params, x, dy)
        programs[f"{name} in scan"] = ready(program, params, x, dy)
    alone = "-"
    if case.name.startswith("max_pool"):  # of others, the two backwards are the same products
        residuals = jax.jit(lambda p, x: case.block.forward(p, x)[1])(params, x)
        own, _, _ = compiled(case.block.backward, params, residuals, dy)
        programs["backward"] = ready(own, params, residuals, dy)
        # What only forward needs is not computed: its y is not asked for.
        other, _, _ = compiled(lambda p, x, dy: by_autodiff(p, x, dy)[1], params, x, dy)
        programs["autodiff backward"] = ready(other, params, x, dy)
    seconds = alternating(programs, options.repeats)
    plain, loop = seconds["by hand"], seconds["by hand in scan"]
    if "backward" in seconds:
        alone = f"{ratio(seconds['autodiff backward'], seconds['backward']):.1f}"
    return [
        case.network, case.name, "x".join(map(str, case.shape)),
        f"{1e3 * median(plain.values()):.2f}", f"{ratio(seconds['autodiff'], plain):.2f}",
        f"{500 * median(loop.values()):.2f}", f"{ratio(seconds['autodiff in scan'], loop):.1f}",
        alone, quotient(*temporary), quotient(*kept(case, params, x)),
    ]  # fmt: skip


def kept(case: Any, params: Any, x: Any) -> tuple[int, int]:
    """Residual bytes by hand and by ``jax.vjp``: arrays that are neither parameters nor x, and x
    if it is among them."""
    import jax

    sizes: list[int] = []

    def count(values: Any, params: Any) -> None:
        known = {id(leaf) for leaf in jax.tree.leaves(params)}
        arrays = {id(v): v for v in jax.tree.leaves(values) if id(v) not in known}
        sizes.append(sum(v.size * v.dtype.itemsize for v in arrays.values()))

    def trace(params: Any, x: Any) -> None:
        count(case.block.forward(params, x)[1], params)
        count(jax.vjp(case.plain, params, x)[1], params)

    jax.eval_shape(trace, params, x)
    return sizes[0], sizes[1]


def quotient(a: int, b: int) -> str:
    return f"{a / b:.2f}" if b else ("1.00" if not a else f"{a} B / 0")


def ready(program: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The program as a function that returns once its result is there."""
    import jax

    return lambda: jax.block_until_ready(program(*arguments))


# ---- steps -----------------------------------------------------------------------------------


def steps(options: Options, threads: int, rows: list[list[str]]) -> None:
    """Whole steps of the CNN and of GoogLeNet, and GoogLeNet's inference."""
    from experiments.benchmarks import conv_peers

    for what, contenders in conv_peers.comparisons(options, threads).items():
        print(f"{what} ...", flush=True)
        measured: dict[str, Measured] = {}
        programs: dict[str, Callable[[], Any]] = {}
        for name, make in contenders.items():
            program, compilation, temporary = make()
            programs[name] = program
            measured[name] = Measured({}, compilation, temporary)
        for name, seconds in alternating(programs, options.repeats).items():
            measured[name] = measured[name]._replace(seconds=seconds)
        rows += [step_row(what, name, found, measured["fnn"]) for name, found in measured.items()]


def step_row(what: str, name: str, found: Measured, own: Measured) -> list[str]:
    """One contender of one comparison."""
    times = sorted(found.seconds.values())
    low, high = times[len(times) // 4], times[-1 - len(times) // 4]
    return [
        what, name, f"{1e3 * median(times):.1f} ({1e3 * low:.1f}-{1e3 * high:.1f})",
        f"{ratio(found.seconds, own.seconds):.2f}",
        f"{found.compilation:.1f}" if found.compilation else "-",
        "-" if found.temporary is None else f"{found.temporary / 1e6:.0f}",
    ]  # fmt: skip
