"""Checking a rule: a block, a pair of functions, or a function with a custom derivative."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from fnn.arguments import Natural, NonNegative, RandomKey
from fnn.arrays import is_array, is_floating
from fnn.block import Block
from fnn.check.arguments import draw, split
from fnn.check.localize import Inner, blame
from fnn.check.options import Names, Precision, Seconds, checked
from fnn.check.report import SKIPPED, WRONG, CheckError, Report, Result
from fnn.check.rule import Rule, Sample, of_block, of_function, of_pair, redraw
from fnn.check.run import NOTES, PROPERTIES, QUICK, Options, Run, precisely
from fnn.check.subject import Subject, cast
from fnn.check.trials import in_one_line
from fnn.compiling import jit_for_few_runs
from fnn.refusals import described, shape_hint


@checked
def block(
    block: Block,
    x: Any,
    params: Any = None,
    *,
    key: RandomKey | None = None,
    dtype: Precision = None,
    seed: Natural = 0,
    rtol: NonNegative | None = None,
    atol: NonNegative = 0.0,
    strict: Names | bool = (),
    skip: Names = (),
    declared: Callable[..., Any] | None = None,
    quick: bool = False,
    seconds: Seconds = 60.0,
    timed: bool = True,
    name: str = "",
) -> Report:
    """Checks that a block's backward is the derivative of its forward.

    The verdict, ``report.correct``, is about the gradient wherever forward is smooth: structure,
    value, linearity, determinism, batches and transformations. What else is worth knowing is in
    ``report.notes``: digits lost in narrow dtypes, limits at infinity, what backward gives at
    kinks, residuals that are not needed.

    Args:
      block: anything from a gate to a whole network with its loss.
      x: inputs, or ``jax.ShapeDtypeStruct`` to have them drawn (normal numbers; integers 0 or
        1), or a tuple of such. Where integers have a meaning (labels), give an array.
      params: by default those of ``init``, perturbed, so that a bias of 0 hides nothing.
      key: a ``jax.random.key``, for blocks that draw random numbers.
      dtype: of the comparisons: float64 or float32; by default float64, and float32 for what does
        not run in float64, or returns float32 all the same.
      seed: random seed for inputs and checks.
      rtol: relative error of a cotangent that is no mistake, for a function that is right to a
        tolerance only; by default 1e-8 in float64, more where forward computes in a narrower dtype
        or approaches its result in a loop.
      atol: absolute error that is no mistake.
      strict: properties whose notes are mistakes, too, such as ``("float32", "edges")``; True for
        all of them.
      skip: names of properties to leave out, see ``PROPERTIES``.
      declared: where backward is on purpose not the derivative of forward (a straight-through
        estimator, a clipped cotangent, a stopped gradient), what it is meant to be:
        ``declared(params, x, dy) -> (dparams, dx)``.
      quick: only the properties that find most mistakes: ``QUICK``.
      seconds: how long the check may take; properties that are left then are not run.
      timed: whether "cost" also measures time.
      name: in the report, by default the block's own.

    Returns:
      A :class:`Report`: print it, read ``.correct`` and ``.notes``, or call
      ``.assert_correct()``.

    Raises:
      CheckError: the check could not be run (forward raises, nothing floating, ...).

    >>> import fnn, jax
    >>> fnn.check.block(fnn.square(), jax.ShapeDtypeStruct((3,), "float32")).correct
    True
    >>> wrong = fnn.square()._replace(backward=lambda params, x, dy: ({}, -2 * x * dy))
    >>> report = fnn.check.block(wrong, jax.ShapeDtypeStruct((3,), "float32"))
    >>> report.problems[0].diagnosis
    'is -1 times the truth everywhere: the sign is wrong'
    """
    options = _options(strict, skip, quick, seconds, timed)
    subject = subject_for(
        block, x, params, key, seed, name, dtype, declared=declared, rtol=rtol, atol=atol
    )
    return _check(subject, options)


@checked
def pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    dtype: Precision = None,
    seed: Natural = 0,
    rtol: NonNegative | None = None,
    atol: NonNegative = 0.0,
    strict: Names | bool = (),
    skip: Names = (),
    declared: Callable[..., Any] | None = None,
    quick: bool = False,
    seconds: Seconds = 60.0,
    timed: bool = True,
    name: str = "",
) -> Report:
    """Checks a forward and a backward as ``jax.custom_vjp.defvjp`` takes them.

    Args:
      forward: ``forward(*args) -> (y, residuals)``.
      backward: ``backward(residuals, dy) -> dargs``, a tuple with one cotangent for each of
        ``args``, None for integers.
      args: arrays or ``jax.ShapeDtypeStruct``, or pytrees of such; complex arrays are checked as
        their real and imaginary parts. Python integers, strings and the like are static.
      argnums: the numbers of the arguments that vary; by default all. The others are constants.
      declared: as in :func:`block`: ``declared(*args, dy) -> dargs``.
      dtype, seed, rtol, atol, strict, skip, quick, seconds, timed, name: as in :func:`block`.

    Returns:
      A :class:`Report`.

    Raises:
      CheckError: the check could not be run.

    >>> import fnn, jax, jax.numpy as jnp
    >>> report = fnn.check.pair(
    ...     lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),),
    ...     jax.ShapeDtypeStruct((4,), "float32"))
    >>> report.correct
    True
    """
    options = _options(strict, skip, quick, seconds, timed)
    arguments = split(args, argnums, seed)
    rule = of_pair(
        forward, backward, name or getattr(backward, "__name__", "pair"), arguments, declared
    )
    return _check(_subject(rule, arguments.varying, {}, None, dtype, seed, rtol, atol), options)


@checked
def function(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    key: Any = None,
    dtype: Precision = None,
    seed: Natural = 0,
    rtol: NonNegative | None = None,
    atol: NonNegative = 0.0,
    strict: Names | bool = (),
    skip: Names = (),
    declared: Callable[..., Any] | None = None,
    quick: bool = False,
    seconds: Seconds = 60.0,
    timed: bool = True,
    name: str = "",
) -> Report:
    """Checks the derivative that ``jax.grad`` uses for ``f``: a custom rule, or autodiff's own.

    It is compared with autodiff of ``f`` without its custom rules, and with differences.

    Args:
      f: ``f(*args) -> y``; only its floating (and complex) outputs are differentiated.
      args: arrays or ``jax.ShapeDtypeStruct``, or pytrees of such, for example a module; complex
        arrays are checked as their real and imaginary parts. Python integers, booleans, strings,
        None and functions are static.
      argnums: the numbers of the arguments that vary; by default all. The others are constants.
      kwargs: keyword arguments for ``f``; they are constants.
      key: a ``jax.random.key`` that ``f`` takes as ``key=``.
      declared: as in :func:`block`: ``declared(*args, dy) -> dargs``.
      dtype, seed, rtol, atol, strict, skip, quick, seconds, timed, name: as in :func:`block`.
        "residuals" is always skipped: they are JAX's.

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
    options = _options(strict, (*_tuple(skip), *OF_RULES_ONLY), quick, seconds, timed)
    arguments = split(args, argnums, seed)
    constants = dict(kwargs or {}) | ({} if key is None else {"key": key})
    called = functools.partial(f, **constants) if constants else f
    rule = of_function(called, name or getattr(f, "__name__", "function"), arguments, declared)
    return _check(_subject(rule, arguments.varying, {}, None, dtype, seed, rtol, atol), options)


OF_RULES_ONLY = ("residuals",)  # a function's are JAX's


def cases(checked: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """One pytest parameter for each property, so that each is a separate test.

    Each test checks its own property; what they share is computed once in a process, so several
    processes (pytest-xdist) share the work.

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

    check = functools.partial(block, checked) if isinstance(checked, Block) else checked

    @functools.lru_cache(maxsize=1)
    def run() -> Run:
        with _collecting() as runs:
            check(*args, **options)
        return runs[0]

    def test(name: str) -> Callable[[], None]:
        def holds() -> None:
            result = run()[name]
            if result.status == WRONG:
                raise AssertionError("\n".join(map(str, result.problems)))
            if result.status == SKIPPED:
                pytest.skip(result.figure)

        return holds

    skip = (*_tuple(options.get("skip", ())), *(OF_RULES_ONLY if check is function else ()))
    names = QUICK if options.get("quick") else PROPERTIES
    return [pytest.param(test(name), id=name) for name in names if name not in skip]


# ---- running it ------------------------------------------------------------------------------


def _options(
    strict: Names | bool, skip: Names, quick: bool, seconds: float, timed: bool
) -> Options:
    if isinstance(strict, bool):
        strict = NOTES if strict else ()
    left_out = set(_tuple(skip)) | (set(PROPERTIES) - set(QUICK) if quick else set())
    return Options(frozenset(_tuple(strict)), frozenset(left_out), seconds, timed)


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


_collected: list[list[Run]] = []  # where cases() collects


@contextmanager
def _collecting() -> Iterator[list[Run]]:
    """Within it a check is prepared and not run."""
    _collected.append([])
    try:
        yield _collected[-1]
    finally:
        _collected.pop()


def _check(subject: Subject, options: Options) -> Report:
    run = Run(subject, options)
    if _collected:
        _collected[-1].append(run)
        return Report(subject.rule.name, ())
    report = run.report()
    block = subject.rule.block
    if report.correct or block is None:
        return report
    right = frozenset(PROPERTIES) - set(report.wrong)

    def check_inner(part: Inner) -> Sequence[Result]:
        if not any(map(is_floating, jax.tree.leaves((part.sample.params, part.sample.x)))):
            return []
        inner = Subject(of_block(part.block), part.sample, subject.seed)
        _refuse(inner)  # in full precision: see below
        return Run(inner, options._replace(skip=options.skip | right)).report().results

    with precisely(subject.in_float32):
        inside = blame(block, subject.sample, check_inner)
    return Report(report.name, report.results, inside)


def first_wrong(subject: Subject, likely: str = "", noted: Collection[str] = ()) -> Result | None:
    """The first property that does not hold, with every note as a mistake; None if all hold.

    ``likely``: the property that is looked at before the others, if any. ``noted``: properties
    whose notes are no mistakes.
    """
    with precisely(subject.in_float32):
        _refuse(subject)
    options = Options(frozenset(NOTES) - {*noted}, frozenset(["cost"]), np.inf, False)
    run = Run(subject, options)
    results = itertools.chain([run[likely]] if likely else [], run)
    return next((result for result in results if result.status == WRONG), None)


def subject_for(
    block: Block,
    x: Any,
    params: Any = None,
    key: Any = None,
    seed: int = 0,
    name: str = "",
    dtype: Any = None,
    declared: Callable[..., Any] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
) -> Subject:
    """A block with the given or drawn inputs.

    Raises:
      CheckError: it cannot be checked.
    """
    return _subject(of_block(block, name, declared), x, params, key, dtype, seed, rtol, atol)


def _subject(
    checked: Rule,
    x: Any,
    params: Any,
    key: Any,
    dtype: Any,
    seed: int,
    rtol: float | None,
    atol: float,
) -> Subject:
    """The rule at the inputs, in the given dtype or in the widest in which it runs."""

    def at(dtype: Any) -> Subject:
        with precisely(dtype == np.float32):
            sample = _sample(checked, x, params, key, dtype, seed)
            subject = Subject(checked, sample, seed, rtol, atol)
            _refuse(subject)
            return subject

    if dtype is not None:
        return at(np.dtype(dtype))
    try:
        subject = at(np.float64)
        with precisely():
            outputs = jax.tree.leaves(subject.y_shape(subject.sample))
        if all(v.dtype == np.float64 for v in outputs if is_floating(v)):
            return subject
    except CheckError as in_float64:
        try:
            return at(np.float32)  # written for float32, as JAX is by default
        except CheckError:
            raise in_float64 from None
    return at(np.float32)


def _sample(checked: Rule, x: Any, params: Any, key: Any, dtype: Any, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    for what, tree in (("inputs", x), ("params", params)):
        for leaf in jax.tree.leaves(tree):
            numbers = is_array(leaf) or (what == "inputs" and isinstance(leaf, (int, float)))
            if not numbers or (what == "params" and isinstance(leaf, jax.ShapeDtypeStruct)):
                also = " or jax.ShapeDtypeStruct" if what == "inputs" else ""
                raise CheckError(f"{what} need to be arrays{also}, got {described(leaf)}")
            if isinstance(leaf, np.ma.MaskedArray):
                raise CheckError(f"{what}: got a masked array, give one without: x.filled(...)")
    if hint := shape_hint(x):
        raise CheckError(f"{checked.name}: x is {x}, integers, which have no gradient; {hint}")
    x = jax.tree.map(lambda v: v if hasattr(v, "shape") else np.asarray(v, dtype), x)
    if not jax.tree.leaves(x) and not jax.tree.leaves(params):
        raise CheckError(
            f"{checked.name}: no inputs: x is an empty pytree (nothing in it varies), give at "
            "least one array"
        )
    x = cast(draw(x, rng), dtype)
    if params is None and checked.block is not None:
        init = checked.block.init
        try:
            params = jit_for_few_runs(lambda seed, x: init(jax.random.key(seed), x))(seed, x)
        except Exception as error:
            raise CheckError(f"{checked.name}: init raises {in_one_line(error, 300)}") from error
        params = redraw(jax.device_get(params), rng)
    params = cast(jax.device_get(params), dtype)
    return Sample(params, x, key)


def _dtypes(x: Any) -> str:
    return ", ".join(dict.fromkeys(str(leaf.dtype) for leaf in jax.tree.leaves(x))) or "nothing"


def _refuse(subject: Subject) -> None:
    """Raises CheckError for what cannot be checked, before anything is compiled."""
    name = subject.rule.name
    if not subject.names:
        raise CheckError(
            f"{name}: neither params nor x ({_dtypes(subject.sample.x)}) have a floating leaf, so "
            "there is no gradient to check; give a floating input"
        )
    if not any(leaf.size for leaf in subject.sample.floats):
        raise CheckError(
            f"{name}: every floating input is empty, so there is nothing to check; give at least "
            "one number"
        )

    def shapes_of(what: str, f: Callable[..., Any], *args: Any) -> Any:
        try:
            return jax.eval_shape(f, *args)
        except CheckError:
            raise
        except Exception as error:
            raise CheckError(f"{name}: {what} raises {in_one_line(error, 300)}") from error

    shapes = shapes_of("forward", subject.rule.forward, *subject.sample)
    if not isinstance(shapes, tuple) or len(shapes) != 2:
        raise CheckError(f"{name}: forward needs to return (y, residuals)")
    if not any(is_floating(v) for v in jax.tree.leaves(shapes[0])):
        raise CheckError(f"{name}: y has no floating output, so there is nothing to differentiate")
    dy = subject.random_cotangent(np.random.default_rng(0), subject.sample)
    shapes_of("backward", subject.programs.traced, *subject.sample, dy)
