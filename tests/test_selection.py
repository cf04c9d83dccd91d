"""Which weights are represented, and where feature maps are taken."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from nern.errors import NernError
from nern.originals.base import OriginalNetwork, as_original
from nern.originals.taps import Taps, default_taps


@pytest.fixture
def mixture() -> nn.Module:
    """Convolutions of one, two and three dimensions, a transposed one, norms, fully connected layers."""
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "depth": nn.Conv2d(4, 4, 5, groups=4),
            "time": nn.Conv1d(4, 2, 3),
            "volume": nn.Conv3d(2, 2, (1, 2, 3)),
            "up": nn.ConvTranspose2d(2, 3, 2),
            "head": nn.Linear(3, 5),
        }
    )


CONVOLUTIONS = ["stem.weight", "depth.weight", "time.weight", "volume.weight", "up.weight"]


def taken(network: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> list[str]:
    return as_original(network, include=include, exclude=exclude).weight_names


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, [], CONVOLUTIONS),
        (["*.weight"], [], [*CONVOLUTIONS, "head.weight"]),
        (["head.*", "stem.*"], [], ["stem.weight", "head.weight"]),  # in the network's order
        (["?????.weight", "head.bias"], [], ["depth.weight"]),  # a vector is kept
        (["*"], ["*h*.weight"], ["stem.weight", "time.weight", "volume.weight", "up.weight"]),
        (None, ["depth.*", "up.weight"], ["stem.weight", "time.weight", "volume.weight"]),
    ],
)
def test_globs_choose(mixture: nn.Module, include: list[str] | None, exclude: list[str], expected: list[str]) -> None:
    assert taken(mixture, include, exclude) == expected


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_glob_that_matches_nothing_lists_what_there_is(mixture: nn.Module, key: str) -> None:
    says = rf"nern\.{key}.*'stem\.wieght'; did you mean 'stem\.weight'.*Choices: "
    with pytest.raises(NernError, match=says) as caught:
        as_original(mixture, **{key: ["*.weight", "stem.wieght"]})
    assert all(name in str(caught.value) for name, _ in mixture.named_parameters())


def test_a_choice_of_nothing_is_refused(mixture: nn.Module) -> None:
    with pytest.raises(NernError, match=r"nern\.include \['\*\.bias'\] matches vectors only"):
        taken(mixture, ["*.bias"])
    with pytest.raises(NernError, match=r"nern\.exclude \['stem\.\*'\] leaves nothing to represent"):
        taken(mixture, ["stem.*"], ["stem.*"])


class Chooser(OriginalNetwork):
    """Chooses its second convolution, then its first, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x))).mean((2, 3))

    def get_learnable_weights(self) -> list[Tensor]:
        return [self.second.weight, self.first.weight, self.second.weight]


def test_a_network_s_own_choice_keeps_its_order_and_gives_way_to_globs() -> None:
    assert taken(Chooser()) == ["second.weight", "first.weight"]
    assert taken(Chooser(), exclude=["second.*"]) == ["first.weight"]
    assert taken(Chooser(), include=["third.*", "first.*"]) == ["first.weight", "third.weight"]


class Branches(nn.Module):
    """A relu that works in place and runs twice, an addition in place on what a norm gave."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.one, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.two, self.last = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace)
        for norm in (self.norm, self.last):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        first = self.relu(self.norm(self.one(x)))
        out = self.last(self.two(first))
        if self.inplace:
            out += first
        else:
            out = out + first
        return self.relu(out).mean((2, 3))


@pytest.fixture
def branches() -> tuple[nn.Module, nn.Module]:
    """The same network with operations in place and without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inplace = Branches(True).eval()
    plain = Branches(False).eval()
    plain.load_state_dict(inplace.state_dict())
    return inplace, plain


NAMES = ["relu:input", "last", "norm", "two:input", "relu", "last"]


def test_operations_in_place_reach_neither_maps_nor_gradients(
    branches: tuple[nn.Module, nn.Module], images: Tensor
) -> None:
    calls: list[nn.Module] = []
    taps = []
    for network in branches:
        network.register_forward_hook(lambda module, *_: calls.append(module))
        taps.append(Taps(NAMES))
    for batch in (images, images + 1):  # later passes are as right as the first
        (output, maps), (expected, expected_maps) = (t(n, batch) for t, n in zip(taps, branches, strict=True))
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(maps, expected_maps)
        assert len(maps) == 8  # relu runs twice
        assert any((m < 0).any() for m in maps[:2])
    assert [calls.count(network) for network in branches] == [3, 2]  # once, a pass is repeated with copies
    gradients = []
    for network in branches:
        output, maps = Taps(NAMES)(network, images)
        (output.sum() + sum(((index + 1) * m).square().sum() for index, m in enumerate(maps))).backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("pattern", ["lst", "lst:input"])
def test_a_map_that_is_not_there_lists_the_modules(branches: tuple[nn.Module, nn.Module], pattern: str) -> None:
    with pytest.raises(
        NernError, match=r"nern\.feature_maps.*did you mean 'last'.*Choices: last, norm, one, relu, two"
    ):
        as_original(branches[0], feature_maps=[pattern])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)], ["1", "2", "3"]),
        ([nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ConvTranspose2d(2, 2, 1)], ["0", "2"]),
        ([nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)], ["1", "3"]),
        ([nn.Linear(4, 3), nn.LayerNorm(3)], ["1"]),
    ],
)
def test_without_a_choice_norms_else_convolutions_else_linear_layers_are_tapped(
    layers: list[nn.Module], expected: list[str]
) -> None:
    assert default_taps(nn.Sequential(*layers)) == expected
