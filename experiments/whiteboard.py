"""The whiteboard: a network's values and gradients, drawn step by step on one page.

    python -m experiments whiteboard                    # the lecture's circuit f = (x + y) z
    python -m experiments whiteboard neuron             # or mlp, digits, googlenet
    python -m experiments whiteboard "(x+y)*z" --at x=-2 y=5 z=-4
    python -m experiments whiteboard digits --film      # the same example after every epoch

Open whiteboard.html in a browser: arrow keys step, a click on a block shows its chain rule.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fnn
from experiments.common.console import console
from experiments.common.data import load
from experiments.common.expression import LECTURE, LECTURE_AT, assigned, parse
from experiments.common.idx import DataError
from experiments.common.options import seeded, writable
from fnn.block import Block
from fnn.compiling import jit_for_few_runs
from fnn.whiteboard import Trace, trace
from fnn.whiteboard import film as play

FEATURES = ("mean radius", "mean texture", "mean smoothness")
MAX_PRINTED_BLOCKS = 12
MAX_FRAMES = 60
FILM_EPOCHS = 12


@dataclass
class Options:
    what: Annotated[str, tyro.conf.Positional] = "circuit"
    """what is drawn: circuit, neuron, mlp, digits, googlenet, or an expression: "(x+y)*z" """
    at: tuple[str, ...] = ()
    """values of the expression's variables, such as x=-2 y=5 z=-4"""
    picture: Path | None = None
    """photograph for googlenet; by default one of the data folder, else noise"""
    seed: int = 0
    """seeds weights and examples"""
    film: bool = False
    """train neuron, mlp or digits, and write film.html: the same example after every epoch"""
    out: Path = Path("results/whiteboard")
    """folder for whiteboard.html, .svg, .txt, .mmd (Mermaid) and frames/"""


class Subject(NamedTuple):
    """What is traced: a network with its input, and perhaps a target and a loss.

    ``check``: see :func:`fnn.whiteboard.trace`. ``compiled``: trace under jit, which large networks
    need, because JAX would compile them operation by operation otherwise. ``data``: what a film
    trains on.
    """

    title: str
    net: Block
    params: Any
    x: Any
    target: Any = None
    loss: Block | None = None
    check: Any = "all"
    compiled: bool = True
    data: tuple[Any, Any] | None = None


def main(options: Options) -> int:
    seeded(options)
    if options.at and options.what in SUBJECTS:
        raise ValueError(f"--at gives values of an expression; {options.what} is not one")
    if options.film and options.what not in FILMS:
        raise ValueError(f"--film needs {', '.join(FILMS)}; {options.what} is not trained here")
    writable(options.out)
    subject = SUBJECTS.get(options.what, expression)(options)
    begin = time.perf_counter()
    if options.film:
        film(subject, options)
        return 0
    recorded = traced(subject)
    between = time.perf_counter()
    save(recorded, subject.title, options.out)
    end = time.perf_counter()
    if sum(not node.nodes for node in recorded.walk()) <= MAX_PRINTED_BLOCKS:
        console.print(recorded.text(), markup=False)
    elif recorded.non_finite:
        console.print(str(recorded.non_finite), markup=False)
    times = f"traced in {between - begin:.1f} s, drawn in {end - between:.1f} s"
    console.print(f"{times}; open {options.out / 'whiteboard.html'}", markup=False)
    return 0


def traced(subject: Subject) -> Trace:
    """The trace of a subject, in float64 if its input is."""
    (recorded,) = traced_at(subject, [subject.params])
    return recorded


def traced_at(subject: Subject, moments: Sequence[Any]) -> list[Trace]:
    """The traces of a subject with the parameters of several moments."""
    _, net, _, x, target, loss, check, compiled, _ = subject

    def run(params: Any, x: Any) -> Trace:
        return trace(net, params, x, target, loss, check=check)

    with _in_double(subject):
        record = jit_for_few_runs(run) if compiled else run
        return [jax.device_get(record(params, x)) for params in moments]


def _in_double(subject: Subject) -> AbstractContextManager[Any]:
    """In float64 if the input is."""
    return jax.enable_x64(any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(subject.x)))


def film(subject: Subject, options: Options) -> None:
    """Trains, and writes a page of the same example after every epoch."""
    begin = time.perf_counter()
    moments, losses = [subject.params], list[str]()

    def keep(params: Any, state: Any, history: Sequence[Mapping[str, float]]) -> None:
        moments.append(jax.device_get(params))
        losses.append(f"epoch {len(history)}, loss of all examples {history[-1]['loss']:.4f}")

    assert subject.loss is not None and subject.data is not None
    with _in_double(subject):
        fnn.fit(
            subject.net, subject.loss, *subject.data, params=subject.params, epochs=FILM_EPOCHS,
            optimizer=fnn.sgd(0.1, 0.9), batch_size=32, key=jax.random.key(options.seed),
            on_epoch=keep,
        )  # fmt: skip
    labels = ["epoch 0, before training", *losses]
    page = play(traced_at(subject, moments), labels, f"{subject.title}, while it is trained")
    path = options.out / "film.html"
    path.write_text(page, "utf-8")
    took = time.perf_counter() - begin
    console.print(f"trained and drawn in {took:.1f} s; open {path}", markup=False)


def save(recorded: Trace, title: str, out: Path) -> None:
    """Writes the page, the drawing, the text, the Mermaid chart, and a frame for each step."""
    (out / "whiteboard.html").write_text(recorded.html(title), "utf-8")
    (out / "whiteboard.svg").write_text(recorded.svg(), "utf-8")
    (out / "whiteboard.txt").write_text(recorded.text() + "\n", "utf-8")
    (out / "whiteboard.mmd").write_text(recorded.mermaid(), "utf-8")
    write_frames(recorded, out / "frames")


def write_frames(recorded: Trace, folder: Path) -> None:
    """Writes a drawing for each step, unless there are too many."""
    writable(folder)
    for old in folder.glob("frame_*.svg"):
        old.unlink()
    frames = recorded.frames()
    for step, frame in enumerate(frames if len(frames) <= MAX_FRAMES else ()):
        (folder / f"frame_{step:02}.svg").write_text(frame, "utf-8")


# ---- what can be traced ----------------------------------------------------------------------


def expression(options: Options) -> Subject:
    """Any expression, or the lecture's."""
    lecture = options.what == "circuit"
    if not lecture and options.what.isidentifier():
        close = difflib.get_close_matches(options.what, SUBJECTS, n=1)
        hint = f"did you mean {close[0]}" if close else "see --help"
        raise ValueError(
            f"there is nothing called {options.what!r} to draw; {hint}; there are: "
            f'{", ".join(SUBJECTS)}, or an expression such as "(x+y)*z"'
        )
    circuit = parse(LECTURE if lecture else options.what)
    entries = LECTURE_AT if lecture else options.at
    x = circuit.arrays(assigned(circuit, entries))
    title = f"{circuit.gates[-1].name} = {circuit.expression}"
    return Subject(title, circuit.block(), {}, x, compiled=False)


def neuron(options: Options) -> Subject:
    """One neuron and three features of one patient."""
    x, target = data = _patients(options.seed)
    net = fnn.neuron(fnn.logistic())
    rng = np.random.default_rng(options.seed)
    params = {"linear": {"w": rng.normal(size=len(FEATURES)).round(2), "b": np.float64(0.1)}}
    loss = fnn.binary_cross_entropy(from_logits=False)
    return Subject("A neuron", net, params, x[:1], target[:1], loss, data=data)


def mlp(options: Options) -> Subject:
    """Two layers and three features of one patient."""
    x, target = _patients(options.seed)
    target = target.astype(int)
    net = fnn.models.mlp((4, 2), fnn.tanh())
    rng = np.random.default_rng(options.seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x[:1])
    params = jax.tree.map(lambda p: rng.normal(scale=0.7, size=p.shape).round(2), shapes)
    loss = fnn.softmax_cross_entropy()
    title, data = "A multi-layer perceptron", (x, target)
    return Subject(title, net, params, x[:1], target[:1], loss, data=data)


def _patients(seed: int) -> tuple[np.ndarray, np.ndarray]:
    data = load("breast_cancer", seed)
    x = data.train.x[:, data.columns(FEATURES)]
    return x.astype(np.float64), data.train.target.astype(np.float64)


def digits(options: Options) -> Subject:
    """A digit through a network trained for some seconds."""
    data = load("digits", options.seed)
    net, loss = fnn.models.mlp((32, 10), fnn.relu()), fnn.softmax_cross_entropy()
    x, target = (jnp.asarray(a[:1]) for a in data.test[:2])
    title = f"The digit {int(target[0])}"
    if options.film:
        params = net.init(jax.random.key(options.seed), x)
        return Subject(title, net, params, x, target, loss, data=data.train[:2])
    fitted = fnn.fit(
        net, loss, *data.train[:2], optimizer=fnn.sgd(0.1, 0.9), epochs=5, batch_size=32,
        key=jax.random.key(options.seed),
    )  # fmt: skip
    return Subject(title, net, fitted.params, x, target, loss)


def googlenet(options: Options) -> Subject:
    """A photograph through GoogLeNet, with trained weights if they are found."""
    from experiments.googlenet.images import read_picture
    from experiments.googlenet.recognition import networks, recogniser

    network = networks()["bvlc"]
    title = "GoogLeNet"
    rng = np.random.default_rng(options.seed)
    x = 60 * rng.normal(size=(1, network.view.side, network.view.side, 3)).astype(np.float32)
    try:
        params = recogniser("bvlc", None, None).params
    except DataError as error:
        console.print(f"random weights: {error}", markup=False)
        params = jit_for_few_runs(network.net.init)(jax.random.key(options.seed), x)
        title += " with random weights"
    path, target = (options.picture, 0) if options.picture else _sample()
    if path is not None:
        x = np.asarray(network.scaled(jnp.asarray(read_picture(path)[None])))
        title += f": {path.name}"
    loss = fnn.softmax_cross_entropy()
    net = fnn.inference(network.net)
    return Subject(title, net, params, x, np.array([target]), loss, check="blocks")


def _sample() -> tuple[Path | None, int]:
    """The first labelled photograph of the data folder and its label; (None, 0) without any."""
    from experiments.googlenet.images import PictureError, labelled
    from experiments.googlenet.recognition import CLASSES, samples

    try:
        first = labelled(samples(), CLASSES)[0]
    except (DataError, PictureError):
        return None, 0
    return first.path, first.label


SUBJECTS: dict[str, Callable[[Options], Subject]] = {
    "circuit": expression, "neuron": neuron, "mlp": mlp, "digits": digits, "googlenet": googlenet,
}  # fmt: skip
FILMS = ("neuron", "mlp", "digits")
