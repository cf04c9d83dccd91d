"""Training with the predictor's numbers rounded, as a packed file will hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nern.processes import Processes
from nern.representation.grid import Quantised, StepChooser, on_grid
from nern.representation.nern import NeRN
from nern.representation.predictor import SCALES
from nern.training.effects import PREDICTOR, Effects, under
from nern.training.members import Member


class Rounding:
    """The grid that a predictor is trained on, once it has been chosen.

    Attributes:
        quantised: the steps of rounding; None: nothing is rounded.
    """

    def __init__(self, nern: NeRN, members: Sequence[Member]) -> None:
        self.nern, self.members = nern, list(members)
        self.quantised: Quantised | None = None

    def choose(self, bits: float, images: int, extra: Mapping[str, Tensor], processes: Processes) -> None:
        """Choose the steps, from the predictor and what was trained beside it as they are now.

        Args:
            bits: of a number, on average.
            images: on which what rounding does to the outputs is measured.
            extra: what was trained beside the predictor.
            processes: the main one chooses.
        """

        def chosen() -> Quantised:
            state = self.nern.predictor.state_dict()
            effects = Effects(self.nern, self.members, images, extra)
            chooser = StepChooser({PREDICTOR + n: t for n, t in state.items() if n != SCALES}, effects)
            level = chooser.level_of_bits(bits, chooser.tensors)
            return Quantised(under(chooser.steps(level), PREDICTOR), level)

        self.quantised = processes.from_main(chosen)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the predictor's numbers are rounded, if steps were chosen."""
        if self.quantised is None:
            yield
            return
        named = dict(self.nern.predictor.named_parameters())
        rounded = [(named[name], step) for name, step in self.quantised.steps.items() if name in named]
        with torch.no_grad():
            exact = [parameter.clone() for parameter, _ in rounded]
            for parameter, step in rounded:
                parameter.copy_(on_grid(parameter, step))
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(rounded, exact, strict=True):
                    parameter.copy_(value)

    def state(self) -> dict[str, Any] | None:
        """What `load_state` takes over."""
        return None if self.quantised is None else self.quantised.to_json()

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Take over `state()`."""
        self.quantised = None if state is None else Quantised.from_json(state)
