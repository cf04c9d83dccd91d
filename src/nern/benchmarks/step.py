"""`nern bench step`: a training step of ours over what plain PyTorch needs for the same work."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nern.benchmarks.measure import Report, held_memory, peak_memory, process, seconds_per_call, spread
from nern.config import Config
from nern.config.schema import phase_batches, phase_optim
from nern.devices import keep_memory, precision_of, select_device
from nern.experiment import build_experiment
from nern.registry import ACTIVATIONS
from nern.training.trainer import Trainer

MANY = 10**9  # steps of a run that does not end while it is measured
ROUND = 0.5  # seconds that the steps of one round should take
DRAWN = 4096  # rows drawn where the config draws none
IMAGE_BATCHES = 4  # different ones that the plain networks see in turn
PLAIN, PLAIN_MLP = "plain", "plain MLP"  # what full steps, and those of reconstruction only, are compared with

Step = Callable[[], object]
_made: dict[str, Any] = {}  # in a process that takes steps


def endless(config: Config, images: bool) -> Config:
    """A copy whose every step is a full one (`images`), or one of reconstruction only, as in its phases of distillation
    and reconstruction, where it has such; without images to evaluate on. The learning rate is next to nothing: with it a
    network of any depth stays finite, whatever its weights, and a step takes the same time."""
    config = copy.deepcopy(config)
    if config.by_phases:
        keys = config.phase("distillation" if images else "reconstruction")
        config.optim = phase_optim(config, keys)
        config.nern.weights_batch_method, config.nern.weights_batch_size = phase_batches(config, keys)
    config.phases, config.epochs, config.num_iterations = [], None, MANY
    config.loss_warmup_iterations = 0 if images else MANY
    config.optim.lr, config.optim.min_lr, config.optim.lr_scheduler_type = 1e-9, 0.0, "constant"
    config.evaluation.best_on, config.evaluation.test_images = "held_out", 0
    if not images:
        n = config.nern
        n.attention_loss_weight = n.distillation_loss_weight = n.task_loss_weight = 0.0
        n.reconstruction_loss_weight = n.reconstruction_loss_weight or 1.0
    return config


def endless_trainer(config: Config, images: bool) -> Trainer:
    """A trainer of `endless` steps; without `images` the training images are not read. What its untrained predictor gives is
    scaled down: a deep network with kernels that all look alike would overflow."""
    trainer = build_experiment(endless(config, images), train=images).trainer()
    with torch.no_grad():
        for name, parameter in trainer.nern.predictor.named_parameters():
            if name.startswith("final_linear_layer"):
                parameter.mul_(1e-2)
    return trainer


def our_steps(config: Config, images: bool) -> tuple[Step, dict[str, Any]]:
    """Steps of a `Trainer`, with images or of reconstruction only."""
    keep_memory()  # as `nern train` does
    trainer = endless_trainer(config, images)
    rows, nern = trainer.batches.rows(0), trainer.nern
    facts = {"rows": nern.table.rows if rows is None else len(rows.unique()), "all_rows": nern.table.rows}
    return trainer.do_step, facts


def plain_steps(config: Config) -> tuple[Step, dict[str, Any]]:
    """The original forward without gradient, then a network of the same architecture forward and backward: what no
    distillation can do without, in plain PyTorch and float32 (TF32 is off), on images that are there already."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    config = endless(config, True)
    config.nern.embeddings.permutations.permute_mode = "none"  # the NeRN has no part here
    members = build_experiment(config).members
    originals = [member.original.network for member in members]
    students = [copy.deepcopy(network).requires_grad_(True) for network in originals]
    streams = [member.stream for member in members if member.stream is not None]
    batches = [[stream.batch(number)[0] for stream in streams] for number in range(IMAGE_BATCHES)]
    turns = itertools.cycle(batches)

    def step() -> None:
        for original, student, images in zip(originals, students, next(turns), strict=True):
            with torch.no_grad():
                target: Tensor = original(images)
            student.zero_grad()
            F.kl_div(F.log_softmax(student(images), 1), F.log_softmax(target, 1), log_target=True).backward()

    return step, {"images": [len(images) for images in batches[0]]}


def plain_mlp_steps(config: Config) -> tuple[Step, dict[str, Any]]:
    """The predictor as a plain `nn.Sequential` on encodings made beforehand: root mean squared error, backward, Adam.
    Skips and norms within the predictor are left out; of several heads it has the first."""
    trainer = endless_trainer(config, images=False)
    nern, rows, device = trainer.nern, trainer.batches.rows(0), trainer.device
    rows = torch.arange(nern.table.rows) if rows is None else rows.unique()
    with torch.no_grad():
        inputs = torch.cat([nern.encoded(piece.to(device)) for piece in rows.split(65536)]).clone()
    n, outputs = config.nern, math.prod(nern.heads.sizes[0])
    targets = torch.randn(len(rows), outputs, generator=torch.Generator().manual_seed(config.seed)).to(device)
    sizes = [inputs.shape[1]] + [n.hidden_layer_size] * (n.num_blocks - 1)
    hidden = [[nn.Linear(wide, narrow), ACTIVATIONS[n.act_layer]()] for wide, narrow in itertools.pairwise(sizes)]
    network = nn.Sequential(*itertools.chain(*hidden), nn.Linear(sizes[-1], outputs)).to(device)
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(network(inputs), targets).sqrt().backward()
        optimizer.step()

    return step, {"rows": len(rows)}


def _make(kind: Callable[..., tuple[Step, dict[str, Any]]], config: Config, *arguments: Any) -> None:
    """Make in this process what takes steps."""
    device = select_device(config.num_gpus)
    held = held_memory(device)
    step, facts = kind(config, *arguments)
    _made.update(step=step, device=device, held=held, facts=facts)


def _time(count: int) -> float:
    """Seconds of a step: the mean of `count` in a row, after one that is not timed."""
    _made["step"]()
    return seconds_per_call(_made["step"], _made["device"], count)


def _found() -> dict[str, Any]:
    peak = max(peak_memory(_made["device"]) - _made["held"], 0)
    return _made["facts"] | {"device": str(_made["device"]), "peak_memory_bytes": peak}


def bench_step(config: Config, settings: Any, say: Callable[[str], None]) -> Report:
    """Full steps and steps of reconstruction only, with plain ones: each in a process of its own, and by turns, so that
    drift of the machine falls on all alike."""
    usual = precision_of(config.precision, select_device(config.num_gpus))
    kinds = _kinds(config, settings.precisions or [usual])
    times: dict[str, list[float]] = {name: [] for name in kinds}
    measured: dict[str, Any] = {}
    with ExitStack() as stack:
        workers: dict[str, ProcessPoolExecutor] = {}
        counts: dict[str, int] = {}
        for name, (kind, *arguments) in kinds.items():
            say(f"building and warming up: {name}")
            worker = workers[name] = stack.enter_context(process(settings.threads))
            worker.submit(_make, kind, *arguments).result()  # the first of ours leaves its ordering in the cache
            seconds = [worker.submit(_time, 1).result() for _ in range(max(settings.warmup, 1))][-1]
            counts[name] = min(max(math.ceil(ROUND / max(seconds, 1e-9)), 1), settings.most_steps)
        for number in range(settings.repeats):
            for name, worker in workers.items():
                say(f"round {number + 1} of {settings.repeats}: {name}")
                times[name].append(worker.submit(_time, counts[name]).result())
        for name, worker in workers.items():
            facts = worker.submit(_found).result()
            measured[name] = {"seconds": spread(times[name]), "steps_a_round": counts[name], **facts}
            if name not in (PLAIN, PLAIN_MLP):
                plain = PLAIN if name.startswith("ours") else PLAIN_MLP
                ratios = [own / other for own, other in zip(times[name], times[plain], strict=True)]
                measured[name] |= {"ratio": spread(ratios)}
    note = (
        f"{'+'.join(map(str, measured[PLAIN]['images']))} images. plain: the original forward, a network of its "
        "architecture forward and backward, PyTorch in float32, images made beforehand. ours: a whole training step. plain "
        f"MLP: a network of the predictor's shape on {measured[PLAIN_MLP]['rows']:,} encodings made beforehand, root mean "
        "squared error, backward, Adam, float32. rows: a step of reconstruction only. Ratios are to the plain one."
    )
    return measured, note


def _kinds(config: Config, precisions: list[str]) -> dict[str, tuple[Any, ...]]:
    """What takes steps, by name: a class, and what to make it with. Full steps, then those of reconstruction."""
    kinds: dict[str, tuple[Any, ...]] = {PLAIN: (plain_steps, config)}
    for precision in precisions:
        kinds[f"ours, {precision}"] = our_steps, _changed(config, precision), True
    kinds[PLAIN_MLP] = plain_mlp_steps, _changed(config, config.precision, "drawn")
    for precision in precisions:
        for rows in ("drawn", "all"):
            kinds[f"{rows} rows, {precision}"] = our_steps, _changed(config, precision, rows), False
    return kinds


def _changed(config: Config, precision: str, rows: str | None = None) -> Config:
    """A copy that computes in `precision`, and whose reconstruction steps compare 'all' rows or those 'drawn', which it
    draws; None: as in the config."""
    config = copy.deepcopy(config)
    config.precision, n = precision, config.nern
    if rows is not None:
        n.reconstruction_rows = rows
        if n.weights_batch_method == "all":
            n.weights_batch_method, n.weights_batch_size = "random_batch", min(n.weights_batch_size or DRAWN, DRAWN)
    return config
