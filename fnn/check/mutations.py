"""Backward rules broken on purpose, in the ways that people break them.

Mistakes that any rule can have are made by wrapping the rule; those of one block (a formula that
saturates, a tie given to both sides) are written out. A change that changes nothing here (the
sign of a gradient that is 0) makes no mutant.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import Block, Kind, is_floating, no_params
from fnn.compiling import jit_for_few_runs
from fnn.executor import map_nodes
from fnn.pytrees import flat


class Row(NamedTuple):
    """A right block, and inputs to check it with. ``separable``: a batch is its rows;
    ``inputs``: others by seed, ``(params, x, key)``."""

    id: str
    block: Block
    params: Any
    x: Any
    key: Any = None
    separable: bool = False
    inputs: Callable[[int], tuple[Any, Any, Any]] | None = None


class Mutant(NamedTuple):
    """A wrong block, by the name of its mistake."""

    name: str
    block: Block


CONTROL = "(none: wrapped, but right)"


def control(row: Row) -> Mutant:
    """The right block, wrapped as mutants are: the check has to pass it."""
    return Mutant(CONTROL, _leaf(row.block, 0, lambda d: d))


def mutants(row: Row) -> Iterator[Mutant]:
    """All mutants of a block that differ from it."""
    with jax.enable_x64(True):
        right = _right(row)
        found = [*_of_cotangents(row, right), *_of_backward(row, right)]
        found += [*_at_points(row), *_of_nodes(row), *_by_hand(row)]
    yield from found


# ---- one cotangent is changed ----------------------------------------------------------------


def _cut_off(d: jax.Array) -> jax.Array:
    top = 0.3 * jax.lax.stop_gradient(jnp.max(jnp.abs(d), initial=0))
    return jnp.clip(d, -top, top)


_CHANGES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sign": lambda d: -d,
    "factor 2": lambda d: 2 * d,
    "off by 0.1 %": lambda d: 1.001 * d,
    "dropped": jnp.zeros_like,
    "mean for sum": lambda d: d / d.shape[0] if d.ndim else d,
    "transposed": lambda d: jnp.swapaxes(d, -1, -2) if d.ndim > 1 else d,
    "reduced too much": lambda d: (
        jnp.full_like(d, 1) * jnp.sum(d, -1, keepdims=True) if d.ndim else d
    ),
    "not reduced": lambda d: jnp.stack([d, d]) / 2,
    "index off by one": lambda d: jnp.roll(d, 1, -1) if d.ndim else d,
    "last of a ragged end": lambda d: d.at[-1].set(0) if d.ndim and len(d) else d,
    "cut off": _cut_off,
    "through float16": lambda d: d.astype(jnp.float16).astype(d.dtype),
    "a term without dy": lambda d: d + 0.01,
}


def _leaf(block: Block, number: int, change: Callable[[jax.Array], jax.Array]) -> Block:
    """The block, with a change of that leaf of (dparams, dx)."""

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        leaves, tree = flat(block.backward(params, residuals, dy))
        if leaves:
            leaves[number] = change(leaves[number])
        return tree.unflatten(leaves)

    return block._replace(backward=backward, graph=None)


class _Right(NamedTuple):
    """The right rule at the row's inputs: a random dy, residuals, and leaves of (dparams, dx)."""

    dy: Any
    residuals: Any
    leaves: list[Any]


def _right(row: Row) -> _Right:
    def run(params: Any, x: Any, dy: Any) -> tuple[Any, list[Any]]:
        residuals = row.block.forward(params, x, row.key)[1]
        return residuals, jax.tree.leaves(row.block.backward(params, residuals, dy))

    y, _ = jax.eval_shape(row.block.forward, row.params, row.x, row.key)
    rng = np.random.default_rng(zlib.crc32(row.id.encode()))
    dy = jax.tree.map(lambda v: np.asarray(rng.standard_normal(v.shape)), y)
    return _Right(dy, *jit_for_few_runs(run)(row.params, row.x, dy))


def _differs(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape != b.shape or bool(np.max(np.abs(a - b), initial=0) > 1e-6)


def _turn(row: Row, name: str, choices: list[int]) -> int:
    """One of the leaves: another for every mistake, so that all have some."""
    return choices[zlib.crc32(f"{row.id} {name}".encode()) % len(choices)]


def _of_cotangents(row: Row, right: _Right) -> Iterator[Mutant]:
    dy, _, leaves = right
    sized = {i: d for i, d in enumerate(leaves) if d.size}
    changed = jit_for_few_runs(
        lambda some: {n: {i: f(some[i]) for i in some} for n, f in _CHANGES.items()}
    )(sized)
    for name, change in _CHANGES.items():
        choices = [i for i, d in sized.items() if _differs(changed[name][i], d)]
        if choices:
            yield Mutant(name, _leaf(row.block, _turn(row, name, choices), change))
    for i, a in enumerate(leaves):
        for j in range(i + 1, len(leaves)):
            if a.shape == leaves[j].shape and _differs(a, leaves[j]):
                yield Mutant("swapped", _swap(row.block, i, j))
                break
        else:
            continue
        break
    if not isinstance(dy, tuple):
        passed = [i for i, d in enumerate(leaves) if d.shape == dy.shape and d.size]
        if passed:
            yield Mutant("dy added", _dy_added(row.block, _turn(row, "dy", passed)))
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(row.x) if leaf.ndim}
    counted = row.separable and row.key is None and any(np.any(np.asarray(d)) for d in leaves)
    counted = counted and any(map(is_floating, jax.tree.leaves(row.x)))
    if counted and len(sizes) == 1 and min(sizes) > 1:
        yield Mutant("batch size hard-coded", _hard_coded(row.block, sizes.pop()))


def _swap(block: Block, i: int, j: int) -> Block:
    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        leaves, tree = flat(block.backward(params, residuals, dy))
        leaves[i], leaves[j] = leaves[j], leaves[i]
        return tree.unflatten(leaves)

    return block._replace(backward=backward, graph=None)


def _dy_added(block: Block, number: int) -> Block:
    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        return _leaf(block, number, lambda d: d + dy).backward(params, residuals, dy)

    return block._replace(backward=backward, graph=None)


def _hard_coded(block: Block, size: int) -> Block:
    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = block.backward(params, residuals, dy)
        share = jax.tree.leaves(dx)[0].shape[0] / size
        return jax.tree.map(lambda d: share * d, (dparams, dx))

    return block._replace(backward=backward, graph=None)


# ---- what backward reads is changed ----------------------------------------------------------


def _of_backward(row: Row, right: _Right) -> Iterator[Mutant]:
    dy, residuals, leaves = right
    block = row.block

    def with_backward(backward: Callable[..., Any]) -> Block:
        return block._replace(backward=backward, graph=None)

    def ones(params: Any, residuals: Any, dy: Any) -> Any:
        return block.backward(params, residuals, jax.tree.map(jnp.ones_like, dy))

    def stale(params: Any, residuals: Any, dy: Any) -> Any:
        def other(v: Any) -> Any:
            return 0.9 * jnp.roll(v, 1) if is_floating(v) else v

        return block.backward(params, jax.tree.map(other, residuals), dy)

    def detached(params: Any, residuals: Any, dy: Any) -> Any:
        params, residuals = jax.lax.stop_gradient((params, residuals))
        return block.backward(params, residuals, dy)

    for name, backward in (("dy ignored", ones), ("another residual", stale)):
        other = jax.tree.leaves(jit_for_few_runs(backward)(row.params, residuals, dy))
        if any(_differs(a, b) for a, b in zip(other, leaves, strict=True)):
            yield Mutant(name, with_backward(backward))
    if _curved(row, dy):
        yield Mutant("detached, no second derivative", with_backward(detached))


def _curved(row: Row, dy: Any) -> bool:
    """Whether the gradient changes with the inputs."""
    leaves, tree = flat((row.params, row.x))
    places = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def gradient(floats: list[Any]) -> list[Any]:
        filled = list(leaves)
        for i, value in zip(places, floats, strict=True):
            filled[i] = value
        params, x = tree.unflatten(filled)
        residuals = row.block.forward(params, x, row.key)[1]
        return jax.tree.leaves(row.block.backward(params, residuals, dy))

    floats = [leaves[i] for i in places]
    change = jit_for_few_runs(
        lambda v: jax.jvp(gradient, (v,), (jax.tree.map(jnp.ones_like, v),))[1]
    )(floats)
    return any(bool(np.max(np.abs(d), initial=0) > 1e-3) for d in change)


# ---- wrong at single points ------------------------------------------------------------------


def _at_points(row: Row) -> Iterator[Mutant]:
    """Wrong where hardly anyone looks: at 0, at a tie, at infinity."""
    block, x = row.block, row.x

    def seeing_x(change: Callable[[Any, Any, Any], Any]) -> Block:
        """A block that keeps x too, with ``change(dx, x, dy)``."""

        def forward(params: Any, x: Any, key: Any = None) -> Any:
            y, residuals = block.forward(params, x, key)
            return y, (residuals, x)

        def backward(params: Any, kept: Any, dy: Any) -> Any:
            dparams, dx = block.backward(params, kept[0], dy)
            return dparams, change(dx, kept[1], dy)

        return block._replace(forward=forward, backward=backward, graph=None)

    if not isinstance(x, tuple) and x.size and row.key is None:
        at = jit_for_few_runs(lambda x: _value_and_slope(row, x))
        y, slope = at(np.zeros_like(x))
        if block.init is no_params and jnp.shape(y) == x.shape and np.isfinite(slope).all():
            yield Mutant("wrong only at 0", seeing_x(
                lambda dx, x, dy: dx + jnp.where(x == 0, dy, 0)))  # fmt: skip
        if is_floating(x) and _settles(np.asarray(x), at):
            yield Mutant("NaN at infinity", seeing_x(lambda dx, x, dy: dx + 0 * x))
    if block.kind.maker in ("maximum", "minimum"):
        yield Mutant("a tie to both", seeing_x(lambda dx, x, dy: tuple(
            jnp.where(x[0] == x[1], dy, d) for d in dx)))  # fmt: skip


def _value_and_slope(row: Row, x: jax.Array) -> tuple[Any, Any]:
    """y, and dx of the right rule for a cotangent of ones."""
    y, residuals = row.block.forward(row.params, x)
    dy = jax.tree.map(lambda v: jnp.ones(v.shape), y)
    return y, row.block.backward(row.params, residuals, dy)[1]


def _settles(x: np.ndarray, at: Callable[[np.ndarray], tuple[Any, Any]]) -> bool:
    """Whether value and gradient have a limit where the first entry goes to infinity."""

    def put(value: float) -> tuple[Any, Any]:
        return at(np.concatenate([[value], x.reshape(-1)[1:]]).reshape(x.shape))

    for sign in (-1, 1):
        (y, end), (_, far), (_, near) = put(sign * np.inf), put(sign * 1e8), put(sign * 1e4)
        finite = all(bool(np.isfinite(v).all()) for v in jax.tree.leaves((y, end)))
        if finite and np.allclose(end, far, 1e-6) and np.allclose(near, far, 1e-6):
            return True
    return False


# ---- a node of a network is changed ----------------------------------------------------------


def _of_nodes(row: Row) -> Iterator[Mutant]:
    structure: Any = row.block.graph
    if getattr(row.block.backward, "graph", None) is not structure:
        return  # it has a rule of its own, which changing a node would not change
    nodes = structure.nodes if structure else ()

    def with_node(chosen: str, change: Callable[[Block], Block]) -> Block:
        return map_nodes(row.block, lambda name, block: change(block) if name == chosen else block)

    def turned(block: Block) -> Block:
        return _leaf(block, -1, lambda d: -d)

    for node in nodes[:1]:
        yield Mutant(f"sign, inside {node.name}", with_node(node.name, turned))
    for node in nodes:
        if node.params_of != node.name:
            yield Mutant("gradient of the first use only", with_node(node.name, _no_dparams))
            break


def _no_dparams(block: Block) -> Block:
    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = block.backward(params, residuals, dy)
        return jax.tree.map(jnp.zeros_like, dparams), dx

    return block._replace(backward=backward, graph=None)


# ---- formulas that are right on paper --------------------------------------------------------


def _saturating(f: Callable[[Any], Any], derivative: Callable[[Any], Any]) -> Callable[..., Block]:
    """y = f(x), whose derivative is computed from y, which has lost what x still knows."""

    def made(block: Block) -> Block:
        def forward(params: Any, x: Any, key: Any = None) -> Any:
            y = f(x)
            return y, y

        def backward(params: Any, y: Any, dy: Any) -> Any:
            return {}, dy * derivative(y).astype(dy.dtype)

        return block._replace(forward=forward, backward=backward)

    return made


def _gelu_by_erf(block: Block) -> Block:
    def backward(params: Any, x: Any, dy: Any) -> Any:
        density = jnp.exp(-x * x / 2) / np.sqrt(2 * np.pi)
        return {}, dy * ((1 + jax.lax.erf(x / np.sqrt(2))) / 2 + x * density).astype(dy.dtype)

    def forward(params: Any, x: Any, key: Any = None) -> Any:
        return block.forward(params, x)[0], x

    return block._replace(forward=forward, backward=backward)


def _p_minus_t(block: Block) -> Block:
    """dE/dz = p - t, of which nothing is left in a confident row."""

    def forward(params: Any, x: Any, key: Any = None) -> Any:
        return block.forward(params, x)[0], x

    def backward(params: Any, x: Any, dy: Any) -> Any:
        z, t = x
        if block.kind == Kind("binary_cross_entropy", (True,)):
            slope, examples = jax.nn.sigmoid(z) - t.astype(z.dtype), z.size
        else:
            rows = t if is_floating(t) else jax.nn.one_hot(t, z.shape[-1], dtype=z.dtype)
            slope, examples = jax.nn.softmax(z) - rows, z.size // z.shape[-1]
        dz = (jnp.asarray(dy, slope.dtype) * slope / examples).astype(z.dtype)
        return {}, (dz, None if not is_floating(t) else jnp.zeros_like(t))

    return block._replace(forward=forward, backward=backward)


def _narrow_sum(block: Block) -> Block:
    """The bias' gradient added up example by example, in dy's dtype."""

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = block.backward(params, residuals, dy)
        rows = dy.reshape(-1, *params["b"].shape)
        total, _ = jax.lax.scan(lambda sum, row: (sum + row, None), jnp.zeros_like(rows[0]), rows)
        return dparams | {"b": total.astype(params["b"].dtype)}, dx

    return block._replace(backward=backward)


def _mask_forgotten(block: Block) -> Block:
    return block._replace(backward=lambda params, residuals, dy: ({}, dy))


_WRITTEN: dict[str, tuple[str, Callable[[Block], Block]]] = {
    "logistic": ("y (1 - y)", _saturating(jax.nn.sigmoid, lambda y: y * (1 - y))),
    "tanh": ("1 - y^2", _saturating(jnp.tanh, lambda y: 1 - y * y)),
    "softplus": ("1 - exp(-y)", _saturating(jax.nn.softplus, lambda y: 1 - jnp.exp(-y))),
    "elu": ("y + 1 from y", _saturating(jax.nn.elu, lambda y: jnp.where(y > 0, 1, y + 1))),
    "celu": ("y + 1 from y", _saturating(jax.nn.celu, lambda y: jnp.where(y > 0, 1, y + 1))),
    "gelu": ("(1 + erf) / 2", _gelu_by_erf),
    "softmax_cross_entropy": ("p - t", _p_minus_t),
    "binary_cross_entropy": ("p - t", _p_minus_t),
    "linear": ("sum in the narrow dtype", _narrow_sum),
    "dropout": ("mask forgotten", _mask_forgotten),
}


def _by_hand(row: Row) -> Iterator[Mutant]:
    if row.id in _WRITTEN:  # a row that is the block as it is by default
        name, change = _WRITTEN[row.id]
        yield Mutant(name, change(row.block))
