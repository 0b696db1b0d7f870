"""Attention, recurrence and language models: fnn's rules beside JAX's, Flax and PyTorch.

    python -m experiments.benchmarks sequences
    python -m experiments.benchmarks sequences --only attention --repeats 3
    python -m experiments.benchmarks sequences --only GPT-2

Each is forward and backward, for all contenders in one run, on the same threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import report, timing
from experiments.benchmarks.report import Recorded, Table
from experiments.benchmarks.sequence_cases import Task, tasks
from experiments.benchmarks.timing import Compiled, compiled, ratio, ready

PACKAGES = ("jax", "flax", "torch", "numpy")
COLUMNS = ("what", "contender", "ms (quartiles)", "ratio to fnn", "compilation, s", "temporary, MB")
ABOUT = """\
- Forward and backward, from a random cotangent or a loss to the gradients of all parameters and
  floating inputs; float32. jax.grad is of the plain formula, with attention by
  `jax.nn.dot_product_attention`; PyTorch has `scaled_dot_product_attention`, `nn.LSTM` and
  `F.cross_entropy`; torch.compile compiles the forward pass, and with it the backward pass. Flax
  and PyTorch's LSTM have weights of their own, of the same shapes. fnn's transformers keep what
  products give, of each layer 11 numbers for each token and feature, and compute the rest again.
- The median of the rounds; in each, all contenders have a turn, in random order: a pause, a call
  that is not counted, and calls one after another for 0.6 s, of which it is the mean.
  Ratios are medians of those within a round. Temporary: as XLA reports for the compiled program."""


@dataclass(kw_only=True)
class Options(Recorded):
    """Measures attention, recurrence and language models beside jax.grad, Flax and PyTorch."""

    repeats: int = 7
    """rounds; in each, every contender is timed once"""
    only: str = ""
    """only rows whose name contains this"""


def main(options: Options) -> None:
    """Measures, prints the table, and records it. Ctrl-C prints the table so far."""
    threads = report.limit_threads(options.threads)
    warnings = [f"WARNING: {warning}" for warning in report.other_work()]
    head = [report.conditions(threads, PACKAGES), *warnings]
    print("\n".join(head))
    table, interrupted = Table(COLUMNS, []), False
    try:
        for task in tasks():
            if options.only in task.name:
                table.rows.extend(rows_of(task, threads, options.repeats))
    except KeyboardInterrupt:
        interrupted = True
    table.show()
    name = f"sequences, {jax.default_backend().upper()}"
    report.record(None if interrupted else options.out, name, *head, table.markdown(), ABOUT)


def rows_of(task: Task, threads: int, repeats: int) -> list[list[str]]:
    """A row for each contender."""
    arguments = task.arguments(np.random.default_rng(0))
    programs: dict[str, Compiled] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for name, make in task.programs.items():
        try:
            programs[name] = compiled(make(), *arguments)
        except ModuleNotFoundError as error:
            print(f"left out: {name} ({error})")
        else:
            runs[name] = ready(programs[name].program, *arguments)
    try:
        import torch
    except ModuleNotFoundError as error:
        print(f"left out: PyTorch ({error})")
    else:
        torch.set_num_threads(threads)
        tensors = jax.tree.map(lambda a: _tensor(torch, a), arguments)
        runs["PyTorch eager"] = task.torch(torch, tensors, lambda f: f)
        runs["torch.compile"] = task.torch(torch, tensors, torch.compile)
    seconds = timing.alternating(runs, repeats, timing.PAUSE_SECONDS)
    rows = []
    for name in runs:
        low, middle, high = (1e3 * t for t in timing.quartiles(seconds[name]))
        program = programs.get(name)
        rows.append([
            task.name, name, f"{middle:.1f} ({low:.1f}-{high:.1f})",
            f"{ratio(seconds[name], seconds['fnn']):.2f}",
            "-" if program is None else f"{program.seconds:.1f}",
            "-" if program is None else f"{program.temporary / 1e6:.0f}",
        ])  # fmt: skip
    return rows


def _tensor(torch: Any, array: Any) -> Any:
    tensor = torch.from_numpy(np.array(array))
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor.long()
