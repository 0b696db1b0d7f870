"""A trace: what was recorded, with the methods that draw it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax

from fnn.markup import framed
from fnn.whiteboard.mermaid import mermaid
from fnn.whiteboard.page import html
from fnn.whiteboard.recording import Recording
from fnn.whiteboard.svg import frames, svg
from fnn.whiteboard.text import text

Unfold = bool | str | Iterable[str] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Trace(Recording):
    """A recording that draws itself, and so does every node inside: ``trace["hidden"].svg()``.

    A plain pytree: arrays are its leaves, names are static, so it comes out of ``jax.jit``. Its
    fields are those of a :class:`~fnn.whiteboard.recording.Recording`: ``x``, ``y``, ``dy``, ``dx``
    and so on.
    """

    def text(self) -> str:
        """Everything in words: forward, then backward, upstream times local at every gate."""
        return text(self)

    def svg(self, step: int | None = None, *, unfold: Unfold = None, width: int = 1600) -> str:
        """The picture; see :func:`fnn.whiteboard.svg.svg`."""
        return svg(self, step, unfold=unfold, width=width)

    def frames(self, *, unfold: Unfold = None, width: int = 1600) -> list[str]:
        """The picture step by step: forward 1..n, then backward n..1; unknowns are '?'."""
        return frames(self, unfold=unfold, width=width)

    def html(self, title: str = "") -> str:
        """One self-contained page that steps, folds, and shows a node's chain rule."""
        return html(self, title)

    def mermaid(self) -> str:
        """A Mermaid flowchart, for Markdown."""
        return mermaid(self)

    def _repr_html_(self) -> str:
        return framed(self.html())

    def __repr__(self) -> str:
        inside = f", {len(list(self.walk()))} nodes" if self.nodes else ""
        return f"Trace({self.path or self.kind!r}{inside})"
