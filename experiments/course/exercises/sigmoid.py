"""The sigmoid: y = 1 / (1 + exp(-x)), entry by entry.

Forward   y = 1 / (1 + exp(-x))           (x and y are arrays of the same shape)
Given     y, which forward kept, and dy
Asked     dx, of the same shape

Forward keeps y and not x, for the derivative of the sigmoid can be written with y alone.
"""

import numpy as np


def forward(x):
    y = 1 / (1 + np.exp(-x))
    return y, y


def backward(residuals, dy):
    y = residuals
    dx = ...
    return dx
