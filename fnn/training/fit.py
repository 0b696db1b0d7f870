"""Training from initialisation to convergence: initialise, forward, backward, descend, repeat."""

from __future__ import annotations

import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import Block, Key, Params, Value
from fnn.executor import inference
from fnn.introspect.finite import NonFinite, all_finite, finite
from fnn.training.diagnostics.data_summary import facts
from fnn.training.diagnostics.record import Diagnostics
from fnn.training.diagnostics.watch import Watch
from fnn.training.interrupts import deferred
from fnn.training.metrics import accuracy
from fnn.training.optimizers import sgd
from fnn.training.steps import make_epoch, make_predict
from fnn.training.validate import check_target, examples, options, parameters, random_key

Metric = Callable[[Any, Any], float]
Row = dict[str, float]
Status = Literal["finished", "converged", "interrupted", "diverged"]
ADVICE = "Try a lower learning rate, or look at the data and that block."


class Fitted(NamedTuple):
    """What training gave.

    ``params``: the best parameters at the end of an epoch: of the lowest validation loss or, when
    there is no validation, training loss (that of the epoch that begins with them). ``state``:
    the optimiser's state at the end. ``history``: one dict per epoch: ``epoch``, ``loss`` (mean
    over the epoch), ``validation_loss`` and a ``validation_...`` per metric, ``seconds``.
    ``best_epoch``: where ``params`` is from, 0 for the start. ``status``: "finished" (all epochs),
    "converged", "interrupted" or "diverged" (a loss or an update that is not finite, or a loss
    that rises). ``message``: the same in words. ``diagnostics``: what was seen on the way, if
    that was asked for.
    """

    params: Params
    state: Any
    history: list[Row]
    best_epoch: int
    status: Status
    message: str
    diagnostics: Diagnostics | None = None

    @property
    def success(self) -> bool:
        """Whether training ended as asked."""
        return self.status in ("finished", "converged")


def fit(
    net: Block,
    loss: Block,
    x: Value,
    target: Value,
    *,
    optimizer: Any = None,
    epochs: int = 10,
    batch_size: int = 128,
    key: Key = None,
    params: Params = None,
    validation: tuple[Value, Value] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    dtype: Any = None,
    tolerance: float | None = None,
    patience: int = 5,
    steps_per_call: int | None = None,
    diagnostics: bool = False,
    progress: Callable[[Row, float], None] | bool = True,
) -> Fitted:
    """Trains a network: the whole pipeline, compiled, reproducible from the key.

    Args:
      net, loss: blocks.
      x, target: arrays of n examples, or tuples of such. Refused before training if empty, of
        different lengths, NaN or infinite, or not what the loss needs.
      optimizer: :func:`~fnn.sgd` or any of Optax's; ``sgd(0.1)`` by default.
      epochs: passes over the data, at most.
      batch_size: examples per step; the last batch of an epoch may be smaller.
      key: seeds initialisation, shuffling and dropout; ``jax.random.key(0)`` by default.
      params: where to start; ``net.init(key, x)`` by default.
      validation: ``(x, target)`` to judge every epoch by.
      metrics: functions ``(prediction, target) -> float`` by name, such as ``fnn.accuracy``,
        of the validation predictions.
      dtype: of the computation; x is cast to it. bfloat16 computes in bfloat16 with float32
        parameters. By default x's own.
      tolerance: stop as converged when for ``patience`` epochs the loss has not fallen below
        its lowest by this fraction.
      steps_per_call: steps per compiled call; fewer than an epoch's make interrupts and
        progress prompt when epochs are long. The whole epoch by default.
      diagnostics: look at every layer between epochs (:class:`~fnn.Diagnostics`);
        ``print(fitted.diagnostics)`` says what is wrong, if anything, and what to try. The
        parameters learned are the same, bit for bit. Of a classifier, every epoch is judged by
        its validation accuracy too.
      progress: called with (row, seconds left) after each epoch; True prints to stderr.

    Returns:
      :class:`Fitted`. Ctrl-C ends training and keeps what was learned. A loss that is not
      finite ends it too, warns which block made it, and keeps the last good parameters.

    >>> import fnn, numpy as np
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> fitted = fnn.fit(fnn.linear(1), fnn.squared_error(), x, 3 * x + 1, epochs=200,
    ...                  batch_size=16, tolerance=1e-3, progress=False)
    >>> round(float(fitted.params["w"][0, 0]), 2), round(float(fitted.params["b"][0]), 2)
    (3.0, 1.0)
    """
    optimizer = sgd(0.1) if optimizer is None else optimizer
    counts = {"epochs": (epochs, 0), "batch_size": (batch_size, 1), "patience": (patience, 1)}
    if steps_per_call is not None:
        counts["steps_per_call"] = (steps_per_call, 1)
    options(net, loss, optimizer, **counts)
    epochs = int(epochs)
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"fit: tolerance is {tolerance}, needs 0 or more")
    if validation is not None and len(validation) != 2:
        raise ValueError(f"fit: validation has {len(validation)} parts, needs (x, target)")
    key = random_key(key)
    x, target = examples("x", x, target, dtype)
    n = jax.tree.leaves(x)[0].shape[0]
    params = parameters(net, params, key, x)
    check_target(net, loss, params, x, target, "target")
    judge = judged = watch = known = None
    if validation is not None:
        judged = examples("validation x", *validation, dtype)
        check_target(net, loss, params, *judged, "validation target")
    if diagnostics:
        prediction = jax.eval_shape(inference(net).forward, params, x)[0]
        known = facts(loss, prediction, x, target, judged and judged[1])
        if known.classify and judged is not None:
            judged_by = functools.partial(accuracy, threshold=known.threshold)
            metrics = {"accuracy": judged_by, **(metrics or {})}
    if judged is not None:
        judge = _judge(net, loss, *judged, metrics or {})
    elif metrics:
        raise ValueError("fit: metrics are of validation predictions, and there is no validation")

    state = optimizer.init(params)
    batch_size = min(int(batch_size), n)
    epoch = make_epoch(net, loss, optimizer, batch_size)
    cuts = _cuts(n, batch_size, steps_per_call)
    shuffle = np.random.default_rng(_seed(key))
    report = _print_progress(epochs) if progress is True else progress or (lambda row, left: None)
    converged = _Convergence(tolerance, patience)
    if known is not None:
        seed = _seed(key)
        watch = Watch(net, loss, optimizer, x, target, params, key, known, batch_size, seed)
        watch(0, params, state)
    x, target = jax.device_put((x, target))
    post_mortem = functools.partial(_post_mortem, net, loss, epoch, (x, target), batch_size)

    best, best_epoch, lowest = params, 0, math.inf
    history: list[Row] = []
    status: Status = "finished"
    message = f"after {epochs} epoch{'s' * (epochs != 1)}"
    start = time.perf_counter()
    try:
        with deferred() as check_interrupt:
            for number in range(1, epochs + 1):
                order = shuffle.permutation(n).astype(np.int32)
                losses: list[np.ndarray] = []
                at_start, epoch_key = params, jax.random.fold_in(key, number)
                for first, rows in zip([0, *cuts], np.split(order, cuts), strict=True):
                    before, first = (params, state), first // batch_size
                    params, state, values = epoch(*before, x, target, rows, epoch_key, first)
                    losses.append(np.asarray(values))
                    if not (np.isfinite(losses[-1]).all() and all_finite(params)):
                        params, cause = post_mortem(before, rows, losses[-1], epoch_key, first)
                        raise _NonFiniteLoss(f"epoch {number}, {cause}")
                    check_interrupt()
                row = {"epoch": number, "loss": _mean(losses, n, batch_size)}
                if judge is not None:
                    row |= judge(params)
                row["seconds"] = time.perf_counter() - start
                history.append(row)
                # An epoch's loss is that of the parameters it began with, updated on the way.
                candidate = (at_start, number - 1, row["loss"])
                if judge is not None:
                    candidate = (params, number, row["validation_loss"])
                if candidate[2] < lowest:
                    best, best_epoch, lowest = candidate
                report(row, _seconds_left(history, epochs))
                check_interrupt()
                done = converged(row["loss"])
                if watch is not None:
                    watch.steps(losses)
                    watch(number, params, state, last=done or number == epochs)
                if done:
                    if row["loss"] > history[0]["loss"]:
                        status, first_loss = "diverged", history[0]["loss"]
                        message = f"as the loss rises: from {first_loss:.4g} to {row['loss']:.4g}"
                    else:
                        status = "converged"
                        message = f"as converged: loss within {tolerance:g} for {patience} epochs"
                    break
    except KeyboardInterrupt:
        status, message = "interrupted", f"by an interrupt in epoch {len(history) + 1}"
    except _NonFiniteLoss as error:
        status, message = "diverged", f"in {error}"
        warnings.warn(
            f"fit stopped {message}. The best parameters so far are kept. {ADVICE}",
            RuntimeWarning,
            stacklevel=2,
        )
    if not history:  # no epoch was finished: the last good parameters are all there is
        best = params
    elif judge is None and status != "diverged":
        last = _judge(net, loss, x, target, {})(params)["validation_loss"]
        if last <= lowest:
            best, best_epoch = params, len(history)
    elif best_epoch == 0 and status in ("finished", "converged"):
        status, message = "diverged", f"{message}; the validation loss was never finite"
        best, best_epoch = params, len(history)
        warnings.warn(f"fit stopped {message}. {ADVICE}", RuntimeWarning, stacklevel=2)
    seen = None if watch is None else watch.diagnostics(history, status)
    return Fitted(best, state, history, best_epoch, status, message, seen)


class _NonFiniteLoss(Exception):
    pass


class _Convergence:
    """Whether for ``patience`` epochs the loss has not fallen by the fraction ``tolerance``."""

    def __init__(self, tolerance: float | None, patience: int) -> None:
        self.tolerance, self.patience = tolerance, patience
        self.lowest, self.stale = math.inf, 0

    def __call__(self, loss: float) -> bool:
        if self.tolerance is None:
            return False
        if self.lowest - loss > self.tolerance * abs(self.lowest) or math.isinf(self.lowest):
            self.lowest, self.stale = loss, 0
        else:
            self.stale += 1
        return self.stale >= self.patience


def _judge(
    net: Block, loss: Block, x: Value, target: Value, metrics: Mapping[str, Metric]
) -> Callable[[Params], Row]:
    """A function from parameters to validation loss and metrics, compiled once."""
    predict = make_predict(net)
    value = jax.jit(lambda y, t: loss.forward({}, (y, t))[0])
    x_on_device, target_on_device = jax.device_put((x, target))

    def judge(params: Params) -> Row:
        y = predict(params, x_on_device)
        row = {"validation_loss": float(value(y, target_on_device))}
        y = jax.tree.map(np.asarray, y)
        return row | {f"validation_{name}": m(y, target) for name, m in metrics.items()}

    return judge


def _cuts(n: int, batch_size: int, steps: int | None) -> list[int]:
    """Where to cut an epoch's order into compiled calls of ``steps`` steps."""
    if steps is None:
        return []
    return list(range(steps * batch_size, n, steps * batch_size))


def _mean(losses: list[np.ndarray], n: int, batch_size: int) -> float:
    """The mean loss over the examples: the last batch counts by its size."""
    values = np.concatenate(losses).astype(np.float64)
    sizes = np.minimum(batch_size, n - batch_size * np.arange(len(values)))
    return float(np.average(values, weights=sizes))


def _seconds_left(history: list[Row], epochs: int) -> float:
    """From the epochs after the first, which also compiled; from that one if there is no other,
    and then an upper bound."""
    done, last = len(history), history[-1]["seconds"]
    rate = (last - history[0]["seconds"]) / (done - 1) if done > 1 else last
    return rate * (epochs - done)


def _post_mortem(
    net: Block,
    loss: Block,
    epoch: Callable[..., Any],
    data: Value,
    batch_size: int,
    start: tuple[Params, Any],
    rows: np.ndarray,
    losses: np.ndarray,
    key: jax.Array,
    first: int,
) -> tuple[Params, str]:
    """The last parameters whose loss and update were finite, and what went wrong after them.

    Everything is a function of the key, so the steps up to the bad one are taken again.
    """
    good = np.isfinite(losses)
    bad = len(losses) if good.all() else int(np.argmin(good))
    watch = jax.jit(finite(net, loss))

    def params_at(step: int) -> Params:
        some = rows[: step * batch_size]
        return epoch(*start, *data, some, key, first)[0] if step else start[0]

    def examine(step: int) -> NonFinite | None:
        batch = jax.tree.map(lambda a: a[rows[step * batch_size :][:batch_size]], data)
        step_key = jax.random.fold_in(key, first + step)
        return watch(params_at(step), *batch, step_key).first

    # Either a gradient of the step before was not finite, or its update, or else this loss.
    step = max(bad - 1, 0)
    found = examine(step)
    if found is None and bad > step and all_finite(params_at(bad)):
        step, found = bad, examine(bad)
    cause = found or "the optimiser's update is not finite"
    last = max(bad - 1, 0)
    while last and not all_finite(params_at(last)):  # a loss may have hidden what was not finite
        last //= 2
    return params_at(last), f"step {first + step + 1}: {cause}"


def _seed(key: jax.Array) -> list[int]:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return [int(word) for word in np.ravel(jax.random.key_data(key) if typed else key)]


def _print_progress(epochs: int) -> Callable[[Row, float], None]:
    def report(row: Row, left: float) -> None:
        numbers = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in row.items()
            if name not in ("epoch", "seconds")
        )
        bound = "at most " if row["epoch"] == 1 else ""  # the first epoch also compiled
        time_left = f", {bound}{left:.0f} s left" if left else ""
        print(
            f"epoch {row['epoch']}/{epochs}  {numbers}  {row['seconds']:.1f} s{time_left}",
            file=sys.stderr,
        )

    return report
