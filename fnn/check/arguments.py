"""What a function is called with: which of its arguments vary in a check, and how.

People's functions take modules, dictionaries, keys, None, labels, static numbers and strings.
Arrays and Python floats vary; whatever else is in the arguments stays as it is. A complex array is
two real ones: then its cotangents are real, and a forgotten conjugate is a wrong sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.check.report import CheckError
from fnn.pytrees import flat


class Complex(NamedTuple):
    """A complex array as two real ones."""

    real: Any
    imag: Any


@jax.tree_util.register_static
@dataclass(frozen=True)
class Fixed:
    """Stands where a leaf does not vary; all are equal, so that programs are compiled once."""


class Arguments(NamedTuple):
    """The arguments of a function: ``varying``, a pytree of arrays with :class:`Fixed` in place of
    whatever does not vary; and ``put``, which makes arguments of such a pytree."""

    varying: tuple[Any, ...]
    put: Callable[[Any], tuple[Any, ...]]

    def cotangents(self, dargs: Any) -> Any:
        """What a rule returns, in the structure of ``varying``: None where there is none."""
        if not isinstance(dargs, tuple) or len(dargs) != len(self.varying):
            return dargs

        def one(varies: Any, d: Any) -> Any:
            if isinstance(varies, Fixed) or d is None:
                return varies if isinstance(varies, Fixed) else None
            if isinstance(varies, Complex) and jnp.iscomplexobj(d):
                return Complex(jnp.real(d), -jnp.imag(d))  # JAX's cotangent is the conjugate
            return None if getattr(d, "dtype", None) == jax.dtypes.float0 else d

        def of_argument(varies: Any, d: Any) -> Any:
            if not jax.tree.leaves(varies):
                return varies
            try:
                return jax.tree.map(one, varies, d, is_leaf=_is_special)
            except ValueError:  # of another structure: "cotangents" says which
                return d

        return tuple(map(of_argument, self.varying, dargs))


def split(
    args: tuple[Any, ...], argnums: int | Sequence[int] | None = None, seed: int = 0
) -> Arguments:
    """The arguments, and which of them vary.

    Args:
      args: what a function is called with.
      argnums: the numbers of the arguments that vary; by default all.
      seed: random seed for constants that are to be drawn.

    Raises:
      CheckError: ``argnums`` names no argument; an array is of a kind that JAX does not take.

    >>> varying, put = split((np.ones(2), "sum", None, 1j))
    >>> jax.tree.leaves(varying)
    [array([1., 1.]), array(0.), array(1.)]
    >>> put(varying)[1:3], complex(put(varying)[3])
    (('sum', None), 1j)
    """
    argnums = (argnums,) if isinstance(argnums, int) else argnums
    if not all(-len(args) <= n < len(args) for n in argnums or ()):
        there = (
            f"from {-len(args)} to {len(args) - 1}" if args else "of arguments, and none is given"
        )
        raise CheckError(f"argnums is {argnums}, needs numbers {there}")
    chosen = range(len(args)) if argnums is None else [n % len(args) for n in argnums]
    rng = np.random.default_rng(seed)
    args = tuple(arg if n in chosen else draw(arg, rng) for n, arg in enumerate(args))
    leaves, tree = flat(args)
    owners = [n for n, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    varying = [
        _varying(leaf) if owner in chosen else Fixed()
        for leaf, owner in zip(leaves, owners, strict=True)
    ]

    def put(some: Any) -> tuple[Any, ...]:
        pairs = zip(leaves, jax.tree.leaves(some, is_leaf=_is_special), strict=True)
        return tuple(tree.unflatten([v if isinstance(g, Fixed) else joined(g) for v, g in pairs]))

    return Arguments(tuple(tree.unflatten(varying)), put)


def _is_special(leaf: Any) -> bool:
    return isinstance(leaf, (Fixed, Complex))


def _varying(leaf: Any) -> Any:
    """What varies of a leaf: an array, two of a complex one, or nothing."""
    if isinstance(leaf, np.ma.MaskedArray):
        raise CheckError("got a masked array, whose mask would be lost: give x.filled(...)")
    if isinstance(leaf, (float, complex)) or hasattr(leaf, "__jax_array__"):
        leaf = jnp.asarray(leaf) if hasattr(leaf, "__jax_array__") else np.asarray(leaf)
    if not isinstance(leaf, (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)):
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
            raise CheckError(f"got a {kind}: give a NumPy or JAX array, numpy.asarray(...)")
        return Fixed()
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSUMm":
        raise CheckError(f"got an array of dtype {leaf.dtype}, needs numbers")
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            part = jax.ShapeDtypeStruct(leaf.shape, np.float64)
            return Complex(part, part)
        return Complex(np.real(np.asarray(leaf)), np.imag(np.asarray(leaf)))
    return leaf


def joined(leaf: Any) -> Any:
    """A complex array of its two parts; any other leaf as it is."""
    return jax.lax.complex(*map(jnp.asarray, leaf)) if isinstance(leaf, Complex) else leaf


def real(tree: Any) -> Any:
    """A pytree with two real arrays in place of each complex one."""

    def one(leaf: Any) -> Any:
        if not jnp.issubdtype(getattr(leaf, "dtype", np.float32), jnp.complexfloating):
            return leaf
        return Complex(jnp.real(leaf), jnp.imag(leaf))

    return jax.tree.map(one, tree)


def upstream(dy: Any) -> Any:
    """The cotangent of outputs as JAX has it: of a complex one the conjugate."""

    def one(leaf: Any) -> Any:
        return jax.lax.complex(leaf.real, -leaf.imag) if isinstance(leaf, Complex) else leaf

    return jax.tree.map(one, dy, is_leaf=lambda v: isinstance(v, Complex))


def floating(tree: Any) -> Any:
    """Outputs with None in place of what is not floating, and of Python's numbers arrays."""

    def one(leaf: Any) -> Any:
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        return leaf if is_floating(leaf) else None

    return jax.tree.map(one, tree)


def draw(spec: Any, rng: np.random.Generator) -> Any:
    """A pytree with numbers in place of every ``jax.ShapeDtypeStruct``; arrays stay.

    Floats are standard normal, integers 0 or 1, booleans both.
    """

    def one(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return rng.standard_normal(leaf.shape)
        return rng.integers(0, 2, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(one, spec)
