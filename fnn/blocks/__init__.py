"""The blocks: one family a file, each forward with its backward below it.

The functions that make them are public in :mod:`fnn` (``fnn.conv``, ``fnn.relu``, ...).
"""
