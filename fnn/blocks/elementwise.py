"""Blocks from a function of one number and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fnn.arguments import checked
from fnn.arrays import compute_dtype
from fnn.block import Block, Key, Kind, Params, Residuals, Rules, Value
from fnn.compiling import always, by_platform, traced_once
from fnn.executor import inference
from fnn.refusals import as_cotangent, as_floating, elementary, require_entries, require_floating

ELEMENTWISE = Kind("elementwise")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kept:
    """A residual that says what it is: the block's input "x" or its output "y"."""

    array: jax.Array
    what: Literal["x", "y"] = field(metadata={"static": True})


def pointwise(
    name: str,
    value: Callable[[jax.Array], jax.Array],
    vjp: Callable[[jax.Array, Any], jax.Array],
    keep: Literal["x", "y"] | None,
    kind: Kind,
) -> Block:
    """A block from a function of one number and the chain rule through it.

    forward: y = value(x); backward: dx = vjp(dy, kept), where ``keep`` says what is kept: x, y, or
    None. bfloat16 and float16 are computed in float32 and rounded once. There "y" keeps x and
    backward recomputes y in float32: an output rounded to 16 bits has too few digits.
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        x = as_floating(name, "x", x)
        wide = compute_dtype(x.dtype)
        y = value(x.astype(wide))
        require_entries(name, "value(x)", y, x.shape, or_one=False)
        y = jnp.asarray(y, x.dtype)
        if keep == "y":
            return y, Kept(y, "y") if x.dtype == wide else Kept(x, "x")
        return y, x if keep == "x" else None

    def backward(params: Params, kept: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = value(x), so dx = dy value'(x), computed from what was kept.
        array = kept.array if keep == "y" else kept
        dy = as_cotangent(name, dy, None if keep is None else array.shape)
        if keep is None:
            return {}, vjp(dy.astype(compute_dtype(dy.dtype)), None).astype(dy.dtype)
        return {}, (of_x if keep == "y" and kept.what == "x" else of_kept)(array, dy)

    @traced_once
    def of_kept(array: jax.Array, dy: jax.Array) -> jax.Array:
        d = dy.astype(compute_dtype(dy.dtype))
        return vjp(d, _for_backward(array, dy).astype(d.dtype)).astype(array.dtype)

    @traced_once
    def of_x(x: jax.Array, dy: jax.Array) -> jax.Array:
        d = dy.astype(compute_dtype(dy.dtype))
        return vjp(d, value(_for_backward(x, dy).astype(d.dtype))).astype(x.dtype)

    return elementary(forward, backward, name, kind)


def _for_backward(kept: jax.Array, dy: jax.Array) -> jax.Array:
    return by_platform(kept, dy, cuda=_anew, default=lambda kept, _: kept)


def _anew(kept: jax.Array, dy: jax.Array) -> jax.Array:
    """``kept``, of which XLA does not know that forward computed with the same numbers.

    For NVIDIA's GPUs it would compute forward and backward together, and keep float32 arrays of
    what they have in common (of gelu four) in place of x. A barrier would do in a network; alone,
    forward and backward are one kernel, and with this they still are.
    """
    return jnp.where(always(dy), kept, 0)


@checked
def elementwise(
    name: str,
    value: Callable[[jax.Array], jax.Array],
    derivative: Callable[[jax.Array], jax.Array],
    kind: Kind = ELEMENTWISE,
    keep: Literal["x", "y"] = "x",
) -> Block:
    """A block from a function of one number and its derivative.

    forward: y = value(x); backward: dx = dy * derivative(x). x and y have any one shape and one
    floating dtype; bfloat16 and float16 are computed in float32 and rounded once.

    Args:
      name: the block's label.
      value: a function of one array, entry by entry.
      derivative: its derivative, a function of x, or of y where ``keep`` is "y".
      kind: what the block is, for tables by kind.
      keep: what the derivative is computed from. From "x" it is accurate also where y saturates.

    Returns:
      A block without parameters. Residuals: ``x``, or y with a note that it is y (of 16 bits, x).

    Raises:
      BlockTypeError: x is not floating, or a function returns other than real numbers of its shape.

    >>> import fnn, jax.numpy as jnp
    >>> cube = fnn.elementwise("cube", lambda x: x**3, lambda x: 3 * x**2)
    >>> y, residuals = cube.forward({}, jnp.array([2.0]))
    >>> y, cube.backward({}, residuals, jnp.array([10.0]))[1]
    (Array([8.], dtype=float32), Array([120.], dtype=float32))
    """

    def vjp(dy: jax.Array, kept: jax.Array) -> jax.Array:
        slope = derivative(kept)
        require_entries(name, f"derivative({keep})", slope, kept.shape, or_one=True)
        return dy * slope

    return pointwise(name, value, vjp, keep, kind)


def piecewise_linear(
    name: str,
    value: Callable[[jax.Array], jax.Array],
    piece: Callable[[jax.Array], jax.Array],
    slopes: Sequence[float],
    kinks: Mapping[float, float],
    kind: Kind = ELEMENTWISE,
) -> Block:
    """A block from a function made of straight pieces.

    forward: y = value(x), where x is on piece ``piece(x)`` (0, 1, ...); backward:
    dx = slopes[piece] * dy, and NaN where x was NaN. ``value`` has y in x's dtype: of 16 bits it
    chooses among numbers of 16 bits, of which those that are products are :func:`widened`. So XLA
    for TPUs computes y and dx in one kernel, and no array of float32 is left between two layers.
    ``kinks``: the slope declared at each point between two pieces. Where a slope is 0, dx is 0
    whatever dy is, as in jax.nn.relu.

    Residuals: the piece, one byte an element. NaN is a piece of its own, ``len(slopes)``, so that
    it does not become a silent 0 on the way back. On TPUs it is in the piece that ``piece`` says,
    of a slope other than 0: dx shows the NaN that y brings into dy.
    """

    def piece_or_nan(x: jax.Array) -> jax.Array:
        return jnp.where(jnp.isnan(x), len(slopes), piece(x).astype(jnp.uint8))

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_floating(name, "x", x)
        # TPUs keep a bit for each comparison. One more, for NaN, would be read, and compiled,
        # wherever dx is: a CNN's step would take a quarter longer to compile.
        code = by_platform(x, tpu=lambda x: piece(x).astype(jnp.uint8), default=piece_or_nan)
        return value(x), code

    def backward(params: Params, code: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y is linear in x on each piece, so dx = dy times the slope of the piece.
        dy = as_cotangent(name, dy, code.shape)
        wide = dy.astype(compute_dtype(dy.dtype))

        def part(slope: float) -> jax.Array:
            exact: dict[float, jax.Array] = {0: jnp.zeros_like(dy), 1: dy}
            return exact[slope] if slope in exact else (slope * wide).astype(dy.dtype)

        # NaN inside, and all choices in dy's dtype, or TPUs would keep x as well.
        dx = by_platform(
            code, part(slopes[-1]),
            tpu=lambda code, last: last,
            default=lambda code, last: jnp.where(code == len(slopes), jnp.nan, last),
        )  # fmt: skip
        for number, slope in enumerate(slopes[:-1]):
            dx = jnp.where(code == number, part(slope), dx)
        return {}, dx

    rules = Rules(subgradient=subgradient_at(kinks))
    return elementary(forward, backward, name, kind, rules)


def widened(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """f computed in float32 at least, and rounded once."""
    return lambda x: f(x.astype(compute_dtype(x.dtype))).astype(x.dtype)


def subgradient_at(kinks: Mapping[float, float]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A block's ``subgradient``: the slope declared at each point without a derivative.

    >>> import jax.numpy as jnp
    >>> subgradient_at({0.0: 0.5})(jnp.array([0.0]), jnp.array([3.0]))
    Array([1.5], dtype=float32)
    """

    def subgradient(x: jax.Array, dy: jax.Array) -> jax.Array:
        dx = jnp.zeros_like(dy)
        for point, slope in kinks.items():
            dx = jnp.where(x == point, slope * dy, dx)
        return dx

    return subgradient


@checked
def straight_through(block: Block, surrogate: Block) -> Block:
    """Forward through ``block``, backward through ``surrogate``.

    Bengio, Leonard and Courville, 2013, arXiv:1308.3432. It trains networks of binary thresholds:
    ``straight_through(step(), logistic())``. Both blocks get the same params, input and key; init
    is ``block``'s. The gradient is deliberately not that of the forward function, and a gradient
    check rightly refuses it.

    Args:
      block: what goes forward.
      surrogate: a block of the same input and output shapes, whose backward is used.

    Returns:
      A block with ``block``'s parameters. Residuals: the surrogate's; its value is not used, and
      ``jit`` drops its computation.

    >>> import jax.numpy as jnp
    >>> from fnn import logistic, step, straight_through
    >>> unit = straight_through(step(), logistic())
    >>> y, residuals = unit.forward({}, jnp.array([-1.0, 0.0]))
    >>> y, unit.backward({}, residuals, jnp.ones(2))[1]
    (Array([0., 1.], dtype=float32), Array([0.19661193, 0.25      ], dtype=float32))
    """

    statistics = block.rules.update_statistics

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        y, own = block.forward(params, x, key)
        _, residuals = surrogate.forward(params, x, key)
        return y, (residuals, own if statistics else ())

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        return surrogate.backward(params, residuals[0], dy)

    def update_statistics(params: Params, residuals: Residuals) -> Params:
        assert statistics is not None
        return statistics(params, residuals[1])

    rules = Rules(
        inference=lambda: straight_through(inference(block), inference(surrogate)),
        validate=block.rules.validate,
        update_statistics=update_statistics if statistics else None,
        subgradient=surrogate.rules.subgradient,
    )
    name = f"straight_through({block.name}, {surrogate.name})"
    kind = Kind("straight_through", (), (block, surrogate))
    return Block(block.init, forward, backward, name, kind, rules=rules)
