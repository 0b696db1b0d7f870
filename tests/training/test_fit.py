"""The whole pipeline on small real data: it learns, reproducibly, and refuses what is bad."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

import fnn
from fnn.block import Block
from fnn.training.progress import reporter

CE = fnn.softmax_cross_entropy()


def digits(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    x, target = load_digits(return_X_y=True)
    return (x[:n] / 16).astype(np.float32), target[:n].astype(np.int32)


def fit(net: Block, loss: Block, x: Any, target: Any, **options: Any) -> fnn.Fitted:
    return fnn.fit(net, loss, x, target, progress=options.pop("progress", False), **options)


def small_net(**options: Any) -> Block:
    return fnn.models.mlp((16, 10), fnn.relu(), **options)


FAST = {"optimizer": fnn.sgd(0.1, 0.9), "batch_size": 32}


def test_digits_are_learned_and_the_best_is_kept() -> None:
    x, target = digits(600)
    fitted = fit(
        small_net(), CE, x[:450], target[:450], epochs=15, **FAST,
        validation=(x[450:], target[450:]), metrics={"accuracy": fnn.accuracy},
    )  # fmt: skip
    assert fitted.success
    assert fitted.message == "after 15 epochs"
    assert [row["epoch"] for row in fitted.history] == list(range(1, 16))
    assert list(fitted.history[0]) == [
        "epoch", "loss", "validation_loss", "validation_accuracy", "seconds"
    ]  # fmt: skip
    validation = [row["validation_loss"] for row in fitted.history]
    assert fitted.best_epoch == int(np.argmin(validation)) + 1
    logits = fnn.make_predict(small_net())(fitted.params, jnp.asarray(x[450:]))
    value, _ = CE.forward({}, (logits, jnp.asarray(target[450:])))
    assert float(value) == pytest.approx(min(validation), rel=1e-5)
    assert fnn.accuracy(logits, target[450:]) > 0.85


def test_one_neuron_learns_breast_cancer() -> None:
    x, target = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    net = fnn.models.logistic_regression()
    fitted = fit(net, fnn.binary_cross_entropy(), x, target, epochs=20, batch_size=64)
    assert fnn.accuracy(net.forward(fitted.params, jnp.asarray(x))[0], target) > 0.96


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes(dtype: str) -> None:
    x, target = digits(100)
    fitted = fit(small_net(), CE, x, target, epochs=3, dtype=dtype, **FAST)
    wide = jnp.dtype("float64" if dtype == "float64" else "float32")
    assert {p.dtype for p in jax.tree.leaves(fitted.params)} == {wide}
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


def test_the_key_decides_everything() -> None:
    x, target = digits(100)
    net = small_net(dropout=0.3)
    runs = [
        fit(net, CE, x, target, epochs=2, key=jax.random.key(seed), **FAST, **options)
        for seed, options in ((1, {}), (1, {}), (2, {}))
    ]
    first, again, other = (np.asarray(run.params["out"]["w"]) for run in runs)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    raw = fit(net, CE, x, target, epochs=2, key=jax.random.PRNGKey(1), **FAST)
    assert raw.success


def test_an_epoch_in_pieces_is_the_same() -> None:
    x, target = digits(110)  # of which the last call has 14, a part of a batch
    net = fnn.serial(norm=fnn.batch_norm(), body=small_net())
    whole = fit(net, CE, x, target, epochs=2, **FAST)
    pieces = fit(net, CE, x, target, epochs=2, steps_per_call=1, **FAST)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        whole.params,
        pieces.params,
    )
    assert pieces.history[1]["loss"] == pytest.approx(whole.history[1]["loss"], rel=1e-6)


@pytest.mark.slow
def test_the_mean_loss_counts_every_example_once() -> None:
    x, target = digits(70)  # batches of 32, 32 and 6
    optimizer = fnn.sgd(1e-30)  # stands still
    fitted = fit(small_net(), CE, x, target, epochs=1, optimizer=optimizer, batch_size=32)
    value, _ = CE.forward({}, (small_net().forward(fitted.params, x)[0], jnp.asarray(target)))
    assert fitted.history[0]["loss"] == pytest.approx(float(value), rel=1e-5)


def test_it_stops_at_convergence() -> None:
    x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    fitted = fit(
        fnn.linear(1), fnn.squared_error(), x, 2 * x, epochs=500, batch_size=32,
        min_improvement=0.01, patience=3, optimizer=fnn.sgd(1.0),
    )  # fmt: skip
    assert fitted.success
    assert fitted.status == "converged"
    assert len(fitted.history) < 500


def test_no_epochs_give_the_initial_parameters() -> None:
    x, target = digits(20)
    params = small_net().init(jax.random.key(3), x)
    fitted = fit(small_net(), CE, x, target, epochs=0, params=params)
    assert fitted.history == []
    assert fitted.best_epoch == 0
    assert np.array_equal(fitted.params["out"]["w"], params["out"]["w"])


@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupt_keeps_what_was_learned(at: int) -> None:
    x, target = digits(100)

    def interrupt(row: dict[str, float], left: float) -> None:
        if row["epoch"] == at:
            raise KeyboardInterrupt

    fitted = fit(small_net(), CE, x, target, epochs=9, progress=interrupt, **FAST)
    assert not fitted.success
    assert fitted.message == f"by Ctrl-C in epoch {at + 1}"
    expected = fit(small_net(), CE, x, target, epochs=at, **FAST)
    assert np.array_equal(fitted.params["out"]["w"], expected.params["out"]["w"])


def exploding(after: float) -> Block:
    """The identity until its input gets large, and infinite from there on."""
    return Block(
        lambda key, x: {},
        lambda params, x, key=None: (jnp.where(jnp.abs(x) > after, jnp.inf, x), ()),
        lambda params, residuals, dy: ({}, dy),
        "exploding",
    )


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    x, target = digits(100)
    net = fnn.serial(hidden=fnn.linear(8), drop=fnn.dropout(0.1), fuse=exploding(5.0))
    net = fnn.serial(body=net, out=fnn.linear(10))
    with pytest.warns(RuntimeWarning, match="first non-finite value: output of net/body/fuse"):
        fitted = fit(net, CE, x, target, epochs=50, optimizer=fnn.sgd(0.5), batch_size=10)
    assert not fitted.success
    assert "net/body/fuse (forward)" in fitted.message
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(fitted.params))
    prediction = fnn.make_predict(net)(fitted.params, x)
    assert np.isfinite(CE.forward({}, (prediction, jnp.asarray(target)))[0])


def test_an_update_that_is_not_finite_stops_the_run() -> None:
    x, target = digits(40)
    optimizer = fnn.sgd(lambda step: jnp.where(step < 2, 0.1, jnp.inf).astype(jnp.float32))
    with pytest.warns(RuntimeWarning, match="epoch 1, step 3: the optimiser's update"):
        fitted = fit(small_net(), CE, x, target, epochs=2, optimizer=optimizer, batch_size=10)
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(fitted.params))


def test_parameters_that_a_finite_loss_hides_are_not_kept() -> None:
    """A ReLU whose bias is -inf is 0."""
    x, target = digits(40)

    def update(grads: Any, step: Any, params: Any) -> Any:
        updates = jax.tree.map(jnp.zeros_like, grads)
        down = jnp.full_like(grads["hidden_1"]["b"], jnp.where(step == 2, -jnp.inf, 0))
        return {**updates, "hidden_1": {**updates["hidden_1"], "b": down}}, step + 1

    optimizer = fnn.Optimizer(lambda params: jnp.int32(0), update)
    with pytest.warns(RuntimeWarning, match="epoch 1, step 3: the optimiser's update"):
        fitted = fit(small_net(), CE, x, target, epochs=1, optimizer=optimizer, batch_size=5)
    assert fitted.status == "diverged"
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(fitted.params))
    assert fitted.state == 2


def test_progress_is_printed_with_the_time_left(capsys: Any) -> None:
    x, target = digits(40)
    fit(small_net(), CE, x, target, epochs=2, progress=True)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("epoch 1/2  loss ")
    assert "left" not in first + last  # the first epoch was compiled


def test_a_long_first_epoch_bounds_the_time_left(capsys: Any) -> None:
    report = reporter(True, 3)
    report({"epoch": 1, "loss": 1.0, "seconds": 30.0}, 60.0)
    report({"epoch": 2, "loss": 1.0, "seconds": 40.0}, 10.0)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("30.0 s, at most 60 s left") and second.endswith("40.0 s, 10 s left")


def test_on_a_terminal_one_line_is_written_anew(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    x, target = digits(40)
    fit(small_net(), CE, x, target, epochs=3, progress=True)
    printed = capsys.readouterr().err
    assert (printed.count("\n") == 1 and printed.endswith("s\n")) or printed.rstrip().endswith(" s")
    assert printed.count("\r") == 3


def test_quick_epochs_do_not_fill_a_log(capsys: Any) -> None:
    x, target = digits(40)
    fit(small_net(), CE, x, target, epochs=300, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 100
    assert lines[0].startswith("epoch 1/300") and lines[-1].startswith("epoch 300/300")


X, T = digits(20)
NAN = np.where(np.arange(20)[:, None] == 7, np.nan, X).astype(np.float32)
OTHER = fnn.models.mlp((9, 10)).init(jax.random.key(0), X)
NAN_PARAMS = jax.tree.map(lambda p: np.full_like(p, np.nan), small_net().init(jax.random.key(0), X))
INTEGER_PARAMS = jax.tree.map(lambda p: np.zeros(p.shape, int), NAN_PARAMS)
BAD_INPUT = {
    "feature count": ((X, T), {"validation": (X[:, :5], T)}, r"x has 5 features .* w needs 64"),
    "label too high": ((X, T + 5), {}, "labels go from 5 to 14; 10 classes need labels from 0 to"),
    "label negative": ((X, T - 1), {}, "labels go from -1 to 8"),
    "float labels": (
        (X, T.astype(np.float32)),
        {},
        r"need integer .*give target.astype\(int\)",
    ),
    "boolean labels": ((X, T > 4), {}, "need integer labels"),
    "nan": (
        (NAN, T),
        {},
        "x has 64 values that are NaN or infinite in float32, the first in example 7",
    ),
    "validation nan": ((X, T), {"validation": (NAN, T)}, "validation x has 64 values"),
    "empty": (
        (X[:0], T[:0]),
        {},
        r"x is empty \(shape \(0, 64\)\), needs at least one example",
    ),
    "lengths": ((X, T[:19]), {}, r"one entry per example each, got shapes \[\(20, 64\), \(19,\)\]"),
    "scalar": ((X, T[0]), {}, "need a first axis of examples, got shapes"),
    "integer x": (((X * 16).astype(np.uint8), T), {}, "x has dtype uint8 and needs a floating"),
    "validation labels": ((X, T), {"validation": (X, T + 1)}, "validation target: labels go from"),
    "other parameters": ((X, T), {"params": OTHER}, "hidden_1/b: params hold .* another network's"),
    "no parameters": ((X, T), {"params": {}}, "params hold nothing"),
    "epochs": ((X, T), {"epochs": -1}, "epochs is -1"),
    "batch size": ((X, T), {"batch_size": 0}, "batch_size is 0"),
    "patience": ((X, T), {"patience": 0}, "patience is 0"),
    "steps per call": ((X, T), {"steps_per_call": 0}, "steps_per_call is 0"),
    "overflow": ((X.astype(float) * 1e300, T), {"dtype": "float32"}, "infinite in float32"),
    "lists": ((X.tolist(), T), {}, "holds a list, needs arrays"),
    "nothing": ((None, T), {}, "holds a NoneType, needs arrays"),
    "names": ((X, T.astype(str)), {}, "turn names of classes into labels"),
    "no features": ((X[:, :0], T), {}, r"empty \(shape \(20, 0\)\)"),
    "nan params": ((X, T), {"params": NAN_PARAMS}, "hidden_1/b: params hold values that are NaN"),
    "batch size as text": ((X, T), {"batch_size": "8"}, "batch_size is '8', needs a whole number"),
    "half an epoch": ((X, T), {"epochs": 1.5}, "epochs is 1.5, needs a whole number"),
    "a name of an optimizer": ((X, T), {"optimizer": "adam"}, "needs one with init and update"),
    "an uncalled optimizer": ((X, T), {"optimizer": fnn.sgd}, r"call it, sgd\("),
    "a number as key": ((X, T), {"key": 0}, r"needs a key made by jax.random.key"),
    "three validation parts": ((X, T), {"validation": (X, T, T)}, r"3 parts, needs \(x, target\)"),
    "tolerance": ((X, T), {"min_improvement": np.nan}, "min_improvement is nan"),
    "metrics": ((X, T), {"metrics": {"accuracy": fnn.accuracy}}, "give validation="),
    "a list of metrics": (
        (X, T),
        {"metrics": [fnn.accuracy], "validation": (X, T)},
        r"metrics is \[.*needs a function for each name, {\"accuracy\": fnn.accuracy}",
    ),
    "a metric": ((X, T), {"metrics": fnn.accuracy}, "needs a function for each name, .* or None$"),
    "no function": ((X, T), {"metrics": {"a": 3}}, "needs a function for each name"),
    "progress": ((X, T), {"progress": 3}, "progress is 3, needs a function or True or False"),
    "a share": ((X, T), {"validation": 0.2}, r"validation x is a float .*\(fit does not split x\)"),
    "no dtype": ((X, T), {"dtype": "float7"}, "dtype is 'float7', needs a floating dtype"),
    "integers": ((X, T), {"dtype": "int64"}, "dtype is 'int64', needs a floating dtype"),
    "text": ((X, T), {"min_improvement": "1"}, "min_improvement is '1', needs a finite number of"),
    "its old name": ((X, T), {"tolerance": 1e-3}, "did you mean min_improvement"),
    "another loss": ((X, T), {"loss_at_inference": 3}, "loss_at_inference is 3, needs a Block"),
    "a number as params": ((X, T), {"params": 3}, r"^fit: params hold \(\)"),
    "integer params": ((X, T), {"params": INTEGER_PARAMS}, "hidden_1/b: params hold int.*floats"),
    "no arrays": (((), T), {}, "x or its target holds no array"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_training(case: str) -> None:
    data, options, message = BAD_INPUT[case]
    with pytest.raises((ValueError, TypeError), match=message):
        fit(small_net(), CE, *data, epochs=options.pop("epochs", 1), **options)


def test_an_uncalled_block_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"loss is the function softmax_cross_entropy, needs a Block: call it"
    ):
        fit(small_net(), fnn.softmax_cross_entropy, X, T)


def test_numpy_integers_are_whole_numbers() -> None:
    assert fit(small_net(), CE, X, T, epochs=np.int64(1), batch_size=np.int32(4)).success


@pytest.mark.slow
def test_a_row_of_nan_is_not_taken_for_a_masked_one() -> None:
    """XLA's maximum passes over NaN in large arrays, and -inf is what a masked row has."""
    for dtype in ("float32", "float64"):
        z = jnp.full((1024, 10), jnp.nan, dtype)
        assert np.isnan(CE.forward({}, (z, jnp.zeros(1024, int)))[0])
        z = jnp.zeros((1024, 10), dtype).at[5].set(jnp.nan)
        assert np.isnan(CE.forward({}, (z, jnp.zeros(1024, int)))[0])


def test_large_batches_that_diverge_keep_finite_parameters() -> None:
    rng = np.random.default_rng(0)
    x, target = rng.random((4096, 6), np.float32), rng.integers(0, 10, 4096)
    with pytest.warns(RuntimeWarning, match="step 2"):
        fitted = fit(small_net(), CE, x, target, optimizer=fnn.sgd(1e38), batch_size=1024)
    assert fitted.status == "diverged"
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(fitted.params))


def test_bfloat16_can_be_mapped() -> None:
    """XLA on CPU has no batched product of bfloat16 with float32 sums."""
    x, target = digits(20)
    params = small_net().init(jax.random.key(0), x)
    x = jnp.asarray(x, jnp.bfloat16)
    f = jax.jit(jax.vmap(fnn.value_and_grad(small_net(), CE), in_axes=(None, 0, 0)))
    value, _ = f(params, x[:, None], jnp.asarray(target)[:, None])
    assert value.shape == (20,)


def test_float64_that_is_switched_off_is_refused() -> None:
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        fit(small_net(), CE, X, T, epochs=1, dtype="float64")


def test_targets_that_are_not_probabilities_are_refused() -> None:
    for target in (T[:, None].astype(float), np.full((20, 1), np.nan)):
        with pytest.raises(ValueError, match=r"targets go from|NaN or infinite"):
            fit(fnn.linear(1), fnn.binary_cross_entropy(), X, target)


def test_a_loss_that_rises_has_not_converged() -> None:
    x = 10 * np.linspace(-1, 1, 64)[:, None]
    fitted = fit(
        fnn.linear(1), fnn.squared_error(), x, 3 * x + 1, epochs=30, batch_size=64,
        optimizer=fnn.sgd(0.07), min_improvement=1e-3,
    )  # fmt: skip
    assert fitted.status == "diverged"
    assert "the loss rises" in fitted.message


@pytest.mark.parametrize("batch_size", [64, 32])
def test_the_parameters_kept_have_the_lowest_training_loss(batch_size: int) -> None:
    x = np.linspace(-1, 1, 64)[:, None]
    target = 30 * x + 1
    net, loss = fnn.linear(1), fnn.squared_error()
    start = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
    for rate in (0.1, 6.5):  # that one diverges
        fitted = fit(net, loss, x, target, epochs=6, batch_size=batch_size, params=start,
                     optimizer=fnn.sgd(rate))  # fmt: skip
        reached = float(
            loss.forward({}, (net.forward(fitted.params, x)[0], jnp.asarray(target)))[0]
        )
        begun = float(loss.forward({}, (net.forward(start, x)[0], jnp.asarray(target)))[0])
        assert reached <= begun


def test_a_validation_loss_that_is_never_finite_is_said() -> None:
    x, target = np.ones((8, 1)), np.ones((8, 1))
    far = (np.full((3, 1), 1e200), target[:3])  # squared, beyond float64
    with pytest.warns(RuntimeWarning, match="never finite"):
        fitted = fit(fnn.linear(1), fnn.squared_error(), x, target, epochs=2, validation=far)
    assert fitted.status == "diverged"
    assert fitted.best_epoch == 2


def test_dropout_does_not_depend_on_how_an_epoch_is_cut() -> None:
    x, target = digits(96)
    net = small_net(dropout=0.4)
    runs = [fit(net, CE, x, target, epochs=2, steps_per_call=n, **FAST) for n in (None, 1, 2)]
    for run in runs[1:]:
        np.testing.assert_allclose(run.params["out"]["w"], runs[0].params["out"]["w"], rtol=1e-6)
