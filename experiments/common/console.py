"""What a run prints: one console, tables, and the progress of training."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

import fnn
from fnn.block import Block
from fnn.introspect.summary import Summary


class PatientConsole(Console):
    """Falls silent when its reader leaves (``| head``), so that training goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# A file or a pipe has no width; rich would cut lines at 80.
console = PatientConsole(
    highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120
)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], left: int = 1) -> None:
    """Prints a table; columns after the first ``left`` are right-aligned."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    console.print(grid)


@contextlib.contextmanager
def copied() -> Iterator[list[str]]:
    """Gives a list, which after the block has what was printed in it, as plain text."""
    text: list[str] = []
    with console.capture() as captured:
        yield text
    printed = Text.from_ansi(captured.get())
    console.print(printed, end="")
    text.append(printed.plain)


def print_summary(net: Block, x: Any, parts: bool = True) -> None:
    """Prints the network block by block; without ``parts``, its outermost blocks alone."""
    summary = fnn.summary(net, x)
    rows = summary.rows
    if not parts:
        rows = []
        for name, group in itertools.groupby(summary.rows, lambda r: r.path.partition("/")[0]):
            inside = list(group)
            kind = inside[0].block if len(inside) == 1 else f"{len(inside)} blocks"
            parameters = sum(r.parameters for r in inside)
            rows.append(inside[-1]._replace(path=name, block=kind, parameters=parameters))
    table("The network", SUMMARY_COLUMNS, summary_rows(summary._replace(rows=rows)))


SUMMARY_COLUMNS = ("block", "kind", "output", "parameters")


def summary_rows(summary: Summary) -> list[tuple[str, str, str, str]]:
    """The cells of a summary's table; the last row is the total."""
    rows = [(r.path, r.block, r.output, f"{r.parameters:,}") for r in summary.rows]
    return [*rows, ("total", "", "", f"{summary.parameters:,}")]


GradientRow = tuple[str, str, str, str]
GRADIENT_COLUMNS = ("parameter", "shape", "largest gradient", "largest relative error")


def gradient_check(net: Block, loss: Block, params: Any, x: Any, target: Any) -> list[GradientRow]:
    """Prints the largest relative error of every parameter's gradient against ``jax.grad``.

    Both in float64, on a few examples, relative to the parameter's largest gradient: the
    difference is rounding. Returns the rows of the table.
    """
    with jax.enable_x64(True):
        params, x, target = jax.tree.map(_wide, (params, x, target))
        key = jax.random.key(0)

        def run(params: Any) -> Any:
            whole = fnn.with_loss(net, loss)
            errors, _ = fnn.check.errors(whole, {"net": params}, (x, target), jnp.ones(()), key)
            return fnn.value_and_grad(net, loss)(params, x, target, key)[1], errors["net"]

        gradients, errors = jax.jit(run)(params)
    errors = dict(jax.tree_util.tree_leaves_with_path(errors))  # none for frozen parameters
    rows: list[GradientRow] = []
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        largest = np.max(np.abs(gradient), initial=0.0)
        error = f"{errors[path]:.1e}" if path in errors else "not trained"
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append((name, str(gradient.shape), f"{largest:.3g}", error))
    table("Gradients by hand against jax.grad (float64)", GRADIENT_COLUMNS, rows)
    return rows


def _wide(a: Any) -> np.ndarray:
    a = np.asarray(a)
    return a if np.issubdtype(a.dtype, np.integer) else a.astype(np.float64)


class TrainingProgress(Progress):
    """Progress of training: a bar with the time to finish, and about ``lines`` lines.

    Used as ``with TrainingProgress(epochs) as progress: fit(..., progress=progress)``.
    """

    def __init__(self, epochs: int, lines: int = 12) -> None:
        self.epochs = epochs
        self.every = max(1, -(-epochs // lines))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        left = TextColumn("{task.fields[left]}")
        super().__init__(*columns, left, console=console, transient=True)
        self.task = self.add_task("compiling", total=epochs, left="")

    def within(self, epoch: int, part: float, left: float) -> None:
        """Within an epoch: ``part`` (0 to 1) of it is done; ``left`` is in seconds."""
        self._show(epoch - 1 + part, f"{left:.0f} s left")

    def __call__(self, row: dict[str, float], left: float) -> None:
        epoch = int(row["epoch"])
        # The first epoch includes compilation: an upper bound.
        bound = "at most " if epoch == 1 else ""
        self._show(epoch, f"{bound}{left:.0f} s left")
        if epoch == 1 or epoch == self.epochs or epoch % self.every == 0:
            values = {k: v for k, v in row.items() if k not in ("epoch", "seconds")}
            cells = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items()]
            text = "  ".join([*cells, f"{row['seconds']:.1f} s"])
            self.console.print(f"epoch {epoch:>{len(str(self.epochs))}}  {text}")

    def _show(self, epochs: float, left: str) -> None:
        self.update(self.task, completed=epochs, description="training", left=left)
