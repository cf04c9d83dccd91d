"""The one typed configuration: YAML files, dotted overrides, checks before any work starts.

Every key of the published framework is here with its default and meaning; keys of ours sit beside them. A string
under a field is its documentation: `nern train --help` prints it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import importlib.util
import math
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from nern import registry
from nern.errors import NernError, unknown_name
from nern.files import existing_file, load_yaml, write_text

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(kw_only=True)
class PermutationsConfig:
    """Ordering: which permutation makes neighbouring kernels similar, and where it is kept."""

    permute_mode: str | None = None
    """Ordering: 'crossfilter' (all kernels of a layer in one path), 'infilter' (channels within each filter, then
    filters), 'none' or null."""
    num_workers: int = 3
    """Threads that order layers side by side."""
    path: str | None = None
    """Folder the orderings are read from, or written to if it holds none; also a folder of `layer_{i}.pt` files. null:
    the user's cache, keyed by the content of the weights."""


@dataclass(kw_only=True)
class EmbeddingsConfig:
    """Encoding: how a coordinate becomes the vector that the predictor sees."""

    type: str = "basic"
    """Kind of encoding: 'basic' (sines and cosines of pi * base**level * index), 'ffn' (random Fourier features)."""
    num_idxs: int = 3
    """Indices of a coordinate: 3 (layer, filter, channel) for the kxk predictors, 5 (and row, column) for 'basic'."""
    enc_levels: int = 20
    """Number of frequencies of each index."""
    base: float = 1.25
    """Ratio of successive frequencies ('basic'); below 1 the encoding is smooth."""
    fusion_mode: str = "concat"
    """How the encodings of the indices are joined: 'concat', or 'sum' ('basic' only)."""
    normalization_mode: str | None = "none"
    """What indices are divided by before encoding: 'none' (raw, what published runs use), 'local' (the sizes of their
    own layer), 'global' (the largest entry of all weight shapes)."""
    gauss_scale: list[float] = field(default_factory=lambda: [1.0, 0.1, 0.1])
    """Standard deviation of the random frequencies of each index ('ffn'); num_idxs numbers."""
    permutations: PermutationsConfig = field(default_factory=PermutationsConfig)


@dataclass(kw_only=True)
class NernConfig:
    """The NeRN: predictor, weight batches, objectives."""

    init: str = "fmod"
    """Initialisation of the predictor: 'fmod' (remainder by 2 of the default weights, which lie within 1 already, so
    the same as 'default'), 'default' (PyTorch's), 'checkpoint' (from checkpoint_path)."""
    checkpoint_path: str | None = None
    """File of predictor weights for init 'checkpoint': a state dict of ours or of the published framework."""
    method: str = "kxk"
    """Predictor: 'kxk' (an MLP that gives a K x K kernel), 'kxk_nerf' (the encoding enters again half-way),
    'kxk_residual' (the first layer's output is added half-way), 'basic' (one weight for each of five indices)."""
    output_size: int = 3
    """K, the side of predicted kernels (kxk predictors); at least the largest kernel of the network."""
    norm_layer: str | None = "none"
    """Normalisation after each hidden linear layer: 'none' (what published runs do, whatever they set), 'bn', 'ln'."""
    act_layer: str = "relu"
    """Activation: 'relu', 'leaky_relu', 'hardswish', 'gelu', 'relu6', 'elu'."""
    num_blocks: int = 3
    """Number of linear layers, the final one included; at least 2."""
    hidden_layer_size: int = 30
    """Width of the hidden layers."""
    weights_batch_size: int | None = 65536
    """Rows (kernels) that carry gradient in the random methods, and rows in one forward call; null: no limit."""
    weights_batch_method: str = "all"
    """Which rows carry gradient in a step: 'all', 'sequential_layer', 'random_layer', 'random_batch',
    'random_batch_without_replacement', 'random_weighted_batch' (80 % uniform, 20 % by kernel norm; all published
    experiments)."""
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    reconstruction_loss_weight: float = 1.0
    """Weight of the reconstruction loss."""
    attention_loss_weight: float = 1e-5
    """Weight of the feature-map loss; 0 or below switches it off."""
    distillation_loss_weight: float = 1e-5
    """Weight of the output distillation loss; 0 or below switches it off."""
    task_loss_weight: float = 0.0
    """Weight of the task loss (needs labels); 0 or below switches it off, as in all published runs."""
    task_loss_type: str = "CELoss"
    """Task loss: 'CELoss', 'StableCELoss', 'NLLLoss' (expects log-probabilities), 'NoLoss'."""
    reconstruction_loss_type: str = "L2Loss"
    """Reconstruction loss: 'L2Loss' (root of the mean squared error of all weights), 'MSELoss' (mean over layers)."""
    attention_loss_type: str = "L2BatchedAttentionLoss"
    """Feature-map loss: 'L2BatchedAttentionLoss', 'L2AttentionLoss', 'SPAttentionLoss'."""
    distillation_loss_type: str = "KLDivLoss"
    """Distillation loss: 'KLDivLoss', 'StableKLDivLoss', 'MultiStableKLDivLoss', 'TempStableKLDivLoss'."""
    sampling_mode: str = "center"
    """How a predicted kernel is reduced to a smaller one: 'center', 'average', 'max'."""
    feature_maps: list[str] | None = None
    """Modules whose outputs the feature-map loss compares: names or globs, in this order, repeats counted; null: the
    network's own choice."""


@dataclass(kw_only=True)
class LoggingConfig:
    """Logging: where a run is written and what is tracked."""

    exp_name: str = "NeRN_Train"
    """Name of the run; its folder is log_dir/exp_name (with -2, -3, ... if that exists)."""
    log_interval: int = 20
    """Log scalars every so many steps."""
    log_dir: str = "outputs"
    """Folder of run folders."""
    disable_logging: bool = False
    """Track nothing (checkpoints and results are written all the same)."""
    verbose: bool = False
    """Also log the norms of weights and gradients of each predictor parameter."""
    use_tensorboard: bool | None = None
    """true: TensorBoard; false: ClearML (TensorBoard, with a warning, where it is not installed); null: `tracker`."""
    tracker: str = "tensorboard"
    """Where scalars go: 'tensorboard', 'clearml' (the clearml extra), 'none'."""
    progress: bool = True
    """Show a live progress bar (in a terminal) or a line at each evaluation (elsewhere)."""


@dataclass(kw_only=True)
class TaskConfig:
    """Task: the data, and the original network that was trained on it."""

    task_name: str = "digits"
    """Task: 'cifar10', 'cifar100', 'digits' (scikit-learn's, nothing to download), or one you registered."""
    imagenet_path: str | None = None
    """Folder of ImageNet, for a task that reads it."""
    data_dir: str | None = None
    """Folder the dataset is read from; null: ./data if it is there, else downloaded to the user's cache."""
    original_model_name: str = "ResNet8"
    """Architecture of the original network: 'ResNet20', 'ResNet32', 'ResNet44', 'ResNet56', 'ResNet110', 'ResNet8',
    or one you registered."""
    original_model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the architecture, over those of the JSON file beside the weights."""
    use_random_data: bool = False
    """Train on random images (uniform in [-2, 2]) in place of the training set; no labels are used."""


@dataclass(kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    optimizer_type: str = "adamw"
    """Optimizer: 'sgd' (Nesterov), 'adamw', 'adadelta', 'ranger'."""
    lr: float = 1e-4
    """Learning rate at the start."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Moment factors of adamw and ranger."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-3
    """Weight decay (decoupled in adamw and ranger)."""
    ranger_use_gc: bool = True
    """Gradient centralisation in ranger. Published runs had it on even where they set false: set true to repeat them."""
    max_gradient_norm: float | None = None
    """Clip the global gradient norm to this; null: no clipping."""
    max_gradient: float | None = None
    """Clip each gradient entry to this; null: no clipping."""
    lr_scheduler_type: str = "cosine"
    """Schedule: 'cosine', 'exponential'."""
    min_lr: float = 1e-6
    """Lowest learning rate; the schedule stops at or below it."""
    step_interval: int = 1
    """Steps between advances of the exponential schedule; 0: a hundredth of the run. cosine: always 1."""
    gamma: float = 0.0
    """Factor of the exponential schedule; 0: such that min_lr is reached at the end."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """Evaluation: on which images, and how the best checkpoint is chosen."""

    best_on: str = "held_out"
    """What 'best' is chosen on: 'held_out' (training images set aside; the test figure is only reported) or 'test'
    (the published choice; nothing is set aside)."""
    held_out_images: int = 1000
    """Training images set aside for choosing the best checkpoint, at most a tenth of the training set; random images of
    their own where task.use_random_data is set."""
    test_images: int | None = None
    """Test images used; null: all; 0: none, the test set is not even loaded (data-free runs)."""
    batch_size: int = 500
    """Images in one evaluation batch."""


@dataclass(kw_only=True)
class Config:
    """General settings."""

    imports: list[str] = field(default_factory=list)
    """Modules (my_package.networks) or files (networks.py) of yours to import first: those that register the networks
    and tasks which the other keys name."""
    original_model_path: str | None = None
    """Weights of the original network: a .pt, .pth, .th or .safetensors state dict (arguments of the network in a .json
    file of the same name, if any), or 'pretrained:NAME' for one that ships with nern. null: random weights."""
    nern: NernConfig = field(default_factory=NernConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    num_workers: int = 0
    """Worker processes of data loaders (tasks whose images live in memory need none)."""
    num_gpus: int = 1
    """Devices to use. With more than there are: a warning, and what there is."""
    batch_size: int = 256
    """Images in one training step."""
    epochs: int | None = 250
    """Training epochs; exactly one of epochs and num_iterations is set (null unsets one)."""
    num_iterations: int | None = None
    """Training steps; exactly one of epochs and num_iterations is set."""
    eval_epochs_interval: int | None = 1
    """Evaluate every so many epochs; null: not by epochs. The end of a run is always evaluated."""
    save_epochs_interval: int | None = 400
    """Keep a checkpoint every so many epochs; null: none but 'best' and 'last'."""
    eval_iterations_interval: int | None = None
    """Evaluate every so many steps; null: not by steps."""
    save_iterations_interval: int | None = None
    """Keep a checkpoint every so many steps; null: none but 'best' and 'last'."""
    eval_loss_window_size: int = 20
    """Length of a window of recent losses; an extra evaluation is made when it is full and the current loss (feature
    maps + distillation, unweighted) is not above its minimum."""
    eval_loss_window_interval: int = 10
    """A loss enters that window every so many steps."""
    save_minutes: float = 5.0
    """Save the state for --resume at least every so many minutes (and at every evaluation)."""
    loss_warmup_iterations: int = 10000
    """During so many first steps only the reconstruction loss is used."""
    no_cuda: bool = False
    """Run on the CPU even where a GPU is available."""
    learn_fc_layer: bool = False
    """Also train the final fully connected layer of the reconstructed network; it is saved beside the predictor."""
    seed: int = 0
    """Seed of everything random: same seed, same machine, same result."""

    def check(self) -> Config:
        """Raise NernError for the first name, number or combination that cannot work; return self otherwise."""
        self.imports = import_modules(self.imports)
        _check_names(self)
        _check_numbers(self)
        _check_combinations(self)
        return self

    def with_absolute_paths(self) -> Config:
        """A copy whose input files and folders are named from the root: it works from any working directory."""
        config = copy.deepcopy(self)
        permutations = config.nern.embeddings.permutations
        if not (config.original_model_path or "").startswith("pretrained:"):
            config.original_model_path = _absolute(config.original_model_path)
        config.nern.checkpoint_path = _absolute(config.nern.checkpoint_path)
        permutations.path = _absolute(permutations.path)
        config.task.data_dir = _absolute(config.task.data_dir)
        config.task.imagenet_path = _absolute(config.task.imagenet_path)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, keys as in a configuration file."""
        return _plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        """The configuration file that reproduces this one."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=100)

    def save(self, path: str | Path) -> None:
        """Write `to_yaml()` to `path`."""
        write_text(path, self.to_yaml())

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Config:
        """Config from a nested dict, keys as in a file. Raises NernError for unknown keys, wrong types and bad values."""
        values = nested(values)
        check_keys(values)
        try:
            parsed = _parser().parse_object(values, env=False)
        except Exception as error:  # jsonargparse raises ArgumentError with key, expected type and value
            raise NernError(f"bad configuration: {_tidy(error)}") from error
        return from_namespace(parsed.as_dict())

    @staticmethod
    def load(path: str | Path) -> Config:
        """Config from a YAML file; NernError as in `from_dict`."""
        return Config.from_dict(read_config_file(path))


def import_modules(names: list[str]) -> list[str]:
    """Import modules by dotted name (from the working directory, too) or by path to a .py file, each once.

    Returns the names, paths made absolute. Raises NernError for one that does not exist or fails.
    """
    resolved = []
    for name in names:
        path = Path(name).expanduser().resolve() if name.endswith(".py") else None
        resolved.append(name if path is None else str(path))
        try:
            if path is None:
                with _importable(Path.cwd()):
                    importlib.import_module(name)
            elif (module_name := f"nern_import_{path.stem}_{abs(hash(path)):x}") not in sys.modules:
                spec = importlib.util.spec_from_file_location(module_name, existing_file(path, "imports"))
                assert spec is not None
                assert spec.loader is not None
                sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
                try:
                    spec.loader.exec_module(module)
                except BaseException:
                    del sys.modules[module_name]
                    raise
        except NernError:
            raise
        except Exception as error:
            raise NernError(f"imports: {name!r} cannot be imported ({type(error).__name__}: {error})") from error
    return resolved


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def from_namespace(values: Mapping[str, Any]) -> Config:
    """Config from a nested dict whose types were checked already."""
    config: Config = _build(Config, values)
    return config.check()


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The nested dict in a YAML file, its keys checked and dotted ones unfolded. Numbers such as 5e-3 are numbers."""
    values = load_yaml(path, "configuration file", parse_yaml)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise NernError(f"configuration file {path} holds {type(values).__name__}, not keys and values")
    values = nested(values, where=str(path))
    check_keys(values, where=str(path))
    return values


def known_keys(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its field type, sections included (their type is the dataclass)."""
    hints = typing.get_type_hints(cls)
    keys: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        keys[prefix + f.name] = hints[f.name]
        if dataclasses.is_dataclass(hints[f.name]):
            keys |= known_keys(typing.cast(type, hints[f.name]), f"{prefix}{f.name}.")
    return keys


def check_key(key: str, where: str = "") -> None:
    """Raise NernError if the dotted `key` does not exist, naming the section's keys and the nearest."""
    known = known_keys()
    if key in known:
        return
    section = key.rpartition(".")[0]
    if typing.get_origin(known.get(section)) is dict:  # an entry of a free mapping
        return
    while section and not dataclasses.is_dataclass(known.get(section)):
        section = section.rpartition(".")[0]
    prefix = f"{section}." if section else ""
    choices = [name for name in known if name.startswith(prefix) and "." not in name.removeprefix(prefix)]
    elsewhere = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f" (there is {', '.join(elsewhere)})" if elsewhere else ""
    error = unknown_name("configuration key", key, choices)
    raise NernError(f"{_at(where)}{error}{hint}")


def _at(where: str) -> str:
    """`where` as the beginning of a message."""
    return f"{where}: " if where else ""


def nested(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`values` with dotted keys ("nern.init") unfolded into sections. Raises NernError for one that is given twice."""
    unfolded: dict[str, Any] = {}

    def put(target: dict[str, Any], key: str, value: Any, path: str) -> None:
        first, _, rest = key.partition(".")
        if rest or isinstance(value, Mapping):
            section = target.setdefault(first, {})
            if not isinstance(section, dict):
                raise NernError(f"{_at(where)}{path} is given twice")
            for name, entry in {rest: value}.items() if rest else value.items():
                put(section, str(name), entry, f"{path}.{name}" if not rest else path)
        elif first in target:
            raise NernError(f"{_at(where)}{path} is given twice")
        else:
            target[first] = value

    for key, value in values.items():
        put(unfolded, str(key), value, str(key))
    return unfolded


def check_keys(values: Mapping[str, Any], prefix: str = "", where: str = "") -> None:
    """`check_key` for every key of a nested mapping; a section must hold a mapping."""
    known = known_keys()
    for name, value in values.items():
        key = f"{prefix}{name}"
        check_key(key, where)
        if dataclasses.is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise NernError(f"{_at(where)}{key} is a section; it needs keys, not {value!r}")
            check_keys(value, f"{key}.", where)


@functools.cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    return parser


def parse_yaml(text: str) -> Any:
    """What a YAML text holds. Numbers such as 5e-3 are numbers; nothing in it is executed."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 plus numbers without a dot in the mantissa (5e-3), as users write them; a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value in seen and key_node.value != "<<":
                raise NernError(f"key {key_node.value!r} is given twice, again in line {key_node.start_mark.line + 1}")
            seen.add(key_node.value if isinstance(key_node, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: a name such as '1e3' is quoted."""


_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _reader_or_writer in (_Loader, _Dumper):  # add_implicit_resolver copies the inherited table first
    _reader_or_writer.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))


def _build(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = typing.get_type_hints(cls)
    built = {}
    for f in dataclasses.fields(cls):
        if f.name in values:
            value, hint = values[f.name], hints[f.name]
            if value is None and type(None) not in typing.get_args(hint):
                raise NernError(
                    f"{prefix}{f.name} needs a value ({getattr(hint, '__name__', hint)}); null is not allowed"
                )
            section = dataclasses.is_dataclass(hint)
            built[f.name] = _build(hint, value, f"{prefix}{f.name}.") if section else value
    return cls(**built)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _tidy(error: Exception) -> str:
    return " ".join(str(error).split())


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def none_name(value: str | None) -> str:
    """null and 'None' as the name 'none'."""
    return "none" if value is None or value == "None" else value


def _check_names(config: Config) -> None:
    n, e = config.nern, config.nern.embeddings
    e.normalization_mode, n.norm_layer = none_name(e.normalization_mode), none_name(n.norm_layer)
    e.permutations.permute_mode = none_name(e.permutations.permute_mode)
    for names, given in (
        (registry.TASKS, config.task.task_name),
        (registry.ORIGINALS, config.task.original_model_name),
        (registry.PREDICTORS, n.method),
        (registry.ACTIVATIONS, n.act_layer),
        (registry.NORM_LAYERS, n.norm_layer),
        (registry.INITS, n.init),
        (registry.ENCODINGS, e.type),
        (registry.ORDERINGS, e.permutations.permute_mode),
        (registry.SAMPLING_MODES, n.sampling_mode),
        (registry.WEIGHT_BATCHES, n.weights_batch_method),
        (registry.RECONSTRUCTION_LOSSES, n.reconstruction_loss_type),
        (registry.FEATURE_MAP_LOSSES, n.attention_loss_type),
        (registry.DISTILLATION_LOSSES, n.distillation_loss_type),
        (registry.TASK_LOSSES, n.task_loss_type),
        (registry.OPTIMIZERS, config.optim.optimizer_type),
        (registry.SCHEDULES, config.optim.lr_scheduler_type),
        (registry.TRACKERS, config.logging.tracker),
    ):
        names[given]
    for key, given, choices in (
        ("nern.embeddings.fusion_mode", e.fusion_mode, ("concat", "sum")),
        ("nern.embeddings.normalization_mode", e.normalization_mode, ("none", "local", "global")),
        ("evaluation.best_on", config.evaluation.best_on, ("held_out", "test")),
    ):
        if given not in choices:
            raise unknown_name(key, given, choices)


_AT_LEAST = {
    "nern.output_size": 1,
    "nern.num_blocks": 2,
    "nern.hidden_layer_size": 1,
    "nern.weights_batch_size": 1,
    "nern.embeddings.enc_levels": 1,
    "nern.embeddings.num_idxs": 1,
    "nern.embeddings.permutations.num_workers": 1,
    "logging.log_interval": 1,
    "evaluation.held_out_images": 1,
    "evaluation.test_images": 0,
    "evaluation.batch_size": 1,
    "optim.step_interval": 0,
    "optim.weight_decay": 0,
    "optim.momentum": 0,
    "optim.min_lr": 0,
    "optim.gamma": 0,
    "num_workers": 0,
    "num_gpus": 0,
    "batch_size": 1,
    "epochs": 0,
    "num_iterations": 0,
    "eval_epochs_interval": 1,
    "save_epochs_interval": 1,
    "eval_iterations_interval": 1,
    "save_iterations_interval": 1,
    "eval_loss_window_size": 1,
    "eval_loss_window_interval": 1,
    "save_minutes": 0,
    "loss_warmup_iterations": 0,
    "seed": 0,
}
_ABOVE_ZERO = ("optim.lr", "optim.max_gradient_norm", "optim.max_gradient", "nern.embeddings.base")


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _check_numbers(config: Config) -> None:
    for key, least in _AT_LEAST.items():
        value = _get(config, key)
        if value is not None and not value >= least:
            raise NernError(f"{key} (={value}) must be at least {least}")
    for key in _ABOVE_ZERO:
        value = _get(config, key)
        if value is not None and not 0 < value < float("inf"):
            raise NernError(f"{key} (={value}) must be above 0")
    for beta in config.optim.betas:
        if not 0 <= beta < 1:
            raise NernError(f"optim.betas (={list(config.optim.betas)}) must lie in [0, 1)")


def _check_combinations(config: Config) -> None:
    n, e, o = config.nern, config.nern.embeddings, config.optim
    weights = [getattr(n, f"{term}_loss_weight") for term in ("reconstruction", "attention", "distillation", "task")]
    if not all(math.isfinite(number) for number in (*weights, *e.gauss_scale)):
        raise NernError("the loss weights under nern and nern.embeddings.gauss_scale must be finite numbers")
    if n.reconstruction_loss_weight < 0 or not any(weight > 0 for weight in weights):
        raise NernError(
            "nern.reconstruction_loss_weight must not be negative, and one of the loss weights must be above 0"
        )
    if not config.logging.exp_name.strip("/ ") or "\0" in config.logging.exp_name:
        raise NernError(f"logging.exp_name (={config.logging.exp_name!r}) must name a folder")
    if (config.epochs is None) == (config.num_iterations is None):
        given = f"epochs is {config.epochs} and num_iterations is {config.num_iterations}"
        raise NernError(f"set exactly one of epochs and num_iterations, the other to null ({given})")
    wanted = registry.PREDICTORS.info(n.method)["num_idxs"]
    if e.num_idxs != wanted:
        raise NernError(f"nern.method {n.method!r} needs nern.embeddings.num_idxs {wanted}, not {e.num_idxs}")
    if e.type == "ffn":
        if e.fusion_mode != "concat":
            raise NernError(
                "nern.embeddings.type 'ffn' mixes all indices in every feature; fusion_mode must be 'concat'"
            )
        if len(e.gauss_scale) != e.num_idxs:
            raise NernError(
                f"nern.embeddings.gauss_scale (={e.gauss_scale}) needs one number for each of num_idxs (={e.num_idxs})"
            )
    if n.init == "checkpoint" and n.checkpoint_path is None:
        raise NernError("nern.init 'checkpoint' needs nern.checkpoint_path")
    if n.init != "checkpoint" and n.checkpoint_path is not None:
        raise NernError(f"nern.checkpoint_path is set but nern.init is {n.init!r}; set nern.init to 'checkpoint'")
    if registry.WEIGHT_BATCHES.info(n.weights_batch_method)["needs_size"] and n.weights_batch_size is None:
        raise NernError(f"nern.weights_batch_method {n.weights_batch_method!r} needs nern.weights_batch_size")
    if n.norm_layer == "bn" and n.weights_batch_size == 1:
        raise NernError("nern.norm_layer 'bn' needs statistics of several rows; nern.weights_batch_size is 1")
    if config.task.use_random_data and n.task_loss_weight > 0:
        raise NernError("nern.task_loss_weight above 0 needs labels; task.use_random_data has none")
    if config.evaluation.best_on == "test" and config.evaluation.test_images == 0:
        raise NernError("evaluation.best_on 'test' needs test images; evaluation.test_images is 0")
    if o.min_lr > o.lr:
        raise NernError(f"optim.min_lr (={o.min_lr}) must not be above optim.lr (={o.lr})")
    if o.lr_scheduler_type == "exponential" and o.gamma == 0 and o.min_lr == 0:
        raise NernError("optim.gamma 0 (computed) needs optim.min_lr above 0")
    if config.logging.use_tensorboard and config.logging.tracker != "tensorboard":
        raise NernError(f"logging.use_tensorboard is true but logging.tracker is {config.logging.tracker!r}; drop one")
