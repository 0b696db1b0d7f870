"""A learner's functions: loaded from a file and called; what goes wrong is put into words."""

from __future__ import annotations

import contextlib
import linecache
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from experiments.course.exercise import Exercise, upstream_name

SECONDS = 5.0  # that one call of the learner's functions may take; they take microseconds


class Unfinished(Exception):
    """What is asked is not filled in yet."""


class Broken(Exception):
    """The file does not run, or returns something else than arrays; ``hint`` says what may help."""

    def __init__(self, says: str, hint: str = "") -> None:
        super().__init__(says)
        self.hint = hint


class TooLong(BaseException):
    """A call took too long; no Exception, so that ``except Exception`` lets it pass."""


class Learner:
    """Forward and backward of a learner's file."""

    def __init__(self, path: Path, exercise: Exercise) -> None:
        self.path, self.exercise = path, exercise
        names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
        with self._kindly():
            exec(compile(path.read_bytes(), str(path), "exec"), names)
        for name in ("forward", "backward"):
            if not callable(names.get(name)):
                raise Broken(
                    f"there is no function {name} in it",
                    "Give your file another name and run course again: it writes the original.",
                )
        self.forward: Callable[..., Any] = names["forward"]
        self.backward: Callable[..., Any] = names["backward"]
        self.upstream = upstream_name(self.backward)

    def outputs(self, inputs: Sequence[np.ndarray]) -> Any:
        """What forward returns, (y, residuals); where it takes single numbers, y is an array."""
        with self._kindly():
            if not self.exercise.by_number:
                return self.forward(*_copies(inputs))
            calls = [self.forward(*numbers) for numbers in zip(*inputs, strict=True)]
            return np.array([y for y, _ in calls]), [residuals for _, residuals in calls]

    def gradients(self, inputs: Sequence[np.ndarray], dy: np.ndarray) -> tuple[np.ndarray, ...]:
        """What backward returns, as arrays of float64.

        Raises:
          Unfinished: something is still blank.
          Broken: it raises, takes too long, or does not return numbers.
        """
        with self._kindly():
            if not self.exercise.by_number:
                _, residuals = self.forward(*_copies(inputs))
                returned = self.backward(residuals, np.array(dy))
                return self._arrays(returned)
            columns = []
            for numbers, d in zip(zip(*inputs, strict=True), dy, strict=True):
                _, residuals = self.forward(*numbers)
                columns.append(self._arrays(self.backward(residuals, d)))
            return tuple(np.stack(column) for column in zip(*columns, strict=True))

    def _arrays(self, returned: Any) -> tuple[np.ndarray, ...]:
        names = self.exercise.gradients
        asked = ", ".join(names)
        if returned is None:
            raise Broken("backward returns nothing", f"Its last line needs to be: return {asked}")
        several = isinstance(returned, tuple) or (isinstance(returned, list) and len(names) > 1)
        parts = returned if several else (returned,)
        blank = [n for n, part in zip(names, parts, strict=False) if part is Ellipsis]
        if blank:
            *some, last = blank
            be = f"{', '.join(some)} and {last} are" if some else f"{last} is"
            raise Unfinished(f"{be} still to be filled in")
        if len(parts) != len(names):
            raise Broken(
                f"backward returns {len(parts)} gradient{'s' * (len(parts) != 1)}, and needs to "
                f"return {len(names)}",
                f"Its last line needs to be: return {asked}",
            )
        return tuple(map(_number_array, names, parts))

    @contextlib.contextmanager
    def _kindly(self) -> Iterator[None]:
        """Puts what goes wrong in the learner's code into words, with the line."""
        try:
            with _limit(SECONDS), np.errstate(all="ignore"):
                yield
        except (Unfinished, Broken):
            raise
        except SyntaxError as error:
            line = (error.text or "").strip()
            where = f"line {error.lineno}" if error.lineno else "it"
            raise Broken(
                f"{where} is not Python: {error.msg}" + (f"\n    {line}" if line else "")
            ) from error
        except TooLong as error:
            raise Broken(
                f"{self._line(error.__traceback__)}still ran after {SECONDS:g} seconds",
                "Is there a loop that never ends?",
            ) from error
        except (Exception, SystemExit) as error:
            if re.search("ellipsis", str(error), re.IGNORECASE):
                words = "something is still ..., and used by another line"
                raise Unfinished(f"{self._line(error.__traceback__)}{words}") from error
            name, text = type(error).__name__, str(error).partition("\n")[0]
            text = re.sub(r" with gufunc signature \S+", "", text)
            raise Broken(
                f"{self._line(error.__traceback__)}raises {name}{text and f': {text}'}",
                self._shapes(error.__traceback__),
            ) from error

    def _frame(self, trace: TracebackType | None) -> tuple[FrameType, int] | None:
        """The last frame in the learner's file, and its line."""
        frames = [f for f in traceback.walk_tb(trace) if f[0].f_code.co_filename == str(self.path)]
        return frames[-1] if frames else None

    def _line(self, trace: TracebackType | None) -> str:
        if (found := self._frame(trace)) is None:
            return "it "
        linecache.checkcache(str(self.path))
        text = linecache.getline(str(self.path), found[1]).strip()
        return f"line {found[1]} ({text}) "

    def _shapes(self, trace: TracebackType | None) -> str:
        """The shapes of the arrays that the failing line could see."""
        if (found := self._frame(trace)) is None:
            return ""
        arrays = found[0].f_locals.items()
        shapes = [
            f"{name} {v.shape}"
            for name, v in arrays
            if isinstance(v, np.ndarray) and name != "residuals"
        ]
        return f"The shapes there: {', '.join(shapes)}." if shapes else ""


def _copies(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Copies, so that the learner may write into them."""
    return [np.array(a) for a in arrays]


def _number_array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # a list of lists of different lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        kind = type(value).__name__
        kind = "a list" if kind == "list" else f"of type {kind}" if value is not None else "None"
        raise Broken(f"{name} is {kind}, and needs to be a number or an array of numbers")
    return array.astype(np.float64)


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raises TooLong in the block after some seconds, where the system has such an alarm."""

    def ring(*_: Any) -> None:
        raise TooLong

    try:
        before = signal.signal(signal.SIGALRM, ring)
    except (AttributeError, ValueError):  # Windows; or not the main thread
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
