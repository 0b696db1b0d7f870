"""A circuit of gates: forward, then backward one gate at a time, each upstream times local.

    python -m experiments circuit
    python -m experiments circuit "x*y + sigmoid(z)**2" --at x=1.5 y=-2 z=0.3

An expression has numbers, names, + - * / **, parentheses, and the functions exp, log, sqrt,
square, max, min, logistic (or sigmoid), tanh, relu, abs, softplus. Put one that begins with a
minus in parentheses: "(-x*y)".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common.console import console
from experiments.common.expression import LECTURE, LECTURE_AT, Circuit, assigned, number, parse
from experiments.common.html import printed
from experiments.common.options import writable
from experiments.common.report import PAGE, Report
from fnn.whiteboard import Trace, trace


@dataclass
class Options:
    expression: Annotated[str, tyro.conf.Positional] = LECTURE
    """expression to differentiate; the lecture's by default"""
    at: tuple[str, ...] = ()
    """values of the expression's variables, such as x=1.5 y=-2"""
    out: Path = Path("results/circuit")
    """folder for report.html and circuit.svg, the drawing"""
    seed: int = 0
    """accepted by every experiment; nothing here is random"""


def main(options: Options) -> int:
    circuit = parse(options.expression)
    lecture = options.expression == LECTURE and not options.at
    at = assigned(circuit, LECTURE_AT if lecture else options.at)
    writable(options.out)
    with jax.enable_x64(True):
        recorded = run(circuit, at)
        reference = by_jax_grad(circuit, at)
    f = circuit.gates[-1].name
    point = ", ".join(f"{name} = {number(value)}" for name, value in at.items())
    console.print(f"{f} = {circuit.expression}", markup=False, style="bold")
    console.print(f"at {point}\n\n{recorded.text()}\n", markup=False)
    rows = []
    for name, expected in reference.items():
        ours = float(recorded.values[name][1])
        error = abs(ours - expected) / (abs(expected) or 1.0)
        rows.append((name, number(at[name]), number(ours), number(expected), f"{error:.1e}"))
    page = Report(options)
    drawing = recorded.svg()
    page.add("The circuit", f'<div class="wide">{drawing}</div>')
    page.add("Gate by gate", printed(f"at {point}\n\n{recorded.text()}"))
    page.table(
        f"The gradient of {f} = {number(float(recorded.y))}",
        ("variable", "value", f"d{f}/d(variable)", "by jax.grad", "relative error"),
        rows,
    )
    path = options.out / "circuit.svg"
    path.write_text(drawing, "utf-8")
    page.thumbnail = path.name
    page.facts = {f: number(float(recorded.y))}
    page.write(options.out)
    console.print(f"\nsaved {path}\n[bold]open {options.out / PAGE}[/bold]")
    return 0


def run(circuit: Circuit, at: Mapping[str, float]) -> Trace:
    """Runs the circuit forward and backward through fnn's executor.

    Raises:
      ValueError: a value or a gradient is not finite; names the gate that made it.
    """
    recorded = trace(circuit.block(), {}, circuit.arrays(at))
    advice = "choose other values with --at"
    for gate in circuit.gates:
        value = float(recorded[gate.name].y)
        if not np.isfinite(value):
            what = f"{value:g}, which is not a finite number"
            raise ValueError(f"gate {gate.name} = {gate.source} = {what}; {advice}")
    for gate in reversed(circuit.gates):
        node = recorded[gate.name]
        locals_, dxs = jax.tree.leaves(node.local[1]), jax.tree.leaves(node.dx)
        for source, local, dx in zip(gate.inputs, locals_, dxs, strict=True):
            if not np.isfinite([local, dx]).all():
                raise ValueError(
                    f"gate {gate.name} = {gate.source}: its local derivative by {source} is "
                    f"{local:g}, so there is no finite gradient; {advice}"
                )
    return recorded


def by_jax_grad(circuit: Circuit, at: Mapping[str, float]) -> dict[str, float]:
    """The gradient by automatic differentiation of the same expression in plain JAX."""

    def f(variables: dict[str, jax.Array]) -> jax.Array:
        values = variables | {k: jnp.asarray(v) for k, v in circuit.constants.items()}
        for gate in circuit.gates:
            values[gate.name] = gate.kind.plain(*(values[name] for name in gate.inputs))
        return values[circuit.gates[-1].name]

    arrays = {name: jnp.asarray(value) for name, value in at.items()}
    return {name: float(d) for name, d in jax.grad(f)(arrays).items()}
