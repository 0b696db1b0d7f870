"""The report of a check: a result for every property, and a diagnosis of what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fnn.markup import preformatted, table

RIGHT, WRONG, NOTE, SKIPPED = "right", "WRONG", "note", "skipped"


class CheckError(ValueError):
    """The check could not be run; the message says why, and the fix."""


class OutOfTime(BaseException):
    """The seconds that a check may take are over: no error of the rule's, so that ``except
    Exception`` around it lets this pass."""


_VAGUE = re.compile("(?:^|: )is wrong, by|^along a random|constant factor is missing or extra$")


class Problem(NamedTuple):
    """One thing that is wrong, or worth knowing: where, the likely mistake, and the worst entry.

    ``leaf``: the path of the cotangent, such as ``params/hidden/w`` or ``x/0``.
    ``diagnosis``: the likely mistake, in words.
    ``worst``: the entry with the largest error: index, got, expected, the input there.
    ``note``: the gradient is right for all that; where forward has no derivative, for instance.
    """

    leaf: str
    diagnosis: str
    worst: str = ""
    note: bool = False

    @property
    def is_vague(self) -> bool:
        """Whether the diagnosis says that something is wrong, and not what."""
        return bool(_VAGUE.search(self.diagnosis))

    def __str__(self) -> str:
        return f"{self.leaf}: {self.diagnosis}" + (f"\n  {self.worst}" if self.worst else "")


class Result(NamedTuple):
    """One property: ``status`` is right, WRONG, note (a figure, or problems that are worth knowing
    and no mistake) or skipped, with the reason."""

    property: str
    status: str
    figure: str
    problems: tuple[Problem, ...] = ()

    def as_note(self) -> Result:
        """The same findings, as something worth knowing."""
        if self.status != WRONG:
            return self
        return self._replace(
            status=NOTE, problems=tuple(p._replace(note=True) for p in self.problems)
        )

    def as_wrong(self) -> Result:
        """The same findings, as mistakes."""
        if not self.problems:
            return self
        return self._replace(
            status=WRONG, problems=tuple(p._replace(note=False) for p in self.problems)
        )


def verdict(property: str, figure: str, problems: Iterable[Problem]) -> Result:
    """The result of a property: WRONG if there are problems other than notes, else right."""
    problems = tuple(problems)
    status = NOTE if problems else RIGHT
    if any(not problem.note for problem in problems):
        status = WRONG
    return Result(property, status, figure, problems)


class WrongGradient(AssertionError):
    """Backward is not the derivative of forward; the message is the report."""


@dataclass(frozen=True)
class Report:
    """The results of a check, in the order of the properties.

    ``name``: of the rule. ``inside``: if a network is wrong, the problems of the blocks in it that
    are wrong on their own, by path.
    """

    name: str
    results: tuple[Result, ...]
    inside: tuple[Problem, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether backward is the derivative of forward wherever that is smooth: no property is
        wrong. What is in ``notes`` does not count, unless ``strict`` asked for it."""
        return not self.wrong

    @property
    def ok(self) -> bool:
        """The same as ``correct``."""
        return self.correct

    @property
    def wrong(self) -> tuple[str, ...]:
        """The names of the properties that do not hold."""
        return tuple(result.property for result in self.results if result.status == WRONG)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong, once: in the order of the properties, vague diagnoses last."""
        every = dict.fromkeys(p for r in self.results for p in r.problems if not p.note)
        return tuple(sorted(every, key=lambda problem: problem.is_vague))

    @property
    def notes(self) -> tuple[Problem, ...]:
        """Everything that is worth knowing and no mistake: digits lost in narrow dtypes, limits at
        infinity, what backward gives where forward has no derivative."""
        return tuple(dict.fromkeys(p for r in self.results for p in r.problems if p.note))

    def __getitem__(self, name: str) -> Result:
        """The result of a property, by its name."""
        by_name = {result.property: result for result in self.results}
        if name not in by_name:
            raise KeyError(f"no property {name!r}; there are: {', '.join(by_name)}")
        return by_name[name]

    def assert_correct(self) -> None:
        """Raises :class:`WrongGradient`, an AssertionError, with the report if it is wrong."""
        if not self.correct:
            raise WrongGradient(str(self))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        first, *below = str(self).split("\n")
        below = below[len(self.results) :]  # the problems and notes
        rows = [(r.property, str(r.status), r.figure) for r in self.results]
        return preformatted(first) + table(rows) + (preformatted("\n".join(below)) if below else "")

    def _lines(self) -> Iterator[str]:
        derivative = [r.status for r in self.results if r.property in ("autodiff", "differences")]
        verdict = "right"
        if derivative and all(status == SKIPPED for status in derivative):
            verdict = "nothing is wrong, but nothing was compared with its derivative"
        if not self.correct:
            verdict = f"WRONG in {', '.join(self.wrong)}"
        yield f"{self.name}: {verdict}"
        width = max((len(result.property) for result in self.results), default=0)
        for result in self.results:
            yield f"  {result.property:<{width}}  {result.status:<7}  {result.figure}"
        every = (*self.inside, *self.problems)
        shown = list(_once(every))
        for number, problem in enumerate(shown, start=1):
            first, *rest = str(problem).split("\n")
            yield f"{number}. {first}"
            yield from (f"   {line}" for line in rest)
        if len(every) > len({p.leaf for p in every}):
            yield "(more for the same leaves: report.problems)"
        for note in _once(self.notes):
            yield f"note: {str(note).splitlines()[0]}"


def _once(problems: Iterable[Problem]) -> Iterator[Problem]:
    """The first problem of each leaf, for the others are mostly symptoms of the same mistake; and
    leaves with the same diagnosis together."""
    first_of: dict[str, Problem] = {}
    for problem in problems:
        first_of.setdefault(problem.leaf, problem)
    alike: dict[tuple[str, str], list[Problem]] = {}
    for problem in first_of.values():
        where = problem.leaf.rpartition(", ")[0]  # the block, where it is one inside
        alike.setdefault((where, problem.diagnosis), []).append(problem)
    for first, *others in alike.values():
        more = f" (and {len(others)} more)" if others else ""
        yield first._replace(leaf=first.leaf + more)
