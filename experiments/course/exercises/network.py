"""A whole network: one hidden layer, a yes-or-no question.

Forward   h = tanh(x W + b)                     hidden layer
          z = h v + c                           one output
          p = 1 / (1 + exp(-z))                 probability of yes
          E = mean over n of -log p[n] where t[n] is 1, of -log(1 - p[n]) where t[n] is 0
            = mean over n of log(1 + exp(z[n])) - t[n] z[n]
Shapes    x (N, I), W (I, J), b (J,), h (N, J), v (J,), c (), z (N,), p (N,), E ()
Given     x, W, h, v, p and t, which forward kept, and dE
Asked     dx (N, I), dW (I, J), db (J,), dv (J,), dc ()

Start at E and go back layer by layer: first dz, then what dz gives. The derivative of E by z is
as simple as that of softmax and cross-entropy. That of h = tanh(a) by a is 1 - h^2.
"""

import numpy as np


def forward(x, W, b, v, c, t):
    h = np.tanh(x @ W + b)
    z = h @ v + c
    p = 1 / (1 + np.exp(-z))
    E = np.mean(np.logaddexp(0, z) - t * z)  # logaddexp(0, z) is log(1 + exp(z))
    return E, (x, W, h, v, p, t)


def backward(residuals, dE):
    x, W, h, v, p, t = residuals
    dx = ...
    dW = ...
    db = ...
    dv = ...
    dc = ...
    return dx, dW, db, dv, dc
