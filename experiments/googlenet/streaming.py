"""Training on examples that are read as they are needed, with Polyak averaging.

The loop of a network whose data need not fit into memory, or are another each time: pictures
are read in threads while the step before is taken.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fnn
from experiments.common.console import TrainingProgress
from experiments.common.data import Array
from experiments.googlenet.examples import Examples
from experiments.googlenet.images import Pixels, batches
from fnn.block import Block
from fnn.introspect.finite import all_finite
from fnn.training.interrupts import deferred

Row = dict[str, float]
Scaling = Callable[[Any], jax.Array]  # of pixels, to what the network sees


class Plan(NamedTuple):
    """How long to train, and from which seed."""

    epochs: int
    batch_size: int
    averaging: float
    seed: int


@dataclass
class Learned:
    """What training gave: the last parameters, their average, and how it ended."""

    params: Any
    average: Any
    history: list[Row]
    status: Literal["finished", "interrupted", "diverged"]
    message: str


def learn(
    net: Block,
    loss: Block,
    optimizer: Any,
    examples: Examples,
    scaling: Scaling,
    plan: Plan,
    params: Any,
    judge: Callable[[Any, Any], Row],
    keep: Callable[[Learned], None],
    progress: TrainingProgress,
) -> Learned:
    """Takes the steps; after each epoch judges the parameters and their average, and keeps both.

    All batches are of one size: the few examples that are left over wait for the next epoch,
    whose order is another. The average follows the parameters p by

        average += (1 - d) / (1 - d^t) (p - average)

    after step t, with d = ``plan.averaging``. That is the mean of all p until then with weights
    that fall by d a step, without the usual pull towards 0 at the beginning (Polyak and Juditsky
    1992 have d = 1, equal weights; the beginning is then forgotten late).

    Ctrl-C ends training with what was learned; a loss that is not finite ends it with the
    parameters of the end of the epoch before.
    """
    size = min(plan.batch_size, len(examples.labels))
    steps = len(examples.labels) // size
    step = fnn.make_step(net, loss, optimizer, donate=True)
    state, average, taken = optimizer.init(params), jax.tree.map(jnp.array, params), 0
    key, rng = jax.random.key(plan.seed), np.random.default_rng(plan.seed)
    clock = _Clock(steps * plan.epochs, plan.epochs)
    history: list[Row] = []

    def now(status: Any, message: str) -> Learned:
        # Copies, as the next step gives the memory of both away.
        copied, mean = (jax.tree.map(np.array, tree) for tree in (params, average))
        return Learned(copied, mean, history, status, message)

    at_end = now("finished", "after 0 epochs")

    try:
        with deferred() as check_interrupt:
            for epoch in range(1, plan.epochs + 1):
                order = rng.permutation(len(examples.labels))[: steps * size]
                varied = functools.partial(_varied, examples, plan.seed, epoch)
                losses: list[float] = []
                for pixels, _ in batches(order.tolist(), size, varied):
                    rows = order[len(losses) * size :][:size]
                    params, state, value = step(
                        params, state, scaling(pixels), examples.labels[rows],
                        jax.random.fold_in(key, taken),
                    )  # fmt: skip
                    taken += 1
                    average = _towards(average, params, _weight(plan.averaging, taken))
                    losses.append(float(value))
                    if not math.isfinite(losses[-1]):
                        raise _NotFinite(f"the loss is {losses[-1]} at step {len(losses)}")
                    progress.within(epoch, len(losses) / steps, clock.step())
                    check_interrupt()
                if not all_finite(params):
                    raise _NotFinite("the parameters are not finite")
                row = {"epoch": epoch, "loss": float(np.mean(losses))} | judge(params, average)
                history.append(row | {"seconds": clock.judged()})
                at_end = now("finished", f"after {epoch} epoch{'s' * (epoch != 1)}")
                keep(at_end)
                progress(history[-1], clock.left())
                check_interrupt()
    except KeyboardInterrupt:
        return now("interrupted", f"by an interrupt in epoch {len(history) + 1}")
    except _NotFinite as error:
        at_end.status = "diverged"
        at_end.message = f"in epoch {len(history) + 1}: {error}"
    return at_end


class _NotFinite(Exception):
    pass


def _varied(examples: Examples, seed: int, epoch: int, i: int) -> Pixels:
    """The i-th picture as it is learned from in this epoch, whichever thread reads it."""
    return examples.vary(i, np.random.default_rng((seed, epoch, i)))


def _weight(decay: float, taken: int) -> float:
    return (1 - decay) / (1 - decay**taken)


@functools.partial(jax.jit, donate_argnums=0)
def _towards(average: Any, params: Any, weight: Any) -> Any:
    return optax.incremental_update(params, average, weight)


class _Clock:
    """The time that is left, from the steps after the first, which compiled, and the judging."""

    def __init__(self, steps: int, epochs: int) -> None:
        self.begin = self.last = time.perf_counter()
        self.steps, self.epochs, self.taken = steps, epochs, 0
        self.first = self.stepping = self.judging = 0.0

    def step(self) -> float:
        seconds = self._lap()
        self.taken += 1
        if self.taken == 1:
            self.first = seconds
        else:
            self.stepping += seconds
        return self.left()

    def judged(self) -> float:
        """The seconds since the beginning."""
        self.judging = self._lap()
        self.epochs -= 1
        return self.last - self.begin

    def left(self) -> float:
        each = self.stepping / (self.taken - 1) if self.taken > 1 else self.first
        return each * (self.steps - self.taken) + self.judging * self.epochs

    def _lap(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return self.last - before


class Judged(NamedTuple):
    """The mean loss of examples, what the network says of each, and how often it is right."""

    loss: float
    logits: Array
    accuracy: float

    @property
    def guess(self) -> Array:
        """The class that each example is taken for."""
        return self.logits.argmax(-1)


def make_judge(
    net: Block, loss: Block, scaling: Scaling, batch_size: int
) -> Callable[..., list[Judged]]:
    """``judge(examples, params, ...)``: the network as it is at inference, with each of these.

    The examples are read once for all.
    """
    reading = fnn.inference(net)

    @jax.jit
    def outputs(params: Any, x: jax.Array) -> jax.Array:
        return reading.forward(params, x)[0]

    def judge(examples: Examples, *several: Any) -> list[Judged]:
        rows: list[list[Array]] = [[] for _ in several]
        size = min(batch_size, len(examples.labels))
        for pixels, count in batches(range(len(examples.labels)), size, examples.see):
            x = scaling(pixels)
            for own, params in zip(rows, several, strict=True):
                own.append(np.asarray(outputs(params, x), np.float32)[:count])
        found = []
        for own in rows:
            logits = np.concatenate(own)
            value = float(loss.forward({}, (logits, examples.labels))[0])
            accuracy = fnn.accuracy(logits, examples.labels)
            found.append(Judged(value, logits, accuracy))
        return found

    return judge
