"""A few examples learned by heart: if even that fails, it is not for want of examples or time."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import jax
import numpy as np

from fnn.block import Block, Key, Params, Value
from fnn.executor import map_nodes
from fnn.training.optimizers import adam
from fnn.training.steps import make_epoch

FEW = 20  # examples
CHUNK, STEPS, SECONDS = 10, 2000, 5.0  # in calls of so many steps; the most steps, the most time
# By heart: a loss of this part of that of a network that knows nothing. No finite logits make a
# cross-entropy 0; with a hundredth of ln 10, each example gets its label with p = 0.98.
LEARNED = 0.01


class ByHeart(NamedTuple):
    """Whether a few examples can be learned by heart, with an optimiser (Adam) of its own.

    So it tells about network, loss and gradients, not about the learning rate; nothing is dropped
    out. ``learned`` is None where that would have taken longer than it may.
    """

    examples: int
    steps: int
    loss: float
    learned: bool | None


def learn_by_heart(
    net: Block, loss: Block, params: Params, few: tuple[Value, Value], key: Key, ignorant: float
) -> ByHeart:
    """Tries it, from ``params``, which stay as they are.

    Args:
      few: (x, target).
      ignorant: the loss of a network that knows nothing, NaN where it is not known.

    >>> import fnn, jax, jax.numpy as jnp
    >>> x = 4 * jnp.eye(3)
    >>> params = fnn.linear(3).init(jax.random.key(0), x)
    >>> few = (x, jnp.array([2, 0, 1]))
    >>> loss = fnn.softmax_cross_entropy()
    >>> learn_by_heart(fnn.linear(3), loss, params, few, jax.random.key(0), math.log(3)).learned
    True
    """
    x, target = few
    examples = jax.tree.leaves(x)[0].shape[0]
    optimizer = adam(0.01)
    epoch = make_epoch(_complete(net), loss, optimizer, examples)
    order = np.tile(np.arange(examples, dtype=np.int32), CHUNK)
    state, done, value, least = optimizer.init(params), 0, np.nan, np.nan
    start: float | None = None  # after the first call, which also compiles
    while done < STEPS:
        params, state, losses = epoch(params, state, x, target, order, key, done)
        value = float(np.mean(np.asarray(losses)))
        if not done:
            least = LEARNED * (float(losses[0]) if math.isnan(ignorant) else ignorant)
        done += CHUNK
        if value <= least or not np.isfinite(value):
            break
        start = start or time.perf_counter()
        if time.perf_counter() - start > SECONDS:
            return ByHeart(examples, done, value, None)
    return ByHeart(examples, done, value, bool(value <= least))


def _complete(block: Block) -> Block:
    """The network without what is only there against learning by heart, which is dropout."""
    if block.graph is not None:
        return map_nodes(block, lambda name, inner: _complete(inner))
    rules = block.rules
    keeps_statistics = rules.update_statistics is not None  # batch norm learns with its batch's
    return block if keeps_statistics or rules.inference is None else rules.inference()
