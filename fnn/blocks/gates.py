"""Gates: the arithmetic of a circuit, each with its local derivatives.

Inputs broadcast against each other as in NumPy; going back, the cotangent of a broadcast
input is summed over the axes along which it was copied. Python numbers count as floats. In the
rules below ``dy`` is the upstream cotangent and ``y`` the gate's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fnn.arguments import checked, made_once
from fnn.arrays import Shape, compute_dtype, count_of
from fnn.block import (
    Block,
    BlockTypeError,
    BlockValueError,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    Value,
)
from fnn.blocks import numerics
from fnn.blocks.elementwise import pointwise
from fnn.compiling import traced_once
from fnn.refusals import as_cotangent, as_floating, axes_of, described, elementary

Axis = int | Sequence[int] | None


def unbroadcast(dy: jax.Array, shape: Shape) -> jax.Array:
    """The cotangent of an input that was broadcast: summed over the axes of its copies.

    ``dy`` is in float32 at least; it is rounded to the input's dtype once, at the end.
    """
    added = tuple(range(dy.ndim - len(shape.shape)))
    dy = jnp.sum(dy, added) if added else dy
    stretched = tuple(i for i, size in enumerate(shape.shape) if size == 1 != dy.shape[i])
    dy = jnp.sum(dy, stretched, keepdims=True) if stretched else dy
    return dy.astype(shape.dtype)


def _is_number(v: Any) -> bool:
    """A Python number, or what jit makes of one: it takes the dtype of what it meets."""
    return isinstance(v, (int, float)) or (
        isinstance(v, jax.Array) and bool(jax.typeof(v).weak_type)
    )


def _as_arrays(name: str, x: Value, count: int | None = None) -> tuple[jax.Array, ...]:
    """Two or more inputs as arrays of one dtype and of shapes that broadcast."""
    if not isinstance(x, (tuple, list)) or len(x) < 2:
        raise BlockTypeError(name, f"x is {described(x)}, needs a tuple of inputs, such as (x, y)")
    if count is not None and len(x) != count:
        raise BlockTypeError(name, f"got {len(x)} inputs, needs {count}")
    python = [_is_number(v) for v in x]
    arrays = [as_floating(name, f"x[{i}]", v) for i, v in enumerate(x)]
    dtypes = {v.dtype for v, number in zip(arrays, python, strict=True) if not number}
    if len(dtypes) > 1:
        raise BlockTypeError(
            name, f"inputs have dtypes {[str(v.dtype) for v in arrays]}; cast them to one first"
        )
    dtype = dtypes.pop() if dtypes else arrays[0].dtype
    rank = max(v.ndim for v in arrays)
    try:
        jnp.broadcast_shapes(*(v.shape for v in arrays))
    except ValueError as error:
        raise BlockValueError(
            name,
            f"inputs of shapes {[v.shape for v in arrays]} do not broadcast together: sizes "
            "need to be equal, or 1",
        ) from error
    # Explicit leading axes: broadcasting across ranks is meant here, whatever JAX's setting.
    return tuple(v.astype(dtype).reshape((1,) * (rank - v.ndim) + v.shape) for v in arrays)


def _shapes(x: Value) -> tuple[Shape, ...]:
    dtypes = {v.dtype for v in x if not _is_number(v)}
    dtype = dtypes.pop() if dtypes else jnp.zeros(()).dtype
    return tuple(Shape(jnp.shape(v), getattr(v, "dtype", dtype)) for v in x)


def _joining(
    name: str,
    value: Callable[[jax.Array, jax.Array], jax.Array],
    vjp: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]],
    keep: Callable[[jax.Array, jax.Array], Residuals] | None = None,
) -> Block:
    """A gate of two inputs: y = value(x1, x2), (dx1, dx2) = vjp(dy, kept).

    Kept are both inputs, in the dtype they came in, which is smaller and exact; or what
    ``keep(x1, x2)`` returns. What is narrower than float32 is computed in float32 and rounded
    once. ``vjp``'s results have the broadcast shape; here, in one place, each is summed to its
    input's.
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        arrays = _as_arrays(name, x, 2)
        x1, x2 = (v.astype(compute_dtype(v.dtype)) for v in arrays)
        y = value(x1, x2).astype(arrays[0].dtype)
        return y, (arrays if keep is None else keep(x1, x2), _shapes(x))

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, Value]:
        kept, shapes = residuals
        if keep is None:
            kept = tuple(v.astype(compute_dtype(v.dtype)) for v in kept)
        dxs = vjp(_wide_cotangent(name, dy, shapes), kept)
        return {}, tuple(unbroadcast(dx, shape) for dx, shape in zip(dxs, shapes, strict=True))

    return elementary(forward, backward, name, Kind(name))


def _wide_cotangent(name: str, dy: Any, shapes: Sequence[Shape]) -> jax.Array:
    dtype = getattr(dy, "dtype", shapes[0].dtype)
    dy = as_cotangent(name, dy, jnp.broadcast_shapes(*(shape.shape for shape in shapes)))
    return dy.astype(compute_dtype(dtype))


@checked
def add() -> Block:
    """y = x1 + x2 (+ x3 ...). Each local derivative is 1: addition hands dy to every input.

    Returns:
      A block of two or more inputs of shapes that broadcast. Residuals: shapes only.

    Raises:
      BlockValueError: shapes that do not broadcast.
      BlockTypeError: fewer than two inputs, or inputs that are not floating or of two dtypes.

    >>> import fnn
    >>> y, residuals = fnn.add().forward({}, (-2.0, 5.0))
    >>> float(y), [float(d) for d in fnn.add().backward({}, residuals, -4.0)[1]]
    (3.0, [-4.0, -4.0])
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        first, *rest = _as_arrays("add", x)
        # Two are rounded once either way, and XLA would keep a wider sum wide, in memory too.
        total = first if len(rest) == 1 else first.astype(compute_dtype(first.dtype))
        for term in rest:
            total = total + term.astype(total.dtype)
        return total.astype(first.dtype), _shapes(x)

    def backward(params: Params, shapes: Residuals, dy: jax.Array) -> tuple[Params, Value]:
        dy = _wide_cotangent("add", dy, shapes)
        return {}, tuple(unbroadcast(dy, shape) for shape in shapes)

    return elementary(forward, backward, "add", Kind("add"))


@checked
def subtract() -> Block:
    """y = x1 - x2. Local derivatives: 1 and -1.

    Returns:
      A block of two inputs of shapes that broadcast. Residuals: shapes only.

    Raises:
      BlockValueError, BlockTypeError: as :func:`add`; not two inputs.

    >>> import fnn
    >>> y, residuals = fnn.subtract().forward({}, (5.0, 2.0))
    >>> float(y), [float(d) for d in fnn.subtract().backward({}, residuals, 1.0)[1]]
    (3.0, [1.0, -1.0])
    """
    return _joining("subtract", jnp.subtract, lambda dy, _: (dy, -dy), keep=lambda x1, x2: ())


@checked
def multiply() -> Block:
    """y = x1 x2. Local derivatives: x2 and x1, each the other's value.

    Returns:
      A block of two inputs of shapes that broadcast. Residuals: both inputs.

    Raises:
      BlockValueError, BlockTypeError: as :func:`subtract`.

    >>> import fnn
    >>> y, residuals = fnn.multiply().forward({}, (3.0, -4.0))
    >>> float(y), [float(d) for d in fnn.multiply().backward({}, residuals, 1.0)[1]]
    (-12.0, [-4.0, 3.0])
    """
    return _joining("multiply", jnp.multiply, lambda dy, kept: (dy * kept[1], dy * kept[0]))


@checked
def divide() -> Block:
    """y = x1 / x2. Local derivatives: 1 / x2 and -x1 / x2^2.

    Returns:
      A block of two inputs of shapes that broadcast. Residuals: both inputs.

    Raises:
      BlockValueError, BlockTypeError: as :func:`subtract`.

    >>> import fnn
    >>> y, residuals = fnn.divide().forward({}, (1.0, 4.0))
    >>> float(y), [float(d) for d in fnn.divide().backward({}, residuals, 1.0)[1]]
    (0.25, [0.25, -0.0625])
    """

    def vjp(dy: jax.Array, kept: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        x1, x2 = kept
        # dx2 = -(x1 / x2) (dy / x2): the square of a small or large x2 leaves the range, and XLA
        # would compile (x1 / x2) / x2 to a division by it.
        dx1 = dy / x2
        return dx1, -(x1 / x2) * dx1

    return _joining("divide", jnp.divide, vjp)


def _larger(
    name: str,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    wins: Callable[[jax.Array, jax.Array], jax.Array],
) -> Block:
    """maximum and minimum: dy goes to the winner; a tie shares it equally (as in JAX).

    Residuals: one byte per element: 0 where x2 wins, 1 at a tie, 2 where x1 wins, 3 where a
    NaN does, which has no derivative.
    """

    def code(x1: jax.Array, x2: jax.Array) -> jax.Array:
        code = 2 * wins(x1, x2).astype(jnp.uint8) + (x1 == x2).astype(jnp.uint8)
        return jnp.where(jnp.isnan(x1) | jnp.isnan(x2), jnp.uint8(3), code)

    def vjp(dy: jax.Array, code: jax.Array) -> tuple[jax.Array, jax.Array]:
        # What a winner gets, half of it at a tie, once for both: a long chain of gates becomes one
        # loop, and from some 2000 operations in it on XLA computes parts of it again and again.
        share = jnp.where(code == 3, jnp.nan, jnp.where(code == 1, 0.5, 1.0))
        won = dy * share.astype(dy.dtype)
        # The loser's 0 stays 0 also where dy is infinite.
        return jnp.where(code == 0, 0, won), jnp.where(code == 2, 0, won)

    def half_each(x: Value, dy: jax.Array) -> Value:
        x1, x2 = _as_arrays(name, x)
        # All of dx: an entry that is copied may be tied with one and win or lose against another.
        first = jnp.where(x1 == x2, dy / 2, jnp.where(wins(x1, x2), dy, 0))
        second = jnp.where(x1 == x2, dy / 2, jnp.where(wins(x2, x1), dy, 0))
        dxs = zip((first, second), _shapes(x), strict=True)
        return tuple(unbroadcast(dx, shape) for dx, shape in dxs)

    return _joining(name, choose, vjp, keep=code)._replace(rules=Rules(subgradient=half_each))


@checked
def maximum() -> Block:
    """y = max(x1, x2). dy goes to the larger input; at a tie half to each (as in JAX).

    Returns:
      A block of two inputs of shapes that broadcast. Residuals: one byte per element, which of
      the two it was.

    Raises:
      BlockValueError, BlockTypeError: as :func:`subtract`.

    >>> import fnn
    >>> y, residuals = fnn.maximum().forward({}, (2.0, -1.0))
    >>> float(y), [float(d) for d in fnn.maximum().backward({}, residuals, 2.0)[1]]
    (2.0, [2.0, 0.0])
    """
    return _larger("maximum", jnp.maximum, lambda x1, x2: x1 > x2)


@checked
def minimum() -> Block:
    """y = min(x1, x2). dy goes to the smaller input; at a tie half to each (as in JAX).

    Returns:
      A block of two inputs of shapes that broadcast. Residuals: one byte per element, which of
      the two it was.

    Raises:
      BlockValueError, BlockTypeError: as :func:`subtract`.

    >>> import fnn
    >>> y, residuals = fnn.minimum().forward({}, (2.0, 2.0))
    >>> float(y), [float(d) for d in fnn.minimum().backward({}, residuals, 2.0)[1]]
    (2.0, [1.0, 1.0])
    """
    return _larger("minimum", jnp.minimum, lambda x1, x2: x1 < x2)


@checked
def power(exponent: float | None = None) -> Block:
    """y = x^p, with a fixed exponent, or of two inputs (x, p).

    Local derivatives: p x^(p-1), and y ln x for the exponent. Where p = 0 the first is 0, and
    where x = 0 < p the second is 0, their limits. A negative x has no derivative with respect
    to p (NaN).

    Args:
      exponent: p; None takes it as a second input.

    Returns:
      A block of one input, or of two of shapes that broadcast. Residuals: x (for p = 0 nothing),
      or x and p.

    Raises:
      BlockValueError, BlockTypeError: as :func:`exp` or :func:`subtract`.

    >>> import fnn
    >>> y, residuals = fnn.power(3).forward({}, 2.0)
    >>> float(y), float(fnn.power(3).backward({}, residuals, 1.0)[1])
    (8.0, 12.0)
    """
    if exponent is not None:
        return _fixed_power(exponent)

    def vjp(dy: jax.Array, kept: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, p = kept
        # A power that is 0 stays 0 times an infinite exponent or logarithm: its limit.
        is_zero = jnp.abs(x) < jnp.finfo(x.dtype).tiny
        below = jnp.power(x, jnp.where((p == 0) & is_zero, 1, p - 1))
        slope = jnp.where(below == 0, 0, p * below)
        y = jnp.power(x, p)
        by_exponent = y * jnp.log(jnp.where((y == 0) & (x >= 0), 1, x))
        return dy * slope, dy * by_exponent

    return _joining("power", jnp.power, vjp)


# ---- of one number ---------------------------------------------------------------------------


def _fixed_power(p: float) -> Block:
    def vjp(dy: jax.Array, x: jax.Array) -> jax.Array:
        if p == 0:
            return jnp.zeros_like(dy)
        # In two factors: x^(p-1) may leave the range where p x^(p-1) or 1 / x^2 does not.
        half = (p - 1) // 2 if p == int(p) else 0
        return _product(dy, p * jnp.power(x, half) * jnp.power(x, p - 1 - half))

    keep: Literal["x"] | None = "x" if p != 0 else None
    kind = Kind("power", (p,))
    return pointwise(f"power({p:g})", lambda x: jnp.power(x, p), vjp, keep, kind)


@checked
def negate() -> Block:
    """y = -x. Local derivative: -1.

    Returns:
      A block without parameters, for an array of any shape. Residuals: none.

    Raises:
      BlockTypeError: x is not floating.

    >>> import fnn
    >>> float(fnn.negate().backward({}, None, 2.0)[1])
    -2.0
    """
    return pointwise("negate", jnp.negative, lambda dy, _: -dy, None, Kind("negate"))


@checked
def scale(factor: float) -> Block:
    """y = factor x. Local derivative: factor.

    Args:
      factor: a fixed number.

    Returns:
      A block without parameters, for an array of any shape. Residuals: none.

    Raises:
      BlockTypeError: x is not floating.

    >>> import fnn
    >>> y, residuals = fnn.scale(0.5).forward({}, 10.0)
    >>> float(y), float(fnn.scale(0.5).backward({}, residuals, 1.0)[1])
    (5.0, 0.5)
    """
    kind = Kind("scale", (factor,))
    return pointwise("scale", lambda x: factor * x, lambda dy, _: factor * dy, None, kind)


@checked
@made_once
def exp() -> Block:
    """y = e^x. Local derivative: y itself.

    Returns:
      A block without parameters, for an array of any shape. Residuals: y (of 16 bits, x).

    Raises:
      BlockTypeError: x is not floating.

    >>> import fnn
    >>> y, residuals = fnn.exp().forward({}, 0.0)
    >>> float(y), float(fnn.exp().backward({}, residuals, 3.0)[1])
    (1.0, 3.0)
    """
    return pointwise("exp", numerics.exp, _product, "y", Kind("exp"))


@checked
@made_once
def log() -> Block:
    """y = ln x. Local derivative: 1 / x.

    Returns:
      A block without parameters, for an array of any shape. Residuals: x.

    Raises:
      BlockTypeError: x is not floating.

    >>> import fnn
    >>> y, residuals = fnn.log().forward({}, 1.0)
    >>> float(y), float(fnn.log().backward({}, residuals, 3.0)[1])
    (0.0, 3.0)
    """
    return pointwise("log", jnp.log, _quotient, "x", Kind("log"))


@checked
@made_once
def square() -> Block:
    """y = x^2. Local derivative: 2x; at 0 nothing passes, not even an infinite dy.

    Returns:
      A block without parameters, for an array of any shape. Residuals: x.

    Raises:
      BlockTypeError: x is not floating.

    >>> import fnn
    >>> y, residuals = fnn.square().forward({}, 3.0)
    >>> float(y), float(fnn.square().backward({}, residuals, 1.0)[1])
    (9.0, 6.0)
    """
    return pointwise("square", jnp.square, lambda dy, x: _product(dy, 2 * x), "x", Kind("square"))


@checked
@made_once
def sqrt() -> Block:
    """y = x^(1/2). Local derivative: 1 / (2y), infinite at 0.

    Returns:
      A block without parameters, for an array of any shape. Residuals: y (of 16 bits, x).

    Raises:
      BlockTypeError: x is not floating.

    >>> import fnn
    >>> y, residuals = fnn.sqrt().forward({}, 4.0)
    >>> float(y), float(fnn.sqrt().backward({}, residuals, 1.0)[1])
    (2.0, 0.25)
    """

    def vjp(dy: jax.Array, y: jax.Array) -> jax.Array:
        return _quotient(dy, 2 * jnp.abs(y))

    return pointwise("sqrt", jnp.sqrt, vjp, "y", Kind("sqrt"))


@traced_once
def _product(dy: jax.Array, slope: jax.Array) -> jax.Array:
    """dy * slope, but 0 for 0 times infinity: a dy of 0 brings nothing, a slope of 0 lets nothing
    through. So a norm, sqrt of a sum of squares, has gradient 0 at 0."""
    nothing = ((dy == 0) & jnp.isinf(slope)) | ((slope == 0) & jnp.isinf(dy))
    return jnp.where(nothing, 0, dy * slope)


@traced_once
def _quotient(dy: jax.Array, x: jax.Array) -> jax.Array:
    """dy / x, but 0 for 0 / 0: a dy of 0 brings nothing."""
    return jnp.where((dy == 0) & (x == 0), 0, dy / x)


# ---- sums over axes --------------------------------------------------------------------------


def _reduction(name: str, axis: Axis, keepdims: bool, mean: bool) -> Block:
    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        x = as_floating(name, "x", x)
        reduce = jnp.mean if mean else jnp.sum
        return reduce(x, axes_of(name, axis, x), keepdims=keepdims), Shape.of(x)

    def backward(params: Params, x: Shape, dy: jax.Array) -> tuple[Params, Value]:
        # forward: y = sum over the axes, so every term gets the same dy: copy it back.
        reduced = axes_of(name, axis, x)
        shape = tuple(1 if d in reduced else size for d, size in enumerate(x.shape))
        kept = [size for d, size in enumerate(x.shape) if d not in reduced]
        dy = as_cotangent(name, dy, shape if keepdims else kept).astype(compute_dtype(x.dtype))
        # Divided in float32: float16 does not hold every count.
        part = (dy / count_of(x, reduced) if mean else dy).astype(x.dtype)
        return {}, jnp.broadcast_to(part.reshape(shape), x.shape)

    return elementary(forward, backward, name, Kind(name, (axis, keepdims)))


@checked
def sum(axis: Axis = None, *, keepdims: bool = False) -> Block:
    """y = the sum of x over some axes (all by default). dy goes to every term.

    Args:
      axis: an axis, or several; None for all.
      keepdims: whether the summed axes stay, with size 1.

    Returns:
      A block without parameters. Residuals: the shape, no bytes.

    Raises:
      BlockValueError: x has no such axis.
      BlockTypeError: x is not floating.

    >>> import fnn, jax.numpy as jnp
    >>> y, residuals = fnn.sum(axis=0).forward({}, jnp.ones((3, 2)))
    >>> y
    Array([3., 3.], dtype=float32)
    """
    return _reduction("sum", axis, keepdims, mean=False)


@checked
def mean(axis: Axis = None, *, keepdims: bool = False) -> Block:
    """y = the mean of x over some axes (all by default). dy / n goes to each of the n terms.

    Args:
      axis, keepdims: as for :func:`sum`.

    Returns:
      A block without parameters. Residuals: the shape, no bytes.

    Raises:
      BlockValueError, BlockTypeError: as :func:`sum`.

    >>> import fnn, jax.numpy as jnp
    >>> y, residuals = fnn.mean().forward({}, jnp.array([1.0, 2.0, 6.0, 7.0]))
    >>> float(y), fnn.mean().backward({}, residuals, 1.0)[1]
    (4.0, Array([0.25, 0.25, 0.25, 0.25], dtype=float32))
    """
    return _reduction("mean", axis, keepdims, mean=True)
