"""Networks built only from public blocks."""

from fnn.models.convolutional import cnn as cnn
from fnn.models.fully_connected import logistic_regression as logistic_regression
from fnn.models.fully_connected import mlp as mlp
from fnn.models.generation import generate as generate
from fnn.models.inception_v1 import deep_supervision as deep_supervision
from fnn.models.inception_v1 import googlenet as googlenet
from fnn.models.inception_v1 import googlenet_batch_norm as googlenet_batch_norm
from fnn.models.inception_v1 import inception as inception
from fnn.models.transformers import microgpt as microgpt
from fnn.models.transformers import transformer as transformer
from fnn.models.weights import load_weights as load_weights
from fnn.models.weights import save_weights as save_weights
from fnn.models.weights import torch_names as torch_names

__all__ = [
    "cnn",
    "deep_supervision",
    "generate",
    "googlenet",
    "googlenet_batch_norm",
    "inception",
    "load_weights",
    "logistic_regression",
    "microgpt",
    "mlp",
    "save_weights",
    "torch_names",
    "transformer",
]
