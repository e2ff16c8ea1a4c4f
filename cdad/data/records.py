"""What a data set is made of: samples, classes and the rules that every layout shares."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError

MAX_NAME_BYTES = 200
"""Of a class's name in UTF-8: a file that is named after it has room for more."""

GOOD = {"good", "ok", "normal", "pass", "passed", "sound", "nondefective", "defectfree"}
"""What normal images are called, by `plain_name`."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


ImageLike = str | os.PathLike | np.ndarray | Image.Image


@dataclass(frozen=True, eq=False)
class MemoryImage:
    """An image that was handed over itself, not its path, and is read like a file's: an array (uint8, uint16, or float in [0,1]; [H,W,3],
    or [H,W] and [H,W,1] of grey) or a PIL image, never written; ``name``: what errors call it."""

    content: Any
    name: str


@dataclass(frozen=True)
class Sample:
    """One test image: ``label`` 0 is normal, 1 anomalous; ``defect`` is "good" for normal images."""

    path: Path
    class_name: str
    label: int
    defect: str
    mask_path: Path | None


@dataclass(frozen=True)
class ClassData:
    """One class (product): normal images to train on, which may lie in memory (`ImageLike`), and samples to test on (none in layout
    "folder"), which are files."""

    name: str
    train: tuple[ImageLike | MemoryImage, ...]
    test: tuple[Sample, ...]

    def __repr__(self) -> str:
        return f"ClassData({self.name}: {len(self.train)} train, {len(self.test)} test)"


class Dataset(Mapping[str, ClassData]):
    """The classes of a data set by name, in alphabetical order. ``a | b`` joins two data sets. DataError: two of one name, or a
    name that `check_name` refuses."""

    def __init__(self, classes: Iterable[ClassData]):
        self._classes: dict[str, ClassData] = {}
        classes = list(classes)
        for data in classes:
            if not isinstance(data, ClassData):
                raise TypeError(f"a data set is made of ClassData, not of {type(data).__name__}")
            check_name(data.name)
        for data in sorted(classes, key=lambda data: data.name):
            if data.name in self._classes:
                raise DataError(f"two classes are named {data.name!r}")
            self._classes[data.name] = data

    def __getitem__(self, name: str) -> ClassData:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __or__(self, other: Dataset) -> Dataset:
        return Dataset([*self.values(), *other.values()])

    def __repr__(self) -> str:
        counts = (f"{c.name}: {len(c.train)} train, {len(c.test)} test" for c in self.values())
        return f"Dataset({'; '.join(counts)})"


def check_classes(names: Iterable[str], known: Iterable[str], where: str = "in the data") -> None:
    """Raise DataError, with those that are ``known`` and the nearest match, for the first of ``names`` that is not."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7) if isinstance(name, str) else []
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"no class {name!r} {where}; {hint}known: {', '.join(known) or 'none'}")


def check_name(name: Any, where: str = "") -> str:
    """A class's name as a plain str. DataError, saying ``where`` it stands: one that tensors, files and tables cannot be named
    after, which are those of a checkpoint and a run: empty, longer than 200 bytes, or with a slash, a control character, an end
    of a line or what is no Unicode text."""
    where = where and f" ({where})"
    if not isinstance(name, str):
        raise DataError(f"a class's name is a str, not {type(name).__name__}{where}")
    name = str.__str__(name)
    shown = repr(name if len(name) <= 60 else name[:57] + "...")
    if not name.strip():
        raise DataError(f"class {shown} has an empty name{where}")
    for character in name:
        if character == "/" or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise DataError(f"class {shown} has {character!r} in its name, which names cannot hold{where}")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise DataError(f"class {shown} has a name of {len(name.encode())} bytes, the limit is {MAX_NAME_BYTES}{where}")
    return name


def plain_name(name: str) -> str:
    """In small letters, without what stands between words."""
    return "".join(c for c in name.casefold() if c not in " -_.")


def is_image_name(name: str) -> bool:
    """Whether a file's name has an image suffix and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def require_normal(name: str, train: Iterable[Path], folder: Path) -> tuple[Path, ...]:
    """``train`` as a tuple; DataError, naming class and folder, where it is empty."""
    train = tuple(train)
    if not train:
        raise DataError(f"class {name!r} has no normal training images in {folder}")
    return train


def list_folders(folder: Path) -> list[Path]:
    """Sub-folders that are not hidden, sorted; none where ``folder`` does not exist."""
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if not f.name.startswith(".") and f.is_dir())


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, sorted; none where it does not exist."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if is_image_name(path.name))
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is named like an image and is not a regular file")
    return paths


def spread(items: Sequence, n: int) -> list:
    """At most ``n`` of the items, evenly spread over their order."""
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else list(items)
