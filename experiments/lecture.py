# ruff: noqa: RUF001 - formulas are written as on a board
"""The lecture's figures as one illustrated page, in its order, with the code of each.

    python -m experiments lecture --out lecture
    python -m experiments lecture --pdf               # and index.pdf, where Chromium is installed

Open index.html: arrow keys step through a figure, n and p turn to the next and the previous one, f
fills the screen, a click on a block shows its chain rule.
"""

from __future__ import annotations

import inspect
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fnn
from experiments import lecture_drawings as drawings
from experiments.common.console import console
from experiments.common.data import load
from experiments.common.idx import DataError
from experiments.common.options import writable
from experiments.googlenet.images import PictureError, labelled
from experiments.googlenet.recognition import CLASSES, recogniser, samples
from experiments.landscape import surface
from experiments.whiteboard import write_frames
from fnn.compiling import jit_for_few_runs
from fnn.whiteboard import Trace
from fnn.whiteboard.page import document, whiteboard

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass
class Options:
    out: Path = Path("results/lecture")
    """folder for index.html and the figures as SVG"""
    pdf: bool = False
    """write index.pdf, too, by printing the page with Chromium"""


# ---- the figures: the page shows the code of these functions ---------------------------------


def neuron() -> Trace:
    net = fnn.neuron(fnn.logistic())
    params = {"linear": {"w": jnp.array([2.0, -3.0]), "b": jnp.array(-3.0)}}
    return fnn.whiteboard.trace(net, params, jnp.array([-1.0, -2.0]))


def neuron_circle() -> str:
    return drawings.neuron(neuron())


def nonlinearities() -> str:
    names = ("step", "logistic", "tanh", "relu", "leaky_relu", "elu", "softplus", "silu", "gelu")
    return drawings.nonlinearities(names)


def block_view() -> Trace:
    net = fnn.serial(f1=fnn.linear(3), f2=fnn.tanh(), f3=fnn.linear(1))
    x, target = jnp.array([[0.5, -1.0]]), jnp.array([[1.0]])
    params = net.init(jax.random.key(0), x)
    return fnn.whiteboard.trace(net, params, x, target, fnn.squared_error())


def four_neurons() -> Trace:
    bits = ("bit8", "bit4", "bit2", "bit1")
    neurons = [(bit, fnn.layer(1, fnn.logistic()), "x") for bit in bits]
    net = fnn.graph("x", [*neurons, ("p", fnn.concatenate(), bits)], "p")
    W = jnp.array([[1.0, -1.0, 0.5, 0.0], [0.5, 2.0, -1.0, 1.0], [-1.0, 0.0, -0.5, 2.0]])
    params = {
        bit: {"linear": {"w": W[:, i : i + 1], "b": jnp.zeros(1)}} for i, bit in enumerate(bits)
    }
    x, t = jnp.array([[1.0, 0.0, -1.0]]), jnp.array([[0.0, 1.0, 1.0, 0.0]])  # the digit 6
    return fnn.whiteboard.trace(net, params, x, t, fnn.binary_cross_entropy(from_logits=False))


def two_layers() -> Trace:
    net = fnn.serial(layer1=fnn.layer(4, fnn.logistic()), layer2=fnn.layer(2, fnn.logistic()))
    x = jnp.array([[1.0, 0.0, -1.0]])
    params = net.init(jax.random.key(2), x)
    return fnn.whiteboard.trace(net, params, x)


def landscape() -> str:
    return drawings.landscape(surface.product_landscape())


def circuit() -> Trace:
    f = fnn.graph(
        ("x", "y", "z"), [("q", fnn.add(), ("x", "y")), ("f", fnn.multiply(), ("q", "z"))], "f"
    )
    return fnn.whiteboard.trace(f, {}, (-2.0, 5.0, -4.0))


def hidden_layer() -> Trace:
    E = fnn.graph(
        ("x", "t"),
        [
            ("a", fnn.linear(3, use_bias=False), "x"),
            ("h", fnn.logistic(), "a"),
            ("z", fnn.linear(1, use_bias=False), "h"),
            ("yhat", fnn.logistic(), "z"),
            ("E", fnn.binary_cross_entropy(from_logits=False), ("yhat", "t")),
        ],
        "E",
    )
    W1 = jnp.array([[0.5, -1.0, 1.5], [1.0, 0.5, -0.5]])
    w2 = jnp.array([[1.0], [-2.0], [0.5]])
    x, t = jnp.array([[1.0, -1.0]]), jnp.array([[1.0]])
    return fnn.whiteboard.trace(E, {"a": {"w": W1}, "z": {"w": w2}}, (x, t))


def sigmoid() -> Trace:
    f = fnn.graph(
        ("w0", "x0", "w1", "x1", "w2"),
        [
            ("p0", fnn.multiply(), ("w0", "x0")),
            ("p1", fnn.multiply(), ("w1", "x1")),
            ("s", fnn.add(), ("p0", "p1")),
            ("z", fnn.add(), ("s", "w2")),
            ("sigma", fnn.logistic(), "z"),
        ],
        "sigma",
    )
    return fnn.whiteboard.trace(f, {}, (2.0, -1.0, -3.0, -2.0, -3.0))


def sigmoid_gates() -> Trace:
    f = fnn.graph(
        ("w0", "x0", "w1", "x1", "w2", "1"),
        [
            ("p0", fnn.multiply(), ("w0", "x0")),
            ("p1", fnn.multiply(), ("w1", "x1")),
            ("s", fnn.add(), ("p0", "p1")),
            ("z", fnn.add(), ("s", "w2")),
            ("n", fnn.negate(), "z"),
            ("e", fnn.exp(), "n"),
            ("u", fnn.add(), ("e", "1")),
            ("sigma", fnn.power(-1.0), "u"),
        ],
        "sigma",
    )
    return fnn.whiteboard.trace(f, {}, (2.0, -1.0, -3.0, -2.0, -3.0, 1.0))


def photograph() -> str:
    googlenet = recogniser("bvlc", None, None)
    example = labelled(samples(), CLASSES)[0]
    probabilities = googlenet.probabilities([example.path], batch_size=1)[0]
    best = probabilities.argsort()[: -1 - 5 : -1]
    guesses = [(googlenet.names[i], float(probabilities[i])) for i in best]
    pixels, truth = googlenet.see(example.path, False), googlenet.names[example.label]
    return drawings.photograph(example.path, pixels, guesses, truth)


def features_of_digits() -> str:
    data = load("digits")
    net, loss = fnn.models.mlp((32, 10), fnn.relu()), fnn.softmax_cross_entropy()
    fitted = fnn.fit(
        net, loss, *data.train[:2], optimizer=fnn.sgd(0.1, 0.9), epochs=10, batch_size=32,
        key=jax.random.key(0),
    )  # fmt: skip
    return drawings.filters(fitted.params["hidden_1"]["w"], (8, 8))


def features_of_photographs() -> str:
    w = recogniser("bvlc", None, None).params["conv1"]["7x7_s2"]["w"]
    rgb = w[:, :, ::-1]  # the weights are of blue, green and red
    return drawings.filters(rgb.reshape(-1, rgb.shape[-1]), (7, 7, 3))


class Figure(NamedTuple):
    """``make``: the trace that is drawn, or the figure as HTML. ``words``: its explanation.
    ``frames``: show all steps side by side, too. ``needs_data``: it is left out without them."""

    make: Callable[[], Trace] | Callable[[], str]
    title: str
    words: str
    frames: bool = False
    needs_data: bool = False

    @property
    def is_trace(self) -> bool:
        """Whether it is a whiteboard."""
        return inspect.get_annotations(self.make)["return"] == "Trace"


FIGURES = (
    Figure(
        neuron_circle, "The neuron",
        "A circle with an edge for each input, which has its weight, and one for the bias, whose "
        "input is 1. The left half adds, z = w·x + b; the right half is the nonlinearity, σ(z).",
    ),
    Figure(
        nonlinearities, "Nonlinearities and their derivatives",
        "What a neuron does with the sum. Both curves are fnn's own: y is what forward computes, "
        "dy/dx what backward sends down for an upstream gradient of 1. A derivative near 0 stops "
        "the gradient: the step's is 0 everywhere, a sigmoid's far from 0.",
    ),
    Figure(
        neuron, "The neuron on the whiteboard",
        "A neuron weighs its inputs, adds a bias, and passes the sum through a nonlinearity: "
        "y = σ(w·x + b). Going backward, the slope of σ at that sum decides how much of the "
        "upstream gradient reaches the weights.",
    ),
    Figure(
        block_view, "The block view: E = f4(f3(f2(f1(x))))",
        "A network and its loss are one composition of blocks. Each block can go forward and turn "
        "the gradient at its output into those at its input and parameters; training any "
        "composition of blocks needs nothing else. f4 is the loss.",
    ),
    Figure(
        four_neurons, "Four neurons: a 1-layer network",
        "Four neurons, bit8 to bit1, read the same x, and each has its own weights w, bias b and "
        "target bit t. Their w are the columns of one matrix W: fnn.layer(4, ...), with that W, "
        "computes the same. The loss sends (p − t) / (p (1 − p)) to every p; the slope "
        "p (1 − p) of σ cancels the denominator, so the gradient between σ and linear is p − t: "
        "for bit8, 8.389 × 0.105 = 0.8808 = p − 0. At x the four gradients add.",
    ),
    Figure(
        two_layers, "A 2-layer network",
        "The outputs of one layer are the inputs of the next. Without a loss, these are the "
        "gradients of the sum of the outputs.",
    ),
    Figure(
        landscape, "The error is not convex",
        "Two weights, one behind the other, and one example. Half way between the two valleys is "
        "a saddle: the gradient is 0, and two ways lead down. Which valley gradient descent "
        "reaches depends on where it starts. <code>python -m experiments landscape</code> has "
        "more, and a surface to turn.",
    ),
    Figure(
        circuit, "The circuit f = (x + y) z, in all its frames",
        "Forward, every gate computes its value. Backward, every gate multiplies the upstream "
        "gradient by its local derivatives: plus passes it on unchanged, times multiplies it by "
        "the other input.",
        frames=True,
    ),
    Figure(
        hidden_layer, "One hidden layer: dE/dw2 and dE/dW1",
        "dE/dz is computed once and used twice: times h it is dE/dw2; times w2, the slope of σ "
        "and x it is dE/dW1. A click on block a shows the whole product.",
    ),
    Figure(
        sigmoid, "The sigmoid block",
        "σ(z) = 1 / (1 + exp(−z)) as one block needs one local derivative, σ(z)(1 − σ(z)): at "
        "z = 1 it is 0.1966. The gradients of the five inputs need no other. The next figure has "
        "four gates in its place.",
    ),
    Figure(
        sigmoid_gates, "The same sigmoid as four gates",
        "Negate, exp, plus 1, and the power −1, the reciprocal. Their local derivatives multiply "
        "to (−1)(0.3679)(1)(−0.5344) = 0.1966: z and the five inputs have the same gradients as in "
        "the figure before.",
    ),
    Figure(
        photograph, "GoogLeNet on a photograph",
        "The same forward pass with 57 convolutions. The network gives each of 1000 classes a "
        "probability. <code>python -m experiments whiteboard googlenet</code> shows all its values "
        "and gradients.",
        needs_data=True,
    ),
    Figure(
        features_of_digits, "Learned features: handwritten digits",
        "Nobody designed these: the weights between the 8 × 8 pixels of a digit and each hidden "
        "unit, after ten epochs.",
    ),
    Figure(
        features_of_photographs, "Learned features: photographs",
        "The first layer of GoogLeNet: edges, gratings and colours. "
        "<code>python -m experiments features --data photographs</code> shows what excites units "
        "of later layers.",
        needs_data=True,
    ),
)  # fmt: skip

STYLE = """<style>
article ~ article .keys { display: none; }
article { margin: 0 0 56px; scroll-margin-top: 8px; }
h2 { margin: 34px 0 6px; font-size: 1.3rem; }
details { margin: 0 0 10px; }
summary { cursor: pointer; color: #46515e; }
pre { margin: 6px 0 14px; padding: 12px 14px; overflow-x: auto; border: 1px solid #d5dde5;
  border-radius: 8px; background: #f4f7fa;
  font: 14px/1.5 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; }
svg.drawn { display: block; width: min(100%, 900px); height: auto; }
.sideways { overflow-x: auto; }
.curves { border-collapse: collapse; }
.curves th, .curves td { padding: 4px 14px 4px 0; border-bottom: 1px solid #d5dde5;
  text-align: left; font-size: clamp(.75rem, 1.1vw, 1.2rem); }
.curves svg { display: block; }
@media (max-width: 700px) {
  .curves tr:first-child { display: none; }
  .curves tr { display: grid; grid-template-columns: 1fr 1fr; border-bottom: 1px solid #d5dde5; }
  .curves th, .curves td { border: 0; }
  .curves th, .curves td:last-child { grid-column: 1 / -1; }
}
.curves polyline { fill: none; stroke: #17693a; stroke-width: 2.5; }
.curves .dy { stroke: #b3261e; stroke-dasharray: 6 4; }
.photograph { display: flex; flex-wrap: wrap; gap: 24px; align-items: center; font-size: 1.15rem; }
.photograph img { width: min(100%, 448px); border-radius: 8px; }
.photograph table { margin-top: 12px; }
.photograph th { padding-right: 14px; font-weight: 400; text-align: left; }
.photograph td { white-space: nowrap; }
.tiles { display: grid; gap: 6px; grid-template-columns: repeat(auto-fill, minmax(56px, 1fr));
  max-width: 1100px; }
.tiles img { display: block; width: 100%; image-rendering: pixelated; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr));
  gap: 12px; margin: 12px 0; padding: 0; list-style: none; }
.frames li { border: 1px solid #d5dde5; border-radius: 8px; }
.frames svg { display: block; width: 100%; height: auto; }
@media print {
  article { break-before: page; margin: 0; }
  h2 { margin-top: 0; }
  details { display: none; }
  body { font-size: 15px; }
  figure img { max-height: 140mm; }
  .photograph img { width: 70mm; }
  .curves svg { height: 26mm; width: auto; }
  .curves tr { break-inside: avoid; }
  .frames { grid-template-columns: 1fr 1fr; }
  .frames li { break-inside: avoid; }
}
</style>"""
# In float32 the random weights would differ from those on the page.
IMPORTS = """\
import jax
import jax.numpy as jnp
import fnn

jax.config.update("jax_enable_x64", True)  # the digits of paper
"""


def code_of(figure: Figure) -> str:
    """The body of the function that makes the figure, to paste into Python after ``IMPORTS``."""
    lines = inspect.getsource(figure.make).splitlines()[1:]
    return textwrap.dedent("\n".join(lines)).replace("return ", "board = ")


def _content(figure: Figure, made: Any, out: Path, name: str) -> str:
    """A figure in HTML; writes a whiteboard's pictures."""
    if isinstance(made, str):
        return made
    (out / f"{name}.svg").write_text(made.svg(), "utf-8")
    if not figure.frames:
        return whiteboard(made)
    write_frames(made, out / f"{name}_frames")
    frames = "".join(f"<li>{frame}</li>" for frame in made.frames())
    return f'{whiteboard(made)}<ol class="frames">{frames}</ol>'


def _made(figure: Figure) -> Trace | str | None:
    """The trace or HTML of a figure; None where it needs data that are not there."""
    if figure.is_trace:
        with jax.enable_x64(True):  # the digits of paper
            # One compilation is faster than one for each operation.
            return jax.device_get(jit_for_few_runs(figure.make)())
    try:
        return figure.make()
    except (DataError, PictureError) as error:
        if not figure.needs_data:
            raise
        console.print(f"without {figure.title!r}: {error}", markup=False)
        return None


def main(options: Options) -> int:
    writable(options.out)
    browser = chromium() if options.pdf else ""
    made = [(figure, content) for figure in FIGURES if (content := _made(figure)) is not None]
    links = (f'<li><a href="#{f.make.__name__}">{escape(f.title)}</a></li>' for f, _ in made)
    parts = [
        STYLE,
        "<h1>Backpropagation, figure by figure</h1>",
        "<p>Every figure is the trace of a network that ran: fnn computed the numbers, and each "
        "gradient was compared with jax.vjp. The code of a figure makes it; paste it into Python "
        "after the lines below and call <code>print(board.text())</code>, "
        "<code>board.svg()</code> or <code>board.html()</code>.</p>",
        f"<details><summary>what all code begins with</summary><pre><code>{escape(IMPORTS)}</code>"
        "</pre></details>",
        f"<nav><ol>{''.join(links)}</ol></nav>",
    ]
    for number, (figure, content) in enumerate(made, start=1):
        name = figure.make.__name__
        code = ""
        if not isinstance(content, str):
            code = (
                f"<details><summary>code</summary><pre><code>{escape(code_of(figure))}</code>"
                "</pre></details>"
            )
        parts.append(
            f'<article id="{name}"><h2>{number}. {escape(figure.title)}</h2><p>{figure.words}</p>'
            f"{code}{_content(figure, content, options.out, f'{number}_{name}')}</article>"
        )
        console.print(f"{number}. {figure.title}", markup=False)
    page = document("Backpropagation, figure by figure", "\n".join(parts))
    path = options.out / "index.html"
    path.write_text(page, "utf-8")
    if browser:
        print_pdf(browser, path)
    console.print(f"open {path}", markup=False)
    return 0


def chromium() -> str:
    """The path of Chromium or Chrome.

    Raises:
      ValueError: there is none.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise ValueError(f"--pdf needs Chromium; none of {', '.join(BROWSERS)} was found")
    return found


def print_pdf(browser: str, page: Path) -> None:
    """Prints a page to a PDF beside it.

    Raises:
      ValueError: the browser wrote none.
    """
    pdf = page.with_suffix(".pdf")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1920,1080",
        "--no-pdf-header-footer",
        f"--print-to-pdf={pdf.resolve()}", page.resolve().as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if ran.returncode or not pdf.is_file():
        raise ValueError(f"{browser} did not print {page}: {ran.stderr.strip()[-300:]}")
    console.print(f"printed {pdf}", markup=False)
