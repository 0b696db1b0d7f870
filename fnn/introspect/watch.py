"""Every block of a network by its path, wrapped as the executor runs it."""

from __future__ import annotations

from collections.abc import Callable

from fnn.block import Block
from fnn.executor import map_nodes


def watch(net: Block, wrap: Callable[[str, Block], Block]) -> Block:
    """The network with ``wrap(path, block)`` in place of every block in it, and of itself.

    Args:
      net: a network, or one block.
      wrap: called for the blocks inside before those around them: a network comes with its nodes
        wrapped. ``path`` is ``hidden/linear``, and '' for ``net`` itself. To watch single blocks
        only, return a network (see :func:`is_network`) as it is.

    Returns:
      A block that runs as ``net`` does.

    >>> import fnn
    >>> def log(path, block):
    ...     def forward(params, x, key=None):
    ...         print(f"{path or block.name}: {x}")
    ...         return block.forward(params, x, key)
    ...     return block if is_network(block) else block._replace(forward=forward)
    >>> net = fnn.serial(a=fnn.square(), b=fnn.serial(c=fnn.negate(), d=fnn.square()))
    >>> y, _ = watch(net, log).forward({}, 3.0)
    a: 3.0
    b/c: 9.0
    b/d: -9.0
    """

    def wrapped(path: str, block: Block) -> Block:
        if is_network(block):
            inside = f"{path}/" if path else ""
            block = map_nodes(block, lambda name, inner: wrapped(inside + name, inner))
        return wrap(path, block)

    return wrapped("", net)


def is_network(block: Block) -> bool:
    """Whether the block runs as the nodes of its graph.

    A graph whose forward or backward was replaced does not: it counts as a single block.
    """
    return block.graph is not None and all(
        getattr(f, "graph", None) is block.graph for f in (block.forward, block.backward)
    )
