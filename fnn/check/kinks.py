"""Where forward has no derivative: ties, zeros and whole numbers, and what backward gives there.

A subgradient lies between the slopes from both sides, the shares of a tie add up to the slope
along all of it, and where a block declares its subgradient backward has to give that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fnn.block import is_floating
from fnn.check import differences, directional
from fnn.check.derivative import TOO_COARSE
from fnn.check.directional import flat_floats
from fnn.check.report import RIGHT, SHOWN, SKIPPED, WRONG, Problem, Result
from fnn.check.rule import Sample
from fnn.check.subject import Cotangents, Lab

MOST_ENTRIES, FEWEST = 96, 8  # that are moved one by one
MOST_NUMBERS = 200_000  # of y for all of them together
NEARBY, STEP = 24, 1e-6  # points around a kink, and how far from it


def kinks(lab: Lab) -> Result:
    """Ties, zeros and whole numbers: where forward has no derivative, the declared one."""
    if lab.single:
        return Result("kinks", SKIPPED, TOO_COARSE)
    return _Kinks(lab).result()


class _Kinks:
    def __init__(self, lab: Lab) -> None:
        self.lab, self.problems = lab, list[Problem]()
        self.found = 0
        self.shown: dict[str, None] = {}

    def result(self) -> Result:
        lab = self.lab
        entries = self._entries()
        if not entries:
            return Result("kinks", SKIPPED, "x has no floating entries")
        for sample in self._samples():
            self._look(sample, entries)
        if self.problems:
            figure = f"{self.found} kinks"
            return Result("kinks", WRONG, figure, tuple(dict.fromkeys(self.problems)))
        if not self.found:
            return Result("kinks", RIGHT, "none at ties, zeros and whole numbers")
        figure = f"{self.found} kinks; {'; '.join(list(self.shown)[:3])}"
        return Result("kinks", RIGHT if lab.rule.subgradient else SHOWN, figure)

    def _entries(self) -> list[int]:
        """Some entries of x, counted over all floating leaves."""
        start, entries = 0, list[int]()
        for name, leaf in zip(self.lab.names, self.lab.floats(self.lab.sample), strict=True):
            if name.startswith("x"):
                entries += range(start, start + leaf.size)
            start += leaf.size
        outputs = sum(v.size for v in jax.tree.leaves(self.lab.y_shape))
        most = min(MOST_ENTRIES, max(FEWEST, MOST_NUMBERS // max(outputs, 1)))
        step = -(-len(entries) // most) if entries else 1
        return entries[::step]

    def _samples(self) -> list[Sample]:
        """x on whole numbers from -3 to 3 (and one of them 6), on few of them, and all zero."""
        rng = np.random.default_rng(self.lab.seed + 2)
        base = self.lab.sample

        def whole(v: Any, high: int) -> Any:
            if not is_floating(v):
                return v
            signed = rng.integers(-high, high + 1, v.shape).astype(np.float64)
            # Inputs that are all positive, as given, mean a domain: keep to it.
            if np.size(v) > 1 and np.all(np.asarray(v) > 0):
                signed = np.abs(signed) + 1
            return signed

        made = [base._replace(x=jax.tree.map(lambda v, h=h: whole(v, h), base.x)) for h in (3, 1)]
        zeros = jax.tree.map(lambda v: np.zeros_like(v) if is_floating(v) else v, base.x)
        return [*made, base._replace(x=zeros)]

    def _look(self, sample: Sample, entries: Sequence[int]) -> None:
        lab = self.lab
        rng = np.random.default_rng(lab.seed + 3)
        dy = lab.cotangent(rng)
        y, got = lab.run(sample, dy)
        at_zero = flat_floats(y)
        if not np.isfinite(at_zero).all():
            return  # outside the domain, or at an edge of it: see "edges"
        values, scales = directional.by_entry(lab, sample, entries)
        weights = flat_floats(dy)
        sides = []
        projected, terms = values @ weights, np.abs(values) @ np.abs(weights)
        for sign in (1, -1):
            slope = differences.one_side(projected, at_zero @ weights, sign, terms)
            sides.append((slope.value / scales, slope.error / scales))
        (right, e1), (left, e2) = sides
        size = max(float(np.max(np.abs(weights), initial=0)), 1e-300)
        sure = (e1 <= 1e-6 * size) & (e2 <= 1e-6 * size)
        kink = sure & (np.abs(right - left) > 1e-5 * size + 10 * (e1 + e2))
        jump = ~sure & np.isfinite(values).all((0, 2))
        self.found += int(np.sum(kink | jump))
        given = np.concatenate(
            [np.full(f.size, np.nan) if c is None else np.ravel(c)
             for f, c in zip(lab.floats(sample), got, strict=True)]
        )[list(entries)]  # fmt: skip
        absent = np.concatenate(
            [np.full(f.size, c is None) for f, c in zip(lab.floats(sample), got, strict=True)]
        )[list(entries)]
        low = np.minimum(right, left) - 10 * (e1 + e2) - 1e-6 * size
        high = np.maximum(right, left) + 10 * (e1 + e2) + 1e-6 * size
        outside = sure & ~absent & ~((given >= low) & (given <= high))
        where = self._names(sample, entries)
        for slope, side, error in ((right, "right", e1), (left, "left", e2)):
            nan = ~sure & ~absent & np.isnan(given) & (error <= 1e-6 * size)
            for i in np.flatnonzero(nan)[:1]:
                leaf, value = where[int(i)]
                text = (
                    f"is NaN at {leaf} = {value:g}, an edge of the domain, where y is finite and "
                    f"the slope from the {side} is {slope[i]:.6g}"
                )
                self.problems.append(Problem(leaf, text))
        for i in map(int, np.flatnonzero(outside)[:1]):
            leaf, value = where[i]
            finite = bool(np.isfinite(given[i]))
            declared = lab.rule.subgradient is not None
            slopes = (left[i], right[i])
            if kink[i] and finite and (declared or self._several(sample, dy, entries[i], slopes)):
                continue
            if kink[i]:
                text = (
                    f"wrong only at a kink: at {leaf} = {value:g} the slopes are {left[i]:.6g} "
                    f"and {right[i]:.6g} from the left and right, and backward gives "
                    f"{given[i]:.6g}, which is not between them"
                )
            else:
                text = (
                    f"at {leaf} = {value:g} (a tie or a special point) the derivative is "
                    f"{right[i]:.6g}, and backward gives {given[i]:.6g}"
                )
            self.problems.append(Problem(leaf, text))
        if not outside.any():
            self._ties(sample, dy, got, entries, kink)
        self._declared(sample, dy, got, kink | jump, entries, where, left, right, given)

    def _several(self, sample: Sample, dy: Any, entry: int, slopes: tuple[float, float]) -> bool:
        """Whether several kinks meet here, as where all units of a layer are at 0.

        Then each may have a subgradient of its own choice, and their sum need not lie between the
        ``slopes`` from both sides. Those and the gradients of this entry nearby are more than two
        values.
        """
        lab = self.lab
        rng = np.random.default_rng(lab.seed + 9)
        found = list(slopes)
        for _ in range(NEARBY):
            moved = [
                f + STEP * rng.uniform(-1, 1, f.shape) if name.startswith("x") else f
                for name, f in zip(lab.names, lab.floats(sample), strict=True)
            ]
            floats = lab.run(lab.fill(sample, moved), dy)[1]
            zeros = zip(floats, moved, strict=True)
            flat = [np.zeros(f.size) if c is None else np.ravel(c) for c, f in zeros]
            found.append(np.concatenate(flat)[entry])
        values = np.sort(found)
        apart = np.diff(values) > 1e-3 * np.max(np.abs(values), initial=0)
        return int(np.sum(apart)) > 1

    def _names(self, sample: Sample, entries: Sequence[int]) -> list[tuple[str, float]]:
        lab = self.lab
        leaf_of = [
            (name, float(v))
            for name, leaf in zip(lab.names, lab.floats(sample), strict=True)
            for v in np.ravel(leaf)
        ]
        return [leaf_of[i] for i in entries]

    def _ties(
        self, sample: Sample, dy: Any, got: Cotangents, entries: Sequence[int], kink: np.ndarray
    ) -> None:
        """Tied entries that move together: where that is smooth, their shares have to add up."""
        lab = self.lab
        floats = lab.floats(sample)
        flat = np.concatenate([np.ravel(f) for f in floats])
        cots = np.concatenate([np.zeros(f.size) if c is None else np.ravel(c)
                               for f, c in zip(floats, got, strict=True)])  # fmt: skip
        kinky = np.zeros(flat.size, bool)
        kinky[np.asarray(entries)[kink]] = True
        for value in np.unique(flat[kinky]):
            group = kinky & (flat == value)
            if np.sum(group) < 2:
                continue
            direction = group.astype(np.float64)
            right, left, error = self._along(sample, dy, direction)
            total = float(np.sum(cots * direction))
            size = float(np.sum(np.abs(cots * direction))) + abs(right) + 1e-12
            if error > 1e-6 * size or abs(right - left) > 1e-6 * size:
                continue
            if abs(total - right) > 1e-5 * size:
                ratio = f", {total / right:.6g} times too much" if right else ""
                text = (
                    f"wrong only at ties: {int(np.sum(group))} entries equal to {value:g} get "
                    f"{total:.6g} together, and the derivative along all of them is "
                    f"{right:.6g}{ratio}: the shares of a tie have to add up to one"
                )
                self.problems.append(Problem(self._names(sample, [int(np.argmax(group))])[0][0],
                                             text))  # fmt: skip

    def _along(self, sample: Sample, dy: Any, direction: np.ndarray) -> tuple[float, float, float]:
        lab = self.lab
        floats, start, parts = lab.floats(sample), 0, []
        for leaf in floats:
            parts.append(direction[start : start + leaf.size].reshape(leaf.shape))
            start += leaf.size
        weights = flat_floats(dy)

        def value(t: float) -> float:
            there = lab.fill(sample, [f + t * d for f, d in zip(floats, parts, strict=True)])
            y = lab.run(there, dy)[0]
            return float(flat_floats(y) @ weights)

        values = np.array([value(t) for t in differences.steps()])[:, None]
        zero = np.array([[value(0.0)]])
        right, left = (differences.one_side(values, zero, sign) for sign in (1, -1))
        return (
            float(right.value[0]), float(left.value[0]),
            float(max(right.error[0], left.error[0])),
        )  # fmt: skip

    def _declared(
        self, sample: Sample, dy: Any, got: Cotangents, kink: np.ndarray, entries: Sequence[int],
        where: Sequence[tuple[str, float]], left: np.ndarray, right: np.ndarray, given: np.ndarray,
    ) -> None:  # fmt: skip
        for i in np.flatnonzero(kink):
            leaf, value = where[int(i)]
            slopes = f"slopes {left[i]:.3g} | {right[i]:.3g}"
            self.shown.setdefault(f"{leaf} = {value:g}: {slopes}, backward {given[i]:.3g}")
        if self.lab.rule.subgradient is None or not kink.any():
            return
        declared = self.lab.rule.subgradient(sample.x, dy)
        leaves = [np.ravel(np.asarray(d)) for d in jax.tree.leaves(declared)]
        count = sum(n.startswith("params") for n in self.lab.names)
        before = sum(f.size for f in self.lab.floats(sample)[:count])
        wanted = np.concatenate(leaves)[np.asarray(entries) - before]
        for i in np.flatnonzero(kink):
            if not abs(given[i] - wanted[i]) <= 1e-9 * (1 + abs(wanted[i])):
                leaf, value = where[int(i)]
                text = (
                    f"wrong only at a kink: at {leaf} = {value:g} backward gives {given[i]:.6g}, "
                    f"and the declared subgradient is {wanted[i]:.6g}"
                )
                self.problems.append(Problem(leaf, text))
                return
