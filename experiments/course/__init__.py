"""A course in backpropagation: twelve small files with a backward left blank."""

from experiments.course.commands import Options, main

__all__ = ["Options", "main"]
