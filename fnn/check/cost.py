"""Bytes, operations and time of a rule, beside autodiff's; and residuals that are not needed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.check.report import RIGHT, SHOWN, SKIPPED, WRONG, Problem, Result
from fnn.check.subject import Subject, cast, path_of
from fnn.check.trials import Trial
from fnn.introspect.text import bytes_of, readable_bytes
from fnn.pytrees import flat, split_floats

try:
    from jax.interpreters.partial_eval import dce_jaxpr
except ImportError:  # newer JAX
    from jax._src.interpreters.partial_eval import dce_jaxpr


def residuals(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Residuals that backward does not read, or that are parameters once more."""
    params, dy = subject.sample.params, trials[0].dy
    residuals = _residual_shapes(subject)
    leaves, tree = flat(residuals)
    is_array = [hasattr(leaf, "dtype") for leaf in leaves]  # else a Python number: no bytes
    arrays = [*itertools.compress(leaves, is_array)]
    if not arrays:
        return Result("residuals", RIGHT, "none are kept")

    def backward(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        filled = [next(rest) if a else v for v, a in zip(leaves, is_array, strict=True)]
        return jax.tree.leaves(subject.rule.backward(params, tree.unflatten(filled), dy))

    jaxpr = jax.make_jaxpr(backward)(arrays).jaxpr
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    every_path = [path for path, _ in jax.tree_util.tree_leaves_with_path(residuals)]
    paths = [*itertools.compress(every_path, is_array)]
    problems = []
    frozen = any(c is None for c in trials[0].got)  # then what its gradient would need is kept, too
    for path, leaf, read in zip(paths, arrays, used, strict=True):
        if not read and not frozen and np.prod(leaf.shape) * leaf.dtype.itemsize > 0:
            size = f"{leaf.dtype}{list(leaf.shape)}"
            text = f"is kept and never read by backward ({size}): do not return it"
            problems.append(Problem(path_of(path, "residuals"), text))
    plural = "" if len(arrays) == 1 else "s"
    figure = f"{len(arrays)} array{plural}, {readable_bytes(bytes_of(arrays))}"
    if spare := _spare(subject, paths):
        figure += f"; redundant: {'; '.join(spare)}"
    if problems and subject.rule.block is not None:  # the protocol: what backward needs, no more
        return Result("residuals", WRONG, figure, tuple(problems))
    if problems:
        figure += f"; never read by backward: {', '.join(p.leaf for p in problems)}"
    return Result("residuals", SHOWN if spare or problems else RIGHT, figure)


def _residual_shapes(subject: Subject) -> Any:
    """The residuals: shapes of arrays, and Python numbers as they are."""
    static: list[Any] = []

    def run(*sample: Any) -> Any:
        leaves, tree = flat(subject.rule.forward(*sample)[1])
        static.append(([None if hasattr(v, "dtype") else v for v in leaves], tree))
        return [v if hasattr(v, "dtype") else jnp.zeros(()) for v in leaves]

    shapes = jax.eval_shape(run, *subject.sample)
    numbers, tree = static[0]
    return tree.unflatten([s if n is None else n for s, n in zip(shapes, numbers, strict=True)])


def _spare(subject: Subject, paths: Sequence[Any]) -> list[str]:
    """Residuals that equal a parameter, its transpose, or another residual."""
    residuals = jax.tree.leaves(subject.rule.forward(*subject.sample)[1])
    params = jax.tree_util.tree_leaves_with_path(subject.sample.params)
    words, earlier = [], list[tuple[str, np.ndarray]]()
    arrays = [v for v in residuals if hasattr(v, "dtype")]
    for path, array in zip(paths, arrays, strict=True):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            continue
        value, name = np.asarray(array), path_of(path) or "the residual"
        for param_path, param in params:
            if value.ndim and np.array_equal(value, param):
                words.append(f"{name} is params/{path_of(param_path)}")
            elif value.ndim > 1 and np.array_equal(value, np.asarray(param).T):
                words.append(f"{name} is params/{path_of(param_path)}, transposed")
        for other_name, other in earlier:
            if value.ndim and value.size > 1 and np.array_equal(value, other):
                words.append(f"{name} is {other_name} once more")
        earlier.append((name, value))
    return words


def cost(subject: Subject, trials: Sequence[Trial], timed: bool) -> Result:
    """Bytes kept, compiled FLOPs, temporary bytes and time, as this rule / autodiff."""
    (params, x, key), dy = cast((tuple(subject.sample), trials[0].dy), np.float32)
    params, x = jax.device_put((params, x))

    def by_autodiff(params: Any, x: Any) -> tuple[Any, Callable[..., Any]]:
        floats, put = split_floats((params, x))
        return jax.vjp(lambda *some: subject.rule.primal(*(*put(some), key)), *floats)

    def autodiff(params: Any, x: Any, key: Any, dy: Any) -> Any:
        y, pull_back = by_autodiff(params, x)
        return y, pull_back(dy)

    programs: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "by hand": (subject.programs.traced, lambda p, x: subject.rule.forward(p, x, key)[1])
    }
    if not subject.no_autodiff:
        programs["autodiff"] = (autodiff, lambda p, x: by_autodiff(p, x)[1])
    compiled, figures = dict[str, Any](), dict[str, list[str]]()
    for name, (program, residuals) in programs.items():
        try:
            compiled[name] = jax.jit(program).lower(params, x, key, dy).compile()
        except Exception as error:
            return Result("cost", SKIPPED, f"{name} does not compile in float32: {error!s:.80}")
        kept = _bytes_kept(residuals, params, x)
        flops = float((compiled[name].cost_analysis() or {}).get("flops", 0.0))
        temporary = getattr(compiled[name].memory_analysis(), "temp_size_in_bytes", 0)
        figures[name] = [readable_bytes(kept), f"{flops:.4g} FLOP", readable_bytes(temporary)]
    if timed:
        for name, seconds in _seconds(compiled, (params, x, key, dy)).items():
            figures[name].append(f"{1e6 * seconds:.0f} us")
    labels = ("keeps", "takes", "temporary", "in")
    words = [f"{label} {w}" for label, w in zip(labels, figures["by hand"], strict=False)]
    if "autodiff" in figures:
        words = [f"{w} (autodiff {a})" for w, a in zip(words, figures["autodiff"], strict=True)]
    return Result("cost", SHOWN, ", ".join(words))


def _bytes_kept(residuals: Callable[[Any, Any], Any], params: Any, x: Any) -> int:
    """Bytes of residuals that are not parameters; the same array twice counts once."""
    total = 0

    def trace(params: Any, x: Any) -> None:
        nonlocal total
        parameters = {id(leaf) for leaf in jax.tree.leaves(params)}
        leaves = jax.tree.leaves(residuals(params, x))
        total = bytes_of([v for v in leaves if id(v) not in parameters])

    jax.eval_shape(trace, params, x)
    return total


def _seconds(compiled: dict[str, Any], arguments: Any) -> dict[str, float]:
    """The fastest of a few runs each, alternating."""
    best = dict.fromkeys(compiled, np.inf)
    for _ in range(7):
        for name, program in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            best[name] = min(best[name], time.perf_counter() - began)
    return best
