"""Learning curves as a small picture for notebooks, without a plotting library."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT, MARGIN = 440, 170, 48
COLORS = {"loss": "#1f77b4", "validation_loss": "#d62728"}


def curves(history: Sequence[dict[str, float]], best_epoch: int, caption: str) -> str:
    """HTML of the losses by epoch.

    Args:
      history: a row per epoch, as in :class:`~fnn.Fitted`.
      best_epoch: is marked, unless it is 0.
      caption: stands below.

    >>> text = curves([{"loss": 2.0}, {"loss": 1.0}], 2, "two epochs")
    >>> text.count("<polyline"), "two epochs" in text
    (1, True)
    """
    rows = [[(i, row.get(name, math.nan)) for i, row in enumerate(history)] for name in COLORS]
    points = [[(i, v) for i, v in row if math.isfinite(v)] for row in rows]
    values = [v for row in points for _, v in row]
    text = html.escape(caption)
    if not values:
        return f"<p>{text}</p>"
    low, high = min(values), max(values)
    span, last = (high - low) or 1.0, max(len(history) - 1, 1)

    def place(i: float, v: float) -> tuple[float, float]:
        x = MARGIN + i / last * (WIDTH - 2 * MARGIN)
        return x, MARGIN / 2 + (high - v) / span * (HEIGHT - 1.5 * MARGIN)

    def label(x: float, y: float, words: str, anchor: str = "middle", color: str = "#555") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{words}</text>'

    drawn = []
    for color, row in zip(COLORS.values(), points, strict=True):
        if row:
            path = " ".join("{:.1f},{:.1f}".format(*place(i, v)) for i, v in row)
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" />')
    if best_epoch:
        x, _ = place(best_epoch - 1, low)
        drawn.append(f'<path d="M{x:.1f} {MARGIN / 2}V{HEIGHT - MARGIN}" stroke="#bbb" '
                     'stroke-dasharray="3" />')  # fmt: skip
    names = [label(WIDTH - MARGIN - 6, MARGIN / 2 + 12 * (i + 1), name.replace("_", " "), "end",
                   color)
             for i, ((name, color), row) in enumerate(zip(COLORS.items(), points, strict=True))
             if row]  # fmt: skip
    axes = [
        label(MARGIN - 4, MARGIN / 2 + 4, f"{high:.3g}", "end"),
        label(MARGIN - 4, HEIGHT - MARGIN + 4, f"{low:.3g}", "end"),
        label(MARGIN, HEIGHT - MARGIN / 2, "1"),
        label(WIDTH - MARGIN, HEIGHT - MARGIN / 2, f"{len(history)}"),
        label(WIDTH / 2, HEIGHT - MARGIN / 2, "epoch"),
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-family="sans-serif" '
        f'font-size="11" role="img" aria-label="{text}">{"".join(drawn + names + axes)}</svg>'
        f"<p>{text}</p>"
    )
