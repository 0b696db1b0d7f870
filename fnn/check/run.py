"""Running the properties of a check: one after the other, in a budget of seconds."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.check import batches, cost, derivative, kinks, nonfinite_inputs, precision, transformations
from fnn.check.report import SKIPPED, WRONG, CheckError, OutOfTime, Report, Result
from fnn.check.subject import Subject
from fnn.check.trials import Trial, evaluate, in_one_line

_CHECKS: dict[str, Callable[..., Result]] = {  # those that find most mistakes first
    "value": derivative.value,
    "autodiff": derivative.autodiff,
    "differences": derivative.by_differences,
    "linear": derivative.linear,
    "jit": transformations.jit,
    "vmap": transformations.vmap,
    "microbatches": batches.microbatches,
    "batch sizes": batches.batch_sizes,
    "scan": transformations.scan,
    "second order": transformations.second_order,
    "kinks": kinks.kinks,
    **{
        dtype: functools.partial(precision.precision, dtype_name=dtype)
        for dtype in precision.DTYPES
    },
    "edges": nonfinite_inputs.edges,
    "cost": cost.cost,
    "residuals": cost.residuals,
}
#: The names of all properties, in the order in which they run.
PROPERTIES = ("cotangents", *_CHECKS)
#: Those of ``quick=True``.
QUICK = ("cotangents", "value", "autodiff", "differences", "linear")
#: Those whose findings are mistakes only where ``strict=`` names them; "kinks" finds both kinds.
NOTES = ("kinks", *precision.DTYPES, "edges", "residuals")
SHARE = 0.5  # of the time that is left, that one property may take
SILENCE = 10.0  # seconds, after which the property that is next is announced


class Options(NamedTuple):
    """Which properties are checked: ``strict`` and ``skip`` are names, ``seconds`` the budget."""

    strict: frozenset[str]
    skip: frozenset[str]
    seconds: float
    timed: bool


@contextmanager
def precisely(in_float32: bool = False) -> Iterator[None]:
    """float64, products in full precision, and no NumPy warnings: infinities are intended."""
    with (
        jax.enable_x64(not in_float32),
        jax.default_matmul_precision("highest"),
        jax.disable_jit(False),
        jax.debug_nans(False),
        np.errstate(all="ignore"),
    ):
        yield


class Run:
    """The results of a check, each computed when it is asked for."""

    def __init__(self, subject: Subject, options: Options) -> None:
        self.subject, self.options = subject, options
        self.spent = self._announced = 0.0  # seconds; between pytest cases others pass
        self._results: dict[str, Result] = {}

    def __iter__(self) -> Iterator[Result]:
        for name in PROPERTIES:
            if name == "cotangents" or name not in self.options.skip:
                yield self[name]

    def __getitem__(self, name: str) -> Result:
        if name not in self._results:
            if name != "cotangents":
                self["cotangents"]
            began = time.monotonic()
            with precisely(self.subject.in_float32):
                self._results[name] = self._result(name)
            self.spent += time.monotonic() - began
        return self._results[name]

    def report(self) -> Report:
        """All of them."""
        return Report(self.subject.rule.name, tuple(self))

    @functools.cached_property
    def _trials(self) -> list[Trial]:
        return evaluate(self.subject)

    def _result(self, name: str) -> Result:
        if name == "cotangents":
            return derivative.cotangents(self.subject)
        if self["cotangents"].status == WRONG:
            words = "cotangents of the wrong structure, shape or dtype"
            return Result(name, SKIPPED, words)
        left = self.options.seconds - self.spent
        if left <= 0:
            return Result(name, SKIPPED, f"not run: the {self.options.seconds:g} s are over")
        if self.spent - self._announced > SILENCE:
            self._announced = self.spent
            words = f"checking {self.subject.rule.name}: {name} ({self.spent:.0f} s)"
            print(words, file=sys.stderr, flush=True)
        self.subject.deadline = time.monotonic() + SHARE * left
        try:
            result = self._checked(name)
        except OutOfTime:
            words = f"not run: it takes more than {SHARE * left:.0f} s; give seconds="
            return Result(name, SKIPPED, words)
        if name not in NOTES:
            return result
        if name not in self.options.strict:
            return result if name == "kinks" else result.as_note()
        return result if name in precision.DTYPES else result.as_wrong()

    def _checked(self, name: str) -> Result:
        options: dict[str, Any] = {}
        if name == "cost":
            options["timed"] = self.options.timed
        if name in precision.DTYPES:
            options["strict"] = name in self.options.strict
        try:
            trials = self._trials
        except Exception as error:
            words = f"{self.subject.rule.name}: raises when it is run: {in_one_line(error, 300)}"
            raise CheckError(words) from error
        try:
            return _CHECKS[name](self.subject, trials, **options)
        except MemoryError:
            raise
        except Exception as error:  # at inputs that nobody asked for
            return Result(name, SKIPPED, f"not judged: raises {in_one_line(error)}")
