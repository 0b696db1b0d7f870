"""What devices send each other in a step or an epoch is no more than in jax.grad's step.

On eight CPU devices (see conftest.py); eight TPU chips are in test_compiled.py.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fnn
from experiments.benchmarks import communication, conv_cases, conv_peers, lab
from experiments.benchmarks.communication import Sent, collectives, total
from experiments.benchmarks.networks import plain_mlp
from fnn.compiling import as_on
from tests.slow import one_of

pytestmark = pytest.mark.as_users

ROWS, IMAGES, IDS = (64, 16), (64, 12, 12, 2), (64, 6)
CLASSES = 10  # which four devices do not share: a loss over split classes is in test_compiled.py
LOSS = fnn.softmax_cross_entropy()
hidden = functools.partial(fnn.layer, 16, fnn.tanh())


def affine(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["b"]


def tanh_layer(params: Any, x: Any) -> Any:
    return jnp.tanh(affine(params["linear"], x))


def plain_batch_norm(params: Any, x: Any) -> Any:
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    z = (x - mean) / jnp.sqrt(jnp.mean(jnp.square(x - mean), axes) + 1e-5)
    return z * params["scale"] + params["bias"]


def plain_convolutional(params: Any, x: Any) -> Any:
    x = lax.conv_general_dilated(
        x, params["conv"]["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(plain_batch_norm(params["norm"], x))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return affine(params["out"], x.reshape(x.shape[0], -1))


def plain_deep(params: Any, x: Any) -> Any:
    """Repeated, shared and frozen layers."""
    fixed = jax.tree.map(lax.stop_gradient, params["fixed"])
    x = tanh_layer(params["a"], tanh_layer(params["a"], tanh_layer(fixed, x)))
    x = lax.scan(lambda x, layer: (tanh_layer(layer, x), None), x, params["deep"])[0]
    return affine(params["out"], x)


def deep() -> fnn.Block:
    return fnn.graph(
        "x",
        [("fixed", fnn.freeze(hidden()), "x"), ("a", hidden(), "fixed"), ("b", hidden(), "a", "a"),
         ("deep", fnn.repeat(hidden(), 4), "b"), ("out", fnn.linear(CLASSES), "deep")],
        "out",
    )  # fmt: skip


# name -> a network, its plain formula, the shape of x
NETWORKS: dict[str, tuple[Callable[[], fnn.Block], Any, tuple[int, ...]]] = {
    "deep": (deep, plain_deep, ROWS),
    "cnn": (
        lambda: fnn.models.cnn(CLASSES, channels=(8, 16), hidden=0), conv_cases.plain_cnn, IMAGES,
    ),
    "mlp": (lambda: fnn.models.mlp((32, 32, CLASSES)), plain_mlp, ROWS),
    "batch norm": (
        lambda: fnn.serial(
            conv=fnn.conv(8, 3, use_bias=False), norm=fnn.batch_norm(), act=fnn.relu(),
            pool=fnn.max_pool(2), flat=fnn.flatten(), out=fnn.linear(CLASSES),
        ), plain_convolutional, IMAGES,
    ),
    "embedding": (
        lambda: fnn.serial(e=fnn.embedding(24, 8), flat=fnn.flatten(), out=fnn.linear(CLASSES)),
        lambda p, x: affine(p["out"], p["e"]["w"][x].reshape(x.shape[0], -1)), IDS,
    ),
}  # fmt: skip


def devices() -> np.ndarray:
    return np.array(jax.devices("cpu")[:8])


def arguments(name: str) -> tuple[Any, Any, Any]:
    make, _, shape = NETWORKS[name]
    x = jax.ShapeDtypeStruct(shape, jnp.int32 if name == "embedding" else jnp.float32)
    params = jax.eval_shape(make().init, jax.random.key(0), x)
    return params, x, jax.ShapeDtypeStruct(shape[:1], jnp.int32)


@functools.cache
def counted(name: str, split: str, by_hand: bool) -> Sent:
    make, plain, _ = NETWORKS[name]
    step = [*conv_peers.both_steps(make(), plain).values()][0 if by_hand else 1]
    over = communication.splits(devices())[split]
    return total(
        collectives(communication.lowered(over, step, *arguments(name)).compile().as_text())
    )


# On CPUs alone: a max-pool looks at a number of one device, four bytes for each pool; and where
# the channels of a second convolution are split, the copies of its weight gradient are gathered.
POOLS = {"cnn": 2, "batch norm": 1}
GATHERED = ("cnn", "batch, layers")
SPLITS = ("batch", "batch, layers", "batch, weights")
STEPS = [step for step in itertools.product(NETWORKS, SPLITS) if step != GATHERED]


@pytest.mark.parametrize("step", one_of(6, STEPS, " split over ".join))
def test_no_step_sends_more_than_autodiffs(step: tuple[str, str]) -> None:
    name, _ = step
    ours, theirs = (counted(*step, by_hand) for by_hand in (True, False))
    asked = POOLS.get(name, 0)
    assert ours.bytes <= theirs.bytes + 4 * asked
    assert ours.operations <= theirs.operations + 2 * (asked > 0)


@pytest.mark.parametrize("name", one_of(3, NETWORKS))
def test_an_epoch_sends_what_its_steps_do(name: str) -> None:
    """Gradients, and nothing of x: each device has its own part of each batch, in any order."""
    (make, _, _), (params, x, target) = NETWORKS[name], arguments(name)
    mesh, sgd = communication.splits(devices())["batch"].mesh, fnn.sgd(0.1)
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def lies(tree: Any, sharding: Any) -> Any:
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    held = lies((params, jax.eval_shape(sgd.init, params)), whole)
    step = fnn.make_step(make(), LOSS, sgd, sharding=mesh)
    epoch = fnn.make_epoch(make(), LOSS, sgd, 16, sharding=mesh)
    of_step = step.lower(*held, *lies((x, target), split), None, None)  # type: ignore[attr-defined]
    order = np.arange(64, dtype=np.int32)
    of_epoch = epoch.lower(*held, *lies((x, target), split), order, None, 0)  # type: ignore[attr-defined]
    ours, once = (total(collectives(p.compile().as_text())) for p in (of_epoch, of_step))
    assert 0 < ours.bytes <= once.bytes
    assert ours.operations <= once.operations


def test_a_pool_on_tpus_sends_nothing() -> None:
    """XLA splits select-and-scatter over devices where it compares by >= alone."""
    mesh = communication.splits(devices())["batch"].mesh
    x = jax.ShapeDtypeStruct(IMAGES, jnp.float32, sharding=NamedSharding(mesh, P("data")))
    net = fnn.max_pool(3, stride=2)
    with as_on("tpu"):
        both = jax.jit(lambda x: net.backward({}, *reversed(net.forward({}, x)))[1])
        program = both.lower(x).compile().as_text()
    assert "select_and_scatter" in program and not collectives(program)


def test_the_table_says_what_is_sent() -> None:
    ours = {"all-reduce": Sent(2, 3e6), "all-gather": Sent(1, 1e6)}
    row = communication.compared(ours, {"all-reduce": Sent(1, 8e6)})
    assert row == ["1 all-gather, 2 all-reduce", "4.00", "1 all-reduce", "0.50"]
    assert communication.compared({}, {}) == ["nothing", "0.00", "nothing", "-"]


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "installed", lambda target: False)
    with pytest.raises(ValueError, match=r"for v5e is not installed: pip install -e"):
        communication.main(communication.Options())
    monkeypatch.setattr(lab, "installed", lambda target: True)
    with pytest.raises(ValueError, match=r"--chips 7: there are topologies of \[8, 64, 256\]"):
        communication.main(communication.Options(chips=(7,)))
