"""HTML that reports are made of: text, tables, pictures, and the page around them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.common.figures import plt
from experiments.common.report_style import STYLE


def text(value: Any) -> str:
    """Any value as text that cannot be taken for HTML."""
    return html.escape(str(value))


def paragraph(words: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{text(words)}</p>"


def printed(words: str) -> str:
    """Lines as they were printed."""
    return f'<pre class="printed">{text(words)}</pre>'


def html_table(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; text is escaped, and numbers become text."""
    head = "".join(f'<th scope="col">{text(c)}</th>' for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def picture(figure: Figure, path: Path, caption: str) -> str:
    """Saves a figure as PNG, frees it, and returns it for a page, with its caption below."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, bbox_inches="tight")
    plt.close(figure)
    path.write_bytes(buffer.getvalue())
    return saved_picture(path, caption)


def saved_picture(path: Path, caption: str) -> str:
    """A PNG file, inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure class="picture"><img alt="{text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def section(title: str, *content: str) -> str:
    """A section with a heading; :func:`anchor` of the title is its place."""
    return f'<section id="{anchor(title)}"><h2>{text(title)}</h2>{"".join(content)}</section>'


def whole_page(
    title: str, lead: str, links: Iterable[str], *sections: str, facts: str = "", style: str = ""
) -> str:
    """A page of sections, with links to those that are named."""
    nav = "".join(f'<a href="#{anchor(name)}">{text(name)}</a>' for name in links)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head><body>"
        f"<header><h1>{text(title)}</h1><p>{text(lead)}</p>{facts}</header>"
        f"<nav>{nav}</nav><main>{''.join(sections)}</main></body></html>\n"
    )


def anchor(name: str) -> str:
    """The id of the section with a title."""
    return text(name.lower().replace(" ", "-"))
