"""Proving a backward rule right, and finding the mistake where it is wrong."""

from fnn.check.all_floats import EveryFloat, every_float
from fnn.check.checks import block, cases, function, pair
from fnn.check.mutations import Mutants, mutants
from fnn.check.report import CheckError, Problem, Report, Result, WrongGradient
from fnn.check.run import NOTES, PROPERTIES, QUICK
from fnn.introspect.autodiff import errors
from fnn.introspect.finite import Finite, NonFinite, finite

__all__ = [
    "NOTES",
    "PROPERTIES",
    "QUICK",
    "CheckError",
    "EveryFloat",
    "Finite",
    "Mutants",
    "NonFinite",
    "Problem",
    "Report",
    "Result",
    "WrongGradient",
    "block",
    "cases",
    "errors",
    "every_float",
    "finite",
    "function",
    "mutants",
    "pair",
]
