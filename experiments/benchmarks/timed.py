"""Blocks and steps timed on the accelerator at hand, inside ``lax.scan``: a single call of a block
takes less time there than its launch from Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks import conv_peers, timing
from experiments.benchmarks.cases import Case, passes
from experiments.benchmarks.conv import quotient
from experiments.benchmarks.conv_peers import Contenders
from experiments.benchmarks.networks import Network
from experiments.benchmarks.timing import Compiled, Seconds, compiled, ratio, ready

SCANNED = 20  # forward and backward passes, or steps, in one call


def block_row(case: Case, dtype: str, repeats: int) -> list[str]:
    """One block, by hand and by ``jax.vjp`` of its plain formula."""
    x = case.drawn(dtype)
    params = case.block.init(jax.random.key(1), x)
    dy = jax.tree.map(
        lambda y: jax.random.normal(jax.random.key(2), y.shape, y.dtype),
        jax.eval_shape(case.block.forward, params, x)[0],
    )

    programs: dict[str, Compiled] = {}
    for name, f in passes(case).items():
        programs[name] = compiled(_again_and_again(f), params, x, dy)
    runs = {name: ready(program.program, params, x, dy) for name, program in programs.items()}
    seconds = timing.alternating(runs, repeats)
    return [
        dtype, case.name, "x".join(map(str, case.shape)),
        f"{1e6 / SCANNED * median(seconds['by hand'].values()):.0f}",
        f"{ratio(seconds['autodiff'], seconds['by hand']):.2f}",
        quotient(programs["by hand"].temporary, programs["autodiff"].temporary),
    ]  # fmt: skip


def _again_and_again(f: Callable[..., Any]) -> Callable[..., Any]:
    """``SCANNED`` passes, each from the results of the last, so that none is left out."""

    def body(carry: Any, _: Any) -> Any:
        params, x, dy = carry
        y, (dparams, dx) = f(params, x, dy)
        return (moved(params, dparams), moved(x, dx), moved(dy, y)), None

    def moved(values: Any, steps: Any) -> Any:
        return jax.tree.map(
            lambda v, d: v if d is None else v + jnp.asarray(1e-6, v.dtype) * d, values, steps
        )

    return lambda params, x, dy: lax.scan(body, (params, x, dy), length=SCANNED)[0]


def steps(networks: dict[str, Network], threads: int, dtype: str) -> dict[str, Contenders]:
    """What is compared -> contender -> a function that makes its program."""
    of = functools.partial(conv_peers.steps_of, dtype=dtype)
    found: dict[str, Contenders] = {}
    for name, (net, plain, shape, classes, torch) in networks.items():
        found[f"{name}, in scan"] = of(net, plain, shape, classes, scan=SCANNED)
        if torch is not None:
            contender = functools.partial(
                conv_peers.torch_step, torch, shape, classes, threads, dtype
            )
            found[name] = {
                **of(net, plain, shape, classes),
                "PyTorch eager, channels last": contender,
            }
    return found


def step_rows(name: str, contenders: Contenders, dtype: str, repeats: int) -> list[list[str]]:
    """A row for each contender."""
    programs = {}
    for contender, make in contenders.items():
        try:
            programs[contender] = make()
        except ModuleNotFoundError as error:
            print(f"left out: {contender} ({error})")
    runs = {contender: program.run for contender, program in programs.items()}
    seconds: dict[str, Seconds] = timing.alternating(runs, repeats, timing.PAUSE_SECONDS)
    each = 1e3 / (SCANNED if name.endswith("in scan") else 1)
    rows = []
    for contender, program in programs.items():
        low, middle, high = (each * t for t in timing.quartiles(seconds[contender]))
        rows.append([
            dtype, name, contender, f"{middle:.2f} ({low:.2f}-{high:.2f})",
            f"{ratio(seconds[contender], seconds['fnn']):.2f}",
            f"{program.compilation:.1f}" if program.compilation else "-",
            "-" if program.temporary is None else f"{program.temporary / 1e6:.0f}",
        ])  # fmt: skip
    return rows
