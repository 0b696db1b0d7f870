"""The smallest GPT makes up names: 4192 parameters, every one of which can be seen.

It is Karpathy's microgpt (2026), 1 layer of 16 features with 4 heads, which learns from 32,033
names. After training one name is drawn on the whiteboard, forward and backward, through all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from experiments.common.console import console
from experiments.common.learning import Learning, conclude, learn
from experiments.common.options import writable
from experiments.common.texts import Alphabet, text

END = "."  # of a name, and what each begins with
LENGTH = 16  # places: the longest name has 15 letters


@dataclass
class Options(Learning):
    steps: int = 2000
    batch_size: int = 32
    """names in each step"""
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    evaluate_every: int = 500
    characters: int = 20
    """names that are made up at each look at the validation names"""
    out: Path = Path("results/names")


def main(options: Options) -> int:
    options.prepare()
    names = text("names").split()
    alphabet = Alphabet.of(END + "".join(names))
    rows = np.full((len(names), LENGTH + 1), -1, np.int32)  # -1: counts for nothing
    for row, name in zip(rows, names, strict=True):
        ids = alphabet.ids(f"{END}{name}{END}"[: LENGTH + 1])
        row[: len(ids)] = ids
    rows = np.random.default_rng(options.seed).permutation(rows)
    at = int(0.9 * len(rows))
    train, validation = jnp.asarray(rows[:at]), jnp.asarray(rows[at:])
    net = fnn.models.microgpt(len(alphabet.characters), length=LENGTH)
    loss = fnn.linear_softmax_cross_entropy(ignore_label=-1)  # of logits, too
    whole = fnn.with_loss(net, loss)

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        some = train[jax.random.randint(key, (options.batch_size,), 0, len(train))]
        return jnp.maximum(some[:, :-1], 0), some[:, 1:]

    @jax.jit
    def evaluate(params: Any) -> jax.Array:
        x = jnp.maximum(validation[:, :-1], 0)
        return whole.forward({"net": params}, (x, validation[:, 1:]))[0]

    first = jnp.full((options.characters, 1), alphabet.ids(END)[0])
    make_up = jax.jit(lambda params, key: fnn.models.generate(net, params, first, LENGTH - 1, key))

    def write(params: Any, key: jax.Array) -> str:
        made = (alphabet.written(ids) for ids in np.asarray(make_up(params, key)))
        return ", ".join(name.split(END)[1] for name in made)

    console.print(
        f"[bold]Making up names[/bold]: {at} names for training, {len(rows) - at} for validation."
    )
    history, made, params = learn(options, net, loss, draw, evaluate, write)
    known = {*names}
    last = [name for name in made[-1].split(", ") if name]
    console.print(f"{sum(name not in known for name in last)} of the last {len(last)} are new")
    _draw(writable(options.out), net, params, alphabet.ids(f"{END}ada"))
    results = {
        "validation loss": min(row["validation_loss"] for row in history),
        "by chance": math.log(len(alphabet.characters)),
        "milliseconds a step": 1000 * history[-1]["seconds"] / history[-1]["step"],
    }
    return conclude(options, results, history, made, params)


def _draw(out: Path, net: fnn.Block, params: Any, ids: np.ndarray) -> None:
    """The whole network on the whiteboard, of one short name."""
    trace = fnn.whiteboard.trace(
        net, params, ids[None, :-1], ids[None, 1:], fnn.softmax_cross_entropy()
    )
    (out / "network.svg").write_text(trace.svg(), encoding="utf-8")
    console.print(f"[bold]the whole network, with its numbers: {out / 'network.svg'}[/bold]")
