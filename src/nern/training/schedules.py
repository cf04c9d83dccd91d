"""Learning-rate schedules: the rate of a step as a plain function; nothing to save but the rate itself.

A schedule advances after training step i when i is a multiple of its interval (so already after step 0), and only
while the rate is above `min_lr`.
"""

from __future__ import annotations

import math
import warnings
from functools import partial

from nern.config import OptimConfig
from nern.errors import NernError, NernWarning
from nern.registry import SCHEDULES

RISE = 25  # onecycle begins at lr / RISE


@SCHEDULES.register("cosine")
def cosine(config: OptimConfig, iterations: int, interval: int, advances: int) -> float:
    """Half a cosine from `lr` to `min_lr` over the run."""
    share = min(advances / max(iterations, 1), 1.0)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * share)) / 2


@SCHEDULES.register("exponential")
def exponential(config: OptimConfig, iterations: int, interval: int, advances: int) -> float:
    """Multiplied by `gamma` at each advance; gamma 0: so that `min_lr` is reached at the end."""
    gamma = config.gamma or (config.min_lr / config.lr) ** (1 / max(iterations / interval, 1e-9))
    return config.lr * gamma**advances


@SCHEDULES.register("onecycle", rises=True)
def onecycle(config: OptimConfig, iterations: int, interval: int, advances: int) -> float:
    """Half a cosine up from lr / 25 to `lr` over the first `warmup` of the run, then half a cosine down to `min_lr`
    (Smith and Topin 2018)."""
    share = min(advances / max(iterations / interval, 1), 1.0)
    if share < config.warmup:
        low, position = config.lr / RISE, 1 - share / config.warmup
    else:
        low, position = config.min_lr, (share - config.warmup) / (1 - config.warmup)
    return low + (config.lr - low) * (1 + math.cos(math.pi * position)) / 2


@SCHEDULES.register("constant")
def constant(config: OptimConfig, iterations: int, interval: int, advances: int) -> float:
    """`lr` throughout."""
    return config.lr


class Schedule:
    """The learning rate of a run of so many steps. `stretched`: `step_interval` stretches the cosine, as in the published
    code (ours sets it to 1). Raises NernError for `step_interval` 0 where no interval can be computed."""

    def __init__(self, config: OptimConfig, iterations: int, *, stretched: bool = False) -> None:
        interval = config.step_interval
        if config.lr_scheduler_type == "cosine" and interval != 1 and not stretched:
            warnings.warn(f"optim.step_interval (={interval}) is 1 with the cosine schedule", NernWarning, stacklevel=2)
            interval = 1
        if interval == 0:
            interval = iterations // 100
            if interval == 0:
                raise NernError(
                    f"optim.step_interval 0 (a hundredth of the run) needs 100 steps; there are {iterations}"
                )
        self.interval, self.min_lr = interval, config.min_lr
        self._rate = partial(SCHEDULES[config.lr_scheduler_type], config, iterations, interval)
        self._rises = SCHEDULES.info(config.lr_scheduler_type)["rises"]
        self.advances = 0

    @property
    def lr(self) -> float:
        """The rate of the next step."""
        return float(self._rate(self.advances))

    def after_step(self, step: int) -> None:
        """Advance, if it is time, after training step `step` (counted from 0)."""
        if step % self.interval == 0 and (self._rises or self.lr > self.min_lr):
            self.advances += 1
