"""What takes steps: a trainer of ours, and its plain counterparts, all measured alike."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nern.benchmarks.measure import PeakMemory, seconds_per_call
from nern.benchmarks.parts import build_trainer, endless, quieten
from nern.config import Config
from nern.devices import keep_memory, select_device
from nern.experiment import build_experiment
from nern.registry import ACTIVATIONS, NORM_LAYERS

IMAGE_BATCHES = 4  # different ones that the plain networks see in turn


class Steps:
    """Something that takes steps. Subclasses say what a step is."""

    def __init__(self, config: Config) -> None:
        self.device = select_device(config)
        self.memory = PeakMemory(self.device)
        self.facts: dict[str, Any] = {}

    def step(self) -> None:
        """Take one."""
        raise NotImplementedError

    def warm_up(self, count: int) -> float:
        """Take `count` steps, at least one; returns the seconds of the last."""
        for _ in range(count - 1):
            self.step()
        return seconds_per_call(self.step, self.device)

    def time(self, count: int) -> float:
        """Seconds of a step: the mean of `count` in a row, after one that is not timed."""
        self.step()
        return seconds_per_call(self.step, self.device, count)

    def found(self) -> dict[str, Any]:
        """Facts, and the peak of memory so far."""
        return self.facts | {"device": str(self.device), "peak_memory_bytes": self.memory.growth()}


class OurSteps(Steps):
    """Steps of a `Trainer`, with images or of reconstruction only."""

    def __init__(self, config: Config, images: bool) -> None:
        super().__init__(config)
        keep_memory()  # as `nern train` does
        self.trainer = build_trainer(endless(config, images), images)
        quieten(self.trainer.nern)
        rows, nern = self.trainer.batches.rows(0), self.trainer.nern
        self.facts = {
            "rows": nern.table.rows if rows is None else len(rows.unique()),
            "all_rows": nern.table.rows,
            "represented_weights": nern.table.num_weights,
            "predictor_parameters": nern.num_parameters,
        }

    def step(self) -> None:
        """Images, predictions, losses, gradients, update."""
        self.trainer.do_step()

    def time_images(self, count: int) -> float:
        """Seconds of making the images of a step alone."""
        streams, numbers = [m.stream for m in self.trainer.members if m.stream is not None], itertools.count()

        def make() -> None:
            number = next(numbers)
            for stream in streams:
                stream.batch(number)

        return seconds_per_call(make, self.device, count)


class PlainSteps(Steps):
    """The original forward without gradient, then a network of the same architecture forward and backward: what no
    distillation can do without, in plain PyTorch and float32, on images that are there already.

    Args:
        strict: TF32 off; else PyTorch's defaults, which use it for convolutions on a GPU.
    """

    def __init__(self, config: Config, strict: bool = True) -> None:
        super().__init__(config)
        if strict:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        config = endless(config, True)
        config.nern.embeddings.permutations.permute_mode = "none"  # the NeRN has no part here
        members = build_experiment(config).members
        self.originals = [m.original.network for m in members]
        self.students = [copy.deepcopy(network).requires_grad_(True) for network in self.originals]
        streams = [m.stream for m in members if m.stream is not None]
        images = [[stream.batch(number)[0] for stream in streams] for number in range(IMAGE_BATCHES)]
        self.images = itertools.cycle(images)
        self.facts = {"images": [len(batch) for batch in images[0]]}

    def step(self) -> None:
        """Both networks, and the student's gradients; no update."""
        for original, student, images in zip(self.originals, self.students, next(self.images), strict=True):
            with torch.no_grad():
                target: Tensor = original(images)
            for parameter in student.parameters():
                parameter.grad = None
            F.kl_div(F.log_softmax(student(images), 1), F.log_softmax(target, 1), log_target=True).backward()


class PlainMLPSteps(Steps):
    """The predictor as a plain `nn.Sequential` on encodings made beforehand: root mean squared error, backward, Adam.
    Skips within the predictor are left out; of several heads it has the first."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        trainer = build_trainer(endless(config, False), images=False)
        nern, rows = trainer.nern, trainer.batches.rows(0)
        rows = torch.arange(nern.table.rows) if rows is None else rows.unique()
        with torch.no_grad():
            pieces = [nern.encoded(piece.to(self.device)) for piece in rows.split(65536)]
            self.inputs = torch.cat(pieces).clone()
        n, outputs = config.nern, math.prod(nern.heads.sizes[0])
        random = torch.Generator().manual_seed(config.seed)
        self.targets = torch.randn(len(rows), outputs, generator=random).to(self.device)
        sizes = [self.inputs.shape[1]] + [n.hidden_layer_size] * (n.num_blocks - 1)
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(sizes):
            layers.append(nn.Linear(wide, narrow))
            if norm := NORM_LAYERS[n.norm_layer or "none"]:
                layers.append(norm(narrow))
            layers.append(ACTIVATIONS[n.act_layer]())
        self.network = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs)).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.facts = {"rows": len(rows), "parameters": sum(p.numel() for p in self.network.parameters())}

    def step(self) -> None:
        """Predict, differentiate, update."""
        self.optimizer.zero_grad()
        loss: Tensor = F.mse_loss(self.network(self.inputs), self.targets).sqrt()
        loss.backward()
        self.optimizer.step()
