"""Value and derivative of a function of one number, at every float of a dtype."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import Count
from fnn.check import ulps
from fnn.check.options import checked
from fnn.check.report import CheckError
from fnn.check.trials import in_one_line
from fnn.check.ulps import Score

CHUNK = 2**17  # inputs at a time: their arrays stay in the caches
T = TypeVar("T")
Function = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True, repr=False)
class EveryFloat:
    """Errors of a value and a derivative in units in the last place (ulp), over many inputs.

    ``value`` and ``derivative`` are :class:`~fnn.check.ulps.Score`: by kind of true result the
    number of inputs, the largest error and where it is.
    """

    dtype: str
    inputs: int
    value: Score
    derivative: Score

    def ok(self, limit: float | None = None) -> bool:
        """Whether all errors are at most ``limit`` units; by default 4 in float32, 1 in 16 bits."""
        limit = ulps.LIMITS[self.dtype] if limit is None else limit
        return max(self.value.worst.worst, self.derivative.worst.worst) <= limit

    def __repr__(self) -> str:
        lines = [f"{self.inputs:,} inputs of {self.dtype}, errors in units in the last place"]
        for name, score in (("value", self.value), ("derivative", self.derivative)):
            worst, over = score.worst, sum(score.tallies[k].over for k in ulps.KINDS[:3])
            words = f"  {name:<10}  largest {worst.worst:.3g}"
            if worst.worst:
                words += f" at {ulps.as_float(worst.bits, self.dtype):.9g}"
            if over:
                words += f"; {over:,} above {ulps.LIMITS[self.dtype]:g}"
            counts = ((score.nan, "NaN"), (score.infinite, "infinite"), (score.sign, "wrong sign"))
            lines.append(words + "".join(f", {n:,} {what}" for n, what in counts if n))
        return "\n".join(lines)


@checked
def every_float(
    value: Function,
    derivative: Function,
    truth: Function | tuple[Function, Function],
    dtype: str = "float32",
    *,
    between: tuple[float, float] | None = None,
    stride: Count = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EveryFloat:
    """Compares a function and its derivative with the truth, at every number of a dtype.

    bfloat16 and float16 have 65,536 numbers, which takes an instant; all of float32 takes some
    minutes. Subnormal inputs, which XLA reads as 0 on CPU, do not count as errors.

    Args:
      value: an array of ``dtype`` -> one of the same shape and dtype.
      derivative: the same for the derivative by x: what backward gives for dy = 1.
      truth: the pair (value, derivative) as functions of float64 arrays, accurate everywhere; or
        the value alone, whose derivative is then taken by autodiff in float64 (as good as the
        formula allows: where that cancels, give the pair). At infinity the truth is a limit, and
        NaN where NaN is right.
      dtype: "float32", "bfloat16" or "float16".
      between: only the numbers from the first to the second, both included; by default all,
        with infinities and NaN.
      stride: only one in this many, evenly spread.
      progress: called with (inputs done, inputs in all) after every 131,072.

    Returns:
      An :class:`EveryFloat`: print it, or call ``.ok()``.

    Raises:
      CheckError: the dtype, the range or a function's result cannot be compared.

    The derivative of tanh from its output loses every digit where tanh rounds to 1:

    >>> import fnn, jax.numpy as jnp
    >>> truth = (jnp.tanh, lambda x: 1 / jnp.cosh(x) ** 2)
    >>> fnn.check.every_float(jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2, truth, "bfloat16").ok()
    False
    >>> tanh = fnn.tanh()
    >>> def derivative(x):
    ...     y, residuals = tanh.forward({}, x)
    ...     return tanh.backward({}, residuals, jnp.ones_like(y))[1]
    >>> fnn.check.every_float(jnp.tanh, derivative, truth, "bfloat16").ok()
    True
    """
    if dtype not in ulps.LIMITS:
        raise CheckError(f"dtype is {dtype!r}, needs one of {', '.join(ulps.LIMITS)}")
    first, last = _range(between, dtype)
    total = -(-(last - first) // stride)
    true_value, true_derivative = truth if isinstance(truth, tuple) else (truth, _slope(truth))
    program = _both(value, derivative, dtype)
    with jax.enable_x64(True):
        reference = _both(true_value, true_derivative, "float64")

    def chunk(start: int) -> tuple[int, Score, Score]:
        places = first + spread(start, min(start + CHUNK, total), stride)
        places = np.minimum(places, last - 1)
        patterns = places if between is None else _patterns(places, dtype)
        x = jnp.asarray(ulps.floats(patterns, dtype))
        with jax.enable_x64(False):
            got = program(x)
        with jax.enable_x64(True):
            truths = reference(ulps.widened(x))
        one, other = (ulps.score(x, g, t) for g, t in zip(got, truths, strict=True))
        return len(places), one, other

    done, scores = 0, (Score(), Score())
    for count, *more in in_parallel(chunk, range(0, total, CHUNK)):
        done, scores = done + count, (scores[0] + more[0], scores[1] + more[1])
        if progress is not None:
            progress(done, total)
    return EveryFloat(dtype, done, *scores)


def spread(first: int, last: int, stride: int) -> np.ndarray:
    """One number out of each ``stride`` of them, from the first group to the last (excluded).

    Not the same place in each group, so that the last digits of floats take all values.
    """
    i = np.arange(first, last, dtype=np.int64)
    return i * stride + i * 647 % stride


def in_parallel(f: Callable[[int], T], starts: Iterable[int]) -> Iterator[T]:
    """``f`` of every start, in order.

    XLA computes a chunk on one core or on several; chunks side by side fill the rest.
    """
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    pool = ThreadPoolExecutor(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        yield from pool.map(f, starts)
    finally:
        pool.shutdown(cancel_futures=True)


def _both(value: Function, derivative: Function, dtype: str) -> Callable[[jax.Array], Any]:
    """Both in one program; raises CheckError unless they return what they are given."""
    like = jax.ShapeDtypeStruct((8,), jnp.dtype(dtype))
    for name, f in (("value", value), ("derivative", derivative)):
        try:
            shape = jax.eval_shape(f, like)
        except Exception as error:
            raise CheckError(f"{name} raises {in_one_line(error)} for {like.dtype}[8]") from error
        got = (getattr(shape, "shape", type(shape)), getattr(shape, "dtype", None))
        if got != (like.shape, like.dtype):
            raise CheckError(
                f"{name} returns {got[1]}{got[0]} for {like.dtype}{like.shape}, needs to return an "
                "array of the shape and dtype of its input"
            )
    return jax.jit(lambda x: (value(x), derivative(x)))


def _slope(f: Function) -> Function:
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def _range(between: tuple[float, float] | None, dtype: str) -> tuple[int, int]:
    """First and last, excluded: of all bit patterns, or of places in the order of the numbers."""
    if between is None:
        return 0, 2 ** jnp.finfo(dtype).bits
    if not between[0] <= between[1]:
        raise CheckError(f"between is {between}, needs two numbers, the smaller first")
    with np.errstate(over="ignore"):  # what the dtype does not hold is infinite
        first, last = (_place(np.array(v).astype(jnp.dtype(dtype))) for v in between)
    return first, last + 1


def _place(number: np.ndarray) -> int:
    """Its place in the order of the numbers: 0 for 0, 1 for the smallest above, -1 below."""
    bits = int(number.view(f"uint{8 * number.itemsize}"))
    sign = 1 << (8 * number.itemsize - 1)
    return bits if bits < sign else sign - bits


def _patterns(places: np.ndarray, dtype: str) -> np.ndarray:
    """The bit patterns of the numbers at some places."""
    sign = 1 << (jnp.finfo(dtype).bits - 1)
    return np.where(places < 0, sign - places, places)
