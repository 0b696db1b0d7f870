"""The record that every optimiser is: Optax's protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fnn.block import Params


class Optimizer(NamedTuple):
    """Optax's protocol, and which parameters to evaluate.

    ``init(params) -> state``.
    ``update(grads, state, params=None) -> (updates, state)``.
    ``evaluated(state, params) -> params``: where :func:`~fnn.fit` shall evaluate and return other
    parameters than those that take the steps: an average (:func:`~fnn.averaged`), or
    ``optax.contrib.schedule_free_eval_params``.
    ``call``: what made it, such as ``sgd(0.1)``.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any]]
    evaluated: Callable[[Any, Params], Params] | None = None
    call: str = ""

    def __repr__(self) -> str:
        return self.call or "Optimizer(init, update)"
