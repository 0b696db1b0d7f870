"""The executor: wiring, chain rule, sharing, keys, and errors that say where and what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block, BlockError, BlockTypeError, BlockValueError, no_params
from fnn.executor import _Executor

pytestmark = pytest.mark.core

X = np.arange(6.0).reshape(2, 3)


def run(block: Block, params: Any, x: Any, dy: Any, key: Any = None) -> tuple[Any, Any, Any]:
    y, residuals = block.forward(params, x, key)
    return (y, *block.backward(params, residuals, dy))


def equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-13), a, b)


# ---- the chain rule --------------------------------------------------------------------------


def test_the_lectures_circuit() -> None:
    f = fnn.graph(
        ("x", "y", "z"),
        [("q", fnn.add(), ("x", "y")), ("f", fnn.multiply(), ("q", "z"))],
        "f",
    )
    y, dparams, dx = run(f, {}, (-2.0, 5.0, -4.0), 1.0)
    assert float(y) == -12 and dparams == {} and tuple(map(float, dx)) == (-4, -4, 3)


def test_a_forks_cotangents_add() -> None:
    # y = x^2 * (-x) + x = -x^3 + x, so dy/dx = -3x^2 + 1
    f = fnn.graph(
        "x",
        [
            ("a", fnn.square(), "x"),
            ("b", fnn.negate(), "x"),
            ("ab", fnn.multiply(), ("a", "b")),
            ("y", fnn.add(), ("ab", "x")),
        ],
        "y",
    )
    y, _, dx = run(f, {}, 3.0, 1.0)
    assert (float(y), float(dx)) == (-24, -26)


def test_one_value_twice_into_one_node() -> None:
    f = fnn.graph("x", [("y", fnn.multiply(), ("x", "x"))], "y")
    assert float(run(f, {}, 3.0, 1.0)[2]) == 6


def test_an_output_that_others_read_gets_both_cotangents() -> None:
    f = fnn.graph("x", [("a", fnn.square(), "x"), ("b", fnn.square(), "a")], ("a", "b", "x"))
    # x = 2: a = 4, b = 16; da/dx = 4, db/dx = 32
    assert float(run(f, {}, 2.0, (1.0, 1.0, 100.0))[2]) == 136


def test_shared_parameters_gradients_add() -> None:
    shared = fnn.graph("x", [("a", fnn.linear(3), "x"), ("b", fnn.linear(3), "a", "a")], "b")
    apart = fnn.graph("x", [("a", fnn.linear(3), "x"), ("b", fnn.linear(3), "a")], "b")
    params = shared.init(jax.random.key(0), X)
    assert list(params) == ["a"]
    dy = np.cos(X)
    y, dparams, dx = run(shared, params, X, dy)
    y2, both, dx2 = run(apart, {"a": params["a"], "b": params["a"]}, X, dy)
    equal((y, dx), (y2, dx2))
    equal(dparams["a"], jax.tree.map(jnp.add, both["a"], both["b"]))


def test_params_hold_only_nodes_that_have_some() -> None:
    net = fnn.serial(fnn.relu(), inner=fnn.serial(fnn.tanh()), out=fnn.linear(2))
    assert list(net.init(jax.random.key(0), X)) == ["out"]


def test_init_needs_shapes_only_and_does_not_run_the_network() -> None:
    def forward(params: Any, x: Any, key: Any = None) -> Any:
        calls.append(isinstance(x, jax.core.Tracer))
        return x, ()

    calls: list[bool] = []
    spy = Block(no_params, forward, lambda params, residuals, dy: ({}, dy), "spy")
    net = fnn.serial(spy, fnn.linear(2))
    params = net.init(jax.random.key(0), jax.ShapeDtypeStruct((5, 3), jnp.float32))
    assert params["1_linear"]["w"].shape == (3, 2) and calls == [True]


@pytest.mark.slow
def test_nothing_flows_through_an_integer() -> None:
    """Before a value without a gradient there are no cotangents."""
    argmax = Block(
        no_params,
        lambda params, x, key=None: (jnp.argmax(x, -1), ()),
        lambda params, residuals, dy: ({}, None),
        "argmax",
    )
    net = fnn.graph(
        ("x", "z"),
        [
            ("scores", fnn.linear(3), "x"),
            ("label", argmax, "scores"),
            ("E", fnn.softmax_cross_entropy(), ("z", "label")),
        ],
        "E",
    )
    params = net.init(jax.random.key(0), (X, X))
    _, dparams, (dx, dz) = run(net, params, (X, X), 1.0)
    assert dparams == {"scores": None} and dx is None and dz.shape == X.shape
    assert fnn.check.finite(net)(params, (X, X)).first is None


# ---- randomness ------------------------------------------------------------------------------


def test_every_node_has_a_key_of_its_own_and_always_the_same() -> None:
    drop = fnn.dropout(0.5)
    net = fnn.fan_out(drop, drop, fnn.serial(drop))
    ones = jnp.ones(64)
    first, again = (net.forward({}, ones, jax.random.key(1))[0] for _ in range(2))
    other = net.forward({}, ones, jax.random.key(2))[0]
    equal(first, again)
    masks = [tuple(np.asarray(y) > 0) for y in (*first, *other)]
    assert len(set(masks)) == 6


def test_a_nodes_key_depends_on_its_place_not_on_what_else_is_live() -> None:
    """A head that disappears at inference does not change the other nodes' keys."""
    wire = [("a", fnn.dropout(0.5), "x"), ("b", fnn.dropout(0.5), "x")]
    both = fnn.graph("x", wire, ("a", "b"))
    pruned = _Executor(both.graph._replace(outputs=("b",)), "pruned").block()
    key, ones = jax.random.key(0), jnp.ones(32)
    equal(both.forward({}, ones, key)[0][1], pruned.forward({}, ones, key)[0])


def test_keys_of_init_differ_between_nodes() -> None:
    params = fnn.serial(fnn.linear(3), fnn.linear(3)).init(jax.random.key(0), X)
    assert not np.array_equal(params["0_linear"]["w"], params["1_linear"]["w"])


# ---- inference and rebuilding ----------------------------------------------------------------


def test_parameters_of_dead_heads_are_still_accepted() -> None:
    full = fnn.graph(
        "x", [("main", fnn.linear(2), "x"), ("aux", fnn.linear(2), "x")], ("main", "aux")
    )
    main = _Executor(full.graph._replace(outputs=("main",)), "main").block()
    params = full.init(jax.random.key(0), X)
    y, dparams, _ = run(main, params, X, np.ones((2, 2)))
    equal(y, full.forward(params, X)[0][0])
    assert dparams["aux"] is None and dparams["main"]["w"].shape == (3, 2)
    assert list(main.init(jax.random.key(0), X)) == ["main"]
    # ... and a gradient function fills in zeros.
    filled = fnn.value_and_grad(main, fnn.squared_error())(params, X, np.ones((2, 2)))[1]
    assert jax.tree.structure(filled) == jax.tree.structure(params)
    assert not np.any(filled["aux"]["w"])


def test_inference_reaches_into_nested_networks() -> None:
    net = fnn.serial(
        fnn.serial(fnn.linear(3), fnn.dropout(0.9)),
        fnn.repeat(fnn.serial(fnn.linear(3), fnn.dropout(0.9)), 2),
        fnn.rematerialize(fnn.residual(fnn.dropout(0.5))),
        fnn.freeze(fnn.dropout(0.5)),
    )
    params = net.init(jax.random.key(0), X)
    with pytest.raises(BlockValueError, match="needs a key"):
        net.forward(params, X)
    reading = fnn.inference(net)
    y = reading.forward(params, X)[0]
    equal(y, fnn.inference(reading).forward(params, X, jax.random.key(9))[0])


def test_a_network_with_an_init_of_its_own_can_be_rebuilt() -> None:
    """To start from other parameters one replaces ``init``: nothing else depends on it."""
    net = fnn.serial(a=fnn.linear(2), b=fnn.dropout(0.5))

    def zeros(key: jax.Array, x: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, net.init(key, x))

    own = net._replace(init=zeros)
    x, key = jnp.ones((1, 3)), jax.random.key(0)
    for rebuilt in (fnn.inference(own), fnn.map_nodes(own, lambda _, block: fnn.freeze(block))):
        assert not rebuilt.init(key, x)["a"]["w"].any()
    assert not fnn.serial(own=own, out=fnn.linear(2)).init(key, x)["own"]["a"]["w"].any()
    with pytest.raises(BlockTypeError, match="has a forward or backward that is not its graph"):
        fnn.inference(net._replace(forward=lambda *a, **k: net.forward(*a, **k)))


def test_map_nodes_keeps_wiring_and_sharing() -> None:
    net = fnn.graph("x", [("a", fnn.linear(3), "x"), ("b", fnn.linear(3), "a", "a")], "b")
    same = fnn.map_nodes(net, lambda name, block: block)
    params = net.init(jax.random.key(0), X)
    equal(run(net, params, X, np.sin(X)), run(same, params, X, np.sin(X)))
    assert same.graph == net.graph
    with pytest.raises(BlockTypeError, match="not a graph"):
        fnn.map_nodes(fnn.relu(), lambda name, block: block)


# ---- what is refused -------------------------------------------------------------------------

relu, add = fnn.relu(), fnn.add()

WIRINGS = {
    "unknown name": (("x", [("a", relu, "y")], "a"), "node 'a' reads 'y', which is not a node"),
    "used before it is computed": (
        ("x", [("a", relu, "b"), ("b", relu, "x")], "b"),
        "node 'a' reads 'b', which is computed later",
    ),
    "reads itself": (("x", [("a", relu, "a")], "a"), "node 'a' reads 'a', which is computed later"),
    "repeated name": (("x", [("a", relu, "x"), ("a", relu, "x")], "a"), "'a' is used twice"),
    "node named as the input": (("x", [("x", relu, "x")], "x"), "'x' is used twice"),
    "unused node": (
        ("x", [("a", relu, "x"), ("b", relu, "x")], "a"), "no output depends on node 'b'",
    ),
    "unused input": ((("x", "y"), [("a", relu, "x")], "a"), "no node reads the input 'y'"),
    "unknown output": (("x", [("a", relu, "x")], "b"), "output 'b' is not a node or input"),
    "slash in a name": (("x", [("a/b", relu, "x")], "a/b"), "'a/b' cannot be a name"),
    "empty name": (("x", [("", relu, "x")], ""), "'' cannot be a name"),
    "name that is no text": (("x", [(1, relu, "x")], "a"), "1 cannot be a name"),
    "parameters of no node": (
        ("x", [("a", relu, "x", "c")], "a"), "uses the parameters of 'c', needs the name of a node",
    ),
    "parameters of a later node": (
        ("x", [("a", relu, "x", "b"), ("b", relu, "a")], "b"), "uses the parameters of 'b'",
    ),
    "parameters of an input": (
        ("x", [("a", relu, "x", "x")], "a"), "uses the parameters of 'x'",
    ),
    "uncalled factory": (
        ("x", [("a", fnn.relu, "x")], "a"),
        "node 'a' is the function relu, needs a Block (did you mean fnn.relu()",
    ),
    "no block": (("x", [("a", None, "x")], "a"), "node 'a' is None, needs a Block"),
    "entry too short": (("x", [("a", relu)], "a"), "a node is (name, block, input_names)"),
    "entry that is a block": (("x", [relu], "x"), "a node is (name, block, input_names)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WIRINGS)
def test_wirings_that_cannot_run_are_refused(case: str) -> None:
    arguments, message = WIRINGS[case]
    with pytest.raises(BlockError) as error:
        fnn.graph(*arguments, name="net")
    assert str(error.value).startswith("net: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("x", "message"),
    [((1.0, 2.0, 3.0), "x is (1.0"), ((1.0,), "x is (1.0,)"), (jnp.ones(2), "needs a tuple")],
)
def test_a_tuple_of_the_wrong_length_is_refused(x: Any, message: str) -> None:
    net = fnn.graph(("x", "y"), [("sum", add, ("x", "y"))], "sum")
    with pytest.raises(BlockTypeError, match=r"\(x, y\)") as error:
        net.forward({}, x)
    assert message in str(error.value)


def test_parameters_of_another_network_are_refused() -> None:
    net, other = fnn.serial(a=fnn.linear(2)), fnn.serial(b=fnn.linear(2))
    with pytest.raises(BlockValueError, match=r"entries \['b'\].*another network's"):
        net.forward(other.init(jax.random.key(0), X), X)
    with pytest.raises(BlockTypeError, match="needs a dict keyed by block name"):
        net.forward([jnp.ones(2)], X)
    with pytest.raises(BlockTypeError, match=r"^a \(linear\): params hold \[\], need \['b', 'w'\]"):
        net.forward({}, X)


def test_an_error_says_where_in_the_network_it_is() -> None:
    net = fnn.serial(first=fnn.relu(), outer=fnn.serial(inner=fnn.linear(2)))
    params = net.init(jax.random.key(0), X)
    with pytest.raises(BlockValueError) as error:
        net.forward(params, np.ones((2, 5)))
    assert str(error.value).startswith("outer/inner (linear): x has 5 features")
    assert isinstance(error.value, ValueError) and error.value.path == ["outer", "inner"]
    with pytest.raises(BlockTypeError, match=r"^first \(relu\): x has dtype int"):
        net.init(jax.random.key(0), np.ones((2, 3), np.int32))


def test_a_foreign_error_keeps_its_type_and_gets_a_note() -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("mine")

    user = Block(no_params, lambda params, x, key=None: (x, ()), fails, "user")
    net = fnn.serial(outer=fnn.serial(user=user))
    _, residuals = net.forward({}, X)
    with pytest.raises(ValueError, match="mine") as error:
        net.backward({}, residuals, X)
    assert type(error.value) is ValueError
    assert error.value.__notes__ == ["in block 'user'", "in block 'outer'"]


def test_a_rule_put_in_place_of_a_graphs_is_not_lost_in_silence() -> None:
    net = fnn.serial(square=fnn.square())
    swapped = net._replace(backward=lambda params, residuals, dy: ({}, 100 * dy))
    with pytest.raises(BlockTypeError, match=r"block\._replace\(graph=None\)"):
        fnn.inference(swapped)
    opaque = swapped._replace(graph=None)
    assert fnn.inference(opaque).backward is swapped.backward


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_one_use_of_shared_parameters_may_have_no_gradient(order: tuple[str, str]) -> None:
    stop = Block(
        no_params,
        lambda params, x, key=None: (x, ()),
        lambda params, residuals, dy: ({}, None),
        "stop",
    )
    blocks = {
        "one": fnn.serial(l=fnn.linear(3), stop=stop),
        "two": fnn.serial(l=fnn.linear(3)),
    }
    first, second = order
    net = fnn.graph(
        "x",
        [
            (first, blocks[first], "x"),
            (second, blocks[second], "x", first),
            ("gap", fnn.subtract(), ("one", "two")),
        ],
        "gap",
    )
    params = net.init(jax.random.key(0), X)
    _, dparams, _ = run(net, params, X, np.ones((2, 3)))
    np.testing.assert_allclose(dparams[first]["l"]["b"], -2 * np.ones(3))


def test_sharing_with_a_node_that_shares() -> None:
    nodes = [
        ("a", fnn.linear(3), "x"),
        ("b", fnn.linear(3), "a", "a"),
        ("c", fnn.linear(3), "b", "b"),
    ]
    net = fnn.graph("x", nodes, "c")
    params = net.init(jax.random.key(0), X)
    assert list(params) == ["a"]
    assert net.forward(params, X)[0].shape == (2, 3)


def test_no_key_serves_two_purposes(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax#192: of init, of forward and of the steps of fit, all from one key, as users give it."""
    derived: list[tuple[int, ...]] = []
    fold_in = jax.random.fold_in

    def noted(key: jax.Array, data: Any) -> jax.Array:
        new = fold_in(key, data)
        jax.debug.callback(lambda words: derived.append(tuple(words.tolist())), key_data(new))
        return new

    key_data = jax.random.key_data
    monkeypatch.setattr(jax.random, "fold_in", noted)
    layers = fnn.serial(fnn.dropout(0.5), fnn.linear(2), fnn.dropout(0.5))
    net = fnn.serial(layers, layers, fnn.repeat(layers, 3))
    key, x, of_net = jax.random.key(0), np.ones((6, 2), np.float32), 3 * (1 + 1 + 1 + 3)
    params = net.init(key, x)
    net.forward(params, x, key)
    jax.effects_barrier()
    assert len(derived) == len(set(derived)) == 2 * of_net
    options = {"epochs": 2, "batch_size": 2, "optimizer": fnn.sgd(1e-4), "progress": False}
    fnn.fit(net, fnn.squared_error(), x, x, key=key, params=params, **options)
    jax.effects_barrier()
    # Of an epoch, of its three steps, in each of the network with its loss, and of the network.
    assert len(derived) == len(set(derived)) == 2 * of_net + 2 * (1 + 3 * (1 + 2 + of_net))
