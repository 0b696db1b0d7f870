"""How far training is: the time, and a line per epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

from fnn.training.run import Row


class Clock:
    """Seconds since the start, and seconds left.

    The first call and the first epoch also compile: the estimate leaves them out once there is
    more to go by, and is an upper bound before.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs, self.start = epochs, time.perf_counter()
        self.rate, self.since = 0.0, (0.0, 0.0)

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
    """The caller's own function of (row, seconds left), or one that prints to stderr."""
    if progress is not True:
        return progress or (lambda row, left: None)

    def report(row: Row, left: float) -> None:
        numbers = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in row.items()
            if name not in ("epoch", "seconds")
        )
        bound = "at most " if row["epoch"] == 1 else ""  # the first epoch also compiled
        time_left = f", {bound}{left:.0f} s left" if left else ""
        print(
            f"epoch {row['epoch']}/{epochs}  {numbers}  {row['seconds']:.1f} s{time_left}",
            file=sys.stderr,
        )

    return report
