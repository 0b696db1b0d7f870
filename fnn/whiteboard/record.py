"""One forward and one backward through the executor, recorded block by block."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from fnn.arguments import RandomKey, checked
from fnn.arrays import is_floating
from fnn.backprop import with_loss
from fnn.block import Block, BlockTypeError, Graph, Params, Value
from fnn.executor import is_network
from fnn.introspect.watch import observe, watch
from fnn.pytrees import require_held
from fnn.whiteboard.array_text import EXACT
from fnn.whiteboard.drawable import Trace
from fnn.whiteboard.formulas import described, is_elementwise
from fnn.whiteboard.referee import errors_of


@checked
def trace(
    block: Block,
    params: Params,
    x: Value,
    target: Value = None,
    loss: Block | None = None,
    *,
    key: RandomKey | None = None,
    check: Literal["all", "blocks", "none"] = "all",
) -> Trace:
    """Runs a network forward and backward once and records what every block in it did.

    The executor runs, with its nodes wrapped: tracing changes no value.

    Args:
      block: a gate, a layer, a network.
      params: its parameters.
      x: its input, or a tuple of inputs.
      target, loss: with them, the gradients are those of E = loss(net(x), target); without, of the
        sum of the outputs.
      key: randomness, for blocks that need it.
      check: what to compare with ``jax.vjp``: "all", each block alone and each network as a whole;
        "blocks", each block alone; "none". Comparing takes longer than the trace itself.

    Returns:
      A :class:`Trace`, a pytree. Trace large networks under ``jax.jit``, as ``jax.jit(lambda p, x:
      trace(net, p, x))``: compiled as one program they take less time than step by step.

    Raises:
      BlockTypeError: a loss without a target, a target without a loss, or something that is no
        block.
      BlockValueError: an unknown ``check``.

    >>> import fnn
    >>> f = fnn.graph(("x", "y", "z"),
    ...               [("q", fnn.add(), ("x", "y")), ("f", fnn.multiply(), ("q", "z"))], "f")
    >>> t = fnn.whiteboard.trace(f, {}, (-2.0, 5.0, -4.0))
    >>> float(t["q"].y), float(t["q"].dy), [float(d) for d in t["q"].dx]
    (3.0, -4.0, [-4.0, -4.0])
    >>> t.right
    True
    """
    # Python's 2 is an integer, without a gradient: as an array it is refused with a clear error.
    require_held("trace", {"params": params, "x": x, "target": target})
    x, target = jax.tree.map(lambda v: jnp.asarray(v) if type(v) is int else v, (x, target))
    if (target is None) != (loss is None):
        given, missing = ("loss", "target") if target is None else ("target", "loss")
        raise BlockTypeError("trace", f"got a {given} and no {missing}; it needs both or neither")
    whole = block
    if loss is not None:
        whole, params, x = with_loss(block, loss), {"net": params}, (x, target)
    ran: dict[str, dict[str, Any]] = {}

    def watched(path: str, inner: Block) -> Block:
        record = ran[path] = {"dy": None, "dparams": None, "dx": None}
        return observe(inner, record.update, record.update)

    run = watch(whole, watched)
    y, residuals = run.forward(params, x, key)
    dy = jax.tree.map(lambda v: jnp.ones_like(v) if is_floating(v) else None, y)
    if jax.tree.leaves(dy):
        run.backward(params, residuals, dy)
    return _built(whole, "", (), "", ran, _objective(whole, y, loss), check)


def _objective(whole: Block, y: Value, loss: Block | None) -> str:
    """What the gradients are of: E, the output's name, or Σ and it for the sum of its entries."""
    if loss is not None:
        return "E"
    outputs = whole.graph.outputs if is_network(whole) and whole.graph else ("y",)
    one = len(outputs) == 1 and len(jax.tree.leaves(y)) == 1 and jax.tree.leaves(y)[0].size == 1
    return outputs[0] if one else f"Σ{outputs[0]}" if len(outputs) == 1 else "Σ"


def _built(
    block: Block, path: str, reads: tuple[str, ...], params_of: str,
    ran: dict[str, dict[str, Any]], objective: str, check: str,
) -> Trace:  # fmt: skip
    """The trace of a block from the records of it and of the blocks inside it."""
    record, network = ran[path], is_network(block)
    graph = block.graph if network and block.graph else Graph((), (), (), ())
    inside = f"{path}/" if path else ""
    nodes = tuple(
        _built(n.block, inside + n.name, n.inputs, n.params_of, ran, objective, check)
        for n in graph.nodes
        if "y" in ran[inside + n.name]  # what no output needs at inference did not run
    )
    went_back = record["dy"] is not None
    compare = went_back and (check == "all" or (check == "blocks" and not network))
    fields = ("params", "x", "y", "residuals", "dy", "dparams", "dx")
    arrays = {k: _arrays(record[k]) for k in fields}
    if isinstance(arrays["x"], list):
        arrays["x"] = tuple(arrays["x"])
    return Trace(
        path=path, block=described(block), reads=reads, params_of=params_of,
        inputs=graph.inputs, outputs=graph.outputs, objective=objective, nodes=nodes,
        local=_local(block, record) if went_back and not network else None,
        errors=errors_of(block, record) if compare else None, **arrays,
    )  # fmt: skip


def _arrays(tree: Any) -> Any:
    """Python numbers as arrays; everything else as it is."""
    return jax.tree.map(lambda v: v if hasattr(v, "dtype") else jnp.asarray(v), tree)


def _local(block: Block, record: dict[str, Any]) -> Any:
    """The local derivatives, read off the block's own backward; see :class:`Trace`."""
    y = record["y"]
    if not hasattr(y, "dtype") or not is_floating(y):
        return None

    def pulled(dy: Any) -> Any:
        return block.backward(record["params"], record["residuals"], dy)

    if is_elementwise(described(block)):
        # With ones from above, what goes down is the slope at each entry.
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
