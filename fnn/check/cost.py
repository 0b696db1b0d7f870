"""Bytes, operations and time of a rule, beside autodiff's; and residuals that are not needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from fnn.check.report import NOTE, RIGHT, SKIPPED, WRONG, Problem, Result
from fnn.check.subject import Subject, cast, path_of
from fnn.check.trials import Trial
from fnn.introspect.autodiff import by_autodiff
from fnn.introspect.text import bytes_of, readable_bytes
from fnn.pytrees import split_floats


def residuals(subject: Subject, trials: Sequence[Trial]) -> Result:
    """Residuals that backward does not read, or that are parameters once more."""
    params, dy = subject.sample.params, trials[0].dy
    residuals = subject.rule.forward(*subject.sample)[1]
    every = jax.tree_util.tree_leaves_with_path(residuals)
    named = [(path, v) for path, v in every if hasattr(v, "dtype")]  # else a Python number
    arrays = [array for _, array in named]
    if not named:
        return Result("residuals", RIGHT, "none are kept")

    def backward(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        traced = jax.tree.map(lambda v: next(rest) if hasattr(v, "dtype") else v, residuals)
        return jax.tree.leaves(subject.rule.backward(params, traced, dy))

    jaxpr = jax.make_jaxpr(backward)(arrays).jaxpr
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    problems = []
    frozen = any(c is None for c in trials[0].got)  # then what its gradient would need is kept, too
    for (path, leaf), read in zip(named, used, strict=True):
        if not read and not frozen and bytes_of(leaf) > 0:
            size = f"{leaf.dtype}{list(leaf.shape)}"
            text = f"is kept and never read by backward ({size}): do not return it"
            problems.append(Problem(path_of(path, "residuals"), text))
    plural = "" if len(arrays) == 1 else "s"
    figure = f"{len(arrays)} array{plural}, {readable_bytes(bytes_of(arrays))}"
    if spare := _spare(subject, named):
        figure += f"; redundant: {'; '.join(spare)}"
    if problems and subject.rule.block is not None:  # the protocol: what backward needs, no more
        return Result("residuals", WRONG, figure, tuple(problems))
    if problems:
        figure += f"; never read by backward: {', '.join(p.leaf for p in problems)}"
    return Result("residuals", NOTE if spare or problems else RIGHT, figure)


def _spare(subject: Subject, residuals: Sequence[tuple[Any, Any]]) -> list[str]:
    """Residuals that equal a parameter, its transpose, or another residual."""
    params = jax.tree_util.tree_leaves_with_path(subject.sample.params)
    words, earlier = [], list[tuple[str, np.ndarray]]()
    for path, array in residuals:
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
    with jax.enable_x64(key is not None):  # as it runs by default
        params, x = jax.device_put((params, x))
        return _cost(subject, params, x, key, dy, timed)


def _cost(subject: Subject, params: Any, x: Any, key: Any, dy: Any, timed: bool) -> Result:

    def pull_back(params: Any, x: Any) -> Callable[..., Any]:
        floats, put = split_floats((params, x))
        return jax.vjp(lambda *some: subject.rule.primal(*(*put(some), key)), *floats)[1]

    programs: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "by hand": (subject.programs.traced, lambda p, x: subject.rule.forward(p, x, key)[1])
    }
    if not subject.no_autodiff:
        programs["autodiff"] = (by_autodiff(subject.rule.primal), pull_back)
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
    return Result("cost", NOTE, ", ".join(words))


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
