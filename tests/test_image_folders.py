"""imagefolder and imagenet: folders of images as tasks, in memory and streamed; images that cannot be read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import nern
from nern import Config, InputFormat, NernError
from nern.cli import main
from nern.config import TaskConfig
from nern.errors import NernWarning
from nern.tasks import image_folder
from nern.tasks.base import DataSettings, Task, build_task
from nern.tasks.image_folder import evaluation_transform, read_image
from nern.tasks.loaders import LoaderSet, LoaderStream
from nern.tasks.streams import MixedStream, first_images
from runs import TINY, interrupted, quiet, resume, same, small_resnet, train

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")


def write_image(path: Path, size: tuple[int, int] = (20, 14), seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (size[1], size[0], 3)) + rng.integers(0, 190, 3)
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ with eight and val/ with four images of each of three classes."""
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                seed = 1000 * label + number + 500 * (split != "train")
                write_image(tmp_path / "images" / split / name / f"{number:02}.png", seed=seed)
    return tmp_path / "images"


def load(root: Path | None, held_out: int = 0, train: bool = True, original: Any = None, **given: Any) -> Task:
    """The task of images of 8 x 8 pixels; `given` are keys of its section and of `DataSettings`, and `streamed`: none are
    held in memory."""
    streamed = given.pop("streamed", False)
    settings = {"batch_size": 5, "eval_batch_size": 4, "num_workers": 0, "seed": 0, "held_out_images": held_out}
    settings |= {key: given.pop(key) for key in list(given) if key in DataSettings.__dataclass_fields__}
    section = {"task_name": "imagefolder", "data_dir": None if root is None else str(root), "input_size": 8}
    with pytest.MonkeyPatch.context() as patch:
        if streamed:
            patch.setattr(image_folder, "MEMORY_BYTES", 0)
        return build_task(TaskConfig(**(section | given)), DataSettings(**settings), CPU, train, original)


def whole(data: Any, batch_size: int = 4) -> tuple[Tensor, Tensor]:
    images, labels = zip(*data.batches(batch_size), strict=True)
    return torch.cat(images), torch.cat(labels)


def epoch_of(stream: Any) -> list[Any]:
    return [stream.batch(step) for step in range(stream.steps_per_epoch)]


def read_all(*args: Any, **given: Any) -> tuple[Task, list[Any], Any, Any]:
    """A task with the batches of its first epoch, and its test images twice."""
    task = load(*args, **given)
    return task, epoch_of(task.train), whole(task.test), whole(task.test)


STORED = {"in memory": {"streamed": False}, "streamed": {"streamed": True}}
stored = pytest.mark.parametrize("how", STORED.values(), ids=list(STORED))
stored_or_worked = pytest.mark.parametrize(
    "how", [STORED["in memory"], {"streamed": True, "num_workers": 1}], ids=list(STORED)
)


@stored
def test_classes_are_numbered_in_the_order_of_their_names(how: dict[str, bool], folder: Path) -> None:
    for test_name in ("val", "test", "validation", "valid"):
        (folder / "val").rename(folder / test_name)
        task = load(folder, **how)
        (folder / test_name).rename(folder / "val")
        assert (task.num_classes, task.input_shape, len(task.test)) == (3, (3, 8, 8), 12)
    task = load(folder, **how)
    images, labels = whole(task.test)
    assert (images.shape, images.dtype) == ((12, 3, 8, 8), torch.float32)
    assert labels.tolist() == [0, 1, 2] * 4  # classes take turns, so that some images are of all classes
    assert whole(load(folder, test_images=5, **how).test)[1].tolist() == [0, 1, 2, 0, 1]
    labels = [labels for _, labels in epoch_of(task.train)]
    assert len(labels) == 5  # 24 images in batches of 5
    assert torch.cat(labels).bincount().tolist() == [8, 8, 8]


def test_nested_folders_count_and_hidden_or_other_files_do_not(folder: Path) -> None:
    write_image(folder / "val" / "bee" / "more.png" / "deep" / "x.JPG", format="JPEG")
    for name in ("val/bee/notes.txt", "val/.thumbnails/x.png", "val/README", "train/.DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    (folder / "val" / "bee" / "link.png").symlink_to("00.png")
    task = load(folder, train=False)
    assert task.num_classes == 3
    assert whole(task.test)[1].bincount().tolist() == [4, 6, 4]  # a link is an image, too
    assert task.skipped() == []


def test_a_split_that_is_not_used_need_not_be_there(folder: Path) -> None:
    (folder / "train").rename(folder / "elsewhere")
    assert len(load(folder, train=False).test) == 12
    with pytest.raises(NernError, match=r"has no folder train/; it holds: elsewhere/, val/"):
        load(folder)
    (folder / "val").rename(folder / "validate")
    (folder / "elsewhere").rename(folder / "train")
    assert load(folder, test_images=0).train.steps_per_epoch == 5
    tests = "val/ or test/ or validation/ or valid/"
    with pytest.raises(NernError, match=rf"no folder {tests}; it holds: train/, validate/"):
        load(folder)


def test_images_to_evaluate_on_are_the_same_in_memory_and_streamed(folder: Path) -> None:
    memory, stream = (
        load(folder, held_out=2, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], **how) for how in STORED.values()
    )
    for name, count in (("test", 12), ("held_out", 2)):
        of_memory, streamed = getattr(memory, name), getattr(stream, name)
        (images, labels), (others, other_labels) = whole(of_memory), whole(streamed)
        assert len(streamed) == len(others) == count
        torch.testing.assert_close(images, others, rtol=0, atol=1e-5)
        assert torch.equal(labels, other_labels)
        assert same(whole(streamed), (others, other_labels))


def test_evaluation_shows_the_centre_of_the_resized_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 3), dtype=np.uint8)
    images = InputFormat((3, 16, 16), (0.5,) * 3, (0.25,) * 3, crop=16 / 20)
    shown = evaluation_transform(images, normalize=False)(Image.fromarray(pixels))  # 20 rows as they are
    assert torch.equal(shown, torch.from_numpy(pixels[2:18, 8:24]).permute(2, 0, 1))
    normalized = evaluation_transform(images)(Image.fromarray(pixels))
    torch.testing.assert_close(normalized, (shown / 255 - 0.5) / 0.25, rtol=0, atol=1e-6)
    for resized in (232, 235, 256, 342, 518):  # the size that metadata mean is met
        transform = evaluation_transform(InputFormat(crop=224 / resized))
        assert transform.transforms[0].size == resized


COLOURS: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "LA": ((100, 9), (100, 100, 100)),
    "P": (0, (10, 20, 30)),
    "RGBA": ((10, 20, 30, 0), (10, 20, 30)),
    "CMYK": ((245, 235, 225, 0), (10, 20, 30)),
}


@pytest.mark.parametrize("mode", COLOURS)
def test_images_of_every_kind_become_grey_or_colour(mode: str, tmp_path: Path) -> None:
    colour, expected = COLOURS[mode]
    image = Image.new(mode, (5, 4), colour)
    if mode == "P":
        image.putpalette([10, 20, 30])
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    read = read_image(str(path), 3)
    assert (read.mode, read.size, read.getpixel((2, 2))) == ("RGB", (5, 4), expected)
    assert read_image(str(path), 1).mode == "L"


@pytest.mark.parametrize(("mode", "name"), [("I;16", "x.png"), ("F", "x.tif")])
def test_images_of_more_than_8_bits_are_refused(mode: str, name: str, tmp_path: Path) -> None:
    Image.new(mode, (5, 4), 300).save(tmp_path / name)
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        read_image(str(tmp_path / name), 1)


def test_networks_may_see_grey_but_not_what_no_file_holds(folder: Path) -> None:
    original = type("Original", (), {"input_format": InputFormat((1, 8, 8), (0.5,), (0.5,))})()
    given = {"original": original, "input_size": None, "auto_augment": "none"}
    task = load(folder, **given)
    assert task.train.batch(0)[0].shape == (5, 1, 8, 8)
    assert whole(task.test)[0].shape == (12, 1, 8, 8)
    original.input_format = InputFormat((4, 8, 8), (0.5,) * 4, (0.5,) * 4)
    with pytest.raises(NernError, match=r"expects images of 4 channels; image files give 1 \(grey\) or 3 \(colour\)"):
        load(folder, **given)
    original.input_format = InputFormat(interpolation="sharp")
    with pytest.raises(NernError, match=r"no interpolation \(='sharp', of the network's metadata\)"):
        load(folder, **given)


MIXED = {"auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0}


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("given", [STORED["streamed"], MIXED, {"mixup": 1.0}], ids=str)
def test_batches_are_a_function_of_seed_and_step(given: dict[str, Any], folder: Path) -> None:
    stream = load(folder, **given).train
    reached = [stream.batch(step) for step in range(8)]
    for step in (7, 4, 0):
        assert same(load(folder, **given).train.batch(step), reached[step])
    assert not torch.equal(load(folder, **given, seed=1).train.batch(4)[0], reached[4][0])
    assert not torch.equal(reached[0][0], reached[5][0])
    with_worker = load(folder, **given, num_workers=1)
    for step in (3, 4, 5):
        assert same(with_worker.train.batch(step), reached[step])
    assert same(whole(with_worker.test), whole(load(folder, **given).test))


def test_mixed_labels_are_shares_of_the_classes_and_first_images_unmixed(folder: Path) -> None:
    mixed, plain = (load(folder, **(MIXED | change)).train for change in ({}, {"mixup": 0.0, "cutmix": 0.0}))
    assert (type(mixed), type(plain)) == (MixedStream, LoaderStream)
    first = torch.cat([plain.batch(0)[0], plain.batch(1)[0]])[:7]
    assert torch.equal(first_images(plain, 7), first)
    labels = [mixed.batch(step)[1] for step in range(15)]
    assert torch.equal(first_images(mixed, 7), first)
    assert not torch.equal(mixed.batch(0)[0], first[:5])
    shares = torch.cat(labels)
    assert (shares.shape, float(shares.min()) >= 0) == ((72, 3), True)
    torch.testing.assert_close(shares.sum(1), torch.ones(72))
    assert ((shares > 0).sum(1) == 2).any()
    for step in range(5):  # the same images, in the same order, lead each mixture or follow in it
        assert (labels[step].gather(1, plain.batch(step)[1][:, None]) > 0).any()


def spoil(root: Path, names: Sequence[str]) -> set[str]:
    """Damages these images, each in another way; their paths."""
    kinds: list[Callable[[bytes], bytes]] = [
        lambda content: content[: len(content) // 2],  # truncated
        lambda content: b"<html>not found</html>",
        lambda content: b"",
        lambda content: content[:60] + bytes(40) + content[100:],
    ]
    for number, name in enumerate(names):
        path = root / name
        path.write_bytes(kinds[number % len(kinds)](path.read_bytes()))
    return {str(root / name) for name in names}


BAD = [
    *("train/ant/00.png", "train/bee/01.png", "train/bee/02.png", "train/cat/07.png"),
    *("val/ant/00.png", "val/cat/03.png"),
]


@stored_or_worked
def test_images_that_cannot_be_read_are_left_out_and_named(how: dict[str, Any], folder: Path) -> None:
    bad = spoil(folder, BAD)
    with pytest.warns(NernWarning, match=r"(train|val)/.*\.png cannot be read \(.+\). It is left out") as caught:
        task, batches, first, again = read_all(folder, **how)
    assert len([w for w in caught if issubclass(w.category, NernWarning)]) == 1
    of_classes = torch.cat([labels for _, labels in batches]).bincount().tolist()
    assert of_classes == [7, 6, 7] if not how["streamed"] else sum(of_classes) == 24  # others take their places
    assert first[1].bincount().tolist() == [3, 4, 3]
    assert same(first, again)
    assert task.skipped() == sorted(bad)


@pytest.mark.filterwarnings("ignore::nern.errors.NernWarning")
@stored_or_worked
def test_a_set_of_which_nothing_can_be_read_is_an_error(how: dict[str, Any], folder: Path) -> None:
    spoil(folder, [f"train/{name}/{number:02}.png" for name in CLASSES for number in range(8)])
    with pytest.raises(NernError, match=r"none of the 24 images can be read, among them: .*train/.*png"):
        load(folder, **how).train.batch(2)
    spoil(folder, [f"val/{name}/{number:02}.png" for name in CLASSES for number in range(4)])
    with pytest.raises(NernError, match=r"none of the 12 images can be read, among them: .*val/"):
        list(load(folder, train=False, **how).test.batches(5))


@pytest.fixture
def spoilt(folder: Path) -> Path:
    image = write_image(folder / "flat" / "val" / "x.png")
    for name in CLASSES[:2]:
        (folder / "raw" / "train" / name).mkdir(parents=True)
        (folder / "raw" / "train" / name / "x.raw").write_bytes(image.read_bytes())
    write_image(folder / "raw" / "train" / "cat" / "x.png")
    for split, names in (("train", ["ant"]), ("val", ["dog"]), ("val", [f"more{n}" for n in range(9)])):
        for name in names:
            write_image(folder / "other" / split / name / "x.png")
    return folder


@pytest.mark.filterwarnings("ignore::nern.errors.NernWarning")
@pytest.mark.parametrize(
    ("root", "given", "message"),
    [
        (None, {}, r"task.data_dir is not set: .* holds train/ and val/ or test/ or validation/ or valid/, each"),
        ("nowhere", {}, r"task.data_dir '.*nowhere' is not there"),
        ("val", {}, r"has no folder val/ or test/ or validation/ or valid/; it holds: ant/, bee/, cat/"),
        ("flat", {}, r"val has no class folders; .*a folder of images for each class.*holds: x.png"),
        ("raw", {"test_images": 0}, r"class folders without images in .*train: ant, bee\. Images .* \.jpg, .*\.png"),
        ("other", {}, r"val/ has class folders that train/ lacks: dog, more0, more1, more2, ... \(\+6\)"),
        ("other", {"train": False}, r"lacks: dog, .*Rename or remove them"),  # their numbers would be wrong
        ("", {"auto_augment": "rand-x9"}, r"timm has no task.auto_augment \(='rand-x9'\)"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(
    root: str | None, given: dict[str, Any], message: str, spoilt: Path
) -> None:
    with pytest.raises(NernError, match=message):
        load(None if root is None else spoilt / root, **given)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val/ with an image of each of 1,000 classes."""
    root = tmp_path_factory.mktemp("imagenet")
    content = io.BytesIO()
    Image.new("RGB", (9, 9), (10, 20, 30)).save(content, "PNG")
    for label in range(1000):
        (root / "val" / f"n{label:08}").mkdir(parents=True)
        (root / "val" / f"n{label:08}" / f"ILSVRC2012_val_{label:08}.JPEG").write_bytes(content.getvalue())
    return root


def load_imagenet(root: Path | None, **given: Any) -> Task:
    path = root and str(root)
    return load(None, task_name="imagenet", imagenet_path=path, **{"test_images": 6, **given})


def test_imagenet_is_streamed_and_needs_its_classes_and_folders(imagenet: Path, folder: Path, tmp_path: Path) -> None:
    task = load_imagenet(imagenet, train=False)
    assert task.num_classes == 1000
    assert isinstance(task.test, LoaderSet)
    images, labels = whole(task.test)
    assert labels.tolist() == list(range(6))
    usual = zip((10, 20, 30), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    torch.testing.assert_close(images[3, :, 4, 4], torch.tensor([(v / 255 - m) / s for v, m, s in usual]))
    assert load_imagenet(imagenet, train=False, input_size=None).input_shape == (3, 224, 224)
    (tmp_path / "val").symlink_to(imagenet / "val")
    write_image(tmp_path / "train" / "n00000007" / "x.png")  # not all classes, which does not matter to an evaluation
    assert whole(load_imagenet(tmp_path, train=False).test)[1].tolist() == list(range(6))
    for root, message in (
        (None, r"task.imagenet_path is not set: .* train/ and val/ or test/ or validation/ or valid/, each"),
        (folder, r"has 3 class folders in a split; ImageNet has 1000\. .*task 'imagefolder'"),
        (imagenet, r"has no folder train/; it holds: val/"),
    ):
        with pytest.raises(NernError, match=message):
            load_imagenet(root)


def test_imagenet_is_trained_by_its_recipe(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(imagenet / "val")
    task = load_imagenet(tmp_path, test_images=0, held_out=10)
    assert isinstance(task.train, MixedStream)
    assert len(task.train.mixers) == 2
    assert "RandAugment" in str(task.train.unmixed.data.dataset.dataset.transform)
    images, labels = task.train.batch(0)
    assert (images.shape, labels.shape) == ((5, 3, 8, 8), (5, 1000))
    plain = load_imagenet(tmp_path, test_images=0, mixup=0.0, cutmix=0.0, auto_augment="none")
    assert isinstance(plain.train, LoaderStream)
    assert "RandAugment" not in str(plain.train.data.dataset.dataset.transform)


@pytest.fixture
def configure(folder: Path, tmp_path: Path, no_picture: None) -> Callable[..., Config]:
    """Makes a short run's config, of a very small network for three classes of colour images."""

    def make(**more: Any) -> Config:
        torch.save(small_resnet(in_channels=3, num_classes=3).state_dict(), tmp_path / "network.pt")
        paths = {"original_model_path": str(tmp_path / "network.pt"), "logging.log_dir": str(tmp_path / "runs")}
        task = {"task.task_name": "imagefolder", "task.data_dir": str(folder), "task.input_size": 8}
        length = {"epochs": None, "num_iterations": 3, "batch_size": 5, "loss_warmup_iterations": 0}
        usual = {"evaluation.held_out_images": 1000, "evaluation.test_images": None, "nern.task_loss_weight": 1.0}
        return Config.from_dict(TINY | paths | task | length | usual | more)

    return make


@stored
def test_a_run_tells_what_it_skipped(
    how: dict[str, bool],
    configure: Callable[..., Config],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = spoil(folder, BAD)
    if how["streamed"]:
        monkeypatch.setattr(image_folder, "MEMORY_BYTES", 0)
    with pytest.warns(NernWarning, match="cannot be read"):
        metrics = nern.train(configure(), quiet())
    (names,) = metrics["skipped_images"].values()
    assert {name for name in bad if "/val/" in name} <= set(names) <= bad
    assert metrics["best"]["test"]["images"] == 10
    assert 1 <= metrics["best"]["held_out"]["images"] <= 2
    assert main(["evaluate", "--run", metrics["run_folder"], "--json", str(tmp_path / "metrics.json")]) == 0
    evaluated = json.loads((tmp_path / "metrics.json").read_text())
    assert evaluated["reconstructed"] == metrics["best"]["test"]
    assert len(evaluated["skipped_images"]) == 2


@pytest.mark.filterwarnings("ignore::nern.errors.NernWarning")
def test_a_resumed_run_of_streamed_images_equals_an_uninterrupted_one(
    configure: Callable[..., Config], folder: Path
) -> None:
    spoil(folder, BAD[:2])
    config = configure(**{f"task.{key}": value for key, value in MIXED.items()}, num_iterations=4, save_minutes=1000.0)
    whole_run, resumed = train(config), resume(interrupted(config, 2))
    results = [json.loads(run.metrics.read_text())["last"] for run in (whole_run, resumed)]
    assert results[0] == results[1]
    assert same(*(run.load_state()["predictor"] for run in (whole_run, resumed)))
