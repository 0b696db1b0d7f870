"""Where examples come from: arrays, or a source that is read while training runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.block import BlockValueError, Value
from fnn.training.arrays import (
    Arrays,
    Check,
    Examples,
    cast,
    check_finite,
    checked_arrays,
    host_array,
    like,
    named,
    pick,
)
from fnn.training.layout import Layout
from fnn.training.processes import largest

STEPS_PER_CALL = 8  # of a source, if the caller does not say: this much is read ahead
SAMPLED = 512  # examples of a source that are summarised before training


class Source(Protocol):
    """Examples for :func:`~fnn.fit` that need not fit into memory.

    ``source[rows]``, with an int array of n indices, returns ``(x, target)``: two arrays of n
    examples each, or pytrees of such. A source that takes one integer and returns one example, as
    a list or a PyTorch dataset does, serves too. It is read in a thread of its own.

    If there is a method ``set_epoch(number)``, as PyTorch's samplers have, it is called before
    each epoch, so that random changes can differ from epoch to epoch.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class SourceError(ValueError):
    """A source that fails while training runs: which examples were to be read, and what came."""


class Stream:
    """Examples that are read from a source and checked, one call ahead of the one that runs."""

    steps_per_call = STEPS_PER_CALL
    is_split = False
    given = None

    def __init__(self, what: str, source: Source, dtype: Any) -> None:
        self.what, self.source, self.length = what, source, len(source)
        if not self.length:
            raise ValueError(f"{what} is empty: the source has length 0, needs an example")
        ends = np.array([0, self.length - 1])
        self.takes_rows = self._takes_rows(ends)
        self.like: Any = None  # one example; unknown for the first
        self.checks: list[tuple[str, int, Check]] = []
        self.like = like(checked_arrays(what, *self._read(ends[:1]), dtype))
        self.read(ends)
        self.layout: Layout | None = None

    def __len__(self) -> int:
        return self.length

    def check(self, what: str, part: int, check: Check) -> None:
        """From now on refuses x (part 0) or targets (part 1) that ``check`` refuses, as they are
        read."""
        self.checks.append((what, part, check))
        self.read(np.array([0, self.length - 1]))

    def sample(self, seed: list[int]) -> Examples:
        """Examples to summarise: some, in order."""
        count = min(SAMPLED, self.length)
        rows = np.random.default_rng(seed).choice(self.length, count, replace=False)
        return self.read(np.sort(rows))

    def on_device(self, layout: Layout | None = None, batch_size: int = 1) -> Stream:
        """The stream itself, which sends the devices of a layout their parts of each batch."""
        self.layout, self.batch_size = layout, batch_size
        return self

    def start(self, epoch: int) -> None:
        """Tells the source, if it has a use for that; it is to have as many examples as before."""
        failure = None
        try:
            if hasattr(self.source, "set_epoch"):
                self.source.set_epoch(epoch)
            if len(self.source) != self.length:
                failure = SourceError(
                    f"{self.what}: its source has {len(self.source)} examples, had {self.length} "
                    "when training began; keep the length, or train again"
                )
        except Exception as error:
            error.add_note(f"{self.what}: its source, before epoch {epoch}")
            failure = _in_training(error)
        self._require_all(failure)

    def calls(self, parts: Iterable[np.ndarray]) -> Iterator[tuple[Value, Value, np.ndarray]]:
        """For each part of an epoch's order: its examples, and the rows to use: all."""
        places = deque[np.ndarray]()

        def own() -> Iterator[np.ndarray]:
            """The rows of this process's devices."""
            for rows in parts:
                mine, at = rows, np.arange(len(rows), dtype=np.int32)
                if self.layout is not None:
                    mine, at = self.layout.shares(rows, self.batch_size)
                places.append(at)
                yield mine

        for examples in self._ahead(own()):
            x, target = examples if self.layout is None else self.layout.split(examples)
            yield x, target, places.popleft()

    def _ahead(self, parts: Iterable[np.ndarray]) -> Iterator[Examples]:
        """Examples of some rows after others, which a thread reads ahead."""
        with ThreadPoolExecutor(1) as pool:
            ahead = deque[Future[Examples]]()
            for rows in parts:
                ahead.append(pool.submit(self._read_in_training, rows))
                if len(ahead) > 1:
                    yield self._read_by_all(ahead.popleft())
            if ahead:
                yield self._read_by_all(ahead.popleft())

    def _read_by_all(self, ahead: Future[Examples]) -> Examples:
        self._require_all(ahead.exception())
        return ahead.result()

    def _require_all(self, failure: BaseException | None) -> None:
        """Raises a failure of this process, or one that a process which trains with it has."""
        if self.layout is not None and self.layout.is_shared:
            failed = largest(failure is not None)
            if failed and failure is None:
                raise SourceError(f"{self.what}: another process could not read its share")
        if failure is not None:
            raise failure

    def _read_in_training(self, rows: np.ndarray) -> Examples:
        try:
            return self.read(rows)
        except Exception as error:
            raise _in_training(error) from error

    def blocks(self, size: int) -> Iterator[Examples]:
        """All examples in order, ``size`` at a time; of those that do not divide, all are read by
        every process."""
        layout, parts = self.layout, 1 if self.layout is None else self.layout.parts
        even = self.length // parts * parts
        ends = [*range(0, even, -(-size // parts) * parts), even, self.length]
        blocks = [np.arange(*pair) for pair in pairwise(ends) if pair[0] < pair[1]]
        if layout is None:
            yield from self._ahead(blocks)
            return
        for rows, examples in zip(blocks, self._ahead(map(layout.shared, blocks)), strict=True):
            yield examples if len(rows) % parts else layout.split(examples)

    def read(self, rows: np.ndarray) -> Examples:
        """These examples as arrays on the host, refused if one of them is bad."""
        x, target = jax.tree.map(
            lambda like, a: cast(f"{self.what} or its target", a, like.dtype),
            self.like,
            self._read(rows),
        )
        for a in jax.tree.leaves(x):  # an overflow, too
            check_finite(self.what, a, rows)
        for what, part, check in self.checks:
            try:
                check((x, target)[part])
            except BlockValueError:
                for i, row in enumerate(rows):
                    with named(f"{what} of example {row}"):
                        check(pick((x, target)[part], slice(i, i + 1)))
                with named(f"{what} of {_examples(rows)}"):  # each is right on its own
                    raise
        return x, target

    def _read(self, rows: np.ndarray) -> Examples:
        if self.takes_rows:
            with self._reading(rows):
                return self._require_like(rows, self._pair(self.source[rows]), len(rows))
        examples = []
        for row in rows:
            with self._reading(np.array([row])):
                examples.append(
                    self._require_like(np.array([row]), self._pair(self.source[int(row)]))
                )
        return self._pair(jax.tree.map(lambda *leaves: np.stack(leaves), *examples))

    @contextmanager
    def _reading(self, rows: np.ndarray) -> Iterator[None]:
        """Says in an error which example could not be read."""
        try:
            yield
        except Exception as error:
            which = _examples(self._unreadable(rows))
            error.add_note(f"{self.what}: reading {which} of its source")
            raise

    def _unreadable(self, rows: np.ndarray) -> np.ndarray:
        """Of rows that could not be read, the first that cannot; all, where they can by now."""

        def fails(rows: np.ndarray) -> bool:
            try:
                self.source[rows]
            except Exception:
                return True
            return False

        first, end = 0, len(rows)
        while end - first > 1:
            middle = (first + end) // 2
            first, end = (first, middle) if fails(rows[first:middle]) else (middle, end)
        one = rows[first:end]
        return one if len(rows) == 1 or fails(one) else rows

    def _takes_rows(self, ends: np.ndarray) -> bool:
        """Whether the source takes an array of indices; otherwise it takes one integer."""
        try:
            many = self._pair(self.source[ends])
        except Exception as error:
            try:
                one = self.source[int(ends[0])]
            except Exception:
                raise error from None
            self._pair(one)
            return False
        try:
            one = self._pair(self.source[int(ends[0])])
        except Exception:
            return True
        # Code for one image may run on two as well, and crop the wrong axis.
        return _form(many) == _form(one, len(ends))

    def _pair(self, examples: Any) -> Examples:
        if not (isinstance(examples, (tuple, list)) and len(examples) == 2):
            raise TypeError(
                f"{self.what}: its source gave a {type(examples).__name__}, needs a pair "
                "(x, target)"
            )
        x, target = jax.tree.map(
            lambda a: host_array(f"{self.what} or its target", a),
            tuple(examples),
            is_leaf=lambda a: isinstance(a, list),
        )
        return x, target

    def _require_like(self, rows: np.ndarray, examples: Examples, *axis: int) -> Examples:
        """Refuses other shapes and dtypes than those of the first example."""
        if self.like is not None and _form(examples) != (needed := _form(self.like, *axis)):
            raise ValueError(
                f"{self.what}: {_examples(rows)} of its source came as {_form(examples)}, "
                f"needs {needed}, as the first example has"
            )
        return examples


@dataclass(frozen=True)
class Rows:
    """Arrays as a source, so that a memory-mapped one is never in memory whole."""

    x: Value
    target: Value

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.x)[0])

    def __getitem__(self, rows: Any) -> Any:
        return jax.tree.map(lambda a: np.asarray(a[rows]), (self.x, self.target))


def opened(what: str, data: Any, dtype: Any) -> Arrays | Stream:
    """A pair ``(x, target)`` as arrays, anything else as a source; refused if it is neither."""
    if isinstance(data, tuple):
        if len(data) != 2:
            name = what.replace("validation x", "validation")
            raise ValueError(f"{name} has {len(data)} parts, needs (x, target)")
        if any(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(data)):
            return Stream(what, Rows(*data), dtype)
        return Arrays(*checked_arrays(what, *data, dtype), data)
    is_class = isinstance(data, type)
    if (
        is_class
        or isinstance(data, Mapping)
        or hasattr(data, "shape")
        or not (hasattr(data, "__len__") and hasattr(data, "__getitem__"))
    ):
        split = " (fit does not split x)" if isinstance(data, float) else ""
        raise TypeError(
            f"{what} is a {type(data).__name__} without a target{split}, needs x and target, "
            "or a source: an object with len(source) and source[rows] -> (x, target)"
        )
    return Stream(what, data, dtype)


def _form(examples: Examples, *axis: int) -> Any:
    """Kinds and shapes of the arrays, such as ('float[64]', 'int[]')."""

    def form(a: Any) -> str:
        kind = "float" if is_floating(a) else "bool" if a.dtype == bool else "int"
        return f"{kind}{[*axis, *a.shape]}"

    return jax.tree.map(form, examples)


def _in_training(error: Exception) -> SourceError:
    """What a source has raised, with what is known of where."""
    notes = "; ".join(getattr(error, "__notes__", ()))
    failure = SourceError(f"{type(error).__name__}: {error}{f' ({notes})' if notes else ''}")
    failure.__cause__ = error
    return failure


def _examples(rows: np.ndarray) -> str:
    few = ", ".join(map(str, rows[:3])) + (", ..." if len(rows) > 3 else "")
    return f"example{'s' * (len(rows) > 1)} {few}"
