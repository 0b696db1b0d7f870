"""Proving a backward rule right, and finding where a number went wrong."""

from fnn.check.finite import NonFinite as NonFinite
from fnn.check.finite import first_nonfinite as first_nonfinite

__all__ = ["NonFinite", "first_nonfinite"]
