"""results/index.html: made of what runs leave, and of nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.common import runs
from experiments.common.runs import MARK, find, leave, record, write_index

pytestmark = pytest.mark.as_users


@dataclass
class Options:
    out: Path
    command: str = "python -m experiments some"


def run(folder: Path, title: str, **more: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text("<p>")
    facts = {"accuracy": 0.9, "seconds": 3}
    leave(folder, title=title, about=f"about {title}", page="report.html", facts=facts, **more)
    return folder


def test_the_index_shows_every_run(tmp_path: Path) -> None:
    results = tmp_path / "results"
    run(results / "neuron", "neuron", thumbnail="<svg></svg>")
    run(results / "sweep" / "seed_1", "digits <b>", thumbnail="none.png")
    record("digits", "", Options(results / "neuron"))
    page = (results / "index.html").read_text()
    assert "2 runs" in page and page.rstrip().endswith(MARK)
    assert 'href="neuron/report.html"' in page and 'src="neuron/thumbnail.svg"' in page
    assert 'href="sweep/seed_1/report.html"' in page and "in sweep/seed_1" in page
    assert "digits &lt;b&gt;" in page and "<b>" not in page
    assert "accuracy: 0.9" in page and "none.png" not in page


def test_the_latest_run_is_first(tmp_path: Path) -> None:
    for title, date in (("old", "2026-01-01"), ("new", "2026-03-01"), ("middle", "2026-02-01")):
        file = run(tmp_path / title, title) / runs.FILE
        file.write_text(json.dumps(json.loads(file.read_text()) | {"date": date}))
    write_index(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.index("about new") < page.index("about middle") < page.index("about old")


@pytest.mark.parametrize(
    "left",
    [
        "", "{", "[]", "null", '"title"', "{}", '{"title": "a", "about": "b", "date": "c"}',
        '{"title": "a", "about": "b", "date": "c", "page": "../../../etc/passwd"}',
        '{"title": "a", "about": "b", "date": "c", "page": "https://example.org"}',
        '{"title": "a", "about": "b", "date": "c", "page": 3}',
        '{"title": "a", "about": "b", "date": "c", "page": "gone.html"}',
    ],
)  # fmt: skip
def test_a_foreign_folder_does_no_harm(left: str, tmp_path: Path) -> None:
    run(tmp_path / "ours", "ours")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / runs.FILE).write_text(left)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.json").write_text("{")
    assert [found.title for found in find(tmp_path)] == ["ours"]
    write_index(tmp_path)
    assert "1 run," in (tmp_path / "index.html").read_text()


def test_odd_facts_and_thumbnails_are_left_out(tmp_path: Path) -> None:
    folder = run(tmp_path / "ours", "ours")
    for more in ({"facts": [1]}, {"facts": None, "thumbnail": 3}, {"thumbnail": "../x.png"}):
        values = json.loads((folder / runs.FILE).read_text()) | more
        (folder / runs.FILE).write_text(json.dumps(values))
        (found,) = find(tmp_path)
        assert not found.thumbnail


def test_only_pages_of_its_own_are_replaced(tmp_path: Path) -> None:
    results = tmp_path / "results"
    folder = run(results / "neuron", "neuron")
    (results / "index.html").write_text("my own page")
    record("neuron", "", Options(folder))
    assert (results / "index.html").read_text() == "my own page"
    elsewhere = run(tmp_path / "elsewhere", "neuron")
    record("neuron", "", Options(elsewhere))
    assert not (tmp_path / "index.html").exists()


def test_a_page_without_a_report_is_listed_too(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "lecture"
    record("lecture", "figures", Options(folder))  # it did not get as far as a folder
    folder.mkdir(parents=True)
    record("lecture", "figures", Options(folder))
    assert not (folder / runs.FILE).exists()
    (folder / "index.html").write_text("<p>")
    (folder / "one.svg").write_text("<svg></svg>")
    record("lecture", "figures", Options(folder))
    page = (tmp_path / "results" / "index.html").read_text()
    assert 'href="lecture/index.html"' in page and 'src="lecture/one.svg"' in page
    first = (folder / runs.FILE).stat().st_mtime_ns
    record("lecture", "figures", Options(folder))
    assert (folder / runs.FILE).stat().st_mtime_ns == first
    os.utime(folder / "index.html", ns=(first + 1, first + 1_000_000))  # it was made again
    record("lecture", "more figures", Options(folder))
    assert "more figures" in (tmp_path / "results" / "index.html").read_text()


def test_every_experiment_makes_the_index_anew(tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert main(["circuit", "--out", str(results / "circuit")]) == 0
    page = (results / "index.html").read_text()
    assert "circuit/report.html" in page and "f: -12" in page and "circuit.svg" in page
    assert main(["circuit", "x *", "--out", str(results / "circuit")]) == 2
    assert main(["circuit", "x * y", "--at", "x=1", "y=2", "--out", str(results / "second")]) == 0
    assert "2 runs" in (results / "index.html").read_text()
