"""A function of several items, run for all of them in turns: each comes as far as the others before any goes on.

Every item has a thread of its own, of which one at a time runs. What an item holds while it waits is what its function's
frames hold: of a network in the middle of a batch, the activations that are still needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any


class Enough(Exception):
    """Raised by the function of an item that need not go on."""


class _Stopped(Exception):
    """Another item failed."""


class Turns:
    """Threads that take turns.

    Args:
        function: item -> result; calls `meet`.
        items: at least one.

    Attributes:
        running: number of the item whose turn it is.
    """

    running = 0

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._function, self._items = function, items
        self._turns = [threading.Semaphore(0) for _ in items]
        self._ended = [False] * len(items)
        self._met, self._done = [0] * len(items), 0  # meetings of each item, and meetings whose `then` was called
        self._error: BaseException | None = None
        self._results: list[Any] = [None] * len(items)

    def run(self) -> list[Any]:
        """Results of all items; None of those that had `Enough`. Raises what the function of one raises."""
        threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(len(self._items))]
        for thread in threads:
            thread.start()
        self._turns[0].release()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # an interrupt
            self._error = error
            raise
        if self._error is not None:
            raise self._error
        return self._results

    def meet(self, then: Callable[[], None]) -> None:
        """Wait until all items are here; then the first one that goes on calls `then`."""
        number = self.running
        self._pass_on(number)
        self._wait(number)
        self._met[number] += 1
        if self._met[number] > self._done:
            self._done += 1
            then()

    def _run(self, number: int) -> None:
        try:
            self._wait(number)
            self._results[number] = self._function(self._items[number])
        except (Enough, _Stopped):
            pass
        except BaseException as error:
            self._error = self._error or error
        self._ended[number] = True
        self._pass_on(number)

    def _wait(self, number: int) -> None:
        self._turns[number].acquire()
        if self._error is not None:
            raise _Stopped
        self.running = number

    def _pass_on(self, number: int) -> None:
        order = [*range(number + 1, len(self._items)), *range(number + 1)]
        following = next((n for n in order if not self._ended[n]), None)
        if following is not None:
            self._turns[following].release()
