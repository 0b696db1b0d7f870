"""Ctrl-C, deferred until it is safe: after a compiled call, or when a file is complete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Defers Ctrl-C; yields a function that raises KeyboardInterrupt if it was pressed.

    The end of the block raises it too. Without this it may be lost (an exception raised inside a
    callback of XLA's is only printed) or leave a file half written. Nothing is deferred in a
    thread, or if the program handles the signal itself.

    >>> with deferred() as check_interrupt:
    ...     for step in range(3):
    ...         check_interrupt()
    """
    pressed: list[int] = []

    def check() -> None:
        if pressed:
            pressed.clear()
            raise KeyboardInterrupt

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield check
        return

    def remember(number: int, frame: Any) -> None:
        pressed.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
