"""Diagnosed runs: the same parameters, a fault named for every fault, no alarm without one."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import fnn
from experiments.common.data import load
from fnn.block import Block
from fnn.training.diagnostics.data_summary import data_summary
from fnn.training.diagnostics.findings import find
from fnn.training.diagnostics.overfit import overfit_small_batch
from fnn.training.diagnostics.record import Diagnostics

CE = fnn.softmax_cross_entropy()
Change = Callable[[Any], Any]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


def digits() -> tuple[np.ndarray, np.ndarray]:
    x, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16).astype(np.float32), target[order].astype(np.int32)


X, T = digits()


def diagnose(
    net: Block, x: Any = X[:1200], target: Any = T[:1200], *, loss: Block = CE, rate: float = 0.1,
    epochs: int = 3, seed: int = 0, start: Change | None = None,
    validation: Any = (X[1200:1500], T[1200:1500]), **options: Any,
) -> Diagnostics:  # fmt: skip
    key = jax.random.key(seed)
    params = start(net.init(key, x[:1])) if start else None
    options = {"optimizer": fnn.sgd(rate, 0.9), "batch_size": 32} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # some are meant to diverge
        fitted = fnn.fit(
            net, loss, x, target, epochs=epochs, key=key, params=params, validation=validation,
            progress=False, diagnostics=True, **options,
        )  # fmt: skip
    assert fitted.diagnostics is not None
    return fitted.diagnostics


def relu_net(*hidden: int) -> Block:
    return fnn.models.mlp((*(hidden or (32,)), 10), fnn.relu())


def times(factor: float, name: str | None = None) -> Change:
    """The parameters, or those of one block, multiplied."""

    def change(params: Any) -> Any:
        return {
            n: jax.tree.map(lambda a: factor * a, p) if name in (None, n) else p
            for n, p in params.items()
        }

    return change


def biases(value: float, name: str) -> Change:
    return lambda params: params | {name: params[name] | {"b": params[name]["b"] + value}}


def by_label() -> dict[str, Any]:
    """Digits in order of label, and the last of them for validation."""
    order = np.argsort(T, kind="stable")
    x, target = X[order], T[order]
    return {"x": x[:1400], "target": target[:1400], "validation": (x[1400:], target[1400:])}


def breast_cancer(scaled: bool) -> dict[str, Any]:
    x, target = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0) if scaled else x
    parts = {"x": x[:400], "target": target[:400], "validation": (x[400:], target[400:])}
    return parts | {"loss": fnn.binary_cross_entropy()}


def without_gradient(block: Block) -> Block:
    """A backward rule that forgets the parameters."""

    def backward(params: Any, residuals: Any, dy: Any) -> tuple[Any, Any]:
        grads, dx = block.backward(params, residuals, dy)
        return jax.tree.map(jnp.zeros_like, grads), dx

    return block._replace(backward=backward)


def backwards(block: Block) -> Block:
    """A backward rule with the wrong sign."""

    def backward(params: Any, residuals: Any, dy: Any) -> tuple[Any, Any]:
        return block.backward(params, residuals, -dy)

    return block._replace(backward=backward)


def normal(spread: float) -> Change:
    """All weights from a normal distribution, in place of He's."""

    def change(params: Any) -> Any:
        draw = np.random.default_rng(0).normal
        return jax.tree.map(
            lambda a: jnp.asarray(draw(0, spread, a.shape), a.dtype) if a.ndim > 1 else a, params
        )

    return change


SIGMOIDS = fnn.models.mlp((32,) * 6 + (10,), fnn.logistic())
FAULTS: dict[str, tuple[str, str, Callable[[], Diagnostics]]] = {
    "rate 3": ("learning rate too high", "training", lambda: diagnose(relu_net(), rate=3.0)),
    "rate 1e30": ("learning rate too high", "training", lambda: diagnose(relu_net(), rate=1e30)),
    "rate 1e-4": ("learning rate too low", "training", lambda: diagnose(relu_net(), rate=1e-4)),
    "sigmoids": ("vanishing gradients", "layer 1 (hidden_1)", lambda: diagnose(SIGMOIDS)),
    "large": (
        "exploding gradients", "layer 1 (hidden_1)",
        lambda: diagnose(relu_net(*(32,) * 6), start=times(5.0), rate=1e-3),
    ),
    "dead from the start": (
        "dead units", "layer 2 (relu_2)",
        lambda: diagnose(relu_net(32, 32), start=biases(-10.0, "hidden_2")),
    ),
    "dead later": ("dead units", "layer 1 (relu_1)", lambda: diagnose(relu_net(), rate=1.0)),
    "saturated": (
        "saturated units", "layer 1 (tanh_1)",
        lambda: diagnose(fnn.models.mlp((32, 10), fnn.tanh()), start=times(50.0, "hidden_1")),
    ),
    "large output": (
        "bad initial scale", "initialisation",
        lambda: diagnose(relu_net(), start=times(50.0, "out"), rate=0.01),
    ),
    "small": (
        "bad initial scale", "layer 2 (hidden_2)",
        lambda: diagnose(relu_net(32, 32), start=times(1e-3)),
    ),
    "100 examples": (
        "overfitting", "training", lambda: diagnose(relu_net(64), X[:100], T[:100], epochs=60)
    ),
    "by label": (
        "unshuffled labels", "targets", lambda: diagnose(relu_net(), **by_label(), epochs=1)
    ),
    "constant": (
        "constant labels", "targets", lambda: diagnose(relu_net(), target=0 * T[:1200], epochs=1)
    ),
    "mixed up": (
        "labels unrelated to inputs", "targets",
        lambda: diagnose(relu_net(), target=np.random.default_rng(1).permutation(T[:1200])),
    ),
    "unscaled": (
        "unscaled inputs", "inputs",
        lambda: diagnose(fnn.models.logistic_regression(), **breast_cancer(scaled=False)),
    ),
    "forgotten": (
        "nothing is learned", "network", lambda: diagnose(without_gradient(fnn.linear(10)))
    ),
    "backwards": (
        "nothing is learned", "network",
        lambda: diagnose(relu_net(16), loss=backwards(CE), validation=None),
    ),
    "quite small": (
        "bad initial scale", "layer 2 (hidden_2)",
        lambda: diagnose(
            relu_net(128, 128), start=normal(0.01), epochs=6, optimizer=fnn.sgd(0.01, 0.9)
        ),
    ),
    "quite small, tanh": (
        "bad initial scale", "layer 2 (hidden_2)",
        lambda: diagnose(fnn.models.mlp((64,) * 3 + (10,), fnn.tanh()), start=normal(0.02)),
    ),
    "4 sigmoids": (
        "vanishing gradients", "layer 1 (hidden_1)",
        lambda: diagnose(fnn.models.mlp((32,) * 4 + (10,), fnn.logistic())),
    ),
    "far away": (
        "unscaled inputs", "inputs",
        lambda: diagnose(relu_net(), X[:1200] + 3, validation=(X[1200:1500] + 3, T[1200:1500])),
    ),
    "bytes": ("unscaled inputs", "inputs", lambda: diagnose(relu_net(), 255 * X[:1200])),
    "scaled twice": ("unscaled inputs", "inputs", lambda: diagnose(relu_net(), X[:1200] / 255)),
}  # fmt: skip


def once_more(fault: str) -> Any:
    """A slow test: another way to what a fault before it is, or every second kind of fault."""
    kinds = [name for name, *_ in FAULTS.values()]
    place, kind = list(FAULTS).index(fault), FAULTS[fault][0]
    is_slow = kind in kinds[:place] or list(dict.fromkeys(kinds)).index(kind) % 2
    return pytest.param(fault, marks=[pytest.mark.slow] if is_slow else [])


@functools.cache
def faulty(fault: str) -> Diagnostics:
    return FAULTS[fault][2]()


@pytest.mark.parametrize("fault", [once_more(fault) for fault in FAULTS])
def test_a_fault_is_named_first(fault: str) -> None:
    name, where, _ = FAULTS[fault]
    found = faulty(fault).findings()
    assert (found[0].name, found[0].where) == (name, where), [str(f) for f in found]
    assert len({f.name for f in found}) == len(found) <= 4


def test_words() -> None:
    """As in the issue that asked for them: which layer, how much, since when, what to try."""
    found, *_ = faulty("dead later").findings()
    assert str(found).startswith("layer 1 (relu_1): 100 % of units dead")
    for part in ("since epoch 1; ", "lower the learning rate", "use He initialisation"):
        assert part in str(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_digits_raise_no_alarm(seed: int) -> None:
    run = diagnose(fnn.models.mlp((64, 10), fnn.relu(), dropout=0.3), seed=seed, epochs=4)
    assert run.findings() == []
    assert run.history[-1]["validation_accuracy"] > 0.9
    assert "nothing stands out" in str(run)
    assert run.overfit.success and run.overfit.loss <= 0.01 * np.log(10)
    assert abs(run.initial_loss - np.log(10)) < 0.6


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("FNN_DATA"), reason="FNN_DATA names no folder with mnist/")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_pictures_raise_no_alarm(name: str, seed: int) -> None:
    data = load(name, seed)
    few, others = (
        jax.tree.map(lambda a: a[:2000], tuple(p)) for p in (data.train, data.validation)
    )
    run = diagnose(
        relu_net(128, 64), *few, validation=others, seed=seed, batch_size=64, rate=0.05
    )  # fmt: skip
    assert run.findings() == []
    assert run.overfit.success and run.overfit.loss <= 0.01 * np.log(10)


@pytest.mark.slow
def test_other_healthy_runs_raise_no_alarm() -> None:
    tanh = fnn.models.mlp((32, 10), fnn.tanh())
    assert diagnose(tanh, epochs=6).findings() == []
    neuron = fnn.models.logistic_regression()
    assert diagnose(neuron, **breast_cancer(scaled=True)).findings() == []
    x, target = load_diabetes(return_X_y=True)
    x, target = x / x.std(0), ((target - target.mean()) / target.std())[:, None]
    run = diagnose(
        fnn.linear(1), x, target, loss=fnn.squared_error(), validation=None, rate=0.01
    )  # fmt: skip
    assert run.findings() == []
    assert np.isnan(run.accuracy).all()


def test_rare_features_are_not_large() -> None:
    """(x - mean) / standard deviation is what is advised: its root mean square is 1."""
    x = np.zeros((60_000, 3), np.float32)
    x[::15_000, 1] = 1
    x[:, 2] = np.random.default_rng(0).normal(size=60_000)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    s = data_summary(CE, np.zeros((60_000, 3)), x, np.zeros(60_000, int)).inputs
    assert s.max_feature_rms == pytest.approx(1, rel=1e-3) and s.offset_sigmas < 1e-3
    images = np.random.default_rng(1).uniform(size=(9, 700, 400, 3))  # in several chunks
    s = data_summary(CE, np.zeros((9, 3)), images, np.zeros(9, int)).inputs
    assert s.rms == pytest.approx(np.sqrt(np.mean(images**2)))
    assert s.offset_sigmas == pytest.approx(images.mean() / images.std())


@pytest.mark.slow
def test_flat_outputs_zero_branches_and_few_judges_raise_no_alarm() -> None:
    """Of ten probabilities nine are flat; a residual branch may start as 0; 20 examples vary."""
    outputs = fnn.serial(h=fnn.linear(30), a=fnn.relu(), z=fnn.linear(10), p=fnn.logistic())
    hot = np.eye(10, dtype=np.float32)[T]
    run = diagnose(
        outputs, X[:1200], hot[:1200], loss=fnn.binary_cross_entropy(from_logits=False),
        validation=(X[1200:1500], hot[1200:1500]),
    )  # fmt: skip
    flat = np.where(np.isnan(run.saturated), np.nan, 0.9)
    assert find(replace(run, saturated=flat)) == []
    branch = fnn.serial(
        a=fnn.linear(64),
        b=fnn.relu(),
        c=fnn.linear(64, w_init=jax.nn.initializers.zeros),
    )
    net = fnn.serial(r1=fnn.residual(branch), r2=fnn.residual(branch), out=fnn.linear(10))
    assert diagnose(net).findings() == []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(300)
        x, target = X[order], T[order]
        run = diagnose(
            relu_net(64), x[:280], target[:280], epochs=4, seed=seed,
            validation=(x[280:], target[280:]),
        )  # fmt: skip
        assert run.findings() == [], seed


def test_probabilities_are_right_above_a_half() -> None:
    parts = breast_cancer(scaled=True) | {"loss": fnn.binary_cross_entropy(from_logits=False)}
    run = diagnose(fnn.neuron(fnn.logistic()), **parts, epochs=5)
    assert run.history[-1]["validation_accuracy"] > 0.93 and run.accuracy[-1] > 0.85
    assert fnn.accuracy(np.array([0.3, 0.7]), np.array([0, 1]), threshold=0.5) == 1.0


def test_one_odd_label_is_not_unrelated() -> None:
    target = np.zeros(1200, np.int32)
    target[600] = 1
    found = diagnose(fnn.linear(10), X[:1200], target, epochs=1, validation=None).findings()
    assert "labels unrelated to inputs" not in [finding.name for finding in found]


def test_diagnostics_change_nothing() -> None:
    net = relu_net(16)
    options: dict[str, Any] = {
        "optimizer": fnn.sgd(0.1, 0.9), "batch_size": 32, "epochs": 2, "progress": False,
    }  # fmt: skip
    runs = [fnn.fit(net, CE, X[:300], T[:300], diagnostics=d, **options) for d in (False, True)]
    plain, seen = (jax.tree.leaves((run.params, run.state)) for run in runs)
    assert all(np.array_equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert [r["loss"] for r in runs[0].history] == [r["loss"] for r in runs[1].history]
    assert runs[0].diagnostics is None


@pytest.mark.slow
def test_what_is_seen_is_what_is_there() -> None:
    """A step of size 0.5 on all examples, against the same numbers from the blocks themselves."""
    x, target = X[:32], T[:32]  # as many as are watched
    net = fnn.serial(a=fnn.linear(8), deep=fnn.serial(act=fnn.relu()), out=fnn.linear(10))
    start = net.init(jax.random.key(0), x)
    fitted = fnn.fit(
        net, CE, x, target, optimizer=fnn.sgd(0.5), epochs=0, params=start, diagnostics=True
    )  # fmt: skip
    seen = fitted.diagnostics
    assert seen is not None
    assert [layer.path for layer in seen.layers] == ["a", "deep/act", "out"]
    assert [layer.number for layer in seen.layers] == [1, 1, 2]
    z = x @ np.asarray(start["a"]["w"]) + np.asarray(start["a"]["b"])
    h = np.maximum(z, 0)
    np.testing.assert_allclose(seen.mean[0, :2], [z.mean(), h.mean()], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.spread[0, :2], [z.std(), h.std()], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.dead[0], [np.nan, np.mean((h == 0).all(0)), np.nan])
    value, grads = fnn.value_and_grad(net, CE)(start, x, jnp.asarray(target))
    assert seen.initial_loss == pytest.approx(float(value), rel=1e-5)

    def norm(tree: Any) -> float:
        return float(np.sqrt(sum(np.sum(np.square(a)) for a in jax.tree.leaves(tree))))

    for i, name in ((0, "a"), (2, "out")):
        assert seen.gradient[0, i] == pytest.approx(norm(grads[name]), rel=1e-5)
        ratio = 0.5 * norm(grads[name]) / norm(start[name])
        assert seen.update[0, i] == pytest.approx(ratio, rel=1e-4)
    assert np.isnan(seen.gradient[0, 1]) and np.isnan(seen.update[0, 1])
    d = jax.grad(lambda y: CE.forward({}, (y, jnp.asarray(target)))[0])(
        net.forward(start, x)[0]
    )  # fmt: skip
    assert seen.signal[0, 2] == pytest.approx(norm(d), rel=1e-5)


@pytest.mark.slow
@pytest.mark.as_users  # Optax's line search mixes dtypes
def test_any_network_and_optimiser() -> None:
    """Frozen, shared, repeated, normalised, dropped out; half precision; a line search."""
    import optax

    net = fnn.serial(
        a=fnn.freeze(fnn.linear(8)), norm=fnn.batch_norm(), act=fnn.tanh(), off=fnn.dropout(0.2),
        deep=fnn.repeat(fnn.layer(8, fnn.relu()), 3), add=fnn.residual(fnn.linear(8)),
        out=fnn.linear(10),
    )  # fmt: skip
    run = diagnose(net, X[:200], T[:200], epochs=2, dtype=jnp.bfloat16, validation=None)
    seen = dict(zip([la.path for la in run.layers], run.update[-1], strict=True))
    assert np.isnan(seen["a"]) and seen["norm"] > 0 and seen["deep"] > 0
    search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(3))
    assert str(diagnose(fnn.linear(10), X[:64], T[:64], epochs=1, optimizer=search))
    assert str(diagnose(fnn.linear(10), X[:1], T[:1], epochs=1))


@pytest.mark.parametrize(
    "net",
    [
        fnn.linear(10), fnn.models.mlp((4, 10), fnn.tanh()), SIGMOIDS,
        fnn.serial(fnn.linear(64), fnn.relu(), fnn.dropout(0.5), fnn.linear(10)),
        fnn.serial(fnn.linear(32), fnn.batch_norm(), fnn.dropout(0.5), fnn.linear(10)),
    ],
    ids=["linear", "4 neurons", "6 layers of logistic units", "dropout", "batch norm"],
)  # fmt: skip
def test_twenty_digits_are_overfitted(net: Block) -> None:
    params = net.init(jax.random.key(0), X[:20])
    batch, chance = (X[:20], jnp.asarray(T[:20])), float(np.log(10))
    check = overfit_small_batch(net, CE, params, batch, jax.random.key(0), chance)
    assert check.success and check.loss <= 0.01 * chance and check.steps < 2000
    stuck = overfit_small_batch(fnn.freeze(net), CE, params, batch, jax.random.key(0), chance)
    assert stuck.success is False and stuck.steps == 2000


def test_a_large_network_gets_fewer_steps_to_overfit(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the work of a step and not by the clock, and then nothing is concluded."""
    net = fnn.freeze(fnn.linear(10))
    params = net.init(jax.random.key(0), X[:20])
    monkeypatch.setattr("fnn.training.diagnostics.overfit.MAX_FLOPS", 1e6)
    batch = (X[:20], jnp.asarray(T[:20]))
    cut = overfit_small_batch(net, CE, params, batch, jax.random.key(0), float(np.log(10)))
    assert cut.success is None and 0 < cut.steps < 100


@pytest.mark.parametrize(
    ("layers", "others"),
    [(3, "relu_2 (100 %), relu_3 (100 %)"),
     pytest.param(6, "relu_2 (100 %), relu_3 (100 %), relu_4 (100 %), 2 more layers",
                  marks=pytest.mark.slow)],
)  # fmt: skip
def test_all_layers_with_a_fault_are_named(layers: int, others: str) -> None:
    def start(params: Any) -> Any:
        for i in range(layers):
            params = biases(-50.0, f"hidden_{i + 1}")(params)
        return params

    found, *_ = diagnose(relu_net(*[16] * layers), start=start, epochs=1).findings()
    assert str(found).startswith(
        "layer 1 (relu_1): 100 % of units dead (no slope at any example watched) from the "
        f"start, and in {others}; "
    )


@pytest.mark.slow
@pytest.mark.as_users  # the schedule mixes dtypes
def test_the_table_shows_the_largest_update() -> None:
    """After a schedule has ended at 0, the last one is 0."""
    import optax

    rate = optax.cosine_decay_schedule(0.1, 20)
    run = diagnose(fnn.linear(10), epochs=2, optimizer=optax.sgd(rate))
    assert run.update[-1, 0] == 0 < run.update[0, 0]
    assert str(run).splitlines()[3].endswith(f"{run.update[:, 0].max():.1e}")


@pytest.mark.slow
def test_it_is_cheap() -> None:
    """The examples that are watched are few beside those that are learned from."""
    for n, epochs in ((1300, 4), (100, 40)):
        run = diagnose(fnn.linear(10), X[:n], T[:n], epochs=epochs, validation=None)
        count = 32  # no more than a batch
        # But for the first two looks and the last.
        assert (len(run.watched) - 3) * count <= epochs * n / 32 + count
        assert run.watched[0] == 0 and run.watched[-1] == epochs


def test_data_summary() -> None:
    x = np.zeros((4, 2))
    labels = np.array([0, 1, 0, 1])
    s = data_summary(CE, np.zeros((4, 3)), x, labels, labels)
    assert s.losses[3:] == pytest.approx((np.log(3), np.log(2)))
    assert (s.labels.label_shift, s.labels.same_as_previous, s.labels.constant) == (0, 0, False)
    assert s.losses.is_classifier and s.n_validation == 4
    soft = data_summary(CE, np.zeros((4, 3)), x, np.eye(3)[[0, 1, 2, 0]])
    assert np.isnan(soft.labels.same_as_previous) and not soft.losses.is_classifier
    squared = fnn.squared_error()
    s = data_summary(squared, np.zeros((2, 1)), x[:2], np.array([[1.0], [3.0]]))
    assert s.losses[3:] == pytest.approx((2.5, 0.5))
    unknown = data_summary(CE._replace(kind=fnn.Kind("mine")), np.zeros((4, 3)), x, labels)
    assert np.isnan(unknown.losses.chance_loss)
    assert data_summary(CE, (x, x), (x, x), (labels, labels)).labels.constant is False


def test_an_unknown_loss_still_has_findings() -> None:
    run = diagnose(relu_net(), loss=CE._replace(kind=fnn.Kind("mine")), rate=1e30, validation=None)
    assert run.findings()[0].name == "learning rate too high"
    assert "by chance" not in str(run)
    assert find(replace(run, status="finished")) == []
