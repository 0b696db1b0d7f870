"""The page of two weights in a real browser: its numbers are fnn's, and it can be turned.

Needs what tests/whiteboard/test_whiteboard_browser.py needs, and is skipped where that is.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.landscape.surface import (
    Surface,
    by_fnn,
    landscapes,
    methods,
    page_data,
    paths,
)
from experiments.landscape.surface_page import document
from tests.whiteboard.test_whiteboard_browser import Page, driver, page

__all__ = ["driver", "page"]  # fixtures

pytestmark = pytest.mark.as_users

OPTIONS = Surface(steps=120)
SEEN = "return document.getElementById('surface').toDataURL()"


@pytest.fixture
def opened(page: Page) -> Page:
    html = document("Two weights", page_data(OPTIONS))
    assert "http" not in html and " src=" not in html
    page.open(html)
    return page


def test_numbers_are_those_of_fnn(opened: Page) -> None:
    with jax.enable_x64(True):
        for land in landscapes(OPTIONS):
            local = by_fnn(land)
            for w in (*land.critical.values(), *land.starts, (0.7, -1.3), (-1.9, 0.4)):
                theirs = opened.run("return local(...arguments)", land.name, list(w))
                ours = local(np.array(w))
                for name in ours._fields:
                    ok = np.testing.assert_allclose
                    ok(theirs[name], getattr(ours, name), rtol=0, atol=1e-12, err_msg=name)
                e = opened.run("return eigen(arguments[0])", theirs["hessian"])
                ok([e["low"], e["high"]], np.linalg.eigvalsh(ours.hessian), atol=1e-12)


def test_paths_are_those_of_fnn(opened: Page) -> None:
    with jax.enable_x64(True):
        for land in landscapes(OPTIONS):
            for name, optimizer in methods(land, OPTIONS.learning_rate).items():
                own = paths(land, optimizer, land.starts, OPTIONS.steps)
                for start, passed in zip(land.starts, own, strict=True):
                    theirs = opened.run("return path(...arguments)", land.name, name, list(start))
                    np.testing.assert_allclose(theirs, passed, atol=1e-8, err_msg=name)


def row(page: Page, method: str) -> list[str]:
    return [cell.text for cell in page.find(f'tr[data-method="{method}"] td')]


def test_what_the_methods_end_at_is_said(opened: Page) -> None:
    assert row(opened, "Newton")[-2:] == ["1", "a saddle"]
    assert row(opened, "saddle-free Newton")[-2:] == ["0", "a minimum"]
    opened.find("input[value=neurons]")[0].click()
    assert row(opened, "gradient descent")[-1] == "not there yet"
    assert row(opened, "Newton")[-1] == "a saddle"
    assert "saddle-free Newton: a minimum after 14 steps" in opened.find("#said")[0].text
    assert opened.driver.get_log("browser") == []


def test_mouse(opened: Page) -> None:
    from selenium.webdriver import ActionChains

    surface, ground = opened.find("#surface")[0], opened.find("#map")[0]
    before = opened.run(SEEN)
    act = ActionChains(opened.driver)
    act.move_to_element(surface).click_and_hold().move_by_offset(60, 20).release().perform()
    assert opened.run(SEEN) != before
    act = ActionChains(opened.driver)
    act.move_to_element_with_offset(ground, 90, 60).click().perform()
    a, b = opened.run("return shown.start")
    assert a > 0.5 and b < -0.5  # to the right, and below the middle
    assert opened.find("#play")[0].text == "pause"


def test_keys(opened: Page) -> None:
    before = opened.run(SEEN)
    opened.run("document.getElementById('surface').focus()")
    opened.press("\ue014", "\ue013")  # right, up
    assert opened.run(SEEN) != before
    start = opened.run("return shown.start")
    opened.run("document.getElementById('map').focus()")
    opened.press("\ue014")
    a, b = opened.run("return shown.start")
    assert a > start[0] and b == pytest.approx(start[1])
    assert row(opened, "Newton")[1] == "0"
    opened.find("#next")[0].click()
    assert row(opened, "Newton")[1] == "1"
    opened.find("#at")[0].send_keys("\ue010")  # End
    assert row(opened, "Newton")[-1] == "a saddle"


def test_touch_on_a_phone(page: Page) -> None:
    page.open(document("Two weights", page_data(OPTIONS)), width=380, height=1400)
    assert page.fits()
    box = page.run("return document.getElementById('map').getBoundingClientRect().toJSON()")
    place = {"x": box["x"] + box["width"] * 0.75, "y": box["y"] + box["height"] * 0.25}
    for kind, points in (("touchStart", [place]), ("touchEnd", [])):
        event = {"type": kind, "touchPoints": points}
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", event)
    a, b = page.run("return shown.start")
    assert a > 0.5 and b > 0.5
