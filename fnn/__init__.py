"""Neural networks as pure functions in JAX, with a backward pass that people can read and trust.

Every block of a network is a ``forward`` and a hand-written ``backward``, side by side
(:class:`fnn.Block`); one executor (:func:`fnn.graph`) applies the chain rule. Start with
:func:`fnn.serial` to build a network and :func:`fnn.fit` to train it.
"""

from typing import TYPE_CHECKING

from fnn import check, curvature, models, whiteboard
from fnn.backprop import as_function, value_and_grad, with_loss
from fnn.block import Block, BlockError, Kind, Rules
from fnn.blocks.attention import dot_product_attention
from fnn.blocks.cells import gru_cell, lstm_cell, rnn_cell
from fnn.blocks.combinators import (
    concatenate,
    fan_out,
    flatten,
    freeze,
    item,
    repeat,
    residual,
    serial,
)
from fnn.blocks.conv import conv
from fnn.blocks.conv_transpose import conv_transpose
from fnn.blocks.dropout import dropout
from fnn.blocks.elementwise import elementwise, straight_through
from fnn.blocks.embedding import embedding, unembedding
from fnn.blocks.fused_loss import linear_softmax_cross_entropy
from fnn.blocks.gated import gated
from fnn.blocks.gates import (
    add,
    divide,
    exp,
    log,
    maximum,
    mean,
    minimum,
    multiply,
    negate,
    power,
    scale,
    sqrt,
    square,
    subtract,
    sum,
)
from fnn.blocks.gelu import gelu
from fnn.blocks.group_norm import group_norm, instance_norm
from fnn.blocks.heads import attention, causal_mask, merge_heads, split_heads
from fnn.blocks.linear import layer, linear, neuron
from fnn.blocks.losses import (
    binary_cross_entropy,
    cross_entropy,
    softmax_cross_entropy,
    squared_error,
)
from fnn.blocks.nonlinearities import (
    absolute,
    celu,
    elu,
    hard_sigmoid,
    hard_tanh,
    heaviside,
    identity,
    leaky_relu,
    logistic,
    relu,
    selu,
    sigmoid,
    step,
    tanh,
)
from fnn.blocks.normalization import batch_norm, layer_norm, local_response_norm
from fnn.blocks.pooling import avg_pool, global_avg_pool, max_pool
from fnn.blocks.positions import position_embedding
from fnn.blocks.recurrent import recurrent
from fnn.blocks.rematerialized import rematerialize
from fnn.blocks.rms_norm import rms_norm
from fnn.blocks.rotary import rotary
from fnn.blocks.smooth import mish, silu, softplus, softsign
from fnn.blocks.softmax import log_softmax, softmax
from fnn.executor import graph, inference, map_nodes
from fnn.introspect.summary import summary
from fnn.optimizer import Optimizer
from fnn.spelling import meant
from fnn.training.diagnostics.record import Diagnostics, Finding
from fnn.training.exporting import load_step
from fnn.training.fit import Fitted, fit
from fnn.training.loss_scale import loss_scaled
from fnn.training.metrics import accuracy, r2
from fnn.training.optimizers import adam, apply_updates, averaged, sgd
from fnn.training.source import Source
from fnn.training.steps import make_epoch, make_predict, make_step

__version__ = "0.2.0.dev0"


if not TYPE_CHECKING:  # which otherwise takes every name for one of fnn's

    def __getattr__(name: str) -> object:
        hint = meant(name, __all__)
        raise AttributeError(f"fnn has no {name!r}{f'; {hint}' if hint else ''}")


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "Block",
    "BlockError",
    "Diagnostics",
    "Finding",
    "Fitted",
    "Kind",
    "Optimizer",
    "Rules",
    "Source",
    "absolute",
    "accuracy",
    "adam",
    "add",
    "apply_updates",
    "as_function",
    "attention",
    "averaged",
    "avg_pool",
    "batch_norm",
    "binary_cross_entropy",
    "causal_mask",
    "celu",
    "check",
    "concatenate",
    "conv",
    "conv_transpose",
    "cross_entropy",
    "curvature",
    "divide",
    "dot_product_attention",
    "dropout",
    "elementwise",
    "elu",
    "embedding",
    "exp",
    "fan_out",
    "fit",
    "flatten",
    "freeze",
    "gated",
    "gelu",
    "global_avg_pool",
    "graph",
    "group_norm",
    "gru_cell",
    "hard_sigmoid",
    "hard_tanh",
    "heaviside",
    "identity",
    "inference",
    "instance_norm",
    "item",
    "layer",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_softmax_cross_entropy",
    "load_step",
    "local_response_norm",
    "log",
    "log_softmax",
    "logistic",
    "loss_scaled",
    "lstm_cell",
    "make_epoch",
    "make_predict",
    "make_step",
    "map_nodes",
    "max_pool",
    "maximum",
    "mean",
    "merge_heads",
    "minimum",
    "mish",
    "models",
    "multiply",
    "negate",
    "neuron",
    "position_embedding",
    "power",
    "r2",
    "recurrent",
    "relu",
    "rematerialize",
    "repeat",
    "residual",
    "rms_norm",
    "rnn_cell",
    "rotary",
    "scale",
    "selu",
    "serial",
    "sgd",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "softsign",
    "split_heads",
    "sqrt",
    "square",
    "squared_error",
    "step",
    "straight_through",
    "subtract",
    "sum",
    "summary",
    "tanh",
    "unembedding",
    "value_and_grad",
    "whiteboard",
    "with_loss",
]
