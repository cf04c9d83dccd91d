"""The contract of an original network, and the frozen handle through which everything else uses it."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nern.errors import NernError, NernWarning
from nern.files import tensors_of
from nern.inputs import Images, call, call_with
from nern.originals.checked import check_network, copy_of
from nern.originals.folding import channels_last, fastest_way
from nern.originals.input_format import InputFormat, input_format
from nern.originals.selection import checked_names, choose_parameters, convolution_weights, matching, names_of
from nern.originals.taps import NORMS, FeatureMaps, Taps, default_taps, matching_taps
from nern.registry import ORIGINALS
from nern.weights_file import load_weights, statistic

SMALL_SHARE = 0.1  # representing less of a network than this deserves a word


def register_original(name: str, **info: Any) -> Callable[[Any], Any]:
    """Decorator of a class or function that builds a network: make it available as `task.original_model_name`.

    Args:
        name: what the config says.
        info: `represents`, `feature_maps`: globs, the choice of a network that is no `OriginalNetwork`; `about`: a few
            words for `nern list`.
    """
    return ORIGINALS.register(name, **info)


class OriginalNetwork(nn.Module):
    """Base of networks that choose for themselves. Every method has a default that fits most networks.

    Override `get_learnable_weights` to choose what the NeRN represents, `get_feature_maps` to choose what the
    feature-map loss compares, `load` for another file format.
    """

    def get_learnable_weights(self) -> list[Tensor]:
        """The weights that the NeRN represents, of two or more dimensions. Default: those of all convolutions."""
        return convolution_weights(self)

    def feature_map_modules(self) -> list[str]:
        """Names of the modules whose outputs are the feature maps ('NAME:input': whose inputs). Default: the normalisation
        layers (outputs before the activation); the convolutions where there are none."""
        return default_taps(self)

    def get_feature_maps(self, batch: Tensor) -> tuple[Tensor, FeatureMaps]:
        """Output and feature maps (before the activation) of a batch. Default: outputs of `feature_map_modules`."""
        return Taps(self.feature_map_modules())(self, batch)

    def load(self, path: str, device: torch.device) -> None:
        """Load weights from a state-dict file; NernError if they do not fit."""
        load_weights(self, path)
        self.to(device)

    @classmethod
    def infer_kwargs(cls, state: dict[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments that the weights themselves tell (used where no JSON file does). Default: none."""
        return {}


def own_names(network: nn.Module, represents: Sequence[str] | None = None) -> list[str]:
    """Names of the weights that a network wants represented: its own choice, else `represents` (globs), else all
    convolutions."""
    if isinstance(network, OriginalNetwork):
        return names_of(network, network.get_learnable_weights())
    if represents is None:
        return names_of(network, convolution_weights(network))
    return matching(network, represents, "represents")


class Original:
    """A network, frozen and in eval mode, with the ways to run it on other weights.

    Args:
        network: taken over: put in eval mode, gradients switched off. Pass a copy of what you still need.
        feature_maps: globs on names of modules to compare in place of the network's own choice.
        include, exclude: globs on parameter names; None: the network's own choice of weights to represent.
        names: the parameters to represent, by their exact names and in this order, in place of any choice.
        represents: that choice, as globs, of a network that is no `OriginalNetwork`; None: all convolutions.

    Attributes:
        choices: what becomes of every parameter.
        weight_names: of the represented weights.
        input_format: the images it expects; None where it does not say.

    Raises:
        NernError: see `check_network`; no learnable weights, one that is no parameter of the network, values that are not
            finite, or a glob or a name that matches nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        feature_maps: Sequence[str] | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        represents: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        check_network(network)
        self.network = network.eval().requires_grad_(False)
        own: list[str] = []  # what a glob leaves out need not be a parameter
        if names is not None:
            own = checked_names(network, names)
        elif include is None:
            own = own_names(network, represents)
        self.choices = choose_parameters(network, own, include, exclude)
        self.weight_names = [choice.name for choice in self.choices if choice.taken]
        self._check_weights(include is None and names is None)
        self.input_format: InputFormat | None = input_format(network)
        self._taps = _chosen_taps(network, feature_maps)
        self._way: tuple[nn.Module, bool] | None = None  # not chosen yet

    def _check_weights(self, by_default: bool) -> None:
        if not self.weight_names:
            tensors = [c.name for c in self.choices if len(c.shape) > 1]
            raise NernError(
                f"{self.name} has no convolutions to represent"
                + (f"; choose weights by nern.include. There are: {', '.join(tensors[:40])}" if tensors else "")
            )
        for name in self.weight_names:
            weight = self.network.get_parameter(name)
            if not weight.is_floating_point():
                raise NernError(f"{name} of {self.name} holds {weight.dtype}; real numbers are needed")
        trained = {id(p) for p in self.network.parameters()}
        for name, value in tensors_of(self.network).items():  # other buffers may hold anything
            checked = id(value) in trained or statistic(name)
            if checked and value.is_floating_point() and not torch.isfinite(value).all():
                raise NernError(f"{name} of {self.name} holds values that are not finite (NaN or infinity)")
        represented = sum(w.numel() for w in self.weights)
        if by_default and represented < SMALL_SHARE * self.num_parameters:
            share = represented / self.num_parameters
            warnings.warn(
                f"the convolutions of {self.name} hold only {share:.1%} of its parameters; nern.include: ['*.weight'] "
                "represents its fully connected layers, too",
                NernWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.weights)
        return f"Original {self.name}: {weights:,} of {self.num_parameters:,} parameters represented"

    @property
    def name(self) -> str:
        """Name of the architecture."""
        return type(self.network).__name__

    @property
    def weights(self) -> list[Tensor]:
        """The learnable weights."""
        return [self.network.get_parameter(name) for name in self.weight_names]

    @property
    def num_parameters(self) -> int:
        """All parameters of the network."""
        return sum(p.numel() for p in self.network.parameters())

    def kept(self) -> dict[str, Tensor]:
        """Everything the NeRN does not represent: other parameters and buffers, by name."""
        represented = {id(weight) for weight in self.weights}  # by identity: a tied weight has several names
        state = tensors_of(self.network)
        return {name: value.detach() for name, value in state.items() if id(value) not in represented}

    def digest(self) -> str:
        """Digest of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, value in tensors_of(self.network).items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def classifier(self) -> dict[str, Tensor]:
        """Weight and bias of the last fully connected layer, by name. Raises NernError if there is none."""
        linears = [name for name, m in self.network.named_modules() if isinstance(m, nn.Linear)]
        if not linears:
            raise NernError(f"learn_fc_layer: {self.name} has no fully connected layer")
        return {f"{linears[-1]}.{n}": p for n, p in self.network.get_submodule(linears[-1]).named_parameters()}

    def norms(self) -> dict[str, Tensor]:
        """Weights and biases of the normalisation layers, by name: parameters that are not represented."""
        taken = {id(weight) for weight in self.weights}
        found: dict[str, Tensor] = {}
        for name, module in self.network.named_modules():
            if isinstance(module, NORMS):
                found |= {f"{name}.{n}": p for n, p in module.named_parameters(recurse=False) if id(p) not in taken}
        return found

    def biases(self) -> dict[str, Tensor]:
        """Biases of the layers whose weights are represented, by name, where they are not represented themselves."""
        taken, found = {id(weight) for weight in self.weights}, dict[str, Tensor]()
        for owner in dict.fromkeys(name.rpartition(".")[0] for name in self.weight_names):
            own = self.network.get_submodule(owner).named_parameters(owner, recurse=False)
            found |= {name: p for name, p in own if p.dim() == 1 and id(p) not in taken}
        return found

    @torch.no_grad()
    def absorb_statistics(self) -> None:
        """Put the running statistics of batch norms into their weights and biases: the network's function in eval mode stays
        what it is, up to rounding, and the statistics are those of noise, means 0 and variances 1."""
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.running_var is not None:
                assert module.running_mean is not None
                scale = module.weight.double() / (module.running_var.double() + module.eps).sqrt()
                module.bias.copy_(module.bias.double() - module.running_mean.double() * scale)
                module.weight.copy_(scale * (1 + module.eps) ** 0.5)
                module.running_mean.zero_()
                module.running_var.fill_(1)
        self._way = None  # it may have the former values folded in

    @torch.no_grad()
    def __call__(self, batch: Images) -> Tensor:
        """Output of the original network, without gradient."""
        network, images = self._ready(batch)
        return call(network, images)

    @torch.no_grad()
    def features(self, batch: Images) -> tuple[Tensor, FeatureMaps]:
        """Output and feature maps of the original network, without gradient."""
        return self._with_maps(*self._ready(batch))

    def _ready(self, batch: Images) -> tuple[nn.Module, Images]:
        """What runs in place of the network, and the images arranged for it."""
        if self._way is None and len(batch):
            self._way = fastest_way(self.network, batch[:2], self._with_maps, self._taps.names if self._taps else [])
        network, last = self._way or (self.network, False)
        return network, channels_last(batch) if last and isinstance(batch, Tensor) else batch

    def run(
        self,
        weights: Sequence[Tensor],
        batch: Images,
        extra: dict[str, Tensor] | None = None,
        with_maps: bool = False,
    ) -> tuple[Tensor, FeatureMaps]:
        """The architecture run with other learnable weights (and `extra` parameters); nothing in it is changed.

        Gradients flow to `weights` and `extra`. Without `with_maps` the list of maps is empty.
        """
        network, images = self._ready(batch)
        own, replaced = self.network.get_parameter, self.replaced(weights, extra)
        replaced = {name: value.to(own(name).dtype) for name, value in replaced.items()}
        run = self._with_maps if with_maps else lambda network, images: (call(network, images), [])
        output: tuple[Tensor, FeatureMaps] = call_with(network, replaced, images, run)
        return output

    def replaced(self, weights: Sequence[Tensor], extra: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Learnable weights (and `extra` parameters) by name."""
        return dict(zip(self.weight_names, weights, strict=True)) | (extra or {})

    def rebuild(self, weights: Sequence[Tensor], extra: dict[str, Tensor] | None = None) -> nn.Module:
        """A copy of the network with these learnable weights (and `extra` parameters), `usable`."""
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for name, value in self.replaced(weights, extra).items():
                network.get_parameter(name).copy_(value)
        return usable(network)

    def _with_maps(self, network: nn.Module, batch: Images) -> tuple[Tensor, FeatureMaps]:
        if self._taps is not None:
            return self._taps(network, batch)
        output: tuple[Tensor, FeatureMaps] = network.get_feature_maps(batch)  # type: ignore[operator]
        return output


def _chosen_taps(network: nn.Module, feature_maps: Sequence[str] | None) -> Taps | None:
    """Where feature maps are taken; None: by the network's own method."""
    if feature_maps is not None:
        return Taps(matching_taps(network, feature_maps))
    if not isinstance(network, OriginalNetwork):
        return Taps(default_taps(network))
    plain = type(network).get_feature_maps is OriginalNetwork.get_feature_maps
    return Taps(network.feature_map_modules()) if plain else None


class Mirrored:
    """A network whose outputs are the means over each image and its mirror image, left and right exchanged: data
    distillation (Radosavovic et al. 2018) by two views of images (n, c, h, w)."""

    def __init__(self, network: Original) -> None:
        self.network = network

    def __call__(self, batch: Images) -> Tensor:
        """Mean output, without gradient."""
        assert isinstance(batch, Tensor)  # of images, as is checked before
        return (self.network(batch) + self.network(batch.flip(-1))) / 2

    def digest(self) -> str:
        """Digest of the network's parameters and buffers."""
        return self.network.digest()


def as_original(
    network: nn.Module,
    feature_maps: Sequence[str] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> Original:
    """A frozen copy of a network of the user's; the network itself is not touched. Errors: see `Original`."""
    return Original(copy_of(network), feature_maps, include, exclude)


def usable(network: nn.Module) -> nn.Module:
    """A network that goes to the user: in eval mode, all parameters of real numbers trainable."""
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return network.eval()
