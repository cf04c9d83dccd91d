"""Check nern against a folder of reference vectors.

    python tests/golden/check.py DIR [--weights FILE]

DIR holds pairs `<topic>.json` (manifest) and `<topic>.safetensors`. Every case is computed with nern's own functions
and compared within the case's tolerance; one line a case tells the largest error found. Exits with 1 if a case differs,
or is of a kind that is not known here. `--weights`: the pretrained network that end-to-end cases refer to (default:
../weights/resnet20-cifar10.pt beside DIR, else beside ../shared/golden).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nern.config import Config, NernConfig, OptimConfig
from nern.config.published import TRANSLATED
from nern.config.settings import check_keys, known_keys
from nern.errors import NernError
from nern.objectives.objective import Losses, Objective
from nern.objectives.smoothness import cosine_smoothness, l2_smoothness
from nern.ordering.order import CrossFilterOrdering, InFilterOrdering, Ordering, solve_ordering
from nern.originals.base import Original, OriginalNetwork
from nern.originals.build import build_original_network
from nern.registry import (
    DISTILLATION_LOSSES,
    ENCODINGS,
    FEATURE_MAP_LOSSES,
    OPTIMIZERS,
    PREDICTORS,
    RECONSTRUCTION_LOSSES,
    TASK_LOSSES,
)
from nern.representation.coordinates import TableCoordinates
from nern.representation.encoding import EncodedRows, FourierEncoding
from nern.representation.heads import Heads, sample_kernels
from nern.representation.kernels import KernelTable
from nern.representation.nern import NeRN, build_nern
from nern.training.members import Member
from nern.training.schedules import Schedule
from nern.training.trainer import Trainer
from nern.weights_file import state_dicts

Tensors = dict[str, Tensor]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "golden"


@dataclasses.dataclass
class Case:
    """One case, its tensors loaded; and the folder's context for cases that refer to other files."""

    name: str
    kind: str
    variant: str
    config: dict[str, Any]
    inputs: Tensors
    outputs: Tensors
    rtol: float
    atol: float
    meta: dict[str, Any]
    folder: Path
    weights: Path | None

    @property
    def published(self) -> bool:
        """Whether a stated fault of the published code is part of this case."""
        return self.variant == "as_published"

    def listed(self, name: str) -> list[Tensor]:
        """Inputs `name.0`, `name.1`, ... in order."""
        numbers = sorted(int(k.removeprefix(f"{name}.")) for k in self.inputs if k.startswith(f"{name}."))
        return [self.inputs[f"{name}.{i}"] for i in numbers]

    def state(self, prefix: str = "state_dict/") -> Tensors:
        """Inputs under `prefix`."""
        return {k.removeprefix(prefix): v for k, v in self.inputs.items() if k.startswith(prefix)}


def numbered(name: str, values: Any) -> Tensors:
    """`name.i` -> value."""
    return {f"{name}.{i}": v for i, v in enumerate(values)}


CHECKS: dict[str, Callable[[Case], Tensors]] = {}


def check(kind: str) -> Callable[[Callable[[Case], Tensors]], Callable[[Case], Tensors]]:
    """Register the function that computes the outputs of a kind."""

    def add(function: Callable[[Case], Tensors]) -> Callable[[Case], Tensors]:
        CHECKS[kind] = function
        return function

    return add


# --- encodings and coordinates -----------------------------------------------------------------------------------


def encoding_of(config: Mapping[str, Any]) -> Any:
    """The encoding a case's config describes."""
    keys = ("num_idxs", "enc_levels", "base", "fusion_mode", "gauss_scale")
    return ENCODINGS[config["type"]](**{k: config[k] for k in keys if k in config})


class Listed:
    """Coordinates given one by one, (rows, idxs), in the place of a `TableCoordinates`."""

    def __init__(self, coordinates: Tensor) -> None:
        pairs = [column.double().unique(return_inverse=True) for column in coordinates.unbind(1)]
        self.values = [values for values, _ in pairs]
        self._lookups = [lookup for _, lookup in pairs]

    def lookups(self, which: Tensor | slice) -> list[Tensor]:
        return [lookup[which] for lookup in self._lookups]


@check("encoding")
def encoding(case: Case) -> Tensors:
    """`encode`, and for raw float32 cases what `prepare` serves to the predictor."""
    encoder = encoding_of(case.config)
    if isinstance(encoder, FourierEncoding):
        encoder.B = case.inputs["B"]
    coordinates = case.inputs["coordinates"]
    dtype = torch.float32 if case.outputs["encoding"].dtype == torch.float32 else torch.float64
    encoded: Tensor = encoder.encode(coordinates.to(dtype))
    if dtype == torch.float32:
        served = encoder.prepare(Listed(coordinates.double()))(slice(None))
        if difference("served", served, case.outputs["encoding"], case.rtol, case.atol)[1]:
            raise NernError("what prepare() serves differs")
    return {"encoding": encoded}


@check("encoding_matrix")
def encoding_matrix(case: Case) -> Tensors:
    return {"B": FourierEncoding.matrix(case.config["enc_levels"], case.config["num_idxs"], case.config["gauss_scale"])}


def table_of(shapes: Tensor) -> KernelTable:
    """The table of a tensor of shapes [layers, 4]."""
    return KernelTable(tuple(tuple(row) for row in shapes.tolist()))  # type: ignore[misc]


def mode_of(config: Mapping[str, Any]) -> str:
    """The normalisation mode, 'none' for the published spelling."""
    mode = config.get("normalization_mode", "none")
    return "none" if mode in (None, "None") else mode


@check("coordinates")
def coordinates(case: Case) -> Tensors:
    table = table_of(case.inputs["shapes"])
    made = TableCoordinates(table, None, mode_of(case.config))
    pairs = zip(made.values, made.lookups(slice(None)), strict=True)
    rows = torch.stack([values[lookup] for values, lookup in pairs], dim=1)
    return numbered("coordinates", (rows[table.layer(i)] for i in range(len(table.shapes))))


def ordering_of(case: Case, shapes: list[tuple[int, ...]]) -> Ordering | None:
    """The ordering among a case's inputs."""
    if orders := case.listed("order"):
        return CrossFilterOrdering.from_layers([{"order": o} for o in orders], shapes)  # type: ignore[arg-type]
    if filters := case.listed("filter_order"):
        pairs = zip(filters, case.listed("channel_order"), strict=True)
        layers = [{"filter_order": f, "channel_order": c} for f, c in pairs]
        return InFilterOrdering.from_layers(layers, shapes)  # type: ignore[arg-type]
    return None


@check("embeddings")
def embeddings(case: Case) -> Tensors:
    """What the predictor is fed; as published, raw coordinates whatever the mode."""
    if "experiment" in case.config:
        network = original_of(case)
        table, config = KernelTable.of(network.weights), experiment_config(case)
        nern = build_nern(config.nern, table, ordering_of(case, list(table.shapes)), 0)
        rows = case.outputs
        layers = {name: table.layer(int(name.rpartition(".")[2])) for name in rows}
        return {n: nern.encoded(slice(part.start, part.start + len(rows[n]))) for n, part in layers.items()}
    table = table_of(case.inputs["shapes"])
    ordering = ordering_of(case, list(table.shapes))
    positions = ordering.positions(table.shapes) if ordering else None
    mode = "none" if case.published else mode_of(case.config)
    served = encoding_of(case.config).prepare(TableCoordinates(table, positions, mode))
    return numbered("embeddings", (served(table.layer(i)) for i in range(len(table.shapes))))


# --- orderings ---------------------------------------------------------------------------------------------------


@check("ordering")
def ordering(case: Case) -> Tensors:
    weights = original_of(case).weights if "weights" in case.meta else case.listed("weights")
    solved = solve_ordering(weights, case.config["permute_mode"], num_workers=2).tensors()
    return {name: solved[name] for name in case.outputs}


@check("ordering_apply")
def ordering_apply(case: Case) -> Tensors:
    shapes = list(table_of(case.inputs["shapes"]).shapes)
    applied = ordering_of(case, list(shapes))
    assert applied is not None
    pairs = zip(case.listed("embeddings"), applied.positions(shapes), strict=True)
    return numbered("permuted", (e[p] for e, p in pairs))


# --- predictors, sampling ----------------------------------------------------------------------------------------


def predictor_of(config: Mapping[str, Any], input_size: int, state: Tensors) -> Any:
    """The predictor of a case, its weights loaded."""
    arguments = {k: config[k] for k in ("hidden_layer_size", "num_blocks", "act_layer") if k in config}
    if "output_size" in config and config["method"] != "basic":  # which predicts single weights, whatever is set
        arguments["kernel_sizes"] = [(config["output_size"],) * 2]
    predictor = PREDICTORS[config["method"]](input_size=input_size, **arguments)
    predictor.load_state_dict(state)
    return predictor


@check("predictor")
def predictor(case: Case) -> Tensors:
    encodings = case.inputs["embeddings"].clone().requires_grad_()
    net = predictor_of(case.config, encodings.shape[1], case.state())
    if "parameters" in case.meta and sum(p.numel() for p in net.parameters()) != case.meta["parameters"]:
        raise NernError("the number of parameters differs")
    output = net(encodings)
    upstream = case.inputs["upstream"].view_as(output)
    (output * upstream).sum().backward()
    gradients = {f"grad/{name}": p.grad for name, p in net.named_parameters()}
    return {"output": output.flatten(1), "grad/embeddings": encodings.grad} | gradients


def nern_of(case: Case) -> NeRN:
    """A NeRN whose encodings are the case's own; its layers have kernels of the predicted size, so none is sampled."""
    size = case.config["output_size"]
    shapes = tuple((co, ci, size, size) for co, ci, _, _ in table_of(case.inputs["shapes"]).shapes)
    stacked = torch.cat(case.listed("embeddings"))
    net = predictor_of(case.config, stacked.shape[1], case.state())
    chunk = case.config.get("weights_batch_size")
    numbers: Any = Listed(torch.arange(len(stacked)).unsqueeze(1))
    encoded = EncodedRows(numbers, [stacked], lambda parts: parts[0], "concat")
    return NeRN(Heads.build(KernelTable(shapes), "shared", size), net, encoded, chunk)


@check("prediction")
def prediction(case: Case) -> Tensors:
    nern = nern_of(case)
    (predictions,) = nern()
    layers = [predictions[nern.table.layer(i)] for i in range(len(nern.table.shapes))]
    shaped = (p.view(*shape[:2], *p.shape[1:]) for p, shape in zip(layers, nern.table.shapes, strict=True))
    return numbered("predicted", shaped)


@check("sampling")
def sampling(case: Case) -> Tensors:
    out: Tensors = {}
    sizes = case.inputs["kernel_sizes"].reshape(len(case.listed("predicted")), -1)[:, 0].tolist()
    triples = zip(case.listed("predicted"), sizes, case.listed("upstream"), strict=True)
    for i, (predicted, size, upstream) in enumerate(triples):
        leaf = predicted.clone().requires_grad_()
        kernels = leaf.reshape(-1, *leaf.shape[-2:])
        sampled = sample_kernels(kernels, (size, size), case.config["sampling_mode"])
        sampled = sampled.reshape(*leaf.shape[:-2], size, size)
        (sampled * upstream.view_as(sampled)).sum().backward()
        assert leaf.grad is not None
        out |= {f"sampled.{i}": sampled, f"grad.{i}": leaf.grad}
    return out


# --- losses ------------------------------------------------------------------------------------------------------


LOSSES: dict[str, Any] = {
    "reconstruction_loss": RECONSTRUCTION_LOSSES,
    "feature_map_loss": FEATURE_MAP_LOSSES,
    "distillation_loss": DISTILLATION_LOSSES,
    "task_loss": TASK_LOSSES,
}


def gradient(leaf: Tensor) -> Tensor:
    """Of a leaf; zeros where it has none."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def loss_and_gradients(case: Case) -> Tensors:
    """A loss of two lists, or of two tensors, and its gradient in the second."""
    key = "attention" if case.kind == "feature_map_loss" else case.kind.removesuffix("_loss")
    loss = LOSSES[case.kind][case.config[f"{key}_loss_type"]]
    if case.kind in ("reconstruction_loss", "feature_map_loss"):
        leaves = [t.clone().requires_grad_() for t in case.listed("reconstructed")]
        value = loss(case.listed("original"), leaves)
    else:
        name, target = ("prediction", "target") if case.kind == "task_loss" else ("reconstructed", "original")
        leaves = [case.inputs[name].clone().requires_grad_()]
        value = loss(leaves[0], case.inputs[target]) if name == "prediction" else loss(case.inputs[target], leaves[0])
    if value.requires_grad:
        value.backward()
    return {"value": value, "grad": gradient(leaves[0])} | numbered("grad", map(gradient, leaves))


CHECKS |= dict.fromkeys(LOSSES, loss_and_gradients)


@check("smoothness")
def smoothness(case: Case) -> Tensors:
    leaves = [w.clone().requires_grad_() for w in case.listed("weights")]
    out: Tensors
    if case.config["measure"] == "CosineSmoothness":
        cosine, l2 = cosine_smoothness(leaves, published=case.published)
        out, total = {"cosine": cosine, "l2": l2}, cosine + l2
    else:
        total = l2_smoothness(leaves, published=case.published)
        out = {"value": total}
    if total.requires_grad:
        total.backward()
    return out | numbered("grad", map(gradient, leaves))


# --- optimizers, schedules, batches ------------------------------------------------------------------------------


def optim_config(config: Mapping[str, Any], published: bool) -> OptimConfig:
    """The optimizer settings of a case; as published, gradient centralisation is on whatever is set."""
    known = {f.name for f in dataclasses.fields(OptimConfig)}
    values: dict[str, Any] = {k: tuple(v) if k == "betas" else v for k, v in config.items() if k in known}
    if published:
        values["ranger_use_gc"] = True
    return OptimConfig(**values)


@check("optimizer")
def optimizer(case: Case) -> Tensors:
    start, H, T = (case.state(prefix) for prefix in ("start/", "H/", "T/"))
    parameters = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    config = optim_config(case.config, case.published)
    optim = OPTIMIZERS[config.optimizer_type](list(parameters.values()), config)
    steps = len(case.outputs["loss_before_step"])
    losses, trajectory = [], {name: [] for name in parameters}  # type: ignore[var-annotated]
    for _ in range(steps):
        loss = torch.stack([0.5 * (H[n] * (p - T[n]) ** 2).sum() for n, p in parameters.items()]).sum()
        losses.append(loss.detach())
        optim.zero_grad()
        loss.backward()
        optim.step()
        for name, p in parameters.items():
            trajectory[name].append(p.detach().clone())
    return {"loss_before_step": torch.stack(losses)} | {
        f"trajectory/{n}": torch.stack(t) for n, t in trajectory.items()
    }


@check("schedule")
def schedule(case: Case) -> Tensors:
    config = optim_config(case.config, False)
    rates = Schedule(config, case.config["num_iterations"], stretched=case.published)
    lrs = [rates.lr]
    for step in range(len(case.outputs["lr"]) - 1):
        rates.after_step(step)
        lrs.append(rates.lr)
    return {"lr": torch.tensor(lrs, dtype=torch.float64)}


@check("row_weights")
def row_weights(case: Case) -> Tensors:
    weights = case.listed("weights")
    table = KernelTable.of(weights)
    norms = table.norms(weights)
    layers = (norms[table.layer(i)] for i in range(len(weights)))
    return {"probabilities": norms / norms.sum()} | numbered("norms", layers)


@check("batching")
def batching(case: Case) -> Tensors:
    """Predictions of all rows, gradients through the drawn ones."""
    nern = nern_of(case)
    table = nern.table
    rows: Any = case.inputs["rows_with_gradient"].long()
    if case.config["weights_batch_method"] == "all" and sorted(rows.tolist()) == list(range(table.rows)):
        rows = None
    upstream = torch.cat([u.reshape(-1, *u.shape[-2:]) for u in case.listed("upstream")])
    trainer = Trainer(
        Config(nern=NernConfig(weights_batch_method="all"), epochs=None, num_iterations=1),
        [Member(Original(_Shapes(list(table.shapes))))],
        nern,
    )
    trainer.differentiate.objectives = [_Upstream(trainer.differentiate.objectives[0], upstream, nern)]
    trainer.differentiate(None, rows)
    out = {f"grad/{name}": p.grad for name, p in nern.predictor.named_parameters()}
    (predictions,) = nern()
    layers = (predictions[table.layer(i)].view(*s[:2], *upstream.shape[1:]) for i, s in enumerate(table.shapes))
    return {k: v for k, v in out.items() if v is not None} | numbered("predicted", layers)


class _Shapes(OriginalNetwork):
    """A network with weights of given shapes, of which only the shapes matter."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in shapes)

    def get_learnable_weights(self) -> list[Tensor]:
        return list(self.weights)


class _Upstream(Objective):
    """A loss whose gradient in the predicted weights is given."""

    needs_images = False  # type: ignore[assignment]

    def __init__(self, of: Objective, upstream: Tensor, nern: NeRN) -> None:
        super().__init__(of.config, of.original)
        self.weights["reconstruction"] = 1.0
        self.upstream, self.table = upstream, nern.table

    def reconstruction(self, original: Sequence[Tensor], predicted: Sequence[Tensor]) -> Losses:
        """The sum of all weights times what arrives at them."""
        rows = [w.reshape(-1, *w.shape[2:]) for w in predicted]
        parts = [self.upstream[self.table.layer(i)] for i in range(len(rows))]
        return self.weighted(
            {"reconstruction": torch.stack([(r * u).sum() for r, u in zip(rows, parts, strict=True)]).sum()}
        )


# --- end to end --------------------------------------------------------------------------------------------------


def network_name(case: Case) -> str:
    """The architecture that a case refers to."""
    name: str = case.config.get("task", {}).get("original_model_name", "ResNet20")
    return name


def weights_file(case: Case) -> Path:
    """The pretrained network that a case refers to."""
    candidates = [case.weights] if case.weights else []
    file = f"{network_name(case).lower()}-cifar10.pt"
    candidates += [f.parent / "weights" / file for f in (case.folder, SHARED)]
    for path in candidates:
        if path.is_file():
            return path
    raise NernError(f"the pretrained network is not at {', '.join(map(str, candidates))}; give --weights FILE")


def original_of(case: Case) -> Original:
    """The pretrained network; as published, the second map of a block is that after the addition."""
    network = build_original_network(network_name(case), str(weights_file(case)))
    assert isinstance(network, OriginalNetwork)
    taps = network.feature_map_modules()
    if case.published:
        taps = [tap.removesuffix(".bn2") + ".sum" if tap.endswith(".bn2") else tap for tap in taps]
    return Original(network, taps)


def experiment_config(case: Case) -> Config:
    """The experiment file of a case with its overrides; kernels are predicted and sampled as published."""
    for folder in (case.folder, SHARED):
        if (folder / "experiments.json").is_file():
            experiments = json.loads((folder / "experiments.json").read_text())["experiments"]
            break
    else:
        raise NernError("experiments.json is missing")
    found = [v for k, v in experiments.items() if k.endswith(case.config["experiment"])]
    values = merge(found[0], case.config.get("overrides", {}))
    for section in ("nern", "optim"):
        values = merge(values, {section: case.config.get(section, {})})
    if "num_iterations" in case.config:
        values |= {"epochs": None, "num_iterations": case.config["num_iterations"]}
    values["original_model_path"] = str(weights_file(case))
    values = merge(values, {"nern": {"heads": "shared"}})
    config = Config.from_dict(values)
    if case.published:
        config.optim.ranger_use_gc = True
    return config


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out.get(key, {}), value) if isinstance(value, Mapping) else value
    return out


@check("model_weights")
def model_weights(case: Case) -> Tensors:
    state = state_dicts(weights_file(case))[0].tensors
    for name, wanted in case.meta["sha256"].items():
        array = state[name].contiguous().numpy()
        if hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest() != wanted:
            raise NernError(f"checksum of {name} differs")
    original = original_of(case)
    if original.weight_names != case.meta["learnable"]:
        raise NernError("the learnable weights differ")
    return {}


def trainer_of(case: Case) -> Trainer:
    """A trainer with the case's predictor, ordering and settings."""
    config, original = experiment_config(case), original_of(case)
    table = KernelTable.of(original.weights)
    nern = build_nern(config.nern, table, ordering_of(case, list(table.shapes)), 0)
    nern.predictor.load_state_dict(case.state())
    return Trainer(config, [Member(original)], nern)


@check("end_to_end")
def end_to_end(case: Case) -> Tensors:
    trainer = trainer_of(case)
    original, nern = trainer.members[0].original, trainer.nern
    weights = nern.reconstruct()
    out = numbered("weights", weights) | {"norms": torch.stack([w.norm() for w in weights])}
    if "batch" in case.inputs:
        batch = case.inputs["batch"]
        losses = trainer.differentiate([(batch, None)], None)
        names = {"reconstruction": "reconstruction", "feature_maps": "feature_map", "distillation": "distillation"}
        out |= {f"{names[k]}_loss": v for k, v in losses.terms.items()} | {"total_loss": losses.total}
        outputs, maps = original.features(batch)
        reconstructed, reconstructed_maps = original.run(weights, batch, with_maps=True)
        out |= {"original_outputs": outputs, "reconstructed_outputs": reconstructed}
        out["original_map_norms"] = torch.stack([m.norm() for m in maps])
        out["reconstructed_map_norms"] = torch.stack([m.norm() for m in reconstructed_maps])
        out |= {f"grad/{name}": p.grad for name, p in nern.predictor.named_parameters() if p.grad is not None}
    return {name: out[name] for name in case.outputs}


@check("training")
def training(case: Case) -> Tensors:
    trainer = trainer_of(case)
    order = ("reconstruction", "feature_maps", "distillation")
    losses, lrs = [], []
    for _ in range(len(case.outputs["losses"])):
        lrs.append(trainer.schedule.lr)
        step = trainer.train_step([(case.inputs["batch"], None)], None)
        losses.append(torch.stack([*(step.terms[name] for name in order), step.total]).detach())
    lrs.append(trainer.schedule.lr)
    parameters = {name: p.detach() for name, p in trainer.nern.predictor.named_parameters()}
    out = parameters | {"losses": torch.stack(losses), "lr": torch.tensor(lrs[: len(case.outputs["lr"])])}
    return {name: out[name] for name in case.outputs}


# --- comparing ---------------------------------------------------------------------------------------------------


def difference(name: str, ours: Tensor, theirs: Tensor, rtol: float, atol: float) -> tuple[float, str]:
    """Largest error, and what is wrong ('' if nothing is)."""
    ours, theirs = ours.detach().double(), theirs.double()
    if ours.shape != theirs.shape:
        if ours.numel() != theirs.numel() or ours.dim() + theirs.dim() > 1:
            return float("inf"), f"{name} has shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
        ours = ours.view_as(theirs)  # a number, as a scalar or as one entry
    if not ours.numel():
        return 0.0, ""
    error = (ours - theirs).abs()
    bad = ~(error <= atol + rtol * theirs.abs())
    return float(error.max()), f"{name}: {int(bad.sum())} of {bad.numel()} entries differ" if bad.any() else ""


def compare(case: Case) -> tuple[float, str]:
    """Compute a case; the largest error, and what is wrong ('' if nothing is)."""
    if case.kind not in CHECKS:
        return float("inf"), f"unknown kind {case.kind!r}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = CHECKS[case.kind](case)
    if not case.outputs and case.kind != "model_weights":
        return float("inf"), "the case has no outputs"
    worst, problem = 0.0, ""
    for name, theirs in case.outputs.items():
        if name not in ours:
            return float("inf"), f"{name} is not computed"
        error, wrong = difference(name, ours[name], theirs, case.rtol, case.atol)
        worst, problem = max(worst, error), problem or wrong
    return worst, problem


def check_config(path: Path) -> tuple[float, str]:
    """Every published configuration field exists with the same default, but for those whose default could not work."""
    changed = {  # published default -> ours, and why
        "nern.embeddings.normalization_mode": "none",  # published code encodes raw indices whatever it says
        "nern.embeddings.permutations.permute_mode": "none",  # null and 'none' mean the same
        "nern.norm_layer": "none",  # published predictors have none whatever it says
        "task.task_name": "digits",  # the published default is not registered
        "task.original_model_name": "ResNet8",
    }
    published = json.loads(path.read_text())["fields"]
    ours, known, problems = Config().check().to_dict(), known_keys(Config), []

    def walk(fields: dict[str, Any], values: Any, prefix: str) -> None:
        for name, field in fields.items():
            key = prefix + name
            if key in TRANSLATED:  # into a key of ours, whose default is TensorBoard
                Config.from_dict({key: field["default"]})
            elif key not in known:
                problems.append(f"{key} is not known")
            elif "fields" in field:
                walk(field["fields"], values[name], f"{key}.")
            elif values[name] != changed.get(key, field["default"]):
                problems.append(f"{key} defaults to {values[name]!r}, not {field['default']!r}")

    walk(published, ours, "")
    return float(len(problems)), "; ".join(problems)


def check_experiments(path: Path) -> tuple[float, str]:
    """Every key of every published experiment file exists, with a value of the right type."""
    problems = []
    for name, values in json.loads(path.read_text())["experiments"].items():
        try:
            check_keys(values, Config)
            Config.from_dict(merge(values, {"task": {"task_name": "cifar10", "original_model_name": "ResNet20"}}))
        except NernError as error:
            problems.append(f"{name}: {error}")
    return float(len(problems)), "; ".join(problems)


FILES = {"config_defaults.json": check_config, "experiments.json": check_experiments}


def cases_of(path: Path, weights: Path | None) -> list[Case]:
    """The cases of a manifest, tensors loaded."""
    manifest = json.loads(path.read_text())
    stored = load_file(path.parent / manifest["tensors"])
    cases = []
    for entry in manifest["cases"]:
        given = {"variant": "as_published", "config": {}, "rtol": 0.0, "atol": 0.0} | entry
        fields = {key: given[key] for key in ("name", "kind", "variant", "config", "rtol", "atol")}
        for part in ("inputs", "outputs"):
            fields[part] = {k: stored[v] for k, v in entry.get(part, {}).items()}
        cases.append(Case(**fields, meta=entry.get("meta") or {}, folder=path.parent, weights=weights))
    return cases


class Result(NamedTuple):
    """What became of a case: the largest error, what is wrong, and whether it is a fault of the published code."""

    name: str
    error: float
    problem: str
    fault: bool = False


def results_of(path: Path, weights: Path | None) -> list[Result]:
    """Of the cases of a manifest."""
    if path.name in FILES:
        return [Result(path.stem, *FILES[path.name](path))]
    try:
        cases = cases_of(path, weights)
    except Exception as error:
        return [Result(path.stem, float("inf"), f"not a readable manifest: {error!r}")]
    found = [] if cases else [Result(path.stem, float("inf"), "the manifest has no cases")]
    for case in cases:
        try:
            error_, problem = compare(case)
        except Exception as error:
            error_, problem = float("inf"), f"{type(error).__name__}: {error}"
        found.append(Result(f"{path.stem}/{case.name}", error_, problem, bool(case.meta.get("fault"))))
    return found


def main(argv: list[str] | None = None) -> int:
    """Check a folder; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of vectors")
    parser.add_argument("--weights", type=Path, help="the pretrained network of end-to-end cases")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    folder = arguments.folder.resolve()
    lines = [line for path in sorted(folder.glob("*.json")) for line in results_of(path, arguments.weights)]
    manifests = " ".join(path.read_text(errors="replace") for path in folder.glob("*.json"))
    stray = sorted(path.name for path in folder.glob("*.safetensors") if f'"{path.name}"' not in manifests)
    lines += [Result(name, float("inf"), "no manifest refers to it") for name in stray]
    for line in lines:
        status = "ok" if not line.problem else "fault, not reproduced" if line.fault else "FAIL"
        print(f"{status:<5} {line.name:<60} error {line.error:.3g}" + (f"  {line.problem}" if line.problem else ""))
    failed = sum(bool(line.problem) and not line.fault for line in lines)
    total = len(lines)
    print(f"{total - failed} of {total} vectors match")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
