"""One page that tells the story in order: a section of each study that was run."""

from __future__ import annotations

import base64
import inspect
import io
import textwrap
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.common.figures import plt
from experiments.common.report import html_table
from experiments.common.report_style import STYLE

TITLE = "The landscape of the loss"
LEAD = (
    "Neural networks are not convex, and yet gradient descent trains them. Where are the saddle "
    "points, what do the minima look like, and are they about the same?"
)
STORY = (  # the order of the sections
    "surface", "linear", "saddles", "escape", "minima", "connected", "plane", "spectrum",
)  # fmt: skip
EXTRA = """
pre { overflow-x: auto; padding: .8rem 1rem; border-radius: .5rem; font-size: .8rem;
  background: color-mix(in srgb, var(--soft) 10%, transparent); }
figure img { display: block; max-width: 100%; height: auto; background: #fff;
  border-radius: .4rem; }
figure, .wide { margin-bottom: 1.2rem; }
figcaption { font-weight: 400; max-width: 46rem; }
"""


def write(out: Path, name: str, title: str, *content: str) -> None:
    """Writes the section of a study, and the page of all sections so far."""
    (out / f"{name}.section.html").write_text(
        f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(content)}</section>',
        encoding="utf-8",
    )
    sections = [path.read_text(encoding="utf-8") for path in _sections(out)]
    links = "".join(
        f'<a href="#{path.name.partition(".")[0]}">{path.name.partition(".")[0]}</a>'
        for path in _sections(out)
    )
    (out / "report.html").write_text(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}{EXTRA}</style></head><body>"
        f"<header><h1>{TITLE}</h1><p>{LEAD}</p></header><nav>{links}</nav>"
        f"<main>{''.join(sections)}</main></body></html>\n",
        encoding="utf-8",
    )


def _sections(out: Path) -> list[Path]:
    paths = (out / f"{name}.section.html" for name in STORY)
    return [path for path in paths if path.exists()]


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def figure(picture: Figure, path: Path, caption: str) -> str:
    """Saves a figure as PNG, frees it, and returns it for the page."""
    buffer = io.BytesIO()
    picture.savefig(buffer, dpi=130, bbox_inches="tight")
    plt.close(picture)
    path.write_bytes(buffer.getvalue())
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = escape(caption, quote=True)
    return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


numbers = html_table  # a table on the page


def code(*functions: Callable[..., Any]) -> str:
    """The source of functions: what made the figure above."""
    source = "\n\n".join(textwrap.dedent(inspect.getsource(f)).strip() for f in functions)
    return f"<details><summary>The code</summary><pre><code>{escape(source)}</code></pre></details>"
