"""Convolutional networks: fnn's rules beside autodiff of the plain lax formulas.

    python -m experiments.benchmarks conv
    python -m experiments.benchmarks conv --only max_pool --repeats 20
    python -m experiments.benchmarks conv --no-blocks

Two tables, each measured in alternation: every block of GoogLeNet and of the CNN alone, at its
shapes there; then training steps and inference, beside Flax and PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from rich.progress import track

from experiments.benchmarks import conv_peers, report, timing
from experiments.benchmarks.cases import Case, passes
from experiments.benchmarks.conv_cases import cases
from experiments.benchmarks.report import Recorded, Table
from experiments.benchmarks.timing import compiled, ratio, ready

PACKAGES = ("jax", "flax", "optax", "torch", "numpy")
BLOCKS = (
    "network", "block", "x", "fnn, ms", "jax.vjp / fnn", "in scan: fnn, ms",
    "in scan: jax.vjp / fnn",
    "backward alone: jax.vjp / fnn", "temporary, fnn / jax.vjp", "kept, fnn / jax.vjp",
)  # fmt: skip
STEPS = ("what", "contender", "ms (quartiles)", "ratio to fnn", "compilation, s", "temporary, MB")
ABOUT = """\
- Blocks: forward and backward together, from a random cotangent to those of parameters and input;
  jax.vjp of the plain lax formula with the same parameters. Above 1, fnn is faster. "In scan": the
  same inside `lax.scan`. Backward alone: from the residuals. Temporary: as XLA reports for the
  compiled program; kept: bytes of residuals, without the parameters, x counted once.
- Steps: forward, backward and the update of plain SGD; ratios are medians of those within a round.
- The median of the rounds; in each, all contenders have a turn, in random order. A step's is a
  pause, a call that is not counted, and calls one after another for 0.6 s, of which it is the
  mean."""


@dataclass(kw_only=True)
class Options(Recorded):
    """Measures convolutional blocks and training steps beside autodiff, Flax and PyTorch."""

    repeats: int = 9
    """rounds; in each, every contender is timed once"""
    blocks: bool = True
    """single blocks; --no-blocks leaves them out"""
    steps: bool = True
    """whole steps; --no-steps leaves them out"""
    only: str = ""
    """only blocks whose name contains this"""
    batch: int = 8
    """examples in a batch of GoogLeNet"""
    pixels: int = 224
    """height and width of GoogLeNet's pictures"""
    dtype: str = "float32"
    """float32, or bfloat16 for inputs and computation"""


def main(options: Options) -> None:
    """Measures, prints the tables, and records them. Ctrl-C prints the tables so far."""
    threads = report.limit_threads(options.threads)
    warnings = [f"WARNING: {warning}" for warning in report.other_work()]
    head = [report.conditions(threads, PACKAGES), *warnings]
    print("\n".join(head))
    tables: list[Table] = []
    interrupted = False
    try:
        if options.blocks:
            tables.append(Table(BLOCKS, []))
            blocks(options, tables[-1].rows)
        if options.steps:
            tables.append(Table(STEPS, []))
            steps(options, threads, tables[-1].rows)
    except KeyboardInterrupt:
        interrupted = True
    for table in tables:
        table.show()
    head[0] += f" {options.dtype}."
    name = f"conv, {jax.default_backend().upper()}, {options.dtype}"
    out = None if interrupted else options.out
    report.record(out, name, *head, *(table.markdown() for table in tables), ABOUT)


# ---- blocks ----------------------------------------------------------------------------------


def blocks(options: Options, rows: list[list[str]]) -> None:
    """Appends a row for each block, as it is measured."""
    chosen = [case for case in cases(options.batch, options.pixels) if options.only in case.name]
    for case in track(chosen, "blocks", transient=True):
        rows.append(block_row(case, options))


def block_row(case: Case, options: Options) -> list[str]:
    """One block, by hand and by ``jax.vjp`` of its plain formula."""
    dtype = jnp.dtype(options.dtype)
    x = jax.random.normal(jax.random.key(0), case.shape, dtype)
    params = case.block.init(jax.random.key(1), x)
    shape = jax.eval_shape(case.block.forward, params, x)[0]
    dy = jax.random.normal(jax.random.key(2), shape.shape, dtype)

    both = passes(case)

    def looped(f: Callable[..., Any]) -> Callable[..., Any]:
        def body(carry: Any, _: Any) -> Any:  # steps depend on each other: none is hoisted
            params, x, dy = carry
            _, (dparams, dx) = f(params, x, dy)
            params = jax.tree.map(lambda p, d: p - 1e-6 * d, params, dparams)
            return (params, x + 1e-6 * dx, dy), None

        return lambda params, x, dy: lax.scan(body, (params, x, dy), length=2)[0]

    programs, temporary = {}, []
    for name, f in both.items():
        program, _, memory = compiled(f, params, x, dy)
        temporary.append(memory)
        programs[name] = ready(program, params, x, dy)
        program, _, _ = compiled(looped(f), params, x, dy)
        programs[f"{name} in scan"] = ready(program, params, x, dy)
    alone = "-"
    if case.name.startswith("max_pool"):  # for others, both backwards are the same products
        residuals = jax.jit(lambda p, x: case.block.forward(p, x)[1])(params, x)
        own, _, _ = compiled(case.block.backward, params, residuals, dy)
        programs["backward"] = ready(own, params, residuals, dy)
        # y is not returned, so XLA drops what only forward needs.
        other, _, _ = compiled(lambda p, x, dy: both["autodiff"](p, x, dy)[1], params, x, dy)
        programs["autodiff backward"] = ready(other, params, x, dy)
    seconds = timing.alternating(programs, options.repeats)
    plain, loop = seconds["by hand"], seconds["by hand in scan"]
    if "backward" in seconds:
        alone = f"{ratio(seconds['autodiff backward'], seconds['backward']):.1f}"
    return [
        case.network, case.name, "x".join(map(str, case.shape)),
        f"{1e3 * median(plain.values()):.2f}", f"{ratio(seconds['autodiff'], plain):.2f}",
        f"{500 * median(loop.values()):.2f}", f"{ratio(seconds['autodiff in scan'], loop):.1f}",
        alone, quotient(*temporary), quotient(*kept(case, params, x)),
    ]  # fmt: skip


def kept(case: Case, params: Any, x: Any) -> tuple[int, int]:
    """Residual bytes by hand and by ``jax.vjp``, without the parameters; x counts once."""
    sizes: list[int] = []

    def trace(params: Any, x: Any) -> None:
        excluded = {id(leaf) for leaf in jax.tree.leaves(params)}
        for values in (case.block.forward(params, x)[1], jax.vjp(case.plain, params, x)[1]):
            arrays = {id(v): v for v in jax.tree.leaves(values) if id(v) not in excluded}
            sizes.append(sum(v.nbytes for v in arrays.values()))

    jax.eval_shape(trace, params, x)
    return sizes[0], sizes[1]


def quotient(a: int, b: int) -> str:
    return f"{a / b:.2f}" if b else ("1.00" if not a else f"{a} B / 0")


# ---- steps -----------------------------------------------------------------------------------


def steps(options: Options, threads: int, rows: list[list[str]]) -> None:
    """Appends rows for whole steps of the CNN and of GoogLeNet, and GoogLeNet's inference."""
    comparisons = conv_peers.comparisons(options.batch, options.pixels, options.dtype, threads)
    for what, contenders in comparisons.items():
        print(f"{what} ...", flush=True)
        programs: dict[str, conv_peers.Program] = {}
        for name, make in contenders.items():
            try:
                programs[name] = make()
            except ModuleNotFoundError as error:
                print(f"left out: {name} ({error})")
        runs = {name: program.run for name, program in programs.items()}
        seconds = timing.alternating(runs, options.repeats, timing.PAUSE_SECONDS)
        for name, program in programs.items():
            low, middle, high = (1e3 * t for t in timing.quartiles(seconds[name]))
            compilation = f"{program.compilation:.1f}" if program.compilation else "-"
            memory = "-" if program.temporary is None else f"{program.temporary / 1e6:.0f}"
            speed, to_fnn = (
                f"{middle:.1f} ({low:.1f}-{high:.1f})",
                ratio(seconds[name], seconds["fnn"]),
            )
            rows.append([what, name, speed, f"{to_fnn:.2f}", compilation, memory])
