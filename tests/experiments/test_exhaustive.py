"""Every bfloat16 and float16 through every function; a dense sample of float32; the sweep itself.

The whole of float32 takes minutes a function: ``python -m experiments.selftest exhaustive``.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import fnn
from experiments.selftest import accuracy_page, exhaustive, loss_search
from experiments.selftest.peers import BLOCKS
from experiments.selftest.references import REFERENCES, exact, exact_functions, zero_of
from experiments.selftest.sweep import Record, Sweep, merged, started, sweep
from experiments.selftest.verify import SPECIAL, verify
from fnn.check import ulps
from fnn.check.all_floats import spread
from fnn.check.report import CheckError

each = pytest.mark.parametrize("name", BLOCKS)


@pytest.fixture(autouse=True)
def as_users_compile():
    """float32 by default, unlike conftest.py."""
    with jax.enable_x64(False):
        yield


@each
def test_every_16_bit_number(name):
    for dtype in ("bfloat16", "float16"):
        job = Sweep(name, dtype, peer=False)
        assert job.size == job.total == 2**16
        scores = job.chunk(0)
        assert Record(name, dtype, "", job.total, scores=scores).misses() == []
        for score in scores["fnn"].values():
            assert sum(tally.count for tally in score.tallies.values()) == 2**16
            # What is subnormal is 0 in bfloat16, as in float32, and right in float16.
            assert score.flushed == (score.subnormal if dtype == "bfloat16" else 0)


@each
def test_dense_sample_of_float32(name):
    """Over all bit patterns, and the neighbours of where formulas change over."""
    job = Sweep(name, "float32", last=2**17, peer=False)
    centres = [*SPECIAL, *(-s for s in SPECIAL), zero_of(name) or 0.0]
    near = np.array(centres, np.float32).view(np.uint32)[:, None] + np.arange(-1000, 1000)
    patterns = np.concatenate([spread(0, 2**18, 2**14), near.ravel(), [0, 2**31]])
    patterns = np.resize(np.clip(patterns, 0, 2**32 - 1), 3 * 2**17)
    scores = {}
    for part in np.split(patterns, 3):
        x = jnp.asarray(ulps.floats(part, "float32"))
        results = {who: program(x) for who, program in job.programs.items()}
        scores = merged(scores, job.scored(x, results))
    assert Record(name, "float32", "", 2**32, scores=scores).misses() == []


@each
def test_reference_agrees_with_50_digits_and_is_a_derivative(name):
    verified = verify(name, "float32", [], points=200)
    assert verified.ok, verified
    m = exact_functions()
    for x in (-2.3, -0.4, 0.7, 1.9):
        value, derivative = exact(name, x)
        if not (mp.isnan(value) or mp.isnan(derivative)):
            slope = m.diff(lambda t: REFERENCES[name].value(m, t), m.mpf(x), h=1e-20)
            assert abs(slope - derivative) < 1e-15


def test_units():
    x = jnp.array([1.0, 1.0, 3e38, jnp.inf, 2.0, 1e-40, jnp.nan], jnp.float32)
    ulp = float(jnp.finfo(jnp.float32).eps)
    with jax.enable_x64(True):
        truth = jnp.array([1.0, 1 + 3 * ulp, math.inf, 3e38, math.nan, 0.0, math.nan])
        errors = np.asarray(ulps.errors(x, truth))
    top = (2.0**128 - float(np.float32(3e38))) / 2.0**104
    np.testing.assert_allclose(errors[:4], [0, 3, top, (2.0**128 - 3e38) / 2.0**104])
    assert errors[4] == math.inf and errors[6] == 0


def test_a_wrong_function_is_found(monkeypatch):
    wrong = fnn.elementwise("wrong", jnp.tanh, lambda x: 1 - jnp.square(jnp.tanh(x)))
    monkeypatch.setitem(BLOCKS, "tanh", wrong)
    job = Sweep("tanh", "bfloat16", peer=False)
    record = Record("tanh", "bfloat16", "", job.total, scores=job.chunk(0))
    (miss,) = record.misses()
    assert "derivative is off by" in miss
    assert record.scores["fnn"]["value"].tallies["normal"].over == 0


def test_interrupt_and_resume(tmp_path):
    path = tmp_path / "tanh.json"
    job = Sweep("tanh", "float32", last=2**20)
    whole = list(sweep(job, tmp_path / "whole.json"))[-1]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"tanh in float32 is \d+% done"):
            for record in sweep(job, path):
                if record.done == 3 * job.size:
                    os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    kept = Record.load(path)
    assert kept is not None and 3 * job.size <= kept.done < job.total and not kept.finished
    resumed = list(sweep(job, path))
    assert resumed[0].done == kept.done + job.size
    assert resumed[-1].scores == whole.scores and resumed[-1].finished
    assert list(sweep(job, path)) == [resumed[-1]]  # what is finished is not run again
    assert started(job, path, again=True).done == 0


def test_a_record_of_another_program_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "tanh.json"
    job = Sweep("tanh", "bfloat16", peer=False)
    replace(started(job, path), done=2**15).save(path)
    assert started(job, path).done == 2**15
    monkeypatch.setitem(BLOCKS, "tanh", fnn.elementwise("tanh", jnp.tanh, jnp.cos))
    assert started(Sweep("tanh", "bfloat16", peer=False), path).done == 0
    path.write_text("{", encoding="utf-8")
    assert started(job, path).done == 0


def test_names():
    assert exhaustive.chosen(["elu", "power"])[:2] == ["elu", "power(2)"]
    assert exhaustive.chosen([]) == [*BLOCKS, *loss_search.LOSSES]
    with pytest.raises(CheckError, match="no function 'tahn'; did you mean tanh"):
        exhaustive.chosen(["tahn"])


@pytest.mark.parametrize("name", ["squared_error", "softmax_cross_entropy(2)"])
def test_search_for_the_worst_of_a_loss(name, monkeypatch):
    monkeypatch.setattr(loss_search, "GRID", 2**14)
    monkeypatch.setattr(loss_search, "CLIMBERS", 2**8)
    monkeypatch.setattr(loss_search, "ROUNDS", 40)
    found = loss_search.search(name)
    assert found.misses() == [] and found.verified < 1e-12
    assert all(worst.error > 0.4 for worst in found.worst["fnn"].values())


def test_run_and_page(tmp_path, capsys):
    settings = exhaustive.Options(names=("relu", "step"), dtype=("float16",), out=tmp_path)
    assert exhaustive.main(settings) == 0
    printed = capsys.readouterr().out
    assert "relu" in printed and "MISSED" not in printed
    records = [Record.load(file) for file in sorted(tmp_path.glob("*.json"))]
    accuracy_page.write(tmp_path / "page.md", records)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "## float16" in text and "| relu | 0 | 0 | 0 | 0 |" in text and "None." in text


def test_without_mpmath(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpmath", None)
    exact_functions.cache_clear()
    with pytest.raises(CheckError, match=r"pip install mpmath"):
        exact("tanh", 1.0)


def test_every_function_has_a_reference():
    assert list(BLOCKS) == list(REFERENCES)
