"""Steps of a language model by fnn and by PyTorch, in turns.

A step is forward, backward, clipping and AdamW, as :mod:`experiments.common.learning` has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.report import limit_threads
from experiments.benchmarks.torch_gpt import logits
from experiments.common.learning import B2, Draw, Learning, descent, rate, stretch
from fnn.block import Block

STRETCH = 10  # steps that are timed at once


class Beside(NamedTuple):
    """Milliseconds of a step, the ratio of PyTorch's to fnn's, and the losses of each stretch."""

    fnn: float
    torch: float
    ratio: float
    losses: tuple[list[float], list[float]]


def beside(
    options: Learning, net: Block, loss: Block, draw: Draw, params: Any, heads: int, steps: int
) -> Beside:
    """Times steps of fnn and of PyTorch, eager, in turns, on as many threads.

    Both begin with these parameters and read the same windows; PyTorch's are drawn before it is
    timed.
    """
    import torch

    torch.set_num_threads(limit_threads(0))
    rounds = -(-steps // STRETCH)
    keys = jax.random.split(jax.random.key(options.seed), (rounds + 1, STRETCH))  # one to warm up
    losses: tuple[list[float], list[float]] = ([], [])
    stretches = {
        "fnn": _in_fnn(options, net, loss, draw, params, keys, losses[0]),
        "torch": _in_torch(torch, options, draw, params, heads, keys, losses[1]),
    }
    seconds: dict[str, timing.Seconds] = {name: {} for name in stretches}
    for some in stretches.values():
        some()
    for number, name in timing.turns(stretches, rounds):
        time.sleep(timing.PAUSE_SECONDS)
        seconds[name][number] = timing.stopwatch(stretches[name])
    ours, theirs = (1e3 * median(seconds[name].values()) / STRETCH for name in stretches)
    return Beside(ours, theirs, timing.ratio(seconds["torch"], seconds["fnn"]), losses)


def _in_fnn(
    options: Learning, net: Block, loss: Block, draw: Draw, params: Any, keys: jax.Array,
    losses: list[float],
) -> Callable[[], None]:  # fmt: skip
    state, waiting = descent(options).init(params), iter(keys)
    run = stretch(options, net, loss, draw).lower(params, state, keys[0]).compile()

    def some() -> None:
        nonlocal params, state
        params, state, values = jax.block_until_ready(run(params, state, next(waiting)))
        losses.append(float(np.mean(values)))

    return some


def _in_torch(
    torch: Any, options: Learning, draw: Draw, params: Any, heads: int, keys: jax.Array,
    losses: list[float],
) -> Callable[[], None]:  # fmt: skip
    F = torch.nn.functional
    tensors = jax.tree.map(lambda p: torch.from_numpy(np.array(p)).requires_grad_(), params)
    leaves = jax.tree.leaves(tensors)
    kinds = [
        {"params": [p for p in leaves if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in leaves if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(kinds, betas=(0.9, B2))
    rates = np.asarray(rate(options)(np.arange(keys.size)), float)
    windows = jax.jit(lambda key: draw(jax.random.split(key)[0]))
    drawn = iter([
        (*(torch.from_numpy(np.array(a)).long() for a in windows(key)), float(rates[i]))
        for i, key in enumerate(keys.ravel())
    ])  # fmt: skip

    def step(ids: Any, labels: Any, learning_rate: float) -> Any:
        for kind in adamw.param_groups:
            kind["lr"] = learning_rate
        z = logits(F, tensors, ids, heads)
        value = F.cross_entropy(z.flatten(0, 1), labels.flatten())
        adamw.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(leaves, options.clip)
        adamw.step()
        return value.detach()

    def some() -> None:
        values = [step(*next(drawn)) for _ in range(STRETCH)]
        losses.append(float(torch.stack(values).mean()))

    return some
