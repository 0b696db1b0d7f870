"""Ten typical wrong answers for each exercise: (body, words of what is told, words of the hint)."""

GATES = [
    (
        "dx = z\ndy = z\ndz = q",
        "dz is the same whatever df is",
        "Every gradient is what arrives from above times",
    ),  # forgets df
    (
        "dx = df\ndy = df\ndz = q * df",
        "dy lacks a factor",
        "df comes to the product first",
    ),  # stops at the sum
    (
        "dx = z * df\ndy = z * df\ndz = z * df",
        "dz is what dx should be",
        "At f = q z, ask how much f changes when z",
    ),
    (
        "dx = q * df\ndy = q * df\ndz = z * df",
        "dz is what dx should be",
        "At f = q z, ask how much f changes when z",
    ),  # swapped
    (
        "dx = -z * df\ndy = z * df\ndz = q * df",
        "dx has the wrong sign",
        "The numbers are right but for the sign. Make",
    ),
    (
        "dx = z * df\ndy = -z * df\ndz = q * df",
        "dy has the wrong sign",
        "The numbers are right but for the sign. Make",
    ),
    (
        "dx = z * df\ndy = z * df\ndz = df",
        "dz is wrong",
        "At f = q z, take q = 3. When z changes by 1, by",
    ),
    (
        "dx = z + df\ndy = z + df\ndz = q + df",
        "dz has a term that is not proportional to df",
        "What arrives from above enters a gradient once",
    ),
    (
        "dx = z * df\ndy = z * df\ndz = q * z * df",
        "dz has a factor too many",
        "At f = q z, ask how much f changes when z",
    ),
    (
        "dx = q * z * df\ndy = q * z * df\ndz = q * df",
        "dy is wrong",
        "First find dq, the gradient by q, at the",
    ),
]
FORK = [
    (
        "dx = y * b * df\ndy = x * b * df\ndz = a * df",
        "dx lacks a term, or has one too many",
        "x goes into two gates. Your answer has one path",
    ),  # one path
    (
        "dx = a * df\ndy = x * b * df\ndz = a * df",
        "dx is what dz should be",
        "x goes into two gates. Your answer has one path",
    ),  # the other path
    (
        "dx = (y * b) * (a * df)\ndy = x * b * df\ndz = a * df",
        "dx is wrong",
        "First find da and db, the gradients by a and by",
    ),  # product of paths
    (
        "dx = y * b * df - a * df\ndy = x * b * df\ndz = a * df",
        "dx has a term with the wrong sign",
        "Both paths carry a gradient back to x. When x",
    ),
    (
        "dx = (y * b * df + a * df) / 2\ndy = x * b * df\ndz = a * df",
        "dx is 0.5 times what it should be, everywhere",
        "When x changes, a and b change together, and f",
    ),  # mean
    (
        "dx = max(y * b * df, a * df)\ndy = x * b * df\ndz = a * df",
        "dx has a term that is not proportional to df",
        "Two gradients meet where x forks. Neither wins",
    ),
    (
        "dx = y * b + a\ndy = x * b\ndz = a",
        "dz is the same whatever df is",
        "Every gradient is what arrives from above times",
    ),
    (
        "dx = y * b + a * df\ndy = x * b * df\ndz = a * df",
        "dx has a term that is not proportional to df",
        "Two gradients meet where x forks. Neither wins",
    ),
    (
        "dx = y * a * df + b * df\ndy = x * a * df\ndz = b * df",
        "dz is wrong",
        "First find da and db at f = a b: how much does",
    ),  # factors swapped
    (
        "dx = y * b * df + a * df\ndy = b * df\ndz = a * df",
        "dy lacks a factor",
        "y goes through two products on its way to f",
    ),
]
SIGMOID = [
    (
        "dx = y * (1 - y)",
        "dx is the same whatever dy is",
        "Every gradient is what arrives from above times",
    ),
    ("dx = y * dy", "dx lacks a factor", "The slope of the sigmoid has two factors, both"),
    ("dx = (1 - y) * dy", "dx lacks a factor", "The slope of the sigmoid has two factors, both"),
    (
        "dx = -y * (1 - y) * dy",
        "dx has the wrong sign",
        "The sigmoid rises everywhere, so its slope is",
    ),
    ("dx = (1 - y**2) * dy", "dx is wrong", "Test your slope where you know it: in the"),  # tanh's
    ("dx = y * (1 + y) * dy", "dx is wrong", "Test your slope where you know it: in the"),
    (
        "s = 1 / (1 + np.exp(-y))\ndx = s * (1 - s) * dy",
        "dx is wrong",
        "Test your slope where you know it: in the",
    ),  # takes y for x
    (
        "dx = y * (y - 1) * dy",
        "dx has the wrong sign",
        "The sigmoid rises everywhere, so its slope is",
    ),
    (
        "dx = dy * dy * y * (1 - y)",
        "dx has a factor too many",
        "The slope of the sigmoid has two factors, both",
    ),
    (
        "dx = np.sum(y * (1 - y) * dy)",
        "dx has the shape (), and needs (3, 4): something is summed that should not be",
        "Every entry of y comes from one entry of x",
    ),
]
RELU = [
    (
        "dx = dy",
        "dx is wrong in 8 of 12 entries, where it should be 0",
        "Look at an entry where x is negative: y is 0",
    ),
    (
        "dx = (x > 0) * 1.0",
        "dx is the same whatever dy is",
        "Every gradient is what arrives from above times",
    ),
    (
        "dx = np.maximum(x, 0) * dy",
        "dx has a factor too many",
        "Where x is positive, y = x, whose slope is the",
    ),
    (
        "dx = np.maximum(dy, 0)",
        "dx is wrong in 7 of 12 entries",
        "What decides whether the gradient passes: the",
    ),
    ("dx = (x < 0) * dy", "dx is wrong", "Draw max(x, 0). Left of 0 it is flat, right of"),
    (
        "dx = np.sign(x) * dy",
        "dx is wrong in 8 of 12 entries, where it should be 0",
        "Look at an entry where x is negative: y is 0",
    ),
    (
        "dx = (x > 0) * np.maximum(dy, 0)",
        "dx is wrong in 2 of 12 entries, where it is 0 and should not be",
        "What decides whether the gradient passes: the",
    ),  # guided backpropagation
    (
        "dx = -1 * (x > 0) * dy",
        "dx has the wrong sign",
        "Where x is positive, y is x itself. When x",
    ),
    ("dx = x * dy", "dx is wrong", "Draw max(x, 0). Left of 0 it is flat, right of"),
    (
        "dx = (dy > 0) * dy",
        "dx is wrong in 7 of 12 entries",
        "What decides whether the gradient passes: the",
    ),
]
NEURON = [
    (
        "dx = w * error\ndw = x * error\ndb = error",
        "db is the same whatever dE is",
        "Every gradient is what arrives from above times",
    ),
    (
        "dz = error * dE\ndx = x * dz\ndw = w * dz\ndb = dz",
        "dw is what dx should be",
        "z = w[0] x[0] + w[1] x[1] + ... When w[0]",
    ),
    (
        "dz = -error * dE\ndx = w * dz\ndw = x * dz\ndb = dz",
        "db has the wrong sign",
        "If z is too large, z - t is positive, and",
    ),
    (
        "dz = 2 * error * dE\ndx = w * dz\ndw = x * dz\ndb = dz",
        "db is 2 times what it should be, everywhere",
        "First find dz, at E = (z - t)^2 / 2. The",
    ),
    (
        "dz = error / 2 * dE\ndx = w * dz\ndw = x * dz\ndb = dz",
        "db is 0.5 times what it should be, everywhere",
        "First find dz, at E = (z - t)^2 / 2. The",
    ),
    (
        "dz = error**2 / 2 * dE\ndx = w * dz\ndw = x * dz\ndb = dz",
        "db lacks a factor, or has one too many, that depends on the inputs",
        "First find dz, at E = (z - t)^2 / 2. The",
    ),
    (
        "dx = w * dE\ndw = x * dE\ndb = dE",
        "db lacks a factor, or has one too many, that depends on the inputs",
        "First find dz, at E = (z - t)^2 / 2. The",
    ),
    (
        "dz = error * dE\ndx = w * dz\ndw = x * dz\ndb = 1.0",
        "db is the same whatever dE is",
        "Every gradient is what arrives from above times",
    ),
    (
        "dz = error * dE\ndx = w * dz\ndw = np.dot(x, w) * dz\ndb = dz",
        "dw has the shape (), and needs (4,)",
        "E is one number, but each of the n weights has",
    ),
    (
        "dz = error * dE\ndx = w * dz\ndw = x * dz\ndb = 0",
        "db is 0 everywhere",
        "b is added to z, so E changes when b changes",
    ),
]
LINEAR = [
    (
        "dx = dy @ W.T\ndW = x.T @ dy\ndb = dy",
        "db has the shape (5, 2), and needs (2,): something is not summed",
        "All N examples use the same b, which is one",
    ),
    (
        "dx = dy @ W.T\ndW = x.T @ dy\ndb = dy.mean(axis=0)",
        "db is 0.2 times what it should be: a mean stands where a sum belongs",
        "Is there a mean in forward? Where a parameter",
    ),
    (
        "dx = dy @ W.T\ndW = x.T @ dy / len(x)\ndb = dy.sum(axis=0)",
        "dW is 0.2 times what it should be: a mean stands where a sum belongs",
        "Is there a mean in forward? Where a parameter",
    ),
    (
        "dx = dy @ W.T\ndW = dy.T @ x\ndb = dy.sum(axis=0)",
        "dW has the shape (2, 3), and needs (3, 2): it is transposed",
        "Write the shapes below the factors. A product",
    ),
    (
        "dx = W @ dy.T\ndW = x.T @ dy\ndb = dy.sum(axis=0)",
        "dx has the shape (3, 5), and needs (5, 3): it is transposed",
        "Write the shapes below the factors. A product",
    ),
    (
        "dx = dy @ W.T\ndW = x.T @ dy\ndb = np.ones(2)",
        "db is the same whatever dy is",
        "Every gradient is what arrives from above times",
    ),
    (
        "dx = dy @ W.T\ndW = x.T @ dy\ndb = dy.sum()",
        "db has the shape (), and needs (2,): something is summed that should not be",
        "b has an entry for each output, and so has db",
    ),
    (
        "dx = dy @ W.T\ndW = x.T @ np.ones_like(dy)\ndb = dy.sum(axis=0)",
        "dW is the same whatever dy is",
        "Every gradient is what arrives from above times",
    ),
    (
        "dx = dy @ W.T\ndW = np.outer(x[0], dy[0])\ndb = dy.sum(axis=0)",
        "dW is wrong",
        "W[i, j] multiplies x[n, i] on the way to y[n",
    ),
    (
        "dx = -dy @ W.T\ndW = -x.T @ dy\ndb = -dy.sum(axis=0)",
        "db has the wrong sign",
        "The numbers are right but for the sign. Make",
    ),
]
SOFTMAX = [
    (
        "dz = (p - np.eye(3)[t]) / len(t)",
        "dz is the same whatever dE is",
        "Every gradient is what arrives from above times",
    ),
    (
        "dz = (p - np.eye(3)[t]) * dE",
        "dz is 5 times what it should be: a sum stands where a mean belongs",
        "E is a mean over what, and of how many? Each",
    ),
    (
        "dz = (np.eye(3)[t] - p) / len(t) * dE",
        "dz has the wrong sign",
        "Gradient descent goes against dz. For the right",
    ),
    (
        "dz = p / len(t) * dE",
        "dz is wrong in 5 of 15 entries",
        "Add the same number to a whole row of z: p does",
    ),
    (
        "dz = -np.eye(3)[t] / len(t) * dE",
        "dz is wrong",
        "Add the same number to a whole row of z: p does",
    ),
    (
        "dz = -np.eye(3)[t] / p / len(t) * dE",
        "dz is wrong",
        "Add the same number to a whole row of z: p does",
    ),  # by p, not by z
    (
        "dz = p * (1 - p) / len(t) * dE",
        "dz is wrong",
        "Add the same number to a whole row of z: p does",
    ),
    (
        "dz = (p - np.eye(3)[t]) / p.size * dE",
        "dz is 0.333333 times what it should be: a mean stands where a sum belongs",
        "E is a mean over what, and of how many? Each",
    ),
    (
        "dz = (p - t[:, None]) / len(t) * dE",
        "dz is wrong in 9 of 15 entries",
        "Add the same number to a whole row of z: p does",
    ),  # the number of the class
    (
        "dz = (p - np.eye(3)[t]) / 4 * dE",
        "dz is 1.25 times what it should be, everywhere",
        "E is a mean over what, and of how many? Each",
    ),
]
_NETWORK = """
dz = (p - t) / len(t) * dE
dc = dz.sum()
dv = h.T @ dz
dh = np.outer(dz, v)
da = (1 - h**2) * dh
db = da.sum(axis=0)
dW = x.T @ da
dx = da @ W.T"""


def _network(line: str, wrong: str) -> str:
    assert line in _NETWORK
    return _NETWORK.replace(line, wrong)


NETWORK = [
    (
        _network("(p - t) / len(t) * dE", "(p - t) * dE"),
        "dc is 5 times what it should be: a sum stands where a mean belongs",
        "E is a mean over the examples. How large is the",
    ),
    (
        _network("(p - t) / len(t) * dE", "(p - t) / len(t)"),
        "dc is the same whatever dE is",
        "Every gradient is what arrives from above times",
    ),
    (
        _network("(p - t) / len(t) * dE", "(t - p) / len(t) * dE"),
        "dc has the wrong sign",
        "If p is larger than t, then z should fall",
    ),
    (
        _network("(p - t) / len(t) * dE", "(p - t) * p * (1 - p) / len(t) * dE"),
        "dc lacks a factor, or has one too many, that depends on the inputs",
        "First dz, the gradient by z. Through p it is a",
    ),
    (
        _network("dc = dz.sum()", "dc = dz"),
        "dc has the shape (5,), and needs (): something is not summed",
        "c is one number that all examples use. How do",
    ),
    (
        _network("dv = h.T @ dz", "dv = h.sum(axis=0) * dz.sum()"),
        "dv is wrong",
        "z[n] = sum over j of h[n, j] v[j]. So dv[j] has",
    ),
    (
        _network("da = (1 - h**2) * dh", "da = dh"),
        "db is wrong",
        "Between dh and b there is the tanh: what is its",
    ),
    (
        _network("da = (1 - h**2) * dh", "da = h * (1 - h) * dh"),
        "db is wrong",
        "Between dh and b there is the tanh: what is its",
    ),
    (
        _network("db = da.sum(axis=0)", "db = da.mean(axis=0)"),
        "db is 0.2 times what it should be: a mean stands where a sum belongs",
        "The mean is in E, and dz has it already. Do",
    ),
    (
        _network("dh = np.outer(dz, v)", "dh = np.outer(dz, np.ones(4))"),
        "db lacks a factor",
        "Between dh and b there is the tanh: what is its",
    ),
]
MAX_POOL = [
    (
        "dx = np.repeat(dy, 2, axis=1)",
        "dx is wrong in 12 of 24 entries, where it should be 0",
        "When the smaller number of a pair changes a",
    ),
    (
        "dx = np.repeat(dy, 2, axis=1) / 2",
        "dx is wrong",
        "Take one pair, (3, 5), with y = 5. When the 5",
    ),  # of the mean
    (
        "dx = x * np.repeat(dy, 2, axis=1)",
        "dx is wrong",
        "Take one pair, (3, 5), with y = 5. When the 5",
    ),
    (
        "dx = (x == np.repeat(y, 2, axis=1)) * 1.0",
        "dx is the same whatever dy is",
        "Every gradient is what arrives from above times",
    ),
    (
        "dx = np.repeat(dy, 2, axis=1) * (x < np.repeat(y, 2, axis=1))",
        "dx has the right numbers in wrong places",
        "Take one pair, (3, 5), with y = 5. When the 5",
    ),
    (
        "dx = -np.repeat(dy, 2, axis=1) * (x == np.repeat(y, 2, axis=1))",
        "dx has the wrong sign",
        "y is the larger number itself. When it grows by",
    ),
    (
        "dx = dy",
        "dx has the shape (3, 4), and needs (3, 8)",
        "x has two numbers for each of y, and dx has the",
    ),
    (
        "dx = np.zeros(x.shape)\ndx[:, ::2] = dy",
        "dx has the right numbers in wrong places",
        "Take one pair, (3, 5), with y = 5. When the 5",
    ),  # always the first
    (
        "dx = np.tile(dy, 2) * (x == np.repeat(y, 2, axis=1))",
        "dx is wrong in 9 of 24 entries",
        "Take one pair, (3, 5), with y = 5. When the 5",
    ),
    (
        "dx = np.repeat(y * dy, 2, axis=1) * (x == np.repeat(y, 2, axis=1))",
        "dx has a factor too many",
        "y is the larger number itself, unchanged. With",
    ),
]
_BN = """
db = dy.sum(axis=0)
dg = (u * dy).sum(axis=0)
du = g * dy
dx = (du - du.mean(axis=0) - u * (u * du).mean(axis=0)) / s"""


def _batch_norm(line: str, wrong: str) -> str:
    assert line in _BN
    return _BN.replace(line, wrong)


BATCH_NORM = [
    (
        _batch_norm("(du - du.mean(axis=0) - u * (u * du).mean(axis=0))", "du"),
        "dx is wrong",
        "Add the same number to a whole column of x: m",
    ),
    (
        _batch_norm(" - u * (u * du).mean(axis=0)", ""),
        "dx is wrong",
        "Stretch a column of x about its mean: s grows",
    ),
    (
        _batch_norm(" - du.mean(axis=0)", ""),
        "dx is wrong",
        "Add the same number to a whole column of x: m",
    ),
    (_batch_norm(") / s", ")"), "dx is wrong", "The two paths through m and s seem to be there"),
    (
        _batch_norm("du = g * dy", "du = dy"),
        "dx is wrong",
        "The two paths through m and s seem to be there",
    ),
    (
        _batch_norm("mean(axis=0)", "sum(axis=0)"),
        "dx is wrong",
        "Add the same number to a whole column of x: m",
    ),
    (
        _batch_norm("- u * (u * du)", "+ u * (u * du)"),
        "dx is wrong",
        "Stretch a column of x about its mean: s grows",
    ),
    (
        _batch_norm("db = dy.sum(axis=0)", "db = dy.mean(axis=0)"),
        "db is 0.2 times what it should be: a mean stands where a sum belongs",
        "All examples share g and b. How do their",
    ),
    (
        _batch_norm("dg = (u * dy).sum(axis=0)", "dg = dy.sum(axis=0)"),
        "dg is what db should be",
        "g multiplies u in every example. What is",
    ),
    (
        _batch_norm("mean(axis=0)", "mean(axis=1, keepdims=True)"),
        "dx is wrong",
        "Add the same number to a whole column of x: m",
    ),
]
_DW = "dw = np.correlate(x, dy)\n"
_DX = "dx = np.convolve(dy, w)\n"
CONVOLUTION = [
    (
        _DW + "dx = np.convolve(dy, w[::-1])",
        "dx would be right if something ran the other way",
        "x[2] goes into y[2] through w[0], into y[1]",
    ),
    (
        _DX + "dw = np.correlate(x, dy)[::-1]",
        "dw would be right if something ran the other way",
        "w[0] meets x[i] at y[i], and w[1] meets x[i +",
    ),
    (
        _DW + "dx = np.correlate(dy, w)",
        "dx has the shape (5,), and needs (9,)",
        "x is longer than y. Its first entry goes into",
    ),  # not full
    (_DX + "dw = x[:3] * dy.sum()", "dw is wrong", "w[k] multiplies x[i + k] on the way to y[i]"),
    (
        _DW + "dx = np.convolve(np.ones(len(dy)), w)",
        "dx is the same whatever dy is",
        "Every gradient is what arrives from above times",
    ),
    (
        _DX + "dw = np.correlate(x, np.ones(len(dy)))",
        "dw is the same whatever dy is",
        "Every gradient is what arrives from above times",
    ),
    (
        _DX + "dw = np.correlate(x, dy) / len(dy)",
        "dw is 0.142857 times what it should be: a mean stands where a sum belongs",
        "The same w[k] is used at every place i. The",
    ),
    (
        _DW + "dx = -np.convolve(dy, w)",
        "dx has the wrong sign",
        "The numbers are right but for the sign. Make",
    ),
    (
        _DW + "dx = np.roll(np.convolve(dy, w), 1)",
        "dx is shifted by 1: an index is off",
        "x[0] goes into y[0] alone. What has dx[0] to",
    ),
    (
        _DW + "dx = np.zeros(len(x))\ndx[: len(dy)] = w[0] * dy",
        "dx is wrong in 8 of 9 entries",
        "x[j] goes into every y[i] with j = i + k, each",
    ),
]
_ATTENTION = """
dp = dy @ v.T
dv = p.T @ dy
ds = p * (dp - np.sum(p * dp, axis=1, keepdims=True)) / np.sqrt(q.shape[1])
dq = ds @ k
dk = ds.T @ q"""


def _attention(line: str, wrong: str) -> str:
    assert line in _ATTENTION
    return _ATTENTION.replace(line, wrong)


ATTENTION = [
    (
        _attention(" / np.sqrt(q.shape[1])", ""),
        "dk is 1.73205 times what it should be, everywhere",
        "Between q k^T and the softmax the scores are",
    ),
    (
        _attention(" / np.sqrt(q.shape[1])", " / q.shape[1]"),
        "dk is 0.57735 times what it should be, everywhere",
        "Between q k^T and the softmax the scores are",
    ),
    (
        _attention("(dp - np.sum(p * dp, axis=1, keepdims=True))", "dp"),
        "dk is wrong",
        "Check ds, what comes out of the softmax: the",
    ),
    (
        _attention("p * (dp - np.sum(p * dp, axis=1, keepdims=True))", "p * (1 - p) * dp"),
        "dk is wrong",
        "Check ds, what comes out of the softmax: the",
    ),
    (_attention("axis=1", "axis=0"), "dk is wrong", "Check ds, what comes out of the softmax: the"),
    (
        _attention("p * (dp - np.sum(p * dp, axis=1, keepdims=True))", "dp"),
        "dk is wrong",
        "Check ds, what comes out of the softmax: the",
    ),
    (
        _attention("dv = p.T @ dy", "dv = v * dy.sum()"),
        "dv is wrong",
        "y = p v is a product of matrices, like x W in",
    ),
    (
        _attention("dv = p.T @ dy", "dv = p.T @ np.ones_like(dy)"),
        "dv is the same whatever dy is",
        "Every gradient is what arrives from above times",
    ),
    (
        _attention("dk = ds.T @ q", "dk = q.T @ ds"),
        "dk has the shape (3, 5), and needs (5, 3): it is transposed",
        "s = q k^T: each entry s[n, m] is a product of",
    ),
    (
        _attention("(dp - np", "(dp + np"),
        "dk is wrong",
        "Check ds, what comes out of the softmax: the",
    ),
]
WRONG = {
    "gates": GATES, "fork": FORK, "sigmoid": SIGMOID, "relu": RELU, "neuron": NEURON,
    "linear": LINEAR, "softmax": SOFTMAX, "network": NETWORK, "max_pool": MAX_POOL,
    "batch_norm": BATCH_NORM, "convolution": CONVOLUTION, "attention": ATTENTION,
}  # fmt: skip
