"""The cost of accuracy: fnn's nonlinearities beside those of jax.nn.

    python -m experiments.benchmarks nonlinearities
    python -m experiments.benchmarks nonlinearities --only gelu --repeats 30

Their accuracy is in ACCURACY.md, written by ``python -m experiments.selftest exhaustive``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from rich.progress import track

from experiments.benchmarks.report import Recorded, Table, conditions, limit_threads, record
from experiments.benchmarks.timing import alternating, compiled, ratio
from experiments.selftest.peers import BLOCKS, JAX, of_block, of_jax

CALLS = 40  # in one measurement: a single call is too short
COLUMNS = ("", "function", "value, us", "of jax.nn's", "with derivative, us", "of jax.vjp's")
ABOUT = """\
Value: fnn's forward beside the function of jax.nn or jax.numpy; with derivative: forward and
backward beside ``jax.vjp``. Below 1, fnn is faster. Normal random numbers times 3; the median of
the rounds, in which the four take turns in random order, {calls} calls each."""


@dataclass(kw_only=True)
class Options(Recorded):
    """Measures nonlinearities and gates of one input beside those of jax.nn."""

    repeats: int = 15
    """rounds; in each, every contender is timed once"""
    size: int = 2**17
    """numbers in the array"""
    only: str = ""
    """only functions whose name contains this"""
    dtype: str = "float32"
    """float32, bfloat16 or float16"""
    threads: int = 1
    """XLA's threads; 0: one for each core"""


def main(options: Options) -> None:
    """Measures, prints the table and records it."""
    threads = limit_threads(options.threads)
    names = [name for name in JAX if options.only in name]
    rows = [_row(name, BLOCKS[name], JAX[name], options) for name in track(names, transient=True)]
    table = Table(COLUMNS, rows)
    table.show()
    head = f"{conditions(threads, ('jax', 'numpy'))} {options.size:,} {options.dtype}."
    name = f"nonlinearities, {jax.default_backend().upper()}, {options.dtype}"
    about = ABOUT.format(calls=CALLS)
    record(None if options.only else options.out, name, head, table.markdown(), about)


def _row(name: str, block: Any, function: Callable[..., Any], options: Options) -> list[str]:
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

    programs = {what: calls(compiled(f, x).program) for what, f in contenders.items()}
    seconds = alternating(programs, options.repeats)
    cells = ["nonlinearities", name]
    for what in ("value", "both"):
        own = seconds[what]
        cells.append(f"{1e6 * median(own.values()) / CALLS:.0f}")
        cells.append(f"{ratio(own, seconds[f'jax {what}']):.2f}")
    return cells
