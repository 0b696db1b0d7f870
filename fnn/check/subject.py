"""A rule and a sample, with the compiled functions that several properties use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import is_floating
from fnn.check.rule import PROGRAMS, CheckError, Rule, Sample, has_custom_rule, without_custom_rules
from fnn.compiling import jit_for_few_runs
from fnn.introspect.autodiff import by_autodiff
from fnn.pytrees import flat

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
    return Programs(run, jit_for_few_runs(run), jit_for_few_runs(mapped), jit_for_few_runs(looped))


@functools.lru_cache(maxsize=PROGRAMS)
def _plain(primal: Callable[..., Any]) -> Callable[..., Any]:
    return without_custom_rules(primal)


@functools.lru_cache(maxsize=PROGRAMS)
def _by_autodiff(primal: Callable[..., Any]) -> Callable[..., Any]:
    """The cotangents of the floating leaves by ``jax.vjp``, not compiled."""
    run = by_autodiff(primal)
    return lambda *inputs: jax.tree.leaves(run(*inputs)[1:])


@functools.lru_cache(maxsize=PROGRAMS)
def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`jit_for_few_runs`, the same program for the same function."""
    return jit_for_few_runs(f)


class Lab:
    """A rule under test. Everything is evaluated in float64 unless a sample says otherwise."""

    def __init__(self, rule: Rule, sample: Sample, seed: int) -> None:
        self.rule, self.sample, self.seed = rule, sample, seed
        named = leaves_of(sample.params, sample.x)
        places = tuple(i for i, (_, leaf) in enumerate(named) if is_floating(leaf))
        self.layout = Layout(places, jax.tree.structure((sample.params, sample.x)))
        self.names = [named[i][0] for i in places]
        self.programs = _programs(rule.forward, rule.backward)
        self._y_shapes: dict[Any, Any] = {}
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

    @property
    def y_shape(self) -> Any:
        return self._y_shape_of(self.sample)

    def _y_shape_of(self, sample: Sample) -> Any:
        leaves, tree = flat(tuple(sample))
        kinds = (tree, *((np.shape(v), getattr(v, "dtype", type(v))) for v in leaves))
        if kinds not in self._y_shapes:  # tracing a network takes longer than running it
            forward = self.rule.forward
            self._y_shapes[kinds] = jax.eval_shape(lambda *s: forward(*s)[0], *sample)
        return self._y_shapes[kinds]

    def cotangent(self, rng: np.random.Generator, sample: Sample | None = None) -> Any:
        """A random cotangent of y: never all ones, which would hide errors."""
        shape = self.y_shape if sample is None else self._y_shape_of(sample)

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
            jax.eval_shape(_by_autodiff(self._primal), *self.sample, dy)
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
        cotangents = compiled(_by_autodiff(self._primal))
        return [np.asarray(d) for d in cotangents(*sample, dy)]
