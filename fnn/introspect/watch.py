"""Every block of a network by its path, wrapped as the executor runs it."""

from __future__ import annotations

from collections.abc import Callable

from fnn.block import Block, Key, Params, Residuals, Value
from fnn.executor import is_network, mapped, rebuilt


def watch(net: Block, wrap: Callable[[str, Block], Block]) -> Block:
    """The network with ``wrap(path, block)`` in place of every block in it, and of itself.

    Args:
      net: a network, or one block.
      wrap: called for the blocks inside before those around them: a network comes with its nodes
        wrapped. ``path`` is ``hidden/linear``, and '' for ``net`` itself. To watch single blocks
        only, return a network (see :func:`~fnn.executor.is_network`) as it is.

    Returns:
      A block that runs as ``net`` does.

    >>> import fnn
    >>> from fnn.executor import is_network
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
            block = rebuilt(block, mapped(block, lambda name, inner: wrapped(inside + name, inner)))
        return wrap(path, block)

    return wrapped("", net)


def observe(
    block: Block, ran: Callable[..., None], went_back: Callable[..., None] = lambda **_: None
) -> Block:
    """The block, reporting every pass: what it was given and what it returned, by name.

    Args:
      block: any block.
      ran: called after forward with ``params``, ``x``, ``key``, ``y`` and ``residuals``.
      went_back: called after backward with ``params``, ``residuals``, ``dy``, ``dparams``, ``dx``.

    Returns:
      A block that runs as ``block`` does.

    >>> import fnn
    >>> record = {}
    >>> y, _ = observe(fnn.square(), record.update).forward({}, 3.0)
    >>> print(record["x"], record["y"])
    3.0 9.0
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        y, residuals = block.forward(params, x, key)
        ran(params=params, x=x, key=key, y=y, residuals=residuals)
        return y, residuals

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        dparams, dx = block.backward(params, residuals, dy)
        went_back(params=params, residuals=residuals, dy=dy, dparams=dparams, dx=dx)
        return dparams, dx

    return block._replace(forward=forward, backward=backward)
