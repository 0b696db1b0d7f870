# ruff: noqa: RUF001 - formulas and marks are as on a board
"""The drawings: the same bytes each time, every step, readable whatever the names and numbers."""

from __future__ import annotations

import base64
import html as html_of
import re
import shutil
import time
import xml.etree.ElementTree as ET
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments import lecture, lecture_drawings, whiteboard
from experiments.__main__ import main
from fnn.block import Block
from fnn.introspect.text import clean
from fnn.whiteboard import Trace, film, trace
from fnn.whiteboard.array_text import exactly, heat, number, tensor
from fnn.whiteboard.board import board
from fnn.whiteboard.chain_rule import products
from fnn.whiteboard.layout import Size, layered, place
from tests.slow import one_of
from tests.whiteboard.test_whiteboard import circuit, forks, panel

SVG = "{http://www.w3.org/2000/svg}"
RTL = "אבג\u202egnp.exe"
PAIR = fnn.graph(("a", "b"), [("m", fnn.multiply(), ("a", "b"))], "m")
HOSTILE = (
    "<script>alert(1)<",
    "\"quoted\" 'names' & more",
    "n" * 500,
    RTL,
    "{0} {y} %s \\ `",
    "\x00\x1b",
)


def words(svg: str) -> list[str]:
    """The texts in a picture; fails where it is no well-formed XML."""
    return [text.text or "" for text in ET.fromstring(svg).iter(f"{SVG}text")]


def deep(count: int, inside: int = 3) -> Trace:
    """A chain of networks."""
    net = fnn.serial(*[fnn.serial(*[fnn.identity()] * inside)] * count)
    return trace(net, {}, jnp.ones(2), check="none")


# ---- pictures --------------------------------------------------------------------------------


def test_the_circuit_s_picture_says_everything() -> None:
    found = words(trace(circuit(), {}, (-2.0, 5.0, -4.0)).svg())
    for text in (
        "▸ −2", "▸ 5", "▸ −4", "▸ 3", "▸ −12", "◂ −4", "◂ 3", "◂ 1", "◂ q: 1 × (−4) = −4",
        "◂ z: 1 × 3 = 3", "◂ x: −4 × 1 = −4", "dq/dx = 1", "df/dq = z", "df/dz = q", "+", "×",
    ):  # fmt: skip
        assert text in found, text
    assert found.count("◂ −4") == 3


def test_every_step_reveals_what_it_computes() -> None:
    t = trace(circuit(), {}, (-2.0, 5.0, -4.0))
    frames = [words(frame) for frame in t.frames()]
    assert len(frames) == 5
    known = [
        (sum(text in ("▸ 3", "▸ −12") for text in frame), sum("?" in text for text in frame))
        for frame in frames
    ]
    assert known == [(0, 2 + 5 + 4), (1, 1 + 5 + 4), (2, 5 + 4), (2, 2 + 2), (2, 0)]
    assert "step 3 of 4: backward through f" in frames[3]
    assert t.svg(4) == t.frames()[4]
    for step in (-1, 5):
        with pytest.raises(ValueError, match=f"step is {step}, needs a whole number from 0 to 4"):
            t.svg(step)


def test_the_sum_at_a_fork_is_known_when_all_of_it_is() -> None:
    t = trace(forks(), {}, (0.5, 3.0))
    total = [any("= 1 + 0.3692 + 0.3692" in w for w in words(frame)) for frame in t.frames()]
    assert total == [False] * 8 + [True]
    assert words(t.svg()).count("◂ 0.3692") == 2


def test_the_same_trace_is_the_same_bytes() -> None:
    first, second = (trace(forks(), {}, (0.5, 3.0)) for _ in range(2))
    for draw in (Trace.svg, Trace.html, Trace.text, Trace.mermaid, Trace.frames):
        assert draw(first) == draw(second)


def test_tensors_in_few_words() -> None:
    told = tensor(np.arange(9.0).reshape(3, 3) / 10)
    assert told.numbers[2] == ("0.6", "0.7", "0.8")
    # A vector of few numbers is a column, one of more has three rows; a matrix is as it is.
    assert [len(row) for row in tensor(np.ones((1, 4))).numbers] == [1] * 4
    assert [len(row) for row in tensor(np.ones(8)).numbers] == [3, 3, 2]
    assert [len(row) for row in tensor(np.ones((2, 4))).numbers] == [4, 4]
    many = tensor(np.linspace(-1, 1, 10))
    assert many.numbers == () and many.summary == "0 ± 0.6383"
    assert many.magnitude == number(float(np.linalg.norm(np.linspace(-1, 1, 10))))
    assert tensor(np.full(10, 3e200)).magnitude == "9.487e200"
    assert tensor(np.arange(20)).summary == "0 to 19"
    bad = tensor(np.array([np.nan, np.inf, 1.0] * 4))
    assert (bad.bad, bad.summary) == ("4 NaN and 4 ∞", "1 ± 0")
    assert tensor(np.zeros((0, 3))).lines == ("empty",)
    assert (
        exactly(np.float32(0.1)) == "0.1" and exactly(np.float64(0.1) * 3) == "0.30000000000000004"
    )


@pytest.mark.parametrize(
    ("shape", "cells"),
    [((3, 3), None), ((1, 64), (8, 8)), ((5, 4), (5, 4)), ((300, 2), (24, 2)),
     ((1, 28, 28, 3), (24, 24)), ((10,), (2, 6)), ((2, 1, 1, 8), (2, 8))],
)  # fmt: skip
def test_heat_maps(shape: tuple[int, ...], cells: tuple[int, int] | None) -> None:
    made = heat(np.random.default_rng(0).normal(size=shape))
    assert (made and (made.rows, made.columns)) == cells


def test_a_heat_map_is_a_png_with_signs_in_colours() -> None:
    made = heat(np.array([[1.0, -1.0, 0.0, np.nan, np.inf, 0.5]] * 2))
    assert made is not None
    data = base64.b64decode(made.address.partition(",")[2])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = data.index(b"IDAT")
    row = zlib.decompress(data[at + 4 : -16])[1:19]
    colours = [tuple(row[i : i + 3]) for i in range(0, 18, 3)]
    assert colours[:5] == [(27, 127, 59), (140, 81, 10), (255,) * 3, (255, 0, 255), (255, 0, 255)]


# ---- layout ----------------------------------------------------------------------------------


def test_layers_are_longest_paths_and_wires_do_not_cross() -> None:
    nodes = [("c", ("a",)), ("d", ("b",)), ("e", ("d", "c")), ("f", ("e", "a"))]
    layers = layered(("a", "b"), nodes, [("f",)])
    column = {k: i for i, keys in enumerate(layers.columns) for k in keys}
    assert [column[f"node:{k}"] for k in "cdef"] == [1, 1, 2, 3]
    assert layers.columns[0] == ("in:a", "in:b")
    assert layers.slots["node:e"] == (1, 0) or layers.columns[1].index("node:d") == 0


def test_long_networks_go_on_in_another_row() -> None:
    names = [f"n{i}" for i in range(10)]
    layers = layered(
        ("x",), [(n, (p,)) for n, p in zip(names, ["x", *names], strict=False)], [("n9",)]
    )
    sizes = {f"node:{n}": Size(100, 20, 20) for n in names}
    one, many = place(layers, sizes, 5000), place(layers, sizes, 400)
    assert one.size.width > 1200 and many.size.width <= 400
    assert many.size.down > 100
    boxes = [(*many.at[k], size) for k, size in sizes.items()]
    for i, (x, y, size) in enumerate(boxes):
        for a, b, other in boxes[:i]:
            apart = abs(x - a) >= min(size.width, other.width) or abs(y - b) >= size.up + other.down
            assert apart


def test_a_target_stands_in_the_row_of_its_reader() -> None:
    layers = layered(
        ("x", "t"), [("a", ("x",)), ("b", ("a",)), ("E", ("b", "t"))], [("E",)], ("t",)
    )
    sizes = {f"node:{k}": Size(300, 20, 20) for k in "abE"} | {"in:t": Size(80, 12, 12)}
    for width in (2000, 700, 500, 340):
        placed = place(layers, sizes, width).at
        same_row = abs(placed["in:t"][1] - placed["node:E"][1]) < 90
        before = placed["in:t"][0] + 80 <= placed["node:E"][0]
        assert (same_row and before) == (width > 430), width  # 340 holds no more than the reader


# ---- folding ---------------------------------------------------------------------------------


def test_large_networks_fold_by_themselves_and_say_so() -> None:
    small, large = deep(3), deep(10)
    assert len(board(small).visible()) == 9 and not board(small).folded
    assert len(board(large).visible()) == 10
    assert "folded to fit: 10 networks with 30 blocks inside; unfold='path' opens one" in words(
        large.svg()
    )
    assert "+ opens one" in large.html()
    name = large.nodes[2].path
    assert len(board(large, name).visible()) == 12
    assert len(board(large, True).visible()) == 30
    assert large.svg(unfold=name) != large.svg(unfold=False)
    with pytest.raises(KeyError, match="no network 'nowhere' to unfold; there are: "):
        large.svg(unfold="nowhere")
    # One box and its loss say little: the network is opened, though it is large.
    net = fnn.serial(*[fnn.negate()] * 30)
    alone = trace(net, {}, jnp.ones(2), jnp.ones(2), fnn.squared_error(), check="none")
    assert len(board(alone).visible()) == 31


def test_unfolding_opens_what_is_around_it() -> None:
    net = fnn.serial(a=fnn.serial(b=fnn.serial(c=fnn.negate())))
    assert board(trace(net, {}, 1.0), "a/b").unfolded == {"a", "a/b"}


def googlenet_of_ones() -> Trace:
    """GoogLeNet's trace with numbers that cost nothing: what takes time here is drawing."""
    net = fnn.with_loss(fnn.inference(fnn.models.googlenet()), fnn.softmax_cross_entropy())
    x = (jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32))
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    shapes = jax.eval_shape(lambda p, x: trace(net, p, x, check="none"), params, x)
    return jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)


@pytest.mark.slow
def test_googlenet_is_drawn_in_less_than_five_seconds() -> None:
    t = googlenet_of_ones()
    begin = time.process_time()
    picture = t.svg()
    assert time.process_time() - begin < 5
    found = words(picture)
    for name in ("conv1", "inception_3a", "inception_5b", "pool5", "loss3", "14 blocks inside"):
        assert name in found
    assert float(ET.fromstring(picture).get("width", "")) < 1700
    begin = time.process_time()
    t.html()
    assert time.process_time() - begin < 5


# ---- hostile and odd -------------------------------------------------------------------------


def hostile() -> Trace:
    nodes: list[Any] = []
    for i, name in enumerate(HOSTILE):
        kind = fnn.negate()._replace(name=HOSTILE[-i - 1] + "</script><!--")
        nodes.append((name, kind, HOSTILE[i - 1] if i else "</title>".replace("/", "") + "x"))
    inner = fnn.graph("<title>x", nodes, HOSTILE[-1], name="</style>")
    return trace(fnn.serial(**{HOSTILE[0]: inner}), {}, 1.0)


def test_hostile_names_are_shown_and_do_nothing() -> None:
    t = hostile()
    for draw in (t.svg(), *t.frames(), t.svg(unfold=False)):
        root = ET.fromstring(draw)
        assert {e.tag.removeprefix(SVG) for e in root.iter()} <= {
            "svg", "title", "style", "rect", "g", "path", "circle", "text", "image",
        }  # fmt: skip
        assert "\u202e" not in draw and "\x00" not in draw
    page = t.html(title="</title><script>alert(2)</script>")
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert page.count("<title>") == page.count("</title>") and "<!--" not in page
    assert "\u202e" not in page
    assert max(map(len, words(t.svg()))) <= 160
    chart = t.mermaid()
    assert "<" not in chart.replace("-->", "") and '""' not in chart
    assert all(line.count('"') in (0, 2) for line in chart.splitlines())


def test_names_as_they_are_shown() -> None:
    assert clean("a\nb") == "a�b" and clean("\ud800x") == "�x"
    assert clean("x" * 500, 20) == "x" * 19 + "…"
    # Among its own, so that what stands around it is not turned around.
    assert clean("אב") == "\u2068אב\u2069" and clean("  ") == "␣␣"


@pytest.mark.parametrize(
    ("block", "x"),
    [
        (fnn.sum(axis=1), np.zeros((0, 3))), (fnn.identity(), np.zeros((2, 0))),
        (fnn.square(), np.array([np.nan, np.inf, -np.inf])), (fnn.exp(), np.full((4, 4), 1e9)),
        (fnn.negate()._replace(name=""), np.ones(2)), (fnn.serial(), np.ones(3)),
        (fnn.fan_out(fnn.square(), fnn.exp()), np.ones(2)), (fnn.item(1), (np.ones(2), np.ones(3))),
        (fnn.graph("x", [("i", fnn.identity(), "x")], "i"), np.arange(3)),
        (fnn.identity(), np.arange(30)), (fnn.identity(), np.array([True, False])),
    ],
)  # fmt: skip
def test_odd_values_are_drawn(block: Block, x: Any) -> None:
    x = jax.tree.map(jnp.asarray, x)
    t = trace(block, {}, x)
    assert words(t.svg()) and words(t.frames()[0])
    assert t.html() and t.text() and t.mermaid().startswith("flowchart LR\n")


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (fnn.serial(two=fnn.fan_out(fnn.square(), fnn.exp()), inner=PAIR), 0.5),
        (fnn.graph(("a", "b"), [("y", fnn.serial(fnn.add(), fnn.exp()), ("a", "b"))], "y"),
         (0.5, 0.25)),
        (fnn.graph(("a", "b"), [("y", fnn.serial(inner=PAIR), ("a", "b")),
                                ("z", PAIR, ("y", "a"))], "z"), (0.5, 0.25)),
        (fnn.serial(two=fnn.serial(fnn.fan_out(fnn.square(), fnn.exp())), y=fnn.add()), 0.5),
        (fnn.serial(fnn.rematerialize(fnn.fan_out(fnn.square(), fnn.exp())), fnn.add()), 0.5),
    ],
)  # fmt: skip
def test_networks_that_read_or_make_tuples_are_drawn(net: Block, x: Any) -> None:
    t = trace(net, {}, x)
    assert t.right and words(t.svg(unfold=True)) and words(t.frames(unfold=True)[1])
    assert t.html() and t.text() and t.mermaid()


def test_non_finite_values_are_shown() -> None:
    t = trace(fnn.square(), {}, jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
    found = words(t.svg())
    assert "▸ NaN" in found and "    ∞" in found and "1 NaN and 2 ∞" in found


def test_a_nested_node_is_drawn_by_itself() -> None:
    net = fnn.serial(a=fnn.serial(b=fnn.exp(), c=fnn.negate()))
    t = trace(net, {}, 0.5)
    assert "exp" in words(t["a"].svg()) and "c" in words(t["a"].svg())
    assert "▸ 1.649" in words(t["a/b"].svg())
    assert "b = exp x = 1.6487212707001282" in t["a/b"].text()


# ---- the page and the chart ------------------------------------------------------------------


def test_the_page_stands_alone() -> None:
    page = trace(forks(), {}, (0.5, 3.0)).html("A fork")
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "import(" not in page and "fetch(" not in page
    assert '<meta name="viewport"' in page and '<html lang="en">' in page


def test_the_chart_shows_networks_as_frames() -> None:
    net = fnn.serial(a=fnn.serial(b=fnn.exp(), c=fnn.negate()), d=fnn.linear(1))
    t = trace(
        net, {"d": {"w": jnp.ones((2, 1)), "b": jnp.zeros(1)}}, jnp.zeros((1, 2)), check="none"
    )
    chart = t.mermaid()
    assert 'subgraph n1["a (serial)"]' in chart and chart.count("end\n") == 1
    assert 'n4["d (linear)"]' in chart and 'n3 -->|"▸ 1×2 ◂ ‖1.414‖"| n4' in chart


# ---- the film --------------------------------------------------------------------------------


def test_a_film_needs_one_network_and_a_label_for_each_moment() -> None:
    one, other = (trace(block, {}, 0.5) for block in (fnn.exp(), fnn.log()))
    wide = trace(fnn.exp(), {}, jnp.ones(2))
    assert film([one, one]) == film([one, one], ["epoch 0", "epoch 1"])
    assert film([one], title="<b>").count("<h1>&lt;b&gt;</h1>") == 1
    with pytest.raises(ValueError, match="film got 0 traces and 0 labels"):
        film([])
    with pytest.raises(ValueError, match="film got 2 traces and 1 labels"):
        film([one, one], ["start"])
    for differs in (other, wide):
        with pytest.raises(ValueError, match="film needs traces of one network"):
            film([one, differs])


@pytest.mark.as_users
def test_the_film_of_a_network_that_is_trained(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["whiteboard", "neuron", "--film", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "film.html").read_text()
    for epoch in range(whiteboard.FILM_EPOCHS + 1):
        assert f'"epoch {epoch}, ' in page
    assert "✗" not in page
    capsys.readouterr()
    assert main(["whiteboard", "x*y", "--film", "--out", str(tmp_path)]) == 2
    assert "--film needs neuron, mlp, digits; x*y is not" in capsys.readouterr().err


# ---- experiments -----------------------------------------------------------------------------


@pytest.mark.as_users
def test_whiteboard_of_an_expression(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["whiteboard", "(x+y)*z", "--at", "x=-2", "y=5,z=-4", "--out", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "df/dx = df/dq × dq/dx = −4 × 1 = −4" in shown and "drawn in" in shown
    files = {path.name for path in tmp_path.iterdir()}
    drawn = {f"whiteboard.{kind}" for kind in ("html", "svg", "txt", "mmd")}
    assert files == drawn | {"frames", "run.json"}
    assert len(list((tmp_path / "frames").iterdir())) == 5
    first = (tmp_path / "whiteboard.svg").read_bytes()
    assert main(["whiteboard", "--out", str(tmp_path)]) == 0  # the lecture's, which is the same
    assert (tmp_path / "whiteboard.svg").read_bytes() == first


@pytest.mark.as_users
def test_whiteboard_shows_what_is_not_finite(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["whiteboard", "log(x) / y", "--at", "x=-1", "y=2", "--out", str(tmp_path)]) == 0
    assert "first non-finite value: output of q" in capsys.readouterr().out


@pytest.mark.as_users
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neuron", "--at", "x=1"], "--at gives values of an expression"),
        (["x * y", "--at", "x=1"], "no value for y"),
        (["__import__('os')"], "there is no function '__import__'"),
        (["nueron"], "there is nothing called 'nueron' to draw; did you mean neuron; there are: "),
        (["foo"], "there is nothing called 'foo' to draw; see --help; there are: circuit, "),
        (["mlp", "--seed", "-1"], "--seed is -1"),
    ],
)
def test_whiteboard_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["whiteboard", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.as_users
def test_whiteboard_of_a_network(tmp_path: Any) -> None:
    assert main(["whiteboard", "mlp", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "whiteboard.txt").read_text()
    assert text.startswith("mlp: gradients of E, ✓ matches jax.vjp")
    assert "✗" not in text


WHITEBOARDS = [figure for figure in lecture.FIGURES if figure.is_trace]


@pytest.mark.slow
@pytest.mark.as_users
def test_the_lecture_s_page(tmp_path: Any) -> None:
    assert main(["lecture", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert page.count('<section class="whiteboard" ') == len(WHITEBOARDS) == 8
    assert "✗" not in page and "http" not in page.replace("http://www.w3.org", "")
    for figure in WHITEBOARDS:
        assert html_of.escape(lecture.code_of(figure)) in page
    assert page.count("<details>") == 9 and page.count("import jax\n") == 1
    titles = re.findall(r"<h2>(\d+)\. ([^<]*)</h2>", page)
    assert [int(number) for number, _ in titles] == list(range(1, len(titles) + 1))
    shown = {title for _, title in titles}
    for figure in lecture.FIGURES:
        assert figure.needs_data or html_of.escape(figure.title) in shown
    if "GoogLeNet on a photograph" in shown:
        assert "GoogLeNet says: <b>tiger shark" in page
    for part in ("w₁ = 2", "y = tanh(x)", "dy/dx = 1 − y²", 'class="tiles', "saddle"):
        assert part in page, part
    assert page.count("step 2 of 4: forward through f") == 1
    assert len(list(tmp_path.glob("*.svg"))) == 8
    # dE/dw2 = h dE/dz and dE/dW1 = x (dE/dz w2 h (1 - h)), as on paper.
    with jax.enable_x64(True):
        t = jax.device_get(jax.jit(lecture.hidden_layer)())
    h, dz, w2 = t["h"].y, t["z"].dy, t["z"].params["w"]
    np.testing.assert_allclose(t["z"].dparams["w"], h.T * dz, rtol=1e-14)
    np.testing.assert_allclose(
        t["a"].dparams["w"], t.x[0].T @ (dz * w2.T * h * (1 - h)), rtol=1e-14
    )


@pytest.mark.as_users
@pytest.mark.parametrize("figure", one_of(6, WHITEBOARDS, lambda figure: figure.make.__name__))
def test_the_lecture_s_code_runs_when_pasted(figure: lecture.Figure) -> None:
    pasted: dict[str, Any] = {}
    try:
        exec(
            lecture.IMPORTS + lecture.code_of(figure), pasted
        )  # sets float64 itself, for the whole process
        assert pasted["board"].text() == figure.make().text()
    finally:
        jax.config.update("jax_enable_x64", False)
    assert "float32" not in pasted["board"].text()


def test_the_lecture_is_printed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lecture, "FIGURES", WHITEBOARDS[:1])
    monkeypatch.setattr(lecture, "BROWSERS", ("no-such-browser",))
    arguments = ["lecture", "--pdf", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "--pdf needs Chromium; none of no-such-browser was found" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(lecture, "FIGURES", WHITEBOARDS[:1])
    if any(map(shutil.which, lecture.BROWSERS)):
        assert main(arguments) == 0
        assert (tmp_path / "index.pdf").read_bytes().startswith(b"%PDF-")


def test_curves_are_cut_off_and_not_flat_at_the_edge() -> None:
    points = lecture_drawings.nonlinearities(["relu"]).partition('points="')[2].partition('"')[0]
    assert points.split()[-1] == "214.0,-36.0"  # 4 at x = 4, above the picture


def test_the_lecture_says_what_its_figures_show() -> None:
    with jax.enable_x64(True):
        neurons, one, gates = (
            jax.device_get(jax.jit(make)())
            for make in (lecture.four_neurons, lecture.sigmoid, lecture.sigmoid_gates)
        )
    (x, t), p = neurons.x, neurons["net/p"].y
    w = [neurons[f"net/bit{k}/linear"].params["w"] for k in (8, 4, 2, 1)]
    layer = {"linear": {"w": np.hstack(w), "b": np.zeros(4)}}
    with jax.enable_x64(True):
        y, _ = fnn.layer(4, fnn.logistic()).forward(layer, x)
    np.testing.assert_allclose(p, y, rtol=1e-14)
    np.testing.assert_allclose(neurons["net/p"].dy, (p - t) / (p * (1 - p)), rtol=1e-14)
    for k, difference in zip((8, 4, 2, 1), (p - t)[0], strict=True):
        np.testing.assert_allclose(neurons[f"net/bit{k}/linear"].dy, [[difference]], rtol=1e-14)
    np.testing.assert_allclose(gates.y, one.y, rtol=1e-15)
    np.testing.assert_allclose(gates.dx[:5], one.dx, rtol=1e-14)


def test_every_subject_has_a_function() -> None:
    assert list(whiteboard.SUBJECTS) == ["circuit", "neuron", "mlp", "digits", "googlenet"]


# ---- products of a few numbers ---------------------------------------------------------------


def product_of(t: Trace, path: str, of: str) -> Any:
    return next(p for p in products(board(t, True), t[path]) if p.of == of)


def test_products_of_vectors_in_numbers() -> None:
    net = fnn.serial(a=fnn.logistic(), b=fnn.square())
    t = trace(net, {}, jnp.array([0.5, -1.0, 2.0, 0.1]))
    made = product_of(t, "a", "x")
    assert made.equation == "dΣb/dx = dΣb/da ⊙ da/dx"
    assert made.whole == (
        "(1.245, 0.5379, 1.762, 1.05) ⊙ (0.235, 0.1966, 0.105, 0.2494)"
        " = (0.2926, 0.1058, 0.185, 0.2618)"
    )
    # In a picture, an entry a line.
    assert made.numbers == (
        " 1.245 ×  0.235 = 0.2926", "0.5379 × 0.1966 = 0.1058", " 1.762 ×  0.105 =  0.185",
        "  1.05 × 0.2494 = 0.2618",
    )  # fmt: skip
    assert made.numbers[1] in words(t.svg())
    assert "◂ x: ? × ? = ?" in words(t.frames()[0])
    chain = "dΣb/db × db/da × da/dx = (1, 1, 1, 1) ⊙ (1.245, 0.5379, 1.762, 1.05) ⊙ (0.235, "
    assert any(chain in line for line in panel(t))
    t = trace(net, {}, jnp.zeros(2))
    assert "dΣb/dx = dΣb/da ⊙ da/dx = (1, 1) ⊙ (0.25, 0.25) = (0.25, 0.25)" in t.text()
    assert words(t.svg()).count("1 × 0.25 = 0.25") == 2
    t = trace(fnn.sum(), {}, jnp.array([1.0, 2.0]))
    assert "= 1 × (1, 1) = (1, 1)" in t.text()
    assert product_of(trace(net, {}, jnp.zeros(10)), "a", "x").whole == ""


@pytest.mark.slow
def test_products_of_small_matrices() -> None:
    params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.zeros(2)}
    net = fnn.serial(a=fnn.linear(2), c=fnn.scale(2.0))
    t = trace(net, {"a": params}, jnp.array([[1.0, 3.0]]))
    dx, dw, db = (product_of(t, "a", of) for of in "xwb")
    assert f"{dx.equation} = {dx.whole}" == (
        "dΣc/dx = dΣc/da Wᵀ = (2, 2) · [1, 0.5; −2, 3] = (−2, 7)"
    )
    assert f"{dw.equation} = {dw.whole}" == ("dΣc/dw = xᵀ dΣc/da = (1, 3)ᵀ · (2, 2) = [2, 2; 6, 6]")
    assert db.whole == ""
    t = trace(net, {"a": params}, jnp.array([[1.0, 3.0], [0.0, -1.0]]))  # two examples
    assert product_of(t, "a", "w").whole == "[1, 0; 3, −1] · [2, 2; 2, 2] = [2, 2; 4, 4]"
    # Where large numbers cancel, as many digits as it takes, or nothing.
    params = {"w": jnp.array([[1000.25, -1000.0]]), "b": jnp.zeros(2)}
    t = trace(net, {"a": params}, jnp.ones((1, 1)))
    assert product_of(t, "a", "x").whole == "(2, 2) · (1000.25, −1000)ᵀ = 0.5"
    params = {"w": jnp.array([[1.0, -1.0 + 2**-23]]), "b": jnp.zeros(2)}
    t = trace(net, {"a": params}, jnp.ones((1, 1)))
    assert product_of(t, "a", "x").whole == ""
    stacked = fnn.serial(a=fnn.repeat(fnn.linear(2), 2))  # several matrices: no one product
    x = jnp.ones((1, 2))
    t = trace(stacked, stacked.init(jax.random.key(0), x), x)
    assert {product_of(t, "a", of).whole for of in "xw"} == {""}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_the_numbers_shown_multiply(scale: float, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    net = fnn.serial(a=fnn.linear(3), b=fnn.softplus(), c=fnn.square(), d=fnn.linear(2))
    x = jnp.asarray(scale * rng.normal(size=(1, 3)), dtype)
    t = trace(net, net.init(jax.random.key(0), x), x, check="none")
    seen = 0
    for node in t.nodes:
        for product in products(board(t, True), node):
            left, _, result = product.whole.replace("−", "-").partition(" = ")
            factors = [array_of(text) for text in re.split(r" [×⊙·] ", left)] if left else []
            if len(factors) == 2 and np.isfinite(array_of(result)).all():
                by = np.matmul if "·" in left else np.multiply
                close = 1.1e-3 + 2 * float(jnp.finfo(dtype).eps)
                np.testing.assert_allclose(by(*factors), array_of(result), close, 1e-37)
                seen += 1
    assert seen >= 4


def array_of(text: str) -> Any:
    """The numbers as they are shown: 2, (1, 2), (1, 2)ᵀ, [1, 2; 3, 4]."""
    text = text.replace("∞", "inf").replace("NaN", "nan")
    rows = [[float(v) for v in row.split(",")] for row in text.strip("()[]ᵀ").split(";")]
    return np.array(rows).T if text.endswith("ᵀ") else np.array(rows)


def test_formulas_tell_the_case_that_applies() -> None:
    net, target = fnn.identity(), jnp.array([1.0, 0.0])
    for from_logits, x, rule in (
        (True, [2.0, -1.0], "(p − t)/n,  p = σ(net)"),
        (True, [0.3, 0.6], "(p − t)/n,  p = σ(net)"),
        (False, [0.3, 0.6], "(p − t)/(n p(1−p)),  p = net"),
        (False, [1.0, 0.0], "(p − t)/(n p(1−p)),  p = net"),
    ):
        loss = fnn.binary_cross_entropy(from_logits=from_logits)
        t = trace(net, {}, jnp.array(x), target, loss)
        assert f"because dE/dnet = {rule}\n" in t.text()
    for p, value, slope in (
        (3, "x³", "3 x²"), (2, "x²", "2 x"), (1, "x", "1"), (0, "x⁰", "0"),
        (-1, "x⁻¹", "−x⁻²"), (0.5, "x^0.5", "0.5 x^(−0.5)"),
        (1 / 3, "x^0.3333", "0.3333 x^(−0.6667)"),
    ):  # fmt: skip
        net = fnn.serial(power=fnn.power(p))
        text = trace(net, {}, jnp.array([2.0, 0.7])).text()
        assert f"power = {value} =" in text and f"because dpower/dx = {slope}\n" in f"{text}\n"
    assert "3 x²" in trace(fnn.power(3), {}, jnp.bfloat16(1.7)).text()


@pytest.mark.parametrize(
    "name", ["linear", "power", "power(mine)", "power(inf)", "binary_cross_entropy"]
)
def test_blocks_with_the_names_of_others(name: str) -> None:
    mine = fnn.elementwise(name, lambda x: x + 1, lambda x: jnp.ones_like(x))
    text = trace(mine, {}, jnp.array([1.0, 2.0])).text()
    assert "✓ matches jax.vjp" in text


def test_long_chains_fold_by_themselves_too() -> None:
    net = fnn.serial(**{f"b{i}": fnn.negate() if i % 2 else fnn.exp() for i in range(60)})
    t = trace(net, {}, jnp.array([0.5]), jnp.array([0.25]), fnn.squared_error())
    picture = t.svg()
    assert "folded to fit: 9 networks with 60 blocks inside" in " ".join(words(picture))
    assert "b0 … b6" in words(picture) and "b3" not in words(picture)
    # A part has its last block's name and value, and is opened by it.
    opened = t.svg(unfold="net/b6")
    assert "b3" in words(opened) and "b10" not in words(opened)
    assert "b10" in words(t.svg(unfold=True)) and "…" not in t.text()
    assert t["net/b3"].right and t.right
    nodes: list[Any] = [("a", fnn.exp(), "x"), ("b0", fnn.add(), ("a", "x"))]
    nodes += [(f"b{i}", fnn.add(), ("a", f"b{i - 1}")) for i in range(1, 60)]
    branching = fnn.graph("x", nodes, "b59")
    assert "b7" in words(trace(branching, {}, 0.5).svg())  # no chain: drawn as it is
