"""Functions that numba compiles, imported without numba: that takes a third of a second, which only those who call one
should wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_LOCK = threading.RLock()  # layers are ordered in threads


class Compiled:
    """A function that is compiled when it is first called, or when another one that calls it is.

    Its module's names of such functions are bound to numba's own then, as compiled code finds what it calls by name; so
    the modules that share these functions import them by name.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self.function, self.options = function, options
        self._dispatcher: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self.dispatcher(*arguments)

    @property
    def dispatcher(self) -> Any:
        """What numba makes of the function."""
        with _LOCK:
            if self._dispatcher is None:
                import numba

                self._dispatcher = numba.njit(**self.options)(self.function)
                names = self.function.__globals__
                for name, item in list(names.items()):
                    names[name] = item.dispatcher if isinstance(item, Compiled) else item
            return self._dispatcher


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: `numba.njit` with these options, kept on disk, and without the GIL.

    Example:
        >>> @compiled(error_model="numpy")
        ... def ratio(a, b):
        ...     return a / b
    """
    return lambda function: Compiled(function, {"nogil": True, "cache": True} | options)
