"""Compiles programs for accelerators that this machine does not have, and reads what they cost.

XLA's compilers for a TPU v5e and an H100 run on any Linux machine (extra ``accelerators``). What
they make cannot run here; but how many bytes it moves, what it keeps in between and how many
kernels it starts is in the program. Figures are kept in the user's cache, by the program that was
compiled.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks.hlo import Program
from experiments.common.idx import cache

# An H100's numbers, as NVIDIA publishes them, in the form of XLA's GpuTargetConfigProto.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TARGETS = {"h100": "cuda", "v5e": "tpu"}
PLUGINS = {"h100": ("jax_cuda13_plugin", "nvidia.cu13"), "v5e": ("libtpu",)}
FORM = "3"  # of what is kept in the cache


class Figures(NamedTuple):
    """What a compiled program costs.

    ``bytes``: read and written by its kernels; None for a TPU's program with loops, of which XLA
    counts one turn. ``temporary``: bytes. ``flops``, ``seconds``: XLA's estimates, for a TPU.
    ``kernels``: that it starts, on a GPU. ``compilation``: seconds of processors' time, which other
    work beside it hardly changes.
    """

    bytes: float | None
    temporary: int
    flops: float | None
    seconds: float | None
    kernels: int | None
    compilation: float


def installed(target: str) -> bool:
    """Whether the compiler for a target is here."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in PLUGINS[target])
    except ModuleNotFoundError:  # of a package around it
        return False


def compiled_for(target: str, f: Callable[..., Any], *arguments: Any) -> Figures:
    """The figures of ``jax.jit(f)`` for arguments, arrays or ``jax.ShapeDtypeStruct``."""
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_sharding(target)), arguments
    )
    lowered = jax.jit(f).trace(*placed).lower(lowering_platforms=(TARGETS[target],))
    file = kept(target, lowered.as_text())
    if file.is_file():
        return Figures(**json.loads(file.read_text()))
    begin = _processors()
    program = lowered.compile(compiler_options=_options(target))
    figures = _read(target, program, _processors() - begin)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures._asdict()))
    return figures


def _processors() -> float:
    """Seconds that processors worked for this process and for the programs that it ran."""
    return sum(os.times()[:4])


@functools.cache
def _sharding(target: str) -> NamedSharding:
    """On one device of the target."""
    if target == "h100":
        topology = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=H100)
    else:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would look for one in the network
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    return NamedSharding(Mesh(np.array(topology.devices[:1]), ("d",)), PartitionSpec())


def _options(target: str) -> dict[str, Any]:
    if target != "h100":
        return {}
    spec = importlib.util.find_spec("nvidia.cu13")
    assert spec is not None and spec.submodule_search_locations is not None
    # Nothing can be timed here, so no kernel is chosen by its time.
    return {
        "xla_gpu_autotune_level": 0, "xla_gpu_cuda_data_dir": spec.submodule_search_locations[0],
    }  # fmt: skip


def kept(target: str, program: str) -> Path:
    """The file of a program's figures."""
    versions = [importlib.metadata.version(name) for name in ("jaxlib", package(target))]
    key = hashlib.sha256("\n".join([FORM, target, *versions, program]).encode()).hexdigest()
    return cache("accelerators") / f"{key}.json"


def package(target: str) -> str:
    """What brings the compiler."""
    return "jax-cuda13-plugin" if target == "h100" else "libtpu"


def _read(target: str, program: Any, seconds: float) -> Figures:
    temporary = program.memory_analysis().temp_size_in_bytes
    text = program.as_text()
    if target == "h100":
        kernels = Program(text).kernels()
        return Figures(sum(kernels), temporary, None, None, len(kernels), seconds)
    if " while(" in text:
        return Figures(None, temporary, None, None, None, seconds)
    costs: Mapping[str, float] = program.cost_analysis()
    estimate = costs.get("optimal_seconds", -1.0)  # negative where something has none
    return Figures(
        costs["bytes accessed"], temporary, costs["flops"], estimate if estimate > 0 else None,
        None, seconds,
    )  # fmt: skip
