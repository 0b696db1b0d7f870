"""fnn: neural networks as pure functions, with a hand-written backward pass."""

from fnn import check as check
from fnn import models as models
from fnn.backprop import as_function, value_and_grad, with_loss
from fnn.block import Block, BlockError, inference
from fnn.combinators import (
    concatenate,
    fan_out,
    flatten,
    freeze,
    rematerialize,
    repeat,
    residual,
    serial,
)
from fnn.dropout import dropout
from fnn.fit import Fitted, fit
from fnn.gates import (
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
    sqrt,
    square,
    subtract,
    sum,
)
from fnn.graph import graph, map_nodes
from fnn.linear import layer, linear, neuron
from fnn.losses import (
    binary_cross_entropy,
    cross_entropy,
    softmax_cross_entropy,
    squared_error,
)
from fnn.metrics import accuracy, r2
from fnn.nonlinearities import (
    absolute,
    celu,
    elu,
    elementwise,
    gelu,
    hard_sigmoid,
    hard_tanh,
    identity,
    leaky_relu,
    logistic,
    mish,
    relu,
    selu,
    silu,
    softplus,
    softsign,
    step,
    straight_through,
    tanh,
)
from fnn.optimizers import Optimizer, apply_updates, sgd
from fnn.softmax import log_softmax, softmax
from fnn.summary import summary
from fnn.training import make_epoch, make_predict, make_step
