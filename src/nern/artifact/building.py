"""Building the network that a file names: what may be asked for, and how much that may cost.

A file's arguments may ask for a network of any size. They are checked first; then the network is built in a thread of its
own, which counts what is made and can be stopped.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from nern.errors import NernError
from nern.originals.build import builder_of

T = TypeVar("T")
GIVE_ONE = "build the network yourself and give it: network(MODULE)"
_LOADING = ("checkpoint_path", "cache_dir", "scriptable", "exportable", "file", "path", "url")
_NUMBER = re.compile(r"\d[\d_]*(\.\d+)?([eE][+-]?\d+)?")
_NO_WORD = re.compile(r"[/\\:]")  # of paths and addresses
_LARGEST = 2**16  # number in arguments, or the longest axis of a tensor in the file
_ENTRIES, _LETTERS = 2**12, 2**8  # values in arguments; of a text among them
_NUMBERS, _NUMBERS_EACH = 2**22, 8  # made while building, and for each number that the file holds
_CALLS, _CALLS_EACH = 2**12, 2**6  # of torch's operators, and for each tensor that the file holds
_SECONDS, _SECONDS_EACH, _SECONDS_NUMBER = 2.0, 0.01, 1e-7  # of CPU; for each tensor; for each number


def check_buildable(architecture: str, arguments: Mapping[str, Any], longest: int) -> None:
    """Raise NernError for anything but what a file may have built: networks that are registered here, and those of
    torchvision and timm, with plain arguments, whose numbers are no larger than the `longest` axis of a tensor in the file.
    Never a function of a module that it names, and nothing that would load another file."""
    source = architecture.rpartition(":")[0]
    if source not in ("", "torchvision", "timm"):
        raise NernError(f"the file names the function {architecture!r}, which is not called; {GIVE_ONE}")
    largest, entries = max(_LARGEST, longest), 0
    for key, argument in arguments.items():
        about = f"the file's argument {key[:80]!r} of {architecture}"
        if key.startswith(("pretrained", "weights")) or key in _LOADING:
            raise NernError(f"{about} is refused: it could load other files")
        for value in _values(argument):
            entries += 1
            if source and isinstance(value, dict):
                raise NernError(f"{about} is refused: it holds keys and values")
            if isinstance(value, str) and (len(value) > _LETTERS or _NO_WORD.search(value) or not value.isprintable()):
                raise NernError(f"{about} is refused: it holds {value[:40]!r}, which is no plain word")
            if not all(abs(number) <= largest for number in _numbers(value)):
                raise NernError(
                    f"{about} is refused: it holds {repr(value)[:40]}, but at most {largest:,} is taken; {GIVE_ONE}"
                )
    if entries > _ENTRIES:
        raise NernError(
            f"the file's arguments of {architecture} hold {entries:,} values; at most {_ENTRIES:,} are taken"
        )


def _values(value: Any) -> Iterator[Any]:
    """It, and all values and keys within it."""
    left = [value]
    while left:
        value = left.pop()
        yield value
        left += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []


def _numbers(value: Any) -> list[float]:
    """Of a value that holds no other ones; a text's are those that are written in it."""
    if isinstance(value, str):
        return [float(match.group().replace("_", "")) for match in _NUMBER.finditer(value)]
    return [float(value)] if isinstance(value, int | float) else []


def build_bounded(architecture: str, build: Callable[[], T], shapes: Sequence[Sequence[int]]) -> T:
    """What `build` makes, with a network of this name, at a cost that goes with the tensors that the file holds.

    Args:
        architecture: a name that `check_buildable` has passed.
        shapes: of the file's tensors.

    Raises:
        NernError: it costs more; or what `build` raises, of any type.
    """
    builder_of(architecture)  # which may have to import a library: that is not counted
    numbers, tensors = sum(math.prod(shape) for shape in shapes), len(shapes)
    allowance = Allowance(_NUMBERS + _NUMBERS_EACH * numbers, _CALLS + _CALLS_EACH * tensors)

    def within() -> T:
        with allowance:
            return build()

    try:
        return _stopped_after(_SECONDS + _SECONDS_EACH * tensors + _SECONDS_NUMBER * numbers, within)
    except _FarTooMuchError as error:
        raise NernError(f"the file's arguments of {architecture} ask for a far larger network than it holds") from error
    except NernError:
        raise
    except Exception as error:  # whatever an architecture makes of arguments that are none of its own
        raise NernError(
            f"{architecture} cannot be built with the file's arguments: {' '.join(str(error).split())[:400]}"
        ) from error


class _FarTooMuchError(BaseException):
    """No `except Exception` of an architecture takes it."""


class Allowance(TorchDispatchMode):
    """Within it, torch's operators make at most so many numbers, all together, and are called at most so many times.

    Raises:
        _FarTooMuchError: (within) more are asked for; before any are made.
    """

    def __init__(self, numbers: int, calls: int) -> None:
        super().__init__()
        self.numbers, self.calls = numbers, calls

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch need not import its compiler, which takes a second, to keep it away from this."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts, then calls."""
        kwargs, schema = kwargs or {}, func._schema
        self.calls -= 1
        if not schema.is_mutable and all(value.alias_info is None for value in schema.returns):
            self.numbers -= _made(func, args, kwargs)
        if min(self.numbers, self.calls) < 0:
            raise _FarTooMuchError
        return func(*args, **kwargs)


def _made(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Numbers that an operator is going to make, found by tensors that have shapes only."""
    if torch.Tag.pointwise in func.tags:
        return math.prod(torch.broadcast_shapes(*[a.shape for a in tree_iter((args, kwargs)) if isinstance(a, Tensor)]))

    def shape_only(t: Tensor) -> Tensor:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")

    device = {"device": torch.device("meta")} if any(a.name == "device" for a in func._schema.arguments) else {}
    try:
        args, kwargs = tree_map_only(Tensor, shape_only, (args, kwargs))
        return sum(value.numel() for value in tree_iter(func(*args, **kwargs | device)) if isinstance(value, Tensor))
    except Exception:  # the values themselves decide, as of `nonzero`; or the call itself is wrong
        return 0


def _stopped_after(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread of its own. Raises _FarTooMuchError after so many seconds of its CPU."""
    done: Future[T] = Future()
    clock: Future[Callable[[], float]] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        with contextlib.suppress(_FarTooMuchError):  # a second one, while the first is told of
            try:
                clock.set_result(_clock())
                done.set_result(context.run(work))
            except BaseException as error:
                done.set_exception(error)

    thread = threading.Thread(target=run, name="nern builds a network", daemon=True)
    thread.start()
    try:
        now = clock.result()
        end = now() + seconds
        while not done.done() and now() < end:
            wait([done], 0.05)
    finally:  # it takes too long, or the caller is interrupted
        while thread.is_alive() and not done.done():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_FarTooMuchError)
            )
            wait([done], 0.05)
    thread.join()
    if not done.done():
        raise _FarTooMuchError
    return done.result()


def _clock() -> Callable[[], float]:
    """Tells the seconds of CPU of the thread that calls this; where the system cannot, those of the day."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    number = time.pthread_getcpuclockid(threading.get_ident())

    def now() -> float:
        try:
            return time.clock_gettime(number)
        except OSError:  # the thread has ended
            return 0.0

    return now
