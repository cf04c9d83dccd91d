"""What takes steps: a trainer of ours, and its plain counterparts, all measured alike."""

from __future__ import annotations

import copy
import math
import time
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nern.benchmarks.measure import PeakMemory, seconds_per_call, synchronize
from nern.benchmarks.parts import build_nern_of, build_originals, build_trainer, endless, quieten, without_evaluation
from nern.config import Config
from nern.devices import keep_memory, select_device
from nern.experiment import build_experiment
from nern.originals.base import Original
from nern.registry import ACTIVATIONS, NORM_LAYERS
from nern.representation.nern import NeRN
from nern.training.graph import WARM_UP
from nern.training.weight_batches import WeightBatches

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
        """Take `count` steps, at least one, on a GPU until graphs are captured; returns the seconds of the last."""
        for _ in range(max(count, WARM_UP + 2 if self.device.type == "cuda" else 0) - 1):
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
        self.trainer = build_trainer(without_evaluation(endless(config, images)), images)
        quieten(self.trainer.nern)
        rows = self.trainer.batches.rows(0)
        nern = self.trainer.nern
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
        streams = [m.stream for m in self.trainer.members if m.stream is not None]
        synchronize(self.device)
        began = time.perf_counter()
        for number in range(count):
            for stream in streams:
                stream.batch(number)
        synchronize(self.device)
        return (time.perf_counter() - began) / count


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
        config = without_evaluation(endless(config, True))
        config.nern.embeddings.permutations.permute_mode = "none"  # the NeRN has no part here
        members = build_experiment(config).members
        self.originals = [m.original.network for m in members]
        self.students = [copy.deepcopy(network).requires_grad_(True) for network in self.originals]
        streams = [m.stream for m in members if m.stream is not None]
        self.images = [[stream.batch(number)[0] for stream in streams] for number in range(IMAGE_BATCHES)]
        self.taken = 0
        self.facts = {"images": [len(batch) for batch in self.images[0]]}

    def step(self) -> None:
        """Both networks, and the student's gradients; no update."""
        batches = self.images[self.taken % IMAGE_BATCHES]
        self.taken += 1
        for original, student, images in zip(self.originals, self.students, batches, strict=True):
            with torch.no_grad():
                target: Tensor = original(images)
            for parameter in student.parameters():
                parameter.grad = None
            F.kl_div(F.log_softmax(student(images), 1), F.log_softmax(target, 1), log_target=True).backward()


def drawn_rows(config: Config, nern: NeRN, originals: list[Original]) -> Tensor:
    """The rows of the first step, without repeats; all where the config draws none."""
    n, weights = config.nern, [weight for original in originals for weight in original.weights]
    norms = nern.table.norms(weights)
    rows = WeightBatches(n.weights_batch_method, nern.table, norms, n.weights_batch_size, config.seed).rows(0)
    return torch.arange(nern.table.rows) if rows is None else rows.unique()


class PlainMLPSteps(Steps):
    """The predictor as a plain `nn.Sequential` on encodings made beforehand: root mean squared error, backward, Adam.
    Skips within the predictor are left out; of several heads it has the first."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        config = endless(config, False)
        originals, device = build_originals(config)
        nern = build_nern_of(config, originals, device)
        rows = drawn_rows(config, nern, originals)
        n, outputs = config.nern, math.prod(nern.heads.sizes[0])
        with torch.no_grad():
            self.inputs = torch.cat([nern.encoded(piece.to(device)) for piece in rows.split(65536)]).clone()
        self.targets = torch.randn(len(rows), outputs, generator=torch.Generator().manual_seed(config.seed)).to(device)
        sizes = [self.inputs.shape[1]] + [n.hidden_layer_size] * (n.num_blocks - 1)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(sizes):
            layers.append(nn.Linear(wide, narrow))
            if norm := NORM_LAYERS[n.norm_layer or "none"]:
                layers.append(norm(narrow))
            layers.append(ACTIVATIONS[n.act_layer]())
        self.network = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs)).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.facts = {"rows": len(rows), "parameters": sum(p.numel() for p in self.network.parameters())}

    def step(self) -> None:
        """Predict, differentiate, update."""
        self.optimizer.zero_grad()
        loss: Tensor = F.mse_loss(self.network(self.inputs), self.targets).sqrt()
        loss.backward()
        self.optimizer.step()
