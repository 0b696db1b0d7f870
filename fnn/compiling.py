"""What depends on how, and for which platform, a program is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import jaxlib.version
from jax import lax

from fnn.arrays import is_split

P = ParamSpec("P")
R = TypeVar("R")


def jit_for_few_runs(f: Callable[P, R]) -> Callable[P, R]:
    """``jax.jit(f)``, compiled with the least effort: quick to compile, slow to run.

    Args:
      f: a traceable function.

    Returns:
      The compiled function.

    >>> float(jit_for_few_runs(lambda x: 2 * x)(1.5))
    3.0
    """
    return jax.jit(f, compiler_options={} if _many_runs.get() else quick())


_many_runs = ContextVar("_many_runs", default=False)


@contextmanager
def many_runs() -> Iterator[None]:
    """Within it :func:`jit_for_few_runs` is ``jax.jit``: its programs will run many times."""
    before = _many_runs.set(True)
    try:
        yield
    finally:
        _many_runs.reset(before)


@functools.lru_cache(maxsize=1)
def quick() -> dict[str, int | bool]:
    """XLA's options for the least effort in compiling; none where the backend is not a CPU."""
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, int | bool] = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    if jaxlib.version.__version_info__ < (0, 11):  # removed from XLA later
        options["xla_cpu_use_fusion_emitters"] = False
    return options


_platform: ContextVar[str | None] = ContextVar("_platform", default=None)


def by_platform(*arguments: Any, default: Callable[..., R], **branches: Callable[..., R]) -> R:
    """``jax.lax.platform_dependent``: of several ways to compute the same, a platform's own.

    Args:
      arguments: of the function that is chosen.
      default: what platforms without a branch run.
      branches: by platform: ``cpu``, ``cuda``, ``rocm``, ``tpu``.

    >>> float(by_platform(3.0, cpu=lambda x: x + x, default=lambda x: 2 * x))
    6.0
    """
    chosen = _platform.get()
    if chosen is not None:
        return branches.get(chosen, default)(*arguments)
    return lax.platform_dependent(*arguments, default=default, **branches)


def traced_once(f: Callable[..., R]) -> Callable[..., R]:
    """A function of arrays that a program calls, traced and lowered once for all calls of one kind.

    A thousand layers are traced in a third of the time. In eager mode nothing changes.

    >>> @traced_once
    ... def cube(x):
    ...     return x * x * x
    >>> print(jax.make_jaxpr(lambda x: cube(x) + cube(2 * x))(1.0).eqns[-1].primitive)
    add
    """

    def run(platform: str | None, *arrays: Any) -> R:
        return f(*arrays)

    run.__name__ = f.__name__  # in the compiled program
    # The platform is a part of what was traced: by_platform chooses by it.
    compiled = jax.jit(run, static_argnums=0)

    @functools.wraps(f)
    def call(*arrays: Any) -> R:
        if any(isinstance(array, jax.core.Tracer) for array in arrays):
            return compiled(_platform.get(), *arrays)
        return f(*arrays)

    return call


def certain(x: jax.Array) -> jax.Array:
    """:func:`always` of one number of an array that is not empty.

    As a condition it keeps what one branch computes from being merged with other computations; on
    CPU, XLA removes ``lax.optimization_barrier`` before it merges.

    >>> bool(certain(jnp.zeros(3)))
    True
    """
    return always(jnp.max(x) if is_split(x) else x.ravel()[0])


def always(x: jax.Array) -> jax.Array:
    """True for each number of x, which XLA cannot prove.

    >>> always(jnp.array([0.0, jnp.nan])).tolist()
    [True, True]
    """
    return jnp.isnan(x) | (x <= jnp.inf)


@contextmanager
def as_on(platform: str) -> Iterator[None]:
    """Within it :func:`by_platform` takes another platform's branch, so that tests run it here.

    >>> with as_on("tpu"):
    ...     by_platform(cpu=lambda: "cpu", default=lambda: "other")
    'other'
    """
    before = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(before)
