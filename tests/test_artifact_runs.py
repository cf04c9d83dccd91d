"""Runs that are packed, the phase in which a predictor is rounded as in its file, and the commands about files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import nern
from artifact_parts import same_tensor
from nern import Config, NernError, PackOptions
from nern.cli import main
from nern.experiment import build_experiment
from nern.originals.cifar_resnet import CifarResNet
from nern.representation.grid import on_grid
from nern.tasks.streams import first_images
from nern.training.run_folder import RunFolder, load_steps
from runs import SHORT, assert_same_result, interrupted, moments, quiet, resume, small_resnet

pytestmark = pytest.mark.usefixtures("no_pictures")

SETTINGS: dict[str, Any] = SHORT | {
    "nern.hidden_layer_size": 24,
    "nern.act_layer": "sine",
    "nern.init": "siren",
    "nern.output_scales": "per_layer",
    "nern.embeddings.type": "order",
    "nern.embeddings.permutations.permute_mode": "infilter_path",
    "nern.weights_batch_method": "random_batch",
    "logging.exp_name": "run",
    "evaluation.held_out_images": 40,
    "evaluation.test_images": 100,
    "eval_iterations_interval": 2,
    "reconstruction.iterations": 3,
    "distillation.iterations": 2,
    "quantisation.iterations": 4,
    "quantisation.bits": 5.0,
    "quantisation.images": 8,
}
Pack = Callable[..., Path]
PLAIN = "distillation"  # a checkpoint that was not trained to be rounded


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a very small ResNet for digits."""
    path = tmp_path_factory.mktemp("original") / "network.pt"
    torch.save(small_resnet(option="B").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def configure(original: Path) -> Callable[..., Config]:
    """Makes the config of a run in a folder; dotted keys win over its own."""

    def make(folder: Path, given: Mapping[str, Any] | None = None) -> Config:
        own = {"original_model_path": str(original), "logging.log_dir": str(folder)}
        return Config.from_dict(own | SETTINGS | dict(given or {}))

    return make


@pytest.fixture(scope="module")
def run(configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of all three phases. Before the last one its predictor is not trained to be rounded."""
    return RunFolder(nern.train(configure(tmp_path_factory.mktemp("runs")), quiet())["run_folder"])


@pytest.fixture(scope="module")
def packed(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Packs the run; with the same options it is the same file."""
    folder, made = tmp_path_factory.mktemp("packed"), {}

    def pack(checkpoint: str = "best", images: int = 8, **options: Any) -> Path:
        asked = PackOptions(checkpoint, images=images, **options)
        if repr(asked) not in made:
            path = made[repr(asked)] = folder / f"{len(made)}.nern"
            assert nern.pack(run.root, path, asked, quiet()).size == path.stat().st_size
        return made[repr(asked)]

    return pack


@pytest.mark.parametrize("checkpoint", ["best", "last", "reconstruction"])
def test_lossless_weights_are_those_of_the_run(run: RunFolder, packed: Pack, checkpoint: str) -> None:
    of_run, artifact = nern.load_run(run.root, checkpoint), nern.load(packed(checkpoint, lossless=True))
    expected, built = of_run.state_dict(), artifact.network()
    assert all(p.requires_grad and p.is_leaf for p in (*of_run.parameters(), *built.parameters()))
    assert isinstance(built, CifarResNet)
    for found in (artifact.state_dict(), built.state_dict()):
        assert found.keys() == expected.keys()
        assert all(same_tensor(found[name], tensor) for name, tensor in expected.items())


def test_more_bits_give_larger_files_nearer_to_the_run(run: RunFolder, packed: Pack) -> None:
    expected, sizes, errors = nern.load_run(run.root, PLAIN).state_dict(), [], []
    for bits in (3.0, 6.0, 12.0):
        artifact = nern.load(packed(PLAIN, bits=bits))
        sizes.append(artifact.size)
        state = artifact.state_dict()
        names = [name for name, _, _ in artifact.description.networks[0].represented]
        errors.append(sum(float((state[name] - expected[name]).norm()) for name in names))
        numbers = sum(code.count for code in artifact.description.predictor if code.held == "grid")
        assert bits - 0.5 < 8 * artifact.sizes["PRED"] / numbers < bits + 1.5  # models learn counts from few numbers
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * errors[0]


def channel_means(network: nn.Module, images: Tensor) -> Tensor:
    """Of the outputs of all batch norms, one after the other."""
    return torch.cat([mean for mean, _ in moments(network, images)])


@pytest.mark.parametrize("options", [{"bits": 3.0}, {"size": 2500}], ids=["bits", "bytes"])
def test_norms_follow_what_rounding_does_where_there_are_images(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    stream = build_experiment(Config.load(run.config)).members[0].stream
    assert stream is not None
    images, errors = first_images(stream, 40), []
    wanted = channel_means(nern.load_run(run.root, PLAIN), images)
    for fitted in (True, False):
        if not fitted:
            monkeypatch.setattr("nern.jobs.packing.fitted_norms", lambda *args, **more: {})
        found = nern.pack(run.root, tmp_path / "x.nern", PackOptions(PLAIN, images=40, **options), quiet())
        assert found.size <= options.get("size", found.size)
        errors.append(float((channel_means(found.network(), images) - wanted).norm()))
    assert errors[0] < 0.5 * errors[1]


def test_bytes_are_kept_and_nearly_reached(packed: Pack, run: RunFolder, tmp_path: Path) -> None:
    least = packed(PLAIN, 0, bits=1.0).stat().st_size
    for more, evaluate in ((900, False), (1800, True)):
        size = least + more
        assert size - 150 <= packed(PLAIN, 0, size=size, evaluate=evaluate).stat().st_size <= size
    with pytest.raises(NernError, match="even at one bit for each number"):
        nern.pack(run.root, tmp_path / "x.nern", PackOptions(PLAIN, size=least - 100, images=0), quiet())
    assert not (tmp_path / "x.nern").exists()


def test_bytes_leave_a_predictor_that_was_trained_to_be_rounded_as_it_was(packed: Pack) -> None:
    whole = nern.load(packed(images=0))
    for less, kept in ((20, True), (whole.sizes["KEPT"], False)):
        found = nern.load(packed(images=0, size=whole.size - less))
        assert found.size <= whole.size - less
        assert (found.sections["PRED"] == whole.sections["PRED"]) is kept


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"bits": 25.0}, "bits (=25.0) must be above 0, and at most 24"),
    ({"bits": 8.0, "size": 1000}, "give one of them"),
    ({"lossless": True, "bits": 8.0}, "drop one of them"),
    ({"size": 0}, "bytes (=0) must be at least 1"),
    ({"gap": 0.5}, "gap is of a network"),
    ({"images": -1}, "images (=-1) must be 0 or more"),
    ({"checkpoint": "worst"}, "has no checkpoint 'worst'; it has: best"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: repr(value)[:30])
def test_options_that_cannot_be(run: RunFolder, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(NernError) as caught:
        nern.pack(run.root, tmp_path / "net.nern", PackOptions(**options), quiet())
    assert message in str(caught.value)
    assert not (tmp_path / "net.nern").exists()


def test_checkpoints_are_on_the_grid_that_they_keep_and_pack_takes(run: RunFolder, packed: Pack) -> None:
    artifact = nern.load(packed())
    codes = {code.name: code for code in artifact.description.predictor}
    for name in ("best", "last", "quantisation"):
        quantised, state = load_steps(run.checkpoint(name)), torch.load(run.checkpoint(name))
        assert quantised is not None
        assert quantised.level > 0
        assert {"layers.0.weight", "final_linear_layer.weight"} <= set(quantised.steps) <= set(state)
        for key, step in quantised.steps.items():
            assert torch.equal(on_grid(state[key], step), state[key]), key
            if name == "best":
                assert (codes[key].held, codes[key].step) == ("grid", step)
                assert torch.equal(artifact.nern.predictor.state_dict()[key], state[key]), key
    for name in ("reconstruction", "distillation"):
        assert load_steps(run.checkpoint(name)) is None
    assert nern.load(packed(bits=9.0)).sizes["PRED"] > 1.3 * artifact.sizes["PRED"]


def test_the_packed_network_is_as_good_as_the_run_says(run: RunFolder, packed: Pack) -> None:
    figures = nern.load(packed(evaluate=True)).description.networks[0].about["test"]
    said = json.loads(run.metrics.read_text())["best"]["test"]
    assert abs(figures["top1"] - said["top1"]) <= 1.0  # the rest of the network is rounded, too
    assert figures["loss"] == pytest.approx(said["loss"], rel=0.02)


def test_the_best_is_chosen_among_what_is_rounded(run: RunFolder) -> None:
    state = run.load_state()
    assert state["best"]["step"] > 5  # reconstruction: 3, distillation: 2
    rounded = [record for record in state["evaluations"] if record["step"] > 5]
    assert [record["step"] for record in rounded] == [6, 8, 9]
    assert state["best"]["held_out"]["top1"] == max(record["held_out"]["top1"] for record in rounded)
    best = next(record for record in rounded if record["step"] == state["best"]["step"])
    assert state["best"]["test"] == best["test"]


@pytest.mark.parametrize("step", [5, 8])  # where the phase begins, and within it
def test_a_resumed_run_equals_the_uninterrupted_one(
    run: RunFolder, configure: Callable[..., Config], step: int, tmp_path: Path
) -> None:
    assert_same_result(run, resume(interrupted(configure(tmp_path), step)))


def test_the_commands(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, weights, told = str(tmp_path / "net.nern"), str(tmp_path / "w.safetensors"), tmp_path / "told.json"

    def printed(*typed: str) -> str:
        assert main(list(typed)) == 0
        return capsys.readouterr().out

    options = ["--checkpoint", "last", "--lossless", "true", "--evaluate", "true", "--metadata", '{"by": "me"}']
    out = printed("pack", str(run.root), "-o", file, *options, "--json", str(told))
    said, size, artifact = json.loads(told.read_text()), Path(file).stat().st_size, nern.load(file)
    assert said["bytes"] == sum(said["sections"].values()) == size
    assert f"{size:,}" in out
    network, expected = artifact.description.networks[0], json.loads(run.metrics.read_text())["last"]["test"]
    assert (network.name, network.architecture, network.about["task"]) == ("ResNet8", "ResNet8", "digits")
    assert network.about["test"] == {name: expected[name] for name in ("images", "top1", "top5", "loss")}
    out = printed("info", file)
    assert all(part in out for part in (f"{size:,}", "built as ResNet8", "by: me"))
    assert "tensors" in printed("unpack", file, "-o", weights)
    state = load_file(weights)
    assert all(same_tensor(state[name], tensor) for name, tensor in artifact.state_dict().items())
    out = printed("verify", file, "--task.task_name", "digits", "--json", str(told))
    assert "every checksum holds" in out
    assert "% of 100 test images of digits (the same images)" in out  # as many as the file tells of
    assert json.loads(told.read_text())["difference"] == 0


def test_commands_that_fail(run: RunFolder, packed: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = packed(lossless=True)
    damaged = tmp_path / "damaged.nern"
    damaged.write_bytes(file.read_bytes()[:-1])
    for arguments, message in (
        (["info", str(tmp_path / "missing.nern")], "no such file"),
        (["info", str(damaged)], "is truncated"),
        (["unpack", str(damaged), "-o", str(tmp_path / "w.safetensors")], "is truncated"),
        (["pack", str(run.root), "-o", str(tmp_path)], "it is a folder"),
        (["pack", str(tmp_path / "nothing"), "-o", str(tmp_path / "x.nern")], "nothing"),
        (["unpack", str(file), "--network", "1", "-o", str(tmp_path / "w.safetensors")], "must be below 1"),
        (["info", str(file), "--limit", "10"], "more than 10"),
        (["verify", str(file), "--task.data_dir", "x"], "options of a task need --task.task_name"),
        (["pack", str(run.root), "-o", str(tmp_path / "x.nern"), "--bits", "8", "--bytes", "9"], "give one of them"),
    ):
        assert main(arguments) != 0
        captured = capsys.readouterr()
        assert message in " ".join((captured.out + captured.err).split())
        assert "Traceback" not in captured.err
    assert not (tmp_path / "x.nern").exists()
    assert not (tmp_path / "w.safetensors").exists()
