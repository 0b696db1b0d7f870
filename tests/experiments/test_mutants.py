"""For every block some mutants, drawn by its name; all of them are caught. A tenth of the blocks
is always tried, the others where slow tests run.

The whole table: ``python -m experiments.selftest mutants --every-row --seeds 20``; right blocks
alone: ``... --right --seeds 200``.
"""

from __future__ import annotations

import zlib

import pytest

import fnn
from experiments.selftest import mutants
from experiments.selftest.__main__ import main
from experiments.selftest.mutants import Row
from fnn.check.mutations import CONTROL, Mutant, Verdict, control, judge, make_mutants
from fnn.check.subject import Subject
from tests.slow import one_of
from tests.zoo import CASES, is_checked

SLOW = ("cnn/small", "inception/small")  # minutes; their blocks are rows of their own
ROWS = [row for row in mutants.rows(mutants.Options()) if row.id not in SLOW]
EACH = 2  # of a dozen
WRITTEN = ("y (1 - y)", "1 - y^2", "p - t", "sum in the narrow dtype", "a tie to both",
           "gradient of the first use only", "mask forgotten")  # fmt: skip


CONTROLS = ("linear", "maximum", "mlp", "softmax_cross_entropy")


@pytest.mark.parametrize("row", one_of(24, ROWS, lambda row: row.id))
def test_mutants_are_caught(row: Row) -> None:
    subject = row.subject()
    made = make_mutants(subject)
    assert len(made) >= (8 if subject.sample.params else 4)
    start = zlib.crc32(row.id.encode()) % len(made)
    chosen = [made[(start + i * (len(made) // EACH)) % len(made)] for i in range(EACH)]
    chosen += [mutant for mutant in made if mutant.name in WRITTEN and mutant not in chosen]
    for mutant in chosen:
        assert judge(subject, mutant).caught_by, mutant.name


def test_every_row_that_can_be_checked_is_there() -> None:
    rows = mutants.rows(mutants.Options(every_row=True))
    assert [row.id for row in rows] == [case.id for case in CASES if is_checked(case)]


@pytest.mark.parametrize(
    "row",
    one_of(4, [row for row in ROWS if row.id in CONTROLS], lambda row: row.id),
)  # fmt: skip
def test_the_harness_itself_changes_nothing(row: Row) -> None:
    subject = row.subject()
    verdict = judge(subject, control(subject))
    assert not verdict.caught_by, verdict


@pytest.mark.slow
def test_mutants_command_prints_what_caught_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(mutants.Options(names=("negate",))) == 0
    printed = capsys.readouterr().out
    assert "mutants caught, by:" in printed and "0 of 1 checks of right blocks" in printed


def test_every_seed_is_checked_and_those_that_fail_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caught = {("sign", 3): "autodiff", ("sign", 4): "autodiff", (CONTROL, 4): "kinks"}
    tried = []

    def judge(subject: Subject, mutant: Mutant, likely: str = "", noted: object = ()) -> Verdict:
        tried.append(likely)
        return Verdict(mutant.name, caught.get((mutant.name, subject.seed), ""), "at 0")

    made = [Mutant("sign", fnn.negate()), Mutant("dropped", fnn.negate())]
    monkeypatch.setattr(mutants, "judge", judge)
    monkeypatch.setattr(mutants, "make_mutants", lambda subject: made)
    assert mutants.main(mutants.Options(names=("negate",), seed=3, seeds=2)) == 1
    assert tried == ["", "", "", "autodiff", "", ""]
    printed = capsys.readouterr().out
    assert "2 of 4 mutants caught, by:\n  autodiff       2\n" in printed
    assert "ESCAPED: negate, dropped, seed 3\nESCAPED: negate, dropped, seed 4\n" in printed
    assert "1 of 2 checks of right blocks flagged one" in printed
    assert "FALSE ALARM: negate, seed 4: kinks: at 0" in printed
    monkeypatch.setattr(mutants, "make_mutants", lambda subject: made[: 5 - subject.seed])
    mutants.main(mutants.Options(names=("negate",), seed=3, seeds=2))
    assert "dropped, seed 3" in (printed := capsys.readouterr().out)
    assert "dropped, seed 4" not in printed, "where it is no mutant"
    assert mutants.main(mutants.Options(names=("negate",), right=True)) == 0
    assert "mutants caught" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["mutants", "rellu"], "no row of tests.zoo starts with rellu"),
        (["exhaustive", "tahn"], "did you mean tanh"),
        (["mutant"], "did you mean mutants; there are: mutants, exhaustive"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "mutants" in capsys.readouterr().out
