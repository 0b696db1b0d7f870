"""fnn's functions at every float, its blocks broken on purpose: ``python -m experiments.selftest``.

    python -m experiments.selftest mutants
    python -m experiments.selftest exhaustive tanh --dtype float32

Exit status: 0 what was checked is right, 1 it is wrong, 2 it could not be checked, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.common.command import run_command

COMMANDS = {
    "mutants": "breaks every block's backward on purpose and shows what catches it",
    "exhaustive": "value and derivative of a function at every float of a dtype",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns the exit status."""
    return run_command(
        "experiments.selftest", COMMANDS, arguments, extra="test", refusals=(Exception,)
    )


if __name__ == "__main__":
    sys.exit(main())
