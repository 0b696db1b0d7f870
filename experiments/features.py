"""Features learned rather than designed: one linear classifier on pixels, PCA, hidden units."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import fnn
from experiments.common import figures
from experiments.common.console import console
from experiments.common.data import Dataset, Split, load
from experiments.common.html import saved_picture
from experiments.common.options import Training, at_least
from experiments.common.report import Report
from experiments.common.run import conclude, predict, train
from experiments.googlenet.learned import up_to, what_photographs_show

PHOTOGRAPHS = (
    ("First filters", "All filters of GoogLeNet's first layer: edges, colours, gratings."),
    ("What excites a unit", "For some units of four layers, the parts of the photographs that "
     "excite them most, the strongest first."),
)  # fmt: skip


@dataclass
class Options(Training):
    data: Literal["digits", "mnist", "photographs"] = "digits"
    """data set; photographs: what a trained GoogLeNet learned to see in them"""
    hidden: int = 48
    """units of the hidden layer, and number of principal components"""
    dropout: float = 0.3
    """fraction of hidden units dropped at random in each step of the first training"""
    epochs: int = 60
    """passes over the training data to learn the features"""
    linear_epochs: int = 100
    """at most, for each linear classifier: it stops when its loss no longer falls"""
    data_dir: Path | None = None
    """folder that holds mnist/, or photographs with labels.tsv; else $FNN_DATA, or a download"""
    out: Path | None = None  # type: ignore[assignment]
    """folder for the report, parameters and figures; results/features_DATA by default"""


def main(options: Options) -> int:
    options.out = options.out or Path("results") / f"features_{options.data}"
    options.prepare()
    at_least(options, 1, "linear_epochs")
    if options.data == "photographs":
        files = what_photographs_show(options.data_dir, options.out)
        page = Report(options)
        for path, (title, caption) in zip(files, PHOTOGRAPHS, strict=True):
            page.add(title, saved_picture(path, caption))
        page.thumbnail = files[0].name
        page.write(options.out)
        console.print(f"saved {', '.join(map(str, files))}", markup=False)
        return 0
    data = load(options.data, options.seed, options.data_dir)
    pixels = data.train.x.shape[1]
    if options.hidden > pixels:
        raise ValueError(
            f"--hidden is {options.hidden}, but images of {pixels} pixels have no more components"
        )
    console.print(
        "[bold]Where do good features come from?[/bold] Three descriptions of the same images: "
        "pixels, principal\ncomponents (PCA) with the largest variance, and hidden units of a "
        "network trained to tell the classes\napart. The same linear classifier is trained on each."
    )
    console.print("\n[bold]First, a network learns the features[/bold]")
    page = Report(options)
    net = fnn.models.mlp((options.hidden, 10), fnn.relu(), dropout=options.dropout)
    fitted = train(
        options, net, fnn.softmax_cross_entropy(), data.train, data.validation,
        {"accuracy": fnn.accuracy}, name="network", page=page,
    )  # fmt: skip
    if not fitted.success:
        return conclude(options.out, {"stopped": fitted.message}, fitted, page)
    body = up_to(net, "relu_1")
    learned = {"hidden_1": fitted.params["hidden_1"]}
    components, center = _principal_components(data.train.x, options.hidden, options.seed)
    splits = data.splits
    features: dict[str, dict[str, np.ndarray]] = {"pixels": {}, "PCA": {}, "hidden units": {}}
    for part, (x, _) in splits.items():
        features["pixels"][part] = x
        features["PCA"][part] = (x - center) @ components
        features["hidden units"][part] = predict(body, learned, x, options.jax_dtype)
    accuracy: dict[tuple[str, str], float] = {}
    for name, own in features.items():
        console.print(f"\n[bold]A linear classifier of {name}[/bold]")
        # Scaled to the same spread on the training images, so that one step size suits all.
        mean, spread = own["train"].mean(0), float(own["train"].std(0).mean() or 1.0)
        scaled = {k: ((v - mean) / spread).astype(np.float32) for k, v in own.items()}
        linear = fnn.linear(len(data.class_names))
        plain = dataclasses.replace(
            options, epochs=options.linear_epochs, optimizer="sgd", learning_rate=0.01
        )
        classifier = train(
            plain, linear, fnn.softmax_cross_entropy(),
            Split(scaled["train"], data.train.target),
            Split(scaled["validation"], data.validation.target),
            {"accuracy": fnn.accuracy}, name=f"linear_{name.replace(' ', '_')}",
            min_improvement=1e-3, page=page,
        )  # fmt: skip
        for part in ("train", "test"):
            logits = predict(linear, classifier.params, scaled[part], options.jax_dtype)
            accuracy[name, part] = fnn.accuracy(logits, splits[part].target)
    console.print()
    page.table(
        "The same linear classifier on three kinds of features",
        ("features", "number", "training accuracy", "test accuracy"),
        [
            (n, own["test"].shape[1], *(f"{accuracy[n, part]:.4f}" for part in ("train", "test")))
            for n, own in features.items()
        ],
    )
    console.print(
        "PCA is a linear function of the pixels, so it gives a linear classifier nothing that the "
        "pixels\ndo not. The hidden units are nonlinear and were learned for the task."
    )
    w = np.asarray(fitted.params["hidden_1"]["w"], np.float32)
    page.picture(
        "Learned and designed", _filters_drawn(w, components, data), options.out / "filters.png",
        "Weights of hidden units, and principal components: red positive, blue negative.",
    )  # fmt: skip
    page.picture(
        "The classes come apart", _scatter_drawn(features, data, options.seed),
        options.out / "scatter.png",
        "Test images in the plane of two principal components: of the pixels, and of the hidden "
        "units, in which the classes lie further apart.",
    )  # fmt: skip
    results = {f"test accuracy, linear on {n}": accuracy[n, "test"] for n in reversed(features)}
    return conclude(options.out, results, fitted, page)


def _principal_components(x: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The directions of largest variance as columns (d, count), and the mean (d,)."""
    from sklearn.decomposition import PCA

    pca = PCA(min(count, *x.shape), random_state=seed).fit(x)
    return pca.components_.T.astype(np.float32), pca.mean_.astype(np.float32)


def _filters_drawn(w: np.ndarray, components: np.ndarray, data: Dataset) -> Figure:
    """The weights of hidden units beside the principal components."""
    assert data.image_shape is not None
    shape = data.image_shape[:2]
    columns = 6
    rows = min(6, -(-w.shape[1] // columns))
    figure, axes = plt.subplots(
        rows, 2 * columns + 1, figsize=(11, 0.82 * rows + 0.5), squeeze=False,
        width_ratios=[1] * columns + [0.4] + [1] * columns,  # a gap in the middle
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    # The units with the largest weights, and the components with the largest variance.
    strongest = w[:, np.argsort(-np.linalg.norm(w, axis=0))]
    for side, filters in ((axes[:, :columns], strongest), (axes[:, columns + 1 :], components)):
        for axis, column in zip(side.flat, filters.T, strict=False):
            figures.image(axis, column.reshape(shape))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.92, wspace=0.12, hspace=0.12)
    figure.text(0.24, 0.95, "Learned: weights of hidden units", ha="center", fontsize=12)
    figure.text(0.76, 0.95, "Designed: principal components", ha="center", fontsize=12)
    return figure


def _scatter_drawn(features: dict[str, Any], data: Dataset, seed: int) -> Figure:
    """Test images by class, in the plane of the first two components of each kind of features."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.6), layout="tight")
    colors = plt.get_cmap("tab10")
    target = data.test.target[:1500]
    for axis, name in zip(axes, ("pixels", "hidden units"), strict=True):
        plane, center = _principal_components(features[name]["train"], 2, seed)
        points = (features[name]["test"][:1500] - center) @ plane
        if points.shape[1] < 2:  # a single hidden unit
            points = np.c_[points, np.zeros(len(points))]
        for k, label in enumerate(data.class_names):
            of_class = points[target == k]
            axis.scatter(*of_class.T, s=14, color=colors(k), alpha=0.7, lw=0, label=label)
            if len(of_class):
                axis.text(
                    *np.median(of_class, axis=0), label, fontsize=13, weight="bold", ha="center",
                    va="center", bbox={"boxstyle": "circle,pad=0.15", "fc": "white",
                                       "ec": colors(k), "alpha": 0.9},
                )  # fmt: skip
        axis.set(xticks=[], yticks=[], title=f"Two principal components of the {name}")
    figure.suptitle("Test images by class: the hidden layer separates them")
    return figure
