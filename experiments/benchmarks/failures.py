"""Gradients that public issues report as wrong, fnn's, and the checkers that notice.

    python -m experiments.benchmarks failures
    python -m experiments.benchmarks failures --no-checkers

Every number is computed here: the reported gradient, fnn's, and the truth by mpmath.
"""

from __future__ import annotations

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
from experiments.benchmarks.failure_cases import CASES, Case
from experiments.benchmarks.report import Table, machine, record, versions

PACKAGES = ("jax", "torch", "chex", "mpmath", "numpy")
RESULTS = Path(__file__).with_name("FAILURES.md")
ROUNDING = 16  # units in the last place; more is called inaccurate
WRONG = 0.5  # relative error; more is called wrong
NOT_DERIVATIVE = ("cost", "residuals")  # properties that do not concern values
GRADIENTS = ("library", "report", "at", "truth", "reported rule", "verdict", "fnn", "units off")
FOUND = ("library", "report", "check_grads", "chex", "gradcheck", "fnn.check")
ABOUT = """\
- reported rule: the library's own function where it is still wrong here, else the formula of the
  report, marked in the list below. NaN, wrong (more than half off) or inaccurate.
- units off: fnn's error in units in the last place of the true gradient in the input's dtype,
  the larger of that of each operation by itself and that under `jit`.
- Found: ordinary inputs / the input of the report. Each checker was given the same rule, with
  fnn's forward: `jax.test_util.check_grads` and `chex.assert_numerical_grads` (rev, order 1,
  default tolerances) as a `custom_vjp`; `torch.autograd.gradcheck` as an `autograd.Function`, in
  float64; `fnn.check.pair`, without its figures of cost. A star: the checker refuses fnn's right
  rule there too, so its refusal says nothing. Most of these rules are right to rounding at ordinary
  inputs: a checker that passes them there is right."""


@dataclass
class Options:
    """Compares gradients that public issues report as wrong with fnn's."""

    checkers: bool = True
    """four checkers on each rule, which take minutes; --no-checkers leaves them out"""
    out: Path | None = RESULTS
    """the Markdown file whose section is replaced; None to write nothing"""


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
    return "wrong" if off * float(np.finfo(dtype).eps) > WRONG else "inaccurate"


# ---- checkers: does each refuse the rule? ----------------------------------------------------

Value = Callable[[Any], Any]
Backward = Callable[[Any, Any], Any]


def by_check_grads(value: Value, backward: Backward, x: Any) -> bool:
    """``jax.test_util.check_grads``, reverse mode, at its default tolerances."""
    return _raises(check_grads, value, backward, x)


def by_chex(value: Value, backward: Backward, x: Any) -> bool:
    """``chex.assert_numerical_grads``, in reverse mode, the only one of a custom_vjp."""
    import chex

    return _raises(chex.assert_numerical_grads, value, backward, x)


def by_gradcheck(value: Value, backward: Backward, x: Any) -> bool:
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
    return not torch.autograd.gradcheck(Function.apply, (leaf,), raise_exception=False)


def by_fnn(value: Value, backward: Backward, x: Any) -> bool:
    """``fnn.check.pair``."""
    report = fnn.check.pair(
        lambda x: (value(x), x), lambda x, dy: (backward(x, dy),), x,
        name="rule", skip=NOT_DERIVATIVE, timed=False,
    )  # fmt: skip
    return not report.ok


CHECKERS = (by_check_grads, by_chex, by_gradcheck, by_fnn)


def _raises(check: Callable[..., Any], value: Value, backward: Backward, x: Any) -> bool:
    f = jax.custom_vjp(value)
    f.defvjp(lambda x: (value(x), x), lambda x, dy: (backward(x, dy),))
    try:
        check(f, (x,), order=1, modes=["rev"])
    except AssertionError:
        return True
    return False


def refusals(case: Case) -> list[str]:
    """A cell for each checker: at ordinary inputs / at the report's."""
    places = [jnp.asarray(v, case.x.dtype) for v in (case.ordinary, case.x)]

    def at(checker: Callable[[Value, Backward, Any], bool], x: Any) -> str:
        if not checker(case.ours.value, case.rule, x):
            return "no"
        return "yes*" if checker(case.ours.value, case.ours.gradient, x) else "yes"

    return [" / ".join(at(checker, x) for x in places) for checker in CHECKERS]


# ---- tables ----------------------------------------------------------------------------------


def _numbers(values: Any) -> str:
    return ", ".join(f"{float(v) + 0.0:.3g}" for v in np.ravel(values))


def gradient_row(case: Case) -> list[str]:
    """The row of the first table."""
    g, dtype = gradients(case), case.x.dtype
    word = verdict(g.reported, g.truth, dtype)
    off = f"{max(units_off(ours, g.truth, dtype) for ours in (g.fnn, g.compiled)):.1f}"
    at = f"{_numbers(case.x)} ({dtype})"
    row = [case.cite.split("/")[0], f"{case.title}, {case.cite}", at, _numbers(g.truth)]
    return [*row, _numbers(g.reported), word, _numbers(g.fnn), off]


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
    tables = [Table(GRADIENTS, first)] + ([Table(FOUND, second)] if second else [])
    for table in tables:
        table.show()
    total = f"{len(CASES)} reports, {wrong} of which are still wrong here."
    print(total)
    notes = [
        f"- {c.cite}, {c.what}: {c.report}." + (f" ({c.note})" if c.note else "") for c in CASES
    ]
    parts = [f"{where}. {total}", *(table.markdown() for table in tables)]
    record(options.out, "failures", *parts, ABOUT, "\n".join(notes))
