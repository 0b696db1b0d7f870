"""Every nonlinearity and its derivative: a figure, a table, and the accuracy.

Values come from each block's ``forward``, derivatives from its ``backward`` with an upstream
gradient of 1, exactly as in a network.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import fnn
from experiments.common import figures
from experiments.common.console import console
from experiments.common.options import writable
from experiments.common.report import PAGE, Report
from experiments.common.run import write_csv
from fnn.block import Block

AT = (-5.0, -1.0, 0.0, 1.0, 5.0)
SATURATED = 1e-3


@dataclass
class Options:
    out: Path = Path("results/nonlinearities")
    """folder for the figures and the table as CSV"""
    seed: int = 0
    """accepted by every experiment; nothing here is random"""


class Nonlinearity(NamedTuple):
    """A nonlinearity: its maker, its formula, and where it has kinks or jumps."""

    make: Callable[[], Block]
    formula: str
    kinks: tuple[float, ...] = ()
    pair: bool = False  # takes a row of logits: drawn for the first of (x, 0)


def _straight_through() -> Block:
    return fnn.straight_through(fnn.step(), fnn.logistic())


# The lecture's four first.
NONLINEARITIES: dict[str, Nonlinearity] = {
    "step": Nonlinearity(fnn.step, "1 where x >= 0, else 0", (0.0,)),
    "logistic": Nonlinearity(fnn.logistic, "1 / (1 + exp(-x))"),
    "tanh": Nonlinearity(fnn.tanh, "tanh(x)"),
    "relu": Nonlinearity(fnn.relu, "max(x, 0)", (0.0,)),
    "leaky_relu": Nonlinearity(fnn.leaky_relu, "x where x > 0, else 0.01 x", (0.0,)),
    "elu": Nonlinearity(fnn.elu, "x where x > 0, else exp(x) - 1"),
    "selu": Nonlinearity(fnn.selu, "1.05 x, or 1.76 (exp(x) - 1)", (0.0,)),
    "celu": Nonlinearity(fnn.celu, "elu for alpha = 1"),
    "softplus": Nonlinearity(fnn.softplus, "ln(1 + exp(x))"),
    "softsign": Nonlinearity(fnn.softsign, "x / (1 + |x|)"),
    "silu": Nonlinearity(fnn.silu, "x logistic(x)"),
    "mish": Nonlinearity(fnn.mish, "x tanh(softplus(x))"),
    "gelu": Nonlinearity(fnn.gelu, "x P(normal < x)"),
    "hard_sigmoid": Nonlinearity(fnn.hard_sigmoid, "min(max(x + 3, 0), 6) / 6", (-3.0, 3.0)),
    "hard_tanh": Nonlinearity(fnn.hard_tanh, "min(max(x, -1), 1)", (-1.0, 1.0)),
    "absolute": Nonlinearity(fnn.absolute, "|x|", (0.0,)),
    "identity": Nonlinearity(fnn.identity, "x"),
    "straight_through": Nonlinearity(_straight_through, "step; logistic' on the way back", (0.0,)),
    "softmax": Nonlinearity(fnn.softmax, "the first of softmax(x, 0)", pair=True),
    "log_softmax": Nonlinearity(fnn.log_softmax, "the first of log_softmax(x, 0)", pair=True),
}


def curve(nonlinearity: Nonlinearity, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and derivatives at the points x, in float32."""
    # Padded to one length, so that each nonlinearity is compiled once.
    padded = np.zeros(10001, np.float32)
    padded[: len(x)] = x
    y, derivative = _compiled(nonlinearity)(padded)
    return np.asarray(y)[: len(x)], np.asarray(derivative)[: len(x)]


@functools.cache
def _compiled(nonlinearity: Nonlinearity) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
    """The block's forward, and its backward from an upstream gradient of 1."""
    block = nonlinearity.make()

    @jax.jit
    def f(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if nonlinearity.pair:
            x = jnp.stack([x, jnp.zeros_like(x)], -1)
        y, residuals = block.forward({}, x)
        upstream = jnp.ones_like(y).at[..., 1].set(0) if nonlinearity.pair else jnp.ones_like(y)
        _, derivative = block.backward({}, residuals, upstream)
        return (y[..., 0], derivative[..., 0]) if nonlinearity.pair else (y, derivative)

    return f


def main(options: Options) -> int:
    out = writable(options.out)
    page = Report(options)
    rows = [_row(name, nonlinearity) for name, nonlinearity in NONLINEARITIES.items()]
    page.picture(
        "All of them", _all_drawn(), out / "nonlinearities.png",
        "Each nonlinearity (solid) and its derivative by backward (dashed, on top where both are "
        "equal).",
    )  # fmt: skip
    _print_tables(rows, page)
    _print_accuracy(page)
    page.picture(
        "From the input, not from the output", _accuracy_drawn(), out / "accuracy.png",
        "The relative error of a derivative in float32: computed from the output it loses all "
        "digits where the unit saturates.",
    )  # fmt: skip
    write_csv(out / "nonlinearities.csv", rows)
    page.facts = {"nonlinearities": str(len(rows))}
    page.write(out)
    console.print(
        f"\nsaved in {out}: accuracy.png, nonlinearities.csv, nonlinearities.png\n"
        f"[bold]open {out / PAGE}[/bold]"
    )
    return 0


# ---- tables ----------------------------------------------------------------------------------


def _row(name: str, nonlinearity: Nonlinearity) -> dict[str, str]:
    """One line of the table."""
    y, d = curve(nonlinearity, np.array(AT))
    far = np.arange(-5000, 5001) / 100
    slopes = np.abs(curve(nonlinearity, far)[1])
    row = {"name": name, "formula": nonlinearity.formula}
    row |= {f"y({x:g})": f"{v + 0.0:.4g}" for x, v in zip(AT, y, strict=True)}
    row |= {f"y'({x:g})": f"{v + 0.0:.3g}" for x, v in zip(AT, d, strict=True)}
    row["largest |y'|"] = f"{slopes.max():.4g}"
    row["kinks"] = "; ".join(_kink(nonlinearity, x) for x in nonlinearity.kinks) or "none"
    row["saturates"] = _saturation(far, slopes < SATURATED)
    return row


def _kink(nonlinearity: Nonlinearity, x: float) -> str:
    """The derivative at a kink, and the slopes on its two sides."""
    y, d = curve(nonlinearity, x + np.array([-1e-3, 0.0, 1e-3]))
    text = f"at {x:g}: {d[1]:.3g} ({d[0]:.3g} | {d[2]:.3g})"
    return f"{text}, jump" if abs(y[2] - y[0]) > 0.5 else text


def _saturation(x: np.ndarray, flat: np.ndarray) -> str:
    """Beyond which points the derivative stays below `SATURATED`."""
    if flat.all():
        return "everywhere"
    steep = x[~flat]
    sides = [f"x < {steep[0] + 0.0:.1f}"] if flat[0] else []
    sides += [f"x > {steep[-1]:.1f}"] if flat[-1] else []
    return ", ".join(sides) or "nowhere"


def _print_tables(rows: list[dict[str, str]], page: Report) -> None:
    names = [f"{x:g}" for x in AT]
    page.table(
        "Values y(x); softmax and log_softmax: the first of two logits (x, 0)",
        ("", *names),
        [(r["name"], *(r[f"y({x})"] for x in names)) for r in rows],
    )
    page.table(
        "Derivatives y'(x), by backward",
        ("", *names, "max |y'|"),
        [(r["name"], *(r[f"y'({x})"] for x in names), r["largest |y'|"]) for r in rows],
    )
    page.table(
        f"Kinks, and saturation: where |y'| stays below {SATURATED:g} and little is learned",
        ("", "saturates", "y' at kinks (left | right)"),
        [(r["name"], r["saturates"], r["kinks"].replace("; ", "\n")) for r in rows],
    )


class Shortcut(NamedTuple):
    """The derivative in terms of the output, and the truth in terms of the input."""

    formula: str
    from_output: Callable[[np.ndarray], np.ndarray]
    truth: Callable[[np.ndarray], np.ndarray]


SHORTCUTS = {
    "logistic": Shortcut(
        "y (1 - y)", lambda y: y * (1 - y), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2
    ),
    "tanh": Shortcut("1 - y y", lambda y: 1 - y * y, lambda x: 1 / np.cosh(x) ** 2),
}


def _print_accuracy(page: Report) -> None:
    """The derivative of a saturated unit by fnn and by the textbook's shortcut."""
    rows = []
    x = np.array([1.0, 5.0, 10.0, 20.0])
    for name, shortcut in SHORTCUTS.items():
        y, by_fnn = curve(NONLINEARITIES[name], x)
        for at, *values in zip(x, shortcut.truth(x), by_fnn, shortcut.from_output(y), strict=True):
            true, own, short = (f"{value:.7g}" for value in values)
            rows.append((f"{name}'({at:g})", true, own, shortcut.formula, short))
    page.table(
        "Why derivatives are computed from the input (float32)",
        ("", "true", "fnn", "shortcut", "gives"),
        rows,
    )


# ---- pictures --------------------------------------------------------------------------------


def _all_drawn() -> Figure:
    figure, axes = plt.subplots(len(NONLINEARITIES) // 4, 4, figsize=(13, 14.5), sharex=True)
    for axis, (name, nonlinearity) in zip(axes.flat, NONLINEARITIES.items(), strict=True):
        # Lines are broken at kinks, so that a jump is drawn as one.
        edges = (-5.0, *nonlinearity.kinks, 5.0)
        for left, right in itertools.pairwise(edges):
            x = np.linspace(left, right, 401)
            x[0], x[-1] = left + 1e-4, right - 1e-4
            y, d = curve(nonlinearity, x)
            axis.plot(x, y, color=figures.BLUE, lw=3.4, alpha=0.9)
            axis.plot(x, d, color=figures.ORANGE, lw=1.7, ls="--")
        for kink in nonlinearity.kinks:
            y, d = curve(nonlinearity, np.array([kink]))
            axis.plot(kink, y[0], "o", color=figures.BLUE, ms=6)
            axis.plot(kink, d[0], "o", color=figures.ORANGE, ms=5, mec="black", mew=0.8)
        axis.axhline(0, color=figures.GREY, lw=0.6, zorder=0)
        axis.axvline(0, color=figures.GREY, lw=0.6, zorder=0)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -2.2), min(high, 2.6))
        axis.set_title(f"{name}\n", fontsize=12, weight="bold", pad=9)
        axis.text(
            0.5, 1.06, nonlinearity.formula, transform=axis.transAxes, ha="center", fontsize=11,
            color="0.3",
        )  # fmt: skip
        axis.grid(alpha=0.25)
    handles = [axes[0, 0].lines[i] for i in (0, 1, 5)]  # of step, which has a kink
    labels = ("y", "y', by backward", "y' at a kink, as declared")
    figure.legend(handles, labels, loc="upper center", ncols=3, fontsize=12, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.975))
    return figure


def _accuracy_drawn() -> Figure:
    """The relative error of the derivative in float32, by fnn and by the shortcut."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout="tight")
    x32 = np.linspace(0, 40, 1601, dtype=np.float32)
    for axis, (name, shortcut) in zip(axes, SHORTCUTS.items(), strict=True):
        y, by_fnn = curve(NONLINEARITIES[name], x32)
        truth = shortcut.truth(x32.astype(np.float64))
        for label, derivative, color in (
            (f"{shortcut.formula}, from the output", shortcut.from_output(y), figures.RED),
            ("fnn, from the input", by_fnn, figures.BLUE),
        ):
            error = np.abs(derivative.astype(np.float64) - truth) / truth
            axis.semilogy(x32, np.maximum(error, 1e-9), color=color, lw=1.6, label=label)
        lost = x32[np.flatnonzero(shortcut.from_output(y) == 0)[0]]
        axis.axvline(lost, color=figures.GREY, ls=":", lw=1)
        axis.text(
            lost + 0.4, 2e-3, f"0 beyond x = {lost:.1f}:\nthe unit stops learning",
            color=figures.GREY,
        )  # fmt: skip
        axis.axhline(float(jnp.finfo("float32").eps), color="black", lw=0.7, ls="--")
        axis.text(40, 1.5e-7, "float32's precision", ha="right", fontsize=8)
        axis.set(xlabel="x", title=f"{name}'", ylim=(5e-10, 10))
        axis.legend(loc="center right", bbox_to_anchor=(1, 0.42))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative error in float32")
    figure.suptitle("Why compute a derivative from the input, not from the output")
    return figure
