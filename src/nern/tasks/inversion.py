"""Images from a network alone: optimised until the statistics that its batch norms see are those they remember.

DeepInversion (Yin et al. 2020): minimise the cross entropy of a class drawn for each image, plus the squared differences
between the mean and variance of a batch in front of each batch norm and its running averages, plus a total variation.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from nern.console import CleanConsole
from nern.errors import NernError
from nern.files import cache_dir, load_safetensors, save_safetensors
from nern.originals.base import Original
from nern.randomness import generator

VERSION = 1  # raise it when results change: cached images of older versions are left aside
BATCH = 128
LR, STATISTICS, VARIATION, CLASSES = 0.05, 1.0, 1e-2, 0.3
RANGE = (-2.2, 2.7)  # of normalised pixels


def inverted_images(original: Original, start: Tensor, steps: int, seed: int) -> Tensor:
    """Images (n, channels, height, width) on the device of `start`, from the cache where they were made before.

    Args:
        original: a network with batch norms.
        start: where the optimisation begins.
        steps: of each batch.
        seed: of the classes drawn.

    Raises:
        NernError: the network has no batch norms with running averages.
    """
    if not _norms(original.network):
        raise NernError(
            f"task.random_data 'inversion' needs a network with batch norms, whose statistics {original.name} lacks; "
            "'leaves' needs none"
        )
    content = f"{VERSION} {original.digest()} {tuple(start.shape)} {steps} {seed} {start.double().sum().item()}"
    path = cache_dir() / "images" / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"
    try:
        return load_safetensors(path, "cached images")[0]["images"].to(start)
    except (NernError, KeyError, OSError):
        pass  # not there, or damaged: the cache mends itself
    batches = list(start.split(BATCH))
    console = CleanConsole(stderr=True)
    shown = track(
        batches, "making images from the network", console=console, transient=True, disable=not sys.stderr.isatty()
    )
    images = torch.cat([_invert(original, batch, steps, seed, number) for number, batch in enumerate(shown)])
    with suppress(OSError, NernError):  # they are only made again
        save_safetensors(path, {"images": images.half()})
    return images.half().to(start)  # as the cache gives them


def _invert(original: Original, start: Tensor, steps: int, seed: int, number: int) -> Tensor:
    images = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=LR, betas=(0.5, 0.9))
    classes: Tensor | None = None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / steps)
        shift = torch.randint(-2, 3, (2,), generator=generator(seed, "inversion", number, step)).tolist()
        distances: list[Tensor] = []
        with ExitStack() as hooks:
            for norm in _norms(original.network):
                hooks.enter_context(norm.register_forward_pre_hook(partial(_measure, distances)))
            outputs = original.network(images.roll(shift, dims=(2, 3)))
        if classes is None:
            rng = generator(seed, "inversion classes", number)
            classes = torch.randint(outputs.shape[1], (len(images),), generator=rng).to(images.device)
        across, down = images.diff(dim=3).square().mean(), images.diff(dim=2).square().mean()
        matching = torch.stack(distances).mean()
        loss = STATISTICS * matching + CLASSES * F.cross_entropy(outputs, classes) + VARIATION * (across + down)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            images.clamp_(*RANGE)
    return images.detach()


def _norms(network: nn.Module) -> list[nn.Module]:
    """The batch norms with running averages."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in network.modules() if isinstance(m, kind) and m.running_mean is not None]


def _measure(distances: list[Tensor], norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """Add how far a batch is from a norm's running averages, in units of these."""
    axes = [0, *range(2, inputs[0].dim())]
    mean, variance = inputs[0].mean(axes), inputs[0].var(axes, unbiased=False)
    scale = norm.running_var + 1e-5
    distances.append(((mean - norm.running_mean).square() / scale + (variance / scale - 1).square()).mean())
