"""Gradient descent, and averages of its parameters. Optax's optimisers serve too."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from fnn.arguments import AnyOptimizer, Positive, Share, checked
from fnn.arrays import compute_dtype, is_array, is_floating
from fnn.block import NOT_TRACEABLE, Params
from fnn.optimizer import Optimizer
from fnn.pytrees import flat
from fnn.refusals import described, is_real
from fnn.spelling import call_of

# A schedule is a function of the step; a number may be traced, under vmap, say.
LearningRate = Positive | Callable[[jax.Array], jax.Array] | jax.core.Tracer


class OptimizerState(NamedTuple):
    """What :func:`sgd` and :func:`adam` remember.

    ``steps``: int32, the number taken. ``learning_rate``: None where a schedule sets it; being
    part of the state, it changes without recompiling: ``state._replace(learning_rate=0.01)``.
    ``moments``: running averages of the gradients, each of the structure of the parameters.
    """

    steps: jax.Array
    learning_rate: jax.Array | None
    moments: tuple[Params, ...]


# direction(grads, moments, steps) -> (direction, moments), with the number of this step from 1.
Direction = Callable[[Params, tuple[Params, ...], jax.Array], tuple[Params, tuple[Params, ...]]]


def _wide(a: jax.Array) -> jax.Array:
    """In float32 at least: 16 bits do not hold the small changes of a running mean."""
    return a.astype(compute_dtype(a.dtype)) if is_floating(a) else a


def _descent(
    name: str,
    learning_rate: LearningRate,
    moments: int,
    along: Direction,
    *more: Any,
    wide: bool = False,
) -> Optimizer:
    """w <- w - learning_rate * direction, where ``along`` finds the direction.

    ``more``: the optimiser's other arguments. ``wide``: whether moments are in float32 at least.
    """

    def init(params: Params) -> OptimizerState:
        rate = None if callable(learning_rate) else jnp.asarray(1.0 * learning_rate)
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(moments)]
        kept = jax.tree.map(_wide, zeros) if wide else zeros
        return OptimizerState(jnp.zeros((), jnp.int32), rate, tuple(kept))

    def update(
        grads: Params, state: OptimizerState, params: Params = None
    ) -> tuple[Params, OptimizerState]:
        require_state(name, OptimizerState, state)
        if len(state.moments) != moments:
            raise ValueError(
                f"{name}: state has {len(state.moments)} moments, needs {moments}: is it another "
                "optimiser's? Make it with init(params)"
            )
        for path, kind in _leaves(grads).items():
            if not kind.startswith("float"):
                raise TypeError(f"{name}: grads hold {kind} at {path}, need floating arrays")
        for like in state.moments or [params][: params is not None]:
            _require_like(name, "grads", grads, like)
        with traceable(f"{name}: learning_rate"):
            rate = learning_rate(state.steps) if callable(learning_rate) else state.learning_rate
        if not is_real(rate, ()):
            raise ValueError(f"{name}: learning_rate is {described(rate)}, needs one number")
        rate = jnp.asarray(rate)
        steps = state.steps + 1
        direction, moved = along(grads, state.moments, steps)
        updates = jax.tree.map(lambda d: -rate.astype(d.dtype) * d, direction)
        return updates, OptimizerState(steps, state.learning_rate, moved)

    return Optimizer(init, update, call=call_of(name, (learning_rate, *more)))


@checked
def sgd(learning_rate: LearningRate, momentum: Share = 0.0, *, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent: w <- w - learning_rate * dE/dw.

    With momentum m: v <- m v + dE/dw and w <- w - learning_rate * v (Polyak 1964); with
    ``nesterov``, w <- w - learning_rate * (dE/dw + m v) (Sutskever et al. 2013). The same
    numbers as ``optax.sgd``.

    Args:
      learning_rate: a number above 0, or a schedule: a function of the number of steps taken,
        such as Optax's.
      momentum: 0 <= momentum < 1.
      nesterov: look ahead along v; needs a momentum above 0.

    Returns:
      An :class:`~fnn.Optimizer` whose state is an ``OptimizerState``, with ``moments = (v,)``
      where there is a momentum.

    Raises:
      ValueError: a learning rate or momentum out of its range, ``nesterov`` without momentum.

    >>> import fnn, jax.numpy as jnp
    >>> optimizer = fnn.sgd(0.5)
    >>> params = {"w": jnp.array(3.0)}
    >>> updates, state = optimizer.update({"w": jnp.array(2.0)}, optimizer.init(params))
    >>> fnn.apply_updates(params, updates)
    {'w': Array(2., dtype=float32)}
    """
    if nesterov and momentum == 0:
        raise ValueError("sgd: nesterov needs a momentum above 0")

    def plus(velocity: Params, grads: Params) -> Params:
        return jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)

    def along(
        grads: Params, moments: tuple[Params, ...], steps: jax.Array
    ) -> tuple[Params, tuple[Params, ...]]:
        if not moments:
            return grads, ()
        velocity = plus(moments[0], grads)
        return plus(velocity, grads) if nesterov else velocity, (velocity,)

    return _descent("sgd", learning_rate, 1 if momentum else 0, along, momentum, nesterov)


@checked
def adam(
    learning_rate: LearningRate, b1: Share = 0.9, b2: Share = 0.999, eps: Positive = 1e-8
) -> Optimizer:
    """Adam: steps of about the learning rate, whatever the scale of the gradient.

    With g = dE/dw, after step t (Kingma and Ba, ICLR 2015, algorithm 1):

        m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2
        w <- w - learning_rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    The same numbers as ``optax.adam``, but for parameters of 16 bits, whose moments are kept in
    float32: g^2 would be 0 below 2e-4 in float16, and bfloat16 holds no 0.999.

    Args:
      learning_rate: a number above 0, or a schedule: a function of the number of steps taken,
        such as Optax's.
      b1, b2: what the running means of g and g^2 keep of themselves at each step, 0 <= b < 1.
      eps: above 0; keeps the step small where the gradient is close to 0.

    Returns:
      An :class:`~fnn.Optimizer` whose state is an ``OptimizerState`` with ``moments = (m, v)``.

    Raises:
      ValueError: a setting out of its range.

    >>> import fnn, jax.numpy as jnp
    >>> optimizer = fnn.adam(0.5)
    >>> params = {"w": jnp.array(3.0)}
    >>> updates, state = optimizer.update({"w": jnp.array(200.0)}, optimizer.init(params))
    >>> round(float(fnn.apply_updates(params, updates)["w"]), 4)
    2.5
    """

    def along(
        grads: Params, moments: tuple[Params, ...], steps: jax.Array
    ) -> tuple[Params, tuple[Params, ...]]:
        wide = jax.tree.map(lambda m, g: g.astype(m.dtype), moments[0], grads)
        m = jax.tree.map(lambda m, g: (1 - b1) * g + b1 * m, moments[0], wide)
        v = jax.tree.map(lambda v, g: (1 - b2) * g**2 + b2 * v, moments[1], wide)
        t = steps.astype(jnp.result_type(float))  # in 16 bits 0.999^t would be 1
        correct_m, correct_v = 1 - b1**t, 1 - b2**t

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            root = jnp.sqrt(v / correct_v.astype(v.dtype))
            return (m / correct_m.astype(m.dtype) / (root + eps)).astype(g.dtype)

        return jax.tree.map(direction, m, v, grads), (m, v)

    return _descent("adam", learning_rate, 2, along, b1, b2, eps, wide=True)


class AveragedState(NamedTuple):
    """The state of the optimiser inside, the average of the parameters, the steps taken."""

    inner: Any
    average: Params
    steps: jax.Array


for _state in (OptimizerState, AveragedState):  # so that jax.export can write a training step
    export.register_namedtuple_serialization(_state, serialized_name=f"fnn.{_state.__name__}")


@checked
def averaged(optimizer: AnyOptimizer, decay: Share) -> Optimizer:
    """The same steps, and an average of the parameters to evaluate and return (Polyak averaging).

    After step t, ``evaluated`` gives the mean of the parameters after steps 1 to t with weights
    d^(t-1), ..., d, 1, where d is ``decay``. By recursion

        average <- average + (1 - d) / (1 - d^t) (params - average),

    without the pull towards 0 of a plain moving average. (Polyak and Juditsky 1992 have d = 1,
    equal weights, which forgets the beginning late.) Of 16-bit parameters it is kept in float32.

    Args:
      optimizer: one of fnn's or Optax's.
      decay: 0 <= decay < 1.

    Returns:
      An :class:`~fnn.Optimizer` whose state is an ``AveragedState``.

    Raises:
      ValueError: a decay out of its range.

    >>> import fnn, jax.numpy as jnp
    >>> optimizer = fnn.averaged(fnn.sgd(1.0), 0.5)
    >>> params, state = jnp.array(4.0), optimizer.init(jnp.array(4.0))
    >>> for gradient in (1.0, 3.0):  # 4, 3, 0
    ...     updates, state = optimizer.update(jnp.array(gradient), state, params)
    ...     params = fnn.apply_updates(params, updates)
    >>> round(float(optimizer.evaluated(state, params)), 4)  # (0.5 * 3 + 1 * 0) / 1.5
    1.0
    """

    def moved(average: Params, params: Params, steps: jax.Array) -> Params:
        t = jnp.maximum(steps, 1).astype(jnp.result_type(float))
        weight = (1 - decay) / -jnp.expm1(t * math.log(decay)) if decay else jnp.ones(())
        return jax.tree.map(
            lambda a, p: a + weight.astype(a.dtype) * (p.astype(a.dtype) - a), average, params
        )

    def init(params: Params) -> AveragedState:
        copy = jax.tree.map(lambda p: jnp.array(_wide(p)), params)  # a step may donate both
        return AveragedState(optimizer.init(params), copy, jnp.zeros((), jnp.int32))

    def update(
        grads: Params, state: AveragedState, params: Params = None, **extra: Any
    ) -> tuple[Params, AveragedState]:
        require_state("averaged", AveragedState, state)
        _require_like("averaged", "params", params, state.average)
        # The parameters after this step are not known here: frozen ones stay, statistics move.
        average = moved(state.average, params, state.steps)
        updates, inner = optimizer.update(
            grads, state.inner, params, **accepted(optimizer.update, extra)
        )
        return updates, AveragedState(inner, average, state.steps + 1)

    def evaluated(state: AveragedState, params: Params) -> Params:
        require_state("averaged", AveragedState, state)
        _require_like("averaged", "params", params, state.average)
        average = moved(state.average, params, state.steps)
        return jax.tree.map(lambda a, p: a.astype(p.dtype), average, params)

    inner_scale = getattr(optimizer, "scale", None)
    scale = None if inner_scale is None else lambda state: inner_scale(state.inner)
    return Optimizer(init, update, evaluated, call_of("averaged", (optimizer, decay)), scale)


@contextmanager
def traceable(name: str) -> Iterator[None]:
    """Says what to do about a schedule, or an optimiser, that cannot be traced."""
    try:
        yield
    except NOT_TRACEABLE as error:
        raise TypeError(
            f"{name} cannot be compiled: if, float(), an index of a list or NumPy need a number "
            "that is known only when the program runs, such as a schedule's number of the step. "
            "Write it with jax.numpy, such as jnp.where(step < 1000, 0.1, 0.01), or take one of "
            "Optax's schedules"
        ) from error


def accepted(update: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Those of the extra arguments that an optimiser's ``update`` takes."""
    parameters = inspect.signature(update).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in extra.items() if takes_any or name in parameters}


def apply_updates(params: Params, updates: Params) -> Params:
    """``params + updates``, each in its parameter's dtype.

    Raises:
      ValueError: they differ in structure or shapes.
    """
    _require_like("apply_updates", "updates", updates, params)
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


def require_state(name: str, kind: type, state: Any) -> None:
    if not isinstance(state, kind):
        raise TypeError(f"{name}: state is {described(state)}, needs what init(params) returned")


def _require_like(name: str, what: str, tree: Any, params: Params) -> None:
    """Refuses a tree of another structure, shapes or kind of numbers than the parameters'."""
    got, needed = _leaves(tree), _leaves(params)
    for path in sorted(got.keys() | needed.keys()):
        if got.get(path) != needed.get(path):
            here, there = got.get(path, "nothing"), needed.get(path, "nothing")
            raise ValueError(
                f"{name}: {what} hold {here} at {path or 'the top'}, need {there} like the "
                "parameters"
            )
    if flat(tree)[1] != flat(params)[1]:
        raise ValueError(
            f"{name}: {what} are {described(tree)}, need the kind of containers that the "
            f"parameters have: {described(params)}"
        )


def _leaves(tree: Any) -> dict[str, str]:
    """The leaves by their paths, each as its kind of numbers and shape."""

    def kind(leaf: Any) -> str:
        if is_array(leaf):
            return f"{'float' if is_floating(leaf) else leaf.dtype} of shape {tuple(leaf.shape)}"
        return described(leaf)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): kind(v) for path, v in leaves}
