"""The losses' worst cases in float32: a dense grid of their inputs, and a climb from its worst.

A loss has too many inputs to try them all. From each of the grid's worst points the bit patterns
of the inputs are changed at random, by a little or a lot; a change to a larger error stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from experiments.selftest import verify
from experiments.selftest.references import Double, Functions, exact_functions, sigmoid, softplus
from fnn.block import Block
from fnn.check import ulps

GRID = 2**20  # points
CLIMBERS = 2**12  # points of the grid from which a climb starts
ROUNDS = 200  # steps of a climb

Inputs = Sequence[Any]  # numbers of one kind: see Functions
Outputs = tuple[Any, ...]
Numbers = Callable[[Functions, Inputs], Outputs]


class Loss(NamedTuple):
    """``block`` of ``inputs`` numbers of magnitudes from ``low`` to ``high``, of either sign if
    ``signed``. ``target``: the block's second input, if the search does not vary it.

    ``plain``: the textbook's formula for one example. ``truth``: value, then the gradient by
    each entry of the prediction. ``terms``: the terms whose difference is the gradient; its error
    is counted in their last place, because the truth may be arbitrarily small.
    """

    block: Block
    plain: Callable[[jax.Array, jax.Array], jax.Array]
    inputs: int
    truth: Numbers
    target: Any = None
    low: float = 2.0**-40
    high: float = 2.0**8
    signed: bool = True
    terms: Numbers | None = None


# ---- definitions -----------------------------------------------------------------------------


def _squared(m: Functions, x: Inputs) -> Outputs:
    d = x[0] - x[1]
    return d * d / 2, d


def _of_logits(m: Functions, x: Inputs) -> Outputs:
    z, t = x
    value = t * softplus(m, -z) + (1 - t) * softplus(m, z)
    return value, (1 - t) * sigmoid(m, z) - t * sigmoid(m, -z)


def _of_logits_terms(m: Functions, x: Inputs) -> Outputs:
    z, t = x
    return _of_logits(m, x)[0], (1 - t) * sigmoid(m, z) + t * sigmoid(m, -z)


def _of_p(m: Functions, x: Inputs) -> Outputs:
    p, t = x
    value = -(m.where(t == 0, 0 * p, t * m.log(p)) + (1 - t) * m.log1p(-p))
    return value, m.where(t == 0, 1 / (1 - p), (p - t) / (p * (1 - p)))


def _of_classes(m: Functions, x: Inputs) -> Outputs:
    """Label 0: with the gaps g_j = z_j - z_0 and s = ln(sum of e^g_j), E = softplus(s)."""
    gaps = [z - x[0] for z in x[1:]]
    s = gaps[0]
    for gap in gaps[1:]:
        s = m.where(s > gap, s, gap) + m.log1p(m.exp(-abs(s - gap)))
    return softplus(m, s), -sigmoid(m, s), *(m.exp(gap - softplus(m, s)) for gap in gaps)


def _fixed(truth: Numbers, t: float) -> Numbers:
    return lambda m, x: truth(m, (x[0], t + 0 * x[0]))


def _plain_of_logits(z: jax.Array, t: jax.Array) -> jax.Array:
    t = t.astype(z.dtype)
    return -t * jax.nn.log_sigmoid(z) - (1 - t) * jax.nn.log_sigmoid(-z)


def _plain_of_p(p: jax.Array, t: jax.Array) -> jax.Array:
    t = t.astype(p.dtype)
    return -t * jnp.log(p) - (1 - t) * jnp.log1p(-p)


def _plain_of_classes(z: jax.Array, t: jax.Array) -> jax.Array:
    return -jax.nn.log_softmax(z)[t]


def _losses() -> dict[str, Loss]:
    of_logits = functools.partial(Loss, fnn.binary_cross_entropy(), _plain_of_logits)
    binary = fnn.binary_cross_entropy(from_logits=False)
    of_p = functools.partial(Loss, binary, _plain_of_p, high=1 - 2.0**-24, signed=False)
    of_classes = functools.partial(Loss, fnn.softmax_cross_entropy(), _plain_of_classes)
    losses = {
        "squared_error": Loss(fnn.squared_error(), lambda y, t: jnp.square(y - t) / 2, 2, _squared)
    }
    name = "binary_cross_entropy"
    for t in (0, 1):
        losses[f"{name}(logits, {t})"] = of_logits(1, _fixed(_of_logits, t), np.int32(t))
        losses[f"{name}(p, {t})"] = of_p(1, _fixed(_of_p, t), np.int32(t))
    for soft in (np.float32(0.125), np.float32(0.3), np.float32(0.9)):
        truth, terms = (_fixed(f, float(soft)) for f in (_of_logits, _of_logits_terms))
        losses[f"{name}(logits, {soft!s})"] = of_logits(1, truth, soft, terms=terms)
    losses[f"{name}(p, t)"] = of_p(2, _of_p)
    for n in (2, 3):  # a gap of more than 87.3 makes single terms subnormal, which XLA makes 0
        losses[f"softmax_cross_entropy({n})"] = of_classes(n, _of_classes, np.int32(0), high=43.5)
    return losses


LOSSES = _losses()


# ---- the search ------------------------------------------------------------------------------


class Worst(NamedTuple):
    """The largest error of a loss or of its gradient, and its inputs."""

    error: float
    inputs: tuple[float, ...]


class Search(NamedTuple):
    """The largest errors of value and derivative by fnn and its peer, over some points.

    ``verified``: the largest relative error of the reference against 50 digits.
    """

    name: str
    points: int
    worst: dict[str, dict[str, Worst]]
    verified: float
    dtype: str = "float32"

    def misses(self) -> list[str]:
        """The targets that fnn misses, in words."""
        limit = ulps.LIMITS[self.dtype]
        words = [
            f"{self.name}: {what} is off by {worst.error:.3g} units at {worst.inputs}"
            for what, worst in self.worst["fnn"].items()
            if worst.error > limit
        ]
        if not self.verified <= verify.MAX_ERROR:
            words.append(f"{self.name}: the reference is off by {self.verified:.1e}")
        return words


def search(name: str, peer: bool = True, seed: int = 0) -> Search:
    """Grid and climb for one loss, for fnn's rule and ``jax.grad`` of the plain formula."""
    loss = LOSSES[name]
    points, worst, verified = 0, dict[str, dict[str, Worst]](), 0.0
    programs = {"fnn": _by_block} | ({"jax.nn": _by_autodiff} if peer else {})
    for who, outputs_of in programs.items():
        program = jax.jit(jax.vmap(functools.partial(outputs_of, loss)))
        error = functools.partial(_errors, loss, program)
        start = _grid(loss)
        outputs = error(start)
        points += len(start)
        best = {"value": Worst(-1.0, ()), "derivative": Worst(-1.0, ())}
        for output in range(outputs.shape[1]):
            what = "derivative" if output else "value"
            top = np.argsort(outputs[:, output])[-CLIMBERS:]
            x, reached = _climb(loss, error, start[top], output, seed)
            points += ROUNDS * len(x)
            at = int(np.argmax(reached))
            if reached[at] > best[what].error:
                best[what] = Worst(float(reached[at]), tuple(float(v) for v in x[at]))
            verified = max(verified, _verified(loss, x[at]), _verified(loss, start[top[0]]))
        worst[who] = best
    return Search(name, points, worst, verified)


def _by_block(loss: Loss, x: jax.Array) -> jax.Array:
    y, t = _split(loss, x)
    value, residuals = loss.block.forward({}, (y[None], t[None]))
    (dy, *_) = loss.block.backward({}, residuals, jnp.ones_like(value))[1]
    return jnp.concatenate([value[None], dy.ravel()])


def _by_autodiff(loss: Loss, x: jax.Array) -> jax.Array:
    value, dy = jax.value_and_grad(loss.plain)(*_split(loss, x))
    return jnp.concatenate([value[None], dy.ravel()])


def _split(loss: Loss, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prediction and target of one example."""
    if loss.target is None:
        return x[0], x[1]
    return (x[0] if loss.inputs == 1 else x), jnp.asarray(loss.target)


def _errors(loss: Loss, program: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """Errors in units of every output at every point; 0 where the truth is no normal number."""
    with jax.enable_x64(False):
        got = program(x)
    with jax.enable_x64(True):
        return np.asarray(_judged(loss)(jnp.asarray(x), got))


@functools.cache
def _judged(loss: Loss) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def judged(x: jax.Array, got: jax.Array) -> jax.Array:
        columns = [x[:, i].astype(jnp.float64) for i in range(x.shape[1])]
        truth = jnp.stack(loss.truth(Double, columns), 1)
        size = truth if loss.terms is None else jnp.stack(loss.terms(Double, columns), 1)
        info = jnp.finfo(x.dtype)
        normal = (abs(truth) >= float(info.tiny)) & (abs(truth) <= float(info.max))
        return jnp.where(normal, ulps.errors(got, truth, size), 0.0)

    return jax.jit(judged)


def _grid(loss: Loss) -> np.ndarray:
    """Points evenly spaced in the bit patterns of each input."""
    side = round(GRID ** (1 / loss.inputs))
    first, last = (int(np.float32(v).view(np.uint32)) for v in (loss.low, loss.high))
    half = np.linspace(first, last, side // 2 if loss.signed else side).astype(np.uint32)
    axis = half.view(np.float32)
    if loss.signed:
        axis = np.concatenate([-axis[::-1], axis])
    return np.stack(np.meshgrid(*[axis] * loss.inputs, indexing="ij"), -1).reshape(-1, loss.inputs)


def _climb(
    loss: Loss, error: Callable[[np.ndarray], np.ndarray], x: np.ndarray, output: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reached = error(x)[:, output]
    for _ in range(ROUNDS):
        step = rng.choice([-1, 1], x.shape) * 2.0 ** rng.uniform(-1, 22, (len(x), 1))
        step = np.where(rng.random(x.shape) < 0.7, step, 0).astype(np.int64)
        moved = (x.view(np.int32) + step).astype(np.int32).view(np.float32)
        size = np.clip(np.abs(moved), loss.low, loss.high).astype(np.float32)
        moved = np.copysign(size, x)
        new = error(moved)[:, output]
        better = new > reached
        x, reached = np.where(better[:, None], moved, x), np.where(better, new, reached)
    return x, reached


def _verified(loss: Loss, x: np.ndarray) -> float:
    """The largest relative error of the float64 reference at one point against 50 digits.

    For a gradient that is a small difference it is relative to the terms of the difference.
    """
    m = exact_functions()
    wide = [m.number(float(v)) for v in x]
    with jax.enable_x64(True):
        got = loss.truth(Double, [jnp.asarray(float(v)) for v in x])
    sizes = (loss.terms or loss.truth)(m, wide)
    pairs = zip(got, loss.truth(m, wide), sizes, strict=True)
    return max(
        (float(abs(float(a) - b) / abs(s)) for a, b, s in pairs if abs(s) > 1e-40), default=0
    )
