"""Tables with names of columns and rows, as pandas has them, metrics of scikit-learn's, weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, mean_squared_error, r2_score

import fnn
from fnn.training.arrays import checked_arrays, host_array
from fnn.training.tables import columns_of, require_columns, require_one_order


class Index(list[Any]):
    def equals(self, other: Any) -> bool:
        return self == other


class DType(NamedTuple):
    """As of pandas: a kind, and NumPy's dtype where values may be missing."""

    name: str
    kind: str
    numpy_dtype: Any = None

    def __str__(self) -> str:
        return self.name


class Column:
    def __init__(self, values: Any, dtype: Any, missing: bool = False) -> None:
        self.values, self.dtype, self.missing = np.asarray(values, object), dtype, missing
        self.shape = self.values.shape

    def items(self) -> None: ...

    def to_numpy(self, dtype: Any) -> np.ndarray:
        return self.values.astype(dtype)

    def isna(self) -> np.ndarray:
        return np.full(self.shape, self.missing)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


class Frame:
    def __init__(self, columns: dict[Any, Column], index: Any = None) -> None:
        self.columns, self.parts = list(columns), columns
        self.array = np.stack([np.asarray(c) for c in columns.values()], -1)
        self.shape, self.index = self.array.shape, Index(index or range(len(self.array)))
        floats = all(c.dtype == np.dtype(float) for c in columns.values())
        self.array = self.array.astype(float) if floats else self.array

    def items(self) -> Iterator[tuple[Any, Column]]:
        yield from self.parts.items()

    def to_numpy(self) -> np.ndarray:
        return self.array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


FLOAT = np.dtype(float)
A, B = Column([0.0, 1.0, 2.0, 3.0], FLOAT), Column([1.0, 0.0, 1.0, 0.0], FLOAT)
TABLE = Frame({"a": A, "b": B})
TARGET = np.array([[0.0], [1.0], [2.0], [3.0]])
OPTIONS: dict[str, Any] = {"epochs": 1, "progress": False}
FITTED = fnn.fit(fnn.linear(1), fnn.squared_error(), TABLE, TARGET, **OPTIONS)


# ---- columns and rows --------------------------------------------------------------------------


def test_predictions_need_the_columns_of_training_in_their_order() -> None:
    assert FITTED.predict(TABLE).shape == (4, 1)
    np.testing.assert_array_equal(FITTED.predict(TABLE), FITTED.predict(TABLE.array))
    swapped = Frame({"b": B, "a": A})
    words = r": x has other columns than fit's x: from column 0 on 'b', 'a', needs 'a', 'b'; give"
    with pytest.raises(ValueError, match=f"^predict{words}"):
        FITTED.predict(swapped)
    with pytest.raises(ValueError, match=f"^evaluate{words}"):
        FITTED.evaluate(swapped, TARGET)
    with pytest.raises(ValueError, match=r"^fit: validation x has other columns"):
        fnn.fit(fnn.linear(1), fnn.squared_error(), TABLE, TARGET, validation=(swapped, TARGET),
                **OPTIONS)  # fmt: skip
    with pytest.raises(ValueError, match="from column 1 on none, needs 'b'"):
        FITTED.predict(Frame({"a": A}))


def test_columns_without_names_are_taken_as_they_are() -> None:
    named, plain = columns_of(TABLE), columns_of(Frame({0: A, 1: B}))
    assert (named, plain) == ([["a", "b"]], [None])
    require_columns("x", Frame({0: B, 1: A}), named)
    require_columns("x", TABLE, plain)
    assert columns_of((TABLE, TARGET, [1.0])) == [["a", "b"], None, None]


def test_rows_of_one_index_in_two_orders_are_refused() -> None:
    turned = Frame({"a": A, "b": B}, [3, 1, 2, 0])
    for options in ({"target": turned}, {"target": TARGET, "weights": turned}):
        with pytest.raises(
            ValueError, match=r"have the same index in different orders.*loc.x.index"
        ):
            require_one_order("fit: x", TABLE, **options)
    with pytest.raises(ValueError, match=r"^fit: x and its target have the same index"):
        fnn.fit(fnn.linear(2), fnn.squared_error(), TABLE, turned, **OPTIONS)
    require_one_order("x", TABLE, target=Frame({"a": A}, [7, 8, 9, 10]))
    require_one_order("x", TARGET, target=turned)
    require_one_order("x", TABLE, target=TABLE)


# ---- kinds of columns --------------------------------------------------------------------------

YES, WHOLE = DType("boolean", "b", bool), DType("Int64", "i", np.int64)


def test_booleans_and_integers_that_might_be_missing_are_numbers() -> None:
    table = Frame({"a": A, "yes": Column([True, False, True, True], np.dtype(bool)),
                   "may": Column([True, False, True, True], YES),
                   "n": Column([1, 2, 3, 4], WHOLE)})  # fmt: skip
    array = host_array("x", table)
    assert array.dtype == float and array[1].tolist() == [1.0, 0.0, 0.0, 2.0]
    assert host_array("target", Column([1, 2], WHOLE)).dtype == np.int64


def test_columns_that_are_not_numbers_are_named() -> None:
    table = Frame({"a": A, "word": Column(list("uvwx"), DType("str", "O")),
                   "day": Column(range(4), DType("datetime64[ns]", "M")),
                   "n": Column([1, 2, 3, None], WHOLE, missing=True)})  # fmt: skip
    words = (
        r"fit: x has columns that are not numbers: 'word' \(str\), 'day' \(datetime64\[ns\]\), "
        r"'n' \(Int64 with missing values\); drop them, fill"
    )
    with pytest.raises(TypeError, match=words):
        host_array("fit: x", table)
    with pytest.raises(TypeError, match="target has dtype object, needs real numbers: drop miss"):
        host_array("fit: target", Column([1, None], WHOLE, missing=True))
    with pytest.raises(
        ValueError, match=r"1 values that are NaN.*in example 2, in columns \['b'\]"
    ):
        table = Frame({"a": A, "b": Column([0.0, 1.0, np.nan, 0.0], FLOAT)})
        checked_arrays("fit: x", table, TARGET, None)


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [0.0, 1.0], "b": [True, False]})
    for given in (table, table.convert_dtypes()):
        assert host_array("x", given).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert columns_of(table) == [["a", "b"]]
    with pytest.raises(TypeError, match=r"'c' \(category\)"):
        host_array("x", table.assign(c=pandas.Categorical(["u", "v"])))
    with pytest.raises(ValueError, match="same index in different orders"):
        require_one_order("x", table, target=table["a"][::-1])


def test_data_is_needed_in_numbers_not_traced() -> None:
    def train(x: Any) -> Any:
        return fnn.fit(fnn.linear(1), fnn.squared_error(), x, x, **OPTIONS).params

    with pytest.raises(TypeError, match=r"fit: x is traced by jit.*call fit outside of it"):
        jax.jit(train)(TARGET)


# ---- scikit-learn's metrics, weights of 0 ------------------------------------------------------


def test_metrics_of_scikit_learn_take_the_target_first() -> None:
    words = r"'sk' is scikit-learn's r2_score.*give lambda prediction, target: r2_score\(target, p"
    with pytest.raises(TypeError, match=words):
        FITTED.evaluate(TABLE, TARGET, metrics={"sk": r2_score})
    right = {"r2": lambda prediction, target: r2_score(target, prediction)}
    symmetric = {"square": mean_squared_error}  # in which the order does not matter
    assert FITTED.evaluate(TABLE, TARGET, metrics=right | symmetric).keys() >= {"r2", "square"}
    with pytest.raises(TypeError, match=r"accuracy_score, which takes .target, prediction."):
        FITTED.evaluate(TABLE, TARGET, metrics={"sk": accuracy_score})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": np.zeros(4)}, "fit: weights are all 0: nothing to learn"),
        ({"class_weights": [0, 0]}, "fit: class_weights are all 0"),
        ({"weights": [0, 1, 0, 1], "class_weights": [1, 0]}, "weights x class_weights are all 0"),
        ({"weights": -np.ones(4)}, "^fit: weights hold -1 for example 0"),
    ],
)
def test_weights_of_0_teach_nothing(options: Any, words: str) -> None:
    labels = np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match=words):
        fnn.fit(fnn.linear(2), fnn.softmax_cross_entropy(), TABLE, labels, **options, **OPTIONS)
