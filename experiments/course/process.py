"""Judges a file in a process of its own, which a loop without end or a crash cannot outlive.

python -m experiments.course.process FILE EXERCISE VERDICT.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.course.exercise import EXERCISES, Exercise
from experiments.course.judge import BROKEN, Verdict, judge

SECONDS = 60.0  # a check takes two


def judge_apart(path: Path, exercise: Exercise, seconds: float = SECONDS) -> Verdict:
    """The verdict on a file, from another process."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "verdict.json"
        command = [sys.executable, "-m", __spec__.name, str(path), exercise.name, str(answer)]
        try:
            ended = subprocess.run(
                command, timeout=seconds, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Verdict(
                BROKEN, f"it still ran after {seconds:g} seconds", "",
                "Is there a loop that never ends?",
            )  # fmt: skip
        if answer.exists():
            return _read(answer.read_text(encoding="utf-8"))
        last = (ended.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return Verdict(BROKEN, f"it ended Python with status {ended.returncode}: {last}")


def _read(text: str) -> Verdict:
    status, says, worst, hint, fine, wrong = json.loads(text)
    return Verdict(status, says, worst, hint, tuple(fine), tuple(wrong))


if __name__ == "__main__":
    file, name, out = sys.argv[1:]
    verdict = judge(Path(file), EXERCISES[name])
    Path(out).write_text(json.dumps(verdict), encoding="utf-8")
