"""GoogLeNet names what is in photographs, and learns: one experiment with three commands."""

from experiments.googlenet.commands import Options, main

__all__ = ["Options", "main"]
