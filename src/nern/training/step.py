"""One step: predict, compute the losses, differentiate them.

Losses are differentiated with respect to the predicted kernels first, of which the kernels drawn for the step pass their
share on to the predictor. So only the drawn rows are predicted with gradient, a row drawn m times m times. Where these are
so many that what a backward pass needs of them would fill the memory, they are predicted a second time, some at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial, reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nern.config import NernConfig
from nern.devices import computing_in, lower_precision
from nern.inputs import Images, Inputs
from nern.naming import of_number
from nern.objectives.curvature import Curvature
from nern.objectives.objective import Losses, Objective
from nern.processes import ALONE, Processes
from nern.registry import PREDICTORS, RECONSTRUCTION_LOSSES
from nern.representation.nern import NeRN
from nern.tasks.images import Batch
from nern.training.members import Member, split_by_network

Rows = Int[Tensor, " r"]
Piece = Callable[[list[Tensor]], Losses]
CACHE_BYTES, LEAST_IMAGES = 2**22, 16  # of the largest feature map of a part of a batch; images in a part
KEPT_NUMBERS = 2**28  # of the predictor's layers, kept for the backward pass of all drawn rows together
POOLED_BYTES = 256_000_000  # up to this much is held a second time, in one piece, to be indexed by row


class Step:
    """Losses of the current predictor, and their gradients in its parameters.

    Args:
        extra: further parameters of the reconstructed networks that are trained (see `trained_beside`).
        precision: 'float32', 'tf32' or 'bf16'.
        processes: that share the work; each has a share of the images and of the rows, and all end up with the gradients
            of the whole.
    """

    def __init__(
        self,
        config: NernConfig,
        nern: NeRN,
        members: Sequence[Member],
        extra: dict[str, nn.Parameter],
        precision: str = "float32",
        processes: Processes = ALONE,
    ) -> None:
        self.config, self.nern, self.members, self.extra = config, nern, list(members), extra
        self.precision, self.processes = precision, processes
        self.objectives = [Objective(config, member.original, member.teacher) for member in members]
        self._weights = [weight for member in members for weight in member.original.weights]
        self.device = self._weights[0].device
        self.weigh(None)
        self._image_bytes: dict[Objective, int] = {}
        of_kernels = PREDICTORS.info(config.method)["of_kernels"]  # it holds its predictions, and keeps nothing else
        of_row = 0 if of_kernels else sum(len(p) for p in nern.predictor.parameters() if p.dim() > 1)
        self._rows_at_once = max(KEPT_NUMBERS // max(of_row, 1), 1)

    def __call__(
        self, batches: Sequence[Batch] | None, rows: Rows | None, fractions: Sequence[float] | None = None
    ) -> Losses:
        """Compute losses and gradients (added to what parameters hold).

        Args:
            batches: this process's images and labels for each network; None: the reconstruction loss only.
            rows: rows that carry gradient; None: all. With `reconstruction_rows` 'drawn', a step without images predicts
                and compares these alone.
            fractions: of all processes' images, which part these are, for each network; None: all.
        """
        self.nern.train()
        with computing_in(self.precision, self.device):
            if batches is None and rows is not None and self.config.reconstruction_rows == "drawn":
                return self._drawn(rows)
            return self._all(batches, rows, fractions or [1.0] * len(self.members))

    def take_part(self, losses: Sequence[str] | None) -> None:
        """From now on these terms alone take part in the losses; None: all."""
        for objective in self.objectives:
            objective.take_part(losses)

    def weigh(self, curvatures: Sequence[Curvature] | None) -> None:
        """From now on errors of weights count as they move the outputs, by the curvatures of all layers; None: alike."""
        self.curvatures = None if curvatures is None else [curvature.to(self.device) for curvature in curvatures]
        self.targets = self._scaled(self._weights, range(len(self._weights)))
        self.__dict__.pop("_pooled", None)

    def _scaled(self, weights: Sequence[Tensor], layers: Sequence[int]) -> list[Tensor]:
        """Weights of these layers as the reconstruction losses see them: as they are, or by the curvatures."""
        if self.curvatures is not None:
            return [self.curvatures[index](weight) for weight, index in zip(weights, layers, strict=True)]
        return list(weights)

    def losses(self, weights: Sequence[Tensor], batches: Sequence[Batch] | None) -> Losses:
        """Mean over the networks of each one's losses with its share of all weights; of several processes, what this one
        adds to their sum."""
        own = split_by_network(self.members, weights)
        parts = [piece(own[number]) for number, piece in self._pieces(batches, [1.0] * len(self.members))]
        return reduce(Losses.__add__, parts)

    def _pieces(self, batches: Sequence[Batch] | None, fractions: Sequence[float]) -> Iterator[tuple[int, Piece]]:
        """What the losses are a sum of: (number of a network, its weights -> terms)."""
        networks = len(self.members)
        layers = split_by_network(self.members, range(len(self.targets)))
        for number, objective in enumerate(self.objectives):
            beside = of_number(self.extra, number, networks)
            share = 1 / (networks * self.processes.count)
            yield number, partial(self._reconstruction, objective, share, layers[number])
            if batches is None or not objective.needs_images:
                continue
            images, labels = batches[number]
            size = self._images_at_once(objective, images)
            for start in range(0, max(len(images), 1), size):
                part = images[start : start + size], None if labels is None else labels[start : start + size]
                factor = fractions[number] * len(part[0]) / max(len(images), 1) / networks
                yield number, partial(self._of_images, objective, factor, beside, *part)

    def _reconstruction(
        self, objective: Objective, factor: float, layers: Sequence[int], weights: Sequence[Tensor]
    ) -> Losses:
        targets, weights = [self.targets[index] for index in layers], self._scaled(weights, layers)
        return objective.reconstruction(targets, weights) * factor

    def _of_images(
        self,
        objective: Objective,
        factor: float,
        beside: dict[str, nn.Parameter],
        images: Images,
        labels: Tensor | None,
        weights: Sequence[Tensor],
    ) -> Losses:
        return objective.of_images(weights, images, labels, dict(beside)) * factor

    def _images_at_once(self, objective: Objective, images: Images) -> int:
        """On a CPU a batch is taken in parts whose feature maps stay in the cache; losses and gradients add up."""
        whole = isinstance(images, Inputs) and not images.divisible
        if whole or images.device.type != "cpu" or not objective.by_image or len(images) <= LEAST_IMAGES:
            return max(len(images), 1)
        known = self._image_bytes.get(objective)
        if known is None:
            _, maps = objective.original.features(images[:1])
            known = self._image_bytes[objective] = max((m.numel() * m.element_size() for m in maps), default=1)
        in_cache = CACHE_BYTES * (2 if self.precision == "bf16" else 1) // known
        return max(in_cache, LEAST_IMAGES)

    # --- all rows -------------------------------------------------------------------------------------------------

    def _all(self, batches: Sequence[Batch] | None, rows: Rows | None, fractions: Sequence[float]) -> Losses:
        heads = self.nern.heads
        drawn = torch.arange(self.nern.table.rows, device=self.device) if rows is None else rows.to(self.device)
        mine = drawn[self.processes.share(len(drawn))]
        with self._lower():
            live = self.nern(mine) if len(mine) <= self._rows_at_once or self.nern.by_batch else None
            if live is None or rows is not None or self.processes.several:
                values = self._predict_all()
            else:
                values = [p.detach() for p in live]
        locals_ = [local for _, local in heads.split(drawn)]
        if live is not None and self.nern.by_batch and rows is not None:  # not from its averages, as the rest is
            for value, local, of_rows in zip(values, locals_, live, strict=True):
                value[local] = of_rows.detach()
        losses, gradients = self._gradients(values, batches, fractions)
        of_heads = self._of_each_head(gradients)
        arrived = [g[local] for g, local in zip(of_heads, locals_, strict=True)]
        self.processes.add_up(arrived)
        return self._pass_on(live, drawn, arrived, losses)

    def _gradients(
        self, values: Sequence[Tensor], batches: Sequence[Batch] | None, fractions: Sequence[float]
    ) -> tuple[Losses, list[Tensor]]:
        """Losses of predictions of all rows, and their gradients in those of each layer."""
        heads, table = self.nern.heads, self.nern.table
        leaves = [heads.part(values, index).detach().requires_grad_() for index in range(len(table.shapes))]
        of_networks = split_by_network(self.members, list(enumerate(leaves)))
        losses: list[Losses] = []
        for number, piece in self._pieces(batches, fractions):
            with self._lower():
                part = piece([self.nern.weight(leaf, i) for i, leaf in of_networks[number]])
            if part.total.requires_grad:
                part.total.backward()
            losses.append(part.detach())
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        return reduce(Losses.__add__, losses), gradients

    def _predict_all(self) -> list[Float[Tensor, "r h w"]]:
        """Predictions of all rows, one tensor a head, without gradient."""
        with torch.no_grad(), self.nern.evaluating():
            if not self.processes.several:
                return self.nern()
            rows = torch.arange(self.nern.table.rows, device=self.device)[self.processes.share(self.nern.table.rows)]
            mine = self.nern(rows)
            rooms = [p.new_zeros(n, *p.shape[1:]) for p, n in zip(mine, self.nern.heads.counts, strict=True)]
            for room, value, (_, local) in zip(rooms, mine, self.nern.heads.split(rows), strict=True):
                room[local] = value
            self.processes.add_up(rooms)
            return rooms

    # --- the drawn rows alone ---------------------------------------------------------------------------------------

    def _drawn(self, rows: Rows) -> Losses:
        drawn = rows.to(self.device) if self._pooled is not None else rows.sort().values.to(self.device)
        share = self.processes.share(len(drawn))
        with self._lower():
            live = self.nern(drawn[share])
        if not self.processes.several:
            losses = self._drawn_losses(drawn, live)
            losses.total.backward()
            return losses
        pairs = zip(live, self._of_heads(drawn), strict=True)
        whole = [value.new_zeros(len(of_head), *value.shape[1:]) for value, of_head in pairs]
        for room, value, mine in zip(whole, live, self._mine(drawn), strict=True):
            room[mine] = value.detach()
        self.processes.add_up(whole)
        leaves = [room.requires_grad_() for room in whole]
        losses = self._drawn_losses(drawn, leaves)
        losses.total.backward()
        arrived = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        part = losses.figures() / self.processes.count  # each has computed the whole loss; what follows adds up
        return self._pass_on(live, drawn, arrived, Losses.of_figures(part, list(losses.terms)))

    def _drawn_losses(self, drawn: Rows, predictions: Sequence[Tensor]) -> Losses:
        """Reconstruction losses of the drawn rows, from their predictions, one tensor a head."""
        heads = self.nern.heads
        if self._pooled is not None:
            locals_ = [local for _, local in heads.split(drawn)]
            originals = [room[local] for room, local in zip(self._pooled, locals_, strict=True)]
            return self.objectives[0].reconstruction(originals, predictions)
        parts, targets = heads.by_layer(drawn, predictions), self.nern.table.to_rows(self.targets)
        if self.curvatures is not None:
            parts = [(index, local, self._of_filters(index, local, kernels)) for index, local, kernels in parts]
        losses, begins = [], 0
        for objective, member in zip(self.objectives, self.members, strict=True):
            ends = begins + len(member.original.weight_names)
            own = [(targets[index][local], kernels) for index, local, kernels in parts if begins <= index < ends]
            if own:
                found = objective.reconstruction([o for o, _ in own], [k for _, k in own])
                losses.append(found * (1 / len(self.members)))
            begins = ends
        return reduce(Losses.__add__, losses)  # a network without drawn rows adds nothing

    def _of_filters(self, index: int, local: Rows, kernels: Tensor) -> Tensor:
        """Predicted kernels of whole filters of a layer as the curvature sees them, in the same rows."""
        assert self.curvatures is not None
        table = self.nern.table
        of_each = table.layer_rows[index] // table.shapes[index][0]
        rows = kernels.view(len(kernels) // of_each, -1)
        return self.curvatures[index](rows, local[::of_each] // of_each).view_as(kernels)

    @cached_property
    def _pooled(self) -> list[Tensor] | None:
        """The original kernels of each head in one tensor, where the loss of some rows does not ask for their layers."""
        originals = self.nern.table.to_rows(self.targets)
        heads, size = self.nern.heads, sum(rows.numel() * rows.element_size() for rows in originals)
        pooled = RECONSTRUCTION_LOSSES.info(self.config.reconstruction_loss_type)["pooled"]
        if not pooled or self.curvatures is not None or len(self.members) > 1 or heads.samples or size > POOLED_BYTES:
            return None
        return self._of_each_head(originals)

    def _of_each_head(self, of_layers: Sequence[Tensor]) -> list[Tensor]:
        """What there is for each layer's rows, in one tensor a head."""
        heads = self.nern.heads
        return [torch.cat([of_layers[i] for i in heads.layers(head)]) for head in range(len(heads.sizes))]

    # --- gradients and processes ------------------------------------------------------------------------------------

    def _pass_on(self, live: Sequence[Tensor] | None, drawn: Rows, arrived: Sequence[Tensor], losses: Losses) -> Losses:
        """Differentiate this process's share of predictions (None: they are predicted again), given the gradients of all
        drawn ones."""
        mine = (
            [g[part] for g, part in zip(arrived, self._mine(drawn), strict=True)] if self.processes.several else arrived
        )
        parts = self._again(drawn[self.processes.share(len(drawn))], mine) if live is None else [(live, mine)]
        for values, gradients in parts:
            pairs = [pair for pair in zip(values, gradients, strict=True) if pair[0].requires_grad]
            torch.autograd.backward([value for value, _ in pairs], [gradient for _, gradient in pairs])
        if not self.processes.several:
            return losses
        parameters = [*self.nern.predictor.parameters(), *self.extra.values()]
        found = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        figures = losses.figures()
        self.processes.add_up([*(p.grad for p in parameters if p.grad is not None), figures, found])
        for parameter, times in zip(parameters, found.tolist(), strict=True):
            if not times:  # in no process: the optimizer leaves it alone, as it would in one
                parameter.grad = None
        return Losses.of_figures(figures, list(losses.terms))

    def _again(self, rows: Rows, gradients: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Predictions of these rows, some at a time, each part with its gradients; one tensor a head."""
        left = list(gradients)
        for part in rows.split(self._rows_at_once):
            with self._lower():
                live = self.nern(part)
            yield live, [of_head[: len(value)] for of_head, value in zip(left, live, strict=True)]
            left = [of_head[len(value) :] for of_head, value in zip(left, live, strict=True)]

    def _of_heads(self, drawn: Rows) -> list[Rows]:
        return [of_head for of_head, _ in self.nern.heads.split(drawn)]

    def _mine(self, drawn: Rows) -> list[slice]:
        """Of each head's drawn rows, those of this process."""
        share, parts = self.processes.share(len(drawn)), []
        before, own = self._of_heads(drawn[: share.start]), self._of_heads(drawn[share])
        for earlier, mine in zip(before, own, strict=True):
            parts.append(slice(len(earlier), len(earlier) + len(mine)))
        return parts

    def _lower(self) -> AbstractContextManager[None]:
        return lower_precision(self.precision, self.device)
