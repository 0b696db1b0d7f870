"""Every public block, and what trains, under every transformation and setting of JAX.

Where a block fails, plain JAX has to fail as well: autodiff of the plain formula in its place.
Transformations are traced only, which is where JAX refuses what it refuses; for some networks their
numbers are compared. On eight CPU devices: see conftest.py.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fnn
import fnn.blocks.convolutions
from fnn.arrays import is_floating
from fnn.block import Block
from fnn.introspect.autodiff import by_autodiff
from tests.slow import one_of
from tests.zoo import CASES, Case, Sample, sample

P = PartitionSpec
EXAMPLES = DEVICES = 8

Run = Callable[..., tuple[Any, Any, Any]]  # (params, x, key, dy) -> (y, dparams, dx)


def by_hand(block: Block) -> Run:
    def run(params: Any, x: Any, key: Any, dy: Any) -> tuple[Any, Any, Any]:
        y, residuals = block.forward(params, x, key)
        return (y, *block.backward(params, residuals, dy))

    return run


def by_jax(case: Case) -> Run:
    """Autodiff of the plain formula, or else of the block's own forward."""
    block = case.make()
    if case.plain is None:
        return by_autodiff(lambda params, x, key: block.forward(params, x, key)[0])
    return by_autodiff(lambda params, x, key: case.plain(params, x))


@functools.cache
def mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((DEVICES,), ("d",), axis_types=(kind,), devices=jax.devices("cpu"))


def is_split(leaf: Any) -> bool:
    """Whether a leaf of x, y or dy has examples along its first axis."""
    return jnp.ndim(leaf) > 0 and jnp.shape(leaf)[0] == EXAMPLES


def each_like(tree: Any, split: Any, whole: Any) -> Any:
    return jax.tree.map(lambda v: split if is_split(v) else whole, tree)


def under(rows: list[Case], names: Any, is_slow: Callable[[Case, str], bool]) -> list[Any]:
    """The first row of each block with each name; tests/outside/test_further_rows.py has all."""
    return [
        pytest.param(
            case, name, id=f"{case.id}-{name}",
            marks=[pytest.mark.slow] if is_slow(case, name) else [],
        )
        for case in rows if not case.further
        for name in names
    ]  # fmt: skip


# ---- settings --------------------------------------------------------------------------------


def strict() -> contextlib.ExitStack:
    """What JAX can check while it computes; finite numbers stay finite on the way."""
    stack = contextlib.ExitStack()
    stack.enter_context(jax.debug_nans(True))
    stack.enter_context(jax.debug_key_reuse(True))
    stack.enter_context(jax.checking_leaks())
    return stack


def loose() -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.enter_context(jax.disable_jit())
    stack.enter_context(jax.enable_x64(False))
    return stack


STRICT, LOOSE = "debug_nans, debug_key_reuse, checking_leaks", "disable_jit, without x64"
SETTINGS = {STRICT: strict, LOOSE: loose}
NETWORKS = {"cnn", "inception", "microgpt"}  # of hundreds of operations, which are run one by one


def narrowed(tree: Any) -> Any:
    return jax.tree.map(lambda v: np.asarray(v, np.float32) if is_floating(v) else v, tree)


def runs_long(case: Case, setting: str) -> bool:
    return case.name in NETWORKS or CASES.index(case) % (16 if setting == LOOSE else 8) != 0


@pytest.mark.parametrize(("case", "setting"), under(CASES, SETTINGS, runs_long))
def test_settings(case: Case, setting: str) -> None:
    s = sample(case)
    with SETTINGS[setting]():
        # The uses of this key are counted.
        key = None if s.key is None else jax.random.key(0)
        run = by_hand(case.make())
        run = jax.jit(run) if case.further else run  # one operation at a time for each block once
        got = run(*narrowed((s.params, s.x)), key, narrowed(s.dy))
    for leaf in jax.tree.leaves(got):
        assert np.all(np.isfinite(leaf))


# ---- transformations -------------------------------------------------------------------------


def in_shard_map(run: Run, s: Sample, check_vma: bool) -> None:
    def each(params: Any, x: Any, dy: Any) -> Any:
        return jax.tree.map(lambda v: jnp.sum(v)[None], run(params, x, s.key, dy))

    specs = each_like((s.x, s.dy), P("d"), P())
    f = jax.shard_map(
        each, mesh=mesh(AxisType.Auto), in_specs=(P(), *specs), out_specs=P("d"),
        check_vma=check_vma,
    )  # fmt: skip
    jax.eval_shape(f, s.params, s.x, s.dy)


def spec(v: Any, devices: jax.sharding.Mesh, axes: Any) -> Any:
    return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(devices, axes))


def on_an_explicit_mesh(run: Run, s: Sample) -> None:
    explicit = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        params = jax.tree.map(lambda v: spec(v, explicit, P()), s.params)
        x, dy = jax.tree.map(
            lambda v: spec(v, explicit, P("d") if is_split(v) else P()), (s.x, s.dy)
        )
        jax.eval_shape(lambda params, x, dy: run(params, x, s.key, dy), params, x, dy)


def exported(run: Run, s: Sample) -> None:
    """For any number of examples."""
    (b,) = export.symbolic_shape("b")

    def spec(v: Any) -> Any:
        return jax.ShapeDtypeStruct((b, *v.shape[1:]) if is_split(v) else v.shape, v.dtype)

    params = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), s.params)
    x, dy = jax.tree.map(spec, (s.x, s.dy))
    export.export(jax.jit(lambda params, x, dy: run(params, x, s.key, dy)))(params, x, dy)


TRANSFORMATIONS: dict[str, Callable[[Run, Sample], None]] = {
    "shard_map": lambda run, s: in_shard_map(run, s, True),
    "shard_map without check_vma": lambda run, s: in_shard_map(run, s, False),
    "explicit mesh": on_an_explicit_mesh,
    "open sizes": exported,
}
# JAX cannot look rows up in parallel without being told how the result is sharded.
FAIL_IN_JAX = {(name, "explicit mesh") for name in ("embedding", "transformer", "microgpt")}
BATCHED = [case for case in CASES if case.batch]


@pytest.mark.parametrize(
    ("case", "name"),
    under(
        BATCHED,
        TRANSFORMATIONS,
        lambda case, name: (
            "without" in name or (name == "open sizes" and CASES.index(case) % 3 != 0)
        ),
    ),
)
def test_transformations(case: Case, name: str) -> None:
    s = sample(case, (EXAMPLES, *case.batch[1:]))
    if (case.name, name) in FAIL_IN_JAX:
        with pytest.raises(Exception, match="out_sharding"):
            TRANSFORMATIONS[name](by_jax(case), s)
    else:
        TRANSFORMATIONS[name](by_hand(case.make()), s)


@functools.cache
def square() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("d", "m"), devices=jax.devices("cpu"))


def last_axis(v: Any) -> Any:
    return P(*[None] * (v.ndim - 1), "m") if v.ndim and v.shape[-1] % 2 == 0 else P()


def first_axis(v: Any) -> Any:
    return P("m", *[None] * (v.ndim - 1)) if v.ndim and v.shape[0] % 2 == 0 else P()


@pytest.mark.parametrize("lies", one_of(2, [last_axis, first_axis], lambda lies: lies.__name__))
def test_parameters_split_over_an_explicit_mesh(lies: Callable[[Any], Any]) -> None:
    """Backward runs where jax.vjp of forward does; examples are split too."""

    def runs(run: Run, block: Block, s: Sample, params: Any, x: Any) -> bool:
        def there_and_back(params: Any, x: Any) -> Any:
            return run(params, x, s.key, block.forward(params, x, s.key)[0])

        try:
            jax.eval_shape(there_and_back, params, x)
        except Exception as error:
            assert "shard" in str(error).lower(), error
            return False
        return True

    ran, fail = [], []
    for case in [case for case in BATCHED if not case.further]:
        s, block = sample(case, (EXAMPLES, *case.batch[1:])), case.make()
        params = jax.tree.map(lambda v: spec(v, square(), lies(v)), s.params)
        x = jax.tree.map(lambda v: spec(v, square(), P("d") if is_split(v) else P()), s.x)
        if all(v.sharding.spec == P() for v in jax.tree.leaves(params)):
            continue
        with jax.set_mesh(square()):
            autodiff = by_autodiff(lambda *inputs, f=block.forward: f(*inputs)[0])
            if runs(autodiff, block, s, params, x):
                ran.append(case.id)
                if not runs(by_hand(block), block, s, params, x):
                    fail.append(case.id)
    assert len(ran) >= 7 and not fail


# ---- what trains, predicts and looks ---------------------------------------------------------


def network() -> Block:
    return fnn.serial(
        conv=fnn.conv(4, 3, stride=2, use_bias=False), norm=fnn.batch_norm(), act=fnn.relu(),
        pool=fnn.max_pool(2), flat=fnn.flatten(), drop=fnn.dropout(0.3),
        deep=fnn.repeat(fnn.rematerialize(fnn.layer(16, fnn.tanh())), 2), row=fnn.layer_norm(),
        out=fnn.linear(3),
    )  # fmt: skip


NET, LOSS, SGD = network(), fnn.softmax_cross_entropy(), fnn.sgd(0.1, 0.9)
X = np.random.default_rng(0).normal(size=(16, 8, 8, 2)).astype(np.float32)
LABELS = np.arange(16, dtype=np.int32) % 3
SMALL = fnn.serial(a=fnn.linear(2), b=fnn.relu())
SMALL_X = np.float32([[1, 2, 3], [3, -1, 2]])


def first_params() -> Any:
    return jax.jit(NET.init)(jax.random.key(0), X)


def small_params() -> Any:
    return SMALL.init(jax.random.key(0), SMALL_X)


def key() -> jax.Array:
    return jax.random.key(1)


def donated(params: Any, x: Any, t: Any) -> Any:
    step = fnn.make_step(NET, LOSS, SGD, donate=True)
    return step(jax.tree.map(jnp.copy, params), SGD.init(params), x, t, key())


# (params, x, labels) -> numbers
ENTRIES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "value_and_grad": lambda p, x, t: jax.jit(fnn.value_and_grad(NET, LOSS))(p, x, t, key()),
    "as_function": lambda p, x, t: jax.grad(
        jax.jit(lambda p: fnn.as_function(NET)(p, x, key()).sum())
    )(p),
    "make_step": lambda p, x, t: fnn.make_step(NET, LOSS, SGD)(p, SGD.init(p), x, t, key()),
    "make_step, donate": donated,
    "make_epoch": lambda p, x, t: fnn.make_epoch(NET, LOSS, SGD, 8)(
        p, SGD.init(p), x, t, np.arange(16), key()
    ),
    "make_predict": lambda p, x, t: fnn.make_predict(NET, 8)(p, x),
}
# Of data of their own, or on the host.
HOST = {
    "fit": lambda p, x, t: (
        fnn.fit(NET, LOSS, x, t, params=p, epochs=1, batch_size=6, key=key(), progress=False).params
    ),
    "trace": lambda p, x, t: len(fnn.whiteboard.trace(SMALL, small_params(), SMALL_X).svg()) > 0,
    "summary": lambda p, x, t: len(str(fnn.summary(NET, x))) > 0,
    "errors": lambda p, x, t: fnn.check.errors(SMALL, small_params(), SMALL_X),
    "finite": lambda p, x, t: fnn.check.finite(NET, LOSS)(p, x, t, key()).first is None,
    "check": lambda p, x, t: fnn.check.block(fnn.tanh(), SMALL_X, timed=False).wrong == (),
}


def close(got: Any, wanted: Any) -> None:
    """To float32's rounding, relative to each leaf's largest entry."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        b = np.asarray(b)
        scale = np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=1e-4 * scale + 1e-6)


@functools.cache
def plain_result(entry: str) -> Any:
    return jax.device_get(ENTRIES[entry](first_params(), X, LABELS))


@pytest.mark.as_users
@pytest.mark.parametrize(
    "entry",
    one_of(5, [*ENTRIES, *sorted(HOST)]),
)
def test_what_trains_under_strict_settings(entry: str) -> None:
    params = first_params()
    with strict(), jax.numpy_rank_promotion("raise"):
        got = (ENTRIES | HOST)[entry](params, X, LABELS)
    if entry in ENTRIES:
        close(got, plain_result(entry))
    assert got is not False


@pytest.mark.as_users
@pytest.mark.slow
@pytest.mark.parametrize("entry", ["make_step", "make_predict", "trace", "errors"])
def test_what_trains_without_jit(entry: str) -> None:
    with jax.disable_jit():
        got = (ENTRIES | HOST)[entry](first_params(), X, LABELS)
    if entry in ENTRIES:
        close(got, plain_result(entry))
    assert got is not False


@pytest.mark.as_users
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("entry", one_of(3, ENTRIES))
def test_what_trains_on_eight_devices(entry: str, kind: AxisType) -> None:
    """With examples split over them; parameters stay whole."""
    devices = mesh(kind)
    split, whole = NamedSharding(devices, P("d")), NamedSharding(devices, P())
    data = jax.device_put((X, LABELS), split)
    params = jax.device_put(first_params(), whole)
    with jax.set_mesh(devices) if kind == AxisType.Explicit else contextlib.nullcontext():
        got = ENTRIES[entry](params, *data)
    close(jax.device_get(got), plain_result(entry))
    if entry == "make_predict" and kind == AxisType.Explicit:
        assert got.sharding.spec[0] == "d"  # in parallel


@pytest.mark.as_users
@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_in_shard_map(check_vma: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """pmean of the parts' gradients is the whole's; with a convolution that runs in a loop, too."""
    net = fnn.serial(
        fnn.conv(4, 3), fnn.max_pool(2), fnn.flatten(),
        fnn.rematerialize(fnn.layer(16, fnn.tanh())), fnn.linear(3),
    )  # fmt: skip
    params, f = net.init(jax.random.key(0), X), fnn.value_and_grad(net, LOSS)
    wanted = jax.jit(f)(params, X, LABELS)
    monkeypatch.setattr(fnn.blocks.convolutions, "MAX_COPY_ELEMENTS", 1024)

    def mean(params: Any, x: Any, t: Any) -> Any:
        params = jax.lax.pcast(params, "d", to="varying") if check_vma else params
        return jax.lax.pmean(f(params, x, t), "d")

    parts = jax.jit(
        jax.shard_map(
            mean, mesh=mesh(AxisType.Auto), in_specs=(P(), P("d"), P("d")), out_specs=P(),
            check_vma=check_vma,
        )
    )  # fmt: skip
    close(parts(params, X, LABELS), wanted)


EXPORTED: dict[str, tuple[Callable[[], Block], Callable[[], Any]]] = {
    "cnn": (
        lambda: fnn.serial(
            fnn.conv(4, 3), fnn.batch_norm(), fnn.relu(), fnn.max_pool(2), fnn.flatten(),
            fnn.linear(3),
        ),
        lambda: fnn.loss_scaled(fnn.sgd(0.1, 0.9)),
    ),
    "mlp": (
        lambda: fnn.serial(fnn.flatten(), fnn.models.mlp((8, 3), fnn.gelu())),
        lambda: fnn.averaged(fnn.adam(0.1), 0.9),
    ),
    "attention": (
        lambda: fnn.serial(
            fnn.fan_out(*[fnn.linear(4) for _ in range(3)]),
            fnn.dot_product_attention(causal=True), fnn.flatten(), fnn.linear(3),
        ),
        lambda: fnn.adam(0.1),
    ),
    "optax": (
        lambda: fnn.serial(fnn.flatten(), fnn.linear(3)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    ),
}  # fmt: skip


@pytest.mark.as_users
@pytest.mark.parametrize("name", one_of(4, EXPORTED))
def test_a_step_for_any_number_of_examples_is_exported(name: str) -> None:
    """For three platforms in one module, with the state's arrays in a list (docs/howto/save.md)."""
    net, optimizer = (make() for make in EXPORTED[name])
    params = net.init(jax.random.key(0), X)
    leaves, structure = jax.tree.flatten(optimizer.init(params))
    step = fnn.make_step(net, LOSS, optimizer)

    def program(params: Any, leaves: Any, x: Any, target: Any) -> Any:
        params, state, loss = step(params, structure.unflatten(leaves), x, target)
        return params, jax.tree.leaves(state), loss

    (b,) = export.symbolic_shape("b")

    def spec(v: Any, *shape: Any) -> Any:
        return jax.ShapeDtypeStruct((*shape, *v.shape[len(shape) :]), v.dtype)

    like = *jax.tree.map(spec, (params, leaves)), spec(X, b), spec(LABELS, b)
    exported = export.export(jax.jit(program), platforms=("cpu", "tpu", "cuda"))(*like)
    for n in (1, 5):
        arguments = params, leaves, X[:n], LABELS[:n]
        got = exported.call(*arguments)
        close(got, program(*arguments))
    if importlib.util.find_spec("flatbuffers"):  # which JAX writes with
        again = export.deserialize(exported.serialize()).call(*arguments)
        jax.tree.map(np.testing.assert_array_equal, again, got)
