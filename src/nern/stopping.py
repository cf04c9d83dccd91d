"""Ctrl-C, SIGTERM and SIGHUP: a training loop finishes its step and saves; elsewhere what is half made is removed. Imports
nothing that takes time."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))  # Windows lacks one


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP where no training loop runs. `signal_number` says which."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP raise `Stopped` in this process, once, so that what is half made is removed.
    Processes that it forks end by them, as they would otherwise."""
    owner = os.getpid()
    previous: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for ending in previous:
            signal.signal(ending, signal.SIG_IGN)
        leave_lost_terminal()
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) == signal.SIG_DFL:  # a program that calls us may have its own way
                previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_lost_terminal() -> None:
    """Write to nowhere from now on, if the terminal was closed: else every message would be an error."""
    if not hasattr(select, "poll"):
        return
    for output in (1, 2):
        poll = select.poll()
        poll.register(output, 0)
        if any(events & select.POLLHUP for _, events in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)
            os.close(nowhere)


class Interrupted(Exception):
    """A run was asked to stop and has saved its state. `signal_number` says by what."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is noted in `signal_number`; a second SIGINT interrupts at once.
    A SIGHUP that the process ignores (nohup) stays ignored."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be handled
            for number in (signal.SIGINT, *ENDING):
                ignored = number in ENDING and number != signal.SIGTERM and signal.getsignal(number) == signal.SIG_IGN
                if not ignored:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        leave_lost_terminal()
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = self.signal_number or number
