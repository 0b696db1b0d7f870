# ruff: noqa: RUF001 - gates show their symbols, and a product is written ×
"""A circuit of gates: forward, then backward one gate at a time, each upstream times local.

    python -m experiments circuit
    python -m experiments circuit "x*y + sigmoid(z)**2" --at x=1.5 y=-2 z=0.3

Numbers, names, + - * / **, parentheses, and the functions exp, log, sqrt, square, max, min,
logistic (or sigmoid), tanh, relu, abs, softplus. An expression that begins with a minus is
written in parentheses: "(-x*y)".
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import tyro
from matplotlib.axes import Axes
from matplotlib.patches import Circle

import fnn
from experiments import pictures
from experiments.console import console, table
from experiments.options import writable
from fnn.block import Block, Key, Params, Residuals, Value

LECTURE = "(x + y) * z"
LECTURE_AT = ("x=-2", "y=5", "z=-4")


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
    at = _values(circuit, LECTURE_AT if lecture else options.at)
    writable(options.out)
    with jax.enable_x64(True):
        run = watch(circuit, at)
        reference = _jax_grad(circuit, at)
    _print(circuit, at, run, reference)
    path = options.out / "circuit.png"
    draw(circuit, run, path)
    console.print(f"\nsaved {path}")
    return 0


# ---- gates -----------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of gate: fnn's block, the same in plain JAX to check against, how it is written.

    ``text`` and ``locals`` are templates of the names of the inputs, {0} and {1}, and of the
    output, {y}; ``locals`` has the formula of the local derivative by each input.
    """

    block: Callable[[], Block]
    plain: Callable[..., Any]
    text: str
    locals: tuple[str, ...]
    symbol: str


OPERATORS: dict[type, Kind] = {
    ast.Add: Kind(fnn.add, lambda a, b: a + b, "{0} + {1}", ("1", "1"), "+"),
    ast.Sub: Kind(fnn.subtract, lambda a, b: a - b, "{0} - {1}", ("1", "-1"), "−"),
    ast.Mult: Kind(fnn.multiply, lambda a, b: a * b, "{0} * {1}", ("{1}", "{0}"), "×"),
    ast.Div: Kind(fnn.divide, lambda a, b: a / b, "{0} / {1}", ("1/{1}", "-{0}/{1}²"), "÷"),
    ast.Pow: Kind(
        fnn.power, lambda a, b: a**b, "{0} ** {1}", ("{1} {0}^({1}-1)", "{y} log({0})"), "$a^b$"
    ),
    ast.USub: Kind(fnn.negate, lambda a: -a, "-{0}", ("-1",), "−"),
}

_LOGISTIC = Kind(fnn.logistic, jax.nn.sigmoid, "sigmoid({0})", ("{y} (1 - {y})",), "σ")
FUNCTIONS: dict[str, Kind] = {
    "exp": Kind(fnn.exp, jnp.exp, "exp({0})", ("{y}",), "exp"),
    "log": Kind(fnn.log, jnp.log, "log({0})", ("1/{0}",), "log"),
    "sqrt": Kind(fnn.sqrt, jnp.sqrt, "sqrt({0})", ("1/(2 {y})",), "√"),
    "square": Kind(fnn.square, jnp.square, "square({0})", ("2 {0}",), "$a^2$"),
    "max": Kind(
        fnn.maximum, jnp.maximum, "max({0}, {1})", ("[{0} > {1}]", "[{1} > {0}]"), "max"
    ),
    "min": Kind(
        fnn.minimum, jnp.minimum, "min({0}, {1})", ("[{0} < {1}]", "[{1} < {0}]"), "min"
    ),
    "logistic": _LOGISTIC,
    "sigmoid": _LOGISTIC,
    "tanh": Kind(fnn.tanh, jnp.tanh, "tanh({0})", ("1 - {y}²",), "tanh"),
    "relu": Kind(fnn.relu, jax.nn.relu, "relu({0})", ("[{0} > 0]",), "relu"),
    "abs": Kind(fnn.absolute, jnp.abs, "abs({0})", ("sign({0})",), "|a|"),
    "softplus": Kind(fnn.softplus, jax.nn.softplus, "softplus({0})", ("sigmoid({0})",), "soft+"),
}  # fmt: skip


def _fixed_power(p: float) -> Kind:
    """x to a constant power: the exponent belongs to the gate, so a negative x has a gradient."""
    p = int(p) if p.is_integer() else p
    text = f"({p})" if p < 0 else f"{p:g}"
    return Kind(
        lambda: fnn.power(p), lambda a: a**p, f"{{0}} ** {text}",
        (f"{p:g} {{0}}" if p == 2 else f"{p:g} {{0}}^{p - 1:g}",), f"$a^{{{p:g}}}$",
    )  # fmt: skip


class Gate(NamedTuple):
    """One gate of the circuit; ``inputs`` are names of variables, constants or other gates."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]

    def written(self, names: Mapping[str, str]) -> str:
        return self.kind.text.format(*(names[i] for i in self.inputs), y=names[self.name])


@dataclass
class Circuit:
    """An expression as gates, in an order in which every value is made before it is read."""

    expression: str
    variables: list[str] = field(default_factory=list)
    constants: dict[str, float] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.variables, *self.constants)

    def block(self) -> Block:
        """The circuit as fnn runs it."""
        nodes = [(gate.name, gate.kind.block(), gate.inputs) for gate in self.gates]
        return fnn.graph(self.inputs, nodes, self.gates[-1].name, name="circuit")

    def readers(self, name: str) -> int:
        return sum(gate.inputs.count(name) for gate in self.gates)

    def display(self, name: str) -> str:
        """A constant is called by its value; the rest by its name."""
        return number(self.constants[name]) if name in self.constants else name


# ---- from text to circuit --------------------------------------------------------------------


def parse(expression: str) -> Circuit:
    """Reads an expression by Python's own grammar; nothing is evaluated.

    Raises:
      ValueError: in one line, what is wrong and where.
    """
    text = " ".join(expression.split())
    try:
        tree = ast.parse(text, mode="eval").body
        circuit = Circuit(text)
        circuit.variables = list(
            dict.fromkeys(name.id for name in _names_in_order(tree) if name.id not in FUNCTIONS)
        )
        last = _read(tree, circuit)
    except SyntaxError as error:
        # Where the text ends too early, Python gives no place: it is the end.
        where = error.offset or len(text) + 1
        raise ValueError(f"{text!r}: syntax error at position {where}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"the expression is nested too deeply: {text[:40]!r}...") from error
    if not circuit.variables:
        raise ValueError(f"{text!r} has no variable, so there is no gradient; use a name, like x")
    if not circuit.gates:
        raise ValueError(f"{text!r} has no gate; combine {last} with something, as in {last} * 2")
    return _name_gates(circuit)


def _names_in_order(tree: ast.expr) -> list[ast.Name]:
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return sorted(names, key=lambda node: node.col_offset)


def _read(node: ast.expr, circuit: Circuit) -> str:
    """Appends the gates of one node of the syntax tree; returns the name of its value."""
    where = f"{circuit.expression!r}: at position {node.col_offset + 1}"
    if isinstance(node, ast.Name):
        if node.id in FUNCTIONS:
            raise ValueError(f"{where}: {node.id} is a function; write {node.id}(...)")
        return node.id
    constant = _constant(node)
    if constant is not None:
        if not math.isfinite(constant):
            raise ValueError(f"{where}: the number is too large for float64")
        name = f"constant {len(circuit.constants) + 1}"
        circuit.constants[name] = constant
        return name
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        exponent = _constant(node.right) if isinstance(node.op, ast.Pow) else None
        if exponent is not None and math.isfinite(exponent):
            return _gate(circuit, _fixed_power(exponent), node.left)
        return _gate(circuit, OPERATORS[type(node.op)], node.left, node.right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
        return _read(node.operand, circuit)
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return _gate(circuit, OPERATORS[type(node.op)], node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        kind = FUNCTIONS.get(node.func.id)
        if kind is None:
            raise ValueError(
                f"{where}: there is no function {node.func.id!r}; there are: {', '.join(FUNCTIONS)}"
            )
        if len(node.args) != len(kind.locals) or node.keywords:
            needs = f"{len(kind.locals)} input{'s' * (len(kind.locals) > 1)}"
            raise ValueError(f"{where}: {node.func.id} takes {needs}, got {len(node.args)}")
        return _gate(circuit, kind, *node.args)
    what = ast.get_source_segment(circuit.expression, node) or type(node).__name__
    raise ValueError(
        f"{where}: {what!r} is not a number, a name, + - * / ** or one of {', '.join(FUNCTIONS)}"
    )


def _constant(node: ast.expr) -> float | None:
    """The value of a number, with or without signs; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _constant(node.operand)
        return None if value is None else -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        try:
            return float(node.value)  # type: ignore[arg-type]
        except OverflowError:
            return math.inf
    return None


def _gate(circuit: Circuit, kind: Kind, *operands: ast.expr) -> str:
    inputs = tuple(_read(operand, circuit) for operand in operands)
    name = f"gate {len(circuit.gates) + 1}"
    circuit.gates.append(Gate(name, kind, inputs))
    return name


def _name_gates(circuit: Circuit) -> Circuit:
    """The lecture's names: f for the output, q (or q1, q2, ...) for what comes before it."""
    *inner, last = [gate.name for gate in circuit.gates]
    taken = set(circuit.variables)
    new = {last: next(n for n in ("f", "out", *(f"f{i}" for i in range(99))) if n not in taken)}
    letter = next(
        a for a in ("q", "g", "h", *(f"q{i}_" for i in range(99)))
        if not any(v.startswith(a) for v in taken)
    )  # fmt: skip
    for i, name in enumerate(inner, start=1):
        new[name] = letter if len(inner) == 1 else f"{letter}{i}"
    circuit.gates = [
        Gate(new[gate.name], gate.kind, tuple(new.get(i, i) for i in gate.inputs))
        for gate in circuit.gates
    ]
    return circuit


def _values(circuit: Circuit, at: Iterable[str]) -> dict[str, float]:
    """The values given by --at, one for each variable."""
    values: dict[str, float] = {}
    for entry in at:
        name, equals, text = entry.partition("=")
        if name.strip() in values:
            raise ValueError(f"--at gives {name.strip()} twice; give each variable one value")
        try:
            values[name.strip()] = float(text)
        except ValueError:
            problem = "is not a number" if equals else "needs NAME=NUMBER"
            raise ValueError(f"--at {entry!r}: {text!r} {problem}, as in x=1.5") from None
        if not math.isfinite(values[name.strip()]):
            raise ValueError(f"--at {entry!r}: the value needs to be finite")
    missing = [name for name in circuit.variables if name not in values]
    if missing:
        example = " ".join(f"{name}=1" for name in missing)
        raise ValueError(f"--at gives no value for {', '.join(missing)}; add: --at {example}")
    extra = [name for name in values if name not in circuit.variables]
    if extra:
        raise ValueError(
            f"--at gives {', '.join(extra)}, which the expression does not have; "
            f"its variables: {', '.join(circuit.variables)}"
        )
    return {name: values[name] for name in circuit.variables}


# ---- watching the executor -------------------------------------------------------------------


@dataclass
class Run:
    """What the executor computed.

    ``values`` and ``gradients`` by name; by gate ``upstream`` and, one for each input, ``local``
    derivatives and ``downstream`` gradients. An input that forks has several downstream
    gradients, and their sum in ``gradients``.
    """

    values: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    upstream: dict[str, float] = field(default_factory=dict)
    local: dict[str, tuple[float, ...]] = field(default_factory=dict)
    downstream: dict[str, tuple[float, ...]] = field(default_factory=dict)


def watch(circuit: Circuit, at: Mapping[str, float]) -> Run:
    """Runs the circuit forward and backward with every gate watched as the executor runs it.

    Raises:
      ValueError: a value or gradient is not finite, with the gate that made it.
    """
    run = Run(values={**at, **circuit.constants})
    gates = {gate.name: gate for gate in circuit.gates}

    def listen(name: str, block: Block) -> Block:
        gate = gates[name]

        def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
            y, residuals = block.forward(params, x, key)
            run.values[name] = float(y)
            if not math.isfinite(run.values[name]):
                raise ValueError(
                    f"gate {_equation(circuit, gate, run.values)}, which is not a finite number; "
                    "choose other values with --at"
                )
            return y, residuals

        def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
            dparams, dx = block.backward(params, residuals, dy)
            run.upstream[name] = run.gradients[name] = float(dy)
            run.downstream[name] = _floats(dx)
            # The local derivative is what the gate sends down when 1 comes from above.
            run.local[name] = _floats(block.backward(params, residuals, jnp.ones_like(dy))[1])
            for source, local, down in zip(
                gate.inputs, run.local[name], run.downstream[name], strict=True
            ):
                if not (math.isfinite(local) and math.isfinite(down)):
                    raise ValueError(
                        f"gate {_equation(circuit, gate, run.values)}: its local derivative by "
                        f"{circuit.display(source)} is {local:g}, so there is no finite gradient; "
                        "choose other values with --at"
                    )
            return dparams, dx

        return block._replace(forward=forward, backward=backward)

    watched = fnn.map_nodes(circuit.block(), listen)
    f, residuals = watched.forward({}, _inputs(run.values, circuit.inputs))
    _, dx = watched.backward({}, residuals, jnp.ones_like(f))
    run.gradients |= dict(zip(circuit.inputs, _floats(dx), strict=True))
    return run


def _inputs(values: Mapping[str, float], names: tuple[str, ...]) -> Value:
    arrays = tuple(jnp.asarray(values[name], jnp.float64) for name in names)
    return arrays if len(arrays) > 1 else arrays[0]


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


def number(value: float) -> str:
    """At most six digits, and no minus zero."""
    return f"{value + 0.0:.6g}"


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
    if gate.kind.symbol in ("max", "min") and run.local[gate.name][i] == 0.5:
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


# ---- picture ---------------------------------------------------------------------------------

COLUMN, ROW, RADIUS = 2.7, 1.4, 0.42
RED = "#C62828"  # of the lecture; that a gradient stands below its wire says it without colour


class _Layout(NamedTuple):
    """Where things are: gates by name, uses of inputs by (gate, input number), variables."""

    gates: dict[str, tuple[float, float]]
    uses: dict[tuple[str, int], float]
    variables: dict[str, float]


def _arrange(circuit: Circuit) -> _Layout:
    """An expression is a tree, so wires need not cross: each use of an input has its own row.

    A gate's row is the mean of its inputs' rows, its column one to the right of the last of
    them. Only from a variable to its several uses may wires cross.
    """
    gates = {gate.name: gate for gate in circuit.gates}
    places: dict[str, tuple[float, float]] = {}
    uses: dict[tuple[str, int], float] = {}

    def place(name: str) -> None:
        gate, rows, column = gates[name], [], 0.0
        for i, source in enumerate(gate.inputs):
            if source in gates:
                place(source)
                column = max(column, places[source][0])
                rows.append(places[source][1])
            else:
                uses[name, i] = -ROW * len(uses)
                rows.append(uses[name, i])
        places[name] = column + COLUMN, sum(rows) / len(rows)

    place(circuit.gates[-1].name)
    wanted = {
        name: [row for (g, i), row in uses.items() if gates[g].inputs[i] == name]
        for name in circuit.variables
    }
    variables: dict[str, float] = {}
    lowest = math.inf
    for name, rows in sorted(wanted.items(), key=lambda item: -sum(item[1]) / len(item[1])):
        variables[name] = lowest = min(sum(rows) / len(rows), lowest - ROW)
    return _Layout(places, uses, variables)


def draw(circuit: Circuit, run: Run, path: Path) -> None:
    """Gates as circles from left to right; values above the wires, gradients below them."""
    layout = _arrange(circuit)
    f = circuit.gates[-1].name
    forks = any(circuit.readers(name) > 1 for name in circuit.variables)
    left = -COLUMN * 0.75 if forks else 0.0  # where the variables stand
    right = layout.gates[f][0] + COLUMN
    rows = [*layout.uses.values(), *layout.variables.values()]
    top, bottom = max(rows) + 2.2, min(rows) - 0.6
    figure, axis = plt.subplots(figsize=(0.62 * (right - left + 1.4), 0.62 * (top - bottom)))
    axis.set(xlim=(left - 0.7, right + 0.7), ylim=(bottom, top), aspect="equal")
    axis.axis("off")

    for name, row in layout.variables.items():
        axis.text(left, row, name, ha="right", va="center", fontsize=17, style="italic")
        if circuit.readers(name) > 1:  # a stem with the whole gradient, then a branch for each use
            _wire(axis, (left + 0.15, row), (left + 1.25, row))
            _numbers(axis, left + 0.7, row, run.values[name], run.gradients[name])
            axis.plot(left + 1.25, row, "o", color="black", ms=5, zorder=3)
    for gate in circuit.gates:
        x, y = layout.gates[gate.name]
        for i, source in enumerate(gate.inputs):
            down = run.downstream[gate.name][i]
            if source in layout.gates:
                start, label = layout.gates[source], True
                start = start[0] + RADIUS, start[1]
            elif source in circuit.constants:
                row = layout.uses[gate.name, i]
                start, label = (x - COLUMN + 0.8, row), False
                axis.text(
                    start[0] - 0.12, row, circuit.display(source), ha="right", va="center",
                    fontsize=13, color=pictures.GREY,
                )  # fmt: skip
            else:
                row, label = layout.uses[gate.name, i], True
                start = left + 0.15, row
                if circuit.readers(source) > 1:
                    stem = left + 1.25, layout.variables[source]
                    start = 0.5, row
                    _bend(axis, stem, start)
                elif layout.variables[source] != row:
                    stem, start = (left + 0.15, layout.variables[source]), (0.5, row)
                    _bend(axis, stem, start)
            before = x - 0.95, start[1]
            _wire(axis, start, before)
            across, down_by = x - before[0], y - before[1]
            length = math.hypot(across, down_by)
            end = x - RADIUS * across / length, y - RADIUS * down_by / length
            _wire(axis, before, end)
            if label:
                middle = (max(start[0], x - COLUMN + RADIUS) + before[0]) / 2
                _numbers(axis, middle, start[1], run.values[source], down)
        axis.add_patch(
            Circle((x, y), RADIUS, facecolor="#EEF3F8", edgecolor="black", lw=1.6, zorder=4)
        )
        symbol = gate.kind.symbol
        axis.text(
            x, y, symbol, ha="center", va="center_baseline" if symbol.isalpha() else "center",
            fontsize=18 if len(symbol) == 1 else 14 if "$" in symbol else 10.5, zorder=5,
        )  # fmt: skip
        if gate.name != f:
            axis.text(
                x, y + RADIUS + 0.06, gate.name, ha="center", va="bottom", fontsize=10,
                color=pictures.GREY, zorder=3, bbox={"color": "white", "pad": 0.5},
            )  # fmt: skip
    x, y = layout.gates[f]
    _wire(axis, (x + RADIUS, y), (right, y))
    _numbers(axis, (x + RADIUS + right) / 2, y, run.values[f], run.gradients[f])
    axis.text(right + 0.1, y, f, ha="left", va="center", fontsize=17, style="italic")
    _title(axis, f"{f} = {circuit.expression}", f)
    pictures.save(figure, path)


def _title(axis: Axes, expression: str, f: str) -> None:
    """The expression, and below it what the colours mean."""
    middle, top = sum(axis.get_xlim()) / 2, axis.get_ylim()[1]
    axis.text(middle, top, expression, ha="center", va="top", family="monospace", fontsize=15)
    for text, side, color in (
        ("forward: values  ", "right", pictures.GREEN),
        (f"  backward: d{f}/d(wire)", "left", RED),
    ):
        axis.text(middle, top - 0.75, text, ha=side, va="top", fontsize=12, color=color)


def _wire(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    xs, ys = zip(start, end, strict=True)
    axis.plot(xs, ys, color="black", lw=1.5, zorder=2, solid_capstyle="round")


def _bend(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A smooth branch: level where it leaves and where it arrives."""
    ts = [i / 30 for i in range(31)]
    xs = [start[0] + (end[0] - start[0]) * t for t in ts]
    ys = [start[1] + (end[1] - start[1]) * t * t * (3 - 2 * t) for t in ts]
    axis.plot(xs, ys, color=pictures.GREY, lw=1.5, zorder=1)


def _numbers(axis: Axes, x: float, y: float, value: float, gradient: float) -> None:
    for text, color, offset, va in (
        (value, pictures.GREEN, 0.1, "bottom"), (gradient, RED, -0.12, "top"),
    ):  # fmt: skip
        axis.text(
            x, y + offset, f"{text + 0.0:.3g}", ha="center", va=va, color=color, fontsize=12,
            weight="bold", zorder=6,
        )  # fmt: skip
