"""How language models are trained: in stretches of steps, with a look after each.

A look is a validation loss and a text that the network writes. Each is saved: a run that was
stopped goes on after the last with ``--resume``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
import tyro
from jax import lax
from matplotlib.figure import Figure

import fnn
from experiments.common import figures
from experiments.common.console import console
from experiments.common.html import text as escaped
from experiments.common.looks import looks
from experiments.common.options import (
    at_least,
    fractions,
    positive_rate,
    resumable,
    seeded,
    writable,
)
from experiments.common.report import Report
from experiments.common.run import save, write_json
from fnn.block import Block
from fnn.training.interrupts import deferred

Draw = Callable[[jax.Array], Any]
B2 = 0.99  # of AdamW


@dataclass
class Learning:
    """How a language model is trained, and how often it is looked at."""

    seed: int = 0
    """seeds the initial weights, what is drawn from the data, dropout and what is written"""
    steps: int = 2000
    """updates of the weights"""
    batch_size: int = 12
    """windows of the text in each step"""
    learning_rate: float = 3e-3
    """the largest, after the warm-up; it falls to a tenth along a half cosine"""
    warmup: int = 100
    """steps in which the learning rate rises from 0"""
    weight_decay: float = 0.1
    """of matrices, by AdamW"""
    clip: float = 1.0
    """the largest norm of a gradient; longer ones are shortened to it"""
    evaluate_every: int = 250
    """steps between two looks at the validation text"""
    characters: int = 300
    """how many are written at each of them"""
    out: Path = Path("results/language")
    """folder for report.html, history.csv, the parameters and figures"""
    resume: bool = False
    """go on where an earlier run in --out was stopped; give its other options again"""
    command: Annotated[str, tyro.conf.Suppress] = ""

    def prepare(self) -> None:
        seeded(self)
        at_least(self, 1, "steps", "batch_size", "evaluate_every", "warmup", "characters")
        at_least(self, 1, "layers", "heads")
        at_least(self, 2, "length", "width")
        positive_rate(self)
        fractions(self, "dropout")
        writable(self.out)
        resumable(self)


def learn(
    options: Learning,
    net: Block,
    loss: Block,
    draw: Draw,
    evaluate: Callable[[Any], jax.Array],
    write: Callable[[Any, jax.Array], str],
) -> tuple[list[dict[str, Any]], list[str], Any]:
    """Trains the network; prints its loss and what it writes, every so many steps.

    Args:
      options: how.
      draw: from a key to ``(x, target)``.
      evaluate: from parameters to the validation loss.
      write: from parameters and a key to a text.

    Returns:
      A row of numbers and a text for each look, and the parameters of the last.
    """
    optimizer, run = descent(options), stretch(options, net, loss, draw)
    start, ways, samples = jax.random.split(jax.random.key(options.seed), 3)
    params = jax.jit(net.init)(start, jax.eval_shape(draw, start)[0])
    count = sum(p.size for p in jax.tree.leaves(params))
    console.print(f"{count} parameters\n")
    keys, compiled = jax.random.split(ways, options.steps), dict[int, Any]()
    with looks(options) as saved:
        (params, state), facts = saved.last((params, optimizer.init(params)))
        rows, written = facts.get("rows", []), facts.get("written", [])
        done, seconds = (rows[-1]["step"], rows[-1]["seconds"]) if rows else (0, 0.0)
        if done:
            console.print(f"goes on after step {done}")
        try:
            while not is_over(rows, options.steps):
                some = keys[done : done + options.evaluate_every]
                if len(some) not in compiled:  # which is not counted: of at most two lengths
                    compiled[len(some)] = run.lower(params, state, some).compile()
                with deferred():  # Ctrl-C waits until the look is complete
                    begin = time.perf_counter()
                    params, state, losses = jax.block_until_ready(
                        compiled[len(some)](params, state, some)
                    )
                    seconds, done = seconds + time.perf_counter() - begin, done + len(some)
                    mean, value = float(jnp.mean(losses)), float(evaluate(params))
                    written.append(write(params, jax.random.fold_in(samples, done)))
                    rows.append(
                        {"step": done, "loss": mean, "validation_loss": value, "seconds": seconds}
                    )
                    saved.save(done, (params, state), {"rows": rows, "written": written})
                    console.print(
                        f"[bold]step {done}[/bold]: loss {mean:.3f}, validation {value:.3f}, "
                        f"{1000 * seconds / done:.1f} ms a step"
                    )
                    console.print(written[-1].strip() + "\n", markup=False, highlight=False)
        except KeyboardInterrupt:
            if not rows:
                raise
            console.print(
                f"interrupted: what was learned until step {done} is kept; the same command with "
                "--resume goes on from there"
            )
    return rows, written, params


def is_over(rows: list[dict[str, Any]], steps: int) -> bool:
    """Whether a run has done its steps, or has a loss that is not finite."""
    return bool(rows) and (
        rows[-1]["step"] >= steps or not math.isfinite(rows[-1]["validation_loss"])
    )


def stretch(options: Learning, net: Block, loss: Block, draw: Draw) -> Any:
    """``run(params, state, keys) -> (params, state, losses)``: a step for each key, compiled."""
    optimizer, gradient = descent(options), fnn.value_and_grad(net, loss)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        (params, state), (window, noise) = carry, jax.random.split(key)
        value, grads = gradient(params, *draw(window), noise)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def run(params: Any, state: Any, keys: jax.Array) -> Any:
        (params, state), losses = lax.scan(step, (params, state), keys)
        return params, state, losses

    return run


def descent(options: Learning) -> Any:
    """AdamW with a warm-up, a half cosine and clipped gradients, all Optax's."""

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(options.clip),
        optax.adamw(rate(options), b2=B2, weight_decay=options.weight_decay, mask=decays),
    )


def rate(options: Learning) -> Callable[[Any], Any]:
    """The learning rate of each step."""
    return optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, options.warmup, max(options.steps, options.warmup + 1),
        options.learning_rate / 10,
    )  # fmt: skip


def conclude(
    options: Learning,
    results: Mapping[str, float],
    rows: list[dict[str, Any]],
    samples: list[str],
    params: Any,
) -> int:
    """Prints and saves the results; returns the exit status, 1 where a run was interrupted."""
    for name, value in results.items():
        console.print(f"[bold]{name}[/bold]: {value:.4f}")
    page = Report(options)
    page.facts = {name: f"{value:.4f}" for name, value in results.items()}
    steps = [row["step"] for row in rows]
    if not is_over(rows, options.steps):
        page.facts["interrupted"] = f"after step {steps[-1]} of {options.steps}"
    page.add("What it writes", *(
        f"<h3>after {step} steps</h3><pre>{escaped(sample.strip())}</pre>"
        for step, sample in zip(steps, samples, strict=True)
    ))  # fmt: skip
    page.picture("The loss", _drawn(rows), options.out / "loss.png", "Loss by step.")
    save(options.out, params, rows)
    write_json(options.out / "results.json", results)
    page.write(options.out)
    console.print(f"[bold]open {options.out / 'report.html'}[/bold]")
    return int(steps[-1] < options.steps or not math.isfinite(rows[-1]["validation_loss"]))


def _drawn(rows: list[dict[str, float]]) -> Figure:
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = [row["step"] for row in rows]
    axis.plot(steps, [row["loss"] for row in rows], color=figures.BLUE, label="training")
    validation = [row["validation_loss"] for row in rows]
    axis.plot(steps, validation, color=figures.ORANGE, label="validation")
    axis.set(xlabel="step", ylabel="loss")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure
