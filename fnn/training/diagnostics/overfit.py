"""Sanity check: a model that cannot overfit 20 examples has a wrong loss, target or gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np

from fnn.block import Block, Key, Params, Value
from fnn.executor import mapped, rebuilt
from fnn.introspect.flops import flops
from fnn.training.optimizers import adam
from fnn.training.steps import epoch_with

BATCH_EXAMPLES = 20
MAX_STEPS, STEPS_PER_CALL = 2000, 10
# A large network gets fewer steps. The limit is on work, not on time, so that a diagnosis does not
# depend on the machine: 500 GFLOP take some 10 s on two cores.
MAX_FLOPS = 500e9
# The part of the chance loss to reach. No finite logits make a cross-entropy 0; a hundredth of
# ln 10 gives each example its label with p = 0.98.
OVERFIT_LOSS = 0.01


class Overfit(NamedTuple):
    """Whether a network can overfit ``examples`` examples, and its loss after ``steps`` steps.

    ``success`` is None where a large network was given fewer steps than it may need.
    """

    examples: int
    steps: int
    loss: float
    success: bool | None


def overfit_small_batch(
    net: Block,
    loss: Block,
    params: Params,
    batch: tuple[Value, Value],
    key: Key,
    chance_loss: float,
) -> Overfit:
    """Trains on one small batch with Adam, without dropout, until it is learned or given up.

    It tells about network, loss and gradients, not about the learning rate of the run.

    Args:
      net, loss: blocks.
      params: where to start.
      batch: (x, target).
      key: for blocks that are random, other than dropout.
      chance_loss: the loss of an untrained network; NaN to take that of the first step.

    >>> import fnn, jax, jax.numpy as jnp
    >>> x = 4 * jnp.eye(3)
    >>> net, loss = fnn.linear(3), fnn.softmax_cross_entropy()
    >>> params, batch = net.init(jax.random.key(0), x), (x, jnp.array([2, 0, 1]))
    >>> overfit_small_batch(net, loss, params, batch, jax.random.key(0), math.log(3)).success
    True
    """
    x, target = batch
    examples = jax.tree.leaves(x)[0].shape[0]
    optimizer = adam(0.01)
    epoch = epoch_with(_without_dropout(net), loss, optimizer, examples)
    order = np.tile(np.arange(examples, dtype=np.int32), STEPS_PER_CALL)
    state, steps, value, goal = optimizer.init(params), 0, math.nan, math.nan
    work = flops(epoch, params, state, x, target, order, key, 0) / STEPS_PER_CALL
    limit = min(MAX_STEPS, MAX_FLOPS / max(work, 1))
    while steps < limit:
        params, state, losses = epoch(params, state, x, target, order, key, steps)
        value = float(np.mean(np.asarray(losses)))
        if not steps:
            goal = OVERFIT_LOSS * (float(losses[0]) if math.isnan(chance_loss) else chance_loss)
        steps += STEPS_PER_CALL
        if value <= goal or not math.isfinite(value):
            break
    cut_short = MAX_STEPS > steps >= limit and math.isfinite(value)
    return Overfit(examples, steps, value, True if value <= goal else None if cut_short else False)


def _without_dropout(block: Block) -> Block:
    """The network with dropout as at inference, and batch norm as in training."""
    if block.graph is not None:
        return rebuilt(block, mapped(block, lambda _, inner: _without_dropout(inner)))
    rules = block.rules
    keeps_statistics = rules.update_statistics is not None
    return block if keeps_statistics or rules.inference is None else rules.inference()
