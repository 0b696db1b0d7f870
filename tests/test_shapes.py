"""The table of docs/shapes.md, held to every row of the zoo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Bool, Float, Int, Num, jaxtyped

from tests.zoo import CASES, Case, sample

PAGE = (Path(__file__).parents[1] / "docs" / "shapes.md").read_text("utf-8")
KINDS = {"Float": Float, "Int": Int, "Bool": Bool, "Target": Num | Bool}
ARRAY = re.compile(r"(\w+)\[([^\]]*)\]")


class Row(NamedTuple):
    names: tuple[str, ...]
    x: tuple[str, ...]  # ways to write it, one of which holds
    y: str
    params: dict[str, str] | None  # None: those of its layers


def code(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]*)`", cell))


def rows() -> list[Row]:
    table, before = [], ()
    for line in re.findall(r"^\| (.*) \|$", PAGE, re.M)[2:]:
        blocks, x, y, params = line.split("|")
        names = tuple(name.split("(")[0] for name in code(blocks)) or before[-2:]
        own = dict(part.split(": ") for part in re.split(", (?=[a-z]+: )", "".join(code(params)))
                   if part)  # fmt: skip
        table.append(Row(names, code(x), code(y)[0], None if "of its" in params else own))
        before = names
    return table


ROWS = rows()
NAMED = code(PAGE.split("Blocks made of blocks")[1].split("take what")[0])


def fits(value: Any, written: str) -> bool:
    """Whether an array is as it is written, in the sizes of the axes so far (see jaxtyped)."""
    kind, axes = ARRAY.fullmatch(written).groups()
    # Quotients and sums are the reader's.
    axes = " ".join("_" if re.search(r"[/+]|.\*", axis) else axis for axis in axes.split())
    if kind == "Target":
        return any(isinstance(value, k[Array, axes]) for k in (Num, Bool))
    return isinstance(value, KINDS[kind][Array, axes])


def all_fit(values: Any, written: str) -> bool:
    parts = ["".join(m) for m in re.findall(r"(\w+\[[^\]]*\])", written)]
    values = values if isinstance(values, tuple) else (values,)
    if written.endswith(", ...)"):
        parts = [parts[0]] * len(values)
    return len(parts) == len(values) and all(map(fits, values, parts))


def holds(row: Row, case: Case, x: Any, y: Any, params: Any) -> bool:
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-1]: leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for way in row.x:
        with jaxtyped("context"):
            # An empty dict of parameters is use_bias=False and the like.
            if row.params is not None and not leaves.keys() <= row.params.keys():
                continue
            if all_fit(x, way) and all_fit(y, row.y) and (
                row.params is None
                or all(fits(leaf, row.params[name]) for name, leaf in leaves.items())
            ):  # fmt: skip
                return True
    return False


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=c.id, marks=[pytest.mark.slow] if c.further else [])
        for c in CASES
        if c.name not in NAMED
    ],
)
def test_the_table_says_how_it_is(case: Case) -> None:
    s, block = sample(case), case.make()
    y = jax.eval_shape(block.forward, s.params, s.x, s.key)[0]
    shown = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), y)
    assert any(holds(row, case, s.x, shown, s.params) for row in ROWS if case.name in row.names), (
        jax.tree.map(jnp.shape, (s.x, y, s.params))
    )


def test_every_block_is_in_the_table() -> None:
    said = {name for row in ROWS for name in row.names} | set(NAMED)
    assert said == {case.name for case in CASES}


def test_a_wrong_row_is_noticed() -> None:
    case = next(case for case in CASES if case.name == "linear")
    s = sample(case)
    y = case.make().forward(s.params, s.x)[0]
    right = next(row for row in ROWS if "linear" in row.names)
    assert holds(right, case, s.x, y, s.params)
    for wrong in (
        right._replace(y="Float[*B I]"),
        right._replace(x=("Int[*B I]",)),
        right._replace(x=("Float[I]",)),
        right._replace(params={"w": "Float[O I]", "b": "Float[O]"}),
        right._replace(params={"w": "Float[I O]"}),
    ):
        assert not holds(wrong, case, s.x, y, s.params), wrong
