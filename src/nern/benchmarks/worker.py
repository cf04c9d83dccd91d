"""Measuring in processes of their own: what one switches on (allocator, precision, memory held) the others do not see."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from nern.errors import NernError, NernWarning

_PRELOAD = ["nern.benchmarks.steppers", "torch._dynamo"]  # the latter: what the first optimizer imports
_TOLD: set[str] = set()  # warnings, which every process of a benchmark would repeat
_subject: Any = None  # the object of this process


class Worker:
    """An object that lives in a process of its own.

    Args:
        factory: makes the object there; importable by name.
        arguments: of the factory, picklable.
        threads: of PyTorch there; None: its own choice.

    The process starts at once; `call` waits for it.
    """

    def __init__(self, factory: Callable[..., Any], *arguments: Any, threads: int | None = None) -> None:
        # a forked process cannot use a GPU that its parent has looked at
        forks = "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()
        context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            context.set_forkserver_preload(_PRELOAD)  # imported once for all of them
        self._pool = ProcessPoolExecutor(1, context)
        self._made: Future[Any] | None = self._pool.submit(_make, factory, arguments, threads)

    def ready(self) -> Worker:
        """Wait until the object is made; returns itself. Raises what making it raised."""
        made, self._made = self._made, None
        if made is not None:
            _answer(made)
        return self

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object. Raises the NernError that it raises; RuntimeError for any other failure."""
        self.ready()
        return _answer(self._pool.submit(_call, method, arguments))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def in_process(function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> Any:
    """What `function` gives in a process of its own."""
    with Worker(_Call, function, threads=threads) as worker:
        return worker.call("run", *arguments)


class _Call:
    """A function as an object with a method."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.run = function


def _answer(future: Future[Any]) -> Any:
    try:
        value, warned, failure = future.result()
    except BrokenProcessPool as error:
        raise NernError("a measuring process ended early (often for lack of memory)") from error
    for message in warned:
        if message not in _TOLD:
            _TOLD.add(message)
            warnings.warn(message, NernWarning, stacklevel=3)
    if failure is not None:
        raise NernError(value) if failure == "mistake" else RuntimeError(f"a measuring process failed:\n{value}")
    return value


def _make(factory: Callable[..., Any], arguments: tuple[Any, ...], threads: int | None) -> Any:
    def make() -> None:
        global _subject
        if threads is not None:
            torch.set_num_threads(threads)
        _subject = factory(*arguments)

    return _told(make)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return _told(lambda: getattr(_subject, method)(*arguments))


def _told(work: Callable[[], Any]) -> tuple[Any, list[str], str | None]:
    """What `work` gives, its warnings, and how it failed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", NernWarning)
        try:
            value, failure = work(), None
        except NernError as error:
            value, failure = str(error), "mistake"
        except Exception:
            value, failure = traceback.format_exc(), "failure"
    return value, [str(w.message) for w in caught], failure
