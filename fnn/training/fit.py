"""Training from initialisation to convergence: initialise, forward, backward, descend, repeat."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.arguments import AnyOptimizer, Count, FloatDType, Natural, NonNegative, RandomKey, checked
from fnn.arrays import is_floating
from fnn.backprop import require_network_first
from fnn.block import Block, Params, Value
from fnn.executor import inference
from fnn.introspect.finite import all_finite
from fnn.refusals import warn
from fnn.training.arrays import host_array
from fnn.training.diagnostics.data_summary import DataSummary, data_summary
from fnn.training.diagnostics.watch import Watch
from fnn.training.endings import Mismatch, mismatch, require_probabilities
from fnn.training.fitted import Checkpoint, Fitted, Model, Status, same_structure
from fnn.training.interrupts import deferred
from fnn.training.metrics import accuracy
from fnn.training.optimizers import sgd
from fnn.training.progress import Clock, Lines, reporter
from fnn.training.run import (
    Call,
    Metric,
    Metrics,
    Row,
    Run,
    evaluation,
    key_data,
    post_mortem,
    seed_of,
)
from fnn.training.source import Source, opened
from fnn.training.steps import make_epoch, predict_with
from fnn.training.tables import columns_of, require_columns, require_one_order
from fnn.training.validate import parameters, predicted
from fnn.training.weighted import ClassWeights, example_weights, weighted

ADVICE = "Try a lower learning rate, or look at the data and that block."
PATIENCE = 5  # epochs, where an improvement is asked for and no patience given


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
    weights: Value = None,
    class_weights: ClassWeights | None = None,
    resume: Fitted | Checkpoint | None = None,
    loss_at_inference: Block | None = None,
    metrics: Metrics | None = None,
    dtype: FloatDType | None = None,
    patience: Count | None = None,
    min_improvement: NonNegative | None = None,
    steps_per_call: Count | None = None,
    diagnostics: bool = False,
    progress: Callable[[Row, float], None] | bool = True,
    after_epoch: Callable[[Params, Any, list[Row]], None] | None = None,
) -> Fitted:
    """Trains a network: the whole pipeline, compiled, reproducible from the key.

    Args:
      net, loss: blocks.
      x, target: arrays of n examples, or tuples of such; pandas tables of numbers, too, whose
        columns :meth:`Fitted.predict` then needs in the same order. Without ``target``, x is a
        :class:`~fnn.Source`: any object with ``len(x)`` and ``x[rows] -> (x, target)``, such as
        a memory-mapped file or a folder of images, of which a few steps' worth is in memory at a
        time. The parameters learned are those of the same examples in arrays, up to rounding.
      optimizer: :func:`~fnn.sgd`, :func:`~fnn.adam` or any of Optax's; ``sgd(0.1)`` by default.
      epochs: passes over the data, at most.
      batch_size: examples per step; the last batch of an epoch may be smaller.
      key: seeds initialisation, shuffling and dropout; ``jax.random.key(0)`` by default.
      params: where to start; ``net.init(key, x)`` by default.
      validation: ``(x, target)`` or a source, to evaluate after every epoch.
      weights: (n,), one number of at least 0 per training example, where x is arrays. The loss of
        a batch is the weighted mean sum(w_i l_i) / sum(w_i), that of an epoch likewise.
      class_weights: the same by label, times ``weights``: a mapping, a sequence, or "balanced",
        which makes all classes count the same.
      resume: a :class:`Fitted`, or its ``checkpoint``, to go on from: ``epochs`` further epochs
        with its parameters, key, and optimiser's state. The same data and arguments as before give
        what one run of all the epochs gives, bit for bit.
      loss_at_inference: of the predictions at inference, for networks that have auxiliary outputs
        in training only; ``loss`` by default.
      metrics: functions ``(prediction, target) -> float`` by name, such as ``fnn.accuracy``,
        of the validation predictions. They are tried on those of the first parameters, before
        training. scikit-learn's take (target, prediction): give
        ``lambda prediction, target: r2_score(target, prediction)``.
      dtype: of the computation; x is cast to it. bfloat16 computes in bfloat16 with float32
        parameters. By default x's own.
      patience: stop after this many epochs without a better loss: the validation loss or, without
        validation, the training loss. By default never, or after 5 with ``min_improvement``.
      min_improvement: how much lower a loss has to be to be better, as a share of the lowest so
        far; 0 by default.
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
        infinite, masked, not real numbers, or integers too large for int32, for targets that the
        loss refuses, and for arguments that cannot work. While training, for bad examples of a
        source; the message names the first.
      BlockError: network, loss and data do not match; the message names the block.

    Warns:
      UserWarning: the loss takes logits, and the network ends in softmax or logistic.

    >>> import fnn, numpy as np
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> fitted = fnn.fit(fnn.linear(1), fnn.squared_error(), x, 3 * x + 1, epochs=200,
    ...                  batch_size=16, min_improvement=1e-3, progress=False)
    >>> round(float(fitted.params["w"][0, 0]), 2), round(float(fitted.params["b"][0]), 2)
    (3.0, 1.0)
    """
    optimizer = sgd(0.1) if optimizer is None else optimizer
    start = _start(resume, params, key)
    key = jax.random.key(0) if key is None else key
    key, params = key if resume is None else start.key, start.params
    run, model, params, summary = _prepare(
        net, loss, x if target is None else (x, target), weights, class_weights, optimizer,
        len(start.history) + epochs, batch_size, key, params, validation,
        loss_at_inference or loss, metrics or {}, dtype, steps_per_call, diagnostics,
    )  # fmt: skip

    now = _Now(params, _state(optimizer, params, start), [*start.history])  # 1. initialise
    watch = None if summary is None else Watch(run, summary, params)
    if watch is not None:
        watch(0, now.params, now.state)
    best = _Best(*start.best) if resume is not None else _Best(params)
    converged = _Convergence(run.watched, patience, min_improvement)
    for row in start.history:
        converged(row)
    clock, report = Clock(epochs), reporter(progress, run.epochs)
    before = start.history[-1]["seconds"] if start.history else 0.0
    status: Status = "finished"
    message = f"after {run.epochs} epoch{'s' * (run.epochs != 1)}"
    try:
        with deferred() as check_interrupt:

            def left(done: float) -> float:
                return clock.left(done - len(start.history))

            def after_call(epoch: int, part: float) -> None:
                if hasattr(report, "within"):
                    report.within(epoch, part, left(epoch - 1 + part))
                check_interrupt()

            # 2. forward, backward, descend
            for epoch in _epochs(run, now, clock, before, after_call):
                best.offer(*epoch.candidate)
                if after_epoch is not None:
                    after_epoch(now.params, now.state, now.history)
                report(epoch.row, left(epoch.number))
                check_interrupt()
                done = converged(epoch.row)
                if watch is not None:
                    watch.note_losses(epoch.losses)
                    watch(epoch.number, now.params, now.state, done or epoch.number == run.epochs)
                if done:  # 3. repeat until convergence
                    status, message = converged.verdict()
                    break
    except KeyboardInterrupt:
        status, message = "interrupted", f"by Ctrl-C in epoch {len(now.history) + 1}"
    except _NonFiniteLoss as error:
        status, message = "diverged", f"in {error}"
        advice = _advice(mismatch(net, loss))
        warn(
            f"fit stopped {message}. The best parameters so far are kept. {advice}", RuntimeWarning
        )
    if isinstance(report, Lines):
        report.end()
    checkpoint = Checkpoint(
        now.params, now.state, (best.params, best.epoch, best.loss), key_data(key), now.history
    )
    status, message = _ending(run, now, best, status, message)
    return Fitted(
        best.params, now.params, now.state, now.history, best.epoch, status, message,
        None if watch is None else watch.diagnostics(now.history, status), checkpoint, model,
    )  # fmt: skip


def _start(resume: Fitted | Checkpoint | None, params: Params, key: jax.Array | None) -> Checkpoint:
    """Where to start from: a checkpoint without epochs, or the given one."""
    if resume is None:
        return Checkpoint(params, None, (params, 0, math.inf), np.zeros(2, np.uint32), [])
    if params is not None or key is not None:
        raise ValueError("fit: resume has the parameters and the key of its run; leave out these")
    start = resume.checkpoint if isinstance(resume, Fitted) else resume
    return start._replace(history=[dict(row) for row in start.history])


def _state(optimizer: Any, params: Params, start: Checkpoint) -> Any:
    new = optimizer.init(params)
    if start.state is None:
        return new
    if not same_structure(new, start.state):
        raise ValueError(
            "fit: resume has the state of another optimiser; give the one that it was fitted with"
        )
    return start.state


def _prepare(
    net: Block, loss: Block, data: Any, weights: Value, class_weights: Any, optimizer: Any,
    epochs: int, batch_size: int, key: jax.Array, params: Params, validation: Any,
    loss_at_inference: Block, metrics: Mapping[str, Metric], dtype: Any,
    steps_per_call: int | None, diagnostics: bool,
) -> tuple[Run, Model, Params, DataSummary | None]:  # fmt: skip
    """Refuses data that cannot work; returns the run, its first parameters, a data summary."""
    require_network_first("fit", net, loss)
    is_weighted = weights is not None or class_weights is not None
    columns = columns_of(data[0] if isinstance(data, tuple) else data)
    if isinstance(validation, tuple):
        require_columns("fit: validation x", validation[:1], columns)
    if is_weighted:
        data = _with_weights(data, weights, class_weights)
    train = opened("fit: x", data, dtype)
    params = train.beside(parameters(net, params, key, train.like[0]))
    net_at_inference = inference(net)
    own_loss = weighted(loss_at_inference) if is_weighted else loss_at_inference
    prediction = predicted(net_at_inference, own_loss, params, train, "target")
    at_inference, held_out = (net_at_inference, loss_at_inference), None
    if validation is not None:
        held_out = opened("fit: validation x", validation, dtype)
        predicted(*at_inference, params, held_out, "validation target")
    seed, summary = seed_of(key), None
    if diagnostics:
        labels = None if held_out is None else held_out.sample(seed)[1]
        x, target = train.sample(seed)
        target = target[0] if is_weighted else target
        summary = data_summary(loss, prediction, x, target, labels)
        summary = summary._replace(n_validation=len(held_out or ()), mismatch=mismatch(net, loss))
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
    loss = weighted(loss) if is_weighted else loss
    predict = predict_with(net_at_inference)
    run = Run(
        net, loss, net_at_inference, own_loss, optimizer, train.on_device(), key, epochs,
        batch_size, is_weighted,
        epoch=make_epoch(net, loss, optimizer, batch_size),
        cuts=list(range(steps * batch_size, n, steps * batch_size)),
        predict=predict,
        evaluated=jax.jit(averaged) if averaged else lambda state, params: params,
        evaluate=None if held_out is None
        else evaluation(predict, loss_at_inference, held_out.on_device(), metrics, batch_size),
    )  # fmt: skip
    if metrics and epochs and run.evaluate is not None:  # refused now, not after an hour
        run.evaluate(params)
    shapes = [tuple(a.shape) for a in jax.tree.leaves(train.like[0])]
    model = Model(*at_inference, predict, metrics, dtype, columns, shapes)
    found = mismatch(*at_inference)
    if found is not None and not found.certain:
        first = train.read(np.arange(batch_size))[0]
        require_probabilities(loss_at_inference, predict(params, first))
    return run, model, params, summary


def _with_weights(data: Any, weights: Value, class_weights: Any) -> Any:
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


def _advice(found: Mismatch | None) -> str:
    return ADVICE if found is None else f"But {found.what}: {found.fix}."


class _NonFiniteLoss(Exception):
    pass


def _epochs(
    run: Run, now: _Now, clock: Clock, before: float, after_call: Callable[[int, float], None]
) -> Iterator[_Epoch]:
    """Trains, an epoch at a time: every example once, in a new random order.

    ``before``: seconds that earlier runs took.
    """
    n, shuffle = len(run.data), np.random.default_rng(run.seed)
    previous: Call | None = None
    begun = len(now.history)
    for number in range(1, run.epochs + 1):
        order = shuffle.permutation(n).astype(np.int32)
        if number <= begun:  # by the run that is resumed
            continue
        key = jax.random.fold_in(run.key, np.uint32(2**32 - number))  # see executor.FORWARD
        # An epoch's loss is that of the parameters it began with, updated on the way.
        at_start = None if run.evaluate else run.evaluated(now.state, now.params)
        losses, sizes, used = np.zeros(0), np.zeros(0), 0
        run.data.start(number)
        for x, target, rows in run.data.calls(np.split(order, run.cuts)):
            call = Call(now.params, now.state, x, target, rows, key, len(losses))
            now.params, now.state, on_device = run.epoch(*call)
            values = np.asarray(on_device)
            if not (np.isfinite(values).all() and all_finite(now.params)):
                now.params, now.state, cause = post_mortem(run, call, values, previous)
                raise _NonFiniteLoss(f"epoch {number}, {cause}")
            losses, used, previous = np.concatenate([losses, values]), used + len(rows), call
            sizes = np.concatenate([sizes, run.sizes(target, rows)])
            after_call(number, used / n)
        row = {"epoch": number, "loss": float(np.sum(losses * sizes) / (np.sum(sizes) or 1.0))}
        candidate = at_start, number - 1, row["loss"]
        if run.evaluate is not None:
            params = run.evaluated(now.state, now.params)
            row |= run.evaluate(params)
            candidate = params, number, row["validation_loss"]
        row["seconds"] = before + clock.seconds()
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
        evaluate = evaluation(run.predict, run.loss_at_inference, run.data, {}, run.batch_size)
        last = evaluate(params)["validation_loss"]
        if last <= best.loss:
            best.params, best.epoch = params, count
    elif best.epoch == 0 and status in ("finished", "converged"):
        status, message = "diverged", f"{message}; the validation loss was never finite"
        best.params, best.epoch = params, count
        advice = _advice(mismatch(run.net, run.loss))
        warn(f"fit stopped {message}. {advice}", RuntimeWarning)
    return status, message


class _Convergence:
    """Whether the watched loss has not improved, by a share of its lowest, for some epochs."""

    def __init__(self, watched: str, patience: int | None, share: float | None) -> None:
        self.watched, self.share = watched, share or 0.0
        self.patience = PATIENCE if patience is None and share is not None else patience
        self.first = self.last = math.inf  # training losses
        self.lowest, self.stale = math.inf, 0

    def __call__(self, row: Row) -> bool:
        if self.patience is None:
            return False
        self.first = row["loss"] if math.isinf(self.first) else self.first
        self.last, watched = row["loss"], row[self.watched]
        if math.isinf(self.lowest) or self.lowest - watched > self.share * abs(self.lowest):
            self.lowest, self.stale = watched, 0
        else:
            self.stale += 1
        return self.stale >= self.patience

    def verdict(self) -> tuple[Status, str]:
        """A loss that only rose has not converged."""
        if self.last > self.first:
            return "diverged", f"as the loss rises: from {self.first:.4g} to {self.last:.4g}"
        by = f" by more than {self.share:g} of it" if self.share else ""
        what = self.watched.replace("_", " ") if "_" in self.watched else "training loss"
        return (
            "converged",
            f"after {self.patience} epochs in which the {what} has not improved on "
            f"{self.lowest:.4g}{by}",
        )
