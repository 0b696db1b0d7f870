"""Hidden units have no order: which permutations leave a network's function as it is.

The groups of axes that are permuted together are read off the network's graph: the outputs of a
linear layer or a convolution are a new group, which the blocks after it keep, mix, join or end.
Matching the units of two networks is one assignment problem for each group, solved in turn until
nothing changes (Ainsworth et al., "Git Re-Basin", 2023, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import Block, unwrapped

# Blocks that treat every feature alike, so that permuting before or after them is the same.
ALIKE = {
    "identity", "step", "logistic", "tanh", "relu", "hard_tanh", "hard_sigmoid", "absolute",
    "softplus", "softsign", "silu", "mish", "gelu", "elu", "celu", "selu", "leaky_relu", "negate",
    "exp", "log", "square", "sqrt", "power", "scale", "dropout", "max_pool", "avg_pool",
    "global_avg_pool", "straight_through",
}  # fmt: skip
JOINS = {"add", "subtract", "multiply", "divide", "maximum", "minimum"}  # of equal features
NORMS = {"batch_norm", "layer_norm"}

Path = tuple[str, ...]


class Axis(NamedTuple):
    """An axis of a parameter: of size ``tiles`` times the group's, the group's varying fastest."""

    path: Path
    axis: int
    tiles: int = 1


class Features(NamedTuple):
    """The features of a value: the group whose order they have, ``tiles`` times over."""

    group: int
    tiles: int = 1


FIXED = Features(0)  # group 0: what must not be permuted


class _Groups:
    """Axes by group; groups that turn out to be one are joined."""

    def __init__(self) -> None:
        self.parent = [0]
        self.axes: list[list[Axis]] = [[]]

    def new(self) -> Features:
        self.parent.append(len(self.parent))
        self.axes.append([])
        return Features(len(self.parent) - 1)

    def root(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def put(self, features: Features, path: Path, axis: int) -> None:
        self.axes[features.group].append(Axis(path, axis, features.tiles))

    def join(self, *features: Features) -> Features:
        """One group for all; the fixed one if the features are laid out differently."""
        alike = len({f.tiles for f in features}) == 1
        roots = {self.root(f.group) for f in features} | (set() if alike else {0})
        first = min(roots)
        for root in roots:
            self.parent[root] = first
        return Features(first, features[0].tiles)

    def fix(self, *features: Features) -> Features:
        return self.join(FIXED, *(f._replace(tiles=1) for f in features))


def permutable(net: Block, params: Any, x: Any) -> list[list[Axis]]:
    """The groups of axes of ``params`` that can be permuted together.

    Args:
      net: a network of public blocks; around a block of another kind all stays as it is.
      params: its parameters.
      x: its input, an array or ``jax.ShapeDtypeStruct``.

    Returns:
      For each group its axes. The same permutation of all of them leaves the network's function
      as it is.

    >>> import fnn
    >>> net = fnn.models.mlp((4, 3))
    >>> x = jax.ShapeDtypeStruct((1, 2), "float32")
    >>> for axis in permutable(net, net.init(jax.random.key(0), x), x)[0]:
    ...     print(axis)
    Axis(path=('hidden_1', 'w'), axis=1, tiles=1)
    Axis(path=('hidden_1', 'b'), axis=0, tiles=1)
    Axis(path=('out', 'w'), axis=0, tiles=1)
    """
    walk = _Walk()
    out, _ = walk.block(net, params, (jax.ShapeDtypeStruct(x.shape, x.dtype),), (FIXED,), ())
    groups = walk.groups
    groups.fix(*out)
    found: dict[int, list[Axis]] = {}
    for group, axes in enumerate(groups.axes):
        found.setdefault(groups.root(group), []).extend(axes)
    return [list(dict.fromkeys(axes)) for group, axes in found.items() if group != groups.root(0)]


class _Walk:
    """Goes through a network as forward does, with features in place of values."""

    def __init__(self) -> None:
        self.groups = _Groups()
        self.seen: dict[Path, tuple[Features, Features]] = {}  # in and out of parameters

    def block(
        self, block: Block, params: Any, x: Sequence[Any], features: Sequence[Features], path: Path
    ) -> tuple[tuple[Features, ...], tuple[Any, ...]]:
        """The features of the outputs, and their shapes; notes the axes of parameters."""
        block = unwrapped(block)
        if block.graph is not None:
            return self._graph(block, params, x, features, path)
        given = x[0] if len(x) == 1 else tuple(x)
        y = jax.eval_shape(lambda p, x: block.forward(p, x, jax.random.key(0))[0], params, given)
        outputs = y if isinstance(y, tuple) else (y,)
        out = self._features(block, params, x, outputs, features, path)
        return (out,) * len(outputs), outputs

    def _graph(
        self, block: Block, params: Any, x: Sequence[Any], features: Sequence[Features], path: Path
    ) -> tuple[tuple[Features, ...], tuple[Any, ...]]:
        graph = block.graph
        assert graph is not None
        values = dict(zip(graph.inputs, zip(features, x, strict=True), strict=True))
        for node in graph.nodes:
            read = [values[name] for name in node.inputs]
            own = params.get(node.params_of, {})
            out, y = self.block(
                node.block, own, [v for _, v in read], [f for f, _ in read],
                (*path, node.params_of),
            )  # fmt: skip
            if len(y) == 1:
                values[node.name] = out[0], y[0]
            else:
                values[node.name] = cast(Any, (self.groups.fix(*out), y))
        outputs = [values[name] for name in graph.outputs]
        return tuple(f for f, _ in outputs), tuple(y for _, y in outputs)

    def _features(
        self, block: Block, params: Any, x: Sequence[Any], y: Sequence[Any],
        features: Sequence[Features], path: Path,
    ) -> Features:  # fmt: skip
        """The features that a block which is no graph makes of those of its inputs."""
        groups, maker, args = self.groups, block.kind.maker, block.kind.args
        if maker == "linear" or (maker == "conv" and args[-2] == 1):
            return self._units(params, features[0], path)
        if maker in ALIKE and not params:
            return features[0]
        if maker in JOINS and len({v.shape[-1:] for v in x}) == 1:
            return groups.join(*features)
        if maker == "flatten":
            tiles = y[0].shape[-1] // x[0].shape[-1]
            return features[0]._replace(tiles=features[0].tiles * tiles)
        if maker == "batch_norm" or (maker == "layer_norm" and args[0] == -1):
            for where, _ in jax.tree_util.tree_leaves_with_path(params):
                groups.put(features[0], (*path, *(key.key for key in where)), 0)
            return features[0]
        for where, leaf in jax.tree_util.tree_leaves_with_path(params):
            for axis in range(leaf.ndim):  # whatever it does with them
                groups.put(FIXED, (*path, jax.tree_util.keystr(where)), axis)
        return groups.fix(*features)

    def _units(self, params: Any, given: Features, path: Path) -> Features:
        """New units; where the same parameters are used again, the same ones."""
        groups = self.groups
        if path in self.seen:
            before, out = self.seen[path]
            groups.join(before, given)
            return out
        out = groups.new()
        self.seen[path] = given, out
        groups.put(given, (*path, "w"), params["w"].ndim - 2)
        groups.put(out, (*path, "w"), params["w"].ndim - 1)
        if "b" in params:
            groups.put(out, (*path, "b"), 0)
        return out


# ---- permuting and matching ------------------------------------------------------------------


def leaf_at(params: Any, path: Path) -> Any:
    """The leaf at a path of keys."""
    for key in path:
        params = params[key]
    return params


def permuted(params: Any, groups: Sequence[Sequence[Axis]], orders: Sequence[np.ndarray]) -> Any:
    """The parameters with the units of every group in another order."""
    changed: dict[Path, Any] = {}
    for axes, order in zip(groups, orders, strict=True):
        for path, axis, tiles in axes:
            leaf = changed.get(path, leaf_at(params, path))
            rows = (np.arange(tiles)[:, None] * len(order) + order).reshape(-1)
            changed[path] = jnp.take(leaf, rows, axis)

    def replace(where: Any, leaf: Any) -> Any:
        return changed.get(tuple(key.key for key in where), leaf)

    return jax.tree_util.tree_map_with_path(replace, params)


def sizes(params: Any, groups: Sequence[Sequence[Axis]]) -> list[int]:
    """The number of units of every group."""
    return [leaf_at(params, a[0].path).shape[a[0].axis] // a[0].tiles for a in groups]


def matched(a: Any, b: Any, groups: Sequence[Sequence[Axis]], seed: int = 0) -> Any:
    """``b`` with its units in the order that brings its weights closest to those of ``a``.

    One group after the other, in a random order, until none changes: each is an assignment
    problem, and the sum of <a, b> over all parameters never falls.
    """
    from scipy.optimize import linear_sum_assignment

    rng, counts = np.random.default_rng(seed), sizes(a, groups)
    orders = [np.arange(n) for n in counts]
    changed = True
    while changed:
        changed = False
        for g in rng.permutation(len(groups)):
            others = [*orders[:g], np.arange(counts[g]), *orders[g + 1 :]]
            now = permuted(b, groups, others)
            likeness = sum(
                _rows(leaf_at(a, axis.path), axis, counts[g])
                @ _rows(leaf_at(now, axis.path), axis, counts[g]).T
                for axis in groups[g]
            )
            _, best = linear_sum_assignment(likeness, maximize=True)
            units = np.arange(counts[g])
            total, before = likeness[units, best].sum(), likeness[units, orders[g]].sum()
            if total > before + 1e-9 * abs(before):
                orders[g], changed = best, True
    return permuted(b, groups, orders)


def _rows(leaf: Any, axis: Axis, count: int) -> np.ndarray:
    """A row for each unit: all numbers that belong to it."""
    array = np.moveaxis(np.asarray(leaf, np.float64), axis.axis, 0)
    tiled = array.reshape(axis.tiles, count, -1)
    return np.moveaxis(tiled, 1, 0).reshape(count, -1)
