"""The error a user is meant to read: what was given, what is allowed, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ALIKE = 0.45  # names less alike than this are not suggested


class NernError(ValueError):
    """A mistake in what was given (config, file, network, data). The command line prints it without a traceback."""


class NernWarning(UserWarning):
    """Something a user should know that does not stop the work."""


class NonFiniteLossError(NernError):
    """A loss term or a gradient became NaN or infinite; the message names the step and the term."""


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
