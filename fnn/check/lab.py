"""A rule and a sample, with the compiled functions that several properties use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import is_floating
from fnn.check import differences
from fnn.check.differences import Slope
from fnn.check.rule import PROGRAMS, CheckError, Rule, Sample, has_custom_rule, without_custom_rules

Cotangents = list[Any]  # one for every floating leaf of (params, x), None where there is none


def is_none(leaf: Any) -> bool:
    return leaf is None


def path_of(path: Any, first: str = "") -> str:
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    return "/".join(part for part in (first, text) if part)


def leaves_of(params: Any, x: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of params and then x; None counts as a leaf."""
    found = []
    for first, tree in (("params", params), ("x", x)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none):
            found.append((path_of(path, first), leaf))
    return found


def cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in another dtype, by NumPy: nothing is compiled."""

    def one(leaf: Any) -> Any:
        if leaf is None or not is_floating(leaf):
            return leaf
        return np.asarray(leaf).astype(dtype)

    return jax.tree.map(one, tree, is_leaf=is_none)


def fast(f: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled with the least effort: a check runs a program a few times only."""
    return jax.jit(f, compiler_options=quick())


def quick() -> dict[str, Any] | None:
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Layout(NamedTuple):
    """Where the floating leaves of (params, x) are."""

    places: tuple[int, ...]
    tree: Any

    def floats(self, sample: Sample) -> list[Any]:
        """The floating leaves."""
        leaves = jax.tree.leaves((sample.params, sample.x))
        return [leaves[i] for i in self.places]

    def fill(self, sample: Sample, floats: Sequence[Any]) -> Sample:
        """The sample with other floats."""
        leaves = jax.tree.leaves((sample.params, sample.x))
        for i, value in zip(self.places, floats, strict=True):
            leaves[i] = value
        params, x = self.tree.unflatten(leaves)
        return Sample(params, x, sample.key)


class Programs(NamedTuple):
    """(y, dparams, dx) of a rule: as it is, and compiled on its own, mapped, and in a loop."""

    traced: Callable[..., Any]
    run: Callable[..., Any]
    mapped: Callable[..., Any]
    looped: Callable[..., Any]


@functools.lru_cache(maxsize=PROGRAMS)
def _programs(forward: Callable[..., Any], backward: Callable[..., Any]) -> Programs:
    def run(params: Any, x: Any, key: Any, dy: Any) -> Any:
        y, residuals = forward(params, x, key)
        made = backward(params, residuals, dy)
        if not isinstance(made, tuple) or len(made) != 2:
            got = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
            raise CheckError(f"backward needs to return (dparams, dx), got {got}")
        return (y, *made)

    def looped(params: Any, x: Any, key: Any, dy: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            return carry, run(params, x, key, dy)

        return jax.lax.scan(body, 0, None, length=1)[1]

    mapped = jax.vmap(run, in_axes=(None, 0, None, 0))
    return Programs(run, fast(run), fast(mapped), fast(looped))


@functools.lru_cache(maxsize=PROGRAMS)
def _plain(primal: Callable[..., Any]) -> Callable[..., Any]:
    return without_custom_rules(primal)


@functools.lru_cache(maxsize=PROGRAMS)
def _by_autodiff(primal: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """The cotangents of the floating leaves by ``jax.vjp``, not compiled."""

    def cotangents(params: Any, x: Any, key: Any, dy: Any) -> Any:
        sample = Sample(params, x, key)

        def value(*floats: Any) -> Any:
            return primal(*layout.fill(sample, floats))

        return jax.vjp(value, *layout.floats(sample))[1](dy)

    return cotangents


@functools.lru_cache(maxsize=PROGRAMS)
def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`fast`, the same program for the same function."""
    return fast(f)


@functools.lru_cache(maxsize=PROGRAMS)
def _mover(forward: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """y at sample + t direction for many (t, direction), in one compiled loop.

    Flat, or where there are cotangents (stacked) projected on each: (sum, sum of sizes).
    """

    def moved(sample: Sample, ts: Any, lines: Any, dys: Any, make: str) -> Any:
        floats = layout.floats(sample)

        def at(t_and_line: Any) -> Any:
            t, line = t_and_line
            there = [f + t * d for f, d in zip(floats, _direction(make, line, floats), strict=True)]
            y = forward(*layout.fill(sample, there))[0]
            parts = [v.ravel() for v in jax.tree.leaves(y) if is_floating(v)]
            if dys is None:
                return jnp.concatenate(parts) if parts else jnp.zeros(0)
            rows = [d.reshape(d.shape[0], -1) for d in dys]
            terms = [row * part[None] for row, part in zip(rows, parts, strict=True)]
            return (
                sum(jnp.sum(term, 1) for term in terms),
                sum(jnp.sum(jnp.abs(term), 1) for term in terms),
            )

        grid = tuple(jnp.repeat(line, len(ts), axis=0) for line in lines)
        return jax.lax.map(at, (jnp.tile(ts, lines[0].shape[0]), grid))

    return jax.jit(moved, static_argnames="make", compiler_options=quick())


def _direction(make: str, line: Any, floats: Sequence[Any]) -> list[Any]:
    """``make="entry"``: line is (flat index, step); ``make="leaf"``: (leaf number, seed)."""
    first, second = line
    parts, start = [], 0
    for number, leaf in enumerate(floats):
        if make == "entry":
            places = start + jnp.arange(leaf.size, dtype=first.dtype)
            part = jnp.where(places == first, second, 0.0)
            parts.append(part.reshape(leaf.shape))
            start += leaf.size
        else:
            # Irrational steps around a circle: cheap to compile, and no two alike.
            angle = jnp.arange(leaf.size, dtype=leaf.dtype) * 2.399963229728653
            part = jnp.sin(angle + 1.7 * second + number).reshape(leaf.shape)
            top = jnp.max(jnp.abs(leaf), initial=0)
            top = jnp.where(top == 0, 1.0, top)
            typical = top * jnp.sqrt(jnp.mean(jnp.square(leaf / top))) if leaf.size else 1.0
            scale = jnp.where(typical == 0, 1.0, typical)
            parts.append(jnp.where(first == number, scale * part, 0.0))
    return parts


@compiled
def _dots(floats: Any, lines: Any, given: Any) -> Any:
    """Inner products of the directions within leaves with stacked cotangents."""

    def one(line: Any) -> Any:
        terms = [
            (part[None] * c).reshape(c.shape[0], -1)
            for part, c in zip(_direction("leaf", line, floats), given, strict=True)
        ]
        return (
            sum(jnp.sum(term, 1) for term in terms),
            sum(jnp.sum(jnp.abs(term), 1) for term in terms),
        )

    return jax.lax.map(one, lines)


class Lab:
    """A rule under test. Everything is evaluated in float64 unless a sample says otherwise."""

    def __init__(self, rule: Rule, sample: Sample, seed: int) -> None:
        self.rule, self.sample, self.seed = rule, sample, seed
        named = leaves_of(sample.params, sample.x)
        places = tuple(i for i, (_, leaf) in enumerate(named) if is_floating(leaf))
        self.layout = Layout(places, jax.tree.structure((sample.params, sample.x)))
        self.names = [named[i][0] for i in places]
        self.programs = _programs(rule.forward, rule.backward)
        self.single = any(leaf.dtype == np.float32 for leaf in self.layout.floats(sample))

    def loose(self, tolerance: float) -> float:
        """A tolerance for float64, or what goes for it where the block is looked at in float32."""
        return max(tolerance, 1e-4) if self.single else tolerance

    def floats(self, sample: Sample) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in self.layout.floats(sample)]

    def fill(self, sample: Sample, floats: Sequence[Any]) -> Sample:
        """The sample with other floats."""
        return self.layout.fill(sample, floats)

    def cotangents(self, dparams: Any, dx: Any) -> Cotangents:
        leaves = [leaf for _, leaf in leaves_of(dparams, dx)]
        places = self.layout.places
        return [None if leaves[i] is None else np.asarray(leaves[i]) for i in places]

    def run(self, sample: Sample, dy: Any) -> tuple[Any, Cotangents]:
        """(y, cotangents) by the rule."""
        y, dparams, dx = self.programs.run(*sample, dy)
        return jax.tree.map(np.asarray, y), self.cotangents(dparams, dx)

    @functools.cached_property
    def y_shape(self) -> Any:
        return jax.eval_shape(lambda *s: self.rule.forward(*s)[0], *self.sample)

    def cotangent(self, rng: np.random.Generator, sample: Sample | None = None) -> Any:
        """A random cotangent of y: never all ones, which would hide errors."""
        shape = self.y_shape
        if sample is not None:
            shape = jax.eval_shape(lambda *s: self.rule.forward(*s)[0], *sample)

        def one(v: Any) -> Any:
            if not jnp.issubdtype(v.dtype, jnp.floating):
                return np.zeros(v.shape, jax.dtypes.float0)
            return rng.standard_normal(v.shape).astype(v.dtype)

        return jax.tree.map(one, shape)

    # ---- the referees ------------------------------------------------------------------------

    @functools.cached_property
    def no_autodiff(self) -> str:
        """Why autodiff of the forward is no referee, or ''."""
        try:
            if rule := has_custom_rule(self._primal, *self.sample):
                return f"forward has a {rule} in a loop or branch, which autodiff would use"
            dy = self.cotangent(np.random.default_rng(0))
            jax.eval_shape(_by_autodiff(self._primal, self.layout), *self.sample, dy)
        except Exception as error:
            return f"no autodiff of forward: {str(error).splitlines()[0][:100]}"
        return ""

    @functools.cached_property
    def _primal(self) -> Callable[..., Any]:
        if has_custom_rule(self.rule.primal, *self.sample):
            return _plain(self.rule.primal)
        return self.rule.primal

    def autodiff(self, sample: Sample, dy: Any) -> Cotangents:
        """The cotangents by ``jax.vjp`` of the forward."""
        cotangents = compiled(_by_autodiff(self._primal, self.layout))
        return [np.asarray(d) for d in cotangents(*sample, dy)]

    def _moved(self, *arguments: Any, make: str) -> Any:
        return _mover(self.rule.forward, self.layout)(*arguments, make=make)

    def entry_steps(self, sample: Sample) -> np.ndarray:
        """The scale on which each entry varies: itself, but not much less than its leaf's."""
        scales = []
        for leaf in self.floats(sample):
            finite = np.where(np.isfinite(leaf), leaf, 0)
            top = np.max(np.abs(finite), initial=0)  # taken out, lest squares of 1e-170 be 0
            typical = top * np.sqrt(np.mean(np.square(finite / top))) if top else 0.0
            scales.append(np.ravel(np.maximum(np.abs(finite), 0.1 * typical or 1.0)))
        return np.concatenate(scales) if scales else np.zeros(0)

    def by_entry(self, sample: Sample, entries: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values of flat y around the sample, moved along single entries; and the steps' scales.

        Returns (steps, entries, y) and (entries,).
        """
        ts, scales = differences.steps(), self.entry_steps(sample)[list(entries)]
        lines = (np.asarray(entries, np.int64), scales)
        values = np.asarray(self._moved(sample, ts, lines, None, make="entry"))
        return values.reshape(len(entries), len(ts), -1).swapaxes(0, 1), scales

    def jacobian(self, sample: Sample, entries: Sequence[int]) -> Slope:
        """dy/d(entry) by differences: (entries, y)."""
        values, scales = self.by_entry(sample, entries)
        # An output that is small may be what is left of terms as large as the others are.
        size = np.broadcast_to(np.max(np.abs(values), -1, keepdims=True, initial=0), values.shape)
        slope = differences.both_sides(values, size)
        return Slope(slope.value / scales[:, None], slope.error / scales[:, None])

    def along_leaves(
        self, sample: Sample, dys: Sequence[Any], cotangents: Sequence[Cotangents], repeats: int
    ) -> tuple[Slope, np.ndarray, np.ndarray]:
        """Derivatives of <dy, y> along random directions, each within one leaf.

        Returns the slopes by differences, the same by the cotangents, and the sum of the sizes
        of the latter's terms, each (leaves, repeats, dys).
        """
        count, ts = len(self.layout.places), differences.steps()
        lines = (
            np.repeat(np.arange(count), repeats),
            1000 * self.seed + np.arange(count * repeats),
        )
        floating = [[d for d in jax.tree.leaves(dy) if is_floating(d)] for dy in dys]
        stacked = [np.stack(parts) for parts in zip(*floating, strict=True)]
        values, sizes = self._moved(sample, ts, lines, stacked, make="leaf")

        def by_step(a: Any) -> np.ndarray:
            return np.asarray(a).reshape(count, repeats, len(ts), len(dys)).transpose(2, 0, 1, 3)

        slope = differences.both_sides(by_step(values), by_step(sizes))
        given = [
            np.stack([np.zeros(f.shape) if c is None else c for c in each])
            for f, *each in zip(self.floats(sample), *cotangents, strict=True)
        ]
        shape = (count, repeats, len(dys))
        sums, sizes = _dots(self.floats(sample), lines, given)
        return slope, np.asarray(sums).reshape(shape), np.asarray(sizes).reshape(shape)
