"""Scaled dot-product attention: each query takes a mean of the values, weighted by the keys.

Forward   s = q k^T / sqrt(D)
          p[n, m] = exp(s[n, m]) / sum over j of exp(s[n, j])        (softmax of each row)
          y = p v
Shapes    q (N, D), k (M, D), v (M, C), s and p (N, M), y (N, C)
Given     q, k, v and p, which forward kept, and dy (N, C)
Asked     dq (N, D), dk (M, D), dv (M, C)

Two matrix products with a softmax between them: first dp and dv, then ds, then dq and dk.
"""

import numpy as np


def forward(q, k, v):
    s = q @ k.T / np.sqrt(q.shape[1])
    e = np.exp(s - s.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    y = p @ v
    return y, (q, k, v, p)


def backward(residuals, dy):
    q, k, v, p = residuals
    dq = ...
    dk = ...
    dv = ...
    return dq, dk, dv
