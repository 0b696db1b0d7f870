"""The loop of training: epochs, the best parameters so far, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.block import Params
from fnn.introspect.finite import all_finite
from fnn.refusals import described, warn
from fnn.training.endings import Mismatch, mismatch
from fnn.training.fitted import Status
from fnn.training.progress import Clock
from fnn.training.run import Call, Row, Run, evaluation, post_mortem
from fnn.training.source import SourceError

ADVICE = "Try a lower learning rate, or look at the data and that block."
PATIENCE = 5  # epochs, where an improvement is asked for and no patience given


@dataclass
class Now:
    """The state of training, up to date after every call, so that an interrupt loses nothing.

    ``seconds``: that training took, earlier runs included.
    Of the epoch that is under way: ``used``, how many examples; ``losses`` and ``sizes`` of the
    steps of each call, what each loss counts in the epoch's; ``at_start``, the parameters to
    evaluate as it began, where its loss is theirs.
    """

    params: Params
    state: Any
    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    used: int = 0
    losses: list[np.ndarray] = field(default_factory=list)
    sizes: list[np.ndarray] = field(default_factory=list)
    at_start: Params = None


class Epoch(NamedTuple):
    """``losses``: of the steps. ``candidate``: parameters, after which epoch, with which loss."""

    number: int
    row: Row
    losses: np.ndarray
    candidate: tuple[Params, int, float]


def advice_on(found: Mismatch | None) -> str:
    return ADVICE if found is None else f"But {found.what}: {found.fix}."


class NonFiniteLoss(Exception):
    """``at_once``: the first loss since the run was taken up, so that the step before, whose loss
    was finite, is not known."""

    at_once = False


def is_told_to_stop(answer: Any) -> bool:
    """Whether ``on_epoch`` has returned True; anything else than that, False or None is refused."""
    if answer is not None and np.asarray(answer).dtype != bool:
        raise TypeError(
            f"on_epoch returned {described(answer)}, needs True to end training, or None"
        )
    return bool(answer)


def training(
    run: Run, now: Now, clock: Clock, after_call: Callable[[int, float], None]
) -> Iterator[Epoch]:
    """Trains, an epoch at a time: every example once, in a new random order."""
    n, begun = len(run.data), len(now.history)
    previous: Call | None = None
    for number, order in zip(range(1, run.epochs + 1), run.orders(), strict=False):
        if number <= begun:  # by the run that is resumed
            continue
        key = jax.random.fold_in(run.key, np.uint32(2**32 - number))  # see executor.FORWARD
        # An epoch's loss is that of the parameters it began with, updated on the way.
        if not now.used and run.evaluate is None:
            now.at_start = run.evaluated(now.state, now.params)
        run.data.start(number)
        for x, target, rows in run.data.calls(run.parts(order, now.used)):
            call = Call(now.params, now.state, x, target, rows, key, now.used // run.batch_size)
            params, state, on_device = run.epoch(*call)
            losses = np.asarray(on_device)
            if not (np.isfinite(losses).all() and all_finite(params)):
                now.params, now.state, cause = post_mortem(run, call, losses, previous)
                error = NonFiniteLoss(f"epoch {number}, {cause}")
                error.at_once = previous is None and not np.isfinite(losses[0])
                raise error
            now.params, now.state = params, state
            now.losses.append(losses)
            now.sizes.append(run.sizes(target, rows))
            now.used, previous = now.used + len(rows), call
            now.seconds = clock.seconds()
            after_call(number, now.used / n)
        losses, sizes = np.concatenate(now.losses), np.concatenate(now.sizes)
        row = {"epoch": number, "loss": float(np.sum(losses * sizes) / (np.sum(sizes) or 1.0))}
        candidate = now.at_start, number - 1, row["loss"]
        if run.evaluate is not None:
            params = run.evaluated(now.state, now.params)
            row |= run.evaluate(params)
            candidate = params, number, row["validation_loss"]
        row["seconds"] = now.seconds = clock.seconds()
        now.history.append(row)
        now.used, now.losses, now.sizes, now.at_start = 0, [], [], None
        yield Epoch(number, row, losses, candidate)


@dataclass
class Best:
    """The parameters with the lowest loss, and the epoch after which they were."""

    params: Params
    epoch: int = 0
    loss: float = math.inf

    def offer(self, params: Params, epoch: int, loss: float) -> None:
        if loss < self.loss:
            self.params, self.epoch, self.loss = params, epoch, loss


def ending(run: Run, now: Now, best: Best, status: Status, message: str) -> tuple[Status, str]:
    """Keeps the last parameters if they are the best; without a finite loss, it has diverged."""
    params, count = run.evaluated(now.state, now.params), len(now.history)
    if not now.history:  # no epoch was finished: the last good parameters are all there is
        best.params = params
    elif run.evaluate is None and status != "diverged":
        evaluate = evaluation(
            run.predict, run.loss_at_inference, run.data, {}, run.batch_size, run.layout
        )
        try:
            is_best = evaluate(params)["validation_loss"] <= best.loss
        except SourceError:  # which has ended training, and is told
            is_best = best.epoch == count - 1  # the loss fell until then
        except KeyboardInterrupt:
            is_best, status, message = (
                best.epoch == count - 1,
                "interrupted",
                "by Ctrl-C at its end",
            )
        if is_best:
            best.params, best.epoch = params, count
    elif best.epoch == 0 and status in ("finished", "converged"):
        status, message = "diverged", f"{message}; the validation loss was never finite"
        best.params, best.epoch = params, count
        advice = advice_on(mismatch(run.net, run.loss))
        warn(f"fit stopped {message}. {advice}", RuntimeWarning)
    return status, message


class Convergence:
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
