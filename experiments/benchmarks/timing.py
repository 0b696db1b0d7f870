"""Times compiled programs in alternation; compares them within a round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator
from statistics import median, quantiles
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SLOW_SECONDS = 2.0  # what takes longer is run in one round only
PAUSE_SECONDS = 0.5  # before a measurement, while threads of the one before fall asleep
TURN_SECONDS = 0.6  # calls one after another, as in training, fill a turn that follows a pause

Seconds = dict[int, float]  # by round


class Compiled(NamedTuple):
    """A program, the seconds of its compilation, and its temporary bytes."""

    program: Callable[..., Any]
    seconds: float
    temporary: int


def compiled(f: Callable[..., Any], *arguments: Any) -> Compiled:
    """``f`` compiled for these arguments."""
    began = time.perf_counter()
    program = jax.jit(f).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    temporary = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
    return Compiled(program, seconds, int(temporary))


def ready(program: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The program as a function that returns once its result is computed."""
    return lambda: jax.block_until_ready(program(*arguments))


def turns(names: Collection[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, name): every name once a round, in a random order that is the same in every run."""
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(sorted(names), len(names)):
            yield number, name


def alternating(
    programs: dict[str, Callable[[], Any]], rounds: int, pause: float = 0.0
) -> dict[str, Seconds]:
    """Seconds of each program by round. Programs wait for their results themselves.

    ``pause``: seconds before each turn, which is then the mean of several calls, after one that is
    not counted: in training no program begins with threads that sleep and caches of another.
    """
    seconds: dict[str, Seconds] = {name: {} for name in programs}
    # This run of each is not counted: it touches memory first.
    slow = {name for name, program in programs.items() if stopwatch(program) > SLOW_SECONDS}
    for number, name in turns(programs, rounds):
        if number and name in slow:
            continue
        time.sleep(pause)
        calls = [stopwatch(programs[name])]
        if pause and name not in slow:
            calls = []
            while sum(calls) < TURN_SECONDS:
                calls.append(stopwatch(programs[name]))
        seconds[name][number] = sum(calls) / len(calls)
    return seconds


def stopwatch(program: Callable[[], Any]) -> float:
    """The seconds of one run."""
    began = time.perf_counter()
    program()
    return time.perf_counter() - began


def ratio(a: Seconds, b: Seconds) -> float:
    """The median of a / b within a round, or the quotient of medians where few rounds have both."""
    both = a.keys() & b.keys()
    if len(both) > 1:
        return median(a[number] / b[number] for number in both)
    return median(a.values()) / median(b.values())


def quartiles(seconds: Seconds) -> tuple[float, float, float]:
    times = list(seconds.values())
    low, middle, high = quantiles(times, method="inclusive") if len(times) > 1 else times * 3
    return low, middle, high


def matmul_rate(size: int) -> Callable[[], float]:
    """Measures the GFLOP/s of a square float32 product: the median of five."""
    a = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    multiply = ready(jax.jit(jnp.matmul), *2 * (jax.device_put(a),))
    multiply()
    return lambda: 2e-9 * size**3 / median(stopwatch(multiply) for _ in range(5))
