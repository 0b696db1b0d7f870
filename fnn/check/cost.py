"""What a rule keeps and costs, beside autodiff; and residuals that it could do without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.check.derivative import Trial
from fnn.check.report import RIGHT, SHOWN, SKIPPED, WRONG, Problem, Result
from fnn.check.subject import Lab, cast, path_of
from fnn.introspect.text import bytes_of, readable_bytes
from fnn.pytrees import flat, split_floats

try:
    from jax.interpreters.partial_eval import dce_jaxpr
except ImportError:  # newer JAX
    from jax._src.interpreters.partial_eval import dce_jaxpr


def residuals(lab: Lab, tried: Sequence[Trial]) -> Result:
    """Residuals that backward does not read, or that are parameters once more."""
    params, dy = lab.sample.params, tried[0].dy
    kept = _residuals(lab)
    everything, tree = flat(kept)
    arrays = [hasattr(leaf, "dtype") for leaf in everything]  # else a Python number: no bytes
    leaves = [leaf for leaf, array in zip(everything, arrays, strict=True) if array]
    named = [
        (path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
        if hasattr(leaf, "dtype")
    ]  # fmt: skip
    if not leaves:
        return Result("residuals", RIGHT, "none are kept")

    def backward(leaves: list[Any]) -> Any:
        given = iter(leaves)
        filled = [next(given) if a else v for v, a in zip(everything, arrays, strict=True)]
        return jax.tree.leaves(lab.rule.backward(params, tree.unflatten(filled), dy))

    jaxpr = jax.make_jaxpr(backward)(leaves).jaxpr
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    problems = []
    frozen = any(c is None for c in tried[0].got)  # then what it would need is kept as well
    for (path, leaf), read in zip(named, used, strict=True):
        if not read and not frozen and np.prod(leaf.shape) * leaf.dtype.itemsize > 0:
            size = f"{leaf.dtype}{list(leaf.shape)}"
            text = f"is kept and never read by backward ({size}): do not return it"
            problems.append(Problem(path_of(path, "residuals"), text))
    again = _again(lab, named)
    figure = f"{len(leaves)} arrays, {readable_bytes(bytes_of(leaves))}"
    if again:
        figure += f"; could be had without keeping: {'; '.join(again)}"
    if problems and lab.rule.block is not None:  # the protocol: what backward needs, no more
        return Result("residuals", WRONG, figure, tuple(problems))
    if problems:
        again.append(f"never read by backward: {', '.join(p.leaf for p in problems)}")
        figure += f"; {again[-1]}"
    return Result("residuals", SHOWN if again else RIGHT, figure)


def _residuals(lab: Lab) -> Any:
    """What forward keeps: shapes of arrays, and the Python numbers as they are."""
    static: list[Any] = []

    def run(*sample: Any) -> Any:
        leaves, tree = flat(lab.rule.forward(*sample)[1])
        static.append(([None if hasattr(v, "dtype") else v for v in leaves], tree))
        return [v if hasattr(v, "dtype") else jnp.zeros(()) for v in leaves]

    shapes = jax.eval_shape(run, *lab.sample)
    numbers, tree = static[0]
    return tree.unflatten([s if n is None else n for s, n in zip(shapes, numbers, strict=True)])


def _again(lab: Lab, named: Any) -> list[str]:
    """Residuals that equal a parameter, another residual, or a function of parameters alone."""
    values = [v for v in jax.tree.leaves(lab.rule.forward(*lab.sample)[1]) if hasattr(v, "dtype")]
    params = jax.tree_util.tree_leaves_with_path(lab.sample.params)
    found, seen = [], list[tuple[str, np.ndarray]]()
    for (path, _), value in zip(named, values, strict=True):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            continue
        value, name = np.asarray(value), path_of(path) or "the residual"
        for other_path, other in params:
            if value.ndim and np.array_equal(value, other):
                found.append(f"{name} is params/{path_of(other_path)}")
            elif value.ndim > 1 and np.array_equal(value, np.asarray(other).T):
                found.append(f"{name} is params/{path_of(other_path)}, transposed")
        for other_name, other in seen:
            if value.ndim and value.size > 1 and np.array_equal(value, other):
                found.append(f"{name} is {other_name} once more")
        seen.append((name, value))
    return found


def cost(lab: Lab, tried: Sequence[Trial], timed: bool) -> Result:
    """Bytes kept, compiled FLOPs, temporary bytes and time, as this rule / autodiff."""
    sample, dy = cast(tuple(lab.sample), np.float32), cast(tried[0].dy, np.float32)
    params, x, key = sample
    params, x = jax.device_put((params, x))
    parts: dict[str, Callable[..., Any]] = {"by hand": lab.programs.traced}
    kept = {"by hand": _kept_by_hand(lab, params, x, key)}
    if not lab.no_autodiff:

        def autodiff(params: Any, x: Any, key: Any, dy: Any) -> Any:
            y, pull_back = _by_autodiff(lab, params, x, key)
            return y, pull_back(dy)

        parts["autodiff"] = autodiff
        kept["autodiff"] = _kept_by_autodiff(lab, params, x, key)
    figures: dict[str, tuple[float, float]] = {}
    compiled = {}
    for name, f in parts.items():
        try:
            compiled[name] = jax.jit(f).lower(params, x, key, dy).compile()
        except Exception as error:
            return Result("cost", SKIPPED, f"{name} does not compile in float32: {error!s:.80}")
        analysis = compiled[name].cost_analysis() or {}
        if isinstance(analysis, list):
            analysis = analysis[0]
        memory = compiled[name].memory_analysis()
        temporary = float(getattr(memory, "temp_size_in_bytes", 0))
        figures[name] = float(analysis.get("flops", 0.0)), temporary
    seconds = _seconds(compiled, (params, x, key, dy)) if timed else dict.fromkeys(compiled, 0.0)

    def words(name: str) -> list[str]:
        flops, temporary = figures[name]
        found = [readable_bytes(kept[name]), f"{flops:.4g} FLOP", readable_bytes(int(temporary))]
        return [*found, f"{1e6 * seconds[name]:.0f} us"] if timed else found

    labels = ("keeps", "takes", "temporary", "in")
    own = [f"{label} {word}" for label, word in zip(labels, words("by hand"), strict=False)]
    if "autodiff" in figures:
        own = [f"{a} (autodiff {b})" for a, b in zip(own, words("autodiff"), strict=True)]
    return Result("cost", SHOWN, ", ".join(own))


def _kept_by_hand(lab: Lab, params: Any, x: Any, key: Any) -> int:
    kept: list[int] = []

    def trace(params: Any, x: Any) -> None:
        kept.append(_without(jax.tree.leaves(lab.rule.forward(params, x, key)[1]), params))

    jax.eval_shape(trace, params, x)
    return kept[0]


def _kept_by_autodiff(lab: Lab, params: Any, x: Any, key: Any) -> int:
    kept: list[int] = []

    def trace(params: Any, x: Any) -> None:
        pull_back = _by_autodiff(lab, params, x, key)[1]
        kept.append(_without(jax.tree.leaves(pull_back), params))

    jax.eval_shape(trace, params, x)
    return kept[0]


def _by_autodiff(lab: Lab, params: Any, x: Any, key: Any) -> tuple[Any, Callable[..., Any]]:
    """(y, pull_back) by ``jax.vjp`` of the forward as it is."""
    floats, put = split_floats((params, x))
    return jax.vjp(lambda *some: lab.rule.primal(*(*put(some), key)), *floats)


def _without(values: Sequence[Any], params: Any) -> int:
    """Bytes of arrays that are not parameters; the same array twice counts once."""
    known = {id(leaf) for leaf in jax.tree.leaves(params)}
    return bytes_of([v for v in values if id(v) not in known])


def _seconds(compiled: dict[str, Any], arguments: Any) -> dict[str, float]:
    """The fastest of a few runs each, alternating."""
    best = dict.fromkeys(compiled, np.inf)
    for _ in range(7):
        for name, f in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(f(*arguments))
            best[name] = min(best[name], time.perf_counter() - began)
    return best
