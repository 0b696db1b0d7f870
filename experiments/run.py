"""The pipeline of a training experiment: summary, gradient check, training, results on disk."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fnn
from experiments.console import TrainingProgress, console, gradient_check, print_summary
from experiments.data import Split
from experiments.options import Training
from fnn.block import Block

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
    **fit_options: Any,
) -> fnn.Fitted:
    """Shows the network, checks its gradients, trains it, and saves what was learned.

    Writes ``history.csv`` and the parameters into ``options.out``, below ``name`` if there is
    one. They are written also when training was interrupted or went wrong, which the caller
    sees in the answer's ``ok`` and the reader in the message. ``optimizer`` is that of the
    options by default.
    """
    out = options.out / name
    out.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(options.seed)
    # The first examples stand for all: shapes for the summary, numbers for the check.
    few = jax.tree.map(lambda a: a[: min(options.batch_size, 32)], tuple(train))
    print_summary(net, jax.ShapeDtypeStruct((options.batch_size, *train.x.shape[1:]), few[0].dtype))
    params = jax.jit(net.init)(key, few[0])
    gradient_check(net, loss, params, *few)
    with TrainingProgress(options.epochs) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the reason is printed below
        fitted = fnn.fit(
            net, loss, *train,
            optimizer=optimizer or options.make_optimizer(), epochs=options.epochs,
            batch_size=options.batch_size, key=key, params=params, dtype=options.jax_dtype,
            validation=None if validation is None or not len(validation.x) else validation,
            metrics=metrics, progress=progress, **fit_options,
        )  # fmt: skip
    best = f"; the parameters kept are those of epoch {fitted.best_epoch}"
    console.print(f"stopped {fitted.stopped}{best if fitted.history else ''}")
    save(out, fitted.params, fitted.history)
    return fitted


def scheduled(options: Training, schedule: str, steps: int, weight_decay: float = 0.0) -> Any:
    """The optimiser of the options, with a schedule of the learning rate and weight decay.

    Args:
      schedule: "constant", or "cosine": falling to 0 over ``steps``. Large steps to begin with,
        and at the end steps so small that the noise of the batches averages out (Loshchilov
        and Hutter 2017).
      weight_decay: adds this times each parameter to its gradient, as if the loss had a term
        weight_decay/2 |params|^2.
    """
    import optax

    if schedule == "cosine":
        falling: Any = optax.cosine_decay_schedule(options.learning_rate, steps)
        options = dataclasses.replace(options, learning_rate=falling)
    optimizer = options.make_optimizer()
    if not weight_decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(weight_decay), optimizer)


def save(out: Path, params: Any, history: Sequence[Mapping[str, float]]) -> None:
    """Writes ``history.csv`` and ``params`` (an Orbax checkpoint) into ``out``.

    Each is complete before it takes the place of an earlier one.
    """
    import orbax.checkpoint as ocp

    if history:
        part = out / "history.csv.part"
        with open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, list(history[0]))
            writer.writeheader()
            writer.writerows(history)
        os.replace(part, out / "history.csv")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((out / "params").absolute(), params, force=True)


def predict(net: Block, params: Any, x: Any, dtype: Any) -> np.ndarray:
    """Predictions as NumPy, float32 or wider."""
    y = fnn.make_predict(net)(params, jax.numpy.asarray(x, dtype))
    return np.asarray(y.astype(jax.numpy.promote_types(y.dtype, jax.numpy.float32)))


def conclude(out: Path, results: Mapping[str, Any], fitted: fnn.Fitted | None = None) -> int:
    """Prints the results, writes ``results.json``, lists the files; returns the exit status.

    1 if training ended by an interrupt or a loss that was not finite, 0 otherwise.
    """
    console.print()
    for label, value in results.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        console.print(f"[bold]{label}[/bold]: {text}")
    part = out / "results.json.part"
    part.write_text(json.dumps(dict(results), indent=2) + "\n")
    os.replace(part, out / "results.json")
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*.*") if "params" not in p.parts)
    console.print(f"saved in {out}: {', '.join(files)}, params")
    return 0 if fitted is None or fitted.ok else 1
