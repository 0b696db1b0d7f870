"""What blocks ask of an array: its shape and dtype, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shape:
    """A residual of an array's shape and dtype, without its bytes.

    It is a pytree without leaves, which passes through ``jit``, ``vmap`` and ``scan``.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, x: Spec) -> Shape:
        return cls(tuple(x.shape), jnp.dtype(x.dtype))


Spec = jax.Array | jax.ShapeDtypeStruct | Shape  # what has a shape and a dtype, all init reads


def is_floating(x: Any) -> bool:
    """Whether ``x`` has a gradient: it is float, not integer, boolean or a key."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def is_array(x: Any) -> bool:
    """Whether ``x`` has a shape and a dtype of NumPy's or JAX's: it may also be a
    ``jax.ShapeDtypeStruct``, but no tensor of another library, and no sparse matrix."""
    if isinstance(x, (jax.Array, jax.ShapeDtypeStruct)):
        return True
    is_like_one = isinstance(getattr(x, "dtype", None), np.dtype) and hasattr(x, "shape")
    return is_like_one and not hasattr(x, "toarray")


def is_split(x: jax.Array) -> bool:
    """Whether an array is split over an explicit mesh, which must be told what becomes of parts."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def parts_of(examples: Any) -> int:
    """Over how many devices of an explicit mesh the first axis is split."""
    shardings = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves(examples)]
    axes = [s.spec[0] for s in shardings if len(s.spec) and s.spec[0] is not None]
    names = axes[0] if axes and isinstance(axes[0], tuple) else axes[:1]
    return math.prod(shardings[0].mesh.shape[name] for name in names)


def compute_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which sums and transcendental functions of ``dtype`` are computed.

    float32 for bfloat16 and float16, which have too few digits to accumulate in.
    """
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def count_of(x: Spec, axes: Sequence[int] | None = None) -> Any:
    """The number of entries along some axes, all by default, as a float; 1 where there are none.

    A float, because int32 does not hold every count, and an array where jax.export leaves a size
    open.
    """
    count = math.prod(x.shape if axes is None else [x.shape[a] for a in axes])
    if isinstance(count, int):
        return float(max(count, 1))
    return jnp.maximum(jnp.asarray(count, compute_dtype(x.dtype)), 1)
