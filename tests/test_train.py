"""Training: what a run leaves, when it evaluates and saves, and that a stopped run loses nothing."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nern
from conftest import Attack
from nern import Config, NernError, NonFiniteLossError, registry
from nern.training.run_folder import RunFolder, attached_to, load_beside
from runs import SHORT, assert_same_result, interrupted, quiet, resume, same, stop_after, train

pytestmark = pytest.mark.usefixtures("no_picture")

BASE: dict[str, Any] = SHORT | {"num_iterations": 6, "loss_warmup_iterations": 2}
PREDICTOR_NAMES = {
    f"{layer}.{kind}" for layer in ("layers.0", "layers.1", "final_linear_layer") for kind in ("weight", "bias")
}

Configure = Callable[..., Config]
Finished = tuple[RunFolder, dict[str, Any]]


def steps(folder: RunFolder) -> list[int]:
    return [record["step"] for record in folder.load_state()["evaluations"]]


def checkpoint(folder: RunFolder, name: str = "last") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder.checkpoint(name), weights_only=True)
    return state


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A complete run on the network that ships with nern, ordered, and what it returned."""
    values = BASE | {
        "original_model_path": "pretrained:digits-resnet8",
        "nern.embeddings.permutations.permute_mode": "crossfilter",
        "logging.log_dir": str(tmp_path_factory.mktemp("finished")),
        "logging.tracker": "tensorboard",
        "logging.exp_name": "run",
        "eval_iterations_interval": 3,
    }
    metrics = nern.train(Config.from_dict(values), quiet())
    return RunFolder(metrics["run_folder"]), metrics


def files(folder: RunFolder) -> set[str]:
    found = {str(path.relative_to(folder.root)) for path in folder.root.rglob("*") if path.is_file()}
    return {"events" if name.startswith("events.out.tfevents.") else name for name in found}


def test_run_folder_holds_what_is_documented(finished: Finished) -> None:
    assert files(finished[0]) == {
        "config.yaml",
        "ordering.safetensors",
        "kept.safetensors",
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "state.pt",
        "metrics.json",
        "curves.png",
        "events",
    }
    for name in ("best", "last"):
        state = checkpoint(finished[0], name)
        assert state.keys() == PREDICTOR_NAMES
        assert all(type(tensor) is torch.Tensor and torch.isfinite(tensor).all() for tensor in state.values())


def test_metrics_are_written_as_returned(finished: Finished) -> None:
    folder, metrics = finished
    assert json.loads(folder.metrics.read_text()) == metrics
    assert metrics["original"]["test"]["images"] == 40
    assert metrics["original"]["test"]["agreement"] == 100
    assert set(metrics["best"]) == set(metrics["last"]) == {"step", "held_out", "test"}
    assert set(metrics["best"]["test"]) == {"images", "agreement", "divergence", "top1", "top5", "loss"}
    assert metrics["steps"] == metrics["last"]["step"] == 6
    assert 0 < metrics["seconds_per_step"] <= metrics["seconds"] / 6
    assert metrics["peak_memory_bytes"] > 10**7
    assert metrics["versions"]["nern"] == nern.__version__
    assert [layer["name"] for layer in metrics["layers"]][:2] == ["conv1.weight", "layer1.0.conv1.weight"]
    assert len(metrics["layers"]) == 7
    assert all(layer["rmse"] > 0 and layer["relative"] > 0 for layer in metrics["layers"])


def test_sizes_add_up_and_are_those_on_disk(finished: Finished) -> None:
    folder, metrics = finished
    sizes = metrics["sizes"]
    predictor = checkpoint(folder, "best")
    assert sizes["represented_parameters"] == sum(layer["weights"] for layer in metrics["layers"])
    assert sizes["predictor_parameters"] == sum(tensor.numel() for tensor in predictor.values())
    assert sizes["predictor_share"] == sizes["predictor_parameters"] / sizes["represented_parameters"]
    whole = sizes["predictor_parameters"] + sizes["ordering_bytes_at_least"] / 4
    assert sizes["share"] == pytest.approx(whole / sizes["represented_parameters"], rel=1e-12)
    unrepresented = sizes["original_parameters"] - sizes["represented_parameters"]
    assert sizes["reconstructed_parameters"] == unrepresented + sizes["predictor_parameters"]
    assert sizes["predictor_bytes"] == folder.checkpoint("best").stat().st_size
    assert sizes["ordering_bytes"] == folder.ordering.stat().st_size
    assert sizes["kept_bytes"] == folder.kept.stat().st_size
    assert 0 < sizes["ordering_bytes_at_least"] < sizes["ordering_bytes"]


def test_runs_are_never_overwritten(configure: Configure) -> None:
    config = configure({"num_iterations": 1})
    first = train(config)
    before = {path: path.read_bytes() for path in first.root.rglob("*") if path.is_file()}
    (first.root.parent / "NeRN_Train-2").mkdir()  # another process may have made it, and be about to write
    roots = [first.root, train(config).root, train(config).root]
    assert [root.name for root in roots] == ["NeRN_Train", "NeRN_Train-3", "NeRN_Train-4"]
    assert not any((first.root.parent / "NeRN_Train-2").iterdir())
    assert {path: path.read_bytes() for path in first.root.rglob("*") if path.is_file()} == before


def test_run_of_no_steps_evaluates_and_saves_the_start(configure: Configure) -> None:
    folder = train(configure({"num_iterations": 0, "logging.tracker": "tensorboard", "logging.disable_logging": True}))
    assert steps(folder) == [0]
    checkpoints = {"checkpoints/best.pt", "checkpoints/last.pt"}
    assert files(folder) == {"config.yaml", "kept.safetensors", "state.pt", "metrics.json"} | checkpoints
    assert checkpoint(folder, "best").keys() == PREDICTOR_NAMES


@pytest.mark.usefixtures("rng_untouched")
def test_the_result_is_that_of_the_seed_and_global_generators_and_signals_are_left_alone(configure: Configure) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    random = {"nern.weights_batch_method": "random_weighted_batch", "logging.tracker": "tensorboard"}
    first = train(configure(random, seed=1))
    assert_same_result(first, train(Config.load(first.config)))  # by the config that it saved
    other = checkpoint(train(configure(random, seed=2)))
    assert all(not torch.equal(tensor, other[name]) for name, tensor in checkpoint(first).items())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


RESUMED: dict[str, dict[str, Any]] = {
    **{
        f"{method}, {optimizer}": {"nern.weights_batch_method": method, "optim.optimizer_type": optimizer}
        for method, optimizer in zip(registry.WEIGHT_BATCHES, cycle(registry.OPTIMIZERS), strict=False)
    },
    "without replacement, across cycles": {
        "nern.weights_batch_method": "random_batch_without_replacement",
        "nern.weights_batch_size": 200,
    },
    "drawn rows, several heads": {
        "nern.weights_batch_method": "random_weighted_batch",
        "nern.reconstruction_rows": "drawn",
        "nern.include": ["*.weight"],
        "loss_warmup_iterations": 8,
    },
    "all that is kept": {"learn_norms": True, "learn_fc_layer": True},
    "exponential": {"optim.lr_scheduler_type": "exponential", "optim.step_interval": 2, "evaluation.best_on": "test"},
    "onecycle": {"optim.lr_scheduler_type": "onecycle", "nern.task_loss_weight": 0.1},
    "batch norm": {"nern.norm_layer": "bn", "nern.weights_batch_method": "random_batch"},
    "window": {"eval_loss_window_size": 6, "eval_loss_window_interval": 1},
    "ordered": {"nern.embeddings.permutations.permute_mode": "infilter"},
    "published predictor": {"nern.method": "kxk_nerf", "nern.embeddings.type": "ffn"},
}


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_run_equals_an_uninterrupted_one(configure: Configure, case: str) -> None:
    config = configure({"num_iterations": 7, "eval_iterations_interval": 3} | RESUMED[case])
    whole = train(config)
    folder = interrupted(config, 4)
    assert folder.load_state()["step"] == 4
    assert_same_result(whole, resume(folder))


def test_stop_in_the_last_step_finishes_the_run_and_resuming_changes_no_result(configure: Configure) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6)
        folder = train(configure())
    before = {path.name: path.read_bytes() for path in (folder.root / "checkpoints").iterdir()}
    metrics = json.loads(folder.metrics.read_text())
    resume(folder)
    assert {path.name: path.read_bytes() for path in (folder.root / "checkpoints").iterdir()} == before
    after = json.loads(folder.metrics.read_text())
    assert after["best"] == metrics["best"]
    assert after["last"] == metrics["last"]


def test_resuming_needs_neither_the_cache_nor_the_first_checkpoint(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shape = {"nern.embeddings.permutations.permute_mode": "crossfilter"}
    start = tmp_path / "start.pt"
    start.write_bytes(train(configure(shape)).checkpoint("last").read_bytes())
    config = configure(shape | {"nern.init": "checkpoint", "nern.checkpoint_path": str(start)})
    whole, folder = train(config), interrupted(config, 3)
    start.unlink()
    monkeypatch.setenv("NERN_CACHE_DIR", str(tmp_path / "another"))
    assert_same_result(whole, resume(folder))


def other_width(config: Path) -> None:
    config.write_text(config.read_text().replace("hidden_layer_size: 8", "hidden_layer_size: 9"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: folder.config.unlink(), "is not a run folder"),
        (lambda folder: folder.state.unlink(), "cannot be resumed: it has no state.pt"),
        (lambda folder: folder.state.write_bytes(folder.state.read_bytes()[:500]), "cannot be read: truncated"),
        (lambda folder: torch.save({"version": 0}, folder.state), "not written by this version"),
        (lambda folder: Attack(folder.root / "executed").save_torch(folder.state), "refused"),
        (lambda folder: other_width(folder.config), r"nern\.hidden_layer_size changed"),
        (lambda folder: folder.save_state({"config": folder.load_state()["config"]}), r"state\.pt is damaged: '"),
    ],
)
def test_damaged_run_is_refused(
    finished: Finished, tmp_path: Path, damage: Callable[[RunFolder], Any], message: str
) -> None:
    folder = RunFolder(shutil.copytree(finished[0].root, tmp_path / "run"))
    damage(folder)
    with pytest.raises(NernError, match=message):
        nern.resume(folder.root, quiet())
    assert not (folder.root / "executed").exists()


def test_only_reconstruction_counts_during_the_warm_up(configure: Configure) -> None:
    losses = train(configure({"loss_warmup_iterations": 3})).load_state()["losses"]
    always = {"step", "lr", "total", "reconstruction"}
    assert [record["step"] for record in losses] == [0, 1, 2, 3, 4, 5]
    assert all(record.keys() == always for record in losses[:3])
    assert all(record.keys() == always | {"feature_maps", "distillation"} for record in losses[3:])
    assert all(record["total"] == record["reconstruction"] for record in losses[:3])


@pytest.mark.parametrize("random_data", [False, True])
def test_loss_that_is_not_finite_stops_the_run_naming_step_and_term(configure: Configure, random_data: bool) -> None:
    config = configure({"optim.lr": 1e30, "task.use_random_data": random_data, "optim.weight_decay": 0.0})
    with pytest.raises(NonFiniteLossError, match=r"step [1-5]: .*reconstruction loss is (inf|nan)"):
        train(config)
    assert not (Path(config.logging.log_dir) / "NeRN_Train" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("values", "evaluated", "kept"),
    [
        ({"num_iterations": 5, "eval_iterations_interval": 2, "save_iterations_interval": 2}, [2, 4, 5], {2, 4}),
        ({"epochs": 3, "eval_epochs_interval": 2, "save_epochs_interval": 2}, [4, 6], {4}),
        ({"num_iterations": 5, "eval_epochs_interval": 1, "eval_iterations_interval": 3}, [2, 3, 4, 5], set()),
    ],
)
def test_evaluations_and_checkpoints_come_at_their_intervals_and_at_the_end(
    configure: Configure, values: dict[str, Any], evaluated: list[int], kept: set[int]
) -> None:
    two_steps_an_epoch = {"batch_size": 600, "loss_warmup_iterations": 100, "num_iterations": None}
    folder = train(configure(two_steps_an_epoch | values))
    names = {path.stem for path in (folder.root / "checkpoints").iterdir()}
    assert (steps(folder), names) == (evaluated, {f"step_{step}" for step in kept} | {"best", "last"})
    assert all(checkpoint(folder, name).keys() == PREDICTOR_NAMES for name in names)


def test_low_loss_in_a_window_triggers_an_evaluation(configure: Configure) -> None:
    folder = train(configure({"num_iterations": 12, "eval_loss_window_size": 3, "eval_loss_window_interval": 2}))
    losses = folder.load_state()["losses"]
    watched = [
        (r["step"], r["feature_maps"] + r["distillation"]) for r in losses if "feature_maps" in r and r["step"] % 2 == 0
    ]
    expected = set()
    for index in range(2, len(watched)):
        step, loss = watched[index]
        if loss <= min(value for _, value in watched[index - 2 : index + 1]):
            expected.add(step + 1)
    assert expected
    assert set(steps(folder)) == expected | {12}


@pytest.mark.parametrize("best_on", ["held_out", "test"])
def test_best_is_the_evaluation_with_the_highest_score(configure: Configure, best_on: str) -> None:
    folder = train(configure({"evaluation.best_on": best_on, "eval_iterations_interval": 1, "optim.lr": 0.05}))
    metrics = json.loads(folder.metrics.read_text())
    evaluations = folder.load_state()["evaluations"]
    assert ("held_out" in metrics["last"]) == (best_on == "held_out")
    best = max(
        evaluations, key=lambda record: (record[best_on]["top1"], -record[best_on]["divergence"], -record["step"])
    )
    assert metrics["best"] == best


NAMED = {
    "nern.embeddings.type": registry.ENCODINGS,
    "nern.method": registry.PREDICTORS,
    "nern.norm_layer": registry.NORM_LAYERS,
    "nern.init": registry.INITS,
    "nern.weights_batch_method": registry.WEIGHT_BATCHES,
    "optim.optimizer_type": registry.OPTIMIZERS,
    "task.random_data": registry.RANDOM_IMAGES,
}
TOGETHER = {  # which do not depend on each other: one run trains one of each
    "nern.embeddings.permutations.permute_mode": registry.ORDERINGS,
    "nern.sampling_mode": registry.SAMPLING_MODES,
    "nern.act_layer": registry.ACTIVATIONS,
    "nern.reconstruction_loss_type": registry.RECONSTRUCTION_LOSSES,
    "nern.attention_loss_type": registry.FEATURE_MAP_LOSSES,
    "nern.distillation_loss_type": registry.DISTILLATION_LOSSES,
    "nern.task_loss_type": registry.TASK_LOSSES,
    "optim.lr_scheduler_type": registry.SCHEDULES,
}


def assert_trains(config: Config) -> None:
    folder = train(config)
    state = folder.load_state()
    assert state["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state["predictor"].values())
    nern.load_run(folder.root)


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in NAMED.items() for name in names])
def test_everything_registered_trains(configure: Configure, key: str, name: str) -> None:
    values = {key: name, "num_iterations": 2, "loss_warmup_iterations": 0}
    if key == "nern.method":
        values["nern.embeddings.num_idxs"] = registry.PREDICTORS.info(name)["num_idxs"]
        if registry.PREDICTORS.info(name)["of_kernels"]:  # it has neither layers nor an encoding
            usual = Config().nern
            values |= {"nern.hidden_layer_size": usual.hidden_layer_size}
            values |= {"nern.embeddings.enc_levels": usual.embeddings.enc_levels}
    if key == "task.random_data":
        values |= {"task.use_random_data": True}
    if name == "checkpoint":
        values["nern.checkpoint_path"] = str(train(configure({"num_iterations": 1})).checkpoint("last"))
    assert_trains(configure(values))


@pytest.mark.parametrize("number", range(max(len(list(names)) for names in TOGETHER.values())))
def test_everything_else_registered_trains(configure: Configure, number: int) -> None:
    values = {key: list(names)[number % len(list(names))] for key, names in TOGETHER.items()}
    length = {"num_iterations": 2, "loss_warmup_iterations": 0, "nern.task_loss_weight": 0.1, "nern.output_size": 5}
    assert_trains(configure(length | values))


def test_what_is_trained_beside_the_predictor_is_saved_and_evaluated(configure: Configure) -> None:
    both = {"learn_fc_layer": True, "learn_norms": True, "optim.lr": 0.05}
    folder = train(configure(both | {"original_model_path": "pretrained:digits-resnet8"}))
    beside, kept = attached_to(folder.checkpoint("best"))["beside"], load_file(folder.kept)
    assert beside.keys() == {name for name in kept if name.endswith(("weight", "bias"))}
    assert len(beside) == 14 + 2
    assert all(not torch.equal(tensor, kept[name]) for name, tensor in beside.items())
    metrics = json.loads(folder.metrics.read_text())
    config = nern.jobs.evaluating.config_of_run(folder.root)
    assert nern.evaluate(config, console=quiet())["reconstructed"] == metrics["best"]["test"]
    state = nern.load_run(folder.root).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in beside.items())
    new, best = beside | {"new.bias": torch.ones(2)}, folder.checkpoint("best")  # of before biases were trained
    assert same(load_beside(best, new, ["new.bias"]), new)
    with pytest.raises(NernError, match=r"does not hold new\.bias of shape"):
        load_beside(best, new)


def test_scalars_go_to_the_tracker_at_their_interval(configure: Configure) -> None:
    folder = train(configure({"logging.tracker": "csv", "logging.log_interval": 2, "logging.verbose": True}))
    recorded: dict[int, dict[str, float]] = {step: {} for step in (0, 2, 4, 5, 6)}
    with (folder.root / "scalars.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            recorded[int(row["step"])][row["name"]] = float(row["value"])
    norms = {f"{kind}_norm/{name}" for kind in ("weight", "gradient") for name in PREDICTOR_NAMES}
    assert recorded[0].keys() == {"loss/reconstruction", "loss/total", "optim/lr"} | norms
    assert all(recorded[0][name] > 0 for name in norms)
    assert all({"loss/distillation", "loss/feature_maps"} <= recorded[step].keys() for step in (2, 4, 5))
    assert {"held_out/top1", "test/top1", "test/loss"} <= recorded[6].keys()


@pytest.mark.filterwarnings("ignore:original_model_path is not set")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"original_model_path": "absent.pt"}, "no such file: absent.pt"),
        ({"original_model_path": "pretrained:nonesuch"}, "Choices: pretrained:digits-resnet8"),
        ({"task.original_model_kwargs": {"depht": 3}}, "unknown argument of ResNet8 'depht'"),
        ({"task.task_name": "cifar10", "task.use_random_data": True}, "does not take the .* images of cifar10"),
        (
            {"original_model_path": None, "task.original_model_kwargs": {"num_classes": 3, "in_channels": 1}},
            "10 classes",
        ),
        ({"nern.output_size": 1}, "set nern.output_size to at least 3"),
        ({"nern.init": "checkpoint", "nern.checkpoint_path": "absent.pt"}, "no such file: absent.pt"),
        ({"nern.feature_maps": ["layer9*"]}, "unknown module"),
        ({"nern.method": "kxk_nerf", "nern.num_blocks": 1}, "num_blocks .* at least 2"),
        ({"optim.lr_scheduler_type": "exponential", "optim.step_interval": 0}, "needs 100 steps; there are 6"),
        ({"nern.norm_layer": "bn", "nern.weights_batch_method": "random_batch", "nern.weights_batch_size": 1}, "bn"),
        ({"nern.feature_maps": [], "loss_warmup_iterations": 0}, "gives no feature maps"),
        ({"nern.attention_loss_weight": float("nan")}, "finite"),
        ({"logging.exp_name": ""}, "must name a folder"),
        ({"logging.log_dir": __file__}, r"logging\.log_dir"),
    ],
)
def test_run_that_cannot_work_leaves_nothing(configure: Configure, values: dict[str, Any], message: str) -> None:
    log_dir = Path(configure().logging.log_dir)
    with pytest.raises(NernError, match=message):
        nern.train(configure(values), quiet())
    assert not log_dir.exists() or not any(log_dir.iterdir())


def test_an_original_that_changed_is_noticed(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    assert config.original_model_path is not None
    weights = tmp_path / "copy.pt"
    state = torch.load(config.original_model_path)
    torch.save(state, weights)
    folder = train(configure({"original_model_path": str(weights)}))
    nern.load_run(folder.root)
    torch.save({name: 2 * value for name, value in state.items()}, weights)
    for use in (lambda: nern.load_run(folder.root), lambda: resume(folder)):
        with pytest.raises(NernError, match="had other weights"):
            use()


def test_a_removed_ordering_is_written_again(configure: Configure) -> None:
    folder = interrupted(configure({"nern.embeddings.permutations.permute_mode": "crossfilter"}), 3)
    before = load_file(folder.ordering)
    folder.ordering.unlink()
    resume(folder)
    assert same(load_file(folder.ordering), before)
