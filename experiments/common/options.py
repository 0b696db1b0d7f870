"""The options of every training experiment, checked before anything else runs."""

from __future__ import annotations

import difflib
import inspect
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fnn

CHECKPOINT = "checkpoint"  # the folder in --out from which --resume goes on


@dataclass
class Training:
    """Options of the experiments that train; each sets its own defaults."""

    seed: int = 0
    """seeds the data split, the initial weights, the shuffling and dropout"""
    epochs: int = 10
    """passes over the training data, at most"""
    batch_size: int = 32
    """examples per step"""
    optimizer: str = "sgd"
    """sgd (fnn's own, with momentum), or any Optax optimiser by name: adam, adamw, lion, ..."""
    learning_rate: float = 0.1
    """step size of the optimiser"""
    momentum: float = 0.9
    """momentum of sgd; other optimisers have their own"""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """dtype of the computation; parameters are float32 at least"""
    out: Path = Path("results")
    """folder for report.html, history.csv, the parameters and figures"""
    diagnostics: bool = False
    """watch every layer during training, and report what is wrong, if anything"""
    resume: bool = False
    """go on where an earlier run in --out was stopped; give its other options again"""
    command: Annotated[str, tyro.conf.Suppress] = ""

    def prepare(self) -> None:
        """Refuses options that cannot work and makes ``out``, before any data is read."""
        seeded(self)
        at_least(self, 1, "epochs", "batch_size", "hidden", "width")
        positive_rate(self)
        fractions(self, "dropout", "momentum")
        if self.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        self.make_optimizer()
        writable(self.out)
        resumable(self)

    def make_optimizer(self) -> Any:
        """The optimiser named on the command line, with its learning rate."""
        if self.optimizer == "sgd":
            return fnn.sgd(self.learning_rate, self.momentum)
        import optax

        names = _optax_names(optax)
        if self.optimizer not in names:
            close = difflib.get_close_matches(self.optimizer.strip(), ["sgd", *names], n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: sgd, {', '.join(names)}"
            raise ValueError(
                f"--optimizer {self.optimizer!r} is not one; needs sgd or an Optax optimiser that "
                f"needs a learning rate alone; {hint}"
            )
        return getattr(optax, self.optimizer)(self.learning_rate)

    @property
    def jax_dtype(self) -> Any:
        return jnp.dtype(self.dtype)


def seeded(options: Any) -> None:
    """Refuses a seed that NumPy's generators do not take."""
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed is {options.seed}, needs a whole number from 0 to {2**32 - 1}")


def at_least(options: Any, least: int, *names: str) -> None:
    """Refuses options that are too small; those that ``options`` lacks are ignored."""
    for name in names:
        for value in np.atleast_1d(getattr(options, name, least)):
            if value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}, needs at least {least}")


def positive_rate(options: Any) -> None:
    """Refuses a learning rate that is not a number above 0."""
    if not 0 < options.learning_rate < float("inf"):
        raise ValueError(f"--learning-rate is {options.learning_rate}, needs a number above 0")


def fractions(options: Any, *names: str) -> None:
    """Refuses options outside 0 <= option < 1; those that ``options`` lacks are ignored."""
    for name in names:
        value = getattr(options, name, 0.0)
        if not 0 <= value < 1:
            raise ValueError(f"--{name} is {value}, needs 0 <= {name} < 1")


def resumable(options: Any) -> None:
    """Refuses --resume where no run has left a checkpoint, of one of its networks at least."""
    if options.resume and not [*options.out.glob(CHECKPOINT), *options.out.glob(f"*/{CHECKPOINT}")]:
        raise ValueError(
            f"--resume: {options.out} holds no checkpoint to go on from; name the folder of that "
            "run with --out, or leave out --resume"
        )


def _optax_names(optax: Any) -> list[str]:
    """The names of Optax's optimisers that need a learning rate alone."""
    names = []
    for name, value in vars(optax).items():
        if inspect.isfunction(value) and not name.startswith(("_", "inject", "scale")):
            parameters = list(inspect.signature(value).parameters.values())
            takes_rate = bool(parameters) and parameters[0].name == "learning_rate"
            if takes_rate and all(p.default is not p.empty for p in parameters[1:] if p.kind < 2):
                names.append(name)
    return sorted(names)


def writable(folder: Path) -> Path:
    """Makes the folder; refuses one that cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"--out {folder} cannot be written to ({error.strerror}); name a folder that can"
        ) from error
    return folder
