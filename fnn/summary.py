"""A network at a glance, from shapes alone: nothing is allocated, nothing runs."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from fnn.block import Block, Key, Params, Residuals, Value
from fnn.graph import map_nodes


class Row(NamedTuple):
    """One block: its path, its kind, its output's shape, its parameters, its residuals."""

    path: str
    block: str
    output: str
    parameters: int
    residual_bytes: int


class Summary(NamedTuple):
    """The rows of the blocks that are not graphs themselves, in order of execution."""

    rows: list[Row]
    parameters: int
    residual_bytes: int

    def __str__(self) -> str:
        header = ("block", "kind", "output", "parameters", "kept for backward")
        cells = [
            (r.path, r.block, r.output, f"{r.parameters:,}", readable_bytes(r.residual_bytes))
            for r in self.rows
        ]
        total = ("total", "", "", f"{self.parameters:,}", readable_bytes(self.residual_bytes))
        table = [header, *cells, total]
        widths = [max(len(row[i]) for row in table) for i in range(len(header))]

        def line(row: tuple[str, ...]) -> str:
            text = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(
                zip(row, widths, strict=True))]  # fmt: skip
            return "  ".join(text).rstrip()

        rule = "-" * len(line(header))
        return "\n".join([line(header), rule, *map(line, cells), rule, line(total)])


def summary(net: Block, x: Value, key: Key = None) -> Summary:
    """A table of the network by block path: output shape, parameters, bytes kept for backward.

    Args:
      net: the network.
      x: an input, or its ``jax.ShapeDtypeStruct``; the batch size counts in the bytes.

    >>> import fnn, jax
    >>> net = fnn.serial(hidden=fnn.linear(128), act=fnn.relu(), out=fnn.linear(10))
    >>> print(fnn.summary(net, jax.ShapeDtypeStruct((32, 784), "float32")))
    block   kind    output           parameters  kept for backward
    --------------------------------------------------------------
    hidden  linear  float32[32,128]     100,480            98.0 KB
    act     relu    float32[32,128]           0             4.0 KB
    out     linear  float32[32,10]        1,290            16.0 KB
    --------------------------------------------------------------
    total                               101,770           118.0 KB
    """
    key = jax.random.key(0) if key is None else key
    rows: list[Row] = []

    def watch(path: tuple[str, ...], block: Block) -> Block:
        if block.graph is not None:
            return map_nodes(block, lambda name, inner: watch((*path, name), inner))

        def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
            y, residuals = block.forward(params, x, key)
            sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
            row = Row(
                "/".join(path) or block.name, block.name, _describe(y), sum(sizes), _size(residuals)
            )
            rows.append(row)
            return y, residuals

        return block._replace(forward=forward)

    params = jax.eval_shape(net.init, key, x)
    _, residuals = jax.eval_shape(watch((), net).forward, params, x, key)
    return Summary(rows, sum(math.prod(p.shape) for p in jax.tree.leaves(params)), _size(residuals))


def _describe(y: Value) -> str:
    return ", ".join(
        f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(y)
    )


def _size(residuals: Residuals) -> int:
    return sum(math.prod(r.shape) * r.dtype.itemsize for r in jax.tree.leaves(residuals))


def readable_bytes(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:,.1f} {unit}"
