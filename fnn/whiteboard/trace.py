"""One forward and one backward through the executor, with everything that happened kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.backprop import with_loss
from fnn.block import (
    Block,
    BlockTypeError,
    BlockValueError,
    Key,
    Params,
    Residuals,
    Value,
    is_floating,
    require_block,
)
from fnn.graph import map_nodes
from fnn.whiteboard.formulas import formula_of
from fnn.whiteboard.referee import is_open, relative_errors

EXACT = 9  # numbers up to which everything is shown, and whole local derivatives are kept


def _static(**options: Any) -> Any:
    return field(metadata={"static": True}, **options)


class Fork(NamedTuple):
    """A value that several read: ``summands`` are (reader, cotangent), ``total`` their sum."""

    name: str
    summands: tuple[tuple[str, Value], ...]
    total: Value


class NonFinite(NamedTuple):
    """The first NaN or infinity: in what, of which block, in which pass."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"first non-finite value: {self.what} of {self.path}"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trace:
    """A block as it ran, forward and backward; a network's has the traces of its nodes inside.

    A plain pytree: arrays are its leaves, the names of things are static, so it comes out of
    ``jax.jit``. ``trace["hidden/linear"]`` is the node at that path, and every node can be drawn
    by itself: ``text()``, ``svg()``, ``html()``, ``mermaid()``.

    ``path``: where it is, ``hidden/linear``; '' for the whole. ``kind``: the block's name.
    ``reads``: the names of the values that it read. ``params_of``: whose parameters it used.
    ``inputs``, ``outputs``: of the graph inside. ``objective``: what the gradients are of.
    ``params``, ``x``, ``y``, ``residuals``: of forward.
    ``dy``, ``dparams``, ``dx``: of backward: upstream, and downstream to the parameters and inputs.
    ``local``: local derivatives by (params, x): of an elementwise block the slope at each entry;
    of others, where y has nine numbers at most, the Jacobian, y's axes first; else None.
    ``errors``: of (dparams, dx) relative to ``jax.vjp``, leaf by leaf.
    """

    path: str = _static()
    kind: str = _static()
    reads: tuple[str, ...] = _static()
    params_of: str = _static()
    inputs: tuple[str, ...] = _static()
    outputs: tuple[str, ...] = _static()
    objective: str = _static()
    nodes: tuple[Trace, ...]
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
    def kept_bytes(self) -> int:
        """How many bytes forward kept for backward."""
        leaves = jax.tree.leaves(self.residuals)
        return sum(math.prod(r.shape) * r.dtype.itemsize for r in leaves)

    @property
    def error(self) -> float | None:
        """The largest relative error against ``jax.vjp``; None where nothing was compared.

        Of a network that was not compared from end to end, the largest of the blocks inside.
        """
        if self.errors is None:
            inside = [node.error for node in self.nodes]
            return max((e for e in inside if e is not None), default=None)
        return max((float(e) for e in jax.tree.leaves(self.errors)), default=None)

    @property
    def right(self) -> bool | None:
        """Whether the gradients are autodiff's but for rounding: eps^(2/3) of their dtype."""
        error = self.error
        if error is None:
            return None
        wide = [d.dtype for d in jax.tree.leaves((self.dparams, self.dx)) if is_floating(d)]
        eps = max((float(jnp.finfo(d).eps) for d in wide), default=1e-7)
        return error <= eps ** (2 / 3)

    def walk(self) -> Iterator[Trace]:
        """Every node inside in the order of forward, a network before what is in it."""
        for node in self.nodes:
            yield node
            yield from node.walk()

    def __getitem__(self, path: str) -> Trace:
        """The node at a path."""
        for node in self.walk():
            if node.path == path:
                return node
        known = ", ".join(node.path for node in self.walk())
        raise KeyError(f"no node {path!r}; there are: {known:.500}")

    @property
    def values(self) -> dict[str, tuple[Value, Value]]:
        """Of every wire inside: its value and its whole gradient."""
        xs = (self.x,) if len(self.inputs) == 1 else self.x
        dxs = (self.dx,) if len(self.inputs) == 1 else self.dx
        dxs = (None,) * len(self.inputs) if dxs is None else dxs
        wires = dict(zip(self.inputs, zip(xs, dxs, strict=True), strict=True))
        return wires | {node.name: (node.y, node.dy) for node in self.nodes}

    @property
    def forks(self) -> tuple[Fork, ...]:
        """Every wire inside that is read more than once: each summand of its gradient, and the
        sum. An output that is also read inside gets its own upstream cotangent as a summand."""
        dys = (self.dy,) if len(self.outputs) == 1 else self.dy or (None,) * len(self.outputs)
        sent: dict[str, list[tuple[str, Value]]] = {name: [] for name in self.values}
        for name, dy in zip(self.outputs, dys, strict=True):
            sent[name].append(("output", dy))
        for node in reversed(self.nodes):
            dxs = (node.dx,) if len(node.reads) == 1 else node.dx or (None,) * len(node.reads)
            for name, dx in zip(node.reads, dxs, strict=True):
                sent[name].append((node.name, dx))
        return tuple(
            Fork(name, tuple(parts), self.values[name][1])
            for name, parts in sent.items()
            if len(parts) > 1
        )

    @property
    def non_finite(self) -> NonFinite | None:
        """The first value that is not finite, in the order in which they were computed."""
        leaves = [node for node in self.walk() if not node.nodes] or [self]
        for name, (value, _) in self.values.items() if self.inputs else ():
            if name in self.inputs and not _finite(value):
                return NonFinite(f"input {name}", "value")
        for node in leaves:
            if not _finite(node.params):
                return NonFinite(node.path or node.name, "parameter")
            if not _finite(node.y):
                return NonFinite(node.path or node.name, "output")
        for node in reversed(leaves):
            if not _finite((node.dparams, node.dx)):
                return NonFinite(node.path or node.name, "gradient")
        return None

    def text(self) -> str:
        """Everything in words: forward, then backward, upstream times local at every gate."""
        from fnn.whiteboard.text import text

        return text(self)

    def svg(self, step: int | None = None, *, unfold: Any = None, width: int = 1600) -> str:
        """The picture; see :func:`fnn.whiteboard.svg.svg`."""
        from fnn.whiteboard.svg import svg

        return svg(self, step, unfold=unfold, width=width)

    def frames(self, *, unfold: Any = None, width: int = 1600) -> list[str]:
        """The picture step by step: forward 1..n, then backward n..1; unknowns are '?'."""
        from fnn.whiteboard.svg import frames

        return frames(self, unfold=unfold, width=width)

    def html(self, title: str = "") -> str:
        """One self-contained page that steps, folds, and shows a node's chain rule."""
        from fnn.whiteboard.page import html

        return html(self, title)

    def mermaid(self) -> str:
        """A Mermaid flowchart, for Markdown."""
        from fnn.whiteboard.mermaid import mermaid

        return mermaid(self)

    def __repr__(self) -> str:
        inside = f", {len(list(self.walk()))} nodes" if self.nodes else ""
        return f"Trace({self.path or self.kind!r}{inside})"


def _finite(tree: Any) -> bool:
    leaves = [np.asarray(v) for v in jax.tree.leaves(tree) if is_floating(v)]
    return all(np.isfinite(v).all() for v in leaves)


def trace(
    block: Block,
    params: Params,
    x: Value,
    target: Value = None,
    loss: Block | None = None,
    *,
    key: Key = None,
    check: Literal["all", "blocks", "none"] = "all",
) -> Trace:
    """Runs a network forward and backward once and records what every block in it did.

    It is the executor that runs, with its nodes wrapped: tracing changes no value.

    Args:
      block: a gate, a layer, a network.
      params: its parameters; ``x``: its input, or a tuple of them.
      target, loss: with them the gradients are those of E = loss(net(x), target); without, of
        the sum of the outputs.
      key: randomness, for blocks that need it.
      check: what is compared with ``jax.vjp``: "all", each block alone and each network from end to
        end; "blocks", each block alone; "none". It takes more time than the trace itself.

    Returns:
      A :class:`Trace`, a pytree: ``jax.jit(lambda p, x: trace(net, p, x))`` works. Large networks
      are best traced so, because JAX compiles them at once and not operation by operation.

    Raises:
      BlockTypeError: a loss without a target, a target without a loss, no block.

    >>> import fnn
    >>> f = fnn.graph(("x", "y", "z"),
    ...               [("q", fnn.add(), ("x", "y")), ("f", fnn.multiply(), ("q", "z"))], "f")
    >>> t = fnn.whiteboard.trace(f, {}, (-2.0, 5.0, -4.0))
    >>> float(t["q"].y), float(t["q"].dy), [float(d) for d in t["q"].dx]
    (3.0, -4.0, [-4.0, -4.0])
    >>> t.right
    True
    """
    require_block("trace", "the first argument", block)
    if check not in ("all", "blocks", "none"):
        raise BlockValueError("trace", f"check is {check!r}, needs 'all', 'blocks' or 'none'")
    if (target is None) != (loss is None):
        given, missing = ("loss", "target") if target is None else ("target", "loss")
        raise BlockTypeError("trace", f"got a {given} and no {missing}; it needs both or neither")
    whole = block
    if loss is not None:
        require_block("trace", "loss", loss)
        whole, params, x = with_loss(block, loss), {"net": params}, (x, target)
    ran: dict[tuple[str, ...], dict[str, Any]] = {}

    def watched(path: tuple[str, ...], inner: Block) -> Block:
        run = inner
        if is_open(inner):
            run = map_nodes(inner, lambda name, node: watched((*path, name), node))
        seen = ran[path] = {"block": inner, "dy": None, "dparams": None, "dx": None}

        def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
            y, residuals = run.forward(params, x, key)
            seen.update(params=params, x=x, key=key, y=y, residuals=residuals)
            return y, residuals

        def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
            dparams, dx = run.backward(params, residuals, dy)
            seen.update(dy=dy, dparams=dparams, dx=dx)
            return dparams, dx

        return inner._replace(forward=forward, backward=backward)

    run = watched((), whole)
    y, residuals = run.forward(params, x, key)
    dy = jax.tree.map(lambda v: jnp.ones_like(v) if is_floating(v) else None, y)
    if jax.tree.leaves(dy):
        run.backward(params, residuals, dy)
    return _built(whole, (), (), "", ran, _objective(whole, y, loss), check)


def _objective(whole: Block, y: Value, loss: Block | None) -> str:
    """What the gradients are of: E, the output by its name, or the sum of its entries."""
    if loss is not None:
        return "E"
    outputs = whole.graph.outputs if is_open(whole) and whole.graph else ("y",)
    one = len(outputs) == 1 and len(jax.tree.leaves(y)) == 1 and jax.tree.leaves(y)[0].size == 1
    return outputs[0] if one else f"Σ{outputs[0]}" if len(outputs) == 1 else "Σ"


def _built(
    block: Block, path: tuple[str, ...], reads: tuple[str, ...], params_of: str,
    ran: dict[tuple[str, ...], dict[str, Any]], objective: str, check: str,
) -> Trace:  # fmt: skip
    """The trace of a block from what was seen of it and of those inside it."""
    seen = ran[path]
    structure = block.graph if is_open(block) else None
    nodes = () if structure is None else structure.nodes
    # Those that no output needs (auxiliary heads, at inference) did not run.
    nodes = tuple(node for node in nodes if "y" in ran[(*path, node.name)])
    recorded = {
        k: _arrays(seen[k]) for k in ("params", "x", "y", "residuals", "dy", "dparams", "dx")
    }
    if isinstance(recorded["x"], list):
        recorded["x"] = tuple(recorded["x"])
    local = errors = None
    if seen["dy"] is not None:
        if structure is None:
            local = _local(block, seen)
        if check == "all" or (check == "blocks" and structure is None):
            got = (seen["dparams"], seen["dx"])
            errors = relative_errors(
                block, seen["params"], seen["x"], seen["key"], seen["y"], seen["dy"], got
            )
    return Trace(
        path="/".join(path), kind=block.name, reads=reads, params_of=params_of,
        inputs=() if structure is None else structure.inputs,
        outputs=() if structure is None else structure.outputs,
        objective=objective,
        nodes=tuple(
            _built(n.block, (*path, n.name), n.inputs, n.params_of, ran, objective, check)
            for n in nodes
        ),
        local=local, errors=errors, **recorded,
    )  # fmt: skip


def _arrays(tree: Any) -> Any:
    """Python numbers as arrays; everything else as it is."""
    return jax.tree.map(lambda v: v if hasattr(v, "dtype") else jnp.asarray(v), tree)


def _local(block: Block, seen: dict[str, Any]) -> Any:
    """The local derivatives, read off the block's own backward; see :class:`Trace`."""
    y, formula = seen["y"], formula_of(block.name)
    if not hasattr(y, "dtype") or not is_floating(y):
        return None

    def pulled(dy: Any) -> Any:
        return block.backward(seen["params"], seen["residuals"], dy)

    if formula is not None and formula.elementwise:
        # One of each entry comes from above: what goes down is the slope there.
        slopes = pulled(jnp.ones_like(y))
        return jax.tree.map(lambda d: d if d.shape == y.shape else None, slopes)
    if not 0 < y.size <= EXACT:
        return None
    basis = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    rows = [pulled(one) for one in basis]
    return jax.tree.map(
        lambda *ds: jnp.stack(ds).reshape(*y.shape, *ds[0].shape)
        if ds[0].size * y.size <= EXACT**2 else None,
        *rows,
    )  # fmt: skip
