"""A whole training job as its own process: python -m experiments.benchmarks.mlp_process.

Arguments: the contender, and the task as JSON. It imports one library, loads MNIST, trains and
tests epoch by epoch, and prints one line of JSON once the accuracy is reached or the epochs have
passed, with the time of day then.

A thread reads the data while the main one imports and compiles, for all contenders alike. Our own
modules are imported inside functions, because the time of the whole process is measured.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def mnist(examples: int) -> tuple[Any, Any, Any, Any]:
    """MNIST's first training examples and all its test examples: x, target, test_x, test_target."""
    from experiments.common.data import load

    data = load("mnist", validation=0)
    train, test = data.train, data.test
    return train.x[:examples], train.target[:examples], test.x, test.target


def order_of(epoch: int, examples: int) -> Any:
    """The order of the examples in this epoch, int32: the same for all contenders."""
    import numpy as np

    return np.random.default_rng(epoch).permutation(examples).astype(np.int32)


def main() -> None:
    """Trains one contender to the accuracy and prints {"epochs", "accuracy", "end"}."""
    name, given = sys.argv[1:]
    task = json.loads(given)
    with ThreadPoolExecutor(1) as pool:
        data = pool.submit(mnist, task["examples"])

        from experiments.benchmarks.peers import CONTENDERS, Problem, he_normal

        problem = Problem(**task["problem"] | {"sizes": tuple(task["problem"]["sizes"])})
        trainer = CONTENDERS[name].make(problem)
        trainer.start(he_normal(problem.sizes))
        trainer.prepare(task["examples"], 10_000)
        trainer.load(*data.result())
    epoch, accuracy = 0, 0.0
    while accuracy < task["accuracy"] and epoch < task["epochs"]:
        trainer.epoch(order_of(epoch, task["examples"]))
        accuracy, epoch = trainer.accuracy(), epoch + 1
    print(json.dumps({"epochs": epoch, "accuracy": accuracy, "end": time.time()}))


if __name__ == "__main__":
    main()
