"""Compiling for programs that run a few times only, which takes longer than they run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jaxlib.version


def fast(f: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit(f)``, compiled with the least effort.

    >>> float(fast(lambda x: 2 * x)(1.5))
    3.0
    """
    return jax.jit(f, compiler_options=quick())


@functools.lru_cache(maxsize=1)
def quick() -> dict[str, Any]:
    """Compiler options that make compiling cheap, and running slow."""
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, Any] = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    if jaxlib.version.__version_info__ < (0, 11):  # later ones do not know it
        options["xla_cpu_use_fusion_emitters"] = False
    return options
