"""Is a learner's backward right? fnn.check decides; the answer is in the learner's words."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fnn
from experiments.course import words
from experiments.course.exercise import Exercise, forward_in_jax
from experiments.course.hints import hint_for
from experiments.course.learner import Broken, Learner, Unfinished
from experiments.course.probes import broken_law
from fnn.check import PROPERTIES, QUICK, CheckError, Problem, Report

RIGHT, WRONG, BLANK, BROKEN = "right", "wrong", "not filled in", "does not run"
# What finds most mistakes, and a batch size that is written into backward.
CHECKED = (*QUICK, "batch sizes")
ROUNDING = 1e-7  # relative: a learner's formula need not be the most accurate one


class Verdict(NamedTuple):
    """The answer to a learner.

    status: RIGHT, WRONG, BLANK or BROKEN. says: what was checked, or what is wrong. worst: the
    entry with the largest error. hint: what to think about. fine, wrong: names of gradients.
    """

    status: str
    says: str
    worst: str = ""
    hint: str = ""
    fine: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


def judge(path: Path, exercise: Exercise) -> Verdict:
    """Judges a file, with JAX in float64."""
    with jax.enable_x64(True):
        try:
            learner = Learner(path, exercise)
            dy = _upstream(learner)
            learner.gradients(exercise.inputs(), dy)  # what it prints is seen once
            report = _checked(learner)
        except Unfinished as error:
            return Verdict(BLANK, str(error))
        except Broken as error:
            return Verdict(BROKEN, str(error), hint=error.hint)
        except CheckError as error:
            return Verdict(BROKEN, f"it cannot be checked: {error}")
        if report.correct:
            says = words.checked(report, learner.upstream)
            return Verdict(RIGHT, says, fine=exercise.gradients)
        return _mistake(learner, report, dy)


def _upstream(learner: Learner) -> np.ndarray:
    """A gradient for what forward returns; refuses another forward than the exercise's."""
    exercise = learner.exercise
    original = np.asarray(forward_in_jax(exercise.name)(*exercise.inputs()))
    try:
        y, _ = learner.outputs(exercise.inputs())
        same = np.allclose(y, original, 1e-9)
    except (TypeError, ValueError):  # not a pair; not numbers
        same = False
    if not same:
        raise Broken(
            "forward computes something else than it did",
            "Only backward is yours to write. To see the original, give your file another name "
            "and run course again.",
        )
    return np.random.default_rng(1).normal(size=original.shape)


def _checked(learner: Learner) -> Report:
    """fnn.check's report. Backward is NumPy's, so JAX calls it back with numbers."""
    exercise = learner.exercise
    forward = forward_in_jax(exercise.name)

    def gradients(inputs: Any, dy: Any) -> tuple[np.ndarray, ...]:
        with contextlib.redirect_stdout(io.StringIO()):
            return learner.gradients(list(map(np.asarray, inputs)), np.asarray(dy))

    def backward(inputs: Any, dy: Any) -> tuple[Any, ...]:
        # A callback has to say which shapes it returns: those that it returns for any numbers.
        some, d = jax.tree.map(_any_numbers, (inputs, dy))
        shapes = [jax.ShapeDtypeStruct(g.shape, g.dtype) for g in gradients(some, d)]
        got = iter(
            jax.pure_callback(gradients, tuple(shapes), inputs, dy, vmap_method="sequential")
        )
        return tuple(None if name in exercise.classes else next(got) for name in exercise.shapes)

    return fnn.check.pair(
        lambda *inputs: (forward(*inputs), inputs), backward, *exercise.inputs(),
        skip=[name for name in PROPERTIES[1:] if name not in CHECKED],
        name=exercise.name, rtol=ROUNDING,
    )  # fmt: skip


def _any_numbers(like: Any) -> np.ndarray:
    if np.issubdtype(like.dtype, np.integer):
        return np.zeros(like.shape, like.dtype)
    return np.random.default_rng(0).normal(size=like.shape)


def _mistake(learner: Learner, report: Report, dy: np.ndarray) -> Verdict:
    """What is wrong with the gradient nearest to the output: it makes others wrong, too."""
    exercise, arguments = learner.exercise, tuple(learner.exercise.shapes)
    found: dict[str, Problem] = {}
    # Of one gradient, what is said of the batch at hand says most.
    for problem in sorted(report.problems, key=lambda p: p.diagnosis.startswith("for a batch")):
        found.setdefault(words.gradient(problem.leaf, arguments), problem)
    wrong = tuple(name for name in exercise.gradients if name in found)
    # If one has the wrong shape, the others were not compared.
    fine = () if "cotangents" in report.wrong else exercise.gradients
    name = wrong[-1] if wrong else next(iter(found))
    kind, says = words.plainly(found[name], learner.upstream, arguments)
    if kind in ("other", "some") and wrong:
        got = learner.gradients(exercise.inputs(), dy)[exercise.gradients.index(name)]
        kind = broken_law(exercise.name, name, exercise.inputs(), got) or kind
    worst = words.worst(found[name], name)
    if exercise.by_number and wrong:
        worst = _worst_number(learner, name) or worst
    return Verdict(
        WRONG, f"{name} {says}", worst, hint_for(exercise.name, name, kind),
        tuple(n for n in fine if n not in wrong), wrong,
    )  # fmt: skip


def _worst_number(learner: Learner, name: str) -> str:
    """The first numbers at which a gradient is wrong, so that the learner can work through them."""
    exercise = learner.exercise
    inputs, place = exercise.inputs(), exercise.gradients.index(name)
    y, pull_back = jax.vjp(forward_in_jax(exercise.name), *inputs)
    dy = np.full(y.shape, 2.0)
    got, right = learner.gradients(inputs, dy)[place], np.asarray(pull_back(dy)[place])
    wrong = np.flatnonzero(~np.isclose(got, right))
    if not wrong.size:
        return ""
    i = wrong[0]
    point = ", ".join(f"{n} = {a[i]:g}" for n, a in zip(exercise.shapes, inputs, strict=True))
    numbers = f"{name} is {words.number(got[i])}, and {words.number(right[i])} is right"
    return f"{numbers}, for {point} and {learner.upstream} = 2"
