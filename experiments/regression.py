"""Squared error: predicting a number, by one neuron and by a committee of networks.

The loss of one neuron without a nonlinearity is convex, so gradient descent must find the
least-squares solution of linear algebra. That neuron is the experiment's answer. A committee of
networks with a hidden layer is compared with it by cross-validation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import fnn
from experiments.common import figures
from experiments.common.console import console
from experiments.common.data import Dataset, Split, load
from experiments.common.options import Training, at_least
from experiments.common.report import Report
from experiments.common.run import conclude, predict, save, train
from fnn.block import Block

ROUNDING = 1e-9  # between the R2 of the neuron and of least squares, in float64


@dataclass
class Options(Training):
    hidden: int = 64
    """units in each network's hidden layer"""
    dropout: float = 0.3
    """fraction of hidden units dropped at random in each step"""
    folds: int = 10
    """folds of cross-validation"""
    members: int = 4
    """networks for each fold"""
    neuron_epochs: int = 2000
    """steps of full-batch gradient descent in float64 for the single neuron"""
    epochs: int = 60
    learning_rate: float = 0.003
    out: Path = Path("results/regression")


class Committee(NamedTuple):
    """Networks, each trained on all folds but one, at the epoch of the lowest error of all.

    held_out: (n,) for every example, the mean prediction of the networks not trained on it.
    curve: (epochs,) the mean squared error of these predictions after each epoch.
    params: stacked, (folds, members, ...).
    """

    held_out: np.ndarray
    curve: np.ndarray
    params: Any
    epoch: int


def least_squares(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The weights of the exact solution and, last, its bias: (d + 1, 1), float64."""
    rows = np.c_[x, np.ones(len(x))].astype(np.float64)
    return np.linalg.lstsq(rows, target.astype(np.float64), rcond=None)[0]


def affine(wb: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ wb[:-1] + wb[-1]


def cross_validate(net: Block, options: Options, data: Split, fold: np.ndarray) -> Committee:
    """Trains folds x members networks at once: one program, mapped twice by ``jax.vmap``.

    A network is a pure function of its parameters, so many networks are one function of stacked
    parameters. The examples of a network's own fold have weight 0.

    Args:
      fold: (n,) the fold of each example, 0, 1, ...
    """
    n = len(data.x)
    optimizer = options.make_optimizer()
    step = fnn.make_step(net, fnn.squared_error(), optimizer)
    batch = min(options.batch_size, n)
    x = jnp.asarray(data.x, options.jax_dtype)
    target = jnp.asarray(data.target, options.jax_dtype)
    rng = np.random.default_rng(options.seed)
    # One order for all networks; an epoch leaves out the last, smaller batch.
    orders = np.stack([rng.permutation(n)[: n // batch * batch] for _ in range(options.epochs)])
    orders = orders.reshape(options.epochs, -1, batch)

    def fit(weights: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        params = net.init(key, x)

        def one_step(carry: Any, rows_and_number: Any) -> tuple[Any, None]:
            rows, number = rows_and_number
            step_key = jax.random.fold_in(key, number)
            params, state, _ = step(*carry, x[rows], target[rows], step_key, weights[rows])
            return (params, state), None

        def one_epoch(carry: Any, epoch: jax.Array) -> tuple[Any, Any]:
            numbers = epoch * orders.shape[1] + jnp.arange(orders.shape[1])
            carry, _ = jax.lax.scan(one_step, carry, (jnp.asarray(orders)[epoch], numbers))
            return carry, (carry[0], fnn.inference(net).forward(carry[0], x)[0][:, 0])

        start = params, optimizer.init(params)
        return jax.lax.scan(one_epoch, start, jnp.arange(options.epochs))[1]

    folds = np.arange(fold.max() + 1)
    weights = jnp.asarray(fold[None] != folds[:, None], options.jax_dtype)
    keys = jax.random.split(jax.random.key(options.seed), (len(folds), options.members))
    members = jax.vmap(fit, in_axes=(None, 0))  # the same examples, different initial weights
    params, predictions = jax.jit(jax.vmap(members))(weights, keys)
    # (folds, members, epochs, n): each example needs the fold that held it out.
    means = np.asarray(predictions, np.float64).mean(1)
    held_out = means[fold, :, np.arange(n)]  # (n, epochs)
    curve = np.mean(np.square(held_out - data.target), axis=0)
    best = int(np.nan_to_num(curve, nan=np.inf).argmin())
    params = jax.tree.map(lambda p: p[:, :, best], params)
    return Committee(held_out[:, best], curve, params, best + 1)


def main(options: Options) -> int:
    options.prepare()
    at_least(options, 2, "folds")
    at_least(options, 1, "members", "neuron_epochs")
    data = load("diabetes", options.seed, validation=0)
    n = len(data.train.x)
    if options.folds > n:
        raise ValueError(f"--folds is {options.folds}, but there are {n} training patients")
    assert data.target_scale is not None
    spread = float(data.target_scale.std[0])
    console.print(
        f"[bold]How far will diabetes progress in a year?[/bold] {n} patients for training, "
        f"{len(data.test.x)} for testing,\n{data.train.x.shape[1]} measurements each. "
        f"The target has a standard deviation of {spread:.0f}; errors below are in that unit."
    )

    console.print("\n[bold]One neuron[/bold] without a nonlinearity, by gradient descent")
    page = Report(options)
    slow = dataclasses.replace(
        options, optimizer="sgd", learning_rate=0.3, batch_size=n, epochs=options.neuron_epochs,
        dtype="float64",
    )  # fmt: skip
    neuron = fnn.linear(1)
    exact = least_squares(*data.train)
    with jax.enable_x64(True):
        wide = Split(*(a.astype(np.float64) for a in data.train))
        converged = train(slow, neuron, fnn.squared_error(), wide, name="neuron", page=page)
        by_neuron = predict(neuron, converged.params, data.test.x, np.float64)
    reached = np.concatenate([converged.params["w"], converged.params["b"][None]])
    lowest = _half_squares(exact, data.train)
    difference = _half_squares(reached, data.train) - lowest
    console.print(
        f"Its loss is {lowest:.6f}, above the least-squares solution's "
        f"by {difference:.1e}:\nthe loss is convex, and both find its minimum."
    )

    console.print("\n[bold]A network with a hidden layer[/bold], one fold held out for validation")
    net = fnn.models.mlp((options.hidden, 1), fnn.relu(), dropout=options.dropout)
    fold = np.random.default_rng(options.seed).permutation(n) % options.folds
    training, held_out = (Split(*(a[rows] for a in data.train)) for rows in (fold != 0, fold == 0))
    loss, metrics = fnn.squared_error(), {"r2": fnn.r2}
    fitted = train(options, net, loss, training, held_out, metrics, name="network", page=page)

    folds, members = options.folds, options.members
    console.print(
        f"\n[bold]A committee of {folds * members} networks[/bold]: {members} for each of "
        f"{folds} folds, trained at once, none on its own fold"
    )
    committee = cross_validate(net, options, data.train, fold)
    if not np.isfinite(committee.held_out).all():
        raise ValueError(
            "the committee's predictions are not finite: its training diverged; try a lower "
            f"--learning-rate than {options.learning_rate:g} (the neuron and the network are saved)"
        )
    y = data.train.target[:, 0].astype(np.float64)
    linear_held_out = np.empty(n)
    for k in range(folds):
        wb = least_squares(*(a[fold != k] for a in data.train))
        linear_held_out[fold == k] = affine(wb, data.train.x[fold == k])[:, 0]
    # Paired: an example that is hard for both models cancels.
    gain = np.square(linear_held_out - y) - np.square(committee.held_out - y)
    standard_error = float(gain.std(ddof=1) / np.sqrt(n))

    x_test = jnp.asarray(data.test.x, options.jax_dtype)
    each = jax.vmap(jax.vmap(lambda p: fnn.inference(net).forward(p, x_test)[0]))
    votes = np.asarray(jax.jit(each)(committee.params), np.float64)
    predictions = {
        "least squares": affine(exact, data.test.x),
        "neuron": by_neuron,
        "one network": predict(net, fitted.params, data.test.x, options.jax_dtype),
        "committee": votes.mean((0, 1)),
    }
    r2 = {name: fnn.r2(p, data.test.target) for name, p in predictions.items()}
    held_out_by = {"least squares": linear_held_out, "committee": committee.held_out}
    cv = {name: fnn.r2(p, y) for name, p in held_out_by.items()}
    page.table(
        "R2: the fraction of the variance explained",
        ("model", "cross-validated", "test"),
        [(m, f"{cv[m]:.4f}" if m in cv else "", f"{v:.4f}") for m, v in r2.items()],
    )
    console.print(
        f"In cross-validation the committee's squared error is lower by {gain.mean():.4f} ± "
        f"{standard_error:.4f} (standard error).\nThe answer is the neuron's, which must be that "
        "of least squares. So few patients cannot tell\nwhether a hidden layer helps: on "
        f"{len(data.test.x)} test patients, either may be better by a few hundredths."
    )
    (options.out / "committee").mkdir(exist_ok=True)
    curve = enumerate(committee.curve / 2, 1)
    rows = [{"epoch": epoch, "cross_validated_loss": loss} for epoch, loss in curve]
    save(options.out / "committee", committee.params, rows)
    page.picture(
        "Predictions", _predictions_drawn(predictions, r2, data), options.out / "predictions.png",
        "Predicted against true progression of the test patients, in the units of the data.",
    )  # fmt: skip
    linear = float(np.mean(np.square(linear_held_out - y)) / 2)
    page.picture(
        "Learning by both", _curves_drawn(converged, lowest, fitted, committee, linear),
        options.out / "learning.png",
        "Left: the neuron's loss above the least-squares solution's. Middle and right: networks "
        "with a hidden layer; the dot is the epoch that is kept.",
    )  # fmt: skip
    results = {
        "test R2": r2["neuron"],
        "test R2, least squares": r2["least squares"],
        "test R2, committee": r2["committee"],
        "committee's gain in cross-validation": f"{gain.mean():.4f} ± {standard_error:.4f}",
        "neuron's loss above least squares": f"{difference:.1e}",
    }
    status = conclude(options.out, results, fitted if converged.success else converged, page)
    return status or int(not r2["neuron"] >= r2["least squares"] - ROUNDING)


def _half_squares(wb: np.ndarray, data: Split) -> float:
    """The loss of the affine function on the examples, in float64."""
    return float(np.mean(np.square(affine(np.asarray(wb, np.float64), data.x) - data.target)) / 2)


def _predictions_drawn(
    predictions: dict[str, np.ndarray], r2: dict[str, float], data: Dataset
) -> Figure:
    """Predicted against true, in the units of the data."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.9), sharex=True, sharey=True, layout="tight")
    scale = data.target_scale
    assert scale is not None
    true = data.test.target * scale.std + scale.mean
    ends = [true.min() - 10, true.max() + 10]
    models = (("neuron", figures.ORANGE), ("committee", figures.BLUE))
    for axis, (name, color) in zip(axes, models, strict=True):
        axis.plot(ends, ends, color=figures.GREY, lw=1, ls="--", label="predicted = true")
        guess = predictions[name] * scale.std + scale.mean
        axis.scatter(true, guess, s=22, color=color, alpha=0.75, lw=0)
        axis.set(
            xlim=ends, ylim=ends, aspect="equal", xlabel="true",
            title=f"{name}: test R² = {r2[name]:.3f}",
        )  # fmt: skip
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left", frameon=False)
    axes[0].set_ylabel("predicted")
    figure.suptitle("Progression of diabetes after a year, test patients", y=1.01)
    return figure


def _curves_drawn(
    neuron: fnn.Fitted, lowest: float, network: fnn.Fitted, committee: Committee, linear: float
) -> Figure:  # fmt: skip
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="tight")
    losses = np.array([row["loss"] for row in neuron.history])
    left.loglog(np.arange(1, len(losses) + 1), losses - lowest, color=figures.ORANGE)
    left.set(
        xlabel="step of gradient descent",
        ylabel="loss above least squares",
        title="One neuron reaches least squares",
    )
    training, curve = [row["loss"] for row in network.history], committee.curve / 2
    middle.plot(np.arange(1, len(training) + 1), training, color=figures.GREEN)
    middle.set(xlabel="epoch", ylabel="loss", title="One network, training (with dropout)")
    right.plot(
        np.arange(1, len(curve) + 1), curve, color=figures.BLUE,
        label=f"committee; kept: epoch {committee.epoch}",
    )  # fmt: skip
    right.plot(committee.epoch, curve[committee.epoch - 1], "o", color=figures.BLUE)
    right.axhline(linear, color=figures.GREY, ls="--", label="least squares")
    # The two end close together: the first epochs, which are far above, would hide that.
    low, high = min(curve.min(), linear), max(np.median(curve), linear)
    right.set_ylim(low - 0.5 * (high - low) - 1e-3, high + 2.5 * (high - low) + 1e-3)
    right.set(xlabel="epoch", ylabel="loss", title="Examples held out, cross-validated")
    right.legend(fontsize=9, loc="upper right")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    return figure
