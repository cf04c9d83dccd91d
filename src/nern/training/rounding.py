"""Training with the predictor's numbers rounded, as a packed file will hold them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nern.artifact.codes import coded_bytes
from nern.calibration import Calibrated, calibrate
from nern.calibration.feedback import pruned
from nern.calibration.network import measured, usual_quality
from nern.calibration.search import nearest_below
from nern.inputs import joined
from nern.processes import Processes
from nern.representation.codes import UNIT_STEP, Codes
from nern.representation.grid import Quantised, StepChooser, on_grid
from nern.representation.nern import NeRN
from nern.representation.predictor import SCALES
from nern.tasks.streams import first_images
from nern.training.effects import PREDICTOR, Effects, under
from nern.training.members import Member
from nern.training.rate import Rate

NEAR, PASSES = 0.01, 6  # of the search for the quality: share of the bits that may be missed, and tries


class Rounding:
    """The grid that a predictor is trained on, once it has been chosen.

    Args:
        nern: the representation.
        members: the networks it represents.
        seed: of what is drawn.

    Attributes:
        quantised: the steps of rounding; None: nothing is rounded.
        rate: of a predictor that holds codes: what they cost, once the grid is chosen.
    """

    def __init__(self, nern: NeRN, members: Sequence[Member], seed: int = 0) -> None:
        self.nern, self.members, self.seed = nern, list(members), seed
        self.quantised: Quantised | None = None
        self.rate: Rate | None = None

    def choose(self, bits: float, images: int, extra: Mapping[str, Tensor], processes: Processes) -> None:
        """Choose the steps, from the predictor and what was trained beside it as they are now.

        Args:
            bits: of a number, on average.
            images: on which what rounding does to the outputs is measured.
            extra: what was trained beside the predictor.
            processes: the main one chooses.

        Codes are rounded with error feedback on the images (see `calibration`), and what is trained beside them becomes
        what goes with them.
        """
        if isinstance(self.nern.predictor, Codes):
            self._calibrate(self.nern.predictor, bits, images, extra, processes)
            return

        def chosen() -> Quantised:
            state = self.nern.predictor.state_dict()
            effects = Effects(self.nern, self.members, images, extra)
            chooser = StepChooser({PREDICTOR + n: t for n, t in state.items() if n != SCALES}, effects)
            level = chooser.level_of_bits(bits, chooser.tensors)
            return Quantised(under(chooser.steps(level), PREDICTOR), level)

        self.quantised = processes.from_main(chosen)

    def _calibrate(
        self, codes: Codes, bits: float, images: int, extra: Mapping[str, Tensor], processes: Processes
    ) -> None:
        original, stream = self.members[0].original, self.members[0].stream

        def calibrated() -> Any:
            seen = None if stream is None or not images else joined(first_images(stream, images))
            known = None if seen is None else measured(original, seen, self.seed)
            found: dict[float, Calibrated] = {}
            count = self.nern.table.num_weights

            def size(quality: float) -> float:
                found[quality] = calibrate(original, self.nern, seen, quality, self.seed, known=known)
                return 8 * coded_bytes([layer.multiples.numpy() for layer in found[quality].layers]) / count

            start = usual_quality(original, seen, count)
            quality, _ = nearest_below(size, start, bits, 1.0, NEAR, PASSES)
            best = found[quality]
            return (
                [layer.multiples for layer in best.layers],
                [layer.step for layer in best.layers],
                best.vectors,
                quality,
            )

        multiples, steps, vectors, quality = processes.from_main(calibrated)
        device = codes.steps.device
        codes.take([whole.to(device) for whole in multiples], steps)
        with torch.no_grad():
            for name, value in vectors.items():
                if name in extra:
                    extra[name].copy_(value)
        self.quantised = Quantised({f"codes.{number}": UNIT_STEP for number in range(len(multiples))}, quality)
        self.rate = Rate(codes, bits, self._zeros(codes))

    def _zeros(self, codes: Codes) -> list[Tensor | None]:
        """Of each layer the codes of weights that were pruned."""
        exact = copy.deepcopy(codes)
        exact.fit(self.members[0].original.weights)
        return [pruned(code) for code in exact.codes]

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
        if self.quantised is None:
            return None
        rate = None if self.rate is None else {"goal": self.rate.goal, **self.rate.state()}
        return self.quantised.to_json() | ({} if rate is None else {"rate": rate})

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Take over `state()`."""
        self.quantised = None if state is None else Quantised.from_json(state)
        rate = None if state is None else state.get("rate")
        if rate is not None and isinstance(self.nern.predictor, Codes):
            self.rate = Rate(self.nern.predictor, rate["goal"], self._zeros(self.nern.predictor), rate)
