"""Blocks and steps on accelerators, beside jax.vjp and jax.grad of plain formulas.

    python -m experiments.benchmarks accelerators
    python -m experiments.benchmarks accelerators --target h100 --only conv --dtypes bfloat16
    python -m experiments.benchmarks accelerators --device

Without a device, programs are compiled for an H100 and a TPU v5e, and what they move and keep is
compared (:mod:`experiments.benchmarks.lab`; pip install -e '.[experiments,accelerators]').

With ``--device`` everything is timed on the accelerator at hand, inside ``lax.scan``: a single call
of a block takes less time there than its launch from Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from rich.progress import track

import fnn
from experiments.benchmarks import conv_cases, conv_peers, lab, report, timing
from experiments.benchmarks.conv import quotient
from experiments.benchmarks.conv_cases import Case, passes
from experiments.benchmarks.report import Recorded, Table
from experiments.benchmarks.timing import Compiled, Seconds, compiled, ratio, ready

PACKAGES = ("jax", "torch", "numpy")
SCANNED = 20  # forward and backward passes, or steps, in one call
BLOCKS = ("dtype", "block", "x", "fnn, us", "jax.vjp / fnn", "temporary, fnn / jax.vjp")
STEPS = ("dtype", "step", "contender", "ms (quartiles)", "ratio to fnn", "compilation, s",
         "temporary, MB")  # fmt: skip
COMPILED = ("target", "dtype", "program", "MB moved", "fnn / autodiff", "temporary MB", "FLOP",
            "XLA's estimate of time", "kernels", "compilation, s")  # fmt: skip
ABOUT_COMPILED = """\
- Programs are compiled for the target on a machine without it; nothing runs. Blocks: forward and
  backward; autodiff is jax.vjp or jax.grad of the plain formula. Below 1, fnn's is less.
- Moved: H100, the operands and results of the kernels; v5e, XLA's "bytes accessed". Two figures are
  fnn's and autodiff's. "-": the compiler does not say."""
ABOUT = f"""\
- Blocks: forward and backward together, {SCANNED} times in `lax.scan`, each from the last one's
  results; the time of one. jax.vjp of the plain formula with the same parameters, which are float32
  (bfloat16: inputs and computation). Above 1, fnn is faster.
- Steps: forward, backward and plain SGD; "in scan" the time of one of {SCANNED} steps, otherwise
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
                tables[0].rows.append(block_row(case, dtype, options.repeats))
        for dtype in options.dtypes:
            for name, contenders in steps(options, threads, dtype).items():
                if options.only in name:
                    print(f"{name}, {dtype} ...", flush=True)
                    tables[1].rows.extend(step_rows(name, contenders, dtype, options.repeats))
    except KeyboardInterrupt:
        print("interrupted")
    for table in tables:
        table.show()
    name = f"accelerators, {jax.devices()[0].device_kind}"
    parts = [table.markdown() for table in tables if table.rows]
    report.record(None if options.only else options.out, name, head, *parts, ABOUT)


# ---- without a device ------------------------------------------------------------------------


def compiled_only(options: Options) -> None:
    """The figures of the compiled programs, by hand and by autodiff."""
    jax.config.update("jax_platforms", "cpu")  # the plugins would look for their devices
    wanted = [*lab.TARGETS] if options.target == "all" else [options.target]
    targets = [target for target in wanted if lab.installed(target)]
    if missing := sorted({*wanted} - {*targets}):
        raise ValueError(
            f"the compilers for {' and '.join(missing)} are not installed: "
            "pip install -e '.[experiments,accelerators]'"
        )
    programs = [
        (target, dtype, name, pair)
        for target in targets
        for dtype in options.dtypes
        for name, pair in both_programs(options, dtype).items()
        if options.only in name
    ]
    table = Table(COMPILED, [])
    try:
        for target, dtype, name, (arguments, functions) in track(programs, "compiling"):
            by_hand, autodiff = (lab.compiled_for(target, f, *arguments) for f in functions)
            table.rows.append([target, dtype, name, *compared(by_hand, autodiff)])
    except KeyboardInterrupt:
        print("interrupted")
    table.show()
    versions = report.versions(["jaxlib", *map(lab.package, targets)]) + "."
    report.record(
        None if options.only else options.out, f"accelerators, compiled for {options.target}",
        versions, table.markdown(), ABOUT_COMPILED,
    )  # fmt: skip


Pair = tuple[tuple[Any, ...], tuple[Callable[..., Any], Callable[..., Any]]]


def both_programs(options: Options, dtype: str) -> dict[str, Pair]:
    """Name -> arguments, and what is compiled for them: by hand and by autodiff."""
    pairs: dict[str, Pair] = {}
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    for case in cases(options):
        x = jax.ShapeDtypeStruct(case.shape, jnp.dtype(dtype))
        params = jax.eval_shape(case.block.init, key, x)
        dy = jax.eval_shape(case.block.forward, params, x)[0]
        by_hand, autodiff = passes(case).values()
        pairs[case.name] = (params, x, dy), (by_hand, autodiff)
    for name, (net, plain, shape, *_) in networks(options).items():
        x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        target = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
        params = jax.eval_shape(net.init, key, x)
        by_hand, autodiff = conv_peers.both_steps(net, plain).values()
        pairs[f"step: {name}"] = (params, x, target), (by_hand, autodiff)
    return pairs


def compared(by_hand: lab.Figures, autodiff: lab.Figures) -> list[str]:
    """Ratios to autodiff; below 1, fnn's is less."""

    def quotient(a: float | None, b: float | None) -> str:
        return f"{a / b:.2f}" if a is not None and b else "-"

    return [
        f"{by_hand.bytes / 1e6:.1f}", quotient(by_hand.bytes, autodiff.bytes),
        f"{by_hand.temporary / 1e6:.1f}, {autodiff.temporary / 1e6:.1f}",
        quotient(by_hand.flops, autodiff.flops), quotient(by_hand.seconds, autodiff.seconds),
        f"{by_hand.kernels}, {autodiff.kernels}" if by_hand.kernels else "-",
        f"{by_hand.compilation:.1f}, {autodiff.compilation:.1f}",
    ]  # fmt: skip


# ---- blocks ----------------------------------------------------------------------------------


def cases(options: Options) -> list[Case]:
    """Blocks at sizes that fill an accelerator."""
    return [*_dense(options.rows, 1024), *_pictures(options.batch)]


def _dense(rows: int, features: int) -> list[Case]:
    """Blocks of rows of features."""
    shape = (rows, features)

    def case(name: str, block: fnn.Block, plain: Callable[[Any, Any], Any]) -> Case:
        return Case("dense", name, block, shape, plain)

    def linear(params: Any, x: Any) -> Any:
        return x @ params["w"].astype(x.dtype) + params["b"].astype(x.dtype)

    def layer_norm(params: Any, x: Any) -> Any:
        mean, var = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
        z = (x - mean) * lax.rsqrt(var + 1e-5)
        return z * params["scale"].astype(x.dtype) + params["bias"].astype(x.dtype)

    return [
        case(f"linear {features}->{features}", fnn.linear(features), linear),
        case("relu", fnn.relu(), lambda _, x: jax.nn.relu(x)),
        case("gelu", fnn.gelu(), lambda _, x: jax.nn.gelu(x, approximate=False)),
        case("tanh", fnn.tanh(), lambda _, x: jnp.tanh(x)),
        case("sigmoid", fnn.sigmoid(), lambda _, x: jax.nn.sigmoid(x)),
        case("softmax", fnn.softmax(), lambda _, x: jax.nn.softmax(x)),
        case("layer_norm", fnn.layer_norm(), layer_norm),
    ]


def _pictures(batch: int) -> list[Case]:
    """Of the convolutional networks' blocks, one of each kind and size of window."""
    kinds: dict[Any, Case] = {}
    for case in conv_cases.cases(batch, 224):
        kind, *sizes = case.name.split()
        window = next((size for size in sizes if "x" in size), "")
        kinds.setdefault((case.network, kind, window), case)
    return list(kinds.values())


def block_row(case: Case, dtype: str, repeats: int) -> list[str]:
    """One block, by hand and by ``jax.vjp`` of its plain formula."""
    x = jax.random.normal(jax.random.key(0), case.shape, jnp.dtype(dtype))
    params = case.block.init(jax.random.key(1), x)
    shape = jax.eval_shape(case.block.forward, params, x)[0]
    dy = jax.random.normal(jax.random.key(2), shape.shape, shape.dtype)

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
        params = jax.tree.map(lambda p, d: p - 1e-6 * d, params, dparams)
        small = jnp.asarray(1e-6, x.dtype)
        return (params, x + small * dx, dy + small.astype(dy.dtype) * y), None

    return lambda params, x, dy: lax.scan(body, (params, x, dy), length=SCANNED)[0]


# ---- steps -----------------------------------------------------------------------------------


def plain_mlp(params: Any, x: Any) -> Any:
    """The network of ``fnn.models.mlp``."""
    layers = [params[name] for name in sorted(params, key=lambda name: name == "out")]
    for i, layer in enumerate(layers):
        x = x @ layer["w"].astype(x.dtype) + layer["b"].astype(x.dtype)
        x = jax.nn.relu(x) if i < len(layers) - 1 else x
    return x


Compared = tuple[fnn.Block, Callable[[Any, Any], Any], tuple[int, ...], int, Any]


def networks(options: Options) -> dict[str, Compared]:
    """Name -> network, its plain formula, the shape of x, classes, and PyTorch's."""
    google = fnn.models.googlenet(auxiliary=False, dropout_rate=0.0)
    return {
        f"MLP 784-1024-1024-10, batch {options.rows}": (
            fnn.models.mlp((1024, 1024, 10)), plain_mlp, (options.rows, 784), 10, None,
        ),
        "CNN, batch 256": (
            fnn.models.cnn(hidden=0), conv_cases.plain_cnn, (256, 28, 28, 1), 10,
            conv_peers.torch_cnn,
        ),
        f"GoogLeNet, batch {options.batch}": (
            google, conv_cases.plain_googlenet, (options.batch, 224, 224, 3), 1000,
            conv_peers.torch_googlenet,
        ),
    }  # fmt: skip


def steps(options: Options, threads: int, dtype: str) -> dict[str, conv_peers.Contenders]:
    """What is compared -> contender -> a function that makes its program."""
    of = functools.partial(conv_peers.steps_of, dtype=dtype)
    found: dict[str, conv_peers.Contenders] = {}
    for name, (net, plain, shape, classes, torch) in networks(options).items():
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


def step_rows(
    name: str, contenders: conv_peers.Contenders, dtype: str, repeats: int
) -> list[list[str]]:
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
