"""fnn.check.mutants: any block broken on purpose, and what catches each mistake."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.check import CheckError, mutants
from fnn.check.checks import subject_for
from fnn.check.mutations import Mutants, Verdict, make_mutants

FLOATS = jax.ShapeDtypeStruct((4, 5), jnp.float32)


@pytest.mark.slow
def test_every_mutant_of_a_users_own_block_is_caught() -> None:
    arctan = fnn.elementwise("arctan", jnp.arctan, lambda x: 1 / (1 + x * x))
    report = mutants(arctan, FLOATS)
    assert report.ok, str(report)
    assert len(report.verdicts) > 15
    text = str(report)
    assert f"{len(report.verdicts)} of {len(report.verdicts)} mutants caught (autodiff" in text
    assert "the block itself is not flagged" in text


def test_a_wrong_block_is_flagged_itself() -> None:
    wrong = fnn.negate()._replace(backward=lambda params, residuals, dy: ({}, dy))
    report = mutants(wrong, FLOATS)
    assert not report.ok
    assert "the block itself is flagged, by autodiff: x: is -1 times the truth" in str(report)


@pytest.mark.parametrize(
    "block, x, names",
    [
        (fnn.linear(3), FLOATS, {"batch size hard-coded", "sum in the narrow dtype"}),
        (fnn.logistic(), FLOATS, {"y (1 - y)", "wrong only at 0", "NaN at infinity"}),
        (fnn.maximum(), (FLOATS, FLOATS), {"a tie to both", "swapped"}),
        (fnn.softmax_cross_entropy(), (FLOATS, np.array([0, 4, 2, 1])), {"p - t"}),
        (fnn.serial(a=fnn.linear(3), b=fnn.tanh()), FLOATS, {"sign, inside a"}),
        (fnn.dropout(0.5), FLOATS, {"mask forgotten"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_mistakes_that_suit_the_block(block: Any, x: Any, names: set[str]) -> None:
    key = jax.random.key(0) if block.name == "dropout" else None
    made = {mutant.name for mutant in make_mutants(subject_for(block, x, key=key))}
    assert names | {"sign", "factor 2", "dropped"} <= made


def test_a_change_that_changes_nothing_makes_no_mutant() -> None:
    made = {mutant.name for mutant in make_mutants(subject_for(fnn.step(), FLOATS))}
    assert not made & {"sign", "factor 2", "dropped", "cut off", "dy ignored"}


def test_p_minus_t_is_right_where_every_label_is_0() -> None:
    z, loss = np.array([0.3, -0.2]), fnn.binary_cross_entropy()
    made = [
        {m.name for m in make_mutants(subject_for(loss, (z, np.array(t))))}
        for t in ([0, 0], [0, 1])
    ]
    assert "p - t" not in made[0] and "p - t" in made[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", [fnn.softmax_cross_entropy(), fnn.binary_cross_entropy()])
def test_mutants_of_a_weighted_loss(loss: Any) -> None:
    shape = (3, 2) if loss.name == "softmax_cross_entropy" else (3,)
    z = np.random.default_rng(0).normal(size=shape)
    assert mutants(loss, (z, np.array([0, 1, 1]), np.array([0.5, 1.0, 2.0]))).ok


def test_a_block_without_a_gradient_by_x_has_no_wrong_points() -> None:
    stop = fnn.Block(
        lambda key, x: {"w": jnp.ones(())}, lambda params, x, key=None: (x * params["w"], x),
        lambda params, x, dy: ({"w": jnp.sum(x * dy)}, None),
    )  # fmt: skip
    made = {mutant.name for mutant in make_mutants(subject_for(stop, FLOATS))}
    assert "sign" in made and not made & {"wrong only at 0", "NaN at infinity"}


@pytest.mark.parametrize(
    ("block", "name"),
    [(fnn.logistic(), "y (1 - y)"), (fnn.gelu(approximate=False), "(1 + erf) / 2")],
)
def test_formulas_that_are_right_on_paper(block: fnn.Block, name: str) -> None:
    (mutant,) = (m for m in make_mutants(subject_for(block, FLOATS)) if m.name == name)
    x = jnp.linspace(-2, 2, 9)
    got, wanted = (b.backward({}, b.forward({}, x)[1], x)[1] for b in (mutant.block, block))
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_a_block_of_any_pytree() -> None:
    assert mutants(fnn.identity(), {"w": np.ones(2)}).ok


def test_what_escaped_is_named() -> None:
    caught = Verdict("sign", "autodiff", "x: the sign is wrong")
    report = Mutants("mine", Verdict("", "", ""), (caught, Verdict("dropped", "", "")))
    assert not report.ok and report.escaped == ("dropped",)
    assert "mine: 1 of 2 mutants caught (autodiff 1)" in str(report)
    assert "dropped  ESCAPED" in str(report)
    assert Mutants("mine", Verdict("", "", ""), (caught,)).ok
    assert not Mutants("mine", Verdict("", "kinks", "x: a false alarm"), (caught,)).ok


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(CheckError, match="needs a Block"):
        mutants(fnn.relu, FLOATS)  # type: ignore[arg-type]
    with pytest.raises(CheckError, match="floating"):
        mutants(fnn.relu(), np.ones(3, int))
