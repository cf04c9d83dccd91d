"""The data of a Python session as a task: a data loader, a dataset, a tensor, or batches of any kind."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from nern.errors import NernError
from nern.inputs import Calling, Inputs, compared, tensors_in, with_tensors
from nern.processes import Processes
from nern.randomness import forked_rng
from nern.tasks.base import Task
from nern.tasks.images import Batch, Share, on_device
from nern.tasks.loaders import LoaderSet, LoaderStream, SkippedImages
from nern.tasks.streams import EvalSet, TrainStream

Forward = Callable[[nn.Module, Any], Any]
LABELS = ("labels", "label")  # keys of a mapping under which labels are
USUAL_SIZE = 3.0  # of scaled outputs, root mean square: about that of class scores, for which losses are weighted


@dataclass(frozen=True)
class OwnData:
    """Data of a Python session, for one network."""

    network: nn.Module  # in eval mode
    forward: Forward | None  # (network, batch) -> outputs; None: see `usual_forward`
    device: torch.device  # where the network is
    batch_size: int  # of a dataset or a tensor
    seed: int  # of the order of samples

    def task(self, data: Any, test: Any) -> tuple[Task, Calling]:
        """The task that the data become, and how the network is called. None: there are none.

        Raises:
            NernError: they give no batch, or the network does not take it.
        """
        firsts, given = [], []
        for batches in (data, test):
            if batches is not None:
                first, batches = peeked(as_batches(batches, self.batch_size))
                firsts.append(first)
            given.append(batches)
        labelled = [first for first in firsts if labels_in(self.network, first) is not None]
        calling = self.calling((labelled or firsts)[0])
        train = None if given[0] is None else self.stream(given[0], calling)
        evaluated = None if given[1] is None else self.test_set(given[1], calling)
        return Task("data", None, None, train, None, evaluated), calling

    def calling(self, batch: Any) -> Calling:
        """How the network is called, found from the first batch.

        Raises:
            NernError: the network does not take it, or its outputs cannot be compared.
        """
        forward = self.forward or usual_forward
        inputs, labels = self.split(batch, Calling(forward))
        try:
            with torch.no_grad():
                outputs = forward(self.network, inputs.batch)
        except Exception as error:
            raise NernError(
                f"the network does not take the first batch, {described(batch)}: "
                f"{' '.join(f'{type(error).__name__}: {error}'.split())[:300]}. Give `forward`, a function of the network "
                "and a batch that returns its outputs"
            ) from error
        tensors = compared(outputs, len(inputs))
        if _are_scores(tensors, labels):
            return Calling(forward)
        total = sum(tensor.numel() for tensor in tensors)
        sizes = [max(float(tensor.float().square().mean().sqrt()), 1e-12) for tensor in tensors]
        shares = [(total / (len(tensors) * tensor.numel())) ** 0.5 for tensor in tensors]
        return Calling(forward, [USUAL_SIZE * share / size for share, size in zip(shares, sizes, strict=True)])

    def split(self, batch: Any, calling: Calling) -> tuple[Inputs, Tensor | None]:
        """A batch as inputs and labels, on the device."""
        first = next(tensors_in(batch), None)
        if first is None or not first.dim():
            raise NernError(f"a batch of the data, {described(batch)}, holds no tensor with an axis of samples")
        inputs, labels = on_device((Inputs(batch, calling, len(first)), labels_in(self.network, batch)), self.device)
        assert isinstance(inputs, Inputs)
        return inputs, labels

    def as_batch(self, calling: Calling) -> Callable[[Any], Batch]:
        """What makes a batch of what the data give: where that is one tensor for a classifier, the tensor itself."""
        plain = self.forward is None and calling.scales is None

        def made(batch: Any) -> Batch:
            images = batch[0] if isinstance(batch, list | tuple) and batch and positional(self.network) == 1 else batch
            if plain and isinstance(images, Tensor):
                return on_device((images, labels_in(self.network, batch)), self.device)
            return self.split(batch, calling)

        return made

    def stream(self, data: Iterable[Any], calling: Calling) -> TrainStream:
        """Training batches."""
        if isinstance(data, DataLoader) and in_order(data):
            images = LoaderSet(data, data.dataset, self.device, SkippedImages(), self.as_batch(calling))
            return LoaderStream(images, data.batch_size or 1, self.seed)
        return BatchesStream(data, self.as_batch(calling), self.seed)

    def test_set(self, data: Iterable[Any], calling: Calling) -> EvalSet:
        """Batches to evaluate on."""
        return BatchesSet(data, self.as_batch(calling), self.seed)

    def mean(self, metric: Callable[[Any, Any], float | Tensor], network: nn.Module, data: EvalSet) -> float:
        """The mean over all samples of a metric of (outputs, batch)."""
        assert isinstance(data, BatchesSet)
        total, count = 0.0, 0
        for batch in data.raw():
            inputs, _ = self.split(batch, Calling(self.forward or usual_forward))
            with torch.no_grad():
                value = metric(inputs.calling.forward(network, inputs.batch), inputs.batch)
            total, count = total + float(value) * len(inputs), count + len(inputs)
        return total / max(count, 1)


def _are_scores(tensors: list[Tensor], labels: Tensor | None) -> bool:
    """Whether outputs are scores of classes: one for each, and labels are numbers of them."""
    if len(tensors) != 1 or tensors[0].dim() != 2 or labels is None or labels.shape != tensors[0].shape[:1]:
        return False
    whole = not labels.is_floating_point() and not labels.is_complex()
    return whole and 0 <= int(labels.min()) <= int(labels.max()) < tensors[0].shape[1]


# --- how networks are called ----------------------------------------------------------------------------------------


def positional(network: nn.Module) -> int:
    """How many arguments a network must be given, at least one."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = _parameters(network)
    return max(sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters.values()), 1)


def usual_forward(network: nn.Module, batch: Any) -> Any:
    """Call a network as networks are called: with a mapping's values by name, as far as it takes such arguments; with as
    many parts of a tuple or list as it must be given; with anything else as it is."""
    if isinstance(batch, list | tuple):
        inputs = batch[: positional(network)]
        return usual_forward(network, inputs[0]) if len(inputs) == 1 else network(*inputs)
    if isinstance(batch, Mapping):
        return network(**{key: batch[key] for key in _taken(network, batch)})
    return network(batch)


def _parameters(network: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(network.forward).parameters


def _taken(network: nn.Module, batch: Mapping[str, Any]) -> list[str]:
    """The keys of a batch that are names of the network's arguments; all but labels, where it takes any."""
    parameters = _parameters(network)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return [key for key in batch if key in parameters or key not in LABELS]
    return [key for key in batch if key in parameters]


def labels_in(network: nn.Module, batch: Any) -> Tensor | None:
    """The labels of a batch: of a mapping those of that name, of a tuple or list what follows the inputs; None: there are
    none."""
    found: Any = None
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in LABELS if key in batch), None)
    elif isinstance(batch, list | tuple) and len(batch) > positional(network):
        found = batch[-1]
    return found if isinstance(found, Tensor) else None


def described(batch: Any) -> str:
    """A batch in words: the shapes of its tensors, as they are nested."""

    def shape(tensor: Tensor) -> Any:
        return tuple(tensor.shape)

    return " ".join(repr(with_tensors(batch, shape)).split())[:200]


# --- where batches come from ----------------------------------------------------------------------------------------


def as_batches(data: Any, batch_size: int) -> Iterable[Any]:
    """What gives batches: datasets and tensors by a data loader, anything else as it is. Raises NernError for what cannot be
    iterated."""
    if isinstance(data, Tensor):
        data = TensorDataset(data)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=batch_size)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise NernError(
            f"data (={type(data).__name__}) must be a DataLoader, a Dataset, a tensor, or an iterable of batches"
        )
    return data


def in_order(data: DataLoader[Any]) -> bool:
    """Whether any item of a data loader can be had by its number, in an order of ours."""
    return (
        isinstance(data.dataset, Sized)
        and not isinstance(data.dataset, IterableDataset)
        and data.batch_size is not None
        and isinstance(data.sampler, RandomSampler | SequentialSampler)
    )


def peeked(data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, and data that still have it. Raises NernError if there is none."""
    with forked_rng(0, "first batch"):
        iterator = iter(data)
        first = next(iterator, None)
    if first is None:
        raise NernError("the data give no batch")
    return first, itertools.chain([first], iterator) if iterator is data else data


def _length(data: Iterable[Any]) -> int:
    """How many batches there are, if that is known; else 0."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return 0


def _as_they_come(data: Iterable[Any], seed: int, purpose: str, start: int = 0) -> Iterator[Any]:
    """The batches of an iterable, once; `start`: the number of the first one, for what it draws from PyTorch's generator."""
    batches = None
    for number in itertools.count(start):
        with forked_rng(seed, purpose, number):
            batches = iter(data) if batches is None else batches
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class BatchesStream(TrainStream):
    """Batches as an iterable gives them; after its last the first follows. An iterator is read once.

    Args:
        as_batch: what makes a batch of what the iterable gives.
        seed: of what it draws from PyTorch's generator.
    """

    def __init__(self, data: Iterable[Any], as_batch: Callable[[Any], Batch], seed: int) -> None:
        self.data, self.as_batch, self.seed = data, as_batch, seed
        self.steps_per_epoch = _length(data) or 1
        self._batches: Iterator[Any] = iter(())
        self._next = 0

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """See `TrainStream`; of one process."""
        if step < self._next:
            self._batches, self._next = iter(()), 0
        while self._next < step:
            self._read()
        return self.as_batch(self._read()), 1.0

    def _read(self) -> Any:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = _as_they_come(self.data, self.seed, "batch", self._next)
            batch = next(self._batches, None)
        if batch is None:
            raise NernError(
                "the data have ended: an iterator can be read once only. Give a DataLoader, a Dataset, a list or a tensor"
            )
        self._next += 1
        return batch


@dataclass(eq=False)
class BatchesSet:
    """Batches to evaluate on, as an iterable gives them. For the arguments see `BatchesStream`; `limit`: the batches end
    with the one that has so many samples together; None: with the last."""

    repeats: ClassVar[bool] = False  # the same batches need not come again
    data: Iterable[Any]
    as_batch: Callable[[Any], Batch]
    seed: int = 0
    limit: int | None = None

    def __len__(self) -> int:
        """Batches, if that is known; else 0."""
        return _length(self.data)

    def raw(self) -> Iterator[Any]:
        """The batches as they come."""
        return _as_they_come(self.data, self.seed, "evaluation batch")

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        """See `EvalSet`; batches are as large as they come."""
        samples = 0
        for batch in map(self.as_batch, self.raw()):
            yield batch
            samples += len(batch[0])
            if self.limit is not None and samples >= self.limit:
                return
