# ruff: noqa: RUF001 - formulas and marks are as on a board
"""The trace: complete, right, and without any effect on what it watches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import Block, BlockTypeError, BlockValueError
from fnn.whiteboard import FORMULAS, Trace, trace
from fnn.whiteboard.board import board
from fnn.whiteboard.formulas import described, formula_of
from fnn.whiteboard.numbers import plain
from fnn.whiteboard.text import explained
from tests import zoo


def circuit() -> Block:
    """The lecture's f = (x + y) z."""
    nodes = [("q", fnn.add(), ("x", "y")), ("f", fnn.multiply(), ("q", "z"))]
    return fnn.graph(("x", "y", "z"), nodes, "f", name="circuit")


def forks() -> Block:
    """f = σ(x x) y + x: x is read three times, two of them by one gate."""
    nodes = [
        ("p", fnn.multiply(), ("x", "x")), ("s", fnn.logistic(), "p"),
        ("m", fnn.multiply(), ("s", "y")), ("f", fnn.add(), ("m", "x")),
    ]  # fmt: skip
    return fnn.graph(("x", "y"), nodes, "f")


def nested() -> tuple[Block, Any, jax.Array]:
    net = fnn.serial(
        a=fnn.layer(4, fnn.tanh()), b=fnn.residual(fnn.layer(4, fnn.relu())), drop=fnn.dropout(0.5)
    )  # fmt: skip
    x = jnp.linspace(-1, 2, 10).reshape(2, 5)
    return net, net.init(jax.random.key(1), x), x


def compiled(net: Block, params: Any, x: Any, *rest: Any, **options: Any) -> Trace:
    """The trace under jit: many operations compile faster together than one by one."""
    run = jax.jit(lambda params, x: trace(net, params, x, *rest, **options))
    return jax.device_get(run(params, x))


def turned(block: Block) -> Block:
    """With the sign of its input's gradient wrong."""

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = block.backward(params, residuals, dy)
        return dparams, -dx

    return block._replace(backward=backward)


def panel(t: Trace) -> list[str]:
    """The lines of all panels of the page."""
    b = board(t)
    return [plain(line) for node in b.trace.walk() for _, line in explained(b, node)]


def same(got: Any, wanted: Any) -> None:
    """Bit for bit."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if not jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs), strict=True)


# ---- what is recorded ------------------------------------------------------------------------


def test_the_lecture_s_circuit() -> None:
    t = trace(circuit(), {}, (-2.0, 5.0, -4.0))
    q, f = t["q"], t["f"]
    assert [float(v) for v in (q.y, f.y, q.dy, f.dy, *q.dx, *f.dx)] == [
        3,
        -12,
        -4,
        1,
        -4,
        -4,
        -4,
        3,
    ]
    assert [[float(d) for d in node.local[1]] for node in (q, f)] == [[1, 1], [-4, 3]]
    assert (q.kept_bytes, f.kept_bytes) == (0, 16)
    assert (q.reads, f.reads, t.inputs, t.outputs) == (
        ("x", "y"),
        ("q", "z"),
        ("x", "y", "z"),
        ("f",),
    )
    assert (t.objective, t.error, t.right) == ("f", 0, True)
    assert (repr(t), repr(q)) == ("Trace('circuit', 2 nodes)", "Trace('q')")  # not all the arrays
    assert trace(fnn.add(), {}, [1.0, 2.0]).text() == trace(fnn.add(), {}, (1.0, 2.0)).text()


def test_at_a_fork_every_summand_and_the_sum() -> None:
    t = trace(forks(), {}, (0.5, 3.0))
    (fork,) = t.forks
    assert fork.name == "x"
    assert [reader for reader, _ in fork.summands] == ["f", "p", "p"]
    assert float(sum(d for _, d in fork.summands)) == float(fork.total) == float(t.dx[0])
    assert t.right


def test_an_output_that_is_also_read_is_a_fork() -> None:
    net = fnn.graph("x", [("a", fnn.square(), "x"), ("b", fnn.exp(), "a")], ("a", "b"))
    t = trace(net, {}, 0.5)
    (fork,) = t.forks
    assert [reader for reader, _ in fork.summands] == ["output", "b"]
    np.testing.assert_allclose(float(fork.total), 1 + np.exp(0.25), rtol=1e-15)
    assert "dΣ/da = dΣ/da = 1" in panel(t)  # the way of one step


def test_nested_networks_with_paths() -> None:
    net, params, x = nested()
    loss, key = fnn.softmax_cross_entropy(), jax.random.key(2)
    t = compiled(net, params, x, jnp.array([0, 2]), loss, key=key)
    paths = [node.path for node in t.walk()]
    assert paths[:4] == ["net", "net/a", "net/a/linear", "net/a/tanh"]
    assert "net/b/block/relu" in paths and paths[-1] == "loss"
    assert all(node.right for node in t.walk())
    assert t.objective == "E" and float(t.dy) == 1
    same(t["net/a/linear"].dparams, t["net"].dparams["a"]["linear"])
    same(t["net/b"].nodes[0].y, t["net/b/block"].y)
    with pytest.raises(KeyError, match="no node 'net/c'; there are: net, net/a"):
        t["net/c"]


def test_tracing_changes_no_value() -> None:
    net, params, x = nested()
    key = jax.random.key(2)
    y, residuals = net.forward(params, x, key)
    dparams, dx = net.backward(params, residuals, jnp.ones_like(y))
    t = trace(net, params, x, key=key, check="none")
    same((t.y, t.residuals, t.dparams, t.dx), (y, residuals, dparams, dx))
    same(net.forward(params, x, key), (y, residuals))


def test_a_trace_is_a_pytree_and_comes_out_of_jit() -> None:
    net, params, x = nested()
    run = jax.jit(lambda params, x: trace(net, params, x, key=jax.random.key(2), check="blocks"))
    t = run(params, x)
    leaves, tree = jax.tree.flatten(t)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(tree, leaves)
    assert isinstance(again, Trace) and again["a/tanh"].kind == "tanh"
    plain = jax.jit(lambda params, x: net.forward(params, x, jax.random.key(2))[0])(params, x)
    np.testing.assert_allclose(t.y, plain, rtol=1e-14)
    assert t.right and t.svg() == jax.device_get(t).svg()


def test_a_shared_layer_is_traced_at_each_use() -> None:
    net = fnn.graph(
        "x", [("a", fnn.linear(3), "x"), ("b", fnn.linear(3), "a", "a")], "b"
    )  # fmt: skip
    x = jnp.ones((1, 3))
    t = compiled(net, net.init(jax.random.key(0), x), x)
    assert t["b"].params_of == "a"
    total = jax.tree.map(jnp.add, t["a"].dparams, t["b"].dparams)
    jax.tree.map(np.testing.assert_array_equal, total, t.dparams["a"])
    assert t.html().count("shared parameters of a: the sum of all uses is dΣb/dw") == 2


# ---- the referee -----------------------------------------------------------------------------


def test_a_wrong_block_gets_a_cross_and_no_other_block_does() -> None:
    net = fnn.serial(a=fnn.linear(3), b=turned(fnn.tanh()), c=fnn.linear(2))
    x = jnp.ones((2, 3))
    t = compiled(net, net.init(jax.random.key(0), x), x)
    assert [node.right for node in t.walk()] == [True, False, True]
    assert t["b"].error == 2 and t.right is False
    assert "✗" in t.text() and "✗ 2" in t.svg()


def test_a_gradient_of_another_shape_is_wrong() -> None:
    def cut(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = fnn.linear(2).backward(params, residuals, dy)
        return dparams, dx[:, :1]

    net = fnn.serial(a=fnn.linear(2)._replace(backward=cut))
    t = trace(net, {"a": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}, jnp.ones((1, 2)))
    assert t["a"].error == np.inf and "dΣa/dx = [2.0]" in t.text()  # which is no product


def test_at_kinks_the_declared_subgradient_is_right() -> None:
    net = fnn.serial(relu=fnn.relu(), absolute=fnn.absolute(), tanh=fnn.hard_tanh())
    assert compiled(net, {}, jnp.array([-1.0, 0.0, 1.0])).right
    wrong = fnn.relu()._replace(
        backward=lambda params, code, dy: ({}, dy * (code < 2).astype(dy.dtype))
    )
    assert compiled(wrong, {}, jnp.array([0.0])).right is False


@pytest.mark.parametrize("make", [fnn.maximum, fnn.minimum])
def test_ties_are_right(make: Any) -> None:
    assert compiled(make(), {}, (jnp.ones(2), jnp.ones(2))).right


def test_sure_targets_are_right() -> None:
    p, t = jnp.array([0.3, 0.6]), jnp.array([0.0, 1.0])
    for loss in (fnn.binary_cross_entropy(), fnn.binary_cross_entropy(from_logits=False)):
        assert compiled(loss, {}, (p, t)).right
        assert compiled(loss, {}, (p, t > 0)).right


def test_where_autodiff_has_no_answer_nothing_is_compared() -> None:
    infinite = jnp.array([-jnp.inf, 0.5, jnp.inf])
    t = compiled(fnn.tanh(), {}, infinite)
    assert t.right and t.dx[0] == 0
    lost = fnn.square()._replace(backward=lambda params, x, dy: ({}, dy * jnp.nan))
    assert compiled(lost, {}, infinite[1]).error == np.inf


def test_a_gradient_that_cancels_is_right() -> None:
    assert compiled(fnn.softmax(), {}, jnp.array([0.1, 0.7, -2.0])).right


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_lower_precision(dtype: Any) -> None:
    net = fnn.serial(fnn.tanh(), fnn.linear(2))
    x = jnp.linspace(-1, 2, 12, dtype=dtype).reshape(4, 3)
    t = compiled(net, {"1_linear": {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}}, x)
    assert t.right and "±" in t.text()


def test_what_is_compared() -> None:
    net = fnn.serial(a=fnn.square())
    for check in ("all", "blocks", "none"):
        t = trace(net, {}, jnp.ones(2), check=check)  # type: ignore[arg-type]
        assert (t.errors is None, t["a"].errors is None) == (check != "all", check == "none")
        assert t.right is (None if check == "none" else True)


# ---- refusals and odd inputs -----------------------------------------------------------------


def test_refusals() -> None:
    net = fnn.linear(2)
    x = jnp.ones((1, 3))
    params = net.init(jax.random.key(0), x)
    with pytest.raises(BlockTypeError, match="got a loss and no target"):
        trace(net, params, x, loss=fnn.squared_error())
    with pytest.raises(BlockTypeError, match="got a target and no loss"):
        trace(net, params, x, x)
    with pytest.raises(BlockTypeError, match="needs a Block"):
        trace(fnn.linear, params, x)  # type: ignore[arg-type]
    with pytest.raises(BlockTypeError, match=r"loss is .*, needs a Block"):
        trace(net, params, x, x, fnn.squared_error)  # type: ignore[arg-type]
    with pytest.raises(BlockValueError, match="check is 'some'"):
        trace(net, params, x, check="some")  # type: ignore[arg-type]


def test_the_first_value_that_is_not_finite_is_named() -> None:
    net = fnn.serial(a=fnn.negate(), b=fnn.sqrt(), c=fnn.exp())
    t = trace(net, {}, jnp.array([1.0, 2.0]))
    assert str(t.non_finite) == "first non-finite value: output of b"
    assert "first non-finite value: output of b" in t.text()
    assert "2 NaN" in t.svg() and "first non-finite value: output of b" in t.html()
    back = trace(fnn.serial(a=fnn.sqrt(), b=fnn.square()), {}, 0.0)
    assert back.non_finite is None  # 0 times infinity: nothing comes from above
    assert str(trace(fnn.sqrt(), {}, 0.0).non_finite) == "first non-finite value: gradient of sqrt"
    given = trace(fnn.serial(a=fnn.negate()), {}, jnp.array([jnp.inf]))
    assert str(given.non_finite) == "first non-finite value: value of input x"


def test_integers_have_no_gradient() -> None:
    net = fnn.embedding(5, 2)
    ids = jnp.array([1, 4, 1])
    t = compiled(net, net.init(jax.random.key(0), ids), ids)
    assert t.dx is None and t.right
    assert "◂ none" in t.svg() and "x: has no gradient" in t.text()


def test_frozen_parameters() -> None:
    net = fnn.serial(body=fnn.freeze(fnn.linear(3)), head=fnn.linear(1))
    x = jnp.ones((2, 4))
    t = compiled(net, net.init(jax.random.key(0), x), x)
    assert t.right and t["body"].dparams == {"w": None, "b": None}
    assert "its parameters are not trained" in t.html()


def test_repeated_and_rematerialised_blocks_are_one_node_each() -> None:
    layer = fnn.layer(3, fnn.tanh())
    net = fnn.serial(r=fnn.repeat(layer, 4), m=fnn.rematerialize(layer))
    x = jnp.ones((2, 3))
    t = compiled(net, net.init(jax.random.key(0), x), x, check="blocks")
    assert [node.path for node in t.walk()] == ["r", "m"] and t.right


def test_a_graph_with_a_backward_of_its_own_is_one_node() -> None:
    inner = fnn.serial(fnn.exp(), fnn.negate())
    own = inner._replace(
        backward=lambda params, residuals, dy: inner.backward(params, residuals, dy)
    )
    t = trace(fnn.serial(a=own), {}, 1.0)
    assert [node.path for node in t.walk()] == ["a"] and t.right


def test_auxiliary_heads_that_do_not_run_are_not_there() -> None:
    nodes = [("a", fnn.exp(), "x"), ("aux", fnn.negate(), "a")]
    net = fnn.graph("x", nodes, ("a", "aux"), at_inference="a")
    assert [node.path for node in trace(fnn.inference(net), {}, 1.0).walk()] == ["a"]


# ---- formulas --------------------------------------------------------------------------------


def blocks_of(block: Block) -> list[Block]:
    if block.graph is None:
        return [block]
    return [inner for node in block.graph.nodes for inner in blocks_of(node.block)]


def test_every_public_block_has_a_formula() -> None:
    kinds = {described(block) for case in zoo.CASES for block in blocks_of(case.make())}
    assert {kind for kind in kinds if formula_of(kind) is None} == set()


@pytest.mark.parametrize("kind", FORMULAS)
def test_formulas_take_names_as_they_are(kind: str) -> None:
    formula = FORMULAS[kind].filled(())
    names = ["{a}", "b = c"]
    texts = [formula.written(formula.value, names, "{y}")]
    texts += [formula.local_of(i, names, "{y}") for i in range(2)]
    texts += [formula.written(text, names, "y") for text in formula.params.values()]
    assert all(texts) and "{y}" in texts[0]


@pytest.mark.parametrize(
    ("block", "value", "slope"),
    [
        (fnn.leaky_relu(0.1), "x if x > 0, else 0.1 x", "dy/dx = 1 if x > 0, else 0.1"),
        (fnn.elu(2.0), "x if x > 0, else 2 (e^x − 1)", "dy/dx = 1 if x > 0, else 2 e^x"),
        (fnn.elu(), "x if x > 0, else (e^x − 1)", "dy/dx = 1 if x > 0, else e^x"),
        (fnn.celu(0.5), "x if x > 0, else 0.5 (e^(x/0.5) − 1)",
         "dy/dx = 1 if x > 0, else e^(x/0.5)"),
        (fnn.scale(-2), "−2 x", "dy/dx = −2"), (fnn.scale(1.0), "x", "dy/dx = 1"),
        (fnn.dropout(0.25), "mask x / (1 − 0.25)", "dx = mask dy / (1 − 0.25)"),
        (fnn.power(3), "x³", "dy/dx = 3 x²"), (fnn.item(1), "x[1]", "dx: dy to that one"),
        (fnn.local_response_norm(5, k=2.0), "x / u^0.75,  u = 2 + (0.0001/5) Σ x²",
         "dx = dy / u^0.75 − c x Σ dy x / u^(0.75+1),  c = 2·0.0001·0.75/5"),
        (fnn.local_response_norm(5), "x / u^0.75,  u = 1 + (0.0001/5) Σ x²",
         "dx = dy / u^0.75 − c x Σ dy x / u^(0.75+1),  c = 2·0.0001·0.75/5"),
        (fnn.celu(), "x if x > 0, else (e^(x) − 1)", "dy/dx = 1 if x > 0, else e^(x)"),
        (fnn.freeze(fnn.scale(3.0)), "3 x", "dy/dx = 3"),
        (fnn.rematerialize(fnn.leaky_relu(0.5)), "x if x > 0, else 0.5 x",
         "dy/dx = 1 if x > 0, else 0.5"),
        (fnn.scale(3.0)._replace(kind=fnn.Kind("scale")), "c x", "dy/dx = c"),
    ],
)  # fmt: skip
def test_formulas_hold_the_arguments(block: Block, value: str, slope: str) -> None:
    formula = formula_of(described(block))
    assert formula is not None
    assert formula.written(formula.value, ["x"], "y") == f"y = {value}"
    assert formula.local_of(0, ["x"], "y") == slope


def test_a_circle_holds_a_short_factor() -> None:
    symbols = [FORMULAS["scale"].filled(args).symbol for args in ((-2.0,), (0.3333,), ())]
    assert symbols == ["·−2", "·c", "·c"]


def test_formulas_hold_the_parameters_that_there_are() -> None:
    x = jnp.ones((2, 3))
    for block, value in (
        (fnn.linear(2, use_bias=False), "x W ="), (fnn.freeze(fnn.linear(2)), "x W + b ="),
        (fnn.freeze(fnn.linear(2, use_bias=False)), "x W ="),
        (fnn.layer_norm(use_bias=False), "ẑ scale,  ẑ"), (fnn.layer_norm(), "ẑ scale + bias,  ẑ"),
        (fnn.layer_norm(use_scale=False, use_bias=False), "ẑ,  ẑ"),
    ):  # fmt: skip
        net = fnn.serial(y=block)
        t = compiled(net, net.init(jax.random.key(0), x), x, check="none")
        assert f"  y = {value}" in t.text(), t.text()


@pytest.mark.parametrize(
    "make", [fnn.logistic, fnn.tanh, fnn.relu, fnn.exp, fnn.square, fnn.softplus, fnn.silu]
)
def test_downstream_is_upstream_times_local(make: Any) -> None:
    x = jnp.array([-1.5, 0.5, 2.0, 0.1])
    t = trace(fnn.serial(a=make(), b=fnn.square()), {}, x)
    node = t["a"]
    assert node.local[1].shape == x.shape
    np.testing.assert_allclose(node.dx, node.dy * node.local[1], rtol=1e-15)


def test_the_jacobian_of_a_small_layer() -> None:
    net = fnn.linear(2)
    x = jnp.array([1.0, 2.0, 3.0])
    params = net.init(jax.random.key(0), x)
    by_params, by_x = trace(net, params, x).local
    np.testing.assert_array_equal(by_x, params["w"].T)
    np.testing.assert_array_equal(by_params["b"], np.eye(2))


def test_chains_and_forks_in_words() -> None:
    text = trace(forks(), {}, (0.5, 3.0)).text()
    assert "x forks: 1 + 0.3692 + 0.3692 = 1.738" in text.replace("  ", " ")
    assert "df/dp = df/ds × ds/dp = 3 × 0.2461 = 0.7384" in text
    net = fnn.serial(a=fnn.linear(1), b=fnn.square())
    t = trace(net, {"a": {"w": jnp.array([[3.0]]), "b": jnp.array([1.0])}}, jnp.array([2.0]))
    assert "db/dw = db/db × db/da × da/dw = 1 × 14 × 2 = 28" in panel(t)
    page = panel(trace(circuit(), {}, (-2.0, 5.0, -4.0)))
    assert "df/dx = df/df × df/dq × dq/dx = 1 × (−4) × 1 = −4" in page


def test_long_chains_and_many_ways_are_cut() -> None:
    chain = fnn.serial(**{f"b{i}": fnn.negate() for i in range(45)})
    assert " × db26/db25 × … 6 more … × db19/db18 × " in "".join(panel(trace(chain, {}, 0.5)))
    names = tuple(f"s{i}" for i in range(6))
    nodes = [*((name, fnn.scale(2.0), "x") for name in names), ("f", fnn.add(), names)]
    t = trace(fnn.graph("x", nodes, "f"), {}, 0.5)
    assert "f = s0 + s1 + s2 + s3 + s4 + s5 = 6.0" in t.text()
    lines = panel(t)
    assert "+ df/df × df/ds3 × ds3/dx = 1 × 1 × 2 = 2" in lines
    assert "+ … more ways; the gradient is the sum over all of them" in lines
    assert "df/df × df/ds4 × ds4/dx" not in "".join(lines)


def test_a_formula_of_ones_own() -> None:
    cube = fnn.elementwise("cube", lambda x: x**3, lambda x: 3 * x**2)
    assert "dcube/dx = cube′(x)" in trace(cube, {}, jnp.array(2.0)).text()
    cube = cube._replace(kind=fnn.Kind("cube"))
    FORMULAS["cube"] = fnn.whiteboard.Formula(
        "{y} = {0}³", ("3 {0}²",), symbol="x³", elementwise=True
    )
    try:
        text = trace(cube, {}, jnp.array(2.0)).text()
    finally:
        del FORMULAS["cube"]
    assert "cube = x³ = 8.0" in text and "1 × 12 = 12   because dcube/dx = 3 x²" in text


def test_the_fork_at_the_input_of_a_network_inside_is_a_sum() -> None:
    net = fnn.serial(a=fnn.square(), r=fnn.residual(fnn.square()))
    t = trace(net, {}, 3.0)
    assert "dr/da = 19.0 (at the fork: 1 + 18 = 19)" in t.text()
    assert "= 1 + 18" in t.svg(unfold=True) and "= 1 + 18" not in t.svg(unfold=False)
    assert [len(node.forks) for node in t.walk()] == [0, 1, 0, 0]


def test_where_autodiff_says_nan_nothing_is_right_or_wrong() -> None:
    wrong = fnn.log()._replace(backward=lambda params, x, dy: ({}, jnp.full_like(dy, 7)))
    for block in (fnn.log(), wrong):
        t = trace(block, {}, jnp.array([jnp.nan, jnp.nan]))
        assert t.right is None and "not comparable: jax.vjp's is NaN" in t.text()
        assert "✓ 0" not in t.svg()
    t = trace(fnn.serial(a=fnn.square(), b=wrong), {}, jnp.array([jnp.nan, 1.0]))
    assert t.right is False and t["a"].right is True


def test_a_key_among_the_inputs_is_named() -> None:
    noise = fnn.Block(
        lambda key, x: {},
        lambda params, x, key=None: (x[0] * jax.random.normal(x[1]), x[1]),
        lambda params, key, dy: ({}, (dy * jax.random.normal(key), None)),
    )
    t = trace(fnn.graph(("x", "k"), [("y", noise, ("x", "k"))], "y"), {}, (1.0, jax.random.key(0)))
    assert t.right and "  k = a key\n" in t.text() and t.svg()


def test_whole_numbers_are_refused_in_words() -> None:
    with pytest.raises(BlockTypeError, match="needs a floating dtype"):
        trace(circuit(), {}, (2, 3, -4))
    assert trace(fnn.embedding(4, 2), {"w": jnp.ones((4, 2))}, 3).y.shape == (2,)


@pytest.mark.parametrize("name", ["a/b", "<script>alert(1)</script>", "/", "עברית/x"])
def test_a_block_alone_may_be_called_anything(name: str) -> None:
    block = fnn.elementwise(name, lambda x: 2 * x, lambda x: 2 * jnp.ones_like(x))
    t = trace(block, {}, jnp.ones(3))
    assert t.right and "<script>alert" not in t.svg() + t.html()
    assert len(t.frames()) == 3 and "[2.0, 2.0, 2.0]" in t.text() and "n1" in t.mermaid()


@pytest.mark.slow
def test_parameters_called_as_wires() -> None:
    net = fnn.serial(b=fnn.linear(8), w=fnn.linear(3))
    x = jnp.ones((2, 4))
    text = trace(net, net.init(jax.random.key(0), x), x).text()
    for name, rule in (("w/b", "Σ dw"), ("w/w", "bᵀ dw"), ("b/b", "Σ db"), ("b/w", "xᵀ db")):
        (line,) = (line for line in text.splitlines() if f"    dΣw/d{name} = " in line)
        assert line.endswith(f"because d{name} = {rule}")


def test_what_is_nan_throughout_is_not_right() -> None:
    t = trace(fnn.multiply(), {}, (jnp.full(20, jnp.nan), jnp.ones(20)))
    assert t.right is None and "not comparable: jax.vjp's is NaN" in t.text()
    assert t.non_finite is not None and t.non_finite.path == "input x"
    assert "|g| = NaN, 20 NaN" in t.text()
    rule = fnn.multiply().backward
    broken = fnn.multiply()._replace(backward=lambda p, r, dy: rule(p, r, 2 * dy))
    wrong = trace(broken, {}, (jnp.full(20, jnp.nan), jnp.ones(20)))
    assert wrong.right is False
