"""A network at a glance, from shapes alone: nothing is allocated, nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from fnn.arguments import RandomKey, checked
from fnn.block import Block, Key, Params, Residuals, Value
from fnn.executor import is_network
from fnn.introspect.flops import flops
from fnn.introspect.text import bytes_of, clean, count_of, kind_of, readable_bytes, readable_count
from fnn.introspect.watch import observe, watch
from fnn.markup import table
from fnn.refusals import require_numbers

HEADER = (
    "block", "kind", "output", "parameters", "FLOP forward", "backward", "bytes kept", "which are",
)  # fmt: skip
NUMBERS = range(3, 7)  # the columns of numbers, which stand to the right


class Row(NamedTuple):
    """One block: path, name, output's dtype and shape, number of parameters, floating-point
    operations of forward and backward, bytes kept for backward, and what those are."""

    path: str
    block: str
    output: str
    parameters: int
    forward_flops: int
    backward_flops: int
    residual_bytes: int
    residuals: str


class Summary(NamedTuple):
    """A row for every block that is no graph, in order of execution, and totals.

    An array that several blocks keep counts once in the total of ``residual_bytes``.
    """

    rows: list[Row]
    parameters: int
    forward_flops: int
    backward_flops: int
    residual_bytes: int

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                clean(r.path, 60), clean(r.block, 40), r.output, f"{r.parameters:,}",
                readable_count(r.forward_flops), readable_count(r.backward_flops),
                readable_bytes(r.residual_bytes), r.residuals,
            )
            for r in (*self.rows, Row("total", "", "", *self[1:], ""))
        ]  # fmt: skip

    def _repr_html_(self) -> str:
        return table(self._cells(), HEADER, NUMBERS)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        columns = []
        for i, column in enumerate(zip(HEADER, *self._cells(), strict=True)):
            justify = str.rjust if i in NUMBERS else str.ljust
            width = max(map(len, column))
            columns.append([justify(cell, width) for cell in column])
        first, *rows, total = ("  ".join(row).rstrip() for row in zip(*columns, strict=True))
        rule = "-" * max(map(len, (first, *rows, total)))
        return "\n".join([first, rule, *rows, rule, total])


@checked
def summary(net: Block, x: Value, key: RandomKey | None = None) -> Summary:
    """A table of the network by block path: outputs, parameters, floating-point operations (see
    :func:`fnn.introspect.flops.flops`), and what is kept for backward.

    Args:
      net: the network.
      x: an input or its ``jax.ShapeDtypeStruct``, with the batch size in question.
      key: randomness for the network; by default ``jax.random.key(0)``.

    Returns:
      A :class:`Summary`; print it for the table.

    Raises:
      BlockError: a block refuses the shape or dtype of its input.

    >>> import fnn, jax
    >>> net = fnn.serial(hidden=fnn.linear(128), act=fnn.relu(), out=fnn.linear(10))
    >>> print(fnn.summary(net, jax.ShapeDtypeStruct((32, 784), "float32")))
    block   kind    output           parameters  FLOP forward  backward  bytes kept  which are
    ----------------------------------------------------------------------------------------------
    hidden  linear  float32[32,128]     100,480        6.43 M    12.8 M     98.0 KB  x
    act     relu    float32[32,128]           0        4.10 K         0      4.0 KB  uint8[32,128]
    out     linear  float32[32,10]        1,290        82.2 K     164 K     16.0 KB  x
    ----------------------------------------------------------------------------------------------
    total                               101,770        6.51 M    13.0 M    118.0 KB
    """
    require_numbers("summary", "x", x, or_shapes=True)
    key = jax.random.key(0) if key is None else key
    rows: list[Row] = []

    def counted(path: str, block: Block) -> Block:
        if is_network(block):
            return block

        def note(params: Params, x: Value, key: Key, y: Value, residuals: Residuals) -> None:
            names = {"x": x, "y": y, "key": key, "": params}
            forward_flops = flops(lambda p, x: block.forward(p, x, key), params, x)
            backward_flops = flops(block.backward, params, residuals, y)
            row = Row(
                path or block.name, block.name, ", ".join(_words(y)), count_of(params),
                forward_flops, backward_flops, bytes_of(residuals),
                ", ".join(_words(residuals, names)),
            )  # fmt: skip
            rows.append(row)

        return observe(block, note)

    residual_bytes = 0

    def run(params: Params, x: Value, key: Key) -> None:
        nonlocal residual_bytes
        residual_bytes = bytes_of(watch(net, counted).forward(params, x, key)[1])

    params = jax.eval_shape(lambda key: net.init(key, x), key)  # a shape as x stays one
    jax.eval_shape(run, params, x, key)
    forward_flops = sum(row.forward_flops for row in rows)
    backward_flops = sum(row.backward_flops for row in rows)
    return Summary(rows, count_of(params), forward_flops, backward_flops, residual_bytes)


def _words(tree: Any, named: dict[str, Any] | None = None) -> Iterator[str]:
    """Each array by its path in ``named``, or else by its dtype and shape."""
    names = {
        id(leaf): jax.tree_util.keystr(path, simple=True, separator="/").strip("/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(named or {})
    }
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype"):
            yield names.get(id(leaf), kind_of(leaf))
