"""Value and derivative of a function at every number of a dtype, in units in the last place.

All of float32 (4,294,967,296 numbers) takes a few minutes a function on two cores, all of bfloat16
or float16 an instant. The truth is a separate float64 reference, verified with mpmath at 50
digits. The counterpart in jax.nn gets the same inputs, PyTorch's a sample of them. Losses, which
have several inputs, get a grid and a search for their worst case. After Ctrl-C the same command
continues. Exit status: 0 if all targets are met, 1 if not.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from experiments.selftest import accuracy_page
from experiments.selftest.loss_search import LOSSES, Search, search
from experiments.selftest.peers import BLOCKS
from experiments.selftest.sweep import Record, Sweep, started, sweep
from fnn.check import ulps
from fnn.check.report import CheckError

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass
class Options:
    """Options of a sweep."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Functions and losses, such as tanh or power(3); power stands for every power. By default
    all."""
    dtype: tuple[Dtype, ...] = ("bfloat16", "float16", "float32")
    """Dtypes of the inputs. Losses are searched in float32 only."""
    out: Path = Path("results/exhaustive")
    """Folder for the state of every sweep, from which it continues."""
    again: bool = False
    """Start again, even where a sweep is finished."""
    alone: bool = False
    """Sweep fnn only, without jax.nn and PyTorch. This counts as another sweep."""
    page: Path | None = None
    """Write the results of all functions, of this run and earlier ones, to this Markdown file."""


def main(options: Options) -> int:
    """Sweeps, prints the table and writes the page: 0 if all targets are met, 1 if not.

    Raises:
      CheckError: a name is unknown, or mpmath is not installed.
    """
    names = chosen(options.names)
    jobs = [
        Sweep(name, dtype, peer=not options.alone)
        for dtype in options.dtype
        for name in names
        if name in BLOCKS
    ]
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    records: list[Record | Search] = [*_swept(jobs, options, console)]
    if options.page:  # all losses: a search takes seconds, so none is saved
        names = [*names, *LOSSES]
    if options.page or "float32" in options.dtype:
        losses = dict.fromkeys(name for name in names if name in LOSSES)
        records += [search(name, not options.alone) for name in losses]
    console.print(accuracy_page.table(records))
    misses = [miss for record in records for miss in record.misses()]
    for miss in misses:
        console.print(f"MISSED: {miss}", highlight=False)
    if options.page:
        accuracy_page.write(options.page, _with_earlier(options.out, records))
        console.print(f"written: {options.page}")
    return 1 if misses else 0


def chosen(names: Sequence[str]) -> list[str]:
    """The functions and losses that the names stand for.

    Raises:
      CheckError: a name is unknown.
    """
    every = [*BLOCKS, *LOSSES]
    functions: list[str] = []
    for name in names or every:
        family = [k for k in every if k.startswith(f"{name}(")]
        if name not in every and not family:
            close = difflib.get_close_matches(name, [*every, "power", "celu"], n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise CheckError(f"no function {name!r}{hint} There are: {', '.join(every)}")
        functions += [name] if name in every else family
    return list(dict.fromkeys(functions))


def _swept(jobs: Sequence[Sweep], options: Options, console: Console) -> Iterator[Record]:
    """Every sweep's last record, with a progress bar for all of them."""
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=sum(job.total for job in jobs))
        before = 0
        for number, job in enumerate(jobs, 1):
            what = f"{job.name}, {job.dtype} ({number} of {len(jobs)})"
            progress.update(bar, description=what, completed=before)
            for record in sweep(job, _path(options.out, job.name, job.dtype), options.again):
                progress.update(bar, completed=before + record.done)
            before += job.total
            console.print(f"{what}: {record.seconds:.0f} s", highlight=False)
            yield record


def _path(out: Path, name: str, dtype: str) -> Path:
    return out / f"{name}-{dtype}.json"


def _with_earlier(out: Path, records: Sequence[Record | Search]) -> list[Record | Search]:
    """The records of this run, and those of earlier runs of the same programs."""
    swept = {(record.name, record.dtype) for record in records}
    earlier = [
        started(Sweep(name, dtype), _path(out, name, dtype))
        for dtype in ulps.LIMITS
        for name in BLOCKS
        if (name, dtype) not in swept
    ]
    order = [*BLOCKS, *LOSSES]
    return sorted([*records, *earlier], key=lambda record: order.index(record.name))
