"""What every combinator keeps of the rules of the blocks inside; the table is in
fnn/blocks/combinators.py. Names are labels: whatever they are, nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockValueError, Params, Residuals, Value, unwrapped
from fnn.blocks.linear import initializer_for

X = jnp.array([[1.0, 2.0], [3.0, 4.0]])
FIELDS = fnn.Rules._fields


def counting() -> fnn.Block:
    """y = x + count, with every rule there is: each leaves a mark of its own."""

    def forward(params: Params, x: Value, key: Any = None) -> tuple[Value, Residuals]:
        return x + params["count"].astype(x.dtype), (x,)

    def validate(x: Value) -> None:
        if np.min(x) < 0:
            raise BlockValueError("counting", "x is negative")

    def update_statistics(params: Params, residuals: Residuals) -> Params:
        (x,) = residuals
        return {"count": params["count"] + x.shape[0]}

    return fnn.Block(
        init=lambda key, x: {"count": jnp.zeros(())},
        forward=forward,
        backward=lambda params, residuals, dy: ({"count": None}, dy),
        name="counting",
        kind=fnn.Kind("counting"),
        rules=fnn.Rules(
            inference=lambda: counting()._replace(kind=fnn.Kind("at inference")),
            validate=validate,
            update_statistics=update_statistics,
            subgradient=lambda x, dy: 7 * dy,
            factors=lambda params, residuals, dy: (residuals[0], dy),
        ),
    )


COMBINATORS: dict[str, Callable[[fnn.Block], fnn.Block]] = {
    "graph": lambda block: fnn.graph("x", [("y", block, "x")], "y"),
    "serial": fnn.serial,
    "fan_out": lambda block: fnn.fan_out(block, fnn.identity()),
    "residual": fnn.residual,
    "map_nodes": lambda block: fnn.map_nodes(fnn.serial(fnn.identity()), lambda _, __: block),
    "freeze": fnn.freeze,
    "repeat": lambda block: fnn.repeat(block, 3),
    "rematerialize": fnn.rematerialize,
    "straight_through": lambda block: fnn.straight_through(block, block),
}
# A graph applies its nodes' rules node by node; its own is only update_statistics.
BY_NODE = {"update_statistics"}
KEPT = {
    "graph": BY_NODE,
    "serial": BY_NODE,
    "fan_out": BY_NODE,
    "residual": BY_NODE,
    "map_nodes": BY_NODE,
    "freeze": {"inference", "validate", "subgradient"},
    "repeat": {"inference", "validate", "update_statistics"},
    "rematerialize": set(FIELDS),
    "straight_through": {"inference", "validate", "update_statistics", "subgradient"},
}


@pytest.mark.parametrize("name", COMBINATORS)
def test_what_a_combinator_keeps(name: str) -> None:
    combined = COMBINATORS[name](counting())
    assert {field for field in FIELDS if getattr(combined.rules, field) is not None} == KEPT[name]


@pytest.mark.parametrize("name", COMBINATORS)
def test_what_is_kept_works(name: str) -> None:
    combined = COMBINATORS[name](counting())
    params = combined.init(jax.random.key(0), X)
    _, residuals = combined.forward(params, X)
    rules = combined.rules
    if rules.update_statistics is not None:
        moved = rules.update_statistics(params, residuals)
        assert jax.tree.structure(moved) == jax.tree.structure(params)
        for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
            assert after.shape == before.shape and (after == before + len(X)).all()
    if rules.validate is not None:
        rules.validate(np.ones(2))
        with pytest.raises(BlockValueError, match="x is negative"):
            rules.validate(-np.ones(2))
    if rules.subgradient is not None:
        assert (rules.subgradient(X, X) == 7 * X).all()
    if rules.factors is not None:
        a, g = rules.factors(params, residuals, 2 * X)
        assert (a == X).all() and (g == 2 * X).all()


@pytest.mark.parametrize("name", COMBINATORS)
def test_inference_reaches_what_is_inside(name: str) -> None:
    """Node by node in a graph, by its own rule elsewhere."""

    def makers(block: fnn.Block) -> set[str]:
        nodes = () if block.graph is None else block.graph.nodes
        inner = [*block.kind.of, *(node.block for node in nodes)]
        return {block.kind.maker}.union(*map(makers, inner))

    combined = COMBINATORS[name](counting())
    assert "counting" in makers(combined) and "at inference" not in makers(combined)
    reading = fnn.inference(combined)
    assert "at inference" in makers(reading) and "counting" not in makers(reading)


@pytest.mark.parametrize("change", [fnn.inference, fnn.freeze])
def test_a_graph_rebuilt_keeps_its_kind_and_what_it_refuses(
    change: Callable[[fnn.Block], fnn.Block],
) -> None:
    loss = fnn.models.deep_supervision(fnn.softmax_cross_entropy(), (1.0, 0.3))
    rebuilt = change(loss)
    assert rebuilt.kind == loss.kind and rebuilt.rules.validate is not None
    with pytest.raises(fnn.BlockError, match="labels go from 9 to 9"):
        rebuilt.rules.validate(((np.zeros((1, 3)), np.zeros((1, 3))), np.array([9])))


def test_the_statistics_of_a_straight_through_are_its_forwards() -> None:
    unit = fnn.straight_through(counting(), counting())
    params = unit.init(jax.random.key(0), X)
    _, residuals = unit.forward(params, X)
    assert unit.rules.update_statistics is not None
    assert unit.rules.update_statistics(params, residuals)["count"] == 2


# ---- names are labels ------------------------------------------------------------------------

NAMES = ["act", "linear", "relu", "tanh", "", "a/b", "power(2)", "freeze_", "x", "nonlinearity"]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_takes_a_nonlinearity_of_any_name(name: str) -> None:
    nonlinearity = fnn.relu()._replace(name=name)
    key, x = jax.random.key(0), jnp.ones((2, 3))
    params = fnn.layer(8, nonlinearity).init(key, x)
    expected = fnn.layer(8, fnn.relu()).init(key, x)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert (params["linear"]["w"] == expected["linear"]["w"]).all()  # He's, not Glorot's
    y, _ = fnn.neuron(nonlinearity).forward(
        {"linear": {"w": jnp.ones(3), "b": jnp.zeros(())}}, -jnp.ones((2, 3))
    )
    assert (y == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_mlp_takes_a_nonlinearity_of_any_name(name: str) -> None:
    net = fnn.models.mlp((4, 4, 2), fnn.relu()._replace(name=name), dropout=0.5)
    params = net.init(jax.random.key(0), X)
    assert sorted(params) == ["hidden_1", "hidden_2", "out"]


def test_wrapped_nonlinearities_have_their_initialiser() -> None:
    he, glorot = initializer_for(fnn.relu()), initializer_for(fnn.tanh())
    assert he is not glorot
    assert initializer_for(fnn.freeze(fnn.rematerialize(fnn.relu()))) is he
    assert initializer_for(fnn.tanh()._replace(name="relu")) is glorot
    assert unwrapped(fnn.straight_through(fnn.step(), fnn.relu())).kind.maker == "straight_through"
