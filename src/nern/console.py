"""The console that everything is printed to: names in what is printed are neither markup nor codes for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from nern.errors import printable

# Options of `print` for text that may hold anything: no markup, no colours of its own, lines as they are.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


class CleanConsole(rich.console.Console):
    """As rich's, without markup and emoji codes; text is made `printable`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich. All text passes here, also that of tables and progress bars."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
