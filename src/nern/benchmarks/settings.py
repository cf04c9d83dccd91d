"""What `nern bench` can measure, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from nern.errors import NernError, unknown_name

Say = Callable[[str], None]  # tells the user what is under way
PRECISIONS = ("float32", "tf32", "bf16")
KINDS = {
    "order": "exact greedy orderings: of random 3x3 kernels, and of a config's network",
    "step": "a training step over what plain PyTorch needs for the same work",
    "reconstruct": "all weights of a config's network from its predictor",
    "scaling": "building, ordering and a step over the size of the network",
    "run": "what a whole run of a config would take",
}


class Option(NamedTuple):
    """Of a setting: its help, its least value, and the one kind of benchmark that has it (None: all)."""

    about: str
    least: float = 1
    of: str | None = None


OPTIONS = {
    "repeats": Option("measurements of each thing"),
    "warmup": Option("calls or steps before them", 0),
    "threads": Option("threads of PyTorch; null: its own choice"),
    "kernels": Option("random kernels to order", 2, "order"),
    "precisions": Option("of our steps, beside each other: float32, tf32, bf16; null: the config's", of="step"),
    "most_steps": Option("steps in a round, at most; else what fills half a second", of="step"),
    "smallest": Option("represented weights of the smallest network", 1000, "scaling"),
    "largest": Option("represented weights of the largest", 1000, "scaling"),
    "figure": Option("write a picture (PNG) here", of="scaling"),
    "steps": Option("timed steps of each kind; null: 30, on a GPU 300", of="run"),
}


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Settings of `nern bench`, told in OPTIONS; None: the benchmark's own choice."""

    repeats: int = 7
    warmup: int = 3
    threads: int | None = None
    kernels: int = 16384
    precisions: list[str] | None = None
    most_steps: int = 200
    smallest: float = 1e4
    largest: float = 1e8
    figure: str | None = None
    steps: int | None = None

    def check(self) -> BenchSettings:
        """Raise NernError for the first number or name that cannot work; return self otherwise."""
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if isinstance(value, int | float) and not option.least <= value < float("inf"):
                raise NernError(f"--{name} (={value:g}) must be at least {option.least:g}")
        if not self.smallest <= self.largest:
            raise NernError(f"--largest (={self.largest:g}) must be at least --smallest (={self.smallest:g})")
        for precision in self.precisions or ():
            if precision not in PRECISIONS:
                raise unknown_name("precision (--precisions)", precision, PRECISIONS)
        return self

    def of(self, what: str) -> dict[str, object]:
        """The settings that the benchmark `what` goes by."""
        return {f.name: getattr(self, f.name) for f in fields(self) if OPTIONS[f.name].of in (None, what)}


def check_kind(what: str, given: Sequence[str] = ()) -> str:
    """The benchmark that `what` names.

    Args:
        given: names of options on the command line.

    Raises:
        NernError: an unknown name, or an option that belongs to another benchmark.
    """
    if what not in KINDS:
        raise unknown_name("benchmark", what, KINDS)
    for name in given:
        own = OPTIONS[name].of if name in OPTIONS else None
        if own not in (None, what):
            has = ", ".join(f"--{option}" for option, of in OPTIONS.items() if of.of == what)
            raise NernError(f"--{name} belongs to nern bench {own}; {what} has {has or 'no options of its own'}")
    return what
