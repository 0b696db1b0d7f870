# ruff: noqa: RUF001 - gates show their symbols, and a product is written ×
"""A circuit of gates: forward, then backward one gate at a time, each upstream times local.

    python -m experiments circuit
    python -m experiments circuit "x*y + sigmoid(z)**2" --at x=1.5 y=-2 z=0.3

Numbers, names, + - * / **, parentheses, and the functions exp, log, sqrt, square, max, min,
logistic (or sigmoid), tanh, relu, abs, softplus. An expression that begins with a minus is
written in parentheses: "(-x*y)".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

import fnn
from experiments.common.console import console, table
from experiments.common.expression import (
    LECTURE,
    LECTURE_AT,
    Circuit,
    Gate,
    assigned,
    number,
    parse,
)
from experiments.common.options import writable
from fnn.block import Value
from fnn.whiteboard import Trace, trace


@dataclass
class Options:
    expression: Annotated[str, tyro.conf.Positional] = LECTURE
    """what to compute; the lecture's circuit by default"""
    at: tuple[str, ...] = ()
    """the value of every variable: x=1.5 y=-2"""
    out: Path = Path("results/circuit")
    """folder for the picture"""
    seed: int = 0
    """taken as by every experiment; nothing here is random"""


def main(options: Options) -> int:
    circuit = parse(options.expression)
    lecture = options.expression == LECTURE and not options.at
    at = assigned(circuit, LECTURE_AT if lecture else options.at)
    writable(options.out)
    with jax.enable_x64(True):
        drawn = watch(circuit, at)
        run, reference = numbers(circuit, drawn), _jax_grad(circuit, at)
    _print(circuit, at, run, reference)
    path = options.out / "circuit.svg"
    path.write_text(drawn.svg(), "utf-8")
    console.print(f"\nsaved {path}")
    return 0


# ---- what the executor computed ---------------------------------------------------------------


class Run(NamedTuple):
    """The numbers of a trace.

    ``values`` and ``gradients`` by name; by gate ``upstream`` and, one for each input, ``local``
    derivatives and ``downstream`` gradients. An input that forks has several downstream
    gradients, and their sum in ``gradients``.
    """

    values: dict[str, float]
    gradients: dict[str, float]
    upstream: dict[str, float]
    local: dict[str, tuple[float, ...]]
    downstream: dict[str, tuple[float, ...]]


def watch(circuit: Circuit, at: Mapping[str, float]) -> Trace:
    """Runs the circuit forward and backward, in float64 where that is allowed."""
    values = {**at, **circuit.constants}
    arrays = tuple(jnp.asarray(values[name], jnp.float64) for name in circuit.inputs)
    return trace(circuit.block(), {}, arrays if len(arrays) > 1 else arrays[0])


def numbers(circuit: Circuit, drawn: Trace) -> Run:
    """The trace's numbers by name.

    Raises:
      ValueError: a value or gradient is not finite, with the gate that made it.
    """
    gates = drawn.nodes
    wires = {name: tuple(map(float, pair)) for name, pair in drawn.values.items()}
    run = Run(
        {name: value for name, (value, _) in wires.items()},
        {name: gradient for name, (_, gradient) in wires.items()},
        {gate.name: float(gate.dy) for gate in gates},
        {gate.name: _floats(gate.local[1]) for gate in gates},
        {gate.name: _floats(gate.dx) for gate in gates},
    )
    for gate in circuit.gates:
        if not math.isfinite(run.values[gate.name]):
            raise ValueError(
                f"gate {_equation(circuit, gate, run.values)}, which is not a finite number; "
                "choose other values with --at"
            )
    for gate in reversed(circuit.gates):
        for source, local, down in zip(
            gate.inputs, run.local[gate.name], run.downstream[gate.name], strict=True
        ):
            if not (math.isfinite(local) and math.isfinite(down)):
                raise ValueError(
                    f"gate {_equation(circuit, gate, run.values)}: its local derivative by "
                    f"{circuit.display(source)} is {local:g}, so there is no finite gradient; "
                    "choose other values with --at"
                )
    return run


def _floats(d: Value) -> tuple[float, ...]:
    return tuple(map(float, d if isinstance(d, tuple) else (d,)))


def _jax_grad(circuit: Circuit, at: Mapping[str, float]) -> dict[str, float]:
    """The gradient by automatic differentiation of the same expression in plain JAX."""

    def f(variables: dict[str, jax.Array]) -> jax.Array:
        values: dict[str, Any] = {**variables, **circuit.constants}
        for gate in circuit.gates:
            operands = (jnp.asarray(values[name], jnp.float64) for name in gate.inputs)
            values[gate.name] = gate.kind.plain(*operands)
        return values[circuit.gates[-1].name]

    arrays = {name: jnp.asarray(value, jnp.float64) for name, value in at.items()}
    return {name: float(d) for name, d in jax.grad(f)(arrays).items()}


# ---- text ------------------------------------------------------------------------------------


def _signed(value: float) -> str:
    return f"({number(value)})" if value < 0 else number(value)


def _equation(circuit: Circuit, gate: Gate, values: Mapping[str, float]) -> str:
    """Such as q = x + y = -2 + 5 = 3."""
    names = {name: circuit.display(name) for name in values}
    filled = {name: _signed(value) for name, value in values.items()}
    if gate.kind.text.startswith("{0} ") and not gate.kind.text.startswith("{0} **"):
        filled[gate.inputs[0]] = filled[gate.inputs[0]].strip("()")
        if len(gate.inputs) == 2 and gate.inputs[0] == gate.inputs[1]:
            filled[gate.inputs[0]] = _signed(values[gate.inputs[0]])
    if "(" in gate.kind.text and "**" not in gate.kind.text:  # a function has its own parentheses
        filled = {name: number(value) for name, value in values.items()}
    written, with_numbers = gate.written(names), gate.written(filled)
    return f"{gate.name} = {written} = {with_numbers} = {number(values[gate.name])}"


def _local_formula(circuit: Circuit, gate: Gate, i: int, run: Run) -> str:
    """The local derivative as a formula, with the rule that holds at a tie."""
    names = {name: circuit.display(name) for name in run.values}
    if gate.kind.block in (fnn.maximum, fnn.minimum) and run.local[gate.name][i] == 0.5:
        return "1/2, a tie"
    return gate.kind.locals[i].format(*(names[n] for n in gate.inputs), y=gate.name)


def _print(
    circuit: Circuit, at: Mapping[str, float], run: Run, reference: Mapping[str, float]
) -> None:
    f = circuit.gates[-1].name
    point = ", ".join(f"{name} = {number(value)}" for name, value in at.items())
    gap = "   " if len(circuit.expression) + len(point) < 80 else "\n"
    console.print(f"[bold]{f} = {_plain(circuit.expression)}[/bold]{gap}at {point}")
    console.print("\n[bold green]Forward[/bold green]: every gate computes its value.")
    for gate in circuit.gates:
        console.print(f"  {_equation(circuit, gate, run.values)}", markup=False)

    console.print(
        "\n[bold red]Backward[/bold red]: every gate multiplies the gradient that comes from "
        "above by its local derivatives."
    )
    console.print(f"  d{f}/d{f} = 1, where it starts\n")
    lines: list[tuple[str, str, str, str]] = []
    left = {name: circuit.readers(name) for name in circuit.inputs}
    parts: dict[str, list[float]] = {name: [] for name in circuit.inputs}
    for gate in reversed(circuit.gates):
        up = run.upstream[gate.name]
        lines.append(("gate", f"{gate.name} = {_written(circuit, gate)}", "", ""))
        sums = []
        for i, source in enumerate(gate.inputs):
            local, down = run.local[gate.name][i], run.downstream[gate.name][i]
            shown = circuit.display(source)
            if source in circuit.constants:  # a gradient arrives, and nobody asks for it
                lines.append(("step", f"to {shown}", "a constant: nobody asks", ""))
                continue
            formula = _local_formula(circuit, gate, i, run)
            product = f"d{f}/d{gate.name} × d{gate.name}/d{shown} = {number(up)} × {_signed(local)}"
            why = "" if formula == number(local) else f"d{gate.name}/d{shown} = {formula}"
            lines.append(("step", f"to {shown}", f"{product} = {number(down)}", why))
            if source in left:
                left[source] -= 1
                parts[source].append(down)
                if left[source] == 0 and len(parts[source]) > 1:
                    sums.append(source)
        for source in sums:
            terms = " + ".join(map(_signed, parts[source]))
            total = number(run.gradients[source])
            lines.append(("sum", f"{source} forks", f"gradients add: {terms} = {total}", ""))
    width = max(len(label) for kind, label, *_ in lines if kind != "gate")
    wide = max(len(step) for kind, _, step, _ in lines if kind == "step")
    for kind, label, step, why in lines:
        if kind == "gate":
            console.print(f"  [bold]{_plain(label)}[/bold]")
        else:
            style = "yellow" if kind == "sum" else None
            text = f"    {label:<{width}}   {step:<{wide}}   {why}".rstrip()
            console.print(text, markup=False, style=style)

    console.print()
    rows = []
    for name in circuit.variables:
        mine, theirs = run.gradients[name], reference[name]
        error = abs(mine - theirs) / (abs(theirs) or 1.0)
        rows.append((name, number(at[name]), number(mine), number(theirs), f"{error:.1e}"))
    table(
        f"The gradient of {f} = {number(run.values[f])}",
        ("variable", "value", f"d{f}/d(variable)", "by jax.grad", "relative error"),
        rows,
    )


def _written(circuit: Circuit, gate: Gate) -> str:
    return gate.written({name: circuit.display(name) for name in (*gate.inputs, gate.name)})


def _plain(text: str) -> str:
    """Brackets as they are, not as the console's markup."""
    return text.replace("[", r"\[")
