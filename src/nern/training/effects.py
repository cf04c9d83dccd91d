"""What changing tensors does to the outputs of reconstructed networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nern.naming import of_number
from nern.originals.base import Original
from nern.representation.nern import NeRN
from nern.tasks.streams import first_images
from nern.training.members import Member, split_by_network

PREDICTOR, KEPT = "predictor/", "kept/"


class Effects:
    """How much changing some tensors changes the reconstructed networks.

    Args:
        nern: the representation, with the predictor's tensors in their places.
        members: the networks it represents.
        extra: what was trained beside the predictor (`joint_name`), where that is not in its place.
        images: of the training stream: the effect is the mean divergence of the outputs on them; 0, or where there are no
            images: the squared relative error of weights, a mean over layers.

    Attributes:
        weights: of all layers, nothing changed.
        images: of each network; None: it has none.
    """

    def __init__(
        self, nern: NeRN, members: Sequence[Member], images: int, extra: Mapping[str, Tensor] | None = None
    ) -> None:
        self.nern, self.members, self.count = nern, list(members), len(members)
        self._extra = {name: value.detach() for name, value in (extra or {}).items()}
        self._state = {name: t.clone() for name, t in nern.predictor.state_dict().items()}
        self.weights = nern.reconstruct()
        streams = [member.stream for member in members]
        self.images = [None if stream is None or not images else first_images(stream, images) for stream in streams]
        self._outputs = [
            None if batch is None else self._run(number, self.weights, {}) for number, batch in enumerate(self.images)
        ]

    @torch.no_grad()
    def __call__(self, changed: Mapping[str, Tensor]) -> float:
        """The mean over networks; names begin with PREDICTOR or KEPT."""
        predictor, kept = under(changed, PREDICTOR), under(changed, KEPT)
        weights = self.predicted(predictor) if predictor else self.weights
        found = [self._of_network(number, weights, kept) for number in range(self.count)]
        return sum(found) / self.count

    def predicted(self, changed: Mapping[str, Tensor]) -> list[Tensor]:
        """Weights of all layers with some of the predictor's tensors changed."""
        predictor = self.nern.predictor
        predictor.load_state_dict(self._state | dict(changed))
        try:
            return self.nern.reconstruct()
        finally:
            predictor.load_state_dict(self._state)

    def _of_network(self, number: int, weights: list[Tensor], kept: Mapping[str, Tensor]) -> float:
        own = of_number(kept, number, self.count)
        if self.images[number] is not None:
            log_p, log_q = self._outputs[number], self._run(number, weights, own)
            assert log_p is not None
            return float(F.kl_div(log_q, log_p, reduction="batchmean", log_target=True))
        before, after = (split_by_network(self.members, w)[number] for w in (self.weights, weights))
        state = self.members[number].original.kept()
        pairs = [*zip(before, after, strict=True), *((state[name], value) for name, value in own.items())]
        ratios = [float((b - a).square().sum() / b.square().sum().clamp_min(1e-30)) for b, a in pairs]
        return sum(ratios) / len(before)

    def _run(self, number: int, weights: list[Tensor], kept: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities of a network with these weights and kept tensors."""
        original: Original = self.members[number].original
        images = self.images[number]
        assert images is not None
        own = split_by_network(self.members, weights)[number]
        buffers = {name for name, _ in original.network.named_buffers()}
        extra = of_number(self._extra, number, self.count) | dict(kept)
        if any(
            name in buffers for name in extra
        ):  # statistics of a norm without weights: no way but the network itself
            outputs = torch.func.functional_call(
                original.network, dict(zip(original.weight_names, own, strict=True)) | extra, (images,)
            )
        else:
            outputs, _ = original.run(own, images, extra)
        return outputs.double().log_softmax(1)


def under(values: Mapping[str, Any], start: str) -> dict[str, Any]:
    """What has names that begin so, by the rest of them."""
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
