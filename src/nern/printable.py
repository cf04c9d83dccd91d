"""Text as it may be shown: names of files, classes and layers are other people's, and may hold codes that move a cursor."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with control codes, direction marks and what is no Unicode written as escapes; line breaks stay.

    >>> printable("a" + chr(27) + "[31m.png")
    'a\\\\x1b[31m.png'
    """
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if _shown(c) else c.encode("unicode_escape").decode() for c in text)


def _shown(c: str) -> bool:
    return c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"
