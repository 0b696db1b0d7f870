"""50 layers: where gradients vanish, and how residual connections prevent it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import fnn
from experiments.common import figures
from experiments.common.console import console
from experiments.common.data import Split, load
from experiments.common.options import Training, at_least
from experiments.common.report import Report
from experiments.common.run import conclude, predict, scheduled, train
from fnn.block import Block, Key, Params, Residuals

NONLINEARITIES = {"logistic": fnn.logistic, "tanh": fnn.tanh, "relu": fnn.relu}
COLORS = {"logistic": figures.RED, "tanh": figures.BLUE, "relu": figures.GREEN}
WIDTHS = {"logistic": 4.0, "tanh": 2.6, "relu": 1.4}  # one on top of another does not hide it
Norms = dict[str, np.ndarray]


@dataclass
class Options(Training):
    depth: int = 50
    """hidden layers"""
    width: int = 64
    """units in each hidden layer"""
    epochs: int = 20
    learning_rate: float = 0.01
    """initial step size; it falls along a half cosine to 0"""
    out: Path = Path("results/deep")


def tap() -> Block:
    """The identity, with a parameter of zeros added to x: its gradient is dE/dx.

    It reads the upstream gradient in the middle of a network; inside ``repeat`` the gradients
    are stacked, one slice per layer.

    >>> import jax.numpy as jnp
    >>> net = fnn.serial(tap=tap(), square=fnn.square())
    >>> x = jnp.array([3.0])
    >>> params = net.init(jax.random.key(0), x)
    >>> _, residuals = net.forward(params, x)
    >>> net.backward(params, residuals, jnp.ones(1))[0]
    {'tap': Array([6.], dtype=float32)}
    """

    def init(key: Key, x: Any) -> Params:
        return jnp.zeros(x.shape, x.dtype)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, Residuals]:
        return x + params, ()

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, jax.Array]:
        return dy, dy  # forward: y = x + params

    return Block(init, forward, backward, "tap")


def network(nonlinearity: Block, residual: bool, options: Options, tapped: bool = False) -> Block:
    """``depth`` layers between an input and an output layer.

    Plain: h = f(h W + b). Residual: h = h + f(h) W + b, with the nonlinearity first, so that h
    passes unchanged (He et al. 2016, "Identity mappings"). Branches start with variance
    1 / (10 depth), so that their sum stays small.

    Args:
      tapped: also give the gradient of every layer's output, at ``deep/tap``.
    """
    if residual:
        small = jax.nn.initializers.variance_scaling(0.1 / options.depth, "fan_in", "normal")
        linear = fnn.linear(options.width, w_init=small)
        layer = fnn.residual(fnn.serial(**{nonlinearity.name: nonlinearity}, linear=linear))
    else:
        layer = fnn.layer(options.width, nonlinearity)
    taps = {"tap": tap()} if tapped else {}
    deep = fnn.repeat(fnn.serial(layer=layer, **taps), options.depth)
    return fnn.serial(first=fnn.linear(options.width), deep=deep, out=fnn.linear(10))


def gradient_norms(net: Block, data: Split, key: Key) -> Norms:
    """|dE/dW| and |dE/dh| of every hidden layer of a tapped network at its initialisation.

    In float64, where a gradient of 1e-45 does not underflow.
    """
    with jax.enable_x64(True):
        x = np.asarray(data.x, np.float64)
        params = jax.jit(net.init)(key, x)
        gradient = jax.jit(fnn.value_and_grad(net, fnn.softmax_cross_entropy()))
        _, grads = gradient(params, x, data.target)
        # repeat stacks its parameters: one array has the gradients of all layers.
        (w,) = (leaf for leaf in jax.tree.leaves(grads["deep"]["layer"]) if leaf.ndim == 3)
        stacks = {"W": w, "h": grads["deep"]["tap"]}
        return {k: np.sqrt(np.sum(np.square(v), axis=(1, 2))) for k, v in stacks.items()}


def main(options: Options) -> int:
    options.prepare()
    at_least(options, 2, "depth")
    data = load("digits", options.seed)
    console.print(
        f"[bold]{options.depth} layers[/bold] of {options.width} units, three nonlinearities, each "
        "plain and with residual connections.\nGoing backward, every plain layer multiplies the "
        "gradient by W and by the slope f'(z):\nfor the logistic function at "
        f"most 1/4, and 0.25^{options.depth} = {0.25**options.depth:.0e}."
    )
    page = Report(options)
    norms: dict[str, Norms] = {}
    fits: dict[str, fnn.Fitted] = {}
    accuracy: dict[str, float] = {}
    few = Split(data.train.x[:256], data.train.target[:256])
    for name, nonlinearity in NONLINEARITIES.items():
        for residual in (False, True):
            label = f"{name} residual" if residual else name
            console.print(f"\n[bold]{label}[/bold]")
            tapped = network(nonlinearity(), residual, options, tapped=True)
            norms[label] = gradient_norms(tapped, few, jax.random.key(options.seed))
            net = network(nonlinearity(), residual, options)
            fits[label] = train(
                options, net, fnn.softmax_cross_entropy(), data.train, data.validation,
                {"accuracy": fnn.accuracy}, name=label.replace(" ", "_"),
                optimizer=scheduled(options, "cosine", data.train), page=page,
            )  # fmt: skip
            logits = predict(net, fits[label].params, data.test.x, options.jax_dtype)
            accuracy[label] = fnn.accuracy(logits, data.test.target)
    console.print()
    page.table(
        "Gradients before training, accuracy after it",
        ("network", "|dE/dW| first layer", "last layer", "first / last", "test accuracy"),
        [
            (n, *(f"{v:.1e}" for v in (w[0], w[-1], w[0] / w[-1])), f"{accuracy[n]:.3f}")
            for n, w in ((n, v["W"]) for n, v in norms.items())
        ],
    )
    page.picture(
        "Where gradients vanish", _gradients_drawn(norms), options.out / "gradients.png",
        "The gradient of the same loss at every layer, before training. Mind the scales: plain "
        "networks differ by powers of ten, residual ones by tenths. Grey: too small to change a "
        "float32 weight of 0.1.",
    )  # fmt: skip
    page.picture(
        "Who learns", _learning_drawn(fits, accuracy), options.out / "learning.png",
        "Training loss and accuracy on validation examples, by epoch. Dotted: chance, ln 10.",
    )  # fmt: skip
    # Some variants fail to learn, which is the point; the residual ReLU network must.
    results = {f"test accuracy, {n}": a for n, a in reversed(accuracy.items())}
    return conclude(options.out, results, fits["relu residual"], page)


KINDS = {"plain": False, "residual": True}  # drawn apart: the residual ones lie close together


def _labels(residual: bool, among: Mapping[str, Any]) -> list[str]:
    return [label for label in among if label.endswith("residual") == residual]


def _style(label: str) -> dict[str, Any]:
    name = label.split()[0]
    return {"color": COLORS[name], "lw": WIDTHS[name], "label": label}


def _gradients_drawn(norms: Mapping[str, Norms]) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), sharex=True, layout="constrained")
    for row, (kind, residual) in zip(axes, KINDS.items(), strict=True):
        for axis, symbol, what in zip(row, "Wh", ("weights", "output"), strict=True):
            values = []
            for label in _labels(residual, norms):
                norm = norms[label][symbol]
                axis.semilogy(np.arange(1, len(norm) + 1), norm, **_style(label))
                values.append(norm)
            least = min((v[v > 0].min(initial=np.inf) for v in values), default=1.0)
            most = max(v.max() for v in values)
            room = (most / least) ** 0.1 * 1.1  # above and below
            axis.set(
                title=f"{kind}: gradient of each layer's {what}, |dE/d{symbol}|",
                ylim=(max(least / room, 1e-60), most * room),
            )
            # A smaller step does not change a float32 weight of 0.1.
            axis.axhspan(1e-99, 1e-9, color=figures.GREY, alpha=0.15, lw=0)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("norm, before training")
        row[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    for axis in axes[1]:
        axis.set_xlabel("layer (1 is next to the input; gradients come from the right)")
    return figure


def _learning_drawn(fits: Mapping[str, fnn.Fitted], accuracy: Mapping[str, float]) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.6), sharex=True, layout="constrained")
    for (loss, right), (kind, residual) in zip(axes, KINDS.items(), strict=True):
        for label in _labels(residual, fits):  # without rows where it diverged in its first epoch
            history = fits[label].history
            epochs = [row["epoch"] for row in history]
            loss.plot(epochs, [row["loss"] for row in history], **_style(label))
            style = _style(label) | {"label": f"{label}: {accuracy[label]:.1%}\non the test images"}
            right.plot(epochs, [row["validation_accuracy"] for row in history], **style)
        loss.axhline(np.log(10), color=figures.GREY, lw=1, ls=":")
        loss.set(ylabel="loss", title=f"{kind}: training loss")
        right.set(ylim=(0, 1.02), title=f"{kind}: accuracy on validation examples")
        right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        for axis in (loss, right):
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    return figure
