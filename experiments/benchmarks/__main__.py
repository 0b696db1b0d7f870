"""python -m experiments.benchmarks [NAME] [OPTIONS]: lists or runs the benchmarks."""

from __future__ import annotations

import importlib
import sys

import tyro

from experiments.common.data import DataError

# To add one: a module beside this file with a dataclass `Settings` and `run(settings)`.
BENCHMARKS = {
    "mlp": "multilayer perceptrons on MNIST beside JAX, Equinox, Flax, PyTorch, scikit-learn",
    "conv": "blocks and steps of convolutional networks beside jax.grad, Flax and PyTorch",
    "profile": "where the time of those steps goes: convolutions, products, copies, pools",
    "nonlinearities": "what the accuracy of nonlinearities costs beside jax.nn",
    "diagnostics": "what looking at every layer costs a training run",
    "failures": "gradients that public issues report as wrong, fnn's, and which checker notices",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark that the first argument names; the rest are its options."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in BENCHMARKS:
        module = importlib.import_module(f"experiments.benchmarks.{name}")
        program = f"python -m experiments.benchmarks {name}"
        try:
            module.run(tyro.cli(module.Settings, prog=program, args=rest))
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    print("usage: python -m experiments.benchmarks NAME [OPTIONS]   (NAME --help lists them)\n")
    for known, summary in BENCHMARKS.items():
        print(f"  {known:16}{summary}")
    if name in ("-h", "--help"):
        return 0
    print(f"\nThere is no benchmark {name!r}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
