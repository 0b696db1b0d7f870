"""Training from initialisation to convergence: initialise, forward, backward, descend, repeat."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from fnn.arguments import AnyOptimizer, Count, FloatDType, Natural, NonNegative, RandomKey, checked
from fnn.block import Block, Params, Value
from fnn.executor import inference
from fnn.introspect.finite import all_finite
from fnn.training.diagnostics.data_summary import DataSummary, data_summary
from fnn.training.diagnostics.record import Diagnostics
from fnn.training.diagnostics.watch import Watch
from fnn.training.interrupts import deferred
from fnn.training.metrics import accuracy
from fnn.training.optimizers import sgd
from fnn.training.progress import Clock, reporter
from fnn.training.run import Call, Metric, Metrics, Row, Run, evaluation, post_mortem, seed_of
from fnn.training.source import Source, opened
from fnn.training.steps import make_epoch
from fnn.training.validate import parameters, predicted

Status = Literal["finished", "converged", "interrupted", "diverged"]
ADVICE = "Try a lower learning rate, or look at the data and that block."


class Fitted(NamedTuple):
    """Result of :func:`fit`.

    ``params``: the best parameters at the end of an epoch: those with the lowest validation loss
    or, without validation, training loss (that of the epoch that begins with them).
    ``last``, ``state``: the parameters and the optimiser's state at the end.
    ``history``: a dict per epoch: ``epoch``, ``loss`` (its mean over the epoch),
    ``validation_loss``, a ``validation_...`` per metric, ``seconds`` since the start.
    ``best_epoch``: where ``params`` is from, 0 for the start.
    ``status``: "finished" (all epochs), "converged", "interrupted", or "diverged" (a loss or an
    update that is not finite, or a loss that rises). ``message``: the same in words.
    ``diagnostics``: :class:`~fnn.Diagnostics`, if they were asked for.
    """

    params: Params
    last: Params
    state: Any
    history: list[Row]
    best_epoch: int
    status: Status
    message: str
    diagnostics: Diagnostics | None = None

    @property
    def success(self) -> bool:
        """Whether training finished or converged."""
        return self.status in ("finished", "converged")


@checked
def fit(
    net: Block,
    loss: Block,
    x: Value | Source,
    target: Value = None,
    *,
    optimizer: AnyOptimizer | None = None,
    epochs: Natural = 10,
    batch_size: Count = 128,
    key: RandomKey | None = None,
    params: Params = None,
    validation: tuple[Value, Value] | Source | None = None,
    loss_at_inference: Block | None = None,
    metrics: Metrics | None = None,
    dtype: FloatDType | None = None,
    tolerance: NonNegative | None = None,
    patience: Count = 5,
    steps_per_call: Count | None = None,
    diagnostics: bool = False,
    progress: Callable[[Row, float], None] | bool = True,
    after_epoch: Callable[[Params, Any, list[Row]], None] | None = None,
) -> Fitted:
    """Trains a network: the whole pipeline, compiled, reproducible from the key.

    Args:
      net, loss: blocks.
      x, target: arrays of n examples, or tuples of such. Without ``target``, x is a
        :class:`~fnn.Source`: any object with ``len(x)`` and ``x[rows] -> (x, target)``, such as
        a memory-mapped file or a folder of images, of which a few steps' worth is in memory at a
        time. The parameters learned are those of the same examples in arrays, up to rounding.
      optimizer: :func:`~fnn.sgd`, :func:`~fnn.adam` or any of Optax's; ``sgd(0.1)`` by default.
      epochs: passes over the data, at most.
      batch_size: examples per step; the last batch of an epoch may be smaller.
      key: seeds initialisation, shuffling and dropout; ``jax.random.key(0)`` by default.
      params: where to start; ``net.init(key, x)`` by default.
      validation: ``(x, target)`` or a source, to evaluate after every epoch.
      loss_at_inference: of the predictions at inference, for networks that have auxiliary outputs
        in training only; ``loss`` by default.
      metrics: functions ``(prediction, target) -> float`` by name, such as ``fnn.accuracy``,
        of the validation predictions.
      dtype: of the computation; x is cast to it. bfloat16 computes in bfloat16 with float32
        parameters. By default x's own.
      tolerance: stop when the loss has not improved on its lowest by this relative amount for
        ``patience`` epochs.
      steps_per_call: steps per compiled call; fewer make interrupts and progress prompt where
        epochs are long. The whole epoch by default, for a source 8.
      diagnostics: look at every layer between epochs (:class:`~fnn.Diagnostics`);
        ``print(fitted.diagnostics)`` says what is wrong, if anything, and what to try. The
        parameters learned are the same, bit for bit. A classifier's validation accuracy is
        added to the history.
      progress: called with (row, seconds left) after each epoch; True prints to stderr. If it has
        a method ``within(epoch, part, seconds left)``, that is called after each compiled call.
      after_epoch: called with (params, state, history) after each epoch, before ``progress``: to
        save them, or to add entries to ``history[-1]``.

    Returns:
      :class:`Fitted`. Ctrl-C ends training and keeps what was learned. A loss that is not
      finite ends it too, warns which block made it, and keeps the last good parameters.

    Raises:
      ValueError, TypeError: before training, for data that is empty, of different lengths, NaN,
        infinite, masked, no real numbers or integers that JAX would wrap, for targets that the loss
        refuses, and for arguments that cannot work. While training, for bad examples of a source;
        the message names the first.
      BlockError: network, loss and data do not match; the message names the block.

    >>> import fnn, numpy as np
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> fitted = fnn.fit(fnn.linear(1), fnn.squared_error(), x, 3 * x + 1, epochs=200,
    ...                  batch_size=16, tolerance=1e-3, progress=False)
    >>> round(float(fitted.params["w"][0, 0]), 2), round(float(fitted.params["b"][0]), 2)
    (3.0, 1.0)
    """
    optimizer = sgd(0.1) if optimizer is None else optimizer
    key = jax.random.key(0) if key is None else key
    run, params, summary = _prepare(
        net, loss, x if target is None else (x, target), optimizer, epochs, batch_size,
        key, params, validation, loss_at_inference or loss, metrics or {}, dtype,
        steps_per_call, diagnostics,
    )  # fmt: skip

    now = _Now(params, optimizer.init(params))  # 1. initialise
    watch = None if summary is None else Watch(run, summary, params)
    if watch is not None:
        watch(0, now.params, now.state)
    best, converged = _Best(params), _Convergence(tolerance, patience)
    clock, report = Clock(run.epochs), reporter(progress, run.epochs)
    status: Status = "finished"
    message = f"after {run.epochs} epoch{'s' * (run.epochs != 1)}"
    try:
        with deferred() as check_interrupt:

            def after_call(epoch: int, part: float) -> None:
                if hasattr(report, "within"):
                    report.within(epoch, part, clock.left(epoch - 1 + part))
                check_interrupt()

            for epoch in _epochs(run, now, clock, after_call):  # 2. forward, backward, descend
                best.offer(*epoch.candidate)
                if after_epoch is not None:
                    after_epoch(now.params, now.state, now.history)
                report(epoch.row, clock.left(epoch.number))
                check_interrupt()
                done = converged(epoch.row["loss"])
                if watch is not None:
                    watch.note_losses(epoch.losses)
                    watch(epoch.number, now.params, now.state, done or epoch.number == run.epochs)
                if done:  # 3. repeat until convergence
                    status, message = converged.verdict()
                    break
    except KeyboardInterrupt:
        status, message = "interrupted", f"by an interrupt in epoch {len(now.history) + 1}"
    except _NonFiniteLoss as error:
        status, message = "diverged", f"in {error}"
        warnings.warn(
            f"fit stopped {message}. The best parameters so far are kept. {ADVICE}",
            RuntimeWarning,
            stacklevel=3,  # of fit's caller: fit is wrapped
        )
    status, message = _ending(run, now, best, status, message)
    return Fitted(
        best.params, now.params, now.state, now.history, best.epoch, status, message,
        None if watch is None else watch.diagnostics(now.history, status),
    )  # fmt: skip


def _prepare(
    net: Block, loss: Block, data: Any, optimizer: Any, epochs: int, batch_size: int,
    key: jax.Array, params: Params, validation: Any, loss_at_inference: Block,
    metrics: Mapping[str, Metric], dtype: Any, steps_per_call: int | None, diagnostics: bool,
) -> tuple[Run, Params, DataSummary | None]:  # fmt: skip
    """Refuses data that cannot work; returns the run, its first parameters, a data summary."""
    train = opened("x", data, dtype)
    params = parameters(net, params, key, train.like[0])
    at_inference = inference(net), loss_at_inference
    prediction = predicted(*at_inference, params, train, "target")
    held_out = None
    if validation is not None:
        held_out = opened("validation x", validation, dtype)
        predicted(*at_inference, params, held_out, "validation target")
    seed, summary = seed_of(key), None
    if diagnostics:
        labels = None if held_out is None else held_out.sample(seed)[1]
        summary = data_summary(loss, prediction, *train.sample(seed), labels)
        summary = summary._replace(n_validation=len(held_out or ()))
        if summary.losses.is_classifier and held_out is not None:
            by = functools.partial(accuracy, threshold=summary.losses.threshold)
            metrics = {"accuracy": by, **metrics}
    if metrics and held_out is None:
        raise ValueError(
            "fit: metrics are of validation predictions: give validation=(x, target), got none"
        )
    n = len(train)
    batch_size = min(batch_size, n)
    steps = steps_per_call or train.steps_per_call or n
    averaged = getattr(optimizer, "evaluated", None)
    run = Run(
        net, loss, *at_inference, optimizer, train.on_device(), key, epochs, batch_size,
        epoch=make_epoch(net, loss, optimizer, batch_size),
        cuts=list(range(steps * batch_size, n, steps * batch_size)),
        evaluated=jax.jit(averaged) if averaged else lambda state, params: params,
        evaluate=None if held_out is None
        else evaluation(*at_inference, held_out.on_device(), metrics, batch_size),
    )  # fmt: skip
    return run, params, summary


@dataclass
class _Now:
    """The state of training, up to date after every call, so that an interrupt loses nothing."""

    params: Params
    state: Any
    history: list[Row] = field(default_factory=list)


class _Epoch(NamedTuple):
    """``losses``: of the steps. ``candidate``: parameters, after which epoch, with which loss."""

    number: int
    row: Row
    losses: np.ndarray
    candidate: tuple[Params, int, float]


class _NonFiniteLoss(Exception):
    pass


def _epochs(
    run: Run, now: _Now, clock: Clock, after_call: Callable[[int, float], None]
) -> Iterator[_Epoch]:
    """Trains, an epoch at a time: every example once, in a new random order."""
    n, shuffle = len(run.data), np.random.default_rng(run.seed)
    previous: Call | None = None
    for number in range(1, run.epochs + 1):
        order = shuffle.permutation(n).astype(np.int32)
        key = jax.random.fold_in(run.key, np.uint32(2**32 - number))  # see executor.FORWARD
        # An epoch's loss is that of the parameters it began with, updated on the way.
        at_start = None if run.evaluate else run.evaluated(now.state, now.params)
        losses, used = np.zeros(0), 0
        run.data.start(number)
        for x, target, rows in run.data.calls(np.split(order, run.cuts)):
            call = Call(now.params, now.state, x, target, rows, key, len(losses))
            now.params, now.state, on_device = run.epoch(*call)
            values = np.asarray(on_device)
            if not (np.isfinite(values).all() and all_finite(now.params)):
                now.params, now.state, cause = post_mortem(run, call, values, previous)
                raise _NonFiniteLoss(f"epoch {number}, {cause}")
            losses, used, previous = np.concatenate([losses, values]), used + len(rows), call
            after_call(number, used / n)
        sizes = np.minimum(run.batch_size, n - run.batch_size * np.arange(len(losses)))
        row = {"epoch": number, "loss": float(np.average(losses, weights=sizes))}
        candidate = at_start, number - 1, row["loss"]
        if run.evaluate is not None:
            params = run.evaluated(now.state, now.params)
            row |= run.evaluate(params)
            candidate = params, number, row["validation_loss"]
        row["seconds"] = clock.seconds()
        now.history.append(row)
        yield _Epoch(number, row, losses, candidate)


@dataclass
class _Best:
    """The parameters with the lowest loss, and the epoch after which they were."""

    params: Params
    epoch: int = 0
    loss: float = math.inf

    def offer(self, params: Params, epoch: int, loss: float) -> None:
        if loss < self.loss:
            self.params, self.epoch, self.loss = params, epoch, loss


def _ending(run: Run, now: _Now, best: _Best, status: Status, message: str) -> tuple[Status, str]:
    """Keeps the last parameters if they are the best; without a finite loss, it has diverged."""
    params, count = run.evaluated(now.state, now.params), len(now.history)
    if not now.history:  # no epoch was finished: the last good parameters are all there is
        best.params = params
    elif run.evaluate is None and status != "diverged":
        at_inference = run.net_at_inference, run.loss_at_inference
        evaluate = evaluation(*at_inference, run.data, {}, run.batch_size)
        last = evaluate(params)["validation_loss"]
        if last <= best.loss:
            best.params, best.epoch = params, count
    elif best.epoch == 0 and status in ("finished", "converged"):
        status, message = "diverged", f"{message}; the validation loss was never finite"
        best.params, best.epoch = params, count
        warnings.warn(f"fit stopped {message}. {ADVICE}", RuntimeWarning, stacklevel=4)
    return status, message


class _Convergence:
    """Whether the loss has not improved by the relative ``tolerance`` for ``patience`` epochs."""

    def __init__(self, tolerance: float | None, patience: int) -> None:
        self.tolerance, self.patience = tolerance, patience
        self.first = self.last = self.lowest = math.inf
        self.stale = 0

    def __call__(self, loss: float) -> bool:
        if self.tolerance is None:
            return False
        if math.isinf(self.lowest):
            self.first = loss
        self.last = loss
        if self.lowest - loss > self.tolerance * abs(self.lowest) or math.isinf(self.lowest):
            self.lowest, self.stale = loss, 0
        else:
            self.stale += 1
        return self.stale >= self.patience

    def verdict(self) -> tuple[Status, str]:
        """A loss that only rose has not converged."""
        if self.last > self.first:
            return "diverged", f"as the loss rises: from {self.first:.4g} to {self.last:.4g}"
        return (
            "converged",
            f"as converged: loss within {self.tolerance:g} for {self.patience} epochs",
        )
