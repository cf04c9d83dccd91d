"""Tasks: datasets, augmentation, streams of batches."""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nern import Config, ImageTensors, InputFormat, NernError, registry
from nern.compat import import_torchvision
from nern.config import TaskConfig
from nern.config.imports import import_modules
from nern.experiment import data_settings
from nern.originals.base import as_original
from nern.originals.cifar_resnet import CifarResNet
from nern.randomness import generator
from nern.registry import TASKS
from nern.tasks.base import Task, build_task, register_task
from nern.tasks.streams import EpochOrder
from runs import same

CPU = torch.device("cpu")


def config(task: str = "digits", **changes: Any) -> Config:
    """A config of a task; `held_out`, `test_images` and `best_on` are those of its evaluation section."""
    made = Config(batch_size=changes.pop("batch_size", 16), seed=changes.pop("seed", 0))
    made.evaluation.held_out_images = changes.pop("held_out", 1000)
    made.evaluation.test_images = changes.pop("test_images", None)
    made.evaluation.best_on = changes.pop("best_on", "held_out")
    made.task.task_name = task
    for name, value in changes.items():
        assert hasattr(made.task, name)
        setattr(made.task, name, value)
    return made.check()


def task_of(config: Config, device: torch.device, train: bool = True) -> Task:
    return build_task(config.task, data_settings(config), device, train)


def whole(data: Any, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    images, labels = zip(*data.batches(batch_size), strict=True)
    return torch.cat(images), torch.cat(labels)


def write_cifar10(folder: Path, count: int = 20, **changes: Any) -> Path:
    """A small set in the layout of CIFAR-10; `changes` go over the entries of its files."""
    target = folder / "cifar-10-batches-py"
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        entry = {"labels": rng.integers(0, 10, count).tolist(), "data": data, "batch_label": name} | changes
        (target / name).write_bytes(pickle.dumps(entry, protocol=2))
    return target


def test_mosaics_are_made_of_pictures_and_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.RANDOM_IMAGES, "_entries", dict(registry.RANDOM_IMAGES._entries))
    import_modules([str(shutil.copy(Path(__file__).parents[1] / "experiments" / "mosaics.py", tmp_path))])
    (tmp_path / "cifar-100-python").mkdir()
    data = np.full((9, 3072), 255, np.uint8) * np.arange(2, dtype=np.uint8).repeat([1, 8])[:, None]  # mostly white
    for name in ("train", "test"):
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps({"fine_labels": [0] * 9, "data": data}))
    section = TaskConfig(task_name="imagenet", data_dir=str(tmp_path), mean=(0.5,) * 3, std=(0.25,) * 3)
    kind, original = registry.RANDOM_IMAGES["mosaics"], as_original(CifarResNet(8))
    images = kind((3, 20, 30), section, 0, CPU, original)(16, generator(0, "mosaics"))
    assert images.shape == (16, 3, 20, 30)
    assert (float(images.min()), float(images.max())) == (-2.0, 2.0)


def test_the_shared_cifar10_is_read(cifar10: Path) -> None:
    task = task_of(config("cifar10", data_dir=str(cifar10)), CPU)
    assert (task.input_shape, task.num_classes) == ((3, 32, 32), 10)
    assert (len(task.train.data), len(task.held_out), len(task.test)) == (48_059, 1_000, 9_806)
    for part in (task.train.data, task.held_out, task.test):
        assert (part.images.dtype, part.images.shape[1:]) == (torch.uint8, (3, 32, 32))
        assert set(part.labels.unique().tolist()) == set(range(10))
    images, labels = task.train.batch(0)
    assert (images.shape, labels.shape) == ((16, 3, 32, 32), (16,))
    assert images.abs().max() < 3


OTHER, THIRD = ((0.49, 0.48, 0.45), (0.2, 0.25, 0.26)), ((0.5,) * 3, (0.25,) * 3)
USUAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SAID: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {  # attributes of the network, keys of the task, expected
    "nothing": ({}, {}, USUAL),
    "by the network": ({"input_format": InputFormat((3, 32, 32), *OTHER)}, {}, OTHER),
    "by timm": ({"pretrained_cfg": {"mean": OTHER[0], "std": OTHER[1], "input_size": (3, 32, 32)}}, {}, OTHER),
    "by the task": ({}, {"mean": list(OTHER[0]), "std": list(OTHER[1])}, OTHER),
    "in part": ({"input_format": InputFormat((3, 32, 32), *THIRD)}, {"mean": list(OTHER[0])}, (OTHER[0], THIRD[1])),
}


@pytest.mark.parametrize("said", SAID)
def test_cifar_is_normalised_as_the_task_says_else_the_network_else_as_usual(said: str, tmp_path: Path) -> None:
    pixels = pickle.loads((write_cifar10(tmp_path) / "test_batch").read_bytes())["data"].reshape(-1, 3, 32, 32)
    attributes, keys, (mean, std) = SAID[said]
    network = CifarResNet(8, in_channels=3, num_classes=10, widths=[4, 6, 8])
    for name, value in attributes.items():
        setattr(network, name, value)
    made = config("cifar10", data_dir=str(tmp_path), held_out=5, **keys)
    task = build_task(made.task, data_settings(made), CPU, original=as_original(network))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    assert torch.equal(whole(task.test)[0], torch.from_numpy(pixels).float().div(255).sub(mean).div(std))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_size": 16}, r"task.input_size has no part in task 'digits', whose images are fixed"),
        ({"mean": [0.5, 0.5, 0.5]}, r"images of 1 channels need as many numbers in mean \(=\[0.5, 0.5, 0.5\]\)"),
    ],
)
def test_what_fixed_images_cannot_be_is_one_clear_error(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(NernError, match=says):
        task_of(config(**changes), CPU)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_folder_without_the_data_says_what_is_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(NernError, match=rf"task.data_dir .* does not hold {name}: cifar-10.*it holds: nothing"):
        task_of(config(name, data_dir=str(tmp_path)), CPU)
    with pytest.raises(NernError, match="there is no such folder"):
        task_of(config(name, data_dir=str(tmp_path / "nowhere")), CPU)


def test_a_failed_download_says_where_to_put_the_data(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(root: str, train: bool, download: bool) -> None:
        assert download
        assert Path(root) == cache_dir / "data"
        raise OSError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_torchvision().datasets, "CIFAR100", offline)
    with pytest.raises(NernError, match=r"cifar100 could not be downloaded to .*no route to host.*task.data_dir"):
        task_of(config("cifar100"), CPU)


def test_a_malicious_batch_file_is_refused_and_not_executed(tmp_path: Path, attack: Any) -> None:
    folder = write_cifar10(tmp_path)
    attack.save_pickle(folder / "test_batch", data=np.zeros((2, 3072), np.uint8), labels=[0, 1])
    with pytest.raises(NernError, match=r"test_batch is not a batch file of this dataset \(refused to load .*mkdir"):
        task_of(config("cifar10", data_dir=str(tmp_path)), CPU)
    assert not attack.executed


def test_damaged_batch_files_and_those_of_something_else_are_one_clear_error(tmp_path: Path) -> None:
    made = config("cifar10", data_dir=str(tmp_path))
    for changes in ({"data": np.zeros((20, 3072), np.float32)}, {"labels": [10] * 20}, {"labels": [1] * 19}):
        write_cifar10(tmp_path, **changes)
        with pytest.raises(NernError, match=r"data_batch_1 is not a batch file of this dataset"):
            task_of(made, CPU)
    path = write_cifar10(tmp_path) / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(NernError, match="data_batch_2 is not a batch file"):
        task_of(made, CPU)


@pytest.mark.usefixtures("rng_untouched")
def test_digits_are_split_once_and_for_all() -> None:
    tasks = [task_of(config(seed=seed), CPU) for seed in (0, 1)]
    first, second = tasks
    assert (first.input_shape, first.num_classes) == ((1, 8, 8), 10)
    assert (len(first.train.data), len(first.held_out), len(first.test)) == (1080, 120, 597)
    assert torch.equal(first.test.images, second.test.images)
    images, labels = whole(first.test)
    assert set(labels.tolist()) == set(range(10))
    given = whole(task_of(config(mean=[0.0], std=[1.0]), CPU).test)[0]
    torch.testing.assert_close(images * 0.376 + 0.306, given, rtol=0, atol=1e-6)
    assert given.max() == 1
    some = task_of(config(test_images=50), CPU).test
    assert torch.equal(some.images, first.test.images[:50])
    assert task_of(config(test_images=0), CPU).test is None


def numbered_images(count: int = 12, size: int = 5, **options: Any) -> ImageTensors:
    """Images whose pixels are all different (none is zero) and whose label is their number."""
    images = torch.randint(1, 256, (count, 2, size, size), generator=torch.Generator().manual_seed(0))
    return ImageTensors(images.to(torch.uint8), torch.arange(count), (0.5, 0.25), (0.5, 0.5), **options)


def crops(image: Tensor, pad: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Every image that augmentation may make of `image`, by content."""
    _, height, width = image.shape
    allowed = {}
    for mirrored in (False, True) if flip else (False,):
        source = torch.nn.functional.pad(image.flip(2) if mirrored else image, [pad] * 4)
        for top, left in product(range(2 * pad + 1), repeat=2):
            crop = source[:, top : top + height, left : left + width].contiguous()
            allowed[crop.numpy().tobytes()] = (top, left, mirrored)
    return allowed


@pytest.mark.parametrize(("pad", "flip"), [(2, False), (1, True)])
def test_each_augmented_image_is_a_crop_of_its_own(pad: int, flip: bool) -> None:
    data = numbered_images(pad=pad, flip=flip)
    rng = torch.Generator().manual_seed(1)
    drawn = set()
    variants = (2 * pad + 1) ** 2 * (2 if flip else 1)
    allowed = [crops(image, pad, flip) for image in data.images]
    for _ in range(25):
        for of_image, augmented in zip(allowed, data.augmented(data.images, rng), strict=True):
            drawn.add(of_image[augmented.numpy().tobytes()])
    assert len(drawn) == variants  # every shift and mirroring occurs


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 5))
def test_every_epoch_covers_each_image_once_in_a_new_order(count: int, batch_size: int, seed: int) -> None:
    order = EpochOrder(count, batch_size, seed)
    epochs = []
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order.indices(step) for step in steps]
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        epochs.append(torch.cat(batches).tolist())
        assert sorted(epochs[-1]) == list(range(count))
    if count > 10:
        assert epochs[0] != epochs[1] != epochs[2]
    last = 3 * order.steps_per_epoch - 1
    assert torch.equal(EpochOrder(count, batch_size, seed).indices(last), order.indices(last))


def label_task(count: int, loaders: bool = False) -> Callable[..., Any]:
    """A task whose labels are the numbers of its images; test images follow on the training images."""

    def data(train_kwargs: dict[str, Any], test_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        images = torch.zeros(count + 7, 1, 4, 4, dtype=torch.uint8)
        labels = torch.arange(count + 7)
        parts = [(images[:count], labels[:count]), (images[count:], labels[count:])]
        if loaders:
            return tuple(DataLoader(TensorDataset(i.float(), n), train_kwargs["batch_size"]) for i, n in parts)
        return tuple(ImageTensors(i, n, (0.0,), (1.0,)) for i, n in parts)

    return data


@contextmanager
def registered(function: Callable[..., Any]) -> Iterator[None]:
    register_task("mine", input_shape=(1, 4, 4), num_classes=1000)(function)
    try:
        yield
    finally:
        TASKS.unregister("mine")


def seen_labels(task: Task) -> set[int]:
    labels = [task.train.batch(step)[1] for step in range(task.train.steps_per_epoch)]
    seen = torch.cat(labels).tolist()
    assert len(seen) == len(set(seen))
    return set(seen)


@pytest.mark.parametrize("loaders", [False, True])
@pytest.mark.parametrize(
    ("count", "given", "aside"), [(100, {"held_out": 5}, 5), (9, {}, 0), (100, {"best_on": "test"}, 0)]
)
def test_held_out_images_are_training_images_that_are_not_trained_on(
    loaders: bool, count: int, given: dict[str, Any], aside: int
) -> None:
    with registered(label_task(count, loaders)):
        task, again, other = (task_of(config("mine", seed=seed, **given), CPU) for seed in (1, 1, 2))
        apart = [set(whole(t.held_out)[1].tolist()) if t.held_out else set() for t in (task, again, other)]
        trained, tested = seen_labels(task), set(whole(task.test)[1].tolist())
    assert len(apart[0]) == aside
    assert apart[0] == apart[1]
    assert not aside or apart[0] != apart[2]
    assert not apart[0] & trained
    assert apart[0] | trained == set(range(count))
    assert tested == set(range(count, count + 7))


class Jittered(Dataset):
    """Items with noise from all three global generators, as transforms draw it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 4, 4) + random.random() + np.random.random(), index % 10  # noqa: NPY002


def jittered_task(
    train_kwargs: dict[str, Any], test_kwargs: dict[str, Any], use_workers: bool = True, **kwargs: Any
) -> Any:
    return (
        DataLoader(Jittered(60), train_kwargs["batch_size"], shuffle=True, num_workers=train_kwargs["num_workers"]),
        DataLoader(Jittered(13), test_kwargs["batch_size"], num_workers=test_kwargs["num_workers"]),
    )


@pytest.fixture
def jittered() -> Iterator[None]:
    with registered(jittered_task):
        yield


def loader_stream(**changes: Any) -> Any:
    return task_of(config("mine", batch_size=8, best_on="test", **changes), CPU).train


@pytest.mark.usefixtures("jittered", "rng_untouched")
def test_batches_are_the_same_reached_one_by_one_or_at_once() -> None:
    of_tensors, stream = task_of(config(), CPU).train, loader_stream()
    assert same([task_of(config(), CPU).train.batch(step) for step in (70, 3)], [*map(of_tensors.batch, (70, 3))])
    assert stream.steps_per_epoch == 8  # 60 images, the last batch short
    reached = [stream.batch(step) for step in range(20)]
    assert [len(images) for images, _ in reached[:8]] == [8] * 7 + [4]
    for step in (19, 11, 0, 8, 7):
        assert same(loader_stream().batch(step), reached[step])
    assert not torch.equal(loader_stream(seed=1).batch(3)[0], reached[3][0])


@pytest.mark.usefixtures("jittered", "rng_untouched")
@pytest.mark.parametrize("name", ["held_out", "test"])
def test_loader_images_to_evaluate_on_are_the_same_every_time(name: str) -> None:
    task = task_of(config("mine"), CPU)
    first, second = (whole(getattr(task, name))[0] for _ in range(2))
    assert torch.equal(first, second)
    few, many = (task_of(config("mine", test_images=count), CPU).test for count in (5, 99))
    assert len(few) == len(whole(few)[0]) == 5
    assert len(many) == len(whole(many)[0]) == 13


def test_a_task_is_called_as_the_published_guide_says() -> None:
    calls = []

    def data(train_kwargs: dict[str, Any], test_kwargs: dict[str, Any], use_workers: bool = True, **kwargs: Any) -> Any:
        calls.append((train_kwargs, test_kwargs, use_workers, kwargs))
        return jittered_task(train_kwargs, test_kwargs)

    with registered(data):
        task_of(config("mine", batch_size=8, data_dir="here", imagenet_path="there"), CPU)
    ((train_kwargs, test_kwargs, use_workers, kwargs),) = calls
    assert train_kwargs == {"batch_size": 8, "num_workers": 0}
    assert test_kwargs == {"batch_size": 500, "num_workers": 0}
    assert not use_workers
    assert kwargs == {
        "data_dir": "here",
        "imagenet_path": "there",
        "splits": ("train", "test"),
        "input_format": InputFormat((1, 4, 4), (0.0,), (1.0,)),
        "auto_augment": None,
    }


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield torch.zeros(1, 4, 4), 0


def images_in_memory(count: int = 20) -> ImageTensors:
    return ImageTensors(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count) % 10, (0.0,), (1.0,))


IMAGES, EMPTY = images_in_memory(), images_in_memory(0)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ((torch.zeros(3), IMAGES), "the train split of task 'mine' must be an ImageTensors, .* not Tensor"),
        ((IMAGES, EMPTY), "the test split of task 'mine' is empty"),
        ((DataLoader(Endless()), IMAGES), "must be an ImageTensors, or a DataLoader of a map-style dataset"),
    ],
)
def test_a_task_that_returns_something_else_is_one_clear_error(returned: Any, says: str) -> None:
    with registered(lambda *args, **kwargs: returned), pytest.raises(NernError, match=says):
        task_of(config("mine"), CPU)
