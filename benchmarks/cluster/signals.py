"""What must be undone is undone when a process is told to end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def leave_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, instead of ending the process on the spot.

    A handler that is already there stays; outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off SIGINT, SIGTERM and SIGHUP until the block is done: a teardown cut short leaves things behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late: list[int] = []
    # a mask would not do: another thread could still take the signal, and Python runs its handler in this one
    handlers = {
        number: signal.signal(number, lambda number, frame: late.append(number)) for number in (signal.SIGINT, *ENDING)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in late:
            signal.raise_signal(number)
