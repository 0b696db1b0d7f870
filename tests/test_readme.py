"""The README's Python runs, and its names are the library's."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnn

README = Path(__file__).parents[1] / "README.md"


def snippets() -> list[str]:
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", README.read_text(), re.S | re.M)
    return ["\n".join(line[len(i) :] for line in code.split("\n")) for i, code in blocks]


def test_every_python_example_runs() -> None:
    rng = np.random.default_rng(0)
    names = {
        **{"fnn": fnn, "jnp": jnp, "jax": jax},
        **{"x": rng.random((32, 784)), "labels": rng.integers(0, 10, 32)},
    }
    examples = [code for code in snippets() if not code.startswith("class Block")]
    assert len(examples) >= 4
    for code in examples:
        exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (32, 10)
    value, gradients = float(names["value"]), [float(g) for g in names["gradients"]]
    assert (value, gradients) == (-12.0, [-4.0, -4.0, 3.0])
    assert_right(names["gaussian"](), jnp.array([-1.0, 0.0, 2.0]))
    assert_right(names["tied"], jnp.asarray(rng.random((4, 64))))


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


def test_the_table_of_names_is_complete() -> None:
    rows = re.findall(r"^\| \w+ \| (`.*) \|$", README.read_text(), re.M)
    named = {name.split(".")[-1] for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    internal = {"check", "models", "whiteboard", "BlockError", "Fitted", "Optimizer"}
    assert set(fnn.__all__) - internal <= named
    tools = {*fnn.check.__all__, *fnn.whiteboard.__all__}
    assert named <= {*fnn.__all__, *fnn.models.__all__, *tools}
