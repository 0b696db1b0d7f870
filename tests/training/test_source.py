"""Training from a source: as from arrays, in bounded memory, and bad examples are named."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import fnn
from fnn.block import BlockValueError
from fnn.training.order import orders
from tests.slow import one_of

CE = fnn.softmax_cross_entropy()
X, T = load_digits(return_X_y=True)
X, T = (X[:310] / 16).astype(np.float32), T[:310].astype(np.int32)
NET = fnn.models.mlp((16, 10), fnn.relu(), dropout=0.2)
OPTIONS: dict[str, Any] = {
    "optimizer": fnn.sgd(0.1, 0.9), "batch_size": 32, "epochs": 2, "progress": False,
}  # fmt: skip


class Rows:
    """Takes arrays of indices, as a memory-mapped array does."""

    def __init__(self, x: Any = X, target: Any = T) -> None:
        self.x, self.target = x, target
        self.read: list[int] = []  # how many, in the threads of calls
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> tuple[Any, Any]:
        if threading.current_thread() is not threading.main_thread():
            self.read.append(len(rows))
        return self.x[np.asarray(rows)], self.target[rows]

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class Single(Rows):
    """Takes one integer, as a dataset of PyTorch does, and refuses arrays of them."""

    def __getitem__(self, i: Any) -> tuple[Any, Any]:
        return self.x[range(len(self))[i]], int(self.target[i])


class Cropped(Rows):
    """Takes one integer; would take an array of them too, and cut the wrong axis."""

    def __getitem__(self, i: Any) -> tuple[Any, Any]:
        return self.x.reshape(-1, 8, 8)[i][:6, :6], self.target[i]


def fit(*data: Any, net: fnn.Block = NET, **options: Any) -> fnn.Fitted:
    return fnn.fit(net, CE, *data, **OPTIONS | options)


def losses(fitted: fnn.Fitted) -> list[float]:
    return [row["loss"] for row in fitted.history]


def memory_mapped(folder: Path) -> Rows:
    for name, a in (("x", X), ("t", T)):
        np.save(folder / f"{name}.npy", a)
    return Rows(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xt"))


SOURCES: dict[str, Callable[[Path], Any]] = {
    "rows": lambda folder: Rows(),
    "single": lambda folder: Single(),
    "list": lambda folder: list(zip(X, T, strict=True)),
    "memory-mapped": memory_mapped,
}


@pytest.mark.parametrize("name", one_of(4, SOURCES))
def test_a_source_gives_what_arrays_give_bit_for_bit(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    arrays, streamed = (fit(*data, steps_per_call=8) for data in ((X, T), (source,)))
    jax.tree.map(np.testing.assert_array_equal, streamed.params, arrays.params)
    jax.tree.map(np.testing.assert_array_equal, streamed.state, arrays.state)
    assert losses(streamed) == losses(arrays)
    assert streamed.best_epoch == arrays.best_epoch


def test_a_function_of_one_example_is_not_given_many() -> None:
    net = fnn.serial(flat=fnn.flatten(), out=fnn.linear(10))
    arrays = fit(X.reshape(-1, 8, 8)[:, :6, :6], T, net=net, steps_per_call=8)
    jax.tree.map(np.testing.assert_array_equal, fit(Cropped(), net=net).params, arrays.params)


def test_whole_epochs_of_arrays_are_the_same_up_to_rounding() -> None:
    arrays, streamed = fit(X, T), fit(Rows())
    assert losses(streamed) == pytest.approx(losses(arrays), rel=1e-6)
    np.testing.assert_allclose(
        streamed.params["out"]["w"], arrays.params["out"]["w"], rtol=1e-5, atol=1e-6
    )


def test_a_pair_of_arrays_is_no_source() -> None:
    assert losses(fit((X, T))) == losses(fit(X, T))


def test_a_source_for_validation_and_metrics() -> None:
    options: dict[str, Any] = {"metrics": {"accuracy": fnn.accuracy}, "steps_per_call": 8}
    arrays = fit(X[:200], T[:200], validation=(X[200:], T[200:]), **options)
    held_out = Rows(X[200:], T[200:])
    streamed = fit(Rows(X[:200], T[:200]), validation=held_out, **options)
    for mine, other in zip(streamed.history, arrays.history, strict=True):
        assert mine["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-6)
        assert mine["validation_accuracy"] == other["validation_accuracy"]
    jax.tree.map(np.testing.assert_array_equal, streamed.params, arrays.params)
    assert max(held_out.read) == 32


@pytest.mark.slow
def test_memory_is_bounded_and_epochs_are_told() -> None:
    source = Rows()
    fit(source, batch_size=8, validation=(X[:5], T[:5]))
    assert max(source.read) == 8 * 8 and sum(source.read) == 2 * 310
    assert source.epochs == [1, 2]
    source = Rows()
    fit(source, batch_size=8, steps_per_call=2, validation=(X[:5], T[:5]))
    assert max(source.read) == 2 * 8


def test_one_call_is_read_ahead() -> None:
    """While a call is looked at, the next examples are read, and no later ones."""
    source, calls = Rows(), []

    class Progress:
        def __call__(self, row: Any, left: float) -> None:
            assert left >= 0

        def within(self, epoch: int, part: float, left: float) -> None:
            calls.append(part)
            assert 0 < part <= 1 and left >= 0
            ahead, until = min(len(calls) + 1, 5), time.monotonic() + 60
            while len(source.read) < ahead and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.05)
            assert len(source.read) == ahead

    fit(source, steps_per_call=2, epochs=1, validation=(X[:5], T[:5]), progress=Progress())
    assert len(calls) == 5 and calls[-1] == 1


@pytest.mark.slow
def test_other_dtypes_and_tuples() -> None:
    wide = fit(Rows(X.astype(np.float64), T.astype(np.int64)), dtype=jnp.bfloat16, epochs=1)
    assert wide.params["out"]["w"].dtype == jnp.float32
    net = fnn.graph(
        ("a", "b"), [("sum", fnn.add(), ("a", "b")), ("out", fnn.linear(10), "sum")], "out"
    )
    pairs = [((x, x), t) for x, t in zip(X, T, strict=True)]
    arrays = fit((X, X), T, net=net, steps_per_call=8)
    jax.tree.map(np.testing.assert_array_equal, fit(pairs, net=net).params, arrays.params)


@pytest.mark.slow
def test_diagnostics_of_a_source() -> None:
    parts = {"validation": Rows(X[250:], T[250:]), "epochs": 3}
    run = fit(Rows(X[:250], T[:250]), diagnostics=True, **parts)
    plain = fit(Rows(X[:250], T[:250]), **parts)
    jax.tree.map(np.testing.assert_array_equal, run.params, plain.params)
    assert run.diagnostics is not None and run.diagnostics.findings() == []
    assert run.diagnostics.data.n_validation == 60
    assert "validation_accuracy" in run.history[0]
    order = np.argsort(T, kind="stable")
    by_label = fit(Rows(X[order], T[order]), diagnostics=True, epochs=1).diagnostics
    assert by_label is not None and by_label.findings()[0].name == "unshuffled labels"


@pytest.mark.slow
def test_a_source_that_diverges_and_an_interrupt() -> None:
    for steps in (1, 3):
        with pytest.warns(RuntimeWarning, match="first non-finite value"):
            fitted = fit(Rows(), optimizer=fnn.sgd(1e38), steps_per_call=steps)
        assert fitted.status == "diverged"
        assert all(np.isfinite(a).all() for a in jax.tree.leaves((fitted.params, fitted.state)))
        prediction = fnn.make_predict(NET)(fitted.params, X)
        assert np.isfinite(CE.forward({}, (prediction, T))[0])

    class Stop:
        def __call__(self, row: Any, left: float) -> None: ...

        def within(self, epoch: int, part: float, left: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    fitted = fit(Rows(), steps_per_call=3, progress=Stop())
    assert (fitted.status, fitted.message) == ("interrupted", "by Ctrl-C in epoch 2")
    assert len(fitted.history) == 1 and np.isfinite(fitted.params["out"]["w"]).all()


def changed(a: np.ndarray, i: int, value: Any) -> np.ndarray:
    a = a.copy()
    a[i] = value
    return a


class Failing(Rows):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def __getitem__(self, rows: Any) -> tuple[Any, Any]:
        if self.at in np.atleast_1d(rows):
            raise OSError("the disk is gone")
        return super().__getitem__(rows)


PAIRS = list(zip(X, T, strict=True))
BAD: dict[str, tuple[Any, str]] = {
    "nan": (
        Rows(changed(X, 77, np.nan)),
        "x has 64 values that are NaN .* the first in example 77",
    ),
    "label": (Rows(X, changed(T, 77, 12)), "target of example 77: labels go from 12 to 12; 10 cl"),
    "first label": (Rows(X, changed(T, 0, -1)), "target of example 0: labels go from -1 to -1"),
    "shape": (
        [*PAIRS[:77], (X[0, :63], 3)],
        r"example 77 of .* came as \('float\[63\]', 'int\[\]",
    ),
    "pair": ([*PAIRS[:77], (X[0], 3, 4)], "gave a tuple, needs a pair"),
    "float labels": ([*PAIRS[:77], (X[0], 3.0)], "example 77 .*'float"),
    "names": ([(x, "cat") for x in X], "turn names of classes into labels"),
    "no pair": (Rows(X, T).x.tolist(), "fit: x: its source gave a list, needs a pair"),
    "empty": (Rows(X[:0], T[:0]), "x is empty: the source has length 0"),
    "bytes": (Rows((16 * X).astype(np.uint8)), "x has dtype uint8 and needs a floating"),
    "array": (X, "x is a ndarray without a target, needs x and target, or a source"),
    "number": (3, "x is a int without a target"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_examples_are_named(case: str) -> None:
    source, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        fit(source)


def test_an_error_of_the_source_says_which_examples_it_was_about() -> None:
    with pytest.raises(OSError, match="the disk is gone") as caught:
        fit(Failing(77), steps_per_call=1)
    assert "fit: x: reading example 77 of its source" in caught.value.__notes__
    with pytest.raises(OSError, match="the disk is gone"):
        fit(Failing(0))  # whether it takes one integer or many


def test_targets_that_are_bad_only_together_are_refused() -> None:
    def validate(x: Any) -> None:
        if len(x[1]) > 1:
            raise BlockValueError("mine", "two are too many")

    loss = CE._replace(rules=CE.rules._replace(validate=validate))
    with pytest.raises(ValueError, match="mine: target of examples 0, 309: two are"):
        fnn.fit(NET, loss, Rows(), **OPTIONS)


def test_bad_validation_examples_are_named() -> None:
    held_out = Rows(X, changed(T, 77, 12))
    with pytest.raises(ValueError, match="validation target of example 77: labels go from 12"):
        fit(X, T, validation=held_out)
    with pytest.raises(ValueError, match="x has 9 features"):
        fit(X, T, validation=Rows(X[:, :9]))
    with pytest.raises(ValueError, match=r"validation x has 64 .* example 77"):
        fit(X, T, validation=Rows(changed(X, 77, np.inf)))


class FailingLater(Rows):
    """A file that cannot be read any more after some reads."""

    reads = 0

    def __getitem__(self, rows: Any) -> tuple[Any, Any]:
        self.reads += np.ndim(rows) > 0 and len(rows) > 2
        if self.reads > 30 and 77 in np.atleast_1d(rows):
            raise OSError("picture_77.png: the disk is gone")
        return super().__getitem__(rows)


class Growing(Rows):
    extra = 0

    def __len__(self) -> int:
        return super().__len__() + self.extra

    def set_epoch(self, epoch: int) -> None:
        self.extra = 10 * (epoch == 2)


class Offline(Rows):
    def set_epoch(self, epoch: int) -> None:
        if epoch == 2:
            raise RuntimeError("offline")


@pytest.mark.parametrize("with_validation", [False, True])
def test_a_source_that_fails_later_keeps_what_was_learned(with_validation: bool) -> None:
    held_out = (X[:50], T[:50]) if with_validation else None
    with pytest.warns(
        RuntimeWarning, match=r"fit stopped in epoch \d: OSError: picture_77.*reading example 77 of"
    ):
        fitted = fit(
            FailingLater(), epochs=50, batch_size=64, steps_per_call=1, validation=held_out
        )
    assert fitted.status == "interrupted" and "picture_77.png" in fitted.message
    assert fitted.history and not fitted.success
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    assert fitted.best_epoch >= len(fitted.history) - 2  # the last cannot be evaluated
    again = fit(Rows(), epochs=1, batch_size=64, steps_per_call=1, resume=fitted, key=None)
    assert len(again.history) == len(fitted.history) + 1


def test_ctrl_c_while_the_last_parameters_are_evaluated() -> None:
    """They are kept: the loss fell until then."""

    class Interrupted(Rows):
        trained = False

        def __getitem__(self, rows: Any) -> tuple[Any, Any]:
            if self.trained:
                raise KeyboardInterrupt
            return super().__getitem__(rows)

    def end(row: dict[str, float], left: float) -> None:
        source.trained = row["epoch"] == 2

    source = Interrupted()
    fitted = fit(source, progress=end)
    assert (fitted.status, fitted.message) == ("interrupted", "by Ctrl-C at its end")
    assert fitted.best_epoch == 2 and fitted.params is fitted.last


def test_a_source_whose_length_changes_is_noticed() -> None:
    with pytest.warns(RuntimeWarning, match="has 320 examples, had 310 when training began"):
        fitted = fit(Growing(), epochs=5)
    assert len(fitted.history) == fitted.best_epoch == 1
    with pytest.warns(RuntimeWarning, match="RuntimeError: offline .*its source, before epoch 2"):
        fitted = fit(Offline(), epochs=5)
    assert len(fitted.history) == fitted.best_epoch == 1


def test_validation_that_fails_later() -> None:
    with pytest.warns(RuntimeWarning, match="fit: validation x: reading example 77 of"):
        fitted = fit(X, T, epochs=50, batch_size=64, validation=FailingLater())
    assert fitted.history and fitted.status == "interrupted"


def test_a_hundred_million_rows_train_in_constant_memory(tmp_path: Path) -> None:
    n = 100_000_000
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(n, 4))  # sparse: no disk is used
    labels = np.memmap(tmp_path / "labels", np.int8, "w+", shape=(n,))
    used: list[int] = []

    class Progress:
        def __call__(self, row: Any, left: float) -> None: ...

        def within(self, epoch: int, part: float, left: float) -> None:
            status = Path("/proc/self/status").read_text()
            used.append(int(status.partition("RssAnon:")[2].split()[0]))  # kB, without files
            if len(used) == 60:
                raise KeyboardInterrupt

    fitted = fnn.fit(fnn.linear(2), CE, x, labels, batch_size=1024, progress=Progress())
    assert fitted.status == "interrupted" and len(used) == 60
    assert used[-1] - used[10] < 20_000  # an order of all rows would be 400 MB


def test_an_order_that_is_computed_is_a_permutation_and_differs_by_epoch() -> None:
    for n in (1, 2, 3, 17, 256, 1000):
        first, second = itertools.islice(orders([0, 1], n, whole=0), 2)
        assert sorted(first[0:n].tolist()) == list(range(n))
        pieces = np.concatenate([first[i : min(i + 7, n)] for i in range(0, n, 7)])
        assert np.array_equal(pieces, first[0:n])
        assert n < 17 or not np.array_equal(first[0:n], second[0:n])
    many = next(orders([0, 1], 10**8))[0:200_000]
    assert abs(np.corrcoef(many[:-1], many[1:])[0, 1]) < 0.01
    counts = np.histogram(many, 20, (0, 10**8))[0]
    assert abs(counts - 10_000).max() < 500  # five standard deviations
