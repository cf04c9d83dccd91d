"""What is measured on the networks of a run: evaluations and which was the best, curvature, batch norms."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nern.config import Config
from nern.evaluation import Evaluator, Metrics, mean_metrics
from nern.naming import joint_name, of_number
from nern.objectives.curvature import Curvature, curvatures
from nern.objectives.objective import Losses
from nern.originals.norm_fitting import fitted_norms
from nern.processes import Processes
from nern.tasks.streams import first_images
from nern.training.members import Member, split_by_network


class Assessment:
    """Evaluates the networks of a NeRN, and remembers the best evaluation. Processes share the images.

    Attributes:
        best: the best record, with its `step` and `score`; None: there was none yet.
        window: the last losses of the outputs and feature maps, one every `eval_loss_window_interval` steps.
    """

    def __init__(self, config: Config, members: Sequence[Member], processes: Processes) -> None:
        self.config, self.members = config, list(members)
        self.evaluators = [Evaluator(member.original, config.evaluation.batch_size, processes) for member in members]
        self.best: dict[str, Any] | None = None
        self.window: deque[float] = deque(maxlen=config.eval_loss_window_size)

    def least_loss(self, step: int, losses: Losses) -> bool:
        """Whether step number `step` belongs in the window, and its loss is the least of a full one."""
        if step % self.config.eval_loss_window_interval or losses.terms.keys() <= {"reconstruction"}:
            return False
        watched = [losses.terms[name] for name in ("feature_maps", "distillation") if name in losses.terms]
        current = sum(float(term.detach()) for term in watched)
        self.window.append(current)
        full = len(self.window) == self.window.maxlen
        return bool(watched and full and current <= min(self.window))

    def __call__(
        self, step: int, weights: Sequence[Tensor], extra: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], bool]:
        """Metrics on the held-out and test sets after `step` steps, and whether none before were better; they are
        remembered then. `extra`: what was trained beside the predictor.

        Returns:
            The record: means over the networks; of several, also of each. Without a set to choose by, the latest is the
            best.
        """
        count = len(self.members)
        found: dict[str, dict[str, Metrics]] = {"held_out": {}, "test": {}}
        own = split_by_network(self.members, weights)
        for number, (member, evaluator) in enumerate(zip(self.members, self.evaluators, strict=True)):
            for name, data in member.sets.items():
                found[name][member.name] = evaluator(data, own[number], of_number(extra, number, count))
        means = {name: mean_metrics(list(of_networks.values())) for name, of_networks in found.items() if of_networks}
        record: dict[str, Any] = {name: mean.to_dict() for name, mean in means.items()}
        if count > 1:
            record["networks"] = {
                m.name: {name: found[name][m.name].to_dict() for name in m.sets} for m in self.members
            }
        chosen = means.get(self.config.evaluation.best_on)
        score = 0.0 if chosen is None else chosen.score
        is_best = self.best is None or chosen is None or score >= self.best["score"]
        if is_best:
            self.best = {"step": step} | record | {"score": score}
        return record, is_best

    def of_originals(self) -> list[dict[str, dict[str, float]]]:
        """Metrics of each original network on its held-out and test sets."""
        return [
            {name: evaluator(data).to_dict() for name, data in member.sets.items()}
            for member, evaluator in zip(self.members, self.evaluators, strict=True)
        ]


def all_curvatures(config: Config, members: Sequence[Member], images: int) -> list[Curvature]:
    """Of all layers, how errors of their weights move the outputs, measured on so many images (see `curvatures`)."""
    fits = config.learn_norms and config.norm_images > 0
    found: list[Curvature] = []
    for member in members:
        follow = fits and member.stream is not None
        found += curvatures(member.original, member.stream, images, config.seed, follow)
    return found


@torch.no_grad()
def all_fitted_norms(
    config: Config, members: Sequence[Member], weights: Sequence[Tensor], beside: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Batch norms and biases of all networks that have images, fitted to these weights of all layers and to what is trained
    beside the predictor, by name (`joint_name`)."""
    count, found = len(members), dict[str, Tensor]()
    for number, (member, own) in enumerate(zip(members, split_by_network(members, weights), strict=True)):
        if member.stream is not None:
            images = first_images(member.stream, config.norm_images)
            fitted = fitted_norms(member.original, own, images, of_number(beside, number, count))
            found |= {joint_name(name, number, count): value.cpu() for name, value in fitted.items()}
    return found
