"""JSON and YAML of files that anyone may have written: read strictly, in bounded time, with one kind of error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import yaml

from nern.errors import NernError

MOST_DIGITS = 20  # of a whole number: 64 bits and a sign
MOST_DEPTH = 64  # of lists and mappings of a YAML text within each other
MOST_NODES = 2**16  # values of a YAML text, with every alias written out


def parse_json(text: str | bytes) -> Any:
    """What a JSON text (UTF-8) holds.

    Raises:
        NernError: it is no JSON, or nested too deeply; a key twice; a number that is not finite, or whole and
            longer than `MOST_DIGITS`.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode())
    except RecursionError as error:
        raise NernError("its JSON is nested too deeply") from error
    except NernError:
        raise
    except ValueError as error:
        raise NernError(f"it is not valid JSON ({' '.join(str(error).split())[:120]})") from error


def read_json(path: Path, kind: type, remedy: str = "") -> Any:
    """What a JSON file holds, which must be a `kind`. Raises NernError for anything else, with a `remedy` behind it."""
    try:
        value = parse_json(path.read_bytes())
        if isinstance(value, kind):
            return value
        why: object = f"it holds {type(value).__name__}, not {kind.__name__}"
    except (NernError, OSError) as error:
        why = error
    raise NernError(f"{path} is damaged ({why}){remedy}")


def check_yaml(node: yaml.Node | None) -> None:
    """Raise NernError for a YAML document that is too deep or too large once its aliases are written out, or holds too long
    a number."""
    visited = 0

    def visit(node: Any, depth: int) -> None:
        nonlocal visited
        visited += 1
        if depth > MOST_DEPTH:
            raise NernError(
                f"its YAML is nested too deeply; at most {MOST_DEPTH} lists and mappings may be in each other"
            )
        if visited > MOST_NODES:
            raise NernError(f"it holds more than {MOST_NODES:,} values")
        if not isinstance(node, yaml.ScalarNode):
            for part in node.value:
                for inner in part if isinstance(part, tuple) else (part,):
                    visit(inner, depth + 1)
        elif node.tag == "tag:yaml.org,2002:int" and len(node.value) > MOST_DIGITS:
            raise NernError(f"it holds a number of {len(node.value):,} digits")

    if node is not None:
        visit(node, 0)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise NernError("it has a key twice")
    return value


def _no_number(text: str) -> NoReturn:
    raise NernError(f"it holds {text}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


def _whole(text: str) -> int:
    return int(text) if len(text) <= MOST_DIGITS else _no_number(f"a number of {len(text):,} digits")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
