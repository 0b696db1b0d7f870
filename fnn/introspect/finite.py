"""Finding the first block whose output or cotangent is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import checked
from fnn.arrays import compute_dtype, is_floating
from fnn.backprop import with_loss
from fnn.block import Block, Key, Params, Value
from fnn.introspect.watch import observe, watch

LOSS_INPUTS = ("prediction", "target", "weights")


class NonFinite(NamedTuple):
    """Where the first NaN or infinity appeared: the block, the pass, and its inputs in words."""

    path: str
    direction: str  # "forward" or "backward"
    inputs: str

    def __str__(self) -> str:
        if (self.path, self.direction) == ("loss", "forward"):
            return f"the loss is not finite, from {self.inputs}"
        what = "output" if self.direction == "forward" else "cotangents"
        where = f"{what} of {self.path} ({self.direction})"
        return f"first non-finite value: {where}, from {self.inputs}"


class Event(NamedTuple):
    """One block in one pass, and its floating inputs: (name, dtype, shape)."""

    path: str
    direction: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Finite:
    """What every block returned, in order of execution; a pytree, so it comes out of jit.

    ``ok``: bool (events,), whether all of it is finite. ``statistics``: float32 (inputs, 5) for
    each event: smallest, largest, mean and root mean square of the finite entries, and the number
    of others.
    """

    ok: jax.Array
    statistics: list[jax.Array]
    events: tuple[Event, ...] = field(metadata={"static": True})

    @property
    def first(self) -> NonFinite | None:
        """The first block with an output or cotangents that are not finite, or None."""
        ok = np.asarray(self.ok)
        if ok.all():
            return None
        i = int(np.argmin(ok))
        event, rows = self.events[i], np.asarray(self.statistics[i])
        return NonFinite(event.path, event.direction, _describe(event, rows))

    def __str__(self) -> str:
        return str(self.first or f"finite: {len(self.events)} outputs and cotangents")


@checked
def finite(net: Block, loss: Block | None = None) -> Callable[..., Finite]:
    """Finds the first block of a network whose output or cotangents are not finite.

    Args:
      net: a network.
      loss: its loss; without one, backward starts from a cotangent of ones.

    Returns:
      ``f(params, x, target, key=None) -> Finite``; without a loss ``f(params, x, key=None)``. A
      pure function: run it under ``jax.jit``, and read ``.first`` of the result outside. A
      ``repeat`` or ``rematerialize`` counts as one block.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.serial(shift=fnn.negate(), root=fnn.sqrt())
    >>> print(jax.jit(fnn.check.finite(net))({}, jnp.array([1.0, 2.0])))
    first non-finite value: output of root (forward), from x: float32[2] from -2 to -1, mean -1.5
    """
    if loss is None:
        return lambda params, x, key=None: _run(net, params, x, key)
    whole = with_loss(net, loss)
    return lambda params, x, target, key=None: _run(whole, {"net": params}, (x, target), key)


def _run(block: Block, params: Params, x: Value, key: Key) -> Finite:
    ok: list[jax.Array] = []
    statistics: list[jax.Array] = []
    events: list[Event] = []

    def note(direction: str, path: str, results: Value, **inputs: Value) -> None:
        # Blocks inside come before those around them, so the first bad one is the innermost.
        arrays = [
            (jax.tree_util.keystr(where, simple=True, separator="/"), a)
            for where, a in jax.tree_util.tree_leaves_with_path(jax.tree.map(jnp.asarray, inputs))
            if is_floating(a) and a.size
        ]
        described = tuple((name, str(a.dtype), a.shape) for name, a in arrays)
        events.append(Event(path or block.name, direction, described))
        ok.append(all_finite(results))
        rows = [_statistics(a) for _, a in arrays]
        statistics.append(jnp.stack(rows) if rows else jnp.zeros((0, 5)))

    def watched(path: str, inner: Block) -> Block:
        def ran(params: Params, x: Value, y: Value, **_: Any) -> None:
            is_loss = path == "loss" and isinstance(x, tuple)
            parts = dict(zip(LOSS_INPUTS, x, strict=False)) if is_loss else {"x": x}
            note("forward", path, y, **parts, params=params)

        def went_back(params: Params, dy: Value, dparams: Params, dx: Value, **_: Any) -> None:
            note("backward", path, (dparams, dx), dy=dy, params=params)

        return observe(inner, ran, went_back)

    whole = watch(block, watched)
    y, residuals = whole.forward(params, x, key)
    whole.backward(params, residuals, jax.tree.map(jnp.ones_like, y))
    return Finite(jnp.stack(ok), statistics, tuple(events))


def all_finite(value: Value) -> jax.Array:
    """Whether every floating number in a pytree is finite."""
    leaves = [leaf for leaf in map(jnp.asarray, jax.tree.leaves(value)) if is_floating(leaf)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves] or [jnp.array(True)]))


def _statistics(a: jax.Array) -> jax.Array:
    a = a.astype(compute_dtype(a.dtype))
    good = jnp.isfinite(a)
    count = jnp.maximum(jnp.sum(good, dtype=a.dtype), 1)
    finite = jnp.where(good, a, 0)
    lowest, highest = jnp.min(jnp.where(good, a, jnp.inf)), jnp.max(jnp.where(good, a, -jnp.inf))
    mean, square = jnp.sum(finite) / count, jnp.sum(jnp.square(finite)) / count
    bad = jnp.sum(~good, dtype=a.dtype)
    return jnp.stack([lowest, highest, mean, jnp.sqrt(square), bad]).astype(jnp.float32)


def _describe(event: Event, rows: np.ndarray) -> str:
    """Shape, range, mean and number of bad entries of every floating input."""
    parts = []
    for (name, dtype, shape), (low, high, mean, _, bad) in zip(event.inputs, rows, strict=True):
        text = f"{name}: {dtype}{list(shape)}"
        if low <= high:
            text += f" from {low:.4g} to {high:.4g}, mean {mean:.4g}"
        if bad:
            text += f" and {bad:.0f} not finite"
        parts.append(text)
    return "; ".join(parts) or "no floating inputs"
