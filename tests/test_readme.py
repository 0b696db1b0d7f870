"""The Python in the README, the guide and CONTRIBUTING.md runs; the documentation is complete."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

ROOT = Path(__file__).parents[1]


def snippets(page: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", text, re.S | re.M)
    code = ["\n".join(line[len(i) :] for line in code.split("\n")) for i, code in blocks]
    return [c for c in code if not c.startswith("class Block")]


def run(page: str) -> dict[str, Any]:
    """The names that a page's code leaves behind, pasted block by block."""
    names: dict[str, Any] = {}
    for code in snippets(page):
        exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.as_users
def test_the_first_program_learns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("README.md")
    printed = capsys.readouterr().out
    assert printed.startswith("Fitted: finished after 50 epochs; best after epoch")
    assert float(re.search(r"^accuracy (.*)$", printed, re.M)[1]) > 0.95, printed  # type: ignore[index]
    assert "serial: right" in printed
    assert names["gradients"]["hidden"]["w"].shape == (2, 16)


@pytest.mark.slow
@pytest.mark.as_users
def test_the_guide_runs() -> None:
    names = run("docs/guide.md")
    gradients = [float(g) for g in names["gradients"]]
    assert (float(names["value"]), gradients) == (-12.0, [-4.0, -4.0, 3.0])
    weights = names["per_example"]["hidden_1"]["w"]
    assert weights.shape == (8, 5, 16)
    assert names["declared"].correct
    np.testing.assert_allclose(names["slope"], jax.grad(jax.nn.gelu)(1.0), atol=1e-3)


@pytest.mark.slow
def test_the_blocks_of_contributing_are_right() -> None:
    names = run("CONTRIBUTING.md")
    assert_right(names["gaussian"](), jnp.array([-1.0, 0.0, 2.0]))
    assert_right(names["tied"], jnp.asarray(np.random.default_rng(0).random((4, 64))))


def assert_right(block: fnn.Block, x: jax.Array) -> None:
    params = block.init(jax.random.key(0), x)
    y, residuals = block.forward(params, x)
    dy = jax.random.normal(jax.random.key(1), y.shape, y.dtype)
    _, pull_back = jax.vjp(lambda p, x: block.forward(p, x)[0], params, x)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14),
        block.backward(params, residuals, dy),
        pull_back(dy),
    )


def test_the_picture_is_what_the_whiteboard_draws() -> None:
    names = run("docs/whiteboard.md")
    drawn = names["board"].svg()
    # The picture is drawn by `python -m experiments whiteboard`, whose blocks have the same names.
    shown = (ROOT / "docs/circuit.svg").read_text("utf-8")
    words = [re.findall(r"<text[^>]*>([^<]*)<", svg)[1:] for svg in (drawn, shown)]
    assert words[0] == words[1], "draw it again: make -B docs/circuit.svg"


# ---- the reference ---------------------------------------------------------------------------

REFERENCE = re.findall(
    r"^\.\. (?:auto|py:)(\w+):: ([\w.]+)",
    "\n".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.rst")),
    re.M,
)


@pytest.mark.parametrize("room", [fnn, fnn.check, fnn.curvature, fnn.models, fnn.whiteboard])
def test_the_reference_names_everything_public(room: ModuleType) -> None:
    named = {name for _, name in REFERENCE}
    public = {
        f"{room.__name__}.{name}"
        for name in room.__all__
        if not isinstance(getattr(room, name), ModuleType)
    }
    assert public - named == set(), "add them to a page in docs/reference"


def test_what_the_reference_names_exists() -> None:
    assert len(REFERENCE) > 100
    for kind, name in REFERENCE:
        if kind == "module":
            importlib.import_module(name)
        else:
            owner, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(owner), attribute), name


def test_links_between_files_lead_somewhere() -> None:
    pages = [
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
        *(f"docs/howto/{p.name}" for p in (ROOT / "docs/howto").glob("*.md")),
    ]
    for page in pages:
        text = (ROOT / page).read_text("utf-8")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"
