"""Are two minima connected? The loss on the way from one trained network to another.

Four ways: the straight line; the straight line after the hidden units of one were put into the
order of the other's (Ainsworth et al., "Git Re-Basin", 2023); a trained curve (Garipov et al.,
2018); and the straight line between two networks of one initialisation that saw the data in
different orders (Frankle et al., 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fnn
from experiments.common.console import console, table
from experiments.common.data import Split, load
from experiments.common.figures import BLUE, GREEN, ORANGE, RED, plt
from experiments.common.options import at_least, positive_rate
from experiments.common.run import write_csv
from experiments.landscape import page
from experiments.landscape.permutations import matched, permutable, permuted
from experiments.landscape.study import Study, descent, progress
from fnn.curvature.vectors import as_tangent

TITLE = "Connected minima"
LOSS = fnn.softmax_cross_entropy()
MEASURED = 10_000  # training examples on which the loss along a way is measured
COLORS = (RED, BLUE, GREEN, ORANGE)


@dataclass(kw_only=True)
class Connected(Study):
    """The loss along four ways from one trained network to another."""

    data: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """data set"""
    data_dir: Path | None = None
    """folder that holds mnist/; else $FNN_DATA, the cache, or a download"""
    hidden: tuple[int, ...] = (512, 512)
    """hidden units of each layer"""
    epochs: int = 8
    """passes over the training data, for each network and for the curve"""
    batch_size: int = 128
    """examples per step"""
    learning_rate: float = 0.1
    """of the first step; it falls to 0 as a cosine"""
    points: int = 25
    """points along each way"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 1, "hidden", "epochs", "batch_size")
        at_least(self, 3, "points")
        positive_rate(self)


Way = Callable[[Any], Any]  # from t in 0..1 to parameters


def line(start: Any, end: Any) -> Way:
    """The straight line; refused between networks of different shapes."""
    as_tangent("line", "end", end, start, "start")
    return lambda t: jax.tree.map(lambda a, b: (1 - t) * a + t * b, start, end)


def bezier(start: Any, bend: Any, end: Any) -> Way:
    """The curve from start to end that the bend pulls to its side; refused as :func:`line` is."""
    for name, other in (("bend", bend), ("end", end)):
        as_tangent("bezier", name, other, start, "start")

    def point(t: Any) -> Any:
        weights = (1 - t) ** 2, 2 * t * (1 - t), t**2
        a, b, c = weights
        return jax.tree.map(lambda p, q, r: a * p + b * q + c * r, start, bend, end)

    return point


def curve_step(gradient: Any, optimizer: fnn.Optimizer, start: Any, end: Any) -> Any:
    """A step that moves the bend of a Bezier curve downhill, at a random point of the curve."""

    def step(bend: Any, state: Any, x: Any, target: Any, t: Any) -> tuple[Any, Any]:
        _, grads = gradient(bezier(start, bend, end)(t), x, target)
        grads = jax.tree.map(lambda g: 2 * t * (1 - t) * g, grads)  # by the chain rule
        updates, state = optimizer.update(grads, state, bend)
        return fnn.apply_updates(bend, updates), state

    return step


def along(net: fnn.Block, way: Way, data: Split, points: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss and the share of wrong answers at points from t = 0 to 1."""
    x, target = jax.device_put(data)

    def measured(t: Any) -> tuple[Any, Any]:
        logits = net.forward(way(t), x)[0]
        wrong = jnp.argmax(logits, -1) != target
        return LOSS.forward({}, (logits, target))[0], jnp.mean(wrong)

    ts = jnp.linspace(0, 1, points)
    losses, errors = jax.jit(partial(lax.map, measured))(ts)
    return np.asarray(losses), np.asarray(errors)


def barrier(losses: np.ndarray) -> float:
    """How much higher the way goes than the mean of its ends."""
    return float(losses.max() - (losses[0] + losses[-1]) / 2)


class Measured(NamedTuple):
    """A way and what was measured along it, by part of the data."""

    name: str
    losses: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]


def connected(options: Connected) -> int:
    data = load(options.data, options.seed, options.data_dir)
    net = fnn.models.mlp((*options.hidden, len(data.class_names)))
    with progress() as bar:
        task = bar.add_task("", total=4 * options.epochs + 4)
        run = _Training(net, options, data.train, partial(bar.advance, task))
        bar.update(task, description="networks")
        a, b, c = run.network(0, 0), run.network(1, 1), run.network(0, 2)
        groups = permutable(net, a, data.train.x)
        near = matched(a, b, groups, options.seed)
        bar.update(task, description="curve")
        bend = run.curve(a, b)
        ways = {
            "straight line": line(a, b),
            "straight line, units matched": line(a, near),
            "trained curve": bezier(a, bend, b),
            "straight line, one initialisation": line(a, c),
        }
        bar.update(task, description="along the ways")
        parts = {"train": Split(*(v[:MEASURED] for v in data.train)), "test": data.test}
        found = []
        for name, way in ways.items():
            values = {part: along(net, way, own, options.points) for part, own in parts.items()}
            losses, errors = ({k: v[i] for k, v in values.items()} for i in (0, 1))
            found.append(Measured(name, losses, errors))
            bar.advance(task)
    same = _same_function(net, b, near, data.test.x[:100])
    _report(options, found, groups, same)
    return 0


class _Training:
    """Trains networks of one kind and curves between them, an epoch at a time."""

    def __init__(
        self, net: fnn.Block, options: Connected, data: Split, tick: Callable[[], None]
    ) -> None:
        self.net, self.options, self.tick = net, options, tick
        self.x, self.target = jax.device_put(data)
        self.optimizer = descent(
            options.learning_rate, options.epochs, options.batch_size, len(self.x)
        )
        self.epoch = fnn.make_epoch(net, LOSS, self.optimizer, options.batch_size)

    def network(self, initial: int, order: int) -> Any:
        """A network trained from the given initialisation on the given order of the data."""
        key = jax.random.fold_in(jax.random.key(self.options.seed), initial)
        params = self.net.init(key, self.x)
        state = self.optimizer.init(params)
        rng = np.random.default_rng((self.options.seed, order))
        for _ in range(self.options.epochs):
            rows = rng.permutation(len(self.x))
            params, state, _ = self.epoch(params, state, self.x, self.target, rows)
            jax.block_until_ready(params)
            self.tick()
        return params

    def curve(self, start: Any, end: Any) -> Any:
        """The bend of a trained curve; at first it is straight."""
        gradient = fnn.value_and_grad(self.net, LOSS)
        step = curve_step(gradient, self.optimizer, start, end)

        @jax.jit
        def epoch(bend: Any, state: Any, rows: Any, ts: Any) -> Any:
            def body(carry: Any, batch: Any) -> tuple[Any, None]:
                rows, t = batch
                return step(*carry, self.x[rows], self.target[rows], t), None

            return lax.scan(body, (bend, state), (rows, ts))[0]

        bend = line(start, end)(0.5)
        state, rng = self.optimizer.init(bend), np.random.default_rng(self.options.seed)
        batch = min(self.options.batch_size, len(self.x))
        for _ in range(self.options.epochs):
            count = len(self.x) // batch
            rows = rng.permutation(len(self.x))[: count * batch].reshape(count, batch)
            ts = rng.uniform(size=count).astype(np.float32)
            bend, state = jax.block_until_ready(epoch(bend, state, rows, ts))
            self.tick()
        return bend


def _same_function(net: fnn.Block, b: Any, near: Any, x: Any) -> float:
    """The largest difference between the outputs before and after the units were put in order."""
    forward = jax.jit(net.forward)
    return float(jnp.max(jnp.abs(forward(b, x)[0] - forward(near, x)[0])))


# ---- what is shown ---------------------------------------------------------------------------


def _report(options: Connected, found: list[Measured], groups: Any, same: float) -> None:
    cells = [
        (
            name, f"{barrier(losses['train']):.4f}", f"{barrier(losses['test']):.4f}",
            f"{max(errors['test'][0], errors['test'][-1]):.2%}", f"{errors['test'].max():.2%}",
        )
        for name, losses, errors in found
    ]  # fmt: skip
    columns = (
        "way", "barrier, training", "barrier, test", "error at the ends", "on the way",
    )  # fmt: skip
    table(TITLE, columns, cells)
    words = (
        f"Putting the units in order changes the outputs by {same:.0e} at most: it is the same "
        f"function. The graph has {len(groups)} groups of units that can be permuted."
    )
    console.print(words)
    rows = [
        {
            "way": m.name, "t": t, "train_loss": m.losses["train"][i],
            "test_loss": m.losses["test"][i], "test_error": m.errors["test"][i],
        }
        for m in found
        for i, t in enumerate(np.linspace(0, 1, options.points))
    ]  # fmt: skip
    write_csv(options.out / "connected.csv", rows)
    page.write(
        options.out, "connected", TITLE,
        page.paragraph(
            f"Two networks with {' and '.join(map(str, options.hidden))} hidden units learn "
            f"{options.data} from different initial weights. On the straight line between them the "
            "loss rises to a barrier. Hidden units have no order: after one network's units are "
            "put into the order of the other's, most of the barrier is gone. A curve can be "
            "trained along which there is none, and networks of one initialisation are connected "
            f"by a straight line from the start. {words}"
        ),
        page.figure(_drawn(found, options.points), options.out / "connected.png",
            "The loss along the four ways; the ends are trained networks.",
        ),
        page.numbers(columns, cells),
        page.paragraph(
            "What others found: a barrier that vanishes after matching for MLPs of 512 units on "
            "MNIST (Git Re-Basin); on CIFAR-10 with VGG16, a test error of 6.79 % at the ends and "
            "at most 7.75 % along the curve (Garipov); no barrier on MNIST between two orders of "
            "the data (Frankle)."
        ),
        page.code(line, bezier, curve_step, along, barrier, matched, permuted),
    )  # fmt: skip
    console.print(f"saved in {options.out}: report.html, connected.png, connected.csv")


def _drawn(found: list[Measured], points: int) -> Any:
    picture, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    ts = np.linspace(0, 1, points)
    for axis, part, title in zip(
        axes, ("train", "test"), ("Training loss", "Test loss"), strict=True
    ):
        for measured, color in zip(found, COLORS, strict=True):
            axis.plot(ts, measured.losses[part], color=color, label=measured.name, lw=2)
        axis.set(title=title, xlabel="from one network (0) to the other (1)", yscale="log")
        axis.spines[["top", "right"]].set_visible(False)
    picture.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return picture
