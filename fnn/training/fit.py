"""Training from initialisation to convergence: initialise, forward, backward, descend, repeat."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax

from fnn.arguments import AnyOptimizer, Count, FloatDType, Natural, NonNegative, RandomKey, checked
from fnn.block import Block, Params, Value
from fnn.refusals import warn
from fnn.training.diagnostics.watch import Watch
from fnn.training.endings import mismatch
from fnn.training.fitted import Checkpoint, Fitted, Status
from fnn.training.identity import everything
from fnn.training.interrupts import deferred
from fnn.training.layout import Sharding, without_explicit_mesh
from fnn.training.loop import (
    Best,
    Convergence,
    NonFiniteLoss,
    Now,
    advice_on,
    ending,
    is_told_to_stop,
    training,
)
from fnn.training.optimizers import sgd
from fnn.training.preparation import Settings, prepare, starting_point
from fnn.training.processes import largest, require_same
from fnn.training.progress import Clock, Lines, reporter
from fnn.training.run import Metrics, Row, key_data
from fnn.training.saving import Saver
from fnn.training.source import Source, SourceError
from fnn.training.weighted import ClassWeights

KEPT = "The best parameters so far are kept."


@checked
@without_explicit_mesh
def fit(
    net: Block,
    loss: Block,
    x: Value | Source,
    target: Value = None,
    *,
    optimizer: AnyOptimizer | None = None,
    epochs: Natural = 10,
    batch_size: Count = 128,
    microbatches: Count = 1,
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
    sharding: Sharding | None = None,
    diagnostics: bool = False,
    progress: Callable[[Row, float], None] | bool = True,
    on_epoch: Callable[[Params, Any, list[Row]], bool | None] | None = None,
    checkpoint: os.PathLike[str] | str | None = None,
    save_every: NonNegative = 60.0,
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
      microbatches: into how many equal parts a batch is cut, of which one at a time goes forward
        and backward: for batches that do not fit into memory. The gradients are the batch's.
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
        parameters; so does float16, with :func:`~fnn.loss_scaled`. By default x's own.
      patience: stop after this many epochs without a better loss: the validation loss or, without
        validation, the training loss. By default never, or after 5 with ``min_improvement``.
      min_improvement: how much lower a loss has to be to be better, as a share of the lowest so
        far; 0 by default.
      steps_per_call: steps per compiled call; fewer make interrupts and progress prompt where
        epochs are long. The whole epoch by default, for a source 8.
      sharding: trains on several devices: a mesh with an axis "data", or a ``NamedSharding`` that
        splits a batch. They share each batch of ``batch_size`` examples, and gradients are summed
        over them; what is learned is what one device learns, up to rounding. Parameters are whole
        on every device, or as ``params`` lie on the mesh. Of x in NumPy arrays or a source, each
        device is sent its own part of each batch. Examples that are split over the devices already
        stay there; their order is another one, of which each device finds its part in its own
        examples, whatever their number. By default one device, or as x lies.
      diagnostics: look at every layer between epochs (:class:`~fnn.Diagnostics`);
        ``print(fitted.diagnostics)`` says what is wrong, if anything, and what to try. The
        parameters learned are the same, bit for bit. A classifier's validation accuracy is
        added to the history.
      progress: called with (row, seconds left) after each epoch; True prints to stderr. If it has
        a method ``within(epoch, part, seconds left)``, that is called after each compiled call.
      on_epoch: called with (params, state, history) after each epoch, before ``progress``: to
        save them, to add entries to ``history[-1]``, or to end training by returning True.
      checkpoint: a folder in which the state of the run is saved now and then and at its end, by
        Orbax (``pip install orbax-checkpoint``). The same call goes on from there, however the run
        was stopped, and gives what one run gives, bit for bit. ``epochs`` counts those of all calls
        together; it, ``patience`` and ``min_improvement`` may change. ``params`` are where the
        first call starts. SIGTERM saves and ends the process with status 143.
      save_every: seconds between saves; a minute by default. They are made after a compiled call
        (see ``steps_per_call``) and written in the background; the last two are kept.

    Returns:
      :class:`Fitted`. Ctrl-C ends training and keeps what was learned. A loss that is not
      finite ends it too, warns which block made it, and keeps the last good parameters; so does a
      source that fails after the first epoch, with a warning that names the examples.

    Raises:
      ValueError, TypeError: before training, for data that is empty, of different lengths, NaN,
        infinite, masked, not real numbers, or integers too large for int32, for targets that the
        loss refuses, and for arguments that cannot work. In the first epoch, for bad examples of
        a source; the message names the first. For a ``checkpoint`` that is another run's, that
        cannot be read, or whose folder cannot be written to.
      BlockError: network, loss and data do not match; the message names the block.

    Warns:
      UserWarning: the loss takes logits, and the network ends in softmax or logistic. A checkpoint
        could not be written, because the disk is full, say: training goes on.

    >>> import fnn, numpy as np
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> fitted = fnn.fit(fnn.linear(1), fnn.squared_error(), x, 3 * x + 1, epochs=200,
    ...                  batch_size=16, min_improvement=1e-3, progress=False)
    >>> round(float(fitted.params["w"][0, 0]), 2), round(float(fitted.params["b"][0]), 2)
    (3.0, 1.0)
    """
    given = dict(locals())
    settings = Settings(
        net=net, loss=loss, data=x if target is None else (x, target),
        optimizer=sgd(0.1) if optimizer is None else optimizer,
        epochs=epochs, batch_size=batch_size, microbatches=microbatches, validation=validation,
        weights=weights, class_weights=class_weights, loss_at_inference=loss_at_inference or loss,
        metrics=metrics or {}, dtype=dtype, steps_per_call=steps_per_call, sharding=sharding,
        diagnostics=diagnostics,
    )  # fmt: skip
    if resume is not None and checkpoint is not None:
        raise ValueError("fit: resume and checkpoint both say what to go on from; leave out one")
    start = starting_point(resume, params, key)
    if resume is not None:
        key = start.key
    key = jax.random.key(0) if key is None else key
    run, model, params, state, summary = prepare(settings, start, key)

    agreed: Callable[[int], int] = int
    if run.layout is not None and run.layout.is_shared:
        stopping = {"epochs": epochs, "patience": patience, "min_improvement": min_improvement}
        require_same("fit", stopping | everything(run, settings, params, state))
        agreed = largest
    before = start.history[-1]["seconds"] if start.history else 0.0
    now = Now(params, state, [*start.history], before)  # 1. initialise
    watch = None if summary is None else Watch(run, summary, params)
    if watch is not None:
        watch(0, now.params, now.state)
    best = Best(*start.best) if resume is not None else Best(params)
    if run.layout is not None:
        best.params = run.layout.placed(best.params)
    saver = None
    if checkpoint is not None:
        saver = Saver(checkpoint, save_every, run, settings, now, best, watch, agreed)
    converged, done = Convergence(run.watched, patience, min_improvement), False
    for row in now.history:
        done = converged(row)
    begun = len(now.history)
    clock, report = Clock(run.epochs - begun, now.seconds), reporter(progress, run.epochs)
    status: Status = "finished"
    message = f"after {run.epochs} epoch{'s' * (run.epochs != 1)}"
    try:
        signals = deferred(terminates=saver is not None, agreed=agreed)
        with signals as check_interrupt, saver or nullcontext():

            def left(done: float) -> float:
                return clock.left(done - begun)

            def between_calls() -> None:
                check_interrupt()
                if saver is not None:
                    saver()

            def after_call(epoch: int, part: float) -> None:
                if hasattr(report, "within"):
                    report.within(epoch, part, left(epoch - 1 + part))
                between_calls()

            # 2. forward, backward, descend
            has_converged = done and saver is not None  # before it was stopped
            for epoch in () if has_converged else training(run, now, clock, after_call):
                best.offer(*epoch.candidate)
                stop = on_epoch is not None and is_told_to_stop(
                    on_epoch(now.params, now.state, now.history)
                )
                report(epoch.row, left(epoch.number))
                stop = bool(agreed(stop))
                done = converged(epoch.row)
                if watch is not None:
                    is_last = done or stop or epoch.number == run.epochs
                    watch.note_losses(epoch.losses)
                    watch(epoch.number, now.params, now.state, is_last)
                between_calls()
                if done:
                    break
                if stop:
                    status, message = "stopped", f"by on_epoch after epoch {epoch.number}"
                    break
            if done and status == "finished":  # 3. repeat until convergence
                status, message = converged.verdict()
    except KeyboardInterrupt:
        status, message = "interrupted", f"by Ctrl-C in epoch {len(now.history) + 1}"
    except SourceError as error:
        if not now.history:  # nothing was learned: data that is refused
            raise error.__cause__ or error  # noqa: B904
        status, message = "interrupted", f"in epoch {len(now.history) + 1}: {error}"
        warn(f"fit stopped {message}. {KEPT}", RuntimeWarning)
    except NonFiniteLoss as error:
        if saver is not None and saver.is_behind:
            return fit(**given)
        status, message = "diverged", f"in {error}"
        advice = advice_on(mismatch(net, loss))
        warn(f"fit stopped {message}. {KEPT} {advice}", RuntimeWarning)
    if isinstance(report, Lines):
        report.end()
    reached = Checkpoint(
        now.params, now.state, (best.params, best.epoch, best.loss), key_data(key), now.history
    )
    status, message = ending(run, now, best, status, message)
    fitted = Fitted(
        best.params, now.params, now.state, now.history, best.epoch, status, message,
        None if watch is None else watch.diagnostics(now.history, status), reached, model,
    )  # fmt: skip
    return fitted if model.layout is None else fitted.on(model.layout)
