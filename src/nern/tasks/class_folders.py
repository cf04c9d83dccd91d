"""Datasets as folders: one for each split, in it one for each class, in that the image files."""

from __future__ import annotations

import heapq
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nern.errors import NernError, NernWarning

NO_FILE, AGAIN, OUTSIDE = "pipe, socket, device or broken link", "further link to an image", "in no class folder"


@dataclass(frozen=True)
class SplitFolders:
    """The folder of a dataset, with its splits.

    Args:
        path: of the folder: it holds 'train' and one of `tests`; only the splits that are used need be there.
        tests: names of the test split; where several are there, the first of them is used.
        key: the config's key that says `path`.

    Raises:
        NernError: there is no such folder.
    """

    path: str | None
    tests: Sequence[str]
    key: str

    def __post_init__(self) -> None:
        if self.path is None:
            names = f"{self.tests[0]}/ (or {', '.join(f'{name}/' for name in self.tests[1:])})"
            raise NernError(
                f"{self.key} is not set: it must name a folder that holds train/ and {names}, each with a folder of images "
                "for each class"
            )
        if not self.root.is_dir():
            raise NernError(f"{self.key} {self.path!r} is {'no folder' if self.root.exists() else 'not there'}")

    @property
    def root(self) -> Path:
        """The folder."""
        return Path(self.path or "").expanduser()

    def there(self, split: str) -> list[Path]:
        """The folders that are there of split 'train' or 'test'; the first of them is used."""
        names = ["train"] if split == "train" else self.tests
        return [self.root / name for name in names if (self.root / name).is_dir()]

    def folder(self, split: str) -> Path:
        """The folder of a split. Raises NernError where it is missing."""
        if folders := self.there(split):
            return folders[0]
        wanted = "train/" if split == "train" else " or ".join(f"{name}/" for name in self.tests)
        raise NernError(f"{self.key} {str(self.root)!r} has no folder {wanted}; it holds: {_content(self.root)}")

    def classes(self) -> list[str]:
        """Names of the classes: those of the training folder, sorted as text; the number of a class is its place. Where it
        has none or only some of the test folder's, as for an evaluation alone, the test folder names them.

        Raises:
            NernError: no split is there, none has class folders, or each has a class that the other lacks.
        """
        train, test = (self._class_names(split) for split in ("train", "test"))
        names = test if train <= test else train
        if not names:
            class_folders(self.folder("test"))  # says what is there instead
        if unknown := sorted(test - names):
            raise NernError(
                f"{self.key} {str(self.root)!r}: {self.folder('test').name}/ has class folders that train/ lacks: "
                f"{_few(unknown)}. Rename or remove them; a class needs training images"
            )
        return sorted(names)

    def _class_names(self, split: str) -> set[str]:
        """Those of a split's folder, if it is there and has any."""
        folders = self.there(split)
        return set(_found_classes(folders[0])) if folders else set()

    def images(self, splits: Iterable[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each of these splits, its image files, those in folders within a class's folder, too: (paths as bytes, class
        numbers). Classes take turns, so that the first n are of all classes.

        Warns, in a line each, of files passed over, of class names with numbers, whose order as text is another one, and of
        several test folders.

        Raises:
            NernError: a split without images, a class without training images, a folder that cannot be read.
        """
        names, passed = self.classes(), Counter[str]()
        found = {split: self._images(split, names, passed) for split in splits}
        if passed:
            _warn(f"{passed.total()} files in {self.root} are passed over as no images: {_counted(passed)}")
        if names != sorted(names, key=_by_number):
            numbered = [f"{number} is {name!r}" for number, name in enumerate(names)]
            _warn(
                f"the classes in {self.root} are numbered in the order of their names as text: {_few(numbered, 4)}. Where "
                "that is not the order of the network's outputs, write the numbers in the names with leading zeros"
            )
        if "test" in found and len(self.there("test")) > 1:
            used, *others = (f"{folder.name}/" for folder in self.there("test"))
            _warn(f"{self.root} holds {used} and {', '.join(others)}: the test images are those of {used}")
        return found

    def _images(self, split: str, classes: Sequence[str], passed: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
        folder = self.folder(split)
        here = Counter[str]()
        by_class = files_of_classes(folder, classes, here)
        passed.update(here)
        empty = [name for name, files in zip(classes, by_class, strict=True) if not files]
        if (empty and split == "train") or not any(by_class):
            from nern.tasks.image_files import suffixes

            others = f". Passed over: {_counted(here)}" if here else ""
            raise NernError(
                f"class folders without images in {folder}: {_few(empty)}. Images are files that end in "
                f"{', '.join(sorted(suffixes()))}; remove what is no class from all splits. An image counts once, in the "
                f"class whose folder holds the file itself, whatever links lead to it{others}"
            )
        labels = np.repeat(np.arange(len(classes)), [len(files) for files in by_class])
        turns = np.concatenate([np.arange(len(files)) for files in by_class])
        order = np.lexsort((labels, turns))
        return np.array([file for files in by_class for file in files])[order], labels[order]


def _warn(text: str) -> None:
    warnings.warn(text, NernWarning, stacklevel=3)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them."""
    return [(int(part), "") if number % 2 else (-1, part) for number, part in enumerate(re.split(r"(\d+)", name))]


def _few(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _counted(passed: Counter[str]) -> str:
    """What was passed over, the most frequent first."""
    most = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    return _few([f"{count} {what}" for what, count in most], 8)


def _content(folder: Path) -> str:
    """What a folder holds, in words."""
    return _few(sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir()), 8) or "nothing"


def class_folders(folder: Path) -> dict[str, list[os.DirEntry[str]]]:
    """Of each class in a split's folder, its name, and the folder that has it; sorted, hidden folders left out. Names that
    differ in how Unicode composes their letters are one: such a class may have several folders.

    Raises:
        NernError: there are none, or the folder cannot be read.
    """
    found = _found_classes(folder)
    if not found:
        raise NernError(
            f"{folder} has no class folders; it must hold a folder of images for each class and holds: {_content(folder)}"
        )
    return found


def _found_classes(folder: Path) -> dict[str, list[os.DirEntry[str]]]:
    found: dict[str, list[os.DirEntry[str]]] = {}
    for entry in _entries(str(folder)):
        if os.path.isdir(entry.path):  # of a link to itself the entry would raise an error
            found.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry)
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, but for what is hidden."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise NernError(f"the folder {folder} cannot be read: {error.strerror}") from error


def files_of_classes(folder: Path, classes: Sequence[str], passed: Counter[str]) -> list[list[bytes]]:
    """Image files of each class of a split, sorted.

    Each real folder and file is visited once: first what is there itself, then what links lead to, in the order of classes
    and names. Links to a folder that the split's folder lies in are not followed. Hard links are files of their own.

    Args:
        folder: of the split.
        classes: their names.
        passed: files that are no images are added here, by suffix, and images in no class's folder; hidden ones are not.
    """
    from nern.tasks.image_files import suffixes  # Pillow need not be installed

    images, found = suffixes(), [list[bytes]() for _ in classes]  # bytes: a fraction of the memory
    top = os.path.realpath(folder)
    seen = {os.fsencode(path) for path in (Path(top), *Path(top).parents)}
    # A heap: links gone through, class, path, path without links; whether it is a folder, and whether a file.
    waiting: list[tuple[int, int, str, str, bool, bool]] = []

    def enqueue(entry: os.DirEntry[str], links: int, label: int, real_folder: str) -> None:
        link = entry.is_symlink()
        if link:  # of a link to itself the entry would raise an error
            real, kind = os.path.realpath(entry.path), (os.path.isdir(entry.path), os.path.isfile(entry.path))
        else:  # known without asking the system again
            real, kind = os.path.join(real_folder, entry.name), (entry.is_dir(), entry.is_file())
        heapq.heappush(waiting, (links + link, label, entry.path, real, *kind))

    for entry in _entries(str(folder)):  # beside the class folders; other files there are no one's mistake
        if not os.path.exists(entry.path) or not (entry.is_dir() or entry.is_file()):
            passed[NO_FILE] += 1
        elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in images:
            passed[OUTSIDE] += 1
    folders = class_folders(folder)
    for label, name in enumerate(classes):
        for entry in folders.get(name, ()):
            enqueue(entry, 0, label, top)
    while waiting:
        links, label, path, real, is_folder, is_file = heapq.heappop(waiting)
        suffix, again = os.path.splitext(path)[1].lower(), os.fsencode(real) in seen
        if is_folder:
            for entry in [] if again else _entries(path):
                enqueue(entry, links, label, real)
        elif not is_file:
            passed[NO_FILE] += 1
        elif suffix not in images:
            passed[suffix or "without suffix"] += 1
        elif again:
            passed[AGAIN] += 1
        else:
            found[label].append(os.fsencode(path))
        seen.add(os.fsencode(real))
    return [sorted(files) for files in found]
