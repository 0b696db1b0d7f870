"""Two gates: f = (x + y) z.

Forward   q = x + y,   f = q z            (x, y and z are numbers)
Given     q and z, which forward kept, and df
Asked     dx, dy, dz

A name with a d before it is the gradient of the final result by that name: how much the result
changes for a small change of it. df has arrived from above. Go back one gate at a time: what
leaves a gate is what arrives at it, times the local derivative of the gate. Write your answer in
place of each ... in backward; add lines as you need them.
"""


def forward(x, y, z):
    q = x + y
    f = q * z
    return f, (q, z)


def backward(residuals, df):
    q, z = residuals
    dx = ...
    dy = ...
    dz = ...
    return dx, dy, dz
