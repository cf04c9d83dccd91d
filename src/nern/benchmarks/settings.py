"""How `nern bench` measures."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from nern.errors import NernError, unknown_name

PRECISIONS = ("float32", "tf32", "bf16")


def _about(text: str, least: float = 1, of: str | None = None) -> dict[str, Any]:
    """Of a setting: its help, its least value, and the one benchmark that has it (None: all)."""
    return {"about": f"{of}: {text}" if of else text, "least": least, "of": of}


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Settings of `nern bench`, each an option of the command; None: the benchmark's own choice."""

    repeats: int = field(default=7, metadata=_about("number of measurements of each thing"))
    warmup: int = field(default=3, metadata=_about("number of calls or steps before the first measurement", least=0))
    threads: int | None = field(
        default=None, metadata=_about("number of PyTorch's threads; null: PyTorch's own choice")
    )
    kernels: int = field(default=16384, metadata=_about("number of random kernels to order", least=2, of="order"))
    precisions: list[str] | None = field(
        default=None,
        metadata=_about("precisions to compare: float32, tf32, bf16; null: that of the config", of="step"),
    )
    most_steps: int = field(
        default=200, metadata=_about("largest number of steps in a round; fewer if they fill half a second", of="step")
    )
    smallest: float = field(
        default=1e4, metadata=_about("represented weights of the smallest network", least=1000, of="scaling")
    )
    largest: float = field(
        default=1e8, metadata=_about("represented weights of the largest network", least=1000, of="scaling")
    )
    figure: str | None = field(default=None, metadata=_about("PNG file for a picture", of="scaling"))

    def check(self) -> BenchSettings:
        """Raise NernError for the first number or name that cannot work; return self otherwise."""
        for f in fields(self):
            value, least = getattr(self, f.name), f.metadata["least"]
            if isinstance(value, int | float) and not least <= value < float("inf"):
                raise NernError(f"--{f.name} (={value:g}) must be at least {least:g}")
        if not self.smallest <= self.largest:
            raise NernError(f"--largest (={self.largest:g}) must be at least --smallest (={self.smallest:g})")
        for precision in self.precisions or ():
            if precision not in PRECISIONS:
                raise unknown_name("precision (--precisions)", precision, PRECISIONS)
        return self
