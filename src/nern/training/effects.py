"""What changing tensors does to the outputs of reconstructed networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nern.inputs import batches_of, call_with, gives_scores
from nern.naming import of_number
from nern.originals.base import Original
from nern.representation.nern import NeRN
from nern.tasks.streams import first_images
from nern.training.members import Member, split_by_network

PREDICTOR, KEPT = "predictor/", "kept/"
MOST_ROWS = 2**15  # kernels on which effects are measured where there are no images


class Effects:
    """How much changing some tensors changes the reconstructed networks.

    Args:
        nern: with the predictor's tensors in their places.
        extra: what was trained beside the predictor (`joint_name`), where that is not in its place.
        images: of the training stream: the effect is the mean divergence of the outputs on them; 0, or where there are no
            images: the squared relative error of kernels, a mean over layers; of `MOST_ROWS` at most.

    Attributes:
        images: of each network; None: it has none.
        weights: of all layers, nothing changed; empty if no network has images.
    """

    def __init__(
        self, nern: NeRN, members: Sequence[Member], images: int, extra: Mapping[str, Tensor] | None = None
    ) -> None:
        self.nern, self.members, self.count = nern, list(members), len(members)
        self._extra = {name: value.detach() for name, value in (extra or {}).items()}
        self._state = {name: t.clone() for name, t in nern.predictor.state_dict().items()}
        self._rows = _some_rows(nern)
        streams = [member.stream for member in members]
        self.images = [None if stream is None or not images else first_images(stream, images) for stream in streams]
        self.weights, self._kernels = self._predict()
        self._outputs = [
            None if batch is None else self._run(number, self.weights, {}) for number, batch in enumerate(self.images)
        ]

    @torch.no_grad()
    def __call__(self, changed: Mapping[str, Tensor]) -> float:
        """The mean over networks; names begin with PREDICTOR or KEPT."""
        predictor, kept = under(changed, PREDICTOR), under(changed, KEPT)
        weights, kernels = self.weights, self._kernels
        if predictor:
            with self._changed(predictor):
                weights, kernels = self._predict()
        found: list[float] = []
        for number, images in enumerate(self.images):
            own = of_number(kept, number, self.count)
            if images is None:
                found.append(self._of_kernels(number, kernels, own))
                continue
            before = self._outputs[number]
            assert before is not None
            moved = [_moved(*pair) for pair in zip(before, self._run(number, weights, own), strict=True)]
            found.append(sum(moved) / len(moved))
        return sum(found) / self.count

    def predicted(self, changed: Mapping[str, Tensor]) -> list[Tensor]:
        """Weights of all layers with some of the predictor's tensors changed."""
        with self._changed(changed):
            return self.nern.reconstruct()

    @contextmanager
    def _changed(self, changed: Mapping[str, Tensor]) -> Iterator[None]:
        self.nern.predictor.load_state_dict(self._state | dict(changed))
        try:
            yield
        finally:
            self.nern.predictor.load_state_dict(self._state)

    @torch.no_grad()
    def _predict(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights of all layers, if a network has images; some kernels of each layer, if one has none."""
        without = [images is None for images in self.images]
        weights = [] if all(without) else self.nern.reconstruct()
        if not any(without):
            return weights, []
        with self.nern.evaluating():
            parts = self.nern.heads.by_layer(self._rows, self.nern(self._rows))
        return weights, [kernels for _, _, kernels in parts]

    def _of_kernels(self, number: int, kernels: list[Tensor], kept: Mapping[str, Tensor]) -> float:
        before, after = (split_by_network(self.members, of)[number] for of in (self._kernels, kernels))
        state = self.members[number].original.kept()
        pairs = [*zip(before, after, strict=True), *((state[name], value) for name, value in kept.items())]
        ratios = [float((b - a).square().sum() / b.square().sum().clamp_min(1e-30)) for b, a in pairs]
        return sum(ratios) / len(before)

    def _run(self, number: int, weights: list[Tensor], kept: Mapping[str, Tensor]) -> list[_Outputs]:
        """Outputs of a network with these weights and kept tensors, for each batch of its images."""
        original: Original = self.members[number].original
        seen = self.images[number]
        assert seen is not None
        own = split_by_network(self.members, weights)[number]
        buffers = {name for name, _ in original.network.named_buffers()}
        extra = of_number(self._extra, number, self.count) | dict(kept)
        found = []
        for images in batches_of(seen):
            if buffers & extra.keys():  # statistics of a norm without weights: no way but the network itself
                outputs = call_with(original.network, original.replaced(own, extra), images)
            else:
                outputs, _ = original.run(own, images, extra)
            found.append((outputs.double(), gives_scores(images)))
        return found


_Outputs = tuple[Tensor, bool]  # of a batch; whether they are class scores


def _moved(before: _Outputs, after: _Outputs) -> float:
    """The mean divergence of class scores, half the mean squared difference of other outputs."""
    (old, scores), (new, _) = before, after
    if not scores:
        return float((new - old).square().mean()) / 2
    return float(F.kl_div(new.log_softmax(1), old.log_softmax(1), reduction="batchmean", log_target=True))


def _some_rows(nern: NeRN) -> Tensor:
    """All rows of a NeRN, or of every layer its share of about `MOST_ROWS`, evenly spaced."""
    table = nern.table
    every = max(-(-table.rows // MOST_ROWS), 1)
    device = next(nern.predictor.parameters()).device
    starts = zip(table.starts, table.layer_rows, strict=False)
    return torch.cat([torch.arange(start, start + rows, every, device=device) for start, rows in starts])


def under(values: Mapping[str, Any], start: str) -> dict[str, Any]:
    """What has names that begin so, by the rest of them."""
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
