"""A fork: f = (x y) (x + z).

Forward   a = x y,   b = x + z,   f = a b         (x, y and z are numbers)
Given     x, y, a and b, which forward kept, and df
Asked     dx, dy, dz

The wire of x forks: it goes into two gates, so the result depends on x along two paths.
"""


def forward(x, y, z):
    a = x * y
    b = x + z
    f = a * b
    return f, (x, y, a, b)


def backward(residuals, df):
    x, y, a, b = residuals
    dx = ...
    dy = ...
    dz = ...
    return dx, dy, dz
