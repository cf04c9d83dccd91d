"""Checks of a configuration before any work starts: names, numbers, combinations."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from nern import registry
from nern.config.phases import KNOWN, PhaseConfig, listed_phases, settings_of
from nern.config.schema import Config, LoggingConfig, NernConfig, OptimConfig, TaskConfig, phase_batches, phase_optim
from nern.config.settings import check_numbers, choose, nested_attribute, plain
from nern.config.yaml_files import nested_value, recipe_values
from nern.errors import NernError


def check_config(config: Config) -> None:
    """Raise NernError for the first name, number or combination that cannot work."""
    _check_names(config)
    check_numbers(config)
    check_optim(config.optim)
    _check_phases(config)
    check_logging(config.logging)
    _check_combinations(config)


CHOICES: dict[str, registry.Registry | tuple[str, ...]] = {
    "nern.method": registry.PREDICTORS,
    "nern.act_layer": registry.ACTIVATIONS,
    "nern.norm_layer": registry.NORM_LAYERS,
    "nern.init": registry.INITS,
    "nern.heads": ("per_size", "per_layer", "shared"),
    "nern.output_scales": ("none", "per_layer", "per_size"),
    "nern.sampling_mode": registry.SAMPLING_MODES,
    "nern.weights_batch_method": registry.WEIGHT_BATCHES,
    "nern.reconstruction_rows": ("all", "drawn"),
    "nern.reconstruction_loss_type": registry.RECONSTRUCTION_LOSSES,
    "nern.attention_loss_type": registry.FEATURE_MAP_LOSSES,
    "nern.distillation_loss_type": registry.DISTILLATION_LOSSES,
    "nern.task_loss_type": registry.TASK_LOSSES,
    "nern.embeddings.type": registry.ENCODINGS,
    "nern.embeddings.fusion_mode": ("concat", "sum"),
    "nern.embeddings.normalization_mode": ("none", "local", "global"),
    "nern.embeddings.permutations.permute_mode": registry.ORDERINGS,
    "nern.embeddings.permutations.metric": ("cosine", "distance"),
    "evaluation.best_on": ("held_out", "test"),
    "precision": ("float32", "tf32", "bf16", "auto"),
}  # keys that choose by name; null is 'none', or has a meaning of its own
PHASE_CHOICES: dict[str, registry.Registry | tuple[str, ...]] = {
    "errors": ("plain", "curvature"),
    "weights_batch_method": registry.WEIGHT_BATCHES,
}  # null: see there


def _check_names(config: Config) -> None:
    for key, choices in CHOICES.items():
        _check_choice(key, nested_attribute(config, key), choices)
    for member in config.members():
        check_task(member.task)


def _check_choice(key: str, given: Any, choices: registry.Registry | tuple[str, ...]) -> None:
    if isinstance(choices, registry.Registry):
        choices["none" if given is None else given]
    elif given is not None:
        choose(key, given, choices)


def loss_weights(nern: NernConfig) -> dict[str, float]:
    """The weight of each term of the objective. Raises NernError for a further one that is unknown, or whose weight is no
    number."""
    weights = {term: getattr(nern, key) for term, key in TERMS.items()}
    for term, (weight, choice) in further_terms(nern).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise NernError(f"nern.losses.{term} needs a weight, a finite number, not {weight!r}")
        registry.LOSS_TERMS[choice]
        weights[term] = float(weight)
    return weights


def further_terms(nern: NernConfig) -> dict[str, tuple[Any, registry.Choice]]:
    """Of each registered term of the objective its weight, and its name with settings."""
    found: dict[str, tuple[Any, registry.Choice]] = {}
    for term, given in nern.losses.items():
        settings = dict(given) if isinstance(given, dict) else {"weight": given}
        found[term] = settings.pop("weight", None), {"name": term} | settings
    return found


def check_task(task: TaskConfig) -> None:
    """Names and numbers of a `task` section."""
    registry.TASKS[task.task_name]
    if ":" not in task.original_model_name:  # others name their source, which is asked when the network is built
        registry.ORIGINALS[task.original_model_name]
    _check_choice("task.random_data", task.random_data, registry.RANDOM_IMAGES)
    for key in ("mean", "std"):
        value = getattr(task, key)
        if value is not None and not (value and all(math.isfinite(v) and (key == "mean" or v > 0) for v in value)):
            raise NernError(
                f"task.{key} (={value}) needs a finite number for each channel{', above 0' * (key == 'std')}"
            )
    for key in ("mixup", "cutmix", "auto_augment"):
        if task.use_random_data and getattr(task, key) not in (None, 0, "none"):
            raise NernError(f"task.{key} has no effect with task.use_random_data; leave it out")
    if registry.name_of(task.random_data) != "uniform" and not task.use_random_data:
        raise NernError(f"task.random_data is {task.random_data!r}, but task.use_random_data is not set")


TERMS = {
    "reconstruction": "reconstruction_loss_weight",
    "feature_maps": "attention_loss_weight",
    "distillation": "distillation_loss_weight",
    "task": "task_loss_weight",
}  # of the objective, each with the key of its weight under `nern`
KERNEL_INDICES = 3  # of a kernel's coordinate; single weights have five
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,60}")
_OTHER_CHECKPOINTS = re.compile(r"best|last|step_\d+|training")


def _check_phases(config: Config) -> None:
    """Names and numbers of the phases and of `teacher`."""
    names = [phase.name for phase in config.phases]
    for name in names:
        if not _NAME.fullmatch(name) or _OTHER_CHECKPOINTS.fullmatch(name) or name in {f.name for f in fields(config)}:
            raise NernError(
                f"phases: {name!r} cannot be the name of a phase; use letters, digits, _ + - and no name of a config key or "
                "of another checkpoint"
            )
        if names.count(name) > 1:
            raise NernError(f"phases: two are named {name!r}; names must differ")
    for phase in config.phases:
        _check_phase(config, phase)
    _check_parts_of_phases(config)
    _check_teacher(config)


def _check_phase(config: Config, phase: PhaseConfig) -> None:
    name = phase.name
    check_numbers(phase, f"{name}.")
    optim = phase_optim(config, phase)
    check_numbers(optim, f"{name}.optim.")
    check_optim(optim, f"{name}.optim")
    for key, choices in PHASE_CHOICES.items():
        if getattr(phase, key) is not None:
            _check_choice(f"{name}.{key}", getattr(phase, key), choices)
    if phase.errors == "curvature" and phase.images == 0:
        raise NernError(f"{name}.images (=0) must be at least 1: the curvature is measured on them")
    weights = loss_weights(config.nern)
    for term in phase.losses or []:
        choose(f"{name}.losses", term, weights)
    of_kernels = registry.PREDICTORS.info(config.nern.method)["of_kernels"]
    if phase.bits is not None and not (phase.bits > 0 if of_kernels else phase.bits >= 1):
        raise NernError(f"{name}.bits (={phase.bits}) must be {'above 0' if of_kernels else 'at least 1'}")
    if phase.bits is not None and not phase.bits <= 24:
        raise NernError(f"{name}.bits (={phase.bits}) must be at most 24")
    method, size = phase_batches(config, phase)
    if config.by_phases:
        _check_batches(config, name, method, size)
    if None not in (phase.iterations, phase.epochs):
        raise NernError(
            f"set one of {name}.iterations (={phase.iterations}) and {name}.epochs (={phase.epochs}), the other to "
            f"null{_by_recipe(config)}"
        )
    if phase.epochs is not None and not phase.needs_images:
        raise NernError(
            f"{name}.epochs (={phase.epochs}) counts epochs of images, but the losses of {name} need no images; set "
            f"{name}.iterations"
        )
    if phase.length and not any(weights[term] > 0 for term in phase.losses or weights):
        keys = ", ".join(f"nern.{TERMS.get(term, f'losses.{term}')}" for term in phase.losses or weights)
        raise NernError(f"no loss of {name} has a weight above 0 ({keys}), but {name}.iterations is not 0")


def _check_parts_of_phases(config: Config) -> None:
    """Raise NernError for what is set and has no part in training by phases."""
    usual = {item["name"]: item for item in listed_phases(recipe_values(config.recipe)).get("phases", [])}
    for phase in config.phases:
        of_recipe = usual.get(phase.name, {"name": phase.name} | KNOWN.get(phase.name, {}))
        set_apart = {key: value for key, value in settings_of(phase).items() if value != of_recipe.get(key)}
        for key, value in set_apart.items():
            if not phase.runs and (key in ("losses", "errors", "images", "bits") or not config.by_phases):
                raise NernError(
                    f"{phase.name}.{key} (={value}) has no effect: that phase has no length; set {phase.name}.iterations"
                )
    if not config.by_phases:
        return
    if config.loss_warmup_iterations != Config().loss_warmup_iterations:
        raise NernError(
            f"loss_warmup_iterations (={config.loss_warmup_iterations}) has no effect in a run by phases; set "
            "reconstruction.iterations"
        )
    trained = [phase for phase in config.phases if phase.length]
    if config.teacher.asked_for and not any(phase.needs_images for phase in trained):
        raise NernError("teacher has no effect without a phase of distillation; set distillation.iterations")
    if config.epochs is not None or config.num_iterations is not None:
        raise NernError(
            f"phases set their own lengths{_by_recipe(config)}; set epochs and num_iterations to null (epochs is "
            f"{config.epochs}, num_iterations {config.num_iterations}), and distillation.epochs or .iterations to what is "
            "wanted"
        )
    errors = "plain"
    for phase in config.phases:
        errors = phase.errors or errors if phase.runs else errors
        if errors == "curvature" and phase.length and not phase.needs_images:
            _check_filters(config, phase)
    _check_optim_over_recipe(config, usual)


def _check_batches(config: Config, section: str, method: registry.Choice, size: int | None) -> None:
    """Raise NernError for weight batches that need a size, or a larger one."""
    if registry.WEIGHT_BATCHES.info(method)["needs_size"] and size is None:
        raise NernError(f"the weight batch method {method!r} of {section} needs {section}.weights_batch_size")
    if config.nern.norm_layer == "bn" and size == 1:
        raise NernError(f"nern.norm_layer 'bn' needs statistics of several kernels; {section}.weights_batch_size is 1")


def _check_filters(config: Config, phase: PhaseConfig) -> None:
    """Raise NernError for weight batches of a phase by curvature that do not draw whole filters where they have to."""
    method, _ = phase_batches(config, phase)
    choices = [m for m in registry.WEIGHT_BATCHES if registry.WEIGHT_BATCHES.info(m)["whole_filters"]]
    if config.nern.reconstruction_rows == "drawn" and registry.name_of(method) not in choices:
        raise NernError(
            f"{phase.name} compares whole filters, but nern.reconstruction_rows is 'drawn' and its weight batch method is "
            f"{method!r}; set {phase.name}.weights_batch_method to one of {', '.join(choices)}"
        )


def _check_teacher(config: Config) -> None:
    """Names of `teacher`, and what it needs."""
    teacher = config.teacher
    if teacher.asked_for and config.nern.distillation_loss_weight <= 0:
        raise NernError(
            "teacher names the network whose outputs are distilled; set nern.distillation_loss_weight above 0"
        )
    if teacher.original_model_name is None:
        if teacher.original_model_path is not None or teacher.original_model_kwargs:
            raise NernError("teacher.original_model_name is null, so the original network is the teacher; set it, too")
        return
    if ":" not in teacher.original_model_name:
        registry.ORIGINALS[teacher.original_model_name]
    if config.networks:
        raise NernError("teacher.original_model_name works with one original network; networks lists several")


def _check_optim_over_recipe(config: Config, usual: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise NernError for a key of `optim` that was set over a recipe, but that the recipe sets for each phase."""
    phases, recipe = [phase for phase in config.phases if phase.length], recipe_values(config.recipe)
    for field in fields(OptimConfig):
        key, given = field.name, getattr(config.optim, field.name)
        standard = nested_value(recipe, f"optim.{key}", getattr(OptimConfig(), key))
        by_recipe = [usual.get(phase.name, {}).get("optim", {}).get(key) for phase in phases]
        now = [phase.optim.get(key) for phase in phases]
        if phases and None not in by_recipe and plain(now) == by_recipe and plain(given) != plain(standard):
            names = ", ".join(f"{phase.name}.optim.{key}" for phase in phases)
            raise NernError(f"optim.{key} (={given}) has no effect: recipe {config.recipe!r} sets {names}; set those")


# What a predictor has that holds something of each kernel, and asks nothing of an encoding or an order.
_OF_MLPS = (
    "hidden_layer_size", "num_blocks", "act_layer", "norm_layer", "output_scales", "embeddings.type",
    "embeddings.enc_levels", "embeddings.permutations.permute_mode",
)  # fmt: skip


def _check_of_kernels(config: Config) -> None:
    n, usual = config.nern, NernConfig()
    if n.kind_of_heads == "shared":
        raise NernError(
            f"nern.method {n.method!r} has a basis for each head; nern.heads must be 'per_size' or 'per_layer'"
        )
    for key in _OF_MLPS:
        value, standard = nested_attribute(n, key), nested_attribute(usual, key)
        if value != standard:
            raise NernError(
                f"nern.{key} has no effect with nern.method {n.method!r}; leave it at {standard!r} (as recipe 'codes'), not "
                f"{value!r}"
            )
    if config.networks:
        raise NernError(f"nern.method {n.method!r} works with one original network; networks lists several")


def _by_recipe(config: Config) -> str:
    return "" if config.recipe == "published" else f" (recipe {config.recipe!r} sets distillation.iterations)"


def check_optim(optim: OptimConfig, section: str = "optim") -> None:
    """Names, numbers and combinations of an `optim` section, beyond the lower limits of numbers."""
    _check_choice(f"{section}.optimizer_type", optim.optimizer_type, registry.OPTIMIZERS)
    _check_choice(f"{section}.lr_scheduler_type", optim.lr_scheduler_type, registry.SCHEDULES)
    for key in ("max_gradient_norm", "max_gradient"):
        value = getattr(optim, key)
        if value is not None and not 0 <= value < float("inf"):
            raise NernError(f"{section}.{key} (={value}) must be above 0, or 0 for no clipping")
    for beta in optim.betas:
        if not 0 <= beta < 1:
            raise NernError(f"{section}.betas (={list(optim.betas)}) must lie in [0, 1)")
    if not 0 < optim.warmup < 1:
        raise NernError(f"{section}.warmup (={optim.warmup}) must lie between 0 and 1: it is a share of the steps")
    if optim.min_lr > optim.lr:
        raise NernError(f"{section}.min_lr (={optim.min_lr}) must not be above {section}.lr (={optim.lr})")
    if optim.lr_scheduler_type == "exponential" and optim.gamma == 0 and optim.min_lr == 0:
        raise NernError(f"{section}.gamma 0 (computed) needs {section}.min_lr above 0")


def check_logging(logging: LoggingConfig) -> None:
    """Names and combinations of a `logging` section."""
    registry.TRACKERS[logging.tracker]
    name, parts = logging.exp_name, Path(logging.exp_name).parts
    if not name.strip() or "\0" in name or not parts or Path(name).is_absolute() or ".." in parts:
        raise NernError(f"logging.exp_name (={name!r}) must name a folder in logging.log_dir: 'NAME', or 'GROUP/NAME'")


def _check_combinations(config: Config) -> None:
    n, e = config.nern, config.nern.embeddings
    weights = loss_weights(n).values()
    if not all(math.isfinite(number) for number in (*weights, *e.gauss_scale)):
        raise NernError("the loss weights under nern and nern.embeddings.gauss_scale must be finite numbers")
    if n.reconstruction_loss_weight < 0 or not any(weight > 0 for weight in weights):
        raise NernError(
            "nern.reconstruction_loss_weight must not be negative, and one of the loss weights must be above 0"
        )
    if not config.by_phases and (config.epochs is None) == (config.num_iterations is None):
        given = f"epochs is {config.epochs} and num_iterations is {config.num_iterations}"
        raise NernError(f"set exactly one of epochs and num_iterations, the other to null ({given})")
    if registry.PREDICTORS.info(n.method)["of_kernels"]:
        _check_of_kernels(config)
    wanted = registry.PREDICTORS.info(n.method)["num_idxs"]
    if e.num_idxs != wanted:
        raise NernError(f"nern.method {n.method!r} needs nern.embeddings.num_idxs {wanted}, not {e.num_idxs}")
    by_order = registry.ENCODINGS.info(e.type)["by_order"]
    if e.fusion_mode != "concat" and (by_order or e.type == "ffn"):
        raise NernError(
            f"nern.embeddings.type {e.type!r} has no indices to sum; set nern.embeddings.fusion_mode to 'concat'"
        )
    if by_order and e.num_idxs != KERNEL_INDICES:
        raise NernError(
            f"nern.embeddings.type {e.type!r} encodes places of kernels, but nern.method {n.method!r} predicts single "
            f"weights; set another one of the two"
        )
    if e.type == "ffn" and len(e.gauss_scale) != e.num_idxs:
        raise NernError(
            f"nern.embeddings.gauss_scale (={e.gauss_scale}) needs one number for each of num_idxs (={e.num_idxs})"
        )
    order, recipe = e.permutations, recipe_values(config.recipe)
    if not math.isfinite(order.improve_seconds):
        raise NernError(f"nern.embeddings.permutations.improve_seconds (={order.improve_seconds}) must be finite")
    for key, off in (("improve_seconds", 0), ("metric", "cosine")):
        key, value = f"nern.embeddings.permutations.{key}", getattr(order, key)
        if order.permute_mode == "none" and value not in (off, nested_value(recipe, key)):
            orderings = ", ".join(repr(name) for name in registry.ORDERINGS if name != "none")
            raise NernError(
                f"{key} (={value!r}) is of an ordering, but permute_mode is 'none'; choose one ({orderings}), or set it to "
                f"{off!r}"
            )
    if n.init == "checkpoint" and n.checkpoint_path is None:
        raise NernError("nern.init 'checkpoint' needs nern.checkpoint_path")
    if n.init != "checkpoint" and n.checkpoint_path is not None:
        raise NernError(f"nern.checkpoint_path is set but nern.init is {n.init!r}; set nern.init to 'checkpoint'")
    if not config.by_phases:
        _check_batches(config, "nern", n.weights_batch_method, n.weights_batch_size)
    if n.task_loss_weight > 0 and any(member.task.use_random_data for member in config.members()):
        raise NernError("nern.task_loss_weight above 0 needs labels; task.use_random_data has none")
    if config.evaluation.best_on == "test" and config.evaluation.test_images == 0:
        raise NernError("evaluation.best_on 'test' needs test images; evaluation.test_images is 0")
    for key, default in (("output_size", 3), ("sampling_mode", "center")):
        if n.kind_of_heads != "shared" and getattr(n, key) != default:
            raise NernError(
                f"nern.{key} (={getattr(n, key)}) has an effect only with nern.heads 'shared'; set that, too"
            )
    if not config.learn_norms and config.norm_images not in (0, recipe.get("norm_images")):
        raise NernError(f"norm_images (={config.norm_images}) needs learn_norms: true; set that, too")
    if config.learn_fc_layer and config.networks:
        raise NernError("learn_fc_layer works with one original network; networks lists several")
    if config.networks and (config.original_model_path is not None or config.task != TaskConfig()):
        raise NernError("networks replaces original_model_path and task; set either those or networks")
