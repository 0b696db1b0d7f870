"""What accuracy costs: fnn's nonlinearities beside those of jax.nn.

    python -m experiments.benchmarks nonlinearities
    python -m experiments.benchmarks nonlinearities --only gelu --repeats 30

Their accuracy is in ACCURACY.md, written by ``python -m experiments.selftest exhaustive``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks.conv import alternating, compiled, ratio
from experiments.benchmarks.report import RESULTS, Table, limit_threads, machine, record, versions

CALLS = 40  # in one measurement, for a single one is short
COLUMNS = ("", "function", "value, us", "of jax.nn's", "with derivative, us", "of jax.vjp's")
ABOUT = """\
Value: fnn's forward beside the function of jax.nn or jax.numpy; with derivative: forward and
backward beside ``jax.vjp``. Below 1, fnn is faster. Normal random numbers times 3; the median of
the rounds, in which the four take turns in random order, {calls} calls each."""


@dataclass
class Options:
    """Measures nonlinearities and gates of one input beside those of jax.nn."""

    repeats: int = 15
    """Rounds; in each, every contender is timed once."""
    size: int = 2**17
    """Numbers in the array."""
    only: str = ""
    """Functions whose name contains this."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    threads: int = 1
    """Of XLA; 0 for as many as there are cores."""
    out: Path | None = RESULTS
    """The Markdown file whose section is replaced; None to write nothing."""


def main(options: Options) -> None:
    """Measures, prints the table and records it."""
    threads = limit_threads(options.threads)
    import jax
    from rich.progress import track

    from experiments.selftest.peers import BLOCKS, JAX

    names = [name for name in JAX if options.only in name]
    rows = [_row(name, BLOCKS[name], JAX[name], options) for name in track(names, transient=True)]
    table = Table(COLUMNS, rows)
    table.show()
    if options.out is not None and not options.only:
        device = jax.devices()[0].platform.upper()
        head = f"{machine()}, {threads} threads. {versions(('jax', 'numpy'))}. "
        head += f"{options.size:,} {options.dtype}."
        about = ABOUT.format(calls=CALLS)
        name = f"nonlinearities, {device}, {options.dtype}"
        record(options.out, name, head, table.markdown(), about)


def _row(name: str, block: Any, function: Callable[..., Any], options: Options) -> list[str]:
    import jax
    import jax.numpy as jnp

    from experiments.selftest.peers import of_block, of_jax

    x = 3 * jax.random.normal(jax.random.key(0), (options.size,), jnp.dtype(options.dtype))
    contenders = {
        "value": lambda x: block.forward({}, x)[0],
        "jax value": function,
        "both": of_block(block),
        "jax both": of_jax(function),
    }

    def calls(program: Callable[..., Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                jax.block_until_ready(program(x))

        return run

    programs = {what: calls(compiled(f, x)[0]) for what, f in contenders.items()}
    seconds = alternating(programs, options.repeats)
    cells = ["nonlinearities", name]
    for what in ("value", "both"):
        own = seconds[what]
        cells += [
            f"{1e6 * median(own.values()) / CALLS:.0f}",
            f"{ratio(own, seconds[f'jax {what}']):.2f}",
        ]  # fmt: skip
    return cells
