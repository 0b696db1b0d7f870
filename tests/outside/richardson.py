"""The referee of tests/outside/functions.py: differences in float64 by Richardson's
extrapolation, which share no code with fnn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def _inexact(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, np.inexact)


def _in_float64(leaf: Any) -> Any:
    if not (_inexact(leaf) or isinstance(leaf, float)):
        return leaf
    return np.array(leaf, np.complex128 if np.iscomplexobj(leaf) else np.float64)


def slope(f: Callable[[float], float], h: float) -> tuple[float, float]:
    """f'(0) and its likely error: central differences with steps h, h/2, ..., extrapolated."""
    best, error = np.nan, np.inf
    before: list[float] = []
    for level in range(7):
        step = h / 2**level
        row = [(f(step) - f(-step)) / (2 * step)]
        for k, coarse in enumerate(before):
            row.append(row[k] + (row[k] - coarse) / (4 ** (k + 1) - 1))
        if level and (e := max(abs(row[-1] - row[-2]), abs(row[-1] - before[-1]))) <= error:
            best, error = row[-1], e
        before = row
    return best, error


def errors(f: Callable[..., Any], *args: Any, seed: int = 0) -> tuple[float, float]:
    """Of ``jax.vjp`` of f at args, for a random cotangent: (the largest error over the largest
    entry, the same of the referee's own)."""
    with jax.enable_x64(True):
        leaves, tree = jax.tree.flatten(args)
        leaves = [_in_float64(leaf) for leaf in leaves]
        places = [i for i, leaf in enumerate(leaves) if _inexact(leaf)]
        inexact = [leaves[i] for i in places]

        def outputs(inexact: list[Any]) -> list[Any]:
            put = list(leaves)
            for i, leaf in zip(places, inexact, strict=True):
                put[i] = leaf
            return [y for y in jax.tree.leaves(f(*jax.tree.unflatten(tree, put))) if _inexact(y)]

        ys, back = jax.vjp(outputs, inexact)
        rng = np.random.default_rng(seed)

        def cotangent(y: Any) -> Any:
            parts = rng.standard_normal((2, *y.shape))
            return (parts[0] + 1j * parts[1] if np.iscomplexobj(y) else parts[0]).astype(y.dtype)

        dy = [cotangent(y) for y in ys]
        (dx,) = back(dy)
        run = jax.jit(outputs)

        # The terms' own change, summed, so that a large constant costs no digits.
        def value(i: int, at: tuple[int, ...], by: complex) -> float:
            moved = list(inexact)
            moved[i] = np.array(inexact[i])
            moved[i][at] += by
            pairs = zip(dy, run(moved), ys, strict=True)
            return float(sum(np.sum(d * (np.asarray(y) - y0)).real for d, y, y0 in pairs))

        wrong = doubt = top = 0.0
        for i, leaf in enumerate(inexact):
            for at in np.ndindex(leaf.shape):
                for unit in (1, 1j) if np.iscomplexobj(leaf) else (1,):
                    got = (np.asarray(dx[i])[at] * unit).real
                    step = 0.02 * min(1, 10 * abs(leaf[at])) or 0.02
                    true, error = slope(
                        lambda t, i=i, at=at, unit=unit: value(i, at, t * unit), step
                    )
                    wrong = max(wrong, abs(got - true)) if got == got else np.inf
                    doubt, top = max(doubt, error), max(top, abs(true))
        return wrong / (top or 1), doubt / (top or 1)
