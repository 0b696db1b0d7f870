"""Expressions as circuits of gates, parsed by Python's grammar but never evaluated as code."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn.block import Block

LECTURE = "(x + y) * z"
LECTURE_AT = ("x=-2", "y=5", "z=-4")

# ---- gates -----------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of gate: fnn's block, the same in plain JAX to check against, how many inputs."""

    block: Callable[[], Block]
    plain: Callable[..., Any]
    inputs: int = 1


OPERATORS: dict[type, Kind] = {
    ast.Add: Kind(fnn.add, operator.add, 2),
    ast.Sub: Kind(fnn.subtract, operator.sub, 2),
    ast.Mult: Kind(fnn.multiply, operator.mul, 2),
    ast.Div: Kind(fnn.divide, operator.truediv, 2),
    ast.Pow: Kind(fnn.power, operator.pow, 2),
    ast.USub: Kind(fnn.negate, operator.neg),
}

FUNCTIONS: dict[str, Kind] = {
    "exp": Kind(fnn.exp, jnp.exp),
    "log": Kind(fnn.log, jnp.log),
    "sqrt": Kind(fnn.sqrt, jnp.sqrt),
    "square": Kind(fnn.square, jnp.square),
    "max": Kind(fnn.maximum, jnp.maximum, 2),
    "min": Kind(fnn.minimum, jnp.minimum, 2),
    **dict.fromkeys(("logistic", "sigmoid", "sigma"), Kind(fnn.logistic, jax.nn.sigmoid)),
    "tanh": Kind(fnn.tanh, jnp.tanh),
    "relu": Kind(fnn.relu, jax.nn.relu),
    "abs": Kind(fnn.absolute, jnp.abs),
    "softplus": Kind(fnn.softplus, jax.nn.softplus),
}


def _fixed_power(p: float) -> Kind:
    """x to a constant power. The exponent is part of the gate, so a negative x has a gradient."""
    p = int(p) if p.is_integer() else p
    return Kind(lambda: fnn.power(p), lambda a: a**p)


class Gate(NamedTuple):
    """One gate of the circuit.

    ``inputs`` are names of variables, constants or other gates; ``source`` is its part of the
    expression.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    source: str


@dataclass
class Circuit:
    """An expression as gates, each after those whose values it reads."""

    expression: str
    variables: list[str]
    constants: dict[str, float] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.variables, *self.constants)

    def block(self) -> Block:
        """The circuit as fnn runs it."""
        nodes = [(gate.name, gate.kind.block(), gate.inputs) for gate in self.gates]
        return fnn.graph(self.inputs, nodes, self.gates[-1].name, name="circuit")

    def arrays(self, at: Mapping[str, float]) -> Any:
        """The block's input at these values of the variables: float64, a tuple if several."""
        values = {**at, **self.constants}
        arrays = tuple(np.float64(values[name]) for name in self.inputs)
        return arrays if len(arrays) > 1 else arrays[0]


# ---- from text to circuit --------------------------------------------------------------------


def parse(expression: str) -> Circuit:
    """Reads an expression by Python's own grammar; nothing is evaluated.

    Raises:
      ValueError: one line that says what is wrong and where.
    """
    text = " ".join(expression.split())
    try:
        tree = ast.parse(text, mode="eval").body
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        names.sort(key=lambda node: node.col_offset)
        variables = dict.fromkeys(node.id for node in names if node.id not in FUNCTIONS)
        circuit = Circuit(text, list(variables))
        last = _read(tree, circuit)
    except SyntaxError as error:
        # Python gives no position where the text ends too early: it is the end.
        where = error.offset or len(text) + 1
        raise ValueError(f"{text!r}: syntax error at position {where}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"the expression is nested too deeply: {text[:40]!r}...") from error
    if not circuit.variables:
        raise ValueError(f"{text!r} has no variable, so there is no gradient; use a name, like x")
    if not circuit.gates:
        raise ValueError(f"{text!r} has no gate; combine {last} with something, as in {last} * 2")
    return _name_gates(circuit)


def _read(node: ast.expr, circuit: Circuit) -> str:
    """Appends the gates of a node of the syntax tree; returns the name of its value."""
    where = f"{circuit.expression!r}: at position {node.col_offset + 1}"
    constant = _constant(node)
    if constant is not None:
        if not math.isfinite(constant):
            raise ValueError(f"{where}: the number is too large for float64")
        name = number(constant)  # named by its value, equal ones with primes
        while name in circuit.constants:
            name += "′"  # noqa: RUF001
        circuit.constants[name] = constant
        return name
    match node:
        case ast.Name(id=name) if name in FUNCTIONS:
            raise ValueError(f"{where}: {name} is a function; write {name}(...)")
        case ast.Name(id=name):
            return name
        case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATORS:
            exponent = _constant(right) if isinstance(op, ast.Pow) else None
            if exponent is not None and math.isfinite(exponent):
                return _gate(circuit, node, _fixed_power(exponent), left)
            return _gate(circuit, node, OPERATORS[type(op)], left, right)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _read(operand, circuit)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return _gate(circuit, node, OPERATORS[type(op)], operand)
        case ast.Call(func=ast.Name(id=name)) if name not in FUNCTIONS:
            there_are = ", ".join(FUNCTIONS)
            raise ValueError(f"{where}: there is no function {name!r}; there are: {there_are}")
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            kind = FUNCTIONS[name]
            if len(arguments) != kind.inputs or keywords:
                needs = f"{kind.inputs} input{'s' * (kind.inputs > 1)}"
                raise ValueError(f"{where}: {name} takes {needs}, got {len(arguments)}")
            return _gate(circuit, node, kind, *arguments)
    what = ast.get_source_segment(circuit.expression, node) or type(node).__name__
    raise ValueError(
        f"{where}: {what!r} is not a number, a name, + - * / ** or one of {', '.join(FUNCTIONS)}"
    )


def _constant(node: ast.expr) -> float | None:
    """The value of a number, with or without signs; None for anything else."""
    match node:
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _constant(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _constant(operand)
            return None if value is None else -value
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                return math.inf
    return None


def _gate(circuit: Circuit, node: ast.expr, kind: Kind, *operands: ast.expr) -> str:
    inputs = tuple(_read(operand, circuit) for operand in operands)
    name = f"gate {len(circuit.gates) + 1}"
    source = ast.get_source_segment(circuit.expression, node) or ""
    circuit.gates.append(Gate(name, kind, inputs, source))
    return name


def _name_gates(circuit: Circuit) -> Circuit:
    """Names gates as in the lecture: f for the output, q (or q1, q2, ...) for the others."""
    taken = circuit.variables
    outputs = ("f", "out", *(f"f{i}" for i in range(99)))
    letters = ("q", "g", "h", *(f"q{i}_" for i in range(99)))
    letter = next(a for a in letters if not any(v.startswith(a) for v in taken))
    *inner, last = [gate.name for gate in circuit.gates]
    new = {name: f"{letter}{i if len(inner) > 1 else ''}" for i, name in enumerate(inner, start=1)}
    new[last] = next(name for name in outputs if name not in taken)
    circuit.gates = [
        gate._replace(name=new[gate.name], inputs=tuple(new.get(i, i) for i in gate.inputs))
        for gate in circuit.gates
    ]
    return circuit


def assigned(circuit: Circuit, at: Iterable[str]) -> dict[str, float]:
    """The values given by --at, one for each variable: x=1 y=2, or with commas, x=1,y=2."""
    values: dict[str, float] = {}
    for entry in (entry for text in at for entry in text.split(",") if entry.strip()):
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


def number(value: float) -> str:
    """At most six digits, without minus zero."""
    return f"{value + 0.0:.6g}"
