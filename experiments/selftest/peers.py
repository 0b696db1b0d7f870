"""The functions that sweeps evaluate: fnn's block of each name, and JAX's and PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from experiments.selftest.references import SLOPE
from fnn.block import Block

Outcome = tuple[Any, Any]  # value and derivative

Function = Callable[[Any], Any]


class Peer(NamedTuple):
    """fnn's block, and the counterparts in JAX and PyTorch, None where there is none.

    ``torch``: a name in torch or torch.nn.functional, or a function of the latter and x.
    """

    block: Block
    jax: Function | None = None
    torch: str | Callable[[Any, Any], Any] | None = None


# fmt: off
FUNCTIONS: dict[str, Peer] = {
    "identity": Peer(fnn.identity()),
    "step": Peer(fnn.step()),
    "logistic": Peer(fnn.logistic(), jax.nn.sigmoid, "sigmoid"),
    "tanh": Peer(fnn.tanh(), jnp.tanh, "tanh"),
    "relu": Peer(fnn.relu(), jax.nn.relu, "relu"),
    "leaky_relu": Peer(fnn.leaky_relu(SLOPE), lambda x: jax.nn.leaky_relu(x, SLOPE),
                       lambda f, x: f.leaky_relu(x, SLOPE)),
    "hard_tanh": Peer(fnn.hard_tanh(), jax.nn.hard_tanh, "hardtanh"),
    "hard_sigmoid": Peer(fnn.hard_sigmoid(), jax.nn.hard_sigmoid, "hardsigmoid"),
    "absolute": Peer(fnn.absolute(), jnp.abs, "abs"),
    "elu": Peer(fnn.elu(), jax.nn.elu, "elu"),
    "elu(0.3)": Peer(fnn.elu(0.3), lambda x: jax.nn.elu(x, 0.3), lambda f, x: f.elu(x, 0.3)),
    "selu": Peer(fnn.selu(), jax.nn.selu, "selu"),
    "celu(1.7)": Peer(fnn.celu(1.7), lambda x: jax.nn.celu(x, 1.7), lambda f, x: f.celu(x, 1.7)),
    "softplus": Peer(fnn.softplus(), jax.nn.softplus, "softplus"),
    "softsign": Peer(fnn.softsign(), jax.nn.soft_sign, "softsign"),
    "silu": Peer(fnn.silu(), jax.nn.silu, "silu"),
    "mish": Peer(fnn.mish(), jax.nn.mish, "mish"),
    "gelu": Peer(fnn.gelu(), lambda x: jax.nn.gelu(x, approximate=False), "gelu"),
    "gelu_tanh": Peer(fnn.gelu(approximate=True), jax.nn.gelu,
                      lambda f, x: f.gelu(x, approximate="tanh")),
    "negate": Peer(fnn.negate(), jnp.negative, "neg"),
    "exp": Peer(fnn.exp(), jnp.exp, "exp"),
    "log": Peer(fnn.log(), jnp.log, "log"),
    "square": Peer(fnn.square(), jnp.square, "square"),
    "sqrt": Peer(fnn.sqrt(), jnp.sqrt, "sqrt"),
    "power(2)": Peer(fnn.power(2), lambda x: x**2, lambda f, x: x**2),
    "power(3)": Peer(fnn.power(3), lambda x: x**3, lambda f, x: x**3),
    "power(-1)": Peer(fnn.power(-1), lambda x: x**-1, lambda f, x: x**-1),
    "power(0.5)": Peer(fnn.power(0.5), lambda x: x**0.5, lambda f, x: x**0.5),
}
# fmt: on
BLOCKS = {name: peer.block for name, peer in FUNCTIONS.items()}
JAX = {name: peer.jax for name, peer in FUNCTIONS.items() if peer.jax is not None}


def of_block(block: Block) -> Callable[[jax.Array], Outcome]:
    """Value and derivative by a block's own forward and backward."""

    def both(x: jax.Array) -> Outcome:
        y, residuals = block.forward({}, x)
        return y, block.backward({}, residuals, jnp.ones_like(y))[1]

    return both


def of_jax(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], Outcome]:
    """Value and derivative by ``jax.vjp``, as ``jax.grad`` of the sum takes it."""

    def both(x: jax.Array) -> Outcome:
        y, pull = jax.vjp(function, x)
        return y, pull(jnp.ones_like(y))[0]

    return both


def of_torch(name: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """PyTorch's value and derivative, from and to NumPy arrays of float32 or narrower.

    None if PyTorch is not installed, or has no such function.
    """
    try:
        import torch
    except ModuleNotFoundError:
        return None
    function = FUNCTIONS[name].torch
    if function is None:
        return None
    modules = torch, torch.nn.functional

    def value(x: Any) -> Any:
        if callable(function):
            return function(torch.nn.functional, x)
        return next(getattr(m, function) for m in modules if hasattr(m, function))(x)

    def both(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # As bits, because PyTorch does not take NumPy's bfloat16.
        bits = torch.from_numpy(x.view(np.int16 if x.itemsize == 2 else np.int32))
        leaf = bits.view(getattr(torch, x.dtype.name)).requires_grad_()
        y = value(leaf)
        (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        numbers, slope = (v.detach().view(bits.dtype).numpy().view(x.dtype) for v in (y, dx))
        return numbers, slope

    return both
