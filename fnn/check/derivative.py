"""Is backward the derivative of forward? Structure, autodiff, differences, linearity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.block import is_floating
from fnn.check import directional
from fnn.check.diagnosis import Case, explain, explain_shape, worst_entry
from fnn.check.directional import flat_floats
from fnn.check.report import RIGHT, SKIPPED, WRONG, Problem, Result
from fnn.check.rule import Sample, redraw
from fnn.check.subject import Cotangents, Lab, is_none, leaves_of

TOO_COARSE = "float32 is too coarse for differences"
SMALL = 128  # entries in and out, up to which the whole Jacobian is compared
FAR = (8.0, 30.0)  # times the inputs
REPEATS = 3  # random directions for each leaf, where it is larger


class Trial(NamedTuple):
    """One evaluation: where, with which upstream cotangent, and what came."""

    what: str
    sample: Sample
    dy: Any
    y: Any
    got: Cotangents


# ---- 1. structure ----------------------------------------------------------------------------


def cotangents(lab: Lab) -> Result:
    """Structure, shape and dtype of every cotangent, leaf by leaf."""
    params, x, key = lab.sample
    dy = lab.cotangent(np.random.default_rng(lab.seed))
    shapes = jax.eval_shape(lab.programs.traced, params, x, key, dy)
    wanted, got = leaves_of(params, x), leaves_of(*shapes[1:])
    for what, needed, given in (("params", params, shapes[1]), ("x", x, shapes[2])):
        left, right = (str(jax.tree.structure(t, is_leaf=is_none)) for t in (needed, given))
        if left != right:
            text = f"the cotangent is {_items(given)}, needs {_items(needed)}"
            if text.split(", needs ")[0].endswith(_items(needed)):
                text = f"the cotangent has the structure {right}, needs {left}"
            return Result("cotangents", WRONG, "structure", (Problem(what, text),))
    problems, frozen, count = [], [], 0
    values = None
    for (path, leaf), (_, d) in zip(wanted, got, strict=True):
        if not is_floating(leaf):
            if d is not None and d.dtype != jax.dtypes.float0 and is_floating(d):
                text = f"is an integer: its cotangent needs to be None, got {d.dtype}{d.shape}"
                problems.append(Problem(path, text))
            continue
        count += 1
        if d is None:
            frozen.append(path)
            continue
        if d.shape != leaf.shape:
            values = lab.programs.run(params, x, key, dy) if values is None else values
            problems.append(_wrong_shape(lab, path, values, dy))
        elif d.dtype != leaf.dtype:
            problems.append(Problem(path, f"has dtype {d.dtype}, needs {leaf.dtype}"))
    if problems:
        return Result("cotangents", WRONG, f"{len(problems)} of {count} leaves", tuple(problems))
    figure = f"{count} leaves: structure, shape, dtype"
    if frozen:
        figure += f"; None, so not computed: {', '.join(frozen)}"
    return Result("cotangents", RIGHT, figure)


def _items(tree: Any) -> str:
    if isinstance(tree, dict):
        return f"a dict of {sorted(tree)}"
    if isinstance(tree, (tuple, list)):
        return f"a {type(tree).__name__} of {len(tree)}"
    return "None" if tree is None else "one array"


def _wrong_shape(lab: Lab, path: str, values: Any, dy: Any) -> Problem:
    got = dict(leaves_of(*values[1:]))[path]
    leaf = dict(leaves_of(lab.sample.params, lab.sample.x))[path]
    if lab.no_autodiff:
        return Problem(path, f"has shape {got.shape}, needs {leaf.shape}")
    want = lab.autodiff(lab.sample, dy)[lab.names.index(path)]
    return Problem(path, explain_shape(np.asarray(got), want))


# ---- 2. autodiff -----------------------------------------------------------------------------


def trials(lab: Lab) -> list[Trial]:
    """The rule at the given inputs under two random cotangents, and at others."""
    rng = np.random.default_rng(lab.seed)
    here, made = lab.sample, []
    for what, sample in (
        ("as given", here), ("another cotangent", here), ("other inputs", _other(here, rng)),
        ("inputs three times as large", _scaled(here, 3.0)),
    ):  # fmt: skip
        dy = lab.cotangent(rng)
        made.append(Trial(what, sample, dy, *lab.run(sample, dy)))
    return made


def _other(sample: Sample, rng: np.random.Generator) -> Sample:
    return Sample(redraw(sample.params, rng), redraw(sample.x, rng), sample.key)


def _scaled(sample: Sample, factor: float) -> Sample:
    x = jax.tree.map(lambda v: factor * v if is_floating(v) else v, sample.x)
    return sample._replace(x=x)


def autodiff(lab: Lab, tried: Sequence[Trial]) -> tuple[Result, list[Case]]:
    """Every leaf against ``jax.vjp`` of the forward, under several random cotangents."""
    if lab.no_autodiff:
        return Result("autodiff", SKIPPED, lab.no_autodiff), []
    wants = [lab.autodiff(trial.sample, trial.dy) for trial in tried]
    worst, bad = 0.0, dict[int, int]()
    for number, (trial, want) in enumerate(zip(tried, wants, strict=True)):
        noise = _noise(lab, trial)
        for leaf, (got, right, slack) in enumerate(zip(trial.got, want, noise, strict=True)):
            if got is None:
                if lab.names[leaf].startswith("x") and np.any(right):
                    bad.setdefault(leaf, number)
                continue
            error = relative_error(got, right, slack, lab.loose(1e-12))
            worst = max(worst, min(error, 1e300))
            if error > 1:
                bad.setdefault(leaf, number)
    cases = [_case(lab, tried, wants, leaf, number) for leaf, number in bad.items()]
    problems = tuple(
        Problem(lab.names[leaf], explain(case), worst_entry(case))
        if tried[number].got[leaf] is not None
        else Problem(lab.names[leaf], "is None, for not computed, where it is not zero")
        for (leaf, number), case in zip(bad.items(), cases, strict=True)
    )
    if not problems:
        problems = tuple(_far_off(lab))
        bad = dict.fromkeys(range(len(problems)), 0)
    figure = f"largest error {1e-8 * worst:.1e} (relative, {len(tried)} trials)"
    return Result("autodiff", WRONG if bad else RIGHT, figure, problems), cases


def _far_off(lab: Lab) -> Iterator[Problem]:
    """Inputs much larger than given, where a rule may be cut off or saturate in the wrong place.

    Autodiff loses digits there, too, so only what is off by more than that counts; finer errors
    are for the lower precisions to find, which need no autodiff.
    """
    rng = np.random.default_rng(lab.seed + 10)
    seen: set[str] = set()
    for factor in FAR:
        sample = _scaled(lab.sample, factor)
        dy = lab.cotangent(rng)
        trial = Trial(f"inputs times {factor:g}", sample, dy, *lab.run(sample, dy))
        if not all(np.isfinite(v).all() for v in jax.tree.leaves(trial.y) if is_floating(v)):
            continue
        want, noise = lab.autodiff(sample, dy), _noise(lab, trial)
        unit = max((float(np.max(np.abs(d), initial=0)) for d in jax.tree.leaves(dy)
                    if is_floating(d)), default=0.0)  # fmt: skip
        for leaf, (name, got, right) in enumerate(zip(lab.names, trial.got, want, strict=True)):
            if got is None or name in seen or not np.isfinite(right).all():
                continue
            slack = noise[leaf] + 1e-6 * unit + 1e-6 * np.max(np.abs(right), initial=0)
            if relative_error(got, right, slack) > 1:
                seen.add(name)
                case = _case(lab, [trial], [want], leaf, 0)
                yield Problem(name, f"{trial.what}: {explain(case)}", worst_entry(case))


def relative_error(
    got: np.ndarray, want: np.ndarray, slack: np.ndarray, rounding: float = 1e-12
) -> float:
    """The largest error of an entry, over what is allowed: 1e-8 of it and rounding, which is
    relative to the largest entry."""
    known = np.isfinite(want)
    largest = np.max(np.abs(want[known]), initial=0)
    allowed = 1e-8 * np.abs(want) + rounding * largest + slack
    off = np.abs(got - want) / np.where(allowed > 0, allowed, 1e-300)
    off = np.where(known, np.where(np.isnan(off) & ~np.isfinite(got), np.inf, off), 0)
    return float(np.max(np.nan_to_num(off, nan=0.0, posinf=np.inf), initial=0))


def _noise(lab: Lab, trial: Trial) -> list[np.ndarray]:
    """How far rounding may carry each entry: what a change of some units in the inputs does."""
    rng = np.random.default_rng(lab.seed + 1)

    def stir(v: Any) -> Any:
        if not is_floating(v):
            return v
        return np.asarray(v) * (1 + 2.0**-50 * rng.uniform(-1, 1, np.shape(v)))

    params, x, key = trial.sample
    params, x = jax.tree.map(stir, (params, x))
    moved = lab.run(Sample(params, x, key), jax.tree.map(stir, trial.dy))[1]
    size = max(
        [np.max(np.abs(d), initial=0) for d in jax.tree.leaves(trial.dy) if is_floating(d)]
        + [
            np.max(np.abs(c), initial=0)
            for c in trial.got
            if c is not None and np.isfinite(c).all()
        ]
        + [0.0]
    )
    return [
        np.zeros(1)
        if a is None or b is None
        else 1e3 * np.nan_to_num(np.abs(a - b), posinf=0.0) + 1e-15 * size
        for a, b in zip(trial.got, moved, strict=True)
    ]


def _case(
    lab: Lab, tried: Sequence[Trial], wants: Sequence[Cotangents], leaf: int, number: int
) -> Case:
    """All that a diagnosis may want to know about one wrong leaf."""
    trial, want = tried[number], wants[number]
    got = trial.got[leaf]
    got = np.zeros_like(want[leaf]) if got is None else got
    floats = lab.floats(trial.sample)
    known: dict[str, np.ndarray] = {}
    for name, tree in (("dy", trial.dy), ("y", trial.y)):
        for i, part in enumerate(jax.tree.leaves(tree)):
            known[f"{name}/{i}" if i else name] = np.asarray(part)
    known |= dict(zip(lab.names, floats, strict=True))
    known |= {f"the cotangent of {n}": w for n, w in zip(lab.names, want, strict=True)}
    known |= {
        f"what the rule gives for {n}": w
        for n, w in zip(lab.names, trial.got, strict=True)
        if w is not None
    }
    own = lab.names[leaf]
    for name in (f"the cotangent of {own}", f"what the rule gives for {own}"):
        known.pop(name, None)
    known = {n: a for n, a in known.items() if a.shape == want[leaf].shape and np.any(a)}
    others = {n: w for i, (n, w) in enumerate(zip(lab.names, want, strict=True)) if i != leaf}
    same = len(tried) > 1 and tried[0].got[leaf] is not None
    same = same and np.array_equal(tried[0].got[leaf], tried[1].got[leaf])
    again = [
        (t.got[leaf], w[leaf], sizes_of(lab, t))
        for i, (t, w) in enumerate(zip(tried, wants, strict=True))
        if i != number and t.got[leaf] is not None
    ]
    return Case(
        got, want[leaf], floats[leaf], others, known, sizes_of(lab, trial), again,
        bool(same and np.any(tried[0].got[leaf])),
    )  # fmt: skip


def sizes_of(lab: Lab, trial: Trial) -> dict[str, int]:
    """The sizes that a constant factor may come from, by what they are."""
    sizes: dict[str, int] = {}
    for name, leaf in zip(lab.names, lab.floats(trial.sample), strict=True):
        for axis, n in enumerate(leaf.shape):
            batch = name.startswith("x") and axis == 0 and leaf.ndim > 1
            sizes[f"the batch size {n}" if batch else f"{n}, axis {axis} of {name}"] = n
        sizes[f"{leaf.size}, the entries of {name}"] = leaf.size
    for part in jax.tree.leaves(trial.y):
        for axis, n in enumerate(part.shape):
            sizes.setdefault(f"{n}, axis {axis} of y", n)
    return sizes


# ---- 3. differences --------------------------------------------------------------------------


def by_differences(lab: Lab, tried: Sequence[Trial]) -> Result:
    """Every leaf against differences of the forward alone, which know nothing of autodiff."""
    if lab.single:
        return Result("differences", SKIPPED, TOO_COARSE)
    here = [trial for trial in tried if trial.sample is lab.sample]
    here += [trial for trial in tried if trial.what == "other inputs"]
    outputs = sum(np.size(v) for v in jax.tree.leaves(here[0].y) if is_floating(v))
    inputs = sum(f.size for f in lab.floats(lab.sample))
    if not inputs or not outputs:
        return Result("differences", SKIPPED, "nothing to differentiate: no floating in or output")
    if inputs <= SMALL and outputs <= SMALL:
        return _whole_jacobian(lab, here, inputs)
    return _projections(lab, [trial for trial in here if trial.sample is lab.sample])


def _whole_jacobian(lab: Lab, here: Sequence[Trial], inputs: int) -> Result:
    problems: dict[str, Problem] = {}
    largest, bound, rough = 0.0, 0.0, 0
    slopes: dict[int, Any] = {}
    for trial in here:
        if id(trial.sample) not in slopes:
            slopes[id(trial.sample)] = directional.jacobian(
                lab, trial.sample, trial.y, range(inputs)
            )
        jacobian = slopes[id(trial.sample)]
        dy = flat_floats(trial.dy)
        terms = jacobian.value * dy
        want, error = np.sum(terms, 1), np.sum(np.abs(dy) * jacobian.error, 1)
        size = np.max(np.abs(terms), initial=0)
        start = 0
        for name, leaf, got in zip(lab.names, lab.floats(trial.sample), trial.got, strict=True):
            cut = slice(start, start + leaf.size)
            start += leaf.size
            if got is None:
                continue
            # A slope that did not converge is no evidence: a kink is near (see "kinks").
            certain = error[cut] <= 1e-6 * (size + 1e-30)
            rough += int(np.sum(~certain))
            allowed = 10 * error[cut] + 1e-9 * np.abs(want[cut]) + 1e-12 * size
            off = np.abs(np.ravel(got) - want[cut])
            off = np.where(np.isnan(off), np.inf, off)
            wrong = certain & (off > allowed)
            if certain.any():
                top = np.max(np.where(certain, np.minimum(off, 1e300), 0))
                largest = max(largest, float(top / (size or 1.0)))
                bound = max(bound, float(np.max(np.where(certain, error[cut], 0)) / (size or 1.0)))
            if wrong.any() and name not in problems:
                right = np.where(certain, want[cut], np.ravel(got)).reshape(leaf.shape)
                case = Case(got, right, leaf, {}, {}, sizes_of(lab, trial))
                problems[name] = Problem(name, explain(case), worst_entry(case))
    figure = f"whole Jacobian: error {largest:.1e}, bound {bound:.1e}"
    if rough:
        figure += f"; {rough} entries at a kink or too rough"
    status = WRONG if problems else RIGHT
    return Result("differences", status, figure, tuple(problems.values()))


def _projections(lab: Lab, here: Sequence[Trial]) -> Result:
    slope, sums, sizes = directional.along_leaves(
        lab, lab.sample, here[0].y, [t.dy for t in here], [t.got for t in here], REPEATS
    )
    problems, largest, bound, rough = [], 0.0, 0.0, 0
    for leaf, name in enumerate(lab.names):
        if any(trial.got[leaf] is None for trial in here):
            continue
        value, error, got = slope.value[leaf], slope.error[leaf], sums[leaf]
        size = np.maximum(np.abs(value), sizes[leaf]) + 1e-300
        certain = error <= 1e-5 * size
        rough += int(np.sum(~certain))
        off = np.where(np.isnan(got), np.inf, np.abs(got - value))
        wrong = certain & (off > 10 * error + 1e-8 * size)
        largest = max(largest, float(np.max(np.where(certain, off / size, 0), initial=0)))
        bound = max(bound, float(np.max(np.where(certain, error / size, 0), initial=0)))
        if wrong.any():
            place = np.unravel_index(np.argmax(np.where(wrong, off, 0)), off.shape)
            text = f"along a random direction: got {got[place]:.9g}, expected {value[place]:.9g}"
            ratios = (got / value)[certain]
            if ratios.size > 1 and np.ptp(ratios) < 1e-5 * np.abs(ratios[0]):
                text = f"is {ratios[0]:.6g} times the truth along every direction; {text}"
            problems.append(Problem(name, text))
    figure = f"{REPEATS} directions a leaf: error {largest:.1e}, bound {bound:.1e}"
    if rough:
        figure += f"; {rough} of {slope.error.size} at a kink or too rough"
    return Result("differences", WRONG if problems else RIGHT, figure, tuple(problems))


# ---- 5. linearity ----------------------------------------------------------------------------


def linear(lab: Lab, tried: Sequence[Trial]) -> Result:
    """Linear in the cotangent, zero for zero, the same bits on a second call."""
    first, second = tried[0], tried[1]
    problems = []

    def each(f: Any, *trees: Any) -> Any:
        return jax.tree.map(lambda *v: f(*v) if is_floating(v[0]) else v[0], *trees)

    again = lab.run(first.sample, first.dy)
    for name, a, b in zip(lab.names, first.got, again[1], strict=True):
        if a is not None and not np.array_equal(a, b, equal_nan=True):
            problems.append(Problem(name, "differs on a second call with the same arguments"))
    nothing = lab.run(first.sample, each(np.zeros_like, first.dy))[1]
    for name, d in zip(lab.names, nothing, strict=True):
        if d is not None and np.any(d[np.isfinite(d)]):
            text = "is not zero for a zero upstream cotangent: a term does not contain dy"
            problems.append(Problem(name, text))
    large = lab.run(first.sample, each(lambda d: 1e4 * d, first.dy))[1]
    for name, a, b in zip(lab.names, first.got, large, strict=True):
        if a is not None and b is not None and np.isfinite(a).all():
            top = np.max(np.abs(a), initial=0)
            if not np.max(np.abs(b / 1e4 - a), initial=0) <= lab.loose(1e-10) * top + 1e-300:
                text = "is not 10,000 times as large for dy 10,000 times as large: is it clipped?"
                problems.append(Problem(name, text))
    mixed = each(lambda a, b: 2 * a - 3 * b, first.dy, second.dy)
    both, largest = lab.run(first.sample, mixed)[1], 0.0
    for name, a, b, d in zip(lab.names, first.got, second.got, both, strict=True):
        if a is None or b is None or d is None:
            continue
        off = np.max(np.nan_to_num(np.abs(d - (2 * a - 3 * b))), initial=0)
        size = np.max(np.nan_to_num(2 * np.abs(a) + 3 * np.abs(b)), initial=0)
        largest = max(largest, float(off / (size or 1.0)))
        if off > lab.loose(1e-10) * size:
            text = f"is not linear in the upstream cotangent: off by {off / size:.1e}"
            low, high = np.min(d), np.max(d)
            if np.sum(d == low) > 1 or np.sum(d == high) > 1:
                text += f"; it seems cut off (between {low:.4g} and {high:.4g})"
            problems.append(Problem(name, text))
    status = WRONG if problems else RIGHT
    return Result("linear", status, f"largest error {largest:.1e}", tuple(problems))
