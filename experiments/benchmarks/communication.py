"""What devices send each other in a training step, counted in programs compiled for many of them.

    python -m experiments.benchmarks communication
    python -m experiments.benchmarks communication --chips 8 --only CNN

Programs are compiled for real topologies of TPU v5e chips, of which none is needed; beside fnn's
step is jax.grad's of the plain formula (pip install -e '.[accelerators]').
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.progress import track

import fnn
from experiments.benchmarks import conv_cases, conv_peers, hlo, lab, report
from experiments.benchmarks.networks import plain_mlp
from experiments.benchmarks.report import Recorded, Table

TOPOLOGIES = {8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"}
TOGETHER = 4  # chips that share each layer, where layers are split

COLUMNS = ("step", "split", "chips", "batch", "fnn sends", "MB a chip", "jax.grad sends",
           "MB a chip, fnn / jax.grad")  # fmt: skip
ABOUT = f"""\
- Compiled for TPU v5e topologies ({", ".join(TOPOLOGIES.values())}); nothing runs. A step is
  forward, backward and plain SGD, in float32; "sends": how many collective operations, by kind.
- MB a chip: of their results. The batch grows with the chips, so a constant figure is weak scaling.
- Split: of the batch alone (parameters whole on every chip); also of each layer's outputs over
  {TOGETHER} chips; or also of each weight over all chips, which gather it when they use it."""

KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
LINE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({KINDS})(-start)?\(")


@dataclass(kw_only=True)
class Options(Recorded):
    """Communication of training steps on many chips, beside jax.grad's."""

    chips: tuple[int, ...] = tuple(TOPOLOGIES)
    """how many"""
    only: str = ""
    """only steps whose name contains this"""


class Sent(NamedTuple):
    """Collective operations of one kind, of one device in one step."""

    operations: int
    bytes: float


def collectives(text: str) -> dict[str, Sent]:
    """Kind -> what is sent, in a compiled HLO module; what a loop sends counts once.

    >>> collectives('''
    ... ENTRY %main (x: f32[4]) -> f32[32] {
    ...   %s = (f32[4]{0}, f32[8]{0}) all-reduce(%a, %b), to_apply=%add
    ...   %g = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
    ...   ROOT %d = f32[32]{0} all-gather-done(%g)
    ... }''')
    {'all-reduce': Sent(operations=1, bytes=48.0), 'all-gather': Sent(operations=1, bytes=128.0)}
    """
    found: dict[str, Sent] = {}
    for line in text.splitlines():
        if (match := LINE.match(line)) is None:
            continue
        result, kind, starts = match.groups()
        arrays = hlo.ARRAY.findall(result)
        if starts and kind != "all-reduce":  # operands and results
            arrays = arrays[len(arrays) // 2 :]
        so_far = found.get(kind, Sent(0, 0.0))
        found[kind] = Sent(so_far.operations + 1, so_far.bytes + sum(map(hlo.size_of, arrays)))
    return found


def total(sent: dict[str, Sent]) -> Sent:
    return Sent(sum(s.operations for s in sent.values()), sum(s.bytes for s in sent.values()))


# ---- how a step is split over devices ----------------------------------------------------------


class Split(NamedTuple):
    """A mesh, and how a parameter lies on it."""

    mesh: Mesh
    lies: Callable[[Any], P]


def splits(devices: np.ndarray) -> dict[str, Split]:
    """The ways in which a number of devices share a step."""
    n = devices.size
    together = min(TOGETHER, n)
    flat, square = Mesh(devices, ("data",)), Mesh(devices.reshape(-1, together), ("data", "model"))

    def columns(leaf: Any) -> P:
        even = leaf.ndim and leaf.shape[-1] % together == 0
        return P(*[None] * (leaf.ndim - 1), "model") if even else P()

    def parts(leaf: Any) -> P:
        even = [axis for axis, size in enumerate(leaf.shape) if size % n == 0]
        return P(*[None] * even[0], "data") if even and leaf.ndim > 1 else P()

    return {
        "batch": Split(flat, lambda leaf: P()),
        "batch, layers": Split(square, columns),
        "batch, weights": Split(flat, parts),
    }


def lowered(
    split: Split, step: Callable[..., Any], params: Any, x: Any, target: Any, **options: Any
) -> Any:
    """A step ``(params, x, target) -> (params, loss)``, whose parameters stay as they lie."""

    def lies(leaf: Any, spec: P) -> Any:
        sharding = NamedSharding(split.mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(lambda leaf: lies(leaf, split.lies(leaf)), params)
    x, target = jax.tree.map(lambda leaf: lies(leaf, P("data")), (x, target))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params), NamedSharding(split.mesh, P())
    return jax.jit(step, out_shardings=shardings).trace(params, x, target).lower(**options)


# ---- steps -------------------------------------------------------------------------------------


def programs(chips: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Name -> steps by hand and by ``jax.grad``, and their arguments, for so many chips."""
    networks: dict[str, tuple[fnn.Block, Any, int, tuple[int, ...]]] = {
        "MLP 784-1024-1024-10": (fnn.models.mlp((1024, 1024, 10)), plain_mlp, 512, (784,)),
        "CNN": (fnn.models.cnn(hidden=0), conv_cases.plain_cnn, 32, (28, 28, 1)),
    }
    found = {}
    for name, (net, plain, each, shape) in networks.items():
        x = jax.ShapeDtypeStruct((each * chips, *shape), jnp.float32)
        target = jax.ShapeDtypeStruct((each * chips,), jnp.int32)
        params = jax.eval_shape(net.init, jax.random.key(0), x)
        found[name] = tuple(conv_peers.both_steps(net, plain).values()), (params, x, target)
    return found


def main(options: Options) -> None:
    """Compiles, counts, prints the table and records it, unless only a part was asked for."""
    jax.config.update("jax_platforms", "cpu")  # the plugin would look for its device
    if not lab.installed("v5e"):
        raise ValueError("the compiler for v5e is not installed: pip install -e '.[accelerators]'")
    if unknown := {*options.chips} - {*TOPOLOGIES}:
        raise ValueError(f"--chips {min(unknown)}: there are topologies of {[*TOPOLOGIES]} chips")
    work = [
        (name, split, chips)
        for name in programs(1)
        for split in splits(np.arange(1))
        for chips in options.chips
        if options.only in name
    ]
    table = Table(COLUMNS, [])
    try:
        for name, split, chips in track(work, "compiling"):
            steps, arguments = programs(chips)[name]
            by_hand, autodiff = (sent(chips, split, step, arguments) for step in steps)
            row = [name, split, str(chips), str(arguments[1].shape[0])]
            table.rows.append([*row, *compared(by_hand, autodiff)])
    except KeyboardInterrupt:
        print("interrupted")
    table.show()
    is_part = options.only or options.chips != tuple(TOPOLOGIES)
    report.record(
        None if is_part else options.out, "communication, TPU v5e",
        report.versions(["jaxlib", "libtpu"]) + ".", table.markdown(), ABOUT,
    )  # fmt: skip


def sent(chips: int, split: str, step: Callable[..., Any], arguments: Any) -> dict[str, Sent]:
    """What a step sends, compiled for a topology; kept in the user's cache."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would look for one in the network
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    topology = TOPOLOGIES[chips]
    devices: Any = np.array(topologies.get_topology_desc(topology, "tpu").devices)
    program = lowered(splits(devices)[split], step, *arguments, lowering_platforms=("tpu",))
    file = lab.kept("v5e", f"{topology} collectives {program.as_text()}")
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(collectives(program.compile().as_text())))
    return {kind: Sent(*figures) for kind, figures in json.loads(file.read_text()).items()}


def compared(by_hand: dict[str, Sent], autodiff: dict[str, Sent]) -> list[str]:
    """How many operations of each kind, and their bytes; below 1, fnn sends less."""

    def words(sent: dict[str, Sent]) -> str:
        return ", ".join(f"{s.operations} {kind}" for kind, s in sorted(sent.items())) or "nothing"

    ours, theirs = total(by_hand).bytes, total(autodiff).bytes
    ratio = f"{ours / theirs:.2f}" if theirs else "-"
    return [words(by_hand), f"{ours / 1e6:.2f}", words(autodiff), ratio]
