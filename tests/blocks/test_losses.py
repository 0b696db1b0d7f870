"""Losses beyond the zoo's ordinary numbers: confident, masked and infinite rows."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import fnn
from fnn.block import Block, BlockError

INF, NAN = np.inf, np.nan


def loss_and_slope(block: Block, prediction: Any, *rest: Any) -> tuple[float, np.ndarray]:
    """The loss and its gradient by the prediction."""
    x = (jnp.asarray(prediction), *map(jnp.asarray, rest))
    value, residuals = block.forward({}, x)
    return float(value), np.asarray(block.backward({}, residuals, 1.0)[1][0])


def exact_softmax_entropy(z: np.ndarray, label: int) -> tuple[float, list[float]]:
    """-ln softmax(z)_label and its gradient, in 60 digits."""
    with mpmath.workdps(60):
        e = [mpmath.exp(mpmath.mpf(float(v))) for v in z]
        total = mpmath.fsum(e)
        wrong = mpmath.fsum(v for j, v in enumerate(e) if j != label)
        slopes = [-wrong / total if j == label else v / total for j, v in enumerate(e)]
        return float(-mpmath.log(e[label] / total)), [float(s) for s in slopes]


# ---- confident rows --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, digits", [("float64", 1e-14), ("float32", 5e-7)])
def test_a_confident_row_keeps_its_digits(dtype: str, digits: float) -> None:
    z = np.array([[30.0, 0.0, -5.0]], dtype)
    value, dz = loss_and_slope(fnn.softmax_cross_entropy(), z, np.array([0]))
    expected, slopes = exact_softmax_entropy(z[0], 0)
    assert expected == pytest.approx(9.42e-14, rel=1e-3)
    assert value == pytest.approx(expected, rel=digits)
    np.testing.assert_allclose(dz[0], slopes, rtol=digits)


@pytest.mark.parametrize("dtype, digits", [("float64", 1e-14), ("float32", 1.5e-6)])
def test_softmax_cross_entropy_is_accurate_at_any_confidence(dtype: str, digits: float) -> None:
    """Right and wrong rows, from undecided to sure: value and every entry of the gradient."""
    rng = np.random.default_rng(0)
    entropy = fnn.softmax_cross_entropy()
    for scale in (1e-3, 1.0, 5.0, 20.0):
        rows = np.round(scale * rng.normal(size=(20, 4)), 3).astype(dtype)
        for z in rows:
            for label in (int(z.argmax()), int(z.argmin())):
                value, dz = loss_and_slope(entropy, z[None], np.array([label]))
                expected, slopes = exact_softmax_entropy(z, label)
                # An exponent is rounded to within half a unit of its size: gaps of 80 at most.
                slack = digits * max(1.0, float(np.ptp(z)) / 8)
                assert value == pytest.approx(expected, rel=slack), (z, label)
                tiny = float(np.finfo(dtype).tiny)  # XLA flushes what is smaller
                np.testing.assert_allclose(dz[0], slopes, slack, tiny, err_msg=f"{z} {label}")


@pytest.mark.parametrize("z", [0.0, 1e-8, -3.0, 20.0, -20.0, 80.0, -80.0, 500.0])
@pytest.mark.parametrize("target", [0.0, 1.0, 0.25])
def test_binary_cross_entropy_keeps_its_digits(z: float, target: float) -> None:
    value, dz = loss_and_slope(fnn.binary_cross_entropy(), np.array([z]), np.array([target]))
    with mpmath.workdps(300):  # 1 - p of a logit of 500 has 217 zeros
        p = 1 / (1 + mpmath.exp(-mpmath.mpf(z)))
        expected = -(target * mpmath.log(p) + (1 - target) * mpmath.log(1 - p))
        slope = p - target
    assert value == pytest.approx(float(expected), rel=1e-14, abs=1e-300)
    assert float(dz[0]) == pytest.approx(float(slope), rel=1e-13, abs=1e-300)


# ---- masked and infinite logits --------------------------------------------------------------


@pytest.mark.parametrize(
    "z, target, value, slope",
    [
        ([1.0, -INF, 2.0], 0, 1.3132616875182228, [-0.7310585786300049, 0, 0.7310585786300049]),
        ([3.0, -INF, -INF], 0, 0.0, [0, 0, 0]),  # the only class left is the right one
        ([-INF, -INF, -INF], 1, 0.0, [0, 0, 0]),  # a row of padding
        ([1.0, -INF, 1.0], 1, INF, [0.5, -1, 0.5]),  # sure of the opposite
        ([INF, 0.0, 0.0], 0, 0.0, [0, 0, 0]),
        ([INF, 0.0, 0.0], 1, INF, [1, -1, 0]),
        ([1e30, -1e30, 0.0], 0, 0.0, [0, 0, 0]),
        ([NAN, 0.0, 0.0], 0, NAN, [NAN, NAN, NAN]),
    ],
)
def test_softmax_cross_entropy_of_infinite_logits(
    z: list[float], target: int, value: float, slope: list[float]
) -> None:
    got, dz = loss_and_slope(fnn.softmax_cross_entropy(), np.array([z]), np.array([target]))
    np.testing.assert_allclose(got, value, rtol=1e-14)
    np.testing.assert_allclose(dz[0], slope, rtol=1e-14)


def test_masked_classes_of_probability_rows_cost_nothing() -> None:
    z, t = np.array([[0.0, 0.0, -INF]]), np.array([[0.25, 0.75, 0.0]])
    value, dz = loss_and_slope(fnn.softmax_cross_entropy(), z, t)
    assert value == pytest.approx(np.log(2), rel=1e-14)
    np.testing.assert_allclose(dz[0], [0.25, -0.25, 0], atol=1e-16)


@pytest.mark.parametrize(
    "z, target, value, slope",
    [(INF, 1, 0, 0), (-INF, 0, 0, 0), (INF, 0, INF, 1), (-INF, 1, INF, -1), (NAN, 1, NAN, NAN)],
)
def test_binary_cross_entropy_of_infinite_logits(
    z: float, target: int, value: float, slope: float
) -> None:
    got, dz = loss_and_slope(fnn.binary_cross_entropy(), np.array([z]), np.array([target]))
    np.testing.assert_equal((got, float(dz[0])), (value, slope))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "prediction", "target"),
    [
        (fnn.softmax_cross_entropy(), [[-np.inf, 0.0, 1.0]], [1]),
        (fnn.softmax_cross_entropy(), [[-np.inf, 0.0, 1.0]], [[0.0, 0.5, 0.5]]),
        (fnn.softmax_cross_entropy(), [[-np.inf, -np.inf]], [0]),
        (fnn.binary_cross_entropy(from_logits=False), [0.0, 1.0, 0.5], [0, 1, 1]),
    ],
)
def test_no_nan_on_the_way(loss: Block, prediction: Any, target: Any) -> None:
    """Of masked and of sure predictions; run operation by operation."""
    with jax.debug_nans(True):
        value, slope = loss_and_slope(loss, np.array(prediction), np.array(target))
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_a_row_of_padding_leaves_the_others_as_they_are() -> None:
    """A fully masked row among real ones, with weight 0: nothing becomes NaN."""
    z = np.array([[1.0, 2.0], [-INF, -INF], [0.5, -1.0]])
    t, w = np.array([0, 0, 1]), np.array([1.0, 0.0, 1.0])
    value, dz = loss_and_slope(fnn.softmax_cross_entropy(), z, t, w)
    expected, dz2 = loss_and_slope(fnn.softmax_cross_entropy(), z[::2], t[::2])
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(dz, np.insert(dz2, 1, 0, axis=0), rtol=1e-14)


# ---- the lecture's composed forms ------------------------------------------------------------


def test_softmax_then_cross_entropy_is_the_fused_loss() -> None:
    rng = np.random.default_rng(1)
    z, t = rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    composed = fnn.with_loss(fnn.softmax(), fnn.cross_entropy())
    value, residuals = composed.forward({"net": {}}, (jnp.asarray(z), jnp.asarray(t)))
    _, (dz, dt) = composed.backward({"net": {}}, residuals, jnp.ones(()))
    fused, fused_dz = loss_and_slope(fnn.softmax_cross_entropy(), z, t)
    assert float(value) == pytest.approx(fused, rel=1e-14)
    np.testing.assert_allclose(dz, fused_dz, rtol=1e-12, atol=1e-16)
    assert dt is None


def test_logistic_then_cross_entropy_is_the_fused_loss() -> None:
    rng = np.random.default_rng(2)
    z, t = rng.normal(size=6), rng.integers(0, 2, 6)
    composed = fnn.with_loss(fnn.logistic(), fnn.binary_cross_entropy(from_logits=False))
    value, residuals = composed.forward({"net": {}}, (jnp.asarray(z), jnp.asarray(t)))
    _, (dz, _) = composed.backward({"net": {}}, residuals, jnp.ones(()))
    fused, fused_dz = loss_and_slope(fnn.binary_cross_entropy(), z, t)
    assert float(value) == pytest.approx(fused, rel=1e-14)
    np.testing.assert_allclose(dz, fused_dz, rtol=1e-12)


# ---- weights and labels ----------------------------------------------------------------------


@pytest.mark.parametrize("weights", [np.zeros(3), np.zeros(3, bool), np.zeros((0,))])
def test_no_weight_is_a_loss_of_nothing(weights: np.ndarray) -> None:
    n = len(weights)
    value, dy = loss_and_slope(fnn.squared_error(), np.ones((n, 2)), np.zeros((n, 2)), weights)
    assert value == 0
    assert not dy.any()


def test_a_weight_near_the_mean_keeps_its_digits() -> None:
    """dE/dw = (l - E) / sum(w): the rounding error of E does not show in the difference."""
    rng = np.random.default_rng(3)
    z, t = np.full(64, 0.3) + 1e-3 * rng.random(64), np.ones(64)
    w = rng.uniform(0.5, 2, 64)
    x = [jnp.asarray(a, jnp.float32) for a in (z, t, w)]
    exact = [jnp.asarray(a, jnp.float64) for a in x]
    entropy = fnn.binary_cross_entropy()

    def slope(inputs: list[jax.Array]) -> np.ndarray:
        _, residuals = entropy.forward({}, tuple(inputs))
        return np.asarray(entropy.backward({}, residuals, 1.0)[1][2], np.float64)

    # Each loss is within a unit of 2^-24, so its difference to their mean is within two.
    assert np.abs(slope(x) - slope(exact)).max() * float(w.sum()) < 2**-23


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint32"])
def test_any_integer_labels(dtype: str) -> None:
    z = np.linspace(-1, 1, 8).reshape(2, 4)
    got = loss_and_slope(fnn.softmax_cross_entropy(), z, np.array([3, 0], dtype))
    expected = loss_and_slope(fnn.softmax_cross_entropy(), z, np.array([3, 0]))
    np.testing.assert_array_equal(got[1], expected[1])


def test_int8_labels_of_more_classes_than_int8_can_count() -> None:
    z = np.sin(np.arange(300.0))[None]
    got = loss_and_slope(fnn.softmax_cross_entropy(), z, np.array([100], "int8"))
    expected = loss_and_slope(fnn.softmax_cross_entropy(), z, np.array([100]))
    assert got[0] == expected[0]
    np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("label", [-1, 4, 2**31 - 1])
def test_a_label_out_of_range_is_never_a_silent_number(label: int) -> None:
    value, dz = loss_and_slope(fnn.softmax_cross_entropy(), np.zeros((1, 4)), np.array([label]))
    assert np.isnan(value)
    assert np.isnan(dz).all()
    with pytest.raises(BlockError, match="4 classes need labels from 0 to 3"):
        fnn.softmax_cross_entropy().rules.validate((np.zeros((1, 4)), np.array([label])))


@pytest.mark.parametrize("loss", [fnn.softmax_cross_entropy(), fnn.cross_entropy()])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.5, 0.6]], "rows need to sum to 1; one is off by 0.1"),
        ([[0.5, 0.5], [0.0, 0.0]], "one is off by 1"),
        ([[1.5, -0.5]], "targets go from -0.5 to 1.5"),
        ([[np.nan, 1.0]], "target has 1 values that are NaN or infinite"),
        ([[0.497, 0.5], [0.0, 1.0]], None),  # rounded, as of bfloat16
        (np.zeros((0, 2)), None),
        (np.zeros(0, int), None),
    ],
)
def test_probability_rows_are_probabilities(loss: Block, rows: Any, message: str | None) -> None:
    validate, target = loss.rules.validate, np.asarray(rows)
    assert validate is not None
    with pytest.raises(BlockError, match=message) if message else contextlib.nullcontext():
        validate((np.zeros((len(target), 2)), target))


@pytest.mark.parametrize(
    "block, x, message",
    [
        (fnn.squared_error(), (np.ones((3, 1)), np.ones(3)), r"target\[:, None\]"),
        (fnn.binary_cross_entropy(), (np.ones((3, 2)), np.ones(3)), "need the same"),
        (fnn.softmax_cross_entropy(), (np.ones((3, 2)), np.ones(3)), r"give target.astype\(int\)"),
        *(
            (fnn.softmax_cross_entropy(), (np.ones((3, 2)), target), words)
            for target, words in (
                (np.ones(3, bool), r"give target.astype\(int\)"),
                (np.ones((3, 1), int), r"give target\[\.\.\., 0\]$"),
                (np.ones((3, 1)), r"give target\[\.\.\., 0\].astype\(int\)"),
                (np.eye(3, 2, dtype=int), r"give target.argmax\(-1\), or target.astype\(float\)"),
                (np.eye(3, 2, dtype=bool), r"one-hot rows give target.argmax\(-1\)"),
            )
        ),
        (
            fnn.softmax_cross_entropy(),
            (np.ones((3, 4, 4, 2)), np.ones(3, int)),
            r"put flatten\(\) before the last linear\(\)",
        ),
        *(
            (
                loss,
                (np.ones((3, 2)), np.ones(3, int)),
                r"labels of classes are for softmax_cross_en",
            )
            for loss in (fnn.squared_error(), fnn.binary_cross_entropy())
        ),
        (fnn.softmax_cross_entropy(), (np.ones((3, 2)), np.ones(4, int)), "labels of shape"),
        (fnn.softmax_cross_entropy(), (np.array(1.0), np.array(1)), "a last axis of classes"),
        (fnn.softmax_cross_entropy(), np.ones(3), r"needs \(prediction, target\)"),
        (fnn.squared_error(), (np.ones(3), np.ones(3), np.ones(2)), "one number per example"),
        (fnn.squared_error(), (np.ones(3, int), np.ones(3)), "needs a floating dtype"),
    ],
)
def test_what_does_not_fit_is_refused(block: Block, x: Any, message: str) -> None:
    with pytest.raises(BlockError, match=message):
        block.forward({}, x)


@pytest.mark.parametrize("loss", [fnn.softmax_cross_entropy(), fnn.cross_entropy()])
def test_one_example_alone_is_a_batch_of_one(loss: Block) -> None:
    p, t = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array(2)
    alone, batch = loss_and_slope(loss, p, t), loss_and_slope(loss, p[None], t[None])
    assert alone[0] == pytest.approx(batch[0], rel=1e-15)
    np.testing.assert_allclose(alone[1], batch[1][0], rtol=1e-15)


@pytest.mark.slow
def test_per_example_gradients_add_up_to_the_batch() -> None:
    """The README's recipe: vmap over examples without a batch axis."""
    rng = np.random.default_rng(4)
    x, t = jnp.asarray(rng.normal(size=(6, 5))), jnp.asarray(rng.integers(0, 4, 6))
    net = fnn.linear(4)
    params = net.init(jax.random.key(0), x)
    f = fnn.value_and_grad(net, fnn.softmax_cross_entropy())
    value, grads = f(params, x, t)
    each = jax.vmap(f, in_axes=(None, 0, 0))(params, x, t)
    means = jax.tree.map(lambda a: jnp.mean(a, 0), each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), (value, grads), means)


@pytest.mark.slow
def test_a_confident_teacher_keeps_the_students_digits() -> None:
    """dE/dz = p sum(t) - t where one of t dominates: the others are summed, not subtracted."""
    for z, t in (([20.0, 0.0], [1.0, 1e-8]), ([20.0, 0.0, 1.0], [0.99999999, 1.5e-9, 2.5e-9])):
        _, dz = loss_and_slope(fnn.softmax_cross_entropy(), np.array([z]), np.array([t]))
        with mpmath.workdps(50):
            e = [mpmath.exp(v) for v in z]
            weights = [mpmath.mpf(v) for v in t]
            expected = [
                float(v / mpmath.fsum(e) * mpmath.fsum(weights) - w)
                for v, w in zip(e, weights, strict=True)
            ]
        np.testing.assert_allclose(dz[0], expected, rtol=1e-13)


@pytest.mark.parametrize("z", [1e-8, -1e-8, 1e-4, 3.0, -40.0])
def test_the_target_of_binary_cross_entropy_has_an_exact_gradient(z: float) -> None:
    entropy = fnn.binary_cross_entropy()
    _, residuals = entropy.forward({}, (jnp.array([z]), jnp.array([0.5])))
    assert float(entropy.backward({}, residuals, 1.0)[1][1][0]) == -z
    p = 0.5 + z if abs(z) < 0.1 else 0.3
    entropy = fnn.binary_cross_entropy(from_logits=False)
    _, residuals = entropy.forward({}, (jnp.array([p]), jnp.array([0.5])))
    with mpmath.workdps(40):
        expected = float(mpmath.log((1 - mpmath.mpf(p)) / p))
    assert float(entropy.backward({}, residuals, 1.0)[1][1][0]) == pytest.approx(
        expected, rel=1e-14
    )


@pytest.mark.parametrize("z", [[0.0, 0, 0], [1.0, 1, 0], [-np.inf, 5, 5], [-np.inf, 0, 0]])
@pytest.mark.parametrize("target", [[0], [2], [[0.2, 0.3, 0.5]]])
def test_equal_logits_have_autodiff_s_gradient_too(z, target):
    # As where the last weights start at 0; the derivative of max is shared among equal entries.
    loss, z, target = fnn.softmax_cross_entropy(), jnp.array([z]), jnp.array(target)
    by_hand = loss.backward({}, loss.forward({}, (z, target))[1], 1.0)[1][0]
    by_autodiff = jax.grad(lambda z: loss.forward({}, (z, target))[0])(z)
    finite = np.isfinite(by_autodiff)  # of -inf, e^-inf times a difference of infinities
    np.testing.assert_allclose(
        np.where(finite, by_hand, 0), np.where(finite, by_autodiff, 0), atol=1e-15
    )


@pytest.mark.parametrize(
    ("classes", "labels", "words"),
    [
        (3, [1, 2, 3], "3 classes need labels from 0 to 2: give labels - 1"),
        (5, [0, 9], r"end the network in 10 outputs, such as linear\(10\)"),
        (3, np.array([0, 255], np.uint8), r"end the network in 256 outputs"),
        (1, [0, 1], r"give two outputs, or binary_cross_entropy\(\)"),
        (3, [-1, 2], "number the classes from 0 on"),
    ],
)
def test_labels_out_of_range_are_refused_with_the_fix(
    classes: int, labels: Any, words: str
) -> None:
    validate = fnn.softmax_cross_entropy().rules.validate
    assert validate is not None
    with pytest.raises(BlockError, match=words):
        validate((np.zeros((len(labels), classes)), np.array(labels)))
