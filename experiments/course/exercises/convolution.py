"""A convolution in one dimension.

Forward   y[i] = sum over k of x[i + k] w[k],   i = 0 ... M - K
Shapes    x (M,), w (K,), y (M - K + 1,)
Given     x and w, which forward kept, and dy (M - K + 1,)
Asked     dx (M,), dw (K,)

The same few weights slide along x. A loop over k is a good beginning; np.convolve and
np.correlate are there, too.
"""

import numpy as np


def forward(x, w):
    size = len(x) - len(w) + 1
    y = sum(x[k : k + size] * w[k] for k in range(len(w)))
    return y, (x, w)


def backward(residuals, dy):
    x, w = residuals
    dx = ...
    dw = ...
    return dx, dw
