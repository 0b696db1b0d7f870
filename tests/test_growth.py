"""Nothing grows faster than its work: calls and equations, counted at one size and at twice it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.block import Block
from fnn.compiling import as_on, by_platform, traced_once
from fnn.introspect.flops import jaxprs_inside

X = jax.ShapeDtypeStruct((2, 3), "float32")


def row(n: int) -> Block:
    return fnn.serial(*[fnn.negate() for _ in range(n)])


def within(n: int) -> Block:
    """A chain in a chain in a chain."""
    net = fnn.serial(fnn.negate())
    for _ in range(n - 1):
        net = fnn.serial(fnn.negate(), net)
    return net


def spread(n: int) -> Block:
    return fnn.fan_out(*[fnn.negate() for _ in range(n)])


def wrapped(n: int) -> Block:
    net = fnn.negate()
    for _ in range(n):
        net = fnn.serial(net)
    return net


MADE = {"row": row, "within": within, "spread": spread}


def run(net: Block) -> Any:
    def both(x: Any) -> Any:
        y, residuals = net.forward({}, x)
        return net.backward({}, residuals, y)

    return jax.make_jaxpr(both)(X)


DONE: dict[str, Callable[[Block], Any]] = {
    "init": lambda net: net.init(jax.random.key(0), X),
    "there and back": run,
    "inference": fnn.inference,
    "freeze": fnn.freeze,
    "summary": lambda net: str(fnn.summary(net, X)),
    "repr": repr,
}


def calls(f: Callable[[], Any]) -> int:
    """How many functions ``f`` calls, in Python and in C."""
    count = 0

    def note(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        f()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("what", DONE)
@pytest.mark.parametrize("made", MADE)
def test_calls_are_in_proportion(made: str, what: str) -> None:
    few, many = MADE[made](8), MADE[made](16)
    DONE[what](MADE[made](2))  # what JAX does once
    once, twice = (calls(lambda net=net: DONE[what](net)) for net in (few, many))
    assert twice < 2.1 * once


@pytest.mark.parametrize("made", MADE)
def test_building_is_in_proportion(made: str) -> None:
    once, twice = (calls(lambda n=n: MADE[made](n)) for n in (50, 100))
    assert twice < 2.1 * once


def test_thirty_thousand_nodes() -> None:
    net = fnn.serial(*[fnn.negate()] * 30_000)
    assert len(repr(fnn.inference(net)).splitlines()) == 30_001


@pytest.mark.parametrize("what", DONE)
def test_two_hundred_within_each_other(what: str) -> None:
    DONE[what](wrapped(200))


@pytest.mark.parametrize("what", ["there and back", "inference"])
def test_too_many_within_each_other(what: str) -> None:
    with pytest.raises(RecursionError) as error:
        DONE[what](wrapped(sys.getrecursionlimit()))
    assert "nested too deeply" in error.value.__notes__[0]


def equations(jaxpr: Any) -> int:
    """Of a program and of all that it calls, as often as it calls it."""
    return sum(1 + sum(map(equations, jaxprs_inside(equation.params))) for equation in jaxpr.eqns)


def test_rematerialize_within_rematerialize() -> None:
    """Each level runs again all that is below: the square of the depth."""

    def program(depth: int) -> int:
        net = fnn.rematerialize(fnn.square())
        for _ in range(depth - 1):
            net = fnn.rematerialize(fnn.serial(net, fnn.square()))
        return equations(run(net).jaxpr)

    assert program(8) < 4 * program(4)


MADE_ONCE = [fnn.tanh, fnn.logistic, fnn.gelu, fnn.silu, fnn.mish, fnn.softplus, fnn.softsign,
             fnn.elu, fnn.selu, fnn.celu, fnn.exp]  # fmt: skip


@pytest.mark.parametrize("make", MADE_ONCE)
def test_a_nonlinearity_is_traced_once_for_all_its_layers(make: Callable[[], Block]) -> None:
    """Two equations call its functions, which many layers have in common."""
    net = fnn.serial(*[make() for _ in range(10)])
    jaxpr = run(net).jaxpr
    assert len(jaxpr.eqns) <= 10 * 3
    inside = {id(inner) for equation in jaxpr.eqns for inner in jaxprs_inside(equation.params)}
    assert len(inside) <= 2


def test_what_was_traced_for_another_platform_is_not_taken() -> None:
    @traced_once
    def f(x: jax.Array) -> jax.Array:
        return by_platform(x, tpu=jnp.sin, default=jnp.cos)

    for platform in ("cpu", "tpu"):
        with as_on(platform):
            jaxpr = jax.make_jaxpr(lambda x: f(x))(1.0)
        assert ("sin" if platform == "tpu" else "cos") in str(jaxpr)


def instructions(f: Callable[..., Any], *arguments: Any) -> int:
    """Of the program that XLA compiles, within its loops."""
    return len(re.findall(" = ", jax.jit(f).lower(*arguments).compile().as_text()))


@pytest.mark.parametrize("make, value", [(fnn.maximum, jnp.maximum), (fnn.minimum, jnp.minimum)])
def test_a_chain_of_gates_is_as_long_as_its_formula(
    make: Callable[[], Block], value: Callable[..., Any]
) -> None:
    """Compiled, they are one loop: from 2000 instructions in it on, XLA's time explodes."""

    def both(n: int) -> tuple[int, int]:
        nodes = [(f"n{i}", make(), (f"n{i - 1}" if i else "x", "y")) for i in range(n)]
        net = fnn.graph(("x", "y"), nodes, f"n{n - 1}")

        def ours(x: Any, dy: Any) -> Any:
            return net.backward({}, net.forward({}, x)[1], dy)[1]

        def formula(x: Any, y: Any) -> Any:
            for _ in range(n):
                x = value(x, y)
            return x

        return (
            instructions(ours, (X, X), X),
            instructions(lambda x, dy: jax.vjp(formula, *x)[1](dy), (X, X), X),
        )

    few, many = both(50), both(100)
    assert many[0] < 1.6 * many[1]
    assert many[0] < 2.1 * few[0]
