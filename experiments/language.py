"""A transformer, or an LSTM, learns to write like Shakespeare, character by character.

The text is 1,115,394 characters; a network sees 64 of them and says of each what comes next. By
default it is nanoGPT's setting for a CPU: 4 layers, 4 heads, 128 wide, 2000 steps of 12 windows;
but the learning rate is 3e-3, where nanoGPT has 1e-3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from jax import lax
from matplotlib.figure import Figure

import fnn
from experiments.common import figures
from experiments.common.console import console
from experiments.common.html import text as escaped
from experiments.common.options import at_least, fractions, positive_rate, seeded, writable
from experiments.common.report import Report
from experiments.common.run import save, write_json
from experiments.common.texts import Alphabet, text
from fnn.block import Block


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
    command: Annotated[str, tyro.conf.Suppress] = ""

    def prepare(self) -> None:
        seeded(self)
        at_least(self, 1, "steps", "batch_size", "evaluate_every", "warmup", "characters")
        at_least(self, 1, "layers", "heads")
        at_least(self, 2, "length", "width")
        positive_rate(self)
        fractions(self, "dropout")
        writable(self.out)


@dataclass
class Options(Learning):
    model: Literal["transformer", "lstm"] = "transformer"
    """what reads the text"""
    length: int = 64
    """characters of a window"""
    layers: int = 4
    """how many"""
    heads: int = 4
    """of a transformer's attention"""
    width: int = 128
    """features of each character"""
    style: Literal["gpt2", "llama"] = "gpt2"
    """the shape of a transformer"""
    dropout: float = 0.0
    """fraction of features dropped at random in each step, in a transformer"""


def main(options: Options) -> int:
    options.prepare()
    whole = text("shakespeare")
    alphabet = Alphabet.of(whole)
    ids = alphabet.ids(whole)
    at = int(0.9 * len(ids))
    train, validation = jnp.asarray(ids[:at]), ids[at:]
    net = network(options, len(alphabet.characters))
    windows = _windows(validation, options.length)

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        starts = jax.random.randint(key, (options.batch_size,), 0, len(train) - options.length)
        rows = train[starts[:, None] + jnp.arange(options.length + 1)[None]]
        return rows[:, :-1], rows[:, 1:]

    def write(params: Any, key: jax.Array) -> str:
        return alphabet.written(_written(net, params, options, alphabet.ids("\n"), key))

    console.print(
        f"[bold]Writing like Shakespeare[/bold]: {len(train)} characters for training, "
        f"{len(validation)} for validation,\n{len(alphabet.characters)} different ones; by chance "
        f"the loss is {math.log(len(alphabet.characters)):.2f}."
    )
    loss = fnn.softmax_cross_entropy()
    rows, samples, params = learn(options, net, loss, draw, _evaluation(net, loss, windows), write)
    best = min(row["validation_loss"] for row in rows)
    results = {
        "validation loss": best,
        "milliseconds a step": 1000 * rows[-1]["seconds"] / rows[-1]["step"],
    }
    return conclude(options, results, rows, samples, params)


def network(options: Options, characters: int) -> Block:
    """The network that the options ask for."""
    if options.model == "transformer":
        return fnn.models.transformer(
            characters, options.width, options.layers, options.heads, length=options.length,
            style=options.style, dropout=options.dropout, use_bias=False, keep="products",
        )  # fmt: skip
    cells = {
        f"lstm_{i + 1}": fnn.recurrent(fnn.lstm_cell(options.width)) for i in range(options.layers)
    }
    embedding = fnn.embedding(characters, options.width)
    return fnn.serial(embedding=embedding, **cells, head=fnn.linear(characters))


def learn(
    options: Learning,
    net: Block,
    loss: Block,
    draw: Callable[[jax.Array], Any],
    evaluate: Callable[[Any], jax.Array],
    write: Callable[[Any, jax.Array], str],
) -> tuple[list[dict[str, float]], list[str], Any]:
    """Trains the network; prints its loss and what it writes, every so many steps.

    Args:
      options: how.
      draw: from a key to ``(x, target)``.
      evaluate: from parameters to the validation loss.
      write: from parameters and a key to a text.

    Returns:
      A row of numbers and a text for each look, and the parameters.
    """
    optimizer, gradient = descent(options), fnn.value_and_grad(net, loss)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        (params, state), (window, noise) = carry, jax.random.split(key)
        value, grads = gradient(params, *draw(window), noise)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def run(params: Any, state: Any, keys: jax.Array) -> Any:
        (params, state), values = lax.scan(step, (params, state), keys)
        return params, state, jnp.mean(values)

    start, ways, samples = jax.random.split(jax.random.key(options.seed), 3)
    params = jax.jit(net.init)(start, jax.eval_shape(draw, start)[0])
    state = optimizer.init(params)
    count = sum(p.size for p in jax.tree.leaves(params))
    console.print(f"{count} parameters\n")
    keys, rows, written = jax.random.split(ways, options.steps), [], []
    seconds, done, compiled = 0.0, 0, dict[int, Any]()
    try:
        while done < options.steps:
            some = keys[done : done + options.evaluate_every]
            if len(some) not in compiled:  # which is not counted: of at most two lengths
                compiled[len(some)] = run.lower(params, state, some).compile()
            begin = time.perf_counter()
            params, state, mean = jax.block_until_ready(compiled[len(some)](params, state, some))
            seconds, done = seconds + time.perf_counter() - begin, done + len(some)
            value, key = float(evaluate(params)), jax.random.fold_in(samples, done)
            written.append(write(params, key))
            rows.append(
                {"step": done, "loss": float(mean), "validation_loss": value, "seconds": seconds}
            )
            console.print(
                f"[bold]step {done}[/bold]: loss {float(mean):.3f}, validation {value:.3f}, "
                f"{1000 * seconds / done:.1f} ms a step"
            )
            console.print(written[-1].strip() + "\n", markup=False, highlight=False)
            if not math.isfinite(value):
                break
    except KeyboardInterrupt:
        if not rows:
            raise
        console.print(f"interrupted: what was learned until step {done} is kept")
    return rows, written[: len(rows)], params


def descent(options: Learning) -> Any:
    """AdamW with a warm-up, a half cosine and clipped gradients, all Optax's."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, options.warmup, max(options.steps, options.warmup + 1),
        options.learning_rate / 10,
    )  # fmt: skip

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(options.clip),
        optax.adamw(rate, b2=0.99, weight_decay=options.weight_decay, mask=decays),
    )


def conclude(
    options: Any,
    results: Mapping[str, float],
    rows: list[dict[str, float]],
    samples: list[str],
    params: Any,
) -> int:
    """Prints and saves the results; returns the exit status."""
    for name, value in results.items():
        console.print(f"[bold]{name}[/bold]: {value:.4f}")
    page = Report(options)
    page.facts = {name: f"{value:.4f}" for name, value in results.items()}
    steps = [row["step"] for row in rows]
    page.add("What it writes", *(
        f"<h3>after {step} steps</h3><pre>{escaped(sample.strip())}</pre>"
        for step, sample in zip(steps, samples, strict=True)
    ))  # fmt: skip
    page.picture("The loss", _drawn(rows), options.out / "loss.png", "Loss by step.")
    save(options.out, params, rows)
    write_json(options.out / "results.json", results)
    page.write(options.out)
    console.print(f"[bold]open {options.out / 'report.html'}[/bold]")
    return int(not math.isfinite(rows[-1]["validation_loss"]))


def _windows(ids: np.ndarray, length: int) -> np.ndarray:
    """All of a text in windows of ``length`` + 1 that share one character."""
    count = (len(ids) - 1) // length
    return ids[np.arange(count)[:, None] * length + np.arange(length + 1)]


def _evaluation(net: Block, loss: Block, windows: np.ndarray) -> Callable[[Any], jax.Array]:
    whole = fnn.with_loss(fnn.inference(net), loss)
    most = 64  # windows at a time
    parts = jnp.asarray(windows[: len(windows) // most * most].reshape(-1, most, windows.shape[1]))

    @jax.jit
    def evaluate(params: Any) -> jax.Array:
        def one(rows: jax.Array) -> jax.Array:
            return whole.forward({"net": params}, (rows[:, :-1], rows[:, 1:]))[0]

        return jnp.mean(lax.map(one, parts))

    return evaluate


def _written(
    net: Block, params: Any, options: Options, first: np.ndarray, key: jax.Array
) -> np.ndarray:
    """A text: where the network has no more positions, it goes on from the last half window."""
    half = max(options.length // 2, 1)

    def more(ids: jax.Array, new: int, key: jax.Array) -> np.ndarray:
        return np.asarray(_GENERATE(net, params, ids, new, key))[0, ids.shape[1] :]

    keys = iter(jax.random.split(key, options.characters + 2))
    ids = first
    while len(ids) <= options.characters:
        beginning = ids[-half:] if len(ids) >= half else ids[-1:]
        new = options.length - half if len(beginning) == half else options.length - 1
        ids = np.concatenate([ids, more(jnp.asarray(beginning[None]), new, next(keys))])
    return ids[: options.characters + 1]


_GENERATE = jax.jit(fnn.models.generate, static_argnums=(0, 3))


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
