"""value_and_grad beside JAX's own, and the hand-written rule inside other libraries."""

from __future__ import annotations

import collections
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.core import FrozenDict

import fnn
from fnn.block import Block
from tests.slow import one_of

pytestmark = pytest.mark.core

NET = fnn.serial(hidden=fnn.linear(4), act=fnn.tanh(), out=fnn.linear(3))
LOSS = fnn.softmax_cross_entropy()


@pytest.fixture
def problem() -> tuple[Any, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, target = jnp.asarray(rng.normal(size=(6, 5))), jnp.asarray(rng.integers(0, 3, 6))
    return NET.init(jax.random.key(0), x), x, target


def objective(params: Any, x: jax.Array, target: jax.Array) -> jax.Array:
    return LOSS.forward({}, (NET.forward(params, x)[0], target))[0]


def allclose(a: Any, b: Any, rtol: float = 1e-12) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=rtol, atol=1e-13), a, b)


def test_the_answer_has_the_shape_of_jax_value_and_grad(problem: Any) -> None:
    ours = jax.jit(fnn.value_and_grad(NET, LOSS))(*problem)
    theirs = jax.jit(jax.value_and_grad(objective))(*problem)
    allclose(ours, theirs)
    assert jax.tree.map(lambda g: g.dtype, ours) == jax.tree.map(lambda g: g.dtype, theirs)


@pytest.mark.slow
def test_weights_per_example(problem: Any) -> None:
    params, x, target = problem
    w = jnp.arange(6.0)

    def weighted(params: Any) -> jax.Array:
        return LOSS.forward({}, (NET.forward(params, x)[0], target, w))[0]

    allclose(
        fnn.value_and_grad(NET, LOSS)(params, x, target, weights=w),
        jax.value_and_grad(weighted)(params),
    )


@pytest.mark.slow
def test_other_transformations(problem: Any) -> None:
    params, x, target = problem
    f = fnn.value_and_grad(NET, LOSS)
    each = jax.vmap(f, (None, 0, 0))(params, x[:, None], target[:, None])  # per-example gradients
    allclose(jax.tree.map(lambda g: g.mean(0), each), f(params, x, target))

    def body(carry: None, batch: Any) -> tuple[None, Any]:
        return carry, f(params, *batch)

    _, scanned = jax.lax.scan(body, None, (x[:, None], target[:, None]))
    allclose(scanned, each)
    # A Hessian-vector product is the derivative of the hand-written gradient.
    v = jax.tree.map(jnp.ones_like, params)
    _, product = jax.jvp(lambda p: f(p, x, target)[1], (params,), (v,))
    _, expected = jax.jvp(lambda p: jax.grad(objective)(p, x, target), (params,), (v,))
    allclose(product, expected)


MARK = 100.0


def marked() -> Block:
    """y = x w with a backward that is recognizably wrong on purpose."""
    return Block(
        lambda key, x: {"w": jnp.ones((x.shape[-1],))},
        lambda params, x, key=None: (x @ params["w"], x),
        lambda params, x, dy: ({"w": jnp.full_like(params["w"], MARK)}, jnp.full_like(x, MARK)),
    )


class LinenModule(linen.Module):
    block: Block

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        params = self.param("fnn", lambda key: self.block.init(key, x))
        return fnn.as_function(self.block)(params, x)


class NNXModule(nnx.Module):
    def __init__(self, block: Block, x: jax.Array) -> None:
        self.function = fnn.as_function(block)
        self.w = nnx.data(jax.tree.map(nnx.Param, block.init(jax.random.key(0), x)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(nnx.as_pure(self.w), x)


class EquinoxModule(eqx.Module):
    params: Any
    block: Block = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return fnn.as_function(self.block)(self.params, x)


def plain_grads(block: Block, x: jax.Array) -> Any:
    params = block.init(jax.random.key(0), x)
    return jax.grad(lambda p: fnn.as_function(block)(p, x).sum())(params)


def linen_grads(block: Block, x: jax.Array) -> Any:
    module = LinenModule(block)
    variables = module.init(jax.random.key(0), x)
    return jax.grad(lambda v: module.apply(v, x).sum())(variables)["params"]["fnn"]


def nnx_grads(block: Block, x: jax.Array) -> Any:
    grads = nnx.grad(lambda module: module(x).sum())(NNXModule(block, x))
    return nnx.to_pure_dict(grads)["w"]


def equinox_grads(block: Block, x: jax.Array) -> Any:
    module = EquinoxModule(block.init(jax.random.key(0), x), block)
    return eqx.filter_grad(lambda m: m(x).sum())(module).params


@pytest.mark.parametrize("grads_of", [plain_grads, linen_grads, nnx_grads, equinox_grads])
def test_jax_grad_uses_the_hand_written_rule(grads_of: Any) -> None:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)))
    assert np.all(grads_of(marked(), x)["w"] == MARK)
    right = fnn.linear(2, w_init=jax.nn.initializers.ones)
    np.testing.assert_allclose(grads_of(right, x)["w"], np.tile(x.sum(0)[:, None], (1, 2)))


def test_as_function_with_integers_and_keys(problem: Any) -> None:
    params, x, target = problem
    f = fnn.as_function(fnn.with_loss(NET, LOSS))
    grads = jax.jit(jax.grad(f))({"net": params}, (x, target))["net"]
    allclose(grads, jax.grad(objective)(params, x, target))
    drop, key = fnn.dropout(0.5), jax.random.key(3)
    masked = jax.grad(lambda x: fnn.as_function(drop)({}, x, key).sum())(x)
    np.testing.assert_array_equal(masked, drop.forward({}, jnp.ones_like(x), key)[0])
    frozen = fnn.as_function(fnn.freeze(fnn.linear(2)))
    grads = jax.grad(lambda p: frozen(p, x).sum())(fnn.linear(2).init(key, x))
    assert not any(np.any(g) for g in jax.tree.leaves(grads))


# ---- parameters and inputs in other containers -----------------------------------------------


def reversed_order(items: dict[str, Any]) -> Any:
    return collections.OrderedDict(reversed(items.items()))


def with_default(items: dict[str, Any]) -> Any:
    return collections.defaultdict(list, items)


def made_of(mapping: Callable[[dict[str, Any]], Any], tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return mapping({name: made_of(mapping, part) for name, part in tree.items()})


MIXED = fnn.serial(
    first=fnn.linear(3), norm=fnn.batch_norm(), frozen=fnn.freeze(fnn.linear(3)),
    deep=fnn.repeat(fnn.layer(3, fnn.tanh()), 2), last=fnn.rematerialize(fnn.linear(2)),
)  # fmt: skip
SQUARED, SGD = fnn.squared_error(), fnn.sgd(0.1, 0.9)
X, T = np.float32([[1, 2, 3], [2, 0, 1], [5, 1, 1]]), np.float32([[1, 0], [2, 1], [0, 3]])
ENTRIES: dict[str, Callable[[Any], Any]] = {
    "value_and_grad": lambda p: fnn.value_and_grad(MIXED, SQUARED)(p, X, T)[1],
    "as_function": jax.grad(lambda p: fnn.as_function(MIXED)(p, X).sum()),
    "make_step": lambda p: fnn.make_step(MIXED, SQUARED, SGD)(p, SGD.init(p), X, T)[0],
    "make_epoch": lambda p: fnn.make_epoch(MIXED, SQUARED, SGD, 2)(
        p, SGD.init(p), X, T, np.arange(3)
    )[0],
    "fit": lambda p: fnn.fit(MIXED, SQUARED, X, T, params=p, epochs=1, progress=False).params,
    "errors": lambda p: jax.tree.map(lambda e: e < 1e-5, fnn.check.errors(MIXED, p, X)),
}


MAPPINGS = [reversed_order, with_default, FrozenDict]


@pytest.mark.parametrize("mapping", one_of(3, MAPPINGS, ids=lambda f: f.__name__))
@pytest.mark.parametrize("entry", one_of(3, ENTRIES))
def test_parameters_in_any_mapping(entry: str, mapping: Any) -> None:
    params = MIXED.init(jax.random.key(0), X)
    other = made_of(mapping, params)
    wanted, got = ENTRIES[entry](params), ENTRIES[entry](other)
    if entry != "errors":
        assert jax.tree.structure(got) == jax.tree.structure(other)
    paths = jax.tree_util.tree_leaves_with_path
    got, wanted = ({jax.tree_util.keystr(k): v for k, v in paths(t)} for t in (got, wanted))
    assert got.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.mark.slow
def test_what_reads_parameters_takes_any_mapping() -> None:
    params = MIXED.init(jax.random.key(0), X)
    other = made_of(reversed_order, params)
    for net in (MIXED, fnn.inference(MIXED)):
        np.testing.assert_array_equal(net.forward(other, X)[0], net.forward(params, X)[0])
    predict = fnn.make_predict(MIXED, 2)
    np.testing.assert_array_equal(predict(other, X), predict(params, X))
    assert fnn.whiteboard.trace(MIXED, other, X).svg()
    assert fnn.check.finite(MIXED)(other, X).first is None


class Pair(NamedTuple):
    u: Any
    v: Any


@pytest.mark.parametrize("container", [tuple, list, Pair._make])
def test_inputs_in_any_sequence(container: Any) -> None:
    x = container([jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])])
    dx = jax.grad(lambda x: fnn.as_function(fnn.multiply())({}, x).sum())(x)
    assert type(dx) is type(x) and (dx[0] == x[1]).all() and (dx[1] == x[0]).all()
    value, _ = fnn.value_and_grad(fnn.multiply(), SQUARED)({}, x, jnp.array([3.0, 6.0]))
    assert float(value) == 1


@pytest.mark.slow
def test_a_mapping_that_jax_does_not_know_is_refused() -> None:
    params = types.MappingProxyType(NET.init(jax.random.key(0), jnp.ones((1, 5))))
    with pytest.raises(TypeError, match=r"a mappingproxy, which JAX does not know.*dict\(\.\.\.\)"):
        fnn.value_and_grad(NET, LOSS)(params, jnp.ones((1, 5)), jnp.array([0]))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_parameters_without_a_gradient_are_refused(dtype: str) -> None:
    """Of fnn's blocks by the block, of others by value_and_grad: they would be truncated."""
    params = {"w": jnp.ones((3, 2), dtype), "b": jnp.zeros(2, dtype)}
    careless = fnn.identity()._replace(
        init=lambda key, x: params,
        forward=lambda params, x, key=None: (x, ()),
        backward=lambda params, residuals, dy: ({"w": params["w"], "b": None}, dy),
    )
    with pytest.raises(fnn.BlockError, match=f"'w'. has dtype {dtype}.*astype"):
        fnn.make_step(fnn.linear(2), SQUARED, fnn.sgd(0.1))(params, (), X, T)
    with pytest.raises(fnn.BlockError, match=f"params hold {dtype} at 'w'.*return None"):
        fnn.value_and_grad(careless, SQUARED)(params, X, X)
