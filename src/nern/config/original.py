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
    """Smoothness: how alike neighbouring kernels are, added to what is maximised (NeRN, section 3.2)."""

    type: str = "CosineSmoothness"
    """Measure: 'CosineSmoothness' (cosine similarity of neighbours; 1x1 kernels by l2), 'L2Smoothness' (minus the
    distance of normalised neighbours)."""
    cosine_factor: float = 0.0
    """Factor of the summed cosine similarities (CosineSmoothness)."""
    l2_factor: float = 0.0
    """Factor of minus the summed distances (L2Smoothness; of layers of 1x1 kernels with CosineSmoothness)."""
    along: list[str] = field(default_factory=lambda: ["filters", "channels"])
    """Which kernels are neighbours: along the filters of a channel ('filters'), the channels of a filter ('channels')."""


@dataclass(kw_only=True, repr=False)
class OriginalConfig(Settings):
    """Training of an original network."""

    imports: list[str] = field(default_factory=list)
    """Modules or files of yours to import first, as for `nern train`."""
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            optimizer_type="sgd", lr=0.4, weight_decay=5e-4, lr_scheduler_type="onecycle", betas=(0.9, 0.999)
        )
    )
    smoothness: SmoothnessConfig = field(default_factory=SmoothnessConfig)
    logging: LoggingConfig = field(default_factory=lambda: LoggingConfig(exp_name="original"))
    epochs: FromOne = 40
    """Training epochs."""
    batch_size: FromOne = 256
    """Images in one training step."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""
    precision: str = "float32"
    """Arithmetic of the forward pass: 'float32', 'bf16' (autocast)."""
    initial_weights: str | None = None
    """Weights to start from: a file or a name, as original_model_path of `nern train`. null: random ones, from seed."""
    eval_epochs_interval: FromOne | None = 5
    """Evaluate on the test images every so many epochs; null: at the end only. Nothing is chosen by it."""
    eval_batch_size: FromOne = 500
    """Images in one evaluation batch."""
    num_workers: FromZero = 0
    """Worker processes of data loaders."""
    num_gpus: FromZero = 1
    """0: the CPU; above: the first GPU, if there is one."""
    save_minutes: NotNegative = 5.0
    """Save the state for --resume at least every so many minutes (and at every evaluation)."""
    seed: FromZero = 0
    """Seed of initialisation, order of images and augmentation."""

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
            raise NernError("smoothness.cosine_factor has no part in L2Smoothness; set l2_factor")
        if not all(0 <= factor < math.inf for factor in (smoothness.cosine_factor, smoothness.l2_factor)):
            raise NernError("smoothness.cosine_factor and l2_factor must be finite numbers, not negative")
        if self.task.use_random_data:
            raise NernError("training an original needs labels; task.use_random_data has none")
        return self
