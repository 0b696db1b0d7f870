"""Networks built only from public blocks."""

from fnn.models.mlp import logistic_regression as logistic_regression
from fnn.models.mlp import mlp as mlp

__all__ = ["logistic_regression", "mlp"]
