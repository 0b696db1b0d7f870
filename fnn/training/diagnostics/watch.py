"""A training run seen from inside: statistics of every layer, collected in compiled steps.

The steps that train are not touched. Between epochs one more step is compiled and run, on a
sample, for what it shows: the same forward, backward and update, with every block watched, and
its new parameters not used. So a diagnosed run learns the same parameters, bit for bit, and
costs what the sample costs: with statistics about two steps' time for each example, and as much
to be called, hence a sixty-fourth of the examples in each epoch, or fewer epochs where that would
be too few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.backprop import backpropagate
from fnn.block import Block, Key, Params, Residuals, Value, is_floating, unwrapped
from fnn.executor import inference
from fnn.introspect.watch import is_network, watch
from fnn.training.diagnostics.data_summary import Facts
from fnn.training.diagnostics.overfit import FEW, learn_by_heart
from fnn.training.diagnostics.record import Diagnostics, Layer
from fnn.training.metrics import is_right
from fnn.training.steps import plain_step

SHARE = 64  # of n examples, n / 64 are watched in an epoch: about 5 % of its time,
LEAST = 32  # but no fewer than show a spread
DEAD_SLOPE = 1e-3  # a unit is dead where no example's slope is above this: a ReLU's is 0 or 1
FLAT_SLOPE = 0.05  # a unit is flat at an example where the slope is below this part of its peak,
FLAT_MOSTLY = 0.9  # and saturated where it is flat for this part of the examples

# Nonlinearities whose units may die (a slope of 0 for every example), and those that flatten on
# both sides, with their steepest slope.
RECTIFIERS = {"relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus"}
SIGMOIDS = {"logistic": 0.25, "tanh": 1.0, "softsign": 1.0, "hard_tanh": 1.0, "hard_sigmoid": 1 / 6}


STATISTICS = ("mean", "spread", "dead", "saturated", "signal", "gradient", "update")
Record = dict[str, dict[str, jax.Array]]  # by path, what was seen there


class Watch:
    """Looks at a run between its epochs; made by ``fit(..., diagnostics=True)``."""

    def __init__(
        self, net: Block, loss: Block, optimizer: Any, x: Value, target: Value, params: Params,
        key: Key, facts: Facts, batch_size: int, seed: list[int],
    ) -> None:  # fmt: skip
        n = jax.tree.leaves(x)[0].shape[0]
        count = min(n, max(LEAST, min(batch_size, n // SHARE)))  # a batch has room in memory
        self.every = -(-count * SHARE // n)  # epochs, where LEAST is much of them all
        rows = np.random.default_rng([*seed, n]).permutation(n)  # not the draws of the training
        # Predictions alone cost a sixth of a watched step.
        self.sample, self.judged, few = (
            jax.tree.map(lambda a, r=rows[:size]: jax.device_put(a[r]), (x, target))
            for size in (count, min(n, 2 * count), min(n, FEW))
        )
        self.key, self.facts, self.layers = key, facts, _layers(net, params)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.run = jax.jit(_watched_step(net, loss, optimizer, self.layers, facts))
        self.by_heart = learn_by_heart(net, loss, params, few, key, facts.ignorant)
        self.seen: list[tuple[int, Any]] = []
        self.peaks: list[float] = []

    def __call__(self, epoch: int, params: Params, state: Any, last: bool = False) -> None:
        """Looks after ``epoch``, if it is its turn; nothing waits for the answer."""
        if epoch < 2 or last or epoch % self.every == 0:
            seen = self.run(params, state, *self.sample, *self.judged, self.key)
            self.seen.append((epoch, seen))

    def steps(self, losses: Sequence[np.ndarray]) -> None:
        """Takes note of the losses of an epoch's steps."""
        self.peaks.append(float(np.max(np.concatenate(losses))))

    def diagnostics(self, history: list[dict[str, float]], status: str) -> Diagnostics:
        epochs = [epoch for epoch, _ in self.seen]
        seen = [jax.tree.map(np.asarray, values) for _, values in self.seen]
        table = np.stack([v["layers"] for v in seen]).astype(np.float64)  # (W, L, statistics)
        columns = dict(zip(STATISTICS, np.moveaxis(table, -1, 0), strict=True))
        return Diagnostics(
            self.layers, np.array(epochs), **columns,
            accuracy=np.array([v["accuracy"] for v in seen], np.float64),
            history=history, peaks=np.array(self.peaks), initial_loss=float(seen[0]["loss"]),
            parameters=self.parameters, facts=self.facts, by_heart=self.by_heart, status=status,
        )  # fmt: skip


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
    net: Block, loss: Block, optimizer: Any, layers: tuple[Layer, ...], facts: Facts
) -> Callable[..., dict[str, jax.Array]]:
    """A training step that answers with what it saw in place of new parameters."""
    reading = inference(net)

    def step(
        params: Params, state: Any, x: Value, target: Value, judged: Value, labels: Value, key: Key
    ) -> dict[str, jax.Array]:
        record: Record = {layer.path: {} for layer in layers}
        watched = watch(net, lambda path, block: _watched(path, block, record))
        backprop = backpropagate(watched, loss)
        kept = []

        def run(*inputs: Any) -> tuple[jax.Array, Params, Residuals]:
            value, grads, residuals = backprop(*inputs)
            kept.append(grads)
            return value, grads, residuals

        new, _, value = plain_step(net, loss, optimizer, run)(params, state, x, target, key)
        for layer in layers:
            if layer.params is not None:
                trees = (_below(tree, layer.params) for tree in (kept[0], params, new))
                record[layer.path] |= _of_parameters(*trees)
        nothing = jnp.float32(jnp.nan)
        rows = [[record[la.path].get(name, nothing) for name in STATISTICS] for la in layers]
        right = nothing
        if facts.classify:
            predicted = reading.forward(params, judged)[0]
            right = jnp.mean(is_right(predicted, labels, facts.threshold), dtype=jnp.float32)
        table = jnp.stack([jnp.stack(row) for row in rows])
        return {"layers": table, "loss": value.astype(jnp.float32), "accuracy": right}

    return step


def _watched(path: str, block: Block, record: Record) -> Block:
    """The block, taking note of what goes through it while it is traced."""
    if is_network(block):
        return block
    seen, kind = record[path or block.name], unwrapped(block).kind.maker

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        y, residuals = block.forward(params, x, key)
        if isinstance(y, jax.Array) and is_floating(y):
            wide = y.astype(jnp.float32)
            seen["mean"], seen["spread"] = jnp.mean(wide), jnp.std(wide)
        if kind in RECTIFIERS or kind in SIGMOIDS:
            slope = jnp.abs(block.backward(params, residuals, jnp.ones_like(y))[1])
            peak = SIGMOIDS.get(kind)
            flat = slope <= (DEAD_SLOPE if peak is None else FLAT_SLOPE * peak)
            share = jnp.mean(flat, axis=tuple(range(max(1, flat.ndim - 1))), dtype=jnp.float32)
            name, most = ("dead", 1.0) if peak is None else ("saturated", FLAT_MOSTLY)
            seen[name] = jnp.mean(share >= most, dtype=jnp.float32)
        return y, residuals

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        seen["signal"] = _norm(dy)
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
    leaves = [v.astype(jnp.float32) for v in jax.tree.leaves(value) if is_floating(v) and v.size]
    if not leaves:
        return jnp.float32(0)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(v)) for v in leaves]))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(v / scale)) for v in leaves])))


def _below(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name) if tree is not None else None
    return tree
