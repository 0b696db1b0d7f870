"""Several processes that train one network, each on its share of every batch.

``--processes 4`` starts them on this machine. To start them by hand, on several machines say, give
each ``--coordinator HOST:PORT`` of the first one, and its number: ``--process-id 0``, 1, ...
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

import fnn
from experiments.common.console import console
from experiments.common.options import at_least

GRACE = 20.0  # seconds that the others have to end when a process has failed
LAST_LINES = 20  # of what a process that failed has printed


@dataclass
class Processes:
    """Options of the experiments that several processes can train."""

    processes: int = 1
    """train in so many processes, each on its share of every batch; they start by themselves"""
    coordinator: str = ""
    """to start each process by hand: HOST:PORT of the first one"""
    process_id: int = 0
    """with --coordinator: the number of this process, from 0"""


def started(options: Any) -> int | None:
    """Joins the other processes, or starts all of them: then the exit status, once they end."""
    at_least(options, 1, "processes")
    if not 0 <= options.process_id < options.processes:
        raise ValueError(
            f"--process-id is {options.process_id}, needs a number from 0 to "
            f"{options.processes - 1}: give --processes, how many there are"
        )
    if options.coordinator:
        _join(options)
        return None
    if options.processes == 1:
        return None
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    own = [sys.executable, *shlex.split(options.command)[1:], "--coordinator", address]
    return _run([[*own, "--process-id", str(i)] for i in range(options.processes)])


def _join(options: Any) -> None:
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(
            f"--coordinator is {options.coordinator!r}, needs HOST:PORT, such as localhost:12345"
        )
    jax.distributed.initialize(options.coordinator, options.processes, options.process_id)
    console.quiet = options.process_id > 0


def _run(commands: Sequence[Sequence[str]]) -> int:
    """Runs processes until all have ended, and returns the first status that is not 0.

    What the first one prints is shown, and the last lines of another one that fails before it.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(i) for i in range(len(commands))]
        children = [_child(*pair) for pair in zip(commands, [None, *logs[1:]], strict=True)]

        def forward(number: int, frame: Any) -> None:
            for child in children:
                child.send_signal(number)

        before = [(n, signal.signal(n, forward)) for n in (signal.SIGINT, signal.SIGTERM)]
        try:
            first = _first_failure(children)
            _ended(children, GRACE)  # the others of one that has failed wait for it
        finally:
            for child in children:
                child.kill()
                child.wait()
            for number, handler in before:
                signal.signal(number, handler)
        if first and children[0].returncode <= 0:
            lines = logs[first].read_text().splitlines()[-LAST_LINES:]
            print(f"process {first} failed:", *lines, sep="\n", file=sys.stderr)
    status = 0 if first is None else children[first].returncode
    return status if status >= 0 else 128 - status  # of a signal, as shells have it


def _child(command: Sequence[str], log: Path | None) -> subprocess.Popen[bytes]:
    """Not of this process's group, so that Ctrl-C reaches it once: from here."""
    with open(log or os.devnull, "w") as file:
        out = None if log is None else file
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The number of the first process that fails; None where all end well."""
    while True:
        statuses = [child.poll() for child in children]
        if failed := [i for i, status in enumerate(statuses) if status]:
            return failed[0]
        if None not in statuses:
            return None
        time.sleep(0.05)


def _ended(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(0.05)


def sharding() -> Any:
    """Of a batch over the devices of all processes; None where there is one process."""
    return None if jax.process_count() == 1 else jax.make_mesh((jax.device_count(),), ("data",))


def in_one(change: Callable[[], Any]) -> None:
    """Changes something outside in the first process; the others wait until it is done."""
    if jax.process_index() == 0:
        change()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(getattr(change, "__name__", "change"))


def at_home(fitted: fnn.Fitted) -> fnn.Fitted:
    """With parameters on the host, with which each process can compute by itself."""
    if jax.process_count() == 1:
        return fitted
    params, last, state = jax.device_get((fitted.params, fitted.last, fitted.state))
    return fitted._replace(params=params, last=last, state=state)
