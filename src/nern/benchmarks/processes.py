"""Measuring in processes of their own: what one switches on (allocator, precision, memory held) the others do not see."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from nern.errors import NernError, NernWarning

_PRELOAD = ["nern.benchmarks.steppers", "torch._dynamo"]  # the latter: what the first optimizer imports

_TOLD: set[str] = set()  # warnings, which every process of a benchmark would repeat


class Worker:
    """An object that lives in a process of its own.

    Args:
        factory: makes the object there; importable by name.
        arguments: of the factory, picklable.
        threads: of PyTorch there; None: its own choice.

    The process starts at once; `call` waits for it.
    """

    def __init__(self, factory: Callable[..., Any], *arguments: Any, threads: int | None = None) -> None:
        context: Any = multiprocessing.get_context(_start_method())
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(_PRELOAD)  # imported once for all of them
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, arguments, threads))
        self._process.start()
        theirs.close()
        self._ready = False

    def ready(self) -> Worker:
        """Wait until the object is made; returns itself. Raises what making it raised."""
        if not self._ready:
            self._ready = True
            self._answer()
        return self

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object. Raises the NernError that it raises; RuntimeError for any other failure."""
        self.ready()
        self._pipe.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value, warned = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise NernError(
                f"a measuring process ended early (exit status {self._process.exitcode}; -9 is often a lack of memory)"
            ) from None
        for message in warned:
            if message not in _TOLD:
                _TOLD.add(message)
                warnings.warn(message, NernWarning, stacklevel=2)
        if kind == "mistake":
            raise NernError(value)
        if kind == "failure":
            raise RuntimeError(f"a measuring process failed:\n{value}")
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_process(function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> Any:
    """What `function` gives in a process of its own."""
    with Worker(_Call, function, threads=threads) as worker:
        return worker.call("run", *arguments)


class _Call:
    """A function as an object with a method."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.run = function


def _start_method() -> str:
    # a forked process cannot use a GPU that its parent has looked at
    forks = "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()
    return "forkserver" if forks else "spawn"


def _serve(pipe: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...], threads: int | None) -> None:
    """Make the object, then answer calls until the other end closes."""
    if threads is not None:
        torch.set_num_threads(threads)
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        subject = _send(pipe, lambda: factory(*arguments), answer=False)
        while True:
            method, given = pipe.recv()
            _send(pipe, lambda: getattr(subject, method)(*given))  # noqa: B023  (called at once)


def _send(pipe: Connection, call: Callable[[], Any], answer: bool = True) -> Any:
    """Send what `call` gives, or that it is done, or how it failed; returns it."""
    value = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", NernWarning)
        try:
            value = call()
            kind, content = "value", value if answer else None
        except NernError as error:
            kind, content = "mistake", str(error)
        except Exception:
            kind, content = "failure", traceback.format_exc()
    pipe.send((kind, content, [str(w.message) for w in caught]))
    return value
