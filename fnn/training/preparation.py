"""Before training: what cannot work is refused, and the rest is made into a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.backprop import require_network_first
from fnn.block import Block, Params, Value
from fnn.executor import inference
from fnn.training.arrays import host_array
from fnn.training.diagnostics.data_summary import DataSummary, data_summary
from fnn.training.endings import mismatch, require_probabilities, warn_of_mismatch
from fnn.training.fitted import Checkpoint, Fitted, Model, same_structure
from fnn.training.layout import Layout, Sharding, sharding_of
from fnn.training.loss_scale import loss_scaled
from fnn.training.metrics import accuracy
from fnn.training.microbatches import weight_of
from fnn.training.run import Metric, Run, evaluation, seed_of
from fnn.training.source import opened
from fnn.training.steps import divided, epoch_with, predict_with
from fnn.training.tables import columns_of, require_columns, require_one_order
from fnn.training.validate import parameters, predicted
from fnn.training.weighted import ClassWeights, example_weights, total_weight, weighted


@dataclass(frozen=True, eq=False, kw_only=True)
class Settings:
    """The arguments of :func:`fnn.fit` that say what is trained, on what and how."""

    net: Block
    loss: Block
    data: Any  # (x, target), or a source
    optimizer: Any
    epochs: int
    batch_size: int
    microbatches: int
    validation: Any
    weights: Value
    class_weights: ClassWeights | None
    loss_at_inference: Block
    metrics: Mapping[str, Metric]
    dtype: Any
    steps_per_call: int | None
    diagnostics: bool
    sharding: Sharding | None


class Prepared(NamedTuple):
    """A run, what ``Fitted`` needs to know of it, its first parameters and optimiser's state.

    ``summary``: of the data, for diagnostics.
    """

    run: Run
    model: Model
    params: Params
    state: Any
    summary: DataSummary | None


def starting_point(
    resume: Fitted | Checkpoint | None, params: Params, key: jax.Array | None
) -> Checkpoint:
    """Where to start from: a checkpoint without epochs, or the given one."""
    if resume is None:
        return Checkpoint(params, None, (params, 0, math.inf), np.zeros(2, np.uint32), [])
    if params is not None or key is not None:
        raise ValueError("fit: resume has the parameters and the key of its run; leave out these")
    start = resume.checkpoint if isinstance(resume, Fitted) else resume
    return start._replace(history=[dict(row) for row in start.history])


def prepare(settings: Settings, start: Checkpoint, key: jax.Array) -> Prepared:
    """Refuses what cannot work, before anything is trained.

    Args:
      start: where to start from; without parameters, new ones are made from the key.
    """
    s, loss, metrics = settings, settings.loss, settings.metrics
    require_network_first("fit", s.net, loss)
    is_weighted = s.weights is not None or s.class_weights is not None
    columns = columns_of(s.data[0] if isinstance(s.data, tuple) else s.data)
    if isinstance(s.validation, tuple):
        require_columns("fit: validation x", s.validation[:1], columns)
    data = _with_weights(s.data, s.weights, s.class_weights) if is_weighted else s.data
    train = opened("fit: x", data, s.dtype)
    params = parameters(s.net, start.params, key, train.like[0])
    given = Layout.of("fit", s.sharding or sharding_of(train.given, params))
    layout = None if given is None else given.inside
    if layout is not None:
        params = layout.placed(params)
    net_at_inference = inference(s.net)
    own_loss = weighted(s.loss_at_inference) if is_weighted else s.loss_at_inference
    prediction = predicted(net_at_inference, own_loss, params, train, "target")
    at_inference, held_out = (net_at_inference, s.loss_at_inference), None
    if s.validation is not None:
        held_out = opened("fit: validation x", s.validation, s.dtype)
        predicted(*at_inference, params, held_out, "validation target")
    seed, summary = seed_of(key), None
    if s.diagnostics:
        labels = None if held_out is None else held_out.sample(seed)[1]
        x, target = train.sample(seed)
        target = target[0] if is_weighted else target
        summary = data_summary(loss, prediction, x, target, labels)
        summary = summary._replace(n_validation=len(held_out or ()), mismatch=mismatch(s.net, loss))
        if summary.losses.is_classifier and held_out is not None:
            by = functools.partial(accuracy, threshold=summary.losses.threshold)
            metrics = {"accuracy": by, **metrics}
    if metrics and held_out is None:
        raise ValueError(
            "fit: metrics are of validation predictions: give validation=(x, target), got none"
        )
    n = len(train)
    batch_size, microbatch = min(s.batch_size, n), divided("fit", s.batch_size, s.microbatches)
    warn_of_mismatch(s.net, loss)
    optimizer = _for_dtype(s.optimizer, train.like[0])
    averaged = getattr(optimizer, "evaluated", None)
    loss, weigh = (weighted(loss), total_weight) if is_weighted else (loss, weight_of)
    if layout is not None and s.batch_size < n:
        layout.require_even("batch_size", batch_size)
        if s.microbatches > 1:
            layout.require_even("batch_size / microbatches", microbatch)
    predict = predict_with(net_at_inference, layout=layout)
    run = Run(
        s.net, loss, net_at_inference, own_loss, optimizer,
        train.on_device(layout, batch_size), key,
        len(start.history) + s.epochs, batch_size, is_weighted,
        epoch=epoch_with(s.net, loss, optimizer, batch_size, microbatch, weigh, layout),
        steps_per_call=s.steps_per_call or train.steps_per_call or n,
        predict=predict,
        evaluated=jax.jit(averaged) if averaged else lambda state, params: params,
        evaluate=None if held_out is None
        else evaluation(
            predict, s.loss_at_inference, held_out.on_device(layout), metrics, batch_size, layout
        ),
        layout=layout,
    )  # fmt: skip
    if metrics and s.epochs and run.evaluate is not None:  # refused now, not after an hour
        run.evaluate(params)
    shapes = [tuple(a.shape) for a in jax.tree.leaves(train.like[0])]
    model = Model(*at_inference, predict, metrics, s.dtype, columns, shapes, given)
    found = mismatch(*at_inference)
    if found is not None and not found.certain:
        first = train.read(np.arange(batch_size))[0]
        require_probabilities(s.loss_at_inference, predict(params, first))
    state = _state(optimizer, params, start)
    state = state if layout is None else layout.placed(state, "the optimiser's state")
    return Prepared(run, model, params, state, summary)


def _for_dtype(optimizer: Any, one: Value) -> Any:
    """The optimiser, with loss scaling where an example is of float16."""
    narrow = any(a.dtype == np.float16 for a in jax.tree.leaves(one))
    return loss_scaled(optimizer) if narrow and not getattr(optimizer, "scale", None) else optimizer


def _state(optimizer: Any, params: Params, start: Checkpoint) -> Any:
    new = optimizer.init(params)
    if start.state is None:
        return new
    if not same_structure(new, start.state):
        raise ValueError(
            "fit: resume has the state of another optimiser; give the one that it was fitted with"
        )
    return start.state


def _with_weights(data: Any, weights: Value, class_weights: ClassWeights | None) -> Any:
    """Arrays with weights as a part of the target."""
    if not isinstance(data, tuple) or len(data) != 2:
        what = "weights" if weights is not None else "class_weights"
        raise TypeError(
            f"fit: {what} are for arrays x and target, got a {type(data).__name__} as x; of a "
            "source, let the loss weigh"
        )
    x, target = data
    require_one_order("fit: x", x, target=target, weights=weights)
    target = jax.tree.map(lambda a: host_array("fit: target", a), target)
    if weights is not None:
        weights = host_array("fit: weights", weights)
        n = np.shape(jax.tree.leaves(target)[0])[:1]
        if weights.shape != n:
            raise ValueError(
                f"fit: weights have shape {weights.shape}, need one number per example, {n}"
            )
        if not is_floating(weights):
            weights = weights.astype(np.float32)
    return x, (target, example_weights(weights, class_weights, target))
