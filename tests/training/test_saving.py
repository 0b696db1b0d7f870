"""fit(checkpoint=folder): what was stopped goes on, bit for bit, and nothing else does."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import fnn
from fnn.training.saving import quietly
from tests.slow import one_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
LABELS = (X @ RNG.normal(size=(4, 3))).argmax(1)
NET, LOSS = fnn.serial(a=fnn.linear(4), b=fnn.tanh(), c=fnn.linear(3)), fnn.softmax_cross_entropy()
TEST = (X[50:], LABELS[50:])
NEVER = 1e9  # seconds between saves, other than the last


def fit(*data: Any, **options: Any) -> fnn.Fitted:
    data = data or (X[:50], LABELS[:50])
    options = {"net": NET, "loss": LOSS, "batch_size": 16, "progress": False} | options
    return fnn.fit(options.pop("net"), options.pop("loss"), *data, **options)


class Stops:
    """Ends training after some calls, as Ctrl-C does or otherwise."""

    def __init__(self, calls: int, how: Any = signal.SIGINT) -> None:
        self.left, self.how = calls, how

    def __call__(self, row: dict[str, float], left: float) -> None:
        assert left >= 0

    def within(self, epoch: int, part: float, left: float) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.how)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Also where the tests run in the background, and inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: v for name, v in row.items() if name != "seconds"} for row in history]


def same(a: fnn.Fitted, b: fnn.Fitted) -> None:
    for name in ("params", "last", "state", "checkpoint"):
        one, other = getattr(a, name), getattr(b, name)
        if name == "checkpoint":
            one, other = one._replace(history=[]), other._replace(history=[])
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for u, v in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            if hasattr(u, "dtype") and jnp.issubdtype(u.dtype, jax.dtypes.prng_key):
                u, v = jax.random.key_data(u), jax.random.key_data(v)
            u, v = np.asarray(u), np.asarray(v)
            assert u.dtype == v.dtype and u.tobytes() == v.tobytes(), name
    assert json.dumps(without_time(a.history)) == json.dumps(without_time(b.history))
    assert (a.status, a.message, a.best_epoch) == (b.status, b.message, b.best_epoch)
    assert str(a.diagnostics) == str(b.diagnostics)
    if a.diagnostics is not None and b.diagnostics is not None:
        for name in ("watched", "peaks", "spread", "update", "accuracy"):
            of_a, of_b = getattr(a.diagnostics, name), getattr(b.diagnostics, name)
            np.testing.assert_array_equal(of_a, of_b)


# ---- going on ----------------------------------------------------------------------------------

RICH = fnn.serial(
    a=fnn.linear(5), norm=fnn.batch_norm(), act=fnn.tanh(), drop=fnn.dropout(0.2), out=fnn.linear(3)
)


def falling(step: jax.Array) -> jax.Array:
    return 0.1 / (1 + step.astype(jnp.float64))


def nan(prediction: Any, target: Any) -> float:
    return float("nan")


EXPLODES = fnn.Block(  # w, from 0 on, grows by 1 a step; y is infinite from 6 on
    lambda key, x: {"w": jnp.zeros(())},
    lambda params, x, key=None: (jnp.where(params["w"] >= 6, jnp.inf, params["w"] * x), x),
    lambda params, x, dy: ({"w": -jnp.ones(())}, dy),
    "explodes",
)
VARIANTS: dict[str, dict[str, Any]] = {
    "statistics, dropout, an average": {
        "net": RICH, "optimizer": fnn.averaged(fnn.adam(falling), 0.9), "validation": TEST,
    },
    "the best is past, diagnostics, a metric that is NaN, weights, another generator": {
        "net": RICH, "key": jax.random.key(7, impl="rbg"), "optimizer": fnn.sgd(9.0, 0.9),
        "validation": TEST, "diagnostics": True, "metrics": {"nan": nan},
        "weights": np.arange(50.0),
    },
    "a source, Optax's state with a key in it, bfloat16": {
        "steps_per_call": 1, "optimizer": optax.chain(
            optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.clip(1.0), optax.adamw(0.01)
        ),
        "dtype": "bfloat16",
    },
    "frozen, float16": {
        "net": fnn.serial(a=fnn.freeze(fnn.linear(4)), b=fnn.relu(), c=fnn.linear(3)),
        "dtype": "float16", "microbatches": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", one_of(9, VARIANTS))
@jax.numpy_dtype_promotion("standard")  # Optax mixes dtypes
def test_three_calls_are_one(name: str, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, and at its end; with every kind of state."""
    options = {"epochs": 3, "steps_per_call": 2} | VARIANTS[name]
    examples = [(X[i], LABELS[i]) for i in range(50)]
    data: Any = (examples,) if name.startswith("a source") else (X[:50], LABELS[:50])
    whole = fit(*data, **options)
    assert whole.best_epoch < 3 or not name.startswith("the best is past")
    options |= {"checkpoint": tmp_path, "save_every": NEVER}
    calls = 4 if name.startswith("a source") else 2  # in an epoch
    stopped = fit(*data, **options, progress=Stops(calls + 1))
    assert stopped.status == "interrupted" and len(stopped.history) == 1
    stopped = fit(*data, **options, progress=Stops(calls + 1))
    assert stopped.status == "interrupted" and len(stopped.history) == 2
    same(whole, fit(*data, **options))


def test_a_checkpoint_before_an_infinite_loss(tmp_path: Path) -> None:
    """What is kept is a step earlier than that checkpoint."""
    options: dict[str, Any] = {"net": EXPLODES, "loss": fnn.squared_error(), "steps_per_call": 1}
    options |= {"optimizer": fnn.sgd(1.0), "epochs": 3}
    x = np.ones((50, 1))
    with pytest.warns(RuntimeWarning, match="epoch 2, step 3: first non-finite"):
        whole = fit(x, 0 * x, **options)
    saved = {"checkpoint": tmp_path, "save_every": 0}
    assert fit(x, 0 * x, progress=Stops(6), **saved, **options).status == "interrupted"
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="epoch 2, step 3: first non-finite"):
            same(whole, fit(x, 0 * x, **saved, **options))


def test_more_epochs_go_on_and_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": str(tmp_path / "new" / "folder"), "patience": 3}
    options |= {"optimizer": fnn.sgd(1e-30), "min_improvement": 1e-3}
    three = fit(epochs=3, **options)
    assert three.status == "finished" and three.message == "after 3 epochs"
    converged = fit(epochs=9, **options)
    assert converged.status == "converged" and len(converged.history) == 4
    seen: list[int] = []
    again = fit(epochs=9, on_epoch=lambda *_: seen.append(1), **options)
    same(converged, again)
    assert not seen and again.history[-1]["seconds"] == converged.history[-1]["seconds"]
    assert len([*(tmp_path / "new" / "folder").iterdir()]) == 2
    assert len(fit(epochs=9, **options | {"patience": 4}).history) == 5
    with pytest.raises(ValueError, match=r"epochs is 2, but the checkpoint in .* is of 5 epochs"):
        fit(epochs=2, **options)


def test_sigterm_saves_and_ends_the_process_with_143(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 3, "checkpoint": tmp_path, "save_every": NEVER}
    with pytest.raises(SystemExit) as ended:
        fit(**options, progress=Stops(2, signal.SIGTERM))
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    same(fit(epochs=3), fit(**options))


@pytest.mark.slow
def test_what_on_epoch_adds_is_kept(tmp_path: Path) -> None:
    def add(params: Any, state: Any, history: list[dict[str, Any]]) -> None:
        history[-1]["extra"] = np.float32(0.1) if len(history) == 1 else 1

    fit(epochs=1, checkpoint=tmp_path, on_epoch=add)
    history = fit(epochs=2, checkpoint=tmp_path, on_epoch=add).history
    assert [row["extra"] for row in history] == [float(np.float32(0.1)), 1]
    with pytest.raises(TypeError, match=r"on_epoch added 'extra' to the history: \[1\], which a"):
        fit(epochs=3, checkpoint=tmp_path, on_epoch=lambda p, s, h: h[-1].update(extra=[1]))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_moved_and_a_copied_folder_go_on(tmp_path: Path) -> None:
    fit(epochs=1, checkpoint=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "c")
    for name in "bc":
        assert len(fit(epochs=2, checkpoint=tmp_path / name).history) == 2


@pytest.mark.slow
@pytest.mark.parametrize("lie", [False, True], ids=["from the host", "on the devices"])
def test_devices_may_come_and_go(lie: bool, tmp_path: Path) -> None:
    """Of examples that are split over them: equal but for rounding."""
    options: dict[str, Any] = {"epochs": 3, "steps_per_call": 2, "optimizer": fnn.adam(0.01)}

    def on(devices: int, **more: Any) -> fnn.Fitted:
        sharding = NamedSharding(jax.make_mesh((devices,), ("data",)), PartitionSpec("data"))
        data: Any = X[:48], LABELS[:48]
        data = jax.device_put(data, sharding) if lie else data
        return fit(*data, sharding=sharding, **options, **more)

    whole = on(1) if lie else fit(X[:48], LABELS[:48], **options)
    options |= {"checkpoint": tmp_path, "save_every": NEVER}
    for devices in (2, 8):
        assert on(devices, progress=Stops(3)).status == "interrupted"
    fitted = on(4)
    assert len(jax.tree.leaves(fitted.last)[0].sharding.device_set) == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14),
        (whole.params, whole.state), (fitted.params, fitted.state),
    )  # fmt: skip


# ---- what does not go on -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a run."""
    folder = tmp_path_factory.mktemp("made")
    with jax.enable_x64(True):
        for epochs in (1, 2):
            fit(epochs=epochs, checkpoint=folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "network": ({"net": fnn.serial(a=fnn.linear(4), b=fnn.relu(), c=fnn.linear(3))},
                r"the network: got b\(a\): relu\(\), but the checkpoint in .* with b\(a\): tanh"),
    "size": ({"net": fnn.serial(a=fnn.linear(5), b=fnn.tanh(), c=fnn.linear(3))},
             r"the network: got a\(x\): linear\(5\), but .* a\(x\): linear\(4\)"),
    "data": ({"data": (X[:40], LABELS[:40])},
             "the number of examples: got 40, but the checkpoint in .* is of a run with 50"),
    "dtype": ({"dtype": "float32"}, r"one example: got float32\[4\], .* with float64\[4\], int"),
    "batch size": ({"batch_size": 8}, "batch_size: got 8, but .* of a run with 16"),
    "key": ({"key": jax.random.key(1)}, r"key: got \[0, 1\], but .* \[0, 0\]; give the same again"),
    "optimizer": ({"optimizer": fnn.sgd(0.2)}, r"optimizer: got sgd\(0.2\), but .* sgd\(0.1\)"),
    "validation": ({"validation": TEST}, "the number of validation examples: got 10, but .* 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", one_of(3, OTHERS))
def test_another_run_is_refused(made: Path, name: str) -> None:
    options, words = OTHERS[name]
    before = sorted(made.rglob("*"))
    with pytest.raises(ValueError, match=rf"^fit: {words}"):
        fit(*options.get("data", ()), epochs=3, checkpoint=made, **_without(options, "data"))
    assert sorted(made.rglob("*")) == before


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k != name}


def test_it_is_one_run_or_another(made: Path) -> None:
    with pytest.raises(ValueError, match="resume and checkpoint both say what to go on from"):
        fit(checkpoint=made, resume=fit(epochs=0))


@pytest.mark.slow
def test_other_examples_of_the_same_form_are_noticed(copied: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the examples changed since the checkpoint in .* saved"):
        fit(X[5:55], LABELS[5:55], epochs=3, checkpoint=copied)
    options = {"epochs": 1, "checkpoint": tmp_path / "optax"}
    fit(optimizer=optax.sgd(0.1), **options)
    with pytest.warns(UserWarning, match="what the optimizer computes and microbatches changed si"):
        fit(optimizer=optax.sgd(0.2), microbatches=2, **options)


# Of several reads or writes that fail, Orbax waits for the first.
IMPATIENT = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


# ---- folders and disks that do not do ----------------------------------------------------------


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=r"checkpoint .* holds photos, which is not fit's"):
        fit(checkpoint=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(7, args=ocp.args.StandardSave({"w": np.ones(3)}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ValueError, match=r"7 cannot be read as a checkpoint .* give another folder"
    ):
        fit(checkpoint=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_orbax_says_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where its logger was made before its own kind of logger was known."""
    log = compile("logger.error('a line of Orbax')", "site-packages/orbax/checkpoint.py", "exec")
    logger = logging.getLogger("absl")
    logger.addHandler(handler := logging.StreamHandler(sys.stdout))
    late = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    with quietly():
        exec(log, {"logger": logger})
        sys.unraisablehook(late)  # type: ignore[arg-type]
        logger.error("a line of another")
    logger.removeHandler(handler)
    assert capsys.readouterr().out == "a line of another\n"


@IMPATIENT
@pytest.mark.parametrize("how", one_of(2, ["cut", "gone"]))
@pytest.mark.parametrize(
    "file", one_of(3, ["arrays/d/*", "arrays/manifest.ocdbt", "facts/metadata"])
)
def test_a_truncated_checkpoint(copied: Path, file: str, how: str) -> None:
    path = max((copied / "2").glob(file), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    if how == "gone":
        path.unlink()
    with pytest.raises(ValueError, match=r"2 cannot be read as .* move it away to go on from 1"):
        fit(epochs=3, checkpoint=copied)
    shutil.rmtree(copied / "2")
    assert len(fit(epochs=2, checkpoint=copied).history) == 2


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"checkpoint .* cannot be written to \(Not a directory\)"):
        fit(checkpoint=file / "inside")
    with pytest.raises(ValueError, match=r"cannot be written to \(File exists\); name a folder"):
        fit(checkpoint=file)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() or subprocess.call(mounted, stderr=-3):
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.check_call(["umount", str(folder)])


@IMPATIENT
@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while(disk: Path) -> None:
    """The run goes on, the checkpoint before is intact, and the next save is as good as any."""
    fit(epochs=1, checkpoint=disk / "run")
    filled, before = disk / "filled", sorted((disk / "run").rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        filled.write_bytes(bytes(500_000))
    with pytest.warns(UserWarning, match=r"could not be written into .*/run \(No space left on de"):
        two = fit(epochs=2, checkpoint=disk / "run")
    assert two.status == "finished" and len(two.history) == 2
    assert sorted((disk / "run").rglob("*")) == before
    filled.unlink()
    same(fit(epochs=3), fit(epochs=3, checkpoint=disk / "run"))


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(disk: Path) -> None:
    fit(epochs=1, checkpoint=disk)
    remount = ["mount", "-o", "remount,ro", str(disk)]

    def protect(params: Any, state: Any, history: Any) -> None:
        subprocess.check_call(remount)

    with pytest.warns(UserWarning, match=r"could not be written into .* \(Read-only file system\)"):
        assert fit(epochs=2, checkpoint=disk, on_epoch=protect).success
    with pytest.raises(ValueError, match=r"cannot be written to \(Read-only file system\); name"):
        fit(epochs=2, checkpoint=disk)
    subprocess.check_call(["mount", "-o", "remount,rw", str(disk)])
    same(fit(epochs=2), fit(epochs=2, checkpoint=disk))


def test_where_no_disk_can_be_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orbax.checkpoint as ocp

    fit(epochs=1, checkpoint=tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.warns(UserWarning, match=r"\(No space left on device\); those before are as they"):
        fit(epochs=2, checkpoint=tmp_path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_without_orbax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(
        ModuleNotFoundError, match="checkpoint needs Orbax: pip install orbax-check"
    ):
        fit(checkpoint=tmp_path)
