"""How far training is: the time, and a line per epoch."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import jax

from fnn.training.run import Row

COMPILING = 20.0  # seconds that a first epoch may take without saying how long others will


class Clock:
    """Seconds since the start, and seconds left.

    The first call and the first epoch also compile: the estimate leaves them out once there is
    more to go by, and is an upper bound before. ``before``: seconds that earlier runs took.
    """

    def __init__(self, epochs: int, before: float = 0.0) -> None:
        self.epochs, self.start = epochs, time.perf_counter() - before
        self.rate, self.since = 0.0, (0.0, before)

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def left(self, done: float) -> float:
        """Seconds left after ``done`` epochs, which may be a fraction."""
        before, then = self.since
        now = self.seconds()
        if done > before:
            self.rate = (now - then) / (done - before)
        if before == 0 or done == 1:
            self.since = done, now
        return self.rate * (self.epochs - done)


def reporter(progress: Any, epochs: int) -> Any:
    """The caller's own function of (row, seconds left), or one that prints to stderr; of several
    processes, the first one prints."""
    if progress is not True or jax.process_index():
        return progress if callable(progress) else (lambda row, left: None)
    return Lines(epochs)


def _in_a_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None


class Lines:
    """A line per epoch on stderr: one that is written anew on a terminal and in a notebook;
    elsewhere a line each, but not more than one a second."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.rewrites = sys.stderr.isatty() or _in_a_notebook()
        self.length, self.printed = 0, -math.inf

    def __call__(self, row: Row, left: float) -> None:
        numbers = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in row.items()
            if name not in ("epoch", "seconds")
        )
        first = row["epoch"] == 1  # it also compiled, which may be most of it
        is_known = left and not (first and row["seconds"] < COMPILING)
        time_left = f", {'at most ' * first}{left:.0f} s left" if is_known else ""
        line = f"epoch {row['epoch']}/{self.epochs}  {numbers}  {row['seconds']:.1f} s{time_left}"
        is_last = row["epoch"] == self.epochs
        if self.rewrites:
            print(f"\r{line:<{self.length}}", end="", file=sys.stderr, flush=True)
            self.length = len(line)
        elif is_last or row["seconds"] >= self.printed + 1:
            print(line, file=sys.stderr)
            self.printed = row["seconds"]

    def end(self) -> None:
        """Ends the line that is written anew."""
        if self.length:
            print(file=sys.stderr)
