"""Why gates: the gradient on its way back through time, in a plain cell, a GRU and an LSTM.

The adding problem (Hochreiter and Schmidhuber 1997): a sequence of random numbers, two of which are
marked, one in its first half and one in its second; the answer is their sum. A network that always
says 1 has a mean square error of 1/6. To do better, the gradient of the answer has to reach the
first mark.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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
from experiments.common.options import at_least, positive_rate, seeded, writable
from experiments.common.report import Report
from experiments.common.run import write_json
from fnn.block import Block, BlockValueError, Key, Params, Value
from fnn.training.interrupts import deferred

CELLS = {"rnn": fnn.rnn_cell, "gru": fnn.gru_cell, "lstm": fnn.lstm_cell}
COLORS = {"rnn": figures.RED, "gru": figures.BLUE, "lstm": figures.GREEN}
STRETCH = 100  # updates after which Ctrl-C is heard
CHANCE = 1 / 6  # the mean square of what the sum of two numbers from 0 to 1 is away from 1


@dataclass
class Options:
    seed: int = 0
    """seeds the initial weights and the sequences"""
    length: int = 100
    """steps of a sequence"""
    width: int = 64
    """features of the state"""
    steps: int = 1500
    """updates of the weights"""
    batch_size: int = 64
    """sequences in each"""
    learning_rate: float = 3e-3
    """of Adam; gradients longer than 1 are shortened to it"""
    out: Path = Path("results/recurrent")
    """folder for report.html and figures"""
    command: Annotated[str, tyro.conf.Suppress] = ""

    def prepare(self) -> None:
        seeded(self)
        at_least(self, 1, "steps", "batch_size", "width")
        at_least(self, 4, "length")
        positive_rate(self)
        writable(self.out)


def last() -> Block:
    """y = the last step of x (B, T, F).

    >>> import jax.numpy as jnp
    >>> y, residuals = last().forward({}, jnp.array([[[1.0], [2.0]]]))
    >>> y, last().backward({}, residuals, y)[1].ravel()
    (Array([[2.]], dtype=float32), Array([0., 2.], dtype=float32))
    """

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, int]:
        if x.ndim != 3:
            raise BlockValueError("last", f"x has shape {x.shape}, needs (B, T, features)")
        return x[:, -1], x.shape[1]

    def backward(params: Params, steps: int, dy: jax.Array) -> tuple[Params, Value]:
        # forward: y = x[:, -1], so dx is dy there, and 0 at the steps before.
        return {}, jnp.pad(dy[:, None], ((0, 0), (steps - 1, 0), (0, 0)))

    return Block(lambda key, x: {}, forward, backward, "last")


def network(cell: str, width: int) -> Block:
    return fnn.serial(time=fnn.recurrent(CELLS[cell](width)), last=last(), out=fnn.linear(1))


def problem(key: jax.Array, count: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Sequences (count, length, 2) of numbers and marks, and the sums (count, 1)."""
    half, keys = length // 2, jax.random.split(key, 3)
    numbers = jax.random.uniform(keys[0], (count, length))
    first = jax.random.randint(keys[1], (count,), 0, half)
    second = jax.random.randint(keys[2], (count,), half, length)
    places = jnp.arange(length)[None]
    marks = (places == first[:, None]) | (places == second[:, None])
    marks = marks.astype(numbers.dtype)
    return jnp.stack([numbers, marks], -1), jnp.sum(numbers * marks, 1, keepdims=True)


def norms(net: Block, params: Any, x: jax.Array) -> np.ndarray:
    """|dy/dx_t| at each step t, y the answer: what of it is left that far back.

    In float64, where a gradient of 1e-45 does not underflow.
    """

    @jax.jit
    def run(params: Any, x: jax.Array) -> jax.Array:
        y, residuals = net.forward(params, x)
        dx = net.backward(params, residuals, jnp.ones_like(y))[1]
        return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(dx), -1), 0))

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x))
        return np.asarray(run(*wide))


def learned(
    net: Block, options: Options, key: jax.Array, check_interrupt: Callable[[], None]
) -> tuple[Any, Any, np.ndarray]:
    """The parameters before and after training, and the mean square of each step's error.

    Where ``check_interrupt`` raises KeyboardInterrupt these are of the steps until then.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(options.learning_rate))
    gradient = fnn.value_and_grad(net, fnn.squared_error())

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        value, grads = gradient(params, *problem(key, options.batch_size, options.length))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), 2 * value

    run = jax.jit(functools.partial(lax.scan, step))
    start, ways = jax.random.split(key)
    like = jax.eval_shape(lambda: problem(key, 1, options.length)[0])
    params = jax.jit(net.init)(start, like)
    carry, errors = (params, optimizer.init(params)), list[np.ndarray]()
    keys = jax.random.split(ways, options.steps)
    with suppress(KeyboardInterrupt):
        for done in range(0, options.steps, STRETCH):
            if done:
                check_interrupt()
            carry, values = run(carry, keys[done : done + STRETCH])
            errors.append(np.asarray(values))
    return params, carry[0], np.concatenate(errors)


def main(options: Options) -> int:
    options.prepare()
    console.print(
        f"[bold]The adding problem[/bold], {options.length} steps: by chance the mean square of "
        f"the error is {CHANCE:.3f}."
    )
    key, test = jax.random.split(jax.random.key(options.seed))
    x, t = problem(test, 512, options.length)
    before, after, errors, results, interrupted = {}, {}, {}, {}, ""
    try:
        for name in CELLS:
            with deferred() as check_interrupt:
                net = network(name, options.width)
                start, trained, errors[name] = learned(net, options, key, check_interrupt)
                before[name], after[name] = norms(net, start, x), norms(net, trained, x)
                y = np.asarray(fnn.make_predict(net)(trained, x))
                results[f"error, {name}"] = float(np.mean(np.square(y - t)))
                results[f"gradient first / last, {name}"] = float(after[name][0] / after[name][-1])
                if len(errors[name]) < options.steps:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        done = [f"{name} has learned for {len(e)} of {options.steps} updates"
                for name, e in errors.items()]  # fmt: skip
        interrupted = "; ".join([*done, *(f"{n} has not begun" for n in CELLS if n not in errors)])
        console.print(f"interrupted: {interrupted}")
    page = Report(options)
    page.table(
        "What is left of the gradient, and what is learned",
        ("cell", "|dy/dx| first step", "last step", "after training: first", "last", "error"),
        [
            (n, *(f"{v:.1e}" for v in (before[n][0], before[n][-1], after[n][0], after[n][-1])),
             f"{results[f'error, {n}']:.4f}")
            for n in errors
        ],
    )  # fmt: skip
    page.facts = {name: f"{value:.2g}" for name, value in results.items()}
    if interrupted:
        page.facts["interrupted"] = interrupted
    page.picture(
        "Back through time", _drawn(before, after, errors), options.out / "gradients.png",
        "Left: the gradient of the answer at each step's input, before training (dashed) and after "
        "it. Right: the error while it learns; grey: by chance.",
    )  # fmt: skip
    write_json(options.out / "results.json", results)
    page.write(options.out)
    console.print(f"[bold]open {options.out / 'report.html'}[/bold]")
    return int(bool(interrupted))


def _drawn(before: Any, after: Any, errors: Any) -> Figure:
    figure, (way, error) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name in before:
        color = COLORS[name]
        steps = np.arange(1, len(before[name]) + 1)
        way.semilogy(steps, before[name], color=color, ls="--", lw=1)
        way.semilogy(steps, after[name], color=color, label=name)
        smooth = np.convolve(errors[name], np.ones(25) / 25, "valid")
        error.semilogy(smooth, color=color, label=name)
    error.axhline(CHANCE, color=figures.GREY)
    way.set(xlabel="step of the sequence (the gradient comes from the right)", ylabel="|dy/dx|")
    error.set(xlabel="update", ylabel="mean square of the error")
    for axis in (way, error):
        axis.grid(alpha=0.3)
        axis.legend()
    return figure
