"""Training from initialisation to convergence: initialise, forward, backward, descend, repeat."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.backprop import with_loss
from fnn.block import Block, BlockValueError, Key, Params, Value, inference, is_floating
from fnn.check.finite import first_nonfinite
from fnn.optimizers import sgd
from fnn.training import make_epoch, make_predict

Metric = Callable[[Any, Any], float]
Row = dict[str, float]


class Fitted(NamedTuple):
    """What training gave.

    ``params``: the best parameters (of the lowest validation loss, or training loss when there
    is no validation). ``state``: the optimiser's state at the end. ``history``: one dict per
    epoch: ``epoch``, ``loss`` (mean over the epoch), ``validation_loss`` and a
    ``validation_...`` per metric, ``seconds``. ``best_epoch``: where ``params`` is from, 0 for
    the start. ``stopped``: why training ended. ``ok``: whether it ended as asked, not by an
    interrupt or a loss that is not finite.
    """

    params: Params
    state: Any
    history: list[Row]
    best_epoch: int
    stopped: str
    ok: bool


def fit(
    net: Block,
    loss: Block,
    x: Value,
    target: Value,
    *,
    optimizer: Any = None,
    epochs: int = 10,
    batch_size: int = 128,
    key: Key = None,
    params: Params = None,
    validation: tuple[Value, Value] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    dtype: Any = None,
    tolerance: float | None = None,
    patience: int = 5,
    steps_per_call: int | None = None,
    progress: Callable[[Row, float], None] | bool = True,
) -> Fitted:
    """Trains a network: the whole pipeline, compiled, reproducible from the key.

    Args:
      net, loss: blocks.
      x, target: arrays of n examples, or tuples of such. Refused before training if empty, of
        different lengths, NaN or infinite, or not what the loss needs.
      optimizer: :func:`~fnn.sgd` or any of Optax's; ``sgd(0.1)`` by default.
      epochs: passes over the data, at most.
      batch_size: examples per step; the last batch of an epoch may be smaller.
      key: seeds initialisation, shuffling and dropout; ``jax.random.key(0)`` by default.
      params: where to start; ``net.init(key, x)`` by default.
      validation: ``(x, target)`` to judge every epoch by.
      metrics: functions ``(prediction, target) -> float`` by name, such as ``fnn.accuracy``,
        of the validation predictions.
      dtype: of the computation; x is cast to it. bfloat16 computes in bfloat16 with float32
        parameters. By default x's own.
      tolerance: stop as converged when for ``patience`` epochs the loss has not fallen below
        its lowest by this fraction.
      steps_per_call: steps per compiled call; fewer than an epoch's make interrupts and
        progress prompt when epochs are long. The whole epoch by default.
      progress: called with (row, seconds left) after each epoch; True prints to stderr.

    Returns:
      :class:`Fitted`. Ctrl-C ends training and keeps what was learned. A loss that is not
      finite ends it too, warns which block made it, and keeps the last good parameters.

    >>> import fnn, numpy as np
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> fitted = fnn.fit(fnn.linear(1), fnn.squared_error(), x, 3 * x + 1, epochs=200,
    ...                  batch_size=16, tolerance=1e-3, progress=False)
    >>> round(float(fitted.params["w"][0, 0]), 2), round(float(fitted.params["b"][0]), 2)
    (3.0, 1.0)
    """
    if epochs < 0:
        raise ValueError(f"fit: epochs is {epochs}, needs 0 or more")
    optimizer = sgd(0.1) if optimizer is None else optimizer
    key = jax.random.key(0) if key is None else key
    x, target = _data("x", x, target, dtype)
    n = jax.tree.leaves(x)[0].shape[0]
    batch_size = min(batch_size, n)
    params = _parameters(net, params, key, x)
    _check_target(net, loss, params, x, target, "target")
    evaluate = None
    if validation is not None:
        val_x, val_target = _data("validation x", *validation, dtype)
        _check_target(net, loss, params, val_x, val_target, "validation target")
        evaluate = _evaluator(net, loss, val_x, val_target, metrics or {})

    state = optimizer.init(params)
    epoch = make_epoch(net, loss, optimizer, batch_size)
    calls = _calls(n, batch_size, steps_per_call)
    shuffle = np.random.default_rng(_seed(key))
    report = _print_progress(epochs) if progress is True else progress or (lambda row, left: None)
    x, target = jax.tree.map(jnp.asarray, (x, target))

    best, best_epoch, lowest = params, 0, math.inf
    stale, reference = 0, math.inf
    history: list[Row] = []
    stopped, ok = f"after {epochs} epochs", True
    start = time.perf_counter()
    try:
        for number in range(1, epochs + 1):
            order = shuffle.permutation(n).astype(np.int32)
            epoch_key = jax.random.fold_in(key, number)
            losses = []
            for i, rows in enumerate(np.split(order, calls)):
                call_key = jax.random.fold_in(epoch_key, i)
                before = params, state
                params, state, values = epoch(params, state, x, target, rows, call_key)
                values = np.asarray(values)
                losses.append(values)
                if not np.all(np.isfinite(values)):
                    bad = int(np.argmin(np.isfinite(values)))
                    good = rows[: bad * batch_size]
                    if bad:  # go there again: everything is a function of the key
                        before = epoch(*before, x, target, good, call_key)[:2]
                    batch = rows[bad * batch_size : (bad + 1) * batch_size]
                    step_key = jax.random.fold_in(call_key, bad)
                    where = _blame(net, loss, before[0], _take((x, target), batch), step_key)
                    step = sum(map(len, losses)) - len(values) + bad + 1
                    raise FloatingPointError(
                        f"the loss is {values[bad]} at epoch {number}, step {step}; {where}"
                    )
            row = {"epoch": number, "loss": _mean(losses, n, batch_size)}
            if evaluate is not None:
                row |= evaluate(params)
            row["seconds"] = time.perf_counter() - start
            history.append(row)
            monitored = row.get("validation_loss", row["loss"])
            if monitored < lowest:
                best, best_epoch, lowest = params, number, monitored
            report(row, row["seconds"] / number * (epochs - number))
            if tolerance is not None:
                improved = row["loss"] < reference - tolerance * abs(reference)
                if improved or not math.isfinite(reference):
                    reference, stale = row["loss"], 0
                else:
                    stale += 1
                if stale >= patience:
                    stopped = f"converged: loss within {tolerance:g} for {patience} epochs"
                    break
    except KeyboardInterrupt:
        stopped, ok = f"interrupted in epoch {len(history) + 1}", False
        if not history:
            best = params
    except FloatingPointError as error:
        stopped, ok = str(error), False
        if not history:
            best = before[0]
        warnings.warn(
            f"fit stopped: {error}. The best parameters so far are kept. "
            "Try a lower learning rate, or look at the data and that block.",
            RuntimeWarning,
            stacklevel=2,
        )
    return Fitted(best, state, history, best_epoch, stopped, ok)


def _data(what: str, x: Value, target: Value, dtype: Any) -> tuple[Value, Value]:
    """Examples on the host, refused if empty, of different lengths, or not finite."""
    x, target = jax.tree.map(np.asarray, (x, target))
    lengths = {a.shape[0] if a.ndim else None for a in jax.tree.leaves((x, target))}
    if None in lengths:
        raise ValueError(f"fit: {what} needs a first axis of examples, got a scalar")
    if len(lengths) > 1:
        shapes = [a.shape for a in jax.tree.leaves((x, target))]
        raise ValueError(
            f"fit: {what} and its target need one entry per example each, got shapes {shapes}"
        )
    if lengths == {0}:
        raise ValueError(f"fit: {what} is empty; training needs at least one example")
    for a in jax.tree.leaves(x):
        if is_floating(a) and not np.isfinite(a.sum()):  # one fast pass; look closer if need be
            bad = np.argwhere(~np.isfinite(a))
            if len(bad):
                raise ValueError(
                    f"fit: {what} has {len(bad)} values that are NaN or infinite, the first in "
                    f"example {bad[0][0]}; repair or drop these examples"
                )
    if dtype is not None:
        x = jax.tree.map(lambda a: a.astype(dtype) if is_floating(a) else a, x)
    return x, target


def _parameters(net: Block, params: Params, key: Key, x: Value) -> Params:
    """New parameters, or the given ones if they are this network's."""
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), x)
    if params is None:
        return jax.jit(lambda key: net.init(key, one))(key)
    needed = _shapes(jax.eval_shape(net.init, key, one))
    got = _shapes(params)
    for path in sorted(needed.keys() | got.keys()):
        if needed.get(path) != got.get(path):
            raise BlockValueError(
                path,
                f"params hold {got.get(path, 'nothing')}, the network needs "
                f"{needed.get(path, 'nothing')} here: are these another network's parameters?",
            )
    return jax.tree.map(jnp.asarray, params)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _check_target(
    net: Block, loss: Block, params: Params, x: Value, target: Value, what: str
) -> None:
    """The first errors there can be, raised before anything is compiled."""
    prediction = jax.eval_shape(inference(net).forward, params, x)[0]
    jax.eval_shape(lambda y, t: loss.forward({}, (y, t))[0], prediction, target)
    if loss.validate is not None:
        try:
            loss.validate((prediction, target))
        except BlockValueError as error:
            error.message = f"{what}: {error.message}"
            raise


def _evaluator(
    net: Block, loss: Block, x: Value, target: Value, metrics: Mapping[str, Metric]
) -> Callable[[Params], Row]:
    predict = make_predict(net)
    value = jax.jit(lambda y, t: loss.forward({}, (y, t))[0])
    x_on_device, target_on_device = jax.tree.map(jnp.asarray, (x, target))

    def evaluate(params: Params) -> Row:
        y = predict(params, x_on_device)
        row = {"validation_loss": float(value(y, target_on_device))}
        y = jax.tree.map(np.asarray, y)
        return row | {f"validation_{name}": m(y, target) for name, m in metrics.items()}

    return evaluate


def _calls(n: int, batch_size: int, steps: int | None) -> list[int]:
    """Where to cut an epoch's order into compiled calls of ``steps`` steps."""
    if steps is None:
        return []
    if steps < 1:
        raise ValueError(f"fit: steps_per_call is {steps}, needs at least 1")
    return list(range(steps * batch_size, n, steps * batch_size))


def _mean(losses: list[np.ndarray], n: int, batch_size: int) -> float:
    """The mean loss over the examples: the last batch counts by its size."""
    values = np.concatenate(losses).astype(np.float64)
    sizes = np.minimum(batch_size, n - batch_size * np.arange(len(values)))
    return float(np.average(values, weights=sizes))


def _take(data: Value, rows: np.ndarray) -> Value:
    return jax.tree.map(lambda a: a[rows], data)


def _blame(net: Block, loss: Block, params: Params, batch: Value, key: Key) -> str:
    found = first_nonfinite(with_loss(net, loss), {"net": params}, batch, key)
    return str(found) if found else "no block is at fault when run again, uncompiled"


def _seed(key: Key) -> list[int]:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return [int(word) for word in np.ravel(jax.random.key_data(key) if typed else key)]


def _print_progress(epochs: int) -> Callable[[Row, float], None]:
    def report(row: Row, left: float) -> None:
        numbers = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in row.items()
            if name not in ("epoch", "seconds")
        )
        time_left = f", {left:.0f} s left" if left else ""
        print(
            f"epoch {row['epoch']}/{epochs}  {numbers}  {row['seconds']:.1f} s{time_left}",
            file=sys.stderr,
        )

    return report
