"""Checking a rule: a block, a pair of functions, or a function with a custom derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from fnn.block import Block, BlockTypeError, is_floating, require_block
from fnn.check import (
    batches,
    cost,
    derivative,
    kinks,
    localize,
    nonfinite_inputs,
    precision,
    rule,
    transformations,
)
from fnn.check.report import SKIPPED, WRONG, Report, Result
from fnn.check.rule import CheckError, Rule, Sample
from fnn.check.subject import Lab, cast
from fnn.compiling import jit_for_few_runs

PROPERTIES = (
    "cotangents", "autodiff", "differences", "kinks", "linear", "jit", "vmap", "microbatches",
    "batch sizes", "scan", "second order", "float32", "bfloat16", "float16", "edges", "cost",
    "residuals",
)  # fmt: skip


def block(
    block: Block,
    x: Any,
    params: Any = None,
    *,
    key: Any = None,
    dtype: Any = np.float64,
    seed: int = 0,
    skip: Sequence[str] = (),
    timed: bool = True,
    name: str = "",
) -> Report:
    """Checks a block's backward: that it is the derivative of its forward, and how good.

    Args:
      block: from a gate to a whole network with its loss.
      x: inputs, or ``jax.ShapeDtypeStruct`` to have them drawn (normal numbers; integers 0 or
        1), or a tuple of such. Where integers have a meaning (labels), give an array.
      params: by default those of ``init``, changed a little, so that a bias of 0 hides nothing.
      key: for blocks that draw random numbers.
      dtype: of the comparisons with autodiff and differences; float64 unless the block cannot.
      seed: of everything random here.
      skip: names of properties to leave out, see ``PROPERTIES``.
      timed: whether "cost" also takes the time.

    Returns:
      A :class:`Report`: print it, read ``.ok``, or call ``.assert_correct()``.

    Raises:
      CheckError: the check could not be run (forward raises, nothing floating, ...).

    >>> import fnn, jax
    >>> print(fnn.check.block(fnn.square(), jax.ShapeDtypeStruct((3,), "float32")).ok)
    True
    >>> wrong = fnn.square()._replace(backward=lambda params, x, dy: ({}, -2 * x * dy))
    >>> report = fnn.check.block(wrong, jax.ShapeDtypeStruct((3,), "float32"))
    >>> report.problems[0].diagnosis
    'is -1 times the truth everywhere: the sign is wrong'
    """
    try:
        require_block("fnn.check.block", "block", block)
    except BlockTypeError as error:
        raise CheckError(str(error)) from None
    return _check(rule.of_block(block, name), x, params, key, dtype, seed, skip, timed)


def pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *args: Any,
    name: str = "",
    seed: int = 0,
    skip: Sequence[str] = (),
    timed: bool = True,
) -> Report:
    """Checks two plain functions: ``forward(*args) -> (y, residuals)`` and
    ``backward(residuals, dy) -> dargs``, as ``jax.custom_vjp.defvjp`` takes them.

    ``args``: arrays or ``jax.ShapeDtypeStruct``. ``dargs``: a tuple with one cotangent for each
    of args (None for integers).

    >>> import fnn, jax, jax.numpy as jnp
    >>> report = fnn.check.pair(
    ...     lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),),
    ...     jax.ShapeDtypeStruct((4,), "float32"))
    >>> report.ok
    True
    """
    name = name or getattr(backward, "__name__", "pair")
    made = rule.of_pair(forward, backward, name)
    return _check(made, tuple(args), {}, None, np.float64, seed, skip, timed)


def function(
    f: Callable[..., Any],
    *args: Any,
    name: str = "",
    seed: int = 0,
    skip: Sequence[str] = (),
    timed: bool = True,
) -> Report:
    """Checks the derivative that ``jax.grad`` uses for ``f``: its ``custom_vjp`` rule.

    The referees are autodiff of ``f`` without its custom rules, and differences. ``args``:
    arrays or ``jax.ShapeDtypeStruct``, or pytrees of such.

    >>> import fnn, jax
    >>> @jax.custom_vjp
    ... def double(x):
    ...     return 2 * x
    >>> double.defvjp(lambda x: (2 * x, None), lambda _, dy: (dy,))  # forgets the 2
    >>> fnn.check.function(double, jax.ShapeDtypeStruct((4,), "float32")).problems[0].diagnosis
    'is 0.5 times the truth everywhere: a half is lost (or a factor 2 is missing)'
    """
    name = name or getattr(f, "__name__", "function")
    skip = (*skip, "second order", "residuals")  # custom_vjp has reverse mode only
    made = rule.of_function(f, name)
    return _check(made, tuple(args), {}, None, np.float64, seed, skip, timed)


def cases(checked: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """One pytest parameter for each property, so that each is a test of its own.

    ``checked`` is a block, or one of ``fnn.check.block``, ``pair``, ``function``; ``args`` and
    ``options`` are what that takes. The check runs once, when the first of the tests does.

    ::

        @pytest.mark.parametrize("holds", fnn.check.cases(my_block(), x))
        def test_my_block(holds):
            holds()
    """
    import functools

    import pytest

    run = functools.partial(block, checked) if isinstance(checked, Block) else checked
    report = functools.lru_cache(maxsize=1)(lambda: run(*args, **options))

    def test(name: str) -> Callable[[], None]:
        def holds() -> None:
            result = report()[name]
            if result.status == WRONG:
                raise AssertionError("\n".join(map(str, result.problems)))
            if result.status == SKIPPED:
                pytest.skip(result.figure)

        return holds

    left_out = tuple(options.get("skip", ()))
    if run is function:
        left_out += ("second order", "residuals")
    return [pytest.param(test(name), id=name) for name in PROPERTIES if name not in left_out]


# ---- running it ------------------------------------------------------------------------------


def _check(
    made: Rule, x: Any, params: Any, key: Any, dtype: Any, seed: int, skip: Sequence[str],
    timed: bool,
) -> Report:  # fmt: skip
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    unknown = [name for name in skip if name not in PROPERTIES]
    if unknown:
        raise CheckError(f"no property {unknown[0]!r} to skip; there are: {', '.join(PROPERTIES)}")
    with _exactly():
        lab = _lab(made, x, params, key, dtype, seed)
        report = Report(made.name, tuple(_results(lab, set(skip), timed)))
        if report.ok or made.block is None:
            return report

        def check_inner(part: localize.Inner) -> list[Result]:
            if not any(map(is_floating, jax.tree.leaves((part.sample.params, part.sample.x)))):
                return []
            inner = Lab(rule.of_block(part.block), part.sample, seed)
            _refuse(inner)
            return list(_results(inner, set(PROPERTIES) - set(report.wrong), timed=False))

        blamed = localize.blame(made.block, lab.sample, check_inner)
        return Report(report.name, report.results, blamed)


def first_wrong(
    block: Block, x: Any, params: Any = None, *, key: Any = None, seed: int = 0, name: str = ""
) -> Result | None:
    """The first property that does not hold, after which nothing more is looked at."""
    with _exactly():
        lab = _lab(rule.of_block(block, name), x, params, key, np.float64, seed)
        results = _results(lab, {"cost"}, timed=False)
        return next((result for result in results if result.status == WRONG), None)


@contextmanager
def _exactly() -> Iterator[None]:
    """float64, whole products, and no warnings of NumPy's: infinities are tried on purpose."""
    with (
        jax.enable_x64(True),
        jax.default_matmul_precision("highest"),
        np.errstate(all="ignore"),
    ):
        yield


def _lab(made: Rule, x: Any, params: Any, key: Any, dtype: Any, seed: int) -> Lab:
    lab = Lab(made, _sample(made, x, params, key, dtype, seed), seed)
    _refuse(lab)
    return lab


def _sample(made: Rule, x: Any, params: Any, key: Any, dtype: Any, seed: int) -> Sample:
    if str(dtype) not in ("float64", "float32") and dtype not in (np.float64, np.float32):
        raise CheckError(f"dtype is {dtype!r}, needs numpy.float64 or numpy.float32")
    dtype = np.dtype(dtype)
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise CheckError(f"seed is {seed!r}, needs a whole number of at least 0")
    rng = np.random.default_rng(seed)
    for what, tree in (("inputs", x), ("params", params)):
        for leaf in jax.tree.leaves(tree):
            numbers = hasattr(leaf, "shape") or isinstance(leaf, (int, float))
            if not numbers or (what == "params" and isinstance(leaf, jax.ShapeDtypeStruct)):
                also = " or jax.ShapeDtypeStruct" if what == "inputs" else ""
                raise CheckError(
                    f"{what} need to be arrays{also}, got {type(leaf).__name__} {leaf!r:.60}"
                )
    if isinstance(x, tuple) and x and all(type(v) is int for v in x):
        raise CheckError(
            f"x is {x}, numbers without a gradient; if a shape is meant, give "
            f"jax.ShapeDtypeStruct({x}, 'float32')"
        )
    x = jax.tree.map(lambda v: v if hasattr(v, "shape") else np.asarray(v, dtype), x)
    if not jax.tree.leaves(x):
        raise CheckError("no inputs: x is an empty pytree, give at least one array")
    x = cast(rule.draw(x, rng), dtype)
    if params is None and made.block is not None:
        init = made.block.init
        try:
            params = jit_for_few_runs(lambda seed, x: init(jax.random.key(seed), x))(seed, x)
        except Exception as error:
            raise CheckError(f"{made.name}: init raises {_line(error)}") from error
        params = rule.redraw(jax.device_get(params), rng)
    params = cast(jax.device_get(params), dtype)
    return Sample(params, x, key)


def _refuse(lab: Lab) -> None:
    """What cannot be checked, in words, before anything is compiled."""
    name = lab.rule.name
    if not lab.layout.places:
        raise CheckError(
            f"{name}: neither params nor x have a floating leaf, so there is no gradient to check; "
            "give a floating input"
        )
    if not any(leaf.size for leaf in lab.layout.floats(lab.sample)):
        raise CheckError(f"{name}: every floating input is empty, so there is nothing to check")
    try:
        shapes = jax.eval_shape(lambda *s: lab.rule.forward(*s), *lab.sample)
    except CheckError:
        raise
    except Exception as error:
        raise CheckError(f"{name}: forward raises {_line(error)}") from error
    if not isinstance(shapes, tuple) or len(shapes) != 2:
        raise CheckError(f"{name}: forward needs to return (y, residuals)")
    if not any(is_floating(v) for v in jax.tree.leaves(shapes[0])):
        raise CheckError(f"{name}: y has no floating output, so there is nothing to differentiate")
    try:
        dy = lab.cotangent(np.random.default_rng(0))
        jax.eval_shape(lab.programs.traced, *lab.sample, dy)
    except CheckError:
        raise
    except Exception as error:
        raise CheckError(f"{name}: backward raises {_line(error)}") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _results(lab: Lab, skip: set[str], timed: bool) -> Iterator[Result]:
    structure = derivative.cotangents(lab)
    yield structure
    if structure.status == WRONG:
        for name in PROPERTIES[1:]:
            if name not in skip:
                yield Result(name, SKIPPED, "cotangents do not fit")
        return
    tried = derivative.trials(lab)

    def want(name: str) -> bool:
        return name not in skip

    if want("autodiff"):
        yield derivative.autodiff(lab, tried)[0]
    if want("differences"):
        yield derivative.by_differences(lab, tried)
    if want("kinks"):
        yield kinks.kinks(lab)
    if want("linear"):
        yield derivative.linear(lab, tried)
    if want("jit"):
        yield transformations.jit(lab, tried)
    if want("vmap"):
        yield transformations.vmap(lab, tried)
    yield from (r for r in batches.batches(lab, tried) if want(r.property))
    if want("scan"):
        yield transformations.scan(lab, tried)
    if want("second order"):
        yield transformations.second_order(lab, tried)
    for name in precision.NARROW:
        if want(name):
            yield precision.precision(lab, tried, name)
    if want("edges"):
        yield nonfinite_inputs.edges(lab, tried)
    if want("cost"):
        yield cost.cost(lab, tried, timed)
    if want("residuals"):
        yield cost.residuals(lab, tried)
