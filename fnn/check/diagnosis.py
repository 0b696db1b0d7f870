"""The most likely mistake behind a wrong cotangent, in words.

Each explanation compares the cotangent with the right one and returns a sentence, or ''.
They are tried from the most specific to the least; the first that fits the numbers to several
digits is given, so it is true even where it is not the whole story.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

CLOSE = 1e-6  # relative difference up to which an explanation fits
MOSTLY = 0.9  # share of entries that are as good as all
FINE = 1e-4  # relative error so small that at CLOSE nearly anything would fit


class Case(NamedTuple):
    """A wrong cotangent and the arrays around it.

    ``at``: the leaf that it belongs to. ``others``: right cotangents of the other leaves, by
    name. ``arrays``: by name, what may be a factor or a term: inputs, outputs, dy. ``sizes``:
    sizes of axes by what they are. ``again``: the same for another dy or another batch, as (got,
    want, sizes). ``if_it_were``: what is the other way round, and the cotangent that would then be
    right. ``is_staircase``: whether small changes of the inputs change nothing.
    """

    got: np.ndarray
    want: np.ndarray
    at: np.ndarray = np.zeros(0)
    others: Mapping[str, np.ndarray] = MappingProxyType({})
    arrays: Mapping[str, np.ndarray] = MappingProxyType({})
    sizes: Mapping[str, int] = MappingProxyType({})
    again: Sequence[tuple[np.ndarray, np.ndarray, Mapping[str, int]]] = ()
    same_for_any_dy: bool = False
    if_it_were: Callable[[], Iterable[tuple[str, np.ndarray]]] = tuple
    is_staircase: Callable[[], bool] = bool


def explain(case: Case) -> str:
    """The first explanation that fits."""
    if case.got.shape != case.want.shape:
        return f"has shape {case.got.shape}, needs {case.want.shape}"
    with np.errstate(all="ignore"):
        fine = _top(case.got - case.want) < FINE * _top(case.want)
        for explanation in _FINE if fine else _EXPLANATIONS:
            if text := explanation(case):
                return text
        return _unexplained(case)


def _top(a: np.ndarray) -> float:
    return float(np.max(np.abs(a), initial=0))


def _axes_of(ndim: int) -> Iterator[tuple[int, ...]]:
    """Every choice of axes, fewest first."""
    for count in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), count)


def worst_entry(case: Case) -> str:
    """The entry with the largest error: index, got, expected, the input there."""
    if not case.got.size or case.got.shape != case.want.shape:
        return f"got shape {case.got.shape}, expected {case.want.shape}"
    with np.errstate(all="ignore"):
        off = np.abs(case.got - case.want)
    same = (case.got == case.want) | (np.isnan(case.got) & np.isnan(case.want))
    off = np.where(np.isfinite(off), off, np.where(same, 0, np.inf))
    place = np.unravel_index(np.argmax(off), off.shape)
    index = ", ".join(str(int(i)) for i in place)
    text = f"worst at [{index}]: got {case.got[place]:.9g}, expected {case.want[place]:.9g}"
    if case.at.shape == case.got.shape:
        text += f"; the input there is {case.at[place]:.9g}"
    return text


def alike(a: np.ndarray, b: np.ndarray, tolerance: float = CLOSE) -> bool:
    """Equal to some digits, relative to the largest entry; and not both zero."""
    if a.shape != b.shape or not a.size:
        return False
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    size = np.max(np.abs(b))
    return bool(size > 0 and np.max(np.abs(a - b)) <= tolerance * size)


def constant_ratio(got: np.ndarray, want: np.ndarray) -> float | None:
    """r with got = r want, or None."""
    power = np.sum(want * want)
    if got.shape != want.shape or not power > 0:
        return None
    r = float(np.sum(got * want) / power)
    # The distance of a ratio from 1 has to be certain to some digits, too.
    return r if r and alike(got, r * want, min(CLOSE, 0.01 * abs(r - 1) or CLOSE)) else None


# ---- the explanations ------------------------------------------------------------------------


def _not_finite(case: Case) -> str:
    bad = ~np.isfinite(case.got)
    if not (bad & np.isfinite(case.want)).any():
        return ""
    kinds = "NaN" if np.isnan(case.got).any() else "infinite"
    where = _where(case, bad)
    return f"{kinds} in {int(bad.sum())} of {bad.size} entries where the truth is finite{where}"


def _no_cotangent(case: Case) -> str:
    if not np.any(case.got) and np.any(case.want):
        return (
            "is zero everywhere: the term was dropped, or the upstream cotangent never reached it"
        )
    if np.any(case.got) and not np.any(case.want):
        return "should be zero everywhere: the output does not depend on it"
    return ""


def _ignores_dy(case: Case) -> str:
    if case.same_for_any_dy:
        return (
            "is the same for every upstream cotangent dy: multiply the local derivative by dy "
            "(it is right for dy = 1 only)"
        )
    return ""


def _ratio(case: Case) -> str:
    r = constant_ratio(case.got, case.want)
    if r is None or abs(r - 1) < 1e-9:
        return ""
    names = _names_of(r, case.sizes)
    for got, want, sizes in case.again:
        other = 1.0 if alike(got, want, 1e-9) else constant_ratio(got, want)
        if other is None or abs(other - r) <= CLOSE * abs(r):
            continue
        if sizes == case.sizes:
            return ""  # it depends on the inputs: see _varying_ratio
        there = _names_of(other, sizes)
        names = [name for name in names if name in there]
        if not names:
            return _hard_coded(r, other)
    meaning = f": {'; or '.join(names)}" if names else ": a constant factor is missing or extra"
    return f"is {_near(r)} times the truth everywhere{meaning}"


def _near(r: float) -> str:
    """A ratio, with the digits in which it differs from 1."""
    return f"{r:.6g}" if abs(abs(r) - 1) > 1e-3 else f"{r:.10g}"


def _hard_coded(r: float, other: float) -> str:
    if other == 1.0:
        return (
            f"is right for one batch size and {r:.6g} times the truth for another: hard-coded size"
        )
    return (
        f"is {r:.6g} times the truth here and {other:.6g} times at another batch size: the batch "
        "size is hard-coded, or counted in the wrong place"
    )


def _varying_ratio(case: Case) -> str:
    """One factor for all entries, another one at other inputs."""
    r = constant_ratio(case.got, case.want)
    others = [constant_ratio(got, want) for got, want, _ in case.again]
    others = [q for q in others if q is not None]
    if r is None or not others:
        return ""
    return (
        f"is {r:.6g} times the truth here and {others[-1]:.6g} times at other inputs: a factor "
        "that depends on the inputs is missing, extra or wrong"
    )


def _names_of(r: float, sizes: Mapping[str, int]) -> list[str]:
    """The likely meanings of a constant ratio."""
    names = []
    sign, size = ("the sign is wrong, and " if r < 0 else ""), abs(r)

    def equals(value: float) -> bool:
        return abs(size / value - 1) < CLOSE

    if equals(1):
        return ["the sign is wrong"] if r < 0 else []
    if equals(2):
        names.append(f"{sign}it is counted twice (or a factor 1/2 is missing)")
    if equals(0.5):
        names.append(f"{sign}a half is lost (or a factor 2 is missing)")
    for name, constant in _CONSTANTS.items():
        if equals(constant):
            names.append(f"{sign}a factor {name} is extra")
        if equals(1 / constant):
            names.append(f"{sign}a factor {name} is missing")
    first = {
        n: name for name, n in reversed(list(sizes.items())) if n > 1
    }  # one name for each size
    for n, name in first.items():
        if equals(n):
            names.append(f"{sign}a sum where a mean is needed: {name} is not divided by")
        if equals(1 / n):
            names.append(f"{sign}a mean where a sum is needed: it is divided by {name}")
        if equals(n * n):
            names.append(f"{sign}{name} enters twice too often")
        if not names and (equals(n**0.5) or equals(n**-0.5)):
            names.append(f"{sign}off by the square root of {name}")
        if n > 2 and (equals(n / (n - 1)) or equals((n - 1) / n)):
            names.append(f"{sign}n - 1 in place of n, for {name}")
    return names


_CONSTANTS = {
    "pi": np.pi, "2 pi": 2 * np.pi, "sqrt(pi)": np.sqrt(np.pi), "sqrt(2)": np.sqrt(2),
    "sqrt(2 pi)": np.sqrt(2 * np.pi), "2 / sqrt(pi)": 2 / np.sqrt(np.pi),
    "sqrt(2 / pi)": np.sqrt(2 / np.pi), "ln 2": np.log(2), "ln 10": np.log(10), "e": np.e,
}  # fmt: skip


def _permuted(case: Case) -> str:
    axes = range(case.want.ndim)
    for order in itertools.permutations(axes):
        if list(order) != list(axes) and alike(case.got, case.want.transpose(order)):
            if case.want.ndim == 2:
                return "is transposed: write it the other way round (x^T dy, not dy^T x)"
            return f"has its axes in the order {order}: transposed"
    for some in _axes_of(case.want.ndim) if case.want.ndim <= 4 else ():
        if alike(case.got, np.flip(case.want, some)):
            return f"is reversed along axis {', '.join(map(str, some))}"
    return ""


def _shifted(case: Case) -> str:
    for axis, n in enumerate(case.want.shape):
        for offset in (1, -1, 2, -2):
            if abs(offset) >= n:
                continue
            # What comes in at the edge is 0 or, where enough overlaps to be sure, anything.
            a = _slice(case.got, axis, offset)
            b = _slice(case.want, axis, -offset)
            sure = n > 2 * abs(offset) + 1 and a.size > 1 and np.ptp(b) > 0
            pads = [(0, 0)] * case.want.ndim
            pads[axis] = (max(offset, 0), max(-offset, 0))
            if alike(case.got, np.roll(case.want, offset, axis)):
                verb = "rolled"
            elif alike(case.got, np.pad(b, pads)) or (sure and alike(a, b)):
                verb = "shifted"
            else:
                continue
            return f"is {verb} by {offset} along axis {axis}: an index is off by one"
    return ""


def _slice(a: np.ndarray, axis: int, offset: int) -> np.ndarray:
    n = a.shape[axis]
    return np.take(a, range(max(offset, 0), n + min(offset, 0)), axis)


def _reduced(case: Case) -> str:
    """A sum or mean over axes that should have stayed, copied back over them."""
    for axes in _axes_of(case.want.ndim):
        n = int(np.prod([case.want.shape[a] for a in axes]))
        total = np.broadcast_to(np.sum(case.want, axes, keepdims=True), case.want.shape)
        for name, whole in (("summed", total), ("averaged", total / max(n, 1))):
            if n > 1 and alike(case.got, whole):
                where = ", ".join(map(str, axes))
                return f"is {name} over axis {where} and copied back: reduced too much"
    return ""


def _elsewhere(case: Case) -> str:
    """The right numbers in wrong places."""
    got, want = np.ravel(case.got), np.ravel(case.want)
    if got.size < 3 or np.ptp(want) == 0 or alike(case.got, case.want):
        return ""
    if not alike(np.sort(got), np.sort(want)):
        return ""
    return (
        "has the right numbers in wrong places: where forward permutes or gathers, backward needs "
        "the inverse"
    )


def _wrong_axis(case: Case) -> str:
    """A sum that runs over another axis than it should, as of a softmax: dx = y (dy - sum)."""
    dy = case.arrays.get("dy")
    if dy is None or case.want.ndim < 2:
        return ""
    y = case.arrays.get("y", np.ones_like(dy))
    for factor in (y, np.exp(y)):  # of a softmax, of a log-softmax
        for left in (lambda d, f: dy - d / f, lambda d, f: (dy - d) / f):
            got, want = (_constant_along(left(d, factor)) for d in (case.got, case.want))
            if got is not None and want is not None and got != want:
                return f"sums over axis {got}, needs to sum over axis {want}"
    return ""


def _constant_along(a: np.ndarray) -> int | None:
    """The one axis along which an array is constant, and not 0."""
    if not np.isfinite(a).all() or not np.any(a):
        return None
    size = _top(a)
    axes = [axis for axis in range(a.ndim) if a.shape[axis] > 1
            and np.max(np.ptp(a, axis)) <= 1e-7 * size]  # fmt: skip
    return axes[0] if len(axes) == 1 else None


def _other_way(case: Case) -> str:
    """Right if something were the other way round."""
    for words, cotangent in case.if_it_were():
        if alike(case.got, cotangent):
            return f"would be right if {words}"
    return ""


def _swapped(case: Case) -> str:
    for name, other in case.others.items():
        for sign, verb in ((1, "is"), (-1, "is minus")):
            if alike(case.got, sign * other):
                return f"{verb} what belongs to {name}: inputs or cotangents are swapped"
    return ""


def _term(case: Case) -> str:
    """A term that is missing or extra, and equals a known array."""
    missing = case.want - case.got
    for name, term in case.arrays.items():
        if alike(missing, term):
            return f"lacks a term, which equals {name}"
        if alike(missing, -term):
            return f"has a term too many, which equals {name}"
        if alike(missing, 2 * term):
            return f"has a term of the wrong sign, which equals {name}"
    return ""


def _factor(case: Case) -> str:
    """A factor that is missing or extra, entry by entry, and equals a known array."""
    for name, factor in case.arrays.items():
        if factor.shape != case.got.shape or not np.isfinite(factor).all():
            continue
        for sign, minus in ((1, ""), (-1, "minus ")):
            for text, f in _functions(name, factor):
                if np.ptp(f) > 0 and alike(case.got, sign * case.want * f):
                    return f"has the factor {minus}{text} too often"
                if np.ptp(f) > 0 and alike(case.got * f, sign * case.want):
                    return f"lacks the factor {minus}{text}"
    return ""


def _functions(name: str, a: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield name, a
    yield f"({name})^2", a * a
    yield f"(1 - {name})", 1 - a
    yield f"(1 + {name})", 1 + a
    yield f"{name} (1 - {name})", a * (1 - a)
    yield f"(1 - ({name})^2)", 1 - a * a
    yield f"|{name}|", np.abs(a)
    yield f"the sign of {name}", np.sign(a)
    yield f"the root of |{name}|", np.sqrt(np.abs(a))
    if np.isfinite(exponential := np.exp(a)).all():
        yield f"exp({name})", exponential


def _clipped(case: Case) -> str:
    low, high = case.got.min(), case.got.max()
    flat = any(np.sum(case.got == end) > 1 for end in (low, high)) or -low == high
    if low < high and flat and alike(case.got, np.clip(case.want, low, high)):
        return f"is cut off at {low:.4g} and {high:.4g}: a gradient rule must be linear in dy"
    return ""


def _partly_and_how(case: Case) -> str:
    """Wrong in entries that have something in common, and all in the same way."""
    text = _partly(case)
    return text if ", where it " in text and _NO_PATTERN not in text else ""


_NO_PATTERN = " (no pattern found)"


def _partly(case: Case) -> str:
    """Wrong in some entries only: which, and what it is there."""
    allowed = 1e-7 * np.abs(case.want) + 1e-9 * _top(case.want)
    wrong = np.abs(case.got - case.want) > allowed
    if not wrong.any() or np.mean(wrong) > MOSTLY:
        return ""
    got, want = case.got[wrong], case.want[wrong]
    what = ""
    if not np.any(got):
        what = ", where it is 0"
    elif not np.any(want):
        what = ", where it should be 0"
    elif (r := constant_ratio(got, want)) is not None:
        what = f", where it is {r:.6g} times the truth"
    where = _where(case, wrong) or _NO_PATTERN
    return f"is wrong only in {int(wrong.sum())} of {wrong.size} entries{where}{what}"


def _where(case: Case, marked: np.ndarray) -> str:
    """Words for a set of entries: by their place, or by the inputs there."""
    if marked.all():
        return ""
    if case.at.shape == marked.shape:
        x = case.at
        sets = (
            ("the input is 0", x == 0), ("the input is NaN", np.isnan(x)),
            ("the input is -inf", x == -np.inf), ("the input is inf", x == np.inf),
            ("the input is negative", x < 0), ("the input is positive", x > 0),
            ("the input is not positive", x <= 0), ("the input is not negative", x >= 0),
            ("the input is a tie (equal to another)", _tied(x)),
        )  # fmt: skip
        few = marked.sum() < 3  # signs of one or two entries say no more than their places
        for text, members in sets[: 4 if few else None]:
            if np.array_equal(members, marked):
                return f": where {text}"
        if marked.sum() > 2 and (text := _by_size(case.at, marked)):
            return text
    if text := _by_place(marked):
        return text
    if case.at.shape == marked.shape:
        if text := _by_size(case.at, marked):
            return text
        for text, members in sets[4:]:
            share = np.mean(marked[members]) if members.any() else 0.0
            if not members.all() and not (marked & ~members).any() and share > 0.3:
                return f": only where {text}"
    return ""


def _by_size(at: np.ndarray, marked: np.ndarray) -> str:
    for x, name in ((np.abs(at), "|input|"), (at, "the input")):
        inside, outside = x[marked], x[~marked]
        if inside.size and outside.size and inside.min() > outside.max():
            return f": where {name} is large (from {inside.min():.4g} on): in saturation"
        if inside.size and outside.size and inside.max() < outside.min():
            return f": where {name} is small (up to {inside.max():.4g})"
    return ""


def _by_place(marked: np.ndarray) -> str:
    if text := _by_triangle(marked):
        return text
    if marked.sum() == 1:
        index = ", ".join(str(int(i)) for i in np.argwhere(marked)[0])
        return f": at [{index}] alone"
    for axis, n in enumerate(marked.shape):
        if n < 2:
            continue
        others = tuple(i for i in range(marked.ndim) if i != axis)
        some = np.flatnonzero(marked.any(others))
        full = np.asarray(marked.mean(others) > 0.7)
        if len(some) in (0, n) or not full[some].all():
            continue
        count = "" if len(some) == 1 else f" {len(some)}"
        if some[0] == 0 and some[-1] == len(some) - 1:
            return f": at the first{count} of {n} along axis {axis}"
        if some[-1] == n - 1 and some[0] == n - len(some):
            return f": at the last{count} of {n} along axis {axis}, a ragged end or an edge"
        if set(some) == {0, n - 1}:
            return f": at the first and the last of {n} along axis {axis}, the edges"
        step = np.diff(some)
        if len(some) > 2 and step[0] > 1 and (step == step[0]).all():
            return f": at one in every {step[0]} along axis {axis}, from {some[0]} on"
        if len(some) <= 8:
            plural = "index" if len(some) == 1 else "indices"
            return f": at {plural} {', '.join(map(str, some))} along axis {axis}"
    return ""


def _by_triangle(marked: np.ndarray) -> str:
    """Parts of a square matrix."""
    if marked.ndim < 2 or marked.shape[-1] != marked.shape[-2] or marked.shape[-1] < 3:
        return ""
    first = marked.reshape(-1, *marked.shape[-2:])[0]
    if not (marked == first).all():
        return ""
    row, column = np.indices(first.shape)
    parts = {
        "on the diagonal": row == column,
        "above the diagonal": row < column,
        "below the diagonal": row > column,
        "off the diagonal": row != column,
    }
    return next((f": {n}" for n, part in parts.items() if np.array_equal(part, first)), "")


def _tied(x: np.ndarray) -> np.ndarray:
    values, counts = np.unique(x, return_counts=True)
    return np.isin(x, values[counts > 1])


def _offset(case: Case) -> str:
    """The same number added to every entry."""
    off = case.got - case.want
    size = _top(off)
    if off.size < 2 or not np.isfinite(size) or not size > 1e-9 * _top(case.want):
        return ""
    if np.ptp(off) > 1e-6 * size:
        return ""
    for got, want, _ in case.again:  # does it stay when dy or the inputs change?
        if got.shape == want.shape and np.max(np.abs(got - want - off.flat[0])) > 1e-3 * size:
            return (
                f"is off by {off.flat[0]:.6g} in every entry, by another number elsewhere: lacks a "
                "term, or has one too many, that is a sum or mean over the entries"
            )
    return f"has {off.flat[0]:.6g} added in every entry: a term that does not contain dy"


def _drift(case: Case) -> str:
    """Right to the digits of a narrower dtype."""
    size = _top(case.want)
    if not size > 0 or not np.isfinite(case.got).all() or _offset(case):
        return ""
    off = _top(case.got - case.want) / size
    wrong = np.abs(case.got - case.want) > 1e-9 * size
    if np.mean(wrong) < 0.3:  # rounding is everywhere, or nearly
        return ""
    if (r := constant_ratio(case.got, case.want)) and abs(r - 1) > 1e-7 * (1 + off):
        rest = _top(case.got - r * case.want) / size
        if rest < off / 50:  # a constant factor near 1
            return ""
    for name, unit in (("float32", 2**-24), ("float16", 2**-11), ("bfloat16", 2**-8)):
        if unit / 64 <= off <= 2 * unit and case.is_staircase():
            return f"has the accuracy of {name} ({off:.1e}): it is cast to it on the way"
    return ""


def _unexplained(case: Case) -> str:
    off = _top(case.got - case.want) / (_top(case.want) or 1.0)
    norms = np.linalg.norm(case.got) * np.linalg.norm(case.want)
    cosine = np.sum(case.got * case.want) / norms if norms else 0.0
    text = f"is wrong, by {off:.2g} of its largest entry"
    return text if off < FINE else f"{text} (cosine with the truth {cosine:.3f})"


_EXPLANATIONS: tuple[Callable[[Case], str], ...] = (
    _not_finite, _no_cotangent, _ignores_dy, _drift, _ratio, _offset, _permuted, _swapped, _reduced,
    _shifted, _partly_and_how, _term, _factor, _clipped, _wrong_axis, _other_way, _elsewhere,
    _varying_ratio, _partly,
)  # fmt: skip
_FINE: tuple[Callable[[Case], str], ...] = (_ignores_dy, _drift, _ratio, _offset, _partly)


# ---- wrong shapes ----------------------------------------------------------------------------


def explain_shape(got: np.ndarray, want: np.ndarray) -> str:
    """Why a cotangent has another shape than what it belongs to."""
    text = f"has shape {got.shape}, needs {want.shape}"
    if got.ndim == want.ndim and sorted(got.shape) == sorted(want.shape):
        for order in itertools.permutations(range(got.ndim)):
            if got.transpose(order).shape == want.shape and alike(got.transpose(order), want):
                return f"{text}: it is transposed"
    for large, small, words in (
        (got, want, "not summed over axis {}, along which it was copied"),
        (want, got, "summed over axis {}, which it should keep"),
    ):
        for axes, keepdims in itertools.product(_axes_of(large.ndim), (False, True)):
            if alike(np.sum(large, axes, keepdims=keepdims), small):
                return f"{text}: {words.format(', '.join(map(str, axes)))}"
    if got.size == want.size and alike(got.reshape(want.shape), want):
        text += ": reshape it"
    return text
