"""Errors in units in the last place, counted over many inputs at once.

The unit is the distance between neighbouring numbers of the dtype at the size of the truth.
Infinity counts as the number after the largest, so that a result may be off by a unit there too.
Every input belongs to one kind, by its truth:

- ``normal``: a normal number of the dtype, which the target is about;
- ``beyond``: infinity or larger than the largest number, or NaN;
- ``small``: smaller than the smallest normal number, or 0; a result of 0 is accepted there;
- ``subnormal input``: whatever the truth; XLA reads such an input as 0 on CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KINDS = ("normal", "beyond", "small", "subnormal input")
LIMITS = {"float32": 4.0, "bfloat16": 1.0, "float16": 1.0}


@dataclass(frozen=True)
class Tally:
    """Inputs of one kind: how many, how many are off by more than the limit, the largest error
    and the bit pattern of an input that has it."""

    count: int = 0
    over: int = 0
    worst: float = 0.0
    bits: int = 0

    def __add__(self, other: Tally) -> Tally:
        worse = max(self, other, key=lambda tally: tally.worst)
        return Tally(self.count + other.count, self.over + other.over, worse.worst, worse.bits)


@dataclass(frozen=True)
class Score:
    """A tally for every kind; of the small results, how many should be subnormal and how many
    of those are 0."""

    tallies: dict[str, Tally] = field(default_factory=lambda: dict.fromkeys(KINDS, Tally()))
    subnormal: int = 0
    flushed: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            {kind: self.tallies[kind] + other.tallies[kind] for kind in KINDS},
            self.subnormal + other.subnormal,
            self.flushed + other.flushed,
        )


def floats(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers of the dtype that have these bit patterns."""
    kind = jnp.dtype(dtype)
    return bits.astype(np.dtype(f"uint{8 * kind.itemsize}")).view(kind)


def as_float(bits: int, dtype: str) -> float:
    """One of them as a Python number."""
    return float(floats(np.array([bits], np.int64), dtype)[0])


def widened(x: jax.Array) -> jax.Array:
    """x in float64, subnormal numbers included, which XLA on CPU would read as 0."""
    info = jnp.finfo(x.dtype)
    bits = _bits(x)
    size = bits & ((1 << (info.bits - 1)) - 1)
    small = size.astype(jnp.float64) * 2.0 ** (info.minexp - info.nmant)
    small = jnp.where(bits >> (info.bits - 1) == 1, -small, small)
    return jnp.where(size >> info.nmant == 0, small, x.astype(jnp.float64))


def _bits(x: jax.Array) -> jax.Array:
    unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return lax.bitcast_convert_type(x, unsigned)


def errors(got: jax.Array, truth: jax.Array, size: jax.Array | None = None) -> jax.Array:
    """How far ``got`` is from the float64 truth in units of its dtype; infinite for a wrong NaN.

    ``size``: a number in whose last place the units are counted, by default the truth.
    """
    info = jnp.finfo(got.dtype)
    beyond = 2.0**info.maxexp
    wide = jnp.clip(widened(got), -beyond, beyond)
    want = jnp.clip(truth, -beyond, beyond)
    size = want if size is None else size
    exponent = (lax.bitcast_convert_type(size, jnp.int64) >> 52 & 0x7FF) - 1023
    exponent = jnp.clip(exponent, info.minexp, info.maxexp - 1)
    per_unit = lax.bitcast_convert_type((1023 + info.nmant - exponent) << 52, jnp.float64)
    error = jnp.abs(wide - want) * per_unit
    error = jnp.where((wide == 0) & (jnp.abs(want) < 2.0**info.minexp), 0.0, error)
    both = jnp.isnan(got) & jnp.isnan(truth)
    return jnp.where(both, 0.0, jnp.where(jnp.isnan(error), jnp.inf, error))


@jax.jit
def _graded(x: jax.Array, got: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For every input a key and a grade.

    The key is the bits of the error in float32, which order like it, and then those of x: one
    maximum finds the worst error and its input. The grade is the kind, in the order of
    :data:`KINDS`, and plus 4 where the truth is subnormal, plus 8 where the result there is 0.
    """
    info = jnp.finfo(x.dtype)
    error, size = errors(got, truth).astype(jnp.float32), jnp.abs(truth)
    bits = _bits(x)
    key = lax.bitcast_convert_type(error, jnp.int32).astype(jnp.int64) << 32
    pattern = bits & ((1 << (info.bits - 1)) - 1)
    small = size < 2.0**info.minexp
    grade = jnp.where(small, 2, jnp.where(size <= float(info.max), 0, 1))  # NaN: 1
    between = small & (size > 2.0 ** (info.minexp - info.nmant - 1))
    grade = grade + jnp.where(between, jnp.where(_bits(got) << 1 == 0, 12, 4), 0)
    grade = jnp.where((pattern > 0) & (pattern >> info.nmant == 0), 3, grade)
    return key | bits.astype(jnp.int64), grade.astype(jnp.uint8)


@jax.jit
def _extremes(key: jax.Array, grade: jax.Array) -> tuple[jax.Array, ...]:
    return jnp.max(key), jnp.min(grade), jnp.max(grade)


def judge(x: jax.Array, got: jax.Array, truth: jax.Array) -> Score:
    """The score of results ``got`` at ``x``, both of one dtype, against the float64 truth."""
    limit = LIMITS[jnp.dtype(x.dtype).name]
    with jax.enable_x64(True):
        key, grade = _graded(x, got, truth)
        worst, first, last = jax.device_get(_extremes(key, grade))
    # Neighbouring inputs are mostly of one kind and in order: their count is their number.
    if first == last < 4 and _error(worst) <= limit:
        tally = Tally(x.size, 0, _error(worst), int(worst) & 0xFFFFFFFF)
        return Score(dict.fromkeys(KINDS, Tally()) | {KINDS[int(first)]: tally})
    keys, grades = np.asarray(key), np.asarray(grade)
    tallies = {}
    for number, kind in enumerate(KINDS):
        mine = keys[grades & 3 == number]
        if mine.size:
            over = int(np.sum((mine >> 32).astype(np.int32).view(np.float32) > limit))
            worst = mine.max()
            tallies[kind] = Tally(mine.size, over, _error(worst), int(worst) & 0xFFFFFFFF)
    return Score(
        dict.fromkeys(KINDS, Tally()) | tallies, int(np.sum(grades >= 4)), int(np.sum(grades >= 8))
    )


def _error(key: np.int64) -> float:
    return float(np.int32(int(key) >> 32).view(np.float32))
