"""The Python front door: fit a NeRN to a module of one's own, without data."""

from __future__ import annotations

import copy
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.console import Console
from torch import nn

from nern.config import Config, NernConfig, import_modules
from nern.console import PLAIN, CleanConsole
from nern.errors import NernError, NernWarning, plain_errors
from nern.evaluation import LayerError, layer_errors
from nern.experiment import kernel_table, represent
from nern.ordering.order import Ordering
from nern.originals.base import Original, as_original
from nern.registry import PREDICTORS
from nern.representation.kernels import KernelTable
from nern.representation.nern import NeRN, build_heads, predictor_arguments, share_of
from nern.representation.predictor import parameters_of
from nern.terminal import ProgressDisplay
from nern.training.interrupt import Interrupted
from nern.training.members import Member
from nern.training.trainer import Trainer

FIT_ITERATIONS = 2000


@dataclass(frozen=True)
class Fitted:
    """A NeRN fitted to a network.

    Attributes:
        original: the frozen copy of the network.
        nern: its representation.
        ordering: of its kernels.
        config: that the NeRN was built by.
        steps: of training that were done.
        interrupted: whether Ctrl-C ended the training before its last step.
    """

    original: Original
    nern: NeRN
    ordering: Ordering
    config: NernConfig
    steps: int
    interrupted: bool = False

    def network(self) -> nn.Module:
        """The reconstructed network: a copy of the module with predicted weights, in eval mode, its parameters
        trainable."""
        return self.original.rebuild(self.nern.reconstruct())

    def layer_errors(self) -> list[LayerError]:
        """Reconstruction error of each layer."""
        return layer_errors(self.original.weight_names, self.original.weights, self.nern.reconstruct())

    @property
    def share(self) -> float:
        """Bytes of the predictor in float32 and of the ordering (log2 of the number of all such orderings), over those of
        the represented weights in float32."""
        return share_of(self.nern.num_parameters, self.ordering.bits(), self.nern.table.num_weights)

    @property
    def predictor_share(self) -> float:
        """Parameters of the predictor over represented weights."""
        return self.nern.num_parameters / self.nern.table.num_weights


def fit_config(iterations: int = FIT_ITERATIONS) -> Config:
    """The settings `fit` uses unless told otherwise: reconstruction by recipe 'nern'."""
    return Config.of_recipe(
        "nern",
        {
            "reconstruction": {"iterations": iterations},
            "refinement": {"iterations": None},
            "distillation": {"iterations": None},
        },
    )


@plain_errors()
def fit(
    network: nn.Module,
    *,
    ratio: float | None = None,
    iterations: int | None = None,
    config: Config | None = None,
    seed: int | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    progress: bool = True,
    console: Console | None = None,
) -> Fitted:
    """Fit a NeRN to the weights of `network`; reconstruction only, no data. The network itself is not changed.

    Ctrl-C ends the training after the step that runs, and what was reached is returned, with a warning; a second Ctrl-C
    interrupts at once.

    Args:
        network: any module, or an `OriginalNetwork` that chooses its own weights.
        ratio: size of the predictor, the ordering apart, as a share of the represented weights: the hidden width is the
            largest that keeps within it. None: 0.5, or with `config` its own width.
        iterations: training steps. None: 2,000, or with `config` its own count.
        config: settings in place of `fit_config()`, copied.
        seed: of initialisation and weight batches. None: 0, or with `config` its own.
        include: weights to represent, globs on parameter names; None: all convolutions (or the network's own choice).
        exclude: weights to keep, globs over `include`. Given one of both, those of `config` have no part.
        progress: say what the ordering takes, and show a progress bar.
        console: where it is shown; None: standard output.

    Raises:
        NernError: nothing to represent, values that are not finite, `ratio` too small for any predictor.
        KeyboardInterrupt: on Ctrl-C before the first step, and on a second one.
    """
    ratio = 0.5 if ratio is None and config is None else ratio
    if ratio is not None and not 0 < ratio < float("inf"):
        raise NernError(f"ratio (={ratio}) must be above 0")
    config = copy.deepcopy(config) if config else fit_config()
    if include is not None or exclude:
        config.nern = replace(config.nern, include=None if include is None else list(include), exclude=list(exclude))
    original = as_original(network, None, config.nern.include, config.nern.exclude)
    config.seed = config.seed if seed is None else seed
    for key, given in (("teacher", config.teacher.asked_for), ("learn_fc_layer", config.learn_fc_layer)):
        if given:
            raise NernError(f"fit has no images: {key} of its config has no part; leave it out, or use `nern train`")
    if config.by_phases:
        config.phases = [phase for phase in config.phases if not (phase.needs_images or phase.errors == "curvature")]
        if iterations is not None:
            config.phase("reconstruction").iterations = iterations
        if not config.by_phases:
            raise NernError(
                "fit has no images to distil from: set reconstruction.iterations of its config, or iterations"
            )
    elif iterations is not None:
        config.epochs, config.num_iterations = None, iterations
    import_modules(config.imports)
    config.check()
    console = console or CleanConsole()
    tell = partial(console.print, **PLAIN) if progress else None
    if ratio is not None:
        width = _width(config.nern, kernel_table(config.nern, [original]), ratio)
        config.nern = replace(config.nern, hidden_layer_size=width)
    config.check()
    nern, ordering, _ = represent(config, [original], original.weights[0].device, tell=tell)
    trainer = Trainer(config, [Member(original)], nern)
    display = ProgressDisplay(console, trainer.total_steps, trainer.total_steps, live=progress)
    trainer.on_step = display.on_step
    stopped_by = None
    try:
        with display:
            trainer.fit()
    except Interrupted as error:
        stopped_by = error.signal_number
    if stopped_by not in (None, signal.SIGINT):  # to end the program is not for us to refuse
        signal.raise_signal(stopped_by)
    if stopped_by is not None:
        told = f"fit was stopped at step {trainer.step:,} of {trainer.total_steps:,}; what it had reached is returned"
        warnings.warn(told, NernWarning, stacklevel=3)
    return Fitted(original, nern, ordering, config.nern, trainer.step, stopped_by is not None)


def _width(config: NernConfig, table: KernelTable, ratio: float) -> int:
    """The largest hidden width whose predictor has at most `ratio` times as many parameters as there are weights."""
    budget, heads = ratio * table.num_weights, build_heads(config, table)

    def size(width: int) -> int:
        with torch.device("meta"):  # sizes only
            arguments = predictor_arguments(replace(config, hidden_layer_size=width), heads)
            return parameters_of(PREDICTORS[config.method](**arguments))

    if size(1) > budget:
        raise NernError(
            f"ratio (={ratio}) of {table.num_weights:,} weights leaves {budget:,.0f} parameters; the narrowest predictor of "
            f"this config has {size(1):,}. Raise ratio, or lower nern.embeddings.enc_levels."
        )
    low, high = 1, 2
    while size(high) <= budget:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    return low
