"""A training run: what stays the same from the first step to the last."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import Needs
from fnn.block import Block, Params, Value
from fnn.introspect.finite import NonFinite, all_finite, finite
from fnn.refusals import described
from fnn.training.arrays import Arrays, pick
from fnn.training.layout import Layout
from fnn.training.order import Order, orders, orders_within
from fnn.training.programs import Step, loss_on
from fnn.training.source import Stream
from fnn.training.weighted import total_weights

Row = dict[str, float]
Metric = Callable[[Any, Any], float]  # (prediction, target) -> value
Metrics = Annotated[
    Mapping[str, Metric],
    Needs(
        'a function for each name, {{"accuracy": fnn.accuracy}},',
        lambda metrics: all(map(callable, metrics.values())),
    ),
]
NO_FAULT = "the optimiser's update is not finite"  # where network and loss are


class Run(NamedTuple):
    """What is trained, on what and how, after everything was checked.

    ``net_at_inference``, ``loss_at_inference``: as ``evaluate`` uses them. ``is_weighted``: whether
    targets are (target, weights). ``epoch``: the compiled steps (:func:`~fnn.make_epoch`).
    ``steps_per_call``: of ``epoch``.
    ``predict(params, x)``: of the network at inference. ``evaluated(state, params)``: the
    parameters to evaluate and return.
    ``evaluate(params)``: the validation loss and metrics, if there is validation data.
    ``layout``: of the arrays, where several devices train.
    """

    net: Block
    loss: Block
    net_at_inference: Block
    loss_at_inference: Block
    optimizer: Any
    data: Arrays | Stream
    key: jax.Array
    epochs: int
    batch_size: int
    is_weighted: bool
    epoch: Step
    steps_per_call: int
    predict: Callable[[Params, Value], Value]
    evaluated: Callable[[Any, Params], Params]
    evaluate: Callable[[Params], Row] | None
    layout: Layout | None = None

    @property
    def seed(self) -> list[int]:
        return seed_of(self.key)

    @property
    def watched(self) -> str:
        """The loss, by its name in the history, that says whether training gets on."""
        return "loss" if self.evaluate is None else "validation_loss"

    def orders(self) -> Iterator[Order]:
        """The order of the examples in epoch 1, 2, ...: a function of the key."""
        if self.data.is_split:
            return orders_within(self.seed, len(self.data), self.batch_size)
        return orders(self.seed, len(self.data))

    def parts(self, order: Order, used: int) -> Iterator[np.ndarray]:
        """What each call takes of an epoch's order, of which some was used before."""
        n, size = len(self.data), self.steps_per_call * self.batch_size
        return (order[start : min(start + size, n)] for start in range(used, n, size))

    def sizes(self, target: Value, rows: np.ndarray) -> np.ndarray:
        """What the loss of each batch counts in that of the epoch: its examples, or weights."""
        if self.is_weighted:
            weights = jax.tree.leaves(target)[-1]
            weights = weights if self.layout is None else self.layout.fetched(weights)
            return total_weights(weights, rows, self.batch_size)
        starts = np.arange(0, len(rows), self.batch_size)
        return np.minimum(self.batch_size, len(rows) - starts)


def seed_of(key: jax.Array) -> list[int]:
    """The key's words, to seed NumPy's generators with."""
    return [int(word) for word in np.ravel(key_data(key))]


def key_data(key: jax.Array) -> np.ndarray:
    """The words of a key, typed or raw."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if typed else key)


def evaluation(
    predict: Callable[[Params, Value], Value], loss: Block, data: Arrays | Stream,
    metrics: Mapping[str, Metric], batch_size: int, layout: Layout | None = None,
) -> Callable[[Params], Row]:  # fmt: skip
    """``evaluate(params)``: the loss and the metrics on some data, compiled once.

    Metrics need the predictions of all examples at once; the loss alone runs in bounded memory.
    """
    value = loss_on(layout, loss)
    untried = set(metrics)

    def evaluate(params: Params) -> Row:
        losses, sizes, pairs = [], [], []
        for x, target in data.blocks(batch_size):
            y = predict(params, x)
            losses.append(float(value(y, target)))
            sizes.append(len(jax.tree.leaves(target)[0]))
            if metrics:
                fetch = jax.device_get if layout is None else layout.fetched
                pairs.append(fetch((y, target)))
        mean = losses[0] if len(losses) == 1 else float(np.average(losses, weights=sizes))
        row = {"validation_loss": mean}
        if metrics:
            y, target = jax.tree.map(lambda *parts: np.concatenate(parts), *pairs)
            for name, metric in metrics.items():
                if name in untried:
                    _require_order(name, metric, y, target)
                    untried.discard(name)
                row[f"validation_{name}"] = _number(name, metric, y, target)
        return row

    return evaluate


def _require_order(name: str, metric: Metric, prediction: Any, target: Any) -> None:
    """Refuses a metric of scikit-learn's, of (target, prediction), for which the order matters."""
    if not (getattr(metric, "__module__", "") or "").startswith("sklearn."):
        return
    try:
        values = metric(prediction, target), metric(target, prediction)
        same = np.array_equal(*values, equal_nan=True)
    except Exception:  # needs labels, not logits, or takes its arguments in one order only
        same = False
    if not same:
        own = getattr(metric, "__name__", "metric")
        raise TypeError(
            f"metrics: {name!r} is scikit-learn's {own}, which takes (target, prediction); give "
            f"lambda prediction, target: {own}(target, prediction), with prediction.argmax(1) for "
            "labels"
        )


def _number(name: str, metric: Metric, prediction: Any, target: Any) -> float:
    try:
        value = metric(prediction, target)
    except Exception as error:
        given = f"({described(prediction)}, {described(target)})"
        raise ValueError(
            f"metrics: {name!r} raises {type(error).__name__} for {given}, needs a function of "
            f"(prediction, target): {error}"
        ) from error
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"metrics: {name!r} returned {described(value)}, needs to return one number"
        ) from None


class Call(NamedTuple):
    """The arguments of one call of ``run.epoch``: some steps, from ``first`` on."""

    params: Params
    state: Any
    x: Value
    target: Value
    rows: np.ndarray
    key: jax.Array
    first: int


def post_mortem(
    run: Run, call: Call, losses: np.ndarray, previous: Call | None
) -> tuple[Params, Any, str]:
    """The last parameters whose loss and update were finite, their state, and what came then.

    Everything is a function of the key, so the steps up to the bad one are taken again.
    """
    good = np.isfinite(losses)
    bad = len(losses) if good.all() else int(np.argmin(good))
    look = jax.jit(finite(run.net, run.loss))

    def after(step: int, call: Call = call) -> tuple[Params, Any]:
        rows = call.rows[: step * run.batch_size]
        again = run.epoch(*call._replace(rows=rows)) if step else call
        return again[0], again[1]

    def first_fault(step: int) -> NonFinite | None:
        rows = call.rows[step * run.batch_size :][: run.batch_size]
        key = jax.random.fold_in(call.key, call.first + step)
        return look(after(step)[0], *pick((call.x, call.target), rows), key).first

    # A gradient of the step before was not finite, or its update, or else this loss.
    step = max(bad - 1, 0)
    fault = first_fault(step)
    if fault is None and bad > step and all_finite(after(bad)[0]):
        step, fault = bad, first_fault(bad)
    cause = f"step {call.first + step + 1}: {fault or NO_FAULT}"
    if bad == 0 and previous is not None:  # this call began with parameters of an infinite loss
        return *after((len(previous.rows) - 1) // run.batch_size, previous), cause
    last = max(bad - 1, 0)
    if not all_finite(after(last)[0]):  # a finite loss has hidden it
        last = bisect_left(range(1, last), True, key=lambda step: not all_finite(after(step)[0]))
        cause = f"step {call.first + last + 1}: {first_fault(last) or NO_FAULT}"
    return *after(last), cause
