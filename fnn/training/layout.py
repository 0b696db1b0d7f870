"""How a run lies on several devices: examples split over them, parameters whole or as given.

All programs of a run are compiled for the mesh's devices with axes that XLA partitions itself
(``AxisType.Auto``), whatever the axes of the mesh that was given: so every block runs there,
parameters may be split in any way, and a batch that does not divide is padded by XLA, which leaves
the padding out of every sum. Results come back on the mesh that was given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fnn.block import Value

AXIS = "data"  # of a mesh that is given alone: over it examples are split

Sharding = Mesh | NamedSharding
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Layout:
    """Where the arrays of one function lie.

    ``name``: of the function, for errors. ``given``: the user's mesh, ``mesh``: the same with axes
    of type Auto. ``axes``: those over which examples are split.
    """

    name: str
    given: Mesh
    axes: tuple[str, ...]

    @classmethod
    def of(cls, name: str, sharding: Sharding | None) -> Layout | None:
        """The layout that the argument ``sharding`` asks for; refused if it cannot be one."""
        if sharding is None:
            return None
        if isinstance(sharding, Mesh):
            if AXIS not in sharding.axis_names:
                names = ", ".join(map(repr, sharding.axis_names)) or "none"
                raise ValueError(
                    f"{name}: sharding is a mesh without an axis {AXIS!r} (its axes: {names}); "
                    "name one so, or give the axis of the examples: NamedSharding(mesh, "
                    "PartitionSpec(axis))"
                )
            return cls(name, sharding, (AXIS,))
        spec: tuple[Any, ...] = tuple(sharding.spec)
        if any(axis is not None for axis in spec[1:]):
            raise ValueError(
                f"{name}: sharding splits more than the examples ({sharding.spec}); needs the "
                "first axis alone: NamedSharding(mesh, PartitionSpec('data'))"
            )
        first = spec[0] if spec else None
        axes = () if first is None else first if isinstance(first, tuple) else (first,)
        return cls(name, sharding.mesh, axes)  # type: ignore[arg-type]

    @functools.cached_property
    def mesh(self) -> Mesh:
        names = self.given.axis_names
        return Mesh(self.given.devices, names, axis_types=(AxisType.Auto,) * len(names))

    @functools.cached_property
    def parts(self) -> int:
        """How many devices share a batch; copies of them along other axes are not counted."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes]))

    @functools.cached_property
    def examples(self) -> NamedSharding:
        return NamedSharding(self.mesh, P(self.axes or None))

    @functools.cached_property
    def whole(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def context(self) -> Any:
        """Within it JAX computes on this mesh, whatever mesh the caller has set."""
        return jax.set_mesh(self.mesh)

    # ---- parameters and state --------------------------------------------------------------

    def placed(self, tree: Any, what: str = "params") -> Any:
        """Parameters, states, keys: whole on every device, or split as they are on this mesh."""

        def one(path: Any, leaf: Any) -> Any:
            spec = self._spec(leaf)
            if spec is None:
                at = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"{self.name}: {what} are split over another mesh than sharding's at {at!r} "
                    f"({leaf.sharding}): put them on one mesh, with jax.device_put(params, "
                    "NamedSharding(mesh, PartitionSpec()))"
                )
            return _put(leaf, NamedSharding(self.mesh, spec))

        return jax.tree_util.tree_map_with_path(one, tree)

    def _spec(self, leaf: Any) -> P | None:
        """How a leaf is split over this mesh; None where it is split over another one."""
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and self._is_own(sharding.mesh):
            return sharding.spec
        return P() if sharding is None or sharding.is_fully_replicated else None

    def _is_own(self, mesh: Any) -> bool:
        return mesh.axis_names == self.mesh.axis_names and np.array_equal(
            mesh.devices, self.mesh.devices
        )

    @functools.cached_property
    def inside(self) -> Layout:
        """The layout of a longer computation, whose results come back at its end."""
        return replace(self, given=self.mesh)

    def back(self, tree: Any) -> Any:
        """The same arrays on the mesh that was given; nothing is moved."""

        def one(a: Any) -> Any:
            is_own = isinstance(a, jax.Array) and isinstance(a.sharding, NamedSharding)
            return _put(a, NamedSharding(self.given, a.sharding.spec)) if is_own else a

        return tree if self.given == self.mesh else jax.tree.map(one, tree)

    # ---- examples --------------------------------------------------------------------------

    def require_even(self, what: str, n: int) -> None:
        """Refuses a number of examples of which devices would get different numbers."""
        if n % self.parts:
            below, above = n // self.parts * self.parts, -(-n // self.parts) * self.parts
            would_do = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"{self.name}: {what} is {n}, which {self.parts} devices cannot share equally; "
                f"give {would_do}"
            )

    def holds(self, examples: Any) -> bool:
        """Whether examples lie split over these devices already; refused if over others."""
        found = False
        for leaf in jax.tree.leaves(examples):
            if not isinstance(leaf, jax.Array) or self._is_elsewhere(leaf):
                continue
            if not leaf.sharding.is_equivalent_to(self.examples, leaf.ndim):
                raise ValueError(
                    f"{self.name}: x or its target lies on devices as {leaf.sharding}, sharding "
                    f"asks for {self.examples}; give it as NumPy arrays, or put it there with "
                    "jax.device_put(x, sharding)"
                )
            found = True
        return found

    def _is_elsewhere(self, leaf: jax.Array) -> bool:
        """Whether an array lies on one device, and not because the mesh has no more."""
        is_own = isinstance(leaf.sharding, NamedSharding) and self._is_own(leaf.sharding.mesh)
        return len(leaf.sharding.device_set) == 1 and not is_own

    @functools.cached_property
    def is_shared(self) -> bool:
        """Whether several processes train together, in step: all that there are."""
        processes = {device.process_index for device in self.mesh.devices.flat}
        if 1 < len(processes) < jax.process_count():
            raise ValueError(
                f"{self.name}: sharding is a mesh of {len(processes)} of {jax.process_count()} "
                "processes; needs the devices of all, jax.devices(), or of one, "
                "jax.local_devices()"
            )
        return len(processes) > 1

    @functools.cached_property
    def own(self) -> list[int]:
        """Which parts of the examples are for the devices of this process."""
        where = self.examples.addressable_devices_indices_map((self.parts,))
        return sorted({_start(index) for index in where.values()})

    def shares(self, rows: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """How the rows of some batches are shared by the devices: each gets a part of every batch.

        Returns:
          The rows for the devices of this process, and where all rows then lie: with x the
          examples of all devices one after another, ``x[places]`` are the rows asked for.
        """
        dealt = self._dealt(len(rows), batch_size)
        return rows[dealt[self.own].ravel()], _places(dealt)

    def _dealt(self, n: int, batch_size: int) -> np.ndarray:
        """Which of n examples, in batches one after another, each device gets: (parts, ...).

        Where a batch does not divide, its last example comes again in the last shares;
        :meth:`batch` leaves it out.
        """

        def deal(batches: np.ndarray) -> np.ndarray:
            steps, size = batches.shape
            padded = np.pad(batches, ((0, 0), (0, -size % self.parts)), mode="edge")
            return padded.reshape(steps, self.parts, -1).swapaxes(0, 1).reshape(self.parts, -1)

        order, full = np.arange(n), n // batch_size * batch_size
        batches = order[:full].reshape(-1, batch_size), order[full:].reshape(1, -1)
        return np.concatenate([deal(few) for few in batches if few.size], 1)

    def require_own(self, order: np.ndarray, n: int, batch_size: int) -> None:
        """Refuses an order in which a device would need examples of another one."""
        if not len(order):
            return
        dealt = self._dealt(len(order), batch_size)
        device = _places(dealt) // dealt.shape[1]
        wrong = np.flatnonzero(order // (n // self.parts) != device)
        if len(wrong):
            raise ValueError(
                f"{self.name}: order has example {order[wrong[0]]} in the share of device "
                f"{device[wrong[0]]}, which holds others: x is split over {self.parts} devices, "
                "and nothing of it is sent. Give x as NumPy arrays, or an order whose batches have "
                f"in their d-th of {self.parts} parts examples of device d alone"
            )

    def split(self, own: Any) -> Any:
        """Examples of the devices of this process, as arrays that lie on all devices."""

        def one(a: Any) -> jax.Array:
            each = len(a) // len(self.own)

            def part(index: Any) -> Any:
                at = self.own.index(_start(index) // each if each else 0)
                return a[at * each : (at + 1) * each]

            shape = (self.parts * each, *a.shape[1:])
            return jax.make_array_from_callback(shape, self.examples, part)

        return jax.tree.map(one, own)

    def spread(self, examples: Any) -> Any:
        """Any number of examples, split over the devices; the last one fills up the last shares."""

        def one(a: Any) -> jax.Array:
            if isinstance(a, jax.Array) and not self._is_elsewhere(a):
                return _put(a, NamedSharding(self.mesh, a.sharding.spec))  # type: ignore[attr-defined]
            rows = self._dealt(len(a), len(a))
            return self.split(np.asarray(a)[rows[self.own].ravel()])

        return jax.tree.map(one, examples)

    def shared(self, rows: np.ndarray) -> np.ndarray:
        """Of rows that divide the part of this process's devices, else all."""
        if len(rows) % self.parts:
            return rows
        return rows.reshape(self.parts, -1)[self.own].ravel()

    def fetched(self, tree: Any) -> Any:
        """On the host; of arrays that other processes have parts of, too."""

        def one(a: Any) -> np.ndarray:
            if not getattr(a, "is_fully_addressable", True) and not a.is_fully_replicated:
                a = jax.jit(lambda a: a, out_shardings=self.whole)(a)
            return np.asarray(a)

        return jax.tree.map(one, tree)

    # ---- in compiled programs --------------------------------------------------------------

    def batch(self, examples: Value, rows: jax.Array) -> Value:
        """Some rows, of which each device finds its own part among its own examples."""
        n = rows.shape[0]
        padded = jnp.pad(rows, (0, -n % self.parts), mode="edge")

        def own(rows: jax.Array, examples: Value) -> Value:
            def one(a: jax.Array) -> jax.Array:
                begin = lax.axis_index(self.axes) * len(a) if self.axes else 0
                return a.at[rows - jnp.asarray(begin, rows.dtype)].get(mode="clip")

            return jax.tree.map(one, examples)

        spec = self.examples.spec
        picked = jax.shard_map(own, mesh=self.mesh, in_specs=(spec, spec), out_specs=spec)
        return self.first(picked(padded, examples), n)

    def first(self, examples: Value, n: int) -> Value:
        """The first n of split examples, still split; without the padding, if there is some."""
        return jax.tree.map(lambda a: lax.with_sharding_constraint(a[:n], self.examples), examples)


def sharding_of(*trees: Any) -> NamedSharding | None:
    """How the first array that lies on several devices does; None where none is."""
    for tree, is_data in zip(trees, (True, False), strict=False):
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
                if not isinstance(leaf.sharding, NamedSharding):
                    raise ValueError(
                        f"fit: an array of shape {leaf.shape} lies on several devices as "
                        f"{leaf.sharding}, needs a mesh: jax.device_put(x, NamedSharding(mesh, "
                        "PartitionSpec('data')))"
                    )
                spec = leaf.sharding.spec if is_data else P()
                return NamedSharding(leaf.sharding.mesh, spec)
    return None


def without_explicit_mesh(f: F) -> F:
    """f, computed as if no mesh of explicit axes were set: JAX refuses arrays of others there."""

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
            return f(*args, **kwargs)
        with jax.set_mesh(None):
            return f(*args, **kwargs)

    return cast(F, call)


def _put(leaf: Any, lies: NamedSharding) -> jax.Array:
    """An array where it is to lie. Devices of other processes are given it by them."""
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
    elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), lies)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    elif leaf.sharding.device_set == lies.device_set and (
        leaf.sharding.is_equivalent_to(lies, leaf.ndim)
    ):
        shards = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, lies, shards)
    if lies.is_fully_addressable:
        return jax.device_put(leaf, lies)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, lies, lambda index: host[index])


def _places(dealt: np.ndarray) -> np.ndarray:
    """Where each number lies in the rows of the devices, one after another; the first time."""
    return np.unique(dealt, return_index=True)[1].astype(np.int32)


def _start(index: Any) -> int:
    """Where a device's part begins."""
    return index[0].start or 0
