"""Proving a backward rule right, and finding the mistake where it is wrong."""

from fnn.check.all_floats import EveryFloat, every_float
from fnn.check.checks import PROPERTIES, block, cases, function, pair
from fnn.check.mutations import Mutants, mutants
from fnn.check.report import Problem, Report, Result, WrongGradient
from fnn.check.rule import CheckError
from fnn.introspect.autodiff import errors
from fnn.introspect.finite import Finite, NonFinite, finite

__all__ = [
    "PROPERTIES",
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
