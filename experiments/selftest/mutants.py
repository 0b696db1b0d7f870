"""Checks the checker: breaks every block's backward on purpose; the check has to catch it.

Prints what caught each mutant, and whether a right block was flagged. Exit status: 0 if every
mutant was caught and no right block flagged, else 1.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import tyro
from rich.progress import Progress

from fnn.check.checks import subject_for
from fnn.check.mutations import CONTROL, Verdict, control, judge, make_mutants
from fnn.check.report import CheckError
from fnn.check.subject import Subject
from fnn.compiling import many_runs


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
    seeds: int = 1
    """How many seeds, from the one above on. A mutant has to be caught under each."""
    right: bool = False
    """Only the right blocks, and no mutants."""


MANY = 10  # seeds, for which programs that run fast are worth compiling


class Row(NamedTuple):
    """A right block of the table ``table``, with its row there."""

    table: Any
    case: Any

    @property
    def id(self) -> str:
        """The row's name."""
        return str(self.case.id)

    def subjects(self, seeds: Iterable[int]) -> Iterator[Subject]:
        """The block at the row's inputs under every seed, so that they share their programs."""
        block = self.case.make()
        for seed in seeds:
            with jax.enable_x64(True):
                params, x, key, _ = self.table.sample(self.case, seed=seed)
            yield subject_for(block, x, params, key, seed, self.id)

    def subject(self, seed: int = 0) -> Subject:
        """The same under one seed."""
        return next(self.subjects([seed]))


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

    chosen = [Row(table, case) for case in table.CASES if asked(case) and table.is_checked(case)]
    if not chosen:
        raise CheckError(f"no row of {options.table} starts with {', '.join(options.names)}")
    return chosen


class Judged(NamedTuple):
    """The verdict on one mutant of a row under one seed."""

    id: str
    seed: int
    verdict: Verdict

    @property
    def is_right(self) -> bool:
        """Whether it is the right block."""
        return self.verdict.mutant == CONTROL

    @property
    def fails(self) -> bool:
        """Whether a mutant escaped, or a right block was flagged."""
        return self.is_right == bool(self.verdict.caught_by)

    def __str__(self) -> str:
        caught = self.verdict.caught_by or ("-" if self.is_right else "ESCAPED")
        where = f"{self.id}, seed {self.seed}"
        return f"{where:36} {self.verdict.mutant:32} {caught:14} {self.verdict.diagnosis[:110]}"


def main(options: Options) -> int:
    """Prints the table; 0 if every mutant was caught and no right block flagged, else 1."""
    chosen = rows(options)
    judged: list[Judged] = []
    began = time.monotonic()
    with Progress(transient=True) as progress:
        for row in progress.track(chosen, description="mutants"):
            for one in _judged(row, options):
                judged.append(one)
                if one.seed == options.seed or one.fails:
                    progress.console.out(str(one), highlight=False)
            jax.clear_caches()  # a process may hold so many programs only
    rights = [one for one in judged if one.is_right]
    mutants = [one for one in judged if not one.is_right]
    escaped = [one for one in mutants if one.fails]
    flagged = [one for one in rights if one.fails]
    print(f"\n{len(chosen)} blocks, {time.monotonic() - began:.0f} s")
    if mutants:
        print(f"{len(mutants) - len(escaped)} of {len(mutants)} mutants caught, by:")
        by = Counter(one.verdict.caught_by for one in mutants if one.verdict.caught_by)
        for name, count in by.most_common():
            print(f"  {name:<14} {count}")
    for one in escaped:
        print(f"ESCAPED: {one.id}, {one.verdict.mutant}, seed {one.seed}")
    print(f"{len(flagged)} of {len(rights)} checks of right blocks flagged one")
    for one in flagged:
        words = f"{one.verdict.caught_by}: {one.verdict.diagnosis}"
        print(f"FALSE ALARM: {one.id}, seed {one.seed}: {words}")
    return 1 if escaped or flagged else 0


def _judged(row: Row, options: Options) -> Iterator[Judged]:
    """Mutant by mutant, each under all seeds, so that its programs are compiled once.

    Under a further seed, the property that caught it last is tried first. What is no mutant there,
    as it changes nothing at those inputs, is left out.
    """
    subjects = [*row.subjects(range(options.seed, options.seed + options.seeds))]
    right, noted = control(subjects[0]), getattr(row.case, "noted", ())
    # The right block runs through every property, under every seed.
    with many_runs() if options.seeds >= MANY else nullcontext():
        for subject in subjects:
            yield Judged(row.id, subject.seed, judge(subject, right, noted=noted))
    wrong = [] if options.right else make_mutants(subjects[0])
    for mutant in wrong:
        likely = ""
        for subject in subjects:
            verdict = judge(subject, mutant, likely)
            if not verdict.caught_by and mutant.name not in _names(subject):
                continue
            likely = verdict.caught_by
            yield Judged(row.id, subject.seed, verdict)


def _names(subject: Subject) -> set[str]:
    return {mutant.name for mutant in make_mutants(subject)}
