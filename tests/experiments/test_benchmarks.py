"""The contenders of experiments/benchmarks train the same network in the same way."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments.benchmarks import __main__ as command
from experiments.benchmarks import accelerators, mlp, profile, report
from experiments.benchmarks.cases import Case, Ids, passes
from experiments.benchmarks.peers import CONTENDERS, Problem, Trainer, Weights, he_normal

pytestmark = pytest.mark.as_users
PROBLEM = Problem((20, 16, 8, 4), batch=32, threads=1)
NEEDS = {"torch.compile": "torch", "scikit-learn": "sklearn"}  # name: module, where they differ
# torch.compile needs a C++ compiler and half a minute; it has PyTorch's code.
TESTED = [name for name, c in CONTENDERS.items() if name != "torch.compile" and c.trains]


def train(name: str, prepare: bool = False) -> tuple[Trainer, np.ndarray]:
    """Two epochs over 90 examples, in batches of 32, 32 and 26; the last epoch's losses."""
    pytest.importorskip(NEEDS.get(name, name))
    rng = np.random.default_rng(1)
    x = rng.random((90, 20), np.float32)
    target = x[:, :4].argmax(1).astype(np.int32)
    trainer = CONTENDERS[name].make(PROBLEM)
    weights = he_normal(PROBLEM.sizes)
    for _ in range(2):  # starting anew forgets weights and momentum
        trainer.start(weights)
        if prepare:
            trainer.prepare(90, 50)
        trainer.load(x, target, x[:50], target[:50])
        for _ in range(2):
            losses = trainer.epoch(rng.permutation(90).astype(np.int32))
        rng = np.random.default_rng(2)
    for (w, b), (w0, b0) in zip(weights, he_normal(PROBLEM.sizes), strict=True):
        assert (w == w0).all() and (b == b0).all(), "the initial weights were written to"
    return trainer, losses


def largest_difference(a: Weights, b: Weights) -> float:
    return max(
        float(np.abs(p - q).max())
        for layer_a, layer_b in zip(a, b, strict=True)
        for p, q in zip(layer_a, layer_b, strict=True)
    )


@pytest.fixture(scope="module")
def fnn_trained() -> tuple[Trainer, np.ndarray]:
    return train("fnn")


@pytest.mark.parametrize("name", [name for name in TESTED if name != "fnn"])
def test_contender_trains_as_fnn_does(name: str, fnn_trained: tuple[Trainer, np.ndarray]) -> None:
    fnn, expected = fnn_trained
    trainer, losses = train(name)
    assert largest_difference(trainer.weights(), fnn.weights()) < 1e-4
    assert trainer.accuracy() == pytest.approx(fnn.accuracy(), abs=0.021)
    if len(losses) > 1:
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
    else:
        assert losses[0] == pytest.approx(np.average(expected, weights=[32, 32, 26]), rel=2e-3)


def test_a_bound_computes_every_product() -> None:
    trainer = CONTENDERS["products"].make(PROBLEM)
    trainer.start(he_normal(PROBLEM.sizes))
    x, target = np.ones((160, 20), np.float32), np.zeros(160, np.int32)
    trainer.load(x, target, x, target)
    trainer.epoch(np.arange(160, dtype=np.int32))
    program = trainer.compiled.as_text()  # type: ignore[attr-defined]  # of a JaxTrainer
    assert program.count(" while(") == 1
    assert len(re.findall(r"= \S+ dot\(", program)) == 3 + 3 + 2


def test_training_moved_the_weights(fnn_trained: tuple[Trainer, np.ndarray]) -> None:
    assert largest_difference(fnn_trained[0].weights(), he_normal(PROBLEM.sizes)) > 1e-2
    memory = fnn_trained[0].temporary_bytes()
    assert memory is not None and memory > 0


def test_compiling_ahead_changes_nothing(fnn_trained: tuple[Trainer, np.ndarray]) -> None:
    prepared, losses = train("fnn", prepare=True)
    assert largest_difference(prepared.weights(), fnn_trained[0].weights()) == 0
    np.testing.assert_array_equal(losses, fnn_trained[1])


def test_flops_leave_out_the_first_input_gradient() -> None:
    assert Problem((5, 3, 2), 1).flops(10) == 10 * (4 * 15 + 6 * 6)


def test_disagreements_name_the_contender() -> None:
    losses = np.linspace(2, 1, 25)
    first = {
        "fnn": (losses, 0.9),
        "jax": (losses * 1.001, 0.901),
        "torch": (losses * np.linspace(1, 1.1, 25), 0.9),
        "scikit-learn": (np.array([losses.mean() * 1.02]), 0.9),
        "flax": (losses * np.nan, 0.8),
    }
    text = "\n".join(mlp.disagreements("net", first, batch=4, examples=100))
    assert "jax" not in text
    assert "torch's loss differs" in text and "scikit-learn's loss differs" in text
    assert "flax's loss differs" in text and "flax's test accuracy" in text


@pytest.mark.slow
def test_a_missing_library_costs_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(problem: Problem) -> Trainer:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setitem(CONTENDERS, "torch", CONTENDERS["torch"]._replace(make=missing))
    monkeypatch.setitem(mlp.NETWORKS, "20-16-4", 32)
    x, target = np.ones((70, 20), np.float32), np.zeros(70, np.int32)
    rows = [mlp.Row("20-16-4", name) for name in ("fnn", "jax", "torch")]
    measured = mlp.Measured(rows)
    problem = mlp.problem_of("20-16-4")
    data = (x, target, x, target)
    options = mlp.Options(repeats=2)
    mlp.measure_epochs(problem, data, rows, measured, options, lambda what, units: None)

    table = measured.table(examples=70)
    assert table.rows[0][3] == "1.00"
    assert table.rows[2][2] == "not installed: pip install -e '.[bench]'"
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(table.markdown().splitlines()) == 2 + 3
    assert not measured.warnings


CASES = accelerators.cases(accelerators.Options(batch=1, rows=3))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_block_is_timed_beside_its_own_formula(case: Case) -> None:
    case = case._replace(inputs=tuple(map(smaller, case.inputs)))
    x = case.drawn("float32")
    params = case.block.init(jax.random.key(1), x)
    y = jax.eval_shape(case.block.forward, params, x)[0]
    dy = jax.tree.map(lambda v: jax.random.normal(jax.random.key(2), v.shape), y)
    got, expected = (jax.jit(f)(params, x, dy) for f in passes(case).values())
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, got, expected)


def smaller(given: Any) -> Any:
    """Pictures of fewer pixels, with as many channels."""
    if isinstance(given, Ids):
        return given
    return (given[0], *(min(n, 15) for n in given[1:-1]), given[-1])


SMALL = {
    name: network
    for name, network in accelerators.networks(4, 1).items()
    if not name.startswith("GoogLeNet")  # which takes long
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_compared_with_its_own_formula(name: str) -> None:
    network = SMALL[name]
    (_, x, target), steps = accelerators.step_pair(network, "float32")
    params = jax.jit(network.net.init)(jax.random.key(0), x)
    x, target = jax.random.normal(jax.random.key(1), x.shape), jnp.zeros(target.shape, int)
    got, expected = (jax.jit(step)(params, x, target) for step in steps)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, got, expected)


def test_a_profile_names_the_kinds_of_work() -> None:
    net = fnn.serial(conv=fnn.conv(4, 3), act=fnn.relu(), flat=fnn.flatten(), out=fnn.linear(2))
    x = jnp.ones((2, 8, 8, 1))
    params = net.init(jax.random.key(0), x)
    step = fnn.value_and_grad(net, fnn.softmax_cross_entropy())
    arguments = params, x, jnp.array([0, 1])
    work = profile.profile(jax.jit(step).lower(*arguments).compile(), arguments, 1)
    assert min(work.values()) > 0
    # Small convolutions may be fused with what follows; both kinds of products are always there.
    assert {
        "convolutions: products for dw", "products of 1x1 convolutions and linear layers"
    } <= work.keys() <= {*profile.KINDS, "other"}  # fmt: skip


def test_record_replaces_its_own_section_alone(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    report.record(path, "mlp, CPU", "first")
    report.record(path, "mlp, GPU", "other")
    report.record(path, "mlp, CPU", "second", "### inside\n")
    text = re.sub(r"\d{4}-\d\d-\d\d; ", "", path.read_text())
    assert text == "# Benchmarks\n\n## mlp, CPU\n\nsecond\n\n### inside\n\n## mlp, GPU\n\nother\n"
    assert path.read_text().count("; ") == 2  # each has its date


def test_command_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert "mlp" in capsys.readouterr().out
    assert command.main(["unknown"]) == 2
