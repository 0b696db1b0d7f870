"""Examples in arrays: refused if they are bad, and handed to compiled calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.block import Block, BlockValueError, Value
from fnn.refusals import described, misfit
from fnn.training.layout import Layout
from fnn.training.tables import (
    Columns,
    columns_of,
    require_columns,
    require_one_order,
    table_as_array,
)

Examples = tuple[Value, Value]  # x and target, with a first axis of examples
Check = Callable[[Value], None]  # raises BlockValueError for a part of examples it refuses


@dataclass(frozen=True)
class Arrays:
    """Examples in arrays, of which each compiled call picks its rows."""

    x: Value
    target: Value
    given: Any = None  # x and target as they came, where they are split over several devices
    is_split: bool = False  # they are: each device draws from its own examples
    steps_per_call: int | None = None  # the whole epoch

    def __len__(self) -> int:
        return int(jax.tree.leaves(self.x)[0].shape[0])

    @property
    def like(self) -> Examples:
        return like((self.x, self.target))

    def check(self, what: str, part: int, check: Check) -> None:
        """Refuses x (part 0) or targets (part 1) that ``check`` refuses."""
        with named(what):
            check((self.x, self.target)[part])

    def sample(self, seed: list[int]) -> Examples:
        """Examples to summarise: all of them."""
        return self.x, self.target

    def on_device(self, layout: Layout | None = None, batch_size: int = 1) -> Arrays:
        """On the device, or split over several as they came; else on the host, for ``layout``."""
        if layout is None:
            return Arrays(*jax.device_put((self.x, self.target)))
        if not layout.holds(self.given):
            return self

        def one(on_host: np.ndarray, a: Any) -> Any:
            return a.astype(on_host.dtype) if isinstance(a, jax.Array) else on_host

        data = jax.tree.map(one, (self.x, self.target), self.given)
        x, target = layout.spread(data)
        return Arrays(x, target, is_split=bool(layout.axes))

    def read(self, rows: np.ndarray) -> Examples:
        return pick((self.x, self.target), rows)

    def start(self, epoch: int) -> None:
        """Arrays are the same in every epoch."""

    def calls(self, parts: Iterable[np.ndarray]) -> Iterator[tuple[Value, Value, np.ndarray]]:
        """For each part of an epoch's order: arrays, and which of their rows to use."""
        for rows in parts:
            yield self.x, self.target, rows

    def blocks(self, size: int) -> Iterator[Examples]:
        """All examples at once."""
        yield self.x, self.target


def checked_inputs(name: str, x: Value, dtype: Any, columns: Columns) -> Value:
    """Inputs to predict from, as JAX computes with them; arrays on a device stay there.

    ``columns``: those that tables need to have.
    """
    require_columns(name, x, columns)

    def one(a: Any) -> Any:
        if not isinstance(a, jax.Array):
            a = host_array(name, a)
            a = cast(name, a, jax.dtypes.canonicalize_dtype(a.dtype))
        return a.astype(dtype) if dtype is not None and is_floating(a) else a

    return jax.tree.map(one, x, is_leaf=lambda a: isinstance(a, list))


def checked_arrays(what: str, x: Value, target: Value, dtype: Any) -> tuple[Value, Value]:
    """Examples as arrays on the host, refused if empty, of different lengths, or not finite.

    ``what``: of the function and its argument x, for errors, such as "fit: validation x".
    """
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"{what.split(':')[0]}: dtype is {jnp.dtype(dtype)}, which JAX has switched off; "
            "switch it on first: jax.config.update('jax_enable_x64', True)"
        )
    of_target = f"{what.removesuffix('x')}target"
    require_one_order(what, x, target=target)
    columns = columns_of(x)
    x, target = _arrays(what, x), _arrays(of_target, target)
    if not jax.tree.leaves(x) or not jax.tree.leaves(target):
        raise ValueError(f"{what} or its target holds no array; give at least one of each")
    shapes = [a.shape for a in jax.tree.leaves((x, target))]
    if () in shapes:
        raise ValueError(
            f"{what} and its target need a first axis of examples, got shapes {shapes}"
        )
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"{what} and its target need one entry per example each, got shapes {shapes}"
        )
    if shapes[0][0] == 0 or 0 in {a.size for a in jax.tree.leaves(x)}:
        raise ValueError(
            f"{what} is empty (shape {shapes[0]}), needs at least one example with at least one "
            "feature"
        )

    # float64 is what NumPy makes by default; like all of JAX, without x64 it means float32.
    def canonical(name: str, a: np.ndarray, dtype: Any = None) -> np.ndarray:
        wanted = dtype if dtype is not None and is_floating(a) else a.dtype
        return cast(name, a, jax.dtypes.canonicalize_dtype(wanted))

    x = jax.tree.map(lambda a: canonical(what, a, dtype), x)
    for a, names in zip(jax.tree.leaves(x), columns, strict=True):
        check_finite(what, a, columns=names)  # an overflow, too
    return x, jax.tree.map(lambda a: canonical(of_target, a), target)


def _arrays(what: str, value: Value) -> Value:
    def array(a: Any) -> np.ndarray:
        if isinstance(a, Block):
            raise TypeError(f"{what} is {described(a)}, needs arrays of examples")
        if isinstance(a, list) or not hasattr(a, "shape"):
            raise TypeError(
                f"{what} holds a {type(a).__name__}, needs arrays: numpy.asarray(...) makes "
                "one of a list"
            )
        return host_array(what, a)

    return jax.tree.map(array, value, is_leaf=lambda a: a is None or isinstance(a, (list, Block)))


NAMES = "turn names of classes into labels 0, 1, ... with numpy.unique(a, return_inverse=True)[1]"
# How to make real numbers of an array, by the kind of its dtype.
REMEDIES = {
    "O": "drop missing values and convert the rest: .astype(float), .astype(int) for labels; "
    f"{NAMES}",
    "U": NAMES,
    "M": "subtract a date and divide by numpy.timedelta64(1, 'D')",
    "m": "divide by numpy.timedelta64(1, 's')",
    "c": "give its real and imaginary parts as two features",
    "V": "numpy.lib.recfunctions.structured_to_unstructured(a) makes columns of its fields",
    "f": "a.astype(numpy.float64)",
}


def host_array(name: str, a: Any) -> np.ndarray:
    """Real numbers as a NumPy array; refused where the conversion would lose or invent some.

    ``name``: of the function and its argument, for errors.
    """
    if any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(a)):
        function = name.split(":")[0]
        raise TypeError(
            f"{name} is traced by jit, vmap or grad, needs numbers: call {function} outside of it"
        )
    if any(np.ma.is_masked(part) for part in jax.tree.leaves(a)):
        raise ValueError(
            f"{name} is a masked array, and what is under the mask would be taken for data; drop "
            "these examples, or replace what is masked: a.filled(value)"
        )
    try:
        array = np.asarray(a)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of several lengths; PyTorch's
        raise TypeError(f"{name} does not become one array, needs numbers: {error}") from error
    if array.dtype.kind == "O" and (table := table_as_array(name, a)) is not None:
        array = table
    dtype, kind = array.dtype, array.dtype.kind
    narrow = kind == "V" and jnp.issubdtype(dtype, jnp.number)  # bfloat16, int4
    if not (narrow or (kind in "biuf" and dtype.itemsize <= 8)):
        sparse = ".toarray() makes an array of a sparse matrix"
        remedy = sparse if hasattr(a, "toarray") else REMEDIES["U" if kind in "ST" else kind]
        raise TypeError(f"{name} has dtype {dtype}, needs real numbers: {remedy}")
    return array.astype(dtype.newbyteorder("="), copy=False)  # a file's may be another


def cast(name: str, a: np.ndarray, dtype: Any) -> np.ndarray:
    """In another dtype of its kind; refuses integers that would wrap. Floats may overflow."""
    if words := misfit(a, dtype):
        raise ValueError(f"{name} {words}")
    with np.errstate(over="ignore"):
        return a.astype(dtype, copy=False)


def check_finite(
    what: str, a: np.ndarray, rows: np.ndarray | None = None, columns: list[Any] | None = None
) -> None:
    """Refuses NaN and infinity; ``rows`` are the numbers of the examples, 0, 1, ... by default,
    ``columns`` the names of the features."""
    with np.errstate(all="ignore"):
        suspicious = is_floating(a) and not np.isfinite(a.sum())  # one fast pass
    bad = np.argwhere(~np.isfinite(a)) if suspicious else np.zeros((0, 1))
    if len(bad):
        first = int(bad[0][0])
        where = f"the first in example {first if rows is None else rows[first]}"
        if columns is not None:
            where += f", in columns {[columns[i] for i in np.unique(bad[:, -1])][:6]}"
        raise ValueError(
            f"{what} has {len(bad)} values that are NaN or infinite in {a.dtype}, {where}; repair "
            "or drop these examples"
        )


def like(examples: Any) -> Any:
    """One example, as ``jax.ShapeDtypeStruct``."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), examples)


def pick(examples: Any, rows: Any) -> Any:
    """Some rows of every array."""
    return jax.tree.map(lambda a: a[rows], examples)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Says in an error of a block which data it is about."""
    try:
        yield
    except BlockValueError as error:
        error.message = f"{what}: {error.message}"
        raise
