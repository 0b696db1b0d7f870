"""Objects that show themselves, in a notebook that is run."""

from __future__ import annotations

import pytest

CELLS = {
    "net": ("import fnn, numpy as np\n"
            "net = fnn.serial(hidden=fnn.linear(4), act=fnn.tanh(), out=fnn.linear(2))\n"
            "x, labels = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2\n"
            "net", "hidden: linear(4)"),
    "fitted": ("fitted = fnn.fit(net, fnn.softmax_cross_entropy(), x, labels, epochs=3,\n"
               "                 diagnostics=True)\nfitted", "<polyline"),
    "diagnostics": ("fitted.diagnostics", '<pre style="font-family:monospace">'),
    "summary": ("fnn.summary(net, x)", "<table>"),
    "report": ("fnn.check.block(net, x[:4], quick=True)", "color:#2a7d2a"),
    "trace": ("fnn.whiteboard.trace(net, fitted.params, x[:2])", "&lt;svg"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.as_users
def test_a_notebook_shows_what_is_in_it() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [nbformat.v4.new_code_cell(code) for code, _ in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    for (name, (_, words)), cell in zip(CELLS.items(), notebook.cells, strict=True):
        shown = [o.data for o in cell.outputs if o.output_type == "execute_result"]
        assert shown, f"{name}: {cell.outputs}"
        assert words in shown[0].get("text/html", ""), (name, shown[0])
    printed = [o.text for o in notebook.cells[1].outputs if o.output_type == "stream"]
    progress = "".join(text for text in printed if "epoch" in text)
    assert progress.count("\r") == 3 and progress.count("\n") <= 1, "one line, written anew"
