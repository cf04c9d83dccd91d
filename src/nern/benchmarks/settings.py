"""How a benchmark is to measure, whatever it measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nern.errors import NernError, unknown_name

Say = Callable[[str], None]  # tells the user what is under way
PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Options of `nern bench`; None: the benchmark's own choice.

    Attributes:
        repeats: measurements of each thing.
        warmup: calls or steps before, which are not timed.
        threads: of PyTorch; None: its own choice.
        kernels: random 3x3 kernels (order).
        precisions: of our steps (step); None: the config's.
        products: time the predictor's matrix products alone (step); None: on a GPU.
        most_steps: steps in one round at most (step); None: as many as fill half a second, at most 200.
        smallest, largest: represented weights of the made-up networks, in powers of ten between (scaling).
        figure: PNG file (scaling).
        steps: timed steps of real training (run); None: 30, on a GPU 300.
    """

    repeats: int = 7
    warmup: int = 3
    threads: int | None = None
    kernels: int = 16384
    precisions: Sequence[str] | None = None
    products: bool | None = None
    most_steps: int | None = None
    smallest: float = 1e4
    largest: float = 1e8
    figure: str | None = None
    steps: int | None = None

    def check(self) -> BenchSettings:
        """Raise NernError for the first number or name that cannot work; return self otherwise."""
        limits = {"repeats": 1, "warmup": 0, "threads": 1, "kernels": 2, "most_steps": 1, "steps": 1, "smallest": 1000}
        for name, least in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise NernError(f"--{name} (={value}) must be at least {least}")
        if not self.smallest <= self.largest < float("inf"):
            raise NernError(f"--largest (={self.largest:g}) must be at least --smallest (={self.smallest:g})")
        for precision in self.precisions or ():
            if precision not in PRECISIONS:
                raise unknown_name("precision (--precisions)", precision, PRECISIONS)
        return self
