# ruff: noqa: RUF001 - formulas and marks are as on a board
"""The live page in a real browser: what live.js computes against fnn's float64, editing, the quiz;
and the film.

Needs what tests/whiteboard/test_whiteboard_browser.py needs, and is skipped where that is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import fnn
from experiments import lecture
from fnn.whiteboard import Trace, film, trace
from fnn.whiteboard.array_text import number
from fnn.whiteboard.board import board
from fnn.whiteboard.live import CURVES, GATES, KNOWN, program
from fnn.whiteboard.page import page_board
from tests.slow import one_of
from tests.whiteboard.test_whiteboard import circuit, forks, turned
from tests.whiteboard.test_whiteboard_browser import Page, driver, page

__all__ = ["driver", "page"]

Example = tuple[fnn.Block, Any, Any, Any, fnn.Block | None]
rng = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).round(3)


def with_params(net: fnn.Block, x: Any, target: Any = None, loss: Any = None) -> Example:
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    params = jax.tree_util.tree_map_with_path(
        lambda path, s: np.abs(random(*s.shape)) if "var" in str(path) else random(*s.shape), shapes
    )
    return net, params, x, target, loss


def examples() -> dict[str, Example]:
    """By name: what the issue asks for, and the blocks that small pages use."""
    x = random(1, 3)
    probabilities = np.array([[0.2, 0.5, 0.3], [0.0, 0.25, 0.75]])
    made = {
        "circuit": (circuit(), {}, (-2.0, 5.0, -4.0), None, None),
        "forks": (forks(), {}, (0.5, 3.0), None, None),
        "neuron": with_params(
            fnn.neuron(fnn.logistic()), random(1, 3), np.array([1.0]),
            fnn.binary_cross_entropy(from_logits=False),
        ),
        "hidden layer": with_params(
            fnn.models.mlp((4, 2), fnn.tanh()), x, np.array([1]), fnn.softmax_cross_entropy()
        ),
        "softmax classifier, a batch": with_params(
            fnn.linear(3), random(5, 4), np.array([0, 2, 1, 1, 0]), fnn.softmax_cross_entropy()
        ),
        "soft targets": with_params(
            fnn.linear(3), random(2, 4), probabilities, fnn.softmax_cross_entropy()
        ),
        "softmax, then cross-entropy": with_params(
            fnn.serial(z=fnn.linear(3), p=fnn.softmax()), random(2, 2), np.array([1, 2]),
            fnn.cross_entropy(),
        ),
        "logits": with_params(
            fnn.linear(2), random(3, 2), np.array([[0, 1], [1, 1], [0, 0.5]]),
            fnn.binary_cross_entropy(),
        ),
        "regression": with_params(
            fnn.serial(fnn.linear(2), fnn.residual(fnn.serial(fnn.relu(), fnn.linear(2)))),
            random(4, 3), random(4, 2), fnn.squared_error(),
        ),
        "mean": with_params(fnn.serial(fnn.log_softmax(), fnn.mean()), random(2, 3)),
        "joined": with_params(
            fnn.graph("x", [("a", fnn.layer(2, fnn.softplus()), "x"), ("b", fnn.linear(1), "x"),
                            ("c", fnn.concatenate(), ("a", "b")), ("s", fnn.sum(), "c")], "s"), x,
        ),
        "power": (fnn.graph(("x", "p"), [("y", fnn.power(), ("x", "p"))], "y"), {}, (1.5, -0.7),
                  None, None),
        "flat": with_params(fnn.serial(fnn.flatten(), fnn.linear(1)), random(1, 2, 2)),
        "image": with_params(
            fnn.serial(c=fnn.conv(2, 2), a=fnn.relu(), p=fnn.max_pool(2), m=fnn.global_avg_pool(),
                       z=fnn.linear(2)),
            random(2, 4, 4, 1), np.array([1, 0]), fnn.softmax_cross_entropy(),
        ),
        "layer_norm": with_params(fnn.serial(n=fnn.layer_norm(), s=fnn.softplus()), random(2, 3)),
        "layer_norm, no scale": with_params(
            fnn.serial(n=fnn.layer_norm(1, use_scale=False), s=fnn.softplus()), random(2, 2, 3)[0]
        ),
        "group_norm": with_params(
            fnn.serial(n=fnn.group_norm(2), s=fnn.softplus()), random(2, 2, 4)
        ),
        "instance_norm, no bias": with_params(
            fnn.serial(n=fnn.instance_norm(use_bias=False), s=fnn.softplus()), random(2, 2, 2, 2)
        ),
        "batch_norm": with_params(
            fnn.serial(z=fnn.linear(2), n=fnn.batch_norm(), s=fnn.softplus()), random(4, 3)
        ),
        "batch_norm, inference": with_params(
            fnn.inference(fnn.serial(n=fnn.batch_norm(), s=fnn.softplus())), random(4, 3)
        ),
        "conv, sequence": with_params(
            fnn.serial(c=fnn.conv(3, 3, stride=2, padding=[(2, 0)]), s=fnn.square()),
            random(2, 5, 2),
        ),
        "conv, dilated groups": with_params(
            fnn.serial(c=fnn.conv(4, (2, 3), stride=(2, 1), dilation=(1, 2), groups=2,
                                  use_bias=False), s=fnn.square()), random(1, 4, 3, 2)
        ),
        "conv, valid": with_params(
            fnn.serial(c=fnn.conv(1, 2, padding="VALID"), s=fnn.square()), random(1, 3, 4, 2)
        ),
        "conv, volume": with_params(
            fnn.serial(c=fnn.conv(2, (2, 1, 2)), s=fnn.square()), random(1, 2, 2, 3, 1)
        ),
        "conv_transpose": with_params(
            fnn.serial(c=fnn.conv_transpose(4, (3, 2), stride=(2, 1), padding=((1, 0), (0, 0)),
                                            output_padding=(1, 0), groups=2), s=fnn.square()),
            random(2, 2, 2, 2),
        ),
        "max_pool, ties": (fnn.serial(p=fnn.max_pool(2, 1, padding="SAME"), s=fnn.square()), {},
                           np.array([1.0, 1, 0, 2, 2, 2, 0, 1, 1]).reshape(1, 3, 3, 1), None, None),
        "max_pool, ceil_mode": with_params(
            fnn.serial(p=fnn.max_pool(2, ceil_mode="torch"), s=fnn.square()), random(1, 5, 2)
        ),
        "avg_pool": with_params(
            fnn.serial(p=fnn.avg_pool((2, 3), 1, padding=1), s=fnn.square()), random(1, 3, 3, 2)
        ),
        "avg_pool, of x alone": with_params(
            fnn.serial(p=fnn.avg_pool(3, 2, padding="SAME", count_padding=False), s=fnn.square()),
            random(2, 4, 2),
        ),
        "sums over axes": with_params(
            fnn.serial(a=fnn.square(), s=fnn.sum(0), m=fnn.mean(-1, keepdims=True)),
            random(2, 3, 4),
        ),
        "wrapped": with_params(
            fnn.serial(r=fnn.rematerialize(fnn.linear(3)), f=fnn.freeze(fnn.linear(2)),
                       n=fnn.repeat(fnn.linear(2), 3), d=fnn.inference(fnn.dropout(0.5))),
            random(2, 2),
        ),
        "gelu, by tanh": (fnn.serial(y=fnn.gelu(approximate=True)), {},
                          np.array([-5.0, -0.5, 0.0, 0.7, 4.0]), None, None),
        "gelu, far out": (fnn.serial(y=fnn.gelu()), {},
                          np.array([-9.0, -4.5, -3.9, 3.9, 4.5]), None, None),
    }  # fmt: skip
    made |= {
        f"{name}, broadcast": (
            fnn.graph(("a", "b"), [("y", getattr(fnn, name)(), ("a", "b"))], "y"), {},
            (np.abs(random(2, 1, 2)), np.abs(random(3, 1))), None, None,
        )
        for name in (*GATES, "power")
    }  # fmt: skip
    made |= {
        name: (fnn.graph(("a", "b"), [("y", getattr(fnn, name)(), ("a", "b"))], "y"), {},
               (random(3), random(3)), None, None)
        for name in GATES
    }  # fmt: skip
    arguments: dict[str, tuple[float, ...]] = {
        "scale": (-2.0,), "power": (3.0,), "elu": (0.7,), "celu": (0.6,),
    }  # fmt: skip
    for name in CURVES:
        curve = getattr(fnn, name)(*arguments.get(name, ()))
        x = np.abs(random(4)) + 1 if name in ("log", "sqrt") else np.append(random(4), 0.0)
        made[f"{name}, elementwise"] = (fnn.serial(y=curve), {}, x, None, None)
    return made


EXAMPLES = examples()


def recorded(net: fnn.Block, params: Any, x: Any, target: Any, loss: Any) -> Trace:
    with jax.enable_x64(True):
        put = jax.tree.map(jnp.asarray, (params, x))
        return jax.device_get(trace(net, *put, target, loss, check="none"))


def gradients(t: Trace) -> dict[str, Any]:
    """By reference, of every input, parameter and wire, and the output."""
    b, live = page_board(t)
    assert live
    wires = {
        b.wire(kind, b.trace, name): pair[i]
        for name, pair in b.trace.values.items() for i, kind in enumerate("vd")
    }  # fmt: skip
    return {k: np.asarray(v) for k, v in wires.items() if v is not None} | {
        k: np.array(v["data"]).reshape(v["shape"]) for k, v in live["gradients"].items()
    }


def assert_same(page: Page, t: Trace) -> None:
    expected = gradients(t)
    got = page.run(
        "const { lesson } = boards[0];"
        "return arguments[0].map((reference) => lesson.get(reference)?.data)",
        list(expected),
    )
    for (reference, value), mine in zip(expected.items(), got, strict=True):
        scale = np.max(np.abs(value), initial=1e-3)
        np.testing.assert_allclose(mine, value.ravel(), rtol=0, atol=1e-9 * scale,
                                   err_msg=reference)  # fmt: skip


@pytest.mark.parametrize("name", one_of(12, EXAMPLES))
def test_the_page_computes_what_fnn_does(page: Page, name: str) -> None:
    """Forward, every gradient, after a change, and after a step of gradient descent."""
    net, params, x, target, loss = EXAMPLES[name]
    t = recorded(net, params, x, target, loss)
    page.open(t.html())
    assert page.run("return boards[0].lesson.live.agrees")
    assert_same(page, t)
    # A change of the first input's first entry.
    many = isinstance(x, tuple)
    first = np.array(x[0] if many else x, float)
    first.flat[0] += 0.25
    x = (first, *x[1:]) if many else first
    wire = page.run("return boards[0].lesson.live.program.inputs[0].wire")
    page.run("boards[0].lesson.change(`v${arguments[0]}`, 0, arguments[1])", wire, first.flat[0])
    t = recorded(net, params, x, target, loss)
    assert_same(page, t)
    # A step: of the parameters, or of the inputs where there are none.
    page.do_live("descend")
    if jax.tree.leaves(params):
        grads = t.dparams["net"] if loss else t.dparams
        params = jax.tree.map(
            lambda g, p: p if g is None else p - 0.1 * np.asarray(g), grads, params,
            is_leaf=lambda v: v is None,
        )  # fmt: skip
    else:
        x = jax.tree.map(lambda v, d: np.asarray(v) - 0.1 * np.asarray(d), x, t.dx)
    assert_same(page, recorded(net, params, x, target, loss))
    assert page.driver.get_log("browser") == []


@pytest.mark.parametrize(
    "name", one_of(3, ["circuit", "forks", "neuron", "hidden layer", "logits", "joined"])
)
def test_the_page_writes_what_python_does(page: Page, name: str) -> None:
    """After a step, picture and panels have the texts of a page that is made anew."""
    net, params, x, target, loss = EXAMPLES[name]
    t = recorded(net, params, x, target, loss)
    page.open(t.html())
    page.do_live("descend")
    changed = written(page)
    if jax.tree.leaves(params):
        grads = t.dparams["net"] if loss else t.dparams
        params = jax.tree.map(lambda p, g: p - 0.1 * np.asarray(g), params, grads)
    else:
        x = jax.tree.map(lambda v, d: np.asarray(v) - 0.1 * np.asarray(d), x, t.dx)
    page.open(recorded(net, params, x, target, loss).html())
    page.do("last")
    assert len(changed) > 20
    for mine, theirs in zip(changed, written(page), strict=True):
        # Long numbers have fewer digits in the picture of a page that is changed.
        if not re.search(r"[−\d.e]{9}", theirs):
            assert mine.split() == theirs.split()


def written(page: Page) -> list[str]:
    """The texts of the picture, and of all panels but for what is about the recorded numbers."""
    return page.run(
        "const [b] = boards, lines = [...b.root.querySelectorAll('svg.wb .k text, svg.wb tspan')]"
        ".map((t) => t.textContent);"
        "for (const id in b.about) for (const [kind, ...parts] of b.about[id])"
        "  if (kind !== 'check') lines.push(parts.map((part) => b.written(part, kind)).join(''));"
        "return lines"
    )


def test_every_block_that_python_calls_known_is_known_to_the_script(page: Page) -> None:
    page.open(trace(circuit(), {}, (-2.0, 5.0, -4.0)).html())
    assert set(KNOWN) == set(page.run("return Object.keys(OPS)")) - {"copy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: trace(fnn.local_response_norm(), {}, jnp.ones(3)),  # not known to the script
        lambda: trace(fnn.layer_norm(0, use_scale=False, use_bias=False), {}, jnp.ones((3, 2))),
        lambda: trace(fnn.rematerialize(fnn.serial(fnn.exp(), fnn.exp())), {}, 0.5),
        lambda: trace(fnn.exp(), {}, jnp.ones(201)),
        lambda: trace(fnn.log(), {}, 0.0),
    ],
)  # fmt: skip
def test_other_pages_are_as_they_were(page: Page, make: Callable[[], Trace]) -> None:
    t = make()
    assert page_board(t)[1] is None
    page.open(t.html())
    assert page.run("return boards[0].lesson") is None and not page.find(".live")


def test_a_page_whose_numbers_differ_is_not_live(page: Page) -> None:
    """A wrong gradient, which the page would correct in silence."""
    wrong = turned(fnn.exp())
    page.open(trace(fnn.serial(a=wrong), {}, 0.5).html())
    assert page.run("return boards[0].lesson ?? null") is None and not page.find(".live")
    assert "not live" in page.driver.get_log("browser")[0]["message"]


def test_typing_dragging_and_arrows_change_numbers(page: Page) -> None:
    page.open(trace(circuit(), {}, (-2.0, 5.0, -4.0)).html())
    page.do("last")
    x, y, z = page.find(".editable tspan")
    x.click()
    (field,) = page.find(".field")
    field.send_keys("3", Keys.ENTER)
    assert page.find(".loss")[0].text == "f = −32" and x.text == "3"
    page.press(Keys.ARROW_UP)  # the number has the focus again
    assert x.text == "3.1"
    page.run("arguments[0].focus()", z)
    page.press(Keys.ARROW_DOWN)
    assert z.text == "−4.1" and page.find(".loss")[0].text == "f = −33.21"
    from selenium.webdriver import ActionChains

    ActionChains(page.driver).drag_and_drop_by_offset(y, 40, 0).perform()
    assert y.text == "6" and page.find(".loss")[0].text == "f = −37.31"
    shown = [e.text for e in page.find("svg.wb text")]
    assert "◂ z: 1 × 9.1 = 9.1" in shown and "◂ x: −4.1 × 1 = −4.1" in shown
    page.find(".item.gate .folded .symbol")[0].click()
    panel = page.find(".panel")[0].text
    assert "df/dx = df/df × df/dq × dq/dx = 1 × (−4.1) × 1 = −4.1" in panel
    assert "jax.vjp" not in panel  # that was about other numbers
    page.do_live("reset")
    assert x.text == "−2" and page.find(".loss")[0].text == "f = −12"
    page.assert_clean()


def test_the_loss_falls_with_every_step(page: Page) -> None:
    page.open(recorded(*EXAMPLES["hidden layer"]).html(), width=1920, height=1080)
    losses = [page.run("return boards[0].lesson.live.loss")]
    for _ in range(5):
        page.do_live("descend")
        losses.append(page.run("return boards[0].lesson.live.loss"))
    assert losses == sorted(losses, reverse=True) and losses[5] < losses[0]
    assert page.find(".loss")[0].text.startswith("E = ") and "→" in page.find(".loss")[0].text
    page.assert_clean()


def test_an_entry_of_a_heat_map_is_typed(page: Page) -> None:
    page.open(recorded(*EXAMPLES["hidden layer"]).html())
    image = page.find(".editable image")[0]
    page.run("arguments[0].focus()", image)
    page.press(Keys.ENTER)
    page.press("2", Keys.TAB)
    page.press("3", Keys.ENTER)
    w = page.run("return boards[0].lesson.live.params.hidden_1.w.data")
    assert w[:2] == [2, 3]


def ask(page: Page, reference: str, answer: str) -> str:
    page.run("boards[0].lesson.quiz.ask(arguments[0])", reference)
    field = page.find(".quiz .answer")[0]
    field.send_keys(answer, Keys.ENTER)
    return page.find(".quiz output")[0].text


def test_the_quiz_names_the_mistake(page: Page) -> None:
    t = trace(forks(), {}, (0.5, 3.0))
    page.open(t.html())
    page.do_live("quiz")
    assert page.find(".ask")[0].text == "df/dm =" and page.unknown > 8
    b, _ = page_board(t)
    d = {name: b.wire("d", b.trace, name) for name in b.trace.values}
    chosen = page.find("svg.wb [tabindex='0'][aria-label='df/dx']")[0]  # by keyboard alone
    page.run("arguments[0].focus()", chosen)
    page.press(Keys.ENTER)
    assert page.find(".ask")[0].text == "df/dx ="
    total = float(t.dx[0])
    assert ask(page, d["x"], "0.5") == "Not yet: upstream times local; at a fork the sum."
    assert ask(page, d["x"], str(-total)) == "The sign is the wrong way around."
    assert "from f alone. The value forks: add all 3." in ask(page, d["x"], "1")
    assert ask(page, d["x"], str(total / 3)) == "That is the mean of 3: it needs the sum."
    assert ask(page, d["x"], "1, 2") == "It has 1 number, you gave 2."
    assert ask(page, d["x"], "one") == "Write numbers, such as -0.5, 2"
    assert ask(page, d["p"], f"{float(t['s'].local[1]):.4f}") == (
        "That is the local derivative: multiply it by upstream."
    )
    assert ask(page, d["p"], "3") == "That is upstream: multiply it by the local derivative."
    known = f"Right. df/dx = {total:.4g}"
    assert ask(page, d["x"], f"{total:.3g}") == known
    assert f"◂ {total:.4g}" in [e.text for e in page.find("svg.wb .k text")]
    while page.find(".ask")[0].text != "All gradients are known.":
        page.do_live("show")
    assert page.unknown == 0
    assert not any(page.run("return [...document.querySelectorAll('.quiz button')]"
                            ".map((b) => !b.disabled)"))  # fmt: skip
    page.do_live("quiz")
    assert not page.find(".quiz") and not page.find("svg.wb [aria-label='df/dx']")
    page.assert_clean()


def test_the_quiz_hides_in_the_panel_what_is_not_answered(page: Page) -> None:
    page.open(trace(circuit(), {}, (-2.0, 5.0, -4.0)).html())
    page.do_live("quiz")
    b = board(trace(circuit(), {}, (-2.0, 5.0, -4.0)))
    page.run("boards[0].show('1')")
    (panel,) = page.find(".panel")
    chain = "df/dx = df/df × df/dq × dq/dx ="
    assert "upstream df/dq = ?" in panel.text and f"{chain} ?" in panel.text
    assert ask(page, b.wire("d", b.trace, "q"), "5") == (
        "Not yet: upstream times local; at a fork the sum."
    )
    page.press("-4", Keys.ENTER)  # replaces what was wrong
    assert "upstream df/dq = −4" in panel.text and f"{chain} ?" in panel.text
    page.run("boards[0].lesson.quiz.ask(arguments[0])", b.wire("d", b.trace, "x"))
    page.do_live("show")
    assert f"{chain} 1 × (−4) × 1 = −4" in panel.text
    assert "df/dy = df/df × df/dq × dq/dy = ?" in panel.text
    page.assert_clean()


def test_the_quiz_asks_for_parts_before_their_sum(page: Page) -> None:
    page.open(recorded(*EXAMPLES["joined"]).html())
    page.do_live("quiz")
    asked = []
    while (question := page.find(".ask")[0].text) != "All gradients are known.":
        asked.append(question)
        page.do_live("show")
    parts = [i for i, text in enumerate(asked) if text.startswith("ds/dx, the part")]
    (whole,) = [i for i, text in enumerate(asked) if text.startswith("ds/dx (")]
    assert len(parts) == 2 and max(parts) < whole
    page.assert_clean()


def test_a_number_that_is_none_is_said(page: Page) -> None:
    page.open(trace(circuit(), {}, (-2.0, 5.0, -4.0)).html())
    page.do("last")
    page.find(".editable tspan")[0].click()
    page.press("abc", Keys.ENTER)
    hint = page.find(".live .hint")[0]
    assert hint.text == "“abc” is not a number. Write one, such as −0.5."
    page.press("3", Keys.ENTER)  # the field is still there, and what was wrong is selected
    assert page.find(".loss")[0].text == "f = −32" and hint.text.startswith("Drag")
    page.assert_clean()


@pytest.mark.slow
def test_the_quiz_on_matrices_and_batches(page: Page) -> None:
    t = recorded(*EXAMPLES["softmax classifier, a batch"])
    page.open(t.html())
    page.do_live("quiz")
    b, _ = page_board(t)
    db = f"g{b.ids['net']}.b"
    exact = np.asarray(t["net"].dparams["b"])
    text = lambda values: " ".join(map(str, np.ravel(values)))  # noqa: E731
    assert ask(page, db, text(exact * 5)) == (
        "That is 5 times too much: the loss is a mean over 5."
    )
    assert ask(page, db, text(exact / 5)) == "That is the mean of 5: it needs the sum."
    assert ask(page, db, text(exact * [1, 1, -1])) == "2 of 3 are right."
    t = recorded(*EXAMPLES["hidden layer"])
    page.open(t.html())
    page.do_live("quiz")
    b, _ = page_board(t)
    dw = np.asarray(t["net/out"].dparams["w"])
    assert ask(page, f"g{b.ids['net/out']}.w", text(dw.T)) == (
        "It is transposed: rows and columns are swapped."
    )
    assert ask(page, f"g{b.ids['net/out']}.w", text(dw)).startswith("Right.")


@pytest.mark.parametrize("width", one_of(2, [390, 1920]))
def test_live_pages_of_the_lecture_are_clean_at_every_step(page: Page, width: int) -> None:
    with jax.enable_x64(True):
        t = jax.device_get(jax.jit(lecture.hidden_layer)())
    page.open(t.html(), width, 844 if width < 600 else 1080)
    page.assert_clean()
    for _ in range(2):
        page.do_live("descend")
        page.assert_clean()
    assert page.fits()
    board = "const b = document.querySelector('.board'); return b.scrollWidth <= b.clientWidth"
    assert page.run(board)


def moments() -> list[Trace]:
    """A network with another inside, at three moments."""
    net = fnn.serial(a=fnn.layer(3, fnn.tanh()), b=fnn.residual(fnn.linear(3)), c=fnn.linear(12))
    x, target, loss = random(1, 2), random(1, 12), fnn.squared_error()
    examples = [with_params(net, x, target, loss) for _ in range(3)]
    scales = (1.0, 100.0, 1e-5)
    return [
        recorded(net, jax.tree.map(lambda v, s=s: s * v, params), *rest)
        for s, (_, params, *rest) in zip(scales, examples, strict=True)
    ]


@pytest.mark.slow
def test_a_film_shows_every_moment(page: Page) -> None:
    made = moments()
    page.open(film(made, ["start", "middle", "end"]), 390)
    slider = page.find(".film input")[0]
    for k, t in enumerate(made):
        assert page.find(".film output")[0].text == ("start", "middle", "end")[k]
        texts = [e.text for e in page.find("svg.wb text")]
        assert f"▸ {number(float(t.y))}" in texts
        assert page.unknown == 0
        page.assert_clean()
        page.run("arguments[0].focus()", slider)
        page.press(Keys.ARROW_RIGHT)
    assert page.fits()
    # The panel goes with it, and so do steps and folding.
    page.do("fold")
    page.run("boards[0].show('1')")
    page.run("boards[0].film.show(0)")
    first = page.find(".panel")[0].text
    page.run("boards[0].film.show(2)")
    assert page.find(".panel")[0].text != first
    page.do("unfold")
    page.do("close")
    page.do("first")
    assert page.unknown > 10
    page.assert_clean()


@pytest.mark.slow
def test_a_film_plays_to_its_end(page: Page) -> None:
    page.open(film(moments()))
    (button,) = page.find(".film button")
    button.click()
    assert button.text == "pause"
    WebDriverWait(page.driver, 20).until(lambda _: button.text == "play")
    assert page.find(".film output")[0].text == "epoch 2"
    page.assert_clean()


def test_programs_say_what_is_constant() -> None:
    with jax.enable_x64(True):
        t = jax.device_get(jax.jit(lecture.sigmoid_gates)())
    made = program(page_board(t)[0])
    assert made and [i["constant"] for i in made["inputs"]] == [False] * 5 + [True]
    assert "du/de" in t.html() and "du/d1" not in t.html() and "du/d1" not in t.text()
