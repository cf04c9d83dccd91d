"""The error a user is meant to read: what was given, what is allowed, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NernError(ValueError):
    """A mistake in what was given (config, file, network, data). The command line prints it without a traceback."""


class NernWarning(UserWarning):
    """Something a user should know that does not stop the work."""


class NonFiniteLossError(NernError):
    """A loss term or a gradient became NaN or infinite; the message names the step and the term."""


def unknown_name(kind: str, given: object, choices: Iterable[str], limit: int = 1000) -> NernError:
    """Error for a name that is not among `choices`; suggests the nearest and lists all, or the first `limit`.

    >>> str(unknown_name("activation", "rleu", ["relu", "gelu"]))
    "unknown activation 'rleu'; did you mean 'relu'? Choices: gelu, relu"
    """
    names = sorted(choices)
    folded = {name.lower().rpartition(".")[2]: name for name in names}  # of a dotted key the last part is compared
    near = difflib.get_close_matches(str(given).lower().rpartition(".")[2], folded, n=1, cutoff=0.45)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else "."
    rest = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return NernError(f"unknown {kind} {given!r}{hint} Choices: {', '.join(names[:limit]) or '(none)'}{rest}")
