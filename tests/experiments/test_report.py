"""report.html: whole, self-contained, and safe whatever the names in it."""

from __future__ import annotations

import importlib.metadata
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments.__main__ import main
from experiments.common import report
from experiments.common.figures import plt
from experiments.common.report import Report
from experiments.digits import Options

pytestmark = pytest.mark.as_users
HOSTILE = "<script>alert('1')</script> \"&\u202eabc" + "x" * 500


class Reader(HTMLParser):
    """Refuses tags that do not close and anything that would be fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.headings: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                assert value is not None and value.startswith(("data:", "#")), value
            assert not name.startswith("on")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.mark.slow
def test_the_report_of_a_diagnosed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs", "2", "--hidden", "16", "--dropout", "0", "--learning-rate", "3"]
    assert main(["digits", "--diagnostics", *options, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "by chance 2.303" in printed and "lower the learning rate" in printed
    page = (tmp_path / "report.html").read_text()
    reader = Reader(page)
    assert reader.headings == list(report.TITLES)
    assert "python -m experiments digits --diagnostics --epochs 2" in page
    for part in ("Learning rate too high", "Loss, log scale", "Update / parameters", "relu_1"):
        assert part.lower() in page.lower()
    assert len(re.findall("data:image/png", page)) > 24
    assert "url(http" not in page and "@import" not in page
    for package in ("jax", "optax", "matplotlib", "scikit-learn"):
        assert f"<td>{package}</td><td>{importlib.metadata.version(package)}</td>" in page


@pytest.mark.slow
def test_without_diagnostics_there_is_a_report_too(tmp_path: Path) -> None:
    assert main(["neuron", "--epochs", "1", "--out", str(tmp_path)]) == 0
    headings = Reader((tmp_path / "report.html").read_text()).headings
    assert "Learning" in headings and "Gradient check" in headings
    assert "Layers over time" not in headings


@pytest.mark.slow
def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")  # which the name of a block cannot have
    net = fnn.serial(**{name: fnn.linear(4), "act": fnn.relu(), "out": fnn.linear(2)})
    x = np.random.default_rng(0).random((40, 6), np.float32)
    target = np.arange(40) % 2
    fitted = fnn.fit(
        net, fnn.softmax_cross_entropy(), x, target, epochs=2, validation=(x, target),
        diagnostics=True, progress=False, optimizer=fnn.sgd(1e-6),
    )  # fmt: skip
    page = Report(Options(command=HOSTILE, out=Path("a<b>")), HOSTILE)
    page.training(fitted)
    names = [HOSTILE, "b&b"]
    page.facts[HOSTILE] = HOSTILE
    page.add("The network", report.network(net, x))
    page.add("Gradient check", report.gradient_check([(HOSTILE, "", "", "")]))
    page.add("Confusion matrix", report.confusion(1 - target, target, names))
    probabilities = np.asarray(jax.nn.softmax(net.forward(fitted.params, x)[0]))
    page.add(
        "Worst mistakes",
        report.mistakes(x.reshape(-1, 2, 3).__getitem__, probabilities, target, names),
    )
    page.write(tmp_path)
    reader = Reader((tmp_path / "report.html").read_text())
    assert "script" not in reader.tags and "b" not in reader.tags


def test_the_same_run_is_the_same_page(tmp_path: Path) -> None:
    history = [{"epoch": i, "loss": 1.0 / i, "seconds": 1.0} for i in (1, 2, 3)]
    assert report.learning(history, 2) == report.learning(history, 2)
    negative = [{"epoch": 1, "loss": -1.0, "seconds": 1.0}]  # has no logarithm
    assert "log scale" in report.learning(negative, 0)


def test_the_whiteboard_shows_one_example() -> None:
    net = fnn.serial(drop=fnn.dropout(0.5), out=fnn.linear(1))
    x, target = jnp.ones((1, 2)), jnp.ones((1, 1))
    params = net.init(jax.random.key(0), x)
    made = report.whiteboard(net, fnn.squared_error(), params, (x, target))
    assert "<svg" in made and "squared_error" in made


def test_the_whiteboard_fits_its_section() -> None:
    net = fnn.models.mlp((256, 10), fnn.relu())
    x = jnp.ones((1, 64))
    params = net.init(jax.random.key(0), x)
    made = report.whiteboard(net, fnn.softmax_cross_entropy(), params, (x, jnp.array([3])))
    width = re.search(r'<svg [^>]*?width="([\d.]+)"', made)
    assert width is not None and float(width[1]) < 1031  # of a window of 1200


def test_mistakes_are_only_those_that_were_wrong() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.3, 0.7]])
    see = np.zeros((3, 2, 2)).__getitem__
    made = report.mistakes(see, probabilities, np.array([0, 1, 0]), ("cat", "dog"))
    assert re.findall("<figcaption>([^<]*)", made) == ["dog, read as cat", "cat, read as dog"]
    assert "All 2 mistakes" in made
    one = report.mistakes(see, probabilities, np.array([0, 1, 0]), ("cat", "dog"), count=1)
    assert one.count("<figure>") == 1 and "1 of 2 mistakes" in one
    none = report.mistakes(see, probabilities, np.array([0, 0, 1]), ("cat", "dog"))
    assert none == "<p>None: all 3 were read right.</p>"


def test_sections_have_their_order(tmp_path: Path) -> None:
    page = Report(Options())
    titles = ["The network", "One of its own", "What stands out", "Learning", "A second"]
    for title in titles:
        page.add(title, "<p>", title, "</p>")
    part = page.part("first net")
    part.add("Learning", "<p>it learns</p>")
    part.facts["epochs"] = "3"
    assert page.part("first net") is part
    page.write(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert Reader(text).headings == [
        "What stands out", "One of its own", "A second", "Learning", "The network", "first net",
        "How to run it again",
    ]  # fmt: skip
    assert "<dt>epochs</dt><dd>3</dd>" in text and "it learns" in text


def test_a_picture_is_on_the_page_and_beside_it(tmp_path: Path) -> None:
    page = Report(Options())
    for name in ("first", "second"):
        figure, axis = plt.subplots()
        axis.plot([1, 2])
        page.picture(name, figure, tmp_path / f"{name}.png", f"The {name} & <last>.")
        assert not plt.fignum_exists(figure.number)
    page.write(tmp_path)
    text = (tmp_path / "report.html").read_text()
    Reader(text)
    assert text.count("data:image/png") == 2 and "The first &amp; &lt;last&gt;." in text
    assert (tmp_path / "second.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "run.json").read_text())["thumbnail"] == "first.png"


def test_without_pictures_the_loss_is_the_thumbnail(tmp_path: Path) -> None:
    page = Report(Options())
    page.add("Learning", report.learning([{"epoch": 1, "loss": 1.0, "seconds": 1.0}], 1))
    page.write(tmp_path)
    assert ElementTree.parse(tmp_path / "thumbnail.svg").getroot().tag.endswith("svg")
