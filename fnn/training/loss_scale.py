"""Loss scaling: 16-bit gradients that neither vanish nor overflow."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from fnn.arguments import AnyOptimizer, Count, Positive, checked
from fnn.block import Params
from fnn.optimizer import Optimizer
from fnn.spelling import call_of
from fnn.training.optimizers import accepted, require_state

LOWEST, HIGHEST = 1.0, 2.0**24


class ScaledState(NamedTuple):
    """What :func:`loss_scaled` remembers.

    ``inner``: the optimiser's state. ``scale``: what the next loss is multiplied by. ``good``:
    steps with finite gradients since the scale last changed.
    """

    inner: Any
    scale: jax.Array
    good: jax.Array


export.register_namedtuple_serialization(ScaledState, serialized_name="fnn.ScaledState")


@checked
def loss_scaled(
    optimizer: AnyOptimizer, initial: Positive = 2.0**15, every: Count = 2000
) -> Optimizer:
    """The optimiser with dynamic loss scaling, which training in float16 needs.

    The smallest float16 is 6e-8; smaller gradients inside the network would be 0. So the loss is
    multiplied by a power of two before the backward pass, and the gradients of the parameters are
    divided by it after. Where a gradient is not finite, the step is skipped and the scale halved;
    after ``every`` finite steps it is doubled. It stays between 1 and 2^24, so nothing is ever
    divided by 0. (Micikevicius et al. 2018, arXiv 1710.03740.)

    ``fit`` does this by itself where it computes in float16. bfloat16 needs none: it has the range
    of float32.

    Args:
      optimizer: one of fnn's or Optax's.
      initial: the first scale.
      every: how many finite steps in a row double it.

    Returns:
      An :class:`~fnn.Optimizer` whose state is a ``ScaledState``. At scale 1 a step that is not
      finite is taken as it is, so that training ends and says which block made it.

    Raises:
      BlockValueError: ``initial`` is not above 0, ``every`` not a whole number of at least 1.

    >>> import fnn, jax.numpy as jnp
    >>> optimizer = fnn.loss_scaled(fnn.sgd(1.0), initial=1024)
    >>> params = {"w": jnp.array(3.0)}
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update({"w": jnp.array(jnp.inf)}, state, params)
    >>> float(updates["w"]), float(state.scale)
    (0.0, 512.0)
    """

    def init(params: Params) -> ScaledState:
        scale = jnp.clip(jnp.float32(initial), LOWEST, HIGHEST)
        return ScaledState(optimizer.init(params), scale, jnp.zeros((), jnp.int32))

    def update(
        grads: Params, state: ScaledState, params: Params = None, **extra: Any
    ) -> tuple[Params, ScaledState]:
        require_state("loss_scaled", ScaledState, state)
        updates, inner = optimizer.update(
            grads, state.inner, params, **accepted(optimizer.update, extra)
        )
        is_finite = [jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]
        taken = jnp.array(is_finite).all() | (state.scale <= LOWEST)
        updates = jax.tree.map(lambda u: jnp.where(taken, u, jnp.zeros_like(u)), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(taken, new, old), inner, state.inner)
        full = taken & (state.good + 1 >= every)
        factor = jnp.where(taken, jnp.where(full, 2.0, 1.0), 0.5)
        scale = jnp.clip(state.scale * factor, LOWEST, HIGHEST)
        good = jnp.where(taken & ~full, state.good + 1, 0)
        return updates, ScaledState(inner, scale, good)

    inner_evaluated = getattr(optimizer, "evaluated", None)

    def evaluated(state: ScaledState, params: Params) -> Params:
        return params if inner_evaluated is None else inner_evaluated(state.inner, params)

    return Optimizer(
        init, update, evaluated, call_of("loss_scaled", (optimizer, initial, every)),
        scale=lambda state: state.scale,
    )  # fmt: skip
