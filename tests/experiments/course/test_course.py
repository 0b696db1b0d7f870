"""The course: right answers are right, wrong ones get their hint, and no work is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.course.exercise import EXERCISES
from experiments.course.hints import GENERAL, HINTS
from experiments.course.judge import BLANK, BROKEN, RIGHT, WRONG, Verdict, judge
from experiments.course.process import judge_apart
from tests.experiments.course import answers, wrong_answers
from tests.experiments.course.answers import filled
from tests.slow import one_of

pytestmark = pytest.mark.as_users
NAMES = list(EXERCISES)
WRONG_ANSWERS = [
    (name, number) for name in NAMES for number in range(len(wrong_answers.WRONG[name]))
]


def judged(tmp_path: Path, exercise: str, text: str) -> Verdict:
    path = tmp_path / EXERCISES[exercise].file
    path.write_text(text, encoding="utf-8")
    return judge(path, EXERCISES[exercise])


# ---- the exercises ---------------------------------------------------------------------------


def test_there_are_twelve_in_order() -> None:
    files = [exercise.file for exercise in EXERCISES.values()]
    assert len(files) == 12 and files == sorted(files)
    assert list(HINTS) == list(answers.RIGHT) == list(wrong_answers.WRONG) == NAMES


@pytest.mark.parametrize("name", one_of(3, NAMES))
def test_the_right_answer_is_right(name: str, tmp_path: Path) -> None:
    verdict = judged(tmp_path, name, filled(name, answers.RIGHT[name]))
    assert verdict.status == RIGHT, verdict
    assert verdict.fine == EXERCISES[name].gradients and not verdict.wrong
    assert "against automatic differentiation" in verdict.says and "differences" in verdict.says


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_one_is_not_filled_in(name: str, tmp_path: Path) -> None:
    verdict = judged(tmp_path, name, EXERCISES[name].blank)
    assert verdict.status == BLANK
    assert verdict.says.startswith(EXERCISES[name].gradients[0])


@pytest.mark.parametrize("case", one_of(11, WRONG_ANSWERS, ids=lambda case: f"{case[0]}-{case[1]}"))
def test_a_typical_wrong_answer_gets_its_hint(case: tuple[str, int], tmp_path: Path) -> None:
    name, number = case
    body, says, hint = wrong_answers.WRONG[name][number]
    verdict = judged(tmp_path, name, filled(name, body))
    assert (verdict.status, verdict.says) == (WRONG, says)
    assert hint in verdict.hint
    has_shape = "has the shape" in says
    assert bool(verdict.worst) != has_shape
    assert set(verdict.wrong).isdisjoint(verdict.fine)
    assert has_shape or {*verdict.wrong, *verdict.fine} == set(EXERCISES[name].gradients)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_ten_wrong_answers_that_all_differ(name: str) -> None:
    bodies = [body for body, _, _ in wrong_answers.WRONG[name]]
    assert len(bodies) == len(set(bodies)) == 10
    assert answers.RIGHT[name] not in bodies


@pytest.mark.parametrize("name", NAMES)
def test_no_hint_and_no_file_has_the_answer(name: str) -> None:
    told = [hint.text for hint in (*HINTS[name], *GENERAL)] + [EXERCISES[name].blank]
    told = ["".join(text.split()).replace("^", "**") for text in told]
    for line in answers.RIGHT[name].strip().splitlines():
        right = "".join(line.partition("=")[2].split())
        if len(right) > 4 and not line.startswith(("dx = np.zeros", "dw = np.zeros", "for")):
            assert not any(right in text for text in told), line


def test_numbers_can_be_typed() -> None:
    for exercise in EXERCISES.values():
        for array, again in zip(exercise.inputs(), exercise.inputs(), strict=True):
            assert (array == again).all() and (array == array.round(2)).all()


# ---- files that do not run -------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, status, says, hint",
    [
        ("dx = y * (1 - y) * dy\nreturn", BROKEN, "returns nothing", "return dx"),
        ("return y, dy", BROKEN, "returns 2 gradients, and needs to return 1", "return dx"),
        ("dx = 'y'", BROKEN, "dx is of type str, and needs to be a number or an array", ""),
        ("dx = None", BROKEN, "returns nothing", "return dx"),
        ("dx = [[1, 2], [3]]", BROKEN, "dx is a list, and needs", ""),
        ("dx = dy * (1 + 2j)", BROKEN, "dx is of type ndarray, and needs", ""),
        ("dx = y * (1 - y) * upstream", BROKEN, "line 20 (dx = y * (1 - y) * upstream) raises "
         "NameError: name 'upstream' is not defined", "The shapes there: dy (3, 4), y (3, 4)."),
        ("dx = y @ dy", BROKEN, "line 20 (dx = y @ dy) raises ValueError: matmul", "y (3, 4)"),
        ("dx = y * (1 - y * dy", BROKEN, "line 20 is not Python: '(' was never closed", ""),
        ("dx = 1\n  dx = 2", BROKEN, "line 21 is not Python: unexpected indent", ""),
        ("raise SystemExit", BROKEN, "line 20 (raise SystemExit) raises SystemExit", ""),
        ("dx = input()", BROKEN, "line 20 (dx = input()) raises", ""),
        ("return backward(y, dy)", BROKEN, "raises RecursionError", ""),
        ("slope = ...\ndx = slope * dy", BLANK, "line 21 (dx = slope * dy) something is still ...",
         ""),
        ("dx = 0", WRONG, "dx has the shape (), and needs (3, 4)", "as many entries as x"),
        ("dx = dy / (y - y)", WRONG, "dx has entries that are not finite", "division by 0"),
        ("dx = y * (1 - y) * dy\ndx = dx.tolist()", RIGHT, "", ""),
        ("dy *= y\ndy *= 1 - y\ndx = dy", RIGHT, "", ""),
        ("dx = np.zeros(y.shape)\nfor i in range(len(y)):\n    for j in range(len(y[0])):\n"
         "        if y[i, j] != 0.5:\n            dx[i, j] = y[i, j] * (1 - y[i, j]) * dy[i, j]\n"
         "        else:\n            dx[i, j] = dy[i, j] / 4", RIGHT, "", ""),
        ("return (y * (1 - y) * dy,)", RIGHT, "", ""),
    ],
)  # fmt: skip
def test_what_a_learner_may_return(
    body: str, status: str, says: str, hint: str, tmp_path: Path
) -> None:
    verdict = judged(tmp_path, "sigmoid", filled("sigmoid", body))
    assert verdict.status == status, verdict
    assert says in verdict.says and hint in verdict.hint
    assert "Traceback" not in verdict.says


def test_a_loop_without_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.course.learner.SECONDS", 0.2)
    body = "i = 0\nwhile i < 3:\n    dx = y * dy"
    verdict = judged(tmp_path, "sigmoid", filled("sigmoid", body))
    assert verdict.status == BROKEN and "still ran after 0.2 seconds" in verdict.says
    assert verdict.says.startswith("line 2") and "never ends" in verdict.hint


def test_forward_and_backward_have_to_stay(tmp_path: Path) -> None:
    right = filled("sigmoid", answers.RIGHT["sigmoid"])
    for old, new, says in (
        (
            "1 / (1 + np.exp(-x))\n    return",
            "np.tanh(x)\n    return",
            "forward computes something",
        ),
        ("return y, y", "return y", "forward computes something"),
        ("def backward", "def backwards", "there is no function backward"),
        ("def forward", "def foreward", "there is no function forward"),
    ):
        assert old in right
        verdict = judged(tmp_path, "sigmoid", right.replace(old, new))
        assert verdict.status == BROKEN and says in verdict.says and verdict.hint
    more = right.replace("return y, y", "return y, (x, y)").replace(
        "y = residuals", "x, y = residuals"
    )
    assert judged(tmp_path, "sigmoid", more).status == RIGHT  # it may keep more


def test_a_batch_size_that_is_written_in(tmp_path: Path) -> None:
    body = "dz = (p - np.eye(3)[t]) / 5 * dE"
    verdict = judged(tmp_path, "softmax", filled("softmax", body))
    assert verdict.status == WRONG and "one size of batch only" in verdict.says
    assert "batch at hand" in verdict.hint


# ---- the process -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_crash_and_a_long_run_end_with_an_answer(tmp_path: Path) -> None:
    path, sigmoid = tmp_path / "03_sigmoid.py", EXERCISES["sigmoid"]
    path.write_text(filled("sigmoid", "import os\nos._exit(7)"))
    verdict = judge_apart(path, sigmoid)
    assert verdict.status == BROKEN and "ended Python with status 7" in verdict.says
    path.write_text(
        "try:\n    while True:\n        pass\nexcept BaseException:\n    while 1: pass\n"
    )
    verdict = judge_apart(path, sigmoid, seconds=8)
    assert verdict.status == BROKEN and "never ends" in verdict.hint


@pytest.mark.slow
def test_what_a_learner_prints_is_seen_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "03_sigmoid.py"
    path.write_text(filled("sigmoid", "print('dy is', dy.shape)\ndx = y * (1 - y) * dy"))
    assert judge_apart(path, EXERCISES["sigmoid"]).status == RIGHT
    assert capfd.readouterr().out == "dy is (3, 4)\n"


# ---- the commands ----------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks in this process, which has JAX imported."""
    monkeypatch.setattr("experiments.course.commands.judge_apart", judge)
    monkeypatch.delenv("FNN_TRACEBACK", raising=False)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("here")
def test_a_learner_works_through_the_course(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    assert main(["course", "--out", str(out)]) == 0
    shown = said(capsys)
    assert f"wrote 12 files into {out}" in shown and "0 of 12 right" in shown
    assert shown.count("not yet") == 12 and f"check {out / '01_gates.py'}" in shown

    path = out / "01_gates.py"
    assert main(["course", "check", str(path)]) == 1
    assert "nothing to check yet dx, dy and dz are still to be filled in" in said(capsys).replace(
        ": nothing", " nothing"
    )

    path.write_text(filled("gates", "dx = z\ndy = z\ndz = q"))
    assert main(["course", "check", str(path)]) == 1
    shown = said(capsys)
    assert "01_gates.py: not right yet dz is the same whatever df is" in shown
    assert "dz is 3, and 6 is right, for x = -2, y = 5, z = -4 and df = 2" in shown
    assert "dx, dy are wrong, too" in shown and "Hint: Every gradient" in shown
    assert main(["course", "--out", str(out)]) == 0
    assert "wrong: dx, dy, dz" in said(capsys)

    path.write_text(filled("gates", answers.RIGHT["gates"]))
    assert main(["course", "--out", str(out)]) == 0
    assert "changed since the last check" in said(capsys)
    assert main(["course", "check", "1", "--out", str(out)]) == 0
    shown = said(capsys)
    assert "01_gates.py: right Checked: the shape" in shown and "1 of 12 right" in shown
    assert f"Next: open {out / '02_fork.py'}" in shown
    assert json.loads((out / "progress.json").read_text())["gates"]["tries"] == 3

    (out / "03_sigmoid.py").unlink()
    assert main(["course", "--out", str(out)]) == 0
    assert "wrote 1 file into" in said(capsys)
    assert path.read_text() == filled("gates", answers.RIGHT["gates"])


@pytest.mark.usefixtures("here")
def test_all_that_are_begun_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["course", "--out", str(tmp_path)])
    for name in ("gates", "relu"):
        (tmp_path / EXERCISES[name].file).write_text(filled(name, answers.RIGHT[name]))
    (tmp_path / "02_fork.py").write_text("broken(")
    assert main(["course", "check", "--out", str(tmp_path)]) == 1
    shown = said(capsys)
    assert "01_gates.py: right" in shown and "04_relu.py: right" in shown
    assert "02_fork.py: does not run line 1 is not Python" in shown and "2 of 12 right" in shown

    def never(*_: object) -> Verdict:
        raise AssertionError("what is right and unchanged is not checked again")

    monkeypatch.setattr("experiments.course.commands.judge_apart", never)
    (tmp_path / "02_fork.py").unlink()
    assert main(["course", "check", str(tmp_path)]) == 1
    assert "2 of 12 right" in said(capsys)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kept", ["", "{", "[]", '{"gates": 3}', '{"gates": {"tries": "x"}}'])
def test_a_spoilt_record_does_no_harm(
    kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["course", "--out", str(tmp_path)])
    (tmp_path / "progress.json").write_text(kept)
    (tmp_path / "01_gates.py").write_text(filled("gates", answers.RIGHT["gates"]))
    assert main(["course", "check", "gates", "--out", str(tmp_path)]) == 0
    assert "1 of 12 right" in said(capsys)
    assert json.loads((tmp_path / "progress.json").read_text())["gates"]["status"] == RIGHT


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "words, message",
    [
        (["check", "03_sigmod.py"], "there is no file"),
        (["check", "{out}/03_sigmod.py"], "did you mean {out}/03_sigmoid.py"),
        (["check", "sigmod"], "did you mean sigmoid"),
        (["check", "13"], "the course has no exercise '13'; there are: gates"),
        (["check", "0"], "the course has no exercise '0'"),
        (["check", "{out}/empty"], "has no file of the course"),
        (["03_sigmoid.py"], "course check 03_sigmoid.py"),
        (["chek", "3"], "did you mean check"),
        (["check", "--out", "{out}/nowhere"], "python -m experiments course writes it"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["course", "--out", str(tmp_path)])
    (tmp_path / "empty").mkdir()
    words = [word.format(out=tmp_path) for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path)]
    assert main(["course", *words, *out]) == 2
    error = capsys.readouterr().err
    assert message.format(out=tmp_path) in error and error.count("\n") == 1


def test_the_end_of_the_course(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.course.commands.judge_apart", lambda *_: Verdict(RIGHT, ""))
    main(["course", "--out", str(tmp_path)])
    for name, body in answers.RIGHT.items():
        (tmp_path / EXERCISES[name].file).write_text(filled(name, body))
    assert main(["course", "check", "--out", str(tmp_path)]) == 0
    assert "12 of 12 right. You have done them all." in said(capsys)


@pytest.mark.slow
def test_the_course_as_a_learner_runs_it(tmp_path: Path) -> None:
    def course(*words: str) -> str:
        command = [sys.executable, "-m", "experiments", "course", *words, "--out", str(tmp_path)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not run.stderr, run.stderr
        return run.stdout

    course()
    for name in NAMES[::4]:
        (tmp_path / EXERCISES[name].file).write_text(filled(name, answers.RIGHT[name]))
    shown = course("check")
    assert "3 of 12 right" in shown and "You have done" not in shown
    assert not re.search("not right yet|does not run", shown)
