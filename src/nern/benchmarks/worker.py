"""Measuring in processes of their own: what one switches on (allocator, precision, memory held) the others do not see."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import torch

from nern.errors import NernError, NernWarning

_PRELOAD = ["nern.benchmarks.steppers", "torch._dynamo"]  # the latter: what the first optimizer imports
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
        self._pool = ProcessPoolExecutor(1, context, _begin, (threads,))
        self._made = self._pool.submit(_make, factory, *arguments)

    def ready(self) -> None:
        """Wait until the object is made. Raises what making it raised."""
        _answer(self._made)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object. Raises what it raises; NernError if the process ended."""
        self.ready()
        return _answer(self._pool.submit(_call, method, *arguments))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def in_process(function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> Any:
    """What `function` gives in a process of its own."""
    with Worker(partial, function, *arguments, threads=threads) as worker:
        return worker.call("__call__")


def _answer(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise NernError("a measuring process ended early (often for lack of memory)") from error


def _begin(threads: int | None) -> None:
    warnings.simplefilter("ignore", NernWarning)  # every process of a benchmark would repeat them
    if threads is not None:
        torch.set_num_threads(threads)


def _make(factory: Callable[..., Any], *arguments: Any) -> None:
    global _subject
    _subject = factory(*arguments)


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_subject, method)(*arguments)
