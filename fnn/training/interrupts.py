"""Ctrl-C and SIGTERM, deferred until it is safe: after a compiled call, or a complete file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(SystemExit):
    """SIGTERM has come: the process is to end with the status that shells give it, 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def deferred(
    *, terminates: bool = False, agreed: Callable[[int], int] = int
) -> Iterator[Callable[[], None]]:
    """Defers Ctrl-C; yields a function that raises KeyboardInterrupt if it was pressed.

    The end of the block raises it too. Without this it may be lost (an exception raised inside a
    callback of XLA's is only printed) or leave a file half written. Nothing is deferred in a
    thread, or if the program handles the signal itself.

    Args:
      terminates: the same for SIGTERM, which then raises ``Terminated``.
      agreed: of what this process has received, 0, 1 or 2 for SIGTERM, what all act upon that
        train together.

    >>> with deferred() as check_interrupt:
    ...     for step in range(3):
    ...         check_interrupt()
    """
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if terminates:
        usual[signal.SIGTERM] = signal.SIG_DFL
    received: set[int] = set()

    def check() -> None:
        number = agreed(2 if signal.SIGTERM in received else bool(received))
        if number == 2:
            raise Terminated
        if number:
            received.clear()
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return

    def remember(number: int, frame: Any) -> None:
        received.add(number)

    own = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    for number in own:
        signal.signal(number, remember)
    try:
        yield check
    finally:
        for number in own:
            signal.signal(number, usual[number])
        if signal.SIGTERM in received:  # whatever else has ended the block
            raise Terminated
    check()
