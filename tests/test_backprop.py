"""value_and_grad beside JAX's own, and the hand-written rule inside other libraries."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import fnn
from fnn.block import Block

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


def test_weights_per_example(problem: Any) -> None:
    params, x, target = problem
    w = jnp.arange(6.0)

    def weighted(params: Any) -> jax.Array:
        return LOSS.forward({}, (NET.forward(params, x)[0], target, w))[0]

    allclose(
        fnn.value_and_grad(NET, LOSS)(params, x, target, weights=w),
        jax.value_and_grad(weighted)(params),
    )


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
