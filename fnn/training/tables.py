"""Tables by name: of a pandas DataFrame, say, the names of columns and rows that an array loses.

Known by what they can do, not by their type: nothing is imported.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

Columns = list[list[Any] | None]  # of each leaf of x; None where it has no names


def table_as_array(name: str, table: Any) -> np.ndarray | None:
    """A table with columns of several kinds, or one column, as an array; None if it is neither.

    Booleans and integers that might be missing, but are not, become numbers.

    Raises:
      TypeError: columns without numbers, which it names.
    """
    if not hasattr(table, "to_numpy") or not hasattr(table, "items"):
        return None
    is_frame = hasattr(table, "columns")
    columns = list(table.items()) if is_frame else [("", table)]
    faults = [(column, why) for column, values in columns if (why := _fault(values))]
    if not is_frame and faults:
        return None
    if faults:
        few = ", ".join(f"{column!r} ({why})" for column, why in faults[:6])
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise TypeError(
            f"{name} has columns that are not numbers: {few}{more}; drop them, fill what is "
            "missing, and make numbers of words: pandas.get_dummies(x, dtype=float)"
        )
    arrays = [_numbers(values) for _, values in columns]
    return np.stack(arrays, -1) if is_frame else arrays[0]


def _fault(column: Any) -> str:
    """Why a column does not become numbers; '' if it does."""
    if getattr(column.dtype, "kind", "O") not in "biuf":
        return str(column.dtype)
    may_lack = not isinstance(column.dtype, np.dtype)
    return f"{column.dtype} with missing values" if may_lack and column.isna().any() else ""


def _numbers(column: Any) -> np.ndarray:
    return np.asarray(column.to_numpy(getattr(column.dtype, "numpy_dtype", column.dtype)))


def columns_of(x: Any) -> Columns:
    """The names of the columns of every table in x."""

    def names(leaf: Any) -> list[Any] | None:
        columns = getattr(leaf, "columns", ())
        named = list(columns) if hasattr(columns, "__iter__") else []
        return None if named == list(range(len(named))) else named

    return [names(leaf) for leaf in _leaves(x)]


def require_columns(name: str, x: Any, columns: Columns) -> None:
    """Refuses a table whose columns are not those that fit's x had, in their order.

    An array, and a table whose columns have no names, is taken as it is.
    """
    for got, needed in zip(columns_of(x), columns, strict=False):
        if got is None or needed is None or got == needed:
            continue
        same = [a == b for a, b in zip(got, needed, strict=False)]
        i = same.index(False) if False in same else len(same)
        here, there = (", ".join(map(repr, c[i : i + 3])) or "none" for c in (got, needed))
        raise ValueError(
            f"{name} has other columns than fit's x: from column {i} on {here}, needs {there}; "
            "give the same in the same order, x[train.columns]"
        )


def require_one_order(name: str, x: Any, **others: Any) -> None:
    """Refuses tables of the same rows in different orders, by their indexes."""
    indexed = [leaf.index for leaf in _leaves(x) if _has_index(leaf)]
    for what, other in others.items():
        for leaf in filter(_has_index, _leaves(other)):
            for index in indexed[:1]:
                if not leaf.index.equals(index) and _same_labels(leaf.index, index):
                    raise ValueError(
                        f"{name} and its {what} have the same index in different orders, so that "
                        f"rows would not belong together: give {what}.loc[x.index], or "
                        f"x.to_numpy() if they do"
                    )


def _same_labels(a: Any, b: Any) -> bool:
    return len(a) == len(b) and set(a) == set(b)


def _has_index(leaf: Any) -> bool:
    return hasattr(getattr(leaf, "index", None), "equals")


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda a: isinstance(a, list))
