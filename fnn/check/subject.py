"""The subject of a check: a rule, a sample, and the compiled programs that properties share."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arrays import is_floating
from fnn.check.report import CheckError, OutOfTime
from fnn.check.rule import (
    Rule,
    Sample,
    cached,
    custom_rule,
    equations,
    without_custom_rules,
)
from fnn.compiling import jit_for_few_runs
from fnn.introspect.autodiff import by_autodiff
from fnn.pytrees import flat, in_form_of

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
        return f(leaf) if hasattr(leaf, "dtype") and is_floating(leaf) else leaf

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


def _in_form_of(like: Any, tree: Any) -> Any:
    """A cotangent in the containers of what it belongs to; as it is where it has other entries."""
    try:
        return in_form_of(like, tree)
    except (KeyError, ValueError):
        return tree


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
        dparams, dx = cotangents
        return y, _in_form_of(params, dparams), _in_form_of(x, dx)

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
def _y_shapes(primal: Callable[..., Any]) -> dict[Any, Any]:
    """What is known of the shapes and dtypes of y, by those of the arguments."""
    return {}


@cached
def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`jit_for_few_runs`, the same program for the same function."""
    return jit_for_few_runs(f)


NEARBY = 3  # samples close to the given one, none of which is at its kinks and ties
NEARBY_DISTANCE = 1e-9  # of the scale of each entry
TOLERANCE_OF_LOOPS = 1e-4  # relative, of results that a loop approaches
NARROW_FORMATS = {(8, 23), (8, 7), (5, 10)}  # exponent, mantissa; others split a number exactly
DECOMPOSITIONS = {"svd", "eigh", "eig", "schur", "qr", "householder_product", "lu", "cholesky"}


class Subject:
    """A rule under test at a sample, in float64 unless the sample has float32 leaves.

    ``names``: the path of every floating leaf of (params, x), such as ``params/w`` or ``x/0``.
    ``in_float32``: whether the comparisons themselves are in float32.
    ``rtol``, ``atol``: what the user allows, None for what fits the function.
    ``deadline``: the time, by ``time.monotonic``, up to which the rule may be run.
    """

    def __init__(
        self,
        rule: Rule,
        sample: Sample,
        seed: int,
        rtol: float | None = None,
        atol: float = 0.0,
    ) -> None:
        self.rule, self.sample, self.seed = rule, sample, seed
        self.rtol, self.atol = rtol, atol
        self.deadline = np.inf
        self.noise: dict[int, Any] = {}  # of trials: see fnn.check.trials.noise
        named = leaves_of(sample.params, sample.x)
        self._places = [
            i for i, (_, leaf) in enumerate(named) if leaf is not None and is_floating(leaf)
        ]
        self.names = [named[i][0] for i in self._places]
        self.programs = _programs(rule.forward, rule.backward)
        self.in_float32 = any(leaf.dtype == np.float32 for leaf in sample.floats)

    def in_time(self) -> None:
        """Raises OutOfTime after the deadline."""
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def tolerance(self, in_float64: float) -> float:
        """A relative tolerance: the user's, or wider than in float64 where the function itself
        computes in a narrower dtype or approaches its result in a loop."""
        if self.rtol is not None:
            return max(in_float64, self.rtol)
        wider = 1e3 * self.unit if self.is_coarse else 0.0
        return max(in_float64, min(wider, 0.25), TOLERANCE_OF_LOOPS if self.iterates else 0.0)

    # ---- what the function is like -----------------------------------------------------------

    @functools.cached_property
    def _jaxpr(self) -> Any:
        return jax.make_jaxpr(self.rule.primal)(*self.sample).jaxpr

    @functools.cached_property
    def _equations(self) -> list[Any]:
        return list(equations(self._jaxpr))

    @functools.cached_property
    def iterates(self) -> bool:
        """Whether forward has a loop that ends when something is small enough."""
        return any(equation.primitive.name == "while" for equation in self._equations)

    @functools.cached_property
    def decomposes(self) -> bool:
        """Whether forward decomposes a matrix, which may never end if that is not finite."""
        return any(equation.primitive.name in DECOMPOSITIONS for equation in self._equations)

    @functools.cached_property
    def draws(self) -> bool:
        """Whether forward draws random numbers; in another dtype it draws others."""
        names = (equation.primitive.name for equation in self._equations)
        draws = ("random_bits", "random_gamma", "threefry", "rng_")
        return any(name.startswith(draws) for name in names)

    @functools.cached_property
    def draws_gammas(self) -> bool:
        """Whether forward draws from a gamma distribution, as beta, dirichlet and t do, too."""
        return any(equation.primitive.name == "random_gamma" for equation in self._equations)

    @functools.cached_property
    def unit(self) -> float:
        """The spacing of the narrowest dtype that forward casts or rounds a floating number to."""
        widths = [float(jnp.finfo(np.float32 if self.in_float32 else np.float64).eps)]
        for equation in self._equations:
            if equation.primitive.name == "convert_element_type":
                source, to = equation.invars[0].aval.dtype, equation.params["new_dtype"]
                if all(jnp.issubdtype(d, jnp.floating) for d in (source, to)):
                    widths.append(float(jnp.finfo(to).eps))
            if equation.primitive.name == "reduce_precision":
                bits = equation.params["exponent_bits"], equation.params["mantissa_bits"]
                widths.append(2.0 ** -bits[1] if bits in NARROW_FORMATS else 0.0)
        return max(widths)

    @property
    def is_coarse(self) -> bool:
        """Whether forward computes in a narrower dtype than float64."""
        return self.unit > 1e-12

    # ---- its inputs and outputs --------------------------------------------------------------

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
        """(y, cotangents) by the rule.

        Raises:
          OutOfTime: after the deadline.
        """
        self.in_time()
        y, dparams, dx = self.programs.run(*sample, dy)
        return jax.tree.map(as_numpy, y), self.cotangents(dparams, dx)

    def y_shape(self, sample: Sample) -> Any:
        """Shapes and dtypes of y."""
        leaves, tree = flat(tuple(sample))
        kinds = tuple((np.shape(v), getattr(v, "dtype", type(v))) for v in leaves)
        known, of = _y_shapes(self.rule.primal), (tree, kinds, jnp.result_type(float))
        if of not in known:  # tracing takes longer than running
            known[of] = jax.eval_shape(self.rule.primal, *sample)
        return known[of]

    def random_cotangent(self, rng: np.random.Generator, sample: Sample) -> Any:
        """A random cotangent of y: never all ones, which would hide errors."""

        def one(v: Any) -> Any:
            if not jnp.issubdtype(v.dtype, jnp.floating):
                return np.zeros(v.shape, jax.dtypes.float0)
            return rng.standard_normal(v.shape).astype(v.dtype)

        return jax.tree.map(one, self.y_shape(sample))

    def nearby(self, sample: Sample) -> list[Sample]:
        """Samples so close that a smooth gradient is the same, and at no kink or tie.

        Numbers that are all positive, or all between 0 and 1, stay so.
        """
        samples = []
        distance = max(NEARBY_DISTANCE, 10 * self.unit if self.is_coarse else 0.0)
        for number in range(NEARBY):
            rng = np.random.default_rng((self.seed, number))

            def moved(v: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
                near = v + distance * scale_of(v) * rng.uniform(-1, 1, v.shape)
                if np.all(v >= 0):
                    near = np.abs(near)
                    if np.all(v <= 1):
                        near = 1 - np.abs(1 - near)
                return near.astype(v.dtype)

            samples.append(sample.with_floats([moved(v) for v in self.floats(sample)]))
        return samples

    # ---- autodiff as reference ---------------------------------------------------------------

    @functools.cached_property
    def no_autodiff(self) -> str:
        """Why autodiff of the forward is no reference, or ''."""
        if self.rule.declared is not None:
            return ""
        try:
            if self.rule.of_jax and not custom_rule(self._jaxpr):
                return "the rule is autodiff's own: see differences"
            jaxpr = jax.make_jaxpr(self._primal)(*self.sample).jaxpr
            if rule := custom_rule(jaxpr):
                return f"forward has a {rule} inside, which autodiff would use"
            dy = self.random_cotangent(np.random.default_rng(0), self.sample)
            jax.eval_shape(_by_autodiff(self._primal), *self.sample, dy)
        except Exception as error:
            return f"no autodiff of forward: {(str(error).splitlines() or [''])[0][:100]}"
        return ""

    @functools.cached_property
    def _primal(self) -> Callable[..., Any]:
        if self.rule.surrogate:
            return self.rule.primal
        custom = custom_rule(self._jaxpr)
        return without_custom_rules(self.rule.primal) if custom else self.rule.primal

    def autodiff(self, sample: Sample, dy: Any) -> Cotangents:
        """The cotangents by ``jax.vjp`` of the forward; or the declared ones.

        Raises:
          OutOfTime: after the deadline.
        """
        self.in_time()
        if self.rule.declared is not None:
            cotangents = self.cotangents(*self.rule.declared(sample.params, sample.x, dy))
            pairs = zip(cotangents, self.floats(sample), strict=True)
            return [np.zeros_like(f) if c is None else c for c, f in pairs]
        return [np.asarray(d) for d in compiled(_by_autodiff(self._primal))(*sample, dy)]


def as_numpy(leaf: Any) -> Any:
    """An array as NumPy's; a random key as it is."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def scale_of(leaf: np.ndarray) -> np.ndarray:
    """The scale on which each entry varies: itself, but not much less than its leaf's."""
    finite = np.where(np.isfinite(leaf), leaf, 0)
    return np.maximum(np.abs(finite), 0.1 * typical(finite) or 1.0)


def typical(leaf: np.ndarray) -> float:
    """The root of the mean square."""
    top = np.max(np.abs(leaf), initial=0)  # taken out, lest squares of 1e-170 be 0
    return float(top * np.sqrt(np.mean(np.square(leaf / top)))) if top else 0.0
