"""The linear layer and what the lecture builds from it: the neuron, the layer.

Symbols: B batch (any number of leading axes), I features in, O features out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.block import (
    Block,
    BlockValueError,
    Key,
    Kind,
    Params,
    compute_dtype,
    require_block,
    require_floating,
    require_params,
    unwrapped,
    whole_number,
)
from fnn.executor import graph

Initializer = Callable[..., jax.Array]

glorot = jax.nn.initializers.glorot_uniform()
he = jax.nn.initializers.he_normal()
zeros = jax.nn.initializers.zeros

# Variance-preserving scales: He et al. 2015 for units that are half the time off, LeCun for
# selu's self-normalisation, Glorot and Bengio 2010 for the rest.
_INITIALIZERS = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "celu", "silu", "mish", "softplus", "gelu"), he),
    "selu": jax.nn.initializers.lecun_normal(),
}


def initializer_for(nonlinearity: Block) -> Initializer:
    """The weight initialiser that suits the nonlinearity that follows: He, LeCun or Glorot."""
    require_block("layer", "nonlinearity", nonlinearity)
    return _INITIALIZERS.get(unwrapped(nonlinearity).kind.maker, glorot)


def linear(
    features: int,
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

    Residuals: ``x``, the one thing that dW needs and the parameters do not hold.

    Raises:
      BlockValueError: x has another number of features than W, or no feature axis.
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
    features = whole_number("linear", "features", features)
    return _affine("linear", (features,), use_bias, w_init, b_init)


def neuron(
    nonlinearity: Block,
    use_bias: bool = True,
    w_init: Initializer | None = None,
    b_init: Initializer = zeros,
) -> Block:
    """One neuron: z = w^T x + b, y = nonlinearity(z), for x of shape (B..., I) and y of (B...).

    Parameters: ``linear/w`` of shape (I,) and ``linear/b``, a scalar.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.neuron(fnn.logistic())
    >>> params = {"linear": {"w": jnp.array([1.0, -1.0]), "b": jnp.array(0.0)}}
    >>> net.forward(params, jnp.array([[2.0, 2.0]]))[0]
    Array([0.5], dtype=float32)
    """
    w_init = initializer_for(nonlinearity) if w_init is None else w_init
    weighted_sum = _affine("linear", (), use_bias, w_init, b_init)
    return _activated(weighted_sum, nonlinearity)._replace(name="neuron", kind=Kind("neuron"))


def layer(
    features: int,
    nonlinearity: Block,
    use_bias: bool = True,
    w_init: Initializer | None = None,
    b_init: Initializer = zeros,
) -> Block:
    """A layer of neurons: y = nonlinearity(x W + b). Weights start as suits the nonlinearity.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.layer(4, fnn.relu())
    >>> params = net.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> jax.tree.map(lambda p: p.shape, params)
    {'linear': {'b': (4,), 'w': (3, 4)}}
    """
    w_init = initializer_for(nonlinearity) if w_init is None else w_init
    first = linear(features, use_bias, w_init, b_init)
    net = _activated(first, nonlinearity)
    return net._replace(name="layer", kind=Kind("layer", (first.kind.args[0],)))


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


def contract(a: jax.Array, b: jax.Array, axes: Any) -> jax.Array:
    """The matrix product over ``axes``, its sums in float32 at least."""
    wide = compute_dtype(a.dtype)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=wide)

    if a.dtype == wide:
        return product(a, b)
    # XLA on CPU has no batched product of bfloat16 with float32 sums (vmap makes one); products
    # of widened bfloat16 are the same numbers. On GPU and TPU narrow operands are the fast ones.
    return lax.platform_dependent(
        a, b, cpu=lambda a, b: product(a.astype(wide), b.astype(wide)), default=product
    )


def _affine(
    name: str, out: tuple[int, ...], use_bias: bool, w_init: Initializer, b_init: Initializer
) -> Block:
    """x W + b with W of shape (I, *out): a matrix for a layer, a vector for one neuron."""

    def init(key: Key, x: Any) -> Params:
        check(x)
        dtype = compute_dtype(x.dtype)  # parameters are float32 at least
        w_key, b_key = jax.random.split(key)
        # Initialisers need two axes to know fan-in and fan-out: one neuron is a column.
        w = w_init(w_key, (x.shape[-1], *(out or (1,))), dtype).reshape(x.shape[-1], *out)
        return {"w": w, "b": b_init(b_key, out, dtype)} if use_bias else {"w": w}

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        check(x)
        check_params(params, x)
        y = contract(x, params["w"].astype(x.dtype), ((x.ndim - 1,), (0,)))
        if use_bias:
            b = params["b"].astype(y.dtype)
            y = y + b.reshape((1,) * (y.ndim - b.ndim) + b.shape)
        return y.astype(x.dtype), x

    def backward(params: Params, x: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = x W + b, so dx = dy W^T, dW = x^T dy, db = dy, the last two summed over
        # the batch: (B, O) (O, I) = (B, I) and (I, B) (B, O) = (I, O).
        w = params["w"]
        batch = tuple(range(x.ndim - 1))
        if out:
            dx = contract(dy, w.astype(dy.dtype), ((dy.ndim - 1,), (1,))).astype(x.dtype)
        else:
            dx = dy[..., None] * w.astype(dy.dtype).reshape((1,) * dy.ndim + w.shape)
        dparams = {"w": contract(x, dy, (batch, batch)).astype(w.dtype)}
        if use_bias:
            wide = dy.astype(compute_dtype(dy.dtype))
            dparams["b"] = jnp.sum(wide, batch).astype(params["b"].dtype)
        return dparams, dx

    def check(x: Any) -> None:
        require_floating(name, "x", x)
        if len(x.shape) == 0 or x.shape[-1] == 0:
            raise BlockValueError(
                name, f"x has shape {x.shape}, needs a last axis of at least one feature"
            )

    def check_params(params: Params, x: jax.Array) -> None:
        require_params(name, params, ("w", "b") if use_bias else ("w",))
        w = params["w"]
        if w.shape[1:] != out or w.ndim != 1 + len(out):
            raise BlockValueError(
                name,
                f"w has shape {w.shape}, this block needs (features in, {', '.join(map(str, out))})"
                ": are these another network's parameters?",
            )
        if use_bias and params["b"].shape != out:
            raise BlockValueError(name, f"b has shape {params['b'].shape}, needs {out}")
        if w.shape[0] != x.shape[-1]:
            raise BlockValueError(
                name,
                f"x has {x.shape[-1]} features (shape {x.shape}), w needs {w.shape[0]} (shape "
                f"{w.shape}): give inputs with {w.shape[0]} features, or make parameters for "
                "these with init(key, x)",
            )

    return Block(init, forward, backward, name, Kind(name, (*out, use_bias)))
