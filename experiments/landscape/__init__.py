"""The landscape of the loss: saddle points, and minima that are about the same."""

from experiments.landscape.commands import Options, main

__all__ = ["Options", "main"]
