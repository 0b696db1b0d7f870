"""The page on which the surface of two weights is turned, and starts are chosen with a click."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from experiments.common.report_style import STYLE

EXTRA = """
body { max-width: 66rem; padding-top: 1rem; }
h1 { font-size: 1.6rem; }
section { margin-top: .8rem; padding-block: 1rem; }
#about, #said { max-width: none; }
.views { display: grid; gap: 1rem; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr);
  align-items: start; }
@media (max-width: 52rem) { .views { grid-template-columns: minmax(0, 1fr); } }
canvas { display: block; width: 100%; touch-action: none; border-radius: .4rem; }
#surface { aspect-ratio: 1.25; cursor: grab; }
#surface:active { cursor: grabbing; }
#map { aspect-ratio: 1; cursor: crosshair; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.controls, .networks { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
.controls { margin: .9rem 0; }
.controls input[type=range] { flex: 1 1 12rem; accent-color: var(--accent); }
button { font: inherit; padding: .3rem .9rem; border-radius: .4rem; cursor: pointer;
  color: var(--ink); background: var(--page); border: 1px solid var(--line); }
#play { min-width: 5rem; background: var(--accent); border-color: var(--accent);
  color: light-dark(#fff, #10151b); }
label { cursor: pointer; }
td:first-child i { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%;
  margin: 0 .45rem 0 .2rem; vertical-align: -.08rem; }
#said { color: var(--soft); font-size: .9rem; min-height: 1.4rem; margin: .6rem 0 0; }
.hint { color: var(--soft); font-size: .85rem; margin: .4rem 0 0; }
"""
COLUMNS = ("method", "steps", "w₁, w₂", "E", "gradient", "eigenvalues", "index", "what it is")


def document(title: str, data: Mapping[str, Any]) -> str:
    """A self-contained page; ``data`` is what surface.js reads."""
    script = Path(__file__).with_name("surface.js").read_text(encoding="utf-8")
    networks = "".join(
        f'<label><input type="radio" name="network" value="{name}"> {escape(land["title"])}</label>'
        for name, land in data["landscapes"].items()
    )
    head = "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
    rows = "".join(
        f'<tr data-method="{method}"><td><label><input type="checkbox" data-method="{method}" '
        f'checked><i style="background:{color}"></i>{method}</label></td>'
        f"{'<td></td>' * (len(COLUMNS) - 1)}</tr>"
        for method, color in data["colors"].items()
    )
    safe = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{STYLE}{EXTRA}</style></head><body>"
        f"<header><h1>{escape(title)}</h1></header><main><section>"
        f'<div class="networks" role="radiogroup" aria-label="network">{networks}</div>'
        '<p id="about"></p><div class="views">'
        '<div><canvas id="surface" tabindex="0" role="img" aria-label="The surface of E: '
        'arrow keys turn it"></canvas><p class="hint">Drag to turn, or press arrow keys.</p></div>'
        '<div><canvas id="map" tabindex="0" role="application" aria-label="The map of E: arrow '
        'keys move the start, Enter runs the methods"></canvas><p class="hint">Click or tap to '
        "choose a start; or move it with the arrow keys and press Enter.</p></div></div>"
        '<div class="controls"><button id="play">play</button>'
        '<button id="back" aria-label="one step back">◀</button>'
        '<button id="next" aria-label="one step on">▶</button>'
        '<input id="at" type="range" min="0" value="0" aria-label="steps">'
        '<button id="other">another start</button></div>'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        '<p id="said" role="status"></p></section></main>'
        f'<script type="application/json" id="data">{safe}</script>'
        f"<script>\n{script}</script></body></html>\n"
    )
