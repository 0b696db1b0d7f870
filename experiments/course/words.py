"""The diagnoses of fnn.check in a learner's words, with the kind of mistake that hints go by."""

from __future__ import annotations

import re

from fnn.check.report import RIGHT, Problem, Report

# (kind, what fnn.check says, what the learner is told). {d} is the gradient that arrives. Where
# the diagnosis names the missing factor or term, the learner is told only that there is one.
KINDS = (
    ("transposed", r"^has shape (.*), needs (.*): it is transposed",
     "has the shape {0}, and needs {1}: it is transposed"),
    ("not summed", r"^has shape (.*), needs (.*): not summed",
     "has the shape {0}, and needs {1}: something is not summed"),
    ("summed", r"^has shape (.*), needs (.*): summed",
     "has the shape {0}, and needs {1}: something is summed that should not be"),
    ("shape", r"^has shape (\([^)]*\)), needs (\([^)]*\))", "has the shape {0}, and needs {1}"),
    ("not finite", r"^(?:NaN|infinite) in", "has entries that are not finite numbers"),
    ("zero", r"^is zero everywhere", "is 0 everywhere"),
    ("not zero", r"^should be zero everywhere", "should be 0 everywhere"),
    ("upstream", r"^is the same for every upstream", "is the same whatever {d} is"),
    ("not linear", r"^is not (?:linear|zero for a zero)",
     "has a term that is not proportional to {d}"),
    ("sign", r"^is -1 times the truth everywhere", "has the wrong sign"),
    ("sum for mean", r"^is (\S+) times .*a sum where a mean is needed",
     "is {0} times what it should be: a sum stands where a mean belongs"),
    ("mean for sum", r"^is (\S+) times .*a mean where a sum is needed",
     "is {0} times what it should be: a mean stands where a sum belongs"),
    ("constant", r"^is (\S+) times the truth everywhere",
     "is {0} times what it should be, everywhere"),
    ("batch", r"hard-coded", "is right for one size of batch only"),
    ("varying", r"^is \S+ times the truth here and",
     "lacks a factor, or has one too many, that depends on the inputs"),
    ("reversed", r"reversed along axis", "would be right if something ran the other way"),
    ("transposed", r"transposed", "is transposed"),
    ("shifted", r"^is (?:shifted|rolled) by (\S+)", "is shifted by {0}: an index is off"),
    ("swapped", r"^is (minus )?what belongs to x/(\d+)", "is {0}what {other} should be"),
    ("copied", r"^is (?:summed|averaged) over axis", "is summed over more than it should be"),
    ("axis", r"^sums over axis (\d+), needs", "sums over the wrong axis, {0}"),
    ("term sign", r"^has a term of the wrong sign", "has a term with the wrong sign"),
    ("missing term", r"^lacks a term|^is off by", "lacks a term, or has one too many"),
    ("extra term", r"^has a term too many|^has \S+ added", "has a term too many"),
    ("factor", r"^has the factor", "has a factor too many"),
    ("factor", r"^lacks the factor", "lacks a factor"),
    ("places", r"^has the right numbers", "has the right numbers in wrong places"),
    ("zero there", r"^is wrong only in (\d+ of \d+).*, where it is 0$",
     "is wrong in {0} entries, where it is 0 and should not be"),
    ("not zero there", r"^is wrong only in (\d+ of \d+).*, where it should be 0$",
     "is wrong in {0} entries, where it should be 0"),
    ("some", r"^is wrong only in (\d+ of \d+)", "is wrong in {0} entries"),
    ("clipped", r"^is cut off", "is cut off at two numbers"),
)  # fmt: skip

PROPERTIES = {
    "cotangents": "the shape of every gradient",
    "autodiff": "every entry, against automatic differentiation of forward",
    "differences": "and against differences of forward at points close by",
    "linear": "twice {d} gives twice the gradient",
    "batch sizes": "other batch sizes",
}


def checked(report: Report, upstream: str) -> str:
    """What was found right."""
    right = [r.property for r in report.results if r.status == RIGHT]
    return "; ".join(PROPERTIES[p].format(d=upstream) for p in PROPERTIES if p in right)


def gradient(leaf: str, arguments: tuple[str, ...]) -> str:
    """What a learner calls the gradient of a leaf: x/0 is that of the first argument."""
    first, _, number = leaf.partition("/")
    return f"d{arguments[int(number)]}" if first == "x" and number.isdigit() else leaf


def plainly(problem: Problem, upstream: str, arguments: tuple[str, ...]) -> tuple[str, str]:
    """The kind of a mistake, and what the learner is told."""
    for kind, pattern, says in KINDS:
        if match := re.search(pattern, problem.diagnosis):
            groups = [group or "" for group in match.groups()]
            other = gradient(f"x/{groups[1]}", arguments) if kind == "swapped" else ""
            return kind, says.format(*groups, d=upstream, other=other)
    return "other", "is wrong"


def number(value: float) -> str:
    """Four digits, and no sign of a zero."""
    return f"{value + 0.0:.4g}"


_WORST = re.compile(r"worst at \[(.*)\]: got (\S+), expected ([^\s;]+)(?:.*there is (\S+))?")


def worst(problem: Problem, name: str) -> str:
    """The entry with the largest error."""
    match = _WORST.match(problem.worst)
    if match is None:
        return ""
    place, *numbers = match.groups()
    got, expected, at = (text and number(float(text)) for text in numbers)
    entry = f"{name}[{place}]" if place else name
    there = f", where {name.removeprefix('d')} is {at}" if at else ""
    return f"{entry} is {got}, and {expected} is right{there}"
