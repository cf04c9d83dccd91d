"""Values of the types that keys of a config have."""

from __future__ import annotations

import contextlib
import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from nern.errors import NernError


@dataclass(frozen=True)
class Least:
    """In the `Annotated` type of a key: the least number that it may hold; `above`: only finite ones above it."""

    number: float
    above: bool = False

    def allows(self, value: float) -> bool:
        """Whether a key may hold it."""
        return self.number < value < float("inf") if self.above else value >= self.number

    def __repr__(self) -> str:
        return f"{'above' if self.above else 'at least'} {self.number:g}"


FromZero = Annotated[int, Least(0)]
FromOne = Annotated[int, Least(1)]
NotNegative = Annotated[float, Least(0)]
AboveZero = Annotated[float, Least(0, above=True)]
hints_of = functools.cache(typing.get_type_hints)  # of a dataclass, the type of each field
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def typed(value: Any, hint: Any, key: str, parse: Callable[[str], Any] | None = None) -> Any:
    """`value` as the key `key` of this type holds it: a whole number is a number, too, a list serves as a tuple, and one
    text as a list of it.

    Args:
        hint: the type: of plain values, lists, tuples and mappings, or a union of them.
        parse: what makes a value of text where text is not allowed; None: nothing.

    Raises:
        NernError: it is of another type.
    """
    options = options_of(hint)
    given = [value]
    if parse is not None and isinstance(value, str) and str not in options:
        with contextlib.suppress(NernError):
            given.append(parse(value))
        given.append([value])
    for candidate in given:
        for option in options:
            fits, found = _as(candidate, option)
            if fits:
                return found
    wanted, shown = " or ".join(map(_words, options)), "null" if value is None else repr(value)
    raise NernError(f"bad configuration: {key} needs {wanted}, not {shown}")


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of another type, itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _as(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a value is of a type, and the value in that type."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return True, value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple) or (origin is tuple and len(value) != len(of)):
            return False, value
        pairs = [
            _as(entry, inner) for entry, inner in zip(value, of * len(value) if origin is list else of, strict=False)
        ]
        return all(fits for fits, _ in pairs), origin(entry for _, entry in pairs)
    if origin is dict:
        return isinstance(value, Mapping), dict(value) if isinstance(value, Mapping) else value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), value


def _words(hint: Any) -> str:
    """A type in words."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"a list, each entry {_words(of[0])}"
    if origin is tuple:
        return f"a list of {len(of)}, each {_words(of[0])}"
    return "a mapping" if origin is dict else _WORDS.get(hint, str(hint))
