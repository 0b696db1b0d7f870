"""Checking a rule: a block, a pair of functions, or a function with a custom derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from fnn.block import Block, BlockTypeError, is_floating, require_block
from fnn.check import batches, cost, derivative, kinks, nonfinite_inputs, precision, transformations
from fnn.check.localize import Inner, blame
from fnn.check.report import SKIPPED, WRONG, Report, Result
from fnn.check.rule import CheckError, Rule, Sample, draw, of_block, of_function, of_pair, redraw
from fnn.check.subject import Subject, cast
from fnn.check.trials import evaluate, first_line
from fnn.compiling import jit_for_few_runs

_CHECKS: dict[str, Callable[..., Result]] = {
    "autodiff": derivative.autodiff,
    "differences": derivative.by_differences,
    "kinks": kinks.kinks,
    "linear": derivative.linear,
    "jit": transformations.jit,
    "vmap": transformations.vmap,
    "microbatches": batches.microbatches,
    "batch sizes": batches.batch_sizes,
    "scan": transformations.scan,
    "second order": transformations.second_order,
    **{
        dtype: functools.partial(precision.precision, dtype_name=dtype)
        for dtype in precision.DTYPES
    },
    "edges": nonfinite_inputs.edges,
    "cost": cost.cost,
    "residuals": cost.residuals,
}
PROPERTIES = ("cotangents", *_CHECKS)
_BY_DIFFERENCES = ("differences", "kinks", "second order")
_REVERSE_MODE_ONLY = ("second order", "residuals")  # which a function's custom_vjp has not


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
    """Checks that a block's backward is the derivative of its forward, and how accurate it is.

    Args:
      block: anything from a gate to a whole network with its loss.
      x: inputs, or ``jax.ShapeDtypeStruct`` to have them drawn (normal numbers; integers 0 or
        1), or a tuple of such. Where integers have a meaning (labels), give an array.
      params: by default those of ``init``, perturbed, so that a bias of 0 hides nothing.
      key: a ``jax.random.key``, for blocks that draw random numbers.
      dtype: of the comparisons with autodiff and differences: float64, or float32 for a block
        that does not run in float64.
      seed: random seed for inputs and checks.
      skip: names of properties to leave out, see ``PROPERTIES``.
      timed: whether "cost" also measures time.
      name: in the report, by default the block's own.

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
    return _check(subject_for(block, x, params, key, seed, name, dtype), skip, timed)


def pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *args: Any,
    name: str = "",
    seed: int = 0,
    skip: Sequence[str] = (),
    timed: bool = True,
) -> Report:
    """Checks a forward and a backward as ``jax.custom_vjp.defvjp`` takes them.

    Args:
      forward: ``forward(*args) -> (y, residuals)``.
      backward: ``backward(residuals, dy) -> dargs``, a tuple with one cotangent for each of
        ``args``, None for integers.
      args: arrays or ``jax.ShapeDtypeStruct``, or pytrees of such.
      name, seed, skip, timed: as in :func:`block`.

    Returns:
      A :class:`Report`.

    Raises:
      CheckError: the check could not be run.

    >>> import fnn, jax, jax.numpy as jnp
    >>> report = fnn.check.pair(
    ...     lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),),
    ...     jax.ShapeDtypeStruct((4,), "float32"))
    >>> report.ok
    True
    """
    name = name or getattr(backward, "__name__", "pair")
    checked = of_pair(forward, backward, name)
    return _check(_subject(checked, tuple(args), {}, None, np.float64, seed), skip, timed)


def function(
    f: Callable[..., Any],
    *args: Any,
    name: str = "",
    seed: int = 0,
    skip: Sequence[str] = (),
    timed: bool = True,
) -> Report:
    """Checks the derivative that ``jax.grad`` uses for ``f``: its ``custom_vjp`` rule.

    It is compared with autodiff of ``f`` without its custom rules, and with differences.

    Args:
      f: ``f(*args) -> y``; only its floating outputs are differentiated.
      args: arrays or ``jax.ShapeDtypeStruct``, or pytrees of such.
      name, seed, skip, timed: as in :func:`block`. "second order" and "residuals" are always
        skipped: a ``custom_vjp`` has reverse mode only, and its residuals are JAX's.

    Returns:
      A :class:`Report`.

    Raises:
      CheckError: the check could not be run.

    >>> import fnn, jax
    >>> @jax.custom_vjp
    ... def double(x):
    ...     return 2 * x
    >>> double.defvjp(lambda x: (2 * x, None), lambda _, dy: (dy,))  # forgets the 2
    >>> fnn.check.function(double, jax.ShapeDtypeStruct((4,), "float32")).problems[0].diagnosis
    'is 0.5 times the truth everywhere: a half is lost (or a factor 2 is missing)'
    """
    name = name or getattr(f, "__name__", "function")
    skip = (*skip, *_REVERSE_MODE_ONLY)
    checked = of_function(f, name)
    return _check(_subject(checked, tuple(args), {}, None, np.float64, seed), skip, timed)


def cases(checked: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """One pytest parameter for each property, so that each is a separate test.

    The check runs once, when the first of the tests does.

    Args:
      checked: a block, or one of ``fnn.check.block``, ``pair``, ``function``.
      args, options: the arguments of that check.

    Returns:
      Parameters for ``pytest.mark.parametrize``: functions that raise ``AssertionError`` where
      the property does not hold.

    ::

        @pytest.mark.parametrize("holds", fnn.check.cases(my_block(), x))
        def test_my_block(holds):
            holds()
    """
    import pytest  # here, for users of the other checks need not have it

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

    skip = (*options.get("skip", ()), *(_REVERSE_MODE_ONLY if run is function else ()))
    return [pytest.param(test(name), id=name) for name in PROPERTIES if name not in skip]


# ---- running it ------------------------------------------------------------------------------


def _check(subject: Subject, skip: Sequence[str], timed: bool) -> Report:
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    unknown = [name for name in skip if name not in PROPERTIES]
    if unknown:
        raise CheckError(f"no property {unknown[0]!r} to skip; there are: {', '.join(PROPERTIES)}")
    checked = subject.rule
    with precisely():
        report = Report(checked.name, tuple(_results(subject, skip, timed)))
        if report.ok or checked.block is None:
            return report
        right = set(PROPERTIES) - set(report.wrong)

        def check_inner(part: Inner) -> list[Result]:
            if not any(map(is_floating, jax.tree.leaves((part.sample.params, part.sample.x)))):
                return []
            inner = Subject(of_block(part.block), part.sample, subject.seed)
            _refuse(inner)
            return list(_results(inner, right, timed=False))

        inside = blame(checked.block, subject.sample, check_inner)
        return Report(report.name, report.results, inside)


def first_wrong(subject: Subject) -> Result | None:
    """The first property that does not hold, without "cost"; None if all hold."""
    with precisely():
        _refuse(subject)
        results = _results(subject, ("cost",), timed=False)
        return next((result for result in results if result.status == WRONG), None)


def _results(subject: Subject, skip: Sequence[str] | set[str], timed: bool) -> Iterator[Result]:
    structure = derivative.cotangents(subject)
    yield structure
    trials = evaluate(subject) if structure.status != WRONG else []
    for name, check in _CHECKS.items():
        if name in skip:
            continue
        if not trials:
            yield Result(name, SKIPPED, "cotangents of the wrong structure, shape or dtype")
        elif name in _BY_DIFFERENCES and subject.in_float32:
            yield Result(name, SKIPPED, "float32 is too coarse for differences")
        elif name == "cost":
            yield check(subject, trials, timed)
        else:
            yield check(subject, trials)


@contextmanager
def precisely() -> Iterator[None]:
    """float64, products in full precision, and no NumPy warnings: infinities are intended."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"), np.errstate(all="ignore"):
        yield


def subject_for(
    block: Block,
    x: Any,
    params: Any = None,
    key: Any = None,
    seed: int = 0,
    name: str = "",
    dtype: Any = np.float64,
    caller: str = "fnn.check.block",
) -> Subject:
    """A block with the given or drawn inputs.

    Raises:
      CheckError: it is not a block, or cannot be checked.
    """
    try:
        require_block(caller, "block", block)
    except BlockTypeError as error:
        raise CheckError(str(error)) from None
    return _subject(of_block(block, name), x, params, key, dtype, seed)


def _subject(checked: Rule, x: Any, params: Any, key: Any, dtype: Any, seed: int) -> Subject:
    with precisely():
        subject = Subject(checked, _sample(checked, x, params, key, dtype, seed), seed)
        _refuse(subject)
    return subject


def _sample(checked: Rule, x: Any, params: Any, key: Any, dtype: Any, seed: int) -> Sample:
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
            f"x is {x}, integers, which have no gradient; if a shape is meant, give "
            f"jax.ShapeDtypeStruct({x}, 'float32')"
        )
    x = jax.tree.map(lambda v: v if hasattr(v, "shape") else np.asarray(v, dtype), x)
    if not jax.tree.leaves(x):
        raise CheckError("no inputs: x is an empty pytree, give at least one array")
    x = cast(draw(x, rng), dtype)
    if params is None and checked.block is not None:
        init = checked.block.init
        try:
            params = jit_for_few_runs(lambda seed, x: init(jax.random.key(seed), x))(seed, x)
        except Exception as error:
            raise CheckError(f"{checked.name}: init raises {first_line(error, 300)}") from error
        params = redraw(jax.device_get(params), rng)
    params = cast(jax.device_get(params), dtype)
    return Sample(params, x, key)


def _refuse(subject: Subject) -> None:
    """Raises CheckError for what cannot be checked, before anything is compiled."""
    name = subject.rule.name
    if not subject.names:
        raise CheckError(
            f"{name}: neither params nor x have a floating leaf, so there is no gradient to check; "
            "give a floating input"
        )
    if not any(leaf.size for leaf in subject.sample.floats):
        raise CheckError(f"{name}: every floating input is empty, so there is nothing to check")

    def shapes_of(what: str, f: Callable[..., Any], *args: Any) -> Any:
        try:
            return jax.eval_shape(f, *args)
        except CheckError:
            raise
        except Exception as error:
            raise CheckError(f"{name}: {what} raises {first_line(error, 300)}") from error

    shapes = shapes_of("forward", lambda *s: subject.rule.forward(*s), *subject.sample)
    if not isinstance(shapes, tuple) or len(shapes) != 2:
        raise CheckError(f"{name}: forward needs to return (y, residuals)")
    if not any(is_floating(v) for v in jax.tree.leaves(shapes[0])):
        raise CheckError(f"{name}: y has no floating output, so there is nothing to differentiate")
    dy = subject.random_cotangent(np.random.default_rng(0), subject.sample)
    shapes_of("backward", subject.programs.traced, *subject.sample, dy)
