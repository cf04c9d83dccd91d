"""Training of original networks: cross entropy, and smoothness of the kernels if asked for (NeRN, section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nern.config import OriginalConfig
from nern.errors import NernError
from nern.evaluation import accuracy
from nern.files import tensors_of
from nern.objectives.objective import Losses
from nern.objectives.smoothness import mean_neighbour_cosine
from nern.randomness import forked_rng
from nern.registry import SMOOTHNESS
from nern.tasks.base import Task
from nern.training.loop import Loop, rehearsing
from nern.training.optimizers import build_optimizer, set_rate
from nern.training.schedules import Schedule


class OriginalTrainer(Loop):
    """Trains a network on its task. The state of a run is `state()`; all else follows from config, seed and step.

    Args:
        network: on its device.
        smooth: names of the weights whose smoothness counts.
    """

    def __init__(self, config: OriginalConfig, network: nn.Module, smooth: Sequence[str], task: Task) -> None:
        assert task.train is not None
        super().__init__(config.logging, config.save_minutes, config.epochs * task.train.steps_per_epoch)
        self.config, self.network, self.task, self.stream = config, network, task, task.train
        factors = config.smoothness.cosine_factor or config.smoothness.l2_factor
        if factors and not smooth:
            raise NernError(f"{config.task.original_model_name} has no convolutions whose kernels could be made smooth")
        self.smooth = [network.get_parameter(name) for name in smooth]
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config.optim, self.parameters)
        self.schedule = Schedule(config.optim, self.total_steps)
        self.precision = config.precision
        self.device = self.parameters[0].device
        self.channels_last = any(isinstance(m, nn.Conv2d) for m in network.modules())  # the faster layout for them
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def do_step(self) -> Losses:
        """Predict, compute the losses, differentiate, update; NonFiniteLossError before the update."""
        set_rate(self.optimizer, self.schedule.lr)
        images, labels = self.stream.batch(self.step)
        assert isinstance(images, Tensor)
        self.network.train()
        self.optimizer.zero_grad()
        with forked_rng(self.config.seed, "forward", self.step, device=self.device):  # dropout draws from it
            losses = self.losses(images, labels)
            losses.check_finite(self.step)
            losses.total.backward()
        self.update(self.config.optim)
        return losses

    def losses(self, images: Tensor, labels: Tensor | None) -> Losses:
        """Cross entropy of a batch, and minus the smoothness of the weights as far as it has factors."""
        if labels is None:
            raise NernError(f"task {self.task.name!r} gives no labels to train on")
        config = self.config
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            outputs = self.network(images)
        if not isinstance(outputs, Tensor):
            outputs = outputs[0]  # GoogLeNet and Inception give their auxiliary outputs, too
        terms = {"task": F.cross_entropy(outputs.float(), labels, label_smoothing=config.label_smoothing)}
        total, smoothness = terms["task"], config.smoothness
        if smoothness.cosine_factor or smoothness.l2_factor:
            values = SMOOTHNESS[smoothness.type](self.smooth, along=smoothness.along)
            named = {"l2": values} if isinstance(values, Tensor) else dict(zip(("cosine", "l2"), values, strict=True))
            for name, value in named.items():
                if factor := getattr(smoothness, f"{name}_factor"):
                    terms[f"{name} smoothness"] = value
                    total = total - factor * value
        return Losses(terms, total)

    def evaluation_due(self, step: int, losses: Losses) -> bool:
        """Every `eval_epochs_interval` epochs."""
        every = self.config.eval_epochs_interval
        return every is not None and self.step % (every * self.stream.steps_per_epoch) == 0

    def metrics(self) -> dict[str, Any]:
        """Accuracy on the test images, and how alike neighbouring kernels are."""
        self.network.eval()
        test = {} if self.task.test is None else accuracy(self.network, self.task.test, self.config.eval_batch_size)
        weights = {"neighbour_cosine": mean_neighbour_cosine([w.detach() for w in self.smooth])}
        return ({"test": test} if test else {}) | {"weights": weights}

    def rehearse(self) -> None:
        """Two images through a copy of the network in training mode, without an update. Raises NernError for whatever
        fails there."""
        network = self.network
        try:
            self.network = copy.deepcopy(network).train()  # batch norms would remember the rehearsal
            with rehearsing(), forked_rng(self.config.seed, "rehearsal", device=self.device):
                images, labels = self.stream.batch(self.step)
                assert isinstance(images, Tensor)
                self.losses(images[:2], None if labels is None else labels[:2]).check_finite(self.step)
        finally:
            self.network = network

    def save_checkpoint(self, name: str) -> None:
        """Write the network's state dict as checkpoint `name`."""
        if self.folder is not None:
            self.folder.save_checkpoint(name, tensors_of(self.network), {}, None, {"step": self.step})

    def named_parameters(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters())

    def state(self) -> dict[str, Any]:
        return super().state() | {"network": self.network.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        super().load_state(state)
