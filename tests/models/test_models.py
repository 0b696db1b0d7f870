"""Networks made of public blocks: what they refuse, and their options."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import fnn
from fnn.block import Block, BlockError

models = fnn.models


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.cnn(channels=()), "cnn: channels is empty"),
        (lambda: models.logistic_regression(1), "classes is 1, needs 2 or more"),
        (lambda: models.mlp(()), r"mlp: sizes is \(\), needs features per layer"),
        (lambda: models.mlp(10), "mlp: sizes is 10, needs a tuple"),  # type: ignore[arg-type]
        (lambda: models.deep_supervision(fnn.squared_error(), (1.0,)), r"weights is \(1.0,\)"),
    ],
)
def test_what_is_no_network_is_refused(make: Callable[[], Block], message: str) -> None:
    with pytest.raises(BlockError, match=message):
        make()


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (models.mlp((4, 3), dropout=0.5), "hidden_1 relu_1 dropout_1 out"),
        (models.cnn(3, channels=(2,), hidden=4, dropout=0.5),
         "conv_1 relu_1 pool_1 flatten dropout_1 hidden relu dropout_2 out"),
        (models.cnn(3, channels=(2,), hidden=0, dropout=0.5), 
         "conv_1 relu_1 pool_1 flatten dropout_1 out"),
        (models.cnn(3, channels=(2,), hidden=0), "conv_1 relu_1 pool_1 flatten out"),
    ],
)  # fmt: skip
def test_where_there_is_dropout(net: Block, names: str) -> None:
    assert net.graph is not None
    assert [node.name for node in net.graph.nodes] == names.split()
