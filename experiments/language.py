"""A transformer, or an LSTM, learns to write like Shakespeare, character by character.

The text is 1,115,394 characters; a network sees 64 of them and says of each what comes next. By
default it is nanoGPT's setting for a CPU: 4 layers, 4 heads, 128 wide, 2000 steps of 12 windows;
but the learning rate is 3e-3, where nanoGPT has 1e-3.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fnn
from experiments.common.console import console
from experiments.common.learning import Learning, conclude, is_over, learn
from experiments.common.options import at_least
from experiments.common.texts import Alphabet, text
from fnn.block import Block


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
    beside_torch: int = 0
    """after training, time so many steps of this network in PyTorch too, in turns with fnn's"""

    def prepare(self) -> None:
        at_least(self, 0, "beside_torch")
        if self.beside_torch:
            if (self.model, self.style, self.dropout) != ("transformer", "gpt2", 0.0):
                raise ValueError(
                    "--beside-torch is of a transformer in GPT-2's style without dropout; leave it "
                    "out, or give --model transformer --style gpt2 --dropout 0"
                )
            if importlib.util.find_spec("torch") is None:
                raise ValueError(
                    "--beside-torch needs PyTorch: pip install -e '.[bench]', or leave it out"
                )
        super().prepare()


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
    if options.beside_torch and is_over(rows, options.steps):
        from experiments.benchmarks.beside_torch import beside

        times = beside(options, net, loss, draw, params, options.heads, options.beside_torch)
        results |= {
            "milliseconds a step, fnn in turns": times.fnn,
            "milliseconds a step, PyTorch eager in turns": times.torch,
            "PyTorch's time / fnn's": times.ratio,
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
