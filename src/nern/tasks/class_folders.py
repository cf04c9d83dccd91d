"""Datasets as folders: one for each split, in it one for each class, in that the image files."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nern.errors import NernError, NernWarning
from nern.tasks.image_files import suffixes

NO_FILE, AGAIN = "pipe, socket, device or broken link", "further link to an image"


@dataclass(frozen=True)
class SplitFolders:
    """The folder of a dataset, with its splits.

    Args:
        root: holds 'train' and one of `tests`; only the splits that are used need be there.
        tests: names of the test split; where several are there, the first of them is used.
        key: the config's key that says where `root` is.
    """

    root: Path
    tests: Sequence[str]
    key: str

    @classmethod
    def at(cls, path: str | None, tests: Sequence[str], key: str) -> SplitFolders:
        """Those in the folder `path`. Raises NernError where there is none."""
        names = f"{tests[0]}/ (or {', '.join(f'{name}/' for name in tests[1:])})"
        if path is None:
            raise NernError(
                f"{key} is not set: it must name a folder that holds train/ and {names}, each with a folder of images for "
                "each class"
            )
        root = Path(path).expanduser()
        if not root.is_dir():
            raise NernError(f"{key} {path!r} is {'no folder' if root.exists() else 'not there'}")
        return cls(root, tests, key)

    def find(self, split: str) -> Path | None:
        """The folder of split 'train' or 'test'; None where it is missing."""
        return next(iter(self._all(split)), None)

    def _all(self, split: str) -> list[Path]:
        names = ["train"] if split == "train" else self.tests
        return [self.root / name for name in names if (self.root / name).is_dir()]

    def split(self, split: str) -> Path:
        """As `find`, but NernError where it is missing."""
        folder = self.find(split)
        if folder is None:
            wanted = "train/" if split == "train" else " or ".join(f"{name}/" for name in self.tests)
            raise NernError(f"{self.key} {str(self.root)!r} has no folder {wanted}; it holds: {content(self.root)}")
        return folder

    def classes(self) -> list[str]:
        """Names of the classes: those of the training folder, sorted as text; the number of a class is its place.

        Raises:
            NernError: no split is there, one has no class folders, or a class is in the test split only.
        """
        train, test = self.find("train"), self.find("test")
        names = class_folders(train or self.split("test"))
        if train is not None and test is not None:
            unknown = sorted(class_folders(test).keys() - names.keys())
            if unknown:
                raise NernError(
                    f"{self.key} {str(self.root)!r}: {test.name}/ has class folders that train/ lacks: {_few(unknown)}. "
                    "Rename or remove them; a class needs training images"
                )
        return list(names)

    def images(self, splits: Iterable[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each of these splits, its image files (see `list_images`). Warns, in a line each, of files passed over, of
        class names with numbers, whose order as text is another one, and of several test folders.

        Raises:
            NernError: a split without images, a class without training images, a folder that cannot be read.
        """
        names, passed = self.classes(), Counter[str]()
        found = {split: list_images(self.split(split), names, passed, split == "test") for split in splits}
        if passed:
            parts = [f"{count} {what}" for what, count in sorted(passed.items(), key=lambda item: (-item[1], item[0]))]
            _warn(f"{passed.total()} files in {self.root} are passed over as no images: {_few(parts, 8)}")
        if names != sorted(names, key=_by_number):
            numbered = [f"{number} is {name!r}" for number, name in enumerate(names)]
            _warn(
                f"the classes in {self.root} are numbered in the order of their names as text: {_few(numbered, 4)}. Where "
                "that is not the order of the network's outputs, write the numbers in the names with leading zeros"
            )
        if "test" in found and len(self._all("test")) > 1:
            used, *others = (f"{folder.name}/" for folder in self._all("test"))
            _warn(f"{self.root} holds {used} and {', '.join(others)}: the test images are those of {used}")
        return found


def _warn(text: str) -> None:
    warnings.warn(text, NernWarning, stacklevel=3)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them."""
    return [(int(part), "") if number % 2 else (-1, part) for number, part in enumerate(re.split(r"(\d+)", name))]


def _few(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def content(folder: Path) -> str:
    """What a folder holds, in words."""
    return _few(sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir()), 8) or "nothing"


def class_folders(folder: Path) -> dict[str, list[str]]:
    """Of each class in a split's folder, its name, and the folder that has it; sorted, hidden folders left out. Names that
    differ in how Unicode composes their letters are one: such a class may have several folders.

    Raises:
        NernError: there are none, or the folder cannot be read.
    """
    found: dict[str, list[str]] = {}
    with _reading(folder) as entries:
        for name in sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")):
            found.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    if not found:
        raise NernError(
            f"{folder} has no class folders; it must hold a folder of images for each class and holds: {content(folder)}"
        )
    return found


def _reading(folder: str | Path) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(str(folder))
    except OSError as error:
        raise NernError(f"the folder {folder} cannot be read: {error.strerror}") from error


def list_images(
    folder: Path, classes: Sequence[str], passed: Counter[str], may_lack: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Image files of a split, those in folders within a class's folder, too: (paths as bytes, class numbers).

    Classes take turns, so that the first n are of all classes.

    Args:
        folder: of the split.
        classes: their names.
        passed: files that are no images are added here, by suffix; hidden ones are not.
        may_lack: classes may have no images here.

    Raises:
        NernError: a class without images, where none may be; no images at all; a folder that cannot be read.
    """
    by_class = _Walk(folder).run(class_folders(folder), classes, passed)
    empty = [name for name, files in zip(classes, by_class, strict=True) if not files]
    if (empty and not may_lack) or not any(by_class):
        raise NernError(
            f"class folders without images in {folder}: {_few(empty)}. Images are files that end in "
            f"{', '.join(sorted(suffixes()))}; remove what is no class from all splits. An image counts once, in the class "
            "whose folder holds the file itself, whatever links lead to it"
        )
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in by_class])
    turns = np.concatenate([np.arange(len(files)) for files in by_class])
    order = np.lexsort((labels, turns))
    return np.array([file for files in by_class for file in files])[order], labels[order]


class _Walk:
    """Visits each real folder and file of a split once: first what is there itself, then what links lead to, in the order
    of classes and names. Links to a folder that the split's folder lies in are not followed. Hard links are files of
    their own."""

    def __init__(self, top: Path) -> None:
        self.top, self.suffixes = top, tuple(suffixes())
        real = Path(os.path.realpath(top))
        self.seen = {_identity(str(folder)) for folder in (real, *real.parents)}
        self.links: list[tuple[int, str]] = []  # class number and path, not yet followed
        self.real: set[str] | None = None  # files found, without links in their paths; made for the first linked file

    def run(self, folders: dict[str, list[str]], classes: Sequence[str], passed: Counter[str]) -> list[list[bytes]]:
        """Files of each class, sorted."""
        self.found: list[list[bytes]] = [[] for _ in classes]  # bytes: a fraction of the memory
        self.passed = passed
        for label, name in enumerate(classes):
            for own in folders.get(name, ()):
                path = os.path.join(self.top, own)
                if os.path.islink(path):
                    self.links.append((label, path))
                else:
                    self._folder(label, path)
        while self.links:
            links, self.links = sorted(self.links), []
            for label, path in links:
                if os.path.isdir(path):
                    self._folder(label, path)
                else:
                    self._file(label, path, link=True)
        return [sorted(files) for files in self.found]

    def _folder(self, label: int, path: str) -> None:
        waiting = [path]
        while waiting:
            path = waiting.pop()
            identity = _identity(path)
            if identity in self.seen:
                continue
            self.seen.add(identity)
            with _reading(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        self.links.append((label, entry.path))
                    elif entry.is_dir():
                        waiting.append(entry.path)
                    else:
                        self._file(label, entry.path)

    def _file(self, label: int, path: str, link: bool = False) -> None:
        suffix = os.path.splitext(path)[1].lower()
        if not os.path.isfile(path):
            self.passed[NO_FILE] += 1
        elif suffix not in self.suffixes:
            self.passed[suffix or "without suffix"] += 1
        elif self._again(path, link):
            self.passed[AGAIN] += 1
        else:
            self.found[label].append(os.fsencode(path))

    def _again(self, path: str, link: bool) -> bool:
        if link and self.real is None:
            self.real = {os.path.realpath(os.fsdecode(file)) for files in self.found for file in files}
        if self.real is None:
            return False
        real = os.path.realpath(path)
        known = real in self.real
        self.real.add(real)
        return known


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise NernError(f"the folder {path} cannot be read: {error.strerror}") from error
    return status.st_dev, status.st_ino
