"""The twelve exercises, in the order of their ideas, with the numbers that they are checked at."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent / "exercises"


class Exercise(NamedTuple):
    """One file of the course.

    name: of its file. idea: what it teaches, in a few words. shapes: of forward's arguments, by
    name. classes: arguments that are labels, with the number of classes. first: numbers in place of
    the first that are drawn. by_number: forward takes single numbers; it is called once for each
    entry of the arrays. afterwards: what the learner may look at when it is done.
    """

    name: str
    idea: str
    shapes: Mapping[str, tuple[int, ...]]
    afterwards: str
    classes: Mapping[str, int] = {}
    first: tuple[float, ...] = ()
    by_number: bool = False

    @property
    def file(self) -> str:
        """The name of the learner's file, such as ``03_sigmoid.py``."""
        return f"{NAMES.index(self.name) + 1:02}_{self.name}.py"

    @property
    def blank(self) -> str:
        """The file as the learner gets it."""
        return (FOLDER / f"{self.name}.py").read_text(encoding="utf-8")

    @property
    def gradients(self) -> tuple[str, ...]:
        """The names of what backward returns: dx, dw, ..."""
        return tuple(f"d{name}" for name in self.shapes if name not in self.classes)

    def inputs(self) -> tuple[np.ndarray, ...]:
        """Forward's arguments: numbers of two digits, which can be typed into a calculator."""
        rng = np.random.default_rng(NAMES.index(self.name))
        arrays = []
        for position, (name, shape) in enumerate(self.shapes.items()):
            if name in self.classes:
                arrays.append(rng.permutation(np.arange(shape[0]) % self.classes[name]))
                continue
            array = np.round(rng.normal(size=shape), 2)
            if self.first:
                array[0] = self.first[position]
            arrays.append(array)
        return tuple(arrays)


@functools.cache
def forward_in_jax(name: str) -> Callable[..., Any]:
    """The y of the exercise's forward, with jax.numpy for NumPy, so that JAX differentiates it."""
    exercise = EXERCISES[name]
    source = exercise.blank.replace("import numpy as np", "import jax.numpy as np")
    names: dict[str, Any] = {}
    exec(compile(source, exercise.file, "exec"), names)
    return lambda *inputs: names["forward"](*inputs)[0]


def upstream_name(backward: Callable[..., Any]) -> str:
    """What backward calls the gradient that arrives: dy, df, dE."""
    names = list(inspect.signature(backward).parameters)
    return names[1] if len(names) > 1 else "dy"


_NUMBERS = {"x": (6,), "y": (6,), "z": (6,)}
EXERCISES = {
    e.name: e
    for e in (
        Exercise("gates", "upstream times local, gate by gate", _NUMBERS,
                 "python -m experiments circuit draws this circuit with all its gradients.",
                 first=(-2.0, 5.0, -4.0), by_number=True),
        Exercise("fork", "where a wire forks, gradients add", _NUMBERS,
                 'python -m experiments circuit "(x*y)*(x+z)" --at x=2 y=3 z=-1 draws this one.',
                 first=(2.0, 3.0, -1.0), by_number=True),
        Exercise("sigmoid", "a derivative written with the output", {"x": (3, 4)},
                 "This is fnn.logistic, in fnn/blocks/nonlinearities.py."),
        Exercise("relu", "a gate that is open or shut", {"x": (3, 4)},
                 "python -m experiments nonlinearities draws many, with their derivatives."),
        Exercise("neuron", "a weighted sum and half the squared error",
                 {"x": (4,), "w": (4,), "b": ()},
                 "python -m experiments neuron trains one on real data."),
        Exercise("linear", "a batch: shared weights, a sum over the examples",
                 {"x": (5, 3), "W": (3, 2), "b": (2,)},
                 "This is fnn.linear, in fnn/blocks/linear.py."),
        Exercise("softmax", "the loss of a classifier",
                 {"z": (5, 3), "t": (5,)},
                 "This is fnn.softmax_cross_entropy; python -m experiments digits trains with it.",
                 classes={"t": 3}),
        Exercise("network", "a whole network, layer by layer",
                 {"x": (5, 3), "W": (3, 4), "b": (4,), "v": (4,), "c": (), "t": (5,)},
                 "python -m experiments backprop_by_hand shows such a network factor by factor.",
                 classes={"t": 2}),
        Exercise("max_pool", "the gradient goes where the value came from", {"x": (3, 8)},
                 "This is fnn.max_pool in one dimension."),
        Exercise("batch_norm", "every entry depends on the mean",
                 {"x": (5, 3), "g": (3,), "b": (3,)},
                 "This is fnn.batch_norm, which also keeps the digits that rounding would take."),
        Exercise("convolution", "the same weights everywhere", {"x": (9,), "w": (3,)},
                 "This is fnn.conv in one dimension, without channels."),
        Exercise("attention", "a softmax between two matrix products",
                 {"q": (4, 3), "k": (5, 3), "v": (5, 2)},
                 "You have done by hand what trains a transformer."),
    )
}  # fmt: skip
NAMES = tuple(EXERCISES)
