"""Gradients that public issues report as wrong, fnn's, and the checkers that notice; and wrong
gradients of public packages that fnn.check found.

    python -m experiments.benchmarks failures
    python -m experiments.benchmarks failures --no-checkers

Every number is computed here: the reported gradient, fnn's, and the truth by mpmath.
"""

from __future__ import annotations

import importlib.metadata
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads
from rich.progress import track

import fnn
from experiments.benchmarks.defects import DEFECTS, NOTED, RIGHT, WRONG, Defect, says
from experiments.benchmarks.failure_cases import CASES, Case
from experiments.benchmarks.report import Table, machine, record, versions

PACKAGES = ("jax", "torch", "chex", "mpmath", "numpy")
RESULTS = Path(__file__).with_name("FAILURES.md")
ROUNDING = 16  # units in the last place; more is called inaccurate
MUCH = 0.5  # relative error; more is called wrong
NOT_DERIVATIVE = ("cost", "residuals")  # properties that do not concern values
GRADIENTS = ("library", "report", "at", "truth", "reported rule", "verdict", "fnn", "units off")
NOTICED = ("library", "report", "check_grads", "chex", "gradcheck", "fnn.check")
FOUND = ("package", "function", "at", "its gradient", "right", "known by", "fnn.check")
ABOUT = """\
- reported rule: the library's own function where it is still wrong here, else the formula of the
  report, marked in the list below. NaN, wrong (more than half off) or inaccurate.
- units off: fnn's error in units in the last place of the true gradient in the input's dtype,
  the larger of that of each operation by itself and that under `jit`.
- Noticed: ordinary inputs / the input of the report. Each checker was given the same rule, with
  fnn's forward: `jax.test_util.check_grads` and `chex.assert_numerical_grads` (rev, order 1,
  default tolerances) as a `custom_vjp`; `torch.autograd.gradcheck` as an `autograd.Function`, in
  float64; `fnn.check.pair`, without its figures of cost: yes where its report is not `correct`,
  noted where it is and has `notes`: digits lost in narrow dtypes, what backward gives at kinks
  and infinities (`strict=True` makes mistakes of them). A star: the checker says the same of fnn's
  right rule there, so it says nothing. Most of these rules are right to rounding at ordinary
  inputs: a checker that passes them there is right."""
ABOUT_FOUND = """\
Found by `fnn.check.function` without options among functions of public libraries, each in its
smallest case: the gradient of the sum of the values.

- fnn.check: what it says today of this case, and its first finding, of this dtype if there is one.
  WRONG: `report.correct` is False; noted: it is True, and the finding is in `report.notes`."""


@dataclass
class Options:
    """Compares gradients that public issues report as wrong with fnn's."""

    checkers: bool = True
    """four checkers on each rule and what fnn.check found, which take minutes; --no-checkers leaves
    them out"""
    out: Path | None = RESULTS
    """the Markdown file whose sections are replaced; None to write nothing"""


class Gradients(NamedTuple):
    """The true gradient, the reported one, and fnn's; flat."""

    truth: Any
    reported: Any
    fnn: Any
    compiled: Any  # fnn's under jit, as XLA rewrites programs


def gradients(case: Case, reported: bool = True) -> Gradients:
    """Computes one case; ``reported=False`` leaves the report's own rule out."""
    x = jnp.asarray(case.x)
    y = jax.eval_shape(case.ours.value, x)
    dy = jnp.asarray(case.dy, y.dtype).reshape(y.shape)
    truth = np.array(case.truth(case.x, np.array(case.dy)))
    theirs = _theirs(case, x, dy) if reported else np.full(truth.shape, np.nan)
    ours = (np.ravel(f(x, dy)) for f in (case.ours.gradient, jax.jit(case.ours.gradient)))
    return Gradients(truth, np.ravel(theirs), *ours)


def _theirs(case: Case, x: Any, dy: Any) -> Any:
    if case.torch is None:
        return case.rule(x, dy)
    import torch

    leaf = torch.tensor(case.x, requires_grad=True)
    y = case.torch(torch, leaf)
    y.backward(torch.tensor(np.asarray(dy)).reshape(y.shape))
    assert leaf.grad is not None
    return leaf.grad.numpy()


def units_off(got: Any, truth: Any, dtype: Any) -> float:
    """The largest error in units in the last place, at least in those of the smallest normal."""
    info = np.finfo(dtype)
    unit = np.maximum(np.abs(truth), float(info.tiny)) * float(info.eps)
    with np.errstate(over="ignore"):
        off = np.abs(np.asarray(got, np.float64) - truth) / unit
    return float(np.max(np.where(np.isnan(off), np.inf, off)))


def verdict(got: Any, truth: Any, dtype: Any) -> str:
    """What is wrong with a gradient, in a word."""
    if np.isnan(got).any():
        return "NaN"
    off = units_off(got, truth, dtype)
    if off <= ROUNDING:
        return "right here today"
    return "wrong" if off * float(np.finfo(dtype).eps) > MUCH else "inaccurate"


# ---- checkers: what does each say of the rule? -----------------------------------------------

Value = Callable[[Any], Any]
Backward = Callable[[Any, Any], Any]
NO, YES = "no", "yes"


def by_check_grads(value: Value, backward: Backward, x: Any) -> str:
    """``jax.test_util.check_grads``, reverse mode, at its default tolerances."""
    return _raises(check_grads, value, backward, x)


def by_chex(value: Value, backward: Backward, x: Any) -> str:
    """``chex.assert_numerical_grads``, in reverse mode, the only one of a custom_vjp."""
    import chex

    return _raises(chex.assert_numerical_grads, value, backward, x)


def by_gradcheck(value: Value, backward: Backward, x: Any) -> str:
    """``torch.autograd.gradcheck`` of the same rule as an autograd function."""
    import torch

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return torch.tensor(np.asarray(value(jnp.asarray(x.detach().numpy()))))

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x = jnp.asarray(ctx.saved_tensors[0].numpy())
            return torch.tensor(np.asarray(backward(x, jnp.asarray(dy.numpy()))))

    leaf = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    return NO if torch.autograd.gradcheck(Function.apply, (leaf,), raise_exception=False) else YES


def by_fnn(value: Value, backward: Backward, x: Any) -> str:
    """``fnn.check.pair``."""
    report = fnn.check.pair(
        lambda x: (value(x), x), lambda x, dy: (backward(x, dy),), x,
        name="rule", skip=NOT_DERIVATIVE, timed=False,
    )  # fmt: skip
    return {WRONG: YES, NOTED: NOTED, RIGHT: NO}[says(report)]


CHECKERS = (by_check_grads, by_chex, by_gradcheck, by_fnn)


def _raises(check: Callable[..., Any], value: Value, backward: Backward, x: Any) -> str:
    f = jax.custom_vjp(value)
    f.defvjp(lambda x: (value(x), x), lambda x, dy: (backward(x, dy),))
    try:
        check(f, (x,), order=1, modes=["rev"])
    except AssertionError:
        return YES
    return NO


def refusals(case: Case) -> list[str]:
    """A cell for each checker: at ordinary inputs / at the report's."""
    places = [jnp.asarray(v, case.x.dtype) for v in (case.ordinary, case.x)]

    def at(checker: Callable[[Value, Backward, Any], str], x: Any) -> str:
        word = checker(case.ours.value, case.rule, x)
        if word == NO:
            return word
        return word + "*" * (checker(case.ours.value, case.ours.gradient, x) == word)

    return [" / ".join(at(checker, x) for x in places) for checker in CHECKERS]


# ---- tables ----------------------------------------------------------------------------------


def _numbers(values: Any, digits: int = 3) -> str:
    return ", ".join(f"{float(v) + 0.0:.{digits}g}" for v in np.ravel(values))


def gradient_row(case: Case) -> list[str]:
    """The row of the first table."""
    g, dtype = gradients(case), case.x.dtype
    word = verdict(g.reported, g.truth, dtype)
    off = f"{max(units_off(ours, g.truth, dtype) for ours in (g.fnn, g.compiled)):.1f}"
    at = f"{_numbers(case.x)} ({dtype})"
    row = [case.cite.split("/")[0], f"{case.title}, {case.cite}", at, _numbers(g.truth)]
    return [*row, _numbers(g.reported), word, _numbers(g.fnn), off]


def defect_row(defect: Defect) -> list[str]:
    """The row of a wrong gradient that fnn.check found."""
    module = defect.package.split(".")[0]
    (package, *_) = importlib.metadata.packages_distributions()[module]
    at = defect.case()[1:]
    dtype = str(np.asarray(at[0]).dtype)
    report = defect.report()
    findings = [str(p).splitlines()[0] for p in (*report.problems, *report.notes)]
    findings.sort(key=lambda words: f"in {dtype}" not in words)
    return [
        f"{package} {importlib.metadata.version(package)}",
        f"{defect.package}: {defect.name}" if "." in defect.package else defect.name,
        f"{'; '.join(_numbers(arg, 4) for arg in at)} ({dtype})",
        "; ".join(_numbers(v, 4) for v in defect.got()),
        "; ".join(_numbers(v, 4) for v in defect.true()),
        defect.by,
        textwrap.shorten(": ".join([says(report), *findings[:1]]), 130, placeholder=" ..."),
    ]


def main(options: Options) -> None:
    """Computes all cases, prints the tables, and records them."""
    where = f"{machine()}. {versions(PACKAGES)}"
    print(where)
    first, second = [], []
    with jax.enable_x64(True):
        for case in track(CASES, "cases", transient=True):
            first.append(gradient_row(case))
            if options.checkers:
                second.append([*first[-1][:2], *refusals(case)])
    wrong = sum("right here today" not in row for row in first)
    tables = [Table(GRADIENTS, first)] + ([Table(NOTICED, second)] if second else [])
    for table in tables:
        table.show()
    total = f"{len(CASES)} reports, {wrong} of which are still wrong here."
    print(total)
    notes = [
        f"- {c.cite}, {c.what}: {c.report}." + (f" ({c.note})" if c.note else "") for c in CASES
    ]
    parts = [f"{where}. {total}", *(table.markdown() for table in tables)]
    record(options.out, "failures", *parts, ABOUT, "\n".join(notes))
    if options.checkers:
        found(options.out, where)


def found(out: Path | None, where: str) -> None:
    """Checks the defects of packages that are installed, prints their table, and records it."""
    installed = [defect for defect in DEFECTS if defect.is_installed]
    missing = dict.fromkeys(d.package.split(".")[0] for d in DEFECTS if not d.is_installed)
    table = Table(FOUND, [defect_row(d) for d in track(installed, "defects", transient=True)])
    table.show()
    right = [str(defect) for defect in installed if defect.is_right()]
    total = f"{len(installed)} defects, {len(installed) - len(right)} of which show here."
    if right:
        total += f" Right here today: {', '.join(right)}."
    if missing:
        total += f" Left out, not installed: {', '.join(missing)} (the extra `outside` has them)."
    print(total)
    record(out, "Found by fnn.check", f"{where}. {total}", table.markdown(), ABOUT_FOUND)
