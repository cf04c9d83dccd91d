"""The error a user is meant to read: what was given, what is allowed, how to mend it."""

from __future__ import annotations

import difflib
import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

ALIKE = 0.45  # names less alike than this are not suggested


def printable(text: str) -> str:
    """Text as it may be shown: names of files, classes and layers are other people's, and may hold codes that move a cursor.
    Control codes, direction marks and what is no Unicode are written as escapes; line breaks stay.

    >>> printable("a" + chr(27) + "[31m.png")
    'a\\\\x1b[31m.png'
    """
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if _shown(c) else c.encode("unicode_escape").decode() for c in text)


def _shown(c: str) -> bool:
    return c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"


class NernError(ValueError):
    """A mistake in what was given (config, file, network, data). The command line prints it without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())


class NernWarning(UserWarning):
    """Something a user should know that does not stop the work."""

    def __str__(self) -> str:
        return printable(super().__str__())


class NonFiniteLossError(NernError):
    """A loss term or a gradient became NaN or infinite; the message names the step and the term."""


class ResourceError(NernError):
    """The system refused: the disk is full, memory or open files ran out, a folder is gone or may not be written."""


# What other libraries say in place of an error number.
_TEXTS = {
    "no space left": errno.ENOSPC,
    "too many open files": errno.EMFILE,
    "received 0 items of ancdata": errno.EMFILE,  # PyTorch's data-loader workers
    "allocate memory": errno.ENOMEM,
    "enough memory": errno.ENOMEM,
    "out of memory": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
    "start new thread": errno.EAGAIN,
}
_HINTS = {
    errno.ENOSPC: "Free some space, or write to another disk",
    errno.EDQUOT: "Free some space, or write to another disk",
    errno.EFBIG: "The system limits the size of a file (ulimit -f)",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or lower num_workers",
    errno.ENFILE: "Close other programs, or lower num_workers",
    errno.EACCES: "Choose another folder, or change its permissions",
    errno.EPERM: "Choose another folder, or change its permissions",
    errno.EROFS: "Choose another folder",
    errno.EAGAIN: "Raise the limit of processes (ulimit -u), or lower num_workers",
    errno.ENOMEM: "Take smaller batches (batch_size, nern.weights_batch_size), a smaller network, or more memory",
}


def resource_error(error: BaseException, path: object = None) -> ResourceError | None:
    """What the system refused, in one sentence and a hint, of an error that Python, torch or safetensors raised; None: it is
    of another kind. `path`: of the file that was written; None: what the error names."""
    if isinstance(error, NernError):
        return error if isinstance(error, ResourceError) else None
    text = " ".join(str(error).split())
    number = _error_number(error, text)
    if number == errno.EINVAL:  # torch says so of a truncated file
        return None
    if number is None and not isinstance(error, OSError):
        return None
    if number == errno.ENOMEM:
        asked = re.search(r"tried to allocate [\d.,]+ \w+", text, re.IGNORECASE)
        reason = "there is not enough memory" + (f" ({asked[0].lower()})" if asked else "")
    else:
        reason = text[:300] or type(error).__name__ if number is None else os.strerror(number)
    file = path or getattr(error, "filename", None)
    place = f"{file} cannot be written: " if path else f"{file}: " if file and number is not None else ""
    return ResourceError(f"{place}{reason}{f'. {_HINTS[number]}' if number in _HINTS else ''}")


def _error_number(error: BaseException, text: str) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return errno.ENOMEM
    told = re.search(r"\[Errno (\d+)\]|\(os error (\d+)\)", text)
    if told:
        return int(told[1] or told[2])
    return next((number for phrase, number in _TEXTS.items() if phrase in text.lower()), None)


# The extra that brings a package, by the name under which it is imported.
EXTRAS = {
    "PIL": "vision",
    "clearml": "clearml",
    "huggingface_hub": "hub",
    "jinja2": "report",
    "matplotlib": "report",
    "mlflow": "mlflow",
    "numba": "train",
    "pytorch_optimizer": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "timm": "vision",
    "torchvision": "vision",
    "wandb": "wandb",
}


def missing_package(error: ModuleNotFoundError) -> NernError | None:
    """What to install; None: it is no package that nern knows."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return NernError(f"this needs {package}, which is not installed: pip install 'nern[{EXTRAS[package]}]'")


@contextmanager
def plain_errors(path: object = None) -> Iterator[None]:
    """Raise a `ResourceError` in place of what Python, torch and safetensors raise where the system refuses, and a
    `NernError` where a package is not installed that only some do without; `path`: of the file that is written. Also a
    decorator."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)) is not None:
            raise missing from error
        told = resource_error(error, path)
        if told is None or told is error:
            raise
        raise told from error


def _likeness(given: str, name: str) -> tuple[float, float]:
    """From 0 to 1, how alike the last parts of two dotted names are, and the whole names."""
    given, name = given.lower(), name.lower()
    pairs = ((given.rpartition(".")[2], name.rpartition(".")[2]), (given, name))
    last, whole = (difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)
    return last, whole


def unknown_name(kind: str, given: object, choices: Iterable[str], limit: int = 1000) -> NernError:
    """Error for a name that is not among `choices`; suggests the nearest and lists all, or the first `limit`.

    >>> str(unknown_name("activation", "rleu", ["relu", "gelu"]))
    "unknown activation 'rleu'; did you mean 'relu'? Choices: gelu, relu"
    """
    names = sorted(choices)
    near = max(names, key=lambda name: sum(_likeness(str(given), name)), default=None)
    hint = f"; did you mean {near!r}?" if near is not None and _likeness(str(given), near)[0] >= ALIKE else "."
    rest = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return NernError(f"unknown {kind} {given!r}{hint} Choices: {', '.join(names[:limit]) or '(none)'}{rest}")
