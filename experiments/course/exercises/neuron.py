"""A neuron and its error: z = w.x + b,   E = (z - t)^2 / 2.

Forward   z = w.x + b,   E = (z - t)^2 / 2
Shapes    x (n,), w (n,), b (), z (), E ()
Given     x, w and z - t, which forward kept, and dE
Asked     dx (n,), dw (n,), db ()

Half of the square is taken so that its derivative is simple. t is the target that z should have:
it is a constant, and needs no gradient.
"""

import numpy as np


def forward(x, w, b, t=1.0):
    z = np.dot(w, x) + b
    error = z - t
    E = error**2 / 2
    return E, (x, w, error)


def backward(residuals, dE):
    x, w, error = residuals
    dx = ...
    dw = ...
    db = ...
    return dx, dw, db
