"""Statistics of every layer between epochs, collected in compiled steps.

The steps that train are not touched. Between epochs one more step is compiled and run on a
sample: the same forward, backward and update, with every block watched, and its new parameters
thrown away. So a diagnosed run learns the same parameters, bit for bit. A watched step costs about
two plain ones per example; 1/64 of the data is watched after each epoch, or after fewer epochs
if that would be too few examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.backprop import backpropagate
from fnn.block import Block, Key, Params, Residuals, Value, unwrapped
from fnn.executor import is_network
from fnn.introspect.watch import watch
from fnn.training.diagnostics.data_summary import DataSummary
from fnn.training.diagnostics.findings import find
from fnn.training.diagnostics.overfit import BATCH_EXAMPLES, overfit_small_batch
from fnn.training.diagnostics.record import Diagnostics, Layer
from fnn.training.metrics import is_right
from fnn.training.run import Run
from fnn.training.steps import plain_step

ONE_WATCHED_OF = 64  # examples after each epoch, which takes about 5 % of its time,
MIN_WATCHED = 32  # but no fewer than show a spread
DEAD_SLOPE = 1e-3  # a unit is dead if no example's slope is above this: a ReLU's is 0 or 1
FLAT_SLOPE_RATIO = 0.05  # a unit is flat at an example with a slope below this part of its peak,
FLAT_EXAMPLES_FRACTION = 0.9  # and saturated if it is flat at this fraction of the examples

# Nonlinearities whose units may die (a slope of 0 at every example), and those that flatten on
# both sides, with their steepest slope.
RECTIFIERS = {"relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus"}
SIGMOIDS = {"logistic": 0.25, "tanh": 1.0, "softsign": 1.0, "hard_tanh": 1.0, "hard_sigmoid": 1 / 6}

STATISTICS = ("mean", "spread", "dead", "saturated", "signal", "gradient", "update")
Record = dict[str, dict[str, jax.Array]]  # statistics by name, by the path of the layer


class Watch:
    """Measures a run between its epochs, for ``fit(..., diagnostics=True)``."""

    def __init__(self, run: Run, data: DataSummary, params: Params) -> None:
        n = len(run.data)
        # A batch has room in memory.
        count = min(n, max(MIN_WATCHED, min(run.batch_size, n // ONE_WATCHED_OF)))
        self.every = -(-count * ONE_WATCHED_OF // n)  # epochs, if MIN_WATCHED is much of them all
        rows = np.random.default_rng([*run.seed, n]).permutation(n)  # not the draws of training
        # Predictions alone cost a sixth of a watched step.
        self.sample, self.predicted, batch = (
            jax.device_put(run.data.read(rows[:size]))
            for size in (count, min(n, 2 * count), min(n, BATCH_EXAMPLES))
        )
        if run.is_weighted:  # targets are (target, weights)
            self.predicted = self.predicted[0], self.predicted[1][0]
        self.key, self.data, self.layers = run.key, data, _layers(run.net, params)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.step = jax.jit(_watched_step(run, self.layers, data))
        self.overfit = overfit_small_batch(
            run.net, run.loss, params, batch, run.key, data.losses.chance_loss
        )
        self.measured: list[tuple[int, Any]] = []
        self.peaks: list[float] = []

    def __call__(self, epoch: int, params: Params, state: Any, last: bool = False) -> None:
        """Measures after ``epoch``, if it is its turn; nothing waits for the result."""
        if epoch < 2 or last or epoch % self.every == 0:
            with jax.debug_nans(False):  # NaN stands for what a layer does not have
                values = self.step(params, state, *self.sample, *self.predicted, self.key)
            self.measured.append((epoch, values))

    def note_losses(self, losses: np.ndarray) -> None:
        """Keeps the largest loss of an epoch's steps."""
        self.peaks.append(float(np.max(losses)))

    def gathered(self) -> dict[str, np.ndarray]:
        """All that was measured, as arrays to save."""
        epochs, values = zip(*self.measured, strict=True)
        stacked = {f"watched {name}": np.stack([v[name] for v in values]) for name in values[0]}
        peaks = {"peaks": np.array(self.peaks)} if self.peaks else {}
        return {"watched": np.array(epochs), **peaks, **stacked}

    def take_up(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from what was measured before."""
        names = [name for name in arrays if name.startswith("watched ")]
        self.measured = [
            (int(epoch), {name.removeprefix("watched "): arrays[name][i] for name in names})
            for i, epoch in enumerate(arrays["watched"])
        ]
        self.peaks = arrays["peaks"].tolist() if "peaks" in arrays else []

    def diagnostics(self, history: list[dict[str, float]], status: str) -> Diagnostics:
        """The measurements of the whole run, and the findings."""
        epochs, values = zip(*self.measured, strict=True)
        values = jax.tree.map(np.asarray, values)
        table = np.stack([v["layers"] for v in values]).astype(np.float64)  # (W, L, statistics)
        columns = dict(zip(STATISTICS, np.moveaxis(table, -1, 0), strict=True))
        measured = Diagnostics(
            layers=self.layers,
            watched=np.array(epochs),
            **columns,
            accuracy=np.array([v["accuracy"] for v in values], np.float64),
            history=history,
            peaks=np.array(self.peaks),
            initial_loss=float(values[0]["loss"]),
            parameters=self.parameters,
            data=self.data,
            overfit=self.overfit,
            status=status,
        )
        return replace(measured, faults=tuple(find(measured)))


def _layers(net: Block, params: Params) -> tuple[Layer, ...]:
    layers: list[Layer] = []

    def add(path: str, block: Block) -> Block:
        if not is_network(block):
            place = tuple(path.split("/")) if path else ()
            # A node that shares another's parameters has none under its own name.
            owned = place if jax.tree.leaves(_below(params, place)) else None
            number = (layers[-1].number if layers else 0) + (owned is not None)
            kind = unwrapped(block).kind.maker
            layers.append(Layer(path or block.name, kind, number, owned))
        return block

    watch(net, add)
    return tuple(layers)


def _watched_step(
    run: Run, layers: tuple[Layer, ...], data: DataSummary
) -> Callable[..., dict[str, jax.Array]]:
    """A training step that returns statistics in place of new parameters."""

    def step(
        params: Params, state: Any, x: Value, target: Value, more_x: Value, labels: Value, key: Key
    ) -> dict[str, jax.Array]:
        record: Record = {layer.path: {} for layer in layers}
        watched = watch(run.net, lambda path, block: _watched(path, block, record))
        plain, kept = backpropagate(watched, run.loss), []

        def backprop(*inputs: Any) -> tuple[jax.Array, Params, Residuals]:
            value, grads, residuals = plain(*inputs)
            kept.append(grads)
            return value, grads, residuals

        training_step = plain_step(run.net, run.loss, run.optimizer, backprop)
        new, _, value = training_step(params, state, x, target, key)
        for layer in layers:
            if layer.params is not None:
                trees = (_below(tree, layer.params) for tree in (kept[0], params, new))
                record[layer.path] |= _of_parameters(*trees)
        nan = jnp.float32(jnp.nan)
        rows = [[record[la.path].get(name, nan) for name in STATISTICS] for la in layers]
        accuracy = nan
        if data.losses.is_classifier:
            prediction = run.net_at_inference.forward(params, more_x)[0]
            right = is_right(prediction, labels, data.losses.threshold)
            accuracy = jnp.mean(right, dtype=jnp.float32)
        table = jnp.stack([jnp.stack(row) for row in rows])
        return {"layers": table, "loss": value.astype(jnp.float32), "accuracy": accuracy}

    return step


def _watched(path: str, block: Block, record: Record) -> Block:
    """The block, writing statistics into the record while it is traced."""
    if is_network(block):
        return block
    statistics, kind = record[path or block.name], unwrapped(block).kind.maker

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        y, residuals = block.forward(params, x, key)
        if isinstance(y, jax.Array) and is_floating(y):
            wide = y.astype(jnp.float32)
            statistics["mean"], statistics["spread"] = jnp.mean(wide), jnp.std(wide)
        if kind in RECTIFIERS or kind in SIGMOIDS:
            slope = jnp.abs(block.backward(params, residuals, jnp.ones_like(y))[1])
            peak = SIGMOIDS.get(kind)
            flat = slope <= (DEAD_SLOPE if peak is None else FLAT_SLOPE_RATIO * peak)
            examples = tuple(range(max(1, flat.ndim - 1)))
            fraction = jnp.mean(flat, axis=examples, dtype=jnp.float32)
            name, limit = ("dead", 1.0) if peak is None else ("saturated", FLAT_EXAMPLES_FRACTION)
            statistics[name] = jnp.mean(fraction >= limit, dtype=jnp.float32)
        return y, residuals

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        statistics["signal"] = _norm(dy)
        return block.backward(params, residuals, dy)

    return block._replace(forward=forward, backward=backward)


def _of_parameters(grads: Params, old: Params, new: Params) -> dict[str, jax.Array]:
    """The norm of the gradient, and that of the update over that of the parameters."""
    parts: list[list[jax.Array]] = [[], [], []]

    def add(g: Any, o: Any, n: Any) -> None:
        if g is not None:  # neither frozen nor a running statistic
            for part, value in zip(parts, (g, o, n - o), strict=True):
                part.append(value)

    jax.tree.map(add, grads, old, new, is_leaf=lambda g: g is None)
    if not parts[0]:
        return {}
    gradient, size, change = map(_norm, parts)
    return {"gradient": gradient, "update": change / jnp.maximum(size, jnp.float32(1e-30))}


def _norm(value: Value) -> jax.Array:
    """The Euclidean norm over all leaves; scaled, so that no square overflows."""
    leaves = [v.astype(jnp.float32) for v in jax.tree.leaves(value) if is_floating(v)]
    zero = jnp.float32(0)
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(v), initial=0) for v in leaves], zero)
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(sum((jnp.sum(jnp.square(v / scale)) for v in leaves), zero))


def _below(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name) if tree is not None else None
    return tree
