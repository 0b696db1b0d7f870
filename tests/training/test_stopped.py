"""A run whose process is killed at random instants, writes included, ends as if it never was.

20 instants; FNN_KILLS=100 for more.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.stopped import learn

KILLS = int(os.environ.get("FNN_KILLS", "20"))
pytestmark = [pytest.mark.slow, pytest.mark.as_users]


class Runs:
    """The same run again and again, in processes that have imported everything already."""

    def __init__(self, folder: Path) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([learn.__module__, "orbax.checkpoint"])
        self.checkpoint, self.result = folder / "checkpoint", folder / "result.npz"
        self.started = 0

    def start(self) -> tuple[BaseProcess, Any]:
        """With another number of devices each time."""
        begun = self.context.Event()
        self.started += 1
        arguments = (self.checkpoint, self.result, begun, 1 + self.started % 3)
        process = self.context.Process(target=learn, args=arguments)
        process.start()
        return process, begun

    def finish(self) -> dict[str, bytes]:
        """Lets it end; what it has learned, byte for byte."""
        process, _ = self.start()
        process.join()
        assert process.exitcode == 0
        return self.learned()

    def learned(self) -> dict[str, bytes]:
        with np.load(self.result) as arrays:
            learned = {name: a.dtype.str.encode() + a.tobytes() for name, a in arrays.items()}
        self.result.unlink()
        shutil.rmtree(self.checkpoint)
        return learned


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(runs: Runs) -> dict[str, bytes]:
    return runs.finish()


def test_killed_at_random_instants(runs: Runs, whole: dict[str, bytes]) -> None:
    draw, killed, writing, training = random.Random(0), 0, 0, 0
    while killed < KILLS:
        process, begun = runs.start()
        if draw.random() < 0.8:  # else while it starts
            while process.is_alive() and not begun.wait(0.1):
                pass
        process.join(draw.uniform(0, 0.8))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was quicker
            assert runs.learned() == whole
            continue
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        training += begun.is_set()
        writing += any("tmp" in path.name for path in runs.checkpoint.glob("*"))
    assert runs.finish() == whole
    print(f"{killed} kills, {training} while it trained, {writing} in the middle of a write")
    assert training > KILLS / 4 and writing > KILLS / 10


def test_terminated(runs: Runs, whole: dict[str, bytes]) -> None:
    process, begun = runs.start()
    begun.wait()
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM and not runs.result.exists()
    assert runs.finish() == whole
