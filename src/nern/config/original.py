"""The configuration of `nern train-original`: a network trained on a task from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nern import registry
from nern.config.checks import check_logging, check_optim, check_task
from nern.config.schema import LoggingConfig, OptimConfig, TaskConfig
from nern.config.settings import Settings, check_numbers, choose
from nern.errors import NernError
from nern.typed import FromOne, FromZero, NotNegative


@dataclass(kw_only=True)
class SmoothnessConfig:
    """Smoothness: a term that makes neighbouring kernels alike (NeRN, section 3.2)."""

    type: str = "CosineSmoothness"
    """Measure: 'CosineSmoothness' (cosine similarity of neighbours; for 1x1 kernels as L2Smoothness), 'L2Smoothness'
    (distance of normalised neighbours)."""
    cosine_factor: float = 0.0
    """Factor of the sum of cosine similarities, which is subtracted from the loss (CosineSmoothness)."""
    l2_factor: float = 0.0
    """Factor of the sum of distances, which is added to the loss (L2Smoothness; CosineSmoothness for 1x1 kernels)."""
    along: list[str] = field(default_factory=lambda: ["filters", "channels"])
    """Neighbours: kernels of successive filters ('filters'), kernels of successive channels ('channels'), or both."""


@dataclass(kw_only=True, repr=False)
class OriginalConfig(Settings):
    """General settings."""

    imports: list[str] = field(default_factory=list)
    """Modules or files of yours that are imported first, as for `nern train`."""
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            optimizer_type="sgd", lr=0.4, weight_decay=5e-4, lr_scheduler_type="onecycle", betas=(0.9, 0.999)
        )
    )
    smoothness: SmoothnessConfig = field(default_factory=SmoothnessConfig)
    logging: LoggingConfig = field(default_factory=lambda: LoggingConfig(exp_name="original"))
    epochs: FromOne = 40
    """Length of the run in epochs."""
    batch_size: FromOne = 256
    """Number of images in one training step."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over the classes, from 0 to below 1."""
    precision: str = "float32"
    """Arithmetic of the forward pass: 'float32', 'bf16' (autocast)."""
    initial_weights: str | None = None
    """Weights to start from: a file or a name, as original_model_path of `nern train`. null: random weights."""
    eval_epochs_interval: FromOne | None = 5
    """Epochs between two evaluations on the test images. null: one at the end. They choose nothing."""
    eval_batch_size: FromOne = 500
    """Number of images in one evaluation batch."""
    num_workers: FromZero = 0
    """Number of worker processes that load images."""
    num_gpus: FromZero = 1
    """Device. 0: the CPU. Above 0: the first GPU, if there is one."""
    save_minutes: NotNegative = 5.0
    """Longest time in minutes between two saves of the state for --resume. Every evaluation saves it, too."""
    seed: FromZero = 0
    """Seed of the initial weights, the order of images and augmentation."""

    def check(self) -> OriginalConfig:
        """Raise NernError for the first name, number or combination that cannot work; return self otherwise."""
        registry.SMOOTHNESS[self.smoothness.type]
        check_task(self.task)
        check_numbers(self)
        check_optim(self.optim)
        check_logging(self.logging)
        choose("precision", self.precision, ("float32", "bf16"))
        if not 0 <= self.label_smoothing < 1:
            raise NernError(f"label_smoothing (={self.label_smoothing}) must lie in [0, 1)")
        smoothness = self.smoothness
        if not smoothness.along and (smoothness.cosine_factor or smoothness.l2_factor):
            raise NernError("smoothness.along is empty; it needs 'filters', 'channels' or both")
        for direction in smoothness.along:
            choose("smoothness.along", direction, ("filters", "channels"))
        if smoothness.type == "L2Smoothness" and smoothness.cosine_factor:
            raise NernError("smoothness.cosine_factor has no effect with L2Smoothness; set smoothness.l2_factor")
        if not all(0 <= factor < math.inf for factor in (smoothness.cosine_factor, smoothness.l2_factor)):
            raise NernError("smoothness.cosine_factor and l2_factor must be finite numbers, not negative")
        if self.task.use_random_data:
            raise NernError("training an original needs labels; task.use_random_data has none")
        return self
