"""Backward rules broken on purpose, in the ways that people break them.

Mistakes that any rule can have are made by wrapping the rule; those of one block (a formula that
saturates, a tie given to both sides) are written out. A change that changes nothing here (the
sign of a gradient that is 0) makes no mutant.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import Natural, RandomKey
from fnn.arrays import is_floating
from fnn.block import Block, Kind
from fnn.check import rule
from fnn.check.checks import first_wrong, subject_for
from fnn.check.options import checked
from fnn.check.run import precisely
from fnn.check.subject import Cotangents, Subject, all_finite
from fnn.check.transformations import change_of_gradient
from fnn.check.trials import Batch, Trial, find_batch, trial_at
from fnn.compiling import jit_for_few_runs
from fnn.executor import is_network, map_nodes
from fnn.pytrees import split_floats

CONTROL = "(none: wrapped, but right)"


class Mutant(NamedTuple):
    """A wrong block, by the name of its mistake."""

    name: str
    block: Block


class Verdict(NamedTuple):
    """The property that caught a mutant, or '', and its diagnosis."""

    mutant: str
    caught_by: str
    diagnosis: str


class Mutants(NamedTuple):
    """What the check says of every mutant of a block, and of the block itself (``control``)."""

    name: str
    control: Verdict
    verdicts: tuple[Verdict, ...]

    @property
    def escaped(self) -> tuple[str, ...]:
        """The mistakes that no property caught."""
        return tuple(v.mutant for v in self.verdicts if not v.caught_by)

    @property
    def ok(self) -> bool:
        """Whether every mutant was caught, and the block itself not flagged."""
        return not self.escaped and not self.control.caught_by

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        caught = len(self.verdicts) - len(self.escaped)
        by = Counter(v.caught_by for v in self.verdicts if v.caught_by)
        by_words = ", ".join(f"{name} {count}" for name, count in by.most_common())
        lines = [f"{self.name}: {caught} of {len(self.verdicts)} mutants caught ({by_words})"]
        width = max((len(v.mutant) for v in self.verdicts), default=0)
        for name, caught_by, diagnosis in self.verdicts:
            lines.append(f"  {name:<{width}}  {caught_by or 'ESCAPED':<13}  {diagnosis}".rstrip())
        if self.control.caught_by:
            _, caught_by, diagnosis = self.control
            lines.append(f"the block itself is flagged, by {caught_by}: {diagnosis}")
        else:
            lines.append("the block itself is not flagged")
        return "\n".join(lines)


@checked
def mutants(
    block: Block, x: Any, params: Any = None, key: RandomKey | None = None, seed: Natural = 0
) -> Mutants:
    """Breaks a block's backward on purpose, in a dozen ways, and checks every mutant.

    Shows that the check would notice such mistakes in this block, at these inputs. Takes about as
    long as that many calls of :func:`fnn.check.block`, each up to the first property that fails.

    Args:
      block: any block or network; it should be right.
      x: inputs, or ``jax.ShapeDtypeStruct``, as for :func:`fnn.check.block`.
      params: by default those of ``init``, perturbed.
      key: a ``jax.random.key``, for blocks that draw random numbers.
      seed: random seed for inputs and checks.

    Returns:
      A :class:`Mutants`: print it, or read ``.ok`` and ``.escaped``.

    Raises:
      CheckError: the block cannot be checked.

    >>> import fnn, jax
    >>> report = fnn.check.mutants(fnn.negate(), jax.ShapeDtypeStruct((3,), "float32"))
    >>> report.ok
    True
    >>> report.verdicts[0].mutant, report.verdicts[0].caught_by
    ('sign', 'autodiff')
    """
    subject = subject_for(block, x, params, key, seed)
    verdicts = [judge(subject, mutant) for mutant in (control(subject), *make_mutants(subject))]
    return Mutants(subject.rule.name, verdicts[0], tuple(verdicts[1:]))


def control(subject: Subject) -> Mutant:
    """The right block, wrapped as mutants are: the check has to pass it."""
    return Mutant(CONTROL, _changed(_block(subject), lambda cotangents, dy: cotangents))


def judge(
    subject: Subject, mutant: Mutant, likely: str = "", noted: Collection[str] = ()
) -> Verdict:
    """Checks a mutant up to the first property that fails, ``likely`` first; what is noted of the
    properties in ``noted`` is no mistake."""
    checked = rule.of_block(mutant.block, subject.rule.name)
    wrong = first_wrong(Subject(checked, subject.sample, subject.seed), likely, noted)
    if wrong is None:
        return Verdict(mutant.name, "", "")
    words = str(wrong.problems[0]).split("\n")[0] if wrong.problems else wrong.figure
    return Verdict(mutant.name, wrong.property, words)


def make_mutants(subject: Subject) -> list[Mutant]:
    """All mutants of a block that differ from it."""
    with precisely():
        rng = np.random.default_rng(zlib.crc32(subject.rule.name.encode()))
        trial = trial_at(subject, subject.sample, rng)
        return [
            *_of_cotangents(subject, trial),
            *_of_backward(subject, trial),
            *_at_points(subject, trial),
            *_of_nodes(_block(subject)),
            *_by_hand(subject),
        ]


def _block(subject: Subject) -> Block:
    assert subject.rule.block is not None
    return subject.rule.block


# ---- one cotangent is changed ----------------------------------------------------------------

Change = Callable[[jax.Array], jax.Array]


def _cut_off(d: jax.Array) -> jax.Array:
    top = 0.3 * jax.lax.stop_gradient(jnp.max(jnp.abs(d), initial=0))
    return jnp.clip(d, -top, top)


_CHANGES: dict[str, Change] = {
    "sign": lambda d: -d,
    "factor 2": lambda d: 2 * d,
    "off by 0.1 %": lambda d: 1.001 * d,
    "dropped": jnp.zeros_like,
    "mean for sum": lambda d: d / d.shape[0] if d.ndim else d,
    "transposed": lambda d: jnp.swapaxes(d, -1, -2) if d.ndim > 1 else d,
    "reduced too much": lambda d: (
        jnp.full_like(d, 1) * jnp.sum(d, -1, keepdims=True) if d.ndim else d
    ),
    "not reduced": lambda d: jnp.stack([d, d]) / 2,
    "index off by one": lambda d: jnp.roll(d, 1, -1) if d.ndim else d,
    "last of a ragged end": lambda d: d.at[-1].set(0) if d.ndim and len(d) else d,
    "cut off": _cut_off,
    "through float16": lambda d: d.astype(jnp.float16).astype(d.dtype),
    "a term without dy": lambda d: d + 0.01,
}


def _with_backward(block: Block, backward: Callable[..., Any]) -> Block:
    return block._replace(backward=backward, graph=None)


def _changed(block: Block, change: Callable[[list[Any], Any], list[Any]]) -> Block:
    """The block with ``change(cotangents, dy)`` in place of its floating cotangents."""

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        cotangents, put = split_floats(block.backward(params, residuals, dy))
        return put(change(cotangents, dy))

    return _with_backward(block, backward)


def _change_one(block: Block, number: int, change: Change) -> Block:
    return _changed(
        block, lambda ds, dy: [change(d) if i == number else d for i, d in enumerate(ds)]
    )


def _differs(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape != b.shape or bool(np.max(np.abs(a - b), initial=0) > 1e-6)


def _of_cotangents(subject: Subject, trial: Trial) -> Iterator[Mutant]:
    block, dy = _block(subject), trial.dy
    cotangents = [d for d in trial.got if d is not None]
    sized = {i: d for i, d in enumerate(cotangents) if d.size}

    def one_of(name: str, choices: list[int]) -> int:
        """Another leaf for every mistake, so that all have some."""
        return choices[zlib.crc32(f"{subject.rule.name} {name}".encode()) % len(choices)]

    changed = jit_for_few_runs(
        lambda some: {name: {i: f(d) for i, d in some.items()} for name, f in _CHANGES.items()}
    )(sized)
    for name, change in _CHANGES.items():
        if choices := [i for i, d in sized.items() if _differs(changed[name][i], d)]:
            yield Mutant(name, _change_one(block, one_of(name, choices), change))
    for (j, b), (i, a) in itertools.combinations(enumerate(cotangents), 2):
        if a.shape == b.shape and _differs(a, b):
            yield Mutant("swapped", _swapped(block, i, j))
            break
    passed = [i for i, d in sized.items() if hasattr(dy, "shape") and d.shape == dy.shape]
    if passed:
        at = one_of("dy", passed)
        added = _changed(block, lambda ds, dy: [d + dy if i == at else d for i, d in enumerate(ds)])
        yield Mutant("dy added", added)
    batch = find_batch(subject, trial)
    if isinstance(batch, Batch) and any(map(np.any, cotangents)) and subject.names[-1][0] == "x":
        yield Mutant("batch size hard-coded", _hard_coded(block, batch.size))


def _swapped(block: Block, i: int, j: int) -> Block:
    def swap(cotangents: list[Any], dy: Any) -> list[Any]:
        cotangents[i], cotangents[j] = cotangents[j], cotangents[i]
        return cotangents

    return _changed(block, swap)


def _hard_coded(block: Block, size: int) -> Block:
    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = block.backward(params, residuals, dy)
        share = jax.tree.leaves(dx)[0].shape[0] / size
        return jax.tree.map(lambda d: share * d, (dparams, dx))

    return _with_backward(block, backward)


# ---- what backward reads is changed ----------------------------------------------------------


def _of_backward(subject: Subject, trial: Trial) -> Iterator[Mutant]:
    block = _block(subject)

    def ones(params: Any, residuals: Any, dy: Any) -> Any:
        return block.backward(params, residuals, jax.tree.map(jnp.ones_like, dy))

    def stale(params: Any, residuals: Any, dy: Any) -> Any:
        def other(v: Any) -> Any:
            return 0.9 * jnp.roll(v, 1) if is_floating(v) else v

        return block.backward(params, jax.tree.map(other, residuals), dy)

    def detached(params: Any, residuals: Any, dy: Any) -> Any:
        params, residuals = jax.lax.stop_gradient((params, residuals))
        return block.backward(params, residuals, dy)

    for name, backward in (("dy ignored", ones), ("another residual", stale)):
        mutant = _with_backward(block, backward)
        other = Subject(rule.of_block(mutant), trial.sample, 0).run(trial.sample, trial.dy)[1]
        pairs = zip(other, trial.got, strict=True)
        if any(_differs(a, b) for a, b in pairs if a is not None):
            yield Mutant(name, mutant)
    if _gradient_changes(subject, trial):
        yield Mutant("detached, no second derivative", _with_backward(block, detached))


def _gradient_changes(subject: Subject, trial: Trial) -> bool:
    """Whether the gradient changes when all inputs grow by the same."""
    change = change_of_gradient(subject.programs.traced)
    floats = subject.floats(trial.sample)
    line = [np.ones_like(f) for f in floats]
    slopes, _ = change(floats, line, trial.sample, trial.dy, trial.dy)
    return any(bool(np.max(np.abs(d), initial=0) > 1e-3) for d in slopes)


# ---- wrong at single points ------------------------------------------------------------------


def _seeing_x(block: Block, change: Callable[[Any, Any, Any], Any]) -> Block:
    """The block with ``change(dx, x, dy)`` in place of dx."""

    def forward(params: Any, x: Any, key: Any = None) -> Any:
        y, residuals = block.forward(params, x, key)
        return y, (residuals, x)

    def backward(params: Any, residuals_and_x: Any, dy: Any) -> Any:
        residuals, x = residuals_and_x
        dparams, dx = block.backward(params, residuals, dy)
        return dparams, change(dx, x, dy)

    return block._replace(forward=forward, backward=backward, graph=None)


def _at_points(subject: Subject, trial: Trial) -> Iterator[Mutant]:
    """Wrong where hardly anyone looks: at 0, at infinity."""
    params, x, key = subject.sample
    if key is not None or not hasattr(x, "dtype") or not is_floating(x) or not x.size:
        return
    if trial.got[-1] is None:
        return
    ones = jax.tree.map(lambda v: np.ones(v.shape), subject.y_shape(subject.sample))

    def at(x: np.ndarray) -> tuple[Any, Cotangents]:
        y, cotangents = subject.run(subject.sample._replace(x=x), ones)
        return y, cotangents[-1]

    y, slope = at(np.zeros_like(x))
    if not jax.tree.leaves(params) and np.shape(y) == x.shape and np.isfinite(slope).all():
        block = _seeing_x(_block(subject), lambda dx, x, dy: dx + jnp.where(x == 0, dy, 0))
        yield Mutant("wrong only at 0", block)
    if _has_a_limit(np.asarray(x), at):
        yield Mutant("NaN at infinity", _seeing_x(_block(subject), lambda dx, x, dy: dx + 0 * x))


def _has_a_limit(x: np.ndarray, at: Callable[[np.ndarray], tuple[Any, Any]]) -> bool:
    """Whether value and gradient have a limit where the first entry goes to infinity."""

    def put(value: float) -> tuple[Any, Any]:
        return at(np.concatenate([[value], x.reshape(-1)[1:]]).reshape(x.shape))

    for sign in (-1, 1):
        (y, end), (_, far), (_, near) = put(sign * np.inf), put(sign * 1e8), put(sign * 1e4)
        if all_finite((y, end)) and np.allclose(end, far, 1e-6) and np.allclose(near, far, 1e-6):
            return True
    return False


# ---- a node of a network is changed ----------------------------------------------------------


def _of_nodes(block: Block) -> Iterator[Mutant]:
    if block.graph is None or not is_network(block):
        return

    def with_node(chosen: str, change: Callable[[Block], Block]) -> Block:
        return map_nodes(block, lambda name, inner: change(inner) if name == chosen else inner)

    def turned(inner: Block) -> Block:
        return _changed(inner, lambda ds, dy: [*ds[:-1], *(-d for d in ds[-1:])])

    def without_dparams(inner: Block) -> Block:
        def backward(params: Any, residuals: Any, dy: Any) -> Any:
            dparams, dx = inner.backward(params, residuals, dy)
            return jax.tree.map(jnp.zeros_like, dparams), dx

        return _with_backward(inner, backward)

    for node in block.graph.nodes[:1]:
        yield Mutant(f"sign, inside {node.name}", with_node(node.name, turned))
    for name in [node.name for node in block.graph.nodes if node.params_of != node.name][:1]:
        yield Mutant("gradient of the first use only", with_node(name, without_dparams))


# ---- formulas that are right on paper --------------------------------------------------------


def _by_hand(subject: Subject) -> Iterator[Mutant]:
    block, x = _block(subject), subject.sample.x
    match block.kind:
        case Kind("logistic"):
            yield Mutant("y (1 - y)", _from_y(block, lambda y: y * (1 - y)))
        case Kind("tanh"):
            yield Mutant("1 - y^2", _from_y(block, lambda y: 1 - y * y))
        case Kind("softplus"):
            yield Mutant("1 - exp(-y)", _from_y(block, lambda y: 1 - jnp.exp(-y)))
        case Kind("elu" | "celu", (1.0,)):
            yield Mutant("y + 1 from y", _from_y(block, lambda y: jnp.where(y > 0, 1, y + 1)))
        case Kind("gelu", (False,)):
            yield Mutant("(1 + erf) / 2", _keeping(block, lambda x, y: x, _gelu_by_erf))
        case Kind("softmax_cross_entropy") if len(x) == 2:  # without weights
            yield Mutant("p - t", _keeping(block, lambda x, y: x, _softmax_minus_t))
        case Kind("binary_cross_entropy", (True,)) if len(x) == 2 and np.any(
            x[1]
        ):  # p - 0 is right
            yield Mutant("p - t", _keeping(block, lambda x, y: x, _sigmoid_minus_t))
        case Kind("linear", (*_, True)) if np.ndim(x) > 1:
            yield Mutant("sum in the narrow dtype", _narrow_sum(block))
        case Kind("dropout"):
            forgotten = _with_backward(block, lambda params, residuals, dy: ({}, dy))
            yield Mutant("mask forgotten", forgotten)
        case Kind("maximum" | "minimum"):
            yield Mutant("a tie to both", _seeing_x(block, _tie_to_both))


def _keeping(
    block: Block, keep: Callable[[Any, Any], Any], backward: Callable[[Any, Any], Any]
) -> Block:
    """The block that keeps ``keep(x, y)``, and whose dx is ``backward(kept, dy)``."""

    def forward(params: Any, x: Any, key: Any = None) -> Any:
        y, _ = block.forward(params, x)
        return y, keep(x, y)

    return block._replace(
        forward=forward, backward=lambda params, kept, dy: ({}, backward(kept, dy))
    )


def _from_y(block: Block, derivative: Callable[[Any], Any]) -> Block:
    """With a derivative computed from y, which has lost digits of x."""
    return _keeping(block, lambda x, y: y, lambda y, dy: dy * derivative(y).astype(dy.dtype))


def _gelu_by_erf(x: Any, dy: Any) -> Any:
    density = jnp.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return dy * ((1 + jax.lax.erf(x / np.sqrt(2))) / 2 + x * density).astype(dy.dtype)


def _softmax_minus_t(x: Any, dy: Any) -> Any:
    """dE/dz = p - t, of which nothing is left in a confident row."""
    z, t = x
    rows = t if is_floating(t) else jax.nn.one_hot(t, z.shape[-1], dtype=z.dtype)
    dz = dy * (jax.nn.softmax(z) - rows) / (z.size // z.shape[-1])
    return dz.astype(z.dtype), jnp.zeros_like(t) if is_floating(t) else None


def _sigmoid_minus_t(x: Any, dy: Any) -> Any:
    z, t = x
    dz = dy * (jax.nn.sigmoid(z) - t.astype(z.dtype)) / z.size
    return dz.astype(z.dtype), jnp.zeros_like(t) if is_floating(t) else None


def _tie_to_both(dx: Any, x: Any, dy: Any) -> Any:
    return tuple(jnp.where(x[0] == x[1], dy, d) for d in dx)


def _narrow_sum(block: Block) -> Block:
    """The bias' gradient added up example by example, in dy's dtype."""

    def backward(params: Any, residuals: Any, dy: Any) -> Any:
        dparams, dx = block.backward(params, residuals, dy)
        rows = dy.reshape(-1, *params["b"].shape)
        total, _ = jax.lax.scan(lambda sum, row: (sum + row, None), jnp.zeros_like(rows[0]), rows)
        return dparams | {"b": total.astype(params["b"].dtype)}, dx

    return block._replace(backward=backward)
