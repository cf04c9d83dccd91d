"""The faster twin of a network (batch norms folded into convolutions) gives what the network itself gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook

from nern.compat import import_torchvision
from nern.originals.base import Original, OriginalNetwork
from nern.originals.folding import FoldedConvolution
from nern.originals.taps import INPUT
from nern.registry import ORIGINALS

pytestmark = pytest.mark.usefixtures("rng_untouched")

Make = Callable[[], nn.Module]
Chain, Conv, Norm = nn.Sequential, nn.Conv2d, nn.BatchNorm2d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def seeded(make: Make, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network whose norms do something, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make()
        for module in network.modules():
            if isinstance(module, NORMS):
                if module.running_var is not None:
                    module.running_var.uniform_(0.5, 2.0)
                    module.running_mean.normal_(0, 0.3)
                if module.weight is not None:
                    nn.init.uniform_(module.weight, -0.5, 1.5)
                    nn.init.normal_(module.bias)
    return network.eval().to(dtype)


def randoms(shape: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def other_weights(original: Original) -> list[Tensor]:
    """Weights that the twin was not made with."""
    return [w + 0.1 * randoms(w.shape, w.dtype, seed) for seed, w in enumerate(original.weights)]


def differentiated(output: Tensor, maps: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients in `leaves` of a fixed sum of everything."""
    terms = [(t * randoms(t.shape, t.dtype, seed)).sum() for seed, t in enumerate([output, *maps])]
    return list(torch.autograd.grad(torch.stack(terms).sum(), leaves, allow_unused=True))


def plain(network: nn.Module, taps: Sequence[str], weights: dict[str, Tensor], images: Tensor) -> list[Any]:
    """Output, maps and gradients of a copy of the network itself, by nothing but hooks of this function."""
    network = copy.deepcopy(network)
    for name, value in weights.items():
        network.get_parameter(name).data.copy_(value)
        network.get_parameter(name).requires_grad_()
    found: dict[str, list[Tensor]] = {name: [] for name in taps}
    for name in found:
        module, keep = network.get_submodule(name.removesuffix(INPUT)), found[name]
        if name.endswith(INPUT):
            module.register_forward_pre_hook(lambda _, inputs, keep=keep: keep.append(inputs[0].clone()))
        else:
            module.register_forward_hook(lambda _, __, output, keep=keep: keep.append(output.clone()))
    output = network(images)
    maps = [m for name in taps for m in found[name]]
    return [output, maps, differentiated(output, maps, [network.get_parameter(name) for name in weights])]


def pairs_folded(original: Original, images: Tensor) -> int:
    """How many folded convolutions run in place of the network's own."""
    original(images)  # what runs is chosen by the first images
    ran: set[int] = set()

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, FoldedConvolution):
            ran.add(id(module))

    handle = register_module_forward_hook(note)
    try:
        original(images)
    finally:
        handle.remove()
    return len(ran)


def assert_alike(found: Any, expected: Any) -> None:
    """Equal up to rounding, measured by the largest entry of each tensor (float64: far below what float32 could do)."""
    if isinstance(expected, Tensor):
        assert found.shape == expected.shape
        tolerance = 1e-10 if expected.dtype == torch.float64 else 1e-4
        scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(scale, 1e-3))
        return
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)


def assert_as_plain(original: Original, images: Tensor, pairs: int) -> None:
    """Outputs, feature maps and gradients are the plain network's, for the own weights and for others; `pairs` folded."""
    network, names = copy.deepcopy(original.network), original._taps.names
    assert names
    own = dict(zip(original.weight_names, original.weights, strict=True))
    with torch.random.fork_rng(devices=[]):
        output, maps, _ = plain(network, names, own, images)
        assert_alike(original(images), output.detach())
        assert_alike(original.features(images), [output.detach(), [m.detach() for m in maps]])
    assert pairs_folded(original, images) == pairs
    leaves = [w.requires_grad_() for w in other_weights(original)]
    expected = plain(network, names, dict(zip(original.weight_names, leaves, strict=True)), images)
    found, found_maps = original.run(leaves, images, with_maps=True)
    assert all(g.abs().max() > 0 for g in expected[2] if g is not None)
    assert_alike([found, found_maps, differentiated(found, found_maps, leaves)], expected)
    alone, none = original.run(leaves, images)
    assert none == []
    assert_alike(alone, expected[0])


def small_resnet(option: str) -> nn.Module:
    return ORIGINALS["ResNet20"](option=option, widths=[4, 6, 8])


class Twice(nn.Module):
    """One convolution's output is used beside its norm, another convolution is called twice, a third one is plain."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.shared_norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.branching, self.branching_norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.single, self.single_norm = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared_norm(self.shared(x)).relu()
        x = self.shared(x)
        h = self.branching(x)
        return self.single_norm(self.single(self.branching_norm(h).relu() + h))


class InPlace(nn.Module):
    """Changes what the norms give, in place, in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.second_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)), inplace=True)
        h = self.second_norm(self.second(x))
        h += x
        return self.act(h)


class Tied(nn.Module):
    """Two convolutions with one weight, each with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, bias=False), nn.Conv2d(3, 3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[1](self.second(self.norms[0](self.first(x)).relu()))


IMAGE = (3, 3, 9, 9)
FOLDED: dict[str, tuple[Make, int, tuple[int, ...]]] = {
    "resnet A": (lambda: small_resnet("A"), 19, (3, 3, 8, 8)),
    "resnet B": (lambda: small_resnet("B"), 21, (3, 3, 8, 8)),
    "bias": (lambda: Chain(Conv(3, 4, 3, bias=True), Norm(4), nn.ReLU()), 1, IMAGE),
    "stride and dilation": (lambda: Chain(Conv(3, 4, (3, 2), 2, (1, 0), 2), Norm(4), nn.Tanh()), 1, IMAGE),
    "same padding": (lambda: Chain(Conv(3, 4, (3, 5), padding="same"), Norm(4), nn.Tanh()), 1, IMAGE),
    "reflect": (lambda: Chain(Conv(3, 4, 3, padding=1, padding_mode="reflect"), Norm(4)), 1, IMAGE),
    "no affine": (lambda: Chain(Conv(3, 4, 3), Norm(4, affine=False), nn.ReLU(inplace=True)), 1, IMAGE),
    "1d": (lambda: Chain(nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm1d(4), nn.ELU()), 1, (3, 3, 9)),
    "3d": (lambda: Chain(nn.Conv3d(2, 4, 3, bias=True), nn.BatchNorm3d(4), nn.Hardswish(inplace=True)), 1, (2, 2, 5, 4, 6)),
    "used or called twice": (Twice, 1, IMAGE),
    "in place": (InPlace, 2, IMAGE),
    "tied": (Tied, 2, IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_the_twin_gives_what_the_network_gives(name: str) -> None:
    make, pairs, shape = FOLDED[name]
    assert_as_plain(Original(seeded(make)), randoms(shape), pairs)


def test_the_twin_of_the_first_images_serves_all_others() -> None:
    original = Original(seeded(lambda: small_resnet("B")))
    first = original._ready(randoms((1, 3, 8, 8)))[0]
    for shape in ((5, 3, 16, 16), (2, 3, 24, 12)):
        assert_as_plain(original, randoms(shape), pairs=21)
    assert original._ready(randoms((1, 3, 8, 8)))[0] is first


@pytest.mark.parametrize("kind", ["classifier", "norms"])
def test_further_parameters_reach_the_twin(kind: str) -> None:
    original, images = Original(seeded(lambda: small_resnet("A"))), randoms((3, 3, 16, 16))
    chosen = original.classifier() if kind == "classifier" else original.norms()
    extra = {name: (p + 0.1 * randoms(p.shape)).requires_grad_() for name, p in chosen.items()}
    weights = other_weights(original)
    found, _ = original.run(weights, images, extra)
    assert pairs_folded(original, images) == 19
    replaced = dict(zip(original.weight_names, weights, strict=True)) | extra
    expected = functional_call(original.network, replaced, (images,))
    assert_alike(found, expected)
    leaves = list(extra.values())
    assert_alike(differentiated(found, [], leaves), differentiated(expected, [], leaves))


def two() -> nn.Module:
    """Two convolutions with their norms."""
    return Chain(Conv(3, 4, 3), Norm(4), nn.ReLU(inplace=True), Conv(4, 5, 1), Norm(5))


@pytest.mark.parametrize(
    ("taps", "pairs"),
    [
        (["0"], 1),  # the convolution's output
        (["1:input"], 1),
        (["3", "4"], 1),
        (["0", "4:input"], 0),
        (["0:input", "1", "2:input", "2", "4"], 2),  # these are the same in the twin
        (["*"], 0),
    ],
)
def test_tapped_maps_are_the_plain_network_s(taps: list[str], pairs: int) -> None:
    assert_as_plain(Original(seeded(two), feature_maps=taps), randoms(IMAGE), pairs)


class Branching(nn.Module):
    """What runs depends on the values of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = 2 * x
        return self.norm(self.convolution(x)).relu()


class Looping(nn.Module):
    """The number of calls depends on the shape of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[-1] // 4):
            x = self.norm(self.convolution(x)).tanh()
        return x


@pytest.mark.parametrize("make", [Branching, Looping])
def test_a_network_that_cannot_be_traced_stays_as_it_is(make: Make) -> None:
    original = Original(seeded(make))
    for sign in (1, -1):
        assert_as_plain(original, sign * randoms(IMAGE).abs(), pairs=0)
    assert original._ready(randoms(IMAGE))[0] is original.network


class OwnConvolution(nn.Conv2d):
    """A convolution that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Chain(OwnConvolution(3, 4, 3), Norm(4), nn.ReLU()),
        lambda: Chain(Conv(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh()),
        lambda: Chain(Conv(3, 4, 3), nn.ReLU(inplace=True), Norm(4)),
        lambda: Chain(Conv(3, 4, 3), import_module("timm.layers").BatchNormAct2d(4)),
        lambda: Chain(Conv(3, 4, 3), nn.Identity(), Norm(4)),
    ],
)
def test_other_pairs_are_not_folded(make: Make) -> None:
    import_torchvision()  # timm needs it, which may need help
    assert_as_plain(Original(seeded(make)), randoms(IMAGE), pairs=0)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "after": lambda module: module.register_forward_hook(lambda _, inputs, output: 2 * output),
    "before": lambda module: module.register_forward_pre_hook(lambda _, inputs: tuple(2 * x for x in inputs)),
    "backward": lambda module: module.register_full_backward_hook(
        lambda _, g, h: tuple(None if x is None else 2 * x for x in g)
    ),
}


@pytest.mark.parametrize(("hook", "module"), [*zip(HOOKS, [3, 4, 3], strict=True)])
def test_hooks_of_the_user_s_stay_and_run(hook: str, module: int) -> None:
    network = seeded(two)
    HOOKS[hook](network[module])
    without = Original(seeded(two))
    weights, images = other_weights(without), randoms(IMAGE)
    original = Original(network)
    assert_as_plain(original, images, pairs=1)

    def everything(of: Original) -> list[Tensor]:
        leaves = [w.clone().requires_grad_() for w in weights]
        output, _ = of.run(leaves, images)
        return [output.detach(), *differentiated(output, [], leaves)]

    assert not all(map(torch.allclose, everything(original), everything(without)))  # the hook does something


class OwnMaps(OriginalNetwork):
    """Reads its modules one by one for its feature maps."""

    def __init__(self, maps: str) -> None:
        super().__init__()
        self.maps = maps
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last, self.last_norm = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_norm(self.last(self.norm(self.convolution(x)).relu()))

    def get_feature_maps(self, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        before = self.convolution(batch)
        after = self.norm(before)
        last = self.last_norm(self.last(after.relu()))
        return last, [before if self.maps == "before" else after, last]


@pytest.mark.parametrize(("maps", "pairs"), [("before", 0), ("after", 2)])
def test_maps_by_a_method_of_the_network_s_own_are_what_it_says(maps: str, pairs: int) -> None:
    original, images = Original(seeded(lambda: OwnMaps(maps))), randoms(IMAGE)
    leaves = [w.requires_grad_() for w in other_weights(original)]
    found, found_maps = original.run(leaves, images, with_maps=True)
    network = copy.deepcopy(original.network)
    for name, leaf in zip(original.weight_names, leaves, strict=True):
        network.get_parameter(name).data.copy_(leaf.detach())
    own = [network.get_parameter(name).requires_grad_() for name in original.weight_names]
    output, own_maps = network.get_feature_maps(images)
    assert_alike(
        [found, found_maps, differentiated(found, found_maps, leaves)],
        [output, own_maps, differentiated(output, own_maps, own)],
    )
    assert pairs_folded(original, images) == pairs


@pytest.mark.parametrize("name", ["in place", "tied"])
def test_the_network_itself_stays_as_it_is_and_is_rebuilt_as_it_is(name: str) -> None:
    make, _, shape = FOLDED[name]
    original, images = Original(seeded(make)), randoms(shape)
    digest = original.digest()
    versions = {key: (id(value), value._version) for key, value in original.network.state_dict(keep_vars=True).items()}
    leaves = [w.requires_grad_() for w in other_weights(original)]
    output, maps = original.run(leaves, images, with_maps=True)
    differentiated(output, maps, leaves)
    rebuilt = original.rebuild(leaves)
    assert str(rebuilt) == str(original.network)
    assert rebuilt.state_dict().keys() == original.network.state_dict().keys()
    assert_alike(rebuilt(images).detach(), output.detach())
    assert original.digest() == digest
    found = {key: (id(value), value._version) for key, value in original.network.state_dict(keep_vars=True).items()}
    assert found == versions
    assert all(p.grad is None for p in original.network.parameters())
