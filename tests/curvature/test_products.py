"""Products and matrices against jax.hessian of the plain loss, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fnn
from fnn.curvature import ggn, gradient_of, hessian, hvp, matrix
from fnn.executor import FORWARD

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
LABELS = np.array([0, 1, 1, 0, 1])
WEIGHTS = np.array([1.0, 2.0, 0.0, 0.5, 1.0])
CROSS, SQUARES = fnn.softmax_cross_entropy(), fnn.squared_error()
LAYER = fnn.layer(3, fnn.tanh())
SHARED = fnn.graph(
    "x", [("a", LAYER, "x"), ("b", LAYER, "a", "a"), ("out", fnn.linear(2), "b")], "out"
)


class Problem(NamedTuple):
    net: fnn.Block
    loss: fnn.Block
    target: Any
    key: Any = None
    weights: Any = None


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "linear": lambda: Problem(fnn.linear(2), SQUARES, X[:, :2]),
    "weighted": lambda: Problem(fnn.linear(2), CROSS, LABELS, weights=WEIGHTS),
    "mlp": lambda: Problem(fnn.models.mlp((4, 2), fnn.tanh()), CROSS, LABELS),
    "relu": lambda: Problem(fnn.models.mlp((4, 2), fnn.relu()), SQUARES, X[:, :2]),
    "repeat": lambda: Problem(fnn.serial(fnn.repeat(LAYER, 3), fnn.linear(2)), CROSS, LABELS),
    "shared": lambda: Problem(SHARED, CROSS, LABELS),
    "rematerialized": lambda: Problem(fnn.rematerialize(SHARED), CROSS, LABELS),
    "frozen": lambda: Problem(fnn.serial(a=fnn.freeze(LAYER), b=fnn.linear(2)), CROSS, LABELS),
    "frozen after": lambda: Problem(fnn.serial(a=LAYER, b=fnn.freeze(LAYER)), CROSS, LABELS),
    "batch_norm": lambda: Problem(
        fnn.serial(a=LAYER, norm=fnn.batch_norm(), b=fnn.linear(2)), CROSS, LABELS
    ),
    "inference": lambda: Problem(
        fnn.inference(fnn.serial(a=LAYER, norm=fnn.batch_norm(), b=fnn.linear(2))), CROSS, LABELS
    ),
    "dropout": lambda: Problem(
        fnn.serial(a=LAYER, drop=fnn.dropout(0.5), b=fnn.linear(2)),
        CROSS, LABELS, jax.random.key(3),
    ),
    "layer_norm": lambda: Problem(
        fnn.serial(
            rows=fnn.flatten(1), a=fnn.layer(16, fnn.tanh()), b=fnn.layer_norm(), c=fnn.linear(1)
        ),
        fnn.binary_cross_entropy(), LABELS[:, None],
    ),
}  # fmt: skip


def setup(name: str) -> tuple[Problem, Any, jax.Array]:
    """A problem, its parameters and input, in float64."""
    problem, x = PROBLEMS[name](), X.astype(float)
    params = problem.net.init(jax.random.key(0), x)
    target = problem.target
    if not np.issubdtype(target.dtype, np.integer):
        target = jnp.asarray(target, float)
    return problem._replace(target=target), params, x


def objective(problem: Problem, params: Any, x: Any) -> jax.Array:
    data = (problem.target,) if problem.weights is None else (problem.target, problem.weights)
    block = fnn.with_loss(problem.net, problem.loss, weighted=problem.weights is not None)
    return block.forward({"net": params}, (x, *data), problem.key)[0]


def trained(problem: Problem, params: Any, x: Any) -> np.ndarray:
    """Which numbers have a gradient: 1 or 0, as a vector."""
    grads = jax.eval_shape(gradient_of(problem.net, problem.loss, x, *problem[2:]), params)
    ones = jax.tree.map(
        lambda g, p: jax.tree.map(lambda v: np.full(v.shape, float(g is not None)).ravel(), p),
        grads, params, is_leaf=lambda g: g is None,
    )  # fmt: skip
    return np.concatenate(jax.tree.leaves(ones))


def plain_hessian(problem: Problem, params: Any, x: Any) -> np.ndarray:
    flat, unravel = ravel_pytree(params)
    mask = trained(problem, params, x)
    full = jax.jit(jax.hessian(lambda p: objective(problem, unravel(p), x)))(flat)
    return np.asarray(full) * mask[:, None] * mask


def plain_ggn(problem: Problem, params: Any, x: Any) -> np.ndarray:
    """J^T H_E J, by jax.jacobian and jax.hessian."""
    flat, unravel = ravel_pytree(params)
    data = (problem.target,) if problem.weights is None else (problem.target, problem.weights)

    key = None if problem.key is None else jax.random.fold_in(problem.key, np.uint32(FORWARD))

    def output(p: jax.Array) -> jax.Array:
        return problem.net.forward(unravel(p), x, key)[0].ravel()

    shape = jax.eval_shape(problem.net.forward, params, x, problem.key)[0].shape

    @jax.jit
    def both(p: jax.Array) -> tuple[jax.Array, jax.Array]:
        bend = jax.hessian(lambda z: problem.loss.forward({}, (z.reshape(shape), *data))[0])
        return jax.jacobian(output)(p), bend(output(p))

    jacobian, bent = map(np.asarray, both(flat))
    jacobian = jacobian * trained(problem, params, x)
    return jacobian.T @ bent @ jacobian


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1, np.abs(want).max()))


def rows(*slow: str) -> list[Any]:
    """The problems, some of which are left to ``make test-slow``."""
    marks = {name: [pytest.mark.slow] if name in slow else [] for name in PROBLEMS}
    return [pytest.param(name, marks=marks[name]) for name in PROBLEMS]


@pytest.mark.parametrize("name", rows("relu", "layer_norm", "rematerialized"))
def test_hessian(name: str) -> None:
    problem, params, x = setup(name)
    gradient = gradient_of(problem.net, problem.loss, x, *problem[2:])
    close(jax.jit(partial(hessian, gradient))(params), plain_hessian(problem, params, x))


@pytest.mark.parametrize(
    "name", rows("relu", "layer_norm", "rematerialized", "linear", "mlp", "frozen", "inference")
)
def test_gauss_newton(name: str) -> None:
    problem, params, x = setup(name)
    got = jax.jit(lambda p: ggn(problem.net, problem.loss, p, x, *problem[2:]))(params)
    close(got, plain_ggn(problem, params, x))
    assert np.linalg.eigvalsh(got).min() > -1e-12


def test_products_of_any_gradient() -> None:
    problem, params, x = setup("mlp")
    ours = hvp(gradient_of(problem.net, problem.loss, x, problem.target))
    theirs = hvp(jax.grad(lambda p: objective(problem, p, x)))
    v = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    a, b = jax.jit(ours)(params, v), jax.jit(theirs)(params, v)
    assert jax.tree.structure(a) == jax.tree.structure(params)
    close(ravel_pytree(a)[0], ravel_pytree(b)[0])
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), v)
    twice = jax.jit(jax.vmap(ours, (None, 0)))(params, several)
    close(ravel_pytree(jax.tree.map(lambda leaf: leaf[1], twice))[0], 2 * ravel_pytree(a)[0])


@pytest.mark.parametrize("batch_size", [None, 4, 100])
def test_columns_at_once(batch_size: int | None) -> None:
    product = hvp(jax.grad(lambda w: (w[:-1] ** 2 * w[1:]).sum()))
    got = matrix(product, jnp.arange(6.0), batch_size)
    close(got, jax.hessian(lambda w: (w[:-1] ** 2 * w[1:]).sum())(jnp.arange(6.0)))


def test_dtypes() -> None:
    net = fnn.serial(a=fnn.linear(2), b=fnn.tanh())
    x = X.astype(jnp.bfloat16)
    params = jax.tree.map(lambda p: p.astype(x.dtype), net.init(jax.random.key(0), x))
    gradient = gradient_of(net, SQUARES, x, x[:, :2])
    product = jax.eval_shape(hvp(gradient), params, params)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(product))
    assert jax.eval_shape(partial(hessian, gradient), params).dtype == jnp.float32


# ---- wrong calls -------------------------------------------------------------------------------

GRADIENT = jax.grad(lambda p: (p["w"] ** 2).sum())
PARAMS = {"w": np.ones(3)}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no function": (lambda: hvp(fnn.relu()), "gradient is the block relu, needs a function"),
    "another structure": (
        lambda: hvp(GRADIENT)(PARAMS, {"v": np.ones(3)}),
        r"hvp: v is a dict of \['v'\], needs the structure of params: a dict of \['w'\]",
    ),
    "another shape": (
        lambda: hvp(GRADIENT)(PARAMS, {"w": np.ones(2)}),
        r"hvp: v\['w'\] has shape \(2,\), needs that of params: \(3,\)",
    ),
    "integers": (
        lambda: hvp(GRADIENT)(PARAMS, {"w": np.ones(3, int)}),
        r"hvp: v\['w'\] has dtype int64 and needs a floating dtype",
    ),
    "no gradient": (
        lambda: hvp(lambda p: p["w"].sum())(PARAMS, PARAMS),
        r"hvp: the result of the function <lambda> is float64 of shape \(\), needs the str",
    ),
    "no parameters": (
        lambda: hessian(GRADIENT, {}),
        r"params is a dict of \[\], needs one array or more",
    ),
    "too many": (
        lambda: jax.eval_shape(
            partial(hessian, GRADIENT), {"w": jax.ShapeDtypeStruct((10**7,), np.float32)}
        ),
        r"params hold 10000000 numbers, whose matrix of 10000000 x 10000000 has 400000.0 GB: needs "
        r"at most .* GB, the memory. Use fnn.curvature.lanczos",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_a_matrix_that_does_not_fit_on_the_device_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Device:
        platform = "gpu"

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 1000}

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    with pytest.raises(fnn.BlockError, match=r"lanczos|memory"):
        fnn.curvature.hessian(jax.grad(lambda w: jnp.sum(w**3)), jnp.ones(100))
