"""What a network ends in and its loss: logits or probabilities, and a word where they differ."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.block import BlockError
from fnn.training.endings import last_block, mismatch

X, LABELS = np.eye(4, 3, dtype=np.float32), np.array([0, 1, 2, 0])
YES_NO = (LABELS > 0)[:, None]
SOFTMAX = fnn.serial(fnn.linear(3), fnn.softmax())
LOGISTIC = fnn.serial(fnn.linear(1), fnn.logistic())
CE, BCE = fnn.softmax_cross_entropy(), fnn.binary_cross_entropy()
OF_P = fnn.binary_cross_entropy(from_logits=False)


def fit(net: fnn.Block, loss: fnn.Block, target: Any = LABELS, **options: Any) -> fnn.Fitted:
    return fnn.fit(net, loss, X, target, **{"epochs": 1, "progress": False} | options)


NOT_MATCHED = {
    "softmax": (SOFTMAX, CE, "ends in softmax, and softmax_cross_entropy takes logits: leave out "
                r"softmax, or use cross_entropy\(\)"),
    "nested": (fnn.serial(fnn.relu(), fnn.rematerialize(fnn.freeze(SOFTMAX))), CE, "ends in softm"),
    "repeated": (fnn.repeat(fnn.softmax(), 2), CE, "ends in softmax"),
    "graph": (fnn.graph("x", [("a", fnn.linear(3), "x"), ("p", SOFTMAX, "a")], "p"), CE, "softmax"),
    "logistic": (LOGISTIC, BCE, "ends in logistic, and binary_cross_entropy takes logits: leave "
                 r"out logistic, or use binary_cross_entropy\(from_logits=False\)"),
    "of each class": (fnn.logistic(), CE, "takes logits: leave out logistic$"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_MATCHED)
def test_probabilities_for_a_loss_of_logits_are_said(case: str) -> None:
    net, loss, words = NOT_MATCHED[case]
    with pytest.warns(UserWarning, match=words) as caught:
        fnn.make_step(net, loss, fnn.sgd(0.1))
    assert [warning.filename for warning in caught] == [__file__]


def test_fit_says_it_once_finds_it_and_does_not_apply_softmax_twice() -> None:
    with pytest.warns(UserWarning, match="takes logits") as caught:
        fitted = fit(SOFTMAX, CE, diagnostics=True)
    assert [warning.filename for warning in caught] == [__file__]
    assert fitted.diagnostics is not None
    names = [finding.name for finding in fitted.diagnostics.findings()]
    assert "mismatched loss" in names and "nothing is learned" not in names
    np.testing.assert_array_equal(fitted.predict(X, proba=True), fitted.predict(X))


MATCHED = [
    (SOFTMAX, fnn.cross_entropy()),
    (LOGISTIC, OF_P),
    (fnn.linear(3), CE),
    (fnn.serial(fnn.linear(3), fnn.log_softmax()), CE),
    (fnn.serial(fnn.softmax(), fnn.linear(3)), CE),
    (LOGISTIC, fnn.squared_error()),
    (fnn.fan_out(fnn.softmax(), fnn.softmax()), CE),
]


@pytest.mark.parametrize("number", range(len(MATCHED)))
def test_what_goes_together_is_not_mentioned(number: int) -> None:
    assert mismatch(*MATCHED[number]) is None


def test_the_output_may_be_the_input() -> None:
    assert last_block(fnn.serial()).kind.maker == "serial"


@pytest.mark.parametrize(
    ("loss", "target", "words"),
    [
        (fnn.cross_entropy(), LABELS, r"predictions go from -[\d.]+ to [\d.]+, needs probabilities:"
         r" end the network in softmax\(\), or use softmax_cross_entropy\(\)"),
        (OF_P, np.eye(3)[LABELS], r"end the network in logistic\(\), or use binary_cross_entropy"),
    ],
)  # fmt: skip
def test_predictions_that_are_no_probabilities_are_refused(
    loss: fnn.Block, target: Any, words: str
) -> None:
    net = fnn.serial(fnn.linear(3), fnn.scale(10.0))
    with pytest.raises(BlockError, match=words):
        fit(net, loss, target)


def test_a_block_of_ones_own_may_make_probabilities() -> None:
    shares = fnn.serial(fnn.linear(3), fnn.scale(0.1), fnn.elementwise("up", *_up()))
    found = mismatch(shares, OF_P)
    assert found is not None and not found.certain
    assert fit(shares, OF_P, np.eye(3)[LABELS]).success
    with pytest.warns(RuntimeWarning, match="ends in up, and binary_cross_entropy.* takes prob"):
        assert fit(shares, OF_P, np.eye(3)[LABELS], optimizer=fnn.sgd(1e9), epochs=2).message


def _up() -> Any:
    return lambda x: x + 0.5, jnp.ones_like
