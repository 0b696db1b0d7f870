"""The referee of a trace: ``jax.vjp``, made to follow the subgradients that fnn declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.block import Block, Key, Params, Value
from fnn.compiling import jit_for_few_runs
from fnn.executor import is_network, mapped, rebuilt
from fnn.introspect.autodiff import by_autodiff, compared, relative_error
from fnn.pytrees import split_floats
from fnn.whiteboard.formulas import LOSSES, described, is_elementwise


def errors_of(block: Block, ran: Mapping[str, Any]) -> Any:
    """How far backward's (dparams, dx) are from ``jax.vjp`` of forward, leaf by leaf.

    Relative to the leaf's largest entry, or to a small part of upstream where terms may cancel
    (the entries of a softmax add up to 1, so their sum has gradient 0). None where there is no
    gradient, NaN where autodiff's is NaN throughout. Where forward has no derivative, the block's
    declared subgradient is the truth.
    """
    value = _differentiable(block)

    def errors(inputs: Any, got: Any) -> Any:
        _, *want = by_autodiff(lambda *inputs: value.forward(*inputs)[0])(*inputs)
        cancelling = [] if is_elementwise(described(block)) else jax.tree.leaves(inputs[-1])
        sizes = [jnp.max(jnp.abs(d), initial=0) for d in cancelling]

        def error(mine: Any, theirs: Any) -> jax.Array:
            small = 16 * float(jnp.finfo(theirs.dtype).eps) ** (1 / 3)
            scales = [small * jnp.where(jnp.isfinite(size), size, 0) for size in sizes]
            return relative_error(mine, theirs, *scales)

        return compared(got, tuple(want), error)

    inputs = tuple(ran[k] for k in ("params", "x", "key", "dy"))
    got = ran["dparams"], ran["dx"]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((inputs, got))):
        return errors(inputs, got)  # within another program
    # One program for each block: compiled one by one, its operations take ten times as long.
    return jit_for_few_runs(errors)(inputs, got)


# Linear in the target. At targets 0 and 1, a guard in forward (0 ln 0 is 0) hides the derivative
# from autodiff.
_LINEAR = tuple(name for name in LOSSES if "cross_entropy" in name)
# Autodiff decides their ties as fnn does.
_ALIKE = ("maximum", "minimum", "max_pool")


def _differentiable(block: Block) -> Block:
    """The block with a forward whose autodiff has fnn's declared subgradients.

    Autodiff of max(x, 0) at 0 gives 1/2, fnn declares 0. (A convolution of an image with a black
    corner is often exactly there.)
    """
    if is_network(block):
        return rebuilt(block, mapped(block, lambda _, inner: _differentiable(inner)))
    if block.kind.maker in _LINEAR:
        return _ruled(block, _by_target)
    if block.rules.subgradient is None or block.kind.maker in _ALIKE:
        return block
    return _ruled(block, _as_declared)


def _ruled(block: Block, rule: Callable[..., Any]) -> Block:
    """The block with autodiff's cotangents passed through ``rule(block, params, x, dy, dx)``."""

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Any]:
        floats, put = split_floats(x)

        def plain(params: Params, *floats: Any) -> Value:
            return block.forward(params, put(floats), key)[0]

        def backward(inputs: Any, dy: Any) -> Any:
            dparams, *dxs = jax.vjp(plain, *inputs)[1](dy)
            return (dparams, *rule(plain, block, inputs[1:], dy, dxs))

        value = jax.custom_vjp(plain)
        value.defvjp(lambda *args: (plain(*args), args), backward)
        return value(params, *floats), ()

    return block._replace(forward=forward)


def _as_declared(plain: Any, block: Block, x: Any, dy: Any, dxs: list[Any]) -> list[Any]:
    """Autodiff's, with the declared subgradient at kinks, which are where it hands NaN through."""
    subgradient = block.rules.subgradient
    assert subgradient is not None
    with jax.debug_nans(False):  # a NaN on purpose, which shows where the rule looks at dy
        kink = jnp.isnan(subgradient(x[0], jnp.full_like(dy, jnp.nan)))
    return [jnp.where(kink, subgradient(x[0], dy), dxs[0])]


def _by_target(plain: Any, block: Block, x: Any, dy: Any, dxs: list[Any]) -> list[Any]:
    """Autodiff's, with the derivative by the target at 1/2: it is the same everywhere."""
    if len(x) != 2:
        return dxs
    half = jnp.full_like(x[1], 0.5)
    return [dxs[0], jax.vjp(lambda t: plain({}, x[0], t), half)[1](dy)[0]]
