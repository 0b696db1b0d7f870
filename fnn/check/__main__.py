"""python -m fnn.check: checks a backward rule.

    python -m fnn.check package.module:factory --input 8,16 --arg features=32

fnn's own functions at every float, and its own blocks broken on purpose, are checked from a
clone of fnn: python -m experiments.selftest.

Exit status: 0 what was checked is right, 1 it is wrong, 2 it could not be checked, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fnn.check.rule import CheckError


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the rule that the first argument names."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        print("module:name --help lists the options.")
        return 0
    if ":" not in name:
        print(f"error: {name!r} is not a rule: package.module:name", file=sys.stderr)
        return 2
    try:
        import tyro

        from fnn.check import command

        options = tyro.cli(
            command.Settings, args=rest, prog=f"python -m fnn.check {name}",
            description=command.__doc__, config=(tyro.conf.FlagCreatePairsOff,),
        )  # fmt: skip
        return command.run(name, options)
    except CheckError as error:
        if os.environ.get("FNN_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "fnn":
            raise
        print(f"error: {error}; install it with: pip install 'fnn[check]'", file=sys.stderr)
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
