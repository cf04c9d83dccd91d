"""What a network is given: a tensor, or nested tensors as a data loader gives them; and how it is called with that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from nern.errors import NernError

NUMBERS = 2**21  # of a batch; what a network makes of more takes gigabytes


@dataclass(frozen=True)
class Calling:
    """How a network is called with a batch, and which of its outputs are compared."""

    forward: Callable[[nn.Module, Any], Any]  # (network, batch) -> outputs: a tensor, or nested tensors
    scales: Sequence[float] | None = None  # of each compared tensor; None: outputs are one tensor of class scores

    def __call__(self, network: nn.Module, batch: Any, samples: int) -> Float[Tensor, "samples numbers"]:
        """The outputs that are compared, in one tensor: class scores, or all numbers of all tensors, scaled."""
        outputs = self.forward(network, batch)
        if self.scales is None:
            scores: Tensor = outputs if isinstance(outputs, Tensor) else compared(outputs, samples)[0]
            return scores
        tensors = compared(outputs, samples)
        if len(tensors) != len(self.scales):
            raise NernError(f"the network gave {len(self.scales)} tensors for the first batch, and {len(tensors)} now")
        rows = [tensor.reshape(samples, -1) * scale for tensor, scale in zip(tensors, self.scales, strict=True)]
        return torch.cat(rows, 1)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch of nested tensors, with the way in which a network is called with them."""

    batch: Any  # tensors in tuples, lists, mappings and dataclasses; other values in them stay as they are
    calling: Calling
    samples: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, part: slice) -> Inputs:
        """Some of the samples. All of them, where the first axis of some tensor does not count samples."""
        samples = len(range(*part.indices(self.samples)))
        if samples == self.samples or not self.divisible:
            return self
        return Inputs(with_tensors(self.batch, lambda tensor: tensor[part]), self.calling, samples)

    @property
    def divisible(self) -> bool:
        """Whether the first axis of every tensor counts samples."""
        return all(tensor.dim() and len(tensor) == self.samples for tensor in tensors_in(self.batch))

    def split(self, size: int) -> list[Inputs]:
        """Parts of at most so many samples, if the batch can be divided."""
        if not self.divisible:
            return [self]
        return [self[start : start + size] for start in range(0, self.samples, size)]

    def to(self, device: torch.device) -> Inputs:
        """On a device."""
        moved = with_tensors(self.batch, lambda tensor: tensor.to(device, non_blocking=True))
        return Inputs(moved, self.calling, self.samples)

    @property
    def device(self) -> torch.device:
        """Of its first tensor."""
        return next(tensors_in(self.batch)).device


Images = Tensor | Inputs  # of one batch
Seen = Tensor | Sequence[Inputs]  # of several batches


def call(network: nn.Module, images: Images) -> Tensor:
    """The outputs of a network that are compared."""
    if isinstance(images, Inputs):
        return images.calling(network, images.batch, images.samples)
    outputs: Tensor = network(images)
    return outputs


def call_with(
    network: nn.Module, tensors: Mapping[str, Tensor], images: Images, run: Callable[[nn.Module, Images], Any] = call
) -> Any:
    """What `run` gives with some of the network's parameters and buffers replaced, by name; the network is not changed."""
    return functional_call(_Caller(network, run), {f"network.{name}": t for name, t in tensors.items()}, (images,))


class _Caller(nn.Module):
    """What `functional_call` runs: the network, by a function of it and the images."""

    def __init__(self, network: nn.Module, run: Callable[[nn.Module, Images], Any]) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self, images: Images) -> Any:
        return self.run(self.network, images)


def gives_scores(images: Images) -> bool:
    """Whether what `call` gives are scores of classes."""
    return isinstance(images, Tensor) or images.calling.scales is None


def batches_of(seen: Seen, size: int | None = None) -> Iterator[Images]:
    """All of it in batches, of at most so many samples, and of fewer large ones, as far as batches can be divided."""
    for images in [seen] if isinstance(seen, Tensor) else seen:
        most = samples_within(NUMBERS, images)
        yield from images.split(most if size is None else min(size, most))


def samples_within(numbers: int, like: Images) -> int:
    """How many samples like these hold no more than so many numbers; at least 1."""
    each = sum(tensor.numel() for tensor in tensors_in(like)) // max(len(like), 1)
    return max(1, numbers // max(each, 1))


def first_of(batches: Iterable[Images], count: int, numbers: int | None = None) -> list[Images]:
    """The first samples of batches, in parts: so many, and no more than hold so many numbers if all are like the first."""
    parts, left = list[Images](), count
    for batch in batches:
        if not parts and numbers is not None:
            left = min(left, samples_within(numbers, batch))
        parts.append(batch[:left])
        left -= len(parts[-1])
        if left <= 0:
            break
    return parts


def joined(batches: Seen | Sequence[Images]) -> Images:
    """Batches as one.

    Raises:
        NernError: nested tensors that do not have one shape but for the first axis, which counts samples.
    """
    if isinstance(batches, Tensor):
        return batches
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    nested = [batch for batch in batches if isinstance(batch, Inputs)]
    try:
        if not all(batch.divisible for batch in nested):
            raise ValueError("the first axis of a tensor does not count samples")
        tensors = iter([torch.cat(same) for same in zip(*(tensors_in(b.batch) for b in nested), strict=True)])
    except (RuntimeError, ValueError) as error:
        raise NernError(
            f"batches of nested tensors are joined along their first axis, which these do not allow ({error}); pad them "
            "to one shape, or give `forward` a batch of tensors that count samples"
        ) from error
    return Inputs(with_tensors(first.batch, lambda _: next(tensors)), first.calling, sum(map(len, nested)))


# --- nested tensors -------------------------------------------------------------------------------------------------


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    for child in _children(value):
        yield from tensors_in(child)


def compared(outputs: Any, samples: int) -> list[Tensor]:
    """The tensors of outputs that are compared: all of floating-point numbers, but for single numbers such as a loss.

    Raises:
        NernError: there are none; or the numbers of one do not divide among the samples.
    """
    found = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point() and tensor.dim()]
    for tensor in found:
        if tensor.numel() % samples:
            raise NernError(
                f"an output of shape {tuple(tensor.shape)} does not belong to {samples} samples; give `forward`, a "
                "function of the network and a batch whose outputs have the samples along their first axis"
            )
    if not found:
        raise NernError(
            f"the network gives {type(outputs).__name__} without a tensor of floating-point numbers; give `forward`, a "
            "function of the network and a batch that returns such tensors"
        )
    return found


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested values, each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        changed = {key: with_tensors(child, change) for key, child in value.items()}
        return changed if type(value) is dict else _mapping_like(value, changed)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(with_tensors(child, change) for child in value))
    if isinstance(value, list | tuple):
        return type(value)(with_tensors(child, change) for child in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: with_tensors(getattr(value, field.name), change) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **named)
    return value


def _mapping_like(value: Mapping[Any, Any], changed: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the same kind, such as what a tokenizer gives, if that can be made; else a dict."""
    try:
        return type(value)(changed)  # type: ignore[call-arg]
    except TypeError:
        return changed


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name) for field in dataclasses.fields(value))
