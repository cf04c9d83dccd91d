"""What training measures on the networks of a NeRN, with their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nern.config import Config
from nern.naming import joint_name, of_number
from nern.objectives.curvature import Curvature, curvatures
from nern.originals.norm_fitting import fitted_norms
from nern.tasks.streams import first_images
from nern.training.members import Member, split_by_network


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
    """Batch norms of all networks that have images, fitted to these weights, by name (`joint_name`).

    Args:
        config: with `norm_images`.
        members: the networks.
        weights: reconstructed, of all layers.
        beside: what is trained beside the predictor, as it is now.
    """
    count, found = len(members), dict[str, Tensor]()
    for number, (member, own) in enumerate(zip(members, split_by_network(members, weights), strict=True)):
        if member.stream is not None:
            images = first_images(member.stream, config.norm_images)
            fitted = fitted_norms(member.original, own, images, of_number(beside, number, count))
            found |= {joint_name(name, number, count): value.cpu() for name, value in fitted.items()}
    return found
