"""imagenet: ILSVRC 2012 (Russakovsky et al. 2015), from `task.imagenet_path`; it must be fetched by hand."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from nern.errors import NernError
from nern.tasks.base import register_task
from nern.tasks.class_folders import SplitFolders
from nern.tasks.image_folder import load_splits

CLASSES = 1000
TESTS, KEY = ("val", "validation", "valid"), "task.imagenet_path"


@register_task(
    "imagenet",
    num_classes=CLASSES,
    train_images=1_281_167,
    mirrors=True,
    mixup=0.8,
    cutmix=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
)
def imagenet(
    train_kwargs: dict[str, Any],
    test_kwargs: dict[str, Any],
    use_workers: bool = True,
    imagenet_path: str | None = None,
    in_memory: bool | None = None,
    **kwargs: Any,
) -> tuple[DataLoader[Any] | None, DataLoader[Any] | None]:
    """Images of `imagenet_path`/train and /val (or validation, valid), streamed, augmented as timm does."""
    if in_memory:
        raise NernError("task.in_memory is for imagefolder; imagenet is always streamed")
    folders = SplitFolders.at(imagenet_path, TESTS, KEY)
    _check_sorted(folders)
    found = len(folders.classes())
    if found != CLASSES:
        raise NernError(
            f"{KEY} {str(folders.root)!r} has {found} class folders in a split; ImageNet has {CLASSES}. Other folders of "
            "images are task 'imagefolder', with task.data_dir."
        )
    # Published figures of networks are of images as they are stored, whatever their EXIF data say.
    train, test = load_splits(folders, train_kwargs, test_kwargs, in_memory=False, upright=False, **kwargs)
    return train, test  # type: ignore[return-value]


def _check_sorted(folders: SplitFolders) -> None:
    """Raise NernError for the validation images as they are distributed: in one folder."""
    test = folders.find("test")
    flat = None if test is None else next(test.glob("ILSVRC2012_val_*"), None)
    if flat is not None and not any(p.is_dir() for p in flat.parent.iterdir()):
        raise NernError(
            f"{flat.parent} holds the images themselves ({flat.name}, ...). Sort them into a folder for each class "
            "(n01440764, ...): torchvision.datasets.ImageNet(FOLDER, 'val') does so from the archives "
            "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, the widely used script valprep.sh from the images."
        )
