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
from nern.config.recipes import recipe_values
from nern.config.settings import Settings, built, check_keys
from nern.config.yaml_files import parse_yaml
from nern.errors import unknown_name
from nern.registry import Choice
from nern.typed import AboveZero, FromOne, FromZero, Least, NotNegative, hints_of, typed


def none_name(value: str | None) -> str:
    """null and 'None', which published files use, as the name 'none'."""
    return "none" if value in (None, "None") else str(value)


@dataclass(kw_only=True)
class PermutationsConfig:
    """Ordering: which permutation makes neighbouring kernels similar, and where it is kept."""

    permute_mode: str | None = None
    """Ordering: 'crossfilter' (all kernels of a layer in one path), 'infilter' (channels within each filter, then
    filters), 'infilter_path' (the same as one path, where the next filter begins near the end of the one before: for
    encodings that count kernels along the order), 'none' or null."""
    metric: str = "cosine"
    """What makes kernels neighbours in an ordering: 'cosine' (their angle, as published), 'distance' (Euclidean: how far
    apart their weights are, the size of the steps that the predictor has to follow)."""
    num_workers: FromOne = 3
    """Threads that order layers side by side."""
    path: str | None = None
    """Folder the orderings are read from, or written to if it holds none; also a folder of `layer_{i}.pt` files. null:
    the user's cache, keyed by the content of the weights. What is read is taken as it is."""
    improve_seconds: NotNegative = 0.0
    """Time for making the greedy paths shorter (2-opt and Or-opt), of all layers together; 0: off, as published. How far
    it gets depends on the machine's speed; the order is kept in the run folder and the cache, where a resumed run finds
    it."""

    def __post_init__(self) -> None:
        self.permute_mode = none_name(self.permute_mode)


@dataclass(kw_only=True)
class EmbeddingsConfig:
    """Encoding: how a coordinate becomes the vector that the predictor sees."""

    type: Choice = "basic"
    """Kind of encoding: 'basic' (sines and cosines of pi * base**level * index), 'ffn' (random Fourier features); of a
    kernel's place along the order of its layer, with a one-hot of the layer: 'order' (frequencies in equal ratios, from
    one half-turn a layer to `bandwidth` half-turns a kernel), 'order_random' (random Fourier features of that scale)."""
    num_idxs: FromOne = 3
    """Indices of a coordinate: 3 (layer, filter, channel) for the kxk predictors, 5 (and row, column) for 'basic'."""
    enc_levels: FromOne = 20
    """Number of frequencies of each index."""
    base: AboveZero = 1.25
    """Ratio of successive frequencies ('basic'); below 1 the encoding is smooth."""
    fusion_mode: str = "concat"
    """How the encodings of the indices are joined: 'concat', or 'sum' ('basic' only)."""
    normalization_mode: str | None = "none"
    """What indices are divided by before encoding: 'none' (raw, what published runs use), 'local' (the sizes of their
    own layer), 'global' (the largest entry of all weight shapes)."""
    gauss_scale: list[float] = field(default_factory=lambda: [1.0, 0.1, 0.1])
    """Standard deviation of the random frequencies of each index ('ffn'); num_idxs numbers."""
    bandwidth: AboveZero = 1 / 3
    """Half-turns a kernel: of the highest frequency ('order'), or the frequencies' standard deviation ('order_random')."""
    permutations: PermutationsConfig = field(default_factory=PermutationsConfig)

    def __post_init__(self) -> None:
        self.normalization_mode = none_name(self.normalization_mode)


@dataclass(kw_only=True)
class NernConfig:
    """The NeRN: predictor, weight batches, objectives."""

    init: str = "fmod"
    """Initialisation of the predictor: 'fmod' (remainder by 2 of the default weights, which lie within 1 already, so
    the same as 'default'), 'default' (PyTorch's), 'siren' (wider, as sines need), 'checkpoint' (from
    checkpoint_path)."""
    checkpoint_path: str | None = None
    """File of predictor weights for init 'checkpoint': a state dict of ours or of the published framework."""
    method: Choice = "kxk"
    """Predictor: 'kxk' (an MLP that gives a K x K kernel), 'kxk_nerf' (the encoding enters again half-way),
    'kxk_residual' (the first layer's output is added half-way), 'basic' (one weight for each of five indices)."""
    output_size: FromOne = 3
    """K, the side of predicted kernels with heads 'shared'; at least the largest kernel of the network."""
    heads: str | None = None
    """Output layers of a kxk predictor: 'per_size' (one for each kernel size of the network, which output_size has no
    part in), 'per_layer' (one for each layer), 'shared' (one of output_size x output_size, reduced to smaller kernels by
    sampling_mode, as published). For a network of 3 x 3 kernels 'per_size' and 'shared' are the same. null: 'per_size', but
    'shared' where output_size or sampling_mode are set to other than their defaults."""
    output_scales: str = "none"
    """What predictions are multiplied by: 'none', 'per_layer' (the root mean square of their layer's weights), 'per_size'
    (of all weights of their kernel size). These numbers are kept with the predictor, and counted among its parameters."""
    norm_layer: str | None = "none"
    """Normalisation after each hidden linear layer: 'none' (what published runs do, whatever they set), 'bn', 'ln'."""
    act_layer: Choice = "relu"
    """Activation: 'relu', 'leaky_relu', 'hardswish', 'gelu', 'relu6', 'elu', 'sine' (with init 'siren')."""
    num_blocks: Annotated[int, Least(2)] = 3
    """Number of linear layers, the final one included; at least 2."""
    hidden_layer_size: FromOne = 30
    """Width of the hidden layers."""
    weights_batch_size: FromOne | None = 65536
    """Rows (kernels) that carry gradient in the random methods, and rows in one forward call; null: no limit."""
    weights_batch_method: Choice = "all"
    """Which rows carry gradient in a step: 'all', 'sequential_layer', 'random_layer', 'random_batch',
    'random_batch_without_replacement', 'random_weighted_batch' (80 % uniform, 20 % by kernel norm; all published
    experiments), 'random_filters' (all kernels of filters, of each layer the same share)."""
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    reconstruction_loss_weight: float = 1.0
    """Weight of the reconstruction loss."""
    attention_loss_weight: float = 1e-5
    """Weight of the feature-map loss; 0 or below switches it off."""
    distillation_loss_weight: float = 1e-5
    """Weight of the output distillation loss; 0 or below switches it off."""
    task_loss_weight: float = 0.0
    """Weight of the task loss (needs labels); 0 or below switches it off, as in all published runs."""
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
    """Further terms of the objective, registered by you (docs/extending.md): the weight of each by its name, or a mapping of
    `weight` and settings of its own."""
    sampling_mode: str = "center"
    """How a predicted kernel is reduced to a smaller one (heads 'shared'): 'center', 'average', 'max'."""
    reconstruction_rows: str = "all"
    """Rows that a step without images predicts and compares: 'all' (as published), 'drawn' (those of the weight batch
    alone: an estimate of the loss, many times faster on large networks)."""
    include: list[str] | None = None
    """Weights to represent: globs on parameter names ('blocks.*.weight'; tensors of two or more dimensions). null: the
    network's own choice, all convolutions unless it says otherwise. `nern inspect` shows what is taken."""
    exclude: list[str] = field(default_factory=list)
    """Weights to keep as they are: globs on parameter names, over `include`."""
    feature_maps: list[str] | None = None
    """Modules whose outputs the feature-map loss compares: globs on their names, in this order, repeats counted;
    'NAME:input' takes what goes into a module. null: the network's own choice."""

    def __post_init__(self) -> None:
        self.norm_layer = none_name(self.norm_layer)

    @property
    def kind_of_heads(self) -> str:
        """`heads`, with what null means: 'per_size' or 'shared'."""
        sampled = self.output_size != 3 or self.sampling_mode != "center"
        return self.heads or ("shared" if sampled else "per_size")


@dataclass(kw_only=True)
class LoggingConfig:
    """Logging: where a run is written and what is tracked."""

    exp_name: str = "NeRN_Train"
    """Name of the run, 'NAME' or 'GROUP/NAME'; its folder is log_dir/exp_name (with -2, -3, ... if that is there, even
    empty)."""
    log_interval: FromOne = 20
    """Log scalars every so many steps."""
    log_dir: str = "outputs"
    """Folder of run folders."""
    verbose: bool = False
    """Also log the norms of weights and gradients of each predictor parameter."""
    tracker: str = "tensorboard"
    """Where scalars go: 'tensorboard', 'clearml' (the clearml extra), 'none' (checkpoints and results are written all the
    same)."""
    progress: bool = True
    """Show a live progress bar (in a terminal) or a line at each evaluation (elsewhere)."""


@dataclass(kw_only=True)
class TaskConfig:
    """Task: the data, and the original network that was trained on it."""

    task_name: str = "digits"
    """Task: 'cifar10', 'cifar100', 'imagenet', 'imagefolder' (any folder of images), 'digits' (scikit-learn's, nothing to
    download), or one you registered."""
    imagenet_path: str | None = None
    """Folder of ImageNet: it holds train/ and val/ (or validation/ or valid/), each with a folder of images a class."""
    data_dir: str | None = None
    """Folder the dataset is read from. cifar: null means ./data if it is there, else downloaded to the user's cache.
    imagefolder: holds train/ and val/ (or test/, validation/, valid/), each with a folder of images a class."""
    original_model_name: str = "ResNet8"
    """Architecture of the original network: a registered name ('ResNet20', 'ResNet18', ...; `nern list` shows all),
    'torchvision:NAME', 'timm:NAME', 'package.module:function' or 'file.py:function', or one you registered."""
    original_model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the architecture, over those of the JSON file beside the weights."""
    use_random_data: bool = False
    """Train on made-up images in place of the training set; no labels are used."""
    random_data: Choice = "uniform"
    """How they are made (use_random_data): 'uniform' (noise in [-2, 2], as published), 'leaves' (overlapping discs of
    random colours), 'inversion' (optimised until the original's batch-norm statistics match; a pool of so many images, so
    many steps each: {name: inversion, images: 512, steps: 150})."""
    input_size: FromOne | None = None
    """Side of the images in pixels, for imagenet and imagefolder; null: what the network's metadata says, else 224."""
    mean: list[float] | None = None
    """Mean of each channel on the scale 0 to 1; null: what the network says, else the task's own (ImageNet's for
    folders)."""
    std: list[float] | None = None
    """Standard deviation of each channel, as mean."""
    auto_augment: str | None = None
    """Augmentation policy in timm's notation, for images that are streamed; 'none' switches it off; null: the task's own
    (imagenet: 'rand-m9-mstd0.5-inc1')."""
    mixup: NotNegative | None = None
    """Mixup alpha: training images are blended in pairs. null: the task's own (imagenet: 0.8, others 0)."""
    cutmix: NotNegative | None = None
    """Cutmix alpha: a rectangle of another image is pasted in. null: the task's own (imagenet: 1.0, others 0)."""
    in_memory: bool | None = None
    """imagefolder: hold all images on the device (true), or stream them (false). null: in memory up to 512 MB of pixels,
    unless there is an auto_augment."""


@dataclass(kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    optimizer_type: Choice = "adamw"
    """Optimizer: 'sgd' (Nesterov), 'adamw', 'adadelta', 'ranger', 'muon', 'soap'."""
    lr: AboveZero = 1e-4
    """Learning rate at the start; with onecycle the highest."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Moment factors of adamw and ranger."""
    momentum: NotNegative = 0.9
    """Momentum of sgd."""
    weight_decay: NotNegative = 1e-3
    """Weight decay (decoupled in adamw and ranger)."""
    ranger_use_gc: bool = True
    """Gradient centralisation in ranger. Published runs had it on even where they set false: set true to repeat them."""
    max_gradient_norm: float | None = None
    """Clip the global gradient norm to this; null or 0: no clipping."""
    max_gradient: float | None = None
    """Clip each gradient entry to this; null or 0: no clipping."""
    lr_scheduler_type: Choice = "cosine"
    """Schedule: 'cosine', 'exponential', 'onecycle' (up to lr, then a cosine down), 'constant'."""
    warmup: float = 0.3
    """Share of the run in which onecycle's rate rises, from lr / 25."""
    min_lr: NotNegative = 1e-6
    """Lowest learning rate; the schedule stops at or below it."""
    step_interval: FromZero = 1
    """Steps between advances of the exponential schedule; 0: a hundredth of the run. cosine: always 1."""
    gamma: NotNegative = 0.0
    """Factor of the exponential schedule; 0: such that min_lr is reached at the end."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """Evaluation: on which images, and how the best checkpoint is chosen."""

    best_on: str = "held_out"
    """What 'best' is chosen on: 'held_out' (training images set aside; the test figure is only reported) or 'test'
    (the published choice; nothing is set aside)."""
    held_out_images: FromOne = 1000
    """Training images set aside for choosing the best checkpoint, at most a tenth of the training set; random images of
    their own where task.use_random_data is set."""
    test_images: FromZero | None = None
    """Test images used; null: all; 0: none, the test set is not even loaded (data-free runs)."""
    batch_size: FromOne = 500
    """Images in one evaluation batch."""


@dataclass(kw_only=True)
class TeacherConfig:
    """Whose outputs are distilled, if not the original's as they are."""

    original_model_name: str | None = None
    """Architecture, as task.original_model_name; null: the original network is the teacher."""
    original_model_path: str | None = None
    """Its weights, as original_model_path."""
    original_model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Its arguments, as task.original_model_kwargs."""
    mirrored: bool | None = False
    """The outputs, also the original's own, are means over each image and its mirror image: better ones, where images keep
    their class when left and right change places. null: where the task says that they do."""

    @property
    def asked_for(self) -> bool:
        """Whether outputs other than those that the task implies are to be distilled."""
        return self.original_model_name is not None or bool(self.mirrored)


@dataclass(kw_only=True)
class NetworkConfig:
    """One of several original networks in one NeRN, with its own task."""

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
    """What keys that are not given mean: 'published', the framework's defaults, so that its files keep their meaning;
    'nern', the best settings found since (docs/recipe.md). In files, on the command line and in `Config.of_recipe`; the
    constructor alone applies none."""
    imports: list[str] = field(default_factory=list)
    """Modules (my_package.networks) or files (networks.py) of yours to import first: those that register the networks
    and tasks which the other keys name."""
    original_model_path: str | None = None
    """Weights of the original network: a state dict or a training checkpoint, a PyTorch or safetensors file or the
    .index.json of one in parts ('FILE#KEY' names one of several state dicts in it; arguments of the network in a .json file
    of the same name, if any); 'pretrained:NAME' for one that ships with nern; 'torchvision' or 'timm' for the default
    pretrained weights of such a network, 'torchvision:IMAGENET1K_V1' or 'timm:TAG' for others. null: random weights."""
    networks: list[NetworkConfig] = field(default_factory=list)
    """Several original networks in one NeRN, in place of original_model_path and task: a list of sections with those keys
    (and include, exclude, feature_maps)."""
    nern: NernConfig = field(default_factory=NernConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    num_workers: FromZero = 0
    """Worker processes of data loaders (tasks whose images live in memory need none)."""
    num_gpus: FromZero = 1
    """Devices to use: 0 the CPU, 1 the first GPU if there is one. Above 1: `nern train` starts a process for each, as far as
    there are GPUs (what is missing gives a warning). Processes that torchrun or accelerate started take a GPU each."""
    batch_size: FromOne = 256
    """Images in one training step."""
    epochs: FromZero | None = 250
    """Training epochs, if num_iterations and the lengths of phases are not given. A length that is given takes the place of
    those of a base file, and on the command line of those of the file; two at once are an error."""
    num_iterations: FromZero | None = None
    """Training steps, in place of epochs."""
    phases: list[PhaseConfig] = field(default_factory=list)
    """Phases of the run, in place of epochs, num_iterations and loss_warmup_iterations: a list of sections, each with a
    name. A list takes the place of all phases beneath it; a section with the name of a phase (`distillation: {iterations:
    3000}`, or --distillation.iterations 3000) changes that phase alone."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    eval_epochs_interval: FromOne | None = 1
    """Evaluate every so many epochs; null: not by epochs. The end of a run is always evaluated."""
    save_epochs_interval: FromOne | None = 400
    """Keep a checkpoint every so many epochs; null: none but 'best' and 'last'."""
    eval_iterations_interval: FromOne | None = None
    """Evaluate every so many steps; null: not by steps."""
    save_iterations_interval: FromOne | None = None
    """Keep a checkpoint every so many steps; null: none but 'best' and 'last'."""
    eval_loss_window_size: FromOne = 20
    """Length of a window of recent losses; an extra evaluation is made when it is full and the current loss (feature
    maps + distillation, unweighted) is not above its minimum."""
    eval_loss_window_interval: FromOne = 10
    """A loss enters that window every so many steps."""
    save_minutes: NotNegative = 5.0
    """Save the state for --resume at least every so many minutes (and at every evaluation)."""
    loss_warmup_iterations: FromZero = 10000
    """During so many first steps only the reconstruction loss is used."""
    precision: str = "float32"
    """Arithmetic of training: 'float32'; 'tf32' (on a GPU, products of float32 numbers rounded to 10 bits of mantissa);
    'bf16' (16 bits, on CPU and GPU; kernels, losses and parameters stay in float32); 'auto' (bf16 where the machine has
    instructions for it, else float32). Evaluations are in float32."""
    learn_fc_layer: bool = False
    """Also train the final fully connected layer of the reconstructed network; it is saved beside the predictor."""
    learn_norms: bool = False
    """Also train weights and biases of the normalisation layers, in steps with images; they are saved beside the predictor.
    They are kept with every NeRN, so this costs no bytes."""
    norm_images: FromZero = 0
    """Images on which batch norms are fitted to the reconstructed weights at the end of each phase without images: their
    weights and biases become such that every channel has the mean and variance that it has in the original on them. 0: off.
    Needs learn_norms, by which norms are saved beside the predictor."""
    seed: FromZero = 0
    """Seed of everything random: same seed, same machine, same result. (An ordering that is improved for some seconds
    may come out otherwise when it is solved again; it is kept in the run folder and the cache.)"""

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
    """PHASE stands for the name of a phase, such as `distillation`: its keys, in place of those that it has."""

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
