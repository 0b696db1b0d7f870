"""python -m experiments.selftest: fnn's functions at every float, its blocks broken on purpose.

    python -m experiments.selftest mutants
    python -m experiments.selftest exhaustive tanh --dtype float32

Exit status: 0 what was checked is right, 1 it is wrong, 2 it could not be checked, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from fnn.check.rule import CheckError

COMMANDS = {
    "mutants": "breaks every block's backward on purpose and shows what catches it",
    "exhaustive": "value and derivative of a function at every float of a dtype",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        for command, summary in COMMANDS.items():
            print(f"  {command:<12}{summary}")
        print("\nCOMMAND --help lists the options.")
        return 0
    if name not in COMMANDS:
        print(f"error: {name!r} is not a command: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        import tyro

        module = importlib.import_module(f"experiments.selftest.{name}")
        options = tyro.cli(
            module.Settings, args=rest, prog=f"python -m experiments.selftest {name}",
            description=module.__doc__, config=(tyro.conf.FlagCreatePairsOff,),
        )  # fmt: skip
        status: int = module.run(options)
        return status
    except CheckError as error:
        if os.environ.get("FNN_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "fnn":
            raise
        print(f"error: {error}; install it with: pip install -e '.[test]'", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("FNN_TRACEBACK"):
            raise
        print(
            f"error: could not be checked: {type(error).__name__}: {error} (FNN_TRACEBACK=1 shows "
            "where)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
