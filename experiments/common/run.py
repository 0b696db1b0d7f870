"""The pipeline of a training experiment: summary, gradient check, training, results on disk."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from rich.markup import escape

import fnn
from experiments.common import processes, report
from experiments.common.console import TrainingProgress, console, gradient_check, print_summary
from experiments.common.data import Split
from experiments.common.options import CHECKPOINT, Training, writable
from experiments.common.report import PAGE, Report
from fnn.block import Block, BlockError
from fnn.training.interrupts import deferred
from fnn.training.loop import ADVICE

Metric = Callable[[Any, Any], float]


def train(
    options: Training,
    net: Block,
    loss: Block,
    train: Split,
    validation: Split | None = None,
    metrics: Mapping[str, Metric] | None = None,
    *,
    name: str = "",
    optimizer: Any = None,
    page: Report | None = None,
    **fit_options: Any,
) -> fnn.Fitted:
    """Prints the network, checks its gradients, trains it, and saves the result.

    Writes ``history.csv``, the parameters and the checkpoint for ``--resume`` into
    ``options.out``, below ``name`` if there is one, and ``report.html`` into ``options.out``: that
    of ``page``, of which a network with a ``name`` is a part. They are written also when training
    was interrupted or went wrong, which the caller sees in the answer's ``success`` and the reader
    in the message. ``optimizer`` is that of the options by default.

    Raises:
      KeyboardInterrupt: after saving, where this is one network of several (it has a ``name``).
    """
    out = writable(options.out / name)
    optimizer = optimizer or options.make_optimizer()
    key = jax.random.key(options.seed)
    # A few examples: shapes for the summary, numbers for the gradient check.
    few = jax.tree.map(lambda a: a[: min(options.batch_size, 32)], tuple(train))
    print_summary(net, jax.ShapeDtypeStruct((options.batch_size, *train.x.shape[1:]), few[0].dtype))
    params = jax.jit(net.init)(key, few[0])
    _try_out(optimizer, options.optimizer, net, loss, params, *few)
    whole = page or Report(options)
    page = whole.part(name) if name else whole
    page.add("The network", report.network(net, jax.ShapeDtypeStruct(few[0].shape, few[0].dtype)))
    page.add("Gradient check", report.gradient_check(gradient_check(net, loss, params, *few)))
    with TrainingProgress(options.epochs) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the reason is printed below
        fitted = fnn.fit(
            net, loss, *train,
            optimizer=optimizer, epochs=options.epochs,
            batch_size=options.batch_size, key=key, params=params, dtype=options.jax_dtype,
            validation=None if validation is None or not len(validation.x) else validation,
            metrics=metrics, progress=progress, diagnostics=options.diagnostics,
            checkpoint=checkpoint(options.resume, out), sharding=processes.sharding(),
            **fit_options,
        )  # fmt: skip
    fitted = processes.at_home(fitted)
    if jax.process_index():  # the first process has the rest
        return fitted
    kept = f"of epoch {fitted.best_epoch}" if fitted.history else "the last that were finite"
    print_ending(fitted, f"; the parameters kept are those {kept}")
    save(out, fitted.params, fitted.history)
    if fitted.diagnostics is not None:
        console.print(f"\n[bold]Diagnostics[/bold]\n{escape(str(fitted.diagnostics))}")
    one = jax.tree.map(lambda a: a[:1], few)
    page.add("One example on the whiteboard", report.whiteboard(net, loss, fitted.params, one))
    page.training(fitted)
    whole.write(options.out)
    if name and fitted.status == "interrupted":
        raise KeyboardInterrupt(
            f"interrupted; what was learned so far is saved in {options.out}; go on with --resume"
        )
    return fitted


def _try_out(
    optimizer: Any, name: str, net: Block, loss: Block, params: Any, x: Any, target: Any
) -> None:
    """Refuses an optimiser that does not work with these parameters."""
    step = fnn.make_step(net, loss, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = jax.eval_shape(optimizer.init, params)
            jax.eval_shape(step, params, state, x, target, jax.random.key(0))
    except BlockError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--optimizer {name} does not work here: {reason}; choose another, such as adam"
        ) from error


def scheduled(options: Training, schedule: str, data: Split, weight_decay: float = 0.0) -> Any:
    """The optimiser of the options, with a schedule of the learning rate and weight decay.

    Args:
      schedule: "constant", or "cosine": falling to 0 over all epochs of ``data``. Steps are large
        at first, and at the end so small that the noise of the batches averages out
        (Loshchilov and Hutter 2017).
      weight_decay: adds this times each parameter to its gradient, as if the loss had a term
        weight_decay/2 |params|^2.
    """
    import optax

    if schedule == "cosine":
        steps = options.epochs * -(-len(data.x) // options.batch_size)
        falling: Any = optax.cosine_decay_schedule(options.learning_rate, steps)
        options = dataclasses.replace(options, learning_rate=falling)
    optimizer = options.make_optimizer()
    if not weight_decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(weight_decay), optimizer)


def print_ending(fitted: fnn.Fitted, more: str = "") -> None:
    """Why training ended, and what can be done now."""
    console.print(f"stopped {fitted.message}{more}")
    if fitted.status == "diverged":
        console.print(f"[bold red]{ADVICE}[/bold red]")
    if fitted.status == "interrupted":
        console.print("the same command with --resume goes on from there")


def checkpoint(resume: bool, out: Path) -> Path:
    """The folder of a run's checkpoint, emptied where the run begins anew."""
    folder = out / CHECKPOINT
    if not resume:
        processes.in_one(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def save(out: Path, params: Any, history: Sequence[Mapping[str, float]]) -> None:
    """Writes ``params`` (an Orbax checkpoint) and ``history.csv`` into ``out``.

    Each replaces an earlier one only when complete; Ctrl-C waits until both are.
    """
    import orbax.checkpoint as ocp

    with deferred():
        part, last, old = (out / name for name in ("params.part", "params", "params.old"))
        alone = ocp.options.MultiprocessingOptions(active_processes={0})
        options = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
        with ocp.StandardCheckpointer(**options) as checkpointer:
            checkpointer.save(part.absolute(), params, force=True)
        shutil.rmtree(old, ignore_errors=True)
        if last.exists():
            last.rename(old)
        part.rename(last)
        shutil.rmtree(old, ignore_errors=True)
        if history:
            write_csv(out / "history.csv", history)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that replaces ``path`` when it is complete."""
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "w", newline="") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written ({error.strerror}); move it away") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the same keys, and the keys above them."""
    with replacing(path) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a dict of JSON, with null for a NaN or an infinity."""
    finite = {
        name: None if isinstance(v, float) and not math.isfinite(v) else v
        for name, v in values.items()
    }
    with replacing(path) as file:
        file.write(json.dumps(finite, indent=2, allow_nan=False) + "\n")


def predict(net: Block, params: Any, x: Any, dtype: Any) -> np.ndarray:
    """Predictions as a NumPy array, float32 or wider."""
    y = fnn.make_predict(net)(params, jax.numpy.asarray(x, dtype))
    return np.asarray(y.astype(jax.numpy.promote_types(y.dtype, jax.numpy.float32)))


def conclude(
    out: Path, results: Mapping[str, Any], fitted: fnn.Fitted, page: Report | None = None
) -> int:
    """Prints the results, writes ``results.json``, lists the files; returns the exit status.

    ``page``: the report of the run, which gets the results as its facts.

    1 if training ended by an interrupt or a loss that was not finite, 0 otherwise.
    """
    console.print()
    for label, value in results.items():
        console.print(f"[bold]{label}[/bold]: {_short(value)}")
    write_json(out / "results.json", results)
    if page is not None:
        page.facts = {name: _short(value) for name, value in results.items()} | page.facts
        page.write(out)
    folders = {"params", CHECKPOINT}
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*.*") if not folders & {*p.parts})
    console.print(f"saved in {out}: {', '.join(files)}, params")
    if page is not None:
        console.print(f"[bold]open {out / PAGE}[/bold]")
    return int(not fitted.success)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
