"""Checks the checker: breaks every block's backward on purpose; the check has to catch it.

Prints what caught each mutant, and whether a right block was flagged. Exit status: 0 if every
mutant was caught and no right block flagged, else 1.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import tyro
from rich.progress import Progress

from fnn.check.checks import subject_for
from fnn.check.mutations import CONTROL, Verdict, control, judge, make_mutants
from fnn.check.report import CheckError
from fnn.check.subject import Subject


@dataclass
class Options:
    """Breaks every block's backward on purpose, and prints what catches each mutant."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Rows of the table whose id starts with one of these; all if none are named."""
    table: str = "tests.zoo"
    """The module with the blocks and their inputs; fnn's own table is in a clone of fnn."""
    every_row: bool = False
    """All rows of each block, not only its first."""
    seed: int = 0
    """Random seed for inputs and checks."""
    seeds: int = 0
    """Check the right blocks under this many seeds, and no mutants."""


class Row(NamedTuple):
    """A right block of the table ``table``, with its row there."""

    table: Any
    case: Any

    @property
    def id(self) -> str:
        """The row's name."""
        return str(self.case.id)

    def subject(self, seed: int = 0) -> Subject:
        """The block at the row's inputs."""
        with jax.enable_x64(True):
            params, x, key, _ = self.table.sample(self.case, seed=seed)
        return subject_for(self.case.make(), x, params, key, seed, self.id)


def rows(options: Options) -> list[Row]:
    """The rows of the table that are asked for.

    Raises:
      CheckError: there is no such table or row.
    """
    try:
        table = importlib.import_module(options.table)
    except ImportError as error:
        raise CheckError(
            f"cannot import the table of blocks {options.table!r} ({error}); fnn's own is in a "
            "clone of fnn: run this there"
        ) from error

    def asked(case: Any) -> bool:
        if options.names:
            return bool(case.id.startswith(options.names))
        # Graphs differ in what they test.
        return options.every_row or not case.further or case.name == "graph"

    chosen = [Row(table, case) for case in table.CASES if asked(case) and not case.surrogate]
    if not chosen:
        raise CheckError(f"no row of {options.table} starts with {', '.join(options.names)}")
    return chosen


def main(options: Options) -> int:
    """Prints the table; 0 if every mutant was caught and no right block flagged, else 1."""
    chosen = rows(options)
    verdicts: list[tuple[str, Verdict]] = []
    began = time.monotonic()
    with Progress(transient=True) as progress:
        for row in progress.track(chosen, description="mutants"):
            for verdict in _judged(row, options):
                verdicts.append((row.id, verdict))
                if options.seeds and not verdict.caught_by:
                    continue
                caught = verdict.caught_by or ("-" if verdict.mutant == CONTROL else "ESCAPED")
                words = f"{row.id:28} {verdict.mutant:32} {caught:14} {verdict.diagnosis[:110]}"
                progress.console.out(words, highlight=False)
    controls = [(row, v) for row, v in verdicts if v.mutant == CONTROL]
    mutants = [(row, v) for row, v in verdicts if v.mutant != CONTROL]
    escaped = [(row, v) for row, v in mutants if not v.caught_by]
    flagged = [(row, v) for row, v in controls if v.caught_by]
    print(f"\n{len(chosen)} blocks, {time.monotonic() - began:.0f} s")
    if mutants:
        print(f"{len(mutants) - len(escaped)} of {len(mutants)} mutants caught, by:")
        for name, count in Counter(v.caught_by for _, v in mutants if v.caught_by).most_common():
            print(f"  {name:<14} {count}")
    for name, verdict in escaped:
        print(f"ESCAPED: {name}, {verdict.mutant}")
    print(f"{len(flagged)} of {len(controls)} checks of right blocks flagged one")
    for name, verdict in flagged:
        print(f"FALSE ALARM: {name}: {verdict.caught_by}: {verdict.diagnosis}")
    return 1 if escaped or flagged else 0


def _judged(row: Row, options: Options) -> Iterator[Verdict]:
    if options.seeds:
        for seed in range(options.seed, options.seed + options.seeds):
            subject = row.subject(seed)
            verdict = judge(subject, control(subject))
            yield verdict._replace(diagnosis=f"seed {seed}: {verdict.diagnosis}")
        return
    subject = row.subject(options.seed)
    for mutant in (control(subject), *make_mutants(subject)):
        yield judge(subject, mutant)
