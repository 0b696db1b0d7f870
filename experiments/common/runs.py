"""results/index.html: all runs on one page.

Each run leaves ``run.json`` in its folder; the page is made of those that are found. Folders
without one, or with one that cannot be read, are passed over, and a page that is someone else's is
left alone.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.html import text, whole_page

FILE = "run.json"
RESULTS = "results"  # the page is in the nearest folder of this name around a run
MARK = "<!-- made by python -m experiments -->"
# Of a run that leaves no run.json.
PAGES = ("report.html", "whiteboard.html", "film.html", "index.html")
DEPTH = 3  # folders below the results in which runs are looked for
MAX_THUMBNAIL = 2_000_000  # bytes
STYLE = """
.runs { display: grid; gap: 1rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.runs a { display: flex; flex-direction: column; gap: .5rem; padding: 1rem; color: inherit;
  border: 1px solid var(--line); border-radius: .75rem; background: var(--card); }
.runs a:hover { text-decoration: none; border-color: var(--accent); }
.runs .thumbnail { display: flex; height: 9rem; align-items: center; justify-content: center;
  padding: .4rem; background: #fff; border-radius: .4rem; overflow: hidden; }
.runs img { max-width: 100%; max-height: 100%; }
.runs strong { font-size: 1.05rem; }
.runs .headline { color: var(--good); font-weight: 600; }
.runs time, .runs span { color: var(--soft); font-size: .875rem; }
nav:empty { display: none; }
"""


class Found(NamedTuple):
    """A run: its folder, and what it left in ``run.json``."""

    folder: Path
    title: str
    about: str
    date: str
    headline: str
    page: str
    thumbnail: str


def leave(
    out: Path,
    *,
    title: str,
    about: str,
    page: str,
    facts: Mapping[str, Any] | None = None,
    thumbnail: str = "",
    command: str = "",
) -> None:
    """Writes ``run.json``.

    Args:
      out: the folder of the run.
      page, thumbnail: names of files in it; ``thumbnail`` may be '', or the SVG of a picture.
      facts: the results by name; the first is shown on the page of all runs.
    """
    drawing = out / "thumbnail.svg"
    drawing.unlink(missing_ok=True)
    if thumbnail.startswith("<svg"):
        drawing.write_text(thumbnail, encoding="utf-8")
        thumbnail = drawing.name
    now = datetime.datetime.now().astimezone()
    values = {
        "title": title, "about": about, "date": now.isoformat(timespec="seconds"),
        "facts": {str(name): str(value) for name, value in (facts or {}).items()},
        "page": page, "thumbnail": thumbnail, "command": command,
    }  # fmt: skip
    (out / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def record(name: str, summary: str, options: Any) -> None:
    """After a run: makes the page of all runs anew, if the run is in a folder of results.

    A run that left a page but no ``run.json``, or one older than the page, gets one.
    """
    out = getattr(options, "out", None)
    if not isinstance(out, Path) or not out.is_dir():
        return
    page = next((page for page in PAGES if (out / page).is_file()), "")
    if page and _time(out / FILE) < _time(out / page):
        pictures = sorted([*out.glob("*.png"), *out.glob("*.svg")])
        thumbnail = pictures[0].name if pictures else ""
        command = getattr(options, "command", "")
        leave(out, title=name, about=summary, page=page, thumbnail=thumbnail, command=command)
    results = next((p for p in out.resolve().parents if p.name == RESULTS), None)
    if results is not None:
        write_index(results)


def _time(path: Path) -> float:
    """When a file was written; 0 if it was not."""
    return path.stat().st_mtime if path.exists() else 0.0


def write_index(results: Path) -> None:
    """Writes ``index.html`` of all runs in a folder, the latest first."""
    index = results / "index.html"
    if index.exists() and MARK not in index.read_text(encoding="utf-8", errors="replace"):
        return
    runs = sorted(find(results), key=lambda run: run.date, reverse=True)
    cards = "".join(_card(run, results) for run in runs)
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    page = whole_page("Experiments", f"{count}, the latest first.", (),
                      f'<div class="runs">{cards}</div>', style=STYLE)  # fmt: skip
    index.write_text(page + MARK + "\n", encoding="utf-8")


def find(results: Path) -> Iterator[Found]:
    """The runs in a folder, whose ``run.json`` can be read and whose page is there."""
    for depth in range(1, DEPTH + 1):
        for path in sorted(results.glob(f"{'*/' * depth}{FILE}")):
            if (run := _read(path)) is not None:
                yield run


def _read(path: Path) -> Found | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        title, about, date = (str(values[key]) for key in ("title", "about", "date"))
        page, thumbnail, facts = values["page"], values.get("thumbnail"), values.get("facts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not _is_beside(path, page):
        return None
    if not (_is_beside(path, thumbnail) and _size(path, thumbnail) <= MAX_THUMBNAIL):
        thumbnail = ""
    facts = facts if isinstance(facts, dict) else {}
    headline = next((f"{name}: {value}" for name, value in facts.items()), "")
    return Found(path.parent, title, about, date, headline, page, thumbnail)


def _is_beside(path: Path, name: Any) -> bool:
    """Whether this is the name of a file in the same folder."""
    return isinstance(name, str) and Path(name).name == name and (path.parent / name).is_file()


def _size(path: Path, name: str) -> int:
    return (path.parent / name).stat().st_size


def _card(run: Found, results: Path) -> str:
    folder = run.folder.relative_to(results).as_posix()
    picture = ""
    if run.thumbnail:
        source = text(f"{folder}/{run.thumbnail}")
        picture = f'<div class="thumbnail"><img alt="" loading="lazy" src="{source}"></div>'
    headline = f'<div class="headline">{text(run.headline)}</div>' if run.headline else ""
    where = "" if folder == run.title else f" in {text(folder)}"
    date = text(run.date[:16].replace("T", " "))
    return (
        f'<a href="{text(f"{folder}/{run.page}")}">{picture}<strong>{text(run.title)}</strong>'
        f"{headline}<span>{text(run.about)}</span>"
        f'<time datetime="{text(run.date)}">{date}{where}</time></a>'
    )
