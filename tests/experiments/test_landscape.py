"""Studies of the landscape, small."""

import csv
from pathlib import Path

import pytest

from experiments.landscape.minima import Minima, minima

pytestmark = pytest.mark.as_users


def test_narrow_networks_end_in_minima_that_differ_more(tmp_path: Path) -> None:
    options = Minima(widths=(2, 16), networks=8, epochs=4, out=tmp_path)
    options.prepare()
    assert minima(options) == 0
    rows = list(csv.DictReader((tmp_path / "minima.csv").read_text().splitlines()))
    assert len(rows) == 16

    def spread(width: str) -> float:
        losses = [float(row["test_loss"]) for row in rows if row["width"] == width]
        return max(losses) - min(losses)

    assert spread("16") < spread("2")
    page = (tmp_path / "report.html").read_text()
    assert "minima.png" not in page and "data:image/png" in page and "def at_once" in page
