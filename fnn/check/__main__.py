"""python -m fnn.check: checks a backward rule.

    python -m fnn.check package.module:factory --input 8,16 --arg features=32

A clone of fnn also checks fnn's own functions at every float, and its own blocks broken on
purpose: python -m experiments.selftest.

Exit status: 0 the rule is right, 1 it is wrong, 2 it could not be checked, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fnn.check import command
from fnn.check.report import CheckError


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the rule that the first argument names."""
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        command.silence()
        return 0


def _main(arguments: Sequence[str] | None) -> int:
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

        options = tyro.cli(
            command.Settings,
            args=_together(rest),
            prog=f"python -m fnn.check {name}",
            description=command.__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        return command.run(name, options)
    except ModuleNotFoundError as error:
        message = f"{error}; install it with: pip install {error.name}"
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("FNN_TRACEBACK"):
            raise
        message = str(error)
        if not isinstance(error, CheckError):
            hint = "FNN_TRACEBACK=1 shows where"
            message = f"could not be checked: {type(error).__name__}: {error} ({hint})"
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


_SEVERAL = ("--input", "--arg", "--skip", "--strict")  # options that take several values


def _together(arguments: Sequence[str]) -> list[str]:
    """The arguments with all values of an option that is given more than once in one place."""
    values: dict[str, list[str]] = {}
    others: list[str] = []
    into = others
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in _SEVERAL:
            into = values.setdefault(name, [])
            into += [value] if equals else []
        elif argument.startswith("--"):
            into = others
            others.append(argument)
        else:
            into.append(argument)
    return [*others, *(word for name, some in values.items() for word in (name, *some))]


if __name__ == "__main__":
    sys.exit(main())
