# ruff: noqa: RUF001 - formulas are written as on a board
"""The lecture's figures as one illustrated page, in its order, with the code of each.

    python -m experiments lecture --out lecture

Open index.html: arrow keys step through a figure, a click on a block shows its chain rule.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fnn
from experiments.common.console import console
from experiments.common.options import writable
from experiments.whiteboard import write_frames
from fnn.compiling import jit_for_few_runs
from fnn.whiteboard import Trace
from fnn.whiteboard.page import document, whiteboard


@dataclass
class Options:
    out: Path = Path("results/lecture")
    """folder for index.html and the figures as SVG"""


# ---- the figures: the page shows the code of these functions ---------------------------------


def neuron() -> Trace:
    net = fnn.neuron(fnn.logistic())
    params = {"linear": {"w": jnp.array([2.0, -3.0]), "b": jnp.array(-3.0)}}
    return fnn.whiteboard.trace(net, params, jnp.array([-1.0, -2.0]))


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
            ("d", fnn.add(), ("e", "1")),
            ("sigma", fnn.power(-1.0), "d"),
        ],
        "sigma",
    )
    return fnn.whiteboard.trace(f, {}, (2.0, -1.0, -3.0, -2.0, -3.0, 1.0))


class Figure(NamedTuple):
    """``words``: its explanation. ``frames``: show all steps side by side, too."""

    make: Callable[[], Trace]
    title: str
    words: str
    frames: bool = False


FIGURES = (
    Figure(
        neuron, "The neuron",
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
)  # fmt: skip

STYLE = """<style>
article ~ article .keys { display: none; }
article { margin: 0 0 56px; }
h2 { margin: 34px 0 6px; font-size: 1.3rem; }
pre { margin: 0 0 14px; padding: 12px 14px; overflow-x: auto; border: 1px solid #d5dde5;
  border-radius: 8px; background: #f4f7fa;
  font: 14px/1.5 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr));
  gap: 12px; margin: 12px 0; padding: 0; list-style: none; }
.frames li { overflow-x: auto; border: 1px solid #d5dde5; border-radius: 8px; }
.frames svg { display: block; width: 100%; min-width: 440px; height: auto;
  mix-blend-mode: multiply; }
</style>"""


# In float32 the random weights would differ from those on the page.
IMPORTS = """\
import jax
import jax.numpy as jnp
import fnn

jax.config.update("jax_enable_x64", True)  # the digits of paper

"""


def code_of(figure: Figure) -> str:
    """The body of the function that makes the figure, to paste into Python."""
    lines = inspect.getsource(figure.make).splitlines()[1:]
    return IMPORTS + textwrap.dedent("\n".join(lines)).replace("return ", "board = ")


def main(options: Options) -> int:
    writable(options.out)
    parts = [
        STYLE,
        "<h1>Backpropagation, figure by figure</h1>",
        "<p>Every figure is the trace of a network that ran: fnn computed the numbers, and each "
        "gradient was compared with jax.vjp. The code above a figure makes it; paste it into "
        "Python and call <code>print(board.text())</code>, <code>board.svg()</code> or "
        "<code>board.html()</code>.</p>",
        "<nav><ol>",
        *(f'<li><a href="#{f.make.__name__}">{escape(f.title)}</a></li>' for f in FIGURES),
        "</ol></nav>",
    ]
    for number, figure in enumerate(FIGURES, start=1):
        with jax.enable_x64(True):  # the digits of paper
            # One compilation is faster than one for each operation.
            trace = jax.device_get(jit_for_few_runs(figure.make)())
        name = f"{number}_{figure.make.__name__}"
        (options.out / f"{name}.svg").write_text(trace.svg(), "utf-8")
        frames = ""
        if figure.frames:
            write_frames(trace, options.out / f"{name}_frames")
            frames = "".join(f"<li>{frame}</li>" for frame in trace.frames())
            frames = f'<ol class="frames">{frames}</ol>'
        parts.append(
            f'<article id="{figure.make.__name__}"><h2>{number}. {escape(figure.title)}</h2>'
            f"<p>{escape(figure.words)}</p><pre><code>{escape(code_of(figure))}</code></pre>"
            f"{whiteboard(trace)}{frames}</article>"
        )
        console.print(f"{number}. {figure.title}", markup=False)
    page = document("Backpropagation, figure by figure", "\n".join(parts))
    (options.out / "index.html").write_text(page, "utf-8")
    console.print(f"open {options.out / 'index.html'}", markup=False)
    return 0
