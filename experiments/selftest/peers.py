"""The functions that a sweep is about: fnn's block of each name, and JAX's and PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from experiments.selftest.references import SLOPE
from fnn.block import Block

Outcome = tuple[Any, Any]  # value and derivative

BLOCKS: dict[str, Block] = {
    "identity": fnn.identity(),
    "step": fnn.step(),
    "logistic": fnn.logistic(),
    "tanh": fnn.tanh(),
    "relu": fnn.relu(),
    "leaky_relu": fnn.leaky_relu(SLOPE),
    "hard_tanh": fnn.hard_tanh(),
    "hard_sigmoid": fnn.hard_sigmoid(),
    "absolute": fnn.absolute(),
    "elu": fnn.elu(),
    "elu(0.3)": fnn.elu(0.3),
    "selu": fnn.selu(),
    "celu(1.7)": fnn.celu(1.7),
    "softplus": fnn.softplus(),
    "softsign": fnn.softsign(),
    "silu": fnn.silu(),
    "mish": fnn.mish(),
    "gelu": fnn.gelu(),
    "gelu_tanh": fnn.gelu(approximate=True),
    "negate": fnn.negate(),
    "exp": fnn.exp(),
    "log": fnn.log(),
    "square": fnn.square(),
    "sqrt": fnn.sqrt(),
    "power(2)": fnn.power(2),
    "power(3)": fnn.power(3),
    "power(-1)": fnn.power(-1),
    "power(0.5)": fnn.power(0.5),
}

JAX: dict[str, Callable[[jax.Array], jax.Array]] = {
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, SLOPE),
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "absolute": jnp.abs,
    "elu": jax.nn.elu,
    "elu(0.3)": lambda x: jax.nn.elu(x, 0.3),
    "selu": jax.nn.selu,
    "celu(1.7)": lambda x: jax.nn.celu(x, 1.7),
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "negate": jnp.negative,
    "exp": jnp.exp,
    "log": jnp.log,
    "square": jnp.square,
    "sqrt": jnp.sqrt,
    "power(2)": lambda x: x**2,
    "power(3)": lambda x: x**3,
    "power(-1)": lambda x: x**-1,
    "power(0.5)": lambda x: x**0.5,
}


def of_block(block: Block) -> Callable[[jax.Array], Outcome]:
    """Value and derivative by a block's own forward and backward."""

    def both(x: jax.Array) -> Outcome:
        y, residuals = block.forward({}, x)
        return y, block.backward({}, residuals, jnp.ones_like(y))[1]

    return both


def of_jax(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], Outcome]:
    """Value and derivative by ``jax.vjp``, which ``jax.grad`` of the sum is."""

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
    f = torch.nn.functional
    functions: dict[str, Callable[[Any], Any]] = {
        "logistic": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": f.relu,
        "leaky_relu": lambda x: f.leaky_relu(x, SLOPE),
        "hard_tanh": f.hardtanh,
        "hard_sigmoid": f.hardsigmoid,
        "absolute": torch.abs,
        "elu": f.elu,
        "elu(0.3)": lambda x: f.elu(x, 0.3),
        "selu": f.selu,
        "celu(1.7)": lambda x: f.celu(x, 1.7),
        "softplus": f.softplus,
        "softsign": f.softsign,
        "silu": f.silu,
        "mish": f.mish,
        "gelu": f.gelu,
        "gelu_tanh": lambda x: f.gelu(x, approximate="tanh"),
        "negate": torch.neg,
        "exp": torch.exp,
        "log": torch.log,
        "square": torch.square,
        "sqrt": torch.sqrt,
        "power(2)": lambda x: x**2,
        "power(3)": lambda x: x**3,
        "power(-1)": lambda x: x**-1,
        "power(0.5)": lambda x: x**0.5,
    }
    if name not in functions:
        return None

    def both(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Bits go over and back: PyTorch does not know NumPy's bfloat16.
        bits = torch.from_numpy(x.view(np.int16 if x.itemsize == 2 else np.int32))
        leaf = bits.view(getattr(torch, x.dtype.name)).requires_grad_()
        y = functions[name](leaf)
        (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        value, slope = (v.detach().view(bits.dtype).numpy().view(x.dtype) for v in (y, dx))
        return value, slope

    return both
