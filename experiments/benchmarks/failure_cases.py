"""Gradients that public issues report as wrong, each beside fnn's block for the same function.

Every reported rule is written in JAX, whatever the library, as autodiff derives it from the
reported formula: so all checkers get the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn

Numbers = Sequence[float]
Rule = Callable[[Any, Any], Any]  # (x, dy) -> dx
FIXED = "as reported; since fixed"
GONE = "as reported; not installed here"


class Ours(NamedTuple):
    """A block as a function of one array; ``build`` adds its other inputs."""

    block: fnn.Block
    build: Callable[[Any], Any] = lambda x: x
    pick: Callable[[Any], Any] = lambda dx: dx

    def value(self, x: Any) -> Any:
        return self.block.forward({}, self.build(x))[0]

    def gradient(self, x: Any, dy: Any) -> Any:
        _, residuals = self.block.forward({}, self.build(x))
        return self.pick(self.block.backward({}, residuals, dy)[1])


class Case(NamedTuple):
    """One report.

    ``truth(x, dy)``: the exact gradient, by mpmath or known.
    ``rule``: the reported derivative in JAX. ``torch``: if PyTorch itself is still wrong, its
    function (given the module), differentiated in place of the rule.
    ``note``: '' if the library's own function is run.
    """

    title: str
    cite: str
    report: str
    what: str
    x: Any
    ours: Ours
    truth: Callable[[Any, Any], Numbers]
    rule: Rule
    torch: Callable[[Any, Any], Any] | None = None
    note: str = ""
    dy: Numbers = (1.0,)
    ordinary: Any = np.array([0.7, -1.3, 0.4, 2.1])


# ---- helpers ---------------------------------------------------------------------------------


def derived(f: Callable[[Any], Any]) -> Rule:
    """The rule that autodiff derives from a formula."""
    return lambda x, dy: jax.vjp(f, x)[1](jnp.asarray(dy, x.dtype))[0]


def each(slope: Callable[[Any], Any]) -> Rule:
    """A derivative of one number."""
    return lambda x, dy: (dy * slope(x)).astype(x.dtype)


def over_mean(slope: Callable[[Any], Any]) -> Rule:
    """The derivative of a mean of entries."""
    return lambda x, dy: (dy * slope(x) / x.size).astype(x.dtype)


def exactly(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Numbers]:
    """f(mpmath, number) for every entry, to 400 digits."""

    def truth(x: Any, dy: Any) -> Numbers:
        import mpmath

        with mpmath.workdps(400):
            pairs = zip(x, np.broadcast_to(dy, np.shape(x)), strict=True)
            return [float(mpmath.mpf(float(d)) * f(mpmath, mpmath.mpf(float(v)))) for v, d in pairs]

    return truth


def opposite(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Numbers]:
    """For logits (x, 0): f(mpmath, x) and its negative."""

    def truth(x: Any, dy: Any) -> Numbers:
        (slope,) = exactly(f)(x[:1], dy[:1])
        return slope, -slope

    return truth


def known(*values: float) -> Callable[[Any, Any], Numbers]:
    """A gradient known exactly."""
    return lambda x, dy: values


def selu_below_zero(m: Any, x: Any) -> Any:
    return m.mpf("1.0507009873554804934193") * m.mpf("1.6732632423543772848170") * m.exp(x)


def logistic_slope(m: Any, x: Any) -> Any:
    return m.exp(-abs(x)) / (1 + m.exp(-abs(x))) ** 2


def silu_slope(m: Any, x: Any) -> Any:
    s = 1 / (1 + m.exp(-x))
    return s + x * s * (1 - s)


def gelu_slope(x: Any) -> Any:
    density = jnp.exp(-x * x / 2) / (2 * jnp.pi) ** 0.5
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5)) + x * density


def with_labels(label: int) -> Callable[[Any], Any]:
    """(logits, labels), every label the same."""
    return lambda x: (x, jnp.full(x.shape, label, jnp.int32))


def halves(x: Any) -> Any:
    return x[: len(x) // 2], x[len(x) // 2 :]


def first(dx: Any) -> Any:
    return dx[0]


def clamped_root() -> fnn.Block:
    """max(sqrt(x), 1)."""
    nodes = [("root", fnn.sqrt(), ("x",)), ("y", fnn.maximum(), ("root", "one"))]
    return fnn.graph(("x", "one"), nodes, "y")


def logistic_loss_slope(z: Any) -> Any:
    """d/dz of max(z, 0) - z t + log(1 + exp(-|z|)) for t = 0, every kink with slope 0."""
    e = jnp.exp(-jnp.abs(z))
    return jnp.where(z > 0, 1.0, 0.0) - jnp.sign(z) * e / (1 + e)


def focal(z: Any) -> Any:
    """Optax's focal loss as it was, gamma = 0, labels 1."""
    p = jax.nn.sigmoid(z)
    return jnp.mean(-jax.nn.log_sigmoid(z) * jnp.power(1 - p, jnp.zeros_like(p)))


def two(x: float, y: float) -> Any:
    return np.array([x, y])


SELU = 1.0507009873554804934193
SELU_ALPHA = SELU * 1.6732632423543772848170
TINY = 1e-170  # its square is no float64
LOSS = fnn.binary_cross_entropy()
SURE = Ours(LOSS, with_labels(1), first)

# ---- the reports -----------------------------------------------------------------------------

# fmt: off
CASES = (
    Case("sigmoid, right tail", "jax-ml/jax#40342",
         "the derivative is 0 at 40, while -40 keeps its digits", "jax.nn.sigmoid",
         np.array([40.0]), Ours(fnn.logistic()), exactly(logistic_slope), derived(jax.nn.sigmoid)),
    Case("sigmoid, right tail", "pytorch/pytorch#195681",
         "backward loses a derivative that float64 can represent", "torch.sigmoid",
         np.array([37.42994775023705]), Ours(fnn.logistic()), exactly(logistic_slope),
         each(lambda x: jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x))),
         torch=lambda torch, x: torch.sigmoid(x)),
    Case("sigmoid, right tail, float32", "tensorflow/tensorflow#126060",
         "y (1 - y) from the output is 0 from about 17 on", "dy * y * (1 - y)",
         np.array([20.0], np.float32), Ours(fnn.logistic()), exactly(logistic_slope),
         each(lambda x: jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x))), note=GONE),
    Case("sigmoid written out", "jax-ml/jax#777",
         "1 / (1 + exp(-x)) has NaN gradients for very negative x", "1 / (1 + exp(-x))",
         np.array([-200.0], np.float32), Ours(fnn.logistic()), exactly(logistic_slope),
         derived(lambda x: 1 / (1 + jnp.exp(-x)))),
    Case("tanh, saturated, float32", "pytorch/pytorch#195685",
         "backward is 0 where the derivative is 6e-8", "torch.tanh",
         np.array([-9.010913848876953], np.float32), Ours(fnn.tanh()),
         exactly(lambda m, x: m.sech(x) ** 2), each(lambda x: 1 - jnp.square(jnp.tanh(x))),
         torch=lambda torch, x: torch.tanh(x)),
    Case("elu, left tail", "jax-ml/jax#39795", "0 instead of exp(-40)", "jax.nn.elu",
         np.array([-40.0]), Ours(fnn.elu()), exactly(lambda m, x: m.exp(x)), derived(jax.nn.elu)),
    Case("selu, left tail", "jax-ml/jax#39796", "0 at -700, where the derivative is 1.7e-304",
         "jax.nn.selu", np.array([-700.0]), Ours(fnn.selu()), exactly(selu_below_zero),
         derived(jax.nn.selu)),
    Case("selu from its output", "tensorflow/tensorflow#124834",
         "0 at -700: the rule adds scale * alpha to an output that has saturated",
         "dy * (y + scale alpha)", np.array([-700.0]), Ours(fnn.selu()), exactly(selu_below_zero),
         each(lambda x: jnp.where(x > 0, SELU, jax.nn.selu(x) + SELU_ALPHA)), note=GONE),
    Case("elu, large x", "jax-ml/jax#1538", "NaN: the branch that `where` leaves out overflows",
         "where(x > 0, x, expm1(x))", np.array([100.0], np.float32), Ours(fnn.elu()), known(1.0),
         derived(lambda x: jnp.where(x > 0, x, jnp.expm1(x))), note=FIXED),
    Case("celu, large x", "jax-ml/jax#9873",
         "training turned NaN; the overflow of expm1 beside it was not guarded",
         "where(x > 0, x, 2 expm1(x / 2))", np.array([200.0], np.float32), Ours(fnn.celu(2.0)),
         known(1.0), derived(lambda x: jnp.where(x > 0, x, 2 * jnp.expm1(x / 2))), note=FIXED),
    Case("silu, left tail", "jax-ml/jax#39798", "0 at -709, where the derivative is -8.6e-306",
         "jax.nn.silu", np.array([-709.0]), Ours(fnn.silu()), exactly(silu_slope),
         derived(jax.nn.silu)),
    Case("gelu, left tail", "pytorch/pytorch#187806",
         "1 + erf cancels, in float64 to nothing at -9; it is a term of backward, too",
         "torch gelu", np.array([-9.0]), Ours(fnn.gelu()),
         exactly(lambda m, x: m.ncdf(x) + x * m.npdf(x)), each(gelu_slope),
         torch=lambda torch, x: torch.nn.functional.gelu(x)),
    Case("softplus at 0", "jax-ml/jax#2107",
         "0 instead of 1/2: the slopes chosen for max and abs add up wrongly",
         "max(x, 0) + log1p(exp(-abs(x)))", np.array([0.0], np.float32), Ours(fnn.softplus()),
         known(0.5),
         derived(lambda x: jax.lax.max(x, jnp.zeros_like(x)) + jnp.log1p(jnp.exp(-jax.lax.abs(x)))),
         note=FIXED),
    Case("log sigmoid at 0", "jax-ml/jax#2140", "0 instead of 1/2, as for softplus",
         "-softplus(-x), as a loss", np.array([0.0], np.float32), SURE, known(-0.5),
         derived(lambda x: jnp.mean(
             jax.lax.max(-x, jnp.zeros_like(x)) + jnp.log1p(jnp.exp(-jax.lax.abs(-x))))),
         note=FIXED),
    Case("logistic loss at logit 0", "pytorch/pytorch#2298",
         "BCEWithLogitsLoss gives 0 instead of 1/2", "max(z, 0) - z t + log(1 + exp(-abs(z)))",
         np.array([0.0], np.float32), Ours(LOSS, with_labels(0), first), known(0.5),
         over_mean(logistic_loss_slope), note=FIXED),
    Case("logistic loss, sure and right", "pytorch/pytorch#195677",
         "0 for label 1 where label 0 keeps its 5.6e-17", "torch binary_cross_entropy_with_logits",
         np.array([37.42994775023705]), SURE, exactly(lambda m, x: -1 / (1 + m.exp(x))),
         over_mean(lambda z: jax.nn.sigmoid(z) - 1),
         torch=lambda torch, x: torch.nn.functional.binary_cross_entropy_with_logits(
             x, torch.ones_like(x))),
    Case("logistic loss by probability, sure and wrong", "pytorch/pytorch#103316",
         "the gradient all but vanishes at logit -50, where it is -1",
         "torch binary_cross_entropy(sigmoid(x))", np.array([-50.0]), SURE,
         exactly(lambda m, x: -1 / (1 + m.exp(x))),
         over_mean(lambda z: (
             -(1 - jax.nn.sigmoid(z)) * (s := jax.nn.sigmoid(z) * (1 - jax.nn.sigmoid(z)))
             / jnp.maximum(s, 1e-12))),
         torch=lambda torch, x: torch.nn.functional.binary_cross_entropy(
             torch.sigmoid(x), torch.ones_like(x))),
    Case("focal loss, gamma 0: the logistic loss", "google-deepmind/optax#1267",
         "NaN for a sure and right logit of 1000", "cross-entropy * (1 - p)^0",
         np.array([1000.0], np.float32), SURE, exactly(lambda m, x: -1 / (1 + m.exp(x))),
         derived(focal), note=FIXED),
    Case("softmax, confident row", "jax-ml/jax#40386",
         "one component of the gradient is 0, the other, its negative, is not", "jax.nn.softmax",
         two(37.42994775023705, 0.0), Ours(fnn.softmax()), opposite(logistic_slope),
         derived(jax.nn.softmax), dy=(1.0, 0.0)),
    Case("log_softmax, confident row", "jax-ml/jax#40384",
         "one component of the gradient is 0, the other, its negative, is not",
         "jax.nn.log_softmax", two(37.42994775023705, 0.0), Ours(fnn.log_softmax()),
         opposite(lambda m, x: 1 / (1 + m.exp(x))), derived(jax.nn.log_softmax), dy=(1.0, 0.0)),
    Case("softmax of a masked row", "pytorch/pytorch#31829",
         "NaN where every entry is -inf; 0 is asked for, which fnn declares", "torch.softmax",
         two(-np.inf, -np.inf), Ours(fnn.softmax()), known(0.0, 0.0), derived(jax.nn.softmax),
         torch=lambda torch, x: torch.softmax(x, -1), dy=(0.3, -1.1)),
    Case("cross-entropy of a row without labels", "tensorflow/tensorflow#2327",
         "large gradients with rows of zeros as labels, whose loss is 0; p - t explains them",
         "p - t", np.array([[1.0, -0.5, 0.25]]),
         Ours(fnn.softmax_cross_entropy(), lambda x: (x, jnp.zeros_like(x)), first),
         known(0.0, 0.0, 0.0),
         lambda x, dy: (jnp.asarray(dy) * jax.nn.softmax(x) / x.shape[0]).astype(x.dtype),
         note=GONE, ordinary=np.array([[0.7, -1.3, 0.4], [2.1, 0.2, -0.6]])),
    Case("x^y by y, at x = 0", "pytorch/pytorch#27134",
         "NaN, 0 times the logarithm of 0, where the limit is 0", "x^y log x",
         np.array([1.0], np.float32),
         Ours(fnn.power(), lambda y: (jnp.zeros_like(y), y), lambda dx: dx[1]), known(0.0),
         each(lambda y: jnp.power(jnp.zeros_like(y), y) * jnp.log(jnp.zeros_like(y))), note=FIXED,
         ordinary=np.array([0.7, 1.3, 0.4, 2.1])),
    Case("x^0 by x, at x = 0", "pytorch/pytorch#8945", "NaN, 0 times 0^-1, for a constant function",
         "p x^(p - 1), p = 0", np.array([0.0], np.float32),
         Ours(fnn.power(), lambda x: (x, jnp.zeros_like(x)), first), known(0.0),
         each(lambda x: 0 * jnp.power(x, -1.0)), note=FIXED,
         ordinary=np.array([0.7, 1.3, 0.4, 2.1])),
    Case("squared norm of 0", "jax-ml/jax#4177", "NaN: the infinite slope of the root times 0",
         "jnp.linalg.norm(x) ** 2", np.zeros(2),
         Ours(fnn.serial(fnn.square(), fnn.sum(), fnn.sqrt(), fnn.square())), known(0.0, 0.0),
         derived(lambda x: jnp.linalg.norm(x) ** 2)),
    Case("a root whose value is not used", "jax-ml/jax#347",
         "NaN through `where`, though the branch is not taken", "where(sqrt(x) > 1, sqrt(x), 1)",
         np.array([0.0]), Ours(clamped_root(), lambda x: (x, jnp.ones_like(x)), first), known(0.0),
         derived(lambda x: jnp.where(jnp.sqrt(x) > 1, jnp.sqrt(x), 1)),
         ordinary=np.array([0.7, 1.3, 0.4, 2.1])),
    Case("relu's mask", "pytorch/pytorch#1860",
         "Threshold's backward passes what it should stop and stops what it should pass",
         "dy where x <= 0", two(-1.0, 2.0), Ours(fnn.relu()), known(0.0, 1.0),
         each(lambda x: jnp.where(x > 0, 0.0, 1.0)), note=FIXED, dy=(1.0, 1.0)),
    Case("quotient by a small number", "tensorflow/tensorflow#6562",
         "the square of the divisor underflows; -x / y^2 by (x / y) / y instead",
         "jax.grad of x / y, which squares y today", two(TINY, TINY),
         Ours(fnn.divide(), halves, jnp.concatenate), known(1 / TINY, -1 / TINY),
         derived(lambda x: jnp.divide(*halves(x)))),
)
# fmt: on
