"""What :func:`fnn.fit` returns: the parameters, how they came about, and what to do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import method
from fnn.block import Block, BlockError, Params, Value
from fnn.refusals import described
from fnn.spelling import attribute_meant
from fnn.training.arrays import checked_inputs
from fnn.training.curves import curves
from fnn.training.diagnostics.data_summary import CLASS_LOSSES
from fnn.training.diagnostics.record import Diagnostics
from fnn.training.endings import gives_probabilities
from fnn.training.layout import Layout, without_explicit_mesh
from fnn.training.run import Metric, Row, evaluation
from fnn.training.source import opened
from fnn.training.tables import Columns, require_columns
from fnn.training.validate import predicted

Status = Literal["finished", "converged", "stopped", "interrupted", "diverged"]


class Model(NamedTuple):
    """What was trained, as it is at inference.

    ``net``, ``loss``: blocks. ``predict(params, x)``: compiled. ``metrics``, ``dtype``: as they
    were given to ``fit``. ``columns``: the names of those of x, where it is a table. ``shapes``:
    of one example's x. ``layout``: of the arrays, where several devices trained.
    """

    net: Block
    loss: Block
    predict: Callable[[Params, Value], Value]
    metrics: Mapping[str, Metric]
    dtype: Any
    columns: Columns
    shapes: list[tuple[int, ...]]
    layout: Layout | None = None


class Checkpoint(NamedTuple):
    """All that ``fit(resume=...)`` needs to go on: a pytree of arrays and numbers, to be saved.

    ``params``, ``state``: of the end, the optimiser's state among them. ``best``: the parameters
    with the lowest loss at the end of an epoch so far, with that epoch and loss. ``key_data``: of
    the run's key. ``history``: of all epochs.
    """

    params: Params
    state: Any
    best: tuple[Params, int, float]
    key_data: Any
    history: list[Row]

    def __repr__(self) -> str:
        count = len(self.history)
        best = f"best after epoch {self.best[1]}"
        return f"Checkpoint(after {count} epoch{'s' * (count != 1)}, {best})"

    @property
    def key(self) -> jax.Array:
        """The run's key."""
        data = jnp.asarray(self.key_data)
        return jax.random.wrap_key_data(data, impl="threefry2x32" if data.shape == (2,) else "rbg")


class Fitted(NamedTuple):
    """Result of :func:`fit`.

    It holds functions, which ``pickle`` does not take: save ``checkpoint``, or ``params``.

    ``params``: the best parameters at the end of an epoch: those with the lowest validation loss
    or, without validation, training loss (that of the epoch that begins with them).
    ``last``, ``state``: the parameters and the optimiser's state at the end.
    ``history``: a dict per epoch: ``epoch``, ``loss`` (its mean over the epoch),
    ``validation_loss``, a ``validation_...`` per metric, ``seconds`` since the start.
    ``best_epoch``: where ``params`` is from, 0 for the start.
    ``status``: "finished" (all epochs), "converged" (no better loss for ``patience`` epochs),
    "stopped" (by ``on_epoch``), "interrupted" (by Ctrl-C, or a source that failed), or "diverged"
    (a loss or an update that is not finite, or a loss that rises).
    ``message``: the same in words.
    ``diagnostics``: :class:`~fnn.Diagnostics`, if they were asked for.
    ``checkpoint``: a pytree to save, with which ``fit(resume=...)`` goes on.
    ``model``: the network and the loss, for ``predict`` and ``evaluate``.
    """

    params: Params
    last: Params
    state: Any
    history: list[Row]
    best_epoch: int
    status: Status
    message: str
    diagnostics: Diagnostics | None
    checkpoint: Checkpoint
    model: Model

    @property
    def success(self) -> bool:
        """Whether training finished, converged, or was stopped by ``on_epoch``."""
        return self.status in ("finished", "converged", "stopped")

    @method
    @without_explicit_mesh
    def predict(self, x: Value, *, proba: bool = False) -> Value:
        """Predictions of the best parameters, in batches, as at inference.

        Args:
          x: n examples, as ``fit`` takes them; of a table, with the columns in the same order.
          proba: probabilities in place of logits, for losses of classes.

        Returns:
          What the network returns, with a first axis of n.

        Raises:
          ValueError, TypeError: bad x; ``proba`` with a loss that is not one of classes.

        >>> import fnn, numpy as np
        >>> x, labels = np.array([[-1.0], [1.0]]), np.array([0, 1])
        >>> fitted = fnn.fit(fnn.linear(2), fnn.softmax_cross_entropy(), x, labels, epochs=50,
        ...                  progress=False)
        >>> fitted.predict(x, proba=True).shape, fitted.predict(x).argmax(1).tolist()
        ((2, 2), [0, 1])
        """
        model = self.model
        x = checked_inputs("predict: x", x, model.dtype, model.columns)
        try:
            y = model.predict(self.params, x)
            y = y if model.layout is None else model.layout.back(y)
        except BlockError:
            if [jnp.shape(a) for a in jax.tree.leaves(x)] != model.shapes:
                raise
            raise ValueError(
                f"predict: x has the shape of one example, {model.shapes[0]}, needs a first axis "
                "of examples: x[None]"
            ) from None
        return _probabilities(model, y) if proba else y

    @method
    @without_explicit_mesh
    def evaluate(
        self, x: Value, target: Value = None, *, metrics: Mapping[str, Metric] | None = None
    ) -> dict[str, float]:
        """The loss of the best parameters, and the metrics.

        Args:
          x, target: as for ``fit``: arrays, or a source as x.
          metrics: as for ``fit``; by default those that it was given.

        Returns:
          ``{"loss": ...}`` and an entry for each metric.

        Raises:
          ValueError, TypeError: bad data, as ``fit`` refuses it; metrics that are no mapping.

        >>> import fnn, numpy as np
        >>> x = np.linspace(-1, 1, 64)[:, None]
        >>> fitted = fnn.fit(fnn.linear(1), fnn.squared_error(), x, 2 * x, epochs=100,
        ...                  progress=False, optimizer=fnn.sgd(0.5))
        >>> {name: round(value, 3) for name, value in
        ...  fitted.evaluate(x, 2 * x, metrics={"r2": fnn.r2}).items()}
        {'loss': 0.0, 'r2': 1.0}
        """
        model = self.model
        if metrics is not None and not isinstance(metrics, Mapping):
            raise TypeError(
                f"evaluate: metrics is {described(metrics)}, needs a function for each name: "
                '{"accuracy": fnn.accuracy}'
            )
        require_columns("evaluate: x", x, model.columns)
        data = opened("evaluate: x", x if target is None else (x, target), model.dtype)
        predicted(model.net, model.loss, self.params, data, "evaluate: target")
        chosen = model.metrics if metrics is None else metrics
        row = evaluation(
            model.predict, model.loss, data.on_device(model.layout), chosen, 128, model.layout
        )(self.params)
        return {name.removeprefix("validation_"): value for name, value in row.items()}

    def on(self, layout: Layout) -> Fitted:
        """With its arrays on the mesh that ``fit`` was given."""
        checkpoint = self.checkpoint
        params, state, best = layout.back((checkpoint.params, checkpoint.state, checkpoint.best))
        return self._replace(
            params=layout.back(self.params), last=params, state=state,
            checkpoint=checkpoint._replace(params=params, state=state, best=best),
        )  # fmt: skip

    def __repr__(self) -> str:
        words = f"Fitted: {self.status} {self.message}"
        if self.history:
            row = self.history[min(max(self.best_epoch, 1), len(self.history)) - 1]
            figures = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items()
                       if name not in ("epoch", "seconds")]  # fmt: skip
            words += f"; best after epoch {self.best_epoch}: {', '.join(figures)}"
            words += f"; {self.history[-1]['seconds']:.1f} s"
        return words

    def _repr_html_(self) -> str:
        return curves(self.history, self.best_epoch, repr(self))


def _no_attribute(fitted: Fitted, name: str) -> NoReturn:
    hint = attribute_meant("fitted", name)
    raise AttributeError(f"Fitted has no {name!r}{f': {hint}' if hint else ''}")


if not TYPE_CHECKING:  # which knows that it has none
    Fitted.__getattr__ = _no_attribute


def _probabilities(model: Model, y: Any) -> Any:
    maker, args = model.loss.kind.maker, model.loss.kind.args
    if maker not in (*CLASS_LOSSES, "binary_cross_entropy"):
        raise ValueError(
            f"predict: {model.loss.name} is not a loss of classes, so there are no probabilities: "
            "leave out proba"
        )
    if gives_probabilities(model.net) or maker == "cross_entropy" or args == (False,):
        return y
    return jax.nn.softmax(y, -1) if maker == "softmax_cross_entropy" else jax.nn.sigmoid(y)


def same_structure(a: Any, b: Any) -> bool:
    """Whether two pytrees have leaves of the same shapes in the same places."""
    (leaves, tree), (others, like) = jax.tree.flatten(a), jax.tree.flatten(b)
    return str(tree) == str(like) and list(map(np.shape, leaves)) == list(map(np.shape, others))
