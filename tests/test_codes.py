"""Codes: a network rounded without training, its kernels as codes in a basis, coded by what is near each number."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nern
from nern import NernError, PackOptions
from nern.artifact.codes import HELD, Models, decode_codes, encode_codes
from nern.artifact.entropy import Decoder, Encoder
from nern.artifact.table import layer_table
from nern.artifact.tensors import Coded, TensorCode, decode_tensors, encode_tensors
from nern.calibration import network as calibration
from nern.calibration.feedback import Inputs, rounded
from nern.cli import main
from nern.config import Config, NernConfig, TaskConfig
from nern.jobs import coding as jobs_coding
from nern.originals.build import build_network
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern
from nern.tasks.own import Forward
from runs import assert_same_result, interrupted, quiet, resume, train

QUIET = quiet()
DIGITS = ["--task.original_model_name", "ResNet8", "--task.task_name", "digits"]


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn(64, 3, 16, 16, generator=rng)


class Small(nn.Module):
    """Convolutions of several kinds, norms, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.pointwise = nn.Conv2d(12, 20, 1)
        self.group = nn.GroupNorm(4, 20)
        self.classes = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.classes(torch.relu(self.group(self.pointwise(self.depthwise(x)))).mean((2, 3)))


@pytest.fixture
def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small()
        for _ in range(3):  # norms with statistics of their own
            network(torch.randn(16, 3, 16, 16) + 1)
    return network.eval()


def packed(network: nn.Module, path: Path, seen: Tensor | None = None, **options: Any) -> nern.Artifact:
    return nern.pack(network, path, PackOptions(**options), QUIET, images=seen)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 24), st.sampled_from([1, 2, 9])),
    spread=st.sampled_from([0.0, 0.1, 0.7, 5.0, 300.0, 1e5]),
    seed=st.integers(0, 99),
    held=st.sampled_from(sorted(HELD)),
)
def test_codes_are_decoded_as_they_were(shape: tuple[int, int, int], spread: float, seed: int, held: str) -> None:
    rng, encoder = np.random.default_rng(seed), Encoder()
    arrays = [np.round(rng.laplace(0, spread, shape)).astype(np.int64) if spread else np.zeros(shape, np.int64)] * 2
    models = Models()
    for array in arrays:
        encode_codes(encoder, array, models, held)
    decoder, models = Decoder(encoder.finish()), Models()
    for array in arrays:
        assert np.array_equal(decode_codes(decoder, shape, models, held), array)
    decoder.finish()


def test_codes_that_are_too_large_or_would_take_hours_are_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1, 1, 2**18 + 1)
    with pytest.raises(NernError, match="take too long"):
        encode_tensors({"codes.0": huge}, {"codes.0": Coded(0)})
    with pytest.raises(NernError, match="take too long"):
        decode_tensors([TensorCode("codes.0", tuple(huge.shape), "f32", "codes")], b"", b"")
    with pytest.raises(NernError, match="take a larger step"):
        encode_codes(Encoder(), np.full((1, 1, 1), 2**25), Models())


def test_large_parameters_that_are_no_kernels_are_held_in_sixteen_bits(small: nn.Module, tmp_path: Path) -> None:
    small.grid = nn.Parameter(torch.linspace(0, 1, 5000).view(1, 1, 5000))
    kept = packed(small, tmp_path / "a.nern", images=0).description.kept
    assert {code.name: code.held for code in kept}["grid"] == "f16"


def test_what_is_known_of_filters_and_channels_saves_bits() -> None:
    rng = np.random.default_rng(0)
    scales = np.outer(rng.gamma(0.5, 1, 64), rng.gamma(0.5, 1, 64))
    even, uneven = (
        np.round(rng.laplace(0, 1, (64, 64, 9)) * scale).astype(np.int64) for scale in (1.0, scales[:, :, None])
    )
    shuffled = rng.permutation(uneven.ravel()).reshape(uneven.shape)

    def size(array: np.ndarray) -> int:
        encoder = Encoder()
        encode_codes(encoder, array, Models())
        return len(encoder.finish())

    assert size(uneven) < 0.8 * size(shuffled)
    counts = np.unique(even, return_counts=True)[1] / even.size
    assert size(even) < 1.02 * -(counts * np.log2(counts)).sum() * even.size / 8  # nothing is lost where there is none


@pytest.mark.parametrize("heads", ["per_size", "per_layer"])
def test_codes_of_weights_give_these_weights(heads: str, rng: torch.Generator) -> None:
    shapes = ((6, 4, 3, 3), (5, 6), (3, 5, 1, 1), (7, 3, 3, 3), (4, 2, 5))
    weights = [torch.randn(shape, generator=rng) for shape in shapes]
    table = KernelTable.of(weights)
    made = build_nern(NernConfig(method="codes", heads=heads), table, None, 0, weights=weights)
    for found, weight in zip(made.reconstruct(), weights, strict=True):
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-5)
    rows = torch.tensor([2, 40, 3, 3, 0, 30])
    whole = made()
    for found, of_head, (_, local) in zip(made(rows), whole, made.heads.split(rows), strict=True):
        torch.testing.assert_close(found, of_head[local])


def error(artifact: nern.Artifact, network: nn.Module, images: Tensor) -> float:
    """Of the outputs."""
    with torch.no_grad():
        return float((artifact.network(network)(images) - network(images)).square().mean())


@settings(deadline=None)
@given(groups=st.sampled_from([1, 3]), seed=st.integers(0, 50), quality=st.sampled_from([0.05, 0.3, 1.0]))
def test_feedback_errs_less_than_rounding_alone(groups: int, seed: int, quality: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    n = 24
    mixing = torch.randn(groups, n, n, generator=rng) * torch.logspace(0, -1.5, n)
    inputs = torch.randn(groups, 4000, n, generator=rng) @ mixing
    moments = inputs.mT @ inputs / 4000
    codes = torch.randn(6 * groups, n // 2, 2, generator=rng)
    found = rounded(codes, Inputs(moments, codes.view(groups, 6, n) @ moments), torch.ones(6 * groups), quality)
    nearest = (codes / found.step).round() * found.step

    def error(values: Tensor) -> float:
        difference = (values - codes).reshape(groups, 6, n)
        return float(((difference @ moments) * difference).sum())

    def size(values: Tensor) -> float:
        return float((values / found.step).abs().log1p().sum())

    assert torch.equal(found.values, found.multiples * found.step)
    assert error(found.values) < error(nearest) or size(found.values) < size(nearest)
    assert error(found.values) < error(torch.zeros_like(codes))


def test_finer_qualities_need_more_bytes_and_err_less(small: nn.Module, images: Tensor, tmp_path: Path) -> None:
    files = [packed(small, tmp_path / f"{bits}.nern", images, bits=bits) for bits in (2.0, 3.5, 5.0)]
    sizes, errors = [file.sizes["COD3"] for file in files], [error(file, small, images) for file in files]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_every_kind_of_layer_is_rounded_by_what_it_meets(small: nn.Module, images: Tensor, tmp_path: Path) -> None:
    """At the same size of the file the outputs are nearer than without images."""
    with_images = packed(small, tmp_path / "a.nern", images, size=2200)
    without = packed(small, tmp_path / "b.nern", size=2200, images=0)
    assert error(with_images, small, images) < 0.7 * error(without, small, images)
    table = layer_table(with_images)
    assert table is not None
    assert table.row_count == 4


@pytest.mark.usefixtures("rng_untouched")
def test_packing_changes_nothing_and_gives_the_same_file_again(
    small: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    before = copy.deepcopy(small.state_dict())
    for name in ("a.nern", "b.nern"):
        packed(small, tmp_path / name, images, bits=3.0)
    assert (tmp_path / "a.nern").read_bytes() == (tmp_path / "b.nern").read_bytes()
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize("size", [1500, 2200])
@pytest.mark.parametrize("count", [64, 0])
def test_a_size_is_met_to_within_a_hundredth(
    small: nn.Module, images: Tensor, size: int, count: int, tmp_path: Path
) -> None:
    artifact = packed(small, tmp_path / "a.nern", images if count else None, size=size, images=count)
    assert 0.985 * size <= artifact.size <= size  # so small a file has few sizes
    assert artifact.size == (tmp_path / "a.nern").stat().st_size


def test_a_gap_is_kept_on_the_images(small: nn.Module, images: Tensor, tmp_path: Path) -> None:
    loose, tight = (packed(small, tmp_path / f"{gap}.nern", images, gap=gap) for gap in (20.0, 1.0))
    with torch.no_grad():
        wanted = small(images).argmax(1)
        agree = [float((a.network(small)(images).argmax(1) == wanted).float().mean()) for a in (loose, tight)]
    assert agree[0] >= 0.8 - 1 / 64
    assert agree[1] >= 0.99 - 1 / 64
    assert loose.size <= tight.size


NETWORKS = [
    "ResNet8", "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5", "timm:mobilenetv3_small_050",
    "timm:efficientnet_lite0", "timm:resnet10t", "timm:mixer_s32_224", "timm:vit_tiny_patch16_224",
    "timm:convnext_atto", "timm:ghostnet_050", "timm:mobileone_s0", "timm:xcit_nano_12_p16_224", "timm:edgenext_xx_small",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_no_file_is_larger_than_the_network_in_eight_bits(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = build_network(name).eval()
    artifact = packed(network, tmp_path / "net.nern", images=0)
    numbers = sum(p.numel() for p in network.parameters())
    assert artifact.size < numbers
    copied = artifact.network(network)
    for (key, found), (_, weight) in zip(copied.named_parameters(), network.named_parameters(), strict=True):
        if weight.dim() > 1:
            assert float((found - weight).detach().norm()) <= 0.2 * float(weight.detach().norm()), key


class Shared(nn.Module):
    """A convolution whose weight has its inputs in front, one that is called twice, attention, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 2, stride=2)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.up(x))))))
        h = x.mean(2).mT
        return self.two(torch.relu(self.one(self.mix(h, h, h)[0].mean(1))))


def test_layers_of_other_kinds_shared_and_tied_ones_are_held(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Shared().eval()
    found = packed(network, tmp_path / "a.nern", images, bits=6.0).network(network)
    assert found.two.weight is found.one.weight
    with torch.no_grad():
        assert (found(images) - network(images)).norm() < 0.3 * network(images).norm()


def test_few_images_at_a_time_are_rounded_as_all_at_once(
    small: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [packed(small, tmp_path / "whole.nern", images, bits=4.0)]
    monkeypatch.setattr(calibration, "AT_ONCE", 1)  # 32 parts of two images
    files.append(packed(small, tmp_path / "parts.nern", images, bits=4.0))
    monkeypatch.setattr(calibration, "HELD", 2**17)  # the first layers see the first images alone
    files.append(packed(small, tmp_path / "fewer.nern", images, bits=4.0))
    errors = [error(file, small, images) for file in files]
    assert max(errors) < 1.5 * min(errors)


def test_the_command_writes_a_file_that_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.nern"
    pack = ["pack", "pretrained:digits-resnet8", "-o", str(file), *DIGITS, "--bytes", "9000", "--evaluate", "true"]
    for command, said in (
        (pack, "calibrated on 1,024 training images of digits"),
        (["verify", str(file), "--task.task_name", "digits"], "the same images"),
        (["info", str(file)], "codes in a basis"),
    ):
        assert main(command) == 0
        assert said in " ".join(capsys.readouterr().out.split())
    assert 8900 <= file.stat().st_size <= 9000


BAD: list[tuple[dict[str, Any], str]] = [
    ({"size": 300}, "cannot be held in 300 bytes: the smallest file that was found has"),
    ({"bits": 0.0}, "bits (=0.0) must be above 0"),
    ({"gap": 100.0}, "gap (=100.0) is a share"),
    ({"lossless": True}, "lossless is of runs"),
    ({"evaluate": True}, "evaluate needs test images"),
    ({"gap": 0.5, "images": 0}, "gap is of classes on calibration images"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: repr(value)[:30])
def test_options_that_cannot_be(
    small: nn.Module, images: Tensor, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(NernError) as error:
        packed(small, tmp_path / "a.nern", images, **options)
    assert message in str(error.value)
    assert not (tmp_path / "a.nern").exists()


def test_images_and_outputs_that_cannot_be_calibrated_on_are_refused(
    small: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    for shape in ((4, 1, 16, 16), (0, 3, 16, 16)):
        with pytest.raises(NernError, match=r"do not fit Small|there are no calibration images"):
            packed(small, tmp_path / "a.nern", torch.zeros(shape))
    for change, message in ((lambda y: y * float("nan"), "not finite"), (lambda y: (y, y), "gives tuple")):
        handle = small.register_forward_hook(lambda module, inputs, output, change=change: change(output))
        with pytest.raises(NernError, match=message):
            packed(small, tmp_path / "a.nern", images)
        handle.remove()


def test_what_is_no_network_is_refused(small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(NernError, match="say `out`"):
        nern.pack(small, None, console=QUIET)
    with pytest.raises(NernError, match=r"--task.original_model_name says the network"):
        nern.pack(tmp_path / "w.pt", tmp_path / "a.nern", console=QUIET)
    with pytest.raises(NernError, match="no such file"):
        nern.pack(tmp_path / "w.pt", tmp_path / "a.nern", console=QUIET, task=TaskConfig(original_model_name="ResNet8"))
    with pytest.raises(NernError, match="nothing to code"):
        packed(nn.Sequential(nn.BatchNorm1d(3)), tmp_path / "a.nern", images=0)
    with pytest.raises(NernError, match="give some"):  # its format is not known
        packed(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)), tmp_path / "a.nern")


class Tagger(nn.Module):
    """A small transformer: scores of tags for each token, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, tokens: Tensor, padding: Tensor) -> dict[str, Tensor]:
        return {"tags": self.out(self.layer(self.embed(tokens), src_key_padding_mask=padding))}


@pytest.fixture
def batches(rng: torch.Generator) -> list[dict[str, Tensor]]:
    """Batches for a `Tagger`, as a collate function gives them."""
    padding = torch.arange(7).expand(16, 7) > 4
    return [{"tokens": torch.randint(20, (16, 7), generator=rng), "padding": padding} for _ in range(3)]


@pytest.mark.parametrize("forward", [None, lambda network, batch: network(batch["tokens"], batch["padding"])["tags"]])
def test_a_network_is_calibrated_on_batches_of_nested_tensors(
    forward: Forward | None, batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = Tagger().eval()

    def off(artifact: nern.Artifact) -> float:
        with torch.no_grad():
            outputs, wanted = (
                torch.cat([net(**batch)["tags"] for batch in batches]) for net in (artifact.network(network), network)
            )
        return float((outputs - wanted).norm() / wanted.norm())

    seen = nern.pack(network, tmp_path / "a.nern", PackOptions(bits=3), QUIET, images=batches, forward=forward)
    blind = packed(network, tmp_path / "b.nern", bits=3, images=0)
    assert off(seen) < 0.8 * off(blind)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["embed.weight", "layer.self_attn.in_proj_weight"])
def test_fewer_bits_round_weights_more_that_no_layer_applies(
    name: str, batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = Tagger().eval()
    own, errors = network.state_dict()[name], []
    for bits in (8, 4):
        made = nern.pack(network, tmp_path / "a.nern", PackOptions(bits=bits), QUIET, images=batches)
        errors.append(float((made.state_dict()[name] - own).norm() / own.norm()))
    assert 0 < 2 * errors[0] < errors[1] < 0.5


def test_batches_that_cannot_be_joined_are_refused(batches: list[dict[str, Tensor]], tmp_path: Path) -> None:
    shorter = {name: tensor[:, :5] for name, tensor in batches[0].items()}
    with pytest.raises(NernError, match="pad them to one shape"):
        nern.pack(Tagger().eval(), tmp_path / "a.nern", images=[batches[0], shorter])
    with pytest.raises(NernError, match="give these, too"):
        nern.pack(Tagger().eval(), tmp_path / "a.nern", forward=lambda network, batch: network(**batch))


@pytest.mark.parametrize(("options", "side"), [([], 224), (["--task.input_size", "64"], 64)])
def test_made_up_images_have_the_size_of_the_network(
    options: list[str], side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    make = jobs_coding.calibration_images
    monkeypatch.setattr("nern.jobs.packing.calibration_images", lambda *given: seen.append(make(*given)) or seen[0])
    torch.save(build_network("torchvision:squeezenet1_1").state_dict(), tmp_path / "w.pt")
    typed = ["pack", str(tmp_path / "w.pt"), "-o", str(tmp_path / "a.nern"), "--images", "2", *options]
    assert main([*typed, "--task.original_model_name", "torchvision:squeezenet1_1"]) == 0
    assert [images.shape for images in seen] == [(2, 3, side, side)]


def config(tmp_path: Path, **changes: Any) -> Config:
    """A short run of recipe 'codes'."""
    settings: dict[str, Any] = {
        "task.task_name": "digits",
        "task.original_model_name": "ResNet8",
        "original_model_path": "pretrained:digits-resnet8",
        "logging.log_dir": str(tmp_path),
        "logging.tracker": "none",
        "evaluation.held_out_images": 20,
        "evaluation.test_images": 200,
        "batch_size": 16,
    }
    if "phases" not in changes:
        settings |= {"quantisation.iterations": 6, "quantisation.images": 64, "quantisation.bits": 1.0}
    return Config.of_recipe("codes", settings | changes)


@pytest.mark.usefixtures("no_picture")
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(config(tmp_path, **{"logging.exp_name": "whole"}))
    part = resume(interrupted(config(tmp_path / "part"), 3))
    assert_same_result(whole, part)
    assert whole.load_state()["quantised"]["rate"]["weight"] > 0


@pytest.mark.usefixtures("no_picture")
def test_the_rate_is_held_and_the_file_gives_the_accuracy_of_the_run(tmp_path: Path) -> None:
    run = train(config(tmp_path, **{"quantisation.iterations": 60, "quantisation.bits": 0.8}))
    file = tmp_path / "run.nern"
    artifact = nern.pack(run.root, file, PackOptions(checkpoint="last", evaluate=True), QUIET)
    weights = artifact.nern.table.num_weights
    assert 8 * artifact.sizes["COD3"] / weights == pytest.approx(0.8, rel=0.1)
    losses = run.load_state()["losses"][-1]
    assert losses["rate"] == pytest.approx(8 * artifact.sizes["COD3"] / weights, rel=0.1)
    told = artifact.description.networks[0].about["test"]["top1"]
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    assert told == pytest.approx(metrics["last"]["test"]["top1"], abs=1.0)
    assert told > 90
    with pytest.raises(NernError, match="train the run with fewer bits"):
        nern.pack(run.root, file, PackOptions(size=artifact.size - 100), QUIET)
    with pytest.raises(NernError, match="bits and what is trained go together"):
        nern.pack(run.root, file, PackOptions(bits=2.0), QUIET)


def test_pruned_weights_stay_zero_and_biases_are_trained(small: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for weight in (small.first.weight, small.pointwise.weight, small.classes.weight):
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.6] = 0
    settings = {
        "quantisation": {"iterations": 8, "bits": 1.5, "images": 64},
        "batch_size": 16,
        "logging.tracker": "none",
    }
    fitted = nern.fit(small, data=list(images.split(16)), config=Config.of_recipe("codes", settings), progress=False)
    trained = dict(fitted.network().named_parameters())
    for name in ("first.weight", "pointwise.weight", "classes.weight"):
        assert not trained[name][small.get_parameter(name) == 0].any()
    for name in ("depthwise.bias", "pointwise.bias", "classes.bias", "norm.bias"):
        assert not torch.equal(trained[name], small.get_parameter(name))


@pytest.mark.usefixtures("no_picture")
def test_codes_that_were_not_trained_to_be_rounded_are_not_packed(tmp_path: Path) -> None:
    run = train(config(tmp_path, phases=[{"name": "distillation", "iterations": 2}]))
    with pytest.raises(NernError, match="were not trained to be rounded"):
        nern.pack(run.root, tmp_path / "run.nern", console=QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantisation.bits": 0.0}, "quantisation.bits (=0.0) must be above 0"),
        ({"nern.num_blocks": 5}, "nern.num_blocks has no effect with nern.method 'codes'"),
        ({"nern.embeddings.permutations.permute_mode": "crossfilter"}, "permute_mode has no effect with"),
        ({"nern.heads": "shared"}, "must be 'per_size' or 'per_layer'"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(NernError) as error:
        config(tmp_path, **changes)
    assert message in str(error.value)
