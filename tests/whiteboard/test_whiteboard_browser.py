# ruff: noqa: RUF001 - formulas and marks are as on a board
"""The whiteboard in a real browser: steps, keys, folding, the panel, nothing cut or overlapping.

Needs Chromium and its driver (Debian: apt-get install chromium chromium-driver) and, in Python,
selenium. `.ci/run` installs them and sets FNN_BROWSER=required, with which nothing is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.whiteboard import Trace, trace
from fnn.whiteboard.array_text import exactly
from fnn.whiteboard.page import document, page_board, whiteboard
from fnn.whiteboard.svg import draw, network_of
from tests.whiteboard.test_whiteboard import circuit, forks
from tests.whiteboard.test_whiteboard_drawing import deep, hostile

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
if os.environ.get("FNN_BROWSER") != "required":
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with chromedriver was found", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

# Texts that can be seen, of which two share more than the edge, or of which one is not whole.
FAULTS = r"""
const seen = [...document.querySelectorAll("svg.wb text")]
  .filter((t) => t.textContent.trim()).map((t) => [t, t.getBoundingClientRect()])
  .filter(([, box]) => box.width);
const faults = [];
seen.forEach(([t, a], i) => {
  for (const [other, b] of seen.slice(0, i)) {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1.5 && high > 3.5) faults.push(`${t.textContent} | ${other.textContent}`);
  }
  const all = t.closest("svg").getBoundingClientRect();
  if (a.left < all.left || a.right > all.right || a.top < all.top || a.bottom > all.bottom)
    faults.push(`cut: ${t.textContent}`);
  const box = t.closest("g.folded")?.querySelector("rect.shape:not(.behind)");
  if (box && box.parentNode.contains(t)) {
    const edge = box.getBoundingClientRect();
    if (a.left < edge.left || a.right > edge.right + 1 || a.bottom > edge.bottom + 1)
      faults.push(`out of its box: ${t.textContent}`);
  }
});
return faults;
"""


class Page:
    """A page in the browser."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def open(self, html: str, width: int = 1300, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        path = self.folder / "page.html"
        path.write_text(html, "utf-8")
        self.driver.get(path.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, css: str) -> list[Any]:
        return [e for e in self.driver.find_elements("css selector", css) if e.is_displayed()]

    def do(self, action: str) -> None:
        (button,) = self.find(f"[data-do={action}]")
        button.click()

    def do_live(self, action: str) -> None:
        self.find(f"[data-live={action}]")[0].click()

    def press(self, *keys: str) -> None:
        # As a keyboard does: an element's own send_keys refuses while the page still scrolls.
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def said(self) -> str:
        return self.find(".said")[0].text

    @property
    def unknown(self) -> int:
        return sum("?" in e.text for e in self.find("svg.wb .u text"))

    def assert_clean(self) -> None:
        """No text is cut or on another, and the console has nothing to say."""
        assert self.run(FAULTS) == []
        assert self.driver.get_log("browser") == []

    def fits(self) -> bool:
        """Whether nothing but the board itself is wider than the window."""
        return self.run("return document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(driver: Any, tmp_path: Path) -> Page:
    return Page(driver, tmp_path)


def network() -> Trace:
    """Two networks inside a network, with a fork."""
    net = fnn.serial(
        a=fnn.serial(first=fnn.negate(), second=fnn.exp()),
        b=fnn.residual(fnn.serial(inner=fnn.square(), last=fnn.linear(2))),
    )  # fmt: skip
    params = {"b": {"block": {"last": {"w": jnp.eye(2), "b": jnp.ones(2)}}}}
    return trace(net, params, jnp.array([[0.5, -1.0]]), check="none")


def test_buttons_step_through_forward_and_backward(page: Page) -> None:
    page.open(trace(circuit(), {}, (-2.0, 5.0, -4.0)).html("f = (x + y) z"))
    keys = page.find(".keys")[0].text
    assert "full screen" in keys and "next and previous" not in keys and "fold" not in keys
    assert page.find(".loss")[0].text == "f = ?"
    assert page.said == "step 0 of 4: only the inputs are known" and page.unknown == 11
    said = []
    for unknown in (10, 9, 4, 0):
        page.do("next")
        said.append(page.said)
        assert page.unknown == unknown
    assert said == [
        "step 1 of 4: forward through q", "step 2 of 4: forward through f",
        "step 3 of 4: backward through f", "step 4 of 4: backward through q",
    ]  # fmt: skip
    assert not page.find("[data-do=next]")[0].is_enabled()
    assert page.find(".loss")[0].text == "f = −12"
    page.do("back")
    assert page.said == said[2] and len(page.find(".item.now")) == 1
    page.assert_clean()


def test_keys_step_and_explain(page: Page) -> None:
    page.open(trace(circuit(), {}, (-2.0, 5.0, -4.0)).html())
    while page.run("return document.activeElement.closest('.item')") is None:
        page.press(Keys.TAB)
    assert "q" in page.run("return document.activeElement.getAttribute('aria-label')")
    page.press(Keys.ENTER)
    (panel,) = page.find(".panel")
    assert "df/dx = df/df × df/dq × dq/dx = 1 × (−4) × 1 = −4" in panel.text
    assert "✓ matches jax.vjp" in panel.text
    page.press(Keys.ESCAPE)
    assert page.find(".panel") == []
    page.press(Keys.HOME)
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.said == "step 1 of 4: forward through q"
    page.press(Keys.END)
    assert page.said == "step 4 of 4: backward through q"
    page.assert_clean()


def test_digits_are_there_on_demand(page: Page) -> None:
    t = trace(fnn.serial(a=fnn.logistic()), {}, 0.3)
    page.open(t.html())
    page.do("last")
    page.find(".item.gate .folded .symbol")[0].click()
    (panel,) = page.find(".panel")
    assert "a = 0.5744\n" in panel.text and "da/dx = da/da × da/dx = 1 × 0.2445" in panel.text
    page.do("digits")
    assert f"a = {exactly(t['a'].y)}\n" in panel.text
    page.run("document.activeElement.blur()")
    page.press("d")
    assert "a = 0.5744\n" in panel.text
    page.assert_clean()


def test_keys_turn_to_the_next_figure_and_fill_the_screen(page: Page) -> None:
    boards = [trace(circuit(), {}, (-2.0, 5.0, z)) for z in (-4.0, 2.0)]
    articles = "".join(f"<article>{whiteboard(t)}</article>" for t in boards)
    page.open(document("Two", f"<h1>Two</h1>{articles}"), 1600, 700)
    number = "return boards.findIndex((b) => b.root === document.activeElement)"
    assert "next and previous figure" in page.find(".keys")[0].text
    page.press("n")
    assert page.run(number) == 1
    page.press(Keys.ARROW_RIGHT)
    steps = "return boards.map((b) => b.step)"
    assert page.run(steps) == [0, 1]
    page.press("p")
    assert page.run(number) == 0
    page.press("f")
    full = "return boards.findIndex((b) => b.root === document.fullscreenElement)"
    WebDriverWait(page.driver, 10).until(lambda _: page.run(full) == 0)
    for _ in range(5):  # as a presenter's remote: four steps, then the next figure
        page.press(Keys.PAGE_DOWN)
    WebDriverWait(page.driver, 10).until(lambda _: page.run(full) == page.run(number) == 1)
    assert page.run(steps) == [4, 1]
    assert page.driver.get_log("browser") == []
    page.press("f")
    WebDriverWait(page.driver, 10).until(lambda _: page.run(full) == -1)


def test_a_page_is_printed_whole(page: Page) -> None:
    page.open(trace(circuit(), {}, (-2.0, 5.0, -4.0)).html())
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert page.unknown == 0 and "◂ −4" in [e.text for e in page.find("svg.wb text")]
        assert not page.find(".controls") and not page.find(".live") and not page.find(".tap")
        page.run("dispatchEvent(new Event('beforeprint'))")  # as before printing: paper's size
        assert 800 < page.find("svg.wb")[0].size["width"] <= 1030
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_target_stands_beside_the_loss(page: Page) -> None:
    """In the loss's row and left of it, whatever the width."""
    net = fnn.models.mlp((4, 2), fnn.tanh())
    x = jnp.array([[0.5, -1.0, 2.0]])
    t = trace(net, net.init(jax.random.key(0), x), x, jnp.array([1]), fnn.softmax_cross_entropy())
    for width, height in ((1920, 1080), (1300, 900), (800, 900)):
        page.open(t.html(), width, height)
        target, loss = page.run(
            "const [b] = boards, at = (g) => g.getBoundingClientRect();"
            "const named = (css, name) => [...b.root.querySelectorAll(css)]"
            ".find((e) => e.textContent === name);"
            "return [named('.name', 't'), named('.bold', 'loss')].map((e) => {"
            "const box = at(e); return [box.left, box.top]; })"
        )
        assert target[0] < loss[0] and abs(target[1] - loss[1]) < 200
        page.assert_clean()


def test_a_click_or_tap_shows_the_whole_product(page: Page) -> None:
    page.open(trace(forks(), {}, (0.5, 3.0)).html(), width=390, height=800)
    page.find(".item.gate .folded .symbol")[0].click()
    (panel,) = page.find(".panel")
    assert "df/dx = df/df × df/dm × dm/ds × ds/dp × dp/dx" in panel.text
    page.assert_clean()
    assert page.fits()


@pytest.mark.slow
def test_networks_unfold_and_fold(page: Page) -> None:
    page.open(network().html())
    page.do("last")
    count = (
        "return [...document.querySelectorAll('.item')]"
        ".filter((e) => e.getBoundingClientRect().width).length"
    )
    page.assert_clean()
    page.do("fold")
    assert [e.text for e in page.find(".item.network .folded .bold")] == ["a", "b"]
    assert page.run(count) == 2
    assert page.said == "step 4 of 4: backward through a"
    page.assert_clean()
    (plus, _) = page.find(".toggle[aria-label^=unfold]")
    plus.click()
    assert page.run(count) == 4 and page.said.startswith("step 6 of 6")
    assert page.run("return document.activeElement.getAttribute('aria-label')") == "fold a"
    page.press("-")
    assert page.run(count) == 2
    page.press("+")
    assert page.run(count) == 4
    page.press(Keys.HOME)
    for _ in range(6):
        page.press(Keys.ARROW_RIGHT)
    assert page.said == "step 6 of 6: backward through a/first" and page.unknown == 0
    page.do("unfold")
    assert page.run(count) == 8 and page.said == "step 10 of 10: backward through a/first"
    page.assert_clean()


def test_every_step_of_a_network_is_clean(page: Page) -> None:
    page.open(network().html())
    while page.find("[data-do=next]")[0].is_enabled():
        page.do("next")
        assert page.run(FAULTS) == []
    assert page.unknown == 0


@pytest.mark.parametrize("make", [network, lambda: trace(forks(), {}, (0.5, 3.0)), lambda: deep(9)])
@pytest.mark.parametrize("width", [700, 1000, 1600])
def test_the_page_places_things_as_the_picture_does(page: Page, make: Any, width: int) -> None:
    t = make()
    page.open(t.html(), width)
    unfolded = page.run("const [b] = boards; return [...b.open].map((id) => b.data.paths[id])")
    room = page.run("return boards[0].room")  # narrower than the window where letters gain by it
    b, _ = page_board(t)
    items = network_of(b, b.trace, all_inside=True)
    placed = draw(replace(b, unfolded=frozenset(unfolded)), items, room).placed
    got = page.run(
        "const net = document.querySelector('svg.wb > .net');"
        "return [[...net.querySelectorAll(':scope > path')].map((p) => p.getAttribute('d')),"
        "[...net.querySelectorAll(':scope > g')].map((g) => g.getAttribute('transform'))]"
    )
    assert got[0] == list(placed.paths)
    items = [placed.at[k] for k in placed.at if not k.startswith("via:")]
    numbers = [[float(v) for v in text[10:-1].split(",")] for text in got[1]]
    np.testing.assert_allclose(numbers, items, atol=0.051)
    assert page.fits()


def test_on_a_phone_every_wire_has_a_line_of_its_own(page: Page) -> None:
    """One block a row; no two wires of different values share a part of a line."""
    for make in (network, lambda: trace(forks(), {}, (0.5, 3.0)), lambda: deep(4)):
        page.open(make().html(), width=390, height=800)
        page.do("last")
        page.assert_clean()
        tops = page.run(
            "const { net } = boards[0].data;"
            "return [...document.querySelectorAll('svg.wb > .net > g')]"
            ".map((e, i) => [net.drawn[i], e.getBoundingClientRect().top])"
            ".filter(([k]) => !net.ends.includes(k)).map(([, top]) => Math.round(top))"
        )
        assert len(set(tops)) == len(tops)
        verticals: dict[float, list[tuple[float, float, str]]] = {}
        for d in page.run(
            "return [...document.querySelectorAll('svg.wb > .net > path')]"
            ".map((p) => p.getAttribute('d'))"
        ):
            start, x, y = d.split("H")[0], 0.0, 0.0
            for move, value in re.findall("([MHV])([-0-9.,]+)", d):
                if move == "M":
                    x, y = map(float, value.split(","))
                elif move == "H":
                    x = float(value)
                else:
                    down = (min(y, float(value)), max(y, float(value)), start)
                    verticals.setdefault(x, []).append(down)
                    y = float(value)
        for lines in verticals.values():
            for i, (a, b, start) in enumerate(lines):
                for c, d, other in lines[:i]:
                    assert start == other or b <= c or d <= a


@pytest.mark.slow
def test_it_is_read_from_the_last_row_and_on_a_phone(page: Page) -> None:
    """Small boards grow with the window, up to its height; wide ones say that they go on."""
    letters = """return [...document.querySelectorAll("svg.wb text")]
      .filter((t) => t.getBoundingClientRect().width)
      .map((t) => t.getScreenCTM().a * parseFloat(getComputedStyle(t).fontSize))"""
    small, wide = trace(circuit(), {}, (-2.0, 5.0, -4.0)), network()
    page.open(small.html(), width=1920, height=1080)
    assert min(page.run(letters)) > 24
    page.assert_clean()
    page.open(small.html(), width=1920, height=400)
    svg, controls = page.find("svg.wb")[0], page.find(".controls")[0]
    assert svg.size["height"] <= 400 - controls.size["height"] + 1 or svg.size["height"] < 280
    # A row that leaves half of the window empty is broken; the whole is seen without scrolling.
    page.open(deep(4).html(), width=1920, height=1080)
    assert page.run("return document.querySelector('svg.wb').getBoundingClientRect().bottom") < 1080
    page.open(wide.html(), width=390, height=800)
    assert min(page.run(letters)) >= 7.5 and page.fits()
    net = fnn.models.mlp((32, 10), fnn.relu())
    digit = trace(net, net.init(jax.random.key(0), jnp.ones((1, 64))), jnp.ones((1, 64)),
                  jnp.array([7]), fnn.softmax_cross_entropy())  # fmt: skip
    page.open(digit.html(), width=390, height=800)
    page.do("last")
    assert min(page.run(letters)) >= 10 and page.fits()
    page.assert_clean()
    top = page.run("return document.querySelector('svg.wb').getBoundingClientRect().top + scrollY")
    assert top < 300
    board = "const b = document.querySelector('.board'); return b.scrollWidth <= b.clientWidth"
    assert page.run(board)
    # It learns of another window.
    page.open(small.html(), width=390, height=800)
    before = page.find("svg.wb")[0].size["width"]
    metrics = {"width": 900, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    WebDriverWait(page.driver, 10).until(lambda _: page.find("svg.wb")[0].size["width"] > before)
    assert page.fits()


def test_in_a_notebook_all_of_it_is_seen(page: Page) -> None:
    page.open(f"<!doctype html><body>{network()._repr_html_()}", width=900)
    inside, frame = page.run(
        "const [f] = document.querySelectorAll('iframe'); return ["
        "f.contentDocument.querySelector('svg.wb').getBoundingClientRect().bottom, f.clientHeight]"
    )
    assert inside < frame and frame > 640


def test_what_was_folded_is_said_until_it_is_opened(page: Page) -> None:
    page.open(deep(9).html())
    assert "folded to fit" in page.find(".folds")[0].text
    page.do("unfold")
    assert not page.find(".folds")


@pytest.mark.slow
def test_hostile_names_run_nothing(page: Page) -> None:
    page.open(hostile().html(title="<img src=x onerror=alert(1)>"), width=390)
    page.do("unfold")
    page.assert_clean()
    for shape in page.find(".item.gate .folded .symbol"):
        shape.click()
        assert page.find(".panel h2")[0].text
        page.do("close")  # it may lie over the next block
    assert page.run("return document.querySelectorAll('img, iframe, object').length") == 0
    assert page.fits()
    page.assert_clean()


def test_numbers_of_every_size(page: Page) -> None:
    x = np.array([[1e-300, -1.2345e30, np.nan], [np.inf, -np.inf, -0.001], [123456.789, 1, -1e5]])
    page.open(trace(fnn.serial(a=fnn.identity(), b=fnn.tanh()), {}, jnp.asarray(x)).html(), 800)
    page.assert_clean()
    assert page.find(".bad")


def test_a_screen_reader_gets_names(page: Page) -> None:
    page.open(network().html())
    unnamed = page.run(
        "return [...document.querySelectorAll('button, [role=button], input, [role=group]')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim())).length"
    )
    assert unnamed == 0
    assert page.run("return document.querySelector('.said').getAttribute('role')") == "status"
    small = page.run(
        "return [...document.querySelectorAll('button, .toggle')]"
        ".map((e) => e.getBoundingClientRect())"
        ".filter((box) => box.width && Math.min(box.width, box.height) < 24).length"
    )
    assert small == 0
