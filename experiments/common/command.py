"""One command line for a table of modules: ``python -m PACKAGE NAME [OPTIONS]``."""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

# What bad options, data or files raise; anything else is a bug and keeps its traceback.
REFUSALS = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError)


@contextmanager
def _patient() -> Iterator[None]:
    """Ends in silence when the reader of the output has left (``| head``)."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # nothing is to be written any more, also when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(
    package: str,
    commands: Mapping[str, str],
    arguments: Sequence[str] | None = None,
    *,
    noun: str = "command",
    extra: str = "experiments",
    refusals: tuple[type[Exception], ...] = REFUSALS,
    finished: Callable[[str, Any], None] | None = None,
) -> int:
    """Imports the module that the first argument names, and runs it with the others as options.

    Args:
      package: what follows ``python -m``.
      commands: name -> what it shows. ``PACKAGE.NAME`` has a dataclass ``Options`` and
        ``main(options) -> int | None``; only the one that runs is imported.
      arguments: ``sys.argv[1:]`` by default; none, or ``--list``, prints the table.
      noun: what a command is called in messages.
      extra: the extra of fnn that installs what the modules import.
      refusals: exceptions printed as one line; with FNN_TRACEBACK=1 they keep their traceback.
      finished: called after a command, however it ended, with its name and its options.

    Returns:
      The exit status: ``main``'s, 2 for a refusal, 130 for Ctrl-C.
    """
    status = 0
    with _patient():
        status = _run(package, commands, arguments, noun, extra, refusals, finished)
    return status


def _run(
    package: str, commands: Mapping[str, str], arguments: Sequence[str] | None, noun: str,
    extra: str, refusals: tuple[type[Exception], ...],
    finished: Callable[[str, Any], None] | None,
) -> int:  # fmt: skip
    """As :func:`run_command`, where somebody reads what is printed."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--list"]
    if name in ("--list", "-l", "--help", "-h"):
        width = max(map(len, commands))
        rows = [f"  {name:<{width}}  {summary}" for name, summary in commands.items()]
        usage = f"python -m {package} NAME [--help]"
        print("\n".join([usage, "", *rows, "", "NAME --help lists its options."]))
        return 0
    if name not in commands:
        close = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {close[0]}" if close else "see --list"
        return _refuse(f"there is no {noun} {name!r}; {hint}; there are: {', '.join(commands)}")
    program = f"python -m {package} {name}"
    options: Any = None
    is_new = False
    try:
        import tyro

        module = importlib.import_module(f"{package}.{name}")
        if unknown := _no_command(name, rest, _subcommands(module.Options)):
            return _refuse(unknown)
        options = tyro.cli(
            module.Options, args=rest, prog=program,
            description=sys.modules[module.main.__module__].__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )  # fmt: skip
        out = getattr(options, "out", None)
        is_new = isinstance(out, Path) and not out.exists()
        options.command = shlex.join([*program.split(), *rest])
        try:
            return module.main(options) or 0
        finally:
            if finished is not None:
                finished(name, options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("fnn", "experiments"):
            raise
        here = " (after make demo: . .venv/bin/activate)" if Path(".venv").is_dir() else ""
        return _refuse(f"{error}; install it with: pip install -e '.[{extra}]'{here}")
    except BrokenPipeError:
        raise
    except refusals as error:
        if is_new:
            with suppress(OSError):  # where something is in it
                options.out.rmdir()
        if os.environ.get("FNN_TRACEBACK"):
            raise
        return _refuse(str(error) or type(error).__name__)
    except KeyboardInterrupt as error:
        out = getattr(options, "out", None)
        saved = f"; what was saved before stays in {out}" if out else ""
        print(str(error) or f"interrupted{saved}", file=sys.stderr)
        return 130


def _subcommands(options: Any) -> list[str]:
    """The names of the commands that a union of options stands for; none of one class."""
    parts = get_args(options) if get_origin(options) in (Union, UnionType) else ()
    return [part.__metadata__[0].name for part in parts]


def _no_command(name: str, rest: Sequence[str], known: Sequence[str]) -> str:
    """What is wrong with the first word, if it is meant as a command and is none."""
    if not known or not rest or rest[0].startswith("-") or rest[0] in known:
        return ""
    close = difflib.get_close_matches(rest[0], known, n=1)
    hint = f"did you mean {close[0]}; " if close else ""
    return f"{name} has no command {rest[0]!r}; {hint}there are: {', '.join(known)}"


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
