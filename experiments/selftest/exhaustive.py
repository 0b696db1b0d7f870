"""Value and derivative of a function at every number of a dtype, in units in the last place.

Every float32 (4,294,967,296 of them) takes a few minutes a function on two cores, every bfloat16
or float16 an instant. Truth is a float64 reference of its own, which is verified with mpmath at
50 digits. The same inputs go through the counterpart in jax.nn, a sample of them through PyTorch's.
Losses, of several inputs, get a grid and a search for their worst case. Ctrl-C stops a sweep and
the same command goes on with it. Exit status: 0 if all targets are met, 1 if not.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from experiments.selftest import accuracy_page
from experiments.selftest.loss_search import LOSSES, Found, search
from experiments.selftest.peers import BLOCKS
from experiments.selftest.sweep import Record, Sweep, started, sweep
from fnn.check import ulps
from fnn.check.rule import CheckError

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass
class Options:
    """Options of a sweep."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Functions and losses, such as tanh or power(3); power stands for every power. All if none
    is named."""
    dtype: tuple[Dtype, ...] = ("bfloat16", "float16", "float32")
    """Of the inputs. Losses are searched in float32 alone."""
    out: Path = Path("results/exhaustive")
    """Where the state of every sweep is kept, which also tells a finished one."""
    again: bool = False
    """Start again, also what is finished."""
    alone: bool = False
    """Sweep fnn alone: neither jax.nn nor a sample of PyTorch. It counts as another sweep."""
    page: Path | None = None
    """Write what is known of all functions, from this run and earlier ones, as Markdown here."""


def main(settings: Options) -> int:
    """Sweeps, prints the table and writes the page: 0 if all targets are met, 1 if not.

    Raises:
      CheckError: a name is unknown, or mpmath is not installed.
    """
    names = chosen(settings.names)
    jobs = [
        Sweep(name, dtype, peer=not settings.alone)
        for dtype in settings.dtype
        for name in names
        if name in BLOCKS
    ]
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    records: list[Record | Found] = [*_swept(jobs, settings, console)]
    if settings.page:  # all of them: nothing is kept of a search, which takes seconds
        names = [*names, *LOSSES]
    if settings.page or "float32" in settings.dtype:
        losses = dict.fromkeys(name for name in names if name in LOSSES)
        records += [search(name, not settings.alone) for name in losses]
    console.print(accuracy_page.table(records))
    misses = [miss for record in records for miss in record.misses()]
    for miss in misses:
        console.print(f"MISSED: {miss}", highlight=False)
    if settings.page:
        accuracy_page.write(settings.page, [*_known(settings.out, records)])
        console.print(f"written: {settings.page}")
    return 1 if misses else 0


def chosen(names: Sequence[str]) -> list[str]:
    """The functions and losses that the names stand for."""
    known = [*BLOCKS, *LOSSES]
    found: list[str] = []
    for name in names or known:
        family = [k for k in known if k.startswith(f"{name}(")]
        if name not in known and not family:
            close = difflib.get_close_matches(name, [*known, "power", "celu"], n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise CheckError(f"no function {name!r}{hint} There are: {', '.join(known)}")
        found += [name] if name in known else family
    return list(dict.fromkeys(found))


def _swept(jobs: Sequence[Sweep], settings: Options, console: Console) -> Iterable[Record]:
    """Every sweep's last record, with a bar for all of them."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
        TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=sum(job.total for job in jobs))
        before = 0
        for number, job in enumerate(jobs, 1):
            what = f"{job.name}, {job.dtype} ({number} of {len(jobs)})"
            progress.update(bar, description=what, completed=before)
            for record in sweep(job, _path(settings.out, job.name, job.dtype), settings.again):
                progress.update(bar, completed=before + record.done)
            before += job.total
            console.print(f"{what}: {record.seconds:.0f} s", highlight=False)
            yield record


def _path(out: Path, name: str, dtype: str) -> Path:
    return out / f"{name}-{dtype}.json"


def _known(out: Path, records: Sequence[Record | Found]) -> Iterable[Record | Found]:
    """The records of this run, and those of earlier runs of the same programs."""
    done = {(record.name, record.dtype): record for record in records}
    for dtype in ulps.LIMITS:
        for name in BLOCKS:
            record = done.pop((name, dtype), None)
            yield record or started(Sweep(name, dtype), _path(out, name, dtype))
    yield from done.values()
