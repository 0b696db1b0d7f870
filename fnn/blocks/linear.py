"""The linear layer and what the lecture builds from it: the neuron, the layer.

Symbols: B batch (any number of leading axes), I features in, O features out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from fnn.arguments import Count, checked
from fnn.arrays import Spec, compute_dtype, is_array, is_floating, is_split
from fnn.block import Block, BlockTypeError, BlockValueError, Key, Kind, Params, unwrapped
from fnn.blocks.sums import sums
from fnn.compiling import by_platform
from fnn.executor import graph
from fnn.refusals import (
    as_cotangent,
    described,
    elementary,
    require_floating,
    require_params,
    require_shapes,
)


class Initializer(Protocol):
    """``initializer(key, shape, dtype) -> array``, as in ``jax.nn.initializers``."""

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike, /) -> jax.Array: ...


glorot = jax.nn.initializers.glorot_uniform()
he = jax.nn.initializers.he_normal()
zeros = jax.nn.initializers.zeros

# Scales that preserve the variance: He et al. 2015 for units that are off half the time, LeCun
# for selu's self-normalisation, Glorot and Bengio 2010 for the rest.
_INITIALIZERS = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "celu", "silu", "mish", "softplus", "gelu"), he),
    "selu": jax.nn.initializers.lecun_normal(),
}


def initializer_for(nonlinearity: Block) -> Initializer:
    """The initialiser of weights before this nonlinearity: He's, LeCun's or Glorot's."""
    return _INITIALIZERS.get(unwrapped(nonlinearity).kind.maker, glorot)


@checked
def linear(
    features: Count,
    *,
    use_bias: bool = True,
    w_init: Initializer = glorot,
    b_init: Initializer = zeros,
) -> Block:
    """y = x W + b, for x of shape (B..., I), W of (I, O), b of (O,).

    Computed in x's dtype with sums in float32 or wider, whatever the dtype of the parameters:
    bfloat16 inputs with float32 parameters are bfloat16 compute, and the cotangents of the
    parameters come back in float32.

    Args:
      features: O, at least 1.
      use_bias: whether there is a b.
      w_init, b_init: from ``jax.nn.initializers``.

    Returns:
      A block with parameters ``w`` and ``b``. Residuals: ``x``, all that dW needs besides the
      parameters.

    Raises:
      BlockValueError: x has another number of features than W, or no feature axis; parameters of
        other shapes.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.linear(2)
    >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([10.0, 20.0])}
    >>> y, residuals = net.forward(params, jnp.array([[1.0, 1.0]]))
    >>> y
    Array([[14., 26.]], dtype=float32)
    >>> dparams, dx = net.backward(params, residuals, jnp.array([[1.0, 0.0]]))
    >>> dx, dparams["b"]
    (Array([[1., 3.]], dtype=float32), Array([1., 0.], dtype=float32))
    """
    return _affine((features,), use_bias, w_init, b_init)


@checked
def neuron(
    nonlinearity: Block,
    *,
    use_bias: bool = True,
    w_init: Initializer | None = None,
    b_init: Initializer = zeros,
) -> Block:
    """One neuron: z = w^T x + b, y = nonlinearity(z), for x of shape (B..., I) and y of (B...).

    Args:
      nonlinearity: a block, such as ``logistic()``.
      use_bias: whether there is a b.
      w_init, b_init: from ``jax.nn.initializers``; by default w as suits the nonlinearity: He for
        relu and its kin, LeCun for selu, Glorot for the rest.

    Returns:
      A graph of two blocks, with parameters ``linear/w`` of shape (I,) and ``linear/b``, a scalar.
      Residuals: those of :func:`linear` and of the nonlinearity.

    Raises:
      BlockValueError, BlockTypeError: as :func:`linear`; the nonlinearity is not a block.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.neuron(fnn.logistic())
    >>> params = {"linear": {"w": jnp.array([1.0, -1.0]), "b": jnp.array(0.0)}}
    >>> net.forward(params, jnp.array([[2.0, 2.0]]))[0]
    Array([0.5], dtype=float32)
    """
    w_init = initializer_for(nonlinearity) if w_init is None else w_init
    weighted_sum = _affine((), use_bias, w_init, b_init)
    return _activated(weighted_sum, nonlinearity)._replace(name="neuron", kind=Kind("neuron"))


@checked
def layer(
    features: Count,
    nonlinearity: Block,
    *,
    use_bias: bool = True,
    w_init: Initializer | None = None,
    b_init: Initializer = zeros,
) -> Block:
    """A layer of neurons: y = nonlinearity(x W + b), for x of shape (B..., I) and y of (B..., O).

    Args:
      features: O, at least 1.
      nonlinearity, use_bias, w_init, b_init: as for :func:`neuron`.

    Returns:
      A graph of two blocks, with parameters ``linear/w`` of shape (I, O) and ``linear/b`` of (O,).
      Residuals: those of :func:`linear` and of the nonlinearity.

    Raises:
      BlockValueError, BlockTypeError: as :func:`linear`; the nonlinearity is not a block.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.layer(4, fnn.relu())
    >>> params = net.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> jax.tree.map(lambda p: p.shape, params)
    {'linear': {'b': (4,), 'w': (3, 4)}}
    """
    w_init = initializer_for(nonlinearity) if w_init is None else w_init
    weighted_sum = linear(features, use_bias=use_bias, w_init=w_init, b_init=b_init)
    whole = _activated(weighted_sum, nonlinearity)
    return whole._replace(name="layer", kind=Kind("layer", (features, None, use_bias)))


def node_name(nonlinearity: Block, taken: tuple[str, ...]) -> str:
    """The nonlinearity's own name where that can name a node, else "nonlinearity".

    >>> import fnn
    >>> [node_name(fnn.tanh()._replace(name=name), ("linear",)) for name in ("act", "linear")]
    ['act', 'nonlinearity']
    """
    name = nonlinearity.name
    return name if name and name not in taken and "/" not in name else "nonlinearity"


def _activated(weighted_sum: Block, nonlinearity: Block) -> Block:
    name = node_name(nonlinearity, taken=("linear", "x"))
    nodes = [("linear", weighted_sum, "x"), (name, nonlinearity, "linear")]
    return graph("x", nodes, name)


def contract(
    a: jax.Array,
    b: jax.Array,
    axes: tuple[Sequence[int], Sequence[int]],
    like: jax.Array | None = None,
    narrow: bool | None = False,
) -> jax.Array:
    """The matrix product over ``axes``, its sums in float32 at least.

    ``like``: an array that the product is sharded like, where axes of a mesh are explicit and it
    is a sum over one of them. ``narrow``: the sums are rounded to a's dtype; None: they may be, as
    what is made of them is rounded to it, and are where it saves memory.
    """
    wide = compute_dtype(a.dtype)
    sharding = None if like is None else jax.typeof(like).sharding

    def product(a: jax.Array, b: jax.Array, dtype: DTypeLike = wide) -> jax.Array:
        return lax.dot_general(
            a, b, (axes, ((), ())), preferred_element_type=dtype, out_sharding=sharding
        )

    if a.dtype == wide:
        return product(a, b)
    result = a.dtype if narrow else wide
    on_gpus = a.dtype if narrow or (narrow is None and a.dtype == jnp.bfloat16) else wide
    sizes = [
        math.prod(n for i, n in enumerate(v.shape) if i not in summed)
        for v, summed in zip((a, b), axes, strict=True)
    ]
    is_of_matrices = all(isinstance(n, int) and n > 1 for n in sizes)  # not symbolic
    # XLA on CPU has no batched product of bfloat16 with float32 sums (vmap makes one); products
    # of widened bfloat16 are the same numbers. On GPU and TPU 16-bit operands are the fast ones.
    # NVIDIA's libraries sum in float32 whatever the result is; XLA would write one that is rounded
    # afterwards as float32, where what comes next computes in that. (A product with one row or
    # column is XLA's own: there it would round each term.)
    return by_platform(
        a, b,
        cpu=lambda a, b: product(a.astype(wide), b.astype(wide)).astype(result),
        cuda=lambda a, b: product(a, b, on_gpus if is_of_matrices else wide).astype(result),
        default=lambda a, b: product(a, b).astype(result),
    )  # fmt: skip


def _summed(x: jax.Array, dy: jax.Array, batch: tuple[int, ...], w: jax.Array) -> jax.Array:
    """x^T dy, summed over the batch.

    On CPU, XLA copies the first operand of such a product to turn it. Where x is the wider one it
    is quicker to turn dy, and then the product, by 1 to 4 % of an MLP's step; without a barrier XLA
    would turn the operands back.
    """

    def plain(x: jax.Array, dy: jax.Array) -> jax.Array:
        return contract(x, dy, (batch, batch), like=w)

    def turned(x: jax.Array, dy: jax.Array) -> jax.Array:
        return lax.optimization_barrier(contract(dy, x, (batch, batch))).T

    def of_products(x: jax.Array, dy: jax.Array) -> jax.Array:
        wide = compute_dtype(x.dtype)
        return sums([x.astype(wide) * dy[..., None].astype(wide)], batch)[0]

    if any(map(is_split, (x, dy, w))) or x.dtype != dy.dtype:
        return plain(x, dy)
    if w.ndim == 1:  # one neuron: XLA for NVIDIA's GPUs would write the products
        return by_platform(x, dy, cuda=of_products, default=plain)
    if w.shape[0] < 2 * w.shape[1]:
        return plain(x, dy)
    return by_platform(x, dy, cpu=turned, default=plain)


def initial(
    name: str, what: str, start: Initializer, key: jax.Array, shape: Sequence[int], dtype: DTypeLike
) -> jax.Array:
    """What an initialiser makes; refused if that is no floating array of the shape."""
    needs = (
        "needs a function of (key, shape, dtype), such as jax.nn.initializers.he_normal(), called"
    )
    try:
        array = start(key, shape, dtype)
    except TypeError as error:
        raise BlockTypeError(name, f"{what} cannot be used: {error}; {needs}") from error
    if not is_array(array) or array.shape != tuple(shape) or not is_floating(array):
        got = f"{what} makes {described(array)}, not floats of shape {tuple(shape)}"
        raise BlockTypeError(name, f"{got}; {needs}")
    return jnp.asarray(array)


def weights(
    name: str,
    key: jax.Array,
    x: Spec,
    shapes: Mapping[str, tuple[int, ...]],
    w_init: Initializer,
    b_init: Initializer,
) -> Params:
    """Initial ``w`` and, where ``shapes`` has one, ``b``, in float32 at least."""
    dtype = compute_dtype(x.dtype)
    w_key, b_key = jax.random.split(key)
    # Initialisers read fan-in and fan-out from two axes or more: one neuron's w is a column.
    columns = shapes["w"] if len(shapes["w"]) > 1 else (*shapes["w"], 1)
    w = initial(name, "w_init", w_init, w_key, columns, dtype).reshape(shapes["w"])
    if "b" not in shapes:
        return {"w": w}
    return {"w": w, "b": initial(name, "b_init", b_init, b_key, shapes["b"], dtype)}


def _affine(
    out: tuple[int, ...], use_bias: bool, w_init: Initializer, b_init: Initializer
) -> Block:
    """x W + b with W of shape (I, *out): a matrix for a layer, a vector for one neuron."""
    name = "linear"

    def shapes(x: Spec) -> dict[str, tuple[int, ...]]:
        require_floating(name, "x", x)
        if len(x.shape) == 0 or x.shape[-1] == 0:
            raise BlockValueError(
                name, f"x has shape {x.shape}, needs a last axis of at least one feature"
            )
        w = (x.shape[-1], *out)
        return {"w": w, "b": out} if use_bias else {"w": w}

    def init(key: jax.Array, x: Spec) -> Params:
        return weights(name, key, x, shapes(x), w_init, b_init)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_params(name, params, shapes(x))
        w = params["w"]
        given = getattr(w, "shape", ())
        if given != shapes(x)["w"] and len(given) == 1 + len(out) and given[1:] == out:
            raise BlockValueError(
                name,
                f"x has {x.shape[-1]} features (shape {x.shape}), w needs {w.shape[0]} (shape "
                f"{w.shape}): give inputs with {w.shape[0]} features, or make parameters for "
                "these with init(key, x)",
            )
        require_shapes(name, params, shapes(x), x)
        # A bias of 16 bits XLA for NVIDIA's GPUs does not add where it multiplies: it would write
        # the product, in float32.
        narrow: bool | None = bool(out) and not use_bias
        if use_bias and params["b"].dtype == x.dtype:
            narrow = None
        y = contract(x, w.astype(x.dtype), ((x.ndim - 1,), (0,)), narrow=narrow)
        if use_bias:
            b = params["b"].astype(y.dtype)
            y = y + b.reshape((1,) * (y.ndim - b.ndim) + b.shape)
        return y.astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = x W + b, so dx = dy W^T, dW = x^T dy, db = dy, the last two summed over
        # the batch: (B, O) (O, I) = (B, I) and (I, B) (B, O) = (I, O).
        require_shapes(name, params, shapes(x), x)
        dy, w = as_cotangent(name, dy, (*x.shape[:-1], *out)), params["w"]
        batch = tuple(range(x.ndim - 1))
        if out:
            columns = w.astype(dy.dtype)
            dx = contract(dy, columns, ((dy.ndim - 1,), (1,)), like=x, narrow=True)
        else:
            dx = dy[..., None] * w.astype(dy.dtype).reshape((1,) * dy.ndim + w.shape)
        dparams = {"w": _summed(x, dy, batch, w).astype(w.dtype)}
        if use_bias:
            (db,) = sums([dy.astype(compute_dtype(dy.dtype))], batch)
            dparams["b"] = db.astype(params["b"].dtype)
        return dparams, dx.astype(x.dtype)

    return elementary(forward, backward, name, Kind(name, (*(out or (None,)), use_bias)), init=init)
