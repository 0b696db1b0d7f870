"""What a learner has done: progress.json beside the files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from experiments.course.exercise import EXERCISES, Exercise
from experiments.course.judge import RIGHT, Verdict

FILE = "progress.json"


class Progress:
    """The last verdict on each exercise in a folder, and for which text of the file it was given.

    A file that cannot be read counts as none: it is written anew with the next verdict.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            read = json.loads((folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(read, dict):
            self._entries = {k: v for k, v in read.items() if isinstance(v, dict)}

    def note(self, exercise: Exercise, verdict: Verdict) -> None:
        """Keeps a verdict."""
        entry = self._entries.get(exercise.name, {})
        tries = entry.get("tries", 0)
        self._entries[exercise.name] = {
            "status": verdict.status, "says": verdict.says, "wrong": list(verdict.wrong),
            "tries": 1 + (tries if isinstance(tries, int) else 0),
            "text": _digest(self.folder / exercise.file),
        }  # fmt: skip
        part = self.folder / f"{FILE}.part"
        part.write_text(json.dumps(self._entries, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.folder / FILE)

    def is_right(self, exercise: Exercise) -> bool:
        """Whether the file is as it was when it was found right."""
        entry = self._entries.get(exercise.name, {})
        text = _digest(self.folder / exercise.file)
        return bool(text) and entry.get("status") == RIGHT and entry.get("text") == text

    def state(self, exercise: Exercise) -> str:
        """One of: right, wrong in ..., not checked since it was changed, not yet, no file."""
        path = self.folder / exercise.file
        if not path.exists():
            return "no file"
        if self.is_right(exercise):
            return "right"
        if is_blank(path, exercise):
            return "not yet"
        entry = self._entries.get(exercise.name)
        if entry is None or entry.get("text") != _digest(path):
            return "begun" if entry is None else "changed since the last check"
        wrong = entry.get("wrong")
        return f"wrong: {', '.join(map(str, wrong))}" if wrong else str(entry.get("status"))

    @property
    def done(self) -> int:
        """How many are right."""
        return sum(map(self.is_right, EXERCISES.values()))

    @property
    def next(self) -> Exercise | None:
        """The first that is not right."""
        return next((e for e in EXERCISES.values() if not self.is_right(e)), None)


def is_blank(path: Path, exercise: Exercise) -> bool:
    """Whether the file is as the learner got it."""
    try:
        return path.read_text(encoding="utf-8") == exercise.blank
    except (OSError, ValueError):
        return False


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
