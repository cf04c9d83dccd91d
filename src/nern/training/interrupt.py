"""Ctrl-C, SIGTERM and SIGHUP in a training loop: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from nern.stopping import ENDING, leave_lost_terminal


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
