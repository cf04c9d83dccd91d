"""The configuration of a NeRN: every key with its type, default and meaning.

Every key of the published framework is here with its default and meaning; keys of ours sit beside them. A string
under a field is its documentation: `nern train --help` prints it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from nern.config.phases import KNOWN, PhaseConfig, listed_phases, place_of, section_names
from nern.config.settings import Settings, built, check_keys
from nern.config.yaml_files import parse_yaml, recipe_values
from nern.errors import unknown_name
from nern.registry import Choice
from nern.typed import AboveZero, FromOne, FromZero, Least, NotNegative, hints_of, typed


def none_name(value: str | None) -> str:
    """null and 'None', which published files use, as the name 'none'."""
    return "none" if value in (None, "None") else str(value)


@dataclass(kw_only=True)
class PermutationsConfig:
    """Ordering: the permutation that makes neighbouring kernels similar, and where it is kept."""

    permute_mode: str | None = None
    """Ordering: 'crossfilter' (all kernels of a layer in one path), 'infilter' (channels within each filter, then
    filters), 'infilter_path' (the same as one path: the next filter begins near the end of the one before; for encodings
    that count kernels along the order), 'none' or null."""
    metric: str = "cosine"
    """How similar two kernels are: 'cosine' (their angle, as published), 'distance' (Euclidean distance of their weights,
    the size of the steps that the predictor has to follow)."""
    num_workers: FromOne = 3
    """Number of threads; each orders one layer at a time."""
    path: str | None = None
    """Folder from which the ordering is read, or to which it is written if it holds none. A folder of published
    `layer_{i}.pt` files will do. An ordering that is read is not checked for being a good one. null: the user's cache,
    keyed by the content of the weights."""
    improve_seconds: NotNegative = 0.0
    """Seconds for making the greedy paths shorter (2-opt and Or-opt), all layers together. 0: off, as published. The
    result depends on the machine's speed. It is kept in the run folder and the cache, where a resumed run finds it."""

    def __post_init__(self) -> None:
        self.permute_mode = none_name(self.permute_mode)


@dataclass(kw_only=True)
class EmbeddingsConfig:
    """Encoding: how a coordinate becomes the vector that the predictor takes."""

    type: Choice = "basic"
    """Encoding of (layer, filter, channel): 'basic' (sines and cosines of pi * base**level * index), 'ffn' (random Fourier
    features). Encoding of a kernel's place along the order of its layer, with a one-hot of the layer: 'order' (frequencies
    in equal ratios, from one half-turn a layer to `bandwidth` half-turns a kernel), 'order_random' (random Fourier features
    of that scale)."""
    num_idxs: FromOne = 3
    """Number of indices of a coordinate: 3 (layer, filter, channel) for the kxk predictors, 5 (also row, column) for
    'basic'."""
    enc_levels: FromOne = 20
    """Number of frequencies of each index."""
    base: AboveZero = 1.25
    """Ratio of successive frequencies (encoding 'basic'). Below 1 the encoding is smooth."""
    fusion_mode: str = "concat"
    """How the encodings of the indices are joined: 'concat', or 'sum' (encoding 'basic' only)."""
    normalization_mode: str | None = "none"
    """Divisor of the indices before encoding: 'none' (raw indices, as in published runs), 'local' (the sizes of the
    index's own layer), 'global' (the largest number in all weight shapes)."""
    gauss_scale: list[float] = field(default_factory=lambda: [1.0, 0.1, 0.1])
    """Standard deviation of the random frequencies of each index (encoding 'ffn'); num_idxs numbers."""
    bandwidth: AboveZero = 1 / 3
    """Half-turns a kernel: the highest frequency (encoding 'order'), or the standard deviation of the frequencies
    ('order_random')."""
    permutations: PermutationsConfig = field(default_factory=PermutationsConfig)

    def __post_init__(self) -> None:
        self.normalization_mode = none_name(self.normalization_mode)


@dataclass(kw_only=True)
class NernConfig:
    """The NeRN: predictor, weight batches, objectives."""

    init: str = "fmod"
    """Initial weights of the predictor: 'default' (PyTorch's), 'fmod' (the published name for the same: the remainder by 2
    of weights that lie within 1), 'siren' (wider, for sines), 'checkpoint' (from checkpoint_path)."""
    checkpoint_path: str | None = None
    """Predictor weights for init 'checkpoint'. A file: a state dict of nern or of the published framework. A run folder: its
    best checkpoint. The ordering of a run, and what was trained beside the predictor, are taken with its checkpoint."""
    method: Choice = "kxk"
    """Predictor: 'kxk' (an MLP whose output is a K x K kernel), 'kxk_nerf' (the same; the encoding enters again half-way),
    'kxk_residual' (the same; the first layer's output is added half-way), 'basic' (an MLP whose output is one weight),
    'codes' (no MLP: a code for each kernel; see recipe 'codes')."""
    output_size: FromOne = 3
    """K, the side of predicted kernels with heads 'shared'. It is at least the side of the network's largest kernel."""
    heads: str | None = None
    """Output layers of a kxk predictor: 'per_size' (one for each kernel size of the network; output_size is not used),
    'per_layer' (one for each layer of the network), 'shared' (one of output_size x output_size, as published; sampling_mode
    reduces its output to smaller kernels). For a network of 3x3 kernels 'per_size' and 'shared' are the same. null:
    'shared' if output_size or sampling_mode differ from their defaults, else 'per_size'."""
    output_scales: str = "none"
    """Factors of the predictions: 'none', 'per_layer' (the root mean square of the layer's weights), 'per_size' (that of all
    weights of the kernel size). The factors are stored with the predictor and counted among its parameters."""
    norm_layer: str | None = "none"
    """Normalisation after each hidden linear layer: 'none', 'bn', 'ln'. Published runs have none, whatever they set."""
    act_layer: Choice = "relu"
    """Activation: 'relu', 'leaky_relu', 'hardswish', 'gelu', 'relu6', 'elu', 'sine' (with init 'siren')."""
    num_blocks: Annotated[int, Least(2)] = 3
    """Number of linear layers, including the final one; at least 2."""
    hidden_layer_size: FromOne = 30
    """Width of the hidden layers."""
    weights_batch_size: FromOne | None = 65536
    """Number of kernels that get gradient in a step (random methods), and of kernels in one call of the predictor. null: no
    limit."""
    weights_batch_method: Choice = "all"
    """Kernels that get gradient in a step: 'all', 'sequential_layer', 'random_layer', 'random_batch',
    'random_batch_without_replacement', 'random_weighted_batch' (80 % uniform, 20 % by kernel norm; all published
    experiments), 'random_filters' (whole filters, the same share of each layer; without a size as many
    kernels as the predictor gives with 1e11 multiply-adds)."""
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    reconstruction_loss_weight: float = 1.0
    """Weight of the reconstruction loss."""
    attention_loss_weight: float = 1e-5
    """Weight of the feature-map loss. 0 or below: off."""
    distillation_loss_weight: float = 1e-5
    """Weight of the distillation loss. 0 or below: off."""
    task_loss_weight: float = 0.0
    """Weight of the task loss, which needs labels. 0 or below: off, as in all published runs."""
    task_loss_type: Choice = "CELoss"
    """Task loss: 'CELoss', 'StableCELoss', 'NLLLoss' (expects log-probabilities), 'NoLoss'."""
    reconstruction_loss_type: Choice = "L2Loss"
    """Reconstruction loss: 'L2Loss' (root of the mean squared error of all weights), 'MSELoss' (mean over layers)."""
    attention_loss_type: Choice = "L2BatchedAttentionLoss"
    """Feature-map loss: 'L2BatchedAttentionLoss', 'L2AttentionLoss', 'SPAttentionLoss'."""
    distillation_loss_type: Choice = "KLDivLoss"
    """Distillation loss: 'KLDivLoss', 'StableKLDivLoss', 'MultiStableKLDivLoss', 'TempStableKLDivLoss' (divergences of the
    softmaxed outputs), 'LogitsL2Loss' (squared errors of the logits)."""
    losses: dict[str, Any] = field(default_factory=dict)
    """Further loss terms, registered by you (docs/extend.md): the weight of each by its name, or a mapping of `weight` and
    settings of its own."""
    sampling_mode: str = "center"
    """How a predicted kernel is reduced to a smaller one (heads 'shared'): 'center', 'average', 'max'."""
    reconstruction_rows: str = "all"
    """Kernels that a step without images predicts and compares: 'all' (as published), 'drawn' (those of the weight batch
    alone: an estimate of the loss, many times faster on large networks)."""
    include: list[str] | None = None
    """Weights to represent: globs on parameter names ('blocks.*.weight'). Only tensors of two or more dimensions are taken.
    null: the network's own choice, by default all convolutions. `nern inspect` shows what is taken."""
    exclude: list[str] = field(default_factory=list)
    """Weights to keep as they are: globs on parameter names. They win over `include`."""
    feature_maps: list[str] | None = None
    """Modules whose outputs the feature-map loss compares: globs on their names, in this order. A module that is named twice
    counts twice. 'NAME:input' takes the input of a module. null: the network's own choice."""

    def __post_init__(self) -> None:
        self.norm_layer = none_name(self.norm_layer)

    @property
    def kind_of_heads(self) -> str:
        """`heads`, with what null means: 'per_size' or 'shared'."""
        sampled = self.output_size != 3 or self.sampling_mode != "center"
        return self.heads or ("shared" if sampled else "per_size")


@dataclass(kw_only=True)
class LoggingConfig:
    """Logging: where a run is written, and what is logged."""

    exp_name: str = "NeRN_Train"
    """Name of the run, 'NAME' or 'GROUP/NAME'. Its folder is log_dir/exp_name; if that exists, even empty, -2, -3, ... is
    added."""
    log_interval: FromOne = 20
    """Steps between two logs of the scalars."""
    log_dir: str = "outputs"
    """Folder in which run folders are made."""
    verbose: bool = False
    """Also log the norms of the weights and gradients of each parameter of the predictor."""
    tracker: str = "tensorboard"
    """Where scalars are logged: 'tensorboard', 'csv' (a file in the run folder), 'wandb', 'mlflow', 'clearml' (each needs
    the extra of its name), 'none'. Checkpoints and results are always written."""
    progress: bool = True
    """Show progress: in a terminal a live bar, elsewhere a line at each evaluation."""


@dataclass(kw_only=True)
class TaskConfig:
    """Task: the data, and the original network that was trained on it."""

    task_name: str = "digits"
    """Task: 'cifar10', 'cifar100', 'imagenet', 'imagefolder' (any folder of images), 'digits' (scikit-learn's, no download),
    or one that you registered. nern pack makes up images unless it is given."""
    imagenet_path: str | None = None
    """Folder of ImageNet. It holds train/ and val/ (or validation/, valid/), each with one folder of images per class."""
    data_dir: str | None = None
    """Folder from which the dataset is read. cifar10, cifar100: null means ./data if it exists, else a download to the
    user's cache. imagefolder: the folder holds train/ and val/ (or test/, validation/, valid/), each with one folder of
    images per class."""
    original_model_name: str = "ResNet8"
    """Architecture of the original network: a registered name ('ResNet20', 'ResNet18', ...; `nern list` shows all),
    'torchvision:NAME', 'timm:NAME', 'package.module:function' or 'file.py:function'."""
    original_model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the architecture. They win over those of the JSON file beside the weights."""
    use_random_data: bool = False
    """Train on made-up images, not on the training set. No labels are used."""
    random_data: Choice = "uniform"
    """Kind of made-up images, with use_random_data: 'uniform' (noise in [-2, 2], as published), 'leaves' (overlapping discs
    of random colours), 'scenes' (shapes of more kinds and sizes, with gradients, out of focus)."""
    input_size: FromOne | None = None
    """Side of the images in pixels, for imagenet and imagefolder. null: as the network's metadata says, else 224."""
    mean: list[float] | None = None
    """Mean of each channel, on the scale 0 to 1. null: as the network's metadata says, else the task's own (for folders that
    of ImageNet)."""
    std: list[float] | None = None
    """Standard deviation of each channel, on the scale 0 to 1. null: as for mean."""
    auto_augment: str | None = None
    """Augmentation policy in timm's notation, for images that are streamed (of imagefolder with a policy, and those of more
    than 512 MB). 'none': off. null: the task's own (imagenet: 'rand-m9-mstd0.5-inc1')."""
    mixup: NotNegative | None = None
    """Alpha of mixup, which blends training images in pairs. null: the task's own (imagenet: 0.8, others: 0)."""
    cutmix: NotNegative | None = None
    """Alpha of cutmix, which pastes a rectangle of another image. null: the task's own (imagenet: 1.0, others: 0)."""


@dataclass(kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    optimizer_type: Choice = "adamw"
    """Optimizer: 'sgd' (Nesterov), 'adamw', 'adadelta', 'ranger', 'muon', 'soap'."""
    lr: AboveZero = 1e-4
    """Learning rate at the start; with schedule 'onecycle' the highest one."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Decay factors of the moments, for adamw, ranger, soap and the AdamW part of muon."""
    momentum: NotNegative = 0.9
    """Momentum, for sgd and muon."""
    weight_decay: NotNegative = 1e-3
    """Weight decay. It is decoupled in adamw and ranger."""
    ranger_use_gc: bool = True
    """Gradient centralisation, for ranger. Published runs had it on, even if they set false: set true to repeat them."""
    max_gradient_norm: float | None = None
    """Largest global norm of the gradient; larger ones are clipped. null or 0: no clipping."""
    max_gradient: float | None = None
    """Largest absolute value of a number of the gradient; larger ones are clipped. null or 0: no clipping."""
    lr_scheduler_type: Choice = "cosine"
    """Schedule: 'cosine', 'exponential', 'onecycle' (up to lr, then a cosine down), 'constant'."""
    warmup: float = 0.3
    """Share of the steps in which the rate of 'onecycle' rises, from lr / 25 to lr."""
    min_lr: NotNegative = 1e-6
    """Lowest learning rate. The schedule stops at or below it."""
    step_interval: FromZero = 1
    """Steps between two changes of the rate by 'exponential'. 0: a hundredth of the run. For 'cosine' always 1."""
    gamma: NotNegative = 0.0
    """Factor of the rate in 'exponential'. 0: the factor that reaches min_lr at the end."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """Evaluation: the images, and the choice of the best checkpoint."""

    best_on: str = "held_out"
    """Images on which the best checkpoint is chosen: 'held_out' (training images that are set aside; test images only
    report), 'test' (the published choice; nothing is set aside)."""
    held_out_images: FromOne = 1000
    """Number of training images that are set aside to choose the best checkpoint; at most a tenth of the training set. With
    task.use_random_data they are made-up images that are not trained on."""
    test_images: FromZero | None = None
    """Number of test images. null: all. 0: none; the test set is not loaded (runs without data)."""
    batch_size: FromOne = 500
    """Number of images in one evaluation batch; large ones go through the network a part at a time."""


@dataclass(kw_only=True)
class TeacherConfig:
    """Teacher: the network whose outputs are distilled."""

    original_model_name: str | None = None
    """Architecture of the teacher, as task.original_model_name. null: the original network is the teacher."""
    original_model_path: str | None = None
    """Weights of the teacher, as original_model_path."""
    original_model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the teacher's architecture, as task.original_model_kwargs."""
    mirrored: bool | None = False
    """Distil the mean of the teacher's outputs over an image and its mirror image. It is a better output if images keep
    their class when left and right change places. null: true if the task says that they do."""

    @property
    def asked_for(self) -> bool:
        """Whether outputs other than those that the task implies are to be distilled."""
        return self.original_model_name is not None or bool(self.mirrored)


@dataclass(kw_only=True)
class NetworkConfig:
    """Networks: one of several original networks in one NeRN, with its own task."""

    original_model_path: str | None = None
    """Weights of the network, as original_model_path."""
    task: TaskConfig = field(default_factory=TaskConfig)
    include: list[str] | None = None
    """As nern.include, for this network; null: nern.include."""
    exclude: list[str] | None = None
    """As nern.exclude, for this network; null: nern.exclude."""
    feature_maps: list[str] | None = None
    """As nern.feature_maps, for this network; null: nern.feature_maps."""


@dataclass(kw_only=True, repr=False)
class Config(Settings):
    """General settings."""

    recipe: str = "published"
    """Defaults of the keys that are left out: 'published' (those of the published framework), 'nern' (the best settings for
    a NeRN; docs/recipe.md), 'codes' (kernels as codes, trained). It holds for files, the command line and
    `Config.of_recipe`; the constructor `Config()` has the published defaults."""
    imports: list[str] = field(default_factory=list)
    """Modules (my_package.networks) or files (networks.py) of yours that are imported first. They register networks, tasks
    and components that other keys name."""
    original_model_path: str | None = None
    """Weights of the original network. A file: a state dict or a training checkpoint of PyTorch, a safetensors file, or the
    .index.json of a file in parts; 'FILE#KEY' names one of several state dicts in it; a .json file of the same name may
    hold arguments of the network. 'pretrained:NAME': weights that ship with nern. 'torchvision', 'timm': the library's
    default weights; 'torchvision:IMAGENET1K_V1', 'timm:TAG': others of the library. null: random weights."""
    networks: list[NetworkConfig] = field(default_factory=list)
    """Several original networks in one NeRN: a list of sections with the keys original_model_path, task, include, exclude
    and feature_maps. It replaces original_model_path and task."""
    nern: NernConfig = field(default_factory=NernConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    num_workers: FromZero = 0
    """Number of worker processes that load images. Tasks with all images in memory need none."""
    num_gpus: FromZero = 1
    """Devices. 0: the CPU. 1: the first GPU, if there is one. Above 1: `nern train` starts a process for each GPU; if there
    are fewer GPUs, a warning says so. Processes that torchrun or accelerate started take one GPU each."""
    batch_size: FromOne = 256
    """Number of images in one training step."""
    epochs: FromZero | None = 250
    """Length of the run in epochs, if neither num_iterations nor phases give it. A length in a file replaces all lengths of
    its base file; a length on the command line replaces those of the file. Two lengths in one place are an error."""
    num_iterations: FromZero | None = None
    """Length of the run in steps, in place of epochs."""
    phases: list[PhaseConfig] = field(default_factory=list)
    """Phases of the run: a list of sections, each with a name. It replaces epochs, num_iterations and
    loss_warmup_iterations, and all phases of the recipe or base file. To change one phase alone, write a section with its
    name: `distillation: {iterations: 3000}`, or --distillation.iterations 3000."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    eval_epochs_interval: FromOne | None = 1
    """Epochs between two evaluations. null: none by epochs. The end of a run is always evaluated."""
    save_epochs_interval: FromOne | None = 400
    """Epochs between two checkpoints that are kept. null: none by epochs. 'best' and 'last' are always kept."""
    eval_iterations_interval: FromOne | None = None
    """Steps between two evaluations. null: none by steps."""
    save_iterations_interval: FromOne | None = None
    """Steps between two checkpoints that are kept. null: none by steps."""
    eval_loss_window_size: FromOne = 20
    """Number of losses in the window of recent losses (feature maps + distillation, unweighted). When the window is full and
    the current loss is not above its minimum, an extra evaluation is made."""
    eval_loss_window_interval: FromOne = 10
    """Steps between two losses that enter that window."""
    save_minutes: NotNegative = 5.0
    """Longest time in minutes between two saves of the state for --resume. Every evaluation saves it, too."""
    loss_warmup_iterations: FromZero = 10000
    """Number of first steps that use the reconstruction loss only."""
    precision: str = "float32"
    """Arithmetic of training: 'float32'; 'tf32' (on a GPU: products of float32 numbers with 10 bits of mantissa); 'bf16' (16
    bits, on CPU and GPU; kernels, losses and parameters stay in float32); 'auto' (bf16 if the machine has instructions for
    it, else float32). Evaluations are in float32."""
    learn_fc_layer: bool = False
    """Also train the final fully connected layer of the reconstructed network. It is saved beside the predictor."""
    learn_norms: bool = False
    """Also train the weights and biases of the normalisation layers, and the biases of represented layers, in steps with
    images. They are saved beside the predictor. They are stored with every NeRN, so this costs no bytes."""
    norm_images: FromZero = 0
    """Number of images on which batch norms and biases are fitted at the end of each phase without images: each channel gets
    the mean that it has in the original on them, by a norm the variance, too. 0: off. It needs learn_norms: true."""
    seed: FromZero = 0
    """Seed of everything random. The same seed on the same machine gives the same result. One exception: an ordering that is
    improved for some seconds may differ when it is solved again; it is kept in the run folder and the cache."""

    @classmethod
    def beneath(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the recipe that `values` name sets for keys that they leave out."""
        return recipe_values(values.get("recipe", "published"))

    @classmethod
    def sections(cls, *layers: Mapping[str, Any]) -> dict[str, Any]:
        """Every phase, by its name."""
        return dict.fromkeys(section_names(*layers), PhaseSection)

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with all phases in the list `phases`, each with all its keys."""
        listed = listed_phases(values)
        if "phases" in listed:
            listed["phases"] = [_typed_phase(item) for item in listed["phases"]]
        return listed

    def may_change(self, key: str) -> bool:
        """Whether a run that has begun may go on with another value of this dotted key: a length, or anything of a phase
        that had no part in it."""
        idle = {*section_names(), *(phase.name for phase in self.phases)} - {p.name for p in self.phases if p.runs}
        return super().may_change(key) or key.partition(".")[0] in idle

    @property
    def by_phases(self) -> bool:
        """Whether the run is divided into phases: one of them has a length."""
        return any(phase.runs for phase in self.phases)

    def phase(self, name: str) -> PhaseConfig:
        """The phase of that name; a known one that is not in the list is put there, without steps.

        Raises:
            NernError: there is none of that name.
        """
        for phase in self.phases:
            if phase.name == name:
                return phase
        if name not in KNOWN:
            raise unknown_name("phase", name, section_names({"phases": [vars(phase) for phase in self.phases]}))
        new = PhaseConfig(name=name, **copy.deepcopy(KNOWN[name]))
        self.phases.insert(place_of(name, [phase.name for phase in self.phases]), new)
        return new

    @classmethod
    def of_recipe(cls, recipe: str, values: Mapping[str, Any] | None = None) -> Config:
        """The config of a recipe, with `values` (nested, keys as in a file) over it."""
        return cls.from_dict({**(values or {}), "recipe": recipe})

    def check(self) -> Config:
        """Raise NernError for the first name, number or combination that cannot work; return self otherwise."""
        from nern.config.checks import check_config  # checks know the schema, too

        check_config(self)
        return self

    def members(self) -> list[NetworkConfig]:
        """The original networks, one or several, with `include`, `exclude` and `feature_maps` filled in."""
        alone = NetworkConfig(original_model_path=self.original_model_path, task=self.task)
        members = copy.deepcopy(self.networks or [alone])
        for member in members:
            member.include = self.nern.include if member.include is None else member.include
            member.exclude = self.nern.exclude if member.exclude is None else member.exclude
            member.feature_maps = self.nern.feature_maps if member.feature_maps is None else member.feature_maps
        return members


@dataclass(kw_only=True)
class PhaseSection(PhaseConfig):
    """PHASE stands for the name of a phase, such as `distillation`. These keys change that phase."""

    optim: OptimConfig = field(default_factory=OptimConfig)  # type: ignore[assignment]


def _typed_phase(item: Mapping[str, Any]) -> PhaseConfig:
    """An item of `phases`. Raises NernError for unknown keys of its `optim`, and for values of wrong types."""
    prefix = f"{item['name']}.optim."
    check_keys(item["optim"], OptimConfig, prefix)
    hints = hints_of(OptimConfig)
    values = {key: typed(value, hints[key], prefix + key, parse_yaml) for key, value in item["optim"].items()}
    phase: PhaseConfig = built(PhaseConfig, {**item, "optim": values}, f"{item['name']}.")
    return phase


def phase_optim(config: Config, phase: PhaseConfig) -> OptimConfig:
    """The section `optim` with what a phase sets apart."""
    return replace(config.optim, **{key: value for key, value in phase.optim.items() if value is not None})


def phase_batches(config: Config, phase: PhaseConfig) -> tuple[Choice, int | None]:
    """Method and size of a phase's weight batches (None: no limit): those of the section `nern` with what the phase sets
    apart."""
    size = config.nern.weights_batch_size if phase.weights_batch_size is None else phase.weights_batch_size
    return phase.weights_batch_method or config.nern.weights_batch_method, size or None
