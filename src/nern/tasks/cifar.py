"""cifar10 and cifar100 (Krizhevsky 2009), from `task.data_dir`, ./data, or downloaded by torchvision to the user's cache."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nern.compat import import_torchvision
from nern.errors import NernError
from nern.files import cache_dir
from nern.originals.input_format import InputFormat
from nern.registry import TASKS
from nern.tasks.base import register_task
from nern.tasks.images import ImageTensors

# The published runs and the public CIFAR ResNets normalise with ImageNet's statistics.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMAT = InputFormat((3, 32, 32), MEAN, STD)
PAD = 4

_LAYOUTS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "folder": "cifar-10-batches-py",
        "train": [f"data_batch_{i}" for i in range(1, 6)],
        "test": ["test_batch"],
        "labels": "labels",
        "dataset": "CIFAR10",
    },
    "cifar100": {
        "folder": "cifar-100-python",
        "train": ["train"],
        "test": ["test"],
        "labels": "fine_labels",
        "dataset": "CIFAR100",
    },
}


@register_task("cifar10", input_shape=(3, 32, 32), num_classes=10, mirrors=True, mean=MEAN, std=STD)
def cifar10(
    train_kwargs: dict[str, Any], test_kwargs: dict[str, Any], use_workers: bool = True, **kwargs: Any
) -> tuple[ImageTensors | None, ImageTensors | None]:
    """Krizhevsky 2009; augmented by crops padded by four pixels and mirroring."""
    return _load("cifar10", **kwargs)


@register_task("cifar100", input_shape=(3, 32, 32), num_classes=100, mirrors=True, mean=MEAN, std=STD)
def cifar100(
    train_kwargs: dict[str, Any], test_kwargs: dict[str, Any], use_workers: bool = True, **kwargs: Any
) -> tuple[ImageTensors | None, ImageTensors | None]:
    """As cifar10, with 100 classes."""
    return _load("cifar100", **kwargs)


def _load(
    name: str,
    input_format: InputFormat = FORMAT,
    data_dir: str | None = None,
    splits: tuple[str, ...] = ("train", "test"),
    **kwargs: Any,
) -> tuple[ImageTensors | None, ImageTensors | None]:
    folder = _find(name, data_dir)
    train, test = (
        _read_split(name, folder, split, input_format) if split in splits else None for split in ("train", "test")
    )
    return train, test


def _find(name: str, data_dir: str | None) -> Path:
    """The folder with the batch files: under (or at) data_dir, or in the cache, downloaded if need be."""
    layout = _LAYOUTS[name]
    if data_dir is not None:
        root = Path(data_dir).expanduser()
        for folder in (root / layout["folder"], root):
            if (folder / layout["test"][0]).is_file():
                return folder
        there = sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else None
        found = "there is no such folder" if there is None else f"it holds: {', '.join(there) or 'nothing'}"
        raise NernError(
            f"task.data_dir {data_dir!r} does not hold {name}: {layout['folder']}/{layout['test'][0]} is expected; {found}"
        )
    if (Path("data") / layout["folder"] / layout["test"][0]).is_file():  # where the published framework puts it
        return Path("data") / layout["folder"]
    root = cache_dir() / "data"
    if not (root / layout["folder"] / layout["test"][0]).is_file():
        dataset = getattr(import_torchvision().datasets, layout["dataset"])
        try:
            dataset(root=str(root), train=False, download=True)
        except Exception as error:  # URLError, a broken archive, no space: all need the same remedy
            raise NernError(
                f"{name} could not be downloaded to {root} ({error}). Put {layout['folder']}/ there yourself, or set "
                "task.data_dir to a folder that holds it."
            ) from error
    return root / layout["folder"]


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


def _read_split(name: str, folder: Path, split: str, expected: InputFormat) -> ImageTensors:
    layout = _LAYOUTS[name]
    images, labels = [], []
    for file_name in layout[split]:
        path = folder / file_name
        try:
            with path.open("rb") as file:
                entry = _ArraysOnly(file, encoding="latin1").load()
            data = np.asarray(entry["data"])
            if data.dtype != np.uint8 or data.shape != (len(entry[layout["labels"]]), 3072):
                raise ValueError(f"data of shape {data.shape} and type {data.dtype}")
            classes = TASKS.info(name)["num_classes"]
            if not all(type(label) is int and 0 <= label < classes for label in entry[layout["labels"]]):
                raise ValueError(f"labels that are not whole numbers from 0 to {classes - 1}")
        except FileNotFoundError as error:
            raise NernError(f"{name}: {path} is missing") from error
        except Exception as error:  # whatever a damaged or foreign pickle raises
            raise NernError(f"{name}: {path} is not a batch file of this dataset ({error})") from error
        images.append(data.reshape(-1, 3, 32, 32))
        labels.extend(entry[layout["labels"]])
    pixels = torch.from_numpy(np.concatenate(images))
    return ImageTensors(pixels, torch.tensor(labels), expected.mean, expected.std, pad=PAD, flip=True)
