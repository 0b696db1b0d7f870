"""The subject of a check: a rule, a sample, and the compiled programs that properties share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.block import is_floating
from fnn.check.rule import CheckError, Rule, Sample, cached, has_custom_rule, without_custom_rules
from fnn.compiling import jit_for_few_runs
from fnn.introspect.autodiff import by_autodiff
from fnn.pytrees import flat

Cotangents = list[Any]  # one for every floating leaf of (params, x), None where there is none


def is_none(leaf: Any) -> bool:
    return leaf is None


def path_of(path: Any, first: str = "") -> str:
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    return "/".join(part for part in (first, text) if part)


def leaves_of(params: Any, x: Any, y: Any = ()) -> list[tuple[str, Any]]:
    """(path, leaf) of params, x and y; None counts as a leaf."""
    return [
        (path_of(path, first), leaf)
        for first, tree in (("params", params), ("x", x), ("y", y))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    ]


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its floating leaves in another dtype; by NumPy, so nothing is compiled."""
    return map_floats(lambda leaf: np.asarray(leaf).astype(dtype), tree)


def map_floats(f: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with ``f`` of every floating leaf."""

    def one(leaf: Any) -> Any:
        return f(leaf) if leaf is not None and is_floating(leaf) else leaf

    return jax.tree.map(one, tree, is_leaf=is_none)


def flat_floats(tree: Any) -> np.ndarray:
    """The floating leaves of y, or of its cotangent, as one vector."""
    return np.concatenate([np.zeros(0), *map(np.ravel, filter(is_floating, jax.tree.leaves(tree)))])


def all_finite(tree: Any) -> bool:
    """Whether every floating number of a tree of NumPy arrays is finite."""
    return all(np.isfinite(v).all() for v in jax.tree.leaves(tree) if is_floating(v))


def largest(arrays: Sequence[Any]) -> float:
    """The largest finite magnitude in some arrays; 0 if there is none."""
    tops = [np.max(np.abs(a[np.isfinite(a)]), initial=0) for a in map(np.asarray, arrays)]
    return float(max(tops, default=0.0))


class Programs(NamedTuple):
    """(y, dparams, dx) of a rule: as it is, and compiled on its own, mapped, and in a loop."""

    traced: Callable[..., Any]
    run: Callable[..., Any]
    mapped: Callable[..., Any]
    looped: Callable[..., Any]


@cached
def _programs(forward: Callable[..., Any], backward: Callable[..., Any]) -> Programs:
    def run(params: Any, x: Any, key: Any, dy: Any) -> Any:
        y, residuals = forward(params, x, key)
        cotangents = backward(params, residuals, dy)
        if not isinstance(cotangents, tuple) or len(cotangents) != 2:
            got = type(cotangents).__name__
            if isinstance(cotangents, tuple):
                got = f"a tuple of {len(cotangents)}"
            raise CheckError(f"backward needs to return (dparams, dx), got {got}")
        return (y, *cotangents)

    def looped(*arguments: Any) -> Any:
        return jax.lax.scan(lambda carry, _: (carry, run(*arguments)), 0, None, length=1)[1]

    mapped = jax.vmap(run, in_axes=(None, 0, None, 0))
    return Programs(run, jit_for_few_runs(run), jit_for_few_runs(mapped), jit_for_few_runs(looped))


@cached
def _by_autodiff(primal: Callable[..., Any]) -> Callable[..., Any]:
    """The cotangents of the floating leaves by ``jax.vjp``, not compiled."""
    run = by_autodiff(primal)
    return lambda *inputs: jax.tree.leaves(run(*inputs)[1:])


@cached
def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`jit_for_few_runs`, the same program for the same function."""
    return jit_for_few_runs(f)


class Subject:
    """A rule under test at a sample, in float64 unless the sample has float32 leaves.

    ``names``: the path of every floating leaf of (params, x), such as ``params/w`` or ``x/0``.
    ``in_float32``: whether the comparisons themselves are in float32.
    """

    def __init__(self, rule: Rule, sample: Sample, seed: int) -> None:
        self.rule, self.sample, self.seed = rule, sample, seed
        named = leaves_of(sample.params, sample.x)
        self._places = [i for i, (_, leaf) in enumerate(named) if is_floating(leaf)]
        self.names = [named[i][0] for i in self._places]
        self.programs = _programs(rule.forward, rule.backward)
        self._y_shapes: dict[Any, Any] = {}
        self.in_float32 = any(leaf.dtype == np.float32 for leaf in sample.floats)

    def tolerance(self, in_float64: float) -> float:
        """A relative tolerance, widened where the comparison is in float32."""
        return max(in_float64, 1e-4) if self.in_float32 else in_float64

    def floats(self, sample: Sample) -> list[np.ndarray]:
        """The floating leaves of (params, x), in the order of ``names``."""
        return [np.asarray(leaf) for leaf in sample.floats]

    def with_leaf(self, sample: Sample, leaf: int, value: np.ndarray) -> Sample:
        """The sample with another value of one floating leaf."""
        floats = self.floats(sample)
        floats[leaf] = value
        return sample.with_floats(floats)

    def cotangents(self, dparams: Any, dx: Any) -> Cotangents:
        """The cotangents of the floating leaves, in the order of ``names``."""
        leaves = [leaf for _, leaf in leaves_of(dparams, dx)]
        return [None if leaves[i] is None else np.asarray(leaves[i]) for i in self._places]

    def flat_cotangents(self, cotangents: Cotangents) -> np.ndarray:
        """All cotangents as one vector, with zeros in place of None."""
        leaves = zip(self.floats(self.sample), cotangents, strict=True)
        return np.concatenate([np.zeros(f.size) if c is None else np.ravel(c) for f, c in leaves])

    def run(self, sample: Sample, dy: Any) -> tuple[Any, Cotangents]:
        """(y, cotangents) by the rule."""
        y, dparams, dx = self.programs.run(*sample, dy)
        return jax.tree.map(np.asarray, y), self.cotangents(dparams, dx)

    def y_shape(self, sample: Sample) -> Any:
        """Shapes and dtypes of y."""
        leaves, tree = flat(tuple(sample))
        kinds = (tree, *((np.shape(v), getattr(v, "dtype", type(v))) for v in leaves))
        if kinds not in self._y_shapes:  # tracing a network takes longer than running it
            forward = self.rule.forward
            self._y_shapes[kinds] = jax.eval_shape(lambda *s: forward(*s)[0], *sample)
        return self._y_shapes[kinds]

    def random_cotangent(self, rng: np.random.Generator, sample: Sample) -> Any:
        """A random cotangent of y: never all ones, which would hide errors."""

        def one(v: Any) -> Any:
            if not jnp.issubdtype(v.dtype, jnp.floating):
                return np.zeros(v.shape, jax.dtypes.float0)
            return rng.standard_normal(v.shape).astype(v.dtype)

        return jax.tree.map(one, self.y_shape(sample))

    # ---- autodiff as reference ---------------------------------------------------------------

    @functools.cached_property
    def no_autodiff(self) -> str:
        """Why autodiff of the forward is no reference, or ''."""
        try:
            if rule := has_custom_rule(self._primal, *self.sample):
                return f"forward has a {rule} in a loop or branch, which autodiff would use"
            dy = self.random_cotangent(np.random.default_rng(0), self.sample)
            jax.eval_shape(_by_autodiff(self._primal), *self.sample, dy)
        except Exception as error:
            return f"no autodiff of forward: {str(error).splitlines()[0][:100]}"
        return ""

    @functools.cached_property
    def _primal(self) -> Callable[..., Any]:
        if has_custom_rule(self.rule.primal, *self.sample):
            return without_custom_rules(self.rule.primal)
        return self.rule.primal

    def autodiff(self, sample: Sample, dy: Any) -> Cotangents:
        """The cotangents by ``jax.vjp`` of the forward."""
        cotangents = compiled(_by_autodiff(self._primal))
        return [np.asarray(d) for d in cotangents(*sample, dy)]
