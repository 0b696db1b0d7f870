"""The report of a check: a result for every property, and a diagnosis of what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

RIGHT, WRONG, SKIPPED, SHOWN = "right", "WRONG", "skipped", "shown"


class Problem(NamedTuple):
    """One thing that is wrong: where, the likely mistake, and the worst entry.

    ``leaf``: the path of the cotangent, such as ``params/hidden/w`` or ``x/0``.
    ``diagnosis``: the likely mistake, in words.
    ``worst``: the entry with the largest error: index, got, expected, the input there.
    """

    leaf: str
    diagnosis: str
    worst: str = ""

    def __str__(self) -> str:
        return f"{self.leaf}: {self.diagnosis}" + (f"\n  {self.worst}" if self.worst else "")


class Result(NamedTuple):
    """One property: ``status`` is right, WRONG, skipped, or shown (a figure without a verdict)."""

    property: str
    status: str
    figure: str
    problems: tuple[Problem, ...] = ()


def verdict(property: str, figure: str, problems: Iterable[Problem]) -> Result:
    """The result of a property: WRONG if there are problems, else right."""
    problems = tuple(problems)
    return Result(property, WRONG if problems else RIGHT, figure, problems)


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
    def ok(self) -> bool:
        """Whether no property is wrong."""
        return not any(result.status == WRONG for result in self.results)

    @property
    def wrong(self) -> tuple[str, ...]:
        """The names of the properties that do not hold."""
        return tuple(result.property for result in self.results if result.status == WRONG)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every problem once, in the order of the properties."""
        return tuple(dict.fromkeys(p for result in self.results for p in result.problems))

    def __getitem__(self, name: str) -> Result:
        """The result of a property, by its name."""
        by_name = {result.property: result for result in self.results}
        if name not in by_name:
            raise KeyError(f"no property {name!r}; there are: {', '.join(by_name)}")
        return by_name[name]

    def assert_correct(self) -> None:
        """Raises :class:`WrongGradient`, an AssertionError, with the report if it is not ok."""
        if not self.ok:
            raise WrongGradient(str(self))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        verdict = "right" if self.ok else f"WRONG in {', '.join(self.wrong)}"
        yield f"{self.name}: {verdict}"
        width = max((len(result.property) for result in self.results), default=0)
        for result in self.results:
            yield f"  {result.property:<{width}}  {result.status:<7}  {result.figure}"
        # The first problem of each leaf: the others are mostly other symptoms of the same mistake.
        first_of: dict[str, Problem] = {}
        every = (*self.inside, *self.problems)
        for problem in every:
            first_of.setdefault(problem.leaf, problem)
        for number, problem in enumerate(first_of.values(), start=1):
            first, *rest = str(problem).split("\n")
            yield f"{number}. {first}"
            yield from (f"   {line}" for line in rest)
        if more := len(every) - len(first_of):
            yield f"({more} more for the same leaves: report.problems)"
