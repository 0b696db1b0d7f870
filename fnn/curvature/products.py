"""Products of a Hessian, and of a Gauss-Newton matrix, with a vector: neither is ever formed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import checked
from fnn.backprop import backpropagate
from fnn.block import Block, Key, Params, Value
from fnn.curvature.vectors import as_tangent, held_fixed
from fnn.executor import FORWARD
from fnn.pytrees import in_form_of, with_zeros
from fnn.refusals import require_key

Gradient = Callable[[Params], Params]  # params -> grads
Product = Callable[[Params, Params], Params]  # (params, v) -> A v


@checked
def gradient_of(
    net: Block,
    loss: Block,
    x: Value,
    target: Value,
    key: Key = None,
    weights: Value = None,
) -> Gradient:
    """The gradient of the loss on these data, as a function of the parameters alone.

    Args:
      net: a network.
      loss: a loss, such as ``squared_error()``.
      x: the network's input.
      target: what its output is compared with.
      key: randomness, for networks that use it; the same at every call.
      weights: one number per example.

    Returns:
      ``gradient(params) -> grads`` by the hand-written backward pass; like
      :func:`fnn.value_and_grad`, but with None where there is no gradient (frozen parameters,
      running statistics), so that others know that these are held fixed.

    Raises:
      BlockTypeError: the network or the loss is not a block.

    >>> import fnn, jax.numpy as jnp
    >>> gradient = gradient_of(fnn.linear(1, use_bias=False), fnn.squared_error(),
    ...                        jnp.array([[3.0]]), jnp.array([[5.0]]))
    >>> gradient({"w": jnp.array([[2.0]])})  # dE/dw = (2*3 - 5) * 3
    {'w': Array([[3.]], dtype=float32)}
    """
    run = backpropagate(net, loss)
    return lambda params: run(params, x, target, key, weights)[1]


@checked
def hvp(gradient: Gradient) -> Product:
    """The product of the Hessian with a vector: H v = d/dr gradient(params + r v) at r = 0.

    One ``jax.jvp`` through the gradient, forward over reverse (Pearlmutter, "Fast exact
    multiplication by the Hessian", 1994), at the cost of about two gradients. The other order,
    ``jax.vjp`` of the gradient, gives the same numbers and moves more bytes.

    Args:
      gradient: ``params -> grads``: :func:`gradient_of` a network, or ``jax.grad(f)``.

    Returns:
      ``product(params, v) -> H v``. v has the structure and shapes of ``params``, and so has the
      result. A traceable function: jit it, vmap it over v.

    Raises:
      BlockTypeError, BlockValueError: no function; v of another structure or shape.

    Example: E = w1^2 w2 has the Hessian [[2 w2, 2 w1], [2 w1, 0]].

    >>> import jax, jax.numpy as jnp
    >>> product = jax.jit(hvp(jax.grad(lambda w: w[0] ** 2 * w[1])))
    >>> product(jnp.array([3.0, 5.0]), jnp.array([1.0, 0.0]))
    Array([10.,  6.], dtype=float32)
    """

    def product(params: Params, v: Params) -> Params:
        v = held_fixed("hvp", as_tangent("hvp", "v", v, params), gradient, params)
        _, curved = jax.jvp(gradient, (params,), (v,))
        return with_zeros(curved, params)

    return product


@checked
def ggn_vp(
    net: Block,
    loss: Block,
    x: Value,
    target: Value,
    key: Key = None,
    weights: Value = None,
) -> Product:
    """The product of the generalised Gauss-Newton matrix with a vector: G v = J^T H_E J v.

    J = dy/dparams of the network, H_E the Hessian of the loss by its output y. From right to left
    (Schraudolph, "Fast curvature matrix-vector products", 2002): ``jax.jvp`` of forward, of the
    loss's backward, and then the network's backward. G is the Hessian without the curvature of the
    network itself, sum_k dE/dy_k d^2 y_k/dparams^2; positive semi-definite where the loss is convex
    in y; for softmax cross-entropy also the Fisher information matrix.

    Args:
      net, loss, x, target, key, weights: as for :func:`gradient_of`.

    Returns:
      ``product(params, v) -> G v``, as of :func:`hvp`.

    Raises:
      BlockTypeError, BlockValueError: no block; v of another structure or shape.

    Example: for y = w^2 x and E = (y - t)^2 / 2, G = (2 w x)^2, where the Hessian also has
    (y - t) 2 x.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.graph("x", [("w", fnn.linear(1, use_bias=False), "x"),
    ...                       ("again", fnn.linear(1, use_bias=False), "w", "w")], "again")
    >>> x, t, params = jnp.array([[1.0]]), jnp.array([[1.0]]), {"w": {"w": jnp.array([[3.0]])}}
    >>> v = {"w": {"w": jnp.array([[1.0]])}}
    >>> float(ggn_vp(net, fnn.squared_error(), x, t)(params, v)["w"]["w"][0, 0])
    36.0
    >>> gradient = gradient_of(net, fnn.squared_error(), x, t)
    >>> float(hvp(gradient)(params, v)["w"]["w"][0, 0])  # 36 + (9 - 1) 2
    52.0
    """
    gradient = gradient_of(net, loss, x, target, key, weights)
    data = (target,) if weights is None else (target, weights)
    keys: list[Key] = [None, None]
    if key is not None:  # as the executor gives them to the nodes of with_loss
        require_key("ggn_vp", key)
        keys = [jax.random.fold_in(key, np.uint32(FORWARD + i)) for i in range(2)]

    def loss_gradient(y: Value) -> Value:
        value, residuals = loss.forward({}, (y, *data), keys[1])
        (dy, *_) = loss.backward({}, residuals, jnp.ones_like(value))[1]
        return dy

    def product(params: Params, v: Params) -> Params:
        v = held_fixed("ggn_vp", as_tangent("ggn_vp", "v", v, params), gradient, params)
        y, along, residuals = jax.jvp(
            lambda params: net.forward(params, x, keys[0]), (params,), (v,), has_aux=True
        )  # along = J v
        _, bent = jax.jvp(loss_gradient, (y,), (along,))  # H_E J v
        dparams, _ = net.backward(params, residuals, bent)  # J^T H_E J v
        return with_zeros(in_form_of(params, dparams), params)

    return product
