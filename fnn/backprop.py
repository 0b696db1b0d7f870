"""Backpropagation for users: a gradient function, and an adapter for ``jax.grad``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.arguments import checked
from fnn.arrays import is_floating
from fnn.block import Block, BlockTypeError, BlockValueError, Key, Params, Residuals, Value
from fnn.executor import graph
from fnn.pytrees import in_form_of, with_zeros
from fnn.refusals import require_key, require_real

# What the losses' makers are called, to tell a loss from a network.
LOSSES = (
    "squared_error",
    "binary_cross_entropy",
    "softmax_cross_entropy",
    "cross_entropy",
    "linear_softmax_cross_entropy",
)


@checked
def with_loss(net: Block, loss: Block, weighted: bool = False) -> Block:
    """The network and its loss as one block: E = loss(net(x), target).

    Args:
      net: a network.
      loss: a loss, such as ``squared_error()``.
      weighted: whether the input has weights of the examples.

    Returns:
      A graph of ``(x, target)``, or of ``(x, target, weights)``, with parameters
      ``{"net": params}`` and a scalar output.

    Raises:
      BlockTypeError: the network or the loss is not a block.

    >>> import fnn, jax.numpy as jnp
    >>> E = fnn.with_loss(fnn.square(), fnn.squared_error())
    >>> float(E.forward({"net": {}}, (jnp.array([2.0]), jnp.array([1.0])))[0])
    4.5
    """
    require_network_first("with_loss", net, loss)
    data = ("target", "weights") if weighted else ("target",)
    return graph(
        ("x", *data), [("net", net, "x"), ("loss", loss, ("net", *data))], "loss", name="with_loss"
    )


def require_network_first(name: str, net: Block, loss: Block) -> None:
    """Refuses a loss and a network that were swapped. (A block of one's own may follow a loss.)"""
    if net.kind.maker in LOSSES and loss.graph is not None:
        words = f"the network is {net.name}, a loss: give the network first, then its loss"
        raise BlockTypeError(name, words)


def backpropagate(net: Block, loss: Block) -> Callable[..., tuple[jax.Array, Params, Residuals]]:
    """Like :func:`value_and_grad`, but with None for gradients that are not computed, and with the
    network's residuals as a third result.

    ``scale``: what the cotangents are multiplied by on the way, so that those of 16 bits do not
    vanish; a power of two.
    """
    plain, weighted = with_loss(net, loss), with_loss(net, loss, weighted=True)

    def f(
        params: Params, x: Value, target: Value, key: Key = None, weights: jax.Array | None = None,
        scale: jax.Array | None = None,
    ) -> tuple[jax.Array, Params, Residuals]:  # fmt: skip
        block = plain if weights is None else weighted
        inputs = (x, target) if weights is None else (x, target, weights)
        value, residuals = block.forward({"net": params}, inputs, key)
        dy = jnp.ones_like(value) if scale is None else scale.astype(value.dtype)
        grads, _ = block.backward({"net": params}, residuals, dy)
        gradients = in_form_of(params, grads["net"])
        if scale is not None:
            gradients = jax.tree.map(lambda d: d / scale.astype(d.dtype), gradients)
        _require_fitting(gradients, params)
        return value, gradients, residuals["net"]

    return f


def _require_fitting(grads: Params, params: Params) -> None:
    """Refuses gradients of another shape than the parameter's, and those of what has none: blocks
    of your own may return anything, and have parameters of any dtype."""

    def check(path: Any, d: Any, p: Any) -> None:
        if d is None:
            return
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if jnp.shape(d) != jnp.shape(p):
            raise BlockValueError(
                "value_and_grad",
                f"backward returned a gradient of shape {jnp.shape(d)} for params of shape "
                f"{jnp.shape(p)} at {name!r}, needs that shape: sum over the examples",
            )
        if not is_floating(jnp.asarray(p)):
            raise BlockTypeError(
                "value_and_grad",
                f"params hold {jnp.asarray(p).dtype} at {name!r}, which has no gradient: cast it "
                "with .astype(jax.numpy.float32), or let backward return None for it",
            )

    jax.tree_util.tree_map_with_path(check, grads, params, is_leaf=lambda d: d is None)


@checked
def value_and_grad(net: Block, loss: Block) -> Callable[..., tuple[jax.Array, Params]]:
    """The loss and its gradients by the hand-written backward pass.

    Args:
      net: a network.
      loss: a loss, such as ``squared_error()``.

    Returns:
      ``f(params, x, target, key=None, weights=None) -> (value, grads)``, like what
      ``jax.value_and_grad`` returns: ``grads`` has the structure, shapes and dtypes of ``params``
      (zeros for frozen ones). A plain traceable function: jit, vmap, scan it, or take its
      ``jax.jvp`` for a Hessian-vector product.

    Raises:
      BlockTypeError: the network or the loss is not a block.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.linear(1, use_bias=False)
    >>> f = jax.jit(fnn.value_and_grad(net, fnn.squared_error()))
    >>> value, grads = f({"w": jnp.array([[2.0]])}, jnp.array([[3.0]]), jnp.array([[5.0]]))
    >>> float(value), grads  # E = (2*3 - 5)^2 / 2, dE/dw = (2*3 - 5) * 3
    (0.5, {'w': Array([[3.]], dtype=float32)})
    """
    run = backpropagate(net, loss)

    def f(
        params: Params, x: Value, target: Value, key: Key = None, weights: jax.Array | None = None
    ) -> tuple[jax.Array, Params]:
        value, grads, _ = run(params, x, target, key, weights)
        return value, with_zeros(grads, params)

    return f


@checked
def as_function(block: Block) -> Callable[..., Value]:
    """The block as a plain function on which ``jax.grad`` uses the hand-written backward.

    Args:
      block: any block.

    Returns:
      ``f(params, x, key=None) -> y``, for Flax, Equinox or plain JAX code. Like every
      ``jax.custom_vjp`` it has reverse mode only; for forward mode or a Hessian-vector product use
      the block's own functions.

    >>> import fnn, jax
    >>> f = fnn.as_function(fnn.square())
    >>> float(jax.grad(f, argnums=1)({}, 3.0))
    6.0
    """

    @jax.custom_vjp
    def f(params: Params, x: Value, key: Key) -> Value:
        return block.forward(params, x, key)[0]

    def forward(params: Params, x: Value, key: Key) -> tuple[Value, Residuals]:
        y, residuals = block.forward(params, x, key)
        return y, (params, residuals, jax.tree.map(lambda _: (), x))  # of x its containers alone

    def backward(saved: tuple[Params, Residuals, Value], dy: Value) -> tuple[Params, Value, None]:
        params, residuals, x = saved
        dy = jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, dy)
        dparams, dx = block.backward(params, residuals, dy)
        return in_form_of(params, dparams), in_form_of(x, dx), None  # None: JAX's zero cotangent

    f.defvjp(forward, backward)

    def apply(params: Params, x: Value, key: Key = None) -> Value:
        for what, tree in (("params", params), ("x", x)):
            for leaf in jax.tree.leaves(tree):
                require_real(block.name, f"a leaf of {what}", leaf)
        if key is not None:
            require_key(block.name, key)
        return f(params, x, key)

    return apply
