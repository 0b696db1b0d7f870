"""Where the time of a convolutional training step goes, by the kind of work.

    python -m experiments.benchmarks profile

What bounds the steps of ``python -m experiments.benchmarks conv``: XLA's own convolutions and
matrix products, or the copies and the rest around them.
"""

from __future__ import annotations

import collections
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax

import fnn
from experiments.benchmarks.conv_peers import CNN_BATCH, RATE, data
from experiments.benchmarks.report import Recorded, Table, conditions, limit_threads, record
from experiments.benchmarks.timing import alternating, compiled, matmul_rate, ready

COLUMNS = ("step", "work", "ms of all threads", "share")
MATMUL_SIZE = 2048
# An operation is of the first kind whose pattern is in its name: its path, and JAX's name for it.
KINDS = {
    "convolutions: y and dx": r"conv_general_dilated",
    "local response norms": r"/norm\d",
    "pools": r"pool(_?\d+)?/|ave_pool",
    "ReLUs": r"/relu",
    "convolutions: products for dw": r"/cond/.*dot_general",
    "convolutions: copies for dw": r"/cond/",
    "products of 1x1 convolutions and linear layers": r"dot_general",
    "joining of branches": r"/output/",
}
ABOUT = """\
- Milliseconds of all threads together, by XLA's profile of the compiled step; overhead around
  operations (starting them, waiting for the other thread) is in the step's time but in no row.
- Rates are fnn.summary's FLOPs over the step's time; the square product is jnp's."""


@dataclass(kw_only=True)
class Options(Recorded):
    """Profiles fnn's steps of the CNN and of GoogLeNet."""

    repeats: int = 5
    """steps that are profiled; the table has their mean"""
    batch: int = 8
    """examples in a batch of GoogLeNet"""
    pixels: int = 224
    """height and width of GoogLeNet's pictures"""


def main(options: Options) -> None:
    """Profiles, prints the table, and records it."""
    threads = limit_threads(options.threads)
    if jax.default_backend() != "cpu":
        raise ValueError("profile reads the operations of XLA:CPU; run it where JAX has the CPU")
    rate = matmul_rate(MATMUL_SIZE)()
    about = [f"- A product of {MATMUL_SIZE} x {MATMUL_SIZE}: {rate:.0f} GFLOP/s."]
    rows: list[list[str]] = []
    for what, net, shape, classes in (
        (f"CNN, batch {CNN_BATCH}", fnn.models.cnn(hidden=0), (CNN_BATCH, 28, 28, 1), 10),
        (
            f"GoogLeNet, batch {options.batch}, {options.pixels} pixels",
            fnn.models.googlenet(auxiliary=False, dropout_rate=0.0),
            (options.batch, options.pixels, options.pixels, 3),
            1000,
        ),
    ):
        print(f"{what} ...", flush=True)
        x, target = data(shape, classes, "float32")
        params = jax.jit(net.init)(jax.random.key(0), x)
        gradients = fnn.value_and_grad(net, fnn.softmax_cross_entropy())

        def step(params: Any, x: Any, target: Any, gradients: Any = gradients) -> Any:
            _, grads = gradients(params, x, target, jax.random.key(0))
            return jax.tree.map(lambda p, g: p - RATE * g, params, grads)

        arguments = params, x, target
        program = compiled(step, *arguments).program
        times = alternating({"step": ready(program, *arguments)}, options.repeats)["step"]
        seconds = median(times.values())
        work = profile(program, arguments, options.repeats)
        total = sum(work.values())
        for kind, own in sorted(work.items(), key=lambda item: -item[1]):
            rows.append([what, kind, f"{1e3 * own:.1f}", f"{own / total:.0%}"])
        summary = fnn.summary(net, jax.ShapeDtypeStruct(x.shape, x.dtype))
        billions = 1e-9 * (summary.forward_flops + summary.backward_flops)
        about.append(
            f"- {what}: {billions:.2f} GFLOP in {1e3 * seconds:.0f} ms on {threads} threads, "
            f"{billions / seconds:.0f} GFLOP/s."
        )
    table = Table(COLUMNS, rows)
    table.show()
    print("\n".join(about))
    head, name = conditions(threads, ("jax", "numpy")), "conv: where a step's time goes, CPU"
    record(options.out, name, head, table.markdown(), "\n".join([*about, ABOUT]))


def profile(program: Any, arguments: tuple[Any, ...], repeats: int) -> dict[str, float]:
    """Seconds of all threads in one run of a compiled program, by kind of work."""
    names = dict(re.findall(r'%?([\w.-]+) = [^\n]*op_name="([^"]*)"', program.as_text()))
    seconds: dict[str, float] = collections.defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(program(*arguments))
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    operation = dict(event.stats).get("hlo_op")
                    # A loop's operations have events of their own.
                    if operation is not None and not str(operation).startswith("while"):
                        name = names.get(str(operation), "")
                        seconds[_kind(name)] += event.duration_ns * 1e-9 / repeats
    return dict(seconds)


def _kind(name: str) -> str:
    return next((kind for kind, fits in KINDS.items() if re.search(fits, name)), "other")
