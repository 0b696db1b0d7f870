"""What is wrong with a training run, in words: which fault, where, what was seen, what to try.

A rule looks at one fault. Rules run from causes to consequences, and a rule that other faults
would also set off is asked only where none of them was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from fnn.training.diagnostics.record import Diagnostics

# Thresholds, with room on both sides: healthy runs stay away by a factor of two or more
# (tests/training/test_diagnostics.py), and the faults they stand for miss them by far more.
FAR = 5.0  # standard deviations of the inputs from 0; pictures on white have 3
LARGE_INPUT = 5.0  # initialisation expects features of size 1: standardised, or bytes / 255
SMALL_INPUT = 0.01  # such as bytes divided by 255 twice
APART = 0.3  # a random split of a few hundred examples moves less than a tenth of the labels
TOGETHER = 0.5  # neighbours with the same label beyond chance, 0 to 1: 1 where labels are sorted
DEAD = 0.7  # of a layer's units; narrow healthy ReLU layers have up to 0.4, wide ones 0.3
SATURATED = 0.5  # of a layer's units; trained tanh layers have up to a tenth
SMALL_START = 1e-3  # spread of a layer's output beside the inputs'; residual branches have 0.04
LARGE_START = 4.0  # times ln K: He and Glorot start within 1.5 times; squared error: the square
VANISHED = 1e-3  # gradient of one layer's output beside another's: He and Glorot keep 0.1 to 10,
EXPLODED = 1e3  # and eight layers of logistic units lose 1e-5
SPIKE = 3.0  # a step's loss beside that before training: healthy runs up to 1.1
HIGH_UPDATE = 0.1  # part of the parameters that a step replaces: a thousandth is usual
LOW_UPDATE = 1e-3
RATHER_SMALL = 0.05  # the same where nothing was learned
NOT_LEARNED = 0.95  # of the loss of guessing: nothing was learned,
HALF_LEARNED = 0.5  # not much was learned yet
EVEN = 0.95  # the chance of two labels to be alike
SIGMAS = 3.0  # standard deviations from chance
OVERFITTED = 0.1  # gap of validation and training loss beside ln K: healthy runs up to 0.05;
GAP = 2.0  # and one loss beside the other
MOST_NAMED = 3  # further layers with the same fault


class Finding(NamedTuple):
    """One fault: its name, where it is, what was seen, what to try.

    >>> print(Finding("dead units", "layer 3 (act_3)", "94 % of units are dead since epoch 2",
    ...               "lower the learning rate or use He initialisation"))
    layer 3 (act_3): 94 % of units are dead since epoch 2; lower the learning rate or use He
    initialisation
    """

    name: str
    where: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.advice}"


Found = Iterator[Finding]


def find(d: Diagnostics) -> list[Finding]:
    """All findings, causes first."""
    labels = [*_constant(d), *_unshuffled(d), *_unrelated(d)]
    found = [*labels, *_inputs(d), *_units(d, at_start=True), *_small_start(d)]
    found += [*_exploding(d, at_start=True)]
    if not found:  # else that is why a gradient is small
        found += [*_vanishing(d, at_start=True)]
    found += [*_large_start(d)]
    unlearnable = [] if found else [*_by_heart(d)]  # that has a rate of its own
    found += unlearnable
    if not unlearnable:
        found += [*_high_rate(d, alone=not found), *_units(d, at_start=False)]
    for later in (_exploding, _vanishing):
        if not found:
            found += [*later(d, at_start=False)]
    for rule in (_low_rate, _stuck):
        if not found:
            found += [*rule(d)]
    return found if labels else [*found, *_overfitting(d)]


def _constant(d: Diagnostics) -> Found:
    if d.facts.constant:
        yield Finding(
            "constant labels", "targets", "all of them are equal, so there is nothing to learn",
            "look at how they were read and cut",
        )  # fmt: skip


def _inputs(d: Diagnostics) -> Found:
    largest, typical = d.facts.largest, d.facts.typical
    size = largest if largest > LARGE_INPUT else typical
    if largest > LARGE_INPUT or typical < SMALL_INPUT:
        yield Finding(
            "unscaled inputs", "inputs",
            f"a feature has root mean square {size:.3g}, where the initial weights expect about 1",
            "scale them first: bytes / 255, or (x - mean) / standard deviation of each feature",
        )  # fmt: skip
    else:
        yield from _far_from_zero(d)


def _far_from_zero(d: Diagnostics) -> Found:
    if d.facts.offset > FAR:
        yield Finding(
            "unscaled inputs", "inputs",
            f"their mean is {d.facts.offset:.2g} standard deviations from 0, so that all examples "
            "look much the same to the first layer",
            "subtract the mean: (x - mean) / standard deviation of each feature",
        )  # fmt: skip


def _unshuffled(d: Diagnostics) -> Found:
    f = d.facts
    beyond_chance = (f.together - f.chance) / (1 - f.chance) if f.chance < 1 else 0.0
    is_sorted = beyond_chance > TOGETHER
    if f.apart > max(APART, f.apart_by_chance):
        order = "; they are in order of label" if is_sorted else ""
        yield Finding(
            "unshuffled labels", "targets",
            f"{_percent(f.apart)} of the labels would have to change for training and validation "
            f"examples to have the same labels equally often{order}",
            "shuffle the examples before splitting them",
        )  # fmt: skip
    elif is_sorted and math.isnan(f.apart):
        yield Finding(
            "unshuffled labels", "targets",
            f"{_percent(f.together)} have the label of the one before: they are in order of label",
            "shuffle the examples before splitting them (fit shuffles those it is given)",
        )  # fmt: skip


def _units(d: Diagnostics, at_start: bool) -> Found:
    """Dead and saturated units, since before training or since later."""
    for fraction, least, name, word in (
        (d.dead, DEAD, "dead units", "dead (no slope for any example looked at)"),
        (d.saturated, SATURATED, "saturated units", "saturated (hardly any slope)"),
    ):
        # The last one's are the outputs: of ten probabilities nine are to be flat.
        layers = range(len(d.layers)) if name == "dead units" else range(max(_owners(d), default=0))
        since = {i: _since(fraction[:, i] > least) for i in layers}
        hit = [i for i, row in since.items() if row is not None and (row == 0) == at_start]
        if not hit:
            continue
        worst, *others = sorted(hit, key=lambda i: -fraction[-1, i])  # the first of equal ones
        when = f"since epoch {d.watched[since[worst]]}" if since[worst] else "from the start"
        also = [f"{d.layers[i].path} ({_percent(fraction[-1, i])})" for i in others[:MOST_NAMED]]
        if len(others) > MOST_NAMED:
            also.append(f"{len(others) - MOST_NAMED} more layers")
        when += f", and in {', '.join(also)}" if also else ""
        cause = "lower the learning rate"
        if at_start:
            cause = "scale the inputs, start with smaller weights and no bias"
        remedy = "use He initialisation, or leaky_relu" if name == "dead units" else (
            "use Glorot initialisation, or batch_norm before the nonlinearity"
        )  # fmt: skip
        yield Finding(
            name, _where(d, worst), f"{_percent(fraction[-1, worst])} of units {word} {when}",
            f"{cause}; or {remedy}",
        )  # fmt: skip


def _small_start(d: Diagnostics) -> Found:
    yield from _small(d, SMALL_START)


def _small(d: Diagnostics, part: float) -> Found:
    for i in _owners(d)[:-1]:
        # What follows may be larger again: by a skip connection, or normalised.
        if np.nanmax(d.spread[0, i:]) < part * d.facts.typical:
            yield Finding(
                "bad initial scale", _where(d, i),
                f"before training its output has a spread of {d.spread[0, i]:.1e}, the inputs "
                f"{d.facts.typical:.1e}: the weights are too small for anything to pass",
                "use He initialisation for relu, Glorot for tanh and logistic",
            )  # fmt: skip
            return


def _exploding(d: Diagnostics, at_start: bool) -> Found:
    owners, signal = _signals(d)
    if len(owners) < 2:
        return
    last = signal[:, -1]
    with np.errstate(all="ignore"):
        growth = np.max(signal[:, :-1], 1) / last
    since = _since(~(growth < EXPLODED) & (last > 0))  # infinity over infinity has exploded too
    if since is not None and (since == 0) == at_start:
        yield Finding(
            "exploding gradients", _where(d, owners[int(np.argmax(signal[-1, :-1]))]),
            f"the gradient of its output is {growth[-1]:.1e} times that of the last layer's"
            f"{_from(d, since)}",
            "start with smaller weights (He for relu, Glorot for tanh), or add layer_norm, "
            "batch_norm or residual connections",
        )  # fmt: skip


def _vanishing(d: Diagnostics, at_start: bool, part: float = VANISHED) -> Found:
    owners, signal = _signals(d)
    if len(owners) < 2:
        return
    least, largest = np.min(signal, 1), np.max(signal, 1)
    since = _since((least < part * largest) & np.isfinite(largest))
    if since is not None and (since == 0) == at_start:
        yield Finding(
            "vanishing gradients", _where(d, owners[int(np.argmin(signal[-1]))]),
            f"the gradient of its output is {least[-1] / largest[-1]:.1e} times the largest of "
            f"any layer's{_from(d, since)}",
            "use relu in place of logistic or tanh, residual connections, batch_norm, or fewer "
            "layers",
        )  # fmt: skip


def _large_start(d: Diagnostics) -> Found:
    known = d.facts.ignorant
    power = 1 if d.facts.classify else 2
    if not math.isnan(known) and not d.initial_loss <= LARGE_START**power * known:
        yield Finding(
            "bad initial scale", "initialisation",
            f"the loss before training is {d.initial_loss:.3g}, where one that knows nothing has "
            f"{known:.3g}",
            "start with smaller weights, above all in the last layer (Glorot, or zeros), and scale "
            "inputs and targets",
        )  # fmt: skip


def _high_rate(d: Diagnostics, alone: bool) -> Found:
    before = float(np.fmax(d.initial_loss, d.facts.ignorant))
    update, highest = _update(d), np.max(d.peaks, initial=0.0)
    if d.status == "diverged":
        what = "training diverged: the loss rose, or was no longer finite"
    elif highest > SPIKE * before:
        epoch = int(np.argmax(d.peaks)) + 1
        what = (
            f"the loss of a step in epoch {epoch} was {highest:.3g}, before training {before:.3g}"
        )
    elif alone and update > HIGH_UPDATE and _last(d, "loss") > NOT_LEARNED * before:
        what = f"steps change up to {update:.2g} of the parameters, and the loss does not fall"
    else:
        return
    advice = "lower the learning rate (to a tenth at first), or let it grow over the first steps"
    yield Finding("learning rate too high", "training", what, advice)


def _low_rate(d: Diagnostics) -> Found:
    update, loss = _update(d), _last(d, "loss")
    if update < LOW_UPDATE and loss > HALF_LEARNED * d.facts.ignorant:
        yield Finding(
            "learning rate too low", "training",
            f"a step changes {update:.1e} of the parameters at most, and after {len(d.history)} "
            f"epochs the loss is {loss:.3g}, before training {d.initial_loss:.3g}",
            "raise the learning rate (tenfold at first), or train for longer",
        )  # fmt: skip


def _stuck(d: Diagnostics) -> Found:
    """After all other rules: nothing was learned. What else would be close to a fault is it."""
    loss = _last(d, "loss")
    if not d.history or not loss > NOT_LEARNED * d.facts.guess:
        return
    found = []
    if any(layer.kind in ("logistic", "hard_sigmoid") for layer in d.layers):
        found = [*_vanishing(d, at_start=True, part=RATHER_SMALL)]
    found = found or [*_small(d, RATHER_SMALL)]
    yield from found or [
        Finding(
            "nothing is learned",
            "training",
            f"after {len(d.history)} epochs the loss is {loss:.3g}, that of guessing "
            f"{d.facts.guess:.3g}",
            "train for longer, try other learning rates (tenfold and a tenth), and see that inputs "
            "and targets belong together",
        )
    ]


def _unrelated(d: Diagnostics) -> Found:
    f = d.facts
    best = min((r.get("validation_loss", r["loss"]) for r in d.history), default=0.0)
    by_chance = f.chance + SIGMAS * math.sqrt(f.chance * (1 - f.chance) / max(f.compared, 1))
    told = f.chance < EVEN  # else nearly all are of one kind
    if told and f.alike < by_chance and best > NOT_LEARNED * f.guess and not f.constant:
        yield Finding(
            "labels unrelated to inputs", "targets",
            f"an example and its nearest neighbour have the same label in {_percent(f.alike)} of "
            f"cases, by chance {_percent(f.chance)}, and the loss never fell below that of "
            f"guessing, {f.guess:.3g}",
            "see that inputs and targets are in the same order: shuffle both together",
        )  # fmt: skip


def _by_heart(d: Diagnostics) -> Found:
    seen, numbers = d.by_heart, d.facts.outputs * d.by_heart.examples
    least = NOT_LEARNED * d.facts.guess
    nothing = not math.isnan(least) and not _last(d, "loss") <= least  # or that is not finite
    if seen.learned is False and d.parameters > numbers and nothing:
        yield Finding(
            "nothing is learned", "network",
            f"{seen.examples} examples cannot be learned by heart: after {seen.steps} steps their "
            f"loss is {seen.loss:.3g}",
            "check every backward rule (fnn.check.block), the targets, and that nothing is frozen",
        )  # fmt: skip


def _overfitting(d: Diagnostics) -> Found:
    if not d.history or "validation_loss" not in d.history[0]:
        return
    losses = [row["validation_loss"] for row in d.history]
    loss = _last(d, "loss")
    noise = 2 * losses[-1] / math.sqrt(max(d.facts.judges, 1))  # of a mean over the examples
    if losses[-1] - noise > max(GAP * loss, loss + OVERFITTED * d.facts.ignorant):
        best = int(np.argmin(losses)) + 1
        rising = f", lowest in epoch {best}" if best < len(losses) else ""
        yield Finding(
            "overfitting", "training",
            f"the validation loss is {losses[-1]:.3g}{rising}, the training loss {loss:.3g}",
            "use more examples, dropout, weight decay or a smaller network, or stop earlier",
        )  # fmt: skip


def _since(flags: np.ndarray) -> int | None:
    """The row since which the flag holds, to the last; None if it does not hold there.

    >>> _since(np.array([True, False, True, True])), _since(np.array([True, False]))
    (2, None)
    """
    off = np.flatnonzero(~flags)
    first = int(off[-1]) + 1 if len(off) else 0
    return first if first < len(flags) else None


def _from(d: Diagnostics, row: int) -> str:
    return f" since epoch {d.watched[row]}" if row else " from the start"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"


def _owners(d: Diagnostics) -> list[int]:
    """The layers that have parameters and a gradient at their output."""
    return [
        i for i, layer in enumerate(d.layers)
        if layer.params is not None and not np.isnan(d.signal[:, i]).all()
    ]  # fmt: skip


def _signals(d: Diagnostics) -> tuple[list[int], np.ndarray]:
    """Those layers, and the norms of the gradients of their outputs; NaN counts as infinite."""
    owners = _owners(d)
    signal = d.signal[:, owners]
    return owners, np.where(np.isnan(signal), np.inf, signal)


def _where(d: Diagnostics, i: int) -> str:
    return f"layer {max(1, d.layers[i].number)} ({d.layers[i].path})"


def _update(d: Diagnostics) -> float:
    """The largest part of a layer's parameters that a step changed."""
    return float(np.max(d.update, initial=0.0, where=~np.isnan(d.update)))


def _last(d: Diagnostics, name: str) -> float:
    return d.history[-1][name] if d.history else math.nan


def describe(d: Diagnostics) -> str:
    """The whole report as text: before training, the layers at the end, and the findings."""
    start = f"before training: loss {d.initial_loss:.4g}"
    if not math.isnan(d.facts.ignorant):
        start += f" (one that knows nothing has {d.facts.ignorant:.4g})"
    seen = d.by_heart
    answer = {True: "learned by heart", False: "not learned by heart", None: "cut short"}
    lines = [
        f"{start}; {seen.examples} examples {answer[seen.learned]} in {seen.steps} steps, "
        f"to loss {seen.loss:.2g}",
        f"after epoch {d.watched[-1]}:",
    ]
    largest = np.fmax.accumulate(d.update, axis=0)
    columns: list[tuple[str, np.ndarray, Callable[[float], str]]] = [
        ("mean", d.mean, lambda v: f"{v:.3g}"), ("spread", d.spread, lambda v: f"{v:.3g}"),
        ("dead", d.dead, _percent),
        ("saturated", d.saturated, _percent),
        ("gradient", d.gradient, lambda v: f"{v:.1e}"),
        # The largest: after a schedule's last step there is none.
        ("largest update/parameters", largest, lambda v: f"{v:.1e}"),
    ]  # fmt: skip
    rows = [["layer", *(name for name, _, _ in columns)]]
    for i, layer in enumerate(d.layers):
        values = [(table[-1, i], text) for _, table, text in columns]
        rows.append([layer.path, *("" if np.isnan(v) else text(v) for v, text in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for path, *cells in rows:
        padded = [cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([path.ljust(widths[0]), *padded]).rstrip())
    found = [f"- {finding}" for finding in d.findings()]
    return "\n".join([*lines, *(found or ["nothing stands out"])])
