"""Many minima that are about the same: how the spread of final losses shrinks with width.

After Choromanska et al., "The loss surfaces of multilayer networks" (2015), figure 3, and the
statement of Pascanu, Dauphin et al. (2014). All networks of a width are trained at once, as one
compiled program.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from experiments.common.console import console, table
from experiments.common.data import Dataset, load
from experiments.common.figures import BLUE, GREY, ORANGE, plt
from experiments.common.options import at_least, positive_rate
from experiments.common.run import write_csv
from experiments.landscape import page
from experiments.landscape.study import Study, descent, interval, progress

TITLE = "Many minima which are about the same"
LOSS = fnn.softmax_cross_entropy()
NAMES = {"train": "training loss", "test": "test loss"}


@dataclass(kw_only=True)
class Minima(Study):
    """256 networks at each of six widths, trained at once: how much their final losses differ."""

    networks: int = 256
    """networks of each width"""
    widths: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """hidden units"""
    epochs: int = 60
    """passes over the training data"""
    batch_size: int = 64
    """examples per step"""
    learning_rate: float = 0.1
    """of the first step; it falls to 0 as a cosine"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 2, "networks")
        at_least(self, 1, "widths", "epochs", "batch_size")
        positive_rate(self)


def network(width: int) -> fnn.Block:
    """One hidden layer."""
    return fnn.models.mlp((width, 10), fnn.tanh())


def at_once(epoch: Callable[..., Any]) -> Callable[..., Any]:
    """The same epoch for many networks: each has its own parameters and order of examples."""
    return jax.jit(jax.vmap(epoch, in_axes=(0, 0, None, None, 0)))


@partial(jax.jit, static_argnums=0)
def losses_and_errors(net: fnn.Block, params: Any, x: Any, target: Any) -> tuple[Any, Any]:
    """Of every network: the mean loss and the share of wrong answers."""

    def one(params: Any) -> tuple[Any, Any]:
        logits = net.forward(params, x)[0]
        value = LOSS.forward({}, (logits, target))[0]
        return value, jnp.mean(jnp.argmax(logits, -1) != target)

    return jax.vmap(one)(params)


def minima(options: Minima) -> int:
    data = load("digits", options.seed)
    console.print(
        f"{options.networks} networks of each width learn {len(data.train.x)} digits at once."
    )
    rows: list[dict[str, Any]] = []
    ratios: dict[int, float] = {}
    with progress() as bar:
        task = bar.add_task("", total=sum(options.widths) * options.epochs)
        for width in options.widths:
            bar.update(task, description=f"width {width}")
            tick = partial(bar.advance, task, width)
            found, ratios[width] = _trained(width, options, data, tick)
            rows += found
    write_csv(options.out / "minima.csv", rows)
    _report(options, rows, ratios)
    return 0


def _trained(
    width: int, options: Minima, data: Dataset, tick: Callable[[], None]
) -> tuple[list[dict[str, Any]], float]:
    """A row for each network; and how much faster they are trained together."""
    net, (x, target) = network(width), jax.device_put(data.train)
    key = jax.random.key(options.seed)
    params = jax.vmap(net.init, (0, None))(jax.random.split(key, options.networks), x)
    optimizer = descent(options.learning_rate, options.epochs, options.batch_size, len(x))
    epoch = fnn.make_epoch(net, LOSS, optimizer, options.batch_size)
    state = jax.vmap(optimizer.init)(params)
    together, rng = at_once(epoch), np.random.default_rng(options.seed)

    def orders() -> np.ndarray:
        return rng.permuted(np.tile(np.arange(len(x)), (options.networks, 1)), axis=1)

    seconds = []
    for _ in range(options.epochs):
        begin, order = time.perf_counter(), orders()
        params, state, _ = jax.block_until_ready(together(params, state, x, target, order))
        seconds.append(time.perf_counter() - begin)
        tick()
    one = _seconds_alone(epoch, params, state, x, target)
    ratio = options.networks * one / float(np.median(seconds[1:] or seconds))
    columns: dict[str, Any] = {"width": [width] * options.networks}
    columns["network"] = range(options.networks)
    for part in ("train", "test"):
        value, error = losses_and_errors(net, params, *data.splits[part])
        columns |= {f"{part}_loss": np.asarray(value), f"{part}_error": np.asarray(error)}
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return rows, ratio


def _seconds_alone(epoch: Callable[..., Any], params: Any, state: Any, *data: Any) -> float:
    """The seconds of an epoch of one network, without those of its compilation."""
    times = []
    for i in range(4):
        own = jax.tree.map(lambda leaf, i=i: jnp.array(leaf[i % len(leaf)]), (params, state))
        order = np.arange(len(data[0]))
        begin = time.perf_counter()
        jax.block_until_ready(epoch(*own, *data, order))
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


# ---- what is shown ---------------------------------------------------------------------------


def spread(values: np.ndarray) -> Any:
    """The standard deviation over the last axis."""
    return np.std(values, -1, ddof=1)


def _report(options: Minima, rows: list[dict[str, Any]], ratios: dict[int, float]) -> None:
    by_width = {
        width: {k: np.array([r[k] for r in rows if r["width"] == width]) for k in rows[0]}
        for width in options.widths
    }
    cells = []
    for width, own in by_width.items():
        low, high = interval(own["test_loss"], spread, options.seed)
        cells.append(
            (
                width, f"{own['train_loss'].mean():.4f}", f"{spread(own['train_loss']):.4f}",
                f"{own['test_loss'].mean():.4f}",
                f"{spread(own['test_loss']):.4f} ({low:.4f} to {high:.4f})",
                f"{own['test_error'].mean():.4f}", f"{spread(own['test_error']):.4f}",
                f"{ratios[width]:.1f}",
            )
        )  # fmt: skip
    columns = (
        "width", "training loss", "spread", "test loss", "spread (95 %)", "test error", "spread",
        "speed-up",
    )  # fmt: skip
    table(TITLE, columns, cells)
    first, last = (by_width[width] for width in (options.widths[0], options.widths[-1]))
    less = spread(first["test_loss"]) / spread(last["test_loss"])
    words = (
        f"From {options.widths[0]} to {options.widths[-1]} hidden units the spread of the final "
        f"test losses shrinks by a factor of {less:.1f}."
    )
    console.print(words)
    page.write(
        options.out, "minima", TITLE,
        page.paragraph(
            f"{options.networks} networks at each width learn the digits, from their own initial "
            "weights and in their own order. Narrow networks end in minima of very different "
            f"loss; wide ones nearly all in minima that are about the same. {words}"
        ),
        page.figure(_distributions(by_width), options.out / "minima.png",
            "Left and middle: the final losses of all networks of a width. Right: their standard "
            "deviation against the width, with 95 % intervals (bootstrap).",
        ),
        page.numbers(columns, cells),
        page.paragraph("Speed-up: of an epoch of all networks at once over as many one by one."),
        page.code(network, descent, at_once, losses_and_errors),
    )  # fmt: skip
    console.print(f"saved in {options.out}: report.html, minima.png, minima.csv")


def _distributions(by_width: dict[int, dict[str, np.ndarray]]) -> Any:
    picture, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    widths, places = list(by_width), range(len(by_width))
    for axis, part, color in zip(axes, ("train", "test"), (BLUE, ORANGE), strict=False):
        values = [np.log10(own[f"{part}_loss"] + 1e-12) for own in by_width.values()]
        bodies = axis.violinplot(values, places, widths=0.85, showextrema=False, showmedians=True)
        for body in bodies["bodies"]:
            body.set(facecolor=color, alpha=0.7)
        bodies["cmedians"].set_color(GREY)
        axis.set_xticks(places, widths)
        low, high = min(map(np.min, values)), max(map(np.max, values))
        ticks = np.arange(np.floor(low), np.ceil(high) + 0.5)
        axis.set_yticks(ticks, [f"{10**t:g}" for t in ticks])
        axis.set(xlabel="hidden units", title=f"Final {NAMES[part]}")
    for part, color in (("train", BLUE), ("test", ORANGE)):
        middle = np.array([spread(own[f"{part}_loss"]) for own in by_width.values()])
        ends = np.array([interval(own[f"{part}_loss"], spread) for own in by_width.values()])
        axes[2].errorbar(
            widths, middle, np.abs(ends.T - middle), color=color, marker="o", ms=4, capsize=3,
            label=NAMES[part],
        )  # fmt: skip
    axes[2].set(xscale="log", yscale="log", xlabel="hidden units", title="Standard deviation")
    axes[2].set_xticks(widths, widths)
    axes[2].minorticks_off()
    axes[2].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return picture
