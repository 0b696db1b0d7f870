"""Run an experiment: ``python -m experiments NAME``, or ``--list`` for what there is."""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

# Name -> what it shows. The module of the same name has an ``Options`` dataclass, from which
# the command line is made, and ``main(options)``. Only the one that runs is imported.
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
    "googlenet": "a trained GoogLeNet names what is in photographs",
    "features": "features learned rather than designed",
    "whiteboard": "any network's values and gradients, drawn and stepped through",
    "lecture": "the lecture's figures as one illustrated page",
}

# Those whose module is elsewhere.
MODULES = {"googlenet": "experiments.googlenet.commands"}


def _listing() -> str:
    width = max(map(len, EXPERIMENTS))
    rows = [f"  {name:<{width}}  {shows}" for name, shows in EXPERIMENTS.items()]
    return "\n".join(
        ["python -m experiments NAME [--help]", "", *rows, "", "NAME --help lists its options."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the named experiment. Returns the exit status: 0, or 2 for bad input."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--list"]
    if name in ("--list", "-l", "--help", "-h"):
        print(_listing())
        return 0
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"did you mean {close[0]}" if close else "see --list"
        print(
            f"error: there is no experiment {name!r}; {hint}; there are: {', '.join(EXPERIMENTS)}",
            file=sys.stderr,
        )
        return 2
    options: Any = None
    try:
        import tyro

        module = importlib.import_module(MODULES.get(name, f"experiments.{name}"))
        options = tyro.cli(
            module.Options, args=rest, prog=f"python -m experiments {name}",
            description=module.__doc__, config=(tyro.conf.FlagCreatePairsOff,),
        )  # fmt: skip
        options.command = shlex.join(["python", "-m", "experiments", name, *rest])
        return module.main(options) or 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("fnn", "experiments"):
            raise
        return _refuse(f"{error}; install it with: pip install 'fnn[experiments]'")
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError) as error:
        # What fnn, the data, the options or XLA refuse. FNN_TRACEBACK=1 shows where.
        if os.environ.get("FNN_TRACEBACK"):
            raise
        return _refuse(str(error))
    except KeyboardInterrupt as error:
        out = getattr(options, "out", None)
        kept = f"; what was saved before stays in {out}" if out else ""
        print(str(error) or f"interrupted{kept}", file=sys.stderr)
        return 130


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
