"""A block as it ran, forward and backward: the recorded data, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.block import Params, Residuals, Value
from fnn.introspect.text import bytes_of
from fnn.whiteboard.formulas import Described, Formula, formula_of, is_elementwise


class Fork(NamedTuple):
    """A value with several readers: ``summands`` are (reader, cotangent), ``total`` their sum."""

    name: str
    summands: tuple[tuple[str, Value], ...]
    total: Value


class NonFinite(NamedTuple):
    """The first NaN or infinity: what it is in, and of which block."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"first non-finite value: {self.what} of {self.path}"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recording:
    """A block as it ran, forward and backward; a network's has the traces of its nodes inside.

    A plain pytree: arrays are its leaves, names are static, so it comes out of ``jax.jit``.
    ``trace["hidden/linear"]`` is the node at that path.

    ``path``: where it is, ``hidden/linear``; '' for the whole. ``block``: its name and kind.
    ``reads``: the names of the values it read. ``params_of``: the node whose parameters it used.
    ``inputs``, ``outputs``: of the graph inside. ``objective``: what the gradients are of.
    ``params``, ``x``, ``y``, ``residuals``: of forward.
    ``dy``, ``dparams``, ``dx``: of backward, the upstream cotangent and the downstream ones.
    ``local``: local derivatives by (params, x): the slope at each entry of an elementwise block;
    of others the Jacobian, y's axes first, where y has nine numbers at most; else None.
    ``errors``: of (dparams, dx) relative to ``jax.vjp``, leaf by leaf; NaN where that is NaN.
    """

    path: str = field(metadata={"static": True})
    block: Described = field(metadata={"static": True})
    reads: tuple[str, ...] = field(metadata={"static": True})
    params_of: str = field(metadata={"static": True})
    inputs: tuple[str, ...] = field(metadata={"static": True})
    outputs: tuple[str, ...] = field(metadata={"static": True})
    objective: str = field(metadata={"static": True})
    nodes: tuple[Self, ...]
    params: Params
    x: Value
    y: Value
    residuals: Residuals
    dy: Value
    dparams: Params
    dx: Value
    local: Any
    errors: Any

    @property
    def name(self) -> str:
        """The last part of the path; of the whole, the block's name."""
        return self.path.rsplit("/", 1)[-1] or self.kind

    @property
    def kind(self) -> str:
        """The block's own name, such as ``linear`` or ``power(3)``."""
        return self.block.name

    @property
    def formula(self) -> Formula | None:
        """What the block computes, without parameters that it was made without; None if unknown."""
        formula = formula_of(self.block)
        if formula is None or not formula.params:
            return formula
        return formula.without(set(formula.params) - set(self.params))

    @property
    def elementwise(self) -> bool:
        """Whether downstream is upstream times local, number by number."""
        return is_elementwise(self.block)

    @property
    def kept_bytes(self) -> int:
        """How many bytes forward kept for backward."""
        return bytes_of(self.residuals)

    @property
    def error(self) -> float | None:
        """The largest relative error against ``jax.vjp``; None where nothing was compared.

        NaN where a whole gradient of ``jax.vjp`` is NaN and all others are right. If a network was
        not compared as a whole, the largest error of the blocks inside.
        """
        if self.errors is None:
            errors = [e for e in (node.error for node in self.nodes) if e is not None]
        else:
            errors = [float(e) for e in jax.tree.leaves(self.errors)]
        worst = max((e for e in errors if not math.isnan(e)), default=0.0)
        if any(map(math.isnan, errors)) and worst <= self._rounding:
            return math.nan
        return worst if errors else None

    @property
    def right(self) -> bool | None:
        """Whether the gradients equal autodiff's but for rounding, eps^(2/3) of their dtype; None
        where there is nothing to compare them with."""
        error = self.error
        if error is None or math.isnan(error):
            return None
        return error <= self._rounding

    @property
    def _rounding(self) -> float:
        wide = [d.dtype for d in jax.tree.leaves((self.dparams, self.dx)) if is_floating(d)]
        eps = max((float(jnp.finfo(d).eps) for d in wide), default=1e-7)
        return eps ** (2 / 3)

    def walk(self) -> Iterator[Self]:
        """Every node inside in the order of forward, a network before its nodes."""
        for node in self.nodes:
            yield node
            yield from node.walk()

    def __getitem__(self, path: str) -> Self:
        """The node at a path."""
        nodes = {node.path: node for node in self.walk()}
        if path not in nodes:
            raise KeyError(f"no node {path!r}; there are: {', '.join(nodes):.500}")
        return nodes[path]

    @property
    def dxs(self) -> tuple[Value, ...]:
        """What goes back to each value that was read."""
        return each(self.dx, len(self.reads))

    @property
    def values(self) -> dict[str, tuple[Value, Value]]:
        """The value and the whole gradient of every wire inside."""
        count = len(self.inputs)
        inputs = zip(each(self.x, count), each(self.dx, count), strict=True)
        return dict(zip(self.inputs, inputs, strict=True)) | {
            node.name: (node.y, node.dy) for node in self.nodes
        }

    @property
    def summands(self) -> dict[str, list[tuple[str, Value]]]:
        """The cotangents that come back to every wire inside, and who sends them.

        Their sum is its gradient. An output gets its upstream cotangent from "output".
        """
        sent: dict[str, list[tuple[str, Value]]] = {name: [] for name in self.values}
        for name, dy in zip(self.outputs, each(self.dy, len(self.outputs)), strict=True):
            sent[name].append(("output", dy))
        for node in reversed(self.nodes):
            for name, dx in zip(node.reads, node.dxs, strict=True):
                sent[name].append((node.name, dx))
        return sent

    @property
    def forks(self) -> tuple[Fork, ...]:
        """Every wire inside that is read more than once, or read and an output."""
        return tuple(
            Fork(name, tuple(parts), self.values[name][1])
            for name, parts in self.summands.items()
            if len(parts) > 1
        )

    def is_fork(self, wire: str) -> bool:
        """Whether the wire is one of the forks."""
        return any(fork.name == wire for fork in self.forks)

    @property
    def non_finite(self) -> NonFinite | None:
        """The first value that is not finite, in the order in which they were computed."""
        inputs = {name: self.values[name][0] for name in self.inputs} or {"x": self.x}
        leaves = [node for node in self.walk() if not node.nodes] or [self]
        looked_at = [
            *((f"input {name}", "value", value) for name, value in inputs.items()),
            *((leaf.path or leaf.name, what, value) for leaf in leaves
              for what, value in (("parameter", leaf.params), ("output", leaf.y))),
            *((leaf.path or leaf.name, "gradient", (leaf.dparams, leaf.dx))
              for leaf in reversed(leaves)),
        ]  # fmt: skip
        bad = (NonFinite(path, what) for path, what, value in looked_at if not _finite(value))
        return next(bad, None)


def each(value: Value, count: int) -> tuple[Value, ...]:
    """One value for each of ``count`` names: alone where it is one, else a tuple; None for none."""
    if count == 1:
        return (value,)
    return tuple(value) if count and value is not None else (None,) * count


def _finite(tree: Any) -> bool:
    leaves = [np.asarray(v) for v in jax.tree.leaves(tree) if is_floating(v)]
    return all(np.isfinite(v).all() for v in leaves)
