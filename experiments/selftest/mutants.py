"""The referee refereed: every block's backward broken on purpose; the check has to catch it.

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
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fnn.check import checks
from fnn.check.mutations import CONTROL, Mutant, Row, control, mutants
from fnn.check.rule import CheckError


@dataclass
class Options:
    """Breaks every block's backward on purpose, and prints what catches each mutant."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Rows of the table whose id starts with one of these; all if there are none."""
    table: str = "tests.zoo"
    """The module with the blocks and their inputs, for fnn's own table run it in a checkout."""
    every_row: bool = False
    """Also the further rows of a block; else the first of each block, and of each network."""
    seed: int = 0
    """Of the inputs and of the check."""
    seeds: int = 0
    """Instead of mutants: check the right blocks with so many seeds."""


class Verdict(NamedTuple):
    """What the check said of a mutant: the property that caught it (or ''), and why."""

    row: str
    mutant: str
    caught_by: str
    diagnosis: str


def judge(row: Row, mutant: Mutant, seed: int = 0) -> Verdict:
    """Checks a mutant until the first property that does not hold."""
    found = checks.first_wrong(
        mutant.block, row.x, row.params, key=row.key, seed=seed, name=row.id
    )  # fmt: skip
    if found is None:
        return Verdict(row.id, mutant.name, "", "")
    diagnosis = str(found.problems[0]).split("\n")[0] if found.problems else found.figure
    return Verdict(row.id, mutant.name, found.property, diagnosis)


def rows(settings: Options) -> list[Row]:
    """The rows of the table that are asked for.

    Raises:
      CheckError: there is no such table or row.
    """
    try:
        table = importlib.import_module(settings.table)
    except ImportError as error:
        raise CheckError(
            f"cannot import the table of blocks {settings.table!r} ({error}); fnn's own is in a "
            "checkout of fnn: run this there"
        ) from error
    found, seen = [], set[str]()
    for case in table.CASES:
        again = case.name in seen and case.name != "graph"  # graphs differ in what they test
        seen.add(case.name)
        if settings.names:
            asked = any(case.id.startswith(name) for name in settings.names)
        else:
            asked = settings.every_row or not again
        if asked and not case.surrogate:
            found.append(_row(table, case, settings.seed))
    if not found:
        raise CheckError(f"no row of {settings.table} starts with {', '.join(settings.names)}")
    return found


def _row(table: Any, case: Any, seed: int) -> Row:
    def inputs(seed: int) -> tuple[Any, Any, Any]:
        with jax.enable_x64(True):
            sample = table.sample(case, seed=seed)
        return sample.params, sample.x, sample.key

    separable = case.separable is not None and len(case.batch) > 0
    return Row(case.id, case.make(), *inputs(seed), separable, inputs)


def main(settings: Options) -> int:
    """Prints the table; 0 if every mutant was caught and no right block flagged, else 1."""
    chosen = rows(settings)
    verdicts: list[Verdict] = []
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        for row in progress.track(chosen, description="mutants"):
            for verdict in _judged(row, settings):
                verdicts.append(verdict)
                if settings.seeds and not verdict.caught_by:
                    continue
                caught = verdict.caught_by or ("-" if verdict.mutant == CONTROL else "ESCAPED")
                progress.console.print(
                    f"{verdict.row:28} {verdict.mutant:32} {caught:14} {verdict.diagnosis[:110]}",
                    soft_wrap=True, markup=False, highlight=False,
                )  # fmt: skip
    flagged = [v for v in verdicts if v.mutant == CONTROL and v.caught_by]
    tried = [v for v in verdicts if v.mutant != CONTROL]
    escaped = [v for v in tried if not v.caught_by]
    print(f"\n{len(chosen)} blocks, {time.monotonic() - began:.0f} s")
    if tried:
        print(f"{len(tried) - len(escaped)} of {len(tried)} mutants caught, by:")
        for name, count in Counter(v.caught_by for v in tried if v.caught_by).most_common():
            print(f"  {name:<14} {count}")
    for verdict in escaped:
        print(f"ESCAPED: {verdict.row}, {verdict.mutant}")
    print(f"{len(flagged)} of {len(verdicts) - len(tried)} checks of right blocks flagged one")
    for verdict in flagged:
        print(f"FALSE ALARM: {verdict.row}: {verdict.caught_by}: {verdict.diagnosis}")
    return 1 if escaped or flagged else 0


def _judged(row: Row, settings: Options) -> Iterator[Verdict]:
    if settings.seeds:
        right = control(row)
        for seed in range(settings.seed, settings.seed + settings.seeds):
            if row.inputs is not None:
                params, x, key = row.inputs(seed)
                row = row._replace(params=params, x=x, key=key)
            verdict = judge(row, right, seed)
            yield verdict._replace(diagnosis=f"seed {seed}: {verdict.diagnosis}")
        return
    for mutant in (control(row), *mutants(row)):
        yield judge(row, mutant, settings.seed)
