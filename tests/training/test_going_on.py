"""What fit takes and gives beside the data: weights, patience, resuming, predictions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4))
LABELS = (X @ RNG.normal(size=(4, 3))).argmax(1)
NET, LOSS = fnn.models.mlp((5, 3), fnn.tanh(), dropout=0.2), fnn.softmax_cross_entropy()
TEST = (X[60:], LABELS[60:])


def fit(*data: Any, **options: Any) -> fnn.Fitted:
    data = data or (X[:60], LABELS[:60])
    options = {"net": NET, "loss": LOSS, "batch_size": 16, "progress": False} | options
    return fnn.fit(options.pop("net"), options.pop("loss"), *data, **options)


def equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-12, atol=1e-14), a, b)


# ---- resuming ----------------------------------------------------------------------------------


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: v for name, v in row.items() if name != "seconds"} for row in history]


@pytest.mark.parametrize("validation", [TEST, None], ids=["validation", "none"])
def test_six_epochs_are_three_and_three(validation: Any) -> None:
    """Dropout, shuffles, the schedule and the best parameters too."""

    def schedule(count: jax.Array) -> jax.Array:
        return 0.05 / (1 + count.astype(jnp.float64))

    options = {"optimizer": fnn.adam(schedule), "validation": validation}
    whole = fit(epochs=6, **options)
    half = fit(epochs=3, **options)
    rest = fit(epochs=3, resume=half, **options)
    for name in ("params", "last", "state", "best_epoch", "message"):
        equal(getattr(whole, name), getattr(rest, name))
    assert without_time(whole.history) == without_time(rest.history)
    assert [row["epoch"] for row in rest.history] == [1, 2, 3, 4, 5, 6]
    assert len(half.history) == 3 and half.history[-1]["seconds"] < rest.history[-1]["seconds"]


def test_a_checkpoint_goes_through_a_file(tmp_path: Path) -> None:
    half = fit(epochs=2, key=jax.random.key(7))
    file = tmp_path / "checkpoint"
    file.write_bytes(pickle.dumps(jax.device_get(half.checkpoint)))
    rest = fit(epochs=2, resume=pickle.loads(file.read_bytes()))
    equal(rest.params, fit(epochs=4, key=jax.random.key(7)).params)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_the_key_of_a_checkpoint_is_the_runs(impl: str) -> None:
    key = jax.random.key(3, impl=impl)
    assert fit(epochs=0, key=key).checkpoint.key == key


def test_patience_counts_on_after_resuming() -> None:
    options = {"patience": 4, "optimizer": fnn.sgd(1e-30), "validation": TEST}
    half = fit(epochs=2, **options)
    rest = fit(epochs=9, resume=half, **options)
    assert rest.status == "converged" and len(rest.history) == 5


@pytest.mark.parametrize(
    "options, words",
    [
        ({"key": jax.random.key(0)}, "resume has the parameters and the key of its run"),
        ({"params": {}}, "resume has the parameters"),
        ({"optimizer": fnn.adam(0.1)}, "resume has the state of another optimiser"),
        ({"net": fnn.linear(3)}, "are these another network's parameters"),
    ],
)
def test_a_run_of_another_kind_is_not_resumed(options: Any, words: str) -> None:
    half = fit(epochs=1)
    with pytest.raises(ValueError, match=words):
        fit(resume=half, **options)


# ---- patience ----------------------------------------------------------------------------------


def test_patience_watches_the_validation_loss() -> None:
    """Which rises while the training loss falls: of random labels nothing can be learned."""
    labels = RNG.integers(0, 3, 90)
    options = {"net": fnn.models.mlp((64, 3), fnn.relu()), "optimizer": fnn.adam(0.03)}
    fitted = fit(
        X[:60], labels[:60], epochs=60, patience=3, validation=(X[60:], labels[60:]), **options
    )
    assert fitted.status == "converged" and len(fitted.history) < 60
    losses = [row["validation_loss"] for row in fitted.history]
    assert int(np.argmin(losses)) == len(losses) - 4 == fitted.best_epoch - 1
    assert "3 epochs in which the validation loss has not improved on" in fitted.message


def test_without_validation_it_watches_the_training_loss() -> None:
    fitted = fit(epochs=60, patience=2, min_improvement=0.5)
    assert fitted.status == "converged" and len(fitted.history) < 60
    assert "2 epochs in which the training loss has not improved" in fitted.message
    assert "by more than 0.5 of it" in fitted.message


def test_without_patience_it_goes_on() -> None:
    options = {"net": fnn.linear(3), "epochs": 9, "optimizer": fnn.sgd(1e-30)}
    assert len(fit(**options).history) == 9
    assert len(fit(min_improvement=1e-6, **options).history) == 6


# ---- weights -----------------------------------------------------------------------------------


def test_an_example_of_weight_0_counts_for_nothing() -> None:
    """Of a batch, that is: the whole of the data is one batch here."""
    weights = (np.arange(60) % 3 > 0).astype(float)
    kept = weights > 0
    options = {"net": fnn.linear(3), "epochs": 3, "batch_size": 60}
    x, labels = X[:60], LABELS[:60]
    weighted = fit(x, labels, weights=weights, **options)
    fewer = fit(x[kept], labels[kept], **options)
    close(weighted.params, fewer.params)
    for a, b in zip(weighted.history, fewer.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-12)


def test_whole_weights_repeat_examples() -> None:
    times = RNG.integers(1, 4, 60)
    x, labels = X[:60], LABELS[:60]
    options = {"net": fnn.linear(3), "epochs": 2}
    a = fit(x, labels, weights=times, batch_size=60, **options)
    b = fit(np.repeat(x, times, 0), np.repeat(labels, times), batch_size=999, **options)
    close(a.last, b.last)


@pytest.mark.slow
def test_the_loss_of_an_epoch_is_the_weighted_mean() -> None:
    weights = RNG.uniform(0, 5, 60)
    fitted = fit(net=fnn.linear(3), weights=weights, optimizer=fnn.sgd(1e-30), epochs=1)
    y, labels, net = X[:60], LABELS[:60], fnn.linear(3)
    E, _ = LOSS.forward({}, (net.forward(fitted.last, jnp.asarray(y))[0], labels, weights))
    assert fitted.history[0]["loss"] == pytest.approx(float(E), rel=1e-12)


@pytest.mark.parametrize("by_label", ["balanced", {0: 2.0, 1: 1.0, 2: 0.5}, [2.0, 1.0, 0.5]])
def test_class_weights_are_weights_by_label(by_label: Any) -> None:
    labels = np.where(np.arange(60) < 40, 0, np.where(np.arange(60) < 55, 1, 2))
    each = 60 / (3 * np.bincount(labels)) if isinstance(by_label, str) else [2.0, 1.0, 0.5]
    own = RNG.uniform(0.5, 2, 60)
    a = fit(X[:60], labels, class_weights=by_label, weights=own)
    b = fit(X[:60], labels, weights=(own * np.asarray(each)[labels]).astype(np.float32))
    equal(a.params, b.params)


def test_class_weights_of_yes_and_no() -> None:
    options = {"net": fnn.models.logistic_regression(), "loss": fnn.binary_cross_entropy()}
    yes = (LABELS[:60] == 0).astype(float)
    fitted = fit(
        X[:60], yes, class_weights={0: 1.0, 1: 10.0}, diagnostics=True, epochs=2, **options
    )
    assert fitted.diagnostics is not None and fitted.success


@pytest.mark.parametrize(
    "options, words",
    [
        ({"weights": np.ones(59)}, r"weights have shape \(59,\), need one number per example"),
        ({"weights": -np.ones(60)}, "weights hold -1 for example 0, need finite numbers"),
        ({"weights": np.full(60, np.nan)}, "weights hold nan for example 0"),
        ({"weights": ["a"] * 60}, "weights does not become|weights has dtype"),
        ({"class_weights": "balance"}, "class_weights is 'balance', needs 'balanced' or"),
        ({"class_weights": {0: 1.0}}, r"no entry for label 1, need one for each of \[0, 1, 2\]"),
        ({"class_weights": [1.0, 1.0, -1.0]}, r"class_weights are .*, need finite numbers >= 0"),
        ({"class_weights": 2.0}, "needs 'balanced', a mapping from labels or a sequence"),
    ],
)
def test_bad_weights_are_refused(options: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        fit(**options)


def test_weights_need_arrays_and_labels() -> None:
    source = [(X[i], LABELS[i]) for i in range(60)]
    with pytest.raises(TypeError, match="weights are for arrays x and target, got a list"):
        fit(source, weights=np.ones(60))
    with pytest.raises(ValueError, match="class_weights need a target of one label for each"):
        fit(X, X, net=fnn.linear(4), loss=fnn.squared_error(), class_weights="balanced")


# ---- what is fitted ------------------------------------------------------------------------------


def test_predictions_and_figures() -> None:
    fitted = fit(epochs=3, metrics={"accuracy": fnn.accuracy}, validation=TEST)
    logits, p = fitted.predict(X), fitted.predict(X, proba=True)
    np.testing.assert_array_equal(logits, fnn.make_predict(NET)(fitted.params, X))
    np.testing.assert_allclose(p, jax.nn.softmax(logits, -1), rtol=1e-14)
    figures = fitted.evaluate(*TEST)
    best = fitted.history[fitted.best_epoch - 1]
    assert figures == {"loss": best["validation_loss"], "accuracy": best["validation_accuracy"]}
    assert list(fitted.evaluate([(x, t) for x, t in zip(*TEST, strict=True)], metrics={})) == [
        "loss"
    ]
    assert fitted.predict(X[:0]).shape == (0, 3)
    with pytest.raises(TypeError, match="needs a function for each name"):
        fitted.evaluate(*TEST, metrics=[fnn.accuracy])
    with pytest.raises(ValueError, match=r"^evaluate: x and its target need one entry per"):
        fitted.evaluate(TEST[0], TEST[1][1:])
    with pytest.raises(ValueError, match="evaluate: target: labels go from 7 to 9; 3 classes"):
        fitted.evaluate(TEST[0], TEST[1] + 7)
    with pytest.raises(TypeError, match=r"^evaluate: x is a ndarray without a target"):
        fitted.evaluate(TEST[0])


@pytest.mark.parametrize(
    "loss, net, target",
    [
        (fnn.binary_cross_entropy(), fnn.neuron(fnn.identity()), LABELS == 1),
        (fnn.binary_cross_entropy(from_logits=False), fnn.neuron(fnn.logistic()), LABELS == 1),
        (fnn.cross_entropy(), fnn.serial(fnn.linear(3), fnn.softmax()), LABELS),
    ],
    ids=["logits", "probabilities", "classes"],
)
def test_probabilities(loss: fnn.Block, net: fnn.Block, target: np.ndarray) -> None:
    p = np.asarray(fit(X, target, net=net, loss=loss, epochs=1).predict(X, proba=True))
    assert (p > 0).all() and (p < 1).all()


def test_a_regression_has_no_probabilities() -> None:
    fitted = fit(X, X, net=fnn.linear(4), loss=fnn.squared_error(), epochs=1)
    with pytest.raises(ValueError, match=r"squared_error is not a loss of classes.*leave out prob"):
        fitted.predict(X, proba=True)


def test_it_shows_itself() -> None:
    fitted = fit(epochs=2, validation=TEST, metrics={"accuracy": fnn.accuracy})
    assert repr(fitted).startswith("Fitted: finished after 2 epochs; best after epoch ")
    assert "validation accuracy 0." in repr(fitted) and "\n" not in repr(fitted)
    page = fitted._repr_html_()
    assert page.count("<polyline") == 2 and "Fitted: finished" in page
    assert "Fitted: finished after 0 epochs" in fit(epochs=0)._repr_html_()


# ---- where examples are ------------------------------------------------------------------------


def test_a_memory_map_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = np.memmap(tmp_path / "x", X.dtype, "w+", shape=X.shape)
    mapped[:] = X
    put, largest = jax.device_put, [0]

    def watched(tree: Any, *args: Any, **kwargs: Any) -> Any:
        largest[0] = max([largest[0], *(np.size(a) for a in jax.tree.leaves(tree))])
        return put(tree, *args, **kwargs)

    monkeypatch.setattr(jax, "device_put", watched)
    options = {"steps_per_call": 1, "epochs": 2, "weights": np.linspace(0, 1, 90)}
    from_disk = fit(mapped, LABELS, **options)
    assert largest[0] < X.size
    monkeypatch.undo()
    in_memory = fit(X, LABELS, **options)
    close(from_disk.params, in_memory.params)
