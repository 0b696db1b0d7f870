"""Runs a benchmark: ``python -m experiments.benchmarks NAME``; ``--list`` shows them all."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.common.command import run_command

BENCHMARKS = {
    "mlp": "multilayer perceptrons on MNIST beside JAX, Equinox, Flax, PyTorch, scikit-learn",
    "conv": "blocks and steps of convolutional networks beside jax.grad, Flax and PyTorch",
    "sequences": "attention, recurrence and language models beside jax.grad and PyTorch",
    "communication": "what chips send each other in a step, beside jax.grad's",
    "accelerators": "blocks and steps on a GPU or TPU beside jax.vjp and jax.grad",
    "profile": "where the time of those steps goes: convolutions, products, copies, pools",
    "nonlinearities": "the cost of accurate nonlinearities beside jax.nn",
    "diagnostics": "the cost of watching every layer during training",
    "failures": "wrong gradients of public libraries: fnn's, who notices, and what fnn.check found",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark that the first argument names; returns the exit status."""
    return run_command(
        "experiments.benchmarks", BENCHMARKS, arguments, noun="benchmark", extra="bench"
    )


if __name__ == "__main__":
    sys.exit(main())
