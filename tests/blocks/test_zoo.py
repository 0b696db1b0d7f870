"""Every public block crossed with every property.

Each property is a function of a row of the table in zoo.py that raises AssertionError where the
row's block does not have it. At the end, backward passes that are broken on purpose show that
the properties notice.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.arrays import compute_dtype, is_floating
from fnn.block import Block
from fnn.introspect.autodiff import by_autodiff
from tests.zoo import CASES, Case, In, Sample, fixed, is_checked, labels, positive, sample

try:
    from jax.interpreters.partial_eval import dce_jaxpr
except ImportError:  # newer JAX
    from jax._src.interpreters.partial_eval import dce_jaxpr

Run = Callable[..., tuple[Any, Any, Any]]


# ---- what the properties are made of ---------------------------------------------------------


def none_is_leaf(leaf: Any) -> bool:
    return leaf is None


def entries(tree: Any) -> Iterator[tuple[str, Any]]:
    """(path, leaf) for all leaves, None included."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=none_is_leaf):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def close(got: Any, wanted: Any, tolerance: float) -> None:
    """Equal leaf by leaf: a sum over leaves would let a large one cover a wrong small one."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, a), (_, b) in zip(entries(got), entries(wanted), strict=True):
        if a is None and b is None:
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, (path, a.shape, b.shape)
        limit = tolerance * np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=limit, err_msg=path)


def by_hand(block: Block) -> Run:
    """(params, x, key, dy) -> (y, dparams, dx) by the block's own backward."""

    def run(params: Any, x: Any, key: Any, dy: Any) -> tuple[Any, Any, Any]:
        y, residuals = block.forward(params, x, key)
        return (y, *block.backward(params, residuals, dy))

    return run


def own_autodiff(block: Block) -> Run:
    return by_autodiff(lambda params, x, key: block.forward(params, x, key)[0])


def without_frozen(case: Case, dparams: Any) -> Any:
    """None in place of the cotangents of the row's frozen parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, d: (
            None
            if jax.tree_util.keystr(path, simple=True, separator="/").startswith(case.frozen)
            else d
        ),
        dparams,
    )


class Lab:
    """A row's block and sample, and the compiled functions that several properties use."""

    def __init__(self, case: Case) -> None:
        self.case, self.block = case, case.make()
        self.sample = sample(case)
        self.run = jax.jit(by_hand(self.block))

    @functools.cached_property
    def result(self) -> tuple[Any, Any, Any]:
        return self.run(*self.sample)

    @functools.cached_property
    def reference(self) -> tuple[tuple[Any, Any, Any], Any]:
        """What autodiff makes of the block's forward, and the value of the plain formula."""
        plain = self.case.plain or (lambda params, x: None)
        autodiff = own_autodiff(self.block)
        return jax.jit(lambda s: (autodiff(*s), plain(s.params, s.x)))(self.sample)

    @functools.cached_property
    def narrow(self) -> list[tuple[Any, Sample, tuple[Any, Any, Any]]]:
        """(dtype, sample, result) in lower precision: three runs in one compilation."""
        samples = [lowered(self.block, self.sample, dtype) for dtype in NARROW]
        results = jax.jit(lambda all: [by_hand(self.block)(*s) for s in all])(samples)
        return list(zip(NARROW, samples, results, strict=True))


lab = functools.lru_cache(maxsize=4)(Lab)


def cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in another dtype; by NumPy, as each eager cast would be compiled."""
    return jax.tree.map(
        lambda v: jax.device_put(np.asarray(v).astype(dtype)) if is_floating(v) else v, tree
    )


def lowered(block: Block, s: Sample, dtype: Any) -> Sample:
    """The sample with inputs in ``dtype``, and parameters and dy in the dtypes that follow."""
    x = cast(s.x, dtype)
    start = jax.eval_shape(block.init, jax.random.key(0), x)
    params = jax.tree.map(lambda p, like: cast(p, like.dtype), s.params, start)
    y = jax.eval_shape(block.forward, params, x, s.key)[0]
    return Sample(params, x, s.key, jax.tree.map(lambda d, v: cast(d, v.dtype), s.dy, y))


NARROW = (jnp.float32, jnp.bfloat16, jnp.float16)


# ---- the properties --------------------------------------------------------------------------


def agrees_with_autodiff(case: Case) -> None:
    """Per leaf, under a random cotangent, in float64."""
    here = lab(case)
    y, dparams, dx = here.reference[0]
    close(here.result, (y, without_frozen(case, dparams), dx), 1e-12)


def agrees_with_finite_differences(case: Case) -> None:
    """Per leaf, along a random direction: independent of autodiff and of JAX's rules.

    Central differences at h, h/2 and h/4, extrapolated twice, have an error of order h^6.
    """
    here = lab(case)
    s = here.sample
    cotangents = [d for _, d in entries(here.result[1:])]
    leaves, tree = jax.tree.flatten(jax.device_get((s.params, s.x)))
    rng = np.random.default_rng(0)

    @jax.jit
    def projected(leaves: list[Any]) -> Any:
        y = here.block.forward(*tree.unflatten(leaves), s.key)[0]
        parts = jax.tree.map(lambda v, d: jnp.sum(v * d), y, s.dy)
        return functools.reduce(jnp.add, jax.tree.leaves(parts))

    for i, d in enumerate(cotangents):
        if d is None or not d.size:
            continue
        direction = rng.uniform(-1, 1, d.shape)

        def slope(h: float, i: int = i, direction: Any = direction) -> float:
            above, below = list(leaves), list(leaves)
            above[i], below[i] = leaves[i] + h * direction, leaves[i] - h * direction
            return (float(projected(above)) - float(projected(below))) / (2 * h)

        d0, d1, d2 = (slope(case.step / n) for n in (1, 2, 4))
        wide, narrow = (4 * d1 - d0) / 3, (4 * d2 - d1) / 3
        measured = (16 * narrow - wide) / 15
        d = np.asarray(d)
        scale = np.linalg.norm(d) * np.linalg.norm(direction)
        assert abs(np.sum(d * direction) - measured) <= 1e-7 * scale + 1e-11, (
            i,
            np.sum(d * direction),
            measured,
        )


def is_linear_in_the_cotangent(case: Case) -> None:
    here = lab(case)
    params, x, key, u = here.sample
    u = jax.tree.map(np.asarray, u)  # NumPy: each eager operation would be compiled
    v = jax.tree.map(lambda d: np.cos(3 * d), u)
    both = jax.tree.map(lambda a, b: 2 * a - 3 * b, u, v)
    du, dv = jax.device_get((here.result[1:], here.run(params, x, key, v)[1:]))
    wanted = jax.tree.map(lambda a, b: 2 * a - 3 * b, du, dv)
    got = here.run(params, x, key, both)[1:]
    # Relative to the parts, whose difference may cancel.
    size = jax.tree.map(lambda a, b: float(np.max(np.abs(a) + np.abs(b), initial=0)), du, dv)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda a, b, s: np.testing.assert_allclose(a, b, rtol=1e-12, atol=5e-12 * s),
        got,
        wanted,
        size,
    )
    nothing = jax.device_get(here.run(params, x, key, jax.tree.map(np.zeros_like, u))[1:])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(nothing))


def cotangents_match(case: Case) -> None:
    """Every cotangent has the structure, shape and dtype of what it belongs to, or is None
    exactly where it is an integer's or a frozen parameter's."""
    here = lab(case)
    matching(case, jnp.float64, here.sample, here.result)


def matching(case: Case, dtype: Any, s: Sample, result: tuple[Any, Any, Any]) -> None:
    y, dparams, dx = result
    for value in jax.tree.leaves(y):
        assert value.dtype in (dtype, compute_dtype(dtype)), value.dtype
    for value, d, frozen in ((s.params, dparams, case.frozen), (s.x, dx, ())):
        assert jax.tree.structure(value) == jax.tree.structure(d, is_leaf=none_is_leaf)
        for (path, a), (_, b) in zip(entries(value), entries(d), strict=True):
            if not is_floating(a) or path.startswith(frozen):
                assert b is None, (path, b)
            else:
                assert b is not None and (b.shape, b.dtype) == (a.shape, a.dtype), (path, a, b)


def jit_equals_eager(case: Case) -> None:
    here = lab(case)
    close(here.result, by_hand(here.block)(*here.sample), 1e-13)


def vmap_equals_a_loop(case: Case) -> None:
    here, (a, b) = lab(case), (sample(case, seed=1), sample(case, seed=2))

    def stacked(u: Any, v: Any) -> Any:
        return jax.tree.map(lambda p, q: np.stack([p, q]), u, v)

    axes = (None, 0, 0 if case.needs_key else None, 0)
    keys = jnp.stack([a.key, b.key]) if case.needs_key else None
    together = jax.jit(jax.vmap(here.run, in_axes=axes))(
        a.params, stacked(a.x, b.x), keys, stacked(a.dy, b.dy)
    )
    close(together, stacked(here.run(*a), here.run(*b)), 1e-12)


def microbatches_add_up(case: Case) -> None:
    """A batch of four is two of two: parameter gradients add, the inputs' are concatenated."""
    here, rest = lab(case), case.batch[1:]
    s = sample(case, (4, *rest))
    s = s._replace(x=jax.device_get(s.x), dy=jax.device_get(s.dy))
    share = 0.5 if case.separable == "mean" else 1.0  # of a mean, each half is half
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        x = jax.tree.map(lambda v, half=half: v[half], s.x)
        dy = s.dy * share if case.separable == "mean" else jax.tree.map(lambda v: v[half], s.dy)  # noqa: B023
        halves.append(here.run(s.params, x, s.key, dy))
    (y1, dp1, dx1), (y2, dp2, dx2) = halves
    join = functools.partial(jax.tree.map, lambda a, b: np.concatenate([a, b]))
    y = (y1 + y2) * share if case.separable == "mean" else join(y1, y2)
    wanted = y, jax.tree.map(np.add, dp1, dp2), join(dx1, dx2)
    close(here.run(*s), wanted, 1e-12)


def low_precision_is_close(case: Case) -> None:
    """As good as computing in float64 from the same rounded inputs, and rounding a few times;
    cotangents in the dtypes of what they belong to."""
    here = lab(case)
    for dtype, low, got in here.narrow:
        matching(case, dtype, low, got)
        wanted = here.run(*cast(tuple(low), jnp.float64))
        close(cast(got, jnp.float64), wanted, case.ulps * float(jnp.finfo(dtype).eps))


def works_for_every_batch(case: Case) -> None:
    """Ranks 1 to 4, one example, none: against autodiff, finite, in one compilation."""
    here = lab(case)
    samples = [sample(case, batch) for batch in case.batches]

    @jax.jit
    def all_of_them(samples: list[Sample]) -> Any:
        own, reference = by_hand(here.block), own_autodiff(here.block)
        return [(own(*s), reference(*s)) for s in samples]

    for s, (got, (y, dparams, dx)) in zip(samples, all_of_them(samples), strict=True):
        for value in jax.tree.leaves(got):
            assert np.all(np.isfinite(value)), s
        if not case.surrogate:
            close(got, (y, without_frozen(case, dparams), dx), 1e-12)


def second_derivatives_are_right(case: Case) -> None:
    """A Hessian-vector product through backward equals one through jax.vjp."""
    here = lab(case)
    params, x, key, dy = here.sample
    leaves, tree = jax.tree.flatten((params, x))
    places = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def curved(run: Run) -> Any:
        def f(floats: list[Any]) -> Any:
            filled = list(leaves)
            for i, value in zip(places, floats, strict=True):
                filled[i] = value
            _, dparams, dx = run(*tree.unflatten(filled), key, dy)
            return without_frozen(case, dparams), dx

        floats = [leaves[i] for i in places]
        return jax.jvp(f, (floats,), ([jnp.sin(5 * v) for v in floats],))[1]

    got, wanted = jax.jit(lambda: (curved(by_hand(here.block)), curved(own_autodiff(here.block))))()
    # Formulas with exact heads and tails round their own derivative to half the digits.
    close(got, wanted, 1e-6)


def every_residual_is_used(case: Case) -> None:
    """Backward, traced and cleaned of dead code, reads every residual."""
    here = lab(case)
    params, x, key, dy = here.sample
    residuals = jax.eval_shape(here.block.forward, params, x, key)[1]
    leaves, tree = jax.tree.flatten(residuals)

    def backward(leaves: list[Any]) -> Any:
        return jax.tree.leaves(here.block.backward(params, tree.unflatten(leaves), dy))

    jaxpr = jax.make_jaxpr(backward)(leaves).jaxpr
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(residuals)]
    unused = [
        jax.tree_util.keystr(path) for path, read in zip(paths, used, strict=True) if not read
    ]
    assert bool(unused) == bool(case.unused), unused


def keeps_no_more_than_autodiff(case: Case) -> None:
    """Residual bytes against what jax.vjp keeps for the plain formula (parameters not counted)."""
    here = lab(case)
    _, _, key, _ = here.sample
    plain = case.plain or (lambda params, x: here.block.forward(params, x, key)[0])
    kept = {}

    def count(values: Any, params: Any) -> int:
        """Bytes of what is kept besides the parameters; the same array twice counts once."""
        own = {id(leaf) for leaf in jax.tree.leaves(params)}
        arrays = {id(leaf): leaf for leaf in jax.tree.leaves(values) if id(leaf) not in own}
        return sum(a.size * a.dtype.itemsize for a in arrays.values() if not is_key(a))

    def trace(params: Any, x: Any) -> None:
        leaves, tree = jax.tree.flatten((params, x))
        places = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

        def f(floats: list[Any]) -> Any:
            filled = list(leaves)
            for i, value in zip(places, floats, strict=True):
                filled[i] = value
            return plain(*tree.unflatten(filled))

        kept["autodiff"] = count(jax.vjp(f, [leaves[i] for i in places])[1], params)
        kept["by hand"] = count(here.block.forward(params, x, key)[1], params)

    jax.eval_shape(trace, here.sample.params, here.sample.x)
    assert (kept["by hand"] > kept["autodiff"]) == bool(case.bytes_over), kept


def is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def value_is_the_formula(case: Case) -> None:
    """Forward, and so everything compared to it above, is the textbook's function."""
    here = lab(case)
    close(here.result[0], here.reference[1], 1e-12)


def init_reads_shapes_only(case: Case) -> None:
    """From an array or its shape the same arrays, in float32 at least, from one key."""
    here = lab(case)
    if not jax.tree.leaves(here.sample.params):
        return
    single = cast(here.sample.x, jnp.float32)
    shape = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), single)
    x = jax.tree.map(lambda v: np.ones(v.shape, v.dtype), shape)
    init = here.block.init
    from_shape, from_array = jax.jit(lambda k, x: (init(k, shape), init(k, x)))(
        jax.random.key(3), x
    )
    close(from_shape, from_array, 0)
    for path, leaf in entries(from_shape):
        assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32, (path, leaf)


PROPERTIES: dict[Callable[[Case], None], Callable[[Case], Any]] = {
    agrees_with_autodiff: lambda case: not case.surrogate,
    agrees_with_finite_differences: lambda case: not case.surrogate,
    is_linear_in_the_cotangent: lambda case: True,
    cotangents_match: lambda case: True,
    jit_equals_eager: lambda case: True,
    vmap_equals_a_loop: lambda case: True,
    microbatches_add_up: lambda case: case.separable and case.batch,
    low_precision_is_close: lambda case: True,
    works_for_every_batch: lambda case: case.batches,
    second_derivatives_are_right: lambda case: not case.surrogate,
    every_residual_is_used: lambda case: True,
    keeps_no_more_than_autodiff: lambda case: True,
    value_is_the_formula: lambda case: case.plain,
    init_reads_shapes_only: lambda case: True,
}


# fnn.check proves these for every row (tests/check/test_zoo_is_right.py, slow tests). Here they are
# for the rows that check refuses, for one block in six, which says that both agree, and narrow
# dtypes for each block.
PROVED_BY_CHECK = {
    agrees_with_finite_differences, is_linear_in_the_cotangent, jit_equals_eager,
    vmap_equals_a_loop, microbatches_add_up, low_precision_is_close,
    second_derivatives_are_right, every_residual_is_used,
}  # fmt: skip
# These take long to compile, too: tests/outside/test_further_rows.py has them for further rows.
# Values, gradients by autodiff and the bytes that are kept are always checked.
LONG = {works_for_every_batch, init_reads_shapes_only}
AGAIN = [case.id for case in CASES if not case.further][::6]
AGAIN = [id for id in AGAIN if not id.endswith("/small")]  # whole networks


def is_due(case: Case, holds: Callable[[Case], None]) -> bool:
    if holds in PROVED_BY_CHECK and is_checked(case):
        again = holds is low_precision_is_close or case.id in AGAIN
        return not case.further and again and bool(PROPERTIES[holds](case))
    return bool(PROPERTIES[holds](case)) and not (case.further and holds in LONG)


def marks(case: Case, holds: Callable[[Case], None]) -> list[Any]:
    if case.further:  # every third in make test
        return [pytest.mark.slow] if CASES.index(case) % 3 else []
    return [pytest.mark.core] if holds in (agrees_with_autodiff, low_precision_is_close) else []


@pytest.mark.parametrize(
    ("case", "holds"),
    [
        # Row by row, so that a worker's cache serves all properties of a row.
        pytest.param(case, holds, id=f"{case.id}-{holds.__name__}", marks=marks(case, holds))
        for case in CASES
        for holds in PROPERTIES
        if is_due(case, holds)
    ],
)
def test_block(case: Case, holds: Callable[[Case], None]) -> None:
    holds(case)


def makes_a_block(function: Any) -> bool:
    """Whether a function says that it returns a Block."""
    if not inspect.isfunction(function):
        return False
    returns = inspect.signature(function).return_annotation
    return returns is Block or returns == "Block"


def test_every_public_block_has_a_row() -> None:
    public = {
        value.__name__  # an alias is the same function: fnn.sigmoid is fnn.logistic
        for module in (fnn, fnn.models)
        for name, value in vars(module).items()
        if makes_a_block(value) and not name.startswith("_")
    }
    # Networks of 22 layers take minutes to be crossed with every property; test_conv_nets.py
    # holds them to autodiff.
    public -= {"googlenet", "googlenet_batch_norm"}
    rows = {case.name for case in CASES}
    assert [case.name for case in CASES if not case.further] == list(
        dict.fromkeys(case.name for case in CASES)
    ), "each block has one first row"
    assert public - rows == set(), "public blocks that are not in tests/zoo.py"
    assert rows - public == set(), "rows of tests/zoo.py that are not public blocks"
    assert len({case.id for case in CASES}) == len(CASES)
    assert {"linear", "graph", "softmax_cross_entropy", "mlp"} <= public  # the search searches


# ---- broken on purpose -----------------------------------------------------------------------


def broken(block: Block, change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[], Block]:
    """The block with its cotangents changed: ``change(dparams, dx) -> (dparams, dx)``."""

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        return change(*block.backward(params, residuals, dy))

    return lambda: block._replace(backward=backward)


def keeping_more(block: Block) -> Callable[[], Block]:
    def forward(params: Any, x: Any, key: Any = None) -> Any:
        y, residuals = block.forward(params, x, key)
        return y, (residuals, 2 * y)

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        return block.backward(params, residuals[0], dy)

    return lambda: block._replace(forward=forward, backward=backward)


def forgetting_the_cotangent() -> Block:
    """Right for dy = 1 and for no other."""
    block = fnn.square()
    return block._replace(backward=lambda params, x, dy: ({}, 2 * x))


def averaging_the_bias(dparams: Any, dx: Any) -> Any:
    return dparams | {"b": dparams["b"] / dx.shape[0]}, dx


def leaking_between_examples(dparams: Any, dx: Any) -> Any:
    return dparams, dx + 1e-9 * jnp.sum(dx, 0, keepdims=True)


def in_single_precision(dparams: Any, dx: Any) -> Any:
    return dparams, dx.astype(jnp.float32).astype(dx.dtype)


def a_python_branch_on_size(dparams: Any, dx: Any) -> Any:
    return dparams, dx * (1 if dx.shape[0] <= 2 else 0.5)


square_rows = (In((3,)),)
MUTANTS: dict[str, tuple[Callable[[], Block], tuple[In, ...], set[Any]]] = {
    "sign": (
        broken(fnn.square(), lambda dp, dx: (dp, -dx)), (In(),),
        {agrees_with_autodiff, agrees_with_finite_differences},
    ),
    "one part in a billion": (
        broken(fnn.square(), lambda dp, dx: (dp, dx * (1 + 1e-9))), (In(),),
        {agrees_with_autodiff},
    ),
    "transposed weight gradient": (
        broken(fnn.linear(3), lambda dp, dx: (dp | {"w": dp["w"].T}, dx)), square_rows,
        {agrees_with_autodiff, agrees_with_finite_differences},
    ),
    "bias gradient a mean": (
        broken(fnn.linear(3), averaging_the_bias), square_rows,
        {agrees_with_autodiff, agrees_with_finite_differences},
    ),
    "bias gradient not reduced": (
        broken(fnn.linear(3), lambda dp, dx: (dp | {"b": dx}, dx)), square_rows,
        {agrees_with_autodiff, cotangents_match},
    ),
    "cotangent of a broadcast input not reduced": (
        broken(fnn.add(), lambda dp, dx: (dp, (dx[1], dx[1]))), (fixed(1, 3), fixed(2, 3)),
        {agrees_with_autodiff, cotangents_match},
    ),
    "only right for dy = 1": (
        forgetting_the_cotangent, (In(),), {agrees_with_autodiff, is_linear_in_the_cotangent},
    ),
    "wrong dtype": (
        broken(fnn.square(), lambda dp, dx: (dp, dx.astype(jnp.float32))), (In(),),
        {cotangents_match},
    ),
    "digits lost": (
        broken(fnn.square(), in_single_precision), (In(),), {agrees_with_autodiff},
    ),
    "examples leak into each other": (
        broken(fnn.square(), leaking_between_examples), (In(),),
        {agrees_with_autodiff, microbatches_add_up},
    ),
    "batches of more than two wrong": (
        broken(fnn.square(), a_python_branch_on_size), (In(),),
        {microbatches_add_up, works_for_every_batch},
    ),
    "missing parameter gradient": (
        broken(fnn.linear(3), lambda dp, dx: ({"w": dp["w"]}, dx)), square_rows,
        {agrees_with_autodiff, cotangents_match},
    ),
    "a gradient for labels": (
        broken(fnn.softmax_cross_entropy(), lambda dp, dx: (dp, (dx[0], jnp.zeros(2)))),
        (In((4,)), In((), labels(4))), {agrees_with_autodiff, cotangents_match},
    ),
    "a residual too many": (
        keeping_more(fnn.square()), (In(),), {every_residual_is_used, keeps_no_more_than_autodiff},
    ),
    "exponent's gradient of another function": (
        broken(fnn.power(), lambda dp, dx: (dp, (dx[0], 1.001 * dx[1]))),
        (In((), positive), In()), {agrees_with_autodiff, agrees_with_finite_differences},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_backward_is_noticed(name: str) -> None:
    """By each of the properties named for it."""
    make, inputs, notice = MUTANTS[name]
    case = Case(f"square/{name}", make, inputs, batch=(2,), batches=((1,), (3,)))
    for holds in notice:
        with pytest.raises((AssertionError, TypeError, ValueError)):
            holds(case)
