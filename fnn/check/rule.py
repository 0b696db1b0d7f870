"""A rule: a forward and a backward, wherever they come from; and inputs for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.extend import core as jax_core

from fnn.arrays import is_floating
from fnn.block import Block
from fnn.check.arguments import Arguments, floating, real, upstream
from fnn.check.report import CheckError
from fnn.introspect.flops import jaxprs_inside
from fnn.introspect.watch import watch
from fnn.pytrees import flat, split_floats

cached = functools.lru_cache(maxsize=8)  # programs of the last functions: another seed needs them


class Rule(NamedTuple):
    """A forward and a backward in fnn's protocol.

    ``primal(params, x, key) -> y``: forward's value, for autodiff. ``block``: where they come
    from, if it is one. ``subgradient``: see :class:`fnn.block.Rules`. ``declared(params, x, dy) ->
    (dparams, dx)``: what backward is meant to be in place of forward's derivative. ``surrogate``:
    primal's derivative is backward's, and on purpose not forward's. ``of_jax``: backward is
    what ``jax.vjp`` of primal uses.
    """

    name: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any, Any], tuple[Any, Any]]
    primal: Callable[[Any, Any, Any], Any]
    block: Block | None = None
    subgradient: Callable[..., Any] | None = None
    declared: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    surrogate: bool = False
    of_jax: bool = False


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


def of_block(block: Block, name: str = "", declared: Any = None) -> Rule:
    """A block's own functions."""
    inside: list[Block] = []

    def differentiable(path: str, inner: Block) -> Block:
        if inner.kind.maker != "straight_through":
            return inner
        inside.append(inner)
        return inner._replace(forward=_with_derivative_of(inner.kind.of[1].forward, inner.forward))

    whole = watch(block, differentiable)
    forward = whole.forward if inside else block.forward
    return Rule(
        name or block.name, block.forward, block.backward, _value_of(cast(Hashable, forward)),
        block, block.rules.subgradient, declared, surrogate=bool(inside),
    )  # fmt: skip


def _with_derivative_of(surrogate: Callable[..., Any], forward: Callable[..., Any]) -> Any:
    """A forward whose derivative, by autodiff, is that of the surrogate."""

    def both(params: Any, x: Any, key: Any = None) -> Any:
        (y, residuals), (other, _) = forward(params, x, key), surrogate(params, x, key)
        y = jax.lax.stop_gradient(y)
        return jax.tree.map(lambda v, s: v + (s - jax.lax.stop_gradient(s)), y, other), residuals

    return both


@cached
def _value_of(forward: Any) -> Callable[..., Any]:
    """forward without its residuals; the same function for the same forward."""

    def primal(params: Any, x: Any, key: Any) -> Any:
        return forward(params, x, key)[0]

    return primal


def of_pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    name: str,
    arguments: Arguments,
    declared: Callable[..., Any] | None = None,
) -> Rule:
    """Two plain functions, ``forward(*args) -> (y, residuals)`` and
    ``backward(residuals, dy) -> dargs``."""

    def block_forward(params: Any, x: Any, key: Any = None) -> Any:
        outputs = forward(*arguments.put(x))
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise CheckError(f"{name}: forward needs to return (y, residuals), got {outputs!r:.80}")
        return real(outputs[0]), outputs[1]

    def block_backward(params: Any, residuals: Any, dy: Any) -> Any:
        dx = backward(residuals, upstream(dy))
        if isinstance(dx, list) or dx is None:
            raise CheckError(
                f"{name}: backward returned {type(dx).__name__}, needs to return a tuple with one "
                "cotangent for each argument (None for integers)"
            )
        return {}, arguments.cotangents(dx if isinstance(dx, tuple) else (dx,))

    def primal(params: Any, x: Any, key: Any) -> Any:
        return real(forward(*arguments.put(x))[0])

    return Rule(name, block_forward, block_backward, primal, declared=_of_args(declared, arguments))


def of_function(
    f: Callable[..., Any],
    name: str,
    arguments: Arguments,
    declared: Callable[..., Any] | None = None,
) -> Rule:
    """A JAX function: backward is what ``jax.vjp`` uses, a custom rule or autodiff.

    The residuals are those of ``jax.vjp``; the primal is ``f`` itself.
    """

    def primal(params: Any, x: Any, key: Any = None) -> Any:
        return floating(real(f(*arguments.put(x))))

    def forward(params: Any, x: Any, key: Any = None) -> Any:
        floats, fill = split_floats(x)
        return jax.vjp(lambda *floats: primal(params, fill(floats)), *floats)

    leaves, tree = flat(arguments.varying)

    def backward(params: Any, pull_back: Any, dy: Any) -> Any:
        cotangents = iter(pull_back(dy))
        return {}, tree.unflatten([next(cotangents) if is_floating(v) else None for v in leaves])

    return Rule(
        name, forward, backward, primal, declared=_of_args(declared, arguments), of_jax=True
    )


def _of_args(declared: Callable[..., Any] | None, arguments: Arguments) -> Any:
    """``declared(*args, dy) -> dargs`` in the protocol of blocks."""
    if declared is None:
        return None

    def of_block(params: Any, x: Any, dy: Any) -> Any:
        dargs = declared(*arguments.put(x), upstream(dy))
        return {}, arguments.cotangents(dargs if isinstance(dargs, tuple) else (dargs,))

    return of_block


# ---- without custom rules --------------------------------------------------------------------

_CUSTOM = ("custom_vjp_call", "custom_vjp_call_jaxpr", "custom_jvp_call")
_INLINE = (*_CUSTOM, "jit", "pjit", "closed_call", "remat", "checkpoint", "remat2")


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, and of what it calls, however often."""
    waiting, seen = [jaxpr], {id(jaxpr)}
    for program in waiting:
        for equation in program.eqns:
            yield equation
            inner = [part for part in jaxprs_inside(equation.params) if id(part) not in seen]
            seen.update(map(id, inner))
            waiting += inner


def custom_rule(jaxpr: Any) -> str:
    """The name of a primitive with a custom derivative in a program, or ''."""
    names = (equation.primitive.name for equation in equations(jaxpr))
    return next((name for name in names if name in _CUSTOM), "")


@cached
def without_custom_rules(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` with the function itself in place of every ``custom_vjp`` and ``custom_jvp``.

    Then autodiff derives the derivative from the value. It looks inside jit, loops and branches.
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
        name, params = equation.primitive.name, equation.params
        if name in _INLINE:
            inner = params.get("call_jaxpr" if name in _CUSTOM else "jaxpr")
            consts = getattr(inner, "consts", ())
            outputs = _evaluate(getattr(inner, "jaxpr", inner), consts, inputs)
        else:
            options = equation.primitive.get_bind_params(_plain_params(params))
            outputs = equation.primitive.bind(*inputs, **options)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _plain_params(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a loop or branch, with no custom rules in its programs."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple) and any(isinstance(v, jax_core.ClosedJaxpr) for v in value):
            whole = map(plain, value)
            return type(value)(*whole) if hasattr(value, "_fields") else tuple(whole)
        if not isinstance(value, jax_core.ClosedJaxpr) or not custom_rule(value.jaxpr):
            return value
        program = functools.partial(_evaluate, value.jaxpr, value.consts)
        return jax.make_jaxpr(lambda *args: program(args))(*value.in_avals)

    return {name: plain(value) for name, value in params.items()}


# ---- inputs ----------------------------------------------------------------------------------


def redraw(value: Any, rng: np.random.Generator) -> Any:
    """Perturbed numbers: each float changes by some tenths of itself.

    Signs stay, so positive numbers stay positive, and what else the numbers seem to mean stays: a
    symmetric matrix, rows of probabilities, numbers in order. A leaf of zeros (a bias) is drawn
    anew, because a mistake in its gradient would not show at 0.
    """

    def one(leaf: Any) -> Any:
        if not is_floating(leaf):
            return leaf
        leaf, dtype = np.asarray(leaf, np.float64), leaf.dtype
        if not np.any(leaf):
            return (0.5 * rng.standard_normal(leaf.shape)).astype(dtype)
        return _alike(leaf, leaf * np.exp(0.3 * rng.standard_normal(leaf.shape))).astype(dtype)

    return jax.tree.map(one, value)


def is_symmetric(a: np.ndarray) -> bool:
    """Whether these are symmetric matrices, along the last two axes."""
    is_square = a.ndim > 1 and a.shape[-1] == a.shape[-2]
    return is_square and np.allclose(a, np.swapaxes(a, -1, -2), equal_nan=True)


def _alike(given: np.ndarray, new: np.ndarray) -> np.ndarray:
    """``new`` with the structure of ``given``."""
    if given.ndim < 1 or given.shape[-1] < 2:
        return new
    if is_symmetric(given):
        return (new + np.swapaxes(new, -1, -2)) / 2
    if np.all((given >= 0) & (given <= 1)):
        if np.allclose(np.sum(given, -1), 1):
            return new / np.sum(new, -1, keepdims=True)
        return np.where(new > 1, given, new)
    return np.sort(new, -1) if np.all(np.diff(given) > 0) else new
