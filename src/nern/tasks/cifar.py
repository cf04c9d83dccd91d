"""cifar10 and cifar100 (Krizhevsky 2009), from `task.data_dir`, ./data, or downloaded by torchvision to the user's cache."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nern.compat import import_torchvision
from nern.errors import NernError
from nern.files import cache_dir
from nern.originals.input_format import InputFormat
from nern.registry import TASKS
from nern.tasks.base import register_task
from nern.tasks.images import ImageTensors, content

# The published runs and the public CIFAR ResNets normalise with ImageNet's statistics.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMAT = InputFormat((3, 32, 32), MEAN, STD)
PAD = 4

Kwargs = dict[str, Any]
Splits = tuple[ImageTensors | None, ImageTensors | None]


class Layout(NamedTuple):
    """How a dataset lies on disk: its folder, its batch files, what labels are called in them, torchvision's class."""

    folder: str
    train: list[str]
    test: list[str]
    labels: str
    dataset: str


TRAIN10 = [f"data_batch_{i}" for i in range(1, 6)]
LAYOUTS = {
    "cifar10": Layout("cifar-10-batches-py", TRAIN10, ["test_batch"], "labels", "CIFAR10"),
    "cifar100": Layout("cifar-100-python", ["train"], ["test"], "fine_labels", "CIFAR100"),
}


@register_task("cifar10", input_shape=(3, 32, 32), num_classes=10, mirrors=True, mean=MEAN, std=STD)
def cifar10(train_kwargs: Kwargs, test_kwargs: Kwargs, **kwargs: Any) -> Splits:
    """Krizhevsky 2009; augmented by crops padded by four pixels and mirroring."""
    return _load("cifar10", **kwargs)


@register_task("cifar100", input_shape=(3, 32, 32), num_classes=100, mirrors=True, mean=MEAN, std=STD)
def cifar100(train_kwargs: Kwargs, test_kwargs: Kwargs, **kwargs: Any) -> Splits:
    """As cifar10, with 100 classes."""
    return _load("cifar100", **kwargs)


def _load(
    name: str,
    input_format: InputFormat = FORMAT,
    data_dir: str | None = None,
    splits: tuple[str, ...] = ("train", "test"),
    **kwargs: Any,
) -> Splits:
    folder, layout = _find(name, data_dir), LAYOUTS[name]
    train = _read_split(name, folder, layout.train, input_format) if "train" in splits else None
    return train, _read_split(name, folder, layout.test, input_format) if "test" in splits else None


def _find(name: str, data_dir: str | None) -> Path:
    """The folder with the batch files: under (or at) data_dir, or in the cache, downloaded if need be."""
    layout, cache = LAYOUTS[name], cache_dir() / "data"
    places = [root / layout.folder for root in (Path("data"), cache)]  # the first as the published framework has it
    if data_dir is not None:
        root = Path(data_dir).expanduser()
        places = [root / layout.folder, root]
    for folder in places:
        if (folder / layout.test[0]).is_file():
            return folder
    if data_dir is not None:
        found = f"it holds: {content(root)}" if root.is_dir() else "there is no such folder"
        raise NernError(
            f"task.data_dir {data_dir!r} does not hold {name}: {layout.folder}/{layout.test[0]} is expected; {found}"
        )
    try:
        getattr(import_torchvision().datasets, layout.dataset)(root=str(cache), train=False, download=True)
    except Exception as error:  # URLError, a broken archive, no space: all need the same remedy
        raise NernError(
            f"{name} could not be downloaded to {cache} ({error}). Put {layout.folder}/ there yourself, or set "
            "task.data_dir to a folder that holds it."
        ) from error
    return cache / layout.folder


class _ArraysOnly(pickle.Unpickler):
    """The batch files are pickles of arrays and lists; anything else in one is refused, nothing is executed."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _read_split(name: str, folder: Path, files: list[str], expected: InputFormat) -> ImageTensors:
    key, classes = LAYOUTS[name].labels, TASKS.info(name)["num_classes"]
    images, labels = [], list[int]()
    for path in (folder / file for file in files):
        try:
            with path.open("rb") as file:
                entry = _ArraysOnly(file, encoding="latin1").load()
            data, numbers = np.asarray(entry["data"]), entry[key]
            if data.dtype != np.uint8 or data.shape != (len(numbers), 3072):
                raise ValueError(f"data of shape {data.shape} and type {data.dtype}")
            if not all(type(label) is int and 0 <= label < classes for label in numbers):
                raise ValueError(f"labels that are not whole numbers from 0 to {classes - 1}")
        except FileNotFoundError as error:
            raise NernError(f"{name}: {path} is missing") from error
        except Exception as error:  # whatever a damaged or foreign pickle raises
            raise NernError(f"{name}: {path} is not a batch file of this dataset ({error})") from error
        images.append(data.reshape(-1, 3, 32, 32))
        labels.extend(numbers)
    pixels = torch.from_numpy(np.concatenate(images))
    return ImageTensors(pixels, torch.tensor(labels), expected.mean, expected.std, pad=PAD, flip=True)
