"""Errors in units in the last place (ulp), counted over many inputs at once.

The unit is the distance between neighbouring numbers of the dtype at the size of the truth.
Infinity counts as the number after the largest, so that a result may be off by a unit there too.
Every input belongs to one kind, by its truth:

- ``normal``: a normal number of the dtype;
- ``beyond``: infinity or larger than the largest number, or NaN;
- ``small``: smaller than the smallest normal number, or 0; a result of 0 is accepted there;
- ``subnormal input``: whatever the truth; XLA reads such an input as 0 on CPU.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KINDS = ("normal", "beyond", "small", "subnormal input")
LIMITS = {"float32": 4.0, "bfloat16": 1.0, "float16": 1.0}  # units that count as right


@dataclass(frozen=True)
class Tally:
    """Inputs of one kind: their number, the number that are off by more than the limit, the
    largest error, and the bit pattern of an input that has it."""

    count: int = 0
    over: int = 0
    worst: float = 0.0
    bits: int = 0

    def __add__(self, other: Tally) -> Tally:
        worse = max(self, other, key=lambda tally: tally.worst)
        return Tally(self.count + other.count, self.over + other.over, worse.worst, worse.bits)


@dataclass(frozen=True)
class Score:
    """A tally for every kind of input, and counts over all but the subnormal inputs.

    ``subnormal``: true results that are subnormal; ``flushed``: those of them given as 0. Of
    errors above the limit, ``nan``: NaN for a number or a number for NaN; ``infinite``: infinity
    for a number or a number for infinity; ``sign``: of the wrong sign.
    """

    tallies: dict[str, Tally] = field(default_factory=lambda: dict.fromkeys(KINDS, Tally()))
    subnormal: int = 0
    flushed: int = 0
    nan: int = 0
    infinite: int = 0
    sign: int = 0

    def __add__(self, other: Score) -> Score:
        tallies = {kind: self.tallies[kind] + other.tallies[kind] for kind in KINDS}
        return Score(tallies, *map(operator.add, self.counts, other.counts))

    @property
    def counts(self) -> tuple[int, ...]:
        """All but the tallies."""
        return self.subnormal, self.flushed, self.nan, self.infinite, self.sign

    @property
    def worst(self) -> Tally:
        """The tally with the largest error, subnormal inputs left out."""
        return max((self.tallies[kind] for kind in KINDS[:3]), key=lambda tally: tally.worst)


def floats(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers of the dtype that have these bit patterns."""
    kind = jnp.dtype(dtype)
    return bits.astype(np.dtype(f"uint{8 * kind.itemsize}")).view(kind)


def as_float(bits: int, dtype: str) -> float:
    """The number of the dtype with this bit pattern, as a Python float."""
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
    """Errors of ``got`` against the float64 truth in units of its dtype; infinite for a wrong NaN.

    ``size``: the numbers in whose last place the units are counted, by default the truth.
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


# The bits of a grade: two for the kind, then one each for the counts of a Score.
_OVER, *_COUNTED = (4 << i for i in range(6))


@jax.jit
def _graded(x: jax.Array, got: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For every input a key and a grade.

    The key is the bits of the error in float32, which order like it, and then those of x: one
    maximum finds the worst error and its input.
    """
    info = jnp.finfo(x.dtype)
    error, size = errors(got, truth).astype(jnp.float32), jnp.abs(truth)
    bits = _bits(x)
    key = lax.bitcast_convert_type(error, jnp.int32).astype(jnp.int64) << 32
    pattern = bits & ((1 << (info.bits - 1)) - 1)
    kind = jnp.where(size < 2.0**info.minexp, 2, jnp.where(size <= float(info.max), 0, 1))
    kind = jnp.where((pattern > 0) & (pattern >> info.nmant == 0), 3, kind)
    over = error > LIMITS[x.dtype.name]
    mistake = over & (kind != 3)
    subnormal = (kind == 2) & (size > 2.0 ** (info.minexp - info.nmant - 1))
    nan = jnp.isnan(got) != jnp.isnan(truth)
    counted = (
        subnormal,
        subnormal & (_bits(got) << 1 == 0),
        mistake & nan,
        mistake & ~nan & (jnp.isinf(got) | (size > float(info.max))),
        mistake & ((got < 0) & (truth > 0) | (got > 0) & (truth < 0)),
    )
    grade = kind + sum(jnp.where(c, bit, 0) for c, bit in zip(counted, _COUNTED, strict=True))
    grade = grade + jnp.where(over, _OVER, 0)
    return key | bits.astype(jnp.int64), grade.astype(jnp.uint8)


def score(x: jax.Array, got: jax.Array, truth: jax.Array) -> Score:
    """The score of results ``got`` at ``x``, both of one dtype, against the float64 truth."""
    with jax.enable_x64(True):
        keys, grades = map(np.asarray, _graded(x, got, truth))
    inputs = np.bincount(grades, minlength=256)  # of each grade
    bits = np.arange(256)
    tallies = dict.fromkeys(KINDS, Tally())
    for number, kind in enumerate(KINDS):
        mine = (bits & 3) == number
        if count := int(np.sum(inputs[mine])):
            over = int(np.sum(inputs[mine & (bits & _OVER > 0)]))
            worst = int(np.max(keys[(grades & 3) == number]))
            error = float(np.int32(worst >> 32).view(np.float32))
            tallies[kind] = Tally(count, over, error, worst & 0xFFFFFFFF)
    return Score(tallies, *(int(np.sum(inputs[bits & bit > 0])) for bit in _COUNTED))
