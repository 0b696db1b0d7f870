"""Blocks and steps on accelerators, beside jax.vjp and jax.grad of plain formulas.

    python -m experiments.benchmarks accelerators
    python -m experiments.benchmarks accelerators --target h100 --only conv --dtypes bfloat16
    python -m experiments.benchmarks accelerators --device

Without a device, programs are compiled for an H100 and a TPU v5e, and what they move and keep is
compared (:mod:`experiments.benchmarks.lab`; pip install -e '.[accelerators]').

With ``--device`` everything is timed on the accelerator at hand, inside ``lax.scan``: a single call
of a block takes less time there than its launch from Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from experiments.benchmarks import (
    block_cases,
    conv_cases,
    conv_peers,
    image_cases,
    lab,
    report,
    sequence_cases,
    timed,
)
from experiments.benchmarks.cases import Case, passes
from experiments.benchmarks.networks import Network, networks
from experiments.benchmarks.report import Recorded, Table

PACKAGES = ("jax", "torch", "numpy")
BLOCKS = ("dtype", "block", "x", "fnn, us", "jax.vjp / fnn", "temporary, fnn / jax.vjp")
STEPS = ("dtype", "step", "contender", "ms (quartiles)", "ratio to fnn", "compilation, s",
         "temporary, MB")  # fmt: skip
COMPILED = ("dtype", "program", "MB moved", "fnn / autodiff", "temporary MB", "FLOP",
            "XLA's estimate of time", "kernels", "compilation, CPU s")  # fmt: skip
ABOUT_COMPILED = """\
- Programs are compiled for the target on a machine without it; nothing runs. Blocks: forward and
  backward; autodiff is jax.vjp or jax.grad of the plain formula. Below 1, fnn's is less.
- Moved: H100, the operands and results of the kernels, as often as they run; v5e, XLA's "bytes
  accessed", which counts one turn of a loop, so that none is given for programs with loops. Two
  figures are fnn's and autodiff's. "-": the compiler does not say. Compilation is in seconds of
  processors' time."""
# What moves more than 1.02 times autodiff's bytes, or keeps more than 1.02 times its memory.
CAUSES = {
    "h100": """\
- More than autodiff's, and why. Transformer with "products": attention's p is computed again (0.35
  GB a layer in bfloat16). Memory: embedding: dy in the order of its ids, 4.2 MB, as a scatter-add
  has no order on GPUs (and sorting takes most of the compilation); in bfloat16 local_response_norm:
  what is summed back over windows is float32, 51 MB; recurrent: the state and what goes into the
  gates are float32, 25 MB; rotary: so are its sines, 0.3 MB. In bfloat16 rematerialize: behind its
  barrier XLA does not add a bias where it multiplies, and writes the product in float32, 17 MB;
  residual CNN: the last sum is written and read again, 0.1 GB, not computed twice. Compilation:
  exponentials that keep their digits are more instructions.""",
    "v5e": """\
- More than autodiff's, and why. embedding: dy is summed along sorted ids, as a TPU's scatter-add
  takes one id after another. In bfloat16: max_pool 3x3/2: sums are in float32, for which XLA
  copies x to float32 where it lays it out anew (alone; in a network the operation reads bfloat16);
  memory of local_response_norm: what is summed back over windows is float32. conv 7x7/2: the
  kernels and copies are autodiff's; XLA brings other arrays into fast memory before they are read.
- Longer to compile: attention, of which each of up to eight lengths of keys is compiled;
  softmax_cross_entropy, log_softmax and softmax, of which the exact rounding errors and sums are
  many operations; in softmax_cross_entropy the error of x - max alone is half of its time.""",
}
ABOUT = f"""\
- Blocks: forward and backward together, {timed.SCANNED} times in `lax.scan`, each from the last
  one's results; the time of one. jax.vjp of the plain formula with the same parameters, which are
  float32 (bfloat16: inputs and computation). Above 1, fnn is faster.
- Steps: forward, backward and plain SGD; "in scan" the time of one of {timed.SCANNED}, otherwise
  that of a call from Python. PyTorch in bfloat16: autocast. Ratios are medians of those within a
  round.
- Temporary: as XLA reports for the compiled program."""


@dataclass(kw_only=True)
class Options(Recorded):
    """Blocks and training steps for accelerators, beside autodiff."""

    target: Literal["h100", "v5e", "all"] = "all"
    """what to compile for"""
    device: bool = False
    """time everything on the accelerator at hand"""
    repeats: int = 9
    """rounds; in each, every contender is timed once"""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """of inputs and computation"""
    only: str = ""
    """only blocks and steps whose name contains this"""
    batch: int = 64
    """pictures in a batch of convolutions"""
    rows: int = 4096
    """rows of a batch of dense layers"""


def main(options: Options) -> None:
    """Measures, prints the tables, and records them, unless only a part of them was asked for.

    Ctrl-C records the tables so far.
    """
    if not options.device:
        return compiled_only(options)
    threads = report.limit_threads(options.threads)
    head = report.conditions(threads, PACKAGES)
    print(head)
    tables = [Table(BLOCKS, []), Table(STEPS, [])]
    try:
        for dtype in options.dtypes:
            chosen = [case for case in cases(options) if options.only in case.name]
            for case in track(chosen, f"blocks, {dtype}", transient=True):
                tables[0].rows.append(timed.block_row(case, dtype, options.repeats))
        for dtype in options.dtypes:
            for name, contenders in timed.steps(_networks(options), threads, dtype).items():
                if options.only in name:
                    print(f"{name}, {dtype} ...", flush=True)
                    rows = timed.step_rows(name, contenders, dtype, options.repeats)
                    tables[1].rows.extend(rows)
    except KeyboardInterrupt:
        print("interrupted")
    for table in tables:
        table.show()
    name = f"accelerators, {jax.devices()[0].device_kind}"
    parts = [table.markdown() for table in tables if table.rows]
    report.record(None if options.only else options.out, name, head, *parts, ABOUT)


# ---- without a device ------------------------------------------------------------------------


def compiled_only(options: Options) -> None:
    """The figures of the compiled programs, by hand and by autodiff; a table for each target.

    Ctrl-C shows and records the tables so far.
    """
    jax.config.update("jax_platforms", "cpu")  # the plugins would look for their devices
    wanted = [*lab.TARGETS] if options.target == "all" else [options.target]
    if missing := [target for target in wanted if not lab.installed(target)]:
        raise ValueError(
            f"the compilers for {' and '.join(missing)} are not installed: "
            "pip install -e '.[accelerators]'"
        )
    for target in wanted:
        table = Table(COMPILED, [])
        finished = append_rows(options, target, table.rows)
        table.show()
        versions = report.versions(["jaxlib", lab.package(target)]) + "."
        report.record(
            None if options.only else options.out, f"accelerators, compiled for {target}", versions,
            table.markdown(), ABOUT_COMPILED + "\n" + CAUSES[target],
        )  # fmt: skip
        if not finished:
            return


def append_rows(options: Options, target: str, rows: list[list[str]]) -> bool:
    """A row for each program; False where Ctrl-C ended it."""
    chosen = [
        (dtype, name, make)
        for dtype in options.dtypes
        for name, make in both_programs(options, dtype).items()
        if options.only in name
    ]
    try:
        for dtype, name, make in track(chosen, f"compiling for {target}"):
            arguments, functions = make()
            by_hand, autodiff = (lab.compiled_for(target, f, *arguments) for f in functions)
            rows.append([dtype, name, *compared(by_hand, autodiff)])
    except KeyboardInterrupt:
        print("interrupted")
        return False
    return True


Pair = tuple[tuple[Any, ...], tuple[Callable[..., Any], Callable[..., Any]]]


def both_programs(options: Options, dtype: str) -> dict[str, Callable[[], Pair]]:
    """Name -> a function that makes arguments, and what is compiled for them."""
    blocks: dict[str, Callable[[], Pair]] = {
        case.name: functools.partial(block_pair, case, dtype) for case in cases(options)
    }
    for name, network in _networks(options).items():
        blocks[f"step: {name}"] = functools.partial(step_pair, network, dtype)
    for keep in ("all", "products"):
        batch = max(options.batch // 4, 1)
        name = f"transformer, keep {keep}, batch {batch}"
        blocks[f"step: {name}"] = functools.partial(transformer_pair, batch, keep, dtype)
    return blocks


def block_pair(case: Case, dtype: str) -> Pair:
    """Forward and backward of a block, by hand and by autodiff."""
    x = case.spec(dtype)
    params = jax.eval_shape(case.block.init, jax.random.key(0), x)
    dy = jax.eval_shape(case.block.forward, params, x)[0]
    by_hand, autodiff = passes(case).values()
    return (params, x, dy), (by_hand, autodiff)


def step_pair(network: Network, dtype: str) -> Pair:
    """A step of SGD, by hand and by autodiff."""
    x = jax.ShapeDtypeStruct(network.shape, jnp.dtype(dtype))
    target = jax.ShapeDtypeStruct(network.shape[:1], jnp.int32)
    params = jax.eval_shape(network.net.init, jax.random.key(0), x)
    by_hand, autodiff = conv_peers.both_steps(network.net, network.plain).values()
    return (params, x, target), (by_hand, autodiff)


def transformer_pair(batch: int, keep: Literal["all", "products"], dtype: str) -> Pair:
    """Loss and gradients of a language model of 512 places, 512 wide, with 2 layers."""
    task = sequence_cases.language("transformer", 8192, 512, 2, 8, batch, 512, keep)

    def spec(a: Any) -> jax.ShapeDtypeStruct:
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype) if floating else a.dtype)

    arguments = jax.tree.map(spec, task.arguments(np.random.default_rng(0)))
    by_hand, autodiff = (task.programs[name]() for name in ("fnn", sequence_cases.JAX))
    return arguments, (by_hand, autodiff)


def compared(by_hand: lab.Figures, autodiff: lab.Figures) -> list[str]:
    """Ratios to autodiff; below 1, fnn's is less."""

    def quotient(a: float | None, b: float | None) -> str:
        return f"{a / b:.2f}" if a is not None and b else "-"

    return [
        f"{by_hand.bytes / 1e6:.1f}" if by_hand.bytes else "-",
        quotient(by_hand.bytes, autodiff.bytes),
        f"{by_hand.temporary / 1e6:.1f}, {autodiff.temporary / 1e6:.1f}",
        quotient(by_hand.flops, autodiff.flops), quotient(by_hand.seconds, autodiff.seconds),
        f"{by_hand.kernels}, {autodiff.kernels}" if by_hand.kernels else "-",
        f"{by_hand.compilation:.1f}, {autodiff.compilation:.1f}",
    ]  # fmt: skip


def cases(options: Options) -> list[Case]:
    """Every public block, at sizes that fill an accelerator."""
    return [
        *block_cases.cases(options.rows), *_pictures(options.batch),
        *image_cases.cases(options.batch),
    ]  # fmt: skip


def _pictures(batch: int) -> list[Case]:
    """Of the convolutional networks' blocks, one of each kind and size of window."""
    kinds: dict[Any, Case] = {}
    for case in conv_cases.cases(batch, 224):
        kind, *sizes = case.name.split()
        window = next((size for size in sizes if "x" in size), "")
        kinds.setdefault((case.network, kind, window), case)
    return list(kinds.values())


def _networks(options: Options) -> dict[str, Network]:
    return networks(options.rows, options.batch)
