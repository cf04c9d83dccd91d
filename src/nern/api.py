"""The Python front door: fit a NeRN to a module of one's own, on one's own data or none."""

from __future__ import annotations

import bisect
import copy
import html
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from nern.config import Config, NernConfig
from nern.config.imports import import_modules
from nern.console import PLAIN, CleanConsole
from nern.errors import NernError, NernWarning, plain_errors
from nern.evaluation import Evaluator, LayerError, layer_errors
from nern.experiment import Experiment, kernel_table, represent
from nern.inputs import Calling
from nern.jobs.session import display_of
from nern.jobs.training import train_in_folder
from nern.objectives.objective import Losses
from nern.ordering.order import Ordering
from nern.originals.base import Original, as_original
from nern.registry import PREDICTORS
from nern.representation.grid import Quantised
from nern.representation.kernels import KernelTable
from nern.representation.nern import NeRN, build_heads, predictor_arguments, share_of
from nern.representation.predictor import parameters_of
from nern.stopping import Interrupted
from nern.tasks.base import Task
from nern.tasks.own import Forward, OwnData, as_batches
from nern.terminal import share_text
from nern.training.members import Member, trained_beside
from nern.training.trainer import Trainer

if TYPE_CHECKING:
    from nern.artifact import Artifact
    from nern.jobs.packing import PackOptions

FIT_ITERATIONS = 2000
MOST_WIDE = 2**20  # of hidden layers: more than any ratio makes of a network that fits in memory
Metric = Callable[[Any, Any], float | Tensor]


@dataclass(frozen=True, repr=False)
class Fitted:
    """A NeRN fitted to a network: what `nern.fit` returns.

    Attributes:
        original: a frozen copy of the network; `original.weights` are the represented weights.
        nern: the representation: predictor, encoding of coordinates and ordering.
        ordering: the order of the kernels.
        config: the settings that the NeRN was built with (section `nern` of a config).
        steps: number of training steps that were done.
        interrupted: whether Ctrl-C ended the training before its last step.
        beside: parameters of the network that were trained beside the predictor (norms), by name.
        quantised: the steps to which the predictor's numbers are rounded; None: it was not trained to be rounded.
        data: how batches are read; None: as `nern.fit` reads them by default.
        task: the data that it was fitted on and is tested on; None: there were none.
        calling: how the network is called with a batch; None: there were no data.
        metric: the `metric` that `nern.fit` was given.
    """

    original: Original
    nern: NeRN
    ordering: Ordering
    config: NernConfig
    steps: int
    interrupted: bool = False
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    quantised: Quantised | None = None
    data: OwnData | None = None
    task: Task | None = None
    calling: Calling | None = None
    metric: Metric | None = None

    def network(self) -> nn.Module:
        """The reconstructed network: a copy of the module with predicted weights, in eval mode. Its parameters can be
        trained."""
        return self.original.rebuild(self.nern.reconstruct(), dict(self.beside))

    def layer_errors(self) -> list[LayerError]:
        """The reconstruction error of each layer, in the order of the network. `relative` of an error is the norm of the
        difference over the norm of the original's weights; `name` is that of the parameter."""
        return layer_errors(self.original.weight_names, self.original.weights, self.nern.reconstruct())

    @property
    def share(self) -> float:
        """Size of predictor and ordering over the size of the represented weights, from 0. Numbers count 32 bits; the
        ordering counts log2 of the number of all such orderings."""
        return share_of(self.nern.num_parameters, self.ordering.bits(), self.nern.table.num_weights)

    @property
    def predictor_share(self) -> float:
        """Number of the predictor's parameters over the number of represented weights, from 0."""
        return self.nern.num_parameters / self.nern.table.num_weights

    @plain_errors()
    @torch.no_grad()
    def evaluate(self, data: Any = None, metric: Metric | None = None) -> dict[str, dict[str, float]]:
        """Evaluate the original and the reconstructed network.

        Args:
            data: a DataLoader, a Dataset, a tensor, or an iterable of batches; None: the `test` that `fit` was given.
            metric: (outputs, batch) -> a number for this batch; None: the one that `fit` was given.

        Returns:
            Figures by name, for 'original' and for 'reconstructed'. 'images': number of samples. Of a classifier with
            labelled data: 'top1' and 'top5' (accuracies, percent), 'loss' (cross entropy, nats), 'agreement' (percent of
            samples that get the original's class), 'divergence' (of the class probabilities from the original's, nats).
            Of other networks: 'error', the norm of the difference of the outputs over the norm of the original's outputs,
            in percent. With a metric: 'metric', its mean over all samples.

        Raises:
            NernError: there are no data, or the network does not take them.
        """
        own = self.data or own_data(self.original, None, Config.of_recipe("nern"))
        batches = None if data is None else as_batches(data, own.batch_size)
        if batches is None:
            test = None if self.task is None else self.task.test
            if test is None:
                raise NernError("there is nothing to evaluate on: give `data`, or give `test` to nern.fit")
        elif self.calling is None:
            test = own.task(None, batches)[0].test
            assert test is not None
        else:
            test = own.test_set(batches, self.calling)
        weights, beside = self.nern.reconstruct(), dict(self.beside)
        found = Evaluator(self.original, own.batch_size).both(test, weights, beside)
        metric = metric or self.metric
        if metric is not None:
            networks = {"original": self.original.network, "reconstructed": self.original.rebuild(weights, beside)}
            for name, network in networks.items():
                found[name]["metric"] = own.mean(metric, network, test)
        return found

    def save(self, path: str | Path, options: PackOptions | None = None) -> Artifact:
        """Write the reconstructed network into one file: `nern.save(self, path, options)`."""
        from nern.jobs.packing import save

        return save(self, path, options)

    def report(self, path: str | Path) -> Path:
        """Write an HTML page with figures, and return its path: `nern.report(self, path)`."""
        from nern.jobs.report import report

        return report(self, path)

    def __repr__(self) -> str:
        table, with_order = self.nern.table, ""
        if self.ordering.mode != "none":
            with_order = f", with the ordering {share_text(self.share)}"
        errors = self.layer_errors()
        worst = max(errors, key=lambda error: error.relative)
        return (
            f"NeRN of {self.original.name}: {table.num_weights:,} weights in {len(table.shapes)} layers by "
            f"{self.nern.num_parameters:,} parameters ({share_text(self.predictor_share)}{with_order})\n"
            f"{self.steps:,} steps{', interrupted' * self.interrupted}; largest relative error of a layer: "
            f"{worst.relative:.3f} ({worst.name})"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def fit_config(iterations: int = FIT_ITERATIONS) -> Config:
    """The settings of `nern.fit` without data: those of recipe 'nern', with the phase `reconstruction` alone.

    Args:
        iterations: number of its steps.

    Returns:
        A config to change, and to give to `nern.fit` as `config`.
    """
    return Config.of_recipe(
        "nern",
        {
            "reconstruction": {"iterations": iterations},
            "refinement": {"iterations": None},
            "distillation": {"iterations": None},
        },
    )


def own_data(original: Original, forward: Forward | None, config: Config) -> OwnData:
    """How batches for a network are read."""
    return OwnData(original.network, forward, original.weights[0].device, config.batch_size, config.seed)


@plain_errors()
def fit(
    network: nn.Module,
    data: Any = None,
    test: Any = None,
    *,
    ratio: float | None = None,
    iterations: int | None = None,
    phases: Mapping[str, int | None] | None = None,
    config: Config | None = None,
    forward: Forward | None = None,
    metric: Metric | None = None,
    seed: int | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    run_folder: str | Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> Fitted:
    """Fit a NeRN to a network. The network itself is not changed.

    With `data` the phases of recipe 'nern' train it: first on the weights, then on the weights with each error counted by
    its effect on the outputs, then on the outputs. Without `data` it is trained on the weights alone.

    A batch may be a tensor, or tensors in tuples, lists, mappings and dataclasses. The first axis of its first tensor counts
    samples. The values of a mapping are given to the network by name; of a tuple the network gets as many parts as it must
    be given; anything else is its one argument. `forward` replaces this call. All floating-point outputs are distilled.
    Labels are what follows the inputs in a tuple, or a mapping's 'labels'. They tell that the outputs are scores of
    classes, and have no other use.

    Ctrl-C ends the training after the current step; the NeRN reached so far is returned, with a warning. A second Ctrl-C
    interrupts at once.

    Args:
        network: any module, or an `OriginalNetwork` that chooses its own weights.
        data: training data: a DataLoader, a Dataset, a tensor of samples (samples, ...), or an iterable of batches.
        test: data to evaluate on at the end of each phase; of the same kinds as `data`.
        ratio: number of the predictor's parameters over the number of represented weights, above 0. The hidden layers
            become as wide as it allows; the ordering is not counted. None: 0.5, or with `config` its own width.
        iterations: steps of the phase `reconstruction`. None: 2,000 without data, 3,000 with data, or with `config` its own
            number.
        phases: steps of each phase by name: 'reconstruction', 'refinement', 'distillation', 'quantisation'; None: the phase
            is not run.
        config: all settings; they are copied. None: those of recipe 'nern'.
        forward: (network, batch) -> outputs, in place of the usual call.
        metric: (outputs, batch) -> a number for this batch; `Fitted.evaluate` gives its mean.
        seed: of the initial predictor, the weight batches and the order of samples. None: 0, or with `config` its own.
        include: weights to represent: globs on names of parameters. None: all convolutions, or the network's own choice.
        exclude: weights to keep as they are: globs, applied after `include`. If `include` or `exclude` is given, those of
            `config` are ignored.
        run_folder: a folder for checkpoints and losses. If it holds a run of the same network and settings that was stopped,
            this goes on. None: nothing is written.
        on_step: is called after each step with the number of steps done and the losses by name.
        progress: whether to print what the ordering takes, and to show a progress bar.
        console: where to print; None: standard output.

    Returns:
        The NeRN with its network, to evaluate, rebuild, save or report.

    Raises:
        NernError: there is nothing to represent; values are not finite; `ratio` is too small for any predictor; the network
            does not take the data; the run folder holds another run; settings contradict each other.
        NonFiniteLossError: the training diverged.
        KeyboardInterrupt: on Ctrl-C before the first step, and on a second one.
    """
    ratio = 0.5 if ratio is None and config is None else ratio
    if ratio is not None and not 0 < ratio < float("inf"):
        raise NernError(f"ratio (={ratio}) must be above 0")
    config = _settings(config, data is not None, iterations, phases, seed)
    if include is not None or exclude:
        config.nern = replace(config.nern, include=None if include is None else list(include), exclude=list(exclude))
    original = as_original(network, None, config.nern.include, config.nern.exclude)
    own, task, calling = own_data(original, forward, config), None, None
    if data is not None or test is not None:
        task, calling = own.task(data, test)
        if calling.scales is not None and config.nern.distillation_loss_type == "LogitsL2Loss":
            config.nern.distillation_loss_type = "OutputsL2Loss"  # these are no class scores
    import_modules(config.imports)
    config.check()
    console = console or CleanConsole()
    tell = partial(console.print, **PLAIN) if progress else None
    if ratio is not None:
        width = _width(config.nern, kernel_table(config.nern, [original]), ratio)
        config.nern = replace(config.nern, hidden_layer_size=width)
    config.check()
    member, device = Member(original, task, original.name), original.weights[0].device

    def built(config: Config) -> Experiment:
        nern, ordering, source = represent(config, [original], device, tell=tell)
        beside = trained_beside([original], config) if data is not None else {}
        return Experiment(config, device, [member], ordering, source, nern, beside)

    if run_folder is None:
        experiment = built(config)
        trainer = experiment.trainer()
        stopped_by = _train(trainer, console, progress, on_step)
    else:
        config.logging.progress = progress
        experiment, trainer, stopped_by = train_in_folder(
            config, member, built, Path(run_folder), console, lambda trainer: _hear(trainer, on_step)
        )
    if stopped_by not in (None, signal.SIGINT):  # to end the program is not for us to refuse
        signal.raise_signal(stopped_by)
    if stopped_by is not None:
        told = f"fit was stopped at step {trainer.step:,} of {trainer.total_steps:,}; what it had reached is returned"
        warnings.warn(told, NernWarning, stacklevel=3)
    trainer.round_for_good()
    return Fitted(
        original,
        experiment.nern,
        experiment.ordering,
        config.nern,
        trainer.step,
        stopped_by is not None,
        {name: value.detach().clone() for name, value in trainer.extra.items()},
        trainer.rounding.quantised,
        own,
        task,
        calling,
        metric,
    )


def _settings(
    given: Config | None,
    with_data: bool,
    iterations: int | None,
    phases: Mapping[str, int | None] | None,
    seed: int | None,
) -> Config:
    """The settings of a fit: what is given, or those of the recipe, with the steps that were asked for."""
    usual = Config.of_recipe("nern") if with_data else fit_config()
    config = usual if given is None else copy.deepcopy(given)
    config.seed = config.seed if seed is None else seed
    if config.teacher.asked_for:
        raise NernError(
            "fit has no images for a teacher: teacher of its config has no part; leave it out, or use `nern train`"
        )
    if config.learn_fc_layer and not with_data:
        raise NernError("fit has no images: learn_fc_layer of its config has no part; leave it out, or give `data`")
    if not config.by_phases:
        if phases is not None:
            raise NernError("phases: this config has none; set num_iterations or epochs of it")
        if iterations is not None:
            config.epochs, config.num_iterations = None, iterations
        return config
    steps = dict(phases or {}) | ({} if iterations is None else {"reconstruction": iterations})
    for name, count in steps.items():
        config.phase(name).iterations = count
        config.phase(name).epochs = None
    if not with_data:
        config.phases = [phase for phase in config.phases if not (phase.needs_images or phase.errors == "curvature")]
    if not config.by_phases:
        raise NernError("fit has no data to distil from: give `data`, or set steps of reconstruction (iterations)")
    return config


def _hear(trainer: Trainer, on_step: Callable[[int, dict[str, float]], None] | None) -> None:
    """Have `on_step` called after each step, beside what is called already."""
    if on_step is None:
        return
    before = trainer.on_step

    def heard(step: int, losses: Losses) -> None:
        if before is not None:
            before(step, losses)
        on_step(step, {name: float(value.detach()) for name, value in losses.terms.items()})

    trainer.on_step = heard


def _train(
    trainer: Trainer, console: Console, progress: bool, on_step: Callable[[int, dict[str, float]], None] | None
) -> int | None:
    """Train to the end; the signal that stopped it, if one did."""
    display = display_of(trainer, console, progress)
    _hear(trainer, on_step)
    trainer.rehearse()
    try:
        with display:
            trainer.fit()
    except Interrupted as error:
        return error.signal_number
    return None


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
    return bisect.bisect_right(range(1, MOST_WIDE), budget, key=size)
