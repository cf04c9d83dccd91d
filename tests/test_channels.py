"""Whole channels in another order: which are free, that the function stays, and that a run is always of the same network."""

from __future__ import annotations

import io
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import nern
from nern import Config, NernError
from nern.compat import import_torchvision
from nern.errors import NernWarning
from nern.experiment import build_experiment
from nern.jobs.evaluating import config_of_run
from nern.ordering import ChannelOrdering, channel_ordering, solve_ordering
from nern.ordering.channels import channel_costs, greedy_channels, solve_channels
from nern.ordering.store import load_ordering
from nern.originals import CifarResNet, Original
from nern.originals.channels import ChannelGroup, axis_orders, channel_groups, check_same_function, permuted
from nern.training import Interrupted, RunFolder

Group = tuple[int, set[tuple[str, int]]]


def lively(network: nn.Module) -> nn.Module:
    """Seeded parameters and statistics that differ from channel to channel."""
    rng = torch.Generator().manual_seed(5)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=rng)
            tensor.copy_(
                0.5 + noise if tensor.dim() < 2 or "var" in name else (noise - 0.5) * tensor[0].numel() ** -0.5
            )
    return network.eval()


def shuffled(network: nn.Module, groups: Sequence[ChannelGroup]) -> nn.Module:
    rng = torch.Generator().manual_seed(6)
    orders = [torch.randperm(group.size, generator=rng) for group in groups]
    return permuted(network, axis_orders(groups, orders, network))


def assert_same_function(network: nn.Module, shape: Sequence[int]) -> list[ChannelGroup]:
    """Shuffling all groups leaves the outputs, and changes tensors of every group."""
    network = network.double()
    groups = channel_groups(network, shape)
    twin = shuffled(network, groups)
    images = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected, found = network(images), twin(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    before, after = ({**dict(n.named_parameters()), **dict(n.named_buffers())} for n in (network, twin))
    assert all(any(not torch.equal(before[s.tensor], after[s.tensor]) for s in group.slots) for group in groups)
    return groups


def of(groups: Sequence[ChannelGroup], ending: str = "weight") -> list[Group]:
    """Size and (tensor, axis) of each group, without the numbers of norms."""
    return [(g.size, {(s.tensor, s.axis) for s in g.slots if s.tensor.endswith(ending)}) for g in groups]


# --- which channels are free, and that the function stays ----------------------------------------------------------------


def test_plain_network() -> None:
    network = lively(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5 * 36, 7), nn.Linear(7, 2)
        )
    )
    groups = assert_same_function(network, (1, 8, 8))
    assert of(groups) == [(4, {("0.weight", 0), ("2.weight", 1)}), (5, {("2.weight", 0), ("4.weight", 1)}),
                          (7, {("4.weight", 0), ("5.weight", 1)})]  # fmt: skip
    (inputs,) = [slot for slot in groups[1].slots if slot.tensor == "4.weight"]
    assert torch.equal(inputs.places, torch.arange(5 * 36).view(5, 36))  # a map becomes a block of inputs


def test_groups_of_resnet20() -> None:
    groups = assert_same_function(lively(CifarResNet(20)), (3, 32, 32))
    assert Counter(group.size for group in groups) == {16: 3 + 2, 32: 3 + 1, 64: 3}
    streams = {slot.tensor: (group, slot) for group in groups for slot in group.slots if slot.axis == 0}
    first, slot = next((g, s) for g in groups for s in g.slots if s.tensor == "linear.weight" and g.size == 16
                       and any(t.tensor == "conv1.weight" for t in g.slots))  # fmt: skip
    assert slot.axis == 1
    assert torch.equal(slot.places[:, 0], torch.arange(24, 40))  # padded twice: by 8, then by 16
    assert {("conv1.weight", 0), ("layer1.0.conv1.weight", 1), ("layer2.0.conv2.weight", 0)} <= {
        (s.tensor, s.axis) for s in first.slots
    }
    inner, _ = streams["layer3.2.conv1.weight"]
    assert {(s.tensor, s.axis) for s in inner.slots if s.tensor.endswith("conv2.weight")} == {
        ("layer3.2.conv2.weight", 1)
    }


def test_shortcuts_of_option_b_tie_all_channels_of_a_stage() -> None:
    groups = assert_same_function(lively(CifarResNet(8, option="B", widths=[4, 6, 8])), (3, 8, 8))
    assert sorted(group.size for group in groups) == [4, 4, 6, 6, 8, 8]


def test_resnet56() -> None:
    groups = assert_same_function(lively(CifarResNet(56)), (3, 16, 16))
    assert sum(group.size for group in groups) == 9 * (16 + 32 + 64) + 64


@pytest.mark.parametrize(("name", "groups"), [("resnet18", 12), ("squeezenet1_1", 25), ("mobilenet_v2", 25)])
def test_networks_of_torchvision(name: str, groups: int) -> None:
    network = lively(getattr(import_torchvision().models, name)(weights=None))
    assert len(assert_same_function(network, (3, 64, 64))) == groups


class Odd(nn.Module):
    """Operations beyond the usual ones, one of which `kind` chooses."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 3, 1)
        self.narrow, self.wide = nn.Conv2d(4, 8, 1), nn.Conv2d(16, 8, 1)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.group_norm, self.layer_norm = nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "gate":
            a, b = x.chunk(2, dim=1)
            x = self.narrow(a * torch.sigmoid(b))
        elif self.kind == "halves":
            x = torch.cat([F.relu(x[:, :4]), x[:, 4:]], 1)
        elif self.kind == "twice":
            x = self.wide(torch.cat([x, x.neg()], 1))
        elif self.kind == "depthwise":
            x = self.wide(self.depthwise(x))
        elif self.kind in ("grouped", "group_norm", "up"):
            x = getattr(self, self.kind)(x)
        elif self.kind == "channels last":
            x = self.layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        elif self.kind == "scale":
            x = x * self.scale + x.mean((2, 3), keepdim=True)
        elif self.kind == "sorted":
            x = x.sort(dim=1).values
        elif self.kind == "neighbours":
            x = F.local_response_norm(x, 3)
        elif self.kind == "positions":
            x = x * torch.arange(8.0, dtype=x.dtype).view(8, 1, 1)
        elif self.kind == "padded":
            x = F.pad(x, (0, 0, 0, 0, -2, 2), mode="constant", value=1.0)
        elif self.kind == "in place":
            x[:, :2] = 0
        return self.last(x)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("", [8]),
        ("gate", [4, 8]),
        ("halves", [4, 4]),
        ("twice", [8, 8]),
        ("depthwise", [8, 8]),
        ("grouped", [4, 4]),
        ("group_norm", [4, 4]),
        ("up", [8, 8]),
        ("channels last", [8]),
        ("scale", [8]),
        ("sorted", []),
        ("neighbours", []),
        ("positions", []),
        ("padded", [2, 2, 6]),
        ("in place", []),
    ],
)
@pytest.mark.filterwarnings("ignore:the channels of Odd keep their order")
def test_what_is_free_around_an_operation(kind: str, sizes: list[int]) -> None:
    groups = assert_same_function(lively(Odd(kind)), (2, 7, 7))
    assert sorted(group.size for group in groups) == sizes


def test_shared_and_hooked_modules() -> None:
    shared = nn.Conv2d(4, 4, 1)
    network = lively(
        nn.Sequential(nn.Conv2d(1, 4, 1), shared, nn.ReLU(), shared, nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    )
    assert sorted(g.size for g in assert_same_function(network, (1, 4, 4))) == [4, 6]
    network[4].register_forward_hook(lambda module, inputs, output: output.cumsum(1))
    with pytest.warns(NernWarning, match="none can be permuted"):
        assert assert_same_function(lively(nn.Sequential(*network[:1], *network[4:])), (1, 4, 4)) == []


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x if x.sum() > 0 else -x)


class Secretive(nn.Sequential):
    """Reads a weight behind the tracer's back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float(next(self[0].parameters()).detach()[0].sum())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + y


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Untraceable(), "Untraceable keep their order: it cannot be traced"),
        (TwoInputs(), "TwoInputs keep their order: it does not run on noise"),
        (nn.Sequential(nn.Conv2d(1, 4, 1)), "none can be permuted together"),
        (nn.Sequential(nn.Embedding(4, 4)), "does not run"),
    ],
)
def test_networks_that_keep_their_order(network: nn.Module, reason: str) -> None:
    with pytest.warns(NernWarning, match=reason):
        assert channel_groups(network) == []


def test_what_noise_finds_wrong_is_left_alone() -> None:
    network = lively(Secretive(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)))
    with pytest.warns(NernWarning, match="1 of 2 groups of channels of Secretive"):
        groups = channel_groups(network)
    assert of(groups) == [(5, {("1.weight", 0), ("2.weight", 1)})]


def test_orders_that_do_not_fit() -> None:
    network = lively(CifarResNet(8))
    groups = channel_groups(network)
    with pytest.raises(NernError, match="order 0 is not a permutation of the 16 channels"):
        axis_orders(groups, [torch.zeros(g.size, dtype=torch.int64) for g in groups], network)
    with pytest.raises(NernError, match=r"axis 0 of nowhere.weight, which is not there in CifarResNet"):
        permuted(network, {("nowhere.weight", 0): torch.arange(3)})
    with pytest.raises(NernError, match=r"axis 0 of conv1.weight, which is of shape \(16, 3, 3, 3\)"):
        permuted(network, {("conv1.weight", 0): torch.arange(3)})
    with pytest.raises(NernError, match="change what CifarResNet computes"):
        check_same_function(network, {("conv1.weight", 0): torch.arange(15, -1, -1)})


# --- paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "distance"])
def test_costs_of_a_group(metric: str) -> None:
    network = lively(nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1)))
    (group,) = channel_groups(network)
    weights = {name: network.get_parameter(name) for name in ("0.weight", "1.weight")}
    costs, rows, whole = channel_costs(weights, group, metric)
    kernels = (
        torch.cat([network[0].weight.flatten(2), network[1].weight.transpose(0, 1).flatten(2)], 1).detach().double()
    )
    if metric == "cosine":
        expected = (1 - torch.cosine_similarity(kernels[:, None], kernels[None], dim=-1)).sum(-1)
        assert whole == 5
        np.testing.assert_allclose((whole - rows @ rows.T)[0, 1:], costs[0, 1:], atol=1e-6)
    else:
        expected = torch.cdist(kernels.flatten(1), kernels.flatten(1))
        assert whole is None
    np.testing.assert_allclose(costs + np.eye(6), expected.numpy() + np.eye(6), atol=1e-6)


def test_zero_equal_and_single_entry_kernels() -> None:
    network = lively(nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1), nn.AdaptiveAvgPool2d(1)))
    network[0].weight.data[2:5], network[1].weight.data[:, 2:5] = 0, 0
    for metric in ("cosine", "distance"):
        ordering, _ = solve_channels([Original(network)], metric=metric)
        order = ordering.orders[0]["0.weight", 0].tolist()
        assert sorted(order) == list(range(8))
        if metric == "distance":
            places = [order.index(channel) for channel in (2, 3, 4)]
            assert max(places) - min(places) == 2


def test_greedy_path_and_improvement() -> None:
    values = np.array([0.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    assert greedy_channels(np.abs(values[:, None] - values)).tolist() == [0, 2, 4, 5, 3, 1]
    ordering, _ = solve_channels([Original(lively(CifarResNet(8)))])
    assert ordering.cost is not None
    assert 0 < ordering.cost.final < ordering.cost.greedy


@pytest.mark.parametrize("metric", ["cosine", "distance"])
def test_neighbours_are_more_alike(metric: str) -> None:
    original = Original(lively(CifarResNet(8)))
    ordering, source = channel_ordering([original], lambda weights: weights, metric=metric)
    assert source == "solved now; 176 channels in 6 groups are free"
    (twin,) = ordering.applied([original])

    def cost(weights: Sequence[Tensor]) -> float:
        return sum(ordering.layer_cost(w.numpy(), {}, metric) for w in weights)

    assert cost(twin.weights) < 0.99 * cost(original.weights)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(twin(images), original(images), rtol=1e-4, atol=1e-4)
    assert twin.weight_names == original.weight_names
    assert ordering.bits() == 0
    assert [p.tolist() for p in ordering.positions([(2, 3, 1, 1)])] == [list(range(6))]


def test_layers_alone_cannot_be_ordered() -> None:
    with pytest.raises(NernError, match="'channels' orders whole networks, not layers"):
        solve_ordering([torch.ones(2, 2, 3, 3)], "channels")


# --- runs ----------------------------------------------------------------------------------------------------------------


Configure = Callable[..., Config]


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    monkeypatch.setattr("nern.analysis.plots.plot_run", lambda *args: None)
    torch.save(lively(CifarResNet(8, in_channels=1, widths=[4, 6, 8])).state_dict(), tmp_path / "network.pt")

    def make(**more: Any) -> Config:
        return Config.from_dict(
            {
                "nern.hidden_layer_size": 8,
                "nern.embeddings.enc_levels": 4,
                "nern.embeddings.permutations.permute_mode": "channels",
                "task.original_model_name": "ResNet8",
                "task.task_name": "digits",
                "original_model_path": str(tmp_path / "network.pt"),
                "logging.log_dir": str(tmp_path / "runs"),
                "logging.tracker": "none",
                "evaluation.held_out_images": 20,
                "evaluation.test_images": 40,
                "epochs": None,
                "num_iterations": 4,
                "batch_size": 8,
                "save_iterations_interval": 2,
                "save_epochs_interval": None,
                "loss_warmup_iterations": 0,
                **more,
            }
        )

    return make


def elsewhere(costs: Any) -> Any:
    """The path that another machine may find: this one's is not asked for."""
    raise AssertionError("the order of a run is read, not solved")


def test_a_run_keeps_its_network(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=200)
    folder = RunFolder(Path(nern.train(configure(), console)["run_folder"]))
    assert "ordering: channels, solved now; 26 channels in 6 groups are free; path cost" in console.file.getvalue()  # type: ignore[attr-defined]
    kept, stored = load_file(folder.kept), load_file(folder.ordering)
    original = torch.load(configure().original_model_path, weights_only=True)
    order = stored["0.0.bn1.running_var"].long()
    assert not torch.equal(order, torch.arange(4))
    assert torch.equal(kept["bn1.running_var"], original["bn1.running_var"][order])

    monkeypatch.setattr("nern.ordering.channels.greedy_channels", elsewhere)
    network = nern.load_run(folder.root)
    assert torch.equal(network.get_buffer("bn1.running_var"), kept["bn1.running_var"])
    metrics = nern.evaluate(config_of_run(folder.root), run=folder.root, console=Console(quiet=True))
    assert 0 <= metrics["original"]["top1"] <= 100
    assert nern.resume(folder.root, Console(quiet=True))["steps"] == 4


def test_a_stopped_run_ends_like_another(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RunFolder(Path(nern.train(configure(), Console(quiet=True))["run_folder"]))
    with monkeypatch.context() as patch:
        patch.setattr("nern.ordering.channels.greedy_channels", lambda costs: np.arange(len(costs))[::-1].copy())
        patch.setattr("nern.ordering.channels.improved_path", lambda rows, path, deadline, whole: path)
        patch.setattr("nern.training.Trainer.train_step", stop_at_two(nern.training.Trainer.train_step))
        with pytest.raises(Interrupted, match="stopped at step 2 of 4; saved"):
            nern.train(configure(**{"logging.exp_name": "stopped"}), Console(quiet=True))
    stopped = RunFolder(whole.root.parent / "stopped")
    before = load_file(stopped.ordering)
    nern.resume(stopped.root, Console(quiet=True))
    assert all(torch.equal(order, before[name]) for name, order in load_file(stopped.ordering).items())
    assert stopped.load_state()["step"] == 4
    assert any(not torch.equal(order, before[name]) for name, order in load_file(whole.ordering).items())


def stop_at_two(train_step: Any) -> Any:
    def step(self: Any, *args: Any) -> Any:
        losses = train_step(self, *args)
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return losses

    return step


def test_stored_orders_are_checked(configure: Configure, tmp_path: Path) -> None:
    config = configure(**{"nern.embeddings.permutations.path": str(tmp_path / "order")})
    first = build_experiment(config, train=False)
    assert first.ordering_source.endswith(f"are free, written to {tmp_path / 'order'}")
    again = build_experiment(config, train=False)
    assert again.ordering_source == f"read from {tmp_path / 'order'}"
    assert again.members[0].original.digest() == first.members[0].original.digest()
    assert again.ordering.cost == first.ordering.cost

    other = {n: t + 0.01 if t.is_floating_point() else t for n, t in torch.load(config.original_model_path).items()}
    torch.save(other, tmp_path / "other.pt")
    changed = configure(**{"nern.embeddings.permutations.path": config.nern.embeddings.permutations.path,
                           "original_model_path": str(tmp_path / "other.pt")})  # fmt: skip
    with pytest.warns(NernWarning, match="solved for other weights"):
        build_experiment(changed, train=False)

    path, metadata = tmp_path / "order" / "ordering.safetensors", {"mode": "channels"}
    orders = load_file(path)
    for damaged, message in (
        ({"order.0": torch.arange(3)}, "'order.0' names no axis of 1 network"),
        ({"1.0.bn1.weight": torch.arange(4)}, "'1.0.bn1.weight' names no axis of 1 network"),
        ({"0.0.bn1.weight": torch.arange(3)}, "bn1.weight, which is of shape"),
        (orders | {"0.0.bn1.weight": torch.arange(4)}, "change what CifarResNet computes"),
    ):
        save_file(damaged, path, metadata)
        with pytest.raises(NernError, match=f"does not fit the network: .*{message}"):
            build_experiment(config, train=False)
    save_file(orders, path, {"mode": "infilter"})
    with pytest.raises(NernError, match="is of mode 'infilter'"):
        build_experiment(config, train=False)


@pytest.mark.parametrize(
    "key", ["².0.a", "0.².a", "\u0660.0.a", "00.0.a", "-1.0.a", "1" * 5000 + ".0.a", "0.0.", "0.0", "1.0.a"]
)
def test_names_of_orders(key: str) -> None:
    with pytest.raises(NernError, match="names no axis of 1 network "):
        ChannelOrdering.from_tensors({key: torch.arange(3)}, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bool])
def test_orders_are_whole_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(NernError, match=f"'0.1.a' holds {dtype}, not whole numbers"):
        ChannelOrdering.from_tensors({"0.1.a": torch.arange(2).to(dtype)}, 1)
    assert ChannelOrdering.from_tensors({"0.1.a": torch.arange(2, dtype=torch.uint8)}, 1).orders[0][
        "a", 1
    ].tolist() == [0, 1]


@pytest.mark.parametrize("name", ["order.²", "order.\u0660", "order.1", "order." + "1" * 5000, "order"])
def test_names_of_layers_in_a_file(tmp_path: Path, name: str) -> None:
    save_file({name: torch.arange(4)}, tmp_path / "ordering.safetensors", {"mode": "crossfilter"})
    with pytest.raises(NernError, match=r"has a tensor '.*', but the network has 1 layers"):
        load_ordering(tmp_path, "crossfilter", [(2, 2, 3, 3)])


def test_several_networks(configure: Configure) -> None:
    values = configure()
    network = {
        "original_model_path": values.original_model_path,
        "task": {"task_name": "digits", "original_model_name": "ResNet8"},
    }
    config = configure(networks=[network, network], original_model_path=None, **{"task": {}})
    experiment = build_experiment(config, train=False)
    assert isinstance(experiment.ordering, ChannelOrdering)
    assert "52 channels in 12 groups" in experiment.ordering_source
    names = experiment.ordering.tensors()
    assert {name.split(".")[0] for name in names} == {"0", "1"}
    restored = ChannelOrdering.from_tensors(names, 2)
    assert restored.orders[1].keys() == experiment.ordering.orders[1].keys()


def test_fit_represents_the_permuted_network(small_cnn: Callable[..., nn.Module], images: Tensor) -> None:
    network, config = lively(small_cnn()), nern.fit_config(3)
    config.nern.embeddings.permutations.permute_mode = "channels"
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fitted = nern.fit(network, ratio=None, config=config, progress=False, console=Console(quiet=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert fitted.ordering.mode == "channels"
    assert not torch.equal(fitted.original.network[0].weight, network[0].weight)
    torch.testing.assert_close(fitted.original(images), network(images).detach())
    assert torch.equal(fitted.network()[1].running_mean, fitted.original.network[1].running_mean)


def test_fit_without_free_channels() -> None:
    config = nern.fit_config(1)
    config.nern.embeddings.permutations.permute_mode = "channels"
    config.nern.hidden_layer_size = 4
    with pytest.warns(NernWarning, match="keep their order: none can be permuted"):
        fitted = nern.fit(nn.Sequential(nn.Conv2d(1, 4, 3)), config=config, progress=False, console=Console(quiet=True))
    assert fitted.ordering.tensors() == {}
    assert fitted.ordering.cost is None
