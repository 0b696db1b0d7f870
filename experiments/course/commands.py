"""A course in backpropagation: twelve small files with a backward left blank.

    python -m experiments course                            writes the files, and shows the progress
    python -m experiments course check course/01_gates.py   is it right?
    python -m experiments course check                      are all that are begun right?

Each file states a forward with its formula and asks for its backward, in plain NumPy. The check
compares every gradient with automatic differentiation and with differences, and answers with the
worst entry and a hint. What you have written is never overwritten; to begin an exercise anew,
delete its file and run course again.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.common.console import console, table
from experiments.common.options import writable
from experiments.course.exercise import EXERCISES, Exercise
from experiments.course.judge import BLANK, BROKEN, RIGHT, Verdict
from experiments.course.process import judge_apart
from experiments.course.progress import Progress, is_blank


@dataclass
class Options:
    words: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[check [FILE ...]]")
    ] = ()
    """by default, write the files that are missing and show the progress; with check, check what
    follows: files, folders, names (sigmoid) or numbers (3); by default all that are begun"""
    out: Path = Path("course")
    """folder of the twelve files and of progress.json"""
    seed: int = 0
    """accepted by every experiment; nothing here is random"""


def main(options: Options) -> int:
    if not options.words:
        return write(writable(options.out))
    command, *names = options.words
    if command != "check":
        close = difflib.get_close_matches(command, ["check"])
        hint = "did you mean check" if close else f"write: course check {command}"
        raise ValueError(f"course has no command {command!r}; {hint}")
    if not names and not options.out.is_dir():
        raise ValueError(f"there is no {options.out} yet: python -m experiments course writes it")
    found = list(dict(files(names or [str(options.out)], options.out)).items())
    if len(found) == 1:
        return check(*found[0])
    return check_all(found)


# ---- writing ---------------------------------------------------------------------------------


def write(out: Path) -> int:
    """Writes the files that are not there, and shows how far the learner is."""
    missing = [e for e in EXERCISES.values() if not (out / e.file).exists()]
    for exercise in missing:
        (out / exercise.file).write_text(exercise.blank, encoding="utf-8")
    if missing:
        also = "; what was there stays as it is" if len(missing) < len(EXERCISES) else ""
        files = "1 file" if len(missing) == 1 else f"{len(missing)} files"
        console.print(f"wrote {files} into {out}{also}\n", markup=False)
    return show(out)


def show(out: Path) -> int:
    """The table of all exercises, and what to do next."""
    progress = Progress(out)
    rows = [
        (f"{number:2} {e.name}", e.idea, progress.state(e))
        for number, e in enumerate(EXERCISES.values(), start=1)
    ]
    table("A course in backpropagation", ("exercise", "idea", "state"), rows, left=3)
    console.print(f"{progress.done} of {len(EXERCISES)} right. {_next(progress)}", markup=False)
    return 0


def _next(progress: Progress) -> str:
    if (exercise := progress.next) is None:
        return "You have done them all."
    path = progress.folder / exercise.file
    return f"Next: open {path} in an editor, then: python -m experiments course check {path}"


# ---- checking --------------------------------------------------------------------------------


def check(path: Path, exercise: Exercise) -> int:
    """Judges one file and prints the answer."""
    verdict = judge_apart(path, exercise)
    progress = Progress(path.parent)
    if path.name == exercise.file:
        progress.note(exercise, verdict)
    console.print("\n".join(answer(path, exercise, verdict)), markup=False)
    if verdict.status == RIGHT:
        console.print(
            f"\n{progress.done} of {len(EXERCISES)} right. {_next(progress)}", markup=False
        )
    return int(verdict.status != RIGHT)


def check_all(found: list[tuple[Path, Exercise]]) -> int:
    """Judges several files, those that were changed since they were right, and prints the table."""
    folders = dict.fromkeys(path.parent for path, _ in found)
    right = True
    for path, exercise in found:
        if Progress(path.parent).is_right(exercise):
            continue
        if is_blank(path, exercise):
            right = False
            continue
        right = not check(path, exercise) and right
        console.print()
    for folder in folders:
        show(folder)
    return int(not right)


def answer(path: Path, exercise: Exercise, verdict: Verdict) -> Iterator[str]:
    """A verdict in lines."""
    says = {
        RIGHT: "right", BLANK: "nothing to check yet", BROKEN: "does not run",
    }.get(verdict.status, "not right yet")  # fmt: skip
    yield f"{path}: {says}"
    if verdict.status == RIGHT:
        yield from _lines(f"Checked: {verdict.says}.")
        yield from _lines(exercise.afterwards)
        return
    yield from _lines(verdict.says)
    if verdict.worst:
        yield from _lines(verdict.worst)
    others = [name for name in verdict.wrong if not verdict.says.startswith(f"{name} ")]
    if others:
        be = "is" if len(others) == 1 else "are"
        yield from _lines(f"{', '.join(others)} {be} wrong, too, perhaps because of it")
    if verdict.fine:
        yield from _lines(f"right: {', '.join(verdict.fine)}")
    if verdict.status == BLANK:
        yield from _lines(
            "Put your answer in place of each ..., save the file, and check it again."
        )
    if verdict.hint:
        yield ""
        yield from _lines(f"Hint: {verdict.hint}")


def _lines(text: str) -> Iterator[str]:
    """A text in lines of a readable length; what is indented already (code) stays a line."""
    for line in text.split("\n"):
        if line.startswith(" "):
            yield line
        else:
            yield from textwrap.wrap(line, 86, initial_indent="  ", subsequent_indent="  ")


# ---- which files -----------------------------------------------------------------------------


def files(names: list[str], out: Path) -> Iterator[tuple[Path, Exercise]]:
    """The files that are named: by their path, their folder, or in ``out`` by name or number."""
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = [(path / e.file, e) for e in EXERCISES.values() if (path / e.file).exists()]
            if not inside:
                raise ValueError(f"{path} has no file of the course; run course --out {path} first")
            yield from inside
        elif path.exists():
            yield path, exercise_of(path.stem)
        elif len(path.parts) == 1 and (out / path).exists():  # 01_gates.py
            yield out / path, exercise_of(path.stem)
        elif not path.suffix and len(path.parts) == 1 and (out / exercise_of(name).file).exists():
            yield out / exercise_of(name).file, exercise_of(name)
        else:
            raise ValueError(f"there is no file {name}{_close(path)}")


def exercise_of(name: str) -> Exercise:
    """The exercise of a name (03_sigmoid, sigmoid) or a number (3).

    >>> exercise_of("03_sigmoid").name, exercise_of("3").name
    ('sigmoid', 'sigmoid')
    """
    number, bare = re.fullmatch(r"(\d*)_?(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if bare in EXERCISES:
        return EXERCISES[bare]
    if not bare and number and 1 <= int(number) <= len(EXERCISES):
        return list(EXERCISES.values())[int(number) - 1]
    close = difflib.get_close_matches(bare, EXERCISES, n=1)
    hint = f"did you mean {close[0]}" if close else f"there are: {', '.join(EXERCISES)}"
    raise ValueError(f"the course has no exercise {name!r}; {hint}")


def _close(path: Path) -> str:
    there = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    if close:
        return f"; did you mean {path.parent / close[0]}"
    return "; python -m experiments course writes the files"
