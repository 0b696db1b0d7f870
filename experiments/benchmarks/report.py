"""Threads, machine, table and record of every benchmark."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.common.console import console

RESULTS = Path(__file__).with_name("RESULTS.md")

# Threads of the BLAS and OpenMP libraries under NumPy, scikit-learn and PyTorch.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(kw_only=True)
class Recorded:
    """Options of every benchmark."""

    threads: int = 0
    """threads of every library; 0: one for each core"""
    out: Path | None = RESULTS
    """the Markdown file whose section is replaced; None to write nothing"""


class Table(NamedTuple):
    """Cells as text; the first two columns are left-aligned."""

    columns: Sequence[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As GitHub renders it."""
        rule = [":--" if i < 2 else "--:" for i in range(len(self.columns))]
        lines = (self.columns, rule, *self.rows)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def show(self) -> None:
        """Prints a table for each value of the first column."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text  # "[...]" in a cell is no markup

        for title in dict.fromkeys(row[0] for row in self.rows):
            table = RichTable(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            for i, column in enumerate(self.columns[1:]):
                table.add_column(Text(column), justify="right" if i else "left", overflow="fold")
            for row in self.rows:
                if row[0] == title:
                    table.add_row(*map(Text, row[1:]))
            console.print(table)


def limit_threads(threads: int) -> int:
    """Limits the threads of this process and its children; 0: one for each core. Returns how many.

    Must come before JAX's first computation: XLA takes a thread for every core that the process
    may use, and has no other switch.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    available = len(cores) or os.cpu_count() or 1
    count = threads or available
    if not 1 <= count <= available:
        raise ValueError(f"--threads {threads}: there are {available} to choose from")
    if count < available:
        if not cores:
            raise ValueError(f"--threads {threads}: this system cannot bind a process to cores")
        os.sched_setaffinity(0, cores[:count])
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(count)))
    return count


def machine() -> str:
    """Processor, cores and operating system, in words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        model = match[1].strip() if match else model
    system = f"{platform.system()} {platform.release()}"
    return f"{model}, {os.cpu_count()} cores, {system}"


def versions(packages: Sequence[str]) -> str:
    """Python's version and those of the packages that are installed."""
    words = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            words.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            words.append(f"no {package}")
    return ", ".join(words)


def conditions(threads: int, packages: Sequence[str]) -> str:
    """Accelerator if any, machine, threads and versions, in words."""
    device = jax.devices()[0]
    accelerator = "" if device.platform == "cpu" else f"{device.device_kind}. "
    return f"{accelerator}{machine()}, {threads} threads. {versions(packages)}."


def other_work() -> list[str]:
    """A warning where other processes keep this machine busy.

    OpenMP and OpenBLAS wait by spinning: with a core short they become ten times slower, XLA
    hardly two, so ratios would flatter the JAX libraries.
    """
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy <= 0.5:
        return []
    return [f"other work on this machine: load average {busy:.1f} at start"]


def record(path: Path | None, heading: str, *parts: str) -> None:
    """Replaces or appends the section `## heading` of a Markdown file: the date, then the parts.

    The rest of the file stays as it is. Without a path, nothing is written.
    """
    if path is None:
        return
    old = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    before, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    text = "\n\n".join(part.strip() for part in parts)
    new = f"## {heading}\n\n{datetime.date.today().isoformat()}; {text}\n"
    is_old = [section.startswith(f"## {heading}\n") for section in sections]
    at = [*is_old, True].index(True)
    sections[at : at + 1] = [new]
    whole = [before.strip(), *(section.strip() for section in sections)]
    path.write_text("\n\n".join(part for part in whole if part) + "\n", encoding="utf-8")
    print(f"recorded in {path}")
