"""What is wrong with a training run, in words: which fault, where, what was measured, what to try.

A rule looks for one fault. Rules run from causes to consequences: :data:`STAGES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from fnn.training.diagnostics.record import Diagnostics, Finding, percent

# Thresholds, with room on both sides: healthy runs stay away by a factor of two or more
# (tests/training/test_diagnostics.py), and the faults they stand for miss them by far more.
FAR_FROM_ZERO_SIGMAS = 5.0  # mean of the inputs; pictures on white have 3
LARGE_INPUT_RMS = 5.0  # initialisation expects features of size 1: standardised, or bytes / 255
SMALL_INPUT_RMS = 0.01  # such as bytes divided by 255 twice
LABEL_SHIFT_FRACTION = 0.3  # a random split of a few hundred examples moves less than 0.1
SORTED_LABELS_FRACTION = 0.5  # same label as the one before, beyond chance; 1 if sorted
DEAD_UNITS_FRACTION = 0.7  # of a layer; narrow healthy ReLU layers have up to 0.4, wide ones 0.3
SATURATED_UNITS_FRACTION = 0.5  # of a layer; trained tanh layers have up to 0.1
SMALL_SPREAD_RATIO = 1e-3  # of a layer's output to the inputs'; residual branches have 0.04
LARGE_LOSS_RATIO = 4.0  # before training, to chance: He and Glorot have up to 1.5; for squared
# error the square
VANISHED_GRADIENT_RATIO = 1e-3  # of one layer's output to another's: He and Glorot keep 0.1 to 10,
EXPLODED_GRADIENT_RATIO = 1e3  # and eight layers of logistic units lose 1e-5
SPIKE_LOSS_RATIO = 3.0  # of a step to before training: healthy runs have up to 1.1
HIGH_UPDATE_RATIO = 0.1  # of a step to the parameters it changes: 1e-3 is usual
LOW_UPDATE_RATIO = 1e-3
SUSPICIOUS_RATIO = 0.05  # of spreads and gradients, if nothing was learned
UNLEARNED_LOSS_RATIO = 0.95  # to the best constant prediction's: nothing was learned,
HALF_LEARNED_LOSS_RATIO = 0.5  # not much was learned yet
ONE_CLASS_FRACTION = 0.95  # chance that two labels are equal, if nearly all are of one class
CHANCE_SIGMAS = 3.0  # how far a count may be from its mean by chance
OVERFIT_GAP_RATIO = 0.1  # validation minus training loss, to chance: healthy runs up to 0.05;
OVERFIT_LOSS_RATIO = 2.0  # and validation to training loss
MAX_LAYERS_NAMED = 3  # besides the worst, with the same fault

Found = Iterator[Finding]
Rule = Callable[[Diagnostics], Found]


# ---- data --------------------------------------------------------------------------------------


def _constant(d: Diagnostics) -> Found:
    if d.data.labels.constant:
        yield Finding(
            "constant labels",
            "targets",
            "all of them are equal, so there is nothing to learn",
            "look at how they were read and cut",
        )


def _unshuffled(d: Diagnostics) -> Found:
    s = d.data.labels
    chance = s.same_by_chance
    beyond_chance = (s.same_as_previous - chance) / (1 - chance) if chance < 1 else 0.0
    is_sorted = beyond_chance > SORTED_LABELS_FRACTION
    if s.label_shift > max(LABEL_SHIFT_FRACTION, s.label_shift_by_chance):
        order = "; they are in order of label" if is_sorted else ""
        yield Finding(
            "unshuffled labels",
            "targets",
            f"{percent(s.label_shift)} of the labels would have to change for training and "
            f"validation examples to have the same labels equally often{order}",
            "shuffle the examples before splitting them",
        )
    elif is_sorted and math.isnan(s.label_shift):
        yield Finding(
            "unshuffled labels",
            "targets",
            f"{percent(s.same_as_previous)} have the label of the one before: they are in order "
            "of label",
            "shuffle the examples before splitting them (fit shuffles those it is given)",
        )


def _unrelated(d: Diagnostics) -> Found:
    s, constant_loss = d.data.labels, d.data.losses.best_constant_loss
    best = min((r.get("validation_loss", r["loss"]) for r in d.history), default=0.0)
    chance = s.same_by_chance
    sigma = math.sqrt(chance * (1 - chance) / max(s.n_compared, 1))
    agreement_by_chance = chance + CHANCE_SIGMAS * sigma
    if (
        chance < ONE_CLASS_FRACTION
        and s.neighbor_agreement < agreement_by_chance
        and best > UNLEARNED_LOSS_RATIO * constant_loss
        and not s.constant
    ):
        yield Finding(
            "labels unrelated to inputs",
            "targets",
            f"an example and its nearest neighbour have the same label in "
            f"{percent(s.neighbor_agreement)} of cases, by chance {percent(chance)}, and the loss "
            f"never fell below that of the best constant prediction, {constant_loss:.3g}",
            "see that inputs and targets are in the same order: shuffle both together",
        )


def _inputs(d: Diagnostics) -> Found:
    s = d.data.inputs
    if s.max_feature_rms > LARGE_INPUT_RMS or s.rms < SMALL_INPUT_RMS:
        rms = s.max_feature_rms if s.max_feature_rms > LARGE_INPUT_RMS else s.rms
        yield Finding(
            "unscaled inputs",
            "inputs",
            f"a feature has root mean square {rms:.3g}, where the initial weights expect about 1",
            "scale them first: bytes / 255, or (x - mean) / standard deviation of each feature",
        )
    elif s.offset_sigmas > FAR_FROM_ZERO_SIGMAS:
        yield Finding(
            "unscaled inputs",
            "inputs",
            f"their mean is {s.offset_sigmas:.2g} standard deviations from 0, so that all examples "
            "look much the same to the first layer",
            "subtract the mean: (x - mean) / standard deviation of each feature",
        )


def _mismatch(d: Diagnostics) -> Found:
    found = d.data.mismatch
    if found is not None and (found.certain or d.status == "diverged"):
        yield Finding("mismatched loss", "network", found.what, found.fix)


# ---- layers ------------------------------------------------------------------------------------


def _units(d: Diagnostics, at_start: bool) -> Found:
    """Dead and saturated units, since before training or since later."""
    for fraction, limit, name, word in (
        (d.dead, DEAD_UNITS_FRACTION, "dead units", "dead (no slope at any example watched)"),
        (d.saturated, SATURATED_UNITS_FRACTION, "saturated units", "saturated (hardly any slope)"),
    ):
        # The last layer's are the outputs: of ten probabilities nine are flat, and should be.
        layers = range(len(d.layers)) if name == "dead units" else range(max(_owners(d), default=0))
        since = {i: _since(fraction[:, i] > limit) for i in layers}
        faulty = [i for i, row in since.items() if row is not None and (row == 0) == at_start]
        if not faulty:
            continue
        worst, *others = sorted(faulty, key=lambda i: -fraction[-1, i])  # the first if equal
        when = f"since epoch {d.watched[since[worst]]}" if since[worst] else "from the start"
        also = [
            f"{d.layers[i].path} ({percent(fraction[-1, i])})" for i in others[:MAX_LAYERS_NAMED]
        ]
        if len(others) > MAX_LAYERS_NAMED:
            also.append(f"{len(others) - MAX_LAYERS_NAMED} more layers")
        when += f", and in {', '.join(also)}" if also else ""
        cause = "lower the learning rate"
        if at_start:
            cause = "scale the inputs, start with smaller weights and no bias"
        remedy = "use Glorot initialisation, or batch_norm before the nonlinearity"
        if name == "dead units":
            remedy = "use He initialisation, or leaky_relu"
        yield Finding(
            name,
            _where(d, worst),
            f"{percent(fraction[-1, worst])} of units {word} {when}",
            f"{cause}; or {remedy}",
        )


def _units_at_start(d: Diagnostics) -> Found:
    return _units(d, at_start=True)


def _units_later(d: Diagnostics) -> Found:
    return _units(d, at_start=False)


def _small_start(d: Diagnostics, ratio: float = SMALL_SPREAD_RATIO) -> Found:
    for i in _owners(d)[:-1]:
        # What follows may be larger again: by a skip connection, or normalised.
        if np.nanmax(d.spread[0, i:]) < ratio * d.data.inputs.rms:
            yield Finding(
                "bad initial scale",
                _where(d, i),
                f"before training its output has a spread of {d.spread[0, i]:.1e}, the inputs "
                f"{d.data.inputs.rms:.1e}: the weights are too small for anything to pass",
                "use He initialisation for relu, Glorot for tanh and logistic",
            )
            return


def _large_start(d: Diagnostics) -> Found:
    chance = d.data.losses.chance_loss
    power = 1 if d.data.losses.is_classifier else 2
    if not math.isnan(chance) and not d.initial_loss <= LARGE_LOSS_RATIO**power * chance:
        yield Finding(
            "bad initial scale",
            "initialisation",
            f"the loss before training is {d.initial_loss:.3g}, by chance it would be {chance:.3g}",
            "start with smaller weights, above all in the last layer (Glorot, or zeros), and scale "
            "inputs and targets",
        )


def _exploding(d: Diagnostics, at_start: bool) -> Found:
    owners, signal = _signals(d)
    if len(owners) < 2:
        return
    last = signal[:, -1]
    with np.errstate(all="ignore"):
        growth = np.max(signal[:, :-1], 1) / last
    # Infinity over infinity has exploded too.
    since = _since(~(growth < EXPLODED_GRADIENT_RATIO) & (last > 0))
    if since is not None and (since == 0) == at_start:
        yield Finding(
            "exploding gradients",
            _where(d, owners[int(np.argmax(signal[-1, :-1]))]),
            f"the gradient of its output is {growth[-1]:.1e} times that of the last layer's"
            f"{_from(d, since)}",
            "start with smaller weights (He for relu, Glorot for tanh), or add layer_norm, "
            "batch_norm or residual connections",
        )


def _exploding_at_start(d: Diagnostics) -> Found:
    return _exploding(d, at_start=True)


def _exploding_later(d: Diagnostics) -> Found:
    return _exploding(d, at_start=False)


def _vanishing(d: Diagnostics, at_start: bool, ratio: float = VANISHED_GRADIENT_RATIO) -> Found:
    owners, signal = _signals(d)
    if len(owners) < 2:
        return
    smallest, largest = np.min(signal, 1), np.max(signal, 1)
    since = _since((smallest < ratio * largest) & np.isfinite(largest))
    if since is not None and (since == 0) == at_start:
        yield Finding(
            "vanishing gradients",
            _where(d, owners[int(np.argmin(signal[-1]))]),
            f"the gradient of its output is {smallest[-1] / largest[-1]:.1e} times the largest of "
            f"any layer's{_from(d, since)}",
            "use relu in place of logistic or tanh, residual connections, batch_norm, or fewer "
            "layers",
        )


def _vanishing_at_start(d: Diagnostics) -> Found:
    return _vanishing(d, at_start=True)


def _vanishing_later(d: Diagnostics) -> Found:
    return _vanishing(d, at_start=False)


# ---- learning ----------------------------------------------------------------------------------


def _cannot_overfit(d: Diagnostics) -> Found:
    check, numbers = d.overfit, d.data.losses.outputs * d.overfit.examples
    limit = UNLEARNED_LOSS_RATIO * d.data.losses.best_constant_loss
    nothing = not math.isnan(limit) and not _last(d, "loss") <= limit  # or it is not finite
    if check.success is False and d.parameters > numbers and nothing:
        yield Finding(
            "nothing is learned",
            "network",
            f"it cannot overfit {check.examples} examples: after {check.steps} steps their loss is "
            f"{check.loss:.3g}",
            "check every backward rule (fnn.check.block), the targets, and that nothing is frozen",
        )


def _high_rate(d: Diagnostics) -> Found:
    before, highest = _before(d), np.max(d.peaks, initial=0.0)
    if d.status == "diverged":
        yield _too_high("training diverged: the loss rose, or was no longer finite")
    elif highest > SPIKE_LOSS_RATIO * before:
        epoch = int(np.argmax(d.peaks)) + 1
        yield _too_high(
            f"the loss of a step in epoch {epoch} was {highest:.3g}, before training {before:.3g}"
        )


def _large_updates(d: Diagnostics) -> Found:
    update = _update(d)
    if update > HIGH_UPDATE_RATIO and _last(d, "loss") > UNLEARNED_LOSS_RATIO * _before(d):
        yield _too_high(
            f"steps change up to {update:.2g} of the parameters, and the loss does not fall"
        )


def _too_high(what: str) -> Finding:
    advice = "lower the learning rate (to a tenth at first), or let it grow over the first steps"
    return Finding("learning rate too high", "training", what, advice)


def _low_rate(d: Diagnostics) -> Found:
    update, loss = _update(d), _last(d, "loss")
    if update < LOW_UPDATE_RATIO and loss > HALF_LEARNED_LOSS_RATIO * d.data.losses.chance_loss:
        yield Finding(
            "learning rate too low",
            "training",
            f"a step changes {update:.1e} of the parameters at most, and after {len(d.history)} "
            f"epochs the loss is {loss:.3g}, before training {d.initial_loss:.3g}",
            "raise the learning rate (tenfold at first), or train for longer",
        )


def _stuck(d: Diagnostics) -> Found:
    """Nothing was learned, and nothing is wrong: what is close to a fault may be the reason."""
    loss, constant_loss = _last(d, "loss"), d.data.losses.best_constant_loss
    if not d.history or not loss > UNLEARNED_LOSS_RATIO * constant_loss:
        return
    reasons = []
    if any(layer.kind in ("logistic", "hard_sigmoid") for layer in d.layers):
        reasons = [*_vanishing(d, at_start=True, ratio=SUSPICIOUS_RATIO)]
    reasons = reasons or [*_small_start(d, SUSPICIOUS_RATIO)]
    yield from reasons or [
        Finding(
            "nothing is learned",
            "training",
            f"after {len(d.history)} epochs the loss is {loss:.3g}, that of the best constant "
            f"prediction {constant_loss:.3g}",
            "train for longer, try other learning rates (tenfold and a tenth), and see that inputs "
            "and targets belong together",
        )
    ]


def _overfitting(d: Diagnostics) -> Found:
    if not d.history or "validation_loss" not in d.history[0]:
        return
    losses, loss = [row["validation_loss"] for row in d.history], _last(d, "loss")
    noise = 2 * losses[-1] / math.sqrt(max(d.data.n_validation, 1))  # of a mean over the examples
    gap = OVERFIT_GAP_RATIO * d.data.losses.chance_loss
    if losses[-1] - noise > max(OVERFIT_LOSS_RATIO * loss, loss + gap):
        best = int(np.argmin(losses)) + 1
        rising = f", lowest in epoch {best}" if best < len(losses) else ""
        yield Finding(
            "overfitting",
            "training",
            f"the validation loss is {losses[-1]:.3g}{rising}, the training loss {loss:.3g}",
            "use more examples, dropout, weight decay or a smaller network, or stop earlier",
        )


# ---- all rules ---------------------------------------------------------------------------------

# Findings that explain what a rule would find: a rule is skipped where one of these was made.
ANY = {"any"}
NOTHING: set[str] = set()
UNLEARNABLE = {"nothing is learned"}
MISMATCH = {"mismatched loss"}
LABELS = {"constant labels", "unshuffled labels", "labels unrelated to inputs"}

# fmt: off
STAGES: tuple[tuple[Rule, set[str]], ...] = (
    # rule                skipped after
    (_constant,           NOTHING),
    (_unshuffled,         NOTHING),
    (_unrelated,          NOTHING),
    (_inputs,             NOTHING),
    (_mismatch,           NOTHING),
    (_units_at_start,     NOTHING),
    (_small_start,        NOTHING),
    (_exploding_at_start, NOTHING),
    (_vanishing_at_start, ANY),
    (_large_start,        NOTHING),
    (_cannot_overfit,     ANY),
    (_high_rate,          UNLEARNABLE | MISMATCH),
    (_large_updates,      ANY),
    (_units_later,        UNLEARNABLE),
    (_exploding_later,    ANY),
    (_vanishing_later,    ANY),
    (_low_rate,           ANY),
    (_stuck,              ANY),
    (_overfitting,        LABELS),
)
# fmt: on


def find(d: Diagnostics) -> list[Finding]:
    """All findings about a run, causes first."""
    findings: list[Finding] = []
    for rule, skipped_after in STAGES:
        names = {finding.name for finding in findings} | (ANY if findings else NOTHING)
        if not names & skipped_after:
            findings += rule(d)
    return findings


# ---- helpers -----------------------------------------------------------------------------------


def _since(flags: np.ndarray) -> int | None:
    """The row from which the flag holds to the last; None if it does not hold there.

    >>> _since(np.array([True, False, True, True])), _since(np.array([True, False]))
    (2, None)
    """
    off = np.flatnonzero(~flags)
    first = int(off[-1]) + 1 if len(off) else 0
    return first if first < len(flags) else None


def _from(d: Diagnostics, row: int) -> str:
    return f" since epoch {d.watched[row]}" if row else " from the start"


def _owners(d: Diagnostics) -> list[int]:
    """The layers that have parameters and a gradient at their output."""
    return [
        i
        for i, layer in enumerate(d.layers)
        if layer.params is not None and not np.isnan(d.signal[:, i]).all()
    ]


def _signals(d: Diagnostics) -> tuple[list[int], np.ndarray]:
    """Those layers, and the norms of the gradients of their outputs; NaN counts as infinite."""
    owners = _owners(d)
    signal = d.signal[:, owners]
    return owners, np.where(np.isnan(signal), np.inf, signal)


def _where(d: Diagnostics, i: int) -> str:
    return f"layer {max(1, d.layers[i].number)} ({d.layers[i].path})"


def _update(d: Diagnostics) -> float:
    """The largest fraction of a layer's parameters that a step changed."""
    return float(np.max(d.update, initial=0.0, where=~np.isnan(d.update)))


def _before(d: Diagnostics) -> float:
    """The loss before training, or by chance if that is larger."""
    return float(np.fmax(d.initial_loss, d.data.losses.chance_loss))


def _last(d: Diagnostics, name: str) -> float:
    return d.history[-1][name] if d.history else math.nan
