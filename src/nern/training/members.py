"""The networks of one NeRN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from nern.config import Config
from nern.errors import NernError
from nern.naming import joint_name
from nern.originals.base import Mirrored, Original
from nern.tasks.base import Task
from nern.tasks.streams import EvalSet, TrainStream

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Member:
    """One of the networks that a NeRN represents, with the images to train and evaluate it on (None: reconstruction
    only), the name that metrics give it, and the network whose outputs are distilled (None: itself)."""

    original: Original
    task: Task | None = None
    name: str = ""
    teacher: Original | Mirrored | None = None

    @property
    def stream(self) -> TrainStream | None:
        """The images to train on; None: there are none."""
        return None if self.task is None else self.task.train

    @property
    def sets(self) -> dict[str, EvalSet]:
        """The sets to evaluate on."""
        both = {"held_out": self.task.held_out, "test": self.task.test} if self.task else {}
        return {name: data for name, data in both.items() if data is not None}


def trained_beside(originals: Sequence[Original], config: Config) -> dict[str, Tensor]:
    """Parameters of the originals that are trained beside the predictor, by name (`joint_name`): the last fully connected
    layer (`learn_fc_layer`); weights and biases of the normalisation layers, and biases of represented layers
    (`learn_norms`).

    Raises:
        NernError: no fully connected layer, or one that is represented.
    """
    found: dict[str, Tensor] = {}
    for number, original in enumerate(originals):
        own = original.classifier() if config.learn_fc_layer else {}
        if config.learn_norms:
            own |= original.norms() | original.biases()
        if represented := [name for name in own if name in original.weight_names]:
            raise NernError(f"learn_fc_layer trains {represented[0]}, which is represented already; see nern.exclude")
        found |= {joint_name(name, number, len(originals)): value for name, value in own.items()}
    return found


def biases_beside(originals: Sequence[Original]) -> set[str]:
    """Names of the biases among `trained_beside`: runs and checkpoints of before these were trained do not hold them."""
    return {joint_name(name, n, len(originals)) for n, original in enumerate(originals) for name in original.biases()}


def split_by_network(members: Sequence[Member], of_layers: Sequence[T]) -> list[list[T]]:
    """What there is for each layer, such as its weights, in a list for each network."""
    rest = iter(of_layers)
    return [[next(rest) for _ in member.original.weight_names] for member in members]
