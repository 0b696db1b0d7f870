"""Prints XLA's flags for compiling fast, for the environment of a whole test run."""

from fnn.compiling import quick

if __name__ == "__main__":
    print(*(f"--{name}={str(value).lower()}" for name, value in quick().items()))
