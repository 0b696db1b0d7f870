"""The options that every training experiment takes, checked before anything else runs."""

from __future__ import annotations

import inspect
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

import fnn


@dataclass
class Training:
    """Options shared by the experiments that train; each sets its own defaults."""

    seed: int = 0
    """seeds the data split, the initial weights, the shuffling and dropout"""
    epochs: int = 10
    """passes over the training data, at most"""
    batch_size: int = 32
    """examples per step"""
    optimizer: str = "sgd"
    """sgd (fnn's own, with momentum), or any Optax optimiser by name: adam, adamw, lion, ..."""
    learning_rate: float = 0.1
    """step size"""
    momentum: float = 0.9
    """of sgd; other optimisers have their own"""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """of the computation; parameters are float32 at least"""
    out: Path = Path("results")
    """folder for history.csv, the parameters and the pictures"""

    def prepare(self) -> None:
        """Refuses what cannot work, and makes ``out``, before any data is read."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}, needs at least 1"
                )
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate is {self.learning_rate}, needs a number above 0")
        if self.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        self.make_optimizer()
        writable(self.out)

    def make_optimizer(self) -> Any:
        """The optimiser named on the command line, with its learning rate."""
        if self.optimizer == "sgd":
            return fnn.sgd(self.learning_rate, self.momentum)
        import optax

        factory = getattr(optax, self.optimizer, None)
        takes_rate = callable(factory) and "learning_rate" in inspect.signature(factory).parameters
        if not takes_rate:
            raise ValueError(
                f"--optimizer {self.optimizer!r} is not one; use sgd or an Optax optimiser that "
                f"takes a learning rate, such as {', '.join(_optax_names(optax)[:12])}, ..."
            )
        return factory(self.learning_rate)  # type: ignore[misc]

    @property
    def jax_dtype(self) -> Any:
        return jnp.dtype(self.dtype)


def _optax_names(optax: Any) -> list[str]:
    names = []
    for name, value in vars(optax).items():
        if inspect.isfunction(value) and not name.startswith(("_", "inject")):
            parameters = list(inspect.signature(value).parameters)
            if parameters[:1] == ["learning_rate"]:
                names.append(name)
    return sorted(names)


def writable(folder: Path) -> Path:
    """Makes the folder, and refuses one that cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"--out {folder} cannot be written to ({error.strerror}); name a folder that can"
        ) from error
    return folder
