"""Floating-point operations of a function, counted from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

# One operation for each number of the output.
_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "cbrt",
    "clamp", "cos", "cosh", "digamma", "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "floor", "integer_pow", "lgamma", "log", "log1p", "logistic", "max", "min", "mul", "neg",
    "nextafter", "pow", "rem", "round", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "sub",
    "tan", "tanh",
}  # fmt: skip
# One for each number of the input.
_REDUCTIONS = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin", "cumsum",
    "cumprod", "cummax", "cummin", "cumlogsumexp", "scatter-add", "scatter_add",
    "reduce_window_sum", "reduce_window_max",
}  # fmt: skip


def flops(f: Callable[..., Any], *args: Any) -> int:
    """Counts the floating-point operations of ``f(*args)``; nothing runs, nothing is allocated.

    A multiplication and an addition count 2, so an (m, k) times (k, n) matrix product takes
    2 m k n. Arithmetic and functions such as exp count 1 for each number of the result, reductions
    1 for each number of the input; moving, comparing and selecting numbers counts 0. A loop body
    counts once per iteration (once if their number depends on data); of the branches of a
    conditional, the most expensive counts.

    Args:
      f: a function that JAX can trace.
      args: arrays or ``jax.ShapeDtypeStruct``, or pytrees of such.

    Returns:
      The number of operations, a Python integer.

    >>> import jax, jax.numpy as jnp
    >>> from fnn.introspect.flops import flops
    >>> a, b = jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((3, 5), "float32")
    >>> flops(lambda a, b: jnp.exp(a @ b), a, b)  # 2*2*3*5 of the product, 2*5 of exp
    70
    """
    return _count(jax.make_jaxpr(f)(*args).jaxpr, {})


def _count(jaxpr: Any, known: dict[int, int]) -> int:
    """``known``: of programs, by their ids. What is called in several places counts in each, and is
    looked at once: calls within calls would double at every level."""
    if id(jaxpr) not in known:
        known[id(jaxpr)] = sum(_of(equation, known) for equation in jaxpr.eqns)
    return known[id(jaxpr)]


def _of(equation: Any, known: dict[int, int]) -> int:
    name, params = equation.primitive.name, equation.params
    out, into = equation.outvars[0].aval, [v.aval for v in equation.invars]
    if name == "cond":
        return max(_count(branch.jaxpr, known) for branch in params["branches"])
    if inner := list(jaxprs_inside(params)):
        return params.get("length", 1) * sum(_count(jaxpr, known) for jaxpr in inner)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * out.size * math.prod(into[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"].rhs_spec  # (out channels, in channels, places...)
        each = math.prod(into[1].shape[axis] for axis in numbers[1:])
        # A good kernel skips the zeros between the numbers of a dilated input.
        return 2 * out.size * each // math.prod(params["lhs_dilation"])
    if not any(jnp.issubdtype(v.dtype, jnp.inexact) for v in into if hasattr(v, "dtype")):
        return 0
    if name in _ELEMENTWISE:
        return out.size
    return into[-1 if name.startswith("scatter") else 0].size if name in _REDUCTIONS else 0


def jaxprs_inside(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs inside an equation's parameters: loop bodies, branches, calls, and the
    primal of a custom rule."""
    for value in params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner
