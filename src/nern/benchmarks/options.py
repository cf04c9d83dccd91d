"""What `nern bench` can measure, and the options that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nern.benchmarks.settings import BenchSettings
from nern.errors import NernError, unknown_name

KINDS = {
    "order": "exact greedy orderings: of random 3x3 kernels, and of a config's network",
    "step": "a training step over what plain PyTorch needs for the same work",
    "reconstruct": "all weights of a config's network from its predictor",
    "scaling": "building, ordering and a step over the size of the network",
    "run": "what a whole run of a config would take",
}
OPTIONS: dict[str, tuple[Any, str, str]] = {  # type, metavar, help; of those not given BenchSettings has the defaults
    "repeats": (int, "N", "measurements of each thing (default: 7)"),
    "warmup": (int, "N", "calls or steps before them (default: 3)"),
    "threads": (int, "N", "threads of PyTorch (default: its own choice)"),
    "kernels": (int, "N", "random kernels to order (default: 16384)"),
    "precisions": (str, "NAME", "of our steps, beside each other: float32, tf32, bf16 (default: the config's)"),
    "products": (bool, "BOOL", "also time the predictor's matrix products alone (default: on a GPU)"),
    "most_steps": (int, "N", "steps in a round, at most (default: what fills half a second, up to 200)"),
    "smallest": (float, "N", "represented weights of the smallest network (default: 1e4)"),
    "largest": (float, "N", "represented weights of the largest (default: 1e8)"),
    "figure": (str, "FILE", "write a picture (PNG) here"),
    "steps": (int, "N", "timed steps of each kind (default: 30, on a GPU 300)"),
}
OWN_OPTIONS = {  # of one kind only
    "kernels": "order",
    "precisions": "step",
    "products": "step",
    "most_steps": "step",
    "smallest": "scaling",
    "largest": "scaling",
    "figure": "scaling",
    "steps": "run",
}


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
        if OWN_OPTIONS.get(name, what) != what:
            own = ", ".join(f"--{option}" for option, kind in OWN_OPTIONS.items() if kind == what)
            raise NernError(
                f"--{name} belongs to nern bench {OWN_OPTIONS[name]}; {what} has {own or 'no options of its own'}"
            )
    return what


def settings_dict(settings: BenchSettings, what: str) -> dict[str, Any]:
    """The settings that `what` goes by, for JSON."""
    return {name: value for name, value in vars(settings).items() if OWN_OPTIONS.get(name, what) == what}
