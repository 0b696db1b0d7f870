"""Answers to the course: a right one for each exercise, and ten typical wrong ones.

A body stands in place of the lines of backward that are blank. A wrong one comes with words of
what the learner is told, and of the hint.
"""

from __future__ import annotations

from experiments.course.exercise import EXERCISES


def filled(exercise: str, body: str) -> str:
    """The exercise's file with its blank lines replaced."""
    lines = EXERCISES[exercise].blank.splitlines()
    blank = [number for number, line in enumerate(lines) if line.endswith(" = ...")]
    new = [f"    {line}" for line in body.strip().splitlines()]
    return "\n".join([*lines[: blank[0]], *new, *lines[blank[-1] + 1 :], ""])


RIGHT = {
    "gates": "dx = z * df\ndy = z * df\ndz = q * df",
    "fork": "da = b * df\ndb = a * df\ndx = y * da + db\ndy = x * da\ndz = db",
    "sigmoid": "dx = y * (1 - y) * dy",
    "relu": "dx = (x > 0) * dy",
    "neuron": "dz = error * dE\ndx = w * dz\ndw = x * dz\ndb = dz",
    "linear": "dx = dy @ W.T\ndW = x.T @ dy\ndb = dy.sum(axis=0)",
    "softmax": """
one_hot = np.eye(p.shape[1])[t]
dz = (p - one_hot) / len(t) * dE""",
    "network": """
dz = (p - t) / len(t) * dE
dc = dz.sum()
dv = h.T @ dz
dh = np.outer(dz, v)
da = (1 - h**2) * dh
db = da.sum(axis=0)
dW = x.T @ da
dx = da @ W.T""",
    "max_pool": "dx = np.repeat(dy, 2, axis=1) * (x == np.repeat(y, 2, axis=1))",
    "batch_norm": """
db = dy.sum(axis=0)
dg = (u * dy).sum(axis=0)
du = g * dy
dx = (du - du.mean(axis=0) - u * (u * du).mean(axis=0)) / s""",
    "convolution": """
dx = np.zeros(len(x))
dw = np.zeros(len(w))
for k in range(len(w)):
    dx[k : k + len(dy)] += w[k] * dy
    dw[k] = np.sum(x[k : k + len(dy)] * dy)""",
    "attention": """
dp = dy @ v.T
dv = p.T @ dy
ds = p * (dp - np.sum(p * dp, axis=1, keepdims=True)) / np.sqrt(q.shape[1])
dq = ds @ k
dk = ds.T @ q""",
}
