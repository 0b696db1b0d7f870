"""The record that every optimiser is: Optax's protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fnn.block import Params


class Optimizer(NamedTuple):
    """Optax's protocol, which parameters to evaluate, and the scale of the loss.

    ``init(params) -> state``.
    ``update(grads, state, params=None) -> (updates, state)``.
    ``evaluated(state, params) -> params``: where :func:`~fnn.fit` shall evaluate and return other
    parameters than those that take the steps: an average (:func:`~fnn.averaged`), or
    ``optax.contrib.schedule_free_eval_params``.
    ``scale(state)``: what the loss is multiplied by for the backward pass
    (:func:`~fnn.loss_scaled`); ``update`` is given the true gradients.
    ``call``: what made it, such as ``sgd(0.1)``.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any]]
    evaluated: Callable[[Any, Params], Params] | None = None
    call: str = ""
    scale: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        return self.call or "Optimizer(init, update)"
