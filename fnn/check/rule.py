"""A rule: a forward and a backward, wherever they come from; and inputs for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jax_core

from fnn.block import Block, is_floating
from fnn.introspect.flops import jaxprs_inside
from fnn.pytrees import split_floats

cached = functools.lru_cache(maxsize=64)  # for programs, so that another seed compiles nothing


class CheckError(Exception):
    """The check could not be run; the message says why, and the fix."""


class Rule(NamedTuple):
    """A forward and a backward in fnn's protocol.

    ``primal(params, x, key) -> y``: forward's value, for autodiff. ``block``: where they come
    from, if it is one. ``subgradient``: see :class:`fnn.block.Rules`.
    """

    name: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any, Any], tuple[Any, Any]]
    primal: Callable[[Any, Any, Any], Any]
    block: Block | None = None
    subgradient: Callable[..., Any] | None = None


class Sample(NamedTuple):
    """The arguments at which a rule is evaluated."""

    params: Any
    x: Any
    key: Any

    @property
    def floats(self) -> list[Any]:
        """The floating leaves of params and x."""
        return split_floats((self.params, self.x))[0]

    def with_floats(self, floats: Sequence[Any]) -> Sample:
        """The sample with others in their place."""
        params, x = split_floats((self.params, self.x))[1](floats)
        return Sample(params, x, self.key)


def of_block(block: Block, name: str = "") -> Rule:
    """A block's own functions."""

    primal = _value_of(cast(Hashable, block.forward))
    subgradient = block.rules.subgradient
    return Rule(name or block.name, block.forward, block.backward, primal, block, subgradient)


@cached
def _value_of(forward: Any) -> Callable[..., Any]:
    """forward without its residuals; the same function for the same forward."""

    def primal(params: Any, x: Any, key: Any) -> Any:
        return forward(params, x, key)[0]

    return primal


def of_pair(forward: Callable[..., Any], backward: Callable[..., Any], name: str) -> Rule:
    """Two plain functions, ``forward(*args) -> (y, residuals)`` and
    ``backward(residuals, dy) -> dargs``."""

    def block_forward(params: Any, x: Any, key: Any = None) -> Any:
        outputs = forward(*x)
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise CheckError(f"{name}: forward needs to return (y, residuals), got {outputs!r:.80}")
        return outputs

    def block_backward(params: Any, residuals: Any, dy: Any) -> Any:
        dx = backward(residuals, dy)
        if isinstance(dx, list) or dx is None:
            raise CheckError(
                f"{name}: backward returned {type(dx).__name__}, needs to return a tuple with one "
                "cotangent for each argument (None for integers)"
            )
        return {}, dx if isinstance(dx, tuple) else (dx,)

    return Rule(name, block_forward, block_backward, lambda _, x, key: forward(*x)[0])


def of_function(f: Callable[..., Any], name: str) -> Rule:
    """A JAX function whose derivative is a custom rule: backward is what ``jax.vjp`` uses.

    The residuals are those of ``jax.vjp``; the primal is ``f`` with its custom rules taken out.
    """

    def forward(params: Any, x: Any, key: Any = None) -> Any:
        floats, put = split_floats(x)
        y, pull_back = jax.vjp(lambda *floats: f(*put(floats)), *floats)
        return y, (pull_back, jax.tree.map(lambda v: None if is_floating(v) else v, x))

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        pull_back, rest = residuals
        cotangents = iter(pull_back(dy))
        dx = jax.tree.map(
            lambda v: next(cotangents) if v is None else None, rest, is_leaf=lambda v: v is None
        )
        return {}, dx

    return Rule(name, forward, backward, lambda _, x, key: f(*x))


# ---- without custom rules --------------------------------------------------------------------

_CUSTOM = ("custom_vjp_call", "custom_vjp_call_jaxpr", "custom_jvp_call")


def has_custom_rule(f: Callable[..., Any], *args: Any) -> str:
    """The name of a primitive with a custom derivative in ``f``, or ''."""
    return next((p for p in _primitives(jax.make_jaxpr(f)(*args).jaxpr) if p in _CUSTOM[:2]), "")


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_inside(equation.params):
            yield from _primitives(inner)


@cached
def without_custom_rules(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` with every ``custom_vjp`` in it replaced by the function that it decorates.

    Then autodiff derives the derivative from the value. Looks inside ``jit``, but not inside
    loops and branches: :func:`has_custom_rule` of the result finds the rules that stay.
    """

    def plain(*args: Any) -> Any:
        jaxpr, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        out = _evaluate(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return plain


def _evaluate(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jax_core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        inner = equation.params.get("call_jaxpr" if name in _CUSTOM else "jaxpr")
        if name in _CUSTOM[:2] or name in ("jit", "pjit", "closed_call", "remat", "checkpoint"):
            outputs = _evaluate(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs
            )
        else:
            options = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **options)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


# ---- inputs ----------------------------------------------------------------------------------


def draw(spec: Any, rng: np.random.Generator) -> Any:
    """A pytree with numbers in place of every ``jax.ShapeDtypeStruct``; arrays stay.

    Floats are standard normal, integers 0 or 1, booleans both.
    """

    def one(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return rng.standard_normal(leaf.shape)
        return rng.integers(0, 2, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(one, spec)


def redraw(value: Any, rng: np.random.Generator) -> Any:
    """Perturbed numbers: each float changes by some tenths of itself.

    Signs stay, so positive numbers stay positive. A leaf of zeros (a bias) is drawn anew, because
    a mistake in its gradient would not show at 0.
    """

    def one(leaf: Any) -> Any:
        if not is_floating(leaf):
            return leaf
        leaf, dtype = np.asarray(leaf, np.float64), leaf.dtype
        if not np.any(leaf):
            return (0.5 * rng.standard_normal(leaf.shape)).astype(dtype)
        return (leaf * np.exp(0.3 * rng.standard_normal(leaf.shape))).astype(dtype)

    return jax.tree.map(one, value)
