"""One neuron is logistic regression: z = wᵀx + b, and logistic(z) is a probability.

First a neuron learns to tell benign from malignant by 30 features. Then another, on five of
them, is trained to convergence in float64 and compared with scikit-learn's optimum: the loss is
convex, so both must find its one minimum.
"""

from __future__ import annotations

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
from experiments.common.data import Dataset, load
from experiments.common.options import Training
from experiments.common.report import Report
from experiments.common.run import conclude, predict, train
from fnn.block import Block

# No plane separates the classes by these five features, so the optimum is finite. (All 30 do
# separate the training examples: the loss falls for ever and the weights grow without bound.)
FEATURES = (
    "mean radius", "mean texture", "mean smoothness", "mean symmetry", "mean fractal dimension",
)  # fmt: skip
AGREEMENT = 1e-5
FLAT = 1e-10  # the largest gradient entry at which gradient descent has converged
MAX_STEPS = 100_000  # it takes a few thousand


@dataclass
class Options(Training):
    epochs: int = 50
    out: Path = Path("results/neuron")
    """folder for report.html, history.csv, the parameters and figures"""


def main(options: Options) -> int:
    options.prepare()
    data = load("breast_cancer", options.seed)
    net, loss = fnn.models.logistic_regression(), fnn.binary_cross_entropy()
    console.print(
        f"[bold]One neuron is logistic regression[/bold]: {len(data.feature_names)} features of "
        f"cell nuclei, benign (1) or malignant (0).\n{data.sizes()}."
    )
    page, metrics = Report(options), {"accuracy": fnn.accuracy}
    fitted = train(options, net, loss, data.train, data.validation, metrics, page=page)
    z = predict(net, fitted.params, data.test.x, options.jax_dtype)
    accuracy = fnn.accuracy(z, data.test.target)
    p = np.asarray(jax.nn.sigmoid(z))
    page.classified(np.stack([1 - p, p], -1), data.test.target, data.class_names)
    page.picture(
        "A neuron", _neuron_drawn(z, data, accuracy), options.out / "neuron.png",
        "Test examples by z, the weighted sum; the line is the probability that the sigmoid makes "
        "of it.",
    )  # fmt: skip

    with jax.enable_x64(True):
        x = data.train.x[:, data.columns(FEATURES)].astype(np.float64)
        t = data.train.target
        ours = converge(net, loss, x, t, options.seed)
        referee = scikit_learn(x, t)
        descent = _descent_drawn(net, loss, x, t, ours.params)
    difference = abs(ours.loss - referee.loss)
    page.picture(
        "Gradient descent", descent, options.out / "descent.png",
        "The loss over two of the weights, the others at their optimum: it is convex, so descent "
        "ends at the one minimum.",
    )  # fmt: skip
    _print_agreement(ours, referee, x, t, page)
    page.picture(
        "The weights", _weights_drawn(ours, referee), options.out / "weights.png",
        "The weights by gradient descent and by scikit-learn's Newton method.",
    )  # fmt: skip
    results = {
        "test accuracy": accuracy,
        "loss at convergence": f"{ours.loss:.12f} (scikit-learn {referee.loss:.12f})",
        "difference": f"{difference:.1e}, needs at most {AGREEMENT:g}",
    }
    status = conclude(options.out, results, fitted, page)
    return status or int(not difference <= AGREEMENT)


# ---- to convergence --------------------------------------------------------------------------


class Optimum(NamedTuple):
    """A neuron's parameters and loss, after ``steps``; ``slope``: its largest gradient entry."""

    params: Any
    loss: float
    steps: int = 0
    slope: float = 0.0

    @property
    def weights(self) -> np.ndarray:
        """w and then b."""
        linear = self.params["linear"]
        return np.append(np.asarray(linear["w"]), np.asarray(linear["b"]))


def converge(net: Block, loss: Block, x: np.ndarray, t: np.ndarray, seed: int) -> Optimum:
    """Full-batch gradient descent until the gradient vanishes.

    The step is 1/L, so that every step descends. L is the largest curvature of the loss:
    logistic' is at most 1/4, so L is a quarter of the largest eigenvalue of X^T X / n.
    """
    design = np.column_stack([x, np.ones(len(x))])
    largest = np.linalg.eigvalsh(design.T @ design / len(x))[-1] / 4
    optimizer = fnn.sgd(1 / largest)
    step = fnn.make_step(net, loss, optimizer)
    gradient = jax.jit(fnn.value_and_grad(net, loss))
    examples = jnp.asarray(x), jnp.asarray(t)
    params = net.init(jax.random.key(seed), examples[0])
    state = optimizer.init(params)
    for count in range(MAX_STEPS + 1):
        if count % 100 == 0:
            value, grads = gradient(params, *examples)
            slope = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads))
            if slope <= FLAT:
                break
        params, state, _ = step(params, state, *examples)
    return Optimum(params, float(value), count, slope)


def scikit_learn(x: np.ndarray, t: np.ndarray) -> Optimum:
    """The reference: another algorithm (Newton's) and loss function, by others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    # C is the inverse of the regularisation strength: none.
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(x, t)
    params = {"linear": {"w": model.coef_[0], "b": model.intercept_[0]}}
    return Optimum(params, float(log_loss(t, model.predict_proba(x))), int(model.n_iter_[0]))


def _print_agreement(
    ours: Optimum, referee: Optimum, x: np.ndarray, t: np.ndarray, page: Report
) -> None:
    z = x @ ours.weights[:-1] + ours.weights[-1]
    wrong = int(np.sum((z > 0) != (t > 0.5)))
    console.print(
        f"\n[bold]To convergence[/bold], on {len(FEATURES)} features, without regularisation: "
        f"{ours.steps} steps of gradient descent\nby fnn in float64, until no gradient exceeds "
        f"{FLAT:g}; scikit-learn took {referee.steps} steps of Newton's method.\n"
        "The two are comparable because the loss is convex: a point of zero slope is the minimum."
        f"\nIt is finite because no plane separates the classes: {wrong} of {len(t)} examples are "
        "misclassified even there.\n"
    )
    rows = [
        (name, f"{a:+.9f}", f"{b:+.9f}", f"{abs(a - b):.1e}")
        for name, a, b in zip((*FEATURES, "bias"), ours.weights, referee.weights, strict=True)
    ]
    difference = abs(ours.loss - referee.loss)
    rows.append(("loss", f"{ours.loss:.12f}", f"{referee.loss:.12f}", f"{difference:.1e}"))
    page.table("The same neuron twice", ("weight", "fnn", "scikit-learn", "difference"), rows)


# ---- pictures --------------------------------------------------------------------------------


def _neuron_drawn(z: np.ndarray, data: Dataset, accuracy: float) -> Figure:
    """A histogram of z over the test examples, and the probability logistic(z)."""
    figure, axis = plt.subplots(figsize=(8, 4.4))
    limit = min(20.0, float(np.abs(z).max()) + 1)
    bins = np.linspace(-limit, limit, 41).tolist()
    for label, color in ((0, figures.RED), (1, figures.BLUE)):
        axis.hist(
            np.clip(z[data.test.target == label], -limit, limit), bins, color=color, alpha=0.65,
            label=data.class_names[label],
        )  # fmt: skip
    axis.axvline(0, color="black", lw=1, ls=":")
    axis.set(
        xlabel="z = w$^T$x + b  (clipped at both ends)",
        ylabel="test examples",
        title=f"A neuron: a weighted sum and a sigmoid; test accuracy {accuracy:.1%}",
    )
    probability = axis.twinx()
    line = np.linspace(-limit, limit, 400)
    probability.plot(line, 1 / (1 + np.exp(-line)), color="black", lw=2, label="logistic(z)")
    probability.set(
        ylim=(0, 1.25), yticks=np.arange(6) / 5, ylabel=f"probability of {data.class_names[1]}"
    )
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])
    figure.legend(
        loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1), bbox_transform=axis.transAxes
    )
    return figure


def _weights_drawn(ours: Optimum, referee: Optimum) -> Figure:
    figure, axis = plt.subplots(figsize=(8, 4))
    names = (*FEATURES, "bias")
    places = np.arange(len(names))
    label, color = "fnn, gradient descent", figures.BLUE
    bars = axis.bar(places - 0.2, ours.weights, 0.38, color=color, label=label)
    axis.bar(places + 0.2, referee.weights, 0.38, color=figures.ORANGE, label="scikit-learn")
    axis.bar_label(bars, fmt="%.3f", fontsize=9, padding=3)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(places, [name.replace(" ", "\n") for name in names])
    axis.margins(y=0.12)
    axis.set(ylabel="weight (standardised features)", title="The same optimum, found twice")
    axis.legend()
    axis.grid(axis="y", alpha=0.3)
    return figure


def _descent_drawn(net: Block, loss: Block, x: np.ndarray, t: np.ndarray, params: Any) -> Figure:
    """The loss over two weights, the others at their optimum, and gradient descent on the two."""
    examples = jnp.asarray(x), jnp.asarray(t)
    best = params["linear"]["w"]

    def at(pair: jax.Array) -> Any:
        return {"linear": {"w": best.at[:2].set(pair), "b": params["linear"]["b"]}}

    both = jax.jit(lambda pair: fnn.value_and_grad(net, loss)(at(pair), *examples))
    pair = jnp.array([2.0, 3.0])
    steps = [pair]
    for _ in range(300):
        pair = pair - 2.0 * both(pair)[1]["linear"]["w"][:2]
        steps.append(pair)
    points = np.array(steps).T
    first, second = np.linspace(-11, 3.5, 90), np.linspace(-6, 4, 90)
    grid = jnp.asarray(np.stack(np.meshgrid(first, second), -1).reshape(-1, 2))
    height = np.asarray(jax.jit(jax.vmap(lambda p: both(p)[0]))(grid)).reshape(90, 90)

    figure, axis = plt.subplots(figsize=(8, 5.2))
    levels = height.min() * np.geomspace(1.005, height.max() / height.min(), 16)
    filled = axis.contourf(first, second, np.log10(height), 30, cmap="Blues_r")
    axis.contour(first, second, height, levels, colors="white", linewidths=0.7)
    axis.plot(
        *points, "-o", color=figures.ORANGE, lw=1.5, ms=4, mec="white", mew=0.4,
        label="gradient descent, one dot per step",
    )  # fmt: skip
    axis.plot(*best[:2], "*", color=figures.RED, ms=18, mec="white", label="optimum", zorder=5)
    axis.set(
        xlabel=f"weight of {FEATURES[0]}",
        ylabel=f"weight of {FEATURES[1]}",
        title="The loss is convex: one valley, one lowest point",
    )
    axis.legend(loc="upper left")
    figure.colorbar(filled, label="log10 of the loss (other weights at their optimum)")
    return figure
