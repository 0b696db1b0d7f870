"""A linear layer and a batch: y = x W + b.

Forward   y[n, j] = sum over i of x[n, i] W[i, j], plus b[j]
Shapes    x (N, I), W (I, J), b (J,), y (N, J): N examples, I inputs, J outputs
Given     x and W, which forward kept, and dy (N, J)
Asked     dx (N, I), dW (I, J), db (J,)

All examples use the same W and b.
"""

import numpy as np  # np.sum(a, axis=0) adds the rows; a.T is a transposed; a @ b multiplies


def forward(x, W, b):
    y = x @ W + b
    return y, (x, W)


def backward(residuals, dy):
    x, W = residuals
    dx = ...
    dW = ...
    db = ...
    return dx, dW, db
