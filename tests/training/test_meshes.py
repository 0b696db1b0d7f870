"""Training on several devices: what one device learns, with data that stays where it is needed.

On eight CPU devices: see conftest.py. What is sent between them is counted in
tests/experiments/test_communication.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import fnn
from fnn.block import Block
from fnn.training.layout import Layout
from tests.slow import one_of

RNG = np.random.default_rng(0)
N = 45  # two batches of 16, and 13: odd for every number of devices
ROWS, IMAGES = RNG.normal(size=(N, 6)), RNG.normal(size=(N, 6, 6, 2))
LABELS = RNG.integers(0, 4, N)
TEST = slice(0, 11)
LOSS = fnn.softmax_cross_entropy()
OPTIONS: Any = {"optimizer": fnn.sgd(0.1, 0.9), "batch_size": 16, "progress": False}


def dense() -> Block:
    """Shared weights, repeated and frozen layers, dropout."""
    hidden = functools.partial(fnn.layer, 8, fnn.tanh())
    return fnn.graph(
        "x",
        [("a", hidden(), "x"), ("b", hidden(), "a"), ("again", hidden(), "b", "b"),
         ("fixed", fnn.freeze(hidden()), "again"), ("drop", fnn.dropout(0.2), "fixed"),
         ("deep", fnn.repeat(hidden(), 2), "drop"), ("out", fnn.linear(4), "deep")],
        "out",
    )  # fmt: skip


def convolutional() -> Block:
    return fnn.serial(
        conv=fnn.conv(8, 3, use_bias=False), norm=fnn.batch_norm(), act=fnn.relu(),
        pool=fnn.max_pool(2), flat=fnn.flatten(), out=fnn.linear(4),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], Block], np.ndarray]] = {
    "dense": (dense, ROWS),
    "convolutional": (convolutional, IMAGES),
}


def mesh(*sizes: int, kind: AxisType = AxisType.Auto) -> Mesh:
    names = ("data", "model")[: len(sizes)]
    devices = jax.devices("cpu")[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes), devices=devices)


def last_axis(leaf: Any) -> P:
    """Tensor parallel: every device of an axis has some features of each layer."""
    even = leaf.ndim and leaf.shape[-1] % 2 == 0
    return P(*[None] * (leaf.ndim - 1), "model") if even else P()


def over_data(leaf: Any) -> P:
    """Every device keeps a part of each weight, and gathers the others to use them."""
    split = next((i for i, size in enumerate(leaf.shape) if size % 8 == 0), None)
    return P() if split is None or leaf.ndim < 2 else P(*[None] * split, "data")


# sizes of the mesh, how parameters lie on it
LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Any], P]]] = {
    "8 devices": ((8,), lambda leaf: P()),
    "4 x 2, layers split": ((4, 2), last_axis),
    "2 devices": ((2,), lambda leaf: P()),
    "8 devices, weights split": ((8,), over_data),
    "1 x 2, layers split": ((1, 2), last_axis),
    "4 devices": ((4,), lambda leaf: P()),
    "1 device": ((1,), lambda leaf: P()),
}


@functools.cache
def start(name: str) -> Any:
    make, x = NETWORKS[name]
    return jax.device_get(jax.jit(make().init)(jax.random.key(0), x))


def trained(name: str, epochs: int = 17, **options: Any) -> fnn.Fitted:
    """51 steps by default; the last of every three is of 13 examples."""
    make, x = NETWORKS[name]
    options = {"validation": (x[TEST], LABELS[TEST]), "params": start(name)} | OPTIONS | options
    data = options.pop("data", (x, LABELS))
    return fnn.fit(make(), LOSS, *data, epochs=epochs, metrics={"top": fnn.accuracy}, **options)


@functools.cache
def alone(name: str, epochs: int = 17) -> fnn.Fitted:
    return trained(name, epochs)


def close(got: Any, wanted: Any, rtol: float = 1e-12) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=rtol)


@pytest.mark.parametrize("layout", one_of(4, LAYOUTS))
@pytest.mark.parametrize("name", NETWORKS)
def test_devices_learn_what_one_learns(name: str, layout: str) -> None:
    sizes, lies = LAYOUTS[layout]
    devices = mesh(*sizes)
    params = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(devices, lies(a))), start(name))
    fitted, one = trained(name, params=params, sharding=devices), alone(name)
    close(fitted.last, one.last)
    for row, wanted in zip(fitted.history, one.history, strict=True):
        assert row["validation_top"] == wanted["validation_top"]
        for loss in ("loss", "validation_loss"):
            assert abs(row[loss] - wanted[loss]) < 1e-12
    for leaf, given in zip(jax.tree.leaves(fitted.last), jax.tree.leaves(params), strict=True):
        assert leaf.sharding.is_equivalent_to(given.sharding, leaf.ndim)


# ---- where the data lies ----------------------------------------------------------------------


def test_a_device_is_sent_its_part_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[int, set[int]] = {}
    make = jax.make_array_from_callback

    def watched(shape: Any, sharding: Any, part: Any, **options: Any) -> Any:
        array = make(shape, sharding, part, **options)
        for shard in array.addressable_shards:
            sent.setdefault(shard.device.id, set()).update(np.ravel(shard.data)[::6].tolist())
        return array

    numbered = np.arange(64.0)[:, None] * np.ones(6)
    monkeypatch.setattr(jax, "make_array_from_callback", watched)
    step = fnn.make_epoch(dense(), LOSS, fnn.sgd(0.1), 16, sharding=mesh(8))
    params = start("dense")
    order = np.random.default_rng(1).permutation(64)
    step(params, fnn.sgd(0.1).init(params), numbered, np.zeros(64, int), order, jax.random.key(0))
    for device in range(8):
        wanted = {float(i) for s in range(4) for i in order[16 * s + 2 * device :][:2]}
        assert sent[device] - {0.0} == wanted - {0.0}  # targets are 0


@pytest.mark.parametrize("size", [16, 12, 45, 64])
@pytest.mark.parametrize("parts", [1, 2, 8])
def test_shares_of_an_order(parts: int, size: int) -> None:
    """Every example once, in the order asked for, and each batch shared equally."""
    layout = Layout.of("fit", mesh(parts))
    assert layout is not None
    order = RNG.permutation(100)[:N]
    rows, places = layout.shares(order, size)
    assert np.array_equal(rows[places], order)
    each = len(rows) // parts
    for start in range(0, N, size):
        batch = places[start : start + size]
        counts = np.bincount(batch // each, minlength=parts)
        assert counts.max() == -(-len(batch) // parts)


def put(tree: Any, devices: Mesh, *spec: Any) -> Any:
    return jax.device_put(tree, NamedSharding(devices, P(*spec)))


def on_devices(count: int) -> tuple[Any, Any]:
    return put((IMAGES.repeat(2, 0)[:64], LABELS.repeat(2)[:64]), mesh(count), "data")


@functools.cache
def drawn_within(count: int) -> fnn.Fitted:
    return trained("convolutional", 3, data=on_devices(count), sharding=mesh(count))


@pytest.mark.parametrize("count", one_of(2, [8, 2, 1]))
def test_each_device_draws_from_its_own(count: int) -> None:
    """The order is the same for every number of devices, and another one in every epoch."""
    close(drawn_within(count).last, drawn_within(4).last)
    if count == 8:
        again = trained("convolutional", 3, data=on_devices(count))  # as x lies
        close(again.last, drawn_within(count).last)
        assert again.predict(on_devices(count)[0]).sharding.spec == P("data")


def test_nothing_of_x_is_sent() -> None:
    """Not even where it is asked for by the order."""
    epoch = fnn.make_epoch(dense(), LOSS, fnn.sgd(0.1), 16, sharding=mesh(8))
    params = start("dense")
    state = fnn.sgd(0.1).init(params)
    x, labels = jax.device_put((ROWS[:40], LABELS[:40]), NamedSharding(mesh(8), P("data")))
    rows = np.stack([np.random.default_rng(d).permutation(5) + 5 * d for d in range(8)])
    order = np.concatenate([rows[:, :2].ravel(), rows[:, 2:4].ravel(), rows[:, 4]])
    got = epoch(params, state, x, labels, order, jax.random.key(0))
    plain = fnn.make_epoch(dense(), LOSS, fnn.sgd(0.1), 16)
    close(got, plain(params, state, ROWS, LABELS, order, jax.random.key(0)))
    with pytest.raises(ValueError, match=r"example 38 in the share of device 0, .* Give x"):
        epoch(params, state, x, labels, np.arange(40)[::-1] ^ 1)


class Pictures:
    """A source that notes what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, rows: Any) -> Any:
        self.read.extend(np.atleast_1d(rows).tolist())
        return IMAGES[rows], LABELS[rows]


@pytest.mark.slow
def test_a_source_and_weights() -> None:
    weights = np.linspace(0, 2, N)
    one = trained("convolutional", 3, weights=weights)
    close(trained("convolutional", 3, weights=weights, sharding=mesh(8)).last, one.last)
    options = {"validation": Pictures(), "steps_per_call": 1}
    many = trained("convolutional", 3, data=(Pictures(),), sharding=mesh(8), **options)
    close(many.last, trained("convolutional", 3).last)
    wanted = pytest.approx(many.evaluate(IMAGES, LABELS), rel=1e-12)
    assert many.evaluate(Pictures()) == wanted


@pytest.mark.slow
def test_microbatches_diagnostics_and_going_on() -> None:
    options: Any = {"microbatches": 2, "batch_size": 32, "diagnostics": True}
    one = trained("dense", 3, **options)
    many = trained("dense", 2, sharding=mesh(8), **options)
    again = trained("dense", 1, sharding=mesh(4), resume=many, params=None, **options)
    close(again.last, one.last)
    assert str(again.diagnostics)


@pytest.mark.slow
def test_a_loss_that_is_not_finite() -> None:
    """What was learned before is kept, and the block named, also of examples on the devices."""
    net = fnn.serial(a=fnn.linear(4), grows=fnn.exp(), out=fnn.linear(4))
    x, labels = put((ROWS[:40], LABELS[:40]), mesh(8), "data")
    options = OPTIONS | {"optimizer": fnn.sgd(1e4), "epochs": 2}
    with pytest.warns(RuntimeWarning, match=r"epoch 1, step 2: first non-finite value: .*grows"):
        fitted = fnn.fit(net, LOSS, x, labels, sharding=mesh(8), **options)
    assert fitted.status == "diverged"
    close(fitted.last, net.init(jax.random.key(0), ROWS[:1]))


# ---- functions and meshes ---------------------------------------------------------------------


def as_given(devices: Mesh, tree: Any) -> bool:
    return all(leaf.sharding.mesh == devices for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("is_set", [False, True], ids=["not set", "set"])
def test_meshes_of_explicit_axes(is_set: bool) -> None:
    """What jax.make_mesh makes by default: results come back on it."""
    devices = mesh(8, kind=AxisType.Explicit)
    previous = jax.set_mesh(devices if is_set else None)
    try:
        fitted = trained("convolutional", 3, sharding=devices)
        y = fitted.predict(IMAGES[:16])
        assert as_given(devices, (fitted.params, fitted.last, fitted.state, y))
        assert as_given(devices, fitted.checkpoint.best[0])
    finally:
        jax.set_mesh(None)
    del previous
    close(fitted.last, alone("convolutional", 3).last)
    close(y, alone("convolutional", 3).predict(IMAGES[:16]))


@pytest.mark.parametrize("donate", [False, True])
def test_a_step(donate: bool) -> None:
    params, optimizer, x = start("dense"), fnn.adam(0.1), ROWS[:40]
    step = fnn.make_step(dense(), LOSS, optimizer, sharding=mesh(8), donate=donate)
    data = x, LABELS[:40], jax.random.key(3), np.linspace(0, 1, 40)
    got = step(params, optimizer.init(params), *data)
    again = step(*got[:2], *data)  # of what lies on the devices already
    wanted: Any = params, optimizer.init(params)
    for _ in range(2):
        wanted = fnn.make_step(dense(), LOSS, optimizer)(*wanted[:2], *data)
    close(again, wanted)
    assert as_given(mesh(8), again)


@pytest.mark.parametrize("n", [40, 45, 3])
def test_predictions_of_any_number(n: int) -> None:
    params = start("dense")
    predict = fnn.make_predict(dense(), 16, sharding=mesh(4, 2))
    y = predict(params, ROWS[:n])
    close(y, fnn.make_predict(dense())(params, ROWS[:n]))
    assert y.sharding.spec == (P("data") if n % 4 == 0 else P())


# ---- what is refused --------------------------------------------------------------------------


def named(axis: str) -> Mesh:
    return jax.make_mesh((8,), (axis,), devices=jax.devices("cpu"))


def fit(**options: Any) -> Any:
    return trained("dense", 1, **options)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a batch that does not divide": (
        lambda: fit(sharding=mesh(8), batch_size=12),
        "fit: batch_size is 12, which 8 devices cannot share equally; give 8 or 16",
    ),
    "a batch smaller than the mesh": (
        lambda: fit(sharding=mesh(8), batch_size=4),
        "fit: batch_size is 4, which 8 devices cannot share equally; give 8",
    ),
    "microbatches that do not divide": (
        lambda: fit(sharding=mesh(8), microbatches=4),
        "fit: batch_size / microbatches is 4, which 8 devices cannot share equally; give 8",
    ),
    "a mesh without the axis": (
        lambda: fit(sharding=named("d")),
        r"without an axis 'data' \(its axes: 'd'\); .* NamedSharding\(mesh, PartitionSpec\(axis",
    ),
    "features split": (
        lambda: fit(sharding=NamedSharding(mesh(8), P(None, "data"))),
        "fit: sharding splits more than the examples .* needs the first axis alone",
    ),
    "no mesh": (
        lambda: fit(sharding="data"),
        "fit: sharding is 'data', needs a Mesh or a NamedSharding",
    ),
    "data on another mesh": (
        lambda: fit(data=put((ROWS[:40], LABELS[:40]), mesh(2), "data"), sharding=mesh(8)),
        "fit: x or its target lies on devices as .* sharding asks for .* give it as NumPy arrays",
    ),
    "parameters split over another mesh": (
        lambda: fit(params=put(start("dense"), mesh(2)) | {"a": {"linear": put(
            start("dense")["a"]["linear"], mesh(2), "data")}}, sharding=mesh(8)),
        "fit: params are split over another mesh than sharding's at 'a/linear/b' .* put them on",
    ),
    "a step with examples that do not divide": (
        lambda: fnn.make_step(dense(), LOSS, fnn.sgd(0.1), sharding=mesh(4))(
            start("dense"), (), ROWS[:9], LABELS[:9]),
        "make_step: the number of examples is 9, which 4 devices cannot share equally; give 8 or",
    ),
    "an epoch of batches that do not divide": (
        lambda: fnn.make_epoch(dense(), LOSS, fnn.sgd(0.1), 9, sharding=mesh(4)),
        "make_epoch: batch_size is 9, which 4 devices cannot share equally; give 8 or 12",
    ),
    "a step with parameters elsewhere": (
        lambda: fnn.make_step(dense(), LOSS, fnn.sgd(0.1))(
            put(start("dense"), mesh(2)), (), *put((ROWS[:40], LABELS[:40]), mesh(8), "data")),
        r"make_step: params lie on 2 devices, x on 8; .* put them on one mesh",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=words):
        call()
