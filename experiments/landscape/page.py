"""One page that tells the story in order: a section of each study that was run."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from experiments.common import runs
from experiments.common.html import html_table, paragraph, picture, whole_page

TITLE = "The landscape of the loss"
LEAD = (
    "Neural networks are not convex, and yet gradient descent trains them. Where are the saddle "
    "points, what do the minima look like, and are they about the same?"
)
STORY = (  # the order of the sections
    "surface", "linear", "saddles", "escape", "minima", "connected", "plane", "spectrum",
)  # fmt: skip
EXTRA = """
pre { overflow-x: auto; white-space: pre; font-size: .8rem; }
"""


def write(out: Path, name: str, title: str, *content: str) -> None:
    """Writes the section of a study, and the page of all sections so far."""
    (out / f"{name}.section.html").write_text(
        f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(content)}</section>',
        encoding="utf-8",
    )
    found = {path.name.partition(".")[0]: path for path in _sections(out)}
    sections = [path.read_text(encoding="utf-8") for path in found.values()]
    page = whole_page(TITLE, LEAD, found, *sections, style=EXTRA)
    (out / "report.html").write_text(page, encoding="utf-8")
    drawn = sorted(out.glob(f"{next(iter(found))}*.png"))
    runs.leave(
        out, title="landscape", about=LEAD, facts={"studies": ", ".join(found)},
        page="report.html", thumbnail=drawn[0].name if drawn else "",
    )  # fmt: skip


def _sections(out: Path) -> list[Path]:
    paths = (out / f"{name}.section.html" for name in STORY)
    return [path for path in paths if path.exists()]


__all__ = ["code", "figure", "numbers", "paragraph", "write"]

figure = picture  # saved as PNG, and on the page
numbers = html_table  # a table on the page


def code(*functions: Callable[..., Any]) -> str:
    """The source of functions: what made the figure above."""
    source = "\n\n".join(textwrap.dedent(inspect.getsource(f)).strip() for f in functions)
    return f"<details><summary>The code</summary><pre><code>{escape(source)}</code></pre></details>"
