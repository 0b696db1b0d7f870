"""Runs an experiment: ``python -m experiments NAME``; ``--list`` shows them all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from experiments.common.command import run_command

EXPERIMENTS = {
    "circuit": "f = (x + y) z: forward, then backward one gate at a time",
    "neuron": "one neuron is logistic regression",
    "four_neurons": "a 1-layer network with 4 neurons, and what a hidden layer adds",
    "backprop_by_hand": "the chain rule on a 1-hidden-layer network, factor by factor",
    "regression": "squared error: predicting a number",
    "digits": "a multi-class network learns to read handwritten digits",
    "deep": "50 layers: where gradients vanish, and what residual connections do",
    "nonlinearities": "every nonlinearity and its derivative, drawn",
    "mnist": "the standard benchmark: MNIST and Fashion-MNIST",
    "language": "a transformer learns to write like Shakespeare",
    "recurrent": "why gates: gradients back through time in rnn, gru and lstm",
    "names": "the smallest GPT, 4192 parameters, makes up names",
    "googlenet": "a trained GoogLeNet names what is in photographs",
    "features": "features learned rather than designed",
    "course": "a course in backpropagation: twelve files with a backward left blank",
    "whiteboard": "any network's values and gradients, drawn and stepped through",
    "landscape": "the loss as a landscape: saddle points, and minima that are about the same",
    "lecture": "the lecture's figures as one illustrated page",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment that the first argument names; returns the exit status."""
    return run_command(
        "experiments", EXPERIMENTS, arguments, noun="experiment", finished=_list_on_the_index
    )


def _list_on_the_index(name: str, options: Any) -> None:
    if getattr(options, "process_id", 0):
        return
    from experiments.common.runs import record  # it imports matplotlib, which --list does not need

    record(name, EXPERIMENTS[name], options)


if __name__ == "__main__":
    sys.exit(main())
