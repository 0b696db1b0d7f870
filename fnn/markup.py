"""Tables and texts as HTML, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

COLORS = {"right": "#2a7d2a", "WRONG": "#c22", "note": "#a60", "skipped": "#888"}


def preformatted(text: str) -> str:
    """A text as it is. Notebook templates give ``pre`` another font.

    >>> preformatted("a < b")
    '<pre style="font-family:monospace">a &lt; b</pre>'
    """
    return f'<pre style="font-family:monospace">{html.escape(text)}</pre>'


def framed(page: str, height: int = 640) -> str:
    """A page of its own, inside another one.

    >>> framed('<p class="a">')[16:45]
    '&lt;p class=&quot;a&quot;&gt;'
    """
    inside = html.escape(page, quote=True)
    size = f'width="100%" height="{height}" style="border:0"'
    return f'<iframe srcdoc="{inside}" {size} allow="fullscreen"></iframe>'


def table(
    rows: Iterable[Sequence[str]], header: Sequence[str] = (), numbers: Sequence[int] = ()
) -> str:
    """Rows of cells; a cell that says how a check went has its color.

    Args:
      rows, header: texts.
      numbers: the columns to align right.

    >>> text = table([["jit", "right"]], ["property", "status"])
    >>> text.count("<tr>"), "color:#2a7d2a" in text
    (2, True)
    """

    def row(cells: Sequence[str], tag: str) -> str:
        styles = ["text-align:" + ("right" if i in numbers else "left") for i in range(len(cells))]
        styles = [s + (f";color:{COLORS[c]}" if c in COLORS else "")
                  for s, c in zip(styles, cells, strict=True)]  # fmt: skip
        inside = [f'<{tag} style="{style}">{html.escape(cell)}</{tag}>'
                  for style, cell in zip(styles, cells, strict=True)]  # fmt: skip
        return f"<tr>{''.join(inside)}</tr>"

    head = row(header, "th") if header else ""
    return f"<table>{head}{''.join(row(cells, 'td') for cells in rows)}</table>"
